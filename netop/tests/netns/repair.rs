//! What somebody changes by hand comes back; what Weft does not own is left alone; a restart changes nothing.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use slice_crds::Mac;
use slice_netop::{
    desired::NodeIntent,
    kernel::{Kernel, Linux, Query},
    model::Name,
    plan::diff,
};

use crate::support::{Cluster, MARK, Pings, Space, Wire, ethernet, marked, paced, ping, slice, udp4};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_by_hand_comes_back() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 1, 0));
    let _tap = cluster.add_gateway("shop", 0).await;
    let (port, tap, tunnel) = (a.port.clone(), Name::tap("shop", 0), Name::to_pods());
    let node = [
        format!("ip link set {port} mtu 1200"),
        format!("ip link set {port} down"),
        format!("ip link set {port} addrgenmode eui64"),
        format!("ip link set {port} alias nobody"),
        format!("ip link set {tap} alias nobody"),
        format!("ip link set {tunnel} down"),
        format!("tc qdisc del dev {port} clsact"),
        format!("tc filter del dev {port} ingress"),
        format!(
            "tc filter del dev {port} ingress; tc filter add dev {port} ingress prio 1 protocol all u32 match u32 0 0 \
             flowid 1:1"
        ),
        format!("tc qdisc del dev {tap} clsact"),
        format!("tc qdisc del dev {tunnel} clsact"),
        "nft delete table inet weft_host".into(),
        "nft flush chain inet weft_host input".into(),
        "nft flush set inet weft_host nodes4".into(),
        "nft add element inet weft_host nodes4 { 192.168.7.99 }".into(),
        "nft add table bridge weft_rwiaduzm".into(),
        format!("ip link del {port}"),
        format!("ip link del {tap}"),
        format!("ip link del {tunnel}"),
        "ip link add wp-leftover type veth peer name wp-other".into(),
        "ip link add wb-rwiaduzm type bridge".into(),
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
        for command in command.split("; ") {
            let (program, arguments) = command.split_once(' ').unwrap();
            if let Err(error) = space.command(program, arguments) {
                panic!("{command}: {error}");
            }
        }
        let repairs = cluster.nodes[0].plan().await;
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
            let plan = node.sync().await.to_string();
            let made = plan
                .lines()
                .filter(|line| line.contains("link") && !line.ends_with(" attach"));
            assert_eq!(
                made.count(),
                0,
                "a restarted agent finds every interface in place:\n{plan}"
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
        cluster.nodes[0].segment("shop").carried.broadcast_per_second = 1000 + nth;
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

/// A pod with NET_ADMIN may fill its own namespace.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_countless_routes_and_addresses_costs_the_node_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.add_slice("shop", slice(77));
    let (a, b) = (cluster.add_pod("shop", 0, 0), cluster.add_pod("shop", 0, 1));
    cluster.sync().await;
    let mut commands = String::new();
    for n in 0..200_000u32 {
        let ip = std::net::Ipv4Addr::from_bits(0x6440_0000 + n);
        commands.push_str(&format!("route add {ip}/32 dev sl-shop\n"));
    }
    for n in 0..1000u32 {
        let ip = std::net::Ipv4Addr::from_bits(0x6480_0000 + n);
        commands.push_str(&format!("addr add {ip}/32 dev sl-shop\n"));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), commands).unwrap();
    a.space.ip(&format!("-batch {}", file.path().display()));
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    let begun = std::time::Instant::now();
    let observed = cluster.nodes[0].observe().await;
    let took = begun.elapsed();
    assert!(took < 2 * SECOND, "{took:?}");
    assert!(
        resident() < before + (48 << 10),
        "{} KiB more",
        resident() - before
    );
    assert!(observed.unread.is_empty() && observed.state.pods.contains_key(&b.port));
    // What it takes from itself beside all that comes back.
    a.space.ip(&format!("addr del {}/16 dev sl-shop", a.v4()));
    cluster.nodes[0].sync().await;
    assert!(ping(&b.space, a.v4(), 8, SECOND).is_some());
}

/// Frames that pass between two nodes while the agents of both start again, a hundred slices on each.
#[tokio::test(flavor = "multi_thread")]
async fn agents_that_start_again_lose_nothing_with_a_hundred_slices() {
    let mut cluster = Cluster::new(2);
    let mut pods = vec![];
    for n in 0..100 {
        let name = format!("s{n}");
        cluster.add_slice(&name, slice(1000 + n));
        pods.push([cluster.add_pod(&name, 0, 0), cluster.add_pod(&name, 1, 0)]);
    }
    cluster.sync().await;
    let [a, b] = &pods[0];
    let (from, to) = (
        Wire::open(&a.space, &a.interface()),
        Wire::open(&b.space, &b.interface()),
    );
    let (ends, target) = ((a.mac(), a.v4()), (b.mac(), b.v4()));
    let stop = AtomicBool::new(false);
    let (sent, arrived) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let sent = paced(2000, &stop, |number| {
                let payload = [MARK, &number.to_be_bytes()].concat();
                from.send(&udp4(target.0, ends, target.1, &payload));
            });
            sent as usize
        });
        let collecting = scope.spawn(|| {
            let mut arrived = 0;
            while !stop.load(Ordering::Relaxed) {
                arrived += marked(&to.collect(Duration::from_millis(100)));
            }
            arrived + marked(&to.collect(Duration::from_millis(500)))
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for _ in 0..5 {
                    for node in &mut cluster.nodes {
                        node.kernel = Linux::open(Some(&node.space.path())).unwrap();
                        node.sync().await;
                    }
                }
            });
        });
        stop.store(true, Ordering::Relaxed);
        (sending.join().unwrap(), collecting.join().unwrap())
    });
    assert!(sent > 2000, "{sent}");
    assert_eq!(arrived, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_and_go_leave_nothing_behind() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let _stays = cluster.add_pod("shop", 0, 0);
    cluster.sync().await;
    let kept = |cluster: &mut Cluster| {
        let node = &mut cluster.nodes[0];
        let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
        (node.kernel.sizes().unwrap(), devices(&node.space).len(), files)
    };
    let mut before = None;
    for _ in 0..20 {
        let mut pods: Vec<_> = (1..7).map(|nth| cluster.add_pod("shop", 0, nth)).collect();
        cluster.sync().await;
        // Each has a pace of its own once it has sent to all.
        for pod in &pods {
            let wire = Wire::open(&pod.space, &pod.interface());
            wire.send(&ethernet(Mac::BROADCAST, pod.mac(), 0x88b5, MARK));
        }
        for pod in pods.drain(..) {
            cluster.nodes[0].segment("shop").attachments.remove(&pod.port);
        }
        cluster.sync().await;
        let now = kept(&mut cluster);
        let (maps, links, files) = before.get_or_insert_with(|| now.clone());
        assert_eq!((&now.0, now.1), (&*maps, *links));
        // Namespaces end a moment after their last user.
        assert!(now.2 <= *files + 8, "{} files, {files} at first", now.2);
    }
}
