//! The admin listener: `/livez`, `/readyz` and `/metrics`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{Router, http::StatusCode, routing::get};
use nix::errno::Errno;
use prometheus::{IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::version::VERSION;

/// What a process still waits for before it is ready, and which of its loops must go on for it to be alive. When the last
/// [`Pending`] is dropped, `/readyz` turns to 200; when a [`Pulse`] is not felt in time, `/livez` turns to 503.
#[derive(Clone, Default)]
pub struct Readiness {
    waiting: Arc<Mutex<BTreeSet<&'static str>>>,
    pulses: Arc<Mutex<BTreeMap<&'static str, Beat>>>,
}

/// When a loop last went round, and how long that may be ago.
#[derive(Clone, Copy)]
struct Beat {
    at: Instant,
    most: Duration,
}

/// A loop that must go on; dropping it says that it has ended as it should.
#[must_use]
pub struct Pulse {
    readiness: Readiness,
    name: &'static str,
    most: Duration,
}

/// One thing that must happen before the process is ready; dropping it says that it has.
#[must_use]
pub struct Pending {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    pub fn wait_for(&self, name: &'static str) -> Pending {
        self.names().insert(name);
        Pending {
            readiness: self.clone(),
            name,
        }
    }

    /// A loop that is to go round at least every `most`.
    pub fn pulse(&self, name: &'static str, most: Duration) -> Pulse {
        let pulse = Pulse {
            readiness: self.clone(),
            name,
            most,
        };
        pulse.beat();
        pulse
    }

    /// The loops that have not gone round in time, and for how long.
    pub fn stalled(&self) -> Vec<(&'static str, Duration)> {
        let beats = self.beats().clone();
        let late = beats
            .into_iter()
            .filter(|(_, beat)| beat.at.elapsed() > beat.most);
        late.map(|(name, beat)| (name, beat.at.elapsed())).collect()
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beats(&self) -> MutexGuard<'_, BTreeMap<&'static str, Beat>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// The loop has gone round.
    pub fn beat(&self) {
        let beat = Beat {
            at: Instant::now(),
            most: self.most,
        };
        self.readiness.beats().insert(self.name, beat);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.readiness.beats().remove(self.name);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut names = self.readiness.names();
        names.remove(self.name);
        tracing::info!(step = self.name, still_waiting_for = ?*names, "start-up step done");
    }
}

/// A registry that holds the process's own figures and its build information.
///
/// # Panics
/// Never: the registry is new, so no name is taken.
pub fn registry(component: &str) -> Registry {
    let registry = Registry::new();
    let build = IntGaugeVec::new(
        Opts::new("weft_build_info", "Always 1; its labels say what runs"),
        &["component", "version"],
    )
    .expect("a valid metric");
    build.with_label_values(&[component, VERSION]).set(1);
    registry.register(Box::new(build)).expect("a new registry");
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry.register(Box::new(process)).expect("a new registry");
    registry
}

/// Listens on an address; the unspecified IPv6 one means IPv4's where a host has no IPv6.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) =>
        {
            tracing::info!(%error, "no IPv6 here, the admin endpoints are on IPv4 only");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = listen(address)
        .await
        .with_context(|| format!("listen on {address} for the admin endpoints"))?;
    let liveness = readiness.clone();
    let live = move || async move {
        let stalled = liveness.stalled();
        match stalled.is_empty() {
            true => (StatusCode::OK, "ok\n".to_owned()),
            false => (StatusCode::SERVICE_UNAVAILABLE, format!("stalled: {stalled:?}\n")),
        }
    };
    let ready = move || async move {
        let waiting = readiness.names().clone();
        match waiting.is_empty() {
            true => (StatusCode::OK, "ok\n".to_owned()),
            false => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("waiting for {waiting:?}\n"),
            ),
        }
    };
    let metrics = move || async move {
        TextEncoder::new()
            .encode_to_string(&registry.gather())
            .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    };
    let router = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("serve the admin endpoints")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_not_alive() {
        let readiness = Readiness::default();
        let pulse = readiness.pulse("loop", Duration::ZERO);
        std::hint::black_box(Instant::now());
        let still = || {
            readiness
                .stalled()
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
        };
        while still().is_empty() {}
        assert_eq!(still(), ["loop"]);
        let lively = readiness.pulse("loop", Duration::from_secs(3600));
        assert!(still().is_empty());
        drop((pulse, lively));
        assert!(still().is_empty(), "one that has ended");
    }
}
