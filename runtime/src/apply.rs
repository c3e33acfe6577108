//! Writing one object whole: server-side apply (KEP-555), and a delete that may find it gone.

use std::fmt::Debug;

use anyhow::Context;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

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
