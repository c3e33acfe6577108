//! What WireGuard carries: VXLAN (RFC 7348) in UDP in IPv4.
//!
//! ```text
//!  ┌ IPv4 20 ──────────┬ UDP 8 ──────────┬ VXLAN 8 ──┬ Ethernet frame ─┐
//!  │ VTEP → VTEP, DF   │ flow hash → 4789│ VNI       │ 14 + payload    │
//!  └───────────────────┴─────────────────┴───────────┴─────────────────┘
//! ```
//!
//! Byte for byte what the Linux kernel's `vxlan` device sends over its `wireguard` device, so either end may be one.
//! The UDP checksum is zero, which RFC 7348 §5 wants; integrity is WireGuard's.

use std::net::Ipv4Addr;

use slice_frame::checksum::Sum;

use super::{ip, reason::Reason};

/// Bytes before the Ethernet frame.
pub const HEADER: usize = ip::V4_HEADER + 8 + 8;
/// The port that IANA has assigned to VXLAN.
pub const PORT: u16 = 4789;
/// A valid VNI (RFC 7348 §5, the I flag).
const VNI_PRESENT: u8 = 0x08;
/// Largest VNI.
pub const MAX_VNI: u32 = (1 << 24) - 1;
/// Source ports are taken from the dynamic range, as RFC 7348 §5 recommends.
const FIRST_SOURCE_PORT: u16 = 49152;

/// The headers of one tunnel's frames, but for lengths and the source port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    header: [u8; HEADER],
    /// Over the IPv4 header with length, precedence and checksum zero.
    sum: Sum,
}

impl Template {
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, vni: u32) -> Self {
        let mut header = [0; HEADER];
        header[0] = 0x45;
        // Don't fragment; an atomic datagram needs no identification (RFC 6864 §4.1).
        header[6] = 0x40;
        header[8] = 64;
        header[9] = ip::UDP;
        header[12..16].copy_from_slice(&source.octets());
        header[16..20].copy_from_slice(&destination.octets());
        header[22..24].copy_from_slice(&PORT.to_be_bytes());
        header[28] = VNI_PRESENT;
        header[32..36].copy_from_slice(&(vni << 8).to_be_bytes());
        Self {
            header,
            sum: Sum::default().with(&header[..ip::V4_HEADER]),
        }
    }

    /// Writes the headers for a frame of `length` bytes. `tos` is the precedence byte of the IPv4 header.
    ///
    /// # Panics
    /// Where the packet would be longer than IPv4 allows.
    pub fn write(&self, out: &mut [u8; HEADER], length: usize, flow: u64, tos: u8) {
        let total = u16::try_from(HEADER + length).expect("a frame fits into an IPv4 packet");
        *out = self.header;
        out[1] = tos;
        out[2..4].copy_from_slice(&total.to_be_bytes());
        let checksum = self.sum.with_u16(total).with_u16(tos.into()).finish();
        out[10..12].copy_from_slice(&checksum);
        let port = FIRST_SOURCE_PORT + (flow >> 50) as u16;
        out[20..22].copy_from_slice(&port.to_be_bytes());
        out[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    }
}

/// What a packet out of a tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner<'a> {
    /// A frame, which starts [`HEADER`] bytes into the packet.
    Frame(&'a [u8]),
    /// An ICMP message between the two end points.
    Icmp(&'a [u8]),
}

/// Reads a packet that came out of the tunnel between `own` and `peer`.
///
/// The IPv4 checksum is not looked at: the packet has just been authenticated.
pub fn parse(packet: &[u8], peer: Ipv4Addr, own: Ipv4Addr, vni: u32) -> Result<Inner<'_>, Reason> {
    let outer = ip::V4::parse(packet)
        .filter(|outer| !outer.fragment)
        .ok_or(Reason::NotVxlan)?;
    if outer.source != peer || outer.destination != own {
        return Err(Reason::WrongEndpoint);
    }
    match outer.protocol {
        ip::ICMP => return Ok(Inner::Icmp(outer.payload)),
        ip::UDP => {}
        _ => return Err(Reason::NotVxlan),
    }
    let (udp, rest) = outer.payload.split_first_chunk::<8>().ok_or(Reason::NotVxlan)?;
    let (vxlan, frame) = rest.split_first_chunk::<8>().ok_or(Reason::NotVxlan)?;
    let well_formed = u16::from_be_bytes([udp[2], udp[3]]) == PORT
        && usize::from(u16::from_be_bytes([udp[4], udp[5]])) == outer.payload.len()
        // Without IPv4 options, so that a frame always starts at the same place.
        && packet[0] == 0x45
        && vxlan[0] & VNI_PRESENT != 0;
    if !well_formed {
        return Err(Reason::NotVxlan);
    }
    match u32::from_be_bytes([vxlan[4], vxlan[5], vxlan[6], vxlan[7]]) >> 8 {
        found if found == vni => Ok(Inner::Frame(frame)),
        _ => Err(Reason::WrongVni),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
    const B: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 1);

    fn packet(from: Ipv4Addr, to: Ipv4Addr, vni: u32, flow: u64, tos: u8, frame: &[u8]) -> Vec<u8> {
        let mut header = [0; HEADER];
        Template::new(from, to, vni).write(&mut header, frame.len(), flow, tos);
        [&header, frame].concat()
    }

    #[test]
    fn the_wire_format() {
        let packet = packet(A, B, 0x0a0b0c, u64::MAX, 0, &[0xee; 60]);
        #[rustfmt::skip]
        let expected = [
            0x45, 0x00, 0x00, 0x60,  0x00, 0x00, 0x40, 0x00,  0x40, 0x11, 0xab, 0x66,  198, 18, 1, 1,  198, 18, 2, 1,
            0xff, 0xff, 0x12, 0xb5,  0x00, 0x4c, 0x00, 0x00,
            0x08, 0x00, 0x00, 0x00,  0x0a, 0x0b, 0x0c, 0x00,
        ];
        assert_eq!(packet[..HEADER], expected);
    }

    #[track_caller]
    fn check(change: impl Fn(&mut Vec<u8>), expected: Result<(), Reason>) {
        let mut packet = packet(A, B, 7, 1, 0, &[0xee; 60]);
        change(&mut packet);
        assert_eq!(parse(&packet, A, B, 7).map(drop), expected);
    }

    #[test]
    fn only_this_tunnels_packets_pass() {
        check(|_| {}, Ok(()));
        check(|packet| packet[15] = 2, Err(Reason::WrongEndpoint));
        check(|packet| packet[19] = 2, Err(Reason::WrongEndpoint));
        check(|packet| packet[34] = 8, Err(Reason::WrongVni));
        check(|packet| packet[28] = 0, Err(Reason::NotVxlan));
        check(|packet| packet[23] = 0, Err(Reason::NotVxlan));
        check(|packet| packet[9] = 6, Err(Reason::NotVxlan));
        check(|packet| packet[6] = 0x20, Err(Reason::NotVxlan));
        check(|packet| packet[25] += 1, Err(Reason::NotVxlan));
        check(|packet| packet.truncate(HEADER - 1), Err(Reason::NotVxlan));
        check(|packet| packet.clear(), Err(Reason::NotVxlan));
    }

    #[test]
    fn options_would_move_the_frame() {
        let mut with_options = packet(A, B, 7, 1, 0, &[0xee; 60]);
        with_options[0] = 0x46;
        with_options[3] += 4;
        with_options.splice(20..20, [1; 4]);
        assert_eq!(parse(&with_options, A, B, 7), Err(Reason::NotVxlan));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            vni in 0..=MAX_VNI, flow: u64, tos: u8, frame in prop::collection::vec(any::<u8>(), 0..1500)
        ) {
            let packet = packet(A, B, vni, flow, tos, &frame);
            prop_assert_eq!(parse(&packet, A, B, vni), Ok(Inner::Frame(&frame)));
            // RFC 1071 §1: a header with its checksum in place sums to all ones.
            prop_assert_eq!(Sum::default().with(&packet[..20]).partial(), [0xff, 0xff]);
            prop_assert!(u16::from_be_bytes([packet[20], packet[21]]) >= FIRST_SOURCE_PORT);
        }

        #[test]
        fn any_bytes_parse_or_do_not(mut bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let good = packet(A, B, 7, 1, 0, &[]);
            let known = bytes.len().min(20);
            bytes[..known].copy_from_slice(&good[..known]);
            if let Some(total) = bytes.get_mut(2..4) {
                total.copy_from_slice(&[0, 60]);
            }
            let _ = parse(&bytes, A, B, 7);
        }
    }
}
