//! What the nodes of a cluster send each other to see whether what they send arrives, and how large it may be: frames of a
//! slice that nobody is in, by the same devices and ports as all others.
//!
//! ```text
//!  octet  0        6        12         14     15      16      24
//!         to      from      EtherType  kind   whole   nonce   padding
//! ```
//!
//! A question is answered by the node's programs, whatever its agent does: it goes back, as long, by the
//! port of frames for pods. So each port is tried in the direction in which it is used. An answer is
//! noted where the agent has said that it waits for one with this nonce from this node; any other leaves no trace. Answers
//! are not answered, so there are no loops, and nothing is amplified.

use core::net::Ipv6Addr;

/// The number that stands in place of a slice's. Slices have larger ones, so that no pod sends by it, or gets what does.
pub const PROBES: u32 = 4096;
/// Octets of a probe before its padding.
pub const PROBE: usize = 24;
/// Octets that a program reads, from [`PROBE_KIND`] on.
pub const PROBE_READ: usize = PROBE - PROBE_KIND;
/// The place of the octet that says what it is.
pub const PROBE_KIND: usize = 14;
/// What an octet at [`PROBE_KIND`] says.
pub const QUESTION: u8 = 1;
pub const ANSWER: u8 = 2;

/// For local experiments (IEEE 802, clause 9.2.4).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Locally administered, and no index's.
const NOBODY: [u8; 6] = [0x02, 0x5d, 0, 0, 0, 0];

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub kind: u8,
    /// It must not be cut into fragments on its way, and neither must its answer.
    pub whole: bool,
    /// Known to who asks and who answers.
    pub nonce: u64,
}

impl Probe {
    /// Writes it into the first [`PROBE`] octets of a frame.
    pub fn write(&self, frame: &mut [u8]) {
        let Some((head, _)) = frame.split_first_chunk_mut::<PROBE>() else {
            return;
        };
        head[..6].copy_from_slice(&NOBODY);
        head[6..12].copy_from_slice(&NOBODY);
        head[12..14].copy_from_slice(&ETHERTYPE);
        head[PROBE_KIND] = self.kind;
        head[15] = self.whole.into();
        head[16..].copy_from_slice(&self.nonce.to_be_bytes());
    }

    /// From the octets behind [`PROBE_KIND`].
    #[inline(always)]
    #[must_use]
    pub const fn of(octets: [u8; PROBE_READ]) -> Self {
        let [kind, whole, a, b, c, d, e, f, g, h] = octets;
        Self {
            kind,
            whole: whole != 0,
            nonce: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        }
    }
}

/// The key of an answer that is waited for: nonce and node, in their words. Its value is how long the answer was, zero
/// before it came.
pub type AnswerKey = [u32; 6];

/// The key of the answer with a nonce from a node.
#[inline(always)]
#[must_use]
pub const fn answer_key(nonce: u64, node: Ipv6Addr) -> AnswerKey {
    let bits = node.to_bits();
    [
        (nonce >> 32) as u32,
        nonce as u32,
        (bits >> 96) as u32,
        (bits >> 64) as u32,
        (bits >> 32) as u32,
        bits as u32,
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_probe_is_read_as_it_was_written(kind: u8, whole: bool, nonce: u64, padding in 0..100_usize) {
            let probe = Probe { kind, whole, nonce };
            let mut frame = vec![0x5a; PROBE + padding];
            probe.write(&mut frame);
            let octets = frame[PROBE_KIND..PROBE].try_into().unwrap();
            prop_assert_eq!(Probe::of(octets), probe);
            prop_assert!(frame[PROBE..].iter().all(|octet| *octet == 0x5a));
        }
    }
}
