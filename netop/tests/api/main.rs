//! What is read from the API server and written to it: against one in this process that takes, refuses or never answers.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "helpers")]
mod support;

mod heartbeat;
mod report;
mod watch;
