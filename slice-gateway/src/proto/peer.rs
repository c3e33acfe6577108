//! A gateway of another cluster: its tunnels, the path to it, and what it was sent.
//!
//! There is one tunnel for each key of ours with each key of the peer's: one in all, and more only while one of the two
//! changes from one key to the next. Frames and probes take the newest that has a session; where the peer is and
//! whether it lives does not depend on the tunnel, and is the [`Path`]'s.
//!
//! A gateway that has more lanes than we ([`super::lane`]) is a peer once more for each tunnel that it begins with one
//! of those: frames only come that way.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use slice_frame::ethernet;

use super::{
    Endpoint, Fragmentation, Output, Socket, config, ecn, endpoint, flow,
    keyring::Serial,
    noise::{MAX_HANDSHAKE, OVERHEAD, Session, TIMERS},
    path::Path,
    probe::{self, Report},
    random::Random,
    reason::{Drops, Reason},
    tunnel::Tunnel,
    vxlan::{self, Template},
};

/// How long after the last data in it a tunnel may still be what the peer sends through: it probes more often.
const IN_USE: Duration = Duration::from_millis(2500);
/// How long a tunnel that the peer began, and that is not ours to begin, may be without a session.
const GUEST_LIMIT: Duration = Duration::from_secs(10);

/// In the identifier of a probe that is padded.
const PADDED: u16 = 1 << 15;

/// Bytes and frames carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    pub frames: u64,
    /// Of Ethernet.
    pub bytes: u64,
}

impl Carried {
    pub(super) fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

pub(super) struct Peer {
    pub(super) name: String,
    /// The lane that begins its tunnels.
    pub(super) lane: u8,
    /// That is a lane of ours, so that frames go this way.
    pub(super) ours: bool,
    pub(super) cluster: u16,
    /// What it answers to, newest first.
    keys: Vec<[u8; 32]>,
    pub(super) vtep: Ipv4Addr,
    pub(super) template: Template,
    /// The newest first.
    tunnels: Vec<Tunnel>,
    pub(super) path: Path,
    /// Among the peers of a cluster; see [`flow::score`].
    pub(super) flow_key: u64,
    /// What was last told of whether it wants frames.
    pub(super) reported_away: bool,
    since: Instant,
    next_timers: Instant,
    /// How often its path went down.
    pub(super) downs: u64,
    /// Handshakes completed.
    pub(super) handshakes: u64,
    pub(super) sent: Carried,
    pub(super) received: Carried,
    pub(super) drops: Drops,
}

impl Peer {
    /// A peer without tunnels: see [`Self::weave`]. They are begun by this `lane`, which is `ours` or only the peer's.
    pub(super) fn new(
        own: (Ipv4Addr, u32),
        gateway: &config::Gateway,
        (lane, ours): (u8, bool),
        now: Instant,
    ) -> Self {
        let flow_key = flow::tunnel_key(&gateway.name);
        let mut this = Self {
            name: gateway.name.clone(),
            lane,
            ours,
            keys: Vec::new(),
            cluster: gateway.cluster,
            vtep: gateway.vtep,
            template: Template::new(own.0, gateway.vtep, own.1),
            tunnels: Vec::new(),
            path: Path::new(flow_key ^ u64::from(lane)),
            flow_key,
            reported_away: false,
            since: now,
            next_timers: now,
            downs: 0,
            handshakes: 0,
            sent: Carried::default(),
            received: Carried::default(),
            drops: Drops::default(),
        };
        this.configure(own, gateway);
        this
    }

    /// A peer that has begun a tunnel which is not ours to begin.
    pub(super) fn guest(
        own: (Ipv4Addr, u32),
        gateway: &config::Gateway,
        lane: u8,
        tunnel: Tunnel,
        now: Instant,
    ) -> Self {
        Self {
            tunnels: vec![tunnel],
            ..Self::new(own, gateway, (lane, false), now)
        }
    }

    /// Takes what may change without a new session.
    pub(super) fn configure(&mut self, own: (Ipv4Addr, u32), gateway: &config::Gateway) {
        self.cluster = gateway.cluster;
        self.keys.clone_from(&gateway.public_keys);
        self.path.liveness.set_stock(gateway.outside);
        self.vtep = gateway.vtep;
        self.template = Template::new(own.0, gateway.vtep, own.1);
        if self.path.set_candidates(&gateway.endpoints) {
            for tunnel in &mut self.tunnels {
                tunnel.dial = None;
            }
        }
    }

    /// Makes the tunnels those between our keys and the peer's, both newest first. The ones that stay keep their
    /// sessions; `make` makes those that are missing.
    ///
    /// A peer of which nothing stays is another process: what was known of the one before does not hold.
    pub(super) fn weave(&mut self, own: &[Serial], mut make: impl FnMut(Serial, [u8; 32]) -> Tunnel) {
        let mut old = std::mem::take(&mut self.tunnels);
        if !old.iter().any(|tunnel| self.keys.contains(&tunnel.key)) {
            self.path.restart();
        }
        for key in &self.keys {
            for own in own {
                let kept = old
                    .iter()
                    .position(|tunnel| (tunnel.own, tunnel.key) == (*own, *key));
                let tunnel = kept.map_or_else(|| make(*own, *key), |place| old.swap_remove(place));
                self.tunnels.push(tunnel);
            }
        }
    }

    pub(super) fn tunnels(&self) -> &[Tunnel] {
        &self.tunnels
    }

    /// The tunnel that frames take: the newest that has a session.
    fn best(&self) -> Option<&Tunnel> {
        self.tunnels.iter().find(|tunnel| tunnel.has_session())
    }

    /// The session that frames take.
    pub(super) fn session(&self) -> Option<Session> {
        self.best()?.noise.session()
    }

    /// Whether one of our keys has a session with the peer.
    pub(super) fn has_session_of(&self, own: Serial) -> bool {
        let mut tunnels = self.tunnels.iter();
        tunnels.any(|tunnel| tunnel.own == own && tunnel.has_session())
    }

    /// Whether it is a guest that does not come any more.
    pub(super) fn has_left(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since);
        !self.ours && self.session().is_none() && age >= GUEST_LIMIT
    }

    /// Whether frames between us and the peer still rely on this key of ours.
    pub(super) fn relies_on(&self, own: Serial, now: Instant) -> bool {
        let receives = |tunnel: &Tunnel| {
            let since = |at| now.saturating_duration_since(at);
            tunnel.own == own && tunnel.received.is_some_and(|at| since(at) < IN_USE)
        };
        let sends = self.path.up && self.best().is_some_and(|best| best.own == own);
        sends || self.tunnels.iter().any(receives)
    }

    /// Encrypts a packet to where the peer is. `None` where there is no session, `Some(false)` where there is no
    /// room.
    pub(super) fn send(
        &mut self,
        packet: &[u8],
        ecn: u8,
        fragmentation: Fragmentation,
        out: &mut impl Output,
    ) -> Option<bool> {
        let to = self.path.destination(ecn, fragmentation)?;
        for tunnel in self.tunnels.iter_mut().filter(|tunnel| tunnel.has_session()) {
            let Some(room) = out.datagram(to, packet.len() + OVERHEAD) else {
                return Some(false);
            };
            if tunnel.noise.seal(packet, room) {
                out.send();
                return Some(true);
            }
        }
        None
    }

    /// Decrypts a data message for the tunnel with this slot into `out`, which is at least as long, and returns the
    /// packet's length.
    pub(super) fn open(
        &mut self,
        slot: usize,
        now: Instant,
        from: Endpoint,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Reason> {
        let tunnel = self.tunnels.iter_mut().find(|tunnel| tunnel.slot == slot);
        let tunnel = tunnel.ok_or(Reason::UnknownSession)?;
        let opened = tunnel.noise.open(datagram, out)?;
        tunnel.received = Some(now);
        if opened.confirmed {
            tunnel.dial = None;
            self.on_session(now);
        }
        self.path.liveness.on_received(now);
        // Where both ends have begun a session, each by sockets of its own, each may use another one of the two: the
        // way that the peer's frames take is then not ours.
        let same = |known: Endpoint| known.socket == from.socket || opened.current;
        if self.path.endpoint.is_none_or(same) {
            self.path.endpoint = Some(from);
        }
        Ok(opened.length)
    }

    /// Sends a frame: `packet` is its headers and its `frame` bytes.
    pub(super) fn carry(&mut self, frame: usize, packet: &[u8], ecn: u8, out: &mut impl Output) {
        let fragmentation = self.path.fragmentation(frame - ethernet::HEADER);
        match self.send(packet, ecn, fragmentation, out) {
            Some(true) => self.sent.add(frame),
            Some(false) => self.drops.add(Reason::SendBufferFull, 1),
            None => self.drops.add(Reason::NoTunnel, 1),
        }
    }

    /// The peer probes us: sends the answer, and takes note of what it reports.
    pub(super) fn on_probe(
        &mut self,
        (identifier, sequence): (u16, u16),
        report: Option<Report>,
        answers_padded: bool,
        answer: &[u8],
        out: &mut impl Output,
    ) {
        self.path.stirred = true;
        // Padded probes have numbers of their own.
        if identifier & PADDED == 0 || report.is_none() {
            self.path.liveness.on_probe(sequence, report);
        }
        if answers_padded {
            self.path.mtu.start();
        }
        self.send(answer, ecn::NOT_ECT, Fragmentation::Never, out);
    }

    /// The peer answered a probe.
    pub(super) fn on_echo(&mut self, now: Instant, identifier: u16, sequence: u16) {
        if identifier == self.identifier(true) {
            self.path.mtu.on_echo(sequence);
        } else {
            self.path.liveness.on_echo(now, sequence);
        }
    }

    /// Of probes that are padded, and of those that are not.
    fn identifier(&self, padded: bool) -> u16 {
        (self.flow_key & 0x7fff) as u16 | if padded { PADDED } else { 0 }
    }

    /// Sends the padded probes that are due.
    pub(super) fn probe_path(
        &mut self,
        now: Instant,
        (own, away): (Ipv4Addr, bool),
        packet: &mut Vec<u8>,
        out: &mut impl Output,
    ) {
        if !self.ours || !self.path.up {
            return;
        }
        let liveness = &self.path.liveness;
        let report = liveness.report(now, away);
        let (rtt, received) = (liveness.rtt(), liveness.received());
        while let Some((size, sequence)) = self.path.mtu.poll(now, rtt, received) {
            // As long as a frame with a packet of this size.
            packet.resize(vxlan::HEADER + ethernet::HEADER + usize::from(size), 0);
            probe::request(own, self.vtep, self.identifier(true), sequence, report, packet);
            self.send(packet, ecn::NOT_ECT, Fragmentation::Probe, out);
        }
    }

    /// Takes a handshake message for the tunnel with this slot, and answers it.
    pub(super) fn handshake(
        &mut self,
        slot: usize,
        now: Instant,
        from: Endpoint,
        datagram: &[u8],
        out: &mut impl Output,
    ) -> Result<(), Reason> {
        let tunnel = self.tunnels.iter_mut().find(|tunnel| tunnel.slot == slot);
        let tunnel = tunnel.ok_or(Reason::UnknownSession)?;
        // An initiation moves nothing yet: it may be one that was recorded in another lane. What completes it does.
        if tunnel.handshake(now, from, datagram, out)? {
            self.path.liveness.on_received(now);
            self.path.endpoint = Some(from);
            self.on_session(now);
        }
        Ok(())
    }

    /// A handshake is complete.
    fn on_session(&mut self, now: Instant) {
        self.path.stirred = true;
        self.path.liveness.on_session(now);
        self.handshakes += 1;
    }

    /// Whether nothing is due before its timers are.
    pub(super) fn rests(&self, now: Instant) -> bool {
        self.path.rests() && now < self.next_timers
    }

    /// Does what is due: timers, probe, handshake. Called every [`super::TICK`]. `own` is the own VTEP, and whether
    /// we want no frames.
    pub(super) fn tick(
        &mut self,
        now: Instant,
        (own, away): (Ipv4Addr, bool),
        random: &mut Random,
        out: &mut impl Output,
    ) {
        if now >= self.next_timers {
            self.next_timers = now + TIMERS;
            let mut message = [0; MAX_HANDSHAKE];
            for tunnel in &mut self.tunnels {
                let length = tunnel.noise.tick(now, &mut message);
                if let Some(to) = self.path.endpoint {
                    endpoint::write(out, to, &message[..length]);
                }
            }
        }
        let session = self.session().is_some();
        self.path.tick(now, session);
        if session && let Some((sequence, report)) = self.path.liveness.poll_probe(now, away) {
            let mut packet = [0; probe::PROBE];
            let identifier = self.identifier(false);
            probe::request(own, self.vtep, identifier, sequence, report, &mut packet);
            self.send(&packet, ecn::NOT_ECT, Fragmentation::Never, out);
        }
        if !self.ours && !self.path.up {
            // It is begun where it is wanted; only what is missing beside a session is made from here, too.
            return;
        }
        let socket = if self.lane == 0 {
            Socket::Listening
        } else {
            Socket::Dialing
        };
        for tunnel in &mut self.tunnels {
            tunnel.dial(now, self.path.up, self.path.places(socket), random, out);
        }
    }
}
