//! IPv6 neighbour discovery (RFC 4861), answered next to the asker as ARP is.

use std::net::Ipv6Addr;

use super::{
    address::Mac,
    ethernet::{self, Header},
    ip::{self, V6},
};

/// Bytes of a neighbour advertisement with its link-layer address option.
const ADVERTISEMENT: usize = 32;
/// Bytes of an answer.
pub const REPLY: usize = ethernet::HEADER + ip::V6_HEADER + ADVERTISEMENT;

/// Router and neighbour solicitation and advertisement, and redirect (RFC 4861 §4): these stay in their cluster.
pub fn is_neighbour_discovery(packet: &V6<'_>) -> bool {
    packet.protocol == ip::ICMPV6
        && packet
            .payload
            .first()
            .is_some_and(|kind| matches!(kind, 133..=137))
}

/// Somebody asks for the MAC of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    sender: Mac,
    sender_address: Ipv6Addr,
    pub target: Ipv6Addr,
}

impl Solicitation {
    /// Reads a neighbour solicitation that RFC 4861 §7.1.1 calls valid; `None` for anything else, and for duplicate
    /// address detection (from the unspecified address), which wants no answer.
    pub fn parse(header: &Header, packet: &V6<'_>) -> Option<Self> {
        let message: &[u8; 24] = packet.payload.first_chunk()?;
        let target = Ipv6Addr::from_octets(*message[8..].first_chunk()?);
        let checksum = ip::v6_pseudo_header(
            packet.source,
            packet.destination,
            ip::ICMPV6,
            packet.payload.len(),
        )
        .with(packet.payload)
        .finish();
        let valid = packet.protocol == ip::ICMPV6
            && message[..2] == [135, 0]
            && !packet.fragment
            && packet.hop_limit == 255
            && checksum == [0, 0]
            && !target.is_multicast()
            && !packet.source.is_unspecified()
            && !packet.source.is_multicast();
        valid.then_some(Self {
            sender: header.source,
            sender_address: packet.source,
            target,
        })
    }

    /// Writes the answer frame, a solicited advertisement: the target is at `mac`.
    pub fn answer(&self, mac: Mac, out: &mut [u8; REPLY]) {
        out.fill(0);
        Header {
            destination: self.sender,
            source: mac,
            ethertype: ethernet::IPV6,
        }
        .write(out);
        let (header, message) = out[ethernet::HEADER..].split_at_mut(ip::V6_HEADER);
        header[0] = 0x60;
        header[5] = ADVERTISEMENT as u8;
        header[6] = ip::ICMPV6;
        header[7] = 255;
        header[8..24].copy_from_slice(&self.target.octets());
        header[24..40].copy_from_slice(&self.sender_address.octets());
        message[0] = 136;
        // Solicited and override (RFC 4861 §4.4).
        message[4] = 0x60;
        message[8..24].copy_from_slice(&self.target.octets());
        // Target link-layer address, one unit of eight bytes (RFC 4861 §4.6.1).
        message[24..26].copy_from_slice(&[2, 1]);
        message[26..32].copy_from_slice(&mac.0);
        let checksum = ip::v6_pseudo_header(self.target, self.sender_address, ip::ICMPV6, ADVERTISEMENT)
            .with(message)
            .finish();
        message[2..4].copy_from_slice(&checksum);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A solicitation frame, its checksum right.
    pub(crate) fn solicitation(sender: u32, from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        message.extend([1, 1]);
        message.extend(Mac::of_index(sender).0);
        let to: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
        let checksum = ip::v6_pseudo_header(from, to, ip::ICMPV6, message.len())
            .with(&message)
            .finish();
        message[2..4].copy_from_slice(&checksum);
        let mut frame = vec![0; ethernet::HEADER];
        let destination = Mac([0x33, 0x33, 0xff, 0, 0, 1]);
        Header {
            destination,
            source: Mac::of_index(sender),
            ethertype: ethernet::IPV6,
        }
        .write(&mut frame);
        frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, ip::ICMPV6, 255]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend(message);
        frame
    }

    fn parse(frame: &[u8]) -> Option<Solicitation> {
        let (header, payload) = Header::parse(frame)?;
        Solicitation::parse(&header, &V6::parse(payload)?)
    }

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn the_answer_names_the_computed_mac() {
        let frame = solicitation(70, address("fd42::46"), address("fd42::4001"));
        let mut reply = [0; REPLY];
        parse(&frame).unwrap().answer(Mac::of_index(0x4001), &mut reply);
        let (header, payload) = Header::parse(&reply).unwrap();
        let packet = V6::parse(payload).unwrap();
        assert_eq!(
            (header.destination, header.source),
            (Mac::of_index(70), Mac::of_index(0x4001))
        );
        assert_eq!(
            (packet.source, packet.destination),
            (address("fd42::4001"), address("fd42::46"))
        );
        assert_eq!(packet.payload[..2], [136, 0]);
        assert_eq!(packet.payload[24..], [2, 1, 0x02, 0x5c, 0, 0, 0x40, 1]);
        let sum = ip::v6_pseudo_header(
            packet.source,
            packet.destination,
            ip::ICMPV6,
            packet.payload.len(),
        );
        assert_eq!(sum.with(packet.payload).finish(), [0, 0]);
    }

    #[track_caller]
    fn check_unanswered(change: impl Fn(&mut Vec<u8>)) {
        let mut frame = solicitation(70, address("fd42::46"), address("fd42::4001"));
        assert!(parse(&frame).is_some());
        change(&mut frame);
        assert_eq!(parse(&frame), None);
    }

    #[test]
    fn only_valid_solicitations_are_answered() {
        // An advertisement, a forwarded packet, a bad checksum, a cut packet.
        check_unanswered(|frame| frame[54] = 136);
        check_unanswered(|frame| frame[21] = 64);
        check_unanswered(|frame| frame[56] ^= 1);
        check_unanswered(|frame| frame.truncate(80));
        assert_eq!(
            parse(&solicitation(70, Ipv6Addr::UNSPECIFIED, address("fd42::4001"))),
            None
        );
    }

    #[test]
    fn five_messages_are_neighbour_discovery() {
        let kinds: Vec<u8> = (0..=255)
            .filter(|kind| {
                let mut frame = solicitation(70, address("fd42::46"), address("fd42::4001"));
                frame[54] = *kind;
                is_neighbour_discovery(&V6::parse(&frame[14..]).unwrap())
            })
            .collect();
        assert_eq!(kinds, [133, 134, 135, 136, 137]);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_do_not(tail in prop::collection::vec(any::<u8>(), 0..64), keep in 0usize..86) {
            let mut frame = solicitation(70, address("fd42::46"), address("fd42::4001"));
            frame.truncate(keep);
            frame.extend(tail);
            let _ = parse(&frame);
        }
    }
}
