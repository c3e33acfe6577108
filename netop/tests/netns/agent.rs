//! Whole agents on the real kernel: objects and the plugin's questions in, pings and frames out.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use prometheus::Registry;
use slice_crds::{
    IndexRange, Mac, labels, names,
    v1alpha1::{
        AttachMode, Broadcast, GatewayPlacement, PeerCluster, Slice, SliceBlock, SliceBlockSpec,
        SliceGateway, SliceGatewaySpec, SliceNode, SliceNodeSpec, SliceSpec,
    },
};
use slice_netop::{
    agent::{Agent, Chain, Event, Setup},
    cni::{
        server::Call,
        wire::{Command, Reply, Request},
    },
    files::Directories,
    gateways::{GatewayEvent, Server},
    kernel::Linux,
    metrics::Metrics,
    model::{Kind, Name, Queues},
    pods::{NetnsDirectory, Sandbox},
    status::{BlockReport, Reports},
    world::{PodView, SliceFacts, World},
};
use slice_runtime::handover::{self, FromGateway, Hello, ToGateway};
use tokio::sync::{mpsc, oneshot, watch};

use crate::support::{Cluster, Pings, Space, Tap, Wire, ethernet, ping, udp4_between};

const SECOND: Duration = Duration::from_secs(1);

/// An agent on a node, which can be started again.
pub(crate) struct Run {
    node: String,
    space: std::path::PathBuf,
    agent: Agent<Linux>,
    gateways: mpsc::Receiver<GatewayEvent>,
    chain: watch::Sender<Chain>,
    reports: watch::Receiver<Reports>,
    directory: tempfile::TempDir,
}

struct Started {
    agent: Agent<Linux>,
    gateways: mpsc::Receiver<GatewayEvent>,
    chain: watch::Sender<Chain>,
    reports: watch::Receiver<Reports>,
}

fn start(node: &str, space: &std::path::Path, run: &std::path::Path) -> Started {
    let (gateway_events, gateways) = mpsc::channel(16);
    let (chain, chain_seen) = watch::channel(Chain::Installed);
    let (report, reports) = watch::channel(Reports::default());
    let run = Directories {
        run: run.to_owned(),
        state: run.join("state"),
    };
    let setup = Setup {
        node: node.into(),
        node_address: None,
        server: Server::new(run.clone(), nix::unistd::getuid().as_raw(), gateway_events),
        directories: run,
        netns: NetnsDirectory("/nowhere".into()),
        features: BTreeMap::new(),
        metrics: Metrics::register(&Registry::new()),
        fetches: mpsc::channel(1).0,
        announcements: mpsc::channel(1).0,
        reports: report,
        chain: chain_seen,
        shown: watch::channel(Arc::default()).0,
        liveness: watch::channel(slice_netop::liveness::Local::default()).0,
        mesh: watch::channel(slice_netop::mesh::Local::default()).0,
        names: watch::channel(slice_netop::names::Local::default()).0,
    };
    Started {
        agent: Agent::new(Linux::open(Some(space)).unwrap(), setup),
        gateways,
        chain,
        reports,
    }
}

impl Run {
    pub(crate) fn new(node: &str, space: &Space) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let started = start(node, &space.path(), directory.path());
        Self {
            node: node.into(),
            space: space.path(),
            agent: started.agent,
            gateways: started.gateways,
            chain: started.chain,
            reports: started.reports,
            directory,
        }
    }

    async fn restart(&mut self, world: &World, sandboxes: &[Sandbox]) {
        let started = start(&self.node, &self.space, self.directory.path());
        drop(std::mem::replace(&mut self.agent, started.agent));
        (self.gateways, self.chain, self.reports) = (started.gateways, started.chain, started.reports);
        self.step(Event::Sandboxes(sandboxes.to_vec())).await;
        self.step(Event::World(Arc::new(world.clone()))).await;
    }

    pub(crate) async fn step(&mut self, event: Event) {
        self.agent.handle(event, Timestamp::now());
        self.agent.settle(Timestamp::now()).await;
    }

    /// What is reported of the node's block.
    fn block(&self) -> BlockReport {
        self.reports.borrow().blocks[&format!("shop.{}", self.node)].clone()
    }

    /// The gateway with ordinal 0 of the slice calls; the agent answers.
    async fn called(&mut self, has_tap: bool, queues: u8) -> UnixStream {
        let socket = self.directory.path().join("gateway/shop/netop.sock");
        let stream = UnixStream::connect(socket).unwrap();
        let hello = FromGateway::Hello(Hello {
            ordinal: 0,
            public_key: "key".into(),
            udp_port: 1,
            version: "test".into(),
            has_tap,
            queues,
        });
        handover::send(&stream, &hello, &[]).unwrap();
        // The end of an earlier connection may come first.
        loop {
            let event = self.gateways.recv().await.unwrap();
            let called = matches!(event, GatewayEvent::Hello { .. });
            self.step(Event::Gateway(event)).await;
            if called {
                return stream;
            }
        }
    }

    /// The plugin asks about a pod that starts.
    async fn add(&mut self, name: &str, space: &Space) -> Reply {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            command: Command::Add,
            container_id: format!("container-{name}"),
            netns: space.path(),
            pod_namespace: "cart".into(),
            pod_name: name.into(),
            pod_uid: format!("uid-{name}"),
            addresses: vec![],
        };
        self.step(Event::Call(Call { request, reply })).await;
        answer.await.unwrap()
    }
}

pub(crate) fn world() -> World {
    let spec = SliceSpec {
        vni: 77,
        subnets: ["10.80.0.0/16", "fd42:80::/64"]
            .map(|text| text.parse().unwrap())
            .into(),
        mtu: 1370,
        largest_mtu: None,
        block_size: 8,
        cluster: "paris".into(),
        cluster_number: 1,
        ranges: vec![IndexRange::new(0, 64)],
        releasing: vec![],
        peers: vec![PeerCluster {
            name: "tokyo".into(),
            number: 2,
            ranges: vec![IndexRange::new(128, 64)],
            gateways: vec![],
        }],
        namespaces: vec![],
        join: None,
        attach: AttachMode::Required,
        gateway: GatewayPlacement::default(),
        frames: None,
        broadcast: Broadcast::default(),
        dscp: 0,
        shaping: None,
        source: None,
    };
    let mut world = World::default();
    world.slices.insert(
        "shop".into(),
        Arc::new(SliceFacts::parse(&Slice::new("shop", spec)).unwrap()),
    );
    for n in 1..=2u32 {
        let node = format!("n{n}");
        let spec = SliceBlockSpec {
            slice: "shop".into(),
            node: node.clone(),
            node_address: format!("192.168.7.{n}").parse().unwrap(),
            blocks: vec![IndexRange::new(8 * n, 8)],
            releasing: vec![],
            withdrawn: None,
        };
        let block = SliceBlock::new(&names::block("shop", &node), spec);
        world.blocks.insert(Arc::new(block));
    }
    let gateway = SliceGatewaySpec {
        slice: "shop".into(),
        ordinal: 0,
        endpoints: vec![],
        node: None,
        lost: false,
    };
    world.gateways.insert(
        ("shop".into(), 0),
        Arc::new(SliceGateway::new("weft-gateway-shop-0", gateway)),
    );
    let member = [(labels::SLICE.to_owned(), "shop".to_owned())];
    world.namespaces.insert("cart".into(), Arc::new(member.into()));
    world
}

pub(crate) fn add_pod(world: &mut World, name: &str) {
    let mut view = PodView {
        uid: format!("uid-{name}"),
        name: name.into(),
        running: true,
        ..PodView::default()
    };
    view.sandbox_uid = view.uid.clone();
    view.facts.namespace = "cart".into();
    world.pods.insert(view.uid.clone(), Arc::new(view));
}

/// The gateway's object says that it is connected to the agent of this node.
fn here(world: &mut World, node: &str) {
    let gateway = Arc::make_mut(world.gateways.get_mut(&("shop".to_owned(), 0)).unwrap());
    let status = gateway.status.get_or_insert_default();
    (status.node, status.connected) = (Some(node.into()), true);
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_attach_serve_a_gateway_restart_and_leave() {
    let cluster = Cluster::new(2);
    let (web, db) = (Space::new("web"), Space::new("db"));
    let mut worlds = [world(), world()];
    add_pod(&mut worlds[0], "web");
    add_pod(&mut worlds[1], "db");
    let mut runs = [
        Run::new("n1", &cluster.nodes[0].space),
        Run::new("n2", &cluster.nodes[1].space),
    ];
    for (run, world) in runs.iter_mut().zip(&worlds) {
        run.step(Event::World(Arc::new(world.clone()))).await;
    }
    let Reply::Attached(interfaces) = runs[0].add("web", &web).await else {
        panic!("attached")
    };
    assert_eq!(interfaces[0].mac, Mac::of_index(8).to_string());
    // The other pod ran before anybody asked: libcni's record leads to it.
    let record = Sandbox {
        uid: "uid-db".into(),
        namespace: "cart".into(),
        name: "db".into(),
        container: "container-db".into(),
        netns: db.path(),
        addresses: vec![],
        since: 0,
    };
    runs[1].step(Event::Sandboxes(vec![record.clone()])).await;
    for address in ["10.80.0.16", "fd42:80::10"] {
        assert!(ping(&web, ip(address), 1000, SECOND).is_some(), "{address}");
    }

    // A gateway on the second node: it gets the TAP, and the first node's broadcast arrives there once.
    let socket = runs[1].directory.path().join("gateway/shop/netop.sock");
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let hello = |has_tap| {
        let public_key = "key".into();
        FromGateway::Hello(Hello {
            ordinal: 0,
            public_key,
            udp_port: 1,
            version: "test".into(),
            has_tap,
            queues: 1,
        })
    };
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    handover::send(&stream, &hello(false), &[udp.as_raw_fd()]).unwrap();
    let event = runs[1].gateways.recv().await.unwrap();
    runs[1].step(Event::Gateway(event)).await;
    let (ToGateway::Config(_), _) = handover::receive(&stream).unwrap() else {
        panic!("configuration")
    };
    let (ToGateway::Tap(_), mut fds) = handover::receive(&stream).unwrap() else {
        panic!("TAP")
    };
    assert_eq!(fds.len(), 1);
    let tap = Tap::new(fds.remove(0));
    let buffer = socket2::SockRef::from(&udp).recv_buffer_size().unwrap();
    assert!(
        buffer >= handover::SOCKET_BUFFER,
        "a gateway's socket has room for bursts: {buffer}"
    );
    worlds.iter_mut().for_each(|world| here(world, "n2"));
    for (run, world) in runs.iter_mut().zip(&worlds) {
        run.step(Event::World(Arc::new(world.clone()))).await;
    }
    let wire = Wire::open(&web, "sl-shop");
    let broadcast = ethernet(
        Mac::BROADCAST,
        Mac::of_index(8),
        0x88b5,
        b"once and only once, please",
    );
    let copies = |tap: &Tap| {
        tap.collect(Duration::from_millis(50));
        wire.send(&broadcast);
        let frames = tap.collect(Duration::from_millis(300));
        frames
            .iter()
            .filter(|frame| frame[12..14] == [0x88, 0xb5])
            .count()
    };
    assert_eq!(copies(&tap), 1);

    // Both agents start again, with nothing but what is on the node; one of them without its checkpoint.
    std::fs::remove_file(runs[1].directory.path().join("state/attachments.json")).unwrap();
    let pings = Pings::start(web, ip("10.80.0.16"));
    let states = [0, 1].map(|n| runs[n].agent.state().unwrap().clone());
    drop(stream);
    runs[0].restart(&worlds[0], &[]).await;
    runs[1].restart(&worlds[1], &[record]).await;
    runs[0].step(Event::Tick).await;
    runs[1].step(Event::Tick).await;
    for n in [0, 1] {
        assert_eq!(*runs[n].agent.state().unwrap(), states[n], "agent {n}");
    }
    assert_eq!(copies(&tap), 1, "the gateway carries on while its agent is away");
    let stream = UnixStream::connect(runs[1].directory.path().join("gateway/shop/netop.sock"));
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    handover::send(&stream, &hello(true), &[]).unwrap();
    let event = runs[1].gateways.recv().await.unwrap();
    runs[1].step(Event::Gateway(event)).await;
    let (ToGateway::Config(_), _) = handover::receive(&stream).unwrap() else {
        panic!("configuration")
    };
    assert_eq!(*runs[1].agent.state().unwrap(), states[1]);
    let (sent, lost, web) = pings.finish();
    assert!(sent > 50 && lost == 0, "{lost} of {sent} lost");

    // The label goes, and with it the interface; then Weft goes, and with it everything.
    worlds[0].namespaces.insert("cart".into(), Arc::default());
    runs[0].step(Event::World(Arc::new(worlds[0].clone()))).await;
    assert!(!web.ip("-br link").contains("sl-shop"));
    for (run, world) in runs.iter_mut().zip(&mut worlds) {
        world.node = Some(Arc::new(SliceNode::new(
            &run.node,
            SliceNodeSpec {
                teardown: true,
                uplink: None,
                slice_dns: None,
            },
        )));
        run.chain.send_replace(Chain::Removed);
        run.step(Event::World(Arc::new(world.clone()))).await;
        assert!(run.agent.is_removed());
    }
    assert!(!db.ip("-br link").contains("sl-shop"));
    for node in &cluster.nodes {
        let links = node.space.ip("-br link");
        assert!(
            !["wb-", "wx-", "wu-", "wt-", "wp-"]
                .iter()
                .any(|prefix| links.contains(prefix)),
            "{links}"
        );
        assert_eq!(node.space.command("nft", "list ruleset").unwrap(), "");
    }
}

/// The TAP's queues, where they come within half a second.
fn given(stream: &UnixStream) -> Option<Vec<OwnedFd>> {
    stream.set_read_timeout(Some(SECOND / 2)).unwrap();
    loop {
        match handover::receive(stream) {
            Ok((ToGateway::Config(_), _)) => {}
            Ok((ToGateway::Tap(_), queues)) => return Some(queues),
            Err(_) => return None,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_gets_the_queues_that_it_can_use_and_every_flow_keeps_to_one() {
    let cluster = Cluster::new(1);
    let web = Space::new("web");
    let mut world = world();
    add_pod(&mut world, "web");
    here(&mut world, "n1");
    let mut run = Run::new("n1", &cluster.nodes[0].space);
    run.step(Event::World(Arc::new(world.clone()))).await;
    assert!(matches!(run.add("web", &web).await, Reply::Attached(_)));
    let made_for = |run: &Run| {
        let state = run.agent.state().unwrap();
        state.links[&Name::tap("shop", 0)].kind
    };

    let first = run.called(false, 4).await;
    let queues: Vec<Tap> = given(&first).expect("a TAP").into_iter().map(Tap::new).collect();
    assert_eq!(queues.len(), 4);
    run.step(Event::Tick).await;
    assert_eq!(made_for(&run), Kind::Tap(Queues::Several));

    // Flows to another cluster: each keeps to its queue, also after frames of it came back by another.
    let (here, there) = (
        (Mac::of_index(8), ip("10.80.0.8")),
        (Mac::of_index(130), ip("10.80.0.130")),
    );
    let wire = Wire::open(&web, "sl-shop");
    let mut taken: BTreeMap<u16, usize> = BTreeMap::new();
    for round in 0..4 {
        queues
            .iter()
            .for_each(|queue| _ = queue.collect(Duration::from_millis(20)));
        for port in 7000..7064 {
            for _ in 0..2 {
                wire.send(&udp4_between(there.0, here, there.1, (port, 9), b"onwards"));
            }
        }
        let mut seen: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (place, queue) in queues.iter().enumerate() {
            for frame in queue.collect(Duration::from_millis(200)) {
                if frame.ends_with(b"onwards") {
                    let port = u16::from_be_bytes([frame[34], frame[35]]);
                    seen.entry(port).or_default().push(place);
                }
            }
        }
        assert_eq!(seen.len(), 64, "round {round}");
        for (port, places) in &seen {
            let place = *taken.entry(*port).or_insert(places[0]);
            assert_eq!(*places, [place; 2], "round {round}, port {port}");
            let other = (place + 1 + round % 3) % 4;
            queues[other].send(&udp4_between(here.0, there, here.1, (9, *port), b"back"));
        }
    }
    for queue in 0..4 {
        let flows = taken.values().filter(|place| **place == queue).count();
        assert!((6..=28).contains(&flows), "{flows} of 64 flows on queue {queue}");
    }

    // The agent starts again: the gateway, and its device, go on as they were.
    let before = run.agent.state().unwrap().clone();
    run.restart(&world, &[]).await;
    let second = run.called(true, 4).await;
    run.step(Event::Tick).await;
    assert!(given(&second).is_none(), "it has its queues");
    assert_eq!(*run.agent.state().unwrap(), before);

    // Another process of it gets nothing while the first holds the device, not even a part of it.
    for asked in [4, 1] {
        let next = run.called(false, asked).await;
        run.step(Event::Wake).await;
        assert!(given(&next).is_none(), "{asked} queues, while they are held");
        assert_eq!(made_for(&run), Kind::Tap(Queues::Several));
    }
    let third = run.called(false, 4).await;
    drop(queues);
    run.step(Event::Tick).await;
    assert_eq!(given(&third).expect("a TAP").len(), 4);
    let last = run.called(false, 1).await;
    run.step(Event::Wake).await;
    let queues = given(&last).expect("a TAP");
    assert_eq!((queues.len(), made_for(&run)), (1, Kind::Tap(Queues::One)));
    run.step(Event::Tick).await;
    assert_eq!(made_for(&run), Kind::Tap(Queues::One));
}

/// Other nodes' objects make no sense, or were left behind by nodes that are gone.
#[tokio::test(flavor = "multi_thread")]
async fn odd_nodes_harm_nobody_and_a_slice_that_goes_is_confirmed() {
    let cluster = Cluster::new(2);
    let (web, db) = (Space::new("web"), Space::new("db"));
    let mut world = world();
    add_pod(&mut world, "web");
    add_pod(&mut world, "db");
    for (n, address) in (3..).zip(["192.168.7.1", "0.0.0.0", "224.0.0.7", "fd00::5", "fe80::1"]) {
        let (node, start) = (format!("n{n}"), 8 * n);
        let spec = SliceBlockSpec {
            slice: "shop".into(),
            node: node.clone(),
            node_address: ip(address),
            blocks: vec![IndexRange::new(start, 8)],
            releasing: vec![],
            withdrawn: None,
        };
        let block = SliceBlock::new(&names::block("shop", &node), spec);
        world.blocks.insert(Arc::new(block));
    }
    here(&mut world, "n1");
    let mut runs = [1, 2].map(|n| Run::new(&format!("n{n}"), &cluster.nodes[n - 1].space));
    for run in &mut runs {
        run.step(Event::World(Arc::new(world.clone()))).await;
    }
    assert!(matches!(runs[0].add("web", &web).await, Reply::Attached(list) if list.len() == 1));
    assert!(matches!(runs[1].add("db", &db).await, Reply::Attached(list) if list.len() == 1));
    assert!(ping(&web, ip("10.80.0.16"), 1000, SECOND).is_some());
    let [first, second] = [0, 1].map(|n: usize| runs[n].block().ready);
    assert!(
        first
            .message
            .contains("nodes n1 and n3 both have the address 192.168.7.1"),
        "{first:?}"
    );
    assert!(second.message.contains("0.0.0.0"), "{second:?}");

    // A gateway holds its TAP while the slice goes.
    let run = &mut runs[0];
    let near = run.called(false, 1).await;
    let held = given(&near).expect("a TAP");
    world.slices.remove("shop");
    let gone = Arc::new(world);
    run.step(Event::World(Arc::clone(&gone))).await;
    assert!(run.block().present, "nobody has looked yet");
    run.step(Event::Tick).await;
    let seen = run.block();
    assert!(!seen.present && seen.ready.status == Some(true), "{seen:?}");
    assert!(!web.ip("-br link").contains("sl-shop"));
    // Somebody makes what has its name.
    cluster.nodes[0].space.ip("link add wp-anybodys type bridge");
    let before = run.agent.state().unwrap().links.len();
    run.step(Event::Tick).await;
    assert_eq!((before, run.block().present), (0, true));
    run.step(Event::Tick).await;
    assert!(!run.block().present);
    drop(held);
    // An agent that starts now, and never had the slice.
    run.restart(&gone, &[]).await;
    assert!(!run.block().present);
}
