//! Sizes. The slice's MTU is decided elsewhere; here is what it must leave room for.
//!
//! ```text
//!  underlay packet = outer IP 20|40 + UDP 8 + WireGuard 32 + VXLAN 36 + Ethernet 14 + slice MTU
//!             1500 =            40  +     8 +           32 +       36 +          14 + 1370
//! ```

use super::{admit::FRAME_OVERHEAD, noise, vxlan};

/// Smallest MTU of a slice: what every IPv4 host must accept (RFC 791 §3.1). IPv6 on the slice needs 1280.
pub const MIN: u16 = 576;
/// Largest MTU of a slice: an outer UDP datagram must hold it.
pub const MAX: u16 = 65_000;

/// Bytes around an IP packet of the slice, from the outer UDP payload inwards.
pub const OVERHEAD: usize = noise::OVERHEAD + vxlan::HEADER + slice_frame::ethernet::HEADER;

/// Bytes of the largest datagram that carries one frame.
pub const fn datagram(mtu: usize) -> usize {
    noise::OVERHEAD + vxlan::HEADER + mtu + FRAME_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_packet_fits_an_ethernet_underlay() {
        assert_eq!(40 + 8 + OVERHEAD + 1370, 1500);
        assert_eq!(20 + 8 + OVERHEAD + 1390, 1500);
    }

    #[test]
    fn the_largest_slice_fits_udp() {
        assert!(datagram(MAX.into()) <= 65_507);
    }
}
