//! What becomes of a frame, by where it comes from and whose it is.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, net::Ipv6Addr};

use proptest::prelude::*;
use slice_datapath::{
    ALL_CLUSTERS, Action, Hop, Ingress, Origin, Port, Reason, Role, Slice, SliceEntry, SliceRules, Tables,
    Verdict,
};
use slice_frame::{
    Frame, Mac, Subnets,
    ethernet::{ARP, HEADER, Header, IPV4, IPV6, VLAN},
    ip::{ICMPV6, UDP},
};

const SLICE: u32 = 77;

fn judge(bytes: &[u8], origin: Origin, tables: &Node1) -> Verdict {
    match Frame::read(bytes) {
        Ok(frame) => slice_datapath::judge(bytes, &frame, &origin, tables),
        Err(_) => Verdict::drop(Reason::Unreadable),
    }
}

const ODD: u16 = 0x88b5;

/// Pod 5 and router 6 are here, 0+64 is the node's block; 64+64 is node 2's, 128+64 cluster 9's.
#[derive(Clone)]
struct Node1 {
    slice: SliceRules,
    entry: SliceEntry,
    /// By first index and size.
    routes: BTreeMap<(u32, u32), Hop>,
    exits: BTreeMap<u32, Hop>,
    relays: BTreeMap<u32, Hop>,
    with_gateway: Ipv6Addr,
}

fn node(number: u16) -> Ipv6Addr {
    std::net::Ipv4Addr::new(172, 30, 0, number as u8).to_ipv6_mapped()
}

fn node1() -> Node1 {
    let subnets = Subnets::new(
        Some(("10.80.0.0".parse().unwrap(), 16)),
        Some(("fd42::".parse().unwrap(), 64)),
    );
    let slice = SliceRules {
        subnets,
        non_ip: true,
        tagged: false,
        routers: false,
        group_rate: 1000,
    };
    Node1 {
        slice,
        entry: slice.entry(),
        routes: BTreeMap::from([
            ((5, 1), Hop::port(105, 0)),
            ((6, 1), Hop::port(106, 9)),
            ((64, 64), Hop::node(node(2))),
            ((128, 64), Hop::cluster(9)),
        ]),
        exits: BTreeMap::from([(9, Hop::node(node(3))), (ALL_CLUSTERS, Hop::node(node(3)))]),
        relays: BTreeMap::from([(9, Hop::port(200, 0)), (ALL_CLUSTERS, Hop::port(201, 0))]),
        with_gateway: node(3),
    }
}

impl Tables for Node1 {
    fn slice(&self, slice: u32) -> Option<Slice<'_>> {
        (slice == SLICE).then_some(Slice(&self.entry))
    }

    fn route(&self, slice: u32, index: u32) -> Hop {
        let fits = |((start, size), _): &(&(u32, u32), &Hop)| index.wrapping_sub(*start) < *size;
        let routes = self.routes.iter().filter(fits).filter(|_| slice == SLICE);
        let best = routes.min_by_key(|((_, size), _)| *size);
        best.map_or(Hop::NOWHERE, |(_, hop)| *hop)
    }

    fn exit(&self, _: u32, cluster: u32) -> Hop {
        self.exits.get(&cluster).copied().unwrap_or(Hop::NOWHERE)
    }

    fn has_gateway(&self, _: u32, node: Ipv6Addr) -> bool {
        node == self.with_gateway
    }

    fn relay(&self, _: u32, cluster: u32) -> Hop {
        self.relays.get(&cluster).copied().unwrap_or(Hop::NOWHERE)
    }
}

const POD: Origin = Origin::port(Port {
    slice: SLICE,
    role: Role::Pod,
    index: 5,
    class: 0,
});
const ROUTER: Origin = Origin::port(Port {
    slice: SLICE,
    role: Role::Router,
    index: 6,
    class: 0,
});
const GATEWAY: Origin = Origin::port(Port {
    slice: SLICE,
    role: Role::Gateway,
    index: 0,
    class: 0,
});

fn from_node(number: u16) -> Origin {
    Origin {
        ingress: Ingress::Node,
        slice: SLICE,
        index: 0,
        node: node(number),
    }
}

fn to_gateway(number: u16) -> Origin {
    Origin {
        ingress: Ingress::NodeToGateway,
        ..from_node(number)
    }
}

fn pod(interface: u32) -> Verdict {
    // Of the two here, one is shaped.
    let class = if interface == 106 { 9 } else { 0 };
    Verdict::port(Action::Pod, Hop::port(interface, class))
}

fn gateway(interface: u32) -> Verdict {
    Verdict::at(Action::Gateway, interface)
}

fn frame(from: u32, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        destination: to,
        source: Mac::of_index(from),
        ethertype,
    };
    [&header.bytes()[..], payload].concat()
}

fn odd(from: u32, to: u32) -> Vec<u8> {
    frame(from, Mac::of_index(to), ODD, &[])
}

fn udp(from: u32, source: [u8; 4], to: Mac) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0];
    packet.extend(source);
    packet.extend([10, 80, 0, 70]);
    packet.extend([0; 8]);
    frame(from, to, IPV4, &packet)
}

fn arp(from: u32, sender: u8, target: u8) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(Mac::of_index(from).0);
    packet.extend([10, 80, 0, sender]);
    packet.extend([0; 6]);
    packet.extend([10, 80, 0, target]);
    frame(from, Mac::BROADCAST, ARP, &packet)
}

fn icmpv6(from: u32, source: &str, message: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255];
    packet.extend(source.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend("ff02::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(message);
    frame(from, Mac([0x33, 0x33, 0, 0, 0, 1]), IPV6, &packet)
}

fn solicitation(from: u32, target: &str) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.parse::<Ipv6Addr>().unwrap().octets());
    icmpv6(from, "fd42::5", &message)
}

#[track_caller]
fn check(frame: &[u8], origin: Origin, expected: Verdict) {
    assert_eq!(judge(frame, origin, &node1()), expected);
}

#[test]
fn the_destination_says_where_it_goes() {
    check(&odd(5, 6), POD, pod(106));
    check(&odd(5, 70), POD, Verdict::new(Action::Node, 0, node(2)));
    check(&odd(5, 130), POD, Verdict::new(Action::NodeGateway, 0, node(3)));
    check(&odd(5, 7), POD, Verdict::drop(Reason::NoRoute));
    check(&odd(5, 300), POD, Verdict::drop(Reason::NoRoute));
    check(
        &frame(5, Mac([2, 0, 0, 0, 0, 1]), ODD, &[]),
        POD,
        Verdict::drop(Reason::NoRoute),
    );
    check(&odd(130, 5), GATEWAY, pod(105));
    check(&odd(130, 70), GATEWAY, Verdict::new(Action::Node, 0, node(2)));
    check(&odd(70, 5), from_node(2), pod(105));
    check(&odd(130, 5), from_node(3), pod(105));
    check(&odd(70, 130), to_gateway(2), gateway(200));
    for elsewhere in [5, 71, 9] {
        check(&odd(70, elsewhere), to_gateway(2), Verdict::drop(Reason::Loop));
    }
    let mut alone = node1();
    alone.exits.clear();
    alone.relays.clear();
    assert_eq!(
        judge(&odd(70, 130)[..], to_gateway(2), &alone),
        Verdict::drop(Reason::NoGateway)
    );
    assert_eq!(
        judge(&odd(5, 130)[..], POD, &alone),
        Verdict::drop(Reason::NoGateway)
    );
    alone.exits.insert(9, Hop::port(200, 0));
    assert_eq!(judge(&odd(5, 130)[..], POD, &alone), gateway(200));
}

#[test]
fn a_group_is_copied_once_for_each() {
    let all = Verdict::at(Action::CopyToAll, 0);
    check(&frame(5, Mac::BROADCAST, ODD, &[]), POD, all);
    let cluster = Verdict::at(Action::CopyToCluster, 0);
    check(&frame(130, Mac::BROADCAST, ODD, &[]), GATEWAY, cluster);
    let pods = Verdict::at(Action::CopyToPods, 0);
    check(&frame(70, Mac::BROADCAST, ODD, &[]), from_node(2), pods);
    check(&frame(130, Mac::BROADCAST, ODD, &[]), from_node(3), pods);
    check(&frame(70, Mac::BROADCAST, ODD, &[]), to_gateway(2), gateway(201));
    check(
        &frame(5, Mac([1, 0x80, 0xc2, 0, 0, 0]), ODD, &[]),
        POD,
        Verdict::drop(Reason::LinkLocalGroup),
    );
}

#[test]
fn everybody_speaks_for_himself() {
    let spoofed = Verdict::drop(Reason::Spoofed);
    check(&odd(6, 5), POD, spoofed);
    check(&odd(70, 5), POD, spoofed);
    // A gateway speaks for peer clusters only, a node for its own pods, and for peer clusters if it has a gateway.
    check(&odd(5, 6), GATEWAY, spoofed);
    check(&odd(70, 5), GATEWAY, spoofed);
    check(&odd(300, 5), GATEWAY, spoofed);
    check(&odd(5, 6), from_node(2), spoofed);
    check(&odd(70, 5), from_node(3), spoofed);
    check(&odd(130, 5), from_node(2), spoofed);
    check(&odd(130, 5), from_node(4), spoofed);
    check(&odd(130, 131), to_gateway(3), spoofed);
    check(&udp(5, [10, 80, 0, 6], Mac::of_index(6)), POD, spoofed);
    check(&udp(70, [10, 80, 0, 5], Mac::of_index(5)), from_node(2), spoofed);
    check(&udp(130, [10, 80, 0, 5], Mac::BROADCAST), GATEWAY, spoofed);
    check(&udp(5, [10, 80, 0, 5], Mac::of_index(6)), POD, pod(106));
}

#[test]
fn neighbours_are_answered_in_place() {
    for (target, index) in [(6, 6), (70, 70), (130, 130)] {
        check(&arp(5, 5, target), POD, Verdict::at(Action::Answer, index));
        check(
            &solicitation(5, &format!("fd42::{target:x}")),
            POD,
            Verdict::at(Action::Answer, index),
        );
    }
    let refused = Verdict::drop(Reason::Neighbour);
    // The asker, nobody, an address outside, somebody else's name, and questions from elsewhere.
    check(&arp(5, 5, 5), POD, refused);
    check(&arp(5, 5, 7), POD, refused);
    check(&arp(5, 6, 70), POD, refused);
    check(&solicitation(5, "fe80::1"), POD, refused);
    let of_node = Verdict::at(Action::Answer, 70);
    check(&solicitation(5, "fe80::5c:ff:fe00:46"), POD, of_node);
    check(&solicitation(5, "fe80::5c:ff:fe00:9"), POD, refused);
    check(&arp(130, 130, 5), GATEWAY, refused);
    check(&arp(70, 70, 5), from_node(2), refused);
    check(&arp(70, 70, 130), to_gateway(2), refused);
}

#[test]
fn a_router_is_one_only_where_the_slice_says_so() {
    let advertisement = |from: u32| icmpv6(from, "fe80::1", &[134, 0, 0, 0]);
    check(&advertisement(5), POD, Verdict::drop(Reason::Router));
    check(&advertisement(6), ROUTER, Verdict::at(Action::CopyToAll, 0));
    // Another node, or a gateway, has judged already whether its pod may.
    let mut with_routers = node1();
    with_routers.slice.routers = true;
    with_routers.entry = with_routers.slice.entry();
    let from = |index: u32, origin: Origin| judge(&advertisement(index)[..], origin, &with_routers).action;
    assert_eq!(from(70, from_node(2)), Action::CopyToPods);
    assert_eq!(from(130, GATEWAY), Action::CopyToCluster);
    assert_eq!(from(5, POD), Action::Drop);
    check(&advertisement(70), from_node(2), Verdict::drop(Reason::Router));
    check(&advertisement(130), GATEWAY, Verdict::drop(Reason::Router));
}

#[test]
fn a_slice_says_what_it_carries() {
    let tagged = |frame: Vec<u8>| [&frame[..12], &VLAN.to_be_bytes(), &[0, 0], &frame[12..]].concat();
    check(&tagged(odd(5, 6)), POD, Verdict::drop(Reason::Tagged));
    check(&tagged(arp(5, 5, 6)), POD, Verdict::drop(Reason::Tagged));
    let mut open = node1();
    open.slice.tagged = true;
    open.entry = open.slice.entry();
    assert_eq!(judge(&tagged(odd(5, 6))[..], POD, &open), pod(106));
    let spoofed = tagged(udp(5, [10, 80, 0, 6], Mac::of_index(6)));
    assert_eq!(judge(&spoofed[..], POD, &open), Verdict::drop(Reason::Spoofed));
    let mut strict = node1();
    strict.slice.non_ip = false;
    strict.entry = strict.slice.entry();
    assert_eq!(judge(&odd(5, 6)[..], POD, &strict), Verdict::drop(Reason::NotIp));
    assert_eq!(
        judge(&odd(5, 6)[..HEADER - 1], POD, &strict),
        Verdict::drop(Reason::Unreadable)
    );
}

proptest! {
    /// Whatever the bytes: what passes is its sender's own, and nothing goes back to where it came from.
    #[test]
    fn no_bytes_pass_in_another_name_or_come_round(
        from in 0u32..320, to in 0u32..320, group: bool, payload in prop::collection::vec(any::<u8>(), 0..96),
        ethertype in prop_oneof![Just(IPV4), Just(IPV6), Just(ARP), Just(VLAN), Just(ODD), any::<u16>()],
        tagged: bool, non_ip: bool,
    ) {
        let to = if group { Mac::BROADCAST } else { Mac::of_index(to) };
        let bytes = frame(from, to, ethertype, &payload);
        let mut tables = node1();
        (tables.slice.tagged, tables.slice.non_ip) = (tagged, non_ip);
        tables.entry = tables.slice.entry();
        for origin in [POD, GATEWAY, from_node(2), from_node(3), to_gateway(2)] {
            let verdict = judge(&bytes[..], origin, &tables);
            if verdict.action == Action::Drop {
                continue;
            }
            let read = Frame::read(&bytes[..]).expect("nobody forwards what cannot be read");
            prop_assert!(read.is_from(from, &tables.slice.subnets));
            let may = match origin.ingress {
                Ingress::Pod | Ingress::Router => from == 5,
                Ingress::Gateway => (128..192).contains(&from),
                Ingress::Node if origin.node == node(3) => (128..192).contains(&from),
                Ingress::Node | Ingress::NodeToGateway => (64..128).contains(&from),
            };
            prop_assert!(may, "{origin:?} spoke for {from}");
            let ways: &[Ingress] = match verdict.action {
                Action::Node => &[Ingress::Pod, Ingress::Gateway],
                Action::NodeGateway | Action::Answer | Action::CopyToAll => &[Ingress::Pod],
                Action::Gateway => &[Ingress::Pod, Ingress::NodeToGateway],
                Action::CopyToCluster => &[Ingress::Gateway],
                Action::CopyToPods => &[Ingress::Node],
                Action::Pod => &[Ingress::Pod, Ingress::Gateway, Ingress::Node],
                Action::Drop => &[],
            };
            prop_assert!(ways.contains(&origin.ingress), "{verdict:?} from {origin:?}");
        }
    }
}
