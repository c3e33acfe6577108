//! Which frames go past the bridge, and that they arrive where the bridge would have brought them.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use slice_crds::Mac;
use slice_netop::{
    kernel::{FAST_PATH, features},
    model::{Segment, filter::Family},
};

use crate::support::{Cluster, MARK, Pod, Tap, Wire, marked, slice, udp4};

const SETTLE: Duration = Duration::from_millis(200);
/// An address of another cluster.
const FAR: u32 = 0x4000;

/// Two pods and a gateway on the first node, a pod on the second.
async fn shop(cluster: Cluster) -> (Cluster, [Pod; 3], Tap) {
    let mut cluster = cluster;
    cluster.add_slice("shop", slice(77));
    let pods = [(0, 0), (0, 1), (1, 0)].map(|(node, nth)| cluster.add_pod("shop", node, nth));
    let tap = cluster.add_gateway("shop", 0).await;
    (cluster, pods, tap)
}

/// IP frames that bridges have passed on, by node.
async fn bridged(cluster: &mut Cluster, family: Family) -> Vec<u64> {
    let mut counts = vec![];
    for node in &mut cluster.nodes {
        let [_, passed] = node.passage(family).await;
        counts.push(passed);
    }
    counts
}

/// Where a frame comes from or goes to.
#[derive(Clone, Copy, Debug)]
enum End {
    Pod(usize),
    Gateway,
}

/// Sends an IPv4 packet, checks that it arrives once and nowhere else, and returns how often a bridge passed it on.
async fn bridges_on_the_way(
    cluster: &mut Cluster,
    pods: &[Pod; 3],
    tap: &Tap,
    from: End,
    to: End,
) -> Vec<u64> {
    let address = |end| match end {
        End::Pod(n) => (pods[n].mac(), pods[n].v4()),
        End::Gateway => (Mac::of_index(FAR), "10.80.64.0".parse().unwrap()),
    };
    let wires: Vec<Wire> = pods
        .iter()
        .map(|pod| Wire::open(&pod.space, &pod.interface()))
        .collect();
    let before = bridged(cluster, Family::Ipv4).await;
    tap.collect(Duration::from_millis(20));
    // Nobody has it, so that nobody answers.
    let nobody = "10.80.77.77".parse().unwrap();
    let frame = udp4(address(to).0, address(from), nobody, MARK);
    match from {
        End::Pod(n) => wires[n].send(&frame),
        End::Gateway => tap.send(&frame),
    }
    let arrived: Vec<usize> = std::iter::once(marked(&tap.collect(SETTLE)))
        .chain(
            wires
                .iter()
                .map(|wire| marked(&wire.collect(Duration::from_millis(20)))),
        )
        .collect();
    let mut expected = [0; 4];
    expected[match to {
        End::Gateway => 0,
        End::Pod(n) => n + 1,
    }] = 1;
    assert_eq!(arrived, expected, "from {from:?} to {to:?}");
    let after = bridged(cluster, Family::Ipv4).await;
    after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn known_unicast_goes_past_the_bridge_of_its_node() {
    let (mut cluster, pods, tap) = shop(Cluster::new(2)).await;
    // The bridge of the node that a frame comes to by VXLAN passes it on.
    for (from, to, bridges) in [
        (End::Pod(0), End::Pod(1), [0, 0]),
        (End::Pod(0), End::Pod(2), [0, 1]),
        (End::Pod(0), End::Gateway, [0, 0]),
        (End::Pod(2), End::Pod(0), [1, 0]),
        (End::Pod(2), End::Gateway, [1, 0]),
        (End::Gateway, End::Pod(0), [0, 0]),
        (End::Gateway, End::Pod(2), [0, 1]),
    ] {
        let seen = bridges_on_the_way(&mut cluster, &pods, &tap, from, to).await;
        assert_eq!(seen, bridges, "from {from:?} to {to:?}");
    }
    let (mut cluster, pods, tap) = shop(Cluster::new(2).without_fast_path()).await;
    for (from, to, bridges) in [
        (End::Pod(0), End::Pod(1), [1, 0]),
        (End::Pod(0), End::Pod(2), [1, 1]),
        (End::Pod(2), End::Gateway, [1, 1]),
        (End::Gateway, End::Pod(0), [1, 0]),
    ] {
        let seen = bridges_on_the_way(&mut cluster, &pods, &tap, from, to).await;
        assert_eq!(seen, bridges, "without it, from {from:?} to {to:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_over_ipv6_go_past_the_bridge_too() {
    const COUNT: u64 = 100;
    let (mut cluster, pods, _tap) = shop(Cluster::new(2)).await;
    let socket = |pod: &Pod| {
        let ip = pod.v6();
        pod.space.run(|| UdpSocket::bind(SocketAddr::new(ip, 7777)))
    };
    let (from, to) = (socket(&pods[0]), socket(&pods[1]));
    to.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let before = bridged(&mut cluster, Family::Ipv6).await[0];
    for number in 0..COUNT {
        from.send_to(&number.to_be_bytes(), to.local_addr().unwrap())
            .unwrap();
        let mut buffer = [0; 8];
        to.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer, number.to_be_bytes());
    }
    let bridged = bridged(&mut cluster, Family::Ipv6).await[0] - before;
    assert!(
        (1..COUNT / 4).contains(&bridged),
        "{bridged} frames took the bridge: neighbour discovery, and nothing else"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_pods_own_does_not_go_past_the_filters() {
    let (mut cluster, [a, b, _], tap) = shop(Cluster::new(2)).await;
    let wires = [&a, &b].map(|pod| Wire::open(&pod.space, &pod.interface()));
    let own = (a.mac(), a.v4());
    // With the neighbour's addresses, which the fast path knows too, but as those of another port.
    let forged = [(b.mac(), b.v4()), (a.mac(), b.v4()), (b.mac(), a.v4())];
    let nobody: IpAddr = "10.80.77.77".parse().unwrap();
    for mac in [b.mac(), Mac::of_index(FAR)] {
        tap.collect(Duration::from_millis(20));
        wires[0].send(&udp4(mac, own, nobody, MARK));
        assert_eq!(
            marked(&tap.collect(SETTLE)) + marked(&wires[1].collect(SETTLE)),
            1,
            "control"
        );
        for source in forged {
            wires[0].send(&udp4(mac, source, nobody, MARK));
        }
        assert_eq!(marked(&tap.collect(SETTLE)), 0, "to {mac}");
        assert_eq!(
            marked(&wires[1].collect(Duration::from_millis(20))),
            0,
            "to {mac}"
        );
    }
    let table = Segment::of_slice("shop").table();
    assert_eq!(cluster.nodes[0].counted(&table, ["spoofed"]).await, [6]);
    // The node itself is in no slice, and that a pod tries is counted.
    let bridge = Mac([0x02, 0x5d, 0, 0, 0, 0]);
    wires[0].send(&udp4(bridge, own, "192.168.7.1".parse().unwrap(), MARK));
    assert_eq!(cluster.nodes[0].counted(&table, ["host"]).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_for_it_leaves_nothing() {
    let cluster = Cluster::new(1);
    let space = &cluster.nodes[0].space;
    let found = features(Some(&space.path())).await;
    assert_eq!(found.get(FAST_PATH), Some(&true));
    assert_eq!(space.command("nft", "list ruleset").unwrap(), "");
}
