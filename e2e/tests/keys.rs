//! Keys that are revoked are gone at once, and what crosses between clusters comes back by itself.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use slice_e2e::{
    harness::{Environment, Pace, Streams},
    progress::say,
};

const SLICE: &str = "revoked";
const NAMESPACE: &str = "weft-revoked";
/// New keys pass through two members' statuses and the hub, each of which writes an object once a second at most.
const OUTAGE_MS: f64 = 10_000.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_keys_are_gone_and_connections_go_on() -> Result<()> {
    let environment = Environment::open().await?;
    environment
        .slice(SLICE, json!({"subnets": ["10.79.0.0/16"]}))
        .await?;
    let members = environment.members(SLICE, NAMESPACE).await?;
    let from = &members[0];
    let mut others = members
        .iter()
        .filter(|member| member.cluster.name != from.cluster.name);
    let to = others.next().context("a pod in another cluster")?;
    let pace = Pace {
        interval: Duration::from_millis(10),
        gap: Duration::from_millis(100),
        lasts: Duration::from_secs(15),
    };
    let before = keys(&environment).await?;
    let streams = Streams::start(from, to, pace).await?;
    let said = environment.slicectl(&environment.hub()?.name, &["revoke", "keys", SLICE])?;
    ensure!(said.contains("keys revoked"), "{said}");
    let after = keys(&environment).await?;
    ensure!(
        after.len() == before.len() && after.is_disjoint(&before),
        "{before:?} became {after:?}"
    );
    let (udp, tcp) = streams.finish().await?;
    say(format!("revoked: {udp:?}, TCP {tcp:?}"));
    ensure!(tcp.broken.is_none() && tcp.lost == 0, "{tcp:?}");
    ensure!(udp.lost > 0, "sessions with revoked keys went on: {udp:?}");
    ensure!(udp.longest_gap_ms < OUTAGE_MS, "{udp:?}");
    environment.remove_namespaces(NAMESPACE).await?;
    environment.remove_slice(SLICE).await
}

/// Every key that a gateway of the slice answers to.
async fn keys(environment: &Environment) -> Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    for cluster in &environment.clusters {
        for gateway in cluster.gateways(SLICE).await? {
            let status = gateway.status.context("a gateway without a status")?;
            keys.extend(status.public_key.into_iter().chain(status.former_key));
        }
    }
    Ok(keys)
}
