//! The rules in the schemas, evaluated here as an API server does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use kube::core::cel::{validate_cel, validate_cel_schema, validate_cel_update};
use serde_json::{Value, json};
use slice_crds::v1alpha1::{Cluster, QosProfile, SliceConfig};

fn slice(name: &str, spec: Value) -> SliceConfig {
    let object = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig", "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

fn errors(result: Result<(), impl std::fmt::Display>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[track_caller]
fn accepts(spec: Value) {
    assert_eq!(errors(validate_cel(&slice("shop", spec))), "");
}

#[track_caller]
fn rejects(spec: Value, message: &str) {
    let said = errors(validate_cel(&slice("shop", spec)));
    assert!(said.contains(message), "\"{said}\" lacks \"{message}\"");
}

#[test]
fn a_plain_slice_is_accepted() {
    accepts(json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"]}));
    accepts(json!({"subnets": ["10.80.0.0/28", "fd42:80::/64"], "clusterSelector": {}}));
    accepts(
        json!({"subnets": ["fd42:80::/64"], "clusters": ["a"], "namespaces": [{"name": "cart"}], "qos": {"dscp": 46}}),
    );
}

#[test]
fn subnets_are_one_per_family_and_of_a_size_that_works() {
    let two = "at most one IPv4 and one IPv6";
    rejects(
        json!({"subnets": ["10.80.0.0/16", "10.81.0.0/16"], "clusters": ["a"]}),
        two,
    );
    rejects(
        json!({"subnets": ["10.80.0.0/30"], "clusters": ["a"]}),
        "from /8 to /28",
    );
    rejects(
        json!({"subnets": ["fd42:80::/120"], "clusters": ["a"]}),
        "from /48 to /112",
    );
}

#[test]
fn keys_live_from_a_minute_to_a_year() {
    let spec = |rotation: &str| json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"], "gateway": {"rotation": rotation}});
    accepts(spec("1m"));
    accepts(spec("8760h"));
    rejects(spec("59s"), "a duration from 1m to 8760h");
    rejects(spec("8761h"), "a duration from 1m to 8760h");
}

#[test]
fn exclusive_fields_exclude_each_other() {
    let clusters = "spec.clusters or spec.clusterSelector, one of the two";
    rejects(json!({"subnets": ["10.80.0.0/16"]}), clusters);
    rejects(
        json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"], "clusterSelector": {}}),
        clusters,
    );
    let subnets_and = |more: Value| {
        let mut spec = json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"]});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        spec
    };
    rejects(subnets_and(json!({"namespaces": [{}]})), "a name or a selector");
    rejects(
        subnets_and(json!({"namespaces": [{"name": "x", "selector": {}}]})),
        "a name or a selector",
    );
    rejects(
        subnets_and(json!({"qos": {"profile": "gold", "dscp": 1}})),
        "a profile or inline values",
    );
}

#[test]
fn a_guarantee_is_within_the_ceiling() {
    let spec = |qos: Value| json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"], "qos": qos});
    accepts(spec(
        json!({"guaranteedMbps": 50, "ceilingMbps": 50, "priority": 7, "dscp": 46}),
    ));
    accepts(spec(json!({"ceilingMbps": 50})));
    rejects(spec(json!({})), "a profile or inline values");
    let text = "guaranteedMbps is at most ceilingMbps";
    rejects(spec(json!({"guaranteedMbps": 51, "ceilingMbps": 50})), text);
    let profile = |spec: Value| {
        let object = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "QoSProfile", "metadata": {"name": "gold"}, "spec": spec});
        errors(validate_cel_schema::<QosProfile>(&object, None))
    };
    assert_eq!(profile(json!({"guaranteedMbps": 10, "ceilingMbps": 20})), "");
    assert!(profile(json!({"guaranteedMbps": 30, "ceilingMbps": 20})).contains(text));
}

#[test]
fn a_subnet_never_changes_and_the_rest_may() {
    let before = slice("shop", json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"]}));
    let moved = slice("shop", json!({"subnets": ["10.90.0.0/16"], "clusters": ["a"]}));
    let grown = slice(
        "shop",
        json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"]}),
    );
    assert!(errors(validate_cel_update(&moved, &before)).contains("spec.subnets cannot be changed"));
    assert_eq!(errors(validate_cel_update(&grown, &before)), "");
}

#[test]
fn names_leave_room_for_what_is_derived_from_them() {
    let spec = json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"]});
    assert!(errors(validate_cel(&slice(&"x".repeat(40), spec.clone()))).contains("at most 39"));
    assert!(errors(validate_cel(&slice("a.b", spec))).contains("at most 39"));
    let cluster = |name: &str| {
        let object = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": name}, "spec": {}});
        serde_json::from_value::<Cluster>(object).unwrap()
    };
    assert_eq!(errors(validate_cel(&cluster("paris"))), "");
    assert!(errors(validate_cel(&cluster("Paris.eu"))).contains("lower-case"));
}

#[test]
fn hosts_have_keys_of_their_own() {
    let peer = |name: &str, key: &str| json!({"name": name, "publicKey": key});
    let (one, two) = (
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    );
    let spec = |peers: Value| json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"], "peers": peers});
    accepts(spec(json!([peer("db1", one), peer("db2", two)])));
    rejects(
        spec(json!([peer("db1", one), peer("db2", one)])),
        "a publicKey of their own",
    );
}

#[test]
fn networks_that_hosts_treat_by_themselves_are_no_subnets() {
    for reserved in [
        "0.0.0.0/8",
        "127.5.0.0/16",
        "169.254.0.0/16",
        "198.18.0.0/16",
        "224.0.0.0/8",
        "240.0.0.0/8",
        "192.0.0.0/3",
        "fe80::/64",
        "ff02::/112",
        "::/64",
    ] {
        rejects(
            json!({"subnets": [reserved], "clusters": ["a"]}),
            "which hosts treat by rules of their own",
        );
    }
    for fine in [
        "10.0.0.0/8",
        "100.64.0.0/10",
        "192.168.0.0/16",
        "198.20.0.0/16",
        "2001:db8::/64",
        "fd42::/64",
    ] {
        accepts(json!({"subnets": [fine], "clusters": ["a"]}));
    }
}

#[test]
fn addresses_and_endpoints_are_what_they_say() {
    let cluster = |gateway: Value| json!({"apiVersion": "weft.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": "a"}, "spec": {"gateway": gateway}});
    let verdict = |gateway: Value| errors(validate_cel_schema::<Cluster>(&cluster(gateway), None));
    assert_eq!(verdict(json!({"advertise": ["203.0.113.7", "2001:db8::7"]})), "");
    for wrong in [
        "gw.example.com",
        "127.0.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "224.0.0.1",
        "fe80::1",
        "ff02::1",
        "203.0.113.7:51820",
        "",
    ] {
        assert!(
            verdict(json!({"advertise": [wrong]})).contains("spec.gateway.advertise takes IP addresses"),
            "{wrong}"
        );
    }
    for exposure in ["NodePort", "HostPort", "LoadBalancer", "None"] {
        assert_eq!(verdict(json!({"exposure": exposure})), "");
        let own = json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"], "gateway": {"exposure": exposure}});
        accepts(own);
    }
    for fine in [
        json!({"operator": "Exists"}),
        json!({"key": "infra"}),
        json!({"key": "example.org/infra", "operator": "Equal", "value": "net", "effect": "NoSchedule"}),
        json!({"key": "infra", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}),
    ] {
        assert_eq!(verdict(json!({"tolerations": [fine]})), "", "{fine}");
    }
    for (wrong, why) in [
        (
            json!({}),
            "without a key is for every taint: add operator: Exists",
        ),
        (json!({"value": "net"}), "without a key is for every taint"),
        (
            json!({"key": "infra", "operator": "Exists", "value": "net"}),
            "take out the value",
        ),
        (
            json!({"key": "infra", "tolerationSeconds": 60}),
            "goes with effect NoExecute only",
        ),
    ] {
        let said = verdict(json!({"tolerations": [wrong]}));
        assert!(
            said.contains(why) && said.contains("spec.gateway.tolerations"),
            "{wrong}: {said}"
        );
    }
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let endpoint = |text: &str| {
        let spec = json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"], "peers": [{"name": "db1", "publicKey": key, "endpoints": [text]}]});
        let object = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig", "metadata": {"name": "shop"}, "spec": spec});
        errors(validate_cel_schema::<SliceConfig>(&object, None))
    };
    for fine in ["192.0.2.9:51820", "[2001:db8::9]:1", "192.0.2.9:65535"] {
        assert_eq!(endpoint(fine), "", "{fine}");
    }
    for wrong in [
        "192.0.2.9",
        "192.0.2.9:0",
        "192.0.2.9:65536",
        "2001:db8::9:51820",
        "[192.0.2.9]:1",
        "gw.example.com:51820",
        ":1",
    ] {
        assert!(endpoint(wrong).contains("an address and a port each"), "{wrong}");
    }
}
