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
//! 1. [`Gateway::handle_datagram`] for what arrived from the internet, before any timeout; for all that waits there
//!    where [`Gateway::has_stalled`], because the proof that a peer lives may be the last of it.
//! 2. [`Gateway::handle_frame`] for what arrived from the slice.
//! 3. [`Gateway::handle_timeout`] when [`Gateway::poll_timeout`] has come.
//! 4. [`Gateway::renew`] with a new key where [`Gateway::wants_key`].
//! 5. [`Gateway::handle_note`] for what other lanes left ([`lane`]), where the gateway has several.
//! 6. [`Gateway::poll_event`] until there is none.
//!
//! Deliberately not here: MAC learning (the index says where a MAC is), a second hop (what came from the WAN stays),
//! and any decision about who the peers are.

pub mod admit;
pub mod config;
pub mod ecn;
mod endpoint;
pub mod flow;
mod guard;
mod handshake;
pub mod ip;
mod keyring;
pub mod lane;
pub mod liveness;
pub mod mtu;
mod noise;
mod output;
mod path;
pub mod path_mtu;
mod peer;
pub mod probe;
mod random;
pub mod reason;
mod renewal;
pub mod route;
pub mod segment;
mod stats;
pub mod too_big;
mod tunnel;
pub mod vxlan;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use slice_frame::{Frame, ethernet};

use self::{
    admit::Outbound,
    keyring::{Keyring, Serial},
    lane::{Lane, Note},
    peer::Peer,
    probe::Message,
    segment::{Checksum, Segments},
    vxlan::Inner,
};
pub use self::{
    config::Config,
    endpoint::{Endpoint, Socket},
    keyring::{Change, Keys},
    noise::Key,
    output::{Destination, Fragmentation, Output},
    peer::Carried,
    random::Random,
    reason::{Drops, Reason},
    renewal::Need,
    segment::Offload,
    stats::{PeerStats, Stats},
};

/// Bytes that a caller leaves free before each frame, for the tunnel's headers.
pub const HEADROOM: usize = vxlan::HEADER;

/// How often time matters: the grain of liveness, retries and rekeying.
pub const TICK: Duration = Duration::from_millis(50);

/// A tick that comes so late says that this process stood still.
const STALL: Duration = Duration::from_millis(150);

/// How often it is looked where the peers are, which decides whose handshakes go first in a flood.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Answers to packets that are too long ([`too_big`]) in a [`TICK`].
const MAX_TOO_BIG: u32 = 64;

/// Events that wait for [`Gateway::poll_event`]; the oldest goes first.
const MAX_EVENTS: usize = 1024;

/// Something that the outside may want to know at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A tunnel can be trusted with traffic.
    Up { peer: String },
    /// A tunnel cannot; flows move to the others.
    Down { peer: String },
    /// The peer wants frames, or wants them no longer, because it is about to stop or cannot deliver them.
    Wants { peer: String, frames: bool },
    /// [`Gateway::keys`] has changed: others must hear of it.
    Keys,
}

/// One end of all tunnels of a slice, or one [`lane`] of it. See the module's documentation.
pub struct Gateway {
    lane: Lane,
    keyring: Keyring,
    random: Random,
    config: Option<Config>,
    /// Those that frames are sent to, in the order of the configuration's gateways; then those that only send.
    peers: Vec<Peer>,
    /// Whose tunnel it is, by the slot that is part of the session numbers that a peer uses.
    slots: Vec<Option<usize>>,
    /// The slot of the tunnel between a key of ours and a peer's, by the lane that begins it.
    tunnels: BTreeMap<(Serial, [u8; 32], u8), usize>,
    /// The peers in each peer cluster.
    clusters: Vec<Vec<usize>>,
    /// The peers that get the frame in hand; kept for its memory.
    route: Vec<usize>,
    /// Peers are asked to send nothing here.
    away: bool,
    /// Whether they were, as of the last tick.
    reported_away: bool,
    /// Room for a padded probe; kept for its memory.
    padded: Vec<u8>,
    /// Of [`MAX_TOO_BIG`], what is left in this tick.
    too_big_left: u32,
    need_of_others: Need,
    last_tick: Instant,
    next_tick: Instant,
    /// When the peers' addresses are looked through again.
    next_look: Instant,
    events: VecDeque<Event>,
    drops: Drops,
}

impl Gateway {
    /// A gateway that carries nothing until it is configured. All its lanes have one key.
    pub fn new(lane: Lane, key: Key, seed: u64, now: Instant) -> Self {
        let mut random = Random::new(seed);
        Self {
            lane,
            keyring: Keyring::new(key, seed, now, &mut random),
            random,
            config: None,
            peers: Vec::new(),
            slots: Vec::new(),
            tunnels: BTreeMap::new(),
            clusters: Vec::new(),
            route: Vec::new(),
            away: false,
            reported_away: false,
            padded: Vec::new(),
            too_big_left: MAX_TOO_BIG,
            need_of_others: Need::Nobody,
            last_tick: now,
            next_tick: now + TICK,
            next_look: now,
            events: VecDeque::new(),
            drops: Drops::default(),
        }
    }

    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// Asks all peers to send their frames another way, or takes that back. Those that have no other way still send
    /// them here, and they are delivered.
    pub fn set_away(&mut self, away: bool) {
        self.away = away;
    }

    /// How many peer clusters frames can be sent to, and how many not.
    pub fn reach(&self) -> Reach {
        let mut reach = Reach::default();
        let known = self.config.iter().flat_map(|config| &config.clusters);
        for (cluster, peers) in known.zip(&self.clusters) {
            if peers.iter().any(|peer| self.peers[*peer].path.takes_frames()) {
                if cluster.outside {
                    reach.outside += 1;
                } else {
                    reach.reached += 1;
                }
            } else if !peers.is_empty() && !cluster.outside {
                reach.missing += 1;
            }
        }
        reach
    }

    /// Replaces the configuration. A peer that keeps a public key keeps the sessions with it.
    pub fn reconfigure(&mut self, now: Instant, config: Config) {
        let keys = self.keys();
        self.keyring.follow(&config.keys);
        if keys != self.keys() {
            self.push(Event::Keys);
        }
        let own = (config.vtep, config.vni);
        let old = std::mem::take(&mut self.peers).into_iter();
        let (old, guests): (Vec<Peer>, Vec<Peer>) = old.partition(|peer| peer.ours);
        let mut old: BTreeMap<String, Peer> = old.into_iter().map(|peer| (peer.name.clone(), peer)).collect();
        self.clusters = vec![Vec::new(); config.clusters.len()];
        for gateway in &config.gateways {
            if !self.lane.is_first() && gateway.outside {
                continue;
            }
            let peer = match old.remove(&gateway.name) {
                Some(mut peer) => {
                    peer.configure(own, gateway);
                    peer
                }
                None => Peer::new(own, gateway, (self.lane.number(), true), now),
            };
            self.clusters[usize::from(gateway.cluster)].push(self.peers.len());
            self.peers.push(peer);
        }
        for gone in old.into_values().filter(|peer| peer.path.up) {
            self.push(Event::Down { peer: gone.name });
        }
        for mut guest in guests {
            let mut gateways = config.gateways.iter();
            if let Some(gateway) = gateways.find(|gateway| gateway.name == guest.name) {
                guest.configure(own, gateway);
                self.peers.push(guest);
            }
        }
        let tag = if config.segment.frames.tagged {
            ethernet::TAG
        } else {
            0
        };
        let wanted = u16::try_from(config.segment.largest + tag).unwrap_or(u16::MAX);
        for peer in &mut self.peers {
            peer.path.mtu.set_wanted(wanted);
        }
        self.config = Some(config);
        self.weave(now);
        self.next_look = now;
    }

    /// Takes a frame from the slice: `buffer` is [`HEADROOM`] free bytes and the frame, which may be a super-frame.
    /// The buffer's contents are spent.
    pub fn handle_frame(&mut self, buffer: &mut [u8], offload: Offload, out: &mut impl Output) {
        if let Err(reason) = self.outbound(buffer, offload, Scope::All, out) {
            self.drops.add(reason, 1);
        }
    }

    /// Takes what another lane left: `buffer` is [`HEADROOM`] free bytes and those that came with the note. Its
    /// contents are spent.
    pub fn handle_note(&mut self, now: Instant, note: Note, buffer: &mut [u8], out: &mut impl Output) {
        let result = match note {
            Note::Frame(offload) => self.outbound(buffer, offload, Scope::Outside, out),
            Note::Initiation(initiation) => match buffer.get(HEADROOM..) {
                Some(datagram) => self.answer(now, &initiation, datagram, out),
                None => Err(Reason::NotWireguard),
            },
        };
        if let Err(reason) = result {
            self.drops.add(reason, 1);
        }
    }

    fn outbound(
        &mut self,
        buffer: &mut [u8],
        offload: Offload,
        scope: Scope,
        out: &mut impl Output,
    ) -> Result<(), Reason> {
        let frame = buffer.get_mut(HEADROOM..).ok_or(Reason::FrameTooShort)?;
        let config = self.config.as_ref().ok_or(Reason::NotConfigured)?;
        if let Offload {
            gso: None,
            checksum: Some(checksum),
        } = offload
        {
            // Before anything is read: where it goes was the sender's choice.
            segment::complete(frame, checksum)?;
        }
        let read = Frame::read(frame).map_err(|_| Reason::Unreadable)?;
        let mut segments = match offload {
            Offload {
                gso: Some(gso),
                checksum: Some(Checksum { start, .. }),
            } => Some(Segments::new(frame, &read, start, gso)?),
            Offload {
                gso: Some(_),
                checksum: None,
            } => return Err(Reason::BadOffload),
            Offload { gso: None, .. } => None,
        };
        let verdict = config.segment.outbound(frame, &read)?;
        let longest = segments.as_ref().map_or(frame.len(), Segments::longest);
        if longest > config.segment.largest + admit::FRAME_OVERHEAD {
            return Err(Reason::FrameTooLong);
        }
        match verdict {
            Outbound::Arp(request, mac) => return answer(out, |frame| request.answer(mac, frame)),
            Outbound::Nd(solicitation, mac) => return answer(out, |frame| solicitation.answer(mac, frame)),
            Outbound::Unicast(_) | Outbound::Group => {}
        }
        let here = self.lane.is_first() || !config.leads_outside(verdict);
        if !here {
            // What was left undone above is done now.
            let offload = if segments.is_some() {
                offload
            } else {
                Offload::default()
            };
            if !out.leave(0, Note::Frame(offload), frame) {
                self.drops.add(Reason::LaneFull, 1);
            }
            if matches!(verdict, Outbound::Unicast(_)) {
                return Ok(());
            }
        }
        let mark = Mark {
            flow: read.flow(),
            ecn: ecn::of(&read),
        };
        self.route(verdict, mark.flow, scope)?;
        if matches!(verdict, Outbound::Unicast(_)) {
            self.check_length(frame, &read, longest - ethernet::HEADER, out)?;
        }
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

    /// Tells the sender of a packet that is longer than its path carries, where it can be told.
    fn check_length(
        &mut self,
        bytes: &[u8],
        read: &Frame,
        longest: usize,
        out: &mut impl Output,
    ) -> Result<(), Reason> {
        let carries = self
            .route
            .first()
            .and_then(|peer| self.peers[*peer].path.mtu.carries());
        let Some(carries) = carries.filter(|carries| longest > usize::from(*carries)) else {
            return Ok(());
        };
        let mut answer = [0; too_big::MAX];
        let Some(length) = too_big::answer(bytes, read, carries, longest, &mut answer) else {
            return Ok(());
        };
        self.too_big_left = self.too_big_left.checked_sub(1).ok_or(Reason::TooManyTooLong)?;
        let room = out.frame(HEADROOM + length).ok_or(Reason::ReceiveBufferFull)?;
        room[HEADROOM..HEADROOM + length].copy_from_slice(&answer[..length]);
        out.deliver(HEADROOM, HEADROOM + length);
        Err(Reason::PathTooSmall)
    }

    /// Chooses the peers that get a frame into `self.route`.
    fn route(&mut self, verdict: Outbound, flow: u64, scope: Scope) -> Result<(), Reason> {
        self.route.clear();
        if let Outbound::Unicast(cluster) = verdict {
            let peer = self.pick(cluster.into(), flow).ok_or(Reason::NoTunnel)?;
            self.route.push(peer);
            return Ok(());
        }
        for cluster in 0..self.clusters.len() {
            let config = self.config.as_ref();
            let outside = config.is_some_and(|config| config.clusters[cluster].outside);
            if scope == Scope::Outside && !outside {
                continue;
            }
            match self.pick(cluster, flow) {
                Some(peer) => self.route.push(peer),
                // A cluster that has no gateway yet has no attachment either.
                None if self.clusters[cluster].is_empty() => {}
                None => self.drops.add(Reason::NoTunnel, 1),
            }
        }
        Ok(())
    }

    /// Sends one frame to the chosen peers.
    fn carry(&mut self, buffer: &mut [u8], length: usize, mark: Mark, out: &mut impl Output) {
        for peer in &self.route {
            let peer = &mut self.peers[*peer];
            let room = buffer.first_chunk_mut().expect("the caller's headroom");
            peer.template.write(room, length, mark.flow, mark.ecn);
            peer.carry(length, buffer, mark.ecn, out);
            if peer.path.wakes() {
                // Now, and not with the next tick: while it is not known whether the path works, frames may be lost.
                self.next_tick = self.last_tick;
            }
        }
    }

    /// The peer of a flow: of the healthy ones that want frames the one that the flow wants most, or, where there is
    /// none, of those that are healthy, or of those that at least have a session.
    fn pick(&self, cluster: usize, flow: u64) -> Option<usize> {
        let rank = |peer: &usize| {
            let peer = &self.peers[*peer];
            peer.session()?;
            Some((
                peer.path.takes_frames(),
                peer.path.up,
                flow::score(flow, peer.flow_key),
            ))
        };
        let ranked = self.clusters[cluster]
            .iter()
            .filter_map(|peer| Some((rank(peer)?, *peer)));
        ranked.max().map(|(_, peer)| peer)
    }

    /// Takes a datagram from the internet, which came with this ECN code point.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: Endpoint,
        ecn: u8,
        datagram: &[u8],
        out: &mut impl Output,
    ) {
        let Some(receiver) = noise::receiver_of_data(datagram) else {
            return self.handshake(now, from, datagram, out);
        };
        let Some(config) = &self.config else {
            return self.drops.add(Reason::NotConfigured, 1);
        };
        let slot = noise::slot_of(receiver);
        let Some(Some(peer)) = self.slots.get(slot) else {
            return self.drops.add(Reason::UnknownSession, 1);
        };
        let peer = &mut self.peers[*peer];
        if let Err(reason) = inbound(config, peer, slot, now, (from, ecn), datagram, out) {
            peer.drops.add(reason, 1);
        }
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Output) {
        if now < self.next_tick {
            return;
        }
        let stalled = self.has_stalled(now);
        let stall = now.saturating_duration_since(self.last_tick);
        (self.last_tick, self.next_tick) = (now, now + TICK);
        self.too_big_left = MAX_TOO_BIG;
        if now >= self.next_look {
            self.next_look = now + LOOK_EVERY;
            self.let_guests_go(now);
            let peers = self.peers.iter();
            self.keyring
                .know(now, peers.flat_map(|peer| peer.path.addresses()));
        }
        let Some(own) = self.config.as_ref().map(|config| config.vtep) else {
            return;
        };
        let turned = std::mem::replace(&mut self.reported_away, self.away) != self.away;
        for place in 0..self.peers.len() {
            let peer = &mut self.peers[place];
            if peer.rests(now) && !stalled && !turned {
                continue;
            }
            let was_up = peer.path.up;
            if stalled {
                peer.path.liveness.excuse(now, stall);
            }
            peer.tick(now, (own, self.away), &mut self.random, out);
            peer.probe_path(now, (own, self.away), &mut self.padded, out);
            self.report_change(place, was_up);
        }
        self.retire_when_due(now);
    }

    /// Tells the outside what has become of a peer that was up, or was not.
    fn report_change(&mut self, place: usize, was_up: bool) {
        let peer = &mut self.peers[place];
        peer.downs += u64::from(was_up && !peer.path.up);
        let (up, away) = (peer.path.up, peer.path.liveness.is_away());
        let was_away = std::mem::replace(&mut peer.reported_away, away);
        if !peer.ours || (up, away) == (was_up, was_away) {
            return;
        }
        let name = peer.name.clone();
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

    /// Whether the next [`Self::handle_timeout`] comes so late that much may wait to be read, which must be read first.
    pub fn has_stalled(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_tick) >= STALL
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

    /// Peers with a tunnel that they began in a lane which we do not have.
    pub fn guests(&self) -> usize {
        self.peers.iter().filter(|peer| !peer.ours).count()
    }

    /// Counts frames that the caller could not deliver.
    pub fn count(&mut self, reason: Reason, frames: u64) {
        self.drops.add(reason, frames);
    }

    /// Everything that is counted.
    pub fn stats(&self, now: Instant) -> Stats {
        let (ours, guests): (Vec<_>, Vec<_>) = self.peers.iter().partition(|peer| peer.ours);
        let stats = |peer: &&Peer| PeerStats::new(peer, now, &self.config);
        let mut peers: Vec<PeerStats> = ours.iter().map(stats).collect();
        for guest in guests.iter().map(stats) {
            if let Some(peer) = peers.iter_mut().find(|peer| peer.name == guest.name) {
                peer.count(&guest);
            }
        }
        Stats {
            drops: self.drops,
            reach: self.reach(),
            keys: self.keys(),
            key_age: self.keyring.age(now),
            renewal_waits_for: self.renewal_waits_for(now).map(|peer| peer.name.clone()),
            peers,
        }
    }
}

/// Where frames can go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Peer clusters with a healthy tunnel whose far end wants frames.
    pub reached: usize,
    /// Hosts outside the clusters, the same.
    pub outside: usize,
    /// Peer clusters that have a gateway and are not reached; hosts outside the clusters do not count.
    pub missing: usize,
}

/// Who a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    /// Hosts outside the clusters, among those whom a group address is meant for.
    Outside,
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
    slot: usize,
    now: Instant,
    (from, ecn): (Endpoint, u8),
    datagram: &[u8],
    out: &mut impl Output,
) -> Result<(), Reason> {
    let room = out.frame(datagram.len()).ok_or(Reason::ReceiveBufferFull)?;
    let length = peer.open(slot, now, from, datagram, room)?;
    let packet = &room[..length];
    if packet.is_empty() {
        return Ok(());
    }
    match vxlan::parse(packet, peer.vtep, config.vtep, config.vni)? {
        Inner::Frame(frame) => {
            let read = config.segment.inbound(frame, peer.cluster)?;
            let bytes = frame.len();
            // A mark on the datagram stands for one on the packet in it.
            let outer = if ecn == ecn::CE { ecn::CE } else { packet[1] & 3 };
            ecn::decapsulate(&mut room[HEADROOM..length], &read, outer)?;
            peer.received.add(bytes);
            out.deliver(HEADROOM, length);
            Ok(())
        }
        Inner::Icmp(icmp) => match probe::parse(icmp) {
            Message::Request {
                identifier,
                sequence,
                report,
                answers_padded,
            } => {
                let mut answer = [0; ip::V4_HEADER + probe::MAX_ECHO];
                let length = probe::reply(config.vtep, peer.vtep, icmp, &mut answer);
                peer.on_probe(
                    (identifier, sequence),
                    report,
                    answers_padded,
                    &answer[..length],
                    out,
                );
                Ok(())
            }
            Message::Reply { identifier, sequence } => {
                peer.on_echo(now, identifier, sequence);
                Ok(())
            }
            Message::Other => Err(Reason::NotVxlan),
        },
    }
}
