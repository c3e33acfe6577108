//! What the agents of a cluster tell each other of their gateways, so that a node leaves a gateway that is dead, cut
//! off or about to stop within half a second, without the API server.
//!
//! ```text
//!  node that uses a gateway                       node that has it
//!     ── Ask {nonce, gateways} ──────────────────►   every 100 ms, to the nodes of the best two gateways per slice
//!     ◄──────────────── Answer {nonce, reports} ──   at once, and again whenever one of them changes
//! ```
//!
//! UDP between the nodes' addresses, one message a datagram, JSON. Only nodes of the cluster are listened to (the
//! host's filter, and the source address), and an answer counts only with the nonce of the question, so that nobody
//! who cannot read the traffic between two nodes can say that a gateway is well. An answer is about as long as its
//! question: there is nothing to amplify.
//!
//! Silence never takes the last gateway away: it ranks a gateway behind those whose nodes answer, and where none does,
//! the API server's last state decides.
//!
//! Deliberately not here: any decision which gateway is used ([`crate::intent`]), and the clock and the socket, which
//! are [`task`]'s.

mod table;
pub mod task;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::shares::Part;

pub use table::{ASK_EVERY, DEAD_AFTER, Table};

/// UDP port of the agents.
pub const PORT: u16 = 14791;
/// Gateways that a question is about at most: it and its answer fit into a packet of 1280 bytes.
const ASKED: usize = 7;
/// Gateways that a question is answered about at most.
const MAX_GATEWAYS: usize = 24;
/// Clusters that are named of those that a gateway does not reach. Where it may be more, none is sure to be reached.
pub const MAX_MISSING: usize = 8;

/// A gateway of the cluster: its slice's VNI and its ordinal.
pub type Gateway = (u32, u32);

/// What a gateway's own node reports of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Peer clusters that it reaches.
    pub reached: u32,
    /// It is about to stop.
    pub draining: bool,
    /// Numbers of peer clusters that have gateways and that it does not reach, in order, [`MAX_MISSING`] at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<u32>,
    /// Which part of what the slice is given its node uses, where the slice is given anything; not of agents before 0.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

impl Health {
    /// Whether it is not known to reach a cluster.
    pub fn lacks(&self, cluster: u32) -> bool {
        self.missing.len() >= MAX_MISSING || self.missing.contains(&cluster)
    }
}

/// What is exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Message {
    Ask {
        nonce: u64,
        gateways: Vec<Gateway>,
    },
    /// `None` for a gateway that does not carry there.
    Answer {
        nonce: u64,
        #[serde(rename = "words")]
        reports: Vec<(Gateway, Option<Health>)>,
    },
}

/// How another node's gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adjacency {
    /// Its node answers with this.
    Reports(Health),
    /// Its node answers, and has no such gateway.
    Absent,
    /// Its node does not answer.
    Silent,
}

/// All that is observed, by the node's address and gateway. What was not asked yet is absent.
pub type View = Arc<BTreeMap<(IpAddr, Gateway), Adjacency>>;

/// What the agent wants to know, and what it reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// This node's address.
    pub address: Option<IpAddr>,
    /// Who is listened to.
    pub nodes: BTreeSet<IpAddr>,
    /// Gateways of other nodes that this one uses or would use next.
    pub wanted: BTreeMap<IpAddr, BTreeSet<Gateway>>,
    /// Gateways on this node.
    pub own: BTreeMap<Gateway, Health>,
}
