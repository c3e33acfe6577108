//! Whatever a receiver would take for ARP, neighbour discovery or a packet is recognised, however it is wrapped.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use slice_frame::{
    Frame, Mac, Subnets, Unreadable,
    ethernet::{ARP, HEADER, Header, IPV4, IPV6, SERVICE_VLAN, VLAN},
    ip::{self, Fragment},
};

const SOURCE: u32 = 70;
const ROUTER_ADVERTISEMENT: u8 = 134;

fn subnets() -> Subnets {
    Subnets::new(
        Some((Ipv4Addr::new(10, 80, 0, 0), 16)),
        Some(("fd42::".parse().unwrap(), 64)),
    )
}

fn frame(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut kinds = tags.iter().map(|(kind, _)| *kind).chain([ethertype]);
    let mut frame = vec![0; HEADER];
    Header {
        destination: Mac::BROADCAST,
        source: Mac::of_index(SOURCE),
        ethertype: kinds.next().unwrap(),
    }
    .write(&mut frame);
    for ((_, control), next) in tags.iter().zip(kinds) {
        frame.extend(control.to_be_bytes());
        frame.extend(next.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

fn v4(source: [u8; 4], protocol: u8, place: u16, options: usize, payload: &[u8]) -> Vec<u8> {
    let header = ip::V4_HEADER + options * 4;
    let mut packet = vec![0; header];
    packet[0] = 0x40 | (header / 4) as u8;
    packet[2..4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&place.to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&[10, 80, 0, 1]);
    packet.extend(payload);
    packet
}

fn v6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; ip::V6_HEADER];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet[6] = next;
    packet[7] = 255;
    packet[8..24].copy_from_slice(&source.parse::<Ipv6Addr>().unwrap().octets());
    packet[24..40].copy_from_slice(&"ff02::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

fn arp(sender: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2];
    packet.extend(Mac::of_index(SOURCE).0);
    packet.extend(sender);
    packet.extend([0; 10]);
    packet
}

/// A chain of extension headers before a message of ICMPv6: the first number, and the bytes.
fn chained(extensions: &[(u8, u8)], message: &[u8]) -> (u8, Vec<u8>) {
    let numbers: Vec<u8> = extensions
        .iter()
        .map(|(number, _)| *number)
        .chain([ip::ICMPV6])
        .collect();
    let mut bytes = vec![];
    for ((number, units), next) in extensions.iter().zip(&numbers[1..]) {
        // A fragment header is of eight bytes whatever it says, and an atomic one says nothing.
        let units = if *number == 44 { 0 } else { *units };
        let mut header = vec![0; usize::from(units) * 8 + 8];
        (header[0], header[1]) = (*next, units);
        bytes.extend(header);
    }
    bytes.extend(message);
    (numbers[0], bytes)
}

fn read(bytes: &[u8]) -> Result<Frame, Unreadable> {
    Frame::read(bytes)
}

/// Tags that leave a frame in the slice's own network, as Linux sees it.
fn priority_tags() -> impl Strategy<Value = Vec<(u16, u16)>> {
    let kind = prop_oneof![Just(VLAN), Just(SERVICE_VLAN)];
    // Priority and drop bits, but VLAN 0.
    prop::collection::vec((kind, (0u16..16).prop_map(|high| high << 12)), 0..5)
}

#[test]
fn a_priority_tag_hides_nothing() {
    for tags in [
        &[(VLAN, 0)][..],
        &[(SERVICE_VLAN, 0)],
        &[(SERVICE_VLAN, 0xe000), (VLAN, 0x2000)],
    ] {
        let spoofed = read(&frame(tags, IPV4, &v4([10, 80, 0, 9], ip::UDP, 0, 0, &[0; 8]))).unwrap();
        assert!(spoofed.tagged && spoofed.vlan().is_none());
        assert!(!spoofed.is_from(SOURCE, &subnets()));
        let own = read(&frame(tags, IPV4, &v4([10, 80, 0, 70], ip::UDP, 0, 0, &[0; 8]))).unwrap();
        assert!(own.is_from(SOURCE, &subnets()));
        assert!(
            !read(&frame(tags, ARP, &arp([10, 80, 0, 9])))
                .unwrap()
                .is_from(SOURCE, &subnets())
        );
        let advertisement = v6("fe80::1", ip::ICMPV6, &[ROUTER_ADVERTISEMENT, 0, 0, 0]);
        let advertisement = read(&frame(tags, IPV6, &advertisement)).unwrap();
        assert!(advertisement.is_from_router() && advertisement.is_neighbour_discovery());
    }
    let three = [(VLAN, 0); 3];
    assert_eq!(
        read(&frame(&three, ARP, &arp([10, 80, 0, 9]))),
        Err(Unreadable::Tags)
    );
    assert_eq!(read(&frame(&[(VLAN, 0)], ARP, &[])[..15]), Err(Unreadable::Tags));
}

#[test]
fn a_vlan_is_a_network_of_its_own() {
    let inside = read(&frame(&[(SERVICE_VLAN, 0), (VLAN, 7)], ARP, &arp([192, 0, 2, 1]))).unwrap();
    assert_eq!(inside.vlan(), Some(7));
    assert!(inside.is_from(SOURCE, &subnets()) && !inside.is_from(71, &subnets()));
}

#[test]
fn a_tag_beside_the_bytes_counts() {
    struct Stripped(Vec<u8>, u16);
    impl slice_frame::Bytes for Stripped {
        fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
            self.0.load(at)
        }
        fn length(&self) -> usize {
            self.0.len()
        }
        fn stripped_tag(&self) -> Option<u16> {
            Some(self.1)
        }
    }
    let bytes = frame(&[(VLAN, 9)], IPV4, &v4([10, 80, 0, 9], ip::UDP, 0, 0, &[0; 8]));
    let within = Frame::read(&Stripped(bytes.clone(), 0x2000)).unwrap();
    assert_eq!((within.tagged, within.vlan()), (true, Some(9)));
    assert_eq!(Frame::read(&Stripped(bytes, 8)).unwrap().vlan(), Some(8));
}

#[test]
fn extension_headers_are_passed() {
    let headers = [(0, 0), (60, 1), (43, 0), (60, 0)];
    let (next, bytes) = chained(&headers, &[ROUTER_ADVERTISEMENT, 0, 0, 0]);
    let packet = frame(&[], IPV6, &v6("fe80::1", next, &bytes));
    assert!(read(&packet).unwrap().is_from_router());
    // Behind more than anybody needs nothing is seen, and nothing passes.
    let (next, bytes) = chained(&[(60, 0); 9], &[ROUTER_ADVERTISEMENT, 0, 0, 0]);
    let packet = frame(&[], IPV6, &v6("fe80::1", next, &bytes));
    assert_eq!(read(&packet), Err(Unreadable::Extensions));
}

#[test]
fn a_first_fragment_says_what_it_is() {
    let fragment = |next, place: u16, payload: &[u8]| {
        let [high, low] = place.to_be_bytes();
        let bytes = [&[next, 0, high, low, 0, 0, 0, 0], payload].concat();
        read(&frame(&[], IPV6, &v6("fd42::46", 44, &bytes)))
    };
    let more = 1;
    let first = fragment(ip::ICMPV6, more, &[ROUTER_ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert!(first.is_from_router());
    // The rest of the chain would come later, where nobody looks: RFC 7112.
    let options = [ip::ICMPV6, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(fragment(60, more, &options), Err(Unreadable::Transport));
    assert_eq!(fragment(60, more, &[]), Err(Unreadable::Extensions));
    // What is behind the packet's end belongs to nobody.
    let mut padded = v6(
        "fd42::46",
        44,
        &[60, 0, 0, 1, 0, 0, 0, 0, ip::ICMPV6, 0, 1, 4, 0, 0, 0, 0],
    );
    padded.extend([128, 0, 0, 0]);
    assert_eq!(read(&frame(&[], IPV6, &padded)), Err(Unreadable::Transport));
    let later = fragment(ip::ICMPV6, 8, &[ROUTER_ADVERTISEMENT, 0, 0, 0]).unwrap();
    let packet = later.packet().unwrap();
    assert_eq!((packet.fragment, packet.ports()), (Fragment::Later, None));
    assert_eq!(
        fragment(
            44,
            more,
            &[ip::ICMPV6, 0, 0, 0, 0, 0, 0, 0, ROUTER_ADVERTISEMENT, 0, 0, 0]
        ),
        Err(Unreadable::Extensions)
    );
}

#[test]
fn a_jumbogram_is_unreadable() {
    let mut packet = v6(
        "fd42::46",
        0,
        &[ip::ICMPV6, 0, 194, 4, 0, 1, 0, 0, ROUTER_ADVERTISEMENT, 0, 0, 0],
    );
    packet[4..6].fill(0);
    assert_eq!(read(&frame(&[], IPV6, &packet)), Err(Unreadable::Extensions));
}

#[test]
fn lengths_are_checked() {
    let whole = frame(&[], IPV4, &v4([10, 80, 0, 70], ip::TCP, 0, 2, &[0; 20]));
    assert!(read(&whole).is_ok());
    assert_eq!(read(&whole[..whole.len() - 1]), Err(Unreadable::Ip));
    assert_eq!(read(&whole[..20]), Err(Unreadable::Ip));
    let change = |at: usize, value: u8| {
        let mut changed = whole.clone();
        changed[at] = value;
        read(&changed)
    };
    assert_eq!(change(14, 0x44), Err(Unreadable::Ip));
    assert_eq!(change(14, 0x65), Err(Unreadable::Ip));
    assert_eq!(change(17, 19), Err(Unreadable::Ip));
    assert_eq!(read(&[0; 13]), Err(Unreadable::Header));
    let short = frame(&[], IPV4, &v4([10, 80, 0, 70], ip::TCP, 0, 0, &[0; 3]));
    assert_eq!(read(&short), Err(Unreadable::Transport));
}

#[test]
fn routers_are_recognised_in_both_families() {
    let of = |kind| {
        read(&frame(
            &[],
            IPV4,
            &v4([10, 80, 0, 70], ip::ICMP, 0, 0, &[kind, 0, 0, 0]),
        ))
        .unwrap()
    };
    let kinds: Vec<u8> = (0..=255).filter(|kind| of(*kind).is_from_router()).collect();
    assert_eq!(kinds, [5, 9]);
    let of = |kind| read(&frame(&[], IPV6, &v6("fd42::46", ip::ICMPV6, &[kind, 0, 0, 0]))).unwrap();
    let kinds: Vec<u8> = (0..=255).filter(|kind| of(*kind).is_from_router()).collect();
    assert_eq!(kinds, [134, 137]);
    let kinds: Vec<u8> = (0..=255)
        .filter(|kind| of(*kind).is_neighbour_discovery())
        .collect();
    assert_eq!(kinds, [133, 134, 135, 136, 137]);
}

#[test]
fn a_flow_is_told_by_ports_and_its_fragments_go_one_way() {
    let udp = |port: u8, place| {
        let payload = [0x10, port, 0, 53, 0, 8, 0, 0];
        read(&frame(
            &[],
            IPV4,
            &v4([10, 80, 0, 70], ip::UDP, place, 0, &payload),
        ))
        .unwrap()
    };
    assert_eq!(udp(1, 0).flow(), udp(1, 0x4000).flow());
    assert_ne!(udp(1, 0).flow(), udp(2, 0).flow());
    assert_eq!(udp(1, 0x2000).flow(), udp(2, 0x0002).flow());
    let odd = |payload: u8| read(&frame(&[], 0x88b5, &[payload])).unwrap();
    assert_eq!(odd(1).flow(), odd(2).flow());
}

proptest! {
    /// Tags, options, extension headers and padding in any order: a router's message is known for one, or nothing passes.
    #[test]
    fn a_routers_message_never_passes_for_something_else(
        tags in priority_tags(),
        extensions in prop::collection::vec((prop_oneof![Just(0u8), Just(43), Just(60), Just(135), Just(139), Just(140), Just(44)], 0u8..4), 0..12),
        kind in prop_oneof![Just(134u8), Just(137)],
        padding in 0usize..40,
    ) {
        let (next, bytes) = chained(&extensions, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        let mut packet = v6("fe80::1", next, &bytes);
        packet.resize(packet.len() + padding, 0x80);
        if let Ok(frame) = read(&frame(&tags, IPV6, &packet)) {
            prop_assert!(frame.is_from_router() && frame.is_neighbour_discovery());
            prop_assert!(frame.vlan().is_none());
        }
    }

    #[test]
    fn an_address_of_another_never_passes(
        tags in priority_tags(), other in 0u32..65536, protocol: u8, place: u16, options in 0usize..11,
        payload in prop::collection::vec(any::<u8>(), 0..32), padding in 0usize..20,
    ) {
        prop_assume!(other != SOURCE);
        let source = Ipv4Addr::from_bits(Ipv4Addr::new(10, 80, 0, 0).to_bits() + other).octets();
        let mut packet = v4(source, protocol, place, options, &payload);
        packet.resize(packet.len() + padding, 0);
        if let Ok(frame) = read(&frame(&tags, IPV4, &packet)) {
            prop_assert!(!frame.is_from(SOURCE, &subnets()));
        }
        if let Ok(frame) = read(&frame(&tags, ARP, &arp(source))) {
            prop_assert!(!frame.is_from(SOURCE, &subnets()));
        }
    }

    /// No bytes make it panic, and nothing that it says lies outside them.
    #[test]
    fn any_bytes_are_read_or_not(
        mut bytes in prop::collection::vec(any::<u8>(), 0..160), tags in priority_tags(),
        ethertype in prop_oneof![Just(IPV4), Just(IPV6), Just(ARP), any::<u16>()], version in 4u8..7,
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | *first & 0x0f;
        }
        let bytes = frame(&tags, ethertype, &bytes);
        if let Ok(frame) = read(&bytes) {
            let end = frame.packet().map_or(frame.network, |packet| packet.end);
            prop_assert!(end <= bytes.len());
            let _ = (frame.flow(), frame.tos(), slice_frame::nd::Solicitation::read(&bytes[..], &frame));
        }
    }
}
