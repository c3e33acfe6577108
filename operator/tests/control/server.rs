//! An API server as a value: objects with versions, optimistic concurrency, a log that watches read at their own pace.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use slice_operator::control::{Change, Failure, Key, Kind, Observed, Outcome, Reason, Write, kind::Manner};

/// Kind, namespace, name.
pub(crate) type Id = (String, String, String);

/// What a watch tells.
#[derive(Clone, Debug)]
pub(crate) enum Watched {
    Applied(Value),
    Deleted(Value),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    objects: BTreeMap<Id, Value>,
    pub(crate) log: Vec<(String, Watched)>,
    version: u64,
    uids: u64,
    pub(crate) now: Timestamp,
    /// Writes of each kind that changed something.
    pub(crate) writes: BTreeMap<String, u64>,
}

fn id_of(kind: &str, object: &Value) -> Id {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (kind.to_owned(), text("namespace"), text("name"))
}

impl Server {
    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects
            .get(&(kind.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    /// Objects of a kind, in every namespace.
    pub(crate) fn list(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let start = (kind.to_owned(), String::new(), String::new());
        let kind = kind.to_owned();
        self.objects
            .range(start..)
            .take_while(move |((of, _, _), _)| *of == kind)
            .map(|(_, object)| object)
    }

    /// What a user or a member writes: the object becomes this, its status stays unless it is given.
    pub(crate) fn put(&mut self, kind: &str, mut object: Value) {
        let id = id_of(kind, &object);
        let before = self.objects.get(&id).cloned();
        if let Some(before) = &before {
            if object.get("status").is_none() {
                object["status"] = before["status"].clone();
            }
            for field in ["uid", "creationTimestamp"] {
                object["metadata"][field] = before["metadata"][field].clone();
            }
        }
        self.store(&id, object, before);
    }

    pub(crate) fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        let id = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let Some(mut object) = self.objects.remove(&id) else {
            return;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.log.push((kind.to_owned(), Watched::Deleted(object.clone())));
        if kind == "Namespace" {
            let inside: Vec<Id> = self
                .objects
                .keys()
                .filter(|(_, inside, _)| inside == name)
                .cloned()
                .collect();
            for (kind, namespace, name) in inside {
                self.delete(&kind, &namespace, &name);
            }
        }
        // Garbage collection of what it owned.
        let uid = object["metadata"]["uid"].clone();
        let owned: Vec<Id> = self
            .objects
            .iter()
            .filter(|(_, object)| object["metadata"]["ownerReferences"][0]["uid"] == uid)
            .map(|(id, _)| id.clone())
            .collect();
        for (kind, namespace, name) in owned {
            self.delete(&kind, &namespace, &name);
        }
    }

    /// Everything of these kinds is gone, and nobody is served: the hub was made anew.
    pub(crate) fn forget(&mut self, kinds: &[&str]) {
        self.objects
            .retain(|(kind, _, _), _| !kinds.contains(&kind.as_str()));
    }

    /// Carries a controller's write out.
    pub(crate) fn write(&mut self, write: &Write) -> Outcome {
        let Key {
            kind,
            namespace,
            name,
        } = &write.key;
        let resource = kind.resource().kind;
        let id = (resource.clone(), namespace.to_string(), name.to_string());
        let there = self.objects.get(&id).cloned();
        if let Some(refusal) = self.refuses(namespace) {
            return refusal;
        }
        match (&write.change, there) {
            (Change::Create { .. }, Some(there)) => match kind {
                Kind::Secret => Outcome::Written(Observed::of(*kind, &there)),
                _ => failed(Reason::Conflict, "exists"),
            },
            (Change::Create { body }, None) if kind.manner() == Manner::Status => {
                failed(Reason::NotFound, &format!("no {resource} {name}: {body}"))
            }
            (Change::Create { body }, None) => self.stored(*kind, &id, body.clone(), None),
            (Change::Apply { body } | Change::Patch { body }, Some(there)) => {
                let version = &body["metadata"]["resourceVersion"];
                if !version.is_null() && *version != there["metadata"]["resourceVersion"] {
                    return failed(Reason::Conflict, "the object has been modified");
                }
                let mut after = there.clone();
                merge(*kind, &mut after, body);
                self.stored(*kind, &id, after, Some(there))
            }
            (Change::Apply { .. } | Change::Patch { .. }, None) => failed(Reason::NotFound, "not found"),
            (Change::Delete { uid }, Some(there)) => {
                match there["metadata"]["uid"].as_str() == Some(&**uid) {
                    true => {
                        self.delete(&id.0, &id.1, &id.2);
                        *self.writes.entry(resource).or_default() += 1;
                        Outcome::Deleted
                    }
                    false => failed(Reason::Conflict, "another uid"),
                }
            }
            (Change::Delete { .. }, None) => Outcome::Deleted,
        }
    }

    fn refuses(&self, namespace: &str) -> Option<Outcome> {
        if !namespace.starts_with("weft-member-") {
            return None;
        }
        match self.get("Namespace", "", namespace) {
            None => Some(failed(Reason::NotFound, "namespaces not found")),
            Some(there) if !there["metadata"]["deletionTimestamp"].is_null() => {
                Some(failed(Reason::Forbidden, "it is being terminated"))
            }
            Some(_) => None,
        }
    }

    fn stored(&mut self, kind: Kind, id: &Id, object: Value, before: Option<Value>) -> Outcome {
        if self.store(id, object, before) {
            *self.writes.entry(format!("{kind:?}")).or_default() += 1;
        }
        Outcome::Written(Observed::of(kind, &self.objects[id]))
    }

    /// Whether anything changed.
    fn store(&mut self, id: &Id, mut object: Value, before: Option<Value>) -> bool {
        if let Some(before) = &before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            object["metadata"]["generation"] = before["metadata"]["generation"].clone();
            if object == *before {
                return false;
            }
            if object["spec"] != before["spec"] {
                let generation = before["metadata"]["generation"].as_i64().unwrap_or(1);
                object["metadata"]["generation"] = (generation + 1).into();
            }
        } else {
            self.uids += 1;
            object["metadata"]["uid"] = format!("uid-{}", self.uids).into();
            object["metadata"]["generation"] = 1.into();
            object["metadata"]["creationTimestamp"] = json!(self.now.to_string());
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(id.clone(), object.clone());
        self.log.push((id.0.clone(), Watched::Applied(object)));
        true
    }
}

/// Server-side apply by the one manager of these fields.
fn merge(kind: Kind, there: &mut Value, body: &Value) {
    if kind.manner() == Manner::Status {
        there["status"] = body["status"].clone();
        return;
    }
    // The port that an API server has given a Service stays, as long as it has one.
    let given = there["spec"]["ports"][0]["nodePort"].clone();
    for (field, value) in body.as_object().into_iter().flatten() {
        match field.as_str() {
            "metadata" => {}
            _ if kind.manner() == Manner::Fields => merge_patch(&mut there[field], value),
            _ => there[field] = value.clone(),
        }
    }
    if kind == Kind::Service && !given.is_null() && there["spec"]["type"] != "ClusterIP" {
        there["spec"]["ports"][0]["nodePort"] = given;
    }
    for field in ["labels", "annotations"] {
        let wanted = body["metadata"][field].as_object().cloned().unwrap_or_default();
        let mut map = there["metadata"][field].as_object().cloned().unwrap_or_default();
        map.retain(|key, _| !key.starts_with("weft.dev/") || wanted.contains_key(key));
        map.extend(wanted);
        there["metadata"][field] = map.into();
    }
}

/// RFC 7386.
fn merge_patch(there: &mut Value, patch: &Value) {
    match patch {
        Value::Object(fields) => {
            for (field, value) in fields {
                merge_patch(&mut there[field], value);
            }
        }
        other => *there = other.clone(),
    }
}

fn failed(reason: Reason, message: &str) -> Outcome {
    Outcome::Failed(Failure {
        reason,
        message: message.to_owned(),
    })
}
