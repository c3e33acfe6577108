//! The node's heartbeat: a Lease that the agent renews while its loop turns.
//!
//! Readers judge by their own clock when it last changed; what stands in statuses is about what is, not about whether
//! somebody still looks.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, api::ObjectMeta};
use slice_crds::names::{MEMBER_NAMESPACE, node_lease};
use slice_runtime::apply;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::report::MANAGER;

/// How long a heartbeat is good for: two may be lost.
const LEASE_SECONDS: i32 = 120;

/// The times of a heartbeat.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two.
    pub renew: Duration,
    /// Until the next try of one that failed.
    pub retry: Duration,
    /// How long a request may take.
    pub timeout: Duration,
    /// How long the agent's loop may take for one turn before it counts as stuck.
    pub stall: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            renew: Duration::from_secs(40),
            retry: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            // Everything is looked at every 5 s; a plan for a thousand nodes takes some seconds.
            stall: Duration::from_secs(60),
        }
    }
}

/// Renews the node's Lease until `stop`, as long as `turned` says that the agent's loop turns.
pub async fn run(
    client: Client,
    node: String,
    turned: watch::Receiver<Instant>,
    pace: Pace,
    stop: CancellationToken,
) {
    let api = Api::namespaced(client, MEMBER_NAMESPACE);
    let mut failing = false;
    loop {
        let age = turned.borrow().elapsed();
        let outcome = if age > pace.stall {
            Err(format!("the agent's loop has not turned for {} s", age.as_secs()))
        } else {
            let renewed = stop.run_until_cancelled(renew(&api, &node, pace.timeout)).await;
            let Some(outcome) = renewed else { return };
            outcome
        };
        let pause = if outcome.is_ok() { pace.renew } else { pace.retry };
        let failed = std::mem::replace(&mut failing, outcome.is_err());
        match outcome {
            Ok(()) if failed => tracing::info!("heartbeat works again"),
            Ok(()) => {}
            Err(error) if failed => tracing::debug!(error, "still no heartbeat"),
            Err(error) => tracing::warn!(
                error,
                lease_seconds = LEASE_SECONDS,
                "no heartbeat: where it stays away, other nodes leave this one's gateways"
            ),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn renew(api: &Api<Lease>, node: &str, timeout: Duration) -> Result<(), String> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node_lease(node)),
            namespace: Some(MEMBER_NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    match tokio::time::timeout(timeout, apply::apply(api, MANAGER, &lease)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!("the API server did not answer within {timeout:?}")),
    }
}
