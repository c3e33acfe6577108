//! ICMP echo of both families (RFC 792, RFC 4443).

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::{Rtt, Verdict, count, echo, packet, print};

#[derive(Debug, Args)]
pub struct Ping {
    address: IpAddr,
    #[arg(long, default_value_t = 1)]
    count: u16,
    /// Milliseconds between two requests, and to wait for the last answer at most.
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
    /// Bytes of ICMP payload.
    #[arg(long, default_value_t = 56)]
    size: usize,
    /// Forbid fragmentation.
    #[arg(long)]
    df: bool,
    /// End with the first answer.
    #[arg(long)]
    first: bool,
}

impl Ping {
    pub(super) fn run(&self) -> Result<Verdict> {
        let mut socket = echo::icmp(self.address)?;
        if self.df {
            echo::forbid_fragments(&socket, self.address)?;
        }
        let remote = SocketAddr::new(self.address, 0);
        socket
            .connect(&remote.into())
            .with_context(|| format!("connect to {remote}"))?;
        socket
            .set_read_timeout(Some(Duration::from_millis(self.timeout)))
            .context("set a deadline")?;
        // Tells our answers from those of other pings in the same namespace.
        let identifier = std::process::id() as u16;
        let mut buffer = vec![0; 64 * 1024];
        let (mut sent, mut rtts) = (0, Vec::new());
        for number in 0..self.count {
            if self.first && !rtts.is_empty() {
                break;
            }
            let payload = count::payload(number.into(), self.size);
            let request = packet::echo_request(self.address, identifier, number, &payload);
            let started = Instant::now();
            socket
                .send(&request)
                .with_context(|| format!("send {} bytes to {}", request.len(), self.address))?;
            sent += 1;
            while let Ok(read) = socket.read(&mut buffer) {
                if packet::is_echo_reply(self.address, &buffer[..read], identifier, number) {
                    rtts.push(started.elapsed());
                    break;
                }
                if started.elapsed() > Duration::from_millis(self.timeout) {
                    break;
                }
            }
        }
        // One answer is all that is wanted with `first`.
        let wanted = if self.first { 1 } else { sent };
        let verdict = Verdict::of(wanted, rtts.len());
        print(&json!({"sent": sent, "received": rtts.len(), "rtt_ms": Rtt::of(rtts)}))?;
        Ok(verdict)
    }
}
