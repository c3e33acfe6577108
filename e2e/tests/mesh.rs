//! Two nodes of one cluster that do not reach each other for slices: told within half a minute, with both names, and forgotten when
//! they do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::Api;
use serde_json::json;
use slice_crds::{conditions, names::TO_PODS_PORT, v1alpha1::Slice};
use slice_e2e::{
    harness::{Environment, weft::Member},
    progress::say,
};

const TOLD: Duration = Duration::from_secs(30);
/// Until a slice has followed: the size is searched for, reported to the hub, and comes back.
const FOLLOWED: Duration = Duration::from_secs(60);
/// What an underlay of 1300 bytes carries between two nodes.
const NARROW: u16 = 1300 - 50;
const WIDE: u16 = 1370;

/// Waits until the slice says that all is well between a cluster's nodes, or names the two with these words.
async fn await_told(
    environment: &Environment,
    slice: &str,
    nodes: &[String],
    words: Option<&str>,
) -> Result<()> {
    let cluster = environment.cluster(0)?;
    let slices: Api<Slice> = Api::all(cluster.client.clone());
    let is_so = |slice: &Slice| {
        let found = conditions::of(slice);
        match words {
            None => conditions::is_true(found, conditions::NODES_CONNECTED),
            Some(words) => [conditions::NODES_CONNECTED, conditions::READY]
                .iter()
                .all(|type_| {
                    conditions::find_false(found, type_).is_some_and(|one| {
                        let message = &one.message;
                        message.contains(words)
                            && message.contains(&TO_PODS_PORT.to_string())
                            && nodes.iter().all(|node| message.contains(&format!("{node} (")))
                    })
                }),
        }
    };
    let what = format!("the word between nodes: {}", words.unwrap_or("all is well"));
    cluster.await_object(&slices, slice, &what, TOLD, is_so).await?;
    Ok(())
}

/// Waits until a slice has this MTU, and is ready with it.
async fn await_mtu(environment: &Environment, slice: &str, mtu: u16) -> Result<()> {
    let cluster = environment.cluster(0)?;
    let slices: Api<Slice> = Api::all(cluster.client.clone());
    let is_so = |slice: &Slice| {
        let found = conditions::of(slice);
        let narrow = conditions::find_false(found, conditions::NODES_CONNECTED);
        slice.spec.mtu == mtu
            && conditions::is_true(found, conditions::READY)
            && (mtu == WIDE) == narrow.is_none()
            && narrow.is_none_or(|one| one.message.contains(&format!("packets of more than {mtu} bytes")))
    };
    let what = format!("an MTU of {mtu}");
    cluster
        .await_object(&slices, slice, &what, FOLLOWED, is_so)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_do_not_reach_each_other_are_named_with_the_port_and_the_size() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let (slice, namespace) = ("mesh", "weft-mesh");
    environment
        .slice(slice, json!({"subnets": ["10.89.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let cluster = environment.cluster(0)?;
    let nodes = cluster.nodes().await?;
    ensure!(nodes.len() == 2, "this test is about two nodes: {nodes:?}");
    let own: Vec<&Member> = members
        .iter()
        .filter(|member| member.cluster.name == cluster.name)
        .collect();
    let [from, to] = own[..] else {
        anyhow::bail!("a pod on each of two nodes, not {}", own.len());
    };
    await_told(&environment, slice, &nodes, None).await?;

    for node in &nodes {
        let closed = environment.close(node, &cluster.name, TO_PODS_PORT)?;
        await_told(&environment, slice, &nodes, Some("is lost since")).await?;
        closed.mend()?;
        await_told(&environment, slice, &nodes, None).await?;
        say(format!(
            "a port closed at {node} was told, and that it is open again"
        ));
    }
    let last = nodes.last().context("a node")?;
    let narrow = environment.narrow(std::slice::from_ref(last), &cluster.name, 1300)?;

    await_mtu(&environment, slice, NARROW).await?;
    narrow.mend()?;
    await_told(&environment, slice, &nodes, None).await?;
    await_mtu(&environment, slice, WIDE).await?;
    let rate = from.tcp(to, to.v4()?, "2").await?;
    ensure!(rate > 0.0, "nothing passes at full size");

    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}
