//! What an object should hold, what it was seen to hold, and whether that is the same.

use std::{collections::BTreeMap, hash::Hasher, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::Serialize;
use serde_json::{Map, Value, json};
use siphasher::sip128::{Hasher128, SipHasher13};
use slice_crds::labels;

use super::kind::{Key, Kind, Manner};

/// On objects of Kubernetes' own kinds: the [`Digest`] of what was applied last.
pub const APPLIED: &str = "weft.dev/applied";
/// Prefix of labels and annotations that are Weft's.
const OURS: &str = "weft.dev/";
/// Statuses carry it; it says when they were written and is no news by itself.
const OBSERVED_AT: &str = "observedAt";

/// 128 bits over a value's content. Two processes have the same for the same value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(u128);

impl Digest {
    pub fn of(values: &[&Value]) -> Self {
        let mut hasher = SipHasher13::new();
        values.iter().for_each(|value| feed(&mut hasher, value));
        Self(hasher.finish128().as_u128())
    }

    pub fn text(self) -> String {
        format!("{:032x}", self.0)
    }
}

fn feed(hasher: &mut SipHasher13, value: &Value) {
    match value {
        Value::Null => hasher.write_u8(0),
        Value::Bool(truth) => {
            hasher.write_u8(1);
            hasher.write_u8((*truth).into());
        }
        Value::Number(number) => {
            hasher.write_u8(2);
            text(hasher, &number.to_string());
        }
        Value::String(string) => {
            hasher.write_u8(3);
            text(hasher, string);
        }
        Value::Array(list) => {
            hasher.write_u8(4);
            hasher.write_usize(list.len());
            list.iter().for_each(|value| feed(hasher, value));
        }
        Value::Object(map) => {
            hasher.write_u8(5);
            hasher.write_usize(map.len());
            // In the order of keys, whichever map serde_json was built with.
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            for (key, value) in sorted {
                text(hasher, key);
                feed(hasher, value);
            }
        }
    }
}

fn text(hasher: &mut SipHasher13, text: &str) {
    hasher.write_usize(text.len());
    hasher.write(text.as_bytes());
}

/// What an object should hold. Cheap to clone: many objects may share one.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    labels: Arc<BTreeMap<String, String>>,
    annotations: Arc<BTreeMap<String, String>>,
    owners: Arc<Vec<OwnerReference>>,
    /// Every field beside `apiVersion`, `kind` and `metadata`, as JSON.
    fields: Arc<str>,
    digest: Digest,
}

impl Content {
    /// From an object of any kind: its labels, annotations and owners, its spec and what else stands at the top.
    ///
    /// # Panics
    /// Where the object cannot be written as JSON, which no type of an API is.
    pub fn of(object: &impl Serialize) -> Self {
        let mut value = serde_json::to_value(object).expect("an object of an API is JSON");
        let Value::Object(map) = &mut value else {
            panic!("an object of an API is a JSON object")
        };
        map.remove("apiVersion");
        map.remove("kind");
        let meta = map.remove("metadata");
        let meta: ObjectMeta = meta
            .and_then(|meta| serde_json::from_value(meta).ok())
            .unwrap_or_default();
        let owners = meta.owner_references.unwrap_or_default();
        Self {
            owners: Arc::new(owners),
            ..Self::new(
                meta.labels.unwrap_or_default(),
                meta.annotations.unwrap_or_default(),
                value,
            )
        }
    }

    /// Of a status.
    ///
    /// # Panics
    /// As [`Content::of`].
    pub fn status(status: &impl Serialize) -> Self {
        let status = serde_json::to_value(status).expect("a status is JSON");
        Self::new(BTreeMap::new(), BTreeMap::new(), json!({ "status": status }))
    }

    /// Of an object with nothing but a spec.
    ///
    /// # Panics
    /// As [`Content::of`].
    pub fn spec(labels: BTreeMap<String, String>, spec: &impl Serialize) -> Self {
        let spec = serde_json::to_value(spec).expect("a spec is JSON");
        Self::new(labels, BTreeMap::new(), json!({ "spec": spec }))
    }

    fn new(labels: BTreeMap<String, String>, annotations: BTreeMap<String, String>, fields: Value) -> Self {
        let digest = digest(&labels, &annotations, &fields);
        Self {
            labels: Arc::new(labels),
            annotations: Arc::new(annotations),
            owners: Arc::default(),
            fields: fields.to_string().into(),
            digest,
        }
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The object to be sent, as it should be when it is of `version`.
    ///
    /// # Panics
    /// Never: what is kept as JSON is JSON.
    pub fn body(&self, key: &Key, version: Option<&str>, manager: &str) -> Value {
        let resource = key.kind.resource();
        let mut body: Value = serde_json::from_str(&self.fields).expect("kept as JSON");
        let mut labels = (*self.labels).clone();
        let mut annotations = (*self.annotations).clone();
        if matches!(key.kind.manner(), Manner::Own | Manner::Shared) {
            labels.insert(labels::MANAGED_BY.to_owned(), manager.to_owned());
        }
        if key.kind.manner() == Manner::Shared {
            annotations.insert(APPLIED.to_owned(), self.digest.text());
        }
        let mut meta = Map::new();
        meta.insert("name".into(), (*key.name).into());
        if !key.namespace.is_empty() {
            meta.insert("namespace".into(), (*key.namespace).into());
        }
        for (field, map) in [("labels", labels), ("annotations", annotations)] {
            if !map.is_empty() {
                meta.insert(field.into(), json!(map));
            }
        }
        if !self.owners.is_empty() {
            meta.insert("ownerReferences".into(), json!(*self.owners));
        }
        if let Some(version) = version {
            meta.insert("resourceVersion".into(), version.into());
        }
        body["apiVersion"] = resource.api_version.into();
        body["kind"] = resource.kind.into();
        body["metadata"] = meta.into();
        body
    }
}

fn digest(
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    fields: &Value,
) -> Digest {
    let ours = |map: &BTreeMap<String, String>| {
        let ours: BTreeMap<_, _> = map
            .iter()
            .filter(|(key, _)| key.starts_with(OURS) && *key != APPLIED)
            .collect();
        json!(ours)
    };
    Digest::of(&[&ours(labels), &ours(annotations), fields])
}

/// An object as it was last seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    pub uid: Box<str>,
    pub version: Box<str>,
    /// Who prunes it.
    manager: Option<Box<str>>,
    digest: Digest,
    /// The fields, of a kind that others write too, and with [`Manner::Shared`] its [`APPLIED`].
    shared: Option<(Option<Box<str>>, Arc<Value>)>,
    /// It is being deleted.
    terminating: bool,
}

impl Observed {
    /// Reads what matters of a raw object.
    pub fn of(kind: Kind, object: &Value) -> Self {
        let meta = &object["metadata"];
        let map = |field: &str| -> BTreeMap<String, String> {
            let entries = meta[field].as_object().into_iter().flatten();
            entries
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect()
        };
        let (labels, annotations) = (map("labels"), map("annotations"));
        let mut fields = Map::new();
        match kind.manner() {
            Manner::Status => {
                let mut status = object.get("status").cloned().unwrap_or(Value::Null);
                without_time(&mut status);
                fields.insert("status".into(), status);
            }
            Manner::Own | Manner::Shared | Manner::Fields => {
                let own =
                    |field: &&String| !["apiVersion", "kind", "metadata", "status"].contains(&field.as_str());
                let there = object.as_object().into_iter().flatten();
                fields.extend(
                    there
                        .filter(|(field, _)| own(field))
                        .map(|(field, value)| (field.clone(), value.clone())),
                );
            }
        }
        let fields = Value::Object(fields);
        let none = BTreeMap::new();
        let digest = match kind.manner() {
            Manner::Status => digest(&none, &none, &fields),
            Manner::Own | Manner::Shared | Manner::Fields => digest(&labels, &annotations, &fields),
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().into();
        Self {
            uid: text(&meta["uid"]),
            version: text(&meta["resourceVersion"]),
            manager: labels
                .get(labels::MANAGED_BY)
                .map(|manager| manager.as_str().into()),
            digest,
            shared: matches!(kind.manner(), Manner::Shared | Manner::Fields).then(|| {
                let applied = annotations.get(APPLIED).map(|text| text.as_str().into());
                let mut whole = fields;
                whole["metadata"] = json!({"labels": labels, "annotations": annotations});
                (applied, Arc::new(whole))
            }),
            terminating: meta.get("deletionTimestamp").is_some_and(|time| !time.is_null()),
        }
    }

    /// An object of which nothing is known but that it is there.
    pub fn known(uid: &str) -> Self {
        Self {
            uid: uid.into(),
            version: "".into(),
            manager: None,
            digest: Digest(0),
            shared: None,
            terminating: false,
        }
    }

    /// Whether `manager` prunes it.
    pub fn is_owned(&self, manager: &str) -> bool {
        self.manager.as_deref() == Some(manager)
    }

    pub fn is_terminating(&self) -> bool {
        self.terminating
    }

    /// Whether it holds what it should.
    pub fn holds(&self, kind: Kind, content: &Content) -> bool {
        match &self.shared {
            None => self.digest == content.digest,
            Some((applied, there)) => {
                let mut wanted: Value = serde_json::from_str(&content.fields).unwrap_or_default();
                wanted["metadata"] = json!({"labels": *content.labels, "annotations": *content.annotations});
                let applied = applied.as_deref() == Some(content.digest.text().as_str());
                (applied || kind.manner() == Manner::Fields) && covers(there, &wanted)
            }
        }
    }
}

/// Takes `observedAt` out of a status.
fn without_time(status: &mut Value) {
    if let Some(map) = status.as_object_mut() {
        map.remove(OBSERVED_AT);
    }
}

/// A status with the time of its writing, for kinds whose status has one.
pub fn with_time(body: &mut Value, now: &Time) {
    if let Some(status) = body.get_mut("status").and_then(Value::as_object_mut) {
        status.insert(OBSERVED_AT.to_owned(), json!(now));
    }
}

/// Whether every field of `wanted` has that value in `there`, which may have more. Lists are compared element by
/// element, in order; an absent value is as good as an empty one.
fn covers(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| covers(there.get(key).unwrap_or(&Value::Null), value)),
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len() && there.iter().zip(wanted).all(|(a, b)| covers(a, b))
        }
        (Value::Null, Value::Object(wanted)) => wanted.values().all(|value| covers(&Value::Null, value)),
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (there, wanted) => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(more: Value) -> Value {
        let mut object = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "SliceShare",
            "metadata": {"name": "shop.0", "namespace": "weft-member-a", "uid": "u", "resourceVersion": "7",
                "labels": {"weft.dev/for-slice": "shop", "app.kubernetes.io/managed-by": "weft-hub"}},
            "spec": {"slice": "shop", "shard": 0, "peers": []},
        });
        let map = object.as_object_mut().expect("an object");
        map.extend(more.as_object().cloned().unwrap_or_default());
        object
    }

    #[test]
    fn what_was_sent_is_seen_as_the_same() {
        let content = Content::of(&peers(json!({})));
        let key = Key::new(Kind::SliceShare, "weft-member-a", "shop.0");
        let sent = content.body(&key, Some("7"), "weft-hub");
        assert_eq!(sent["metadata"]["resourceVersion"], "7");
        let seen = Observed::of(Kind::SliceShare, &sent);
        assert!(seen.holds(key.kind, &content) && seen.is_owned("weft-hub"));
        let changed = Observed::of(
            Kind::SliceShare,
            &peers(json!({"spec": {"slice": "shop", "shard": 1, "peers": []}})),
        );
        assert!(!changed.holds(key.kind, &content));
    }

    #[test]
    fn labels_of_others_are_no_difference_and_ours_are() {
        let content = Content::of(&peers(json!({})));
        let with = |labels: Value| {
            let mut object = peers(json!({}));
            object["metadata"]["labels"] = labels;
            Observed::of(Kind::SliceShare, &object).holds(Kind::SliceShare, &content)
        };
        assert!(with(json!({"weft.dev/for-slice": "shop", "policy": "x"})));
        assert!(!with(json!({"weft.dev/for-slice": "bank"})));
    }

    #[test]
    fn of_somebody_elses_object_only_our_fields_count() {
        let content = Content::of(&json!({"metadata": {}, "data": {"Corefile": "x"}}));
        let holds = |data: Value| {
            let there = json!({"metadata": {"labels": {"k8s-app": "kube-dns"}}, "data": data});
            Observed::of(Kind::ConfigMap, &there).holds(Kind::ConfigMap, &content)
        };
        assert!(holds(json!({"Corefile": "x", "more": "y"})));
        assert!(!holds(json!({"Corefile": "z"})));
        let key = Key::new(Kind::ConfigMap, "kube-system", "coredns");
        assert_eq!(
            content.body(&key, Some("3"), "weft-cluster")["metadata"].get("labels"),
            None
        );
    }

    #[test]
    fn a_status_is_the_same_whenever_it_was_observed() {
        let content = Content::status(&json!({"nodes": 2}));
        let seen = |status: Value| {
            Observed::of(Kind::ClusterStatus, &json!({"status": status})).holds(Kind::ClusterStatus, &content)
        };
        assert!(seen(json!({"nodes": 2, "observedAt": "2026-11-21T10:00:00Z"})));
        assert!(!seen(json!({"nodes": 3})));
        assert!(!seen(Value::Null));
    }

    #[test]
    fn defaults_of_the_server_are_no_difference_and_a_field_we_no_longer_set_is() {
        let service = |spec: Value| json!({"metadata": {"name": "x", "namespace": "n"}, "spec": spec});
        let before = Content::of(&service(json!({"ports": [{"port": 1, "nodePort": 30001}]})));
        let after = Content::of(&service(json!({"ports": [{"port": 1}]})));
        let key = Key::new(Kind::Service, "n", "x");
        let mut there = before.body(&key, None, "weft-cluster");
        there["spec"]["type"] = "ClusterIP".into();
        there["spec"]["ports"][0]["protocol"] = "TCP".into();
        let seen = Observed::of(Kind::Service, &there);
        assert!(seen.holds(Kind::Service, &before));
        assert!(
            !seen.holds(Kind::Service, &after),
            "the node port must be taken back"
        );
        let elsewhere = Content::of(&json!({"metadata": {}, "spec": {"type": "ClusterIP"}}));
        assert!(
            !Observed::of(Kind::Service, &there).holds(Kind::Service, &elsewhere),
            "not what was applied last"
        );
        there["spec"]["ports"][0]["port"] = 2.into();
        assert!(
            !Observed::of(Kind::Service, &there).holds(Kind::Service, &before),
            "drift"
        );
    }
}
