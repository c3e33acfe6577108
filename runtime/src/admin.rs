//! The admin listener: `/livez`, `/readyz` and `/metrics`.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use axum::{Router, http::StatusCode, routing::get};
use prometheus::{IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::version::VERSION;

/// What a process still waits for before it is ready. When the last [`Pending`] is dropped, `/readyz` turns to 200.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

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

    fn names(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} for the admin endpoints"))?;
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
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("serve the admin endpoints")
}
