//! Both roles without a cluster: an API server as a value, and what comes of what users and members write.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop there"
)]

mod cost;
mod hub;
mod identity;
mod member;
mod server;
mod share;
mod simulation;
mod stage;
