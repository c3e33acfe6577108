//! New pods: the chained CNI plugin, and the agent's side of its socket.
//!
//! ```text
//!  container runtime ─► … ─► slice-cni ─ /run/weft/cni.sock ─► slice-netop attaches, or says "in no slice"
//!                              └ agent away: /var/lib/weft/members.json says whether the pod may wait
//! ```
//!
//! The plugin decides nothing: it asks, passes the previous result on with the new interfaces added, and where nobody
//! answers it lets every pod through that cannot be in a slice which requires its interface.

pub mod contest;
pub mod host;
pub mod install;
mod list;
pub mod members;
pub mod plugin;
pub mod server;
mod targets;
#[cfg(test)]
pub(crate) mod testing;
pub mod wire;
