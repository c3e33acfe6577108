//! What the sender of a packet is told that does not fit through the path: "fragmentation needed" (RFC 792, RFC 1191 §4)
//! or "packet too big" (RFC 4443 §3.2), from the destination's own address, since nobody else on the slice has one.
//!
//! ```text
//!  Ethernet: destination → source │ IP: destination → source │ ICMP: 3, 4 | 2, 0, MTU │ beginning of the packet
//! ```

use slice_frame::{
    Content, Frame,
    checksum::Sum,
    ethernet::{self, Header},
    ip::{self, Fragment},
};

use super::ip::V4_HEADER;

/// What every link with IPv6 carries (RFC 8200 §5).
pub const V6_MIN: u16 = 1280;
/// Bytes of an answer: its headers, and as much of the packet as any sender needs to know it by (RFC 1812 §4.3.2.3).
pub const MAX: usize = ethernet::HEADER + 576;

const ICMP_HEADER: usize = 8;
/// "Don't fragment", in the seventh byte of an IPv4 header.
const DF: u8 = 0x40;
const UNREACHABLE: [u8; 2] = [3, 4];
const V6_TOO_BIG: [u8; 2] = [2, 0];
/// ICMPv6 types below this are errors, as are these of ICMP (RFC 4443 §2.1, RFC 1122 §3.2.2).
const V6_FIRST_INFORMATION: u8 = 128;
const V4_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];

/// Writes the answer to a frame whose packets are longer than `carries` and returns its length. `None` where the sender
/// would not act on it, or must not be told: those packets are carried in fragments.
///
/// # Panics
/// Where `frame` was not read of `bytes`.
pub fn answer(
    bytes: &[u8],
    frame: &Frame,
    carries: u16,
    longest: usize,
    out: &mut [u8; MAX],
) -> Option<usize> {
    let packet = frame.packet()?;
    if frame.tagged || frame.destination.is_group() || packet.fragment == Fragment::Later {
        return None;
    }
    let v4 = frame.content == Content::V4;
    let kind = packet.head[0];
    let header = if v4 {
        let may_fragment = bytes[frame.network + 6] & DF == 0;
        let error = packet.protocol == ip::ICMP && V4_ERRORS.contains(&kind);
        if may_fragment || error {
            return None;
        }
        V4_HEADER
    } else {
        let error = packet.protocol == ip::ICMPV6 && kind < V6_FIRST_INFORMATION;
        if error || longest <= V6_MIN.into() {
            return None;
        }
        ip::V6_HEADER
    };
    let quoted = &bytes[frame.network..packet.end];
    let quoted = &quoted[..quoted.len().min(MAX - ethernet::HEADER - header - ICMP_HEADER)];
    Header {
        destination: frame.source,
        source: frame.destination,
        ethertype: frame.ethertype,
    }
    .write(out);
    let length = ICMP_HEADER + quoted.len();
    let (head, message) = out[ethernet::HEADER..].split_at_mut(header);
    let message = &mut message[..length];
    message[..ICMP_HEADER].fill(0);
    message[ICMP_HEADER..].copy_from_slice(quoted);
    head.fill(0);
    let (from, to) = (packet.destination, packet.source);
    let checksum = if v4 {
        message[..2].copy_from_slice(&UNREACHABLE);
        message[6..8].copy_from_slice(&carries.to_be_bytes());
        let total = u16::try_from(header + length).expect("a short packet");
        head[0] = 0x45;
        // Precedence as RFC 1812 §4.3.2.5 has it: internetwork control.
        head[1] = 0xc0;
        head[2..4].copy_from_slice(&total.to_be_bytes());
        head[8..10].copy_from_slice(&[64, ip::ICMP]);
        head[12..16].copy_from_slice(&ip::v4_of(from).octets());
        head[16..20].copy_from_slice(&ip::v4_of(to).octets());
        let sum = Sum::default().with(head).finish();
        head[10..12].copy_from_slice(&sum);
        Sum::default().with(message).finish()
    } else {
        message[..2].copy_from_slice(&V6_TOO_BIG);
        message[4..8].copy_from_slice(&u32::from(carries.max(V6_MIN)).to_be_bytes());
        let length = u16::try_from(length).expect("a short packet");
        head[0] = 0x60;
        head[4..6].copy_from_slice(&length.to_be_bytes());
        head[6..8].copy_from_slice(&[ip::ICMPV6, 64]);
        head[8..24].copy_from_slice(&from.octets());
        head[24..40].copy_from_slice(&to.octets());
        let pseudo = ip::v6_pseudo_header(from, to, ip::ICMPV6, length);
        pseudo.with(message).finish()
    };
    message[2..4].copy_from_slice(&checksum);
    Some(ethernet::HEADER + header + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::segment::{Kind, tests::super_frame};

    fn told(frame: &[u8], carries: u16) -> Option<Vec<u8>> {
        let read = Frame::read(frame).unwrap();
        let mut out = [0; MAX];
        let length = answer(frame, &read, carries, frame.len() - read.network, &mut out)?;
        Some(out[..length].to_vec())
    }

    #[test]
    fn the_sender_is_told_in_its_own_family() {
        for v6 in [false, true] {
            let (frame, _) = super_frame(Kind::Tcp, v6, false, 1400, 0x10);
            let sent = Frame::read(&frame[..]).unwrap();
            let answer = told(&frame, 1300).unwrap();
            let read = Frame::read(&answer[..]).unwrap();
            let (packet, of) = (read.packet().unwrap(), sent.packet().unwrap());
            assert_eq!((read.source, read.destination), (sent.destination, sent.source));
            assert_eq!((packet.source, packet.destination), (of.destination, of.source));
            assert_eq!(packet.end, answer.len(), "no more than 576 bytes of IP");
            let message = &answer[packet.transport..];
            if v6 {
                assert_eq!(message[..2], V6_TOO_BIG);
                assert_eq!(message[4..8], [0, 0, 5, 20]);
                let length = message.len() as u16;
                let pseudo = ip::v6_pseudo_header(packet.source, packet.destination, ip::ICMPV6, length);
                assert_eq!(pseudo.with(message).finish(), [0, 0]);
            } else {
                assert_eq!(message[..2], UNREACHABLE);
                assert_eq!(message[6..8], [5, 20]);
                assert_eq!(Sum::default().with(message).finish(), [0, 0]);
                assert_eq!(Sum::default().with(&answer[14..34]).finish(), [0, 0]);
            }
            assert_eq!(message[8..], frame[14..][..message.len() - 8]);
        }
    }

    #[test]
    fn who_cannot_shrink_is_not_told() {
        // IPv6 below its minimum; what a sender lets be fragmented; a tag; a group; an error message.
        assert!(told(&super_frame(Kind::Tcp, true, false, 1200, 0x10).0, 1000).is_none());
        assert_eq!(
            told(&super_frame(Kind::Tcp, true, false, 1300, 0x10).0, 1000).unwrap()[58..62],
            [0, 0, 5, 0]
        );
        let (frame, _) = super_frame(Kind::Udp, false, false, 1300, 0);
        assert!(told(&frame, 1000).is_some());
        let with = |place: usize, byte: u8| {
            let mut frame = frame.clone();
            frame[place] = byte;
            told(&frame, 1000)
        };
        assert!(with(20, 0).is_none(), "may be fragmented");
        assert!(with(0, 0x03).is_none(), "a group address");
        assert!(
            with(23, ip::ICMP).is_some(),
            "an ICMP message whose type is no error"
        );
        let mut error = frame.clone();
        (error[23], error[34]) = (ip::ICMP, 3);
        assert!(told(&error, 1000).is_none());
        assert!(told(&super_frame(Kind::Udp, false, true, 1300, 0).0, 1000).is_none());
    }
}
