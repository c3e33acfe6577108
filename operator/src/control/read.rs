//! What every object has, whatever its kind.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// Namespace and name of an object; the namespace is empty for kinds without.
pub type Id = (Box<str>, Box<str>);

/// What every object has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    pub version: Box<str>,
    pub generation: Option<i64>,
    pub created: Option<Timestamp>,
    pub terminating: bool,
}

impl Meta {
    pub fn of(object: &Value) -> Self {
        let meta = &object["metadata"];
        let text = |field: &str| -> Box<str> { meta[field].as_str().unwrap_or_default().into() };
        Self {
            namespace: text("namespace"),
            name: text("name"),
            uid: text("uid"),
            version: text("resourceVersion"),
            generation: meta["generation"].as_i64(),
            created: meta["creationTimestamp"]
                .as_str()
                .and_then(|time| time.parse().ok()),
            terminating: meta["deletionTimestamp"].is_string(),
        }
    }

    pub fn id(&self) -> Id {
        (self.namespace.clone(), self.name.clone())
    }
}

/// An annotation of a raw object.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"].get(key)?.as_str()
}
