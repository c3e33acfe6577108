//! `get`: objects as tables, YAML, JSON or names.

use anyhow::{Context, bail};
use clap::ValueEnum;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client, Resource, ResourceExt,
    api::ListParams,
    core::{ApiResource, DynamicObject},
};
use serde::de::DeserializeOwned;
use slice_crds::{
    conditions,
    labels::{self, Attachment},
    names,
    v1alpha1::{Cluster, SliceConfig, SliceGateway, SliceNode},
};

use super::token;
use crate::{
    Outcome,
    args::{Format, Get, Kind, Target},
    connect,
    objects::{self, Found},
    output,
};

pub(crate) async fn run(target: &Target, get: Get) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let project = Some(target.namespace.as_str());
    match get.what {
        Kind::Slices => {
            let found = list(&client, project, &get).await?;
            let head = ["name", "subnets", "clusters", "pods", "ready", "message"];
            output::objects(&found, "slices", get.output, &head, |_, one| slice(one))
        }
        Kind::Clusters => {
            let found = list(&client, project, &get).await?;
            let head = ["name", "ready", "nodes", "kubernetes", "message"];
            let wide = [
                "name",
                "ready",
                "nodes",
                "kubernetes",
                "weft",
                "reachable",
                "trusted",
                "exposure",
                "uid",
                "message",
            ];
            match get.output {
                Format::Wide => {
                    output::objects(&found, "clusters", get.output, &wide, |_, one| wide_cluster(one))
                }
                _ => output::objects(&found, "clusters", get.output, &head, |_, one| cluster(one)),
            }
        }
        Kind::Tokens => {
            let tokens = named(&get, token::tokens(&client, &params(&get)).await?)?;
            token::print(&tokens, get.output)
        }
        Kind::Gateways => {
            let found = list(&client, Some(names::MEMBER_NAMESPACE), &get).await?;
            let head = ["name", "slice", "node", "endpoints", "connected", "tunnels up"];
            output::objects(&found, "gateways", get.output, &head, |_, one| gateway(one))
        }
        Kind::Nodes => {
            let found = list(&client, None, &get).await?;
            let head = ["name", "phase", "version", "message"];
            output::objects(&found, "nodes", get.output, &head, |_, one| node(one))
        }
        Kind::Attachments => {
            let found = attachments(&client, &get).await?;
            let head = ["namespace", "pod", "slice", "interface", "addresses"];
            output::objects(&found, "attachments", get.output, &head, |pod, one| {
                attachment(pod, one)
            })
        }
    }?;
    Ok(Outcome::Good)
}

fn params(get: &Get) -> ListParams {
    match &get.name {
        Some(name) => ListParams::default().fields(&format!("metadata.name={name}")),
        None => ListParams::default(),
    }
}

async fn list<K>(client: &Client, namespace: Option<&str>, get: &Get) -> anyhow::Result<Vec<Found<K>>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    named(get, objects::list(client, namespace, &params(get)).await?)
}

/// What was found; an error where something of a name was asked for and is not there.
fn named<T>(get: &Get, found: Vec<T>) -> anyhow::Result<Vec<T>> {
    match &get.name {
        Some(name) if found.is_empty() => {
            let kinds = get.what.to_possible_value();
            let kinds = kinds.as_ref().map_or("objects", |value| value.get_name());
            bail!(
                "{} {name} not found; see `slicectl get {kinds}`",
                kinds.trim_end_matches('s')
            );
        }
        _ => Ok(found),
    }
}

/// Pods with attachments. Of a pod nothing but that is read.
async fn attachments(client: &Client, get: &Get) -> anyhow::Result<Vec<Found<Vec<Attachment>>>> {
    let list = objects::raw::<Pod>(client, None)
        .list(&params(get))
        .await
        .context("list the pods")?;
    let types = ApiResource::erase::<Pod>(&());
    let attached = list.items.into_iter().filter_map(|mut raw| {
        let text = raw.annotations().get(labels::ATTACHMENTS)?;
        let object = serde_json::from_str(text)
            .map_err(|error| format!("annotation {}: {error}", labels::ATTACHMENTS));
        raw.types = DynamicObject::new("", &types).types;
        Some(Found { raw, object })
    });
    named(get, attached.collect())
}

/// Status and message of a condition.
fn condition(conditions: &[Condition], type_: &str) -> (String, String) {
    conditions::find(conditions, type_).map_or_else(
        || ("Unknown".into(), "no status yet".into()),
        |one| (one.status.clone(), one.message.clone()),
    )
}

fn slice(slice: &SliceConfig) -> Vec<String> {
    let status = slice.status.clone().unwrap_or_default();
    let (ready, message) = condition(&status.conditions, conditions::READY);
    let clusters: Vec<_> = status
        .clusters
        .iter()
        .map(|cluster| cluster.name.as_str())
        .collect();
    let pods: u32 = status.clusters.iter().map(|cluster| cluster.attachments).sum();
    let subnets: Vec<_> = slice.spec.subnets.iter().map(ToString::to_string).collect();
    vec![
        slice.name_any(),
        subnets.join(","),
        clusters.join(","),
        pods.to_string(),
        ready,
        message,
    ]
}

fn cluster(cluster: &Cluster) -> Vec<String> {
    let status = cluster.status.clone().unwrap_or_default();
    let (ready, message) = condition(&status.conditions, conditions::READY);
    let version = status.kubernetes_version.unwrap_or_default();
    vec![
        cluster.name_any(),
        ready,
        status.nodes.to_string(),
        version,
        message,
    ]
}

fn gateway(gateway: &SliceGateway) -> Vec<String> {
    let status = gateway.status.clone().unwrap_or_default();
    let endpoints: Vec<_> = gateway.spec.endpoints.iter().map(ToString::to_string).collect();
    let up: Vec<_> = status
        .tunnels
        .iter()
        .filter(|one| one.up)
        .map(|one| one.peer.as_str())
        .collect();
    vec![
        gateway.name_any(),
        gateway.spec.slice.clone(),
        status.node.unwrap_or_default(),
        endpoints.join(","),
        status.connected.to_string(),
        up.join(","),
    ]
}

fn node(node: &SliceNode) -> Vec<String> {
    let status = node.status.clone().unwrap_or_default();
    let (_, message) = condition(&status.conditions, conditions::READY);
    vec![
        node.name_any(),
        format!("{:?}", status.phase),
        status.version.unwrap_or_default(),
        message,
    ]
}

fn wide_cluster(object: &Cluster) -> Vec<String> {
    let status = object.status.clone().unwrap_or_default();
    let mut row = cluster(object);
    let message = row.pop().unwrap_or_default();
    row.extend([
        status.weft_version.unwrap_or_default(),
        condition(&status.conditions, conditions::REACHABLE).0,
        condition(&status.conditions, conditions::TRUSTED).0,
        object.spec.gateway.exposure.name().to_owned(),
        status.cluster_uid.unwrap_or_default(),
        message,
    ]);
    row
}

fn attachment(pod: &Found<Vec<Attachment>>, attachments: &[Attachment]) -> Vec<String> {
    let join = |part: fn(&Attachment) -> String| attachments.iter().map(part).collect::<Vec<_>>().join(" ");
    let ips = |one: &Attachment| {
        one.ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    vec![
        pod.namespace().to_owned(),
        pod.name().to_owned(),
        join(|one| one.slice.clone()),
        join(|one| one.interface.clone()),
        join(ips),
    ]
}
