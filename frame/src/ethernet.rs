//! Ethernet II headers and what follows them (IEEE 802.3 §3.2.6; numbers of the IEEE registration authority).

use crate::Mac;

/// Bytes of destination, source and EtherType.
pub const HEADER: usize = 14;
/// Bytes of a VLAN tag (IEEE 802.1Q §9.5).
pub const TAG: usize = 4;

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
/// A customer's tag.
pub const VLAN: u16 = 0x8100;
/// A provider's tag (802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;
pub const IPV6: u16 = 0x86dd;

/// The first bytes of a frame, as they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub destination: Mac,
    pub source: Mac,
    pub ethertype: u16,
}

impl Header {
    /// The header as it is on the wire.
    #[must_use]
    pub const fn bytes(&self) -> [u8; HEADER] {
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (self.destination.0, self.source.0);
        let [t0, t1] = self.ethertype.to_be_bytes();
        [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
    }

    /// Reads what [`Self::bytes`] writes.
    #[must_use]
    pub const fn of(bytes: [u8; HEADER]) -> Self {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = bytes;
        Self {
            destination: Mac([d0, d1, d2, d3, d4, d5]),
            source: Mac([s0, s1, s2, s3, s4, s5]),
            ethertype: u16::from_be_bytes([t0, t1]),
        }
    }

    /// Writes the header over the first [`HEADER`] bytes.
    ///
    /// # Panics
    /// Where `frame` is shorter.
    pub fn write(&self, frame: &mut [u8]) {
        frame[..HEADER].copy_from_slice(&self.bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(d: [u8; 6], s: [u8; 6], ethertype: u16) {
            let header = Header { destination: Mac(d), source: Mac(s), ethertype };
            prop_assert_eq!(Header::of(header.bytes()), header);
        }
    }
}
