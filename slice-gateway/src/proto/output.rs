//! What goes out, and where to.

#[cfg(doc)]
use super::HEADROOM;
use super::{Endpoint, ecn, lane::Note};

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
    pub endpoint: Endpoint,
    /// Its ECN code point; see [`ecn`].
    pub ecn: u8,
    pub fragmentation: Fragmentation,
}

impl From<Endpoint> for Destination {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            ecn: ecn::NOT_ECT,
            fragmentation: Fragmentation::Never,
        }
    }
}
