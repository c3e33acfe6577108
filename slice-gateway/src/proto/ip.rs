//! The IPv4 packets (RFC 791) that go through a tunnel. What they carry is read by [`slice_frame`].

use std::net::Ipv4Addr;

pub use slice_frame::ip::{ICMP, UDP, V4_HEADER};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4<'a> {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    /// One of several fragments: what follows need not be a transport header.
    pub fragment: bool,
    /// Precedence and ECN, the second byte.
    pub tos: u8,
    /// After header and options, up to the total length.
    pub payload: &'a [u8],
}

impl<'a> V4<'a> {
    /// Reads a packet; `None` where its header is malformed or longer than the bytes.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let header: &[u8; V4_HEADER] = packet.first_chunk()?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] >> 4 != 4 || header_length < V4_HEADER || total < header_length {
            return None;
        }
        Some(Self {
            source: Ipv4Addr::from_octets([header[12], header[13], header[14], header[15]]),
            destination: Ipv4Addr::from_octets([header[16], header[17], header[18], header[19]]),
            protocol: header[9],
            // More fragments, or an offset.
            fragment: u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0,
            tos: header[1],
            payload: packet.get(header_length..total)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_checked() {
        let mut packet = vec![0x45, 0, 0, 24];
        packet.resize(V4_HEADER + 3, 0);
        assert_eq!(V4::parse(&packet), None);
        packet.extend([0, 0, 0]);
        assert_eq!(V4::parse(&packet).unwrap().payload.len(), 4);
        packet[0] = 0x44;
        assert_eq!(V4::parse(&packet), None);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_do_not(mut bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            if let Some(first) = bytes.first_mut() {
                *first = 0x40 | *first & 0x0f;
            }
            let _ = V4::parse(&bytes);
        }
    }
}
