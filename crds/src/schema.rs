//! What is done to a generated schema before it becomes a CustomResourceDefinition.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResourceExt, core::crd::merge_crds};
use serde_json::Value;

use crate::{mcs, v1alpha1 as api, wire};

/// The kinds of the hub, in the order of reading.
pub fn hub() -> Vec<CustomResourceDefinition> {
    let users = [
        api::SliceConfig::crd(),
        api::QosProfile::crd(),
        api::Cluster::crd(),
    ];
    let exchanged = [
        wire::SliceAllocation::crd(),
        wire::Hub::crd(),
        wire::MemberHub::crd(),
        wire::MemberJoin::crd(),
        wire::MemberSlice::crd(),
        wire::SliceShare::crd(),
        wire::MemberReport::crd(),
        wire::MemberSliceReport::crd(),
        wire::MemberService::crd(),
    ];
    users
        .map(tidy)
        .map(kept)
        .into_iter()
        .chain([tidy(wire::JoinToken::crd())])
        .chain(exchanged.map(exchange))
        .collect()
}

/// The kinds of a member cluster.
pub fn member() -> Vec<CustomResourceDefinition> {
    [
        api::Slice::crd(),
        api::SliceBlock::crd(),
        api::SliceGateway::crd(),
        api::SliceNode::crd(),
        api::SliceService::crd(),
    ]
    .map(tidy)
    .into()
}

/// The kinds of the Multi-Cluster Services API that Weft serves (KEP-1645), both versions with one schema.
pub fn mcs() -> Vec<CustomResourceDefinition> {
    let versions = vec![mcs::v1alpha1::ServiceExport::crd(), mcs::ServiceExport::crd()];
    let export = merge_crds(versions, "v1beta1").expect("one kind in two versions");
    vec![kept(tidy(export))]
}

/// A kind whose objects people write: helm leaves it, and so them, when the chart is uninstalled.
fn kept(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let annotations = crd.metadata.annotations.get_or_insert_default();
    annotations.insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    crd
}

/// Puts bounds in place of number formats that API servers do not know ("uint32") and warn about at every start
/// (kubernetes/kubernetes#133136): what the schema admits, a reader's type holds.
fn tidy(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a CRD is JSON");
    bound_numbers(&mut value);
    serde_json::from_value(value).expect("still a CRD")
}

/// Kinds of [`crate::wire`]: the API server adds nothing to what a writer wrote, so that it can be compared, and takes
/// nothing away and refuses nothing (server-side apply does, of a field that the schema does not know), because hub and
/// members of neighbouring versions write them. A spec is one value to it, because it has one writer.
fn exchange(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(tidy(crd)).expect("a CRD is JSON");
    drop_defaults(&mut value);
    if let Some(spec) = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec") {
        keep_unknown(spec);
        spec["x-kubernetes-map-type"] = "atomic".into();
    }
    serde_json::from_value(value).expect("still a CRD")
}

fn keep_unknown(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("properties").is_some_and(Value::is_object) && map.contains_key("type") {
                map.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
            }
            map.values_mut().for_each(keep_unknown);
        }
        Value::Array(list) => list.iter_mut().for_each(keep_unknown),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn drop_defaults(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // A property may be named so: then it is a schema, an object with a type.
            if map
                .get("default")
                .is_some_and(|default| default.get("type").is_none())
            {
                map.remove("default");
            }
            map.values_mut().for_each(drop_defaults);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_defaults),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn bound_numbers(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let most = match map.get("format").and_then(Value::as_str) {
                Some("uint8") => Some(f64::from(u8::MAX)),
                Some("uint16") => Some(f64::from(u16::MAX)),
                Some("uint32") => Some(f64::from(u32::MAX)),
                // JSON numbers are exact up to 2⁵³ (RFC 8259 §6).
                Some("uint" | "uint64") => Some((1u64 << 53) as f64),
                Some("ip" | "int8" | "int16") => None,
                _ => {
                    map.values_mut().for_each(bound_numbers);
                    return;
                }
            };
            map.remove("format");
            if let Some(most) = most {
                map.entry("maximum").or_insert_with(|| most.into());
            }
        }
        Value::Array(list) => list.iter_mut().for_each(bound_numbers),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The generated files: name and YAML text.
///
/// # Errors
/// Where a definition cannot be written as YAML.
pub fn files() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser::Error> {
    [
        ("hub.yaml", hub()),
        ("member.yaml", member()),
        ("mcs.yaml", mcs()),
    ]
    .into_iter()
    .map(|(name, crds)| {
        let mut text = String::from("# Generated by `make crds`. Do not edit.\n");
        for crd in crds {
            text.push_str("---\n");
            text.push_str(&serde_saphyr::to_string(&crd)?);
        }
        Ok((name, text))
    })
    .collect()
}
