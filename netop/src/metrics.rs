//! What the agent counts.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, core::Collector,
};

/// Every figure of the agent.
#[derive(Clone)]
pub struct Metrics {
    pub attach_seconds: Histogram,
    pub reconcile_seconds: Histogram,
    pub reconcile_errors: IntCounter,
    pub drift_repaired: IntCounter,
    pub steps: IntCounterVec,
    pub passed_frames: IntCounterVec,
    pub dropped_frames: IntCounterVec,
    pub class_bytes: IntCounterVec,
    pub class_dropped: IntCounterVec,
    pub class_backlog: IntGaugeVec,
    pub guarantee_met: IntGaugeVec,
    pub indices: IntGaugeVec,
    pub attachments: IntGaugeVec,
    pub gateways: IntGaugeVec,
    pub features: IntGaugeVec,
    pub mesh_pairs: IntGaugeVec,
    pub mesh_probes: IntCounterVec,
    pub names_asked: IntCounterVec,
    pub cni: IntCounterVec,
    pub cni_undone: IntCounter,
    pub status_errors: IntCounter,
    pub events_dropped: IntCounter,
}

impl Metrics {
    /// # Panics
    /// Where one of the names is registered already.
    pub fn register(registry: &Registry) -> Self {
        let this = Self {
            attach_seconds: histogram(
                "weft_netop_attach_seconds",
                "From the moment the agent learns that a pod is in a slice until its interface is up",
            ),
            reconcile_seconds: histogram(
                "weft_netop_reconcile_seconds",
                "Deciding, planning and changing the kernel, once; an increase delays every pod of the node",
            ),
            reconcile_errors: counter(
                "weft_netop_reconcile_errors_total",
                "Changes that the kernel refused; an increase means that a slice on this node is not as it should be",
            ),
            drift_repaired: counter(
                "weft_netop_drift_repaired_total",
                "Differences that somebody else made and the agent put right",
            ),
            steps: counters(
                "weft_netop_steps_total",
                "Changes made to the kernel",
                &["result"],
            ),
            passed_frames: counters(
                "weft_netop_frames_total",
                "Frames that were carried, copies not counted",
                &["slice", "direction"],
            ),
            dropped_frames: counters(
                "weft_netop_dropped_frames_total",
                "Frames that were not carried, by from where they came and why; and, without a slice, those of no slice, and \
                 underlay: packets to the ports between nodes from elsewhere",
                &["slice", "direction", "reason"],
            ),
            class_bytes: counters(
                "weft_netop_class_bytes_total",
                "Bytes of frames that the shaper has sent, by direction and by whose limit: the slice's between clusters, or those \
                 of its attachments together",
                &["slice", "direction", "of"],
            ),
            class_dropped: counters(
                "weft_netop_class_dropped_frames_total",
                "Frames that found the queue full; an increase means that more is sent than the limit lets through",
                &["slice", "direction", "of"],
            ),
            class_backlog: gauges(
                "weft_netop_class_backlog_bytes",
                "Bytes of frames that wait in the shaper",
                &["slice", "direction", "of"],
            ),
            guarantee_met: gauges(
                "weft_netop_guarantee_met",
                "Whether the slice had in the last half second what it is guaranteed on this node, or did not need it: 1, or 0",
                &["slice", "direction"],
            ),
            indices: gauges(
                "weft_netop_indices",
                "Indices of this node's blocks: usable, held, free, resting",
                &["slice", "state"],
            ),
            attachments: gauges("weft_netop_attachments", "Attached pods", &["slice"]),
            gateways: gauges(
                "weft_netop_gateways",
                "Gateways on this node that are connected to the agent",
                &["slice"],
            ),
            features: gauges(
                "weft_netop_features",
                "Whether the kernel feature was found at start: 1, or 0 where the agent does without",
                &["feature"],
            ),
            mesh_pairs: gauges(
                "weft_netop_mesh_pairs",
                "Pairs of this node and another one, by port, that this node probes: ok, silent (nothing passes), size (full packets do \
                 not), fragments (full packets do only in fragments)",
                &["state"],
            ),
            mesh_probes: counters(
                "weft_netop_mesh_probes_total",
                "Probes of other nodes: answered, lost within a second, unknown; after a loss probes of several sizes are sent",
                &["result"],
            ),
            names_asked: counters(
                "weft_netop_names_asked_total",
                "Rounds of questions whether names of slices resolve by the cluster's DNS, as pods are told to ask it: resolved, failed; \
                 NamesResolve of the SliceNode says what fails",
                &["result"],
            ),
            cni: counters(
                "weft_netop_cni_requests_total",
                "Questions of the CNI plugin",
                &["command", "answer"],
            ),
            cni_undone: counter(
                "weft_netop_cni_undone_total",
                "Times that another program had taken the plugin out of the node's CNI list; a steady increase means that pods \
                 start without their interface: the SliceNode names the file",
            ),
            status_errors: counter(
                "weft_netop_status_errors_total",
                "Statuses and annotations that the API server did not take",
            ),
            events_dropped: counter(
                "weft_netop_events_dropped_total",
                "Events that the API server did not take, or that found no place among those waiting",
            ),
        };
        let all: [Box<dyn Collector>; 22] = [
            Box::new(this.attach_seconds.clone()),
            Box::new(this.reconcile_seconds.clone()),
            Box::new(this.reconcile_errors.clone()),
            Box::new(this.drift_repaired.clone()),
            Box::new(this.steps.clone()),
            Box::new(this.passed_frames.clone()),
            Box::new(this.dropped_frames.clone()),
            Box::new(this.class_bytes.clone()),
            Box::new(this.class_dropped.clone()),
            Box::new(this.class_backlog.clone()),
            Box::new(this.guarantee_met.clone()),
            Box::new(this.indices.clone()),
            Box::new(this.attachments.clone()),
            Box::new(this.gateways.clone()),
            Box::new(this.features.clone()),
            Box::new(this.mesh_pairs.clone()),
            Box::new(this.mesh_probes.clone()),
            Box::new(this.names_asked.clone()),
            Box::new(this.cni.clone()),
            Box::new(this.cni_undone.clone()),
            Box::new(this.status_errors.clone()),
            Box::new(this.events_dropped.clone()),
        ];
        for collector in all {
            registry.register(collector).expect("names are registered once");
        }
        this
    }
}

fn histogram(name: &str, help: &str) -> Histogram {
    let buckets = vec![
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0,
    ];
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect("a valid metric")
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("a valid metric")
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("a valid metric")
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid metric")
}
