//! What a chart's uninstall cannot take off by itself.

pub mod hub;
pub mod member;
mod nodes;

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams},
    runtime::{conditions, wait::await_condition},
};
use serde::de::DeserializeOwned;
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
    /// Deletes it, so that it puts nothing back, and waits until its pods are gone. An installation that undoes this makes it
    /// anew; one that was scaled would stay so, since a server-side apply leaves what another has changed.
    async fn stop(&self, client: &Client, patience: Duration) -> anyhow::Result<()> {
        let api: Api<Deployment> = Api::namespaced(client.clone(), self.namespace);
        let there = api.get_opt(self.name).await;
        if let Some(deployment) = there.with_context(|| format!("read deployment {}", self.name))? {
            match api.delete(self.name, &DeleteParams::foreground()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error).with_context(|| format!("delete deployment {}", self.name)),
            }
            gone(&api, &deployment, patience).await?;
        }
        // Those of one that somebody has deleted without waiting.
        for pod in pods_of(client, self.namespace, self.component).await? {
            gone(&Api::namespaced(client.clone(), self.namespace), &pod, patience).await?;
        }
        Ok(())
    }
}

/// The pods of a component of Weft.
async fn pods_of(client: &Client, namespace: &str, component: &str) -> anyhow::Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("{}={component}", labels::COMPONENT));
    let pods = pods.list(&selector).await;
    Ok(pods
        .with_context(|| format!("list the pods of {component}"))?
        .items)
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
