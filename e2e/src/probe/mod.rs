//! The parts of `weft-probe`, the program that tests run inside pods.
//!
//! ```text
//! serve                     TCP and UDP echo, until killed
//! tcp · udp · ping · dns    one question to one address
//! frames                    raw Ethernet, any EtherType, ARP        (CAP_NET_RAW)
//! datagrams                 broadcast and multicast, exactly-once counting
//! routes                    a full routing table                    (CAP_NET_ADMIN)
//! stream                    a long conversation and its longest silence
//! throughput                one receiver, one sender, as fast as it goes
//! ```
//!
//! What was sent and not answered is counted in the result, and the exit status is [`LOST`]: a script that looks at
//! nothing else is not told that a dead path is a good one.
//!
//! Everything is synchronous: a probe does one thing. Receivers print
//! `{"ready":true}` when they listen, so that nobody has to guess when to send.

mod count;
mod datagrams;
mod dns;
mod echo;
mod frames;
mod packet;
mod ping;
mod routes;
mod stream;
mod throughput;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde::Serialize;

use crate::progress::say;
pub use stream::{Conversation, Gap};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Echo TCP and UDP on both families until killed.
    Serve(echo::Serve),
    /// Send bytes to an echo server over TCP and check what comes back.
    Tcp(echo::Tcp),
    /// Send datagrams to an echo server and count what comes back.
    Udp(echo::Udp),
    /// ICMP echo, with a size and the don't-fragment bit if wanted. Needs NET_RAW.
    Ping(ping::Ping),
    /// Ask a name server.
    Dns(dns::Dns),
    /// Raw Ethernet frames. Needs NET_RAW.
    #[command(subcommand)]
    Frames(frames::Frames),
    /// Broadcast and multicast datagrams.
    #[command(subcommand)]
    Datagrams(datagrams::Datagrams),
    /// Fill the routing table. Needs NET_ADMIN.
    Routes(routes::Routes),
    /// Talk steadily to an echo server and measure the silences.
    Stream(stream::Stream),
    /// How much a receiver gets over TCP.
    #[command(subcommand)]
    Throughput(throughput::Throughput),
}

/// What a probe came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Done,
    /// Some of what was sent was not answered. The result has the counts.
    Lost,
}

/// Exit status of a [`Verdict::Lost`]; 1 is an error, 2 wrong usage.
pub const LOST: u8 = 3;

impl Verdict {
    const fn of(sent: u32, received: usize) -> Self {
        if received as u64 >= sent as u64 && sent > 0 {
            Self::Done
        } else {
            Self::Lost
        }
    }
}

impl Command {
    pub fn run(&self) -> Result<Verdict> {
        match self {
            Self::Udp(udp) => return udp.run(),
            Self::Ping(ping) => return ping.run(),
            Self::Serve(serve) => serve.run(),
            Self::Tcp(tcp) => tcp.run(),
            Self::Dns(dns) => dns.run(),
            Self::Frames(frames) => frames.run(),
            Self::Datagrams(datagrams) => datagrams.run(),
            Self::Routes(routes) => routes.run(),
            Self::Stream(stream) => stream.run(),
            Self::Throughput(throughput) => throughput.run(),
        }?;
        Ok(Verdict::Done)
    }
}

/// Prints one result.
fn print(result: &impl Serialize) -> Result<()> {
    say(serde_json::to_string(result).context("encode the result")?);
    Ok(())
}

/// Tells whoever started a receiver that it listens.
fn ready() -> Result<()> {
    print(&serde_json::json!({"ready": true}))
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Round-trip times in milliseconds.
#[derive(Debug, Serialize)]
struct Rtt {
    min: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Rtt {
    /// `None` of no measurement.
    fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort();
        let at = |share: f64| {
            let last = all.len().checked_sub(1)?;
            // Nearest rank; the cast is of a number between 0 and `last`.
            all.get((share * last as f64).round() as usize)
                .map(|value| milliseconds(*value))
        };
        Some(Self {
            min: at(0.0)?,
            p50: at(0.5)?,
            p99: at(0.99)?,
            max: at(1.0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_answered_in_full_is_lost() {
        assert_eq!(Verdict::of(3, 3), Verdict::Done);
        for (sent, received) in [(3, 2), (3, 0), (0, 0)] {
            assert_eq!(Verdict::of(sent, received), Verdict::Lost, "{sent} {received}");
        }
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let all = (1..=101).map(Duration::from_millis).collect();
        let rtt = Rtt::of(all).unwrap();
        assert_eq!((rtt.min, rtt.p50, rtt.p99, rtt.max), (1.0, 51.0, 100.0, 101.0));
        assert!(Rtt::of(Vec::new()).is_none());
    }
}
