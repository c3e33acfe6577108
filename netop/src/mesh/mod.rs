//! Whether what this node sends to the other nodes of its slices arrives, at the size that the slices have: by probes on the
//! same UDP port and through the same device and program as pods' frames.
//!
//! ```text
//!  agent ── UDP to 14789, VXLAN, a number that no slice has ──► wx-pods ── program     the other node
//!  map of answers ◄── program ── wx-pods ◄──────────────────── the same frame ──┘      its agent has no part in it
//! ```
//!
//! Of each two nodes one asks: answers need the other direction. Nodes with gateways are asked by the port for those too, by each
//! node that uses them; the answer comes by the port for pods, as what a gateway sends to pods does. A pair that is well costs one probe, of the full size and not
//! to be cut, every [`Pace::every`]; after a loss smaller ones, and such as may be cut, tell what passes. Only nodes whose
//! SliceBlock says that they answer are asked, so that one of an earlier release is not taken for broken.
//!
//! Deliberately not here: what a broken pair means for a slice, which is the cluster operator's
//! (`operator/src/member/mesh.rs`); the clock, the sockets and the map, which are [`task`]'s and [`crate::kernel`]'s.

mod table;
pub mod task;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use siphasher::sip::SipHasher13;
use slice_crds::v1alpha1::{BrokenPair, PairFault};

pub use table::{Probe, Table};

/// Bytes of the smallest probe, as an IP packet in a slice.
pub const SMALL: u16 = 64;
/// Pairs that are reported; the others are counted.
pub const MOST_REPORTED: usize = 8;

/// How often, and how patiently.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two probes of a pair that is as it was.
    pub every: Duration,
    /// How long an answer may take, and between two probes of a pair that is in doubt.
    pub wait: Duration,
    /// Between two moments at which pairs are probed: [`Self::at_once`] at most.
    pub gap: Duration,
    pub at_once: usize,
}

impl Default for Pace {
    /// A pair that breaks is known to be broken within ten seconds; a node with a thousand others sends 50 probes a second.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(5),
            wait: Duration::from_secs(1),
            gap: Duration::from_millis(100),
            at_once: 5,
        }
    }
}

/// Another node of this node's slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub node: String,
    /// Bytes of the largest IP packet that the slices that both are in could have.
    pub size: u16,
    /// It is asked by the port for pods, and does not ask.
    pub asked: bool,
}

/// By address.
pub type Peers = BTreeMap<IpAddr, Peer>;

/// What the agent wants to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Local {
    /// This node's address.
    pub address: Option<IpAddr>,
    /// Who answers.
    pub peers: Arc<Peers>,
    /// Those whose gateways this node uses or would use next: they are asked by the port for gateways.
    pub gateways: BTreeSet<IpAddr>,
    /// What an earlier agent of this node reported: so it is until it is seen to be otherwise.
    pub before: Vec<BrokenPair>,
}

/// What is observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Pairs that are probed, by port.
    pub pairs: usize,
    /// How many of them are broken, by how.
    pub faults: BTreeMap<PairFault, usize>,
    /// The first of them, [`MOST_REPORTED`] at most.
    pub broken: Vec<BrokenPair>,
}

pub type View = Arc<Seen>;

/// Whether `own` asks `other`, or the other way round. All nodes say the same of a pair, and each asks about half of the
/// others.
pub fn asks(own: IpAddr, other: IpAddr) -> bool {
    let mut hasher = SipHasher13::new();
    let (low, high) = if own < other { (own, other) } else { (other, own) };
    for address in [low, high] {
        match address {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()),
        }
    }
    (hasher.finish() & 1 == 0) == (own < other)
}

/// Whole seconds, as they are in an object.
fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_two_nodes_one_asks_and_each_asks_about_half() {
        let nodes: Vec<IpAddr> = (1..=100).map(|last| [10, 0, 0, last].into()).collect();
        for one in &nodes {
            let others = nodes.iter().filter(|other| *other != one);
            let asked = others
                .inspect(|other| assert_ne!(asks(*one, **other), asks(**other, *one)))
                .filter(|other| asks(*one, **other))
                .count();
            assert!((25..75).contains(&asked), "{one} asks {asked} of 99");
        }
    }

    /// Nodes of different releases must say the same of a pair.
    #[test]
    fn who_asks_does_not_change_from_release_to_release() {
        let of = |own: &str, other: &str| asks(own.parse().unwrap(), other.parse().unwrap());
        let asked = [
            of("192.168.7.1", "192.168.7.2"),
            of("192.168.7.1", "192.168.7.3"),
            of("192.168.7.2", "192.168.7.3"),
            of("fd00::1", "fd00::2"),
        ];
        assert_eq!(asked, [true, true, false, true]);
    }
}
