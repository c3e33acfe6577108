//! A gateway with several threads: each runs a [`super::Gateway`] of its own, a *lane*.
//!
//! ```text
//!            queues of the TAP              UDP
//!   flows ─┬─ 0 ── lane 0 ═══ tunnel 0 ═══ lane 0 ─┬─ flows
//!          ├─ 1 ── lane 1 ═══ tunnel 1 ═══ lane 1 ─┤
//!          └─ 2 ── lane 2 ═══ tunnel 2 ═══ lane 0 ─┘   the far end may have fewer
//! ```
//!
//! All lanes answer to the same keys. Between two gateways each lane has a tunnel of its own, and the lane that began
//! it is part of both ends' session numbers (four bits): so the kernel can give every datagram to the lane that it is
//! for ([`crate::io::steer`]), and lanes share nothing per packet. What only one of them can do, the first does:
//!
//! - It takes all handshakes that others begin, within the limits of the guard, and passes each on to its lane.
//! - It has the tunnels to hosts outside the clusters, who know one tunnel for each key. Other lanes pass it the frames
//!   for them.
//! - It decides when a key is made, and gives it to the others.

use slice_runtime::handover::MAX_QUEUES;

use super::{Endpoint, Offload, keyring::Serial};

/// One for each queue of the TAP device.
pub const MAX_LANES: u8 = MAX_QUEUES;
// Session numbers have four bits for them.
const _: () = assert!(MAX_LANES <= 16);

/// Which of a gateway's lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    number: u8,
    of: u8,
}

impl Lane {
    /// That of a gateway with one thread.
    pub const ONLY: Self = Self { number: 0, of: 1 };

    /// All lanes of a gateway with so many.
    ///
    /// # Panics
    /// Where there are none, or more than [`MAX_LANES`].
    pub fn all(of: u8) -> impl Iterator<Item = Self> {
        assert!((1..=MAX_LANES).contains(&of), "{of} lanes");
        (0..of).map(move |number| Self { number, of })
    }

    pub fn number(self) -> u8 {
        self.number
    }

    pub fn is_first(self) -> bool {
        self.number == 0
    }

    /// The number of the lane that has the near end of a tunnel, by the number of the lane that began it.
    pub(super) fn of_tunnel(self, tunnel: u8) -> u8 {
        tunnel % self.of
    }
}

/// What one lane leaves to another; bytes come with it.
#[derive(Clone, Copy, Debug)]
pub enum Note {
    /// A handshake that a peer began: the datagram.
    Initiation(Initiation),
    /// A frame for hosts outside the clusters.
    Frame(Offload),
}

/// Who began a handshake.
#[derive(Clone, Copy, Debug)]
pub struct Initiation {
    /// With which key of ours.
    pub(super) own: Serial,
    pub(super) key: [u8; 32],
    /// In which of its lanes.
    pub(super) tunnel: u8,
    pub(super) from: Endpoint,
}
