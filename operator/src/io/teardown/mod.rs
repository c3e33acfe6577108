//! What a chart's uninstall cannot take off by itself.

pub mod hub;
pub mod member;

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::{conditions, wait::await_condition},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use slice_crds::labels;
use slice_runtime::apply;

/// A controller's Deployment.
struct Controller<'a> {
    namespace: &'a str,
    name: &'a str,
    /// Value of [`labels::COMPONENT`] on its pods.
    component: &'a str,
}

impl Controller<'_> {
    /// Stops it, so that it puts nothing back, and waits until its pods are gone.
    async fn stop(&self, client: &Client, patience: Duration) -> anyhow::Result<()> {
        let api: Api<Deployment> = Api::namespaced(client.clone(), self.namespace);
        let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
        match api.patch(self.name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("stop deployment {}", self.name)),
        }
        // The Deployment's status does not count pods that are still stopping.
        let pods: Api<Pod> = Api::namespaced(client.clone(), self.namespace);
        let selector = ListParams::default().labels(&format!("{}={}", labels::COMPONENT, self.component));
        for pod in pods.list(&selector).await.context("list the controller's pods")? {
            gone(&pods, &pod, patience).await?;
        }
        Ok(())
    }
}

/// Waits until an object is gone.
async fn gone<K>(api: &Api<K>, object: &K, patience: Duration) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let (kind, name) = (K::kind(&()).to_lowercase(), object.name_any());
    let uid = object.uid().unwrap_or_default();
    let deleted = conditions::is_deleted(&uid);
    match tokio::time::timeout(patience, await_condition(api.clone(), &name, deleted)).await {
        Ok(result) => result
            .map(drop)
            .with_context(|| format!("wait for {kind} {name} to go")),
        Err(_) => bail!(
            "{kind} {name} is still there after {} s: `kubectl get {kind} {name} -o yaml` says what holds it",
            patience.as_secs()
        ),
    }
}

/// Deletes the objects of a kind that a controller made.
async fn delete_owned<K>(client: &Client, manager: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + DeserializeOwned,
{
    let kind = K::kind(&());
    let owned = ListParams::default().labels(&format!("{}={manager}", labels::MANAGED_BY));
    let objects = Api::<K>::all(client.clone()).list(&owned).await;
    for object in objects.with_context(|| format!("list every {kind}"))? {
        let api = Api::<K>::namespaced(client.clone(), object.namespace().as_deref().unwrap_or_default());
        apply::delete(&api, &object.name_any()).await?;
    }
    Ok(())
}
