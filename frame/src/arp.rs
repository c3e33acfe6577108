//! ARP (RFC 826), answered next to the asker: an answer can be computed from the address that is asked for.

use core::net::Ipv4Addr;

use crate::{
    Bytes, Mac, Unreadable,
    ethernet::{self, Header},
};

/// Bytes of an ARP packet for IPv4 over Ethernet.
const PACKET: usize = 28;
/// Bytes of an answer.
pub const REPLY: usize = ethernet::HEADER + PACKET;
/// Ethernet, IPv4 and the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const REQUEST: u16 = 1;

/// What an ARP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    pub operation: u16,
    pub sender: Mac,
    pub sender_address: Ipv4Addr,
    pub target: Ipv4Addr,
}

impl Arp {
    /// No ARP packet.
    pub(crate) const NONE: Self = Self {
        operation: 0,
        sender: Mac([0; 6]),
        sender_address: Ipv4Addr::UNSPECIFIED,
        target: Ipv4Addr::UNSPECIFIED,
    };

    /// Reads the packet at `network`. One of other addresses than these is of no use in a slice, but Linux takes some for
    /// ARP that are not as they should be, so all are unreadable.
    ///
    /// # Errors
    /// As said.
    #[inline(always)]
    pub fn read<B: Bytes + ?Sized>(bytes: &B, network: usize) -> Result<Self, Unreadable> {
        let packet: [u8; PACKET] = bytes.load(network).ok_or(Unreadable::Arp)?;
        if packet[..6] != KIND {
            return Err(Unreadable::Arp);
        }
        let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
        let [s0, s1, s2, s3, s4, s5] = [
            packet[8], packet[9], packet[10], packet[11], packet[12], packet[13],
        ];
        Ok(Self {
            operation: u16::from_be_bytes([packet[6], packet[7]]),
            sender: Mac([s0, s1, s2, s3, s4, s5]),
            sender_address: address(14),
            target: address(24),
        })
    }

    /// Whether `source`, who sent it, asks for an address and is to be answered: not a reply, an announcement or a probe
    /// (RFC 5227), nor in somebody else's name.
    #[must_use]
    #[inline(always)]
    pub fn asks(&self, source: Mac) -> bool {
        self.operation == REQUEST
            && self.sender == source
            && !self.sender_address.is_unspecified()
            && self.sender_address != self.target
    }

    /// Writes the answer: the target is at `mac`.
    #[inline(always)]
    pub fn answer(&self, mac: Mac, reply: &mut [u8; REPLY]) {
        Header {
            destination: self.sender,
            source: mac,
            ethertype: ethernet::ARP,
        }
        .write(reply);
        let packet = &mut reply[ethernet::HEADER..];
        packet[..6].copy_from_slice(&KIND);
        packet[6..8].copy_from_slice(&[0, 2]);
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
    use crate::{Content, Frame};

    fn request() -> [u8; REPLY] {
        let mut frame = [0; REPLY];
        Header {
            destination: Mac::BROADCAST,
            source: Mac::of_index(70),
            ethertype: ethernet::ARP,
        }
        .write(&mut frame);
        frame[14..20].copy_from_slice(&KIND);
        frame[21] = 1;
        frame[22..28].copy_from_slice(&Mac::of_index(70).0);
        frame[28..32].copy_from_slice(&[10, 80, 0, 70]);
        frame[38..42].copy_from_slice(&[10, 80, 64, 1]);
        frame
    }

    fn asked(frame: &[u8]) -> Option<Arp> {
        let frame = Frame::read(frame).ok()?;
        frame.arp().filter(|arp| arp.asks(frame.source)).copied()
    }

    #[test]
    fn the_answer_names_the_computed_mac() {
        #[rustfmt::skip]
        let expected = [
            0x02, 0x5c, 0, 0, 0, 70,  0x02, 0x5c, 0, 0, 64, 1,  0x08, 0x06,
            0, 1, 0x08, 0, 6, 4, 0, 2,
            0x02, 0x5c, 0, 0, 64, 1,  10, 80, 64, 1,
            0x02, 0x5c, 0, 0, 0, 70,  10, 80, 0, 70,
        ];
        let mut reply = [0xaa; REPLY];
        asked(&request())
            .unwrap()
            .answer(Mac::of_index(64 << 8 | 1), &mut reply);
        assert_eq!(reply, expected);
    }

    #[test]
    fn only_honest_requests_are_answered() {
        let unanswered = |change: &dyn Fn(&mut [u8; REPLY])| {
            let mut frame = request();
            change(&mut frame);
            assert_eq!(asked(&frame), None);
        };
        assert!(asked(&request()).is_some());
        // A reply, a probe, an announcement, somebody else's MAC, another protocol.
        unanswered(&|frame| frame[21] = 2);
        unanswered(&|frame| frame[28..32].fill(0));
        unanswered(&|frame| frame.copy_within(38..42, 28));
        unanswered(&|frame| frame[27] = 71);
        unanswered(&|frame| frame[16] = 0x86);
        assert_eq!(Frame::read(&request()[..41]), Err(Unreadable::Arp));
    }

    proptest! {
        #[test]
        fn arp_is_never_taken_for_something_else(bytes: [u8; PACKET], keep in 0usize..=PACKET) {
            let mut frame = request();
            frame[14..].copy_from_slice(&bytes);
            match Frame::read(&frame[..14 + keep]) {
                Ok(frame) => prop_assert_eq!(frame.content, Content::Arp),
                Err(error) => prop_assert_eq!(error, Unreadable::Arp),
            }
        }
    }
}
