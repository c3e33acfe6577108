//! Carries a slice's Ethernet frames between clusters over WireGuard.
//!
//! ```text
//!      bridge                       this process                            internet
//!   ┌──────────┐   ┌────────────────────────────────────────────────┐
//!   │ pod ─┐   │   │ io::tap ── driver ──► proto::Gateway ── io::udp│     WireGuard (UDP)
//!   │ pod ─┼─TAP═══│  frames    a thread     admit, route,   batches│═══► of IPv4/UDP/VXLAN/Ethernet
//!   │ pod ─┘   │   │            per lane     encrypt                │     to the gateways of
//!   └──────────┘   │ control ── netop.sock: Config, TAP fd, Report  │     every other cluster
//!                  │ admin ──── /livez /readyz /metrics             │
//!                  └────────────────────────────────────────────────┘
//! ```
//!
//! [`proto`] decides and has no socket, clock or randomness of its own. [`driver`] owns the clock and runs to
//! completion on a plain thread: read a batch, handle it, write a batch; with several threads each has a
//! [lane](proto::lane), and what they share is in [`shared`]. [`control`] talks to the node agent, which
//! is the only one who tells a gateway anything; the process has no Kubernetes credential and no capability.
//!
//! Deliberately not here: an async runtime in the data path, MAC learning, a file on disk. The private key is made at
//! start, and again as often as the slice says, and ends with the process.

pub mod args;
pub mod control;
pub mod driver;
pub mod entropy;
pub mod io;
pub mod metrics;
pub mod proto;
pub mod shared;
pub mod sizes;
