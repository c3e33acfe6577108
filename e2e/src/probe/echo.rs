//! The echo server and its clients.
//!
//! A TCP server greets with the address that it sees (`peer 10.0.0.1:4711\n`),
//! then echoes. A UDP server echoes, but answers the one byte `?` with the
//! address that it sees: that is how a test learns whether its source address
//! was kept.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Rtt, Verdict, count, milliseconds, print, ready};

pub(super) const PORT: u16 = 7777;
/// More conversations than any test has at once; the next one is refused.
const MOST: usize = 256;

#[derive(Debug, Args)]
pub struct Serve {
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

impl Serve {
    pub(super) fn run(&self) -> Result<()> {
        // First: threads inherit what is blocked.
        end_on_signal()?;
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.port));
        let listener = both_families(Type::STREAM, any)?;
        listener.listen(128).context("listen")?;
        let listener = TcpListener::from(listener);
        let udp = UdpSocket::from(both_families(Type::DGRAM, any)?);
        std::thread::spawn(move || echo_udp(&udp));
        ready()?;
        let talking = Arc::new(AtomicUsize::new(0));
        loop {
            let (stream, peer) = listener.accept().context("accept")?;
            if talking.fetch_add(1, Ordering::Relaxed) >= MOST {
                talking.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let talking = Arc::clone(&talking);
            std::thread::spawn(move || {
                let _ = echo_tcp(stream, peer);
                talking.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// As pid 1 of a container a program has no default for SIGTERM: without this, every pod takes its whole grace period.
fn end_on_signal() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("block signals")?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        std::process::exit(0);
    });
    Ok(())
}

pub(super) fn both_families(kind: Type, address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, None).context("open a socket")?;
    socket.set_only_v6(false).context("serve both families")?;
    socket.set_reuse_address(true).context("reuse the address")?;
    socket
        .bind(&address.into())
        .with_context(|| format!("bind {address}"))?;
    Ok(socket)
}

fn echo_tcp(mut stream: TcpStream, peer: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    writeln!(stream, "peer {}", canonical(peer))?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..read])?;
    }
}

fn echo_udp(socket: &UdpSocket) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // An ICMP error for an earlier answer shows up here; the next datagram is another matter.
        let Ok((read, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let _ = match &buffer[..read] {
            b"?" => socket.send_to(format!("peer {}", canonical(peer)).as_bytes(), peer),
            echo => socket.send_to(echo, peer),
        };
    }
}

/// An IPv4 peer of a socket for both families, written as IPv4.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

#[derive(Debug, Args)]
pub struct Tcp {
    address: IpAddr,
    #[arg(long, default_value_t = PORT)]
    port: u16,
    #[arg(long, default_value_t = 1000)]
    bytes: usize,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 10)]
    timeout: u64,
}

impl Tcp {
    pub(super) fn run(&self) -> Result<()> {
        let deadline = Duration::from_secs(self.timeout);
        let started = Instant::now();
        let (mut stream, peer) = connect(SocketAddr::new(self.address, self.port), deadline)?;
        let connected = started.elapsed();
        let sent: Vec<u8> = (0..self.bytes).map(|index| (index % 251) as u8).collect();
        let mut writer = stream.try_clone().context("share the connection")?;
        let outgoing = sent.clone();
        let started = Instant::now();
        // In a thread of its own: more than both buffers hold would block both ends for ever.
        let writing = std::thread::spawn(move || writer.write_all(&outgoing));
        let mut received = vec![0; sent.len()];
        stream
            .read_exact(&mut received)
            .with_context(|| format!("read {} bytes back", sent.len()))?;
        writing
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?
            .context("write")?;
        ensure!(sent == received, "other bytes came back than were sent");
        let seconds = started.elapsed().as_secs_f64();
        print(&json!({
            "bytes": self.bytes, "connect_ms": milliseconds(connected), "seconds": seconds,
            "mbit": self.bytes as f64 * 8.0 / seconds / 1e6, "local": stream.local_addr().context("own address")?,
            "seen_as": peer,
        }))
    }
}

/// Opens a conversation with [`Serve`]; tells as whom it sees us.
pub(super) fn connect(address: SocketAddr, deadline: Duration) -> Result<(TcpStream, String)> {
    let stream =
        TcpStream::connect_timeout(&address, deadline).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true).context("send at once")?;
    stream
        .set_read_timeout(Some(deadline))
        .context("set a deadline")?;
    stream
        .set_write_timeout(Some(deadline))
        .context("set a deadline")?;
    let mut greeting = String::new();
    // One byte at a time: what follows the greeting must stay in the socket.
    let mut one = [0];
    while !greeting.ends_with('\n') {
        let mut reader = BufReader::with_capacity(1, &stream);
        let read = reader.fill_buf().context("read the greeting")?.first().copied();
        let Some(byte) = read else {
            bail!("{address} hung up without a greeting: is it `weft-probe serve`?")
        };
        reader.consume(1);
        one[0] = byte;
        greeting.push(char::from(byte));
    }
    let peer = greeting
        .trim()
        .strip_prefix("peer ")
        .unwrap_or_default()
        .to_owned();
    Ok((stream, peer))
}

#[derive(Debug, Args)]
pub struct Udp {
    address: IpAddr,
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// Bytes of UDP payload.
    #[arg(long, default_value_t = 64)]
    size: usize,
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Milliseconds to wait for each answer.
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
    /// Forbid fragmentation: too large a datagram is an error.
    #[arg(long)]
    df: bool,
}

impl Udp {
    pub(super) fn run(&self) -> Result<Verdict> {
        let remote = SocketAddr::new(self.address, self.port);
        let socket = UdpSocket::bind(unspecified(self.address)).context("open a socket")?;
        if self.df {
            forbid_fragments(&socket, self.address)?;
        }
        socket
            .connect(remote)
            .with_context(|| format!("connect to {remote}"))?;
        socket
            .set_read_timeout(Some(Duration::from_millis(self.timeout)))
            .context("set a deadline")?;
        let mut buffer = vec![0; 64 * 1024];
        let mut rtts = Vec::new();
        for number in 0..self.count {
            let sent = count::payload(number, self.size);
            let started = Instant::now();
            socket
                .send(&sent)
                .with_context(|| format!("send {} bytes to {remote}", sent.len()))?;
            // An answer to an earlier question may still be under way.
            while let Ok(read) = socket.recv(&mut buffer) {
                if buffer[..read] == sent {
                    rtts.push(started.elapsed());
                    break;
                }
            }
        }
        socket.send(b"?").context("ask who we are")?;
        let seen_as = socket.recv(&mut buffer).ok().map(|read| {
            String::from_utf8_lossy(&buffer[..read])
                .trim_start_matches("peer ")
                .to_owned()
        });
        let verdict = Verdict::of(self.count, rtts.len());
        print(
            &json!({"sent": self.count, "received": rtts.len(), "rtt_ms": Rtt::of(rtts), "seen_as": seen_as,
            "local": socket.local_addr().context("own address")?}),
        )?;
        Ok(verdict)
    }
}

pub(super) fn unspecified(family_of: IpAddr) -> SocketAddr {
    match family_of {
        IpAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// `IP_PMTUDISC_DO` of ip(7): the don't-fragment bit, and EMSGSIZE instead of fragments.
pub(super) fn forbid_fragments(socket: &impl AsRawFd, family_of: IpAddr) -> Result<()> {
    let (level, option) = match family_of {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    let value = libc::IP_PMTUDISC_DO;
    let size = u32::try_from(size_of_val(&value)).context("option size")?;
    // SAFETY: the pointer and size describe a live i32; the kernel only reads it.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    if set == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error()).context("forbid fragments")
    }
}

/// A raw ICMP socket of the right family.
pub(super) fn icmp(family_of: IpAddr) -> Result<Socket> {
    let (domain, protocol) = match family_of {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    Socket::new(domain, Type::RAW, Some(protocol)).context("open a raw socket (needs the capability NET_RAW)")
}
