//! What goes out, and where to.

use std::net::SocketAddr;

#[cfg(doc)]
use super::HEADROOM;
use super::{ecn, lane::Note};

/// Where the output of a call goes: buffers of the caller.
///
/// At most one buffer is lent at a time; lending the next one takes back one that was not committed.
pub trait Output {
    /// Lends exactly `length` bytes for a datagram to `to`; `None` where there is no room.
    fn datagram(&mut self, to: Destination, length: usize) -> Option<&mut [u8]>;

    /// Commits the datagram that was lent last. Datagrams to one address leave in the order of their commits.
    fn send(&mut self);

    /// Lends at least `length` bytes for a frame; `None` where there is no room.
    fn frame(&mut self, length: usize) -> Option<&mut [u8]>;

    /// Commits bytes `start..end` of the frame buffer that was lent last. `start` is at least [`HEADROOM`], so that
    /// the caller can put a header of its own before the frame.
    fn deliver(&mut self, start: usize, end: usize);

    /// Leaves something to another lane; `false` where that has no room.
    fn leave(&mut self, lane: u8, note: Note, bytes: &[u8]) -> bool;
}

/// Which socket of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Socket {
    /// That with the gateway's port, which all lanes share.
    Listening,
    /// The lane's own, with a port of its own. What lanes begin they begin here, so that the network between two
    /// gateways can tell tunnels apart; the first lane has none and begins by the other.
    Dialing,
}

/// Where a peer is: datagrams go and come between an address and a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    pub address: SocketAddr,
    pub socket: Socket,
}

impl From<SocketAddr> for Path {
    /// By the listening socket.
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            socket: Socket::Listening,
        }
    }
}

/// What may happen to a datagram that is longer than the path carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fragmentation {
    /// It is lost, and counted where it does not even fit the own device.
    #[default]
    Never,
    /// It is lost: that is what it is sent to find out.
    Probe,
    /// It travels in fragments, which costs both ends dear and a network may refuse: nothing else carries it.
    Allowed,
}

/// Where a datagram goes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub path: Path,
    /// Its ECN code point; see [`ecn`].
    pub ecn: u8,
    pub fragmentation: Fragmentation,
}

impl From<Path> for Destination {
    fn from(path: Path) -> Self {
        Self {
            path,
            ecn: ecn::NOT_ECT,
            fragmentation: Fragmentation::Never,
        }
    }
}
