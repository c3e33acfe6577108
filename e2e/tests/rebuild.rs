//! The hub is lost and built anew from what users wrote: no pod notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::{
    ResourceExt,
    api::{Api, DeleteParams},
};
use serde_json::{Value, json};
use slice_crds::{
    conditions, names,
    v1alpha1::{Cluster as Registered, Slice, SliceConfig},
};
use slice_e2e::{
    harness::{Environment, Pace, Streams, poll, weft::PROJECT},
    progress::say,
};

const SOON: Duration = Duration::from_secs(60);

/// What `kubectl get -o yaml` has of an object that a person writes: no status, no UID, no version.
fn spec_of(object: &impl serde::Serialize) -> Result<Value> {
    let value = serde_json::to_value(object)?;
    Ok(json!({
        "apiVersion": value["apiVersion"], "kind": value["kind"], "spec": value["spec"],
        "metadata": {"name": value["metadata"]["name"], "namespace": value["metadata"]["namespace"]},
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_built_anew_moves_no_pod() -> Result<()> {
    let environment = Environment::open().await?;
    let hub = environment.hub()?;
    let (first, second, namespace) = ("anew", "also", "weft-anew");
    environment
        .slice(second, json!({"subnets": ["10.73.0.0/24"]}))
        .await?;
    environment
        .slice(first, json!({"subnets": ["10.74.0.0/24"]}))
        .await?;
    let members = environment.members(first, namespace).await?;
    let vnis = async || -> Result<Vec<u32>> {
        let slices: Api<Slice> = Api::all(environment.cluster(1)?.client.clone());
        Ok(vec![
            slices.get(first).await?.spec.vni,
            slices.get(second).await?.spec.vni,
        ])
    };
    let before = vnis().await?;
    let configs = environment.slices()?.list(&Default::default()).await?;
    let clusters: Api<Registered> = Api::namespaced(hub.client.clone(), PROJECT);
    let clusters = clusters.list(&Default::default()).await?;
    let pace = Pace {
        interval: Duration::from_millis(5),
        gap: Duration::from_millis(100),
        lasts: Duration::from_secs(100),
    };
    let streams = Streams::start(&members[0], members.last().context("a pod")?, pace).await?;

    environment.slicectl(&hub.name, &["uninstall", "hub", "--purge", "--timeout", "150"])?;
    hub.await_no_namespace(names::HUB_NAMESPACE).await?;
    hub.await_no_namespace(PROJECT).await?;
    for member in &environment.clusters {
        hub.await_no_namespace(&names::member_namespace(&member.name))
            .await?;
    }
    environment.slicectl(
        &hub.name,
        &["install", "hub", "--set", "image.tag=dev", "--timeout", "120"],
    )?;
    for cluster in &clusters {
        hub.apply(&spec_of(cluster)?.to_string()).await?;
    }
    for member in &environment.clusters {
        let token = environment.slicectl(&hub.name, &["token", "issue", &member.name])?;
        environment.slicectl(
            &member.name,
            &["join", "--token", token.trim(), "--replace", "--no-install"],
        )?;
    }
    // Joined, and the hub knows of no slice: nothing is taken from anybody.
    for member in &environment.clusters {
        let slices: Api<Slice> = Api::all(member.client.clone());
        ensure!(
            slices.get_opt(first).await?.is_some(),
            "cluster {} took the slice down",
            member.name
        );
    }
    for config in &configs {
        hub.apply(&spec_of(config)?.to_string()).await?;
    }
    for config in &configs {
        environment.await_slice(&config.name_any()).await?;
    }
    let (udp, tcp) = streams.finish().await?;
    say(format!("hub built anew: UDP {udp:?}, TCP {tcp:?}"));
    ensure!(udp.lost == 0 && tcp.broken.is_none(), "{udp:?} {tcp:?}");
    ensure!(
        vnis().await? == before,
        "VNIs {before:?} became {:?}",
        vnis().await?
    );
    for member in &members {
        let now = member.cluster.member(namespace, &member.name, first).await?;
        ensure!(now.attachment == member.attachment, "{member} moved");
    }
    held_while_in_use(&environment, first).await?;
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(second).await?;
    environment.remove_slice(first).await
}

/// Deleted by kubectl, what is in use stays for a while and says so; applied again, nothing has happened.
async fn held_while_in_use(environment: &Environment, slice: &str) -> Result<()> {
    let hub = environment.hub()?;
    let member = environment.cluster(1)?;
    let refused = environment.try_slicectl(&hub.name, &["delete", "cluster", &member.name])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && text.contains("--yes"), "{text}");
    let clusters: Api<Registered> = Api::namespaced(hub.client.clone(), PROJECT);
    let there = clusters.get(&member.name).await?;
    clusters.delete(&member.name, &DeleteParams::default()).await?;
    let is_held = |config: &SliceConfig| {
        conditions::of(config).iter().any(|one| {
            one.message
                .contains(&format!("cluster {} is to leave while", member.name))
        })
    };
    let result = hub
        .await_object(
            &environment.slices()?,
            slice,
            "the slice says that it holds the cluster",
            SOON,
            is_held,
        )
        .await;
    hub.apply(&spec_of(&there)?.to_string()).await?;
    result?;
    environment.await_joined(&member.name).await?;
    let slices: Api<Slice> = Api::all(member.client.clone());
    poll(SOON, "the slice is where it was", async || {
        Ok(slices.get_opt(slice).await?.map(drop))
    })
    .await
}
