//! The member role: mirrors what the hub says, runs gateways, exports services, reports back.
//!
//! The hub may be away at any time, also at the start: then the local objects are what they were and everything
//! that follows from them alone (blocks, gateways, exports to local DNS, statuses) goes on.

pub mod blocks;
pub mod corefile;
pub mod gateways;
pub mod link;
pub mod report;
pub mod services;
pub mod stores;
pub mod teardown;
mod turn;

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, runtime::watcher};
use slice_runtime::{
    admin::{self, Readiness},
    client, lease,
    store::Watches,
};
use tokio_util::sync::CancellationToken;

use crate::{args::ClusterArgs, metrics::Metrics};
use stores::{HubStores, Stores};
use turn::Member;

/// Field manager of the member role, here and on the hub, and the value of the label on what it prunes.
pub const MANAGER: &str = "weft-cluster";
/// The loop turns at least this often, and reports to the hub as often: its heartbeat.
const TICK: Duration = Duration::from_secs(15);
/// Events that come together make one turn.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Before a turn that failed is repeated.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until `stop`.
///
/// # Errors
/// Where the API server cannot be reached at the start, or the admin port is taken.
pub async fn run(args: ClusterArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let client = client::local().await?;
    let registry = admin::registry("cluster");
    let metrics = Metrics::register(&registry);
    let readiness = Readiness::default();
    let synced = readiness.wait_for("watches");
    let server = tokio::spawn(admin::serve(args.common.admin, registry, readiness, stop.clone()));
    let watches = Watches::new(stop.clone());
    let stores = Stores::watch(&client, &watches, &args);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &args.common.namespace);
    let field = format!("metadata.name={}", args.hub_secret);
    let credential = watches.watch(secrets, watcher::Config::default().fields(&field));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        result = stores.ready() => result?,
    }
    drop(synced);
    let mut leader = lease::claim(
        client.clone(),
        &args.common.namespace,
        MANAGER,
        args.common.pod_name.clone(),
        stop.clone(),
    );
    let mut member = Member::new(client, stores, args);
    let mut hub: Option<HubStores> = None;
    loop {
        let holds = *leader.borrow_and_update();
        metrics.leader.set(holds.into());
        let mut wait = TICK;
        if holds {
            let started = Instant::now();
            HubStores::follow(&mut hub, credential.state().first().map(AsRef::as_ref), &watches);
            if let Err(error) = member.turn(hub.as_ref()).await {
                tracing::warn!(error = format!("{error:#}"), "turn incomplete, repeated soon");
                metrics.errors.inc();
                wait = RETRY;
            }
            metrics.turns.observe(started.elapsed().as_secs_f64());
        }
        tokio::select! {
            // First: an operator that was told to stop must not take one more turn and put back what is being removed.
            biased;
            () = stop.cancelled() => break,
            () = watches.changed(), if holds => tokio::time::sleep(DEBOUNCE).await,
            () = tokio::time::sleep(wait) => {}
            _ = leader.changed() => {}
        }
    }
    server.await.context("admin listener")?
}
