//! Nodes that probe each other, and networks between them that do not carry everything.

use std::{net::UdpSocket, sync::Arc, time::Duration};

use prometheus::Registry;
use slice_crds::v1alpha1::{BrokenPair, PairFault};
use slice_datapath::{ANSWER, PROBE, PROBES, Probe, QUESTION};
use slice_netop::{
    mesh::{self, Local, Pace, Peer, View, task},
    metrics::Metrics,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Cluster, Pod, Space, Wire,
    bed::{Bed, address},
    ping, slice,
};

const SECOND: Duration = Duration::from_secs(1);
/// What an underlay of 1500 carries over IPv6.
const FULL: u16 = 1430;
const PACE: Pace = Pace {
    every: Duration::from_millis(100),
    wait: Duration::from_millis(50),
    gap: Duration::from_millis(10),
    at_once: 5,
};

/// Two nodes with a pod each. The first asks; on the second no agent runs.
struct Pair {
    cluster: Cluster,
    pods: [Pod; 2],
    view: watch::Receiver<View>,
    metrics: Metrics,
    stop: CancellationToken,
    local: watch::Sender<Local>,
}

impl Pair {
    async fn new(v6: bool) -> Self {
        let mut cluster = Cluster::with_underlay(2, v6);
        cluster.add_slice("shop", slice(77));
        let pods = [0, 1].map(|node| cluster.add_pod("shop", node, 0));
        cluster.sync().await;
        let prober = cluster.nodes[0].kernel.prober().unwrap();
        assert!(
            cluster.nodes[0].kernel.prober().unwrap().is_none(),
            "there is one map of answers"
        );
        let peer = Peer {
            node: "n1".into(),
            size: FULL,
            asked: true,
        };
        let local = Local {
            address: Some(cluster.nodes[0].address),
            peers: Arc::new([(cluster.nodes[1].address, peer)].into()),
            ..Local::default()
        };
        let (local_sender, current) = watch::channel(Local::default());
        let (view_sender, view) = watch::channel(View::default());
        let (metrics, stop) = (Metrics::register(&Registry::new()), CancellationToken::new());
        tokio::spawn(task::run(
            prober.expect("the programs are loaded"),
            PACE,
            metrics.clone(),
            current,
            view_sender,
            stop.clone(),
        ));
        local_sender.send_replace(local);
        let pair = Self {
            cluster,
            pods,
            view,
            metrics,
            stop,
            local: local_sender,
        };
        pair.answered(10).await;
        assert_eq!(pair.view.borrow().broken, []);
        pair
    }

    /// Waits for so many answers more.
    async fn answered(&self, more: u64) {
        let count = || self.metrics.mesh_probes.with_label_values(&["answered"]).get();
        let wanted = count() + more;
        let waits = async {
            while count() < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(30 * SECOND, waits).await.expect("answers");
    }

    async fn sees(&self, what: &str, holds: impl Fn(&[BrokenPair]) -> bool) -> Vec<BrokenPair> {
        let mut view = self.view.clone();
        let seen = view.wait_for(|view| holds(&view.broken));
        match tokio::time::timeout(30 * SECOND, seen).await {
            Ok(view) => view.expect("the task runs").broken.clone(),
            Err(_) => panic!("{what}: {:?}", self.view.borrow()),
        }
    }

    async fn breaks(&self, fault: PairFault, carried: Option<u16>) {
        let address = self.cluster.nodes[1].address;
        let is_so = |pair: &BrokenPair| {
            (pair.node.as_str(), pair.port) == ("n1", 14789)
                && (pair.address, pair.size) == (address, FULL)
                && (pair.fault, pair.carried) == (fault, carried)
        };
        let what = format!("{fault:?} {carried:?}");
        self.sees(&what, |broken| matches!(broken, [pair] if is_so(pair)))
            .await;
    }

    async fn heals(&self) {
        self.sees("well again", <[BrokenPair]>::is_empty).await;
        assert!(self.reaches(), "the control");
    }

    fn reaches(&self) -> bool {
        let [from, to] = &self.pods;
        ping(&from.space, to.v4(), 56, SECOND).is_some()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Drops what a node gets, until [`open`].
fn drop_at(space: &Space, rule: &str) {
    let table = "add table inet wall; add chain inet wall in { type filter hook prerouting priority -400; }";
    let script = format!("{table}; add rule inet wall in {rule} drop");
    space.run(|| {
        let status = std::process::Command::new("nft").arg(&script).status()?;
        assert!(status.success(), "{script}");
        Ok(())
    });
}

fn open(space: &Space) {
    space.command("nft", "delete table inet wall").unwrap();
}

/// Whichever way is closed, and over IPv4 and IPv6.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_between_two_nodes_is_found_and_so_is_that_it_is_open_again() {
    for v6 in [false, true] {
        let pair = Pair::new(v6).await;
        for closed in [&[1][..], &[0], &[0, 1]] {
            for node in closed {
                drop_at(&pair.cluster.nodes[*node].space, "udp dport 14789");
            }
            pair.breaks(PairFault::Silent, None).await;
            assert!(!pair.reaches(), "as pods find it");
            for node in closed {
                open(&pair.cluster.nodes[*node].space);
            }
            pair.heals().await;
        }
    }
}

/// Which all who use a gateway there ask by; the answer comes as what a gateway sends to pods does.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_for_gateways_is_found_in_the_direction_in_which_it_is_used() {
    let pair = Pair::new(false).await;
    let [asks, has] = [0, 1].map(|node: usize| &pair.cluster.nodes[node]);
    pair.local
        .send_modify(|local| local.gateways = [has.address].into());
    drop_at(&asks.space, "udp dport 14790");
    pair.answered(20).await;
    assert_eq!(pair.view.borrow().pairs, 2);
    assert_eq!(pair.view.borrow().broken, [], "nothing comes that way");
    drop_at(&has.space, "udp dport 14790");
    pair.sees("14790", |broken| matches!(broken, [pair] if pair.port == 14790))
        .await;
    open(&has.space);
    pair.heals().await;
}

/// By whoever drops long packets on the way, in one direction.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_loses_long_packets_is_found_with_the_size_that_it_carries() {
    for v6 in [false, true] {
        let pair = Pair::new(v6).await;
        let outer = if v6 { 40 + 8 + 8 + 14 } else { 20 + 8 + 8 + 14 };
        for node in [1, 0] {
            let space = &pair.cluster.nodes[node].space;
            drop_at(space, "udp dport 14789 meta length > 1400");
            pair.breaks(PairFault::Size, Some(1400 - outer)).await;
            let [from, to] = &pair.pods;
            let passes = |bytes| ping(&from.space, to.v4(), bytes, SECOND).is_some();
            assert!(passes(56) && (v6 || !passes(1370 - 28)), "as pods find it");
            open(&pair.cluster.nodes[node].space);
            pair.heals().await;
        }
    }
}

/// The underlay has a device that carries less, and says nothing of what it drops.
#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_device_on_the_way_is_found() {
    let pair = Pair::new(false).await;
    let underlay = |mtu: u16| pair.cluster.underlay.ip(&format!("link set n1 mtu {mtu}"));
    underlay(1400);
    pair.breaks(PairFault::Size, Some(1400 - 50)).await;
    underlay(1500);
    pair.heals().await;
}

/// Nodes' own devices are smaller than the slice: over IPv4 their kernels cut frames, and they arrive.
#[tokio::test(flavor = "multi_thread")]
async fn what_passes_in_fragments_only_is_told_apart() {
    for v6 in [false, true] {
        let pair = Pair::new(v6).await;
        let outer = if v6 { 70 } else { 50 };
        let set_mtu = |mtu: u16| {
            for node in &pair.cluster.nodes {
                node.space.ip(&format!("link set eth0 mtu {mtu}"));
            }
        };
        set_mtu(1400);
        let fault = if v6 { PairFault::Size } else { PairFault::Fragments };
        pair.breaks(fault, Some(1400 - outer)).await;
        let [from, to] = &pair.pods;
        let full = ping(&from.space, to.v4(), 1370 - 28, SECOND);
        assert_eq!(full.is_some(), !v6, "as pods find it");
        set_mtu(1500);
        pair.heals().await;
    }
}

/// A stall of the agent is no loss: the answers wait for it in the kernel.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_stopped_takes_no_node_for_broken() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    cluster.sync().await;
    let mut prober = cluster.nodes[0].kernel.prober().unwrap().unwrap();
    prober.bind(cluster.nodes[0].address).unwrap();
    let probe = |nonce, to| mesh::Probe {
        to,
        port: 14789,
        nonce,
        size: FULL,
        whole: true,
    };
    let there = probe(1, cluster.nodes[1].address);
    let nobody = probe(2, "192.168.7.77".parse().unwrap());
    prober.send(&there).unwrap();
    prober.send(&nobody).unwrap();
    std::thread::sleep(3 * SECOND);
    assert!(prober.take(&there).unwrap());
    assert!(!prober.take(&nobody).unwrap());
    assert_eq!(prober.waiting(), 0, "what was taken leaves nothing");
}

/// A probe in VXLAN, with the number of a slice.
fn packet(slice: u32, kind: u8, nonce: u64) -> Vec<u8> {
    let mut packet = vec![0; 8 + PROBE + 40];
    packet[0] = 8;
    packet[4..8].copy_from_slice(&(slice << 8).to_be_bytes());
    let probe = Probe {
        kind,
        whole: false,
        nonce,
    };
    probe.write(&mut packet[8..]);
    packet
}

/// Who may say that a node answers: that node, and who knows the number.
#[test]
fn no_pod_and_no_other_node_answers_a_probe() {
    const NONCE: u64 = 0x1234_5678_9abc_def0;
    let mut bed = Bed::with_programs(3, 1000);
    let (a, b) = (bed.add_pod(0, 5), bed.add_pod(1, 5));
    let mut answers = bed.nodes[0].programs().take_answers().unwrap().unwrap();
    let send = |bed: &Bed, node: usize, packet: &[u8]| {
        bed.nodes[node].space.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(packet, "192.168.7.1:14789").map(drop)
        });
        std::thread::sleep(Duration::from_millis(100));
    };
    let from = address(1);
    answers.expect(NONCE, from).unwrap();
    // A pod of that node, to a pod here, in a slice that carries anything.
    let mut frame = packet(PROBES, ANSWER, NONCE)[8..].to_vec();
    frame[..6].copy_from_slice(&a.mac().0);
    frame[6..12].copy_from_slice(&b.mac().0);
    let wire: Wire = a.wire();
    wire.collect(Duration::from_millis(20));
    b.wire().send(&frame);
    let seen = wire.collect(Duration::from_millis(200));
    assert!(seen.contains(&frame), "the pod has sent it");
    for (node, packet) in [
        // Another node, in its name or not.
        (2, packet(PROBES, ANSWER, NONCE)),
        // That node, which guesses.
        (1, packet(PROBES, ANSWER, NONCE + 1)),
        (1, packet(PROBES, QUESTION, NONCE)),
        (1, packet(PROBES, 0, NONCE)),
        (1, packet(77, ANSWER, NONCE)),
        (1, packet(PROBES, ANSWER, NONCE)[..8 + 20].to_vec()),
    ] {
        send(&bed, node, &packet);
        assert_eq!(answers.take(NONCE, from).unwrap(), None, "{packet:02x?}");
        answers.expect(NONCE, from).unwrap();
    }
    send(&bed, 1, &packet(PROBES, ANSWER, NONCE));
    let length = u32::try_from(PROBE + 40).unwrap();
    assert_eq!(answers.take(NONCE, from).unwrap(), Some(length), "the control");
    send(&bed, 1, &packet(PROBES, ANSWER, NONCE));
    assert_eq!((answers.take(NONCE, from).unwrap(), answers.count()), (None, 0));
    // Nothing of all this reaches a pod.
    let seen = wire.collect(Duration::from_millis(100));
    let number = NONCE.to_be_bytes();
    assert!(
        !seen
            .iter()
            .any(|frame| frame.windows(8).any(|octets| octets == number))
    );
}

/// What a pod would have to know to be taken for a node: it gets none of it.
#[tokio::test(flavor = "multi_thread")]
async fn no_pod_sees_a_probe() {
    let pair = Pair::new(false).await;
    let wires = [0, 1].map(|pod: usize| {
        let pod = &pair.pods[pod];
        Wire::open(&pod.space, &pod.interface())
    });
    pair.answered(10).await;
    for wire in &wires {
        let seen = wire.collect(Duration::from_millis(50));
        assert!(
            !seen.iter().any(|frame| frame[12..14] == [0x88, 0xb5]),
            "{seen:02x?}"
        );
    }
}
