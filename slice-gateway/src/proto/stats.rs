//! What the gateway has counted, as plain values.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Config, Keys, Reach,
    liveness::{Losses, Rtts},
    peer::{Carried, Peer},
    reason::Drops,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// What could not be laid at a peer's door.
    pub drops: Drops,
    pub reach: Reach,
    pub keys: Keys,
    /// Since the current key was made.
    pub key_age: Duration,
    /// The peer that is only reached by the former key while a new one is due.
    pub renewal_waits_for: Option<String>,
    pub peers: Vec<PeerStats>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    pub name: String,
    pub cluster: String,
    pub up: bool,
    /// It asks for frames to come another way.
    pub away: bool,
    pub endpoint: Option<SocketAddr>,
    /// Since the session in use was made.
    pub handshake_age: Option<Duration>,
    /// How often the path to it went down.
    pub downs: u64,
    pub handshakes: u64,
    pub rtt: Option<Duration>,
    /// Probes that were sent, and that came back.
    pub probes: u64,
    pub echoes: u64,
    /// Bytes of the largest packet of the slice that the path carries; `None` until it is known.
    pub path_mtu: Option<u16>,
    /// How often that has become less.
    pub shrunk: u64,
    /// Frames that were longer, and went in fragments.
    pub fragmented: u64,
    pub rtts: Rtts,
    pub losses: Losses,
    pub sent: Carried,
    pub received: Carried,
    pub drops: Drops,
}

impl Stats {
    /// Adds what another lane of the same gateway says. Its keys are those of the first.
    pub fn merge(&mut self, other: &Self) {
        self.drops.merge(&other.drops);
        self.reach.reached = self.reach.reached.min(other.reach.reached);
        self.reach.missing = self.reach.missing.max(other.reach.missing);
        for peer in &other.peers {
            if let Some(known) = self.peers.iter_mut().find(|known| known.name == peer.name) {
                known.merge(peer);
            }
        }
    }
}

impl PeerStats {
    /// Adds what another lane says: a peer is up where it is in all of them.
    fn merge(&mut self, other: &Self) {
        self.up &= other.up;
        self.away |= other.away;
        self.handshake_age = self.handshake_age.max(other.handshake_age);
        self.rtt = self.rtt.max(other.rtt);
        self.path_mtu = self.path_mtu.into_iter().chain(other.path_mtu).min();
        self.count(other);
    }

    /// Adds what another tunnel to the same gateway has counted.
    pub(super) fn count(&mut self, other: &Self) {
        self.downs += other.downs;
        self.handshakes += other.handshakes;
        self.probes += other.probes;
        self.echoes += other.echoes;
        self.shrunk += other.shrunk;
        self.fragmented += other.fragmented;
        self.rtts.merge(&other.rtts);
        self.losses.merge(&other.losses);
        self.sent.merge(other.sent);
        self.received.merge(other.received);
        self.drops.merge(&other.drops);
    }

    pub(super) fn new(peer: &Peer, now: Instant, config: &Option<Config>) -> Self {
        let cluster = config
            .as_ref()
            .and_then(|config| config.clusters.get(usize::from(peer.cluster)));
        let age = |established| now.saturating_duration_since(established);
        Self {
            name: peer.name.clone(),
            cluster: cluster.map(|cluster| cluster.name.clone()).unwrap_or_default(),
            up: peer.path.up,
            away: peer.path.liveness.is_away(),
            endpoint: peer.path.endpoint.map(|endpoint| endpoint.address),
            handshake_age: peer.session().map(|session| age(session.established)),
            downs: peer.downs,
            handshakes: peer.handshakes,
            rtt: peer.path.liveness.rtt(),
            probes: peer.path.liveness.probes(),
            echoes: peer.path.liveness.echoes(),
            path_mtu: peer.path.mtu.carries(),
            shrunk: peer.path.mtu.shrunk(),
            fragmented: peer.path.fragmented,
            rtts: peer.path.liveness.rtts(),
            losses: peer.path.liveness.losses(),
            sent: peer.sent,
            received: peer.received,
            drops: peer.drops,
        }
    }
}
