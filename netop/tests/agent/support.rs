//! One node: an agent, its kernel in memory, and everything that talks to it.

use std::{net::IpAddr, os::unix::net::UnixStream, sync::Arc, time::Duration};

use jiff::Timestamp;
use prometheus::Registry;
use slice_crds::{
    IndexRange, labels, names,
    v1alpha1::{
        AttachMode, Broadcast, GatewayPlacement, PeerCluster, PeerGateway, Slice, SliceBlock, SliceBlockSpec,
        SliceGateway, SliceGatewaySpec, SliceGatewayStatus, SliceNode, SliceNodeSpec, SliceSpec,
    },
};
use slice_netop::{
    agent::{Agent, Announcement, Chain, Event, Fetch, Setup},
    cni::{
        server::Call,
        wire::{Command, Reply, Request},
    },
    files::Directories,
    gateways::{GatewayEvent, Server},
    kernel::{EBPF, fake::Fake},
    liveness, mesh,
    metrics::Metrics,
    model::{Name, Netns},
    pods::{NetnsDirectory, Sandbox},
    status::Reports,
    world::{PodView, SliceFacts, World},
};
use slice_runtime::handover::{self, FromGateway, Hello, ToGateway};
use tokio::sync::{mpsc, oneshot, watch};

pub struct Node {
    pub agent: Agent<Fake>,
    pub kernel: Fake,
    pub run: Directories,
    pub fetches: mpsc::Receiver<Fetch>,
    pub chain: watch::Sender<Chain>,
    pub liveness: watch::Receiver<liveness::Local>,
    pub mesh: watch::Receiver<mesh::Local>,
    pub names: watch::Receiver<slice_netop::names::Local>,
    world: World,
    sandboxes: Vec<Sandbox>,
    now: Timestamp,
    registry: Registry,
    reports: watch::Receiver<Reports>,
    announcements: mpsc::Receiver<Announcement>,
    gateway_events: mpsc::Receiver<GatewayEvent>,
    _directory: tempfile::TempDir,
}

struct Ends {
    registry: Registry,
    fetches: mpsc::Receiver<Fetch>,
    chain: watch::Sender<Chain>,
    liveness: watch::Receiver<liveness::Local>,
    mesh: watch::Receiver<mesh::Local>,
    names: watch::Receiver<slice_netop::names::Local>,
    reports: watch::Receiver<Reports>,
    announcements: mpsc::Receiver<Announcement>,
    gateway_events: mpsc::Receiver<GatewayEvent>,
}

fn start(kernel: &Fake, run: &Directories, uid: u32) -> (Agent<Fake>, Ends) {
    let registry = Registry::new();
    let (fetch, fetches) = mpsc::channel(16);
    let (announcement, announcements) = mpsc::channel(64);
    let (report, reports) = watch::channel(Reports::default());
    let (chain, chain_seen) = watch::channel(Chain::Installed);
    let (gateway_event, gateway_events) = mpsc::channel(16);
    let (local, liveness) = watch::channel(liveness::Local::default());
    let (mesh_local, mesh) = watch::channel(mesh::Local::default());
    let (names_local, names) = watch::channel(slice_netop::names::Local::default());
    let setup = Setup {
        node: "n1".into(),
        // As the node was called when the agent was started; its blocks know better.
        node_address: Some([192, 0, 2, 1].into()),
        directories: run.clone(),
        netns: NetnsDirectory("/run/netns".into()),
        features: ["nftables", "tap", EBPF]
            .map(|feature| (feature.to_owned(), true))
            .into(),
        metrics: Metrics::register(&registry),
        server: Server::new(run.clone(), uid, gateway_event),
        fetches: fetch,
        announcements: announcement,
        reports: report,
        chain: chain_seen,
        shown: watch::channel(Arc::default()).0,
        liveness: local,
        mesh: mesh_local,
        names: names_local,
    };
    let ends = Ends {
        registry,
        fetches,
        chain,
        liveness,
        mesh,
        names,
        reports,
        announcements,
        gateway_events,
    };
    (Agent::new(kernel.clone(), setup), ends)
}

impl Node {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let run = Directories {
            run: directory.path().join("run"),
            state: directory.path().join("state"),
        };
        let kernel = Fake::default();
        let (agent, ends) = start(&kernel, &run, nix::unistd::getuid().as_raw());
        let mut node = Self {
            agent,
            kernel,
            run,
            fetches: ends.fetches,
            chain: ends.chain,
            liveness: ends.liveness,
            mesh: ends.mesh,
            names: ends.names,
            world: World {
                node: Some(Arc::new(SliceNode::new("n1", SliceNodeSpec::default()))),
                ..World::default()
            },
            sandboxes: vec![],
            now: Timestamp::from_second(1_000_000).unwrap(),
            registry: ends.registry,
            reports: ends.reports,
            announcements: ends.announcements,
            gateway_events: ends.gateway_events,
            _directory: directory,
        };
        for namespace in ["cart", "plain"] {
            labelled(&mut node.world, namespace, "");
        }
        node
    }

    /// A node whose one pod, `web`, runs in the slice `shop`.
    pub async fn with_web() -> Self {
        let mut node = Self::new();
        node.objects(|world| {
            shop(world);
            labelled(world, "cart", "shop");
            pod(world, "cart", "web", &[]);
        });
        node.sandbox("web");
        node.settle().await;
        node
    }

    /// Starts another agent in place of this one, which knows nothing but what is on the node.
    pub async fn restart_without_objects(&mut self) {
        self.serve_as(nix::unistd::getuid().as_raw()).await;
    }

    pub async fn restart(&mut self) {
        self.restart_without_objects().await;
        self.agent
            .handle(Event::Sandboxes(self.sandboxes.clone()), self.now);
        self.agent
            .handle(Event::World(Arc::new(self.world.clone())), self.now);
    }

    /// A new agent that listens to gateways of this user only.
    pub async fn serve_as(&mut self, uid: u32) {
        // The old one's sockets end with it.
        let (agent, ends) = start(&self.kernel, &self.run, uid);
        drop(std::mem::replace(&mut self.agent, agent));
        (self.registry, self.fetches, self.chain) = (ends.registry, ends.fetches, ends.chain);
        self.liveness = ends.liveness;
        self.mesh = ends.mesh;
        self.names = ends.names;
        (self.reports, self.announcements, self.gateway_events) =
            (ends.reports, ends.announcements, ends.gateway_events);
        if uid != nix::unistd::getuid().as_raw() {
            self.agent
                .handle(Event::World(Arc::new(self.world.clone())), self.now);
            self.settle().await;
        }
    }

    pub fn objects(&mut self, change: impl FnOnce(&mut World)) {
        change(&mut self.world);
        self.event(Event::World(Arc::new(self.world.clone())));
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    pub fn event(&mut self, event: Event) {
        self.agent.handle(event, self.now);
    }

    pub async fn settle(&mut self) {
        self.agent.settle(self.now).await;
    }

    pub fn advance(&mut self, time: Duration) {
        self.now += time;
        self.event(Event::Wake);
    }

    /// libcni knows where a pod is.
    pub fn sandbox(&mut self, pod: &str) {
        let sandbox = Sandbox {
            uid: format!("uid-{pod}"),
            namespace: "cart".into(),
            name: pod.into(),
            container: format!("container-{pod}"),
            netns: format!("/run/netns/cni-{pod}").into(),
            addresses: vec![],
            since: self.now.as_second(),
        };
        self.sandboxes.push(sandbox);
        self.event(Event::Sandboxes(self.sandboxes.clone()));
    }

    pub fn forget_sandboxes(&mut self) {
        self.sandboxes.clear();
    }

    /// A pod's namespace ends, and its interface with it.
    pub fn end_sandbox(&mut self, pod: &str) {
        let netns = Netns::new(format!("/run/netns/cni-{pod}"));
        self.sandboxes.retain(|sandbox| sandbox.name != pod);
        let mut inner = self.kernel.inner();
        let ports: Vec<Name> = inner
            .state
            .pods
            .iter()
            .filter(|(_, pod)| pod.netns == netns)
            .map(|(port, _)| port.clone())
            .collect();
        for port in ports {
            inner.state.take(&slice_netop::plan::Action::DelLink(port));
        }
        inner.gone.insert(netns);
    }

    pub fn call(&mut self, command: Command, pod: &str) -> oneshot::Receiver<Reply> {
        self.call_in("cart", command, pod)
    }

    pub fn call_in(&mut self, namespace: &str, command: Command, pod: &str) -> oneshot::Receiver<Reply> {
        self.call_with(namespace, command, pod, &[])
    }

    /// The same, of a pod that has these addresses from the plugins before.
    pub fn call_with(
        &mut self,
        namespace: &str,
        command: Command,
        pod: &str,
        addresses: &[&str],
    ) -> oneshot::Receiver<Reply> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            command,
            container_id: format!("container-new-{pod}"),
            netns: format!("/var/run/netns/cni-new-{pod}").into(),
            pod_namespace: namespace.into(),
            pod_name: pod.into(),
            pod_uid: format!("uid-{pod}"),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        };
        self.event(Event::Call(Call { request, reply }));
        answer
    }

    /// Ports with a pod's end behind them that are up, in order.
    pub fn attached(&self) -> Vec<Name> {
        let inner = self.kernel.inner();
        let up = inner
            .state
            .pods
            .iter()
            .filter(|(port, pod)| pod.up && inner.state.links[*port].up);
        up.map(|(port, _)| port.clone()).collect()
    }

    pub fn reports(&self) -> Reports {
        self.reports.borrow().clone()
    }

    /// `Reason pod: message` of every event since the last call.
    pub fn announced(&mut self) -> Vec<String> {
        let mut all = vec![];
        while let Ok(announcement) = self.announcements.try_recv() {
            all.push(format!(
                "{} {}: {}",
                announcement.reason, announcement.name, announcement.message
            ));
        }
        all
    }

    pub fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric()[0].get_counter().get_value()
    }

    /// The values of a gauge, by its labels' order.
    pub fn gauges(&self, name: &str) -> Vec<f64> {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let metrics = family.get_metric().iter();
        metrics.map(|metric| metric.get_gauge().get_value()).collect()
    }

    pub fn dial(&self, slice: &str) -> Near {
        let path = self.run.gateway(slice).join("netop.sock");
        Near(Some(
            UnixStream::connect(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        ))
    }

    /// A gateway connects and says who it is; the agent takes it and settles.
    pub async fn connect(&mut self, slice: &str, ordinal: u32, has_tap: bool) -> Near {
        self.connect_with(slice, ordinal, has_tap, 1).await
    }

    /// The same of one that can use so many queues.
    pub async fn connect_with(&mut self, slice: &str, ordinal: u32, has_tap: bool, queues: u8) -> Near {
        self.settle().await;
        let near = self.dial(slice);
        near.send(FromGateway::Hello(Hello {
            ordinal,
            public_key: format!("key-{ordinal}"),
            udp_port: 51820,
            version: "test".into(),
            has_tap,
            queues,
        }));
        self.gateway_event().await;
        self.settle().await;
        near
    }

    /// A gateway's process ends, and its hold on its TAP with it.
    pub async fn lose(&mut self, near: Near) {
        drop(near);
        self.gateway_event().await;
        self.kernel.inner().held.clear();
        self.settle().await;
    }

    pub async fn gateway_event(&mut self) {
        let event = tokio::time::timeout(Duration::from_secs(5), self.gateway_events.recv())
            .await
            .unwrap();
        self.event(Event::Gateway(event.unwrap()));
    }
}

/// A gateway's side of its connection.
pub struct Near(Option<UnixStream>);

impl Near {
    pub fn send(&self, message: FromGateway) {
        handover::send(self.0.as_ref().unwrap(), &message, &[]).unwrap();
    }

    pub async fn receive(&mut self) -> (ToGateway, Vec<std::os::fd::OwnedFd>) {
        self.try_receive().await.unwrap()
    }

    /// Whether the agent ends the conversation, without another word.
    pub async fn is_closed(&mut self) -> bool {
        self.try_receive().await.is_err()
    }

    async fn try_receive(&mut self) -> Result<(ToGateway, Vec<std::os::fd::OwnedFd>), handover::Error> {
        let stream = self.0.take().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (stream, result) = tokio::task::spawn_blocking(move || {
            let result = handover::receive(&stream);
            (stream, result)
        })
        .await
        .unwrap();
        self.0 = Some(stream);
        result
    }
}

fn address(node: &str) -> IpAddr {
    format!("192.168.7.{}", node.trim_start_matches('n'))
        .parse()
        .unwrap()
}

/// The slice `shop`, and this node's block of it with eight indices.
pub fn shop(world: &mut World) {
    slice(world, "shop", 77, "10.80.0.0/24");
    block(world, "shop", "n1", 8, 8);
}

pub fn slice(world: &mut World, name: &str, vni: u32, subnet: &str) {
    let spec = SliceSpec {
        vni,
        subnets: vec![subnet.parse().unwrap()],
        mtu: 1370,
        largest_mtu: None,
        block_size: 8,
        cluster: "paris".into(),
        cluster_number: 1,
        ranges: vec![IndexRange::new(0, 64)],
        releasing: vec![],
        peers: vec![],
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
    put_slice(world, name, spec);
}

fn put_slice(world: &mut World, name: &str, spec: SliceSpec) {
    world.slices.insert(
        name.into(),
        Arc::new(SliceFacts::parse(&Slice::new(name, spec)).unwrap()),
    );
}

pub fn best_effort(world: &mut World, name: &str) {
    let spec = SliceSpec {
        attach: AttachMode::BestEffort,
        ..world.slices[name].spec.clone()
    };
    put_slice(world, name, spec);
}

pub fn peer(world: &mut World, name: &str, cluster: &str, number: u32) {
    let gateway = PeerGateway {
        ordinal: 0,
        public_key: "far".into(),
        former_key: None,
        endpoints: vec![],
    };
    let peer = PeerCluster {
        name: cluster.into(),
        number,
        ranges: vec![IndexRange::new(64, 64)],
        gateways: vec![gateway],
    };
    let spec = SliceSpec {
        peers: vec![peer],
        ..world.slices[name].spec.clone()
    };
    put_slice(world, name, spec);
}

pub fn block(world: &mut World, slice: &str, node: &str, start: u32, size: u32) {
    let spec = SliceBlockSpec {
        slice: slice.into(),
        node: node.into(),
        node_address: address(node),
        blocks: vec![IndexRange::new(start, size)],
        releasing: vec![],
        withdrawn: None,
    };
    let block = SliceBlock::new(&names::block(slice, node), spec);
    world.blocks.insert(Arc::new(block));
}

/// A gateway, connected to the agent of `node` where there is one.
pub fn gateway(world: &mut World, slice: &str, ordinal: u32, node: Option<&str>) {
    let spec = SliceGatewaySpec {
        slice: slice.into(),
        ordinal,
        endpoints: vec![],
        node: None,
        lost: false,
    };
    let mut gateway = SliceGateway::new(&names::gateway(slice, ordinal), spec);
    gateway.status = node.map(|node| SliceGatewayStatus {
        node: Some(node.into()),
        connected: true,
        ..SliceGatewayStatus::default()
    });
    world.gateways.insert((slice.into(), ordinal), Arc::new(gateway));
}

/// Changes the spec of a block, which is its next generation.
pub fn edit_block(world: &mut World, slice: &str, node: &str, change: impl FnOnce(&mut SliceBlockSpec)) {
    let block = world.blocks.get_mut(slice, node).unwrap();
    change(&mut block.spec);
    *block.metadata.generation.get_or_insert(1) += 1;
}

pub fn edit_gateway(
    world: &mut World,
    slice: &str,
    ordinal: u32,
    change: impl FnOnce(&mut SliceGatewaySpec),
) {
    let gateway = world.gateways.get_mut(&(slice.into(), ordinal)).unwrap();
    change(&mut Arc::make_mut(gateway).spec);
}

pub fn edit_pod(world: &mut World, name: &str, change: impl FnOnce(&mut PodView)) {
    let pod = world.pods.get_mut(&format!("uid-{name}")).unwrap();
    change(Arc::make_mut(pod));
}

/// Sets the slice label of a namespace.
pub fn labelled(world: &mut World, namespace: &str, value: &str) {
    let labels = if value.is_empty() {
        vec![]
    } else {
        vec![(labels::SLICE.to_owned(), value.to_owned())]
    };
    world
        .namespaces
        .insert(namespace.into(), Arc::new(labels.into_iter().collect()));
}

pub fn pod(world: &mut World, namespace: &str, name: &str, labels: &[(&str, &str)]) {
    let mut view = PodView {
        uid: format!("uid-{name}"),
        name: name.into(),
        running: true,
        ..PodView::default()
    };
    view.sandbox_uid = view.uid.clone();
    view.facts.namespace = namespace.into();
    view.facts.labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    world.pods.insert(view.uid.clone(), Arc::new(view));
}

fn annotate(world: &mut World, attachments: Option<&str>) {
    for pod in world.pods.values_mut() {
        let pod = Arc::make_mut(pod);
        pod.attachments = attachments.map(str::to_owned);
        pod.network_status = None;
    }
}

pub fn attached_annotation(world: &mut World) {
    annotate(
        world,
        Some(r#"[{"slice":"shop","interface":"sl-shop","ips":[],"mac":""}]"#),
    );
}

pub fn bare_annotations(world: &mut World) {
    annotate(world, None);
}

pub fn teardown(world: &mut World) {
    set_teardown(world, true);
}

/// Weft stays, after all.
pub fn undone(world: &mut World) {
    set_teardown(world, false);
}

fn set_teardown(world: &mut World, teardown: bool) {
    world.node = Some(Arc::new(SliceNode::new(
        "n1",
        SliceNodeSpec {
            teardown,
            uplink: None,
            slice_dns: None,
        },
    )));
}
