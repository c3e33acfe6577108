//! The gateway without a socket, a clock or a source of randomness: what comes in decides what goes out.
//!
//! ```text
//!                    handle_frame ──► admit ──► flow ──► tunnel ──► Output::datagram
//!   slice (TAP)  ◄── Output::frame ◄─ admit ◄── vxlan ◄─ tunnel ◄── handle_datagram    internet (UDP)
//!                              handle_timeout ─► probes, handshakes
//! ```
//!
//! Everything that a call produces is written straight into buffers that the caller lends ([`Output`]): nothing is
//! allocated per packet, and nothing is queued here. The caller's loop:
//!
//! 1. [`Gateway::handle_datagram`] for all that arrived from the internet, before any timeout: after a stall of the
//!    process the proof that a peer lives may be waiting there.
//! 2. [`Gateway::handle_frame`] for what arrived from the slice.
//! 3. [`Gateway::handle_timeout`] when [`Gateway::poll_timeout`] has come.
//! 4. [`Gateway::poll_event`] until there is none.
//!
//! Deliberately not here: MAC learning (the index says where a MAC is), a second hop (what came from the WAN stays),
//! and any decision about who the peers are.

pub mod address;
pub mod admit;
pub mod arp;
pub mod checksum;
pub mod config;
pub mod ecn;
pub mod ethernet;
pub mod flow;
mod guard;
pub mod ip;
pub mod liveness;
pub mod mtu;
pub mod nd;
mod peer;
pub mod probe;
mod random;
pub mod reason;
pub mod route;
pub mod segment;
mod stats;
mod tunnel;
pub mod vxlan;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::{
    admit::Outbound,
    ethernet::Header,
    peer::Peer,
    probe::Message,
    segment::{Checksum, Segments},
    tunnel::{Handshake, Identity, MAX_HANDSHAKE},
    vxlan::Inner,
};
pub use self::{
    config::Config,
    peer::Carried,
    random::Random,
    reason::{Drops, Reason},
    segment::Offload,
    stats::{PeerStats, Stats},
    tunnel::Key,
};

/// Bytes that a caller leaves free before each frame, for the tunnel's headers.
pub const HEADROOM: usize = vxlan::HEADER;

/// How often time matters: the grain of liveness, retries and rekeying.
pub const TICK: Duration = Duration::from_millis(50);

/// How often it is looked where the peers are, which decides whose handshakes go first in a flood.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Events that wait for [`Gateway::poll_event`]; the oldest goes first.
const MAX_EVENTS: usize = 1024;

/// Where the output of a call goes: buffers of the caller.
///
/// At most one buffer is lent at a time; lending the next one takes back one that was not committed.
pub trait Output {
    /// Lends exactly `length` bytes for a datagram to `to`; `None` where there is no room.
    fn datagram(&mut self, to: Destination, length: usize) -> Option<&mut [u8]>;

    /// Commits the datagram that was lent last. Datagrams to one address leave in the order of their commits.
    fn send(&mut self);

    /// Lends at least `length` bytes for a frame; `None` where there is no room.
    fn frame(&mut self, length: usize) -> Option<&mut [u8]>;

    /// Commits bytes `start..end` of the frame buffer that was lent last. `start` is at least [`HEADROOM`], so that
    /// the caller can put a header of its own before the frame.
    fn deliver(&mut self, start: usize, end: usize);
}

/// Where a datagram goes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub address: SocketAddr,
    /// Its ECN code point; see [`ecn`].
    pub ecn: u8,
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            ecn: ecn::NOT_ECT,
        }
    }
}

/// Something that the outside may want to know at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A tunnel can be trusted with traffic.
    Up { peer: String },
    /// A tunnel cannot; flows move to the others.
    Down { peer: String },
    /// The peer wants frames, or wants them no longer, because it is about to stop or cannot deliver them.
    Wants { peer: String, frames: bool },
}

/// One end of all tunnels of a slice. See the module's documentation.
pub struct Gateway {
    identity: Identity,
    random: Random,
    config: Option<Config>,
    /// By slot, which is part of the session numbers that a peer uses.
    peers: Vec<Option<Box<Peer>>>,
    slots: BTreeMap<[u8; 32], usize>,
    /// The slots of each peer cluster.
    clusters: Vec<Vec<usize>>,
    /// The tunnels of the frame in hand; kept for its memory.
    route: Vec<usize>,
    /// Peers are asked to send nothing here.
    away: bool,
    next_tick: Instant,
    /// When the peers' addresses are looked through again.
    next_look: Instant,
    events: VecDeque<Event>,
    drops: Drops,
}

impl Gateway {
    /// A gateway that carries nothing until it is configured.
    pub fn new(key: Key, seed: u64, now: Instant) -> Self {
        Self {
            identity: Identity::new(key, seed, now),
            random: Random::new(seed),
            config: None,
            peers: Vec::new(),
            slots: BTreeMap::new(),
            clusters: Vec::new(),
            route: Vec::new(),
            away: false,
            next_tick: now + TICK,
            next_look: now,
            events: VecDeque::new(),
            drops: Drops::default(),
        }
    }

    pub fn public_key(&self) -> [u8; 32] {
        self.identity.public()
    }

    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// Asks all peers to send their frames another way, or takes that back. Those that have no other way still send
    /// them here, and they are delivered.
    pub fn set_away(&mut self, away: bool) {
        self.away = away;
    }

    /// How many peer clusters frames can be sent to, of those that have a gateway.
    pub fn reach(&self) -> Reach {
        let takes = |slot: &usize| self.peers[*slot].as_ref().is_some_and(|peer| peer.takes_frames());
        let clusters = self.clusters.iter().filter(|slots| !slots.is_empty());
        Reach {
            reached: clusters.clone().filter(|slots| slots.iter().any(takes)).count(),
            clusters: clusters.count(),
        }
    }

    /// Replaces the configuration. A peer that keeps its public key keeps its session.
    pub fn reconfigure(&mut self, now: Instant, config: Config) {
        let own = (config.vtep, config.vni);
        let mut old: BTreeMap<[u8; 32], usize> = std::mem::take(&mut self.slots);
        self.clusters = vec![Vec::new(); config.clusters.len()];
        let mut new = Vec::new();
        for gateway in &config.gateways {
            match old.remove(&gateway.public_key) {
                Some(slot) => {
                    let peer = self.peers[slot].as_mut().expect("a slot in use");
                    peer.name.clone_from(&gateway.name);
                    peer.configure(own, gateway);
                    self.adopt(slot, gateway);
                }
                None => new.push(gateway),
            }
        }
        for (_, slot) in old {
            if let Some(peer) = self.peers[slot].take()
                && peer.up
            {
                self.push(Event::Down { peer: peer.name });
            }
        }
        for gateway in new {
            let slot = self
                .peers
                .iter()
                .position(Option::is_none)
                .unwrap_or(self.peers.len());
            let peer = Box::new(Peer::new(
                &self.identity,
                own,
                gateway,
                slot,
                now,
                &mut self.random,
            ));
            match self.peers.get_mut(slot) {
                Some(free) => *free = Some(peer),
                None => self.peers.push(Some(peer)),
            }
            self.adopt(slot, gateway);
        }
        self.config = Some(config);
        self.next_look = now;
    }

    fn adopt(&mut self, slot: usize, gateway: &config::Gateway) {
        self.slots.insert(gateway.public_key, slot);
        self.clusters[usize::from(gateway.cluster)].push(slot);
    }

    /// Takes a frame from the slice: `buffer` is [`HEADROOM`] free bytes and the frame, which may be a super-frame.
    /// The buffer's contents are spent.
    pub fn handle_frame(&mut self, buffer: &mut [u8], offload: Offload, out: &mut impl Output) {
        if let Err(reason) = self.outbound(buffer, offload, out) {
            self.drops.add(reason, 1);
        }
    }

    fn outbound(&mut self, buffer: &mut [u8], offload: Offload, out: &mut impl Output) -> Result<(), Reason> {
        let frame = buffer.get_mut(HEADROOM..).ok_or(Reason::FrameTooShort)?;
        let config = self.config.as_ref().ok_or(Reason::NotConfigured)?;
        let mut segments = match offload {
            Offload {
                gso: Some(gso),
                checksum: Some(Checksum { start, .. }),
            } => Some(Segments::new(frame, start, gso)?),
            Offload {
                gso: Some(_),
                checksum: None,
            } => return Err(Reason::BadOffload),
            Offload {
                gso: None,
                checksum: Some(checksum),
            } => {
                segment::complete(frame, checksum)?;
                None
            }
            Offload {
                gso: None,
                checksum: None,
            } => None,
        };
        let (header, payload) = Header::parse(frame).ok_or(Reason::FrameTooShort)?;
        let verdict = config.segment.outbound(&header, payload)?;
        let longest = segments.as_ref().map_or(frame.len(), Segments::longest);
        if longest > config.segment.mtu + admit::FRAME_OVERHEAD {
            return Err(Reason::FrameTooLong);
        }
        match verdict {
            Outbound::Arp(request, mac) => return answer(out, |frame| request.answer(mac, frame)),
            Outbound::Nd(solicitation, mac) => return answer(out, |frame| solicitation.answer(mac, frame)),
            Outbound::Unicast(_) | Outbound::Group => {}
        }
        let mark = Mark {
            flow: flow::hash(&header, payload),
            ecn: ecn::of(&header, payload),
        };
        self.route(verdict, mark.flow)?;
        let Some(segments) = &mut segments else {
            let length = frame.len();
            self.carry(buffer, length, mark, out);
            return Ok(());
        };
        while let Some(range) = segments.next(&mut buffer[HEADROOM..]) {
            self.carry(
                &mut buffer[range.start..HEADROOM + range.end],
                range.len(),
                mark,
                out,
            );
        }
        Ok(())
    }

    /// Chooses the tunnels of a frame into `self.route`.
    fn route(&mut self, verdict: Outbound, flow: u64) -> Result<(), Reason> {
        self.route.clear();
        if let Outbound::Unicast(cluster) = verdict {
            let slot = self.pick(cluster.into(), flow).ok_or(Reason::NoTunnel)?;
            self.route.push(slot);
            return Ok(());
        }
        for cluster in 0..self.clusters.len() {
            match self.pick(cluster, flow) {
                Some(slot) => self.route.push(slot),
                // A cluster that has no gateway yet has no attachment either.
                None if self.clusters[cluster].is_empty() => {}
                None => self.drops.add(Reason::NoTunnel, 1),
            }
        }
        Ok(())
    }

    /// Sends one frame through the chosen tunnels.
    fn carry(&mut self, buffer: &mut [u8], length: usize, mark: Mark, out: &mut impl Output) {
        for slot in &self.route {
            let peer = self.peers[*slot].as_mut().expect("a slot of a cluster is in use");
            let room = buffer.first_chunk_mut().expect("the caller's headroom");
            peer.template.write(room, length, mark.flow, mark.ecn);
            peer.carry(length, buffer, mark.ecn, out);
        }
    }

    /// The tunnel of a flow: of the healthy ones whose peer wants frames the one that the flow wants most, or, where
    /// there is none, of those that are healthy, or of those that at least have a session.
    fn pick(&self, cluster: usize, flow: u64) -> Option<usize> {
        let rank = |slot: &usize| {
            let peer = self.peers[*slot].as_ref()?;
            peer.tunnel.session()?;
            Some((peer.takes_frames(), peer.up, flow::score(flow, peer.flow_key)))
        };
        let ranked = self.clusters[cluster]
            .iter()
            .filter_map(|slot| Some((rank(slot)?, *slot)));
        ranked.max().map(|(_, slot)| slot)
    }

    /// Takes a datagram from the internet, which came with this ECN code point.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        ecn: u8,
        datagram: &[u8],
        out: &mut impl Output,
    ) {
        let Some(receiver) = tunnel::receiver_of_data(datagram) else {
            return self.handshake(now, from, datagram, out);
        };
        let Some(config) = &self.config else {
            return self.drops.add(Reason::NotConfigured, 1);
        };
        let Some(Some(peer)) = self.peers.get_mut(tunnel::slot_of(receiver)) else {
            return self.drops.add(Reason::UnknownSession, 1);
        };
        if let Err(reason) = inbound(config, peer, now, (from, ecn), datagram, out) {
            peer.drops.add(reason, 1);
        }
    }

    fn handshake(&mut self, now: Instant, from: SocketAddr, datagram: &[u8], out: &mut impl Output) {
        let mut reply = [0; MAX_HANDSHAKE];
        let slot = match self.identity.identify(now, from.ip(), datagram, &mut reply) {
            Ok(Handshake::Initiation(key)) => self.slots.get(&key).copied().ok_or(Reason::UnknownPeer),
            Ok(Handshake::Answer { receiver }) => Ok(tunnel::slot_of(receiver)),
            Err((reason, cookie)) => {
                peer::write(out, from, &reply[..cookie]);
                Err(reason)
            }
        };
        let slot = match slot {
            Ok(slot) => slot,
            Err(reason) => return self.drops.add(reason, 1),
        };
        let Some(Some(peer)) = self.peers.get_mut(slot) else {
            return self.drops.add(Reason::UnknownSession, 1);
        };
        match peer.handshake(now, from, datagram, out) {
            Ok(()) => {}
            Err(reason) => peer.drops.add(reason, 1),
        }
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Output) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        if now >= self.next_look {
            self.next_look = now + LOOK_EVERY;
            let peers = self.peers.iter().flatten();
            self.identity.know(now, peers.flat_map(|peer| peer.addresses()));
        }
        let Some(own) = self.config.as_ref().map(|config| config.vtep) else {
            return;
        };
        for slot in 0..self.peers.len() {
            let Some(peer) = &mut self.peers[slot] else {
                continue;
            };
            let was_up = peer.up;
            peer.tick(now, (own, self.away), &mut self.random, out);
            let (up, away, name) = (peer.up, peer.liveness.is_away(), peer.name.clone());
            let was_away = std::mem::replace(&mut peer.told_away, away);
            match (was_up, up) {
                (false, true) => self.push(Event::Up { peer: name.clone() }),
                (true, false) => self.push(Event::Down { peer: name.clone() }),
                _ => {}
            }
            if away != was_away {
                self.push(Event::Wants {
                    peer: name,
                    frames: !away,
                });
            }
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Instant {
        self.next_tick
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn push(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Counts frames that the caller could not deliver.
    pub fn count(&mut self, reason: Reason, frames: u64) {
        self.drops.add(reason, frames);
    }

    /// Everything that is counted.
    pub fn stats(&self, now: Instant) -> Stats {
        let peers = self.peers.iter().flatten();
        Stats {
            drops: self.drops,
            reach: self.reach(),
            peers: peers
                .map(|peer| PeerStats::new(peer, now, &self.config))
                .collect(),
        }
    }
}

/// Where frames can go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Peer clusters with a healthy tunnel whose far end wants frames.
    pub reached: usize,
    /// Peer clusters that have a gateway.
    pub clusters: usize,
}

/// What the headers take from a frame.
#[derive(Clone, Copy)]
struct Mark {
    flow: u64,
    ecn: u8,
}

/// Writes a frame of fixed length to the slice.
fn answer<const N: usize>(out: &mut impl Output, write: impl FnOnce(&mut [u8; N])) -> Result<(), Reason> {
    let room = out.frame(HEADROOM + N).ok_or(Reason::ReceiveBufferFull)?;
    write(room[HEADROOM..].first_chunk_mut().expect("lent"));
    out.deliver(HEADROOM, HEADROOM + N);
    Ok(())
}

/// A data message for a tunnel that exists.
fn inbound(
    config: &Config,
    peer: &mut Peer,
    now: Instant,
    (from, ecn): (SocketAddr, u8),
    datagram: &[u8],
    out: &mut impl Output,
) -> Result<(), Reason> {
    let room = out.frame(datagram.len()).ok_or(Reason::ReceiveBufferFull)?;
    let opened = peer.tunnel.open(datagram, room)?;
    peer.on_heard(now, from);
    if opened.confirmed {
        peer.on_session(now);
    }
    let packet = &room[..opened.length];
    if packet.is_empty() {
        return Ok(());
    }
    match vxlan::parse(packet, peer.vtep, config.vtep, config.vni)? {
        Inner::Frame(frame) => {
            config.segment.inbound(frame, peer.cluster)?;
            let length = frame.len();
            // A mark on the datagram stands for one on the packet in it.
            let outer = if ecn == ecn::CE { ecn::CE } else { packet[1] & 3 };
            ecn::decapsulate(&mut room[HEADROOM..opened.length], outer)?;
            peer.received.add(length);
            out.deliver(HEADROOM, opened.length);
            Ok(())
        }
        Inner::Icmp(icmp) => {
            let mut copy = [0; probe::MAX_ECHO];
            let length = icmp.len().min(copy.len());
            match probe::parse(icmp) {
                Message::Request { word } => {
                    copy[..length].copy_from_slice(&icmp[..length]);
                    peer.on_probe(config.vtep, word, &copy[..length], out);
                    Ok(())
                }
                Message::Reply { sequence, .. } => {
                    peer.liveness.on_echo(now, sequence);
                    Ok(())
                }
                Message::Other => Err(Reason::NotVxlan),
            }
        }
    }
}
