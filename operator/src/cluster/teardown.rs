//! What the member chart's uninstall cannot remove by itself: workloads made by the operator, what is on the nodes,
//! and the stub in the cluster DNS's configuration.

use anyhow::{Context, bail};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::{conditions, wait::await_condition},
};
use serde_json::json;
use slice_crds::{
    labels,
    v1alpha1::{SliceNode, SliceNodePhase},
};
use slice_runtime::{apply, client};

use super::{MANAGER, corefile, turn};
use crate::args::TeardownArgs;

/// The operator's own Deployment, stopped first so that it puts nothing back.
const OPERATOR: &str = "weft-operator";

/// Stops the operator, then takes off gateways, nodes and the stub, and waits until it is so.
///
/// # Errors
/// Where a node does not report in time; the message names it. Running it again goes on from there.
pub async fn run(args: TeardownArgs) -> anyhow::Result<()> {
    let client = client::local().await?;
    stop_operator(&client, &args).await?;
    delete_workloads(&client, &args).await?;
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

async fn stop_operator(client: &Client, args: &TeardownArgs) -> anyhow::Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), &args.namespace);
    let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
    match api.patch(OPERATOR, &PatchParams::default(), &patch).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error).context("stop the operator"),
    }
    // Not by the Deployment's own word: it does not count pods that are still stopping.
    let pods: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
    let operators = ListParams::default().labels(&format!("{}=operator", labels::COMPONENT));
    for pod in pods.list(&operators).await.context("list the operator's pods")? {
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        let gone = await_condition(pods.clone(), &name, conditions::is_deleted(&uid));
        tokio::time::timeout(args.timeout, gone)
            .await
            .with_context(|| format!("pod {name} does not stop"))??;
    }
    Ok(())
}

async fn delete_workloads(client: &Client, args: &TeardownArgs) -> anyhow::Result<()> {
    let owned = ListParams::default().labels(&format!("{}={MANAGER}", labels::MANAGED_BY));
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &args.namespace);
    for set in sets.list(&owned).await.context("list the gateways")? {
        apply::delete(&sets, &set.name_any()).await?;
    }
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), &args.namespace);
    for budget in budgets
        .list(&owned)
        .await
        .context("list the gateways' PodDisruptionBudgets")?
    {
        apply::delete(&budgets, &budget.name_any()).await?;
    }
    let services: Api<Service> = Api::namespaced(client.clone(), &args.namespace);
    for service in services
        .list(&owned)
        .await
        .context("list the gateways' Services")?
    {
        apply::delete(&services, &service.name_any()).await?;
    }
    Ok(())
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
        Ok(())
    } else {
        turn::write_corefile(client, &config, after).await
    }
}
