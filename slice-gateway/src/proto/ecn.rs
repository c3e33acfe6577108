//! Congestion marks through the tunnel (RFC 6040): the outer headers take the frame's, and a mark that was made on
//! the way reaches the frame.

use super::{
    checksum::Sum,
    ethernet::{self, Header},
    ip,
    reason::Reason,
};

/// Not ECN-capable transport.
pub const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
/// Congestion experienced.
pub const CE: u8 = 3;

/// The code point of a frame; that of frames which are not IP is [`NOT_ECT`].
pub fn of(header: &Header, payload: &[u8]) -> u8 {
    match (header.ethertype, payload) {
        (ethernet::IPV4, [_, tos, ..]) => tos & 3,
        (ethernet::IPV6, [_, class, ..]) => class >> 4 & 3,
        _ => NOT_ECT,
    }
}

/// Gives `frame`, which arrived within headers of code point `outer`, the code point that RFC 6040 §4.2 says.
pub fn decapsulate(frame: &mut [u8], outer: u8) -> Result<(), Reason> {
    if outer == NOT_ECT {
        return Ok(());
    }
    let Some((header, payload)) = Header::parse(frame) else {
        return Ok(());
    };
    let ip = matches!(header.ethertype, ethernet::IPV4 | ethernet::IPV6);
    match (of(&header, payload), outer) {
        // A sender that does not understand marks must see a loss.
        (NOT_ECT, CE) if ip => Err(Reason::Congested),
        (ECT_0 | ECT_1, CE) => {
            set(frame, CE);
            Ok(())
        }
        (ECT_0, ECT_1) => {
            set(frame, ECT_1);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Overwrites the code point of an IP frame.
fn set(frame: &mut [u8], ecn: u8) {
    let v6 = frame[12..14] == ethernet::IPV6.to_be_bytes();
    let Some(packet) = frame.get_mut(ethernet::HEADER..) else {
        return;
    };
    if v6 {
        packet[1] = packet[1] & 0xcf | ecn << 4;
        return;
    }
    packet[1] = packet[1] & 0xfc | ecn;
    let length = usize::from(packet[0] & 0x0f) * 4;
    if let Some(header) = packet.get_mut(..length.max(ip::V4_HEADER)) {
        header[10..12].fill(0);
        let sum = Sum::default().with(header).finish();
        header[10..12].copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::segment::{
        Kind,
        tests::{super_frame, verify},
    };

    #[test]
    fn the_table_of_rfc_6040() {
        let (drop, rows) = (
            None,
            // Inner; outer Not-ECT, ECT(0), ECT(1), CE.
            [
                (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
                (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
                (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
                (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
            ],
        );
        for v6 in [false, true] {
            for (inner, row) in rows {
                for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                    let (mut frame, start) = super_frame(Kind::Tcp, v6, false, 100, 0x10);
                    set(&mut frame, inner);
                    let sum = |frame: &mut [u8]| crate::proto::segment::tests::remake_transport(frame, start);
                    sum(&mut frame);
                    let result = decapsulate(&mut frame, outer);
                    assert_eq!(result.is_err(), expected == drop, "{inner} in {outer}");
                    if let Some(expected) = expected {
                        let (header, payload) = Header::parse(&frame).unwrap();
                        assert_eq!(of(&header, payload), expected, "{inner} in {outer}");
                        verify(&frame, Kind::Tcp);
                    }
                }
            }
        }
    }

    #[test]
    fn other_frames_are_left_alone() {
        let mut frame = vec![0xff; 60];
        let before = frame.clone();
        decapsulate(&mut frame, CE).unwrap();
        assert_eq!(frame, before);
        decapsulate(&mut [0; 5], CE).unwrap();
        let (short, _) = super_frame(Kind::Tcp, false, false, 0, 0);
        for length in 14..34 {
            let mut cut = short[..length].to_vec();
            if let Some(tos) = cut.get_mut(15) {
                *tos = ECT_0;
            }
            let _ = decapsulate(&mut cut, CE);
        }
    }
}
