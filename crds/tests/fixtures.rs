//! Objects of earlier versions, as `kubectl get -o json` has them, read by this one: `crds/tests/fixtures/<version>/<kind>.json`.
//!
//! They come from a lab on which that version ran. What of an object this build neither knows nor keeps is named here, so
//! that a field which loses its meaning is seen.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be read is the failure")]

use std::{collections::BTreeSet, fs, path::Path};

use expect_test::expect;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use slice_crds::{
    read,
    v1alpha1::{Cluster, QosProfile, Slice, SliceBlock, SliceConfig, SliceGateway, SliceNode, SliceService},
    wire::{self, MemberReport, MemberService, MemberSlice},
};

/// Reads an object as this build does and writes it again.
type Through = fn(&Value) -> Result<Value, String>;

fn through<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
    Ok(serde_json::to_value(read::<T>(value)?).unwrap())
}

const KINDS: [(&str, Through); 11] = [
    ("Cluster", through::<Cluster>),
    ("MemberReport", through::<MemberReport>),
    ("MemberService", through::<MemberService>),
    ("MemberSlice", through::<MemberSlice>),
    ("QoSProfile", through::<QosProfile>),
    ("Slice", through::<Slice>),
    ("SliceBlock", through::<SliceBlock>),
    ("SliceConfig", through::<SliceConfig>),
    ("SliceGateway", through::<SliceGateway>),
    ("SliceNode", through::<SliceNode>),
    ("SliceService", through::<SliceService>),
];

/// The objects of a kind in a version.
fn objects(version: &str, kind: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(version)
        .join(format!("{}.json", kind.to_lowercase()));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let objects: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(!objects.is_empty(), "{}", path.display());
    objects
}

fn one<T: DeserializeOwned>(version: &str, kind: &str, namespace: Option<&str>) -> T {
    let objects = objects(version, kind);
    let here = |object: &&Value| object["metadata"]["namespace"].as_str() == namespace;
    read(objects.iter().find(here).unwrap()).unwrap()
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_nothing),
        Value::Bool(true) => false,
    }
}

/// Fields that something stood in before and nothing does after.
fn lost(before: &Value, after: &Value, path: &str, all: &mut BTreeSet<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                let after = after.get(key).unwrap_or(&Value::Null);
                lost(value, after, &format!("{path}.{key}"), all);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (before, after) in before.iter().zip(after) {
                lost(before, after, &format!("{path}[]"), all);
            }
        }
        (before, after) if before == after || is_nothing(before) => {}
        _ => _ = all.insert(path.to_owned()),
    }
}

#[test]
fn everything_of_db7d441_is_read_and_what_is_not_kept_is_known() {
    let mut all = BTreeSet::new();
    for (kind, through) in KINDS {
        for object in objects("db7d441", kind) {
            let again = through(&object).unwrap_or_else(|why| panic!("{kind}: {why}"));
            for part in ["spec", "status"] {
                lost(&object[part], &again[part], &format!("{kind}.{part}"), &mut all);
            }
        }
    }
    let text: String = all.iter().map(|path| format!("{path}\n")).collect();
    // Measurements, which are metrics now; and a time that is written "7200s", was "2h".
    expect![[r#"
        Cluster.status.number
        MemberReport.spec.slices[].dns
        MemberReport.spec.slices[].gateways[].tunnels[].endpoint
        MemberReport.spec.slices[].gateways[].tunnels[].lastHandshake
        MemberReport.spec.slices[].gateways[].tunnels[].rttMicros
        SliceConfig.spec.gateway.rotation
        SliceConfig.status.clusters[].dns
        SliceConfig.status.clusters[].gateways
        SliceConfig.status.clusters[].observedAt
    "#]]
    .assert_eq(&text);
}

#[test]
fn a_slice_that_a_hub_of_db7d441_serves_becomes_the_mirror_that_its_member_has() {
    let served: MemberSlice = one("db7d441", "MemberSlice", Some("weft-member-b"));
    let mirror: Slice = one("db7d441", "Slice", None);
    let (spec, problems) = wire::read::slice(&served.spec, []).unwrap();
    assert_eq!(problems, Vec::<String>::new());
    let names = |spec: &slice_crds::v1alpha1::SliceSpec| {
        let peers = spec.peers.iter();
        let peers: Vec<_> = peers
            .map(|peer| (peer.name.clone(), peer.gateways.clone()))
            .collect();
        peers
    };
    assert_eq!(
        (spec.vni, &spec.subnets, &spec.ranges, names(&spec)),
        (
            mirror.spec.vni,
            &mirror.spec.subnets,
            &mirror.spec.ranges,
            names(&mirror.spec)
        )
    );
}
