//! A gateway of another cluster: its tunnel, where it is, and whether it is there.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    Destination, Output, config, ecn, flow, ip,
    liveness::Liveness,
    probe::{self, Word},
    random::Random,
    reason::{Drops, Reason},
    tunnel::{Identity, MAX_HANDSHAKE, OVERHEAD, REKEY_AFTER, Tunnel},
    vxlan::Template,
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
}

pub(super) struct Peer {
    pub(super) name: String,
    pub(super) cluster: u16,
    pub(super) vtep: Ipv4Addr,
    pub(super) template: Template,
    pub(super) tunnel: Tunnel,
    pub(super) liveness: Liveness,
    /// Among the tunnels to a cluster; see [`flow::score`].
    pub(super) flow_key: u64,
    /// As of the last tick.
    pub(super) up: bool,
    /// Whether it was away as of the last tick.
    pub(super) told_away: bool,
    /// Where the last authentic datagram came from.
    pub(super) endpoint: Option<SocketAddr>,
    configured: Vec<SocketAddr>,
    dial: Option<Dial>,
    pub(super) sent: Carried,
    pub(super) received: Carried,
    pub(super) drops: Drops,
}

/// A handshake that is wanted.
#[derive(Clone, Copy, Debug)]
struct Dial {
    at: Instant,
    attempt: u32,
}

impl Peer {
    pub(super) fn new(
        identity: &Identity,
        own: (Ipv4Addr, u32),
        gateway: &config::Gateway,
        slot: usize,
        now: Instant,
        random: &mut Random,
    ) -> Self {
        let mut this = Self {
            name: gateway.name.clone(),
            cluster: gateway.cluster,
            vtep: gateway.vtep,
            template: Template::new(own.0, gateway.vtep, own.1),
            tunnel: Tunnel::new(identity, gateway.public_key, slot),
            liveness: Liveness::default(),
            flow_key: flow::tunnel_key(&gateway.name),
            up: false,
            told_away: false,
            endpoint: None,
            configured: Vec::new(),
            dial: None,
            sent: Carried::default(),
            received: Carried::default(),
            drops: Drops::default(),
        };
        this.configure(own, gateway);
        this.dial = Some(Dial {
            at: now + random.below(FIRST_DIAL),
            attempt: 0,
        });
        this
    }

    /// Takes what may change without a new session.
    pub(super) fn configure(&mut self, own: (Ipv4Addr, u32), gateway: &config::Gateway) {
        self.cluster = gateway.cluster;
        self.vtep = gateway.vtep;
        self.template = Template::new(own.0, gateway.vtep, own.1);
        if self.configured != gateway.endpoints {
            self.configured.clone_from(&gateway.endpoints);
            self.dial = None;
        }
    }

    /// Encrypts a packet to where the peer is. `None` where there is no session, `Some(false)` where there is no
    /// room.
    pub(super) fn send(&mut self, packet: &[u8], ecn: u8, out: &mut impl Output) -> Option<bool> {
        self.tunnel.session()?;
        let to = Destination {
            address: self.endpoint?,
            ecn,
        };
        let Some(room) = out.datagram(to, packet.len() + OVERHEAD) else {
            return Some(false);
        };
        if !self.tunnel.seal(packet, room) {
            return None;
        }
        out.send();
        Some(true)
    }

    /// Sends a frame: `packet` is its headers and its `frame` bytes.
    pub(super) fn carry(&mut self, frame: usize, packet: &[u8], ecn: u8, out: &mut impl Output) {
        match self.send(packet, ecn, out) {
            Some(true) => self.sent.add(frame),
            Some(false) => self.drops.add(Reason::SendBufferFull, 1),
            None => self.drops.add(Reason::NoTunnel, 1),
        }
    }

    /// Where it may be.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoint.iter().chain(&self.configured).map(SocketAddr::ip)
    }

    /// Something authentic has arrived from there.
    pub(super) fn on_heard(&mut self, now: Instant, from: SocketAddr) {
        self.liveness.on_heard(now);
        if self.endpoint != Some(from) {
            self.endpoint = Some(from);
        }
    }

    /// The peer probes us: answers, and takes note of what it said.
    pub(super) fn on_probe(&mut self, own: Ipv4Addr, word: Option<Word>, icmp: &[u8], out: &mut impl Output) {
        self.liveness.on_probe(word);
        let mut answer = [0; ip::V4_HEADER + probe::MAX_ECHO];
        let length = probe::reply(own, self.vtep, icmp, &mut answer);
        self.send(&answer[..length], ecn::NOT_ECT, out);
    }

    /// Takes a handshake message for this peer, and answers it.
    pub(super) fn handshake(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut impl Output,
    ) -> Result<(), Reason> {
        let mut reply = [0; MAX_HANDSHAKE];
        let before = self.tunnel.handshakes();
        let length = self.tunnel.handshake(now, datagram, &mut reply)?;
        if length > 0 {
            self.on_heard(now, from);
        }
        write(out, from, &reply[..length]);
        loop {
            let length = self.tunnel.flush(&mut reply);
            if length == 0 {
                break;
            }
            write(out, from, &reply[..length]);
        }
        if self.tunnel.handshakes() > before {
            self.on_session(now);
        }
        Ok(())
    }

    /// A handshake is complete.
    pub(super) fn on_session(&mut self, now: Instant) {
        self.liveness.on_session(now);
        self.dial = None;
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
        let length = self.tunnel.tick(now, &mut message);
        if let Some(to) = self.endpoint {
            write(out, to, &message[..length]);
        }
        self.up = self.tunnel.session().is_some() && self.liveness.is_up(now);
        if self.tunnel.session().is_some()
            && let Some((sequence, word)) = self.liveness.poll_probe(now, away)
        {
            let mut packet = [0; probe::PROBE];
            let identifier = (self.flow_key & 0xffff) as u16;
            probe::request(own, self.vtep, identifier, sequence, word, &mut packet);
            self.send(&packet, ecn::NOT_ECT, out);
        }
        self.dial(now, random, out);
    }

    /// Starts a handshake where one is wanted and due.
    fn dial(&mut self, now: Instant, random: &mut Random, out: &mut impl Output) {
        let fresh = self.tunnel.session().is_some_and(|session| {
            let patience = if session.initiator {
                Duration::ZERO
            } else {
                RESPONDER_PATIENCE
            };
            now.saturating_duration_since(session.established) < REKEY_AFTER + patience
        });
        if self.up && fresh && !self.tunnel.wants_handshake() {
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
        // While the peer is heard it is where it is; in silence everything that is known is tried in turn.
        let others = self
            .configured
            .iter()
            .filter(|other| !self.up && self.endpoint != Some(**other));
        let candidates = self.endpoint.iter().chain(others);
        let Some(to) = candidates
            .clone()
            .nth(attempt % candidates.count().max(1))
            .copied()
        else {
            return;
        };
        let mut message = [0; MAX_HANDSHAKE];
        let length = self.tunnel.initiate(&mut message);
        write(out, to, &message[..length]);
    }
}

/// Sends a message as it is; drops it where there is no room.
pub(super) fn write(out: &mut impl Output, to: SocketAddr, message: &[u8]) {
    if message.is_empty() {
        return;
    }
    if let Some(room) = out.datagram(to.into(), message.len()) {
        room.copy_from_slice(message);
        out.send();
    }
}
