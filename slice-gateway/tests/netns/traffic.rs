//! Pings and frames.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use slice_frame::{
    Mac,
    ethernet::{self, Header},
};
use socket2::{Domain, Protocol, Socket, Type};

/// Sends echo requests from the namespace that it was made in.
pub(crate) struct Pinger {
    socket: Socket,
    to: SocketAddr,
    sequence: u16,
    sent: u32,
    answered: u32,
}

impl Pinger {
    pub(crate) fn new(to: IpAddr) -> Self {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).expect("a raw socket");
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .expect("a timeout");
        Self {
            socket,
            to: SocketAddr::new(to, 0),
            sequence: 0,
            sent: 0,
            answered: 0,
        }
    }

    /// Pings until ten answers in a row came; panics after twenty requests without one.
    ///
    /// Counted, not timed: a machine that stands still for seconds has lost nothing.
    #[track_caller]
    pub(crate) fn ping(&mut self, what: &str) {
        let (mut row, mut unanswered) = (0, 0);
        while row < 10 {
            if self.once() {
                row += 1;
                continue;
            }
            (row, unanswered) = (0, unanswered + 1);
            assert!(
                unanswered < 20,
                "ping {}: {what}: {} of {} answered, never ten in a row",
                self.to.ip(),
                self.answered,
                self.sent
            );
        }
    }

    /// Requests without an answer.
    pub(crate) fn lost(&self) -> u32 {
        self.sent - self.answered
    }

    fn once(&mut self) -> bool {
        self.sequence += 1;
        self.sent += 1;
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0, 0x77, 0x66];
        message.extend(self.sequence.to_be_bytes());
        message.extend([0x5a; 56]);
        if self.to.is_ipv4() {
            let sum: u32 = message
                .chunks(2)
                .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
                .sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            message[2..4].copy_from_slice(&(!(((folded & 0xffff) + (folded >> 16)) as u16)).to_be_bytes());
        }
        self.socket
            .send_to(&message, &self.to.into())
            .expect("send an echo request");
        let (end, mut buffer) = (Instant::now() + Duration::from_millis(500), [0; 256]);
        while Instant::now() < end {
            let Ok(length) = (&self.socket).read(&mut buffer) else {
                continue;
            };
            // IPv4 raw sockets see the IP header, IPv6 ones do not (ip(7), ipv6(7)).
            let answer = &buffer[if self.to.is_ipv4() { 20 } else { 0 }..length];
            let reply = if self.to.is_ipv4() { 0 } else { 129 };
            if answer[0] == reply && answer[4..] == message[4..] {
                self.answered += 1;
                return true;
            }
        }
        false
    }
}

/// An Ethernet frame, as long as Ethernet wants it.
pub(crate) fn frame(from: u32, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ethernet::HEADER];
    Header {
        destination: to,
        source: Mac::of_index(from),
        ethertype,
    }
    .write(&mut frame);
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Receives `count` messages, and whatever comes in the 200 ms after them.
pub(crate) fn receive_all(socket: &Socket, count: usize) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut buffer = vec![0; 70_000];
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a timeout");
    while let Ok(length) = Read::read(&mut &*socket, &mut buffer) {
        messages.push(buffer[..length].to_vec());
        if messages.len() >= count {
            socket
                .set_read_timeout(Some(Duration::from_millis(200)))
                .expect("a timeout");
        }
    }
    assert_eq!(messages.len(), count, "messages received");
    messages
}
