//! Nodes that come: pods wait there for the agent where they should.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Client,
    api::{Api, Patch, PatchParams},
};
use serde_json::{Value, json};
use slice_crds::names;
use slice_e2e::{
    harness::{Environment, PodSpec, weft::Member},
    progress::say,
};
use tokio::task::block_in_place;

const SOON: Duration = Duration::from_secs(30);
/// A machine boots, its kubelet registers it, the agent starts there.
const BOOTED: Duration = Duration::from_secs(120);

fn has_startup_taint(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let mut taints = taints.into_iter().flatten();
    taints.any(|taint| taint.key == names::AGENT_NOT_READY)
}

/// A machine that never had an agent takes the place of a node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_fresh_node_a_pod_has_its_interface_from_its_first_moment() -> Result<()> {
    let environment = Environment::open().await?;
    let lab = environment.lab()?;
    let (slice, namespace) = ("growing", "weft-growing");
    environment
        .slice(slice, json!({"subnets": ["10.90.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let cluster = environment.cluster(1)?;
    let far = Member::of(&members, environment.cluster(0)?)?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let name = cluster.nodes().await?.pop().context("a node")?;

    let taint = Taint {
        key: names::AGENT_NOT_READY.into(),
        value: Some("true".into()),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    block_in_place(|| lab.replace_node(&name, &[taint]))?;
    let registered = nodes.get(&name).await?;
    ensure!(
        has_startup_taint(&registered),
        "registered without the taint: {:?}",
        registered.spec
    );
    // It ends with an error where it starts without its interface.
    let interface = format!("/sys/class/net/{}", names::pod_interface(slice));
    let line = format!("test -e {interface} && exec /usr/bin/weft-probe serve");
    // By the scheduler, which looks at taints.
    let early = PodSpec::new("early", &environment.image)
        .spec(json!({"nodeSelector": {"kubernetes.io/hostname": name}}))
        .command(&["/bin/sh", "-c", &line])
        .readiness(json!({"tcpSocket": {"port": 7777}, "periodSeconds": 1}));
    cluster.create_pod(namespace, &early).await?;
    cluster
        .await_object(&nodes, &name, "has no startup taint", BOOTED, |node| {
            !has_startup_taint(node)
        })
        .await?;
    let early = cluster.member(namespace, "early", slice).await?;
    let pod = cluster.pods(namespace).get("early").await?;
    let statuses = pod.status.and_then(|status| status.container_statuses);
    let restarts: i32 = (statuses.iter().flatten())
        .map(|status| status.restart_count)
        .sum();
    ensure!(
        restarts == 0,
        "it has started {restarts} times without its interface"
    );
    // The slice's only gateway may have been on this node.
    early.await_reached(far, SOON).await?;
    say(format!(
        "{early} started on a node that had no agent before, and reaches {far}"
    ));
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

#[tokio::test]
async fn a_startup_taint_is_taken_off_and_nothing_else_of_a_node_is_changed() -> Result<()> {
    let environment = Environment::open().await?;
    environment.install().await?;
    let cluster = environment.cluster(1)?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let name = cluster.nodes().await?.remove(0);
    let set = async |client: &Client, patch: Value| {
        let nodes: Api<Node> = Api::all(client.clone());
        nodes
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    };
    const OTHER: &str = "example.org/keep";
    let mut before = nodes
        .get(&name)
        .await?
        .spec
        .and_then(|spec| spec.taints)
        .unwrap_or_default();
    // Not what an earlier run left.
    before.retain(|taint| ![OTHER, names::AGENT_NOT_READY].contains(&&*taint.key));
    let before: Vec<Value> = before.iter().map(|taint| json!(taint)).collect();
    let with = |more: &[Value]| json!({"spec": {"taints": ([&before, more].concat())}});
    let other = json!({"key": OTHER, "effect": "PreferNoSchedule"});
    let ours = json!({"key": names::AGENT_NOT_READY, "value": "true", "effect": "NoSchedule"});
    set(&cluster.client, with(&[ours, other.clone()])).await?;
    let wanted = with(&[other]);
    let off = |node: &Node| {
        json!(node.spec.as_ref().and_then(|spec| spec.taints.clone())) == wanted["spec"]["taints"]
    };
    cluster
        .await_object(&nodes, &name, "has its other taint only", SOON, off)
        .await?;

    let operator = cluster
        .as_account(names::MEMBER_NAMESPACE, "weft-operator", None)
        .await?;
    for patch in [
        json!({"metadata": {"labels": {"example.org/role": "db"}}}),
        json!({"spec": {"unschedulable": true}}),
        with(&[]),
    ] {
        let refused = set(&operator, patch.clone()).await;
        ensure!(
            refused.is_err_and(|error| error.to_string().contains("changes nothing else of it")),
            "{patch} was taken"
        );
    }
    set(&cluster.client, with(&[])).await?;
    Ok(())
}
