//! Raw Ethernet: frames of any EtherType, with any source, and ARP.

use std::fmt;
use std::io::Read;
use std::mem::size_of;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use nix::libc;
use serde_json::json;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::count::{self, Count};
use super::{milliseconds, packet, print, ready};

#[derive(Debug, Subcommand)]
pub enum Frames {
    /// Send numbered frames.
    Send(Send),
    /// Count numbered frames by sender.
    Receive(Receive),
    /// Ask for the MAC address of an IPv4 address and count the answers.
    Arp(Arp),
}

#[derive(Debug, Args)]
pub struct Send {
    #[arg(long)]
    interface: String,
    /// EtherType in hexadecimal, as 88b5 (IEEE 802 local experimental).
    #[arg(long, default_value = "88b5")]
    ethertype: EtherType,
    /// Destination; broadcast when absent.
    #[arg(long)]
    to: Option<Mac>,
    /// Source; the interface's own when absent.
    #[arg(long)]
    source: Option<Mac>,
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Milliseconds between two frames.
    #[arg(long, default_value_t = 10)]
    interval: u64,
    /// Bytes after the Ethernet header.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Text to put after the number.
    #[arg(long)]
    text: Option<String>,
    /// Send UDP over IPv4 with this source address instead of bare numbers; EtherType 0800.
    #[arg(long, requires = "ip_destination")]
    ip_source: Option<Ipv4Addr>,
    #[arg(long, requires = "ip_source")]
    ip_destination: Option<Ipv4Addr>,
    #[arg(long, default_value_t = 7778)]
    udp_port: u16,
    /// A tag before the EtherType, outermost first: its own EtherType, as 8100 or 88a8; priority and VLAN are zero.
    #[arg(long = "tag")]
    tags: Vec<EtherType>,
    /// Put the frame into a VXLAN datagram (RFC 7348) of this network, and send that instead.
    #[arg(long, requires_all = ["outer_source", "outer_destination", "source"])]
    vni: Option<u32>,
    #[arg(long, requires = "vni")]
    outer_source: Option<Ipv4Addr>,
    #[arg(long, requires = "vni")]
    outer_destination: Option<Ipv4Addr>,
    /// By default the one that nodes have for their pods.
    #[arg(long, default_value_t = 14789)]
    outer_port: u16,
}

#[derive(Debug, Args)]
pub struct Receive {
    #[arg(long)]
    interface: String,
    #[arg(long, default_value = "88b5")]
    ethertype: EtherType,
    /// Listen this long, or until `quiet` after enough.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Enough: this many different frames.
    #[arg(long)]
    expect: Option<usize>,
    /// Milliseconds to go on after enough, for duplicates.
    #[arg(long, default_value_t = 500)]
    quiet: u64,
}

#[derive(Debug, Args)]
pub struct Arp {
    target: Ipv4Addr,
    #[arg(long)]
    interface: String,
    /// Our own address in the request.
    #[arg(long)]
    sender: Ipv4Addr,
    /// Milliseconds to collect answers.
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
}

impl Frames {
    pub(super) fn run(&self) -> Result<()> {
        match self {
            Self::Send(send) => send.run(),
            Self::Receive(receive) => receive.run(),
            Self::Arp(arp) => arp.run(),
        }
    }
}

impl Send {
    fn run(&self) -> Result<()> {
        let ethertype = if self.ip_source.is_some() {
            EtherType(packet::IPV4)
        } else {
            self.ethertype
        };
        let carrier = self.carrier(ethertype)?;
        let source = self.source.map_or_else(|| own_mac(&self.interface), Ok)?;
        for number in 0..self.count {
            let mut content = count::payload(number, self.size);
            content.extend(self.text.iter().flat_map(|text| text.bytes()));
            if let (Some(from), Some(to)) = (self.ip_source, self.ip_destination) {
                content = packet::udp4(from, to, self.udp_port, &content);
            }
            let mut outer = ethertype;
            for tag in self.tags.iter().rev() {
                content = [&[0, 0], &outer.0.to_be_bytes()[..], &content].concat();
                outer = *tag;
            }
            let frame = frame(self.to.unwrap_or(Mac(packet::BROADCAST)), source, outer, &content);
            carrier
                .send(&frame)
                .with_context(|| format!("send a frame of {} bytes", frame.len()))?;
            std::thread::sleep(Duration::from_millis(self.interval));
        }
        print(&json!({"sent": self.count, "source": source.to_string()}))
    }

    fn carrier(&self, ethertype: EtherType) -> Result<Carrier> {
        let (Some(vni), Some(source), Some(destination)) =
            (self.vni, self.outer_source, self.outer_destination)
        else {
            return Ok(Carrier::Interface(open(&self.interface, ethertype)?));
        };
        // Headers included: raw(7).
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
            .context("open a raw socket")?;
        Ok(Carrier::Tunnel {
            socket,
            vni,
            source,
            destination,
            port: self.outer_port,
        })
    }
}

/// What takes a frame.
enum Carrier {
    Interface(Socket),
    /// VXLAN between any two hosts.
    Tunnel {
        socket: Socket,
        vni: u32,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        port: u16,
    },
}

impl Carrier {
    fn send(&self, frame: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Interface(socket) => socket.send(frame),
            Self::Tunnel {
                socket,
                vni,
                source,
                destination,
                port,
            } => {
                let datagram = [&[8, 0, 0, 0], &(vni << 8).to_be_bytes()[..], frame].concat();
                let packet = packet::udp4(*source, *destination, *port, &datagram);
                socket.send_to(&packet, &SocketAddrV4::new(*destination, 0).into())
            }
        }
    }
}

impl Receive {
    fn run(&self) -> Result<()> {
        let mut socket = open(&self.interface, self.ethertype)?;
        ready()?;
        let mut count = Count::default();
        let mut until = Instant::now() + Duration::from_secs(self.seconds);
        let mut enough = false;
        while let Some(frame) = next(&mut socket, until)? {
            let (Some(source), Some(number)) = (source_of(&frame), frame.get(14..).and_then(count::number))
            else {
                continue;
            };
            count.note(source.to_string(), number);
            if !enough && self.expect.is_some_and(|expect| count.unique() >= expect) {
                enough = true;
                until = Instant::now() + Duration::from_millis(self.quiet);
            }
        }
        print(&json!({"senders": count.by_sender()}))
    }
}

impl Arp {
    fn run(&self) -> Result<()> {
        let mut socket = open(&self.interface, EtherType(packet::ARP))?;
        let own = own_mac(&self.interface)?;
        let request = packet::arp_request(own.0, self.sender, self.target);
        let started = Instant::now();
        socket
            .send(&frame(
                Mac(packet::BROADCAST),
                own,
                EtherType(packet::ARP),
                &request,
            ))
            .context("send an ARP request")?;
        let mut answers = Vec::new();
        while let Some(frame) = next(&mut socket, started + Duration::from_millis(self.timeout))? {
            if let Some(mac) = frame
                .get(14..)
                .and_then(|arp| packet::arp_reply(arp, self.target))
            {
                answers.push(json!({"mac": Mac(mac).to_string(), "ms": milliseconds(started.elapsed())}));
            }
        }
        print(&json!({"answers": answers}))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mac([u8; 6]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EtherType(u16);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
        let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .with_context(|| format!("\"{text}\" is no MAC address, as 02:5c:00:00:00:01"))
    }
}

impl FromStr for EtherType {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.trim_start_matches("0x");
        u16::from_str_radix(digits, 16)
            .map(Self)
            .with_context(|| format!("\"{text}\" is no EtherType, as 88b5"))
    }
}

fn frame(to: Mac, source: Mac, ethertype: EtherType, content: &[u8]) -> Vec<u8> {
    [&to.0[..], &source.0[..], &ethertype.0.to_be_bytes()[..], content].concat()
}

fn source_of(frame: &[u8]) -> Option<Mac> {
    frame.get(6..12)?.try_into().ok().map(Mac)
}

/// A packet(7) socket for one EtherType of one interface, without the frames that this machine sends itself.
fn open(interface: &str, ethertype: EtherType) -> Result<Socket> {
    let protocol = Protocol::from(i32::from(ethertype.0.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
        .context("open a packet socket (needs the capability NET_RAW)")?;
    let one: i32 = 1;
    // SAFETY: the pointer and size describe a live i32; the kernel only reads it.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const one).cast(),
            size_of::<i32>() as u32,
        )
    };
    if set != 0 {
        return Err(std::io::Error::last_os_error()).context("ignore own frames");
    }
    let index =
        nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    let index = i32::try_from(index).context("interface index")?;
    // SAFETY: sockaddr_ll fits into the zeroed storage that try_init hands over, and every field is plain data.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_protocol = ethertype.0.to_be();
            (*address).sll_ifindex = index;
            *length = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
    }
    .context("make a packet address")?;
    socket
        .bind(&address)
        .with_context(|| format!("bind to {interface}"))?;
    Ok(socket)
}

/// The next frame, or `None` when the time is over.
fn next(socket: &mut Socket, until: Instant) -> Result<Option<Vec<u8>>> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(None);
    }
    socket.set_read_timeout(Some(left)).context("set a deadline")?;
    let mut buffer = vec![0; 64 * 1024];
    match socket.read(&mut buffer) {
        Ok(read) => {
            buffer.truncate(read);
            Ok(Some(buffer))
        }
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("receive a frame"),
    }
}

fn own_mac(interface: &str) -> Result<Mac> {
    let path = format!("/sys/class/net/{interface}/address");
    let Ok(text) = std::fs::read_to_string(&path) else {
        bail!("no interface {interface}")
    };
    text.trim().parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_types_parse_as_people_write_them() {
        let mac: Mac = "02:5c:00:00:01:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:5c:00:00:01:ff");
        assert!("02:5c".parse::<Mac>().is_err());
        assert_eq!("0x88b5".parse::<EtherType>().unwrap(), EtherType(0x88b5));
    }

    #[test]
    fn a_frame_is_header_and_content() {
        let made = frame(Mac([1; 6]), Mac([2; 6]), EtherType(0x88b5), b"x");
        assert_eq!(made[12..], [0x88, 0xb5, b'x']);
        assert_eq!(source_of(&made), Some(Mac([2; 6])));
    }
}
