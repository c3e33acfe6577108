//! The bytes of ICMP echo, ARP and hand-made UDP packets. Pure.

use std::net::{IpAddr, Ipv4Addr};

pub(super) const BROADCAST: [u8; 6] = [0xff; 6];
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV4: u16 = 0x0800;

/// An echo request without its IP header: RFC 792 for IPv4; RFC 4443 for IPv6, whose checksum the kernel fills in.
pub(super) fn echo_request(family_of: IpAddr, identifier: u16, number: u16, payload: &[u8]) -> Vec<u8> {
    let kind = match family_of {
        IpAddr::V4(_) => 8,
        IpAddr::V6(_) => 128,
    };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(identifier.to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.extend(payload);
    if family_of.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Whether a packet read from a raw socket is the answer to our request. IPv4 arrives with its IP header.
pub(super) fn is_echo_reply(family_of: IpAddr, packet: &[u8], identifier: u16, number: u16) -> bool {
    let (icmp, kind) = match family_of {
        IpAddr::V4(_) => {
            let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
            (packet.get(header..).unwrap_or_default(), 0)
        }
        IpAddr::V6(_) => (packet, 129),
    };
    let wanted = [identifier.to_be_bytes(), number.to_be_bytes()].concat();
    icmp.first() == Some(&kind) && icmp.get(4..8) == Some(wanted.as_slice())
}

/// An ARP request (RFC 826): who has `target`, tell `sender`.
pub(super) fn arp_request(sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(sender_mac);
    packet.extend(sender.octets());
    packet.extend([0; 6]);
    packet.extend(target.octets());
    packet
}

/// The MAC address in an ARP reply about `target`.
pub(super) fn arp_reply(packet: &[u8], target: Ipv4Addr) -> Option<[u8; 6]> {
    let is_reply = packet.get(6..8)? == [0, 2];
    let about = packet.get(14..18)? == target.octets();
    (is_reply && about).then(|| packet.get(8..14)?.try_into().ok())?
}

/// A whole IPv4 packet with a UDP datagram in it, from any address to any other.
pub(super) fn udp4(source: Ipv4Addr, destination: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_length = 8 + payload.len();
    let total = (20 + udp_length) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((udp_length as u16).to_be_bytes());
    packet.extend([0, 0]); // no checksum: RFC 768 allows it over IPv4
    packet.extend(payload);
    packet
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3: the sum is ddf2.
    #[test]
    fn rfc1071_example() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }

    #[test]
    fn only_the_own_answer_counts() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let mut reply = vec![0x45; 20];
        reply.extend([0, 0, 0, 0, 0, 9, 0, 3]);
        assert!(is_echo_reply(here, &reply, 9, 3));
        assert!(!is_echo_reply(here, &reply, 9, 4));
        assert!(!is_echo_reply(here, &[], 9, 3));
    }

    #[test]
    fn an_arp_reply_is_about_its_sender() {
        let target = Ipv4Addr::new(10, 0, 0, 2);
        let mut reply = arp_request([2; 6], target, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(arp_reply(&reply, target), None);
        reply[7] = 2;
        assert_eq!(arp_reply(&reply, target), Some([2; 6]));
    }
}
