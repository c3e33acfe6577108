//! The path to a peer: where it is, whether it carries, and how large packets may be. It does not depend on the tunnel
//! that is used.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{Destination, Endpoint, Fragmentation, Socket, liveness::Liveness, mtu, path_mtu::PathMtu};

pub(super) struct Path {
    /// Where the last authentic datagram came from.
    pub(super) endpoint: Option<Endpoint>,
    /// Where else the peer may be.
    candidates: Vec<SocketAddr>,
    pub(super) liveness: Liveness,
    pub(super) mtu: PathMtu,
    /// As of the last tick.
    pub(super) up: bool,
    /// No frames had been sent for a while, as of the last tick.
    idle: bool,
    /// Both ends probe slowly, as of the last tick.
    slow: bool,
    /// Frames were sent since the last tick.
    used: bool,
    /// The peer said something since the last tick.
    pub(super) stirred: bool,
    /// Frames that were longer than the path carries.
    pub(super) fragmented: u64,
}

impl Path {
    /// `seed` spreads the probes of a gateway's paths over time.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            endpoint: None,
            candidates: Vec::new(),
            liveness: Liveness::new(seed),
            mtu: PathMtu::default(),
            up: false,
            idle: false,
            slow: false,
            used: false,
            stirred: false,
            fragmented: 0,
        }
    }

    /// Takes where the peer may be; says whether that is new.
    pub(super) fn set_candidates(&mut self, candidates: &[SocketAddr]) -> bool {
        let new = self.candidates != candidates;
        if new {
            self.candidates = candidates.to_vec();
        }
        new
    }

    /// Another process is at the far end: what was known of the one before does not hold.
    pub(super) fn restart(&mut self) {
        self.liveness.restart();
        self.mtu.restart();
        self.endpoint = None;
    }

    /// Where it may be.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let endpoint = self.endpoint.iter().map(|endpoint| &endpoint.address);
        endpoint.chain(&self.candidates).map(SocketAddr::ip)
    }

    /// Where a handshake is tried by this socket: while the path is up where the peer is; in silence everything that is
    /// known, in turn.
    pub(super) fn places(&self, socket: Socket) -> impl Iterator<Item = Endpoint> + Clone {
        let candidates = self.candidates.iter().map(move |address| Endpoint {
            address: *address,
            socket,
        });
        let others = candidates.filter(|other| !self.up && self.endpoint != Some(*other));
        self.endpoint.into_iter().chain(others)
    }

    /// How a frame whose packet has this `length` is sent there.
    pub(super) fn fragmentation(&mut self, length: usize) -> Fragmentation {
        self.used = true;
        if length > mtu::MIN.into() {
            self.mtu.on_large();
        }
        let carries = self.mtu.carries();
        if carries.is_some_and(|carries| length > carries.into()) {
            self.fragmented += 1;
            Fragmentation::Allowed
        } else {
            Fragmentation::Never
        }
    }

    /// Frames go this way again after a while, so what is known of it may be old.
    pub(super) fn wakes(&self) -> bool {
        self.used && self.idle
    }

    /// Nothing is going on, so that it need not be looked at with every tick.
    pub(super) fn rests(&self) -> bool {
        self.up && self.slow && !self.used && !self.stirred && self.mtu.rests()
    }

    /// Judges the path as of now; without a session it carries nothing.
    pub(super) fn tick(&mut self, now: Instant, session: bool) {
        if std::mem::take(&mut self.used) {
            self.liveness.on_use(now);
        }
        self.stirred = false;
        self.idle = !self.liveness.is_in_use(now);
        self.slow = self.liveness.is_slow();
        self.up = self.liveness.assess(now) && session;
    }

    /// Whether frames should go this way.
    pub(super) fn takes_frames(&self) -> bool {
        self.up && !self.liveness.is_away()
    }

    pub(super) fn destination(&self, ecn: u8, fragmentation: Fragmentation) -> Option<Destination> {
        Some(Destination {
            endpoint: self.endpoint?,
            ecn,
            fragmentation,
        })
    }
}
