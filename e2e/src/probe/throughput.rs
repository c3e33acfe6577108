//! How much one receiver gets over TCP: the method of `slice-gateway/benches`, between two pods.
//!
//! The sender writes 128 KiB at a time with CUBIC, which is the default of hosts: a machine may have another congestion
//! control, and that would measure its pacing. The receiver counts, and only after slow start.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use super::{echo, print, ready};

const PORT: u16 = 7778;
const WRITE: usize = 128 << 10;
/// Not counted: slow start.
const WARM_UP: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Subcommand)]
pub enum Throughput {
    /// Take what senders send, measure for some seconds, and hang up.
    Receive(Receive),
    /// Send to a receiver until it hangs up.
    Send(Send),
}

#[derive(Debug, Args)]
pub struct Receive {
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// Connections to wait for before measuring starts.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

#[derive(Debug, Args)]
pub struct Send {
    address: IpAddr,
    #[arg(long, default_value_t = PORT)]
    port: u16,
    #[arg(long, default_value_t = 1)]
    streams: usize,
}

impl Throughput {
    pub(super) fn run(&self) -> Result<()> {
        match self {
            Self::Receive(receive) => receive.run(),
            Self::Send(send) => send.run(),
        }
    }
}

impl Receive {
    fn run(&self) -> Result<()> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.port));
        let listener = echo::both_families(socket2::Type::STREAM, any)?;
        listener.listen(16).context("listen")?;
        let listener = TcpListener::from(listener);
        ready()?;
        let received = Arc::new(AtomicU64::new(0));
        for _ in 0..self.streams {
            let stream = accept(&listener)?;
            stream
                .set_read_timeout(Some(PATIENCE))
                .context("set a deadline")?;
            let received = Arc::clone(&received);
            std::thread::spawn(move || count(stream, &received));
        }
        std::thread::sleep(WARM_UP);
        let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_secs_f64(self.seconds));
        let bytes = received.load(Ordering::Relaxed) - before;
        let seconds = start.elapsed().as_secs_f64();
        print(&json!({"bytes": bytes, "seconds": seconds, "gbps": bytes as f64 * 8.0 / seconds / 1e9}))
        // The end of this process hangs up, which is what the senders wait for.
    }
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(PATIENCE).context("a timeout")?;
    let come = poll(&mut fds, timeout).context("wait for a sender")?;
    ensure!(come > 0, "no sender within {PATIENCE:?}");
    Ok(listener.accept().context("accept")?.0)
}

fn count(mut stream: TcpStream, received: &AtomicU64) {
    let mut buffer = vec![0; WRITE];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl Send {
    fn run(&self) -> Result<()> {
        let remote = SocketAddr::new(self.address, self.port);
        let mut sending = Vec::new();
        for _ in 0..self.streams {
            let mut stream = TcpStream::connect_timeout(&remote, PATIENCE)
                .with_context(|| format!("connect to {remote}"))?;
            stream
                .set_write_timeout(Some(PATIENCE))
                .context("set a deadline")?;
            setsockopt(&stream, sockopt::TcpCongestion, &"cubic".into()).context("choose CUBIC")?;
            sending.push(std::thread::spawn(move || {
                let buffer = vec![7; WRITE];
                let mut bytes = 0u64;
                while stream.write_all(&buffer).is_ok() {
                    bytes += buffer.len() as u64;
                }
                bytes
            }));
        }
        let mut bytes = 0;
        for stream in sending {
            bytes += stream.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?;
        }
        print(&json!({"bytes": bytes}))
    }
}
