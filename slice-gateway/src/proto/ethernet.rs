//! Ethernet II headers (IEEE 802.3 §3.1).

use super::address::Mac;

/// Bytes of destination, source and EtherType.
pub const HEADER: usize = 14;

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const VLAN: u16 = 0x8100;
pub const IPV6: u16 = 0x86dd;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub destination: Mac,
    pub source: Mac,
    pub ethertype: u16,
}

impl Header {
    /// The header of a frame and what follows it; `None` where the frame is shorter than a header.
    pub fn parse(frame: &[u8]) -> Option<(Self, &[u8])> {
        let ([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1], payload) =
            frame.split_first_chunk()?;
        let header = Self {
            destination: Mac([*d0, *d1, *d2, *d3, *d4, *d5]),
            source: Mac([*s0, *s1, *s2, *s3, *s4, *s5]),
            ethertype: u16::from_be_bytes([*t0, *t1]),
        };
        Some((header, payload))
    }

    /// Writes the header over the first [`HEADER`] bytes.
    ///
    /// # Panics
    /// Where `frame` is shorter.
    pub fn write(&self, frame: &mut [u8]) {
        frame[..6].copy_from_slice(&self.destination.0);
        frame[6..12].copy_from_slice(&self.source.0);
        frame[12..14].copy_from_slice(&self.ethertype.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(d: [u8; 6], s: [u8; 6], ethertype: u16, payload: Vec<u8>) {
            let header = Header { destination: Mac(d), source: Mac(s), ethertype };
            let mut frame = [&[0; HEADER], &payload[..]].concat();
            header.write(&mut frame);
            prop_assert_eq!(Header::parse(&frame), Some((header, &payload[..])));
        }

        #[test]
        fn any_bytes_parse_or_do_not(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(Header::parse(&bytes).is_some(), bytes.len() >= HEADER);
        }
    }
}
