//! ARP (RFC 826), answered next to the asker.
//!
//! The address of an attachment says its MAC, so an answer can be computed for every address of a peer cluster and
//! nothing has to be asked there.

use std::net::Ipv4Addr;

use super::{
    address::Mac,
    ethernet::{self, Header},
};

/// Bytes of an ARP packet for IPv4 over Ethernet.
const PACKET: usize = 28;
/// Bytes of an answer.
pub const REPLY: usize = ethernet::HEADER + PACKET;

/// Ethernet, IPv4, their address lengths, and request: the only kind of packet that is looked at.
const REQUEST: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 1];

/// Somebody asks for the MAC of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    sender: Mac,
    sender_address: Ipv4Addr,
    pub target: Ipv4Addr,
}

impl Request {
    /// Reads a request; `None` for replies, announcements and probes (RFC 5227), which want no answer.
    pub fn parse(header: &Header, payload: &[u8]) -> Option<Self> {
        let packet: &[u8; PACKET] = payload.first_chunk()?;
        let address =
            |at: usize| Ipv4Addr::from_octets([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        let this = Self {
            sender: Mac([
                packet[8], packet[9], packet[10], packet[11], packet[12], packet[13],
            ]),
            sender_address: address(14),
            target: address(24),
        };
        let answerable = packet[..8] == REQUEST
            && this.sender == header.source
            && !this.sender_address.is_unspecified()
            && this.sender_address != this.target;
        answerable.then_some(this)
    }

    /// Writes the answer frame: the target is at `mac`.
    pub fn answer(&self, mac: Mac, out: &mut [u8; REPLY]) {
        Header {
            destination: self.sender,
            source: mac,
            ethertype: ethernet::ARP,
        }
        .write(out);
        let packet = &mut out[ethernet::HEADER..];
        packet[..8].copy_from_slice(&REQUEST);
        packet[7] = 2;
        packet[8..14].copy_from_slice(&mac.0);
        packet[14..18].copy_from_slice(&self.target.octets());
        packet[18..24].copy_from_slice(&self.sender.0);
        packet[24..28].copy_from_slice(&self.sender_address.octets());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> Vec<u8> {
        let mut frame = vec![0; REPLY];
        Header {
            destination: Mac::BROADCAST,
            source: Mac::of_index(70),
            ethertype: ethernet::ARP,
        }
        .write(&mut frame);
        frame[14..22].copy_from_slice(&REQUEST);
        frame[22..28].copy_from_slice(&Mac::of_index(70).0);
        frame[28..32].copy_from_slice(&[10, 80, 0, 70]);
        frame[38..42].copy_from_slice(&[10, 80, 64, 1]);
        frame
    }

    fn parse(frame: &[u8]) -> Option<Request> {
        let (header, payload) = Header::parse(frame)?;
        Request::parse(&header, payload)
    }

    #[test]
    fn the_answer_names_the_computed_mac() {
        let mac = Mac::of_index(64 << 8 | 1);
        let mut reply = [0; REPLY];
        parse(&request()).unwrap().answer(mac, &mut reply);
        #[rustfmt::skip]
        let expected = [
            0x02, 0x5c, 0, 0, 0, 70,  0x02, 0x5c, 0, 0, 64, 1,  0x08, 0x06,
            0, 1, 0x08, 0, 6, 4, 0, 2,
            0x02, 0x5c, 0, 0, 64, 1,  10, 80, 64, 1,
            0x02, 0x5c, 0, 0, 0, 70,  10, 80, 0, 70,
        ];
        assert_eq!(reply, expected);
    }

    #[track_caller]
    fn check_unanswered(change: impl Fn(&mut Vec<u8>)) {
        let mut frame = request();
        change(&mut frame);
        assert_eq!(parse(&frame), None);
    }

    #[test]
    fn only_honest_requests_are_answered() {
        assert!(parse(&request()).is_some());
        // A reply, a probe, an announcement, somebody else's MAC, a cut packet, another protocol.
        check_unanswered(|frame| frame[21] = 2);
        check_unanswered(|frame| frame[28..32].fill(0));
        check_unanswered(|frame| frame.copy_within(38..42, 28));
        check_unanswered(|frame| frame[27] = 71);
        check_unanswered(|frame| frame.truncate(41));
        check_unanswered(|frame| frame[16] = 0x86);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_do_not(tail in prop::collection::vec(any::<u8>(), 0..64), keep in 0usize..42) {
            let mut frame = request();
            frame.truncate(keep);
            frame.extend(tail);
            let _ = parse(&frame);
        }
    }
}
