//! What a schema admits, this build reads: otherwise one object that the API server took would be lost on every process.
//!
//! Objects are drawn from the CRDs' own schemas, with the values that people and newer versions write into texts and
//! numbers, and passed through the rules (CEL) as an API server does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use kube::{CustomResourceExt, core::cel::Validator};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Map, Value, json};
use slice_crds::{
    read, schema,
    v1alpha1::{Cluster, QosProfile, Slice, SliceBlock, SliceConfig, SliceGateway, SliceNode, SliceService},
    wire::{
        Hub, JoinToken, MemberHub, MemberJoin, MemberReport, MemberService, MemberSlice, MemberSliceReport,
        SliceAllocation, SliceShare,
    },
};

/// Texts that look like something, whatever the field is.
const TEXTS: [&str; 24] = [
    "",
    "a",
    "shop",
    "gw.example.com",
    "192.0.2.1",
    "192.0.2.1:51820",
    "[2001:db8::1]:51820",
    "2001:db8::1",
    "10.80.0.0/16",
    "10.80.1.0/16",
    "10.80.0.0/33",
    "0.0.0.0/0",
    "127.0.0.0/8",
    "fd42:80::/64",
    "fe80::1%eth0",
    "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "1h30m",
    "-5s",
    "9999999999999999h",
    "2026-11-27T10:00:00Z",
    "Required",
    "SomethingNewer",
    "\u{fffd}\n\"'",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
];

/// Values of a schema; `more` adds fields that it does not know, where the API server would keep those.
fn values(schema: &Value, more: bool) -> BoxedStrategy<Value> {
    let inner = typed(schema, more);
    match schema["nullable"] == true {
        true => prop_oneof![4 => inner, 1 => Just(Value::Null)].boxed(),
        false => inner,
    }
}

fn typed(schema: &Value, more: bool) -> BoxedStrategy<Value> {
    if let Some(all) = schema["enum"].as_array() {
        let all: Vec<Value> = all.iter().filter(|one| !one.is_null()).cloned().collect();
        return proptest::sample::select(all).boxed();
    }
    match schema["type"].as_str() {
        Some("string") => texts(schema),
        Some("integer") => integers(schema),
        Some("number") => any::<f64>().prop_map(|number| json!(number)).boxed(),
        Some("boolean") => any::<bool>().prop_map(Value::from).boxed(),
        Some("array") => {
            let limit = |field: &str, default: u64| schema[field].as_u64().unwrap_or(default) as usize;
            let most = limit("maxItems", 3).clamp(limit("minItems", 0), 3.max(limit("minItems", 0)));
            proptest::collection::vec(values(&schema["items"], more), limit("minItems", 0)..=most)
                .prop_map(Value::from)
                .boxed()
        }
        Some("object") => objects(schema, more),
        // Whatever it is: such as a number or a text.
        _ => prop_oneof![any::<u16>().prop_map(Value::from), Just("80%".into())].boxed(),
    }
}

fn texts(schema: &Value) -> BoxedStrategy<Value> {
    let least = schema["minLength"].as_u64().unwrap_or(0) as usize;
    let most = schema["maxLength"].as_u64().unwrap_or(u64::MAX) as usize;
    let fits = move |text: &String| (least..=most).contains(&text.chars().count());
    if schema["format"] == "date-time" {
        return proptest::sample::select(vec!["2026-11-27T10:00:00Z", "2026-11-27T10:00:00.123456+01:00"])
            .prop_map(Value::from)
            .boxed();
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
        // Repetitions without an end are cut short.
        let pattern = pattern.replace('*', "{0,20}");
        let drawn = proptest::string::string_regex(&pattern).unwrap();
        return drawn.prop_filter("length", fits).prop_map(Value::from).boxed();
    }
    let known = proptest::sample::select(TEXTS.to_vec()).prop_map(ToOwned::to_owned);
    let known = known.prop_map(move |text| {
        let text: String = text.chars().take(most).collect();
        format!("{text:a<least$}")
    });
    known.prop_filter("length", fits).prop_map(Value::from).boxed()
}

fn integers(schema: &Value) -> BoxedStrategy<Value> {
    let bound = |field: &str, default: i64| {
        let bound = &schema[field];
        bound
            .as_i64()
            .or_else(|| bound.as_f64().map(|bound| bound as i64))
            .unwrap_or(default)
    };
    let (least, most) = (bound("minimum", i64::MIN), bound("maximum", i64::MAX));
    prop_oneof![Just(least), Just(most), least..=most]
        .prop_map(Value::from)
        .boxed()
}

fn objects(schema: &Value, more: bool) -> BoxedStrategy<Value> {
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut fields: Vec<BoxedStrategy<Option<(String, Value)>>> = Vec::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let name = name.clone();
        let must = required.contains(&name.as_str());
        let value = values(field, more).prop_map(move |value| Some((name.clone(), value)));
        fields.push(match must {
            true => value.boxed(),
            false => prop_oneof![3 => value, 2 => Just(None)].boxed(),
        });
    }
    if schema["additionalProperties"].is_object() {
        let key = proptest::sample::select(vec!["weft.dev/slice", "app", "x"]);
        let value = values(&schema["additionalProperties"], more);
        fields.push(
            (key, value)
                .prop_map(|(key, value)| Some((key.to_owned(), value)))
                .boxed(),
        );
    }
    if more && schema["properties"].is_object() {
        // What a newer version has: the CRDs of an older one would drop it, and its processes must not mind.
        fields.push(Just(Some(("fieldOfANewerVersion".to_owned(), json!({"a": [1]})))).boxed());
    }
    fields
        .prop_map(|fields| {
            let map: Map<String, Value> = fields.into_iter().flatten().collect();
            Value::from(map)
        })
        .boxed()
}

/// The drawn object with most fields of its spec as a sound one has them: rules about many fields refuse nearly all others.
fn mostly(sound: &Value, mut drawn: Value, take: &[bool]) -> Value {
    let Some(spec) = drawn["spec"].as_object_mut() else {
        return drawn;
    };
    let mut names: Vec<String> = spec.keys().cloned().collect();
    names.extend(
        sound
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone()),
    );
    for (name, take) in names.into_iter().zip(take.iter().cycle()) {
        match sound.get(&name) {
            _ if *take => {}
            Some(value) => {
                spec.insert(name, value.clone());
            }
            None => {
                spec.remove(&name);
            }
        }
    }
    drawn
}

/// `sound` is a spec that every rule allows, for kinds that have many.
fn check<K>(accepted: u32, sound: Option<Value>)
where
    K: CustomResourceExt + serde::de::DeserializeOwned,
{
    // As the charts install it.
    let mut crds = schema::hub().into_iter().chain(schema::member());
    let crd = crds
        .find(|crd| crd.spec.names.kind == K::crd().spec.names.kind)
        .unwrap();
    let crd = serde_json::to_value(crd).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
    let mut meta = json!({"name": "x", "uid": "u", "resourceVersion": "1", "generation": 1});
    if crd["spec"]["scope"] == "Namespaced" {
        meta["namespace"] = "weft-default".into();
    }
    let rules = Validator::new();
    for more in [false, true] {
        let config = Config {
            cases: accepted,
            max_global_rejects: accepted * 20,
            max_local_rejects: 100_000,
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner = TestRunner::new(config);
        let drawn = values(schema, more);
        let objects = match sound.clone() {
            None => drawn,
            Some(sound) => {
                let take = proptest::collection::vec(proptest::bool::weighted(0.2), 32);
                (drawn, take)
                    .prop_map(move |(drawn, take)| mostly(&sound, drawn, &take))
                    .boxed()
            }
        };
        let result = runner.run(&objects, |mut object| {
            object["apiVersion"] = "weft.dev/v1alpha1".into();
            object["kind"] = kind.as_str().into();
            object["metadata"] = meta.clone();
            // What the rules refuse was never stored.
            prop_assume!(rules.validate(schema, &object, None).is_ok());
            let result: Result<K, String> = read(&object);
            prop_assert!(
                result.is_ok(),
                "{kind}: {}\n{object}",
                result.err().unwrap_or_default()
            );
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    }
}

macro_rules! kinds {
    ($($name:ident: $kind:ty $(, near $sound:expr)?;)*) => {$(
        #[test]
        fn $name() {
            let sound: [Value; _] = [$($sound)?];
            check::<$kind>(256, sound.into_iter().next());
        }
    )*};
}

kinds! {
    every_slice_config_is_read: SliceConfig, near json!({"subnets": ["10.80.0.0/16"], "clusters": ["a"]});
    every_cluster_is_read: Cluster;
    every_qos_profile_is_read: QosProfile;
    every_slice_is_read: Slice;
    every_slice_block_is_read: SliceBlock;
    every_slice_gateway_is_read: SliceGateway;
    every_slice_node_is_read: SliceNode;
    every_slice_service_is_read: SliceService;
    every_hub_is_read: Hub;
    every_slice_allocation_is_read: SliceAllocation;
    every_join_token_is_read: JoinToken;
    every_member_hub_is_read: MemberHub;
    every_member_join_is_read: MemberJoin;
    every_slice_share_is_read: SliceShare;
    every_member_report_is_read: MemberReport;
    every_member_service_is_read: MemberService;
    every_member_slice_is_read: MemberSlice;
    every_member_slice_report_is_read: MemberSliceReport;
}
