//! What somebody changes by hand comes back; what Weft does not own is left alone; a restart changes nothing.

use std::time::Duration;

use slice_crds::Mac;
use slice_netop::{
    desired::NodeIntent,
    kernel::{Kernel, Linux, Query, features},
    model::Segment,
    plan::diff,
};

use crate::support::{Cluster, Pings, Space, Wire, ethernet, ping, slice};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_by_hand_comes_back() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 1, 0));
    let _tap = cluster.add_gateway("shop", 0).await;
    let segment = Segment::of_slice("shop");
    let (bridge, mesh, uplink, tap) = (segment.bridge(), segment.mesh(), segment.uplink(), segment.tap(0));
    let (port, table, fast_path) = (a.port.clone(), segment.table(), segment.fast_path());
    let remote = cluster.nodes[1].address;
    let node = [
        format!("ip link set {bridge} mtu 1200"),
        format!("ip link set {bridge} down"),
        format!("ip link set {bridge} type bridge mcast_snooping 1"),
        format!("ip link set {bridge} addrgenmode eui64"),
        format!("ip link set {bridge} address 02:5d:00:00:00:09"),
        format!("ip link set {mesh} nomaster"),
        format!("ip link set {mesh} down"),
        format!("ip link set {uplink} type bridge_slave isolated off"),
        format!("bridge link set dev {mesh} flood on learning on"),
        format!("bridge link set dev {mesh} neigh_suppress off"),
        format!("bridge link set dev {port} mcast_flood off"),
        format!("bridge link set dev {tap} bcast_flood off"),
        format!("bridge fdb del 02:5c:00:00:00:10 dev {mesh} master"),
        format!("bridge fdb del 02:5c:00:00:00:10 dev {mesh} dst {remote} self"),
        format!("bridge fdb del 00:00:00:00:00:00 dev {mesh} dst {remote} self"),
        format!("bridge fdb add 02:5c:00:00:77:77 dev {mesh} dst 192.168.7.99 self permanent"),
        format!("bridge fdb replace 02:5c:00:00:00:08 dev {mesh} master static"),
        format!("ip neigh del 10.80.0.16 dev {bridge}"),
        format!("ip neigh add 10.80.0.99 lladdr 02:00:00:00:00:01 dev {bridge} nud permanent"),
        format!("nft delete table bridge {table}"),
        format!("nft flush chain bridge {table} forward"),
        format!("nft flush set bridge {table} macs"),
        format!("nft add element bridge {table} pods {{ eth0 }}"),
        "nft delete table inet weft_host".into(),
        format!("nft delete table netdev {fast_path}"),
        format!("nft flush chain netdev {fast_path} from_pod"),
        format!("nft flush chain netdev {fast_path} {port}"),
        format!("nft delete chain netdev {fast_path} {port}"),
        format!("nft flush map netdev {fast_path} others"),
        format!("nft add element netdev {fast_path} places {{ 02:5c:00:00:00:99 : eth0 }}"),
        format!("ip link del {port}"),
        format!("ip link del {mesh}"),
        format!("ip link del {bridge}"),
        "ip link add wp-leftover type veth peer name wp-other".into(),
    ];
    let pod = [
        "ip link del sl-shop".to_owned(),
        "ip link set sl-shop down".into(),
        "ip link set sl-shop mtu 1300".into(),
        "ip link set sl-shop address 02:5c:00:00:00:77".into(),
        "ip link set sl-shop name other".into(),
        format!("ip addr del {}/16 dev sl-shop", a.v4()),
        format!("ip addr del {}/64 dev sl-shop", a.v6()),
        "ip addr add 10.80.0.200/16 dev sl-shop".into(),
        "ip route del 10.80.0.0/16 dev sl-shop".into(),
        "ip -6 route del fd42:80::/64 dev sl-shop".into(),
    ];
    for (inside, command) in node
        .iter()
        .map(|command| (false, command))
        .chain(pod.iter().map(|command| (true, command)))
    {
        let space = if inside { &a.space } else { &cluster.nodes[0].space };
        let (program, arguments) = command.split_once(' ').unwrap();
        if let Err(error) = space.command(program, arguments) {
            panic!("{command}: {error}");
        }
        let repairs = cluster.nodes[0].plan().await;
        // The bridge's own address is nobody's business; the neighbours that its change costs are.
        assert_ne!(repairs.to_string(), "", "{command} is noticed");
        cluster.sync().await;
        for ip in [b.v4(), b.v6()] {
            assert!(
                ping(&a.space, ip, 1300, SECOND).is_some(),
                "{ip} after {command}, repaired by\n{repairs}"
            );
        }
    }
}

/// The node without a gateway, whose frames go to the other one's.
#[tokio::test(flavor = "multi_thread")]
async fn the_uplink_leads_where_it_should_again() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let b = cluster.add_pod("shop", 1, 0);
    let tap = cluster.add_gateway("shop", 0).await;
    let uplink = Segment::of_slice("shop").uplink();
    let (group, nexthop) = (0x5800_0000 + 77, 0x5700_0000 + 77);
    assert!(cluster.nodes[1].space.ip("nexthop").contains(&group.to_string()));
    let wire = Wire::open(&b.space, "sl-shop");
    for (number, command) in [
        format!("ip nexthop replace id {nexthop} via 192.168.7.99 fdb"),
        format!("ip nexthop del id {nexthop}"),
        format!("ip nexthop del id {group}"),
        format!("bridge fdb del 00:00:00:00:00:00 dev {uplink}"),
        format!("ip link del {uplink}"),
    ]
    .into_iter()
    .enumerate()
    {
        let (program, arguments) = command.split_once(' ').unwrap();
        cluster.nodes[1].space.command(program, arguments).unwrap();
        let repairs = cluster.nodes[1].plan().await;
        assert_ne!(repairs.to_string(), "", "{command} is noticed");
        cluster.sync().await;
        let text = format!("frame number {number} after a change by hand of the uplink, with padding");
        wire.send(&ethernet(Mac::BROADCAST, b.mac(), 0x88b5, text.as_bytes()));
        let frames = tap.collect(Duration::from_millis(300));
        let arrived = frames.iter().filter(|frame| frame.ends_with(text.as_bytes()));
        assert_eq!(arrived.count(), 1, "after {command}, repaired by\n{repairs}");
    }
    // What an earlier version of the agent set is adopted, and gives way to a nexthop with the next change.
    let remote = cluster.nodes[0].address;
    let node = &mut cluster.nodes[1];
    node.space.ip(&format!("nexthop del id {nexthop}"));
    let vxlan = format!("type vxlan id 77 remote {remote}");
    node.space.ip(&format!("link set {uplink} {vxlan}"));
    assert_eq!(node.plan().await.to_string(), "", "it leads to the same node");
    node.space
        .ip(&format!("link set {uplink} type vxlan id 77 remote 192.168.7.99"));
    cluster.sync().await;
    let shown = cluster.nodes[1].space.ip(&format!("-d link show {uplink}"));
    assert!(!shown.contains("remote"), "{shown}");
    assert!(cluster.nodes[1].space.ip("nexthop").contains(&group.to_string()));

    cluster.nodes[1].intent = NodeIntent::default();
    cluster.nodes[1].sync().await;
    assert_eq!(
        cluster.nodes[1].space.ip("nexthop"),
        "",
        "they go with the device"
    );
    let features = features(Some(&cluster.nodes[1].space.path())).await;
    assert_eq!(features.get("nexthops"), Some(&true));
    assert_eq!(cluster.nodes[1].space.ip("nexthop"), "", "a probe leaves none");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_filters_there_is_no_loop() {
    let mut cluster = Cluster::new(3);
    cluster.add_slice("shop", slice(77));
    let a = cluster.add_pod("shop", 0, 0);
    let tap = cluster.add_gateway("shop", 1).await;
    for node in &cluster.nodes {
        let table = Segment::of_slice("shop").table();
        node.space
            .command("nft", &format!("delete table bridge {table}"))
            .unwrap();
    }
    tap.collect(Duration::from_millis(100));
    Wire::open(&a.space, "sl-shop").send(&ethernet(
        Mac::BROADCAST,
        a.mac(),
        0x88b5,
        b"once upon a time there was a frame",
    ));
    let frames = tap.collect(Duration::from_millis(300));
    let copies = frames
        .iter()
        .filter(|frame| frame[12..14] == [0x88, 0xb5])
        .count();
    assert!((1..=2).contains(&copies), "{copies} copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_agent_loses_no_frame() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 1, 0));
    let _tap = cluster.add_gateway("shop", 0).await;
    let pings = Pings::start(a.space, b.v4());
    for _ in 0..10 {
        for node in &mut cluster.nodes {
            node.kernel = Linux::open(Some(&node.space.path())).unwrap();
            let plan = node.sync().await;
            assert_eq!(
                plan.to_string(),
                "",
                "a restarted agent finds everything in place"
            );
        }
    }
    let (sent, lost, _a) = pings.finish();
    assert!(sent > 100, "{sent} pings");
    assert_eq!(lost, 0, "of {sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_pods_and_settings_disturb_nobody() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 1, 0));
    let _tap = cluster.add_gateway("shop", 0).await;
    let pings = Pings::start(a.space, b.v4());
    let mut pods = vec![];
    for nth in 1..6 {
        pods.push(cluster.add_pod("shop", 0, nth));
        cluster.nodes[0].segment("shop").broadcast.frames_per_second = 1000 + nth;
        cluster.sync().await;
    }
    for pod in &pods {
        cluster.nodes[0].segment("shop").attachments.remove(&pod.port);
        cluster.sync().await;
    }
    cluster.add_slice("bank", slice(78));
    cluster.sync().await;
    let (sent, lost, _a) = pings.finish();
    assert!(sent > 100, "{sent} pings");
    assert_eq!(lost, 0, "of {sent}");
}

/// Name and hardware address of every device. Not its carrier, which comes some
/// time after the veth pair was made.
fn devices(space: &Space) -> Vec<[String; 2]> {
    let links = space.ip("-br link");
    let fields = links.lines().map(|line| {
        let mut fields = line.split_whitespace();
        [fields.next(), fields.nth(1)].map(|field| field.unwrap_or_default().to_owned())
    });
    fields.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teardown_leaves_nothing_of_ours_and_everything_else() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let node = &cluster.nodes[0].space;
    node.ip("link add cni0 type bridge");
    node.command("nft", "add table bridge somebody").unwrap();
    let before = devices(node);
    let filters = node.command("nft", "list ruleset").unwrap();
    let a = cluster.add_pod("shop", 0, 0);
    let tap = cluster.add_gateway("shop", 0).await;
    assert_ne!(devices(&cluster.nodes[0].space), before, "control");
    drop(tap);
    cluster.nodes[0].intent = NodeIntent::default();
    cluster.nodes[0].sync().await;
    assert_eq!(devices(&cluster.nodes[0].space), before);
    assert_eq!(
        cluster.nodes[0].space.command("nft", "list ruleset").unwrap(),
        filters
    );
    assert!(!a.space.ip("-br link").contains("sl-shop"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_has_ended_is_told_apart_from_one_that_lost_its_interface() {
    let mut cluster = Cluster::new(1);
    cluster.add_slice("shop", slice(77));
    let a = cluster.add_pod("shop", 0, 0);
    cluster.sync().await;
    let desired = cluster.nodes[0].desired();
    let path = a.space.path();
    drop(a);
    let pods = desired
        .pods
        .iter()
        .map(|(port, pod)| (port.clone(), pod.end()))
        .collect();
    let query = Query {
        pods,
        node_address: Some(cluster.nodes[0].address),
    };
    let observed = cluster.nodes[0].kernel.observe(&query).await.unwrap();
    assert_eq!(
        observed
            .gone
            .iter()
            .map(|netns| netns.path().to_owned())
            .collect::<Vec<_>>(),
        [path]
    );
    assert_eq!(observed.underlay_mtu, Some(1500));
    // Wanting it still fails, and says where.
    let plan = diff(&desired, &observed.state);
    let outcome = cluster.nodes[0].kernel.apply(&plan).await;
    assert!(
        outcome
            .failed
            .iter()
            .all(|failure| failure.step.scope.port.is_some()),
        "{:?}",
        outcome.failed
    );
}
