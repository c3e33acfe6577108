use std::{
    fs::File,
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use nix::libc;
use slice_crds::Mac;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::{Background, Space};

const ETH_P_ALL: u16 = 3;

/// A packet socket on one interface: sends and receives whole frames.
pub struct Wire {
    socket: Socket,
}

impl Wire {
    /// # Panics
    /// Where the interface is not there.
    pub fn open(space: &Space, interface: &str) -> Self {
        let socket = space.run(|| {
            let socket = Socket::new(
                Domain::PACKET,
                Type::RAW,
                Some(Protocol::from(i32::from(ETH_P_ALL.to_be()))),
            )?;
            let index = nix::net::if_::if_nametoindex(interface)?;
            let mut storage = SockAddrStorage::zeroed();
            // SAFETY: the storage is large enough for, and aligned for, every kind of socket address.
            let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = ETH_P_ALL.to_be();
            address.sll_ifindex = index as i32;
            // SAFETY: the storage holds a `sockaddr_ll`, written above.
            let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32) };
            socket.bind(&address)?;
            Ok(socket)
        });
        Self { socket }
    }

    pub fn send(&self, frame: &[u8]) {
        self.socket.send(frame).unwrap();
    }

    /// What arrives (not what this side sends) until `time` is over.
    pub fn collect(&self, time: Duration) -> Vec<Vec<u8>> {
        let end = Instant::now() + time;
        let mut frames = vec![];
        while let Some(left) = end
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [MaybeUninit::uninit(); 65536];
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    // SAFETY: a packet socket's address is a `sockaddr_ll`, and it outlives the reference.
                    let outgoing = unsafe {
                        (*from.as_ptr().cast::<libc::sockaddr_ll>()).sll_pkttype == libc::PACKET_OUTGOING
                    };
                    if !outgoing {
                        // SAFETY: the kernel has written that many bytes.
                        frames.push(
                            buffer[..length]
                                .iter()
                                .map(|byte| unsafe { byte.assume_init() })
                                .collect(),
                        );
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        frames
    }
}

/// A payload that tells a test's own frames from others.
pub const MARK: &[u8] = b"weft-test-frame-with-a-marker-in-it-and-some-padding-behind-it";

/// How many of these frames carry the marker.
pub fn marked(frames: &[Vec<u8>]) -> usize {
    frames
        .iter()
        .filter(|frame| frame.windows(MARK.len()).any(|window| window == MARK))
        .count()
}

/// A frame.
pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), payload].concat()
}

/// A frame within VLAN tags of these kinds that name no VLAN.
pub fn tagged(kinds: &[u16], frame: &[u8]) -> Vec<u8> {
    let tags = kinds
        .iter()
        .flat_map(|kind| [kind.to_be_bytes(), [0, 0]].concat());
    [&frame[..12], &tags.collect::<Vec<u8>>(), &frame[12..]].concat()
}

/// ICMPv6 from `source` with a body and the marker, to all nodes.
pub fn icmp6(from: Mac, source: IpAddr, kind: u8, body: &[u8]) -> Vec<u8> {
    let IpAddr::V6(source) = source else {
        panic!("IPv6")
    };
    let all_nodes = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let payload = [&[kind, 0, 0, 0][..], body, MARK].concat();
    let length = u16::try_from(payload.len()).unwrap();
    let ip = [
        &[0x60, 0, 0, 0][..],
        &length.to_be_bytes(),
        &[58, 255],
        &source.octets(),
        &all_nodes.octets(),
    ]
    .concat();
    ethernet(
        Mac([0x33, 0x33, 0, 0, 0, 1]),
        from,
        0x86dd,
        &[ip, payload].concat(),
    )
}

/// An ARP request.
pub fn arp_request(frame_from: Mac, sender: (Mac, IpAddr), target: IpAddr) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => panic!("ARP is for IPv4"),
    };
    let payload = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &sender.0.0,
        &octets(sender.1),
        &[0; 6],
        &octets(target),
    ]
    .concat();
    ethernet(Mac::BROADCAST, frame_from, 0x0806, &payload)
}

/// A UDP datagram in IPv4 in Ethernet, without UDP checksum, from the echo service's port to the same.
pub fn udp4(to: Mac, from: (Mac, IpAddr), destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    udp4_between(to, from, destination, (7, 7), payload)
}

/// The same with its source and destination port.
pub fn udp4_between(
    to: Mac,
    from: (Mac, IpAddr),
    destination: IpAddr,
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.1, destination) else {
        panic!("IPv4")
    };
    let length = u16::try_from(28 + payload.len()).unwrap();
    let mut ip = [
        &[0x45, 0][..],
        &length.to_be_bytes(),
        &[0, 0, 0, 0, 64, 17, 0, 0],
        &source.octets(),
        &destination.octets(),
    ]
    .concat();
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let udp = [
        &ports.0.to_be_bytes()[..],
        &ports.1.to_be_bytes(),
        &(length - 20).to_be_bytes(),
        &[0, 0],
        payload,
    ]
    .concat();
    ethernet(to, from.0, 0x0800, &[ip, udp].concat())
}

/// One echo request and its answer; the time it took, or `None` after `timeout`.
pub fn ping(from: &Space, to: IpAddr, size: usize, timeout: Duration) -> Option<Duration> {
    static SEQUENCE: AtomicU16 = AtomicU16::new(1);
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = from.run(|| Socket::new(domain, Type::RAW, Some(protocol)));
    if matches!(to, IpAddr::V6(to) if to.is_unicast_link_local()) {
        // Such an address is one of an interface's.
        socket.bind_device(Some(b"sl-shop")).unwrap();
    }
    let mut packet = vec![request, 0, 0, 0, 0x57, 0xef, sequence[0], sequence[1]];
    packet.resize(8 + size, 0x55);
    if to.is_ipv4() {
        let sum: u32 = packet
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
        packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    let start = Instant::now();
    // Where there is no way there, the answer is the same as silence.
    socket.send_to(&packet, &SocketAddr::new(to, 0).into()).ok()?;
    loop {
        let left = timeout
            .checked_sub(start.elapsed())
            .filter(|left| !left.is_zero())?;
        socket.set_read_timeout(Some(left)).unwrap();
        let mut buffer = vec![0; 65536];
        let Ok(length) = (&socket).read(&mut buffer) else {
            continue;
        };
        let header = if to.is_ipv4() { 20 } else { 0 };
        let Some(answer) = buffer[..length].get(header..) else {
            continue;
        };
        if answer.len() >= 8 && answer[0] == reply && answer[6..8] == sequence {
            return Some(start.elapsed());
        }
    }
}

/// One echo request after the other, from a thread of its own.
pub struct Pings(Background<(u32, u32, Space)>);

impl Pings {
    pub fn start(from: Space, to: IpAddr) -> Self {
        Self(Background::start(move |stop| {
            let (mut sent, mut lost) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                sent += 1;
                lost += u32::from(ping(&from, to, 56, Duration::from_secs(1)).is_none());
            }
            (sent, lost, from)
        }))
    }

    /// How many were sent, how many of them had no answer within a second, and the namespace again.
    pub fn finish(self) -> (u32, u32, Space) {
        self.0.end()
    }
}

/// A gateway's end of a TAP: frames behind a `virtio_net_hdr` of ten bytes.
pub struct Tap {
    file: File,
}

impl Tap {
    const HEADER: usize = 10;

    pub fn new(fd: OwnedFd) -> Self {
        Self { file: File::from(fd) }
    }

    pub fn send(&self, frame: &[u8]) {
        (&self.file)
            .write_all(&[&[0; Self::HEADER], frame].concat())
            .unwrap();
    }

    /// What arrives until `time` is over.
    pub fn collect(&self, time: Duration) -> Vec<Vec<u8>> {
        let end = Instant::now() + time;
        let mut frames = vec![];
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let mut poll = libc::pollfd {
                fd: self.file.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one `pollfd`, which outlives the call.
            let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) };
            if ready <= 0 {
                break;
            }
            let mut buffer = vec![0; 65536];
            let length = (&self.file).read(&mut buffer).unwrap();
            frames.push(buffer[Self::HEADER..length].to_vec());
        }
        frames
    }
}
