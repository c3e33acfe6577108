//! Writing objects whole: server-side apply (KEP-555) of a set, and pruning of what is no longer in it.

use std::{collections::BTreeSet, fmt::Debug};

use anyhow::Context;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use slice_crds::labels;

/// A kind that can be applied.
pub trait Object: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned {}

impl<K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned> Object for K {}

/// Applies one object; `manager` owns every field in it, and takes fields that others have set.
///
/// # Errors
/// Where the API server refuses; the message names the object.
pub async fn apply<K: Object>(api: &Api<K>, manager: &str, object: &K) -> anyhow::Result<K> {
    let name = object.name_any();
    api.patch(&name, &PatchParams::apply(manager).force(), &Patch::Apply(object))
        .await
        .with_context(|| format!("apply {} {name}", K::kind(&())))
}

/// Applies a status; `object` carries name, namespace and status, and no spec.
///
/// # Errors
/// As [`apply`].
pub async fn apply_status<K: Resource<DynamicType = ()> + DeserializeOwned>(
    api: &Api<K>,
    manager: &str,
    name: &str,
    status: &impl Serialize,
) -> anyhow::Result<()> {
    patch_status(api, manager, name, None, status)
        .await
        .with_context(|| format!("apply the status of {} {name}", K::kind(&())))
}

/// The same where the object is still of this version; whether it was.
///
/// # Errors
/// Where the API server does not take it for another reason.
pub async fn apply_status_of_version<K: Resource<DynamicType = ()> + DeserializeOwned>(
    api: &Api<K>,
    manager: &str,
    name: &str,
    version: &str,
    status: &impl Serialize,
) -> anyhow::Result<bool> {
    match patch_status(api, manager, name, Some(version), status).await {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(false),
        Err(error) => Err(error).with_context(|| format!("apply the status of {} {name}", K::kind(&()))),
    }
}

async fn patch_status<K: Resource<DynamicType = ()> + DeserializeOwned>(
    api: &Api<K>,
    manager: &str,
    name: &str,
    version: Option<&str>,
    status: &impl Serialize,
) -> kube::Result<()> {
    let mut patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name},
        "status": status,
    });
    if let Some(version) = version {
        patch["metadata"]["resourceVersion"] = version.into();
    }
    api.patch_status(name, &PatchParams::apply(manager).force(), &Patch::Apply(patch))
        .await
        .map(drop)
}

/// Marks an object as one that `manager` prunes when it is no longer wanted.
pub fn own<K: Resource>(object: &mut K, manager: &str) {
    object
        .meta_mut()
        .labels
        .get_or_insert_default()
        .insert(labels::MANAGED_BY.into(), manager.into());
}

/// Whether `manager` prunes this object.
pub fn owned<K: Resource>(object: &K, manager: &str) -> bool {
    object
        .labels()
        .get(labels::MANAGED_BY)
        .is_some_and(|owner| owner == manager)
}

/// Brings the objects of one kind to `desired`: applies those that differ from what is `there`, deletes those
/// that `manager` owns and nobody wants. Goes on after a failure and returns the first.
///
/// `same` compares what is there with what is wanted, over the fields that `manager` writes.
///
/// # Errors
/// The first failure, after everything else was tried.
pub async fn sync<K, S>(
    api: impl Fn(Option<&str>) -> Api<K>,
    manager: &str,
    desired: Vec<K>,
    there: &[S],
    same: impl Fn(&K, &K) -> bool,
) -> anyhow::Result<()>
where
    K: Object,
    S: AsRef<K>,
{
    let mut failure = Ok(());
    let mut keep = |result: anyhow::Result<()>| {
        if let Err(error) = result {
            tracing::warn!(error = format!("{error:#}"), "object not written");
            if failure.is_ok() {
                failure = Err(error);
            }
        }
    };
    let mut wanted = BTreeSet::new();
    for mut object in desired {
        own(&mut object, manager);
        let key = (object.namespace(), object.name_any());
        let old = there
            .iter()
            .map(AsRef::as_ref)
            .find(|old| (old.namespace(), old.name_any()) == key);
        if !old.is_some_and(|old| owned(old, manager) && same(old, &object)) {
            keep(apply(&api(key.0.as_deref()), manager, &object).await.map(drop));
        }
        wanted.insert(key);
    }
    for orphan in there.iter().map(AsRef::as_ref).filter(|old| owned(*old, manager)) {
        let key = (orphan.namespace(), orphan.name_any());
        if !wanted.contains(&key) && orphan.meta().deletion_timestamp.is_none() {
            keep(delete(&api(key.0.as_deref()), &key.1).await);
        }
    }
    failure
}

/// Deletes an object and what it owns; that it is gone already is as good.
///
/// # Errors
/// Where the API server refuses.
pub async fn delete<K: Object>(api: &Api<K>, name: &str) -> anyhow::Result<()> {
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("delete {} {name}", K::kind(&()))),
    }
}

/// An [`Api`] for a namespaced kind, as [`sync`] takes it.
pub fn namespaced<K>(client: &Client) -> impl Fn(Option<&str>) -> Api<K> + '_
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    move |namespace| match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Whether everything that `desired` says is so in `actual`, which may say more: API servers fill in defaults.
///
/// Meant for kinds of Kubernetes itself. Lists are compared element by element, in order.
pub fn covers<K: Serialize>(actual: &K, desired: &K) -> bool {
    let json = |object: &K| serde_json::to_value(object).unwrap_or_default();
    covers_value(&json(actual), &json(desired))
}

fn covers_value(actual: &Value, desired: &Value) -> bool {
    match (actual, desired) {
        (Value::Object(actual), Value::Object(desired)) => desired
            .iter()
            .all(|(key, value)| covers_value(actual.get(key).unwrap_or(&Value::Null), value)),
        (Value::Array(actual), Value::Array(desired)) => {
            actual.len() == desired.len() && actual.iter().zip(desired).all(|(a, d)| covers_value(a, d))
        }
        (Value::Null, Value::Object(desired)) => {
            desired.values().all(|value| covers_value(&Value::Null, value))
        }
        (Value::Null, Value::Array(desired)) => desired.is_empty(),
        (actual, desired) => actual == desired,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_that_the_server_fills_in_are_no_difference() {
        let desired = json!({"spec": {"ports": [{"port": 1}], "selector": {}, "list": []}});
        assert!(covers_value(
            &json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "type": "ClusterIP"}}),
            &desired
        ));
        assert!(!covers_value(
            &json!({"spec": {"ports": [{"port": 2}]}}),
            &desired
        ));
        assert!(!covers_value(
            &json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}}),
            &desired
        ));
        assert!(!covers_value(&json!({}), &desired));
    }
}
