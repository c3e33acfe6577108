//! The whole sans-IO gateway against a model of who must receive which frame.
//!
//! The bytes are a script: frames of any source and destination, packets and neighbour discovery in every disguise,
//! broadcast, time, weather, cuts, pauses, restarts with
//! a new key and another number of threads, keys renewed and revoked, configurations that lose something, datagrams
//! that are replayed, spoilt or made up. The model knows for each frame which clusters may have it. Then, whatever
//! happens:
//!
//! - a frame is delivered in no cluster but those, unchanged, and in each of them once at most, by one gateway;
//! - where the network keeps the order, a flow keeps it;
//! - nobody is answered with more bytes than it sent unless it has proved who it is;
//! - when the network is well again, all tunnels come up, and every frame is delivered exactly once where it must be.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use slice_frame::{
    Frame, Mac, ethernet,
    ip::{ICMPV6, UDP},
};
use slice_gateway::proto::Config;

use crate::world::{self, CALM, MS, MTU, ODD, STORM, Weather, World};

/// More steps than this are not taken: each may cost milliseconds.
const MAX_STEPS: usize = 96;
/// Gateways in each cluster, and the threads of each.
const GATEWAYS: [(u32, u8); 3] = [(2, 1), (1, 2), (2, 3)];

const DESTINATION_OPTIONS: u8 = 60;

/// A frame on its way.
struct Sent {
    from: String,
    /// Which clusters may have it, and how many of its gateways have delivered it.
    clusters: BTreeMap<String, u32>,
    /// Its flow and its number there, and the spell of steady weather that it was sent in.
    order: (Flow, u32, u32),
    complete: bool,
}

/// Who sends to whom, through which gateway, and by what protocol.
type Flow = (String, u32, [u8; 6], u16);

struct Model {
    world: World,
    sent: HashMap<Vec<u8>, Sent>,
    count: u32,
    /// Changes whenever the network stops keeping the order.
    spell: u32,
    /// By flow and receiving cluster: spell and number of the frame that was delivered last.
    last: HashMap<(Flow, String), (u32, u32)>,
}

/// Bytes as numbers; zero when they are used up.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }
}

/// Follows a script.
pub(crate) fn follow(bytes: &[u8]) {
    let mut script = Script(bytes);
    let seed = u64::from(script.next());
    let mut model = Model {
        world: World::with_threads(seed, &GATEWAYS),
        sent: HashMap::new(),
        count: 0,
        spell: 0,
        last: HashMap::new(),
    };
    for _ in 0..MAX_STEPS {
        if script.0.is_empty() {
            break;
        }
        model.step(&mut script);
        model.check();
    }
    model.recover();
}

impl Model {
    fn step(&mut self, script: &mut Script<'_>) {
        let (what, detail) = (script.next(), script.next());
        let name = self.name(detail);
        match what % 16 {
            0 => self.inject(&name, script.next(), script.next(), script.next()),
            1 => self.inject_packet(&name, script.next(), script.next(), script.next()),
            2 => self.inject_neighbour(&name, script.next(), script.next(), script.next()),
            3 | 4 => self.world.run(MS * u32::from(detail)),
            5 => self.world.run(MS * 40 * u32::from(detail)),
            6 => self.weather(detail),
            7 => {
                let other = self.name(script.next());
                self.world.cut(&name, &other);
            }
            8 => {
                self.world.cuts.clear();
            }
            9 => {
                let node = self.world.node(&name);
                node.alive = !node.alive;
            }
            10 => {
                self.world.restart_with(&name, 1 + (detail >> 4) % 4);
                if detail & 0x80 == 0 {
                    self.world.configure();
                }
            }
            11 => self.lose(&name, script.next()),
            12 => {
                // Some ask for new keys as well.
                match detail % 8 {
                    0 => self.world.policy.renewal = Some(self.count.to_string()),
                    1 => self.world.policy.revocation = Some(self.count.to_string()),
                    _ => {}
                }
                self.world.configure();
            }
            13 => self.replay(&name, script.next(), script.next()),
            14 => self.make_up(&name, script.next(), script.next()),
            _ => self.world.node(&name).gateway.set_away(detail & 0x80 != 0),
        }
    }

    fn name(&self, number: u8) -> String {
        let names: Vec<&String> = self.world.nodes.keys().collect();
        names[usize::from(number) % names.len()].clone()
    }

    /// A frame from `source`, whose index need not be the cluster's, to `to`; above 191 it is broadcast.
    fn inject(&mut self, name: &str, source: u8, to: u8, size: u8) {
        let destination = match to {
            0..192 => Mac::of_index(to.into()),
            192..240 => Mac::BROADCAST,
            240..248 => Mac([0x01, 0, 0x5e, 0, 0, to]),
            _ => Mac([0x01, 0x80, 0xc2, 0, 0, to & 0x0f]),
        };
        self.send(name, source.into(), destination, usize::from(size) * 6);
    }

    /// An IPv4 or IPv6 packet, in which the bits of `how` hide what is not so: another's address, tags, options.
    fn inject_packet(&mut self, name: &str, source: u8, to: u8, how: u8) {
        self.count += 1;
        let disguise = Disguise(how);
        let honest = how & 2 == 0;
        let address = u32::from(source) ^ u32::from(!honest);
        let payload = [&[0x10, 0, 0x20, 0, 0, 12, 0, 0][..], &self.count.to_be_bytes()].concat();
        let to = Mac::of_index(to.into());
        let (ethertype, packet) = match how & 1 {
            0 => (ethernet::IPV4, v4(address, &payload)),
            _ => (
                ethernet::IPV6,
                v6(&slice_address(address), UDP, disguise.options(), &payload),
            ),
        };
        let frame = disguise.frame(source.into(), to, ethertype, &packet);
        let readable = how & 1 == 0 || disguise.options() <= 8;
        let passes = honest && readable && !disguise.is_tagged();
        self.offer(name, (source.into(), to, ethertype), frame, passes);
    }

    /// ARP or neighbour discovery, which crosses in no disguise.
    fn inject_neighbour(&mut self, name: &str, source: u8, target: u8, how: u8) {
        let disguise = Disguise(how);
        let source = u32::from(source);
        let target = slice_address(target.into());
        let message = |kind: u8| {
            let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], &target[..]].concat();
            v6(&slice_address(source), ICMPV6, disguise.options(), &message)
        };
        let (ethertype, payload) = match how & 7 {
            0 | 1 => (ethernet::ARP, arp(source, how as u16 & 1, target[15])),
            2 => (ethernet::IPV6, message(133)),
            3 | 4 => (ethernet::IPV6, message(134)),
            5 => (ethernet::IPV6, message(135)),
            6 => (ethernet::IPV6, message(136)),
            _ => (ethernet::IPV6, message(137)),
        };
        let frame = disguise.frame(source, Mac::BROADCAST, ethertype, &payload);
        self.offer(name, (source, Mac::BROADCAST, ethertype), frame, false);
    }

    fn send(&mut self, name: &str, source: u32, destination: Mac, size: usize) {
        self.count += 1;
        let mut payload = self.count.to_be_bytes().to_vec();
        payload.resize(size.max(4), 0x5a);
        let frame = world::frame(source, destination, ODD, &payload);
        let fits = payload.len() <= usize::from(MTU) + 4;
        self.offer(name, (source, destination, ODD), frame, fits);
    }

    /// Gives a frame to a gateway. `passes` says whether it may cross, if it is the cluster's to send.
    fn offer(
        &mut self,
        name: &str,
        (source, destination, ethertype): (u32, Mac, u16),
        frame: Vec<u8>,
        passes: bool,
    ) {
        let own = name.split('/').next().expect("a cluster").to_owned();
        let cluster = |index: u32| {
            ["a", "b", "c"]
                .get(index as usize / 64)
                .map(|name| (*name).to_owned())
        };
        let passes = passes && cluster(source).as_ref() == Some(&own);
        let receivers: Vec<String> = match destination.index() {
            _ if !passes || destination.is_link_local_group() => vec![],
            Some(index) => cluster(index).into_iter().collect(),
            None => ["a", "b", "c"].map(str::to_owned).into(),
        };
        let flow = (name.to_owned(), source, destination.0, ethertype);
        let sent = Sent {
            from: name.to_owned(),
            clusters: receivers
                .into_iter()
                .filter(|other| *other != own)
                .map(|other| (other, 0))
                .collect(),
            order: (flow, self.count, self.spell),
            complete: false,
        };
        self.sent.insert(frame.clone(), sent);
        self.world.inject(name, &frame);
    }

    fn weather(&mut self, detail: u8) {
        self.spell += 1;
        self.world.weather = match detail % 4 {
            0 => CALM,
            1 => STORM,
            2 => Weather {
                loss: u64::from(detail) * 2,
                ..CALM
            },
            _ => Weather {
                duplication: 300,
                delay: MS * u32::from(detail),
                jitter: MS * 50,
                ..CALM
            },
        };
    }

    /// A gateway is told less than there is.
    fn lose(&mut self, name: &str, what: u8) {
        let mut config = self.world.config_of(name);
        let peer = usize::from(what / 4) % config.peers.len();
        match what % 4 {
            0 => config.peers[peer].gateways.clear(),
            1 => config.peers[peer].ranges.clear(),
            2 => config.peers.truncate(peer),
            _ => config.peers.reverse(),
        }
        let (config, _) = Config::new(&config).expect("a configuration");
        let now = self.world.now;
        self.world.node(name).gateway.reconfigure(now, &config);
    }

    /// A datagram of the past comes again, to this gateway, from wherever, perhaps with a bit changed or cut short.
    fn replay(&mut self, name: &str, which: u8, how: u8) {
        let wire = &self.world.wire;
        let back = 1 + usize::from(which) * (1 + wire.len() / 300);
        let Some(mut datagram) = wire.len().checked_sub(back).map(|at| wire[at].clone()) else {
            return;
        };
        match how % 4 {
            0 => {}
            1 => datagram.truncate(usize::from(how)),
            _ => {
                let at = usize::from(how) % datagram.len().max(1);
                if let Some(byte) = datagram.get_mut(at) {
                    *byte ^= 1 << (how % 8);
                }
            }
        }
        self.offer_from_outside(name, how, datagram);
    }

    /// Bytes that nobody sealed.
    fn make_up(&mut self, name: &str, kind: u8, length: u8) {
        let length = match kind % 8 {
            1 => 148,
            2 => 92,
            3 => 64,
            _ => usize::from(length) * 8,
        };
        let mut datagram: Vec<u8> = (0..length).map(|n| (n as u8).wrapping_mul(kind)).collect();
        if let Some(head) = datagram.first_chunk_mut::<8>() {
            // Session numbers are small, so this one may be in use.
            *head = [kind % 8, 0, 0, 0, length as u8 % 8, kind / 64, 0, 0];
        }
        self.offer_from_outside(name, kind, datagram);
    }

    /// A datagram arrives from a stranger's address; what is answered there is not longer.
    fn offer_from_outside(&mut self, name: &str, who: u8, datagram: Vec<u8>) {
        let from: SocketAddr = (std::net::Ipv4Addr::new(203, 0, 113, who), 4000).into();
        let length = datagram.len();
        let answered = self.world.offer(name, from, &datagram);
        let authentic = matches!(datagram.first(), Some(1 | 4)) && self.world.wire.contains(&datagram);
        assert!(
            authentic || answered <= length,
            "{answered} bytes for a stranger's {length}"
        );
    }

    /// Looks at everything that was delivered.
    fn check(&mut self) {
        for (name, node) in &mut self.world.nodes {
            for frame in node.delivered.drain(..) {
                let read = Frame::read(&frame[..]).expect("what is delivered can be read");
                if read.is_neighbour_discovery() {
                    assert_answer(&read, &node.cluster);
                    continue;
                }
                let sent = self.sent.get_mut(&frame);
                let Some(sent) = sent else {
                    panic!("{name} delivered what nobody sent: {frame:02x?}")
                };
                let Some(count) = sent.clusters.get_mut(&node.cluster) else {
                    panic!(
                        "{name} delivered a frame of {} that is not for {}",
                        sent.from, node.cluster
                    );
                };
                *count += 1;
                assert_eq!(
                    *count, 1,
                    "{} got frame {} of {} again",
                    node.cluster, sent.order.1, sent.from
                );
                let (flow, number, spell) = sent.order.clone();
                let steady = self.world.weather.jitter.is_zero() && spell == self.spell;
                let last = self.last.entry((flow, node.cluster.clone())).or_default();
                if steady && last.0 == spell {
                    assert!(
                        last.1 < number,
                        "frame {number} of {} came after frame {}",
                        sent.from,
                        last.1
                    );
                }
                *last = (spell, number);
                sent.complete = sent.clusters.values().all(|count| *count == 1);
            }
        }
    }

    /// The network becomes well, and so must everything.
    fn recover(&mut self) {
        self.world.cuts.clear();
        self.world.weather = CALM;
        self.spell += 1;
        for node in self.world.nodes.values_mut() {
            node.alive = true;
            node.gateway.set_away(false);
        }
        self.world.configure();
        // What is under way arrives, what was silent is missed, also where nobody sends, and those that gave up try again.
        self.world.run(MS * 7000);
        // Keys that were asked for have been made.
        self.world.configure();
        for _ in 0..60 {
            if self.world.is_settled() {
                break;
            }
            self.world.run(MS * 500);
        }
        assert!(self.world.is_settled(), "not all tunnels came up within 30 s");
        self.check();
        let names: Vec<String> = self.world.nodes.keys().cloned().collect();
        let first = self.count;
        for name in names {
            let base = u32::from(name.as_bytes()[0] - b'a') * 64;
            for to in [(base + 70) % 192, (base + 140) % 192] {
                self.send(&name, base + 5, Mac::of_index(to), 100);
            }
            self.send(&name, base + 5, Mac::BROADCAST, 100);
        }
        self.world.run(MS * 50);
        self.check();
        for sent in self.sent.values().filter(|sent| sent.order.1 > first) {
            assert!(
                sent.complete,
                "frame {} of {} is missing: {:?}",
                sent.order.1, sent.from, sent.clusters
            );
        }
    }
}

/// ARP and neighbour discovery are delivered as answers only, in the name of an attachment elsewhere.
fn assert_answer(frame: &Frame, cluster: &str) {
    let index = frame.source.index().expect("an attachment's MAC");
    assert_ne!(
        ["a", "b", "c"].get(index as usize / 64),
        Some(&cluster),
        "{frame:?}"
    );
    let answers = match (frame.arp(), frame.packet()) {
        (Some(arp), _) => arp.operation == 2 && arp.sender == frame.source,
        (None, packet) => packet.is_some_and(|packet| packet.head[0] == 136),
    };
    assert!(answers && !frame.tagged, "{frame:?}");
}

/// How a frame is wrapped, as the upper bits say.
struct Disguise(u8);

impl Disguise {
    const fn is_tagged(&self) -> bool {
        self.0 & 0x18 != 0
    }

    /// Extension headers before the transport header.
    const fn options(&self) -> usize {
        (self.0 >> 5) as usize * 2
    }

    fn frame(&self, source: u32, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let tags: &[u16] = match self.0 & 0x18 {
            0 => &[],
            0x08 => &[ethernet::VLAN],
            0x10 => &[ethernet::SERVICE_VLAN],
            _ => &[ethernet::SERVICE_VLAN, ethernet::VLAN],
        };
        let mut kinds = tags.iter().copied().chain([ethertype]);
        let mut frame = world::frame(source, to, kinds.next().expect("one"), &[]);
        for kind in kinds {
            frame.extend([0, 0]);
            frame.extend(kind.to_be_bytes());
        }
        frame.extend(payload);
        frame
    }
}

fn slice_address(index: u32) -> [u8; 16] {
    let mut address = [0xfd, 0x42, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    address[12..].copy_from_slice(&index.to_be_bytes());
    address
}

fn v4(source: u32, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[3] = 20 + payload.len() as u8;
    packet[8..10].copy_from_slice(&[64, UDP]);
    packet[12..16].copy_from_slice(&[10, 80, (source >> 8) as u8, source as u8]);
    packet[16..20].copy_from_slice(&[10, 80, 0, 1]);
    packet.extend(payload);
    packet
}

fn v6(source: &[u8; 16], protocol: u8, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, (options * 8 + payload.len()) as u8];
    packet.extend([
        if options > 0 {
            DESTINATION_OPTIONS
        } else {
            protocol
        },
        255,
    ]);
    packet.extend(source);
    packet.extend(slice_address(1));
    for left in (0..options).rev() {
        let next = if left > 0 { DESTINATION_OPTIONS } else { protocol };
        packet.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    packet.extend(payload);
    packet
}

fn arp(sender: u32, request: u16, target: u8) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2 - request as u8];
    packet.extend(Mac::of_index(sender).0);
    packet.extend([10, 80, (sender >> 8) as u8, sender as u8]);
    packet.extend([0; 6]);
    packet.extend([10, 80, 0, target]);
    packet
}
