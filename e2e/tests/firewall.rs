//! A node whose own IP filters drop what passes its bridges: said where users look, and over as soon as they stop.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use slice_crds::conditions;
use slice_e2e::{
    harness::{Environment, poll, weft::Member},
    lab::process,
};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_firewall_in_the_way_is_named() -> Result<()> {
    let environment = Environment::open().await?;
    let lab = environment.lab()?;
    let (slice, namespace) = ("walled", "weft-walled");
    environment
        .slice(slice, json!({"subnets": ["10.93.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    // What comes from a gateway to another node, the bridge there passes on; on its own node it goes past the bridge.
    let hub = environment.hub()?;
    let mut carrying = hub.gateways(slice).await?.into_iter();
    let carrying = carrying.next().and_then(|gateway| gateway.status?.node);
    let elsewhere = |member: &&Member| {
        member.cluster.name == hub.name && carrying.as_deref().is_some_and(|node| node != member.node())
    };
    let from = members
        .iter()
        .find(elsewhere)
        .context("a node without a gateway")?;
    let to = members.last().context("a pod")?;
    ensure!(from.cluster.name != to.cluster.name, "two clusters");
    let node = from.node();
    let address = to.v4()?.to_string();
    let echoes = async || {
        let answer = from
            .probe(&["udp", &address, "--count", "5", "--timeout", "200"])
            .await?;
        anyhow::Ok(answer["received"].as_u64().unwrap_or_default())
    };
    ensure!(echoes().await? == 5, "control");

    // A policy of DROP would also take the pod network, which its own plugin lets through.
    let wall = "add table ip wall; add chain ip wall forward { type filter hook forward priority 0 ; }; \
                add rule ip wall forward iifname wb-* oifname wb-* drop";
    process::run(lab.command(node, "nft")?.arg(wall))?;
    let slices = environment.slices()?;
    let named = poll(PATIENCE, "the slice says what is in its way", async || {
        ensure!(echoes().await? == 0, "the wall stands");
        let status = slices.get(slice).await?.status.unwrap_or_default();
        let unready = conditions::find_false(&status.conditions, conditions::READY);
        let told = unready.filter(|unready| unready.message.contains("own IP filters"));
        Ok(told.map(|unready| unready.message.clone()))
    })
    .await;
    process::run(lab.command(node, "nft")?.arg("delete table ip wall"))?;
    let named = named?;
    ensure!(
        named.contains(&format!("node {node}"))
            && named.contains("iptables -I FORWARD -i wb-+ -o wb-+ -j ACCEPT"),
        "{named}"
    );

    ensure!(echoes().await? == 5, "nothing is in the way");
    environment.await_slice(slice).await?;
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}
