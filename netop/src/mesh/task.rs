//! The clock of the probes, and what they are sent and answered by.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use slice_crds::v1alpha1::PairFault;
use tokio::{sync::watch, time::sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Local, Pace, Table, View};
use crate::{kernel::Prober, liveness::task::rand_u64, metrics::Metrics};

/// Until the next try, where the node's address cannot be bound yet.
const RETRY: Duration = Duration::from_secs(1);

/// Probes the other nodes until `stop`; what is observed goes to `view`. Sleeps while nothing is due.
pub async fn run(
    mut prober: Prober,
    pace: Pace,
    metrics: Metrics,
    mut local: watch::Receiver<Local>,
    view: watch::Sender<View>,
    stop: CancellationToken,
) {
    let mut table = Table::new(pace);
    let mut bound = None;
    let mut refused = String::new();
    let mut retry = None;
    let mut said = false;
    loop {
        // Nothing, where there is no address: it comes by `local`.
        let due = if bound.is_some() { table.poll_at() } else { retry };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = local.changed() => {
                if changed.is_err() {
                    return;
                }
                table.configure(Instant::now(), &local.borrow_and_update(), rand_u64);
                for probe in table.take_abandoned() {
                    let _ = prober.take(&probe);
                }
            }
            () = wait(due) => {}
        }
        let address = local.borrow().address;
        if bound != address {
            bound = None;
            if let Some(address) = address {
                match prober.bind(address) {
                    Ok(()) => bound = Some(address),
                    Err(error) => {
                        retry = Some(Instant::now() + RETRY);
                        let text = error.to_string();
                        if text != refused {
                            tracing::warn!(error = text, %address, "other nodes cannot be probed");
                            refused = text;
                        }
                    }
                }
            }
        }
        if bound.is_some() {
            turn(&mut table, &mut prober, &metrics);
        }
        let seen = table.view();
        publish(&metrics, &seen);
        // That nothing is probed is said once too.
        let first = !std::mem::replace(&mut said, true);
        view.send_if_modified(|before| {
            let changed = first || *before != seen;
            *before = seen;
            changed
        });
    }
}

/// Looks for the answers that are due, and sends what is.
fn turn(table: &mut Table, prober: &mut Prober, metrics: &Metrics) {
    let now = Instant::now();
    let mut came = BTreeSet::new();
    let count = |result| metrics.mesh_probes.with_label_values(&[result]).inc();
    for probe in table.waited(now) {
        match prober.take(&probe) {
            Ok(true) => {
                came.insert(probe.nonce);
                count("answered");
            }
            Ok(false) => count("lost"),
            Err(error) => {
                // What cannot be known is not held against anybody.
                tracing::warn!(error = format!("{error:#}"), "answer to a probe not read");
                came.insert(probe.nonce);
                count("unknown");
            }
        }
    }
    table.judge(now, Timestamp::now(), |probe| came.contains(&probe.nonce));
    for probe in table.poll(now, rand_u64) {
        if let Err(error) = prober.send(&probe) {
            tracing::debug!(error = format!("{error:#}"), node = %probe.to, size = probe.size, "probe not sent");
        }
    }
}

fn publish(metrics: &Metrics, seen: &View) {
    let set = |state: &str, pairs: usize| {
        let gauge = metrics.mesh_pairs.with_label_values(&[state]);
        gauge.set(i64::try_from(pairs).unwrap_or(i64::MAX));
    };
    let broken: usize = seen.faults.values().sum();
    set("ok", seen.pairs.saturating_sub(broken));
    for (fault, state) in [
        (PairFault::Silent, "silent"),
        (PairFault::Size, "size"),
        (PairFault::Fragments, "fragments"),
    ] {
        set(state, seen.faults.get(&fault).copied().unwrap_or_default());
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}
