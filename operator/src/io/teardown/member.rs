//! What the member chart's uninstall cannot remove by itself: workloads made by the operator, what is on the nodes,
//! and the stub in the cluster DNS's configuration.

use anyhow::{Context, bail};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::wait::await_condition,
};
use serde_json::json;
use slice_crds::v1alpha1::{SliceNode, SliceNodePhase};
use slice_runtime::client;

use super::{Controller, delete_owned};
use crate::{
    args::TeardownArgs,
    member::{MANAGER, corefile},
};

/// Stops the operator, then takes off gateways, nodes and the stub, and waits until it is so.
///
/// # Errors
/// Where a node does not report in time; the message names it. Running it again goes on from there.
pub async fn run(args: TeardownArgs) -> anyhow::Result<()> {
    let client = client::local().await?;
    let operator = Controller {
        namespace: &args.namespace,
        name: "weft-operator",
        component: "operator",
    };
    operator.stop(&client, args.timeout).await?;
    delete_workloads(&client).await?;
    remove_stub(&client, &args).await?;
    let nodes: Api<SliceNode> = Api::all(client);
    let list = nodes
        .list(&ListParams::default())
        .await
        .context("list the nodes")?;
    for node in &list {
        let patch = Patch::Merge(json!({"spec": {"teardown": true}}));
        nodes
            .patch(&node.name_any(), &PatchParams::default(), &patch)
            .await
            .context("ask a node to clean up")?;
    }
    for node in list {
        let name = node.name_any();
        let removed = |node: Option<&SliceNode>| {
            let phase = node.map(|node| node.status.as_ref().map(|status| status.phase));
            // A node that is gone has nothing left; one that never had an agent neither.
            matches!(phase, None | Some(None | Some(SliceNodePhase::Removed)))
        };
        match tokio::time::timeout(args.timeout, await_condition(nodes.clone(), &name, removed)).await {
            Ok(result) => _ = result.with_context(|| format!("wait for node {name}"))?,
            Err(_) => bail!(
                "node {name} has not cleaned up within {} s: see `kubectl -n {} get pods -o wide` for its agent; \
                 where the node is gone for good, delete it with `kubectl delete node {name}`, then uninstall again",
                args.timeout.as_secs(),
                args.namespace
            ),
        }
        tracing::info!(node = name, "clean");
    }
    Ok(())
}

async fn delete_workloads(client: &Client) -> anyhow::Result<()> {
    delete_owned::<StatefulSet>(client, MANAGER).await?;
    delete_owned::<PodDisruptionBudget>(client, MANAGER).await?;
    delete_owned::<Service>(client, MANAGER).await
}

async fn remove_stub(client: &Client, args: &TeardownArgs) -> anyhow::Result<()> {
    let Some((namespace, name)) = args.coredns_config.split_once('/') else {
        return Ok(());
    };
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let Some(config) = api
        .get_opt(name)
        .await
        .context("read the cluster DNS's configuration")?
    else {
        return Ok(());
    };
    let before = config
        .data
        .as_ref()
        .and_then(|data| data.get("Corefile"))
        .cloned()
        .unwrap_or_default();
    let after = corefile::without_stub(&before);
    if before == after {
        return Ok(());
    }
    // Refused where somebody else has written it meanwhile; uninstalling again reads it anew.
    let patch = json!({
        "metadata": {"resourceVersion": config.resource_version()},
        "data": {"Corefile": after},
    });
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("take the stub out of the cluster DNS's configuration")?;
    Ok(())
}
