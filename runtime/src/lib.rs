//! What every Weft process does the same way.
//!
//! ```text
//!  telemetry ─ logs as text or JSON, filter from --log / WEFT_LOG
//!  admin ───── /livez /readyz /metrics on one listener
//!  shutdown ── SIGTERM and SIGINT become one cancellation token
//!  handover ── the conversation between the node agent and a gateway, with the TAP's file descriptors in it
//!  tap, steering ── TAP devices, and which queue of one a flow takes
//!  fragmentation ── whether what a socket sends may be cut
//!  resolve ─── one question to a name server, as a pod asks it (feature `resolve`)
//!  lease, apply, client, store, undecodable ── the Kubernetes half (feature `kube`)
//! ```
//!
//! Deliberately not here: anything that only one process does, and any decision about slices.

pub mod admin;
#[cfg(feature = "kube")]
pub mod apply;
#[cfg(feature = "kube")]
pub mod client;
pub mod fragmentation;
pub mod handover;
#[cfg(feature = "kube")]
pub mod lease;
#[cfg(feature = "resolve")]
pub mod resolve;
pub mod shutdown;
pub mod steering;
#[cfg(feature = "kube")]
pub mod store;
pub mod tap;
pub mod telemetry;
#[cfg(feature = "kube")]
pub mod undecodable;
pub mod version;
