//! What both roles count.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// Figures of a reconcile loop.
pub(crate) struct Metrics {
    pub(crate) turns: Histogram,
    pub(crate) errors: IntCounter,
    pub(crate) leader: IntGauge,
}

impl Metrics {
    /// # Panics
    /// Where `registry` has these metrics already.
    pub(crate) fn register(registry: &Registry) -> Self {
        let turns = Histogram::with_opts(HistogramOpts::new(
            "weft_operator_reconcile_seconds",
            "Time of one turn of the loop: gather, plan, apply, report",
        ))
        .expect("a valid metric");
        let errors = IntCounter::new(
            "weft_operator_reconcile_errors_total",
            "Turns that could not write everything; they are repeated. Growth means that the API server refuses something: see the log",
        )
        .expect("a valid metric");
        let leader = IntGauge::new("weft_operator_leader", "1 while this replica holds the Lease")
            .expect("a valid metric");
        registry
            .register(Box::new(turns.clone()))
            .expect("registered once");
        registry
            .register(Box::new(errors.clone()))
            .expect("registered once");
        registry
            .register(Box::new(leader.clone()))
            .expect("registered once");
        Self {
            turns,
            errors,
            leader,
        }
    }
}
