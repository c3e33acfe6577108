//! What the members of a slice share on the hub, and who reads it.

use serde_json::{Value, json};
use slice_crds::conditions;

use crate::stage::{KEYS, Stage, gateway, shop, two};

/// Where it stands.
const SPACE: &str = "weft-slice-shop";

/// Clusters whose accounts are bound there.
fn readers(stage: &Stage) -> Vec<String> {
    let binding = stage.server.get("RoleBinding", SPACE, "weft-slice-reader");
    let subjects = binding.and_then(|binding| binding["subjects"].as_array().cloned());
    let namespaces = subjects.into_iter().flatten().map(|subject| {
        assert_eq!(subject["name"], "weft-member");
        subject["namespace"].as_str().unwrap().to_owned()
    });
    namespaces
        .map(|namespace| namespace.strip_prefix("weft-member-").unwrap().to_owned())
        .collect()
}

#[test]
fn a_key_and_a_service_are_written_once_however_many_read_them() {
    let names: Vec<String> = (0..12).map(|number| format!("c{number:02}")).collect();
    let mut stage = Stage::new();
    for name in &names {
        stage.cluster(name);
    }
    stage.user(
        "SliceConfig",
        "shop",
        json!({"subnets": ["10.80.0.0/16"], "clusters": names}),
    );
    for name in &names {
        stage.obey(name, "shop", json!({}));
    }
    let alive: Vec<&str> = names.iter().map(String::as_str).collect();
    stage.pass(3, &alive);
    let written = |stage: &mut Stage, change: &dyn Fn(&mut Stage)| {
        let before = stage.server.writes.clone();
        change(stage);
        let after = stage.server.writes.iter();
        after
            .filter(|(kind, count)| before.get(*kind) != Some(count) && !kind.ends_with("Status"))
            .map(|(kind, count)| format!("{kind} +{}", count - before.get(kind).unwrap_or(&0)))
            .collect::<Vec<_>>()
    };
    let key = |stage: &mut Stage| _ = stage.obey("c03", "shop", gateway(KEYS[0]));
    assert_eq!(written(&mut stage, &key), ["SliceShare +1"]);
    assert!(stage.peers("c11", "shop").contains(&"c03:1".to_owned()));
    let start = stage.served("c03", "shop").unwrap().slice.ranges[0].start;
    let address = format!("10.80.{}.{}", start >> 8, (start & 255) + 5);
    let service = |stage: &mut Stage| {
        let web = json!({"service": {"slice": "shop", "cluster": "c03", "namespace": "cart", "name": "web",
            "endpoints": [{"hostname": "web-0", "addresses": [address]}]}});
        stage.member("c03", "MemberService", "shop.c03.cart.web", web);
    };
    assert_eq!(written(&mut stage, &service), ["SliceShare +1"]);
}

#[test]
fn what_a_slice_shares_is_read_by_its_members_and_goes_with_the_last() {
    let mut stage = Stage::new();
    stage
        .cluster("a")
        .cluster("b")
        .cluster("c")
        .user("SliceConfig", "shop", shop());
    for cluster in ["a", "b"] {
        stage.obey(cluster, "shop", json!({}));
    }
    assert_eq!(readers(&stage), ["a", "b"]);
    // Taken out of the slice: from now on it reads nothing of it.
    let only = |clusters: &[&str]| json!({"subnets": ["10.80.0.0/16"], "clusters": clusters});
    stage.user("SliceConfig", "shop", only(&["a", "c"]));
    assert_eq!(readers(&stage), ["a", "c"]);
    let released = stage.served("b", "shop").unwrap();
    assert!(released.released && released.shared_in.is_empty());
    // A hub that has just started does not take it for left over.
    stage.restart();
    assert_eq!(readers(&stage), ["a", "c"]);
    stage.annotate("SliceConfig", "weft-default", "shop", "weft.dev/delete", "now");
    stage.delete("SliceConfig", "weft-default", "shop");
    for cluster in ["a", "b", "c"] {
        let report = json!({"released": true, "ranges": [], "blocksNeeded": 0});
        if stage.served(cluster, "shop").is_some() {
            stage.obey(cluster, "shop", report);
        }
    }
    stage.pass(400, &["a", "b", "c"]);
    assert!(
        stage.server.get("Namespace", "", SPACE).is_none(),
        "{}",
        stage.text()
    );
    assert!(stage.server.list("SliceShare").next().is_none());
}

#[test]
fn a_hub_without_memory_leaves_alone_what_members_read() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]));
    let before = stage.peers("a", "shop");
    stage.server.forget(&["SliceAllocation", "SliceConfig", "Hub"]);
    stage.restart();
    stage.pass(700, &["a", "b"]);
    assert_eq!((stage.peers("a", "shop"), readers(&stage).len()), (before, 2));
}

#[test]
fn a_namespace_of_a_slice_that_hangs_is_named_there_and_nowhere_else() {
    let mut stage = two();
    stage.user(
        "SliceConfig",
        "bank",
        json!({"subnets": ["10.81.0.0/16"], "clusters": ["a", "b"]}),
    );
    for (cluster, key) in [("a", KEYS[0]), ("b", KEYS[1])] {
        stage
            .obey(cluster, "shop", gateway(key))
            .obey(cluster, "bank", json!({}));
    }
    let mut namespace = stage.server.get("Namespace", "", SPACE).cloned().unwrap();
    namespace["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into();
    namespace["status"] = json!({"conditions": [{"type": "NamespaceFinalizersRemaining", "status": "True",
        "message": "some content has finalizers: example.com/never"}]});
    stage.server.put("Namespace", namespace);
    stage.pass(2, &["a", "b"]);
    let ready = |stage: &Stage, slice: &str| stage.condition("SliceConfig", slice, conditions::READY);
    let shop = ready(&stage, "shop");
    for words in ["NotWritten", SPACE, "example.com/never"] {
        assert!(shop.contains(words), "{shop}");
    }
    assert!(
        ready(&stage, "bank").starts_with("Ready=True"),
        "{}",
        ready(&stage, "bank")
    );
    // Once it is gone it is made again, with everything in it.
    stage.server.delete("Namespace", "", SPACE);
    stage.pass(5, &["a", "b"]);
    assert_eq!(
        (stage.peers("a", "shop"), readers(&stage).len()),
        (vec!["b:1".to_owned()], 2)
    );
}

#[test]
fn services_reach_the_other_members_of_the_slice() {
    let mut stage = Stage::new();
    stage
        .cluster("a")
        .cluster("b")
        .cluster("c")
        .user("SliceConfig", "shop", shop());
    let web = json!({"service": {"slice": "shop", "cluster": "a", "namespace": "cart", "name": "web",
        "endpoints": [{"hostname": "web-0", "addresses": ["10.80.0.5", "10.80.32.5"]}]}});
    stage.obey("a", "shop", json!({})).obey("b", "shop", json!({}));
    stage.member("a", "MemberService", "shop.a.cart.web", web);
    let shared = |stage: &Stage| {
        let object = stage.server.get("SliceShare", SPACE, "shop.a.cart.web");
        object.cloned()
    };
    let served = shared(&stage).unwrap();
    assert_eq!(
        served["spec"]["service"]["endpoints"],
        json!([{"hostname": "web-0", "addresses": ["10.80.0.5"]}])
    );
    assert_eq!(readers(&stage), ["a", "b"]);
    let trusted = stage
        .pass(2, &["a", "b", "c"])
        .condition("Cluster", "a", conditions::TRUSTED);
    assert!(
        trusted.contains("service cart/web with the address 10.80.32.5"),
        "{trusted}"
    );
    stage.delete("MemberService", "weft-member-a", "shop.a.cart.web");
    assert!(shared(&stage).is_none());
}

#[test]
fn an_older_member_is_served_in_its_own_form() {
    let mut stage = Stage::new();
    stage
        .cluster("a")
        .user("Cluster", "b", json!({}))
        .user("SliceConfig", "shop", shop());
    let report = |stage: &mut Stage, slices: Value| {
        let time = stage.now().wall.to_string();
        stage.member(
            "b",
            "MemberReport",
            "report",
            json!({
                "observedAt": time, "weftVersion": "0.1.0", "kubernetesVersion": "v1.37.1", "nodes": 2,
                "podCIDRs": [], "serviceCIDRs": [], "nodeCIDRs": [], "warnings": [], "slices": slices,
            }),
        );
    };
    report(&mut stage, json!([]));
    let served = stage.served("b", "shop").unwrap();
    assert_eq!(
        served
            .slice
            .peers
            .iter()
            .map(|peer| peer.name.as_str())
            .collect::<Vec<_>>(),
        ["a"]
    );
    assert!(served.peer_shards.is_empty() && stage.peers("b", "shop").is_empty());
    let tunnels = json!([{"peer": "a/0", "up": true, "rttMicros": 400, "endpoint": "192.0.2.7:1"}]);
    report(
        &mut stage,
        json!([{"name": "shop", "attachments": 1, "blocksWanted": 3, "gateways": [
        {"ordinal": 0, "publicKey": KEYS[1], "endpoints": ["192.0.2.9:30002"], "up": true, "tunnels": tunnels}]}]),
    );
    assert_eq!(stage.peers("a", "shop"), ["b:1"]);
    stage.obey("a", "shop", gateway(KEYS[0])).pass(2, &["a"]);
    assert!(
        stage
            .condition("SliceConfig", "shop", conditions::READY)
            .starts_with("Ready=True"),
        "{}",
        stage.text()
    );
    // It asks for more as long as nobody renews its report, and is given more a few times a minute at most.
    let ranges = |stage: &Stage| stage.served("b", "shop").unwrap().slice.ranges.len();
    stage.pass(70, &["a"]);
    assert!(ranges(&stage) <= 3, "{}", stage.text());
}

#[test]
fn one_member_cannot_cut_another_off() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]));
    let served = |stage: &Stage| {
        let shard = stage.server.get("SliceShare", SPACE, "shop.0").unwrap();
        shard["spec"]["peers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|peer| peer["gateways"].clone())
            .collect::<Vec<_>>()
    };
    let before = served(&stage);
    stage.obey("b", "shop", gateway(KEYS[0]));
    assert_eq!(served(&stage)[0], before[0]);
    assert_eq!(served(&stage)[1], json!([]));
    let trusted = stage
        .pass(2, &["a", "b"])
        .condition("Cluster", "b", conditions::TRUSTED);
    assert!(
        trusted.contains("slice shop: gateway 0 with the public key of a/0, which had it first"),
        "{trusted}"
    );
    assert!(
        stage
            .condition("Cluster", "a", conditions::TRUSTED)
            .starts_with("Trusted=True")
    );
    // It does not help to wait for a restart.
    stage.restart();
    assert_eq!(served(&stage)[0], before[0]);
}

#[test]
fn a_member_that_goes_back_to_the_version_before_is_never_without_peers() {
    let mut stage = two();
    stage
        .obey("a", "shop", gateway(KEYS[0]))
        .obey("b", "shop", gateway(KEYS[1]));
    let inline = |stage: &Stage| {
        let peers = stage.served("b", "shop").unwrap().slice.peers;
        let gateways = peers.into_iter().flat_map(|peer| peer.gateways);
        gateways.map(|gateway| gateway.public_key).collect::<Vec<_>>()
    };
    assert!(inline(&stage).is_empty());
    // A person says so first; its reports still count.
    stage.report("b", json!({"inline": true}));
    assert_eq!(inline(&stage), [KEYS[0]]);
    stage.obey("b", "shop", gateway(KEYS[2]));
    assert_eq!(stage.peers("a", "shop"), ["b:1"]);
    let key = |stage: &Stage| {
        let shard = stage.server.get("SliceShare", SPACE, "shop.0").unwrap();
        shard["spec"]["peers"][1]["gateways"][0]["publicKey"].clone()
    };
    assert_eq!(key(&stage), KEYS[2]);
    // The version before: it reports in its own form, and what it has left behind does not count, also after a restart.
    let former = json!({
        "observedAt": stage.now().wall.to_string(), "weftVersion": "0.1.0", "kubernetesVersion": "v1.37.1", "nodes": 2,
        "slices": [{"name": "shop", "gateways": [
            {"ordinal": 0, "publicKey": KEYS[1], "endpoints": ["192.0.2.9:30002"], "up": true}]}],
    });
    stage.member("b", "MemberReport", "report", former);
    for _ in 0..2 {
        assert_eq!(
            (inline(&stage), key(&stage)),
            (vec![KEYS[0].to_owned()], json!(KEYS[1]))
        );
        stage.restart();
    }
}
