//! Time as an argument.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

/// One moment, by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since the process started, never backwards: for whatever is measured here.
    pub clock: Duration,
    /// Wall clock, for what is written down and read again by another process.
    pub wall: Timestamp,
}

impl Now {
    pub fn time(self) -> Time {
        Time(self.wall)
    }
}
