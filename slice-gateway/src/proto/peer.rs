//! A gateway of another cluster: its tunnels, where it is, and whether it is there.
//!
//! There is one tunnel for each key of ours with each key of the peer's: one in all, and more only while one of the two
//! changes from one key to the next. Frames and probes take the newest that has a session; where the peer is and
//! whether it lives does not depend on the tunnel.
//!
//! A gateway that has more lanes than we ([`super::lane`]) is a peer once more for each tunnel that it begins with one
//! of those: frames only come that way.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use slice_frame::ethernet;

use super::{
    Destination, Fragmentation, Output, Path, Socket, config, ecn, flow,
    keyring::Serial,
    liveness::Liveness,
    mtu,
    path_mtu::PathMtu,
    probe::{self, Word},
    random::Random,
    reason::{Drops, Reason},
    tunnel::{Identity, MAX_HANDSHAKE, OVERHEAD, REKEY_AFTER, Session, Tunnel},
    vxlan::{self, Template},
};

/// Between two attempts at a handshake: doubled from the first to the last (REKEY_TIMEOUT of the WireGuard paper).
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Random extra on every attempt (WireGuard paper §6.4), so that peers that lost each other together do not try
/// together.
const JITTER: Duration = Duration::from_millis(333);
/// Before the first attempt to a new peer: a configuration with many peers does not start with a burst.
const FIRST_DIAL: Duration = Duration::from_millis(250);
/// How much later than the initiator the responder of a session replaces it, should the initiator not.
const RESPONDER_PATIENCE: Duration = Duration::from_secs(30);

/// How long after the last data in it a tunnel may still be what the peer sends through: it probes more often.
const IN_USE: Duration = Duration::from_secs(1);

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
    links: Vec<Link>,
    pub(super) liveness: Liveness,
    pub(super) path_mtu: PathMtu,
    /// Frames that were longer than the path carries.
    pub(super) fragmented: u64,
    /// Among the tunnels to a cluster; see [`flow::score`].
    pub(super) flow_key: u64,
    /// As of the last tick.
    pub(super) up: bool,
    /// Whether it was away as of the last tick.
    pub(super) told_away: bool,
    /// Where the last authentic datagram came from.
    pub(super) endpoint: Option<Path>,
    configured: Vec<SocketAddr>,
    /// Handshakes completed.
    pub(super) handshakes: u64,
    pub(super) sent: Carried,
    pub(super) received: Carried,
    pub(super) drops: Drops,
}

/// The tunnel between one of our keys and one of the peer's.
pub(super) struct Link {
    pub(super) own: Serial,
    pub(super) key: [u8; 32],
    /// Part of the session numbers that the peer uses.
    pub(super) slot: usize,
    tunnel: Tunnel,
    dial: Option<Dial>,
    /// When data last came through.
    heard: Option<Instant>,
}

/// A handshake that is wanted.
#[derive(Clone, Copy, Debug)]
struct Dial {
    at: Instant,
    attempt: u32,
}

impl Link {
    /// A tunnel whose first handshake is due within a moment.
    pub(super) fn new(
        (own, identity): (Serial, &Identity),
        key: [u8; 32],
        (slot, lane): (usize, u8),
        now: Instant,
        random: &mut Random,
    ) -> Self {
        Self {
            own,
            key,
            slot,
            tunnel: Tunnel::new(identity, key, slot, lane),
            dial: Some(Dial {
                at: now + random.below(FIRST_DIAL),
                attempt: 0,
            }),
            heard: None,
        }
    }
}

impl Peer {
    /// A peer without tunnels: see [`Self::weave`]. They are begun by this `lane`, which is `ours` or only the peer's.
    pub(super) fn new(own: (Ipv4Addr, u32), gateway: &config::Gateway, lane: u8, ours: bool) -> Self {
        let mut this = Self {
            name: gateway.name.clone(),
            lane,
            ours,
            keys: Vec::new(),
            cluster: gateway.cluster,
            vtep: gateway.vtep,
            template: Template::new(own.0, gateway.vtep, own.1),
            links: Vec::new(),
            liveness: Liveness::default(),
            path_mtu: PathMtu::default(),
            fragmented: 0,
            flow_key: flow::tunnel_key(&gateway.name),
            up: false,
            told_away: false,
            endpoint: None,
            configured: Vec::new(),
            handshakes: 0,
            sent: Carried::default(),
            received: Carried::default(),
            drops: Drops::default(),
        };
        this.configure(own, gateway);
        this
    }

    /// Takes what may change without a new session.
    pub(super) fn configure(&mut self, own: (Ipv4Addr, u32), gateway: &config::Gateway) {
        self.cluster = gateway.cluster;
        self.keys.clone_from(&gateway.public_keys);
        self.liveness.set_stock(gateway.outside);
        self.vtep = gateway.vtep;
        self.template = Template::new(own.0, gateway.vtep, own.1);
        if self.configured != gateway.endpoints {
            self.configured.clone_from(&gateway.endpoints);
            for link in &mut self.links {
                link.dial = None;
            }
        }
    }

    /// Makes the tunnels those between our keys and the peer's, both newest first. The ones that stay keep their
    /// sessions; `make` makes those that are missing.
    ///
    /// A peer of which nothing stays is another process: what was known of the one before does not hold.
    pub(super) fn weave(&mut self, own: &[Serial], mut make: impl FnMut(Serial, [u8; 32]) -> Link) {
        let mut old = std::mem::take(&mut self.links);
        if !old.iter().any(|link| self.keys.contains(&link.key)) {
            self.liveness.restart();
            self.path_mtu.restart();
            self.endpoint = None;
        }
        for key in &self.keys {
            for own in own {
                let kept = old.iter().position(|link| (link.own, link.key) == (*own, *key));
                let link = kept.map_or_else(|| make(*own, *key), |place| old.swap_remove(place));
                self.links.push(link);
            }
        }
    }

    pub(super) fn links(&self) -> &[Link] {
        &self.links
    }

    /// The tunnel that frames take: the newest that has a session.
    fn best(&self) -> Option<&Link> {
        self.links.iter().find(|link| link.tunnel.session().is_some())
    }

    /// The session that frames take.
    pub(super) fn session(&self) -> Option<Session> {
        self.best()?.tunnel.session()
    }

    /// Whether one of our keys has a session with the peer.
    pub(super) fn has_session_of(&self, own: Serial) -> bool {
        let mut links = self.links.iter();
        links.any(|link| link.own == own && link.tunnel.session().is_some())
    }

    /// Whether frames between us and the peer still rely on this key of ours.
    pub(super) fn relies_on(&self, own: Serial, now: Instant) -> bool {
        let heard = |link: &Link| {
            link.heard
                .is_some_and(|heard| now.saturating_duration_since(heard) < IN_USE)
        };
        let receives = self.links.iter().any(|link| link.own == own && heard(link));
        let sends = self.up && self.best().is_some_and(|best| best.own == own);
        receives || sends
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
        let to = Destination {
            path: self.endpoint?,
            ecn,
            fragmentation,
        };
        let sessions = |link: &&mut Link| link.tunnel.session().is_some();
        for link in self.links.iter_mut().filter(sessions) {
            let Some(room) = out.datagram(to, packet.len() + OVERHEAD) else {
                return Some(false);
            };
            if link.tunnel.seal(packet, room) {
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
        from: Path,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Reason> {
        let link = self.links.iter_mut().find(|link| link.slot == slot);
        let link = link.ok_or(Reason::UnknownSession)?;
        let opened = link.tunnel.open(datagram, out)?;
        link.heard = Some(now);
        if opened.confirmed {
            link.dial = None;
            self.on_session(now);
        }
        self.liveness.on_heard(now);
        // Where both ends have begun a session, each by sockets of its own, each may use another one of the two: the
        // way that the peer's frames take is then not ours.
        let same = |known: Path| known.socket == from.socket || opened.current;
        if self.endpoint.is_none_or(same) {
            self.endpoint = Some(from);
        }
        Ok(opened.length)
    }

    /// Sends a frame: `packet` is its headers and its `frame` bytes.
    pub(super) fn carry(&mut self, frame: usize, packet: &[u8], ecn: u8, out: &mut impl Output) {
        let length = frame - ethernet::HEADER;
        if length > mtu::MIN.into() {
            self.path_mtu.on_large();
        }
        let carries = self.path_mtu.carries();
        let fragmentation = if carries.is_some_and(|carries| length > carries.into()) {
            self.fragmented += 1;
            Fragmentation::Allowed
        } else {
            Fragmentation::Never
        };
        match self.send(packet, ecn, fragmentation, out) {
            Some(true) => self.sent.add(frame),
            Some(false) => self.drops.add(Reason::SendBufferFull, 1),
            None => self.drops.add(Reason::NoTunnel, 1),
        }
    }

    /// Where it may be.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let endpoint = self.endpoint.iter().map(|path| &path.address);
        endpoint.chain(&self.configured).map(SocketAddr::ip)
    }

    /// The peer probes us: sends the answer, and takes note of what it said.
    pub(super) fn on_probe(
        &mut self,
        word: Option<Word>,
        answers_padded: bool,
        answer: &[u8],
        out: &mut impl Output,
    ) {
        self.liveness.on_probe(word);
        if answers_padded {
            self.path_mtu.start();
        }
        self.send(answer, ecn::NOT_ECT, Fragmentation::Never, out);
    }

    /// The peer answered a probe.
    pub(super) fn on_echo(&mut self, now: Instant, identifier: u16, sequence: u16) {
        if identifier == self.identifier(true) {
            self.path_mtu.on_echo(sequence);
        } else {
            self.liveness.on_echo(now, sequence);
        }
    }

    /// Of probes that are padded, and of those that are not.
    fn identifier(&self, padded: bool) -> u16 {
        (self.flow_key & 0x7fff) as u16 | u16::from(padded) << 15
    }

    /// Sends the padded probes that are due.
    pub(super) fn probe_path(
        &mut self,
        now: Instant,
        (own, away): (Ipv4Addr, bool),
        packet: &mut Vec<u8>,
        out: &mut impl Output,
    ) {
        if !self.ours || !self.up {
            return;
        }
        let word = self.liveness.word(now, away);
        let (rtt, heard) = (self.liveness.rtt(), self.liveness.heard());
        while let Some((size, sequence)) = self.path_mtu.poll(now, rtt, heard) {
            // As long as a frame with a packet of this size.
            packet.resize(vxlan::HEADER + ethernet::HEADER + usize::from(size), 0);
            probe::request(own, self.vtep, self.identifier(true), sequence, word, packet);
            self.send(packet, ecn::NOT_ECT, Fragmentation::Probe, out);
        }
    }

    /// Takes a handshake message for the tunnel with this slot, and answers it.
    pub(super) fn handshake(
        &mut self,
        slot: usize,
        now: Instant,
        from: Path,
        datagram: &[u8],
        out: &mut impl Output,
    ) -> Result<(), Reason> {
        let link = self.links.iter_mut().find(|link| link.slot == slot);
        let link = link.ok_or(Reason::UnknownSession)?;
        let mut reply = [0; MAX_HANDSHAKE];
        let before = link.tunnel.session();
        let length = link.tunnel.handshake(now, datagram, &mut reply)?;
        write(out, from, &reply[..length]);
        loop {
            let length = link.tunnel.flush(&mut reply);
            if length == 0 {
                break;
            }
            write(out, from, &reply[..length]);
        }
        let complete = link.tunnel.session() != before;
        // An initiation moves nothing yet: it may be one that was recorded in another lane. What completes it does.
        if complete {
            link.dial = None;
            self.liveness.on_heard(now);
            self.endpoint = Some(from);
            self.on_session(now);
        }
        Ok(())
    }

    /// A handshake is complete.
    fn on_session(&mut self, now: Instant) {
        self.liveness.on_session(now);
        self.handshakes += 1;
    }

    /// Whether frames should go this way.
    pub(super) fn takes_frames(&self) -> bool {
        self.up && !self.liveness.is_away()
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
        let mut message = [0; MAX_HANDSHAKE];
        for link in &mut self.links {
            let length = link.tunnel.tick(now, &mut message);
            if let Some(to) = self.endpoint {
                write(out, to, &message[..length]);
            }
        }
        let session = self.session().is_some();
        self.up = session && self.liveness.is_up(now);
        if session && let Some((sequence, word)) = self.liveness.poll_probe(now, away) {
            let mut packet = [0; probe::PROBE];
            probe::request(
                own,
                self.vtep,
                self.identifier(false),
                sequence,
                word,
                &mut packet,
            );
            self.send(&packet, ecn::NOT_ECT, Fragmentation::Never, out);
        }
        if !self.ours && !self.up {
            // It is begun where it is wanted; only what is missing beside a session is made from here, too.
            return;
        }
        let socket = if self.lane == 0 {
            Socket::Listening
        } else {
            Socket::Dialing
        };
        for link in &mut self.links {
            // While the peer is heard it is where it is; in silence everything that is known is tried in turn.
            let configured = self.configured.iter().map(|address| Path {
                address: *address,
                socket,
            });
            let others = configured.filter(|other| !self.up && self.endpoint != Some(*other));
            let candidates = self.endpoint.into_iter().chain(others);
            link.dial(now, self.up, candidates, random, out);
        }
    }
}

impl Link {
    /// Starts a handshake where one is wanted and due, at one of these addresses.
    fn dial(
        &mut self,
        now: Instant,
        up: bool,
        mut candidates: impl Iterator<Item = Path> + Clone,
        random: &mut Random,
        out: &mut impl Output,
    ) {
        let fresh = self.tunnel.session().is_some_and(|session| {
            let patience = if session.initiator {
                Duration::ZERO
            } else {
                RESPONDER_PATIENCE
            };
            now.saturating_duration_since(session.established) < REKEY_AFTER + patience
        });
        if up && fresh && !self.tunnel.wants_handshake() {
            self.dial = None;
            return;
        }
        let dial = self.dial.get_or_insert_with(|| Dial {
            at: now + random.below(JITTER),
            attempt: 0,
        });
        if dial.at > now {
            return;
        }
        let retry = FIRST_RETRY
            .saturating_mul(1 << dial.attempt.min(8))
            .min(LAST_RETRY);
        let attempt = dial.attempt as usize;
        *dial = Dial {
            at: now + retry + random.below(JITTER),
            attempt: dial.attempt.saturating_add(1),
        };
        let count = candidates.clone().count().max(1);
        let Some(to) = candidates.nth(attempt % count) else {
            return;
        };
        let mut message = [0; MAX_HANDSHAKE];
        let length = self.tunnel.initiate(&mut message);
        write(out, to, &message[..length]);
    }
}

/// Sends a message as it is; drops it where there is no room.
pub(super) fn write(out: &mut impl Output, to: Path, message: &[u8]) {
    if message.is_empty() {
        return;
    }
    if let Some(room) = out.datagram(to.into(), message.len()) {
        room.copy_from_slice(message);
        out.send();
    }
}
