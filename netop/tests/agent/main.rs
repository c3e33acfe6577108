//! The agent with a kernel in memory: objects, pods, plugin and gateways in, kernel, answers and reports out.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "helpers")]
mod support;

mod blocks;
mod gateways;
mod mesh;
mod names;
mod pods;
mod shaping;
