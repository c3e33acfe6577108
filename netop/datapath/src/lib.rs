//! What a node does with a frame of a slice. Pure: the eBPF programs of the node run it in the kernel, tests and the
//! fuzzer on the host, and both read the same tables.
//!
//! ```text
//!  from a pod      ──► its own? ──► pod here · node · exit to the cluster's gateway · a group · an answer to ARP and ND
//!  from a gateway  ──► a peer cluster's? ──► pod here · node · a group
//!  from a node     ──► that node's? ──► pod here · a group of pods here
//!    …to a gateway ──► that node's? ──► the gateway
//! ```
//!
//! There are no loops, because no line leads back: what came from a node goes to pods or to a gateway, what came from a
//! gateway never goes to one, and a gateway sends nothing of the WAN there again.
//!
//! ```text
//!  Ports    interface             → slice, index, what it is
//!  Slices   slice                 → subnets, what it carries
//!  Routes   slice, index (prefix) → pod's port · node · cluster
//!  Exits    slice, cluster        → gateway's port · node with a gateway
//!  Nodes    slice, node           → whether it has a gateway of the slice
//! ```
//!
//! Not here: maps, packets, interfaces. Whoever runs it has them.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod judge;
mod reason;
mod tables;

pub use judge::{Action, Origin, Verdict, Way, exit_for_all, judge};
pub use reason::Reason;
pub use tables::{
    ALL_CLUSTERS, Hop, HopEntry, Kind, NodeKey, Port, PortEntry, Role, Slice, SliceEntry, SliceRules, Tables,
    node_key, prefix,
};
