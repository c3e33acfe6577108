//! What the filters stop, with a control for each: the same frame from its rightful sender passes.

use std::{net::IpAddr, time::Duration};

use slice_crds::Mac;
use slice_netop::model::{Segment, filter::Family};

use crate::support::{
    Cluster, MARK, Pod, Space, Wire, arp_request, ethernet, icmp6, marked, ping, slice, tagged, udp4,
    udp4_between,
};

const SETTLE: Duration = Duration::from_millis(200);

fn seen(frames: &[Vec<u8>], mark: &[u8]) -> bool {
    frames
        .iter()
        .any(|frame| frame.windows(mark.len()).any(|window| window == mark))
}

/// Sends a frame from `from` and tells whether it arrived at `to`.
fn passes(from: &Pod, to: &Wire, frame: &[u8], mark: &[u8]) -> bool {
    to.collect(Duration::from_millis(20));
    Wire::open(&from.space, &from.interface()).send(frame);
    seen(&to.collect(SETTLE), mark)
}

async fn pair() -> (Cluster, Pod, Pod) {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 1, 0));
    cluster.sync().await;
    (cluster, a, b)
}

async fn dropped(cluster: &mut Cluster, node: usize, counter: &str) -> u64 {
    let table = Segment::of_slice("shop").table();
    let [packets] = cluster.nodes[node].counted(&table, [counter]).await;
    packets
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_cannot_send_from_addresses_that_are_not_its_own() {
    let (mut cluster, a, b) = pair().await;
    let to = Wire::open(&b.space, &b.interface());
    let (own, other) = (a.mac(), Mac::of_index(13));
    let (ip, foreign): (IpAddr, IpAddr) = (a.v4(), "10.80.0.13".parse().unwrap());
    assert!(
        passes(&a, &to, &udp4(b.mac(), (own, ip), b.v4(), MARK), MARK),
        "control"
    );
    assert!(
        !passes(&a, &to, &udp4(b.mac(), (other, ip), b.v4(), MARK), MARK),
        "foreign MAC"
    );
    assert!(
        !passes(&a, &to, &udp4(b.mac(), (own, foreign), b.v4(), MARK), MARK),
        "foreign IPv4"
    );
    assert!(
        passes(&a, &to, &ethernet(b.mac(), own, 0x88b5, MARK), MARK),
        "control"
    );
    assert!(
        !passes(&a, &to, &ethernet(b.mac(), other, 0x88b5, MARK), MARK),
        "foreign MAC"
    );
    assert_eq!(dropped(&mut cluster, 0, "spoofed").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_cannot_say_in_arp_what_is_not_so() {
    let mut cluster = Cluster::new(1);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 0, 1));
    cluster.sync().await;
    let to = Wire::open(&b.space, &b.interface());
    let (own, other) = (a.mac(), Mac::of_index(13));
    let foreign: IpAddr = "10.80.0.13".parse().unwrap();
    let target: IpAddr = "10.80.77.77".parse().unwrap();
    let mark = &[10, 80, 77, 77][..];
    assert!(
        passes(&a, &to, &arp_request(own, (own, a.v4()), target), mark),
        "control"
    );
    assert!(
        !passes(&a, &to, &arp_request(own, (own, foreign), target), mark),
        "foreign IPv4 in ARP"
    );
    assert!(
        !passes(&a, &to, &arp_request(own, (other, a.v4()), target), mark),
        "foreign MAC in ARP"
    );
    let mut odd = arp_request(own, (own, a.v4()), target);
    odd[18] = 8;
    assert!(!passes(&a, &to, &odd, mark), "ARP of unusual lengths");
    assert_eq!(dropped(&mut cluster, 0, "spoofed").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_cannot_claim_an_ipv6_address_or_be_a_router() {
    let mut cluster = Cluster::new(1);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 0, 1));
    cluster.sync().await;
    let to = Wire::open(&b.space, &b.interface());
    let own = a.mac();
    let link_local: IpAddr = "fe80::5c:ff:fe00:8".parse().unwrap();
    let advert = |target: IpAddr| {
        let IpAddr::V6(target) = target else {
            panic!("IPv6")
        };
        [&[0x60, 0, 0, 0][..], &target.octets()].concat()
    };
    for source in [a.v6(), link_local] {
        assert!(
            passes(&a, &to, &icmp6(own, source, 200, &[0; 4]), MARK),
            "control: from {source}"
        );
        assert!(
            passes(&a, &to, &icmp6(own, source, 136, &advert(a.v6())), MARK),
            "control: own advertisement"
        );
        assert!(
            passes(&a, &to, &icmp6(own, source, 136, &advert(link_local)), MARK),
            "control: own advertisement"
        );
        assert!(
            !passes(&a, &to, &icmp6(own, source, 136, &advert(b.v6())), MARK),
            "advertisement for another"
        );
        assert!(
            !passes(&a, &to, &icmp6(own, source, 134, &[0; 12]), MARK),
            "router advertisement"
        );
        assert!(
            !passes(&a, &to, &icmp6(own, source, 137, &[0; 36]), MARK),
            "redirect"
        );
    }
    for foreign in [b.v6(), "fe80::1".parse().unwrap(), "2001:db8::1".parse().unwrap()] {
        assert!(
            !passes(&a, &to, &icmp6(own, foreign, 200, &[0; 4]), MARK),
            "from {foreign}"
        );
    }
    assert_eq!(dropped(&mut cluster, 0, "spoofed").await, 9);
}

/// Tags of 802.1Q and 802.1ad without a VLAN: a receiver takes what is in them for untagged.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_hides_nothing() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let (a, b, c) = (
        cluster.add_pod("shop", 0, 0),
        cluster.add_pod("shop", 0, 1),
        cluster.add_pod("shop", 1, 0),
    );
    cluster.sync().await;
    let (own, foreign): (_, IpAddr) = (a.mac(), "10.80.0.13".parse().unwrap());
    let mut sent = 0;
    for to in [&b, &c] {
        let wire = Wire::open(&to.space, &to.interface());
        let spoofed = udp4(to.mac(), (own, foreign), to.v4(), MARK);
        let broadcast = udp4(Mac::BROADCAST, (own, foreign), to.v4(), MARK);
        let router = icmp6(own, "fe80::1".parse().unwrap(), 134, &[0; 12]);
        assert!(
            passes(&a, &wire, &udp4(to.mac(), (own, a.v4()), to.v4(), MARK), MARK),
            "control"
        );
        for tags in [
            &[0x8100][..],
            &[0x88a8],
            &[0x88a8, 0x8100],
            &[0x8100, 0x8100],
            &[0x8100, 0x8100, 0x8100],
        ] {
            for frame in [&spoofed, &broadcast, &router] {
                assert!(!passes(&a, &wire, &tagged(tags, frame), MARK), "{tags:04x?}");
                sent += 1;
            }
        }
    }
    assert_eq!(dropped(&mut cluster, 0, "tagged").await, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn broadcast_beyond_the_budget_is_dropped_and_counted_and_arp_still_works() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 1, 0));
    for node in &mut cluster.nodes {
        node.segment("shop").broadcast.frames_per_second = 50;
    }
    cluster.sync().await;
    let to = Wire::open(&b.space, &b.interface());
    to.collect(Duration::from_millis(50));
    let from = Wire::open(&a.space, &a.interface());
    let start = std::time::Instant::now();
    for _ in 0..500 {
        from.send(&ethernet(Mac::BROADCAST, a.mac(), 0x88b5, MARK));
    }
    let unicast = ethernet(b.mac(), a.mac(), 0x88b6, b"unicast-is-not-broadcast");
    for _ in 0..60 {
        from.send(&unicast);
    }
    let frames = to.collect(SETTLE);
    let arrived = marked(&frames);
    let allowed = 50 + (start.elapsed().as_secs_f64() * 50.0) as usize + 1;
    assert!(
        (50..=allowed).contains(&arrived),
        "{arrived} of at most {allowed}"
    );
    assert_eq!(
        frames
            .iter()
            .filter(|frame| frame[12..14] == [0x88, 0xb6])
            .count(),
        60
    );
    assert_eq!(dropped(&mut cluster, 0, "budget").await, 500 - arrived as u64);
    a.space.ip(&format!("neigh flush dev {}", a.interface()));
    assert!(
        ping(&a.space, b.v4(), 8, Duration::from_secs(1)).is_some(),
        "ARP has a budget of its own"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_can_be_for_ip_only() {
    let (mut cluster, a, b) = pair().await;
    for node in &mut cluster.nodes {
        node.segment("shop").broadcast.non_ip = false;
    }
    cluster.sync().await;
    let to = Wire::open(&b.space, &b.interface());
    assert!(!passes(&a, &to, &ethernet(b.mac(), a.mac(), 0x88b5, MARK), MARK));
    assert!(
        passes(&a, &to, &udp4(b.mac(), (a.mac(), a.v4()), b.v4(), MARK), MARK),
        "control"
    );
    assert_eq!(dropped(&mut cluster, 0, "nonip").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_itself_is_in_no_slice() {
    let (mut cluster, a, _b) = pair().await;
    let node = &cluster.nodes[0];
    let bridge = Segment::of_slice("shop").bridge();
    // Linux answers ARP for any of its addresses on any interface.
    let to = Wire::open(&a.space, &a.interface());
    let asked = arp_request(a.mac(), (a.mac(), a.v4()), node.address);
    to.collect(Duration::from_millis(20));
    Wire::open(&a.space, &a.interface()).send(&asked);
    let answers = to.collect(SETTLE);
    assert!(
        !answers
            .iter()
            .any(|frame| frame[12..14] == [8, 6] && frame[21] == 2),
        "{answers:02x?}"
    );
    // To the bridge's own address, as a pod that knows it could.
    let link = node.space.ip(&format!("-br link show {bridge}"));
    let mac: Mac = link.split_whitespace().nth(2).unwrap().parse().unwrap();
    let inside = Wire::open(&node.space, bridge.as_str());
    inside.collect(Duration::from_millis(20));
    Wire::open(&a.space, &a.interface()).send(&ethernet(mac, a.mac(), 0x88b5, MARK));
    assert!(!seen(&inside.collect(SETTLE), MARK));
    assert_eq!(dropped(&mut cluster, 0, "host").await, 1);
    // And the other way.
    let node = &cluster.nodes[0];
    to.collect(Duration::from_millis(20));
    Wire::open(&node.space, bridge.as_str()).send(&ethernet(Mac::BROADCAST, mac, 0x88b5, MARK));
    assert!(!seen(&to.collect(SETTLE), MARK));
}

#[tokio::test(flavor = "multi_thread")]
async fn vxlan_from_elsewhere_than_a_node_is_dropped() {
    let (cluster, a, b) = pair().await;
    let to = Wire::open(&b.space, &b.interface());
    let inner = ethernet(b.mac(), a.mac(), 0x88b5, MARK);
    let packet = [&[8, 0, 0, 0, 0, 0, 77, 0][..], &inner].concat();
    let target = cluster.nodes[1].address;
    let send = |space: &Space| {
        let packet = packet.clone();
        space.run(move || {
            std::net::UdpSocket::bind("0.0.0.0:0")?
                .send_to(&packet, (target, 14789))
                .map(drop)
        });
    };
    to.collect(Duration::from_millis(20));
    send(&cluster.nodes[0].space);
    assert!(seen(&to.collect(SETTLE), MARK), "control: from a node");
    // A stranger on the same network.
    cluster.underlay.ip("addr add 192.168.7.200/24 dev br0");
    send(&cluster.underlay);
    assert!(!seen(&to.collect(SETTLE), MARK), "from a stranger");
    // A pod of the node that is in no slice, by way of the node.
    let node = &cluster.nodes[0].space;
    node.ip("link add out type veth peer name in0");
    let pod = Space::new("outsider");
    crate::support::move_link(node, "in0", &pod, "eth0");
    node.ip("addr add 10.244.0.1/24 dev out");
    node.ip("link set out up");
    pod.ip("addr add 10.244.0.2/24 dev eth0");
    pod.ip("link set eth0 up");
    pod.ip("route add default via 10.244.0.1");
    node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"));
    node.command("nft", "add table ip nat").unwrap();
    let masquerade = "add chain ip nat post { type nat hook postrouting priority 100 ; }";
    node.command("nft", masquerade).unwrap();
    node.command("nft", "add rule ip nat post ip saddr 10.244.0.0/24 masquerade")
        .unwrap();
    let plain = cluster.nodes[1]
        .space
        .run(|| std::net::UdpSocket::bind("0.0.0.0:9999"));
    plain.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    pod.run(|| {
        std::net::UdpSocket::bind("0.0.0.0:0")?
            .send_to(b"hello", (target, 9999))
            .map(drop)
    });
    let mut buffer = [0; 16];
    let (_, source) = plain
        .recv_from(&mut buffer)
        .expect("control: a pod reaches other nodes");
    assert_eq!(source.ip(), cluster.nodes[0].address, "control: as its node");
    send(&pod);
    assert!(
        !seen(&to.collect(SETTLE), MARK),
        "from a pod that its node masquerades"
    );
}

/// A pod outside every slice that may send raw packets, in the name of another node: to its own node, and to another.
#[tokio::test(flavor = "multi_thread")]
async fn vxlan_in_the_name_of_a_node_is_dropped() {
    let mut cluster = Cluster::new(3);
    cluster.add_slice("shop", slice(77));
    let pods = [0, 1, 2].map(|node| cluster.add_pod("shop", node, 0));
    cluster.sync().await;
    let node = &cluster.nodes[0].space;
    node.ip("link add out type veth peer name in0");
    let attacker = Space::new("attacker");
    crate::support::move_link(node, "in0", &attacker, "eth0");
    node.ip("link set out address 02:00:00:00:00:01 up");
    node.ip("addr add 10.244.0.1/24 dev out");
    attacker.ip("link set eth0 up");
    for switch in ["ip_forward", "conf/out/accept_local"] {
        let path = format!("/proc/sys/net/ipv4/{switch}");
        node.run(|| std::fs::write(&path, "1"));
    }
    let wire = Wire::open(&attacker, "eth0");
    for (own, victim, name) in [(0, 0, 1), (0, 1, 2), (0, 1, 0)] {
        let to = Wire::open(&pods[victim].space, &pods[victim].interface());
        to.collect(Duration::from_millis(20));
        let inner = ethernet(pods[victim].mac(), pods[name].mac(), 0x88b5, MARK);
        let packet = [&[8, 0, 0, 0, 0, 0, 77, 0][..], &inner].concat();
        let (source, target) = (cluster.nodes[name].address, cluster.nodes[victim].address);
        // The same from the node itself arrives.
        let sent = cluster.nodes[name]
            .space
            .run(|| std::net::UdpSocket::bind("0.0.0.0:0")?.send_to(&packet, (target, 14789)));
        assert!(sent > 0);
        assert!(
            victim == name || seen(&to.collect(SETTLE), MARK),
            "control: from node {name}"
        );
        let gateway = Mac([2, 0, 0, 0, 0, 1]);
        let spoofed = udp4_between(
            gateway,
            (Mac([2, 0, 0, 0, 0, 2]), source),
            target,
            (14789, 14789),
            &packet,
        );
        wire.send(&spoofed);
        assert!(
            !seen(&to.collect(SETTLE), MARK),
            "from a pod of node {own} to node {victim} as node {name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_service_rules_do_not_touch_a_slice() {
    let mut cluster = Cluster::new(1).without_fast_path();
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 0, 1));
    cluster.sync().await;
    let node = &cluster.nodes[0].space;
    // What kube-proxy would do with a Service whose address a slice happens to have too.
    node.run(|| std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1"));
    node.command("nft", "add table ip proxy").unwrap();
    node.command(
        "nft",
        "add chain ip proxy pre { type nat hook prerouting priority -100 ; }",
    )
    .unwrap();
    let rule = format!("add rule ip proxy pre ip daddr {} dnat to 192.168.7.1", b.v4());
    node.command("nft", &rule).unwrap();
    assert!(ping(&a.space, b.v4(), 8, Duration::from_secs(1)).is_some());
    node.command("nft", "delete table inet weft_host").unwrap();
    assert!(
        ping(&a.space, b.v4(), 8, SETTLE).is_none(),
        "control: without the guard the rule catches it"
    );
    cluster.sync().await;
    assert!(ping(&a.space, b.v4(), 8, Duration::from_secs(1)).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_nodes_own_filters_drop_is_counted() {
    let mut cluster = Cluster::new(1).without_fast_path();
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 0, 1));
    cluster.sync().await;
    let node = &cluster.nodes[0].space;
    for table in ["iptables", "ip6tables"] {
        let sysctl = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
        node.run(|| std::fs::write(&sysctl, "1"));
    }
    let answers = |address| ping(&a.space, address, 8, SETTLE).is_some();
    assert!(answers(b.v4()) && answers(b.v6()), "control");
    for family in Family::ALL {
        let [offered, passed] = cluster.nodes[0].passage(family).await;
        assert_eq!(offered, passed, "control: nothing is lost");
        assert!(offered >= 2, "request and answer are counted");
    }
    let [_, before] = cluster.nodes[0].passage(Family::Ipv4).await;
    let script = "add table ip docker; \
                  add chain ip docker forward { type filter hook forward priority 0 ; policy drop ; }";
    cluster.nodes[0].space.command("nft", script).unwrap();
    assert!(!answers(b.v4()));
    assert!(answers(b.v6()), "the other family passes");
    assert_eq!(cluster.nodes[0].passage(Family::Ipv4).await, [before + 1, before]);
    // What the status tells the user to add.
    let bridges = "add rule ip docker forward iifname wb-* oifname wb-* accept";
    cluster.nodes[0].space.command("nft", bridges).unwrap();
    assert!(answers(b.v4()));
}
