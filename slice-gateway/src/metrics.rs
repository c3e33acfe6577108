//! The figures of the data path as Prometheus metrics, made when they are asked for.

use std::{collections::HashMap, sync::Arc};

use prometheus::{
    GaugeVec, IntCounterVec, IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::{self, MetricFamily},
};

use crate::{
    proto::{
        PeerStats,
        liveness::{LOSS_WINDOW, RTT_STEP},
    },
    shared::{Figures, Shared},
    sizes::Sizes,
};

const PER_SLICE: &[&str] = &["slice"];
const PER_PEER: &[&str] = &["slice", "peer_cluster", "peer"];
const PER_REASON: &[&str] = &["slice", "peer_cluster", "peer", "reason"];

/// Collects from the figures that the data path published last.
pub struct Metrics {
    shared: Arc<Shared>,
    descs: Vec<Desc>,
}

impl Metrics {
    /// # Panics
    /// Never: names and labels are constants.
    pub fn new(shared: Arc<Shared>) -> Self {
        let descs = families(&Figures::default()).desc();
        Self { shared, descs }
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        families(&self.shared.figures()).collect()
    }
}

struct Families(Vec<Box<dyn Collector>>);

impl Families {
    fn desc(&self) -> Vec<Desc> {
        self.0.iter().flat_map(|family| family.desc()).cloned().collect()
    }

    /// What has a value.
    fn collect(&self) -> Vec<MetricFamily> {
        let families = self.0.iter().flat_map(|family| family.collect());
        families
            .filter(|family| !family.get_metric().is_empty())
            .collect()
    }

    fn counter<'a>(
        &mut self,
        (name, help): (&str, &str),
        labels: &[&str],
        values: impl Iterator<Item = (Vec<&'a str>, u64)>,
    ) {
        let family = IntCounterVec::new(Opts::new(format!("weft_gateway_{name}"), help), labels)
            .expect("a valid metric");
        for (labels, value) in values {
            family.with_label_values(&labels).inc_by(value);
        }
        self.0.push(Box::new(family));
    }

    fn gauge<'a>(
        &mut self,
        (name, help): (&str, &str),
        labels: &[&str],
        values: impl Iterator<Item = (Vec<&'a str>, f64)>,
    ) {
        let family =
            GaugeVec::new(Opts::new(format!("weft_gateway_{name}"), help), labels).expect("a valid metric");
        for (labels, value) in values {
            family.with_label_values(&labels).set(value);
        }
        self.0.push(Box::new(family));
    }
}

/// Values counted elsewhere: the library's own histogram can only observe one by one.
struct Histogram {
    desc: Desc,
    family: MetricFamily,
}

impl Histogram {
    fn new((name, help): (&str, &str), labels: &[&str]) -> Self {
        let name = format!("weft_gateway_{name}");
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        let desc = Desc::new(name.clone(), help.into(), labels, HashMap::new()).expect("a valid metric");
        let mut family = MetricFamily::default();
        family.set_name(name);
        family.set_help(help.into());
        family.set_field_type(proto::MetricType::HISTOGRAM);
        Self { desc, family }
    }

    /// Adds what was counted for one set of labels; `value` makes a bound or sum in the metric's unit of one that was
    /// counted.
    fn with<const N: usize>(mut self, labels: &[&str], sizes: &Sizes<N>, value: Value) -> Self {
        let buckets = sizes.cumulative().map(|(bound, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(value.of(bound, 1));
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(sizes.count());
        histogram.set_sample_sum(value.of(sizes.sum(), sizes.count()));
        let names = self.desc.variable_labels.iter();
        let pairs = names.zip(labels).map(|(name, label)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value((*label).to_owned());
            pair
        });
        let mut metric = proto::Metric::from_label(pairs.collect());
        metric.set_histogram(histogram);
        self.family.mut_metric().push(metric);
        self
    }
}

/// What was counted, in the metric's unit: `scale` times what is above `zero`.
#[derive(Clone, Copy)]
struct Value {
    zero: u64,
    scale: f64,
}

impl Value {
    const AS_IT_IS: Self = Self { zero: 0, scale: 1.0 };

    /// Of a sum of so many.
    fn of(self, sum: u64, count: u64) -> f64 {
        sum.saturating_sub(self.zero * count) as f64 * self.scale
    }
}

impl Collector for Histogram {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        vec![self.family.clone()]
    }
}

fn families(figures: &Figures) -> Families {
    let mut all = Families(Vec::new());
    let slice = figures.slice.as_str();
    let labels = |peer: &'_ PeerStats| vec![slice.to_owned(), peer.cluster.clone(), peer.name.clone()];
    let peers: Vec<(Vec<String>, &PeerStats)> = figures
        .stats
        .peers
        .iter()
        .map(|peer| (labels(peer), peer))
        .collect();
    let each = |of: fn(&PeerStats) -> u64| {
        peers
            .iter()
            .map(move |(labels, peer)| (labels.iter().map(String::as_str).collect(), of(peer)))
    };
    let some = |of: fn(&PeerStats) -> Option<f64>| {
        peers
            .iter()
            .filter_map(move |(labels, peer)| Some((labels.iter().map(String::as_str).collect(), of(peer)?)))
    };
    all.counter(
        ("sent_frames_total", "Frames sent to the peer"),
        PER_PEER,
        each(|peer| peer.sent.frames),
    );
    all.counter(
        ("sent_bytes_total", "Bytes of Ethernet sent to the peer"),
        PER_PEER,
        each(|peer| peer.sent.bytes),
    );
    all.counter(
        (
            "received_frames_total",
            "Frames received from the peer and admitted",
        ),
        PER_PEER,
        each(|peer| peer.received.frames),
    );
    all.counter(
        (
            "received_bytes_total",
            "Bytes of Ethernet received from the peer and admitted",
        ),
        PER_PEER,
        each(|peer| peer.received.bytes),
    );
    all.counter(
        ("handshakes_total", "Handshakes completed"),
        PER_PEER,
        each(|peer| peer.handshakes),
    );
    all.counter(
        ("echoes_total", "Probes that came back"),
        PER_PEER,
        each(|peer| peer.echoes),
    );
    all.counter(
        ("probes_total", "Probes that were sent, ten a second"),
        PER_PEER,
        each(|peer| peer.probes),
    );
    all.counter(
        ("tunnel_downs_total", "How often the tunnel to the peer went down"),
        PER_PEER,
        each(|peer| peer.downs),
    );
    all.counter(
        (
            "path_mtu_decreases_total",
            "How often the path to the peer carries less than before",
        ),
        PER_PEER,
        each(|peer| peer.shrunk),
    );
    all.counter(
        (
            "fragmented_frames_total",
            "Frames longer than the path to the peer carries, sent in fragments",
        ),
        PER_PEER,
        each(|peer| peer.fragmented),
    );
    let help = "Round-trip times of the probes in the tunnel; a bound is never more than twice the value";
    let mut rtts = Histogram::new(("probe_rtt_seconds", help), PER_PEER);
    let help = "Share of each 32 probes in a row that did not come back";
    let mut losses = Histogram::new(("probe_loss_ratio", help), PER_PEER);
    let (step, share) = (
        Value {
            zero: 0,
            scale: RTT_STEP.as_secs_f64(),
        },
        Value {
            zero: 1,
            scale: 1.0 / LOSS_WINDOW as f64,
        },
    );
    for (labels, peer) in &peers {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        rtts = rtts.with(&labels, &peer.rtts, step);
        losses = losses.with(&labels, &peer.losses, share);
    }
    all.0
        .extend([rtts, losses].map(|family| Box::new(family) as Box<dyn Collector>));
    all.gauge(
        ("tunnel_up", "1 while the tunnel is trusted with traffic"),
        PER_PEER,
        some(|peer| Some(peer.up.into())),
    );
    all.gauge(
        (
            "path_mtu_bytes",
            "Largest packet of the slice that the path to the peer carries",
        ),
        PER_PEER,
        some(|peer| peer.path_mtu.map(f64::from)),
    );
    all.gauge(
        (
            "handshake_age_seconds",
            "Age of the session in use; renewed before 120 s",
        ),
        PER_PEER,
        some(|peer| peer.handshake_age.map(|age| age.as_secs_f64())),
    );
    all.gauge(
        (
            "rtt_seconds",
            "Smoothed round-trip time of the probes in the tunnel",
        ),
        PER_PEER,
        some(|peer| peer.rtt.map(|rtt| rtt.as_secs_f64())),
    );
    let keys = &figures.stats.keys;
    for (name, help, value) in [
        ("threads", "Threads that carry frames", f64::from(figures.threads)),
        (
            "tap_queues",
            "Queues of the TAP device that are read; fewer than threads where the kernel refuses to steer them",
            f64::from(figures.queues),
        ),
        (
            "key_age_seconds",
            "Age of the key in use; replaced before spec.gateway.rotation is over",
            figures.stats.key_age.as_secs_f64(),
        ),
        (
            "keys",
            "Keys that are answered to: 2 from a renewal until no peer needs the former one",
            f64::from(1 + u8::from(keys.former.is_some())),
        ),
        (
            "renewal_waits",
            "1 while a key is due to be replaced and a peer only knows the former one",
            f64::from(u8::from(figures.stats.renewal_waits_for.is_some())),
        ),
    ] {
        all.gauge((name, help), PER_SLICE, std::iter::once((vec![slice], value)));
    }
    let mut drops: Vec<(Vec<&str>, u64)> = Vec::new();
    for (reason, count) in figures.stats.drops.iter().chain(figures.counts.drops.iter()) {
        drops.push((vec![slice, "", "", reason.label()], count));
    }
    for (labels, peer) in &peers {
        for (reason, count) in peer.drops.iter() {
            drops.push((
                labels
                    .iter()
                    .map(String::as_str)
                    .chain([reason.label()])
                    .collect(),
                count,
            ));
        }
    }
    let help = "Frames and datagrams dropped; without a peer where it is not known";
    all.counter(("drops_total", help), PER_REASON, drops.into_iter());
    let counts = &figures.counts;
    for (name, help, value) in [
        ("turns_total", "Turns of the data path's loop", figures.turns),
        (
            "tap_frames_read_total",
            "Frames read from the TAP device",
            figures.frames_read,
        ),
        (
            "tap_write_calls_total",
            "System calls that wrote to the TAP device; frames per call is how far they were merged",
            counts.write_calls,
        ),
        (
            "tap_frames_written_total",
            "Frames written to the TAP device",
            counts.frames,
        ),
        (
            "udp_receive_calls_total",
            "System calls that received datagrams",
            figures.receive_calls,
        ),
        (
            "udp_send_calls_total",
            "System calls that sent datagrams; datagrams per call is the batch size",
            counts.send_calls,
        ),
        (
            "udp_sent_datagrams_total",
            "Datagrams handed to the kernel",
            counts.datagrams,
        ),
        (
            "udp_sent_bytes_total",
            "Bytes of datagrams handed to the kernel",
            counts.datagram_bytes,
        ),
    ] {
        all.counter((name, help), PER_SLICE, std::iter::once((vec![slice], value)));
    }
    for (name, help, state) in [
        (
            "udp_segmentation",
            "1 while the kernel segments groups of datagrams (UDP_SEGMENT)",
            figures.segmentation,
        ),
        (
            "udp_coalescing",
            "1 while the kernel joins datagrams that it receives (UDP_GRO)",
            figures.coalescing,
        ),
    ] {
        let state = f64::from(u8::from(state));
        all.gauge((name, help), PER_SLICE, std::iter::once((vec![slice], state)));
    }
    for (name, help, sizes) in [
        (
            "udp_send_batch_datagrams",
            "Datagrams handed to the kernel as one; small under load means more CPU per byte",
            &counts.sent,
        ),
        (
            "udp_receive_batch_datagrams",
            "Datagrams that the kernel had joined before they were received",
            &figures.received,
        ),
        (
            "tap_write_batch_frames",
            "Frames written to the TAP device as one",
            &counts.written,
        ),
        (
            "tap_read_batch_frames",
            "Frames that waited at the TAP device when it was read, of which one turn takes 64",
            &figures.waiting,
        ),
    ] {
        let family = Histogram::new((name, help), PER_SLICE).with(&[slice], sizes, Value::AS_IT_IS);
        all.0.push(Box::new(family));
    }
    let memory = &figures.memory;
    for (name, help, value) in [
        (
            "udp_receive_buffer_bytes",
            "Bytes that may wait to be received; small where the node agent has not enlarged it",
            memory.receive_buffer,
        ),
        (
            "udp_receive_queue_bytes",
            "Bytes that wait to be received, with the kernel's overhead",
            memory.receive_queue,
        ),
        (
            "udp_send_queue_bytes",
            "Bytes that wait to be sent, with the kernel's overhead",
            memory.send_queue,
        ),
    ] {
        all.gauge(
            (name, help),
            PER_SLICE,
            std::iter::once((vec![slice], value.into())),
        );
    }
    let help = "Datagrams that found the receive queue full";
    let overflows = std::iter::once((vec![slice], memory.overflows.into()));
    all.counter(("udp_receive_overflows_total", help), PER_SLICE, overflows);
    let help = "1 at the work that the TAP device leaves to the gateway: none, checksum, tcp, udp";
    let offload = std::iter::once((vec![slice, figures.offload.label()], 1.0));
    all.gauge(("tap_offload", help), &["slice", "level"], offload);
    let gauge = IntGaugeVec::new(
        Opts::new("weft_gateway_tunnels", "Tunnels by state"),
        &["slice", "state"],
    )
    .expect("a valid metric");
    let up = peers.iter().filter(|(_, peer)| peer.up).count();
    for (state, count) in [("up", up), ("down", peers.len() - up)] {
        gauge
            .with_label_values(&[slice, state])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    all.0.push(Box::new(gauge));
    all
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;
    use crate::proto::{
        Drops, Reason, Stats,
        liveness::{Losses, Rtts},
    };

    fn peer() -> PeerStats {
        let mut drops = Drops::default();
        drops.add(Reason::SpoofedSource, 3);
        let (mut rtts, mut losses) = (Rtts::default(), Losses::default());
        rtts.add(20);
        losses.add(1);
        losses.add(9);
        PeerStats {
            name: "paris/0".into(),
            cluster: "paris".into(),
            up: true,
            away: false,
            endpoint: None,
            handshake_age: None,
            handshakes: 1,
            rtt: Some(std::time::Duration::from_millis(2)),
            downs: 0,
            probes: 8,
            echoes: 7,
            path_mtu: Some(1340),
            shrunk: 1,
            fragmented: 0,
            rtts,
            losses,
            sent: Default::default(),
            received: Default::default(),
            drops,
        }
    }

    #[test]
    fn figures_become_metrics() {
        let mut figures = Figures {
            slice: "shop".into(),
            ..Figures::default()
        };
        figures.stats = Stats {
            peers: vec![peer()],
            ..Stats::default()
        };
        figures.stats.drops.add(Reason::FrameTooLong, 2);
        for size in [1, 44, 44] {
            figures.received.add(size);
        }
        let families = families(&figures).collect();
        let text = TextEncoder::new().encode_to_string(&families).unwrap();
        for line in [
            r#"weft_gateway_tunnel_up{peer="paris/0",peer_cluster="paris",slice="shop"} 1"#,
            r#"weft_gateway_rtt_seconds{peer="paris/0",peer_cluster="paris",slice="shop"} 0.002"#,
            r#"weft_gateway_drops_total{peer="paris/0",peer_cluster="paris",reason="spoofed_source",slice="shop"} 3"#,
            r#"weft_gateway_drops_total{peer="",peer_cluster="",reason="frame_too_long",slice="shop"} 2"#,
            r#"weft_gateway_tunnels{slice="shop",state="up"} 1"#,
            r#"weft_gateway_probe_rtt_seconds_bucket{slice="shop",peer_cluster="paris",peer="paris/0",le="0.0016"} 0"#,
            r#"weft_gateway_probe_rtt_seconds_bucket{slice="shop",peer_cluster="paris",peer="paris/0",le="0.0032"} 1"#,
            r#"weft_gateway_probe_rtt_seconds_sum{slice="shop",peer_cluster="paris",peer="paris/0"} 0.002"#,
            r#"weft_gateway_probe_loss_ratio_bucket{slice="shop",peer_cluster="paris",peer="paris/0",le="0"} 1"#,
            r#"weft_gateway_probe_loss_ratio_sum{slice="shop",peer_cluster="paris",peer="paris/0"} 0.25"#,
            r#"weft_gateway_udp_receive_batch_datagrams_bucket{slice="shop",le="32"} 1"#,
            r#"weft_gateway_udp_receive_batch_datagrams_bucket{slice="shop",le="64"} 3"#,
            r#"weft_gateway_udp_receive_batch_datagrams_sum{slice="shop"} 89"#,
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("handshake_age_seconds{"));
    }

    #[test]
    fn the_collector_can_be_registered() {
        let registry = Registry::new();
        registry
            .register(Box::new(Metrics::new(Shared::new(1).unwrap())))
            .unwrap();
        assert!(!registry.gather().is_empty());
    }
}
