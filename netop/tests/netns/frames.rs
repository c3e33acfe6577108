//! Which frames arrive where, and how often.

use std::{
    io::{self, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use slice_crds::{Mac, names};
use slice_datapath::Direction;
use slice_netop::{
    desired::Exit,
    kernel::Kernel,
    model::{Name, Queues},
    programs::Counter,
};

use crate::support::{
    Cluster, MARK, Pod, Space, Tap, Wire, arp_request, ethernet, everywhere, marked, ping, slice, udp4,
};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for a frame to arrive anywhere in a namespace lab.
const SETTLE: Duration = Duration::from_millis(300);
/// An EtherType for local experiments (IEEE 802, clause 9.2.4).
const EXPERIMENT: u16 = 0x88b5;

fn wire(pod: &Pod) -> Wire {
    Wire::open(&pod.space, &pod.interface())
}

/// Three nodes, a gateway on the first, two pods on the first two and one on the third.
async fn three_nodes() -> (Cluster, Vec<Pod>, Tap) {
    let mut cluster = Cluster::new(3);
    cluster.add_slice("shop", slice(77));
    let pods = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)].map(|(node, nth)| cluster.add_pod("shop", node, nth));
    let tap = cluster.add_gateway("shop", 0).await;
    (cluster, pods.into(), tap)
}

#[tokio::test(flavor = "multi_thread")]
async fn broadcast_and_multicast_arrive_exactly_once_everywhere() {
    let (_cluster, pods, tap) = three_nodes().await;
    let wires: Vec<Wire> = pods.iter().map(wire).collect();
    for group in [
        Mac::BROADCAST,
        Mac([0x01, 0, 0x5e, 1, 2, 3]),
        Mac([0x33, 0x33, 0, 0, 0, 9]),
    ] {
        for (sender, pod) in pods.iter().enumerate() {
            tap.collect(Duration::from_millis(50));
            for wire in &wires {
                wire.collect(Duration::from_millis(5));
            }
            wires[sender].send(&ethernet(group, pod.mac(), EXPERIMENT, MARK));
            assert_eq!(
                marked(&tap.collect(SETTLE)),
                1,
                "{group} from pod {sender} at the gateway"
            );
            for (receiver, wire) in wires.iter().enumerate() {
                let expected = usize::from(receiver != sender);
                let seen = marked(&wire.collect(Duration::from_millis(20)));
                assert_eq!(seen, expected, "{group} from pod {sender} at pod {receiver}");
            }
        }
    }
}

/// What comes from a node is counted against that node.
#[tokio::test(flavor = "multi_thread")]
async fn one_node_cannot_use_up_what_another_may_broadcast() {
    let mut cluster = Cluster::new(3);
    cluster.add_slice("shop", slice(77));
    for node in &mut cluster.nodes {
        node.segment("shop").carried.broadcast_per_second = 20;
    }
    let receiver = cluster.add_pod("shop", 0, 0);
    let loud = [0, 1, 2].map(|nth| cluster.add_pod("shop", 1, nth));
    let modest = cluster.add_pod("shop", 2, 0);
    cluster.sync().await;
    let seen = wire(&receiver);
    let send = |pod: &Pod| {
        let from = wire(pod);
        // As many as may come at once.
        for _ in 0..20 {
            from.send(&ethernet(Mac::BROADCAST, pod.mac(), EXPERIMENT, MARK));
        }
        marked(&seen.collect(SETTLE))
    };
    let of_loud: usize = loud.iter().map(send).sum();
    assert!((20..60).contains(&of_loud), "{of_loud} of 60 from one node");
    assert_eq!(send(&modest), 20, "from the other");
}

/// A pod leaves the cutting of its datagrams to the kernel, which does that behind the budget (UDP_SEGMENT, udp(7)).
#[tokio::test(flavor = "multi_thread")]
async fn a_super_frame_to_all_counts_as_the_frames_that_it_is() {
    const SEGMENTS: usize = 50;
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    for node in &mut cluster.nodes {
        node.segment("shop").carried.broadcast_per_second = 20;
    }
    let pods = [(0, 0), (0, 1), (1, 0)].map(|(node, nth)| cluster.add_pod("shop", node, nth));
    cluster.sync().await;
    let receivers = [1, 2].map(|pod: usize| {
        let socket = pods[pod].space.run(|| UdpSocket::bind("0.0.0.0:4000"));
        socket.set_read_timeout(Some(SETTLE)).unwrap();
        socket
    });
    let sender = pods[0].space.run(|| UdpSocket::bind((pods[0].v4(), 0)));
    sender.set_broadcast(true).unwrap();
    setsockopt(&sender, sockopt::BindToDevice, &pods[0].interface().into()).unwrap();
    setsockopt(&sender, sockopt::UdpGsoSegment, &100).unwrap();
    for _ in 0..20 {
        sender
            .send_to(&[0x5a; 100 * SEGMENTS], "255.255.255.255:4000")
            .unwrap();
    }
    for receiver in &receivers {
        let mut buffer = [0; 200];
        let seen = std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count();
        // The first one, which takes the budget of two and a half seconds.
        assert_eq!(seen, SEGMENTS, "of {} datagrams", 20 * SEGMENTS);
    }
}

/// What pods send each other in a tunnel of their own is cut before the one between the nodes.
#[tokio::test(flavor = "multi_thread")]
async fn datagrams_that_come_from_a_node_in_a_row_go_on_as_one() {
    const BYTES: usize = 4 << 20;
    const INNER_MTU: usize = 1200;
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let pods = [0, 1].map(|node| cluster.add_pod("shop", node, 0));
    cluster.sync().await;
    for (own, other) in [(0, 1), (1, 0)] {
        let (pod, remote): (&Pod, _) = (&pods[own], pods[other].v4());
        let ends = format!("dev {} local {} remote {remote}", pod.interface(), pod.v4());
        let tunnel = format!("type vxlan id 9 dstport 5555 udpcsum {ends}");
        pod.space.ip(&format!("link add vx0 mtu {INNER_MTU} {tunnel}"));
        pod.space.ip(&format!("address add 192.168.99.{own}/31 dev vx0"));
        pod.space.ip("link set vx0 up");
    }
    let listener = pods[1].space.run(|| TcpListener::bind("192.168.99.1:4000"));
    let receiving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        io::copy(&mut stream, &mut io::sink()).unwrap()
    });
    let mut stream = pods[0].space.run(|| TcpStream::connect("192.168.99.1:4000"));
    stream.write_all(&vec![0x5a; BYTES]).unwrap();
    drop(stream);
    assert_eq!(receiving.join().unwrap(), BYTES as u64);
    let passed = Counter {
        slice: 77,
        direction: Direction::FromNode,
        reason: None,
    };
    let frames = cluster.nodes[1].observe().await.counters[&passed];
    let segments = BYTES / INNER_MTU;
    assert!(
        frames < segments as u64 / 3,
        "{frames} frames for {segments} segments"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_from_another_cluster_arrives_exactly_once_and_does_not_come_back() {
    let (_cluster, pods, tap) = three_nodes().await;
    let wires: Vec<Wire> = pods.iter().map(wire).collect();
    let far = Mac::of_index(0x4000);
    tap.collect(Duration::from_millis(50));
    tap.send(&ethernet(Mac::BROADCAST, far, EXPERIMENT, MARK));
    assert_eq!(marked(&tap.collect(SETTLE)), 0);
    for (receiver, wire) in wires.iter().enumerate() {
        assert_eq!(
            marked(&wire.collect(Duration::from_millis(20))),
            1,
            "at pod {receiver}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_another_cluster_goes_to_the_gateway_in_use_and_nowhere_else() {
    let (mut cluster, pods, tap) = three_nodes().await;
    let wires: Vec<Wire> = pods.iter().map(wire).collect();
    // A second gateway that nobody uses.
    cluster.nodes[2].segment("shop").taps.insert(1, Queues::One);
    cluster.sync().await;
    let opened = cluster.nodes[2].kernel.open_tap(&Name::tap("shop", 1), 1);
    let idle = Tap::new(opened.unwrap().unwrap().remove(0));
    let far = Mac::of_index(0x4000);
    for (sender, pod) in pods.iter().enumerate() {
        tap.collect(Duration::from_millis(50));
        wires[sender].send(&ethernet(far, pod.mac(), EXPERIMENT, MARK));
        assert_eq!(
            marked(&tap.collect(SETTLE)),
            1,
            "from pod {sender} at the gateway"
        );
        assert_eq!(
            marked(&idle.collect(Duration::from_millis(20))),
            0,
            "from pod {sender} at the idle gateway"
        );
        for (receiver, wire) in wires.iter().enumerate() {
            assert_eq!(
                marked(&wire.collect(Duration::from_millis(10))),
                0,
                "from {sender} at {receiver}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_from_another_cluster_reaches_its_pod_on_any_node() {
    let (_cluster, pods, tap) = three_nodes().await;
    let wires: Vec<Wire> = pods.iter().map(wire).collect();
    let far = Mac::of_index(0x4000);
    for (destination, pod) in pods.iter().enumerate() {
        tap.send(&ethernet(pod.mac(), far, EXPERIMENT, MARK));
        assert_eq!(
            marked(&wires[destination].collect(SETTLE)),
            1,
            "to pod {destination}"
        );
        for (other, wire) in wires
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != destination)
        {
            assert_eq!(
                marked(&wire.collect(Duration::from_millis(10))),
                0,
                "to {destination} at {other}"
            );
        }
    }
    // An address of this cluster that no pod has.
    tap.collect(Duration::from_millis(20));
    tap.send(&ethernet(Mac::of_index(15), far, EXPERIMENT, MARK));
    assert_eq!(marked(&tap.collect(SETTLE)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn arp_and_nd_are_answered_on_the_node_and_stay_there() {
    let (cluster, pods, tap) = three_nodes().await;
    let underlay: Vec<Wire> = (0..3)
        .map(|n| Wire::open(&cluster.nodes[n].space, "eth0"))
        .collect();
    tap.collect(Duration::from_millis(100));
    for wire in &underlay {
        wire.collect(Duration::from_millis(100));
    }
    // Every pair: the first packet needs an answer to ARP or ND.
    for from in &pods {
        for to in pods.iter().filter(|to| to.index != from.index) {
            for ip in [to.v4(), to.v6()] {
                assert!(
                    ping(&from.space, ip, 8, SECOND).is_some(),
                    "{} to {ip}",
                    from.index
                );
            }
        }
    }
    let inner = |frame: &[u8]| {
        frame
            .get(14 + 20 + 8 + 8..)
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    };
    for (n, wire) in underlay.iter().enumerate() {
        for frame in wire.collect(Duration::from_millis(100)) {
            let inner = inner(&frame);
            assert_ne!(
                inner.get(12..14),
                Some(&[0x08, 0x06][..]),
                "ARP on the underlay of node {n}"
            );
            let solicitation =
                inner.get(12..14) == Some(&[0x86, 0xdd][..]) && inner.get(14 + 40) == Some(&135);
            assert!(
                !solicitation,
                "neighbour solicitation on the underlay of node {n}: {inner:02x?}"
            );
        }
    }
    let at_gateway = tap.collect(Duration::from_millis(100));
    let asked: Vec<_> = at_gateway
        .iter()
        .filter(|frame| frame[12..14] == [0x08, 0x06] || (frame[12..14] == [0x86, 0xdd] && frame[54] == 135))
        .collect();
    assert!(
        asked.is_empty(),
        "the gateway was asked about this cluster: {asked:02x?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_another_cluster_is_answered_on_the_node() {
    let (cluster, pods, tap) = three_nodes().await;
    let far: std::net::IpAddr = "10.80.64.1".parse().unwrap();
    let underlay = Wire::open(&cluster.nodes[1].space, "eth0");
    // From the second node: the gateway is on the first.
    let pod = &pods[2];
    let asking = wire(pod);
    tap.collect(Duration::from_millis(50));
    asking.collect(Duration::from_millis(20));
    asking.send(&arp_request(pod.mac(), (pod.mac(), pod.v4()), far));
    let answers = asking.collect(SETTLE);
    let mac = Mac::of_index(0x4001).0;
    assert!(
        answers
            .iter()
            .any(|frame| frame[12..14] == [0x08, 0x06] && frame[21] == 2 && frame[22..28] == mac),
        "{answers:02x?}"
    );
    let is_arp = |frame: &&Vec<u8>| frame.windows(2).any(|two| two == [0x08, 0x06]);
    let arp_of = |frames: Vec<Vec<u8>>| frames.iter().filter(is_arp).count();
    assert_eq!(arp_of(tap.collect(SETTLE)), 0);
    // The node's own network has ARP too, for the nodes' addresses.
    let inner = underlay.collect(Duration::from_millis(50));
    let inner = inner
        .into_iter()
        .filter(|frame| frame.len() > 50 + 14)
        .map(|frame| frame[50..].to_vec());
    assert_eq!(arp_of(inner.collect()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_with_one_subnet_do_not_see_each_other() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    cluster.add_slice("bank", slice(78));
    let shop = [cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 1, 0)];
    let bank = [cluster.add_pod("bank", 0, 1), cluster.add_pod("bank", 1, 1)];
    cluster.sync().await;
    assert!(ping(&shop[0].space, shop[1].v4(), 8, SECOND).is_some());
    assert!(ping(&bank[0].space, bank[1].v4(), 8, SECOND).is_some());
    for (from, to) in [(&shop[0], &bank[0]), (&shop[0], &bank[1]), (&bank[1], &shop[0])] {
        for ip in [to.v4(), to.v6()] {
            assert!(
                ping(&from.space, ip, 8, SETTLE).is_none(),
                "{} to {} in {}",
                from.slice,
                ip,
                to.slice
            );
        }
    }
    let listeners: Vec<Wire> = bank.iter().map(wire).collect();
    wire(&shop[0]).send(&ethernet(Mac::BROADCAST, shop[0].mac(), EXPERIMENT, MARK));
    for listener in listeners {
        assert_eq!(marked(&listener.collect(SETTLE)), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_can_be_in_several_slices() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let other = slice_crds::Subnets::new(&["10.90.0.0/16".parse().unwrap()]).unwrap();
    cluster.add_slice("a-slice-with-a-long-name", (78, other));
    let both = cluster.add_pod("shop", 0, 0);
    let second = Space::new("second view");
    drop(second);
    let in_shop = cluster.add_pod("shop", 1, 0);
    let in_other = cluster.add_pod("a-slice-with-a-long-name", 1, 1);
    let attachment = cluster.nodes[0]
        .segment("shop")
        .attachments
        .values()
        .next()
        .unwrap()
        .clone();
    let port = Name::new(names::pod_port("a-slice-with-a-long-name", "uid-0-0"));
    cluster.nodes[0]
        .segment("a-slice-with-a-long-name")
        .attachments
        .insert(port, attachment);
    cluster.sync().await;
    assert!(ping(&both.space, in_shop.v4(), 8, SECOND).is_some());
    let far = other.ipv4(in_other.index).unwrap().into();
    assert!(ping(&both.space, far, 8, SECOND).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_over_an_ipv6_underlay() {
    let mut cluster = Cluster::with_underlay(3, true);
    cluster.add_slice("shop", slice(77));
    let pods = [(0, 0), (1, 0), (2, 0)].map(|(node, nth)| cluster.add_pod("shop", node, nth));
    let tap = cluster.add_gateway("shop", 1).await;
    for ip in [pods[2].v4(), pods[2].v6()] {
        let whole = 1370 - 8 - if ip.is_ipv4() { 20 } else { 40 };
        assert!(ping(&pods[0].space, ip, whole, SECOND).is_some());
    }
    tap.collect(Duration::from_millis(50));
    wire(&pods[0]).send(&ethernet(Mac::of_index(0x4000), pods[0].mac(), EXPERIMENT, MARK));
    assert_eq!(marked(&tap.collect(SETTLE)), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_gateway_leaves_one_way_out() {
    let (mut cluster, pods, tap) = three_nodes().await;
    let far = Mac::of_index(0x4000);
    drop(tap);
    for node in &mut cluster.nodes {
        node.segment("shop").exits.clear();
        node.segment("shop").relays.clear();
    }
    let tap = cluster.add_gateway("shop", 2).await;
    for pod in &pods {
        tap.collect(Duration::from_millis(30));
        wire(pod).send(&udp4(
            far,
            (pod.mac(), pod.v4()),
            "10.80.64.0".parse().unwrap(),
            MARK,
        ));
        assert_eq!(marked(&tap.collect(SETTLE)), 1, "from pod {}", pod.index);
    }
}

/// A planned change: both gateways carry, and frames come all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_between_gateways_that_carry_loses_and_doubles_nothing() {
    let (mut cluster, pods, first) = three_nodes().await;
    let addresses: Vec<_> = cluster.nodes.iter().map(|node| node.address).collect();
    // A second gateway, on the second node, which uses it.
    let segment = cluster.nodes[1].segment("shop");
    segment.taps.insert(0, Queues::One);
    segment.exits = everywhere(Exit::Local(0));
    segment.relays = everywhere(0);
    cluster.sync().await;
    let tap = Name::tap("shop", 0);
    let second = cluster.nodes[1].kernel.open_tap(&tap, 1).unwrap();
    let second = Tap::new(second.expect("nobody holds it").remove(0));

    let stop = Arc::new(AtomicBool::new(false));
    let sent: Vec<_> = [0, 4]
        .map(|place: usize| {
            let (wire, stop) = (wire(&pods[place]), Arc::clone(&stop));
            let (mac, ip) = (pods[place].mac(), pods[place].v4());
            std::thread::spawn(move || {
                let mut sent = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    let payload = [MARK, &sent.to_be_bytes()].concat();
                    // For all, and for one.
                    let frame = match sent % 2 {
                        0 => ethernet(Mac::BROADCAST, mac, EXPERIMENT, &payload),
                        _ => udp4(
                            Mac::of_index(0x4000),
                            (mac, ip),
                            "10.80.64.0".parse().unwrap(),
                            &payload,
                        ),
                    };
                    wire.send(&frame);
                    sent += 1;
                    // Within the slice's budget of broadcasts.
                    std::thread::sleep(Duration::from_millis(2));
                }
                sent as usize
            })
        })
        .into();
    let collecting = [first, second].map(|tap| {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut frames = vec![];
            while !stop.load(Ordering::Relaxed) {
                frames.extend(tap.collect(SETTLE));
            }
            frames.extend(tap.collect(SETTLE));
            frames
        })
    });
    for turn in 0..30 {
        // The node without a gateway moves from one to the other, the first from its own to the other's and back.
        cluster.nodes[2].segment("shop").exits = everywhere(Exit::Remote(addresses[turn % 2]));
        cluster.nodes[0].segment("shop").exits = everywhere(match turn % 2 {
            0 => Exit::Remote(addresses[1]),
            _ => Exit::Local(0),
        });
        cluster.sync().await;
    }
    stop.store(true, Ordering::Relaxed);
    let sent: usize = sent.into_iter().map(|thread| thread.join().unwrap()).sum();
    let frames: Vec<_> = collecting
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    let mut seen: Vec<_> = frames
        .iter()
        .filter(|frame| frame.windows(MARK.len()).any(|window| window == MARK))
        .collect();
    assert!(sent > 200, "{sent}");
    assert_eq!(seen.len(), sent, "arrived, of {sent} that were sent");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), sent, "each once");
}
