//! What the member chart's uninstall cannot remove by itself: workloads made by the operator, what is on the nodes,
//! and the stub in the cluster DNS's configuration.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Context;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use slice_crds::annotations::DNS_STUB;
use slice_runtime::client;

use super::{Controller, delete_owned, nodes};
use crate::{
    args::TeardownArgs,
    member::{MANAGER, cluster_dns},
};

/// Stops the operator, then takes off gateways, nodes and the stub, and waits until it is so.
///
/// # Errors
/// Where nodes do not report in time; the message names them. Running it again goes on from there.
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
    nodes::clean(&client, &args).await
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
