//! Objects as the API server has them, read one by one: one that this version cannot read spoils no other.

use anyhow::{Context, bail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::{ApiResource, DynamicObject, TypeMeta},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use slice_crds::{pattern, read};

/// An API server's answer to a kind that it does not know.
const UNKNOWN_KIND: &str = "404 page not found";

/// Whether the cluster has no such kind.
pub(crate) fn is_unknown_kind(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(kube::Error::Api(status)) if status.message.trim() == UNKNOWN_KIND)
    })
}

/// An error as one line: of an API server's answer its own sentence, and not also the object around it.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        if let Some(kube::Error::Service(error)) = cause.downcast_ref() {
            let error: &(dyn std::error::Error + 'static) = &**error;
            let innermost = std::iter::successors(Some(error), |error| error.source()).last();
            let words = innermost.map_or_else(String::new, ToString::to_string);
            parts.push(format!("this context's API server cannot be reached: {words}"));
            break;
        }
        if let Some(kube::Error::Api(status)) = cause.downcast_ref() {
            parts.push(match status.message.trim() {
                "" => format!("the API server answers {} {}", status.code, status.reason),
                UNKNOWN_KIND => {
                    "this cluster has no such kind: is Weft installed in it, and is it the right one, hub or member?".to_owned()
                }
                message => in_words(message),
            });
            break;
        }
        let text = cause.to_string();
        // Some errors repeat what they come from.
        if parts.last().is_none_or(|last| !last.ends_with(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// An API server's sentence with words in place of the regular expressions in it.
fn in_words(message: &str) -> String {
    let (mut text, mut rest) = (String::new(), message);
    // What a CustomResourceDefinition's pattern refuses.
    while let Some((before, after)) = rest.split_once(" in body should match '") {
        // A pattern ends where its text does: the quote may be part of none of ours.
        let (pattern, after) = after.split_once('\'').unwrap_or((after, ""));
        match pattern::words(pattern) {
            Some(words) => text += &format!("{before} must be {words}"),
            None => text += &format!("{before} in body should match '{pattern}'"),
        }
        rest = after;
    }
    text += rest;
    // What Kubernetes' own rules for names refuse.
    const OWN: &str = ", regex used for validation is '";
    while let Some(from) = text.find(OWN) {
        let length = text[from..].find("')").map_or(text.len() - from, |end| end + 1);
        text.replace_range(from..from + length, "");
    }
    text
}

/// An object, and what this version makes of it.
#[derive(Clone, Debug)]
pub(crate) struct Found<T> {
    pub(crate) raw: DynamicObject,
    /// Or the field that cannot be read, with its value.
    pub(crate) object: Result<T, String>,
}

impl<T> Found<T> {
    pub(crate) fn name(&self) -> &str {
        self.raw.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> &str {
        self.raw.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub(crate) fn readable(&self) -> Option<&T> {
        self.object.as_ref().ok()
    }

    /// The conditions, as far as those can be read: the rest of the object need not be.
    pub(crate) fn conditions(&self) -> Vec<Condition> {
        let conditions = self
            .raw
            .data
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let conditions = conditions.into_iter().flatten();
        conditions
            .filter_map(|one| serde_json::from_value(one.clone()).ok())
            .collect()
    }

    /// The object, or why it cannot be had.
    pub(crate) fn into_object(self, what: &str) -> anyhow::Result<T> {
        match self.object {
            Ok(object) => Ok(object),
            Err(why) => bail!("{what} cannot be read by this slicectl: {why}"),
        }
    }
}

/// Reads an object.
pub(crate) fn found<T: DeserializeOwned>(raw: DynamicObject) -> Found<T> {
    let object = match serde_json::to_value(&raw) {
        Ok(value) => read(&value),
        Err(error) => Err(error.to_string()),
    };
    Found { raw, object }
}

/// Lists a kind: in a namespace, or everywhere.
pub(crate) async fn list<K>(
    client: &Client,
    namespace: Option<&str>,
    params: &ListParams,
) -> anyhow::Result<Vec<Found<K>>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let resource = ApiResource::erase::<K>(&());
    let list = api(client, namespace, &resource)
        .list(params)
        .await
        .with_context(|| format!("list {}", kind_of(&resource)))?;
    let types = TypeMeta {
        api_version: resource.api_version.clone(),
        kind: resource.kind,
    };
    let items = list.items.into_iter().map(|mut raw| {
        raw.types.get_or_insert_with(|| types.clone());
        found(raw)
    });
    Ok(items.collect())
}

/// Reads one object, where it is there.
pub(crate) async fn get<K>(
    client: &Client,
    namespace: Option<&str>,
    name: &str,
) -> anyhow::Result<Option<Found<K>>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let resource = ApiResource::erase::<K>(&());
    let raw = api(client, namespace, &resource)
        .get_opt(name)
        .await
        .with_context(|| format!("read {} {name}", kind_of(&resource)))?;
    Ok(raw.map(found))
}

/// An [`Api`] of raw objects of a kind: in a namespace, or everywhere.
pub(crate) fn raw<K: Resource<DynamicType = ()>>(
    client: &Client,
    namespace: Option<&str>,
) -> Api<DynamicObject> {
    api(client, namespace, &ApiResource::erase::<K>(&()))
}

fn api(client: &Client, namespace: Option<&str>, resource: &ApiResource) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

/// As kubectl takes it, such as `clusters.weft.dev`: others have kinds of that name too.
fn kind_of(resource: &ApiResource) -> String {
    match resource.group.as_str() {
        "" => resource.plural.clone(),
        group => format!("{}.{group}", resource.plural),
    }
}

#[cfg(test)]
pub(crate) fn from_json<T: DeserializeOwned>(value: Value) -> Found<T> {
    found(serde_json::from_value(value).expect("an object"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use slice_crds::v1alpha1::Cluster;

    use super::*;

    #[test]
    fn an_answer_of_the_api_server_is_its_sentence() {
        let answer = |message: &str| {
            let status: kube::core::Status =
                serde_json::from_value(json!({"code": 403, "reason": "Forbidden", "message": message}))
                    .unwrap();
            let error = kube::Error::Api(Box::new(status));
            explain(&anyhow::Error::new(error).context("list clusters.weft.dev"))
        };
        assert_eq!(answer("no"), "list clusters.weft.dev: no");
        assert_eq!(
            answer(""),
            "list clusters.weft.dev: the API server answers 403 Forbidden"
        );
        let invalid = |field: &str, value: &str, pattern: &str| {
            format!("{field}: Invalid value: \"{value}\": {field} in body should match '{pattern}'")
        };
        let refused = [
            invalid("spec.peers[0].name", "X", pattern::NAME),
            invalid("spec.peers[0].publicKey", "k", pattern::PUBLIC_KEY),
        ];
        assert_eq!(
            answer(&format!(
                "SliceConfig.weft.dev \"shop\" is invalid: [{}]",
                refused.join(", ")
            )),
            "list clusters.weft.dev: SliceConfig.weft.dev \"shop\" is invalid: [spec.peers[0].name: Invalid value: \"X\": \
             spec.peers[0].name must be lower-case letters, digits and '-', with a letter or a digit first and last, \
             spec.peers[0].publicKey: Invalid value: \"k\": spec.peers[0].publicKey must be a WireGuard public key, as \
             `wg pubkey` prints it]"
        );
        let foreign = invalid("spec.x", "y", "^[0-9]+$");
        assert_eq!(answer(&foreign), format!("list clusters.weft.dev: {foreign}"));
        assert_eq!(
            answer(
                "metadata.name: Invalid value: \"Shop!\": must be lower case (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?') and short"
            ),
            "list clusters.weft.dev: metadata.name: Invalid value: \"Shop!\": must be lower case (e.g. 'example.com') and short"
        );
        let plain = anyhow::anyhow!("refused")
            .context("connect")
            .context("read it: connect");
        assert_eq!(explain(&plain), "read it: connect: refused");
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_field_and_value() {
        let cluster: Found<Cluster> = from_json(json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": "b"},
            "spec": {"gateway": {"advertise": ["192.0.2.1", "gw.example.com"]}},
            "status": {"conditions": [
                {"type": "Ready", "status": "False", "reason": "Unreadable", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": 7},
            ]},
        }));
        assert_eq!(cluster.name(), "b");
        assert_eq!(cluster.conditions().len(), 1);
        assert_eq!(
            cluster.object.unwrap_err(),
            "spec.gateway.advertise[1] (it is \"gw.example.com\"): invalid IP address syntax"
        );
    }
}
