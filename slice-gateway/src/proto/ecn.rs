//! Congestion marks through the tunnel (RFC 6040): the outer headers take the frame's, and a mark that was made on
//! the way reaches the frame.

use slice_frame::{Content, Frame, checksum::Sum};

use super::reason::Reason;

/// Not ECN-capable transport.
pub const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
/// Congestion experienced.
pub const CE: u8 = 3;

/// The code point of a frame; that of frames which are not IP is [`NOT_ECT`].
pub const fn of(frame: &Frame) -> u8 {
    frame.tos() & 3
}

/// Gives a frame, which is `frame` and arrived within headers of code point `outer`, the code point that RFC 6040 §4.2
/// says.
pub fn decapsulate(bytes: &mut [u8], frame: &Frame, outer: u8) -> Result<(), Reason> {
    if outer == NOT_ECT || frame.packet().is_none() {
        return Ok(());
    }
    match (of(frame), outer) {
        // A sender that does not understand marks must see a loss.
        (NOT_ECT, CE) => Err(Reason::Congested),
        (ECT_0 | ECT_1, CE) => {
            set(bytes, frame, CE);
            Ok(())
        }
        (ECT_0, ECT_1) => {
            set(bytes, frame, ECT_1);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Overwrites the code point of an IP frame.
fn set(bytes: &mut [u8], frame: &Frame, ecn: u8) {
    let (Some(packet), Some(read)) = (bytes.get_mut(frame.network..), frame.packet()) else {
        return;
    };
    if frame.content == Content::V6 {
        packet[1] = packet[1] & 0xcf | ecn << 4;
        return;
    }
    packet[1] = packet[1] & 0xfc | ecn;
    let header = &mut packet[..read.transport - frame.network];
    header[10..12].fill(0);
    let sum = Sum::default().with(header).finish();
    header[10..12].copy_from_slice(&sum);
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
                    let read = Frame::read(&frame[..]).unwrap();
                    set(&mut frame, &read, inner);
                    let sum = |frame: &mut [u8]| crate::proto::segment::tests::remake_transport(frame, start);
                    sum(&mut frame);
                    let read = Frame::read(&frame[..]).unwrap();
                    let result = decapsulate(&mut frame, &read, outer);
                    assert_eq!(result.is_err(), expected == drop, "{inner} in {outer}");
                    if let Some(expected) = expected {
                        let read = Frame::read(&frame[..]).unwrap();
                        assert_eq!(of(&read), expected, "{inner} in {outer}");
                        verify(&frame, Kind::Tcp);
                    }
                }
            }
        }
    }

    #[test]
    fn a_tag_is_passed() {
        let (mut frame, _) = super_frame(Kind::Tcp, false, true, 100, 0x10);
        let read = Frame::read(&frame[..]).unwrap();
        set(&mut frame, &read, ECT_0);
        let read = Frame::read(&frame[..]).unwrap();
        decapsulate(&mut frame, &read, CE).unwrap();
        let read = Frame::read(&frame[..]).unwrap();
        assert_eq!(of(&read), CE);
        let header = &frame[read.network..read.packet().unwrap().transport];
        assert_eq!(Sum::default().with(header).finish(), [0, 0], "IPv4 checksum");
    }

    #[test]
    fn other_frames_are_left_alone() {
        let mut frame = vec![0xff; 60];
        let before = frame.clone();
        let read = Frame::read(&frame[..]).unwrap();
        decapsulate(&mut frame, &read, CE).unwrap();
        assert_eq!(frame, before);
    }
}
