//! Broadcast and multicast over UDP, counted exactly.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::count::{self, Count};
use super::{echo, print, ready};

#[derive(Debug, Subcommand)]
pub enum Datagrams {
    /// Send numbered datagrams to a broadcast, multicast or plain address.
    Send(Send),
    /// Count numbered datagrams by sender.
    Receive(Receive),
}

#[derive(Debug, Args)]
pub struct Send {
    to: IpAddr,
    #[arg(long, default_value_t = 7779)]
    port: u16,
    /// Leave through this interface.
    #[arg(long)]
    interface: String,
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Milliseconds between two datagrams.
    #[arg(long, default_value_t = 10)]
    interval: u64,
    #[arg(long, default_value_t = 64)]
    size: usize,
}

#[derive(Debug, Args)]
pub struct Receive {
    /// Join this multicast group.
    #[arg(long)]
    group: Option<IpAddr>,
    #[arg(long, default_value_t = 7779)]
    port: u16,
    #[arg(long)]
    interface: String,
    /// Listen this long, or until `quiet` after enough.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Enough: this many different datagrams.
    #[arg(long)]
    expect: Option<usize>,
    /// Milliseconds to go on after enough, for duplicates.
    #[arg(long, default_value_t = 500)]
    quiet: u64,
    /// Receive IPv6 although no group says so.
    #[arg(long)]
    ipv6: bool,
}

impl Datagrams {
    pub(super) fn run(&self) -> Result<()> {
        match self {
            Self::Send(send) => send.run(),
            Self::Receive(receive) => receive.run(),
        }
    }
}

impl Send {
    fn run(&self) -> Result<()> {
        let socket = bound(&self.interface, echo::unspecified(self.to))?;
        socket.set_broadcast(true).context("allow broadcast")?;
        // The socket is tied to its interface, so multicast leaves there too.
        match self.to {
            IpAddr::V4(_) => socket.set_multicast_ttl_v4(8).context("set the hop limit")?,
            IpAddr::V6(_) => socket.set_multicast_hops_v6(8).context("set the hop limit")?,
        }
        let socket = UdpSocket::from(socket);
        let to = SocketAddr::new(self.to, self.port);
        for number in 0..self.count {
            let payload = count::payload(number, self.size);
            socket
                .send_to(&payload, to)
                .with_context(|| format!("send to {to}"))?;
            std::thread::sleep(Duration::from_millis(self.interval));
        }
        print(&json!({"sent": self.count}))
    }
}

impl Receive {
    fn run(&self) -> Result<()> {
        let six = self.ipv6 || self.group.is_some_and(|group| group.is_ipv6());
        let any = if six {
            "::".parse::<IpAddr>()
        } else {
            "0.0.0.0".parse()
        }
        .context("any address")?;
        let socket = bound(&self.interface, SocketAddr::new(any, self.port))?;
        match self.group {
            Some(IpAddr::V4(group)) => socket
                .join_multicast_v4_n(
                    &group,
                    &socket2::InterfaceIndexOrAddress::Index(index(&self.interface)?),
                )
                .with_context(|| format!("join {group}"))?,
            Some(IpAddr::V6(group)) => {
                socket
                    .join_multicast_v6(&group, index(&self.interface)?)
                    .with_context(|| format!("join {group}"))?;
            }
            None => {}
        }
        let socket = UdpSocket::from(socket);
        ready()?;
        let mut count = Count::default();
        let mut until = Instant::now() + Duration::from_secs(self.seconds);
        let mut enough = false;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left)).context("set a deadline")?;
            let Ok((read, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let Some(number) = count::number(&buffer[..read]) else {
                continue;
            };
            count.note(from.ip().to_canonical().to_string(), number);
            if !enough && self.expect.is_some_and(|expect| count.unique() >= expect) {
                enough = true;
                until = Instant::now() + Duration::from_millis(self.quiet);
            }
        }
        print(&json!({"senders": count.by_sender()}))
    }
}

/// A socket tied to one interface, so that several interfaces do not mix.
fn bound(interface: &str, address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).context("open a socket")?;
    socket.set_reuse_address(true).context("reuse the address")?;
    socket
        .bind_device(Some(interface.as_bytes()))
        .with_context(|| format!("bind to interface {interface}"))?;
    socket
        .bind(&address.into())
        .with_context(|| format!("bind {address}"))?;
    Ok(socket)
}

fn index(interface: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))
}
