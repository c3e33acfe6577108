//! Answers the slice zone: `<service>.<namespace>.svc.<slice>.slice.local`.
//!
//! ```text
//!  SliceService objects ─► zone tables ─► ArcSwap ─► one server per view
//!                          (pure)                     ├─ pod network, [::]:53: every slice
//!  link events ─► a slice's interface comes or goes ─►└─ sl-shop, bound to the device: the slice shop only
//! ```
//!
//! The table is swapped whole under running servers; an answer is computed from the table and the question alone.
//! A server for a slice listens on sockets bound to that slice's interface, so two slices with the same subnet do not
//! meet here either, and a query can only come from inside the slice.
//!
//! Deliberately not here: recursion and forwarding (the cluster's CoreDNS does that and forwards our zone to us),
//! dynamic update, DNSSEC, and any cache.
#![forbid(unsafe_code)]

pub mod answer;
pub mod args;
pub mod handler;
pub mod serve;
pub mod zone;
