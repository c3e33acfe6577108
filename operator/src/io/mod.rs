//! Everything that touches a client, a clock or a file: around the pure roles, and with no decision of its own.
//!
//! [`hub`] and [`member`] are the two loops; [`watch`] brings objects in, [`write`] carries writes out, [`record`] records
//! events; [`link`] keeps a member's credential for its hub; [`hostnames`] asks for the addresses of load balancers. The teardowns are
//! what a chart's uninstall cannot do by itself.

pub mod credential;
mod hostnames;
pub mod hub;
mod link;
pub mod member;
mod record;
pub mod teardown;
mod watch;
mod write;

use std::time::Duration;

/// A role's loop goes round at least this often.
const TICK: Duration = Duration::from_secs(1);
/// A loop that has not gone round for this long is dead: `/livez` says so, and the process is started anew.
const STALLED: Duration = Duration::from_secs(60);
/// Events that are taken in one go.
const BATCH: usize = 512;
