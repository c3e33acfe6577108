//! The `virtio_net_hdr` before each frame (virtio 1.2 §5.1.6, virtio 1.4 for what is in a UDP tunnel, linux/virtio_net.h).
//!
//! ```text
//!  0      1          2         4          6            8              10             20          22
//!  │flags │ gso type │ hdr len │ gso size │ csum start │ csum offset  │ not used …   │ outer UDP │ inner IP │
//! ```
//!
//! Numbers are in the machine's byte order, which is what a TAP device has unless told otherwise.

use crate::proto::{
    Offload, Reason,
    segment::{Checksum, Gso, Kind, Tunnel},
};

/// The transport checksum is to be filled in: there is only the pseudo-header's sum.
const NEEDS_CSUM: u8 = 1;
/// The transport checksum has been verified.
const DATA_VALID: u8 = 2;
/// The outer UDP checksum is to be made too.
const UDP_TUNNEL_CSUM: u8 = 8;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Or-ed to the type: it is in a UDP tunnel over IPv4 or IPv6 (Linux 6.17).
const GSO_UDP_TUNNEL: u8 = 0x20 | 0x40;
/// Or-ed to a TCP type: the CWR flag is set.
const GSO_ECN: u8 = 0x80;

/// Bytes of one that can tell of a UDP tunnel (`struct virtio_net_hdr_v1_hash_tunnel`); older kernels leave its end alone.
pub const HEADER: usize = 24;

/// Reads what a header asks for.
pub fn parse(header: &[u8; HEADER]) -> Result<Offload, Reason> {
    let number = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let needed = header[0] & NEEDS_CSUM != 0;
    let checksum = needed.then(|| Checksum {
        start: number(6),
        offset: number(8),
    });
    let kind = match header[1] & !(GSO_ECN | GSO_UDP_TUNNEL) {
        GSO_NONE => return Ok(Offload { checksum, gso: None }),
        GSO_TCPV4 | GSO_TCPV6 => Kind::Tcp,
        GSO_UDP_L4 => Kind::Udp,
        _ => return Err(Reason::BadOffload),
    };
    Ok(Offload {
        checksum,
        gso: Some(Gso {
            kind,
            size: number(4),
            tunnel: (header[1] & GSO_UDP_TUNNEL != 0).then(|| Tunnel {
                transport: number(20),
                network: number(22),
                checksum: header[0] & UDP_TUNNEL_CSUM != 0,
            }),
        }),
    })
}

/// What to say of a frame that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// Nothing: it is whole, its checksums are made and not verified.
    Plain,
    /// It is whole, and its transport checksum was verified.
    Verified,
    /// It is a super-frame.
    Super {
        kind: Kind,
        v6: bool,
        size: u16,
        transport: u16,
        headers: u16,
        checksum_offset: u16,
    },
}

/// Writes the header of a frame.
pub fn write(meta: Meta, out: &mut [u8; HEADER]) {
    *out = [0; HEADER];
    match meta {
        Meta::Plain => {}
        Meta::Verified => out[0] = DATA_VALID,
        Meta::Super {
            kind,
            v6,
            size,
            transport,
            headers,
            checksum_offset,
        } => {
            out[0] = NEEDS_CSUM;
            out[1] = match (kind, v6) {
                (Kind::Tcp, false) => GSO_TCPV4,
                (Kind::Tcp, true) => GSO_TCPV6,
                (Kind::Udp, _) => GSO_UDP_L4,
            };
            for (at, number) in [(2, headers), (4, size), (6, transport), (8, checksum_offset)] {
                out[at..at + 2].copy_from_slice(&number.to_ne_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut header = [0xff; HEADER];
        for kind in [Kind::Tcp, Kind::Udp] {
            let meta = Meta::Super {
                kind,
                v6: true,
                size: 1318,
                transport: 54,
                headers: 86,
                checksum_offset: 16,
            };
            write(meta, &mut header);
            let checksum = Some(Checksum {
                start: 54,
                offset: 16,
            });
            assert_eq!(
                parse(&header),
                Ok(Offload {
                    checksum,
                    gso: Some(Gso {
                        kind,
                        size: 1318,
                        tunnel: None
                    })
                })
            );
        }
        for meta in [Meta::Plain, Meta::Verified] {
            write(meta, &mut header);
            assert_eq!(parse(&header), Ok(Offload::default()));
        }
    }

    #[test]
    fn a_tunnel_is_read() {
        let mut header = [0; HEADER];
        for (bit, flag) in [(0x20, 0), (0x40, UDP_TUNNEL_CSUM)] {
            header[0] = NEEDS_CSUM | flag;
            header[1] = GSO_TCPV6 | bit;
            header[20..24].copy_from_slice(&[34u16.to_ne_bytes(), 64u16.to_ne_bytes()].concat());
            let tunnel = Tunnel {
                transport: 34,
                network: 64,
                checksum: flag != 0,
            };
            assert_eq!(parse(&header).unwrap().gso.unwrap().tunnel, Some(tunnel));
        }
    }

    #[test]
    fn the_ecn_bit_is_no_type() {
        let mut header = [0; HEADER];
        header[1] = GSO_TCPV4 | GSO_ECN;
        assert_eq!(parse(&header).unwrap().gso.map(|gso| gso.kind), Some(Kind::Tcp));
        header[1] = 3;
        assert_eq!(parse(&header), Err(Reason::BadOffload));
    }
}
