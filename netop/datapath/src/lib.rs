//! What a node does with a frame of a slice. Pure: the eBPF programs of the node run it in the kernel, tests and the
//! fuzzer on the host, and both read the same tables.
//!
//! ```text
//!  from a pod      ──► its own? ──► pod here · node · exit to the cluster's gateway · a group · an answer to ARP and ND
//!  from a gateway  ──► a peer cluster's? ──► pod here · node · a group
//!  from a node     ──► that node's? ──► pod here · a group of pods here
//!    …to a gateway ──► that node's? to a peer cluster? ──► the gateway here that carries for it
//! ```
//!
//! There are no loops, because no line leads back: what came from a node goes to pods or to a gateway, what came from a
//! gateway never goes to one, and a gateway sends nothing of the WAN there again.
//!
//! ```text
//!  Ports    interface             → slice, index, what it is, class of what it sends
//!  Slices   slice                 → subnets, what it carries
//!  Routes   slice, index (prefix) → pod's port, class of what it is sent · node · cluster
//!  Exits    slice, cluster        → gateway's port · node with a gateway
//!  Relays   slice, cluster        → port of the gateway here that carries what other nodes send
//!  Nodes    slice, node           → whether it has a gateway of the slice
//! ```
//!
//! Not here: maps, packets, interfaces. Whoever runs it has them.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod judge;
mod probe;
mod reason;
mod tables;

pub use judge::{Action, Ingress, Origin, Verdict, exit_for_all, judge};
pub use probe::{ANSWER, AnswerKey, PROBE, PROBE_KIND, PROBE_READ, PROBES, Probe, QUESTION, answer_key};
pub use reason::{Direction, Reason};
pub use tables::{
    ALL_CLUSTERS, CountKey, DELIVER, Hop, HopEntry, Kind, MAX_MEMBERS, NodeKey, PASSED, Port, PortEntry,
    Role, SHAPER, Slice, SliceEntry, SliceRules, Tables, Tunnel, class_priority, count_key, node_key,
    port_key, prefix,
};
