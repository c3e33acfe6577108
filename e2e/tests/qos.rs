//! What a slice, and a pod, is given of the uplinks, on real clusters.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use slice_crds::{annotations, conditions, v1alpha1::SliceNode};
use slice_e2e::harness::{
    Cluster, Environment, poll,
    weft::{Member, PROJECT},
};
use slice_e2e::progress::say;

const SOON: Duration = Duration::from_secs(30);
/// TCP's own part of a frame, and what a busy machine may take: a rate of frames is this share of it as TCP counts.
const AT_LEAST: f64 = 0.80;
/// The same where gateways come to terms while it is measured: clearly more than an even part.
const ADAPTED: f64 = 0.70;

/// Mbit/s that TCP carries, which is no more than a limit and most of it.
#[track_caller]
fn is_limited(what: &str, mbps: f64, limit: f64) -> Result<()> {
    say(format!("{what}: {mbps:.1} of {limit} Mbit/s"));
    ensure!(
        mbps <= limit && mbps >= limit * AT_LEAST,
        "{what}: {mbps:.1} Mbit/s where the limit is {limit}"
    );
    Ok(())
}

/// Comes near a limit soon, and is never above it.
async fn reaches(what: &str, limit: f64, mut measure: impl AsyncFnMut() -> Result<f64>) -> Result<()> {
    poll(SOON, &format!("{what} have most of {limit} Mbit/s"), async || {
        let seen = measure().await?;
        ensure!(
            seen <= limit,
            "{what}: {seen:.1} Mbit/s where the limit is {limit}"
        );
        Ok((seen >= limit * ADAPTED).then_some(()))
    })
    .await
}

async fn mbps(from: &Member, to: &Member) -> Result<f64> {
    mbps_over(from, to, "3").await
}

async fn mbps_over(from: &Member, to: &Member, seconds: &str) -> Result<f64> {
    Ok(from.tcp(to, to.v4()?, seconds).await? * 1000.0)
}

async fn profile(environment: &Environment, spec: Value) -> Result<()> {
    let profile = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "QoSProfile",
        "metadata": {"name": "silver", "namespace": PROJECT}, "spec": spec,
    });
    environment.hub()?.apply(&profile.to_string()).await
}

#[tokio::test]
async fn a_slice_keeps_to_its_profile_and_a_change_loses_nothing() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("given", "weft-given");
    profile(&environment, json!({"guaranteedMbps": 20, "ceilingMbps": 40})).await?;
    let spec = json!({"subnets": ["10.80.0.0/16"], "qos": {"profile": "silver"}});
    environment.slice(slice, spec).await?;
    let members = environment.members(slice, namespace).await?;
    let (hub, other) = (environment.hub()?, environment.cluster(1)?);
    let (here, there) = (Member::of(&members, hub)?, Member::of(&members, other)?);
    let mut nodes = vec![];
    for cluster in &environment.clusters {
        nodes.push((cluster, gateway_node(cluster, slice).await?));
    }
    let limits = async |text: &str| -> Result<()> {
        for (cluster, node) in &nodes {
            environment.await_limits(cluster, node, slice, text).await?;
        }
        Ok(())
    };
    limits("rate 20M ceil 40M").await?;
    is_limited("toward the other cluster", mbps(here, there).await?, 40.0)?;
    is_limited("from it", mbps(there, here).await?, 40.0)?;

    let address = there.v4()?.to_string();
    let stream = [
        "stream",
        &address,
        "--over",
        "udp",
        "--interval",
        "2",
        "--seconds",
        "15",
    ];
    let change = async {
        profile(&environment, json!({"ceilingMbps": 80, "priority": 5})).await?;
        limits("ceil 80M prio 2").await?;
        environment.give(slice, &Value::Null).await?;
        environment
            .give(slice, &json!({"guaranteedMbps": 10, "ceilingMbps": 80}))
            .await?;
        limits("rate 10M ceil 80M prio 7").await
    };
    let (answer, changed) = futures::future::join(here.probe(&stream), change).await;
    changed?;
    let answer = answer?;
    ensure!(answer["lost"] == 0, "while it changed: {answer}");
    is_limited("after the change", mbps(here, there).await?, 80.0)?;

    // The node is said to have less than is guaranteed.
    let (cluster, node) = &nodes[0];
    let slice_nodes: Api<SliceNode> = Api::all(cluster.client.clone());
    let condition = async |status: &str, says: &str| {
        let what = format!("node {node} is GuaranteesFit={status} with \"{says}\"");
        poll(SOON, &what, async || {
            let seen = slice_nodes.get(node).await?;
            let all = seen.status.map(|status| status.conditions).unwrap_or_default();
            let mut fits = all.iter().filter(|one| one.type_ == "GuaranteesFit");
            Ok(fits
                .any(|one| one.status == status && one.message.contains(says))
                .then_some(()))
        })
        .await
    };
    condition("True", "guaranteed 10M").await?;
    for (uplink, status, says) in [
        ("5M", "False", "the node has 5M"),
        ("fast", "False", "\"fast\" is no rate"),
    ] {
        cluster
            .annotate_node(node, annotations::UPLINK, Some(uplink))
            .await?;
        condition(status, says).await?;
    }
    cluster.annotate_node(node, annotations::UPLINK, None).await?;
    condition("True", "guaranteed 10M").await?;

    // One whose profile is gone says so, and is given nothing.
    environment.give(slice, &json!({"profile": "nobody"})).await?;
    let slices = environment.slices()?;
    poll(SOON, "the slice names the missing profile", async || {
        let slice = slices.get(slice).await?;
        let conditions = conditions::of(&slice).to_vec();
        Ok(conditions
            .iter()
            .any(|one| one.message.contains("\"nobody\""))
            .then_some(()))
    })
    .await?;
    environment.remove_slice(slice).await?;
    environment.remove_namespaces(namespace).await
}

/// Where the slice's one gateway of a cluster runs.
async fn gateway_node(cluster: &Cluster, slice: &str) -> Result<String> {
    let gateways = cluster.gateways(slice).await?;
    let mut statuses = gateways.into_iter().filter_map(|gateway| gateway.status);
    let node = statuses.find_map(|status| status.node);
    node.with_context(|| format!("no gateway of {slice} runs in {}", cluster.name))
}

#[tokio::test]
async fn gateways_on_two_nodes_share_what_the_slice_is_given() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("shared", "weft-shared");
    let spec = json!({
        "subnets": ["10.80.0.0/16"], "gateway": {"replicas": 2}, "qos": {"ceilingMbps": 40},
    });
    environment.slice(slice, spec).await?;
    let members = environment.members(slice, namespace).await?;
    let of = |cluster: usize| -> Result<Vec<&Member>> {
        let name = &environment.cluster(cluster)?.name;
        Ok(members.iter().filter(|one| one.cluster.name == *name).collect())
    };
    let (here, there) = (of(0)?, of(1)?);
    ensure!(
        here.len() > 1 && there.len() > 1,
        "two nodes a cluster are needed"
    );
    // What each uses follows what it needs; never is it more together than the slice is given.
    let together = async || {
        let both = futures::future::try_join(mbps(here[0], there[0]), mbps(here[1], there[1])).await?;
        say(format!("together: {:.1} + {:.1} Mbit/s", both.0, both.1));
        Ok(both.0 + both.1)
    };
    let alone = async || {
        // It takes a second or two until the other's part is seen to be free.
        let alone = mbps_over(here[0], there[0], "8").await?;
        say(format!("alone: {alone:.1} Mbit/s"));
        Ok(alone)
    };
    for _ in 0..2 {
        reaches("two flows by two gateways", 40.0, together).await?;
        reaches("one flow by one of them", 40.0, alone).await?;
    }
    environment.remove_slice(slice).await?;
    environment.remove_namespaces(namespace).await
}

#[tokio::test]
async fn a_pod_is_limited_while_its_annotation_says_so() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("limited", "weft-limited");
    environment
        .slice(slice, json!({"subnets": ["10.80.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let hub = environment.hub()?;
    let own: Vec<&Member> = members
        .iter()
        .filter(|one| one.cluster.name == hub.name)
        .collect();
    let (pod, peer) = (own[0], own[1]);
    let pods = hub.pods(namespace);
    let annotate = async |value: Option<&str>| {
        let patch = json!({"metadata": {"annotations": {annotations::BANDWIDTH: value}}});
        pods.patch(&pod.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    };
    annotate(Some("limited=20M,1G")).await?;
    environment
        .await_limits(hub, pod.node(), slice, "root rate 20M ceil 20M")
        .await?;
    is_limited("what it sends", mbps(pod, peer).await?, 20.0)?;
    is_limited("what it gets", mbps(peer, pod).await?, 20.0)?;
    annotate(Some("fast")).await?;
    let events: Api<Event> = Api::namespaced(hub.client.clone(), namespace);
    poll(SOON, "an event names the annotation", async || {
        let all = events.list(&ListParams::default()).await?;
        let mut messages = all.items.iter().filter_map(|event| event.note.as_deref());
        Ok(messages
            .any(|text| text.contains("\"fast\" is no rate"))
            .then_some(()))
    })
    .await?;
    annotate(None).await?;
    poll(SOON, "the pod is free", async || {
        Ok((mbps(pod, peer).await? > 40.0).then_some(()))
    })
    .await?;
    environment.remove_slice(slice).await?;
    environment.remove_namespaces(namespace).await
}
