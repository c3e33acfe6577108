//! The agent's kernel half against a real kernel: every node and every pod is a network namespace of its own.
//!
//! Needs root, `ip`, `nft` and /dev/net/tun. Namespaces live as long as the test that holds them open; nothing is
//! left behind, also not by a test that is killed. Run with one thread: namespaces share the machine's two cores.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "helpers, not every one of which every test uses"
)]
mod support;

mod agent;
mod attach;
mod cni;
mod cnitool;
mod frames;
mod guard;
mod mesh;
mod names;
mod programs;
mod qos;
mod repair;
mod steering;
