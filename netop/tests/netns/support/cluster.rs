use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use slice_crds::{IndexRange, Mac, Subnets, names, v1alpha1::Frames};
use slice_datapath::{Direction, Reason};
use slice_netop::{
    desired::{AttachmentIntent, Carried, Exit, Made, NodeIntent, Remote, SegmentIntent, desired},
    kernel::{Kernel, Linux, Observation, Query},
    model::{Clusters, Name, Netns, PodLink, Queues, State},
    plan::{Plan, diff},
    programs::Counter,
};

use super::{Space, Tap};

/// Nodes on one underlay network.
pub struct Cluster {
    pub underlay: Space,
    pub nodes: Vec<Node>,
    v6: bool,
}

pub struct Node {
    pub space: Space,
    pub kernel: Linux,
    pub address: IpAddr,
    pub intent: NodeIntent,
}

pub struct Pod {
    pub space: Space,
    pub slice: String,
    pub node: usize,
    pub index: u32,
    pub port: Name,
}

/// VNI and subnets of a slice.
pub fn slice(vni: u32) -> (u32, Subnets) {
    let cidrs = ["10.80.0.0/16", "fd42:80::/64"].map(|text| text.parse().unwrap());
    (vni, Subnets::new(&cidrs).unwrap())
}

/// Indices of node `n`.
fn block(n: usize) -> IndexRange {
    IndexRange::new(8 * (u32::try_from(n).unwrap() + 1), 8)
}

/// The number of the other cluster, which has the indices from 0x4000 to 0x4fff.
pub const FAR: u32 = 9;

/// The same for every cluster there is.
pub fn everywhere<T: Copy>(what: T) -> BTreeMap<Clusters, T> {
    BTreeMap::from([(Clusters::One(FAR), what), (Clusters::All, what)])
}

fn remote(n: usize) -> Remote {
    Remote {
        blocks: BTreeSet::from([block(n)]),
        has_gateway: false,
        is_member: true,
    }
}

impl Cluster {
    pub fn new(nodes: usize) -> Self {
        Self::with_underlay(nodes, false)
    }

    pub fn with_underlay(nodes: usize, v6: bool) -> Self {
        let underlay = Space::new("underlay");
        underlay.ip("link add br0 type bridge mcast_snooping 0");
        underlay.ip("link set br0 up");
        let nodes = (0..nodes).map(|n| Node::new(&underlay, n, v6)).collect();
        Self { underlay, nodes, v6 }
    }

    /// Puts a slice on every node.
    pub fn add_slice(&mut self, name: &str, (vni, subnets): (u32, Subnets)) {
        let addresses: Vec<IpAddr> = self.nodes.iter().map(|node| node.address).collect();
        for (n, node) in self.nodes.iter_mut().enumerate() {
            let others = addresses.iter().enumerate().filter(|(other, _)| *other != n);
            let segment = SegmentIntent {
                vni,
                mtu: 1370,
                subnets,
                carried: Carried::from(&Frames::default()),
                shaping: None,
                remotes: others.map(|(other, address)| (*address, remote(other))).collect(),
                clusters: BTreeMap::from([(FAR, BTreeSet::from([IndexRange::new(0x4000, 0x1000)]))]),
                taps: BTreeMap::new(),
                exits: BTreeMap::new(),
                relays: BTreeMap::new(),
                attachments: BTreeMap::new(),
            };
            node.intent.segments.insert(name.to_owned(), segment.into());
            node.intent.nodes = addresses.iter().copied().collect();
        }
    }

    /// Wants a new pod, the `nth` of its node.
    pub fn add_pod(&mut self, slice: &str, node: usize, nth: u32) -> Pod {
        let space = Space::new(&format!("pod {slice}/{node}/{nth}"));
        self.join(slice, node, nth, space)
    }

    /// Wants a pod of another slice in this one too.
    pub fn join(&mut self, slice: &str, node: usize, nth: u32, space: Space) -> Pod {
        let index = block(node).start + nth;
        let port = Name::new(names::pod_port(slice, &format!("uid-{node}-{nth}")));
        let attachment = AttachmentIntent {
            index,
            router: false,
            limit: None,
            netns: Netns::new(space.path()),
        };
        self.nodes[node]
            .segment(slice)
            .attachments
            .insert(port.clone(), attachment);
        Pod {
            space,
            slice: slice.to_owned(),
            node,
            index,
            port,
        }
    }

    /// Brings every node to its intent, and makes sure that nothing is left to do then.
    pub async fn sync(&mut self) {
        for node in &mut self.nodes {
            node.sync().await;
            let again = node.plan().await;
            assert_eq!(again.to_string(), "", "a second plan is empty");
        }
    }

    /// Puts a gateway on a node, makes that node use it, and the others by way of it; returns the gateway's end.
    pub async fn add_gateway(&mut self, slice: &str, node: usize) -> Tap {
        let address = self.nodes[node].address;
        for (n, other) in self.nodes.iter_mut().enumerate() {
            let segment = other.segment(slice);
            if n == node {
                segment.taps.insert(0, Queues::One);
                segment.exits = everywhere(Exit::Local(0));
                segment.relays = everywhere(0);
            } else {
                segment.exits = everywhere(Exit::Remote(address));
                segment.remotes.get_mut(&address).unwrap().has_gateway = true;
            }
        }
        self.sync().await;
        let name = Name::tap(slice, 0);
        let opened = self.nodes[node].kernel.open_tap(&name, 1).unwrap();
        Tap::new(opened.expect("nobody holds it").remove(0))
    }

    pub fn underlay_overhead(&self) -> usize {
        if self.v6 { 40 + 8 + 8 + 14 } else { 20 + 8 + 8 + 14 }
    }
}

impl Node {
    fn new(underlay: &Space, n: usize, v6: bool) -> Self {
        let space = Space::new(&format!("node {n}"));
        space.ip("link add eth0 type veth peer name up0");
        move_link(&space, "up0", underlay, &format!("n{n}"));
        underlay.ip(&format!("link set n{n} master br0"));
        underlay.ip(&format!("link set n{n} up"));
        let (v4, v6_address) = (format!("192.168.7.{}", n + 1), format!("fd99::{}", n + 1));
        space.ip(&format!("addr add {v4}/24 dev eth0"));
        space.ip(&format!("addr add {v6_address}/64 dev eth0 nodad"));
        space.ip("link set eth0 up");
        let kernel = Linux::open(Some(&space.path())).unwrap();
        let address = if v6 { v6_address.parse() } else { v4.parse() }.unwrap();
        Self {
            space,
            kernel,
            address,
            intent: NodeIntent {
                local: Some(address),
                ..NodeIntent::default()
            },
        }
    }

    pub fn segment(&mut self, slice: &str) -> &mut SegmentIntent {
        Arc::make_mut(self.intent.segments.get_mut(slice).unwrap())
    }

    pub fn desired(&self) -> State {
        desired(&self.intent, &mut Made::default())
    }

    pub async fn observe(&mut self) -> Observation {
        let desired = self.desired();
        let pods = desired
            .pods
            .iter()
            .map(|(port, pod)| (port.clone(), PodLink::end(pod)))
            .collect();
        self.kernel
            .observe(&Query {
                pods,
                node_address: Some(self.address),
            })
            .await
            .unwrap()
    }

    /// Frames of a slice that were dropped for a reason.
    pub async fn dropped(&mut self, slice: u32, direction: Direction, reason: Reason) -> u64 {
        let counter = Counter {
            slice,
            direction,
            reason: Some(reason),
        };
        self.observe().await.counters.get(&counter).copied().unwrap_or(0)
    }

    pub async fn plan(&mut self) -> Plan {
        let observed = self.observe().await;
        diff(&self.desired(), &observed.state)
    }

    pub async fn sync(&mut self) -> Plan {
        let plan = self.plan().await;
        let outcome = self.kernel.apply(&plan).await;
        let failed: Vec<String> = outcome
            .failed
            .iter()
            .map(|failure| format!("{:#}", failure.error))
            .collect();
        assert!(failed.is_empty(), "{failed:#?}");
        assert!(outcome.skipped.is_empty());
        plan
    }
}

impl Pod {
    pub fn interface(&self) -> String {
        names::pod_interface(&self.slice)
    }

    pub fn mac(&self) -> Mac {
        Mac::of_index(self.index)
    }

    pub fn v4(&self) -> IpAddr {
        slice(1).1.ipv4(self.index).unwrap().into()
    }

    pub fn v6(&self) -> IpAddr {
        slice(1).1.ipv6(self.index).unwrap().into()
    }
}

/// Moves an interface to another namespace under another name.
pub fn move_link(from: &Space, name: &str, to: &Space, new: &str) {
    // `ip link set netns` takes a process: one that waits inside.
    let mut sleeper = to.run(|| std::process::Command::new("sleep").arg("60").spawn());
    from.ip(&format!("link set {name} netns {}", sleeper.id()));
    let _ = sleeper.kill();
    let _ = sleeper.wait();
    to.ip(&format!("link set {name} name {new}"));
}
