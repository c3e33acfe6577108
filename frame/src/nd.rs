//! IPv6 neighbour discovery (RFC 4861), answered next to the asker as ARP is.

use core::net::Ipv6Addr;

use crate::{
    Bytes, Content, Frame, Mac,
    ethernet::{self, Header},
    ip::{self, Fragment},
};

/// Bytes of a neighbour advertisement with its link-layer address option.
const ADVERTISEMENT: usize = 32;
/// Bytes of an answer.
pub const REPLY: usize = ethernet::HEADER + ip::V6_HEADER + ADVERTISEMENT;

/// Where the ICMPv6 message is behind headers without options.
const TRANSPORT: usize = ethernet::HEADER + ip::V6_HEADER;

pub(crate) const ROUTER_SOLICITATION: u8 = 133;
pub(crate) const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
pub(crate) const REDIRECT: u8 = 137;

/// Somebody asks for the MAC of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    sender: Mac,
    sender_address: Ipv6Addr,
    pub target: Ipv6Addr,
}

impl Solicitation {
    /// Reads a neighbour solicitation; `None` for anything else, for one that RFC 4861 §7.1.1 calls invalid, for one behind
    /// a tag or extension headers, which no host sends, and for duplicate address detection (from the unspecified address),
    /// which wants no answer. The checksum is not looked at: an answer to a spoilt question harms nobody.
    #[inline(always)]
    pub fn read<B: Bytes + ?Sized>(bytes: &B, frame: &Frame) -> Option<Self> {
        let packet = frame.packet().filter(|_| frame.content == Content::V6)?;
        let asks = frame.message() == Some(NEIGHBOUR_SOLICITATION)
            && packet.fragment == Fragment::Whole
            && packet.head[1] == 0
            && packet.hop_limit == 255
            && !frame.tagged
            && packet.transport == TRANSPORT
            && packet.end >= TRANSPORT + 24
            && !packet.source.is_unspecified()
            && !packet.source.is_multicast();
        if !asks {
            return None;
        }
        let this = Self::load(bytes, frame.source)?;
        (!this.target.is_multicast()).then_some(this)
    }

    /// What a frame asks for that [`Self::read`] has found to be one.
    #[inline(always)]
    pub fn load<B: Bytes + ?Sized>(bytes: &B, sender: Mac) -> Option<Self> {
        Some(Self {
            sender,
            sender_address: Ipv6Addr::from_octets(bytes.load(ethernet::HEADER + 8)?),
            target: Ipv6Addr::from_octets(bytes.load(TRANSPORT + 8)?),
        })
    }

    /// Writes the answer, a solicited advertisement: the target is at `mac`.
    #[inline(always)]
    pub fn answer(&self, mac: Mac, reply: &mut [u8; REPLY]) {
        Header {
            destination: self.sender,
            source: mac,
            ethertype: ethernet::IPV6,
        }
        .write(reply);
        let (header, message) = reply[ethernet::HEADER..].split_at_mut(ip::V6_HEADER);
        header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, ADVERTISEMENT as u8, ip::ICMPV6, 255]);
        header[8..24].copy_from_slice(&self.target.octets());
        header[24..40].copy_from_slice(&self.sender_address.octets());
        // Solicited and override (RFC 4861 §4.4).
        message[..8].copy_from_slice(&[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0x60, 0, 0, 0]);
        message[8..24].copy_from_slice(&self.target.octets());
        // Target link-layer address, one unit of eight bytes (RFC 4861 §4.6.1).
        message[24..26].copy_from_slice(&[2, 1]);
        message[26..32].copy_from_slice(&mac.0);
        let (target, sender) = (self.target, self.sender_address);
        let pseudo = ip::v6_pseudo_header(target, sender, ip::ICMPV6, ADVERTISEMENT as u16);
        let checksum = pseudo.with(message).finish();
        message[2..4].copy_from_slice(&checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    /// From fd42::46, which is index 70, for fd42::4001.
    fn solicitation(from: &str) -> Vec<u8> {
        let mut frame = vec![0; ethernet::HEADER];
        Header {
            destination: Mac([0x33, 0x33, 0xff, 0, 0x40, 1]),
            source: Mac::of_index(70),
            ethertype: ethernet::IPV6,
        }
        .write(&mut frame);
        frame.extend([0x60, 0, 0, 0, 0, 32, ip::ICMPV6, 255]);
        frame.extend(address(from).octets());
        frame.extend(address("ff02::1:ff00:4001").octets());
        frame.extend([NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(address("fd42::4001").octets());
        frame.extend([1, 1]);
        frame.extend(Mac::of_index(70).0);
        frame
    }

    fn read(frame: &[u8]) -> Option<Solicitation> {
        Solicitation::read(frame, &Frame::read(frame).ok()?)
    }

    #[test]
    fn the_answer_names_the_computed_mac() {
        let mut reply = [0xaa; REPLY];
        read(&solicitation("fd42::46"))
            .unwrap()
            .answer(Mac::of_index(0x4001), &mut reply);
        let frame = Frame::read(&reply[..]).unwrap();
        let packet = frame.packet().unwrap();
        assert_eq!(
            (frame.destination, frame.source),
            (Mac::of_index(70), Mac::of_index(0x4001))
        );
        assert_eq!(
            (packet.source, packet.destination),
            (address("fd42::4001"), address("fd42::46"))
        );
        assert_eq!(packet.head[..2], [NEIGHBOUR_ADVERTISEMENT, 0]);
        assert_eq!(reply[78..], [2, 1, 0x02, 0x5c, 0, 0, 0x40, 1]);
        let sum = ip::v6_pseudo_header(packet.source, packet.destination, ip::ICMPV6, 32);
        assert_eq!(sum.with(&reply[54..]).finish(), [0, 0]);
    }

    #[test]
    fn only_valid_solicitations_are_answered() {
        let unanswered = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = solicitation("fd42::46");
            assert!(read(&frame).is_some());
            change(&mut frame);
            assert_eq!(read(&frame), None);
        };
        // An advertisement, a forwarded packet, a code, a group's address, a cut packet.
        unanswered(&|frame| frame[54] = 136);
        unanswered(&|frame| frame[21] = 64);
        unanswered(&|frame| frame[55] = 1);
        unanswered(&|frame| frame[62] = 0xff);
        unanswered(&|frame| frame.truncate(80));
        unanswered(&|frame| frame[19] = 23);
        // Duplicate address detection.
        assert_eq!(read(&solicitation("::")), None);
        assert_eq!(read(&solicitation("ff02::1")), None);
    }
}
