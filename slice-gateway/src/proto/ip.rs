//! Just enough of IPv4 (RFC 791) and IPv6 (RFC 8200) to know a flow, a source and a neighbour message.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// Bytes of an IPv4 header without options.
pub const V4_HEADER: usize = 20;
/// Bytes of the fixed IPv6 header.
pub const V6_HEADER: usize = 40;

/// How many extension headers are followed; a packet with more counts as one of an unknown protocol.
const MAX_EXTENSIONS: usize = 8;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6<'a> {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    /// After the extension headers.
    pub protocol: u8,
    pub fragment: bool,
    pub hop_limit: u8,
    pub traffic_class: u8,
    /// After the extension headers, up to the payload length.
    pub payload: &'a [u8],
}

impl<'a> V6<'a> {
    /// As [`V4::parse`].
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let header: &[u8; V6_HEADER] = packet.first_chunk()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let address = |from: usize| -> Option<Ipv6Addr> {
            Some(Ipv6Addr::from_octets(*header.get(from..)?.first_chunk::<16>()?))
        };
        let mut this = Self {
            source: address(8)?,
            destination: address(24)?,
            protocol: header[6],
            fragment: false,
            hop_limit: header[7],
            traffic_class: header[0] << 4 | header[1] >> 4,
            payload: packet.get(V6_HEADER..V6_HEADER + length)?,
        };
        for _ in 0..MAX_EXTENSIONS {
            let bytes = match this.protocol {
                // Hop-by-hop, routing and destination options (RFC 8200 §4.3, §4.4, §4.6), mobility (RFC 6275),
                // HIP (RFC 7401) and Shim6 (RFC 5533) carry their length in units of eight bytes.
                0 | 43 | 60 | 135 | 139 | 140 => usize::from(*this.payload.get(1)?) * 8 + 8,
                44 => {
                    this.fragment = true;
                    8
                }
                _ => return Some(this),
            };
            let offset = u16::from_be_bytes([*this.payload.get(2)?, *this.payload.get(3)?]) >> 3;
            let fragment = this.protocol == 44;
            this.protocol = *this.payload.first()?;
            this.payload = this.payload.get(bytes..)?;
            if fragment && offset != 0 {
                return Some(this);
            }
        }
        Some(this)
    }
}

/// The sum over the pseudo-header of RFC 8200 §8.1.
pub fn v6_pseudo_header(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: usize) -> Sum {
    let length = u16::try_from(length).expect("an IPv6 payload length");
    Sum::default()
        .with(&source.octets())
        .with(&destination.octets())
        .with_u16(length)
        .with_u16(protocol.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; V6_HEADER];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        packet[6] = next;
        packet.extend(payload);
        packet
    }

    #[test]
    fn extension_headers_are_passed() {
        let hop_by_hop = [60, 0, 0, 0, 0, 0, 0, 0];
        let options = [ICMPV6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let packet = v6(0, &[&hop_by_hop[..], &options, &[135, 0]].concat());
        let parsed = V6::parse(&packet).unwrap();
        assert_eq!(
            (parsed.protocol, parsed.payload, parsed.fragment),
            (ICMPV6, &[135u8, 0][..], false)
        );
    }

    #[test]
    fn fragments_are_told() {
        let first = v6(44, &[ICMPV6, 0, 0, 1, 0, 0, 0, 0, 135]);
        let second = v6(44, &[0, 0, 0, 8, 0, 0, 0, 0, 1, 2]);
        let (first, second) = (V6::parse(&first).unwrap(), V6::parse(&second).unwrap());
        assert!(first.fragment && first.protocol == ICMPV6 && first.payload == [135]);
        assert!(second.fragment && second.payload == [1, 2]);
    }

    #[test]
    fn lengths_are_checked() {
        let mut packet = vec![0x45, 0, 0, 24];
        packet.resize(V4_HEADER + 3, 0);
        assert_eq!(V4::parse(&packet), None);
        packet.extend([0, 0, 0]);
        assert_eq!(V4::parse(&packet).unwrap().payload.len(), 4);
        packet[0] = 0x44;
        assert_eq!(V4::parse(&packet), None);
        assert_eq!(V6::parse(&v6(TCP, &[0; 8])[..47]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_do_not(mut bytes in prop::collection::vec(any::<u8>(), 0..128), version in 4u8..7) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0x0f;
            }
            let _ = (V4::parse(&bytes), V6::parse(&bytes));
        }
    }
}
