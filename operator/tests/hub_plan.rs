//! What the hub wants, for worlds written in a few lines each.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::sync::Arc;

use expect_test::{Expect, expect};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::ResourceExt;
use serde_json::{Value, json};
use slice_crds::{
    conditions,
    v1alpha1::{Cluster, MemberReport, MemberSlice, SliceConfig},
};
use slice_operator::hub::plan::{Plan, World, plan};

const NOW: i64 = 1_800_000_000;

fn object<T: serde::de::DeserializeOwned>(
    kind: &str,
    namespace: &str,
    name: &str,
    spec: &Value,
    age: i64,
) -> T {
    let created = Time(Timestamp::from_second(NOW - age).unwrap());
    let value = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
    });
    serde_json::from_value(value).unwrap()
}

fn world() -> World {
    World::default()
}

trait Build: Sized {
    fn cluster(self, name: &str) -> Self;
    fn report(self, cluster: &str, more: Value) -> Self;
    fn slice(self, name: &str, spec: Value) -> Self;
    /// The same world after its plan was written.
    fn settled(self) -> Self;
    fn check(&self, expected: Expect);
}

impl Build for World {
    fn cluster(mut self, name: &str) -> Self {
        let age = 1000 - i64::try_from(self.clusters.len()).unwrap();
        self.clusters.push(Arc::new(object::<Cluster>(
            "Cluster",
            "weft-default",
            name,
            &json!({}),
            age,
        )));
        self
    }

    fn report(mut self, cluster: &str, more: Value) -> Self {
        let mut spec = json!({
            "observedAt": Time(Timestamp::from_second(NOW - 5).unwrap()), "weftVersion": "0.1.0",
            "kubernetesVersion": "v1.37.1", "nodes": 2, "underlayMtu": 1500,
            "podCIDRs": ["10.244.0.0/16"], "serviceCIDRs": ["10.96.0.0/16"], "nodeCIDRs": ["172.30.1.11/32"],
        });
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let namespace = format!("weft-member-{cluster}");
        let report = object::<MemberReport>("MemberReport", &namespace, "report", &spec, 0);
        self.reports.insert(namespace, Arc::new(report));
        self
    }

    fn slice(mut self, name: &str, spec: Value) -> Self {
        let age = 500 - i64::try_from(self.slices.len()).unwrap();
        self.slices.push(Arc::new(object::<SliceConfig>(
            "SliceConfig",
            "weft-default",
            name,
            &spec,
            age,
        )));
        self
    }

    fn settled(mut self) -> Self {
        let plan = run(&self);
        for (_, name, status) in plan.slice_status {
            let slice = self
                .slices
                .iter_mut()
                .find(|slice| slice.name_any() == name)
                .unwrap();
            Arc::make_mut(slice).status = Some(status);
        }
        for (_, name, status) in plan.cluster_status {
            let cluster = self
                .clusters
                .iter_mut()
                .find(|cluster| cluster.name_any() == name)
                .unwrap();
            Arc::make_mut(cluster).status = Some(status);
        }
        self.told = plan.member_slices.into_iter().map(Arc::new).collect();
        self
    }

    #[track_caller]
    fn check(&self, expected: Expect) {
        expected.assert_eq(&text(&run(self)));
    }
}

fn run(world: &World) -> Plan {
    plan(world, Timestamp::from_second(NOW).unwrap())
}

/// A plan as a reviewer wants to read it.
fn text(plan: &Plan) -> String {
    let mut lines = Vec::new();
    for object in &plan.member_slices {
        let slice = &object.spec.slice;
        let ranges: Vec<_> = slice.ranges.iter().map(ToString::to_string).collect();
        let peers: Vec<_> = slice
            .peers
            .iter()
            .map(|peer| {
                let ranges: Vec<_> = peer.ranges.iter().map(ToString::to_string).collect();
                format!(
                    "{}#{} {} with {} gateways",
                    peer.name,
                    peer.number,
                    ranges.join(","),
                    peer.gateways.len()
                )
            })
            .collect();
        lines.push(format!(
            "tell {} {}: vni {} mtu {} block {} own {} peers [{}] rules {}",
            slice.cluster,
            object.name_any(),
            slice.vni,
            slice.mtu,
            slice.block_size,
            ranges.join(","),
            peers.join("; "),
            slice.namespaces.len()
        ));
    }
    for (_, name, status) in &plan.slice_status {
        if let Some(condition) = conditions::find(&status.conditions, conditions::ACCEPTED) {
            lines.push(format!(
                "slice {name} Accepted={} {}: {}",
                condition.status, condition.reason, condition.message
            ));
        }
    }
    lines.join("\n") + "\n"
}

fn two() -> World {
    world()
        .cluster("a")
        .report("a", json!({}))
        .cluster("b")
        .report("b", json!({}))
}

fn shop() -> Value {
    json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"]})
}

#[test]
fn two_clusters_share_a_slice() {
    two().slice("shop", shop()).check(expect![[r#"
        tell a shop: vni 4097 mtu 1370 block 64 own 0+8192 peers [b#2 8192+8192 with 0 gateways] rules 0
        tell b shop: vni 4097 mtu 1370 block 64 own 8192+8192 peers [a#1 0+8192 with 0 gateways] rules 0
        slice shop Accepted=True Accepted: the configuration is in force
    "#]]);
}

/// What a member with one gateway reports of its keys.
fn gateway(keys: Value) -> Value {
    let mut gateway = json!({"ordinal": 0, "up": true, "endpoints": ["192.0.2.1:30001"]});
    gateway
        .as_object_mut()
        .unwrap()
        .extend(keys.as_object().unwrap().clone());
    json!({"slices": [{"name": "shop", "attachments": 0, "gateways": [gateway]}]})
}

/// Keys that member a is told to trust.
fn trusted(slice: Value, keys: Value) -> Vec<(String, Option<String>)> {
    let world = world().cluster("a").report("a", json!({})).cluster("b");
    let plan = run(&world.report("b", gateway(keys)).slice("shop", slice));
    let mut peers = plan.member_slices[0].spec.slice.peers.iter();
    let gateways = peers.next().unwrap().gateways.iter();
    gateways
        .map(|gateway| (gateway.public_key.clone(), gateway.former_key.clone()))
        .collect()
}

#[test]
fn a_gateway_that_changes_its_key_is_known_by_both() {
    let both = trusted(shop(), json!({"publicKey": "K2", "formerKey": "K1"}));
    assert_eq!(both, [("K2".into(), Some("K1".into()))]);
}

#[test]
fn a_key_from_before_a_revocation_is_told_to_nobody() {
    let revoked =
        |at: &str| json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"], "gateway": {"revokedAt": at}});
    let (first, second) = ("2026-11-21T10:00:00Z", "2026-11-21T11:00:00Z");
    let told = |keys| trusted(revoked(second), keys);
    assert_eq!(told(json!({"publicKey": "K1"})), []);
    assert_eq!(told(json!({"publicKey": "K1", "revocation": first})), []);
    let after = json!({"publicKey": "K2", "revocation": second});
    assert_eq!(told(after.clone()), [("K2".into(), None)]);
    assert_eq!(
        trusted(shop(), after).len(),
        1,
        "a revocation that is written no longer"
    );
}

#[test]
fn a_renewal_that_waits_names_whom_it_waits_for() {
    let said = |keys| {
        let world = world().cluster("a").report("a", json!({})).cluster("b");
        let plan = run(&world.report("b", gateway(keys)).slice("shop", shop()));
        let keys = conditions::find(&plan.slice_status[0].2.conditions, conditions::KEYS_CURRENT).unwrap();
        format!("{} {}: {}", keys.status, keys.reason, keys.message)
    };
    let waits = said(json!({"publicKey": "K2", "formerKey": "K1", "renewalWaitsFor": "db1/0"}));
    let expected =
        "False RenewalWaits: gateway b/0 is to change its key, but db1 only knows the one before: ";
    assert!(waits.starts_with(expected), "{waits}");
    assert!(
        waits.contains("`slicectl peer script db1 --slice shop`"),
        "{waits}"
    );
    assert!(said(json!({"publicKey": "K2"})).starts_with("True KeysRenewed: "));
}

#[test]
fn gateways_are_told_when_to_change_their_keys() {
    let spec = json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"], "gateway": {
        "rotation": "1h30m", "renewedAt": "2026-11-21T10:00:00Z", "revokedAt": "2026-11-21T11:00:00Z",
    }});
    for (spec, expected) in [
        (
            spec,
            json!({"rotationSeconds": 5400, "renewal": "2026-11-21T10:00:00Z", "revocation": "2026-11-21T11:00:00Z"}),
        ),
        (shop(), json!({"rotationSeconds": 86400})),
    ] {
        let plan = run(&two().slice("shop", spec));
        let keys = &plan.member_slices[0].spec.slice.gateway.keys;
        assert_eq!(serde_json::to_value(keys).unwrap(), expected);
    }
}

#[test]
fn gateways_have_the_threads_that_the_slice_asks_for() {
    let four = json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"], "gateway": {"threads": 4}});
    for (spec, expected) in [(four, 4), (shop(), 1)] {
        let plan = run(&two().slice("shop", spec));
        let threads = |object: &MemberSlice| object.spec.slice.gateway.threads;
        assert!(
            plan.member_slices
                .iter()
                .all(|object| threads(object) == expected)
        );
    }
}

#[test]
fn what_was_given_stays_given() {
    let before = two().slice("shop", shop()).settled();
    let first = text(&run(&before));
    // An older slice and an older cluster appear: neither takes anything away.
    let world = before
        .cluster("c")
        .report("c", json!({}))
        .slice("bank", json!({"subnets": ["10.80.0.0/16"], "clusters": ["c"]}));
    let both = text(&run(&world));
    for line in first.lines() {
        assert!(both.contains(line), "{both} lacks {line}");
    }
    assert!(
        both.contains("tell c bank: vni 4098 mtu 1370 block 64 own 0+16384"),
        "{both}"
    );
}

#[test]
fn an_unknown_cluster_is_named_and_the_known_ones_are_served() {
    two().slice("shop", json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b", "mars"]})).check(expect![[r#"
        tell a shop: vni 4097 mtu 1370 block 64 own 0+8192 peers [b#2 8192+8192 with 0 gateways] rules 0
        tell b shop: vni 4097 mtu 1370 block 64 own 8192+8192 peers [a#1 0+8192 with 0 gateways] rules 0
        slice shop Accepted=False UnknownCluster: spec.clusters names "mars", which is no Cluster in namespace weft-default; there are: a, b. Register it with `slicectl token issue mars`, or correct the name
    "#]]);
}

#[test]
fn a_subnet_that_overlaps_a_members_network_keeps_that_member_out_and_names_both() {
    two()
        .report("b", json!({"podCIDRs": ["10.80.128.0/17"]}))
        .slice("shop", shop())
        .check(expect![[r#"
            tell a shop: vni 4097 mtu 1370 block 64 own 0+16384 peers [] rules 0
            slice shop Accepted=False SubnetOverlap: spec.subnets has 10.80.0.0/16, which overlaps the pod network 10.80.128.0/17 of cluster b: choose a subnet outside it, or leave the cluster out
        "#]]);
}

#[test]
fn an_overlap_that_comes_later_disturbs_nothing_that_runs() {
    let settled = two().slice("shop", shop()).settled();
    settled.report("b", json!({"podCIDRs": ["10.80.128.0/17"]})).check(expect![[r#"
        tell a shop: vni 4097 mtu 1370 block 64 own 0+8192 peers [b#2 8192+8192 with 0 gateways] rules 0
        tell b shop: vni 4097 mtu 1370 block 64 own 8192+8192 peers [a#1 0+8192 with 0 gateways] rules 0
        slice shop Accepted=False SubnetOverlap: spec.subnets has 10.80.0.0/16, which overlaps the pod network 10.80.128.0/17 of cluster b: choose a subnet outside it, or leave the cluster out
    "#]]);
}

#[test]
fn a_subnet_too_small_says_what_a_cluster_needs() {
    two()
        .report("a", json!({"nodes": 8}))
        .slice("shop", json!({"subnets": ["10.80.0.0/28"], "clusters": ["a", "b"]}))
        .check(expect![[r#"
            tell a shop: vni 4097 mtu 1370 block 2 own 0+16 peers [] rules 0
            slice shop Accepted=False SubnetTooSmall: spec.subnets 10.80.0.0/28 has 16 addresses, too few for cluster b beside the others: every node of a cluster takes 2 of them; create a slice with a larger subnet
        "#]]);
}

#[test]
fn a_cluster_that_wants_more_gets_another_range() {
    let settled = two().slice("shop", shop()).settled();
    settled.report("a", json!({"slices": [{"name": "shop", "attachments": 9, "blocksWanted": 3}]})).check(expect![[r#"
        tell a shop: vni 4097 mtu 1370 block 64 own 0+8192,16384+256 peers [b#2 8192+8192 with 0 gateways] rules 0
        tell b shop: vni 4097 mtu 1370 block 64 own 8192+8192 peers [a#1 0+8192,16384+256 with 0 gateways] rules 0
        slice shop Accepted=True Accepted: the configuration is in force
    "#]]);
}

#[test]
fn a_selector_that_cannot_be_parsed_leaves_the_rules_in_force() {
    let rule =
        |operator: &str| json!({"selector": {"matchExpressions": [{"key": "team", "operator": operator}]}});
    let with = |operator: &str| {
        let mut spec = shop();
        spec.as_object_mut()
            .unwrap()
            .insert("namespaces".into(), json!([rule(operator)]));
        spec
    };
    let mut settled = two().slice("shop", with("Exists")).settled();
    Arc::make_mut(&mut settled.slices[0]).spec = serde_json::from_value(with("Like")).unwrap();
    let text = text(&run(&settled));
    assert!(
        text.contains("rules 1") && text.contains("SelectorInvalid: spec.namespaces[0].selector:"),
        "{text}"
    );
}

#[test]
fn a_silent_member_is_unknown_and_keeps_its_slices() {
    let long_ago = Time(Timestamp::from_second(NOW - 600).unwrap());
    let world = two()
        .slice("shop", shop())
        .settled()
        .report("b", json!({"observedAt": long_ago}));
    let plan = run(&world);
    assert_eq!(plan.member_slices.len(), 2);
    let (_, _, status) = &plan.cluster_status[1];
    let ready = &status.conditions[0];
    assert_eq!(
        (ready.type_.as_str(), ready.status.as_str(), ready.reason.as_str()),
        ("Ready", "Unknown", "Silent")
    );
}

/// A slice with hosts outside the clusters.
fn shop_with(peers: &[&str]) -> Value {
    let mut spec = shop();
    let peers = peers
        .iter()
        .map(|name| json!({"name": name, "publicKey": format!("key of {name}")}));
    spec["peers"] = peers.collect();
    spec
}

/// What the hosts of the one slice were given.
fn given(world: &World) -> Vec<String> {
    let plan = run(world);
    let (_, _, status) = &plan.slice_status[0];
    let peers = status.peers.iter();
    peers
        .map(|peer| {
            format!(
                "{} {} {} {:?}",
                peer.name, peer.ordinal, peer.index, peer.addresses
            )
        })
        .collect()
}

#[test]
fn a_host_is_told_to_every_member_as_a_cluster_of_one() {
    two().slice("shop", shop_with(&["db1"])).check(expect![[r#"
        tell a shop: vni 4097 mtu 1370 block 64 own 0+8192 peers [b#2 8192+8192 with 0 gateways; db1#511 65534+1 with 1 gateways] rules 0
        tell b shop: vni 4097 mtu 1370 block 64 own 8192+8192 peers [a#1 0+8192 with 0 gateways; db1#511 65534+1 with 1 gateways] rules 0
        slice shop Accepted=True Accepted: the configuration is in force
    "#]]);
}

#[test]
fn what_a_host_was_given_stays_given() {
    let mut world = two().slice("shop", shop_with(&["db1", "db2"])).settled();
    assert_eq!(
        given(&world),
        ["db1 0 65534 [10.80.255.254]", "db2 1 65533 [10.80.255.253]"]
    );
    let change = |world: &mut World, peers: &[&str]| {
        let slice = Arc::make_mut(&mut world.slices[0]);
        slice.spec = serde_json::from_value(shop_with(peers)).unwrap();
    };
    // A new one comes before the others, and the first one goes.
    change(&mut world, &["db0", "db2"]);
    let mut world = world.settled();
    assert_eq!(
        given(&world),
        ["db0 0 65534 [10.80.255.254]", "db2 1 65533 [10.80.255.253]"]
    );
    change(&mut world, &["db2"]);
    assert_eq!(given(&world), ["db2 1 65533 [10.80.255.253]"]);
}

#[test]
fn a_host_with_the_name_of_a_cluster_is_refused_and_named() {
    two().slice("shop", shop_with(&["b"])).check(expect![[r#"
        tell a shop: vni 4097 mtu 1370 block 64 own 0+8192 peers [b#2 8192+8192 with 0 gateways] rules 0
        tell b shop: vni 4097 mtu 1370 block 64 own 8192+8192 peers [a#1 0+8192 with 0 gateways] rules 0
        slice shop Accepted=False PeerRefused: spec.peers names "b", which is a member cluster of the slice: give the host another name
    "#]]);
}
