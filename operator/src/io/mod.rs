//! Everything that touches a client, a clock or a file: around the pure roles, and with no decision of its own.
//!
//! [`hub`] and [`member`] are the two loops; [`watch`] brings objects in, [`write`] carries writes out, [`record`] records
//! events; [`link`] keeps a member's credential for its hub. The teardowns are what a chart's uninstall cannot do by itself.

pub mod credential;
pub mod hub;
mod link;
pub mod member;
mod record;
pub mod teardown;
mod watch;
mod write;
