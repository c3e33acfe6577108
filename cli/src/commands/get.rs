//! `get`: objects as tables, YAML, JSON or names.

use std::fmt::Debug;

use anyhow::Context;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Api, Resource, ResourceExt, api::ListParams};
use serde::{Serialize, de::DeserializeOwned};
use slice_crds::{
    conditions,
    labels::{self, Attachment},
    names,
    v1alpha1::{Cluster, SliceConfig, SliceGateway, SliceNode},
};

use crate::{
    Outcome,
    args::{Get, Kind, Target},
    connect, output,
};

pub(crate) async fn run(target: &Target, get: Get) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    match get.what {
        Kind::Slices => {
            let found = list(&Api::<SliceConfig>::namespaced(client, &target.namespace), &get).await?;
            let head = ["name", "subnets", "clusters", "pods", "ready", "message"];
            output::objects(&found, "slices", get.output, &head, slice)
        }
        Kind::Clusters => {
            let found = list(&Api::<Cluster>::namespaced(client, &target.namespace), &get).await?;
            let head = ["name", "ready", "nodes", "kubernetes", "message"];
            output::objects(&found, "clusters", get.output, &head, cluster)
        }
        Kind::Gateways => {
            let found = list(
                &Api::<SliceGateway>::namespaced(client, names::MEMBER_NAMESPACE),
                &get,
            )
            .await?;
            let head = ["name", "slice", "node", "endpoints", "connected", "tunnels up"];
            output::objects(&found, "gateways", get.output, &head, gateway)
        }
        Kind::Nodes => {
            let found = list(&Api::<SliceNode>::all(client), &get).await?;
            output::objects(
                &found,
                "nodes",
                get.output,
                &["name", "phase", "version", "message"],
                node,
            )
        }
        Kind::Attachments => {
            let mut found = list(&Api::<Pod>::all(client), &get).await?;
            found.retain(|pod| pod.annotations().contains_key(labels::ATTACHMENTS));
            let head = ["namespace", "pod", "slice", "interface", "addresses"];
            output::objects(&found, "attachments", get.output, &head, attachment)
        }
    }?;
    Ok(Outcome::Good)
}

async fn list<K>(api: &Api<K>, get: &Get) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let params = match &get.name {
        Some(name) => ListParams::default().fields(&format!("metadata.name={name}")),
        None => ListParams::default(),
    };
    let kind = K::plural(&());
    Ok(api
        .list(&params)
        .await
        .with_context(|| format!("list {kind}; is Weft installed in this cluster?"))?
        .items)
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

fn attachment(pod: &Pod) -> Vec<String> {
    let text = pod
        .annotations()
        .get(labels::ATTACHMENTS)
        .map(String::as_str)
        .unwrap_or_default();
    let attachments: Vec<Attachment> = serde_json::from_str(text).unwrap_or_default();
    let join = |part: fn(&Attachment) -> String| attachments.iter().map(part).collect::<Vec<_>>().join(" ");
    vec![
        pod.namespace().unwrap_or_default(),
        pod.name_any(),
        join(|one| one.slice.clone()),
        join(|one| one.interface.clone()),
        join(|one| {
            one.ips
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",")
        }),
    ]
}
