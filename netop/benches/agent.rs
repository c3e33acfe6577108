//! What the agent of a node takes in a large cluster: simulated objects, a real kernel. `make bench-agent`.
//!
//! One hundred slices with a pod each here, two hundred nodes, two gateways of each slice on other nodes. Measured are the
//! memory of the process with all objects in it, what an attachment takes from the plugin's question to its answer, and
//! how long it takes to use other gateways for all slices when a node with gateways falls silent.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark")]

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use prometheus::Registry;
use serde_json::json;
use slice_crds::{
    IndexRange, labels, names,
    v1alpha1::{
        AttachMode, Broadcast, GatewayPlacement, PeerCluster, PeerGateway, Slice, SliceBlock, SliceBlockSpec,
        SliceGateway, SliceGatewaySpec, SliceGatewayStatus, SliceSpec,
    },
};
use slice_netop::{
    agent::{Agent, Chain, Event, Setup},
    cni::{
        server::Call,
        wire::{Command, Reply, Request},
    },
    files::Directories,
    gateways::Server,
    kernel::Linux,
    liveness::{self, Adjacency, Health},
    metrics::Metrics,
    model::{Clusters, Entry, Hop, Key},
    pods::NetnsDirectory,
    status::Reports,
    world::{PodView, SliceFacts, World},
};
use tokio::sync::{mpsc, oneshot, watch};

#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "helpers, not every one of which is used here"
)]
#[path = "../tests/netns/support/mod.rs"]
mod support;

use support::Space;

const SLICES: u32 = 100;
const NODES: u32 = 200;
/// Pods that come one after the other, over all slices.
const ATTACHMENTS: u32 = 200;
const FAILOVERS: usize = 10;

fn slice(n: u32) -> String {
    format!("slice-{n}")
}

fn node(n: u32) -> String {
    format!("node-{n}")
}

fn address(n: u32) -> IpAddr {
    [10, 1, (n >> 8) as u8, n as u8].into()
}

fn world() -> World {
    let mut world = World::default();
    for n in 0..SLICES {
        let name = slice(n);
        let peer = PeerCluster {
            name: "tokyo".into(),
            number: 2,
            ranges: vec![IndexRange::new(0x8000, 0x4000)],
            gateways: (0..2)
                .map(|ordinal| PeerGateway {
                    ordinal,
                    public_key: "key".into(),
                    former_key: None,
                    endpoints: vec![],
                })
                .collect(),
        };
        let spec = SliceSpec {
            vni: 100 + n,
            subnets: ["10.80.0.0/16", "fd42:80::/64"]
                .map(|text| text.parse().unwrap())
                .into(),
            mtu: 1370,
            largest_mtu: None,
            block_size: 64,
            cluster: "paris".into(),
            cluster_number: 1,
            ranges: vec![IndexRange::new(0, 0x4000)],
            releasing: vec![],
            peers: vec![peer],
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
        let facts = SliceFacts::parse(&Slice::new(&name, spec)).unwrap();
        world.slices.insert(name.clone(), Arc::new(facts));
        for of in 0..NODES {
            let spec = SliceBlockSpec {
                slice: name.clone(),
                node: node(of),
                node_address: address(of + 1),
                blocks: vec![IndexRange::new(64 * of, 64)],
                releasing: vec![],
                withdrawn: None,
            };
            let block = SliceBlock::new(&names::block(&name, &node(of)), spec);
            world.blocks.insert(Arc::new(block));
        }
        for ordinal in 0..2 {
            let spec = SliceGatewaySpec {
                slice: name.clone(),
                ordinal,
                endpoints: vec![],
                node: Some(node(ordinal + 1)),
                lost: false,
            };
            let mut gateway = SliceGateway::new(&names::gateway(&name, ordinal), spec);
            gateway.status = Some(SliceGatewayStatus {
                node: Some(node(ordinal + 1)),
                connected: true,
                ..SliceGatewayStatus::default()
            });
            world.gateways.insert((name.clone(), ordinal), Arc::new(gateway));
        }
        let member = [(labels::SLICE.to_owned(), name.clone())];
        world.namespaces.insert(name, Arc::new(member.into()));
    }
    world
}

/// A pod of a slice's namespace.
fn add_pod(world: &mut World, slice: &str, name: &str) {
    let mut view = PodView {
        uid: format!("uid-{name}"),
        name: name.into(),
        ..PodView::default()
    };
    view.sandbox_uid = view.uid.clone();
    view.facts.namespace = slice.into();
    world.pods.insert(view.uid.clone(), Arc::new(view));
}

/// All gateways of two nodes, of which one may have fallen silent.
fn view(silent: Option<u32>) -> liveness::View {
    let mut view = BTreeMap::new();
    for n in 0..SLICES {
        for ordinal in 0..2 {
            let adjacency = match silent == Some(ordinal) {
                true => Adjacency::Silent,
                false => Adjacency::Reports(Health {
                    reached: 1,
                    ..Health::default()
                }),
            };
            view.insert((address(ordinal + 2), (100 + n, ordinal)), adjacency);
        }
    }
    Arc::new(view)
}

struct Node {
    agent: Agent<Linux>,
    world: World,
    _reports: watch::Receiver<Reports>,
    _directory: tempfile::TempDir,
    pods: Vec<Space>,
}

impl Node {
    fn new(space: &Space) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let directories = Directories {
            run: directory.path().join("run"),
            state: directory.path().join("state"),
        };
        let (reports, kept) = watch::channel(Reports::default());
        let setup = Setup {
            node: node(0),
            node_address: None,
            server: Server::new(directories.clone(), 0, mpsc::channel(1).0),
            directories,
            netns: NetnsDirectory(PathBuf::from("/nowhere")),
            features: BTreeMap::new(),
            metrics: Metrics::register(&Registry::new()),
            fetches: mpsc::channel(1).0,
            announcements: mpsc::channel(1).0,
            reports,
            chain: watch::channel(Chain::Installed).1,
            shown: watch::channel(Arc::default()).0,
            liveness: watch::channel(liveness::Local::default()).0,
            mesh: watch::channel(slice_netop::mesh::Local::default()).0,
            names: watch::channel(slice_netop::names::Local::default()).0,
        };
        Self {
            agent: Agent::new(Linux::open(Some(&space.path())).unwrap(), setup),
            world: world(),
            _reports: kept,
            _directory: directory,
            pods: vec![],
        }
    }

    async fn step(&mut self, event: Event) {
        self.agent.handle(event, Timestamp::now());
        self.agent.settle(Timestamp::now()).await;
    }

    /// The plugin asks about a new pod; how long until it may go on.
    async fn attach(&mut self, slice: &str, name: &str) -> Duration {
        let pod = Space::new(name);
        add_pod(&mut self.world, slice, name);
        let world = Arc::new(self.world.clone());
        let (reply, answer) = oneshot::channel();
        let request = Request {
            command: Command::Add,
            container_id: format!("container-{name}"),
            netns: pod.path(),
            pod_namespace: slice.into(),
            pod_name: name.into(),
            pod_uid: format!("uid-{name}"),
            addresses: vec![],
        };
        self.pods.push(pod);
        let begun = Instant::now();
        let answered = tokio::spawn(async move {
            let answer = answer.await;
            (begun.elapsed(), answer)
        });
        self.agent.handle(Event::World(world), Timestamp::now());
        self.step(Event::Call(Call { request, reply })).await;
        let (took, answer) = answered.await.unwrap();
        assert!(matches!(answer, Ok(Reply::Attached(interfaces)) if interfaces.len() == 1));
        took
    }

    /// Slices whose frames for all clusters go to a node.
    fn using(&self, to: u32) -> usize {
        let segments = self.agent.state().unwrap().segments.values();
        let exits = segments.filter_map(|segment| segment.get(&Key::Exit(Clusters::All)));
        exits
            .filter(|exit| matches!(exit, Entry::Exit(_, Hop::Node(node)) if *node == address(to + 2)))
            .count()
    }
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn percentile(times: &mut [Duration], of_hundred: usize) -> f64 {
    times.sort();
    let place = (times.len() * of_hundred).div_ceil(100).max(1) - 1;
    times[place].as_secs_f64() * 1000.0
}

#[tokio::main]
async fn main() {
    let space = Space::new("node");
    let mut node = Node::new(&space);
    let begun = Instant::now();
    node.step(Event::World(Arc::new(node.world.clone()))).await;
    println!("first look: {:?}", begun.elapsed());
    let begun = Instant::now();
    for n in 0..SLICES {
        node.attach(&slice(n), &format!("first-{n}")).await;
    }
    println!("a pod in each of {SLICES} slices: {:?}", begun.elapsed());
    node.step(Event::Liveness(view(None))).await;
    let mut attached = vec![];
    for n in 0..ATTACHMENTS {
        attached.push(node.attach(&slice(n % SLICES), &format!("more-{n}")).await);
    }
    let mut looks = vec![];
    for _ in 0..9 {
        let begun = Instant::now();
        node.step(Event::Tick).await;
        looks.push(begun.elapsed());
    }
    let mut failovers = vec![];
    for round in 0..FAILOVERS {
        let dead = round as u32 % 2;
        let begun = Instant::now();
        node.step(Event::Liveness(view(Some(dead)))).await;
        failovers.push(begun.elapsed());
        assert_eq!(node.using(1 - dead), SLICES as usize);
    }
    let entries: usize = node
        .agent
        .state()
        .unwrap()
        .segments
        .values()
        .map(|segment| segment.entries().count())
        .sum();
    let records = [
        ("resident_mib", resident_mib(), 128.0),
        ("attach_p50_ms", percentile(&mut attached, 50), 20.0),
        ("attach_p99_ms", percentile(&mut attached, 99), 20.0),
        ("look_p50_ms", percentile(&mut looks, 50), 500.0),
        // Silence is noticed after 310 ms.
        ("failover_p99_ms", percentile(&mut failovers, 99), 190.0),
        // Two for each block, some for each slice and pod.
        (
            "entries",
            entries as f64,
            f64::from(2 * SLICES * NODES + 10 * SLICES + 3 * (SLICES + ATTACHMENTS)),
        ),
    ];
    let mut met = true;
    for (metric, value, most) in records {
        met &= value <= most;
        let word = if value <= most { "met" } else { "NOT MET" };
        println!("{word}: {metric} {value:.1} (at most {most})");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/agent.json");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let json: Vec<_> = records
        .iter()
        .map(|(metric, value, most)| json!({"metric": metric, "value": value, "most": most}))
        .collect();
    std::fs::write(&path, serde_json::to_vec_pretty(&json).unwrap()).unwrap();
    assert!(met, "not every requirement is met");
}
