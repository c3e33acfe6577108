//! What the roles count.

use std::{fmt::Debug, time::Duration};

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

use crate::control::{Depth, Figures, Key, Outcome};

/// What both roles count.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) leader: IntGauge,
    plans: IntCounter,
    writes: IntCounterVec,
    write_seconds: Histogram,
    queue: IntGaugeVec,
    unreadable: IntGaugeVec,
    pub(crate) notices_dropped: IntCounter,
    pub(crate) slices: IntGauge,
}

/// What only a hub counts.
pub(crate) struct HubMetrics {
    pub(crate) propagation_seconds: Histogram,
    pub(crate) clusters: IntGaugeVec,
    pub(crate) indices: IntGaugeVec,
}

/// What only a member counts.
pub(crate) struct MemberMetrics {
    pub(crate) nodes: IntGaugeVec,
    pub(crate) hub_reachable: IntGauge,
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: Result<C, prometheus::Error>) -> C {
    let metric = metric.expect("a valid metric");
    registry
        .register(Box::new(metric.clone()))
        .expect("registered once");
    metric
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

/// A count as a gauge has it.
pub(crate) fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

impl Metrics {
    /// Counts a write to one of the API servers, and logs one that failed.
    pub(crate) fn wrote(&self, server: &str, key: &Key, outcome: &Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Written(_) | Outcome::Deleted => "ok",
            Outcome::Failed(failure) => failure.reason.label(),
        };
        self.writes
            .with_label_values(&[server, &format!("{:?}", key.kind), result])
            .inc();
        self.write_seconds.observe(took.as_secs_f64());
        if let Outcome::Failed(failure) = outcome {
            tracing::warn!(
                server,
                object = key.to_string(),
                result,
                error = failure.message,
                "object not written, tried again later"
            );
        }
    }

    pub(crate) fn queued(&self, server: &str, depth: Depth) {
        let Depth {
            due,
            in_flight,
            waiting,
        } = depth;
        for (state, count) in [("due", due), ("in_flight", in_flight), ("waiting", waiting)] {
            self.queue.with_label_values(&[server, state]).set(number(count));
        }
    }

    /// Takes over what a role has counted.
    pub(crate) fn take<S: Ord + Debug>(&self, figures: &mut Figures<S>) {
        self.plans.inc_by(figures.take_plans());
        self.notices_dropped.inc_by(figures.take_dropped_notices());
        for (source, count) in figures.unreadable() {
            self.unreadable
                .with_label_values(&[&format!("{source:?}")])
                .set(number(count));
        }
    }

    /// # Panics
    /// Where `registry` has these metrics already.
    pub(crate) fn register(registry: &Registry) -> Self {
        let counters = |name, help, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        Self {
            leader: add(
                registry,
                IntGauge::new("weft_operator_leader", "1 while this replica holds the Lease"),
            ),
            plans: add(
                registry,
                IntCounter::new(
                    "weft_operator_plans_total",
                    "Slices, clusters and services that were planned. It grows with changes, not with time",
                ),
            ),
            writes: add(
                registry,
                counters(
                    "weft_operator_writes_total",
                    "Writes to API servers by server, kind and result. Growth of another result than ok means that one of \
                     them refuses something: the conditions of the object's owner name it",
                    &["server", "kind", "result"],
                ),
            ),
            write_seconds: add(
                registry,
                histogram(
                    "weft_operator_write_seconds",
                    "Time of a write, until the API server has answered",
                    &[0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0],
                ),
            ),
            queue: add(
                registry,
                gauges(
                    "weft_operator_queue",
                    "Objects whose write is due, under way, or waits after a failure",
                    &["server", "state"],
                ),
            ),
            unreadable: add(
                registry,
                gauges(
                    "weft_operator_unreadable_objects",
                    "Objects that the API server has and this version cannot read. What was read of them before still holds",
                    &["kind"],
                ),
            ),
            notices_dropped: add(
                registry,
                IntCounter::new(
                    "weft_operator_events_dropped_total",
                    "Events that could not be recorded; conditions say the same",
                ),
            ),
            slices: add(registry, IntGauge::new("weft_operator_slices", "Slices")),
        }
    }
}

impl HubMetrics {
    /// # Panics
    /// Where `registry` has these metrics already.
    pub(crate) fn register(registry: &Registry) -> Self {
        Self {
            propagation_seconds: add(
                registry,
                histogram(
                    "weft_operator_propagation_seconds",
                    "Time from the report of a gateway's key or endpoint to the moment when the last member of its slice has \
                     it",
                    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0],
                ),
            ),
            clusters: add(
                registry,
                gauges(
                    "weft_operator_clusters",
                    "Member clusters: registered, reachable, and those whose reports are not all believed",
                    &["state"],
                ),
            ),
            indices: add(
                registry,
                gauges(
                    "weft_operator_indices",
                    "Indices of all slices: given to clusters, and free",
                    &["state"],
                ),
            ),
        }
    }
}

impl MemberMetrics {
    /// # Panics
    /// Where `registry` has these metrics already.
    pub(crate) fn register(registry: &Registry) -> Self {
        Self {
            nodes: add(
                registry,
                gauges(
                    "weft_operator_nodes",
                    "Nodes of the cluster: those that take part, and those that are left out",
                    &["state"],
                ),
            ),
            hub_reachable: add(
                registry,
                IntGauge::new(
                    "weft_operator_hub_reachable",
                    "1 while the hub takes this member's heartbeats",
                ),
            ),
        }
    }
}
