//! A UDP socket for all peers, IPv4 and IPv6, with segmentation on the way out (UDP_SEGMENT, Linux 4.18) and
//! coalescing on the way in (UDP_GRO, Linux 5.0).
//!
//! Receiving is quinn-udp's. Sending is not, because it overrides the code point of each datagram.

use std::{
    collections::BTreeSet,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    getsockopt_impl, libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sockopt_impl,
    sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, getsockopt, sendmsg, setsockopt, sockopt},
};
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use slice_runtime::fragmentation;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::proto::{Destination, Fragmentation, ecn};

/// Buffers that the socket asks for. The kernel grants less to a process without CAP_NET_ADMIN: what
/// net.core.rmem_max and wmem_max say.
const SOCKET_BUFFER: usize = 4 << 20;
/// Datagrams in one `sendmsg`: UDP_MAX_SEGMENTS before Linux 6.9.
pub const MAX_SEGMENTS: usize = 64;
/// Bytes in one `sendmsg`, below what fits into an IP packet with its headers.
pub const MAX_BATCH: usize = 65_000;
/// Bytes of one coalesced receive.
const RECEIVE_BUFFER: usize = 65_536;
/// How long a full socket is waited for before a batch is dropped, in milliseconds. The TAP's queue holds the frames
/// that follow meanwhile.
const SEND_PATIENCE: u16 = 5;

/// Addresses that are remembered as not reached in groups; with more, all are tried again.
const MAX_UNSEGMENTED: usize = 1024;

pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    /// An IPv6 socket takes IPv4 addresses in their mapped form.
    v6: bool,
    segmentation: bool,
    /// Where the device on the way out cannot segment; asked again after [`Self::retry_segmentation`].
    unsegmented: BTreeSet<IpAddr>,
    coalescing: bool,
    dscp: u8,
    /// The kernel may cut datagrams, and routers; see [`fragmentation`].
    fragments: bool,
}

sockopt_impl!(
    /// The socket's memory, in words as `SK_MEMINFO_*` orders them (linux/sock_diag.h).
    MemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_MEMINFO,
    [u32; 9]
);

/// How full a socket's queues are, in bytes as the kernel counts them: with its own overhead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub receive_queue: u32,
    /// What the receive queue may grow to.
    pub receive_buffer: u32,
    pub send_queue: u32,
    /// Datagrams that found the receive queue full.
    pub overflows: u32,
}

impl Memory {
    /// Adds another socket's.
    pub fn merge(&mut self, other: &Self) {
        self.receive_queue += other.receive_queue;
        self.receive_buffer += other.receive_buffer;
        self.send_queue += other.send_queue;
        self.overflows = self.overflows.wrapping_add(other.overflows);
    }
}

/// Received datagrams.
pub struct Received {
    buffer: Vec<u8>,
    meta: [RecvMeta; BATCH_SIZE],
    count: usize,
}

impl Default for Received {
    fn default() -> Self {
        Self {
            buffer: vec![0; BATCH_SIZE * RECEIVE_BUFFER],
            meta: [RecvMeta::default(); BATCH_SIZE],
            count: 0,
        }
    }
}

impl Received {
    /// The messages: where from, their ECN code point, the bytes, and the size of each datagram in them (the last may be shorter).
    pub fn messages(&self) -> impl Iterator<Item = (SocketAddr, u8, &[u8], usize)> {
        let buffers = self.buffer.chunks_exact(RECEIVE_BUFFER);
        buffers.zip(&self.meta[..self.count]).map(|(buffer, meta)| {
            let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let ecn = meta.ecn.map_or(0, |ecn| ecn as u8);
            (from, ecn, &buffer[..meta.len], meta.stride.max(1))
        })
    }
}

impl Udp {
    /// Opens a socket. On a host without IPv6 the unspecified IPv6 address becomes the IPv4 one. A port can be `shared`
    /// between sockets that all say so (SO_REUSEPORT).
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub fn bind(listen: SocketAddr, shared: bool) -> io::Result<Self> {
        match Self::open(listen, shared) {
            Err(error) if listen.ip().is_unspecified() && listen.is_ipv6() => {
                tracing::info!(%error, "no IPv6 here, using IPv4 only");
                Self::open(
                    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port()),
                    shared,
                )
            }
            result => result,
        }
    }

    fn open(listen: SocketAddr, shared: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        if listen.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(shared)?;
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
        socket.bind(&listen.into())?;
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        // quinn-udp 0.6.3 asks for a time stamp, for which its control buffer has no room beside the size of
        // coalesced datagrams: the ECN code point would be cut off. Nobody here wants the time.
        setsockopt(&socket, sockopt::ReceiveTimestampns, &false)?;
        let segmentation = state.max_gso_segments() > 1;
        let coalescing = state.gro_segments() > 1;
        fragmentation::set(&socket, listen.is_ipv6(), false)?;
        tracing::info!(
            segmentation,
            coalescing,
            receive_buffer = SockRef::from(&socket).recv_buffer_size()?,
            "UDP socket is open"
        );
        Ok(Self {
            socket,
            state,
            v6: listen.is_ipv6(),
            segmentation,
            unsegmented: BTreeSet::new(),
            coalescing,
            dscp: 0,
            fragments: false,
        })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// How full the socket's queues are.
    ///
    /// # Errors
    /// Where the kernel does not say (before Linux 4.12).
    pub fn memory(&self) -> io::Result<Memory> {
        let words = getsockopt(&self.socket, MemInfo)?;
        Ok(Memory {
            receive_queue: words[0],
            receive_buffer: words[1],
            send_queue: words[2],
            overflows: words[8],
        })
    }

    /// Whether datagrams are sent in groups, wherever they go.
    pub fn segmentation(&self) -> bool {
        self.segmentation && self.unsegmented.is_empty()
    }

    /// Tries groups again everywhere: a path may lead by another device now.
    pub fn retry_segmentation(&mut self) {
        self.unsegmented.clear();
    }

    /// Whether datagrams are received in groups.
    pub fn coalescing(&self) -> bool {
        self.coalescing
    }

    /// Sets the code point of outgoing datagrams.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn set_dscp(&mut self, dscp: u8) -> io::Result<()> {
        self.dscp = dscp;
        let socket = SockRef::from(&self.socket);
        let tos = u32::from(dscp) << 2;
        socket.set_tos_v4(tos)?;
        if self.v6 {
            socket.set_tclass_v6(tos)
        } else {
            Ok(())
        }
    }

    /// Receives what is there, up to the size of `received`.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where there is nothing.
    pub fn receive(&self, received: &mut Received) -> io::Result<()> {
        received.count = 0;
        let mut chunks = received.buffer.chunks_exact_mut(RECEIVE_BUFFER);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().expect("one buffer per message")));
        received.count = self
            .state
            .recv((&self.socket).into(), &mut buffers, &mut received.meta)?;
        Ok(())
    }

    /// Sends datagrams of `segment` bytes, the last of which may be shorter. Returns how many bytes could not be
    /// sent, and why.
    pub fn send(
        &mut self,
        to: Destination,
        datagrams: &[u8],
        segment: usize,
    ) -> Result<(), (io::Error, usize)> {
        let fragments = to.fragmentation == Fragmentation::Allowed;
        if fragments != self.fragments {
            match fragmentation::set(&self.socket, self.v6, fragments) {
                Ok(()) => self.fragments = fragments,
                Err(error) => return Err((error, datagrams.len())),
            }
        }
        let mut suspect = false;
        let address = to.endpoint.address.ip();
        let grouped =
            self.segmentation && (self.unsegmented.is_empty() || !self.unsegmented.contains(&address));
        if grouped && !fragments && datagrams.len() > segment {
            match self.send_message(to, datagrams, u16::try_from(segment).ok()) {
                Ok(()) => return Ok(()),
                // What a device that cannot compute checksums answers (net/ipv4/udp.c: udp_send_skb), but older
                // kernels also say so of a datagram that is longer than the path's MTU.
                Err(Errno::EIO | Errno::EINVAL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => suspect = true,
                Err(error) => return Err((error.into(), datagrams.len())),
            }
        }
        let mut failed = None;
        for datagram in datagrams.chunks(segment.max(1)) {
            match self.send_message(to, datagram, None) {
                // One that is as long as those in the group: it was not their length.
                Ok(()) if suspect && datagram.len() == segment => {
                    tracing::info!(%address, "the device cannot segment datagrams, sending them one by one");
                    self.forgo_segmentation(address);
                    suspect = false;
                }
                Ok(()) => {}
                Err(error) => {
                    failed = Some((
                        error.into(),
                        failed.map_or(0, |(_, bytes)| bytes) + datagram.len(),
                    ));
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn forgo_segmentation(&mut self, address: IpAddr) {
        if self.unsegmented.len() == MAX_UNSEGMENTED {
            self.unsegmented.clear();
        }
        self.unsegmented.insert(address);
    }

    fn send_message(&self, to: Destination, bytes: &[u8], segment: Option<u16>) -> Result<(), Errno> {
        let address = self.mapped(to.endpoint.address);
        // Code point and mark share a byte, and a datagram's own overrides the socket's.
        let tos = self.dscp << 2 | to.ecn;
        let class = i32::from(tos);
        let mut control = [ControlMessage::Ipv4Tos(&tos), ControlMessage::Ipv4Tos(&tos)];
        let mut used = 0;
        if let Some(segment) = &segment {
            control[used] = ControlMessage::UdpGsoSegments(segment);
            used += 1;
        }
        if to.ecn != ecn::NOT_ECT {
            let v4 = to.endpoint.address.is_ipv4();
            control[used] = if v4 {
                ControlMessage::Ipv4Tos(&tos)
            } else {
                ControlMessage::Ipv6TClass(&class)
            };
            used += 1;
        }
        let (address, mut waited) = (SockaddrStorage::from(address), false);
        loop {
            let (iov, flags) = ([IoSlice::new(bytes)], MsgFlags::MSG_DONTWAIT);
            match sendmsg(
                self.socket.as_raw_fd(),
                &iov,
                &control[..used],
                flags,
                Some(&address),
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !waited => {
                    waited = true;
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut fds, PollTimeout::from(SEND_PATIENCE));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn mapped(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(ip) if self.v6 => SocketAddrV6::new(ip.to_ipv6_mapped(), to.port(), 0, 0).into(),
            _ => to,
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Endpoint;

    fn receive(udp: &Udp, wanted: usize) -> Vec<((SocketAddr, u8), Vec<u8>)> {
        let (mut received, mut all) = (Received::default(), Vec::new());
        while all.len() < wanted {
            let mut fds = [PollFd::new(udp.as_fd(), PollFlags::POLLIN)];
            assert_eq!(
                poll(&mut fds, PollTimeout::from(2000u16)),
                Ok(1),
                "{} of {wanted} arrived",
                all.len()
            );
            udp.receive(&mut received).unwrap();
            for (from, ecn, bytes, segment) in received.messages() {
                all.extend(
                    bytes
                        .chunks(segment)
                        .map(|datagram| ((from, ecn), datagram.to_vec())),
                );
            }
        }
        all
    }

    #[track_caller]
    fn check(listen: &str, sender_at: &str, segmentation: bool, ecn: u8) {
        let receiver = Udp::bind(listen.parse().unwrap(), false).unwrap();
        let mut sender = Udp::bind(sender_at.parse().unwrap(), false).unwrap();
        sender.segmentation &= segmentation;
        let ip: IpAddr = if sender_at.starts_with('[') {
            "::1"
        } else {
            "127.0.0.1"
        }
        .parse()
        .unwrap();
        let to = SocketAddr::new(ip, receiver.local_address().unwrap().port());
        let datagrams: Vec<u8> = (0..10_000u32).map(|n| (n / 1400) as u8).collect();
        sender
            .send(
                Destination {
                    ecn,
                    ..Endpoint::from(to).into()
                },
                &datagrams,
                1400,
            )
            .unwrap();
        let received = receive(&receiver, 8);
        let lengths: Vec<_> = received.iter().map(|(_, datagram)| datagram.len()).collect();
        assert_eq!(lengths, [1400, 1400, 1400, 1400, 1400, 1400, 1400, 200]);
        let joined: Vec<u8> = received
            .iter()
            .flat_map(|(_, datagram)| datagram.clone())
            .collect();
        assert_eq!(joined, datagrams);
        let from: Vec<_> = received
            .iter()
            .map(|((from, mark), _)| (from.ip(), *mark))
            .collect();
        assert_eq!(
            from,
            [(ip, ecn); 8],
            "{listen} from {sender_at}, segmentation {segmentation}"
        );
    }

    #[test]
    fn datagrams_arrive_as_they_were_sent() {
        for segmentation in [true, false] {
            for ecn in 0..4 {
                check("127.0.0.1:0", "127.0.0.1:0", segmentation, ecn);
                check("[::]:0", "127.0.0.1:0", segmentation, ecn);
                check("[::]:0", "[::]:0", segmentation, ecn);
            }
        }
    }

    #[test]
    fn queues_fill_and_overflow() {
        let receiver = Udp::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let to = receiver.local_address().unwrap();
        assert_eq!(receiver.memory().unwrap().receive_queue, 0);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let datagram = vec![0; 60_000];
        sender.send_to(&datagram, to).unwrap();
        let memory = receiver.memory().unwrap();
        assert!(
            (60_000..memory.receive_buffer).contains(&memory.receive_queue),
            "{memory:?}"
        );
        assert_eq!(memory.overflows, 0);
        for _ in 0..memory.receive_buffer / 60_000 {
            sender.send_to(&datagram, to).unwrap();
        }
        assert!(receiver.memory().unwrap().overflows > 0);
    }

    #[test]
    fn the_code_point_can_be_set_on_both_families() {
        let mut udp = Udp::bind("[::]:0".parse().unwrap(), false).unwrap();
        udp.set_dscp(46).unwrap();
        assert_eq!(SockRef::from(&udp.socket).tos_v4().unwrap(), 46 << 2);
        assert_eq!(SockRef::from(&udp.socket).tclass_v6().unwrap(), 46 << 2);
    }

    #[test]
    fn what_cannot_be_sent_is_told() {
        let mut udp = Udp::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let nowhere = Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 9)));
        let (_, bytes) = udp.send(nowhere.into(), &[0; 3000], 1000).unwrap_err();
        assert_eq!(bytes, 3000);
    }
}
