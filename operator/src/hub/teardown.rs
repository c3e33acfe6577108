//! What the hub chart's uninstall cannot remove by itself: declared slices, clusters and the members' namespaces.

use std::{fmt::Debug, time::Duration};

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ListParams,
    runtime::{conditions, wait::await_condition},
};
use serde::{Serialize, de::DeserializeOwned};
use slice_crds::{
    labels,
    v1alpha1::{Cluster, SliceConfig},
};
use slice_runtime::{apply, client};

use super::MANAGER;

/// How long a namespace may take to go.
const PATIENCE: Duration = Duration::from_secs(90);

/// Deletes slices and clusters, then the members' namespaces, and waits until they are gone. Members that still run
/// take their segments down as long as they can read that, and go on with what they last knew afterwards.
///
/// # Errors
/// Where the API server refuses, or a namespace does not go in time.
pub async fn run() -> anyhow::Result<()> {
    let client = client::local().await?;
    delete_all::<SliceConfig>(&client).await?;
    delete_all::<Cluster>(&client).await?;
    let api: Api<Namespace> = Api::all(client);
    let owned = ListParams::default().labels(&format!("{}={MANAGER}", labels::MANAGED_BY));
    let namespaces = api.list(&owned).await.context("list the members' namespaces")?;
    for namespace in &namespaces {
        tracing::info!(namespace = namespace.name_any(), "deleting a member's namespace");
        apply::delete(&api, &namespace.name_any()).await?;
    }
    for namespace in namespaces {
        let (name, uid) = (namespace.name_any(), namespace.uid().unwrap_or_default());
        tokio::time::timeout(
            PATIENCE,
            await_condition(api.clone(), &name, conditions::is_deleted(&uid)),
        )
        .await
        .with_context(|| {
            format!("namespace {name} is still there: see `kubectl get namespace {name} -o yaml`")
        })??;
    }
    Ok(())
}

async fn delete_all<K>(client: &Client) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let kind = K::kind(&());
    let objects = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    for object in objects.with_context(|| format!("list every {kind}"))? {
        let api = Api::<K>::namespaced(client.clone(), &object.namespace().unwrap_or_default());
        tracing::info!(kind = %kind, name = object.name_any(), "deleting");
        apply::delete(&api, &object.name_any()).await?;
    }
    Ok(())
}
