//! A network of gateways in one thread, with a virtual clock: datagrams take time, get lost, doubled and reordered,
//! all from one seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use slice_frame::{
    Mac,
    ethernet::{self, Header},
};
use slice_gateway::proto::{Config, Event, Key, Random, Stats, config::encode_key};
use slice_runtime::handover;

use crate::machine::{Machine, Yield};

pub(crate) const MTU: u16 = 1370;
/// An EtherType for experiments (IEEE 802 §9.2.4).
pub(crate) const ODD: u16 = 0x88b5;
pub(crate) const MS: Duration = Duration::from_millis(1);

/// What the network does to datagrams.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    /// In 1000.
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) delay: Duration,
    /// Up to this much is added at random, which reorders.
    pub(crate) jitter: Duration,
}

pub(crate) const CALM: Weather = Weather {
    loss: 0,
    duplication: 0,
    delay: MS,
    jitter: Duration::ZERO,
};
pub(crate) const STORM: Weather = Weather {
    loss: 100,
    duplication: 50,
    delay: MS,
    jitter: Duration::from_millis(20),
};

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) weather: Weather,
    pub(crate) random: Random,
    pub(crate) nodes: BTreeMap<String, Node>,
    /// When the gateways make themselves new keys.
    pub(crate) policy: Policy,
    /// Clusters that are hosts outside of all.
    pub(crate) outside: BTreeSet<String>,
    /// Arrival, a number that keeps the order of equals, from, to, datagram.
    in_flight: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    count: u64,
    /// Directed pairs of addresses that nothing passes between.
    pub(crate) cuts: BTreeSet<(IpAddr, IpAddr)>,
    /// Every datagram that was sent.
    pub(crate) wire: Vec<Vec<u8>>,
    /// The ECN code point that all datagrams arrive with.
    pub(crate) marks: Option<u8>,
    /// That of the datagram that was sent last.
    pub(crate) last_ecn: u8,
}

/// See [`handover::Config`].
#[derive(Clone, Default)]
pub(crate) struct Policy {
    pub(crate) rotation_secs: Option<u64>,
    pub(crate) renewal: Option<String>,
    pub(crate) revocation: Option<String>,
}

/// A gateway and its surroundings.
pub(crate) struct Node {
    pub(crate) gateway: Machine,
    pub(crate) cluster: String,
    /// Frames that it delivered to its slice.
    pub(crate) delivered: Vec<Vec<u8>>,
    pub(crate) events: Vec<Event>,
    pub(crate) alive: bool,
    /// The process stands still, and this is what waits at its sockets: from, to, datagram.
    stalled: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
}

/// Datagrams that wait at a socket which nobody reads: what 208 KiB hold of short ones.
const WAITING: usize = 256;

impl World {
    /// Clusters of so many gateways each, named a, b, …; cluster n owns indices 64·n to 64·n + 63.
    pub(crate) fn new(seed: u64, gateways: &[u32]) -> Self {
        Self::with_threads(
            seed,
            &gateways.iter().map(|count| (*count, 1)).collect::<Vec<_>>(),
        )
    }

    /// Clusters of so many gateways each, of so many threads.
    pub(crate) fn with_threads(seed: u64, gateways: &[(u32, u8)]) -> Self {
        let mut this = Self {
            now: Instant::now(),
            weather: CALM,
            random: Random::new(seed),
            nodes: BTreeMap::new(),
            policy: Policy::default(),
            outside: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            count: 0,
            cuts: BTreeSet::new(),
            wire: Vec::new(),
            marks: None,
            last_ecn: 0,
        };
        for (cluster, (gateways, threads)) in ('a'..).zip(gateways) {
            for ordinal in 0..*gateways {
                let address = IpAddr::from([192, 0, 2, (cluster as u8 - b'a') * 16 + ordinal as u8 + 1]);
                let name = format!("{cluster}/{ordinal}");
                this.add(&name, SocketAddr::new(address, 51820), *threads);
            }
        }
        this.configure();
        this
    }

    fn add(&mut self, name: &str, address: SocketAddr, threads: u8) {
        let gateway = Machine::new(threads, &self.key(), address, &mut self.random, self.now);
        let cluster = name.split('/').next().unwrap().to_owned();
        let node = Node {
            gateway,
            cluster,
            delivered: Vec::new(),
            events: Vec::new(),
            alive: true,
            stalled: None,
        };
        self.nodes.insert(name.to_owned(), node);
    }

    fn key(&mut self) -> Key {
        key(&mut self.random)
    }

    /// The process of this gateway starts again, and so has a new key.
    pub(crate) fn restart(&mut self, name: &str) {
        let threads = self.nodes[name].gateway.lanes.len() as u8;
        self.restart_with(name, threads);
    }

    /// With so many threads.
    pub(crate) fn restart_with(&mut self, name: &str, threads: u8) {
        let address = self.nodes[name].gateway.address;
        self.add(name, address, threads);
    }

    /// Tells every gateway about the others, as the node agents do.
    pub(crate) fn configure(&mut self) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            let config = self.config_of(&name);
            let (config, problems) = Config::new(&config).unwrap();
            assert_eq!(problems, []);
            let now = self.now;
            self.node(&name).gateway.reconfigure(now, &config);
        }
    }

    pub(crate) fn config_of(&self, name: &str) -> handover::Config {
        let own = &self.nodes[name].cluster;
        let clusters: BTreeSet<&String> = self.nodes.values().map(|node| &node.cluster).collect();
        let peer = |cluster: &&String| handover::Peer {
            cluster: cluster.to_string(),
            outside: self.outside.contains(*cluster),
            ranges: vec![range(cluster)],
            gateways: self
                .nodes
                .iter()
                .filter(|(_, node)| node.cluster == **cluster)
                .map(peer_gateway)
                .collect(),
        };
        handover::Config {
            slice: "shop".into(),
            cluster: own.clone(),
            vni: 7,
            mtu: MTU,
            largest_mtu: None,
            subnets: vec!["10.80.0.0/16".parse().unwrap(), "fd42:80::/64".parse().unwrap()],
            vtep: vtep(name),
            ranges: vec![range(own)],
            frames: handover::Frames::default(),
            dscp: 0,
            rotation_secs: self.policy.rotation_secs,
            renewal: self.policy.renewal.clone(),
            revocation: self.policy.revocation.clone(),
            peers: clusters
                .iter()
                .filter(|cluster| **cluster != own)
                .map(peer)
                .collect(),
        }
    }

    pub(crate) fn node(&mut self, name: &str) -> &mut Node {
        self.nodes
            .get_mut(name)
            .unwrap_or_else(|| panic!("no gateway {name}"))
    }

    pub(crate) fn stats(&self, name: &str) -> Stats {
        self.nodes[name].gateway.stats(self.now)
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let timeouts = self
                .nodes
                .values()
                .filter(|node| node.alive && node.stalled.is_none())
                .map(|node| node.gateway.poll_timeout());
            let arrival = self.in_flight.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = timeouts.chain(arrival).min().filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.step();
        }
        self.now = end;
    }

    /// Lets time pass in which the process of this gateway stands still.
    pub(crate) fn stall(&mut self, name: &str, duration: Duration) {
        self.node(name).stalled = Some(Vec::new());
        self.run(duration);
        let waiting = self.node(name).stalled.take().expect("nobody else ends it");
        let now = self.now;
        for (from, to, datagram) in waiting {
            self.turn_of(name, |gateway| {
                gateway.handle_datagram(now, (from, to), 0, &datagram)
            });
        }
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= now) {
            let (from, to, datagram) = entry.remove();
            let ecn = self.marks.unwrap_or(0);
            self.with_nodes(|this, nodes| {
                if let Some(node) = nodes
                    .values_mut()
                    .find(|node| node.gateway.address.ip() == to.ip())
                {
                    if let Some(waiting) = &mut node.stalled {
                        if waiting.len() < WAITING {
                            waiting.push((from, to, datagram));
                        }
                        return;
                    }
                    this.turn(node, |gateway| {
                        gateway.handle_datagram(now, (from, to), ecn, &datagram)
                    });
                }
            });
        }
        self.with_nodes(|this, nodes| {
            for node in nodes.values_mut() {
                if node.stalled.is_some() {
                    continue;
                }
                if node.gateway.poll_timeout() <= now {
                    this.turn(node, |gateway| Some(gateway.handle_timeout(now)));
                }
                if node.alive {
                    node.gateway.renew(now, || key(&mut this.random));
                }
            }
        });
    }

    /// Lets a node act, and the network with it, without a look-up by name: the fuzz target spends its time here.
    fn with_nodes(&mut self, act: impl FnOnce(&mut Self, &mut BTreeMap<String, Node>)) {
        let mut nodes = std::mem::take(&mut self.nodes);
        act(self, &mut nodes);
        self.nodes = nodes;
    }

    fn turn(&mut self, node: &mut Node, act: impl FnOnce(&mut Machine) -> Option<Yield>) {
        if !node.alive {
            return;
        }
        let Some(mut out) = act(&mut node.gateway) else {
            return;
        };
        node.delivered.append(&mut out.frames);
        node.events.append(&mut out.events);
        self.last_ecn = out.ecn;
        for (from, to, datagram) in out.datagrams {
            self.transmit(from, to, datagram);
        }
    }

    fn turn_of(&mut self, name: &str, act: impl FnOnce(&mut Machine) -> Option<Yield>) {
        self.with_nodes(|this, nodes| {
            let node = nodes.get_mut(name).unwrap_or_else(|| panic!("no gateway {name}"));
            this.turn(node, act);
        });
    }

    /// Puts a datagram onto the wire.
    pub(crate) fn transmit(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        if !self.cuts.contains(&(from.ip(), to.ip())) {
            let copies = 1 + u64::from(self.random.number() % 1000 < self.weather.duplication);
            for _ in 0..copies {
                if self.random.number() % 1000 < self.weather.loss {
                    continue;
                }
                let arrival = self.now + self.weather.delay + self.random.below(self.weather.jitter);
                self.count += 1;
                self.in_flight
                    .insert((arrival, self.count), (from, to, datagram.clone()));
            }
        }
        self.wire.push(datagram);
    }

    /// A datagram reaches this gateway from nowhere in the network, at once. Returns how many bytes it sends there.
    pub(crate) fn offer(&mut self, name: &str, from: SocketAddr, datagram: &[u8]) -> usize {
        let (now, mut sent) = (self.now, 0);
        let to = self.nodes[name].gateway.address;
        self.turn_of(name, |gateway| {
            let out = gateway.handle_datagram(now, (from, to), 0, datagram)?;
            sent = out
                .datagrams
                .iter()
                .filter(|(_, to, _)| *to == from)
                .map(|(_, _, bytes)| bytes.len())
                .sum();
            Some(out)
        });
        sent
    }

    /// A frame comes out of the slice at this gateway.
    pub(crate) fn inject(&mut self, name: &str, frame: &[u8]) {
        let now = self.now;
        self.turn_of(name, |gateway| Some(gateway.handle_frame(now, frame)));
    }

    /// How many of the cluster's gateways, taken together, delivered this frame how often; forgets all deliveries.
    pub(crate) fn collect(&mut self, frame: &[u8]) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for node in self.nodes.values_mut() {
            let count = node
                .delivered
                .drain(..)
                .filter(|delivered| delivered == frame)
                .count();
            *counts.entry(node.cluster.clone()).or_default() += count;
        }
        counts
    }

    /// Whether all tunnels of living gateways are up.
    pub(crate) fn is_settled(&self) -> bool {
        let all = self.nodes.iter().filter(|(_, node)| node.alive);
        all.clone().all(|(name, node)| {
            let others = all.clone().filter(|(_, other)| other.cluster != node.cluster);
            let wanted: BTreeSet<&String> = others.map(|(name, _)| name).collect();
            let stats = self.stats(name);
            let up = stats.peers.iter().filter(|peer| peer.up);
            up.map(|peer| &peer.name)
                .collect::<BTreeSet<_>>()
                .is_superset(&wanted)
        })
    }

    /// Runs until all tunnels of living gateways are up; panics after ten seconds.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200 {
            if self.is_settled() {
                return;
            }
            self.run(MS * 50);
        }
        panic!("not all tunnels came up");
    }

    /// Cuts the path between two gateways, in one direction.
    pub(crate) fn cut(&mut self, from: &str, to: &str) {
        let (from, to) = (
            self.nodes[from].gateway.address.ip(),
            self.nodes[to].gateway.address.ip(),
        );
        self.cuts.insert((from, to));
    }
}

fn key(random: &mut Random) -> Key {
    let mut bytes = [0; 32];
    bytes
        .chunks_mut(8)
        .for_each(|chunk| chunk.copy_from_slice(&random.number().to_le_bytes()));
    Key::from_random(bytes.into())
}

fn number(cluster: &str) -> u32 {
    u32::from(cluster.as_bytes()[0] - b'a')
}

fn range(cluster: &str) -> handover::Range {
    handover::Range {
        start: number(cluster) * 64,
        size: 64,
    }
}

fn vtep(name: &str) -> Ipv4Addr {
    let (cluster, ordinal) = name.split_once('/').unwrap();
    Ipv4Addr::new(
        198,
        18,
        number(cluster) as u8 + 1,
        ordinal.parse::<u8>().unwrap() + 1,
    )
}

fn peer_gateway((name, node): (&String, &Node)) -> handover::PeerGateway {
    let keys = node.gateway.keys();
    handover::PeerGateway {
        name: name.clone(),
        public_key: encode_key(&keys.current),
        former_key: keys.former.as_ref().map(encode_key),
        vtep: vtep(name),
        endpoints: vec![node.gateway.address],
    }
}

/// A frame between attachments; cluster n has indices 64·n to 64·n + 63.
pub(crate) fn frame(from: u32, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ethernet::HEADER];
    Header {
        destination: to,
        source: Mac::of_index(from),
        ethertype,
    }
    .write(&mut frame);
    frame.extend(payload);
    frame
}

/// An IPv4/UDP frame of flow `port`.
pub(crate) fn udp(from: u32, to: u32, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = (28 + payload.len()) as u16;
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[9] = 17;
    packet[12..16].copy_from_slice(&[10, 80, (from >> 8) as u8, from as u8]);
    packet[16..20].copy_from_slice(&[10, 80, (to >> 8) as u8, to as u8]);
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[24..26].copy_from_slice(&(length - 20).to_be_bytes());
    packet.extend(payload);
    frame(from, Mac::of_index(to), ethernet::IPV4, &packet)
}
