//! What is between a slice and its node: who may send to the ports between nodes, and that neither sees the other.

use std::time::Duration;

use slice_crds::Mac;
use slice_datapath::{Direction, Reason};

use crate::support::{
    Cluster, MARK, Pod, Space, Wire, arp_request, ethernet, icmp6, ping, slice, udp4, udp4_between,
};

const SETTLE: Duration = Duration::from_millis(200);

fn seen(frames: &[Vec<u8>], mark: &[u8]) -> bool {
    frames
        .iter()
        .any(|frame| frame.windows(mark.len()).any(|window| window == mark))
}

async fn pair() -> (Cluster, Pod, Pod) {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 1, 0));
    cluster.sync().await;
    (cluster, a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_can_be_for_ip_only() {
    let (mut cluster, a, b) = pair().await;
    for node in &mut cluster.nodes {
        node.segment("shop").carried.non_ip = false;
    }
    cluster.sync().await;
    let (from, to) = (
        Wire::open(&a.space, &a.interface()),
        Wire::open(&b.space, &b.interface()),
    );
    to.collect(Duration::from_millis(20));
    from.send(&ethernet(b.mac(), a.mac(), 0x88b5, MARK));
    assert!(!seen(&to.collect(SETTLE), MARK));
    from.send(&udp4(b.mac(), (a.mac(), a.v4()), b.v4(), MARK));
    assert!(seen(&to.collect(SETTLE), MARK), "control");
    let dropped = cluster.nodes[0].dropped(77, Direction::FromPod, Reason::NotIp);
    assert_eq!(dropped.await, 1);
}

/// One pod may be a router, on either side of a node and a gateway; VLANs pass where the slice says so.
#[tokio::test(flavor = "multi_thread")]
async fn routers_and_tags_are_carried_where_the_slice_says_so() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let (a, b, c) = (
        cluster.add_pod("shop", 0, 0),
        cluster.add_pod("shop", 1, 0),
        cluster.add_pod("shop", 0, 1),
    );
    let tap = cluster.add_gateway("shop", 0).await;
    let to = Wire::open(&b.space, &b.interface());
    let advertisement = |pod: &Pod| icmp6(pod.mac(), pod.v6(), 134, &[0; 12]);
    let tagged = |pod: &Pod| tagged_in(7, &ethernet(b.mac(), pod.mac(), 0x88b5, MARK));
    let passes = |pod: &Pod, frame: &[u8]| {
        to.collect(Duration::from_millis(20));
        tap.collect(Duration::from_millis(20));
        Wire::open(&pod.space, &pod.interface()).send(frame);
        (seen(&to.collect(SETTLE), MARK), seen(&tap.collect(SETTLE), MARK))
    };
    assert_eq!(passes(&a, &advertisement(&a)), (false, false));
    assert_eq!(passes(&a, &tagged(&a)), (false, false));
    for node in &mut cluster.nodes {
        let carried = &mut node.segment("shop").carried;
        (carried.routers, carried.tagged) = (true, true);
    }
    let port = a.port.clone();
    cluster.nodes[0]
        .segment("shop")
        .attachments
        .get_mut(&port)
        .unwrap()
        .router = true;
    cluster.sync().await;
    assert_eq!(
        passes(&a, &advertisement(&a)),
        (true, true),
        "at another node and the gateway"
    );
    assert_eq!(
        passes(&c, &advertisement(&c)),
        (false, false),
        "another pod is no router"
    );
    assert_eq!(passes(&a, &tagged(&a)), (true, false));
}

/// A frame in a VLAN.
fn tagged_in(vlan: u8, frame: &[u8]) -> Vec<u8> {
    let mut tagged = crate::support::tagged(&[0x8100], frame);
    tagged[15] = vlan;
    tagged
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_itself_is_in_no_slice() {
    let (mut cluster, a, _b) = pair().await;
    let node = &cluster.nodes[0];
    let wire = Wire::open(&a.space, &a.interface());
    // Linux answers ARP for any of its addresses on any interface.
    let asked = arp_request(a.mac(), (a.mac(), a.v4()), node.address);
    wire.collect(Duration::from_millis(20));
    wire.send(&asked);
    let answers = wire.collect(SETTLE);
    let is_answer = |frame: &Vec<u8>| frame[12..14] == [8, 6] && frame[21] == 2;
    assert!(!answers.iter().any(is_answer), "{answers:02x?}");
    // To the address of the node's end, as a pod that knows it could.
    let link = node.space.ip(&format!("-br link show {}", a.port));
    let mac: Mac = link.split_whitespace().nth(2).unwrap().parse().unwrap();
    let socket = node
        .space
        .run(|| std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 9999)));
    socket.set_read_timeout(Some(SETTLE)).unwrap();
    wire.send(&udp4_between(
        mac,
        (a.mac(), a.v4()),
        node.address,
        (9999, 9999),
        MARK,
    ));
    assert!(
        socket.recv(&mut [0; 64]).is_err(),
        "the node has heard a pod of a slice"
    );
    let dropped = cluster.nodes[0].dropped(77, Direction::FromPod, Reason::NoRoute);
    assert_eq!(dropped.await, 1);
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

/// What kube-proxy would do with a Service whose address a slice happens to have too, and what Docker's policy would.
#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_rules_do_not_touch_a_slice() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let a = cluster.add_pod("shop", 0, 0);
    let others = [cluster.add_pod("shop", 0, 1), cluster.add_pod("shop", 1, 0)];
    cluster.sync().await;
    for node in &cluster.nodes {
        let script = "add table ip proxy; \
                      add chain ip proxy pre { type nat hook prerouting priority -100 ; }; \
                      add rule ip proxy pre ip daddr 10.80.0.0/16 dnat to 192.168.7.99; \
                      add table inet docker; \
                      add chain inet docker forward { type filter hook forward priority 0 ; policy drop ; }";
        node.space.command("nft", script).unwrap();
    }
    for other in others {
        for ip in [other.v4(), other.v6()] {
            assert!(ping(&a.space, ip, 8, Duration::from_secs(1)).is_some(), "{ip}");
        }
    }
}

/// Each flow of a slice has a source port of its own between nodes.
#[tokio::test(flavor = "multi_thread")]
async fn datagrams_between_nodes_are_not_tracked() {
    let (cluster, a, b) = pair().await;
    let tracked = |node: usize| {
        let node = &cluster.nodes[node].space;
        let count = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
        node.run(count).trim().parse::<u32>().unwrap()
    };
    for node in &cluster.nodes {
        // Somebody's rule that wants connections: without one the kernel tracks none.
        let script = "add table ip tracking; \
                      add chain ip tracking in { type filter hook input priority 0 ; }; \
                      add rule ip tracking in ct state established counter; \
                      add chain ip tracking out { type filter hook output priority 0 ; }; \
                      add rule ip tracking out ct state established counter";
        node.space.command("nft", script).unwrap();
    }
    let wire = Wire::open(&a.space, &a.interface());
    for port in 2000..2500 {
        let ends = (a.mac(), a.v4());
        wire.send(&udp4_between(b.mac(), ends, b.v4(), (port, 9), MARK));
    }
    assert!(
        ping(&a.space, b.v4(), 8, Duration::from_secs(1)).is_some(),
        "control"
    );
    // What is the nodes' own is tracked.
    let other = cluster.nodes[1].address;
    let hello = || std::net::UdpSocket::bind("0.0.0.0:0")?.send_to(b"hello", (other, 9999));
    cluster.nodes[0].space.run(hello);
    for node in [0, 1] {
        let count = tracked(node);
        assert!((1..20).contains(&count), "{count} connections on node {node}");
    }
}
