//! The sockets of a gateway: each lane has one that listens at the gateway's port, which they share, and each but the
//! first another one to begin its tunnels with.

use std::{io, net::SocketAddr};

use super::{
    steer,
    udp::{Memory, Udp},
};
use crate::proto::Socket;

/// The sockets of one lane.
pub struct Sockets {
    listening: Udp,
    dialing: Option<Udp>,
}

impl Sockets {
    /// Those of so many lanes; of one, where the kernel cannot give each lane its datagrams.
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub fn bind(listen: SocketAddr, lanes: u8) -> io::Result<Vec<Self>> {
        let shared = lanes > 1;
        let first = Udp::bind(listen, shared)?;
        let listen = first.local_address()?;
        if !shared {
            return Ok(vec![Self::one(first)]);
        }
        match Self::others(&first, listen, lanes) {
            Ok(others) => Ok(std::iter::once(Self::one(first)).chain(others).collect()),
            Err(error) => {
                tracing::warn!(%error, lanes, "datagrams cannot be given to several threads, using one");
                drop(first);
                Ok(vec![Self::one(Udp::bind(listen, false)?)])
            }
        }
    }

    fn others(first: &Udp, listen: SocketAddr, lanes: u8) -> io::Result<Vec<Self>> {
        let other = |_| {
            Ok(Self {
                listening: Udp::bind(listen, true)?,
                dialing: Some(Udp::bind(SocketAddr::new(listen.ip(), 0), false)?),
            })
        };
        let others = (1..lanes).map(other).collect::<io::Result<_>>()?;
        steer::attach(first, lanes)?;
        Ok(others)
    }

    fn one(listening: Udp) -> Self {
        Self {
            listening,
            dialing: None,
        }
    }

    pub fn listening(&self) -> &Udp {
        &self.listening
    }

    pub fn dialing(&self) -> Option<&Udp> {
        self.dialing.as_ref()
    }

    /// All there are.
    pub fn iter(&self) -> impl Iterator<Item = &Udp> {
        std::iter::once(&self.listening).chain(&self.dialing)
    }

    pub(super) fn get(&mut self, socket: Socket) -> &mut Udp {
        match (socket, &mut self.dialing) {
            (Socket::Dialing, Some(dialing)) => dialing,
            _ => &mut self.listening,
        }
    }

    /// Sets the code point of outgoing datagrams.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn set_dscp(&mut self, dscp: u8) -> io::Result<()> {
        let mut all = std::iter::once(&mut self.listening).chain(&mut self.dialing);
        all.try_for_each(|udp| udp.set_dscp(dscp))
    }

    /// Tries groups of datagrams again where a device could not segment them.
    pub fn retry_segmentation(&mut self) {
        self.listening.retry_segmentation();
        if let Some(dialing) = &mut self.dialing {
            dialing.retry_segmentation();
        }
    }

    /// How full the queues are, together.
    ///
    /// # Errors
    /// As [`Udp::memory`].
    pub fn memory(&self) -> io::Result<Memory> {
        let mut all = Memory::default();
        for udp in self.iter() {
            all.merge(&udp.memory()?);
        }
        Ok(all)
    }

    /// Whether datagrams are sent in groups.
    pub fn segmentation(&self) -> bool {
        self.iter().all(Udp::segmentation)
    }

    /// Whether datagrams are received in groups.
    pub fn coalescing(&self) -> bool {
        self.iter().all(Udp::coalescing)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::{
        poll::{PollFd, PollFlags, PollTimeout, poll},
        sys::socket::{getsockopt, sockopt},
    };
    use std::os::fd::AsFd;

    use super::*;
    use crate::io::udp::Received;

    /// A message of this type with a session number of this lane, in which only what the kernel looks at is right.
    fn message(kind: u8, length: usize, at: usize, lane: u8) -> Vec<u8> {
        let mut message = vec![0xa5; length];
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        message[at..at + 4].copy_from_slice(&(7 << 12 | u32::from(lane) << 8 | 0xff).to_le_bytes());
        message
    }

    #[test]
    fn each_lane_gets_its_datagrams() {
        for lanes in [1, 2, 3, 4, 16] {
            let sockets = Sockets::bind("[::1]:0".parse().unwrap(), lanes).unwrap();
            assert_eq!(sockets.len(), usize::from(lanes));
            let to = sockets[0].listening().local_address().unwrap();
            let sender = UdpSocket::bind("[::1]:0").unwrap();
            let mut received = Received::default();
            let mut check = |message: &[u8], lane: u8| {
                sender.send_to(message, to).unwrap();
                let mut fds: Vec<_> = (sockets.iter())
                    .map(|sockets| PollFd::new(sockets.listening().as_fd(), PollFlags::POLLIN))
                    .collect();
                assert_eq!(poll(&mut fds, PollTimeout::from(2000u16)), Ok(1));
                let got = fds.iter().position(|fd| fd.any().unwrap());
                assert_eq!(got, Some(usize::from(lane)), "{:?} of {lanes}", &message[..1]);
                sockets[usize::from(lane)]
                    .listening()
                    .receive(&mut received)
                    .unwrap();
                assert!(received.messages().all(|(_, _, bytes, _)| bytes == message));
            };
            for lane in 0..16 {
                check(&message(1, 148, 4, lane), 0);
                check(&message(2, 92, 8, lane), lane % lanes);
                check(&message(3, 64, 4, lane), lane % lanes);
                check(&message(4, 32, 4, lane), lane % lanes);
            }
            check(&[4], 0);
            check(b"no WireGuard at all", b'r' % 16 % lanes);
        }
    }

    #[test]
    fn only_lanes_share_a_port() {
        let alone = Sockets::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = alone[0].listening().local_address().unwrap();
        assert!(!getsockopt(alone[0].listening(), sockopt::ReusePort).unwrap());
        assert!(Sockets::bind(address, 2).is_err());
    }
}
