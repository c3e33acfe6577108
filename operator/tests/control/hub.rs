//! What the hub tells members and users.

use expect_test::expect;
use serde_json::{Value, json};
use slice_crds::conditions;
use slice_operator::control::{Failure, Outcome, Reason};

use crate::stage::{KEYS, SHOP, Stage, gateway, shop, two};

#[test]
fn two_clusters_share_a_slice() {
    expect![[r#"
        vni-15554275 shop Held
        a shop: vni 15554275 mtu 1370 #1 0+8192 peers ["b:0"] rules 0
        b shop: vni 15554275 mtu 1370 #2 8192+8192 peers ["a:0"] rules 0
        shop Accepted=True Accepted: the configuration is in force
        shop Ready=False Pending: cluster a has not set the slice up yet: see `kubectl -n weft-system logs deploy/weft-operator` there
    "#]]
    .assert_eq(&two().text());
}

#[test]
fn a_slice_is_ready_when_its_clusters_reach_each_other() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]))
        .pass(2, &["a", "b"]);
    assert_eq!(stage.peers("a", "shop"), ["b:1"]);
    let ready = |stage: &Stage| stage.condition("SliceConfig", "shop", conditions::READY);
    assert!(ready(&stage).starts_with("Ready=True"), "{}", ready(&stage));
    stage
        .obey("b", "shop", json!({"unreached": ["a"]}))
        .pass(2, &["a", "b"]);
    assert!(
        ready(&stage).contains("no tunnel from cluster b to cluster a"),
        "{}",
        ready(&stage)
    );
}

#[test]
fn gateways_that_do_not_run_are_named_before_the_tunnels_that_are_missing_for_it() {
    let mut stage = two();
    let tainted = "no gateway runs: pod weft-gateways/weft-gateway-shop-0 is on no node";
    let mut a = gateway(KEYS[0]);
    a["unreached"] = json!(["b"]);
    stage
        .obey("a", "shop", a)
        .obey("b", "shop", json!({"problems": [tainted], "unreached": ["a"]}))
        .pass(2, &["a", "b"]);
    let ready = stage.condition("SliceConfig", "shop", conditions::READY);
    assert_eq!(ready, format!("Ready=False Degraded: cluster b: {tainted}"));
}

#[test]
fn tolerations_of_a_cluster_reach_its_member() {
    let mut stage = two();
    let tolerations =
        json!([{"key": "infra", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]);
    let before = stage.served("b", "shop").unwrap();
    stage.user("Cluster", "a", json!({"gateway": {"tolerations": tolerations}}));
    stage.pass(2, &["a", "b"]);
    let namespace = "weft-member-a";
    let served = stage.server.get("MemberSlice", namespace, "shop").unwrap();
    assert_eq!(served["spec"]["slice"]["gateway"]["tolerations"], tolerations);
    assert_eq!(stage.served("b", "shop").unwrap(), before);
    stage.user("Cluster", "a", json!({})).pass(2, &["a", "b"]);
    let served = stage.server.get("MemberSlice", namespace, "shop").unwrap();
    assert_eq!(served["spec"]["slice"]["gateway"]["tolerations"], Value::Null);
}

#[test]
fn a_restart_writes_nothing() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]))
        .pass(5, &["a", "b"]);
    let before = stage.server.writes.clone();
    stage.restart();
    stage.pass(5, &["a", "b"]);
    assert_eq!(stage.server.writes, before);
}

#[test]
fn heartbeats_write_nothing_on_the_hub() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]))
        .pass(5, &["a", "b"]);
    let before = stage.server.writes.clone();
    stage.pass(300, &["a", "b"]);
    assert_eq!(stage.server.writes, before);
}

#[test]
fn what_cannot_be_read_is_kept_apart_and_disturbs_nobody() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]))
        .pass(2, &["a", "b"]);
    let before = stage.text();
    stage.user(
        "Cluster",
        "b",
        json!({"gateway": {"advertise": ["gw.example.com"]}}),
    );
    stage.pass(2, &["a", "b"]);
    assert_eq!(stage.text(), before);
    let ready = stage.condition("Cluster", "b", conditions::READY);
    assert!(ready.contains("Unreadable: this version of Weft cannot read it: spec.gateway.advertise[0] (it is \"gw.example.com\")"), "{ready}");
    // A hub that starts with it there goes on as well.
    stage.restart();
    assert_eq!(stage.text(), before);
    stage.user(
        "SliceConfig",
        "bank",
        json!({"subnets": ["10.90.0.0/16"], "clusters": ["a"]}),
    );
    assert!(stage.text().contains("a bank: vni"), "{}", stage.text());
    stage.user("Cluster", "b", json!({})).pass(2, &["a", "b"]);
    assert!(
        stage
            .condition("Cluster", "b", conditions::READY)
            .starts_with("Ready=True")
    );
}

#[test]
fn a_slice_that_cannot_be_read_keeps_what_it_has() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]))
        .pass(2, &["a", "b"]);
    let (served, peers) = (stage.served("a", "shop"), stage.peers("a", "shop"));
    for restart in [false, true] {
        stage.user(
            "SliceConfig",
            "shop",
            json!({"subnets": ["10.80.0.0/16"], "clusters": [7]}),
        );
        if restart {
            stage.restart();
        }
        stage.pass(2, &["a", "b"]);
        assert_eq!(
            (stage.served("a", "shop"), stage.peers("a", "shop")),
            (served.clone(), peers.clone())
        );
        let accepted = stage.condition("SliceConfig", "shop", conditions::ACCEPTED);
        assert!(
            accepted.contains("Unreadable") && accepted.contains("spec.clusters[0] (it is 7)"),
            "{accepted}"
        );
    }
}

#[test]
fn a_members_report_that_cannot_be_read_harms_only_itself() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]))
        .pass(2, &["a", "b"]);
    let before = stage.text();
    stage.member("b", "MemberReport", "report", json!({"nodes": "many"}));
    stage.member("b", "MemberSliceReport", "shop", json!({"gateways": 5}));
    stage.member("b", "MemberService", "x", json!({"service": []}));
    stage.pass(2, &["a", "b"]);
    assert_eq!(stage.text(), before);
    let trusted = stage.condition("Cluster", "b", conditions::TRUSTED);
    assert!(
        trusted.contains("its report cannot be read: spec.nodes (it is \"many\")"),
        "{trusted}"
    );
    assert!(
        trusted.contains("its report of slice shop cannot be read: spec.gateways"),
        "{trusted}"
    );
    assert!(
        stage
            .condition("Cluster", "a", conditions::TRUSTED)
            .starts_with("Trusted=True")
    );
}

#[test]
fn one_namespace_that_hangs_stops_nobody_else() {
    let mut stage = Stage::new();
    stage.cluster("a").cluster("b").cluster("c");
    let mut going = stage
        .server
        .get("Namespace", "", "weft-member-a")
        .cloned()
        .unwrap();
    going["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into();
    going["status"] = json!({"conditions": [{"status": "True", "message": "a finalizer of Argo remains"}]});
    stage.server.put("Namespace", going);
    let all = json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b", "c"]});
    stage.user("SliceConfig", "shop", all).pass(2, &["a", "b", "c"]);
    assert!(stage.served("b", "shop").is_some() && stage.served("c", "shop").is_some());
    let ready = stage.condition("SliceConfig", "shop", conditions::READY);
    assert!(
        ready.contains("cluster a cannot get it: namespace weft-member-a on the hub is being deleted"),
        "{ready}"
    );
    assert!(ready.contains("a finalizer of Argo remains"), "{ready}");
}

#[test]
fn an_object_that_cannot_be_written_is_in_its_owners_condition() {
    let mut stage = Stage::new();
    stage.cluster("a").cluster("b");
    let failure = Failure {
        reason: Reason::Forbidden,
        message: "exceeded quota".into(),
    };
    stage.broken.push(("weft-member-a", Outcome::Failed(failure)));
    stage.user("SliceConfig", "shop", shop()).pass(30, &["a", "b"]);
    assert!(stage.served("b", "shop").is_some());
    let ready = stage.condition("SliceConfig", "shop", conditions::READY);
    assert!(
        ready.contains("something cannot be written into namespace weft-member-a on the hub: exceeded quota"),
        "{ready}"
    );
    stage.broken.clear();
    stage.pass(90, &["a", "b"]);
    assert!(stage.served("a", "shop").is_some());
    assert!(
        !stage
            .condition("SliceConfig", "shop", conditions::READY)
            .contains("quota")
    );
}

#[test]
fn a_silent_member_is_unknown_and_keeps_its_slices() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]))
        .pass(120, &["a"]);
    assert!(stage.served("b", "shop").is_some());
    let ready = stage.condition("Cluster", "b", conditions::READY);
    assert!(
        ready.starts_with("Ready=Unknown Silent: no heartbeat came since 2027-01-15"),
        "{ready}"
    );
    assert!(
        ready.contains("kubectl -n weft-system logs deploy/weft-operator"),
        "{ready}"
    );
    let slice = stage.condition("SliceConfig", "shop", conditions::READY);
    assert!(slice.contains("kubectl describe clusters.weft.dev b"), "{slice}");
    stage.pass(20, &["a", "b"]);
    assert!(
        stage
            .condition("Cluster", "b", conditions::READY)
            .starts_with("Ready=True")
    );
}

#[test]
fn a_deleted_slice_is_held_while_pods_use_it_and_released_explicitly() {
    let mut stage = two();
    stage
        .obey("a", "shop", json!({"attachments": 2}))
        .obey("b", "shop", json!({}));
    let served = stage.served("a", "shop");
    stage
        .delete("SliceConfig", "weft-default", "shop")
        .pass(200, &["a", "b"]);
    assert_eq!(stage.served("a", "shop"), served);
    let message = stage
        .server
        .get("SliceAllocation", "weft-hub", &format!("vni-{SHOP}"))
        .unwrap()["spec"]["message"]
        .clone();
    assert!(
        message.as_str().unwrap().contains("in use in a (2 pods)"),
        "{message}"
    );
    // Applied again, it is as if nothing had been.
    stage.user("SliceConfig", "shop", shop());
    assert_eq!(stage.served("a", "shop"), served);
    stage.annotate("SliceConfig", "weft-default", "shop", "weft.dev/delete", "now");
    stage.delete("SliceConfig", "weft-default", "shop");
    let served = stage.served("a", "shop").unwrap();
    assert!(served.released, "{served:?}");
    stage.obey("a", "shop", json!({"released": true}));
    assert!(stage.served("a", "shop").is_none());
    assert!(
        stage
            .text()
            .contains(&format!("vni-{SHOP} shop Releasing\nb shop: released")),
        "{}",
        stage.text()
    );
    stage
        .obey("b", "shop", json!({"released": true}))
        .pass(601, &["a", "b"]);
    assert_eq!(stage.text(), "\n");
}

#[test]
fn a_vni_of_a_slice_that_is_not_down_everywhere_is_given_to_nobody() {
    let mut stage = two();
    stage.obey("a", "shop", json!({})).obey("b", "shop", json!({}));
    stage
        .delete("SliceConfig", "weft-default", "shop")
        .obey("a", "shop", json!({"released": true}));
    stage.user(
        "SliceConfig",
        "bank",
        json!({"subnets": ["10.90.0.0/16"], "clusters": ["a", "b"]}),
    );
    let vni = |stage: &Stage, cluster: &str, slice: &str| stage.served(cluster, slice).unwrap().slice.vni;
    assert_ne!(vni(&stage, "a", "bank"), SHOP);
    // The same name again, while one member still has the old one.
    stage.user("SliceConfig", "shop", shop());
    assert!(stage.served("b", "shop").unwrap().released);
    let new = vni(&stage, "a", "shop");
    assert!(new != SHOP && new != vni(&stage, "a", "bank"));
    stage.obey("b", "shop", json!({"released": true}));
    assert_eq!(vni(&stage, "b", "shop"), new);
}

#[test]
fn a_slice_made_anew_is_judged_by_what_it_is_now() {
    let mut stage = two();
    stage.obey("a", "shop", json!({})).obey("b", "shop", json!({}));
    stage.delete("SliceConfig", "weft-default", "shop");
    for cluster in ["a", "b"] {
        stage.obey(cluster, "shop", json!({"released": true}));
    }
    // The first one's indices rest; its network is free for anything.
    let mut config = shop();
    config["subnets"] = json!(["10.81.0.0/16"]);
    stage.user("SliceConfig", "shop", config);
    let at = |address: &str| {
        let mut report = gateway(KEYS[0]);
        report["gateways"][0]["endpoints"] = json!([format!("{address}:30001")]);
        report
    };
    stage.obey("a", "shop", at("10.80.0.1")).pass(2, &["a", "b"]);
    let trusted = |stage: &Stage| stage.condition("Cluster", "a", conditions::TRUSTED);
    assert!(trusted(&stage).starts_with("Trusted=True"), "{}", trusted(&stage));
    stage.obey("a", "shop", at("10.81.0.1")).pass(2, &["a", "b"]);
    assert!(
        trusted(&stage).contains("\"10.81.0.1:30001\" of gateway 0 lies in the slice itself"),
        "{}",
        trusted(&stage)
    );
}

#[test]
fn a_cluster_that_is_deleted_in_use_has_a_grace() {
    let mut stage = two();
    stage
        .obey("a", "shop", json!({}))
        .obey("b", "shop", json!({"attachments": 3}));
    let served = stage.served("b", "shop");
    stage
        .delete("Cluster", "weft-default", "b")
        .pass(200, &["a", "b"]);
    assert_eq!(stage.served("b", "shop"), served);
    let accepted = stage.condition("SliceConfig", "shop", conditions::ACCEPTED);
    assert!(
        accepted.contains("cluster b is to leave while 3 of its pods are attached"),
        "{accepted}"
    );
    stage.pass(150, &["a", "b"]);
    assert!(stage.served("b", "shop").unwrap().released);
    assert!(stage.peers("a", "shop").is_empty());
    stage
        .obey("b", "shop", json!({"released": true}))
        .pass(2, &["a", "b"]);
    assert!(stage.server.get("Namespace", "", "weft-member-b").is_none());
}

#[test]
fn a_rebuilt_hub_takes_over_what_its_members_have() {
    let mut stage = two();
    stage.user(
        "SliceConfig",
        "bank",
        json!({"subnets": ["10.90.0.0/16"], "clusters": ["b", "a"]}),
    );
    for slice in ["shop", "bank"] {
        stage
            .obey("a", slice, gateway(KEYS[0]))
            .obey("b", slice, gateway(KEYS[1]));
    }
    let grants = |stage: &Stage| {
        let mut grants = Vec::new();
        for (cluster, slice) in [("a", "shop"), ("a", "bank"), ("b", "shop"), ("b", "bank")] {
            let served = stage.served(cluster, slice).unwrap().slice;
            grants.push((served.vni, served.cluster_number, served.ranges));
        }
        grants
    };
    let before = grants(&stage);
    let reports: Vec<Value> = stage.server.list("MemberSliceReport").cloned().collect();
    // The hub's cluster is made anew, and its specs are applied from files, in another order.
    stage = Stage::new();
    stage.user(
        "SliceConfig",
        "bank",
        json!({"subnets": ["10.90.0.0/16"], "clusters": ["b", "a"]}),
    );
    stage.user("SliceConfig", "shop", shop());
    stage
        .user("Cluster", "a", json!({}))
        .user("Cluster", "b", json!({}));
    assert!(
        stage.served("a", "shop").is_none(),
        "nothing is given to clusters that have not reported"
    );
    for cluster in ["b", "a"] {
        stage.heartbeat(cluster);
        let holds = json!([{"slice": "shop", "hub": "old", "vni": before[0].0}, {"slice": "bank", "hub": "old", "vni": before[1].0}]);
        stage.report(cluster, json!({"holds": holds}));
        assert!(
            stage.served(cluster, "shop").is_none(),
            "its reports of the slices are awaited"
        );
        for report in reports
            .iter()
            .filter(|report| report["metadata"]["namespace"] == format!("weft-member-{cluster}"))
        {
            let mut spec = report["spec"].clone();
            spec["hub"] = "old".into();
            let slice = spec["name"].as_str().unwrap().to_owned();
            stage.member(cluster, "MemberSliceReport", &slice, spec);
        }
    }
    assert_eq!(grants(&stage), before);
    assert_eq!(stage.peers("a", "shop"), ["b:1"]);
    assert!(
        stage
            .condition("Cluster", "a", conditions::TRUSTED)
            .starts_with("Trusted=True")
    );
}

#[test]
fn the_first_member_of_a_rebuilt_hub_speaks_for_the_others_indices() {
    let mut stage = Stage::new();
    // Only a is back; it knows what b has.
    stage.user(
        "SliceConfig",
        "shop",
        json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b", "c"]}),
    );
    stage
        .user("Cluster", "b", json!({}))
        .user("Cluster", "a", json!({}));
    let peers = json!([{"name": "b", "number": 2, "ranges": [{"start": 0, "size": 8192}]}]);
    stage.heartbeat("a");
    stage.member("a", "MemberSliceReport", "shop", json!({
        "name": "shop", "hub": "old", "revision": 4, "vni": 5000, "clusterNumber": 1, "subnets": ["10.80.0.0/16"],
        "ranges": [{"start": 8192, "size": 8192}], "peers": peers,
    }));
    stage.report(
        "a",
        json!({"holds": [{"slice": "shop", "hub": "old", "vni": 5000}]}),
    );
    stage.cluster("c").pass(590, &["a", "c"]);
    assert_eq!(stage.server.list("SliceAllocation").count(), 0, "b may yet come");
    let accepted = stage.condition("SliceConfig", "shop", conditions::ACCEPTED);
    assert!(
        accepted.contains("cluster b may have this slice from before"),
        "{accepted}"
    );
    stage.pass(60, &["a", "c"]);
    let allocation = stage
        .server
        .get("SliceAllocation", "weft-hub", "vni-5000")
        .unwrap();
    let clusters: Vec<(String, u64)> = allocation["spec"]["clusters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cluster| {
            (
                cluster["name"].as_str().unwrap().to_owned(),
                cluster["ranges"][0]["start"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        clusters,
        [("a".into(), 8192), ("b".into(), 0), ("c".into(), 16384)]
    );
}

#[test]
fn a_hub_that_lists_nothing_takes_nothing_down() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]));
    let served = stage.served("a", "shop");
    // Its allocations and slices are lost, what it served its members is not.
    stage.server.forget(&["SliceAllocation", "SliceConfig", "Hub"]);
    stage.restart();
    stage.pass(700, &["a", "b"]);
    assert_eq!(stage.served("a", "shop"), served);
    stage.user("SliceConfig", "shop", shop());
    let again = stage.served("a", "shop").unwrap();
    let served = served.unwrap();
    assert_eq!((again.slice, again.revision), (served.slice, served.revision + 1));
}

#[test]
fn one_member_cannot_make_the_packets_of_all_small() {
    let mut stage = two();
    stage.report("b", json!({"underlayMtu": 600}));
    assert_eq!(stage.served("a", "shop").unwrap().slice.mtu, 1370);
    stage.report("b", json!({"underlayMtu": 1450}));
    assert_eq!(stage.served("a", "shop").unwrap().slice.mtu, 1320);
    // And not for ever.
    stage.report("b", json!({"underlayMtu": 1500}));
    assert_eq!(stage.served("a", "shop").unwrap().slice.mtu, 1370);
}

#[test]
fn the_smallest_path_decides_and_is_named() {
    let mut stage = two();
    let path = |stage: &Stage| stage.condition("SliceConfig", "shop", conditions::PATH_MTU);
    let sizes = |stage: &Stage| {
        let slice = stage.served("b", "shop").unwrap().slice;
        (slice.mtu, slice.largest_mtu)
    };
    assert_eq!(sizes(&stage), (1370, Some(1370)));
    assert!(path(&stage).starts_with("PathMtu=True"), "{}", path(&stage));
    stage
        .obey("a", "shop", json!({"unmeasured": ["b", "x"]}))
        .pass(2, &["a", "b"]);
    let measuring = path(&stage);
    assert!(
        measuring.starts_with("PathMtu=Unknown")
            && measuring.contains("from cluster a to cluster b is not measured yet"),
        "{measuring}"
    );
    let narrow = |mtu: u32| json!({"narrowPaths": [{"cluster": "b", "mtu": mtu}]});
    stage.obey("a", "shop", narrow(1340)).pass(2, &["a", "b"]);
    assert_eq!(sizes(&stage), (1340, Some(1370)));
    let said = path(&stage);
    assert!(
        said.starts_with("PathMtu=False")
            && said.contains("from cluster a to cluster b carries packets of 1340 bytes")
            && said.contains("that is what the slice has"),
        "{said}"
    );
    let inside = json!({"narrowPaths": [{"cluster": "b", "mtu": 1340}, {"cluster": "a", "mtu": 1330}]});
    stage.obey("a", "shop", inside).pass(2, &["a", "b"]);
    assert_eq!(sizes(&stage), (1330, Some(1370)));
    let said = path(&stage);
    assert!(
        said.contains("a path between two nodes of cluster a carries packets of 1330 bytes")
            && said.contains("NodesConnected"),
        "{said}"
    );
    // A member cannot make packets smaller than every network carries, nor speak of clusters that are none.
    for lie in [100, 0, 100_000] {
        stage.obey("a", "shop", narrow(lie)).pass(2, &["a", "b"]);
        assert!((1150..=1370).contains(&sizes(&stage).0), "{lie}");
    }
    let unknown = json!({"narrowPaths": [{"cluster": "x", "mtu": 1200}]});
    stage.obey("a", "shop", unknown).pass(2, &["a", "b"]);
    assert_eq!(sizes(&stage), (1370, Some(1370)));
    stage.obey("a", "shop", narrow(1300)).pass(2, &["a", "b"]);
    let mut pinned = shop();
    pinned["gateway"] = json!({"mtu": 1360});
    stage.user("SliceConfig", "shop", pinned).pass(2, &["a", "b"]);
    assert_eq!(sizes(&stage), (1360, Some(1360)));
    assert!(path(&stage).contains("the slice has 1360"), "{}", path(&stage));
}

#[test]
fn two_projects_cannot_have_one_name() {
    let mut stage = two();
    let other = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig",
        "metadata": {"name": "shop", "namespace": "weft-other"}, "spec": {"subnets": ["10.99.0.0/16"], "clusters": ["a"]}});
    stage.server.put("SliceConfig", other);
    stage.pass(2, &["a", "b"]);
    let refused = &stage.server.get("SliceConfig", "weft-other", "shop").unwrap()["status"]["conditions"][0];
    assert_eq!(refused["reason"], "NameTaken");
    assert_eq!(stage.served("a", "shop").unwrap().slice.subnets, ["10.80.0.0/16"]);
}

#[test]
fn an_unknown_cluster_is_named_and_the_known_ones_are_served() {
    let mut stage = Stage::new();
    stage.cluster("a").cluster("b");
    stage.user(
        "SliceConfig",
        "shop",
        json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b", "mars"]}),
    );
    assert!(stage.served("a", "shop").is_some());
    assert_eq!(
        stage.condition("SliceConfig", "shop", conditions::ACCEPTED),
        "Accepted=False UnknownCluster: spec.clusters names \"mars\", which is no Cluster in namespace weft-default; there \
         are: a, b. Register it with `slicectl token issue mars`, or correct the name"
    );
}

#[test]
fn a_subnet_that_overlaps_keeps_a_new_member_out_and_disturbs_no_old_one() {
    let mut stage = two();
    stage
        .report("b", json!({"podCIDRs": ["10.80.128.0/17"]}))
        .pass(2, &["a", "b"]);
    assert!(
        stage.served("b", "shop").is_some(),
        "what comes later disturbs nothing that runs"
    );
    let accepted = stage.condition("SliceConfig", "shop", conditions::ACCEPTED);
    assert!(
        accepted.contains("overlaps the pod network 10.80.128.0/17 of cluster b"),
        "{accepted}"
    );
    stage.user("Cluster", "c", json!({"networks": {"pods": ["10.90.0.0/16"]}}));
    stage.heartbeat("c");
    stage.report("c", json!({}));
    stage.user(
        "SliceConfig",
        "bank",
        json!({"subnets": ["10.90.0.0/20"], "clusters": ["a", "c"]}),
    );
    assert!(stage.served("a", "bank").is_some() && stage.served("c", "bank").is_none());
}

#[test]
fn a_rule_that_cannot_be_parsed_is_said() {
    let rule = json!({"selector": {"matchExpressions": [{"key": "team", "operator": "Like"}]}});
    let mut spec = shop();
    spec["namespaces"] = json!([rule]);
    let mut stage = Stage::new();
    stage.cluster("a").cluster("b").user("SliceConfig", "shop", spec);
    let accepted = stage.condition("SliceConfig", "shop", conditions::ACCEPTED);
    assert!(
        accepted.contains("SelectorInvalid: spec.namespaces[0].selector"),
        "{accepted}"
    );
}
