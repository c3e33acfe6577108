//! What the member chart's uninstall cannot remove by itself: workloads made by the operator, what is on the nodes,
//! and the stub in the cluster DNS's configuration.

use std::{collections::BTreeMap, net::IpAddr};

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
use slice_crds::{
    annotations::DNS_STUB,
    v1alpha1::{SliceNode, SliceNodePhase},
};
use slice_runtime::client;

use super::{Controller, delete_owned};
use crate::{
    args::TeardownArgs,
    member::{MANAGER, cluster_dns},
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
    let dns = match args.coredns_config.ids().is_empty() {
        true => None,
        false => address_of(client, args).await?,
    };
    for id in args.coredns_config.ids() {
        let (namespace, name) = (id.0.as_str(), id.1.as_str());
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let there = api.get_opt(name).await;
        let Some(config) = there.with_context(|| format!("read ConfigMap {namespace}/{name}"))? else {
            continue;
        };
        let left = cluster_dns::left(&id, config.data.as_ref().unwrap_or(&BTreeMap::new()), dns);
        let is_marked = config.annotations().contains_key(DNS_STUB);
        if left.is_empty() && !is_marked {
            continue;
        }
        // Refused where somebody else has written it meanwhile; uninstalling again reads it anew.
        let patch = json!({
            "metadata": {"resourceVersion": config.resource_version(), "annotations": {DNS_STUB: null}},
            "data": left,
        });
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("take the stub out of ConfigMap {namespace}/{name}"))?;
    }
    Ok(())
}

/// Where slice-dns answers, by which the stub is known where a tool has dropped the comments around it.
async fn address_of(client: &Client, args: &TeardownArgs) -> anyhow::Result<Option<IpAddr>> {
    let services: Api<Service> = Api::namespaced(client.clone(), &args.namespace);
    let named = ListParams::default().fields(&format!("metadata.name={}", args.dns_service));
    let services = services
        .list(&named)
        .await
        .context("ask for the address of slice-dns")?;
    let mut specs = services.items.into_iter().filter_map(|service| service.spec);
    Ok(specs.find_map(|spec| spec.cluster_ip?.parse().ok()))
}
