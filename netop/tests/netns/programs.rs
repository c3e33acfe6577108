//! The eBPF programs in a real kernel: what passes, what does not, and that they judge as the host does.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use aya::{TestRun, programs::TestRunOptions};
use slice_crds::{IndexRange, Mac};
use slice_datapath::{
    Action, Hop, Origin, Port, Reason, Role, Slice, SliceEntry, SliceRules, Tables, Tunnel, Verdict, judge,
};
use slice_frame::{Frame, nd::Solicitation};
use slice_netop::programs::{Limits, Program, Programs};

use crate::support::{
    MARK, Wire, arp_request,
    bed::{Bed, BedNode, BedPod, SLICE, address, rules},
    ethernet, icmp6, marked, ping, tagged, udp4,
};

const RATE: u32 = 1000;
const SETTLE: Duration = Duration::from_millis(200);

/// Frames of the slice, from wherever.
fn counted(programs: &mut Programs, reason: Option<Reason>) -> u64 {
    let counts = programs.counts().unwrap();
    let of_reason = counts
        .iter()
        .filter(|(counter, _)| counter.slice == SLICE && counter.reason == reason);
    of_reason.map(|(_, frames)| frames).sum()
}

fn dropped(node: &mut BedNode, reason: Reason) -> u64 {
    counted(node.programs(), Some(reason))
}

fn answers(from: &BedPod, to: IpAddr) -> bool {
    ping(&from.space, to, 56, Duration::from_secs(1)).is_some()
}

/// Whether a frame that `from` sends arrives at `to`.
fn passes(from: &BedPod, to: &Wire, frame: &[u8]) -> bool {
    to.collect(Duration::from_millis(20));
    from.wire().send(frame);
    marked(&to.collect(SETTLE)) > 0
}

#[test]
fn pods_reach_each_other_on_a_node_and_across() {
    let mut bed = Bed::with_programs(2, RATE);
    let a = bed.add_pod(0, 5);
    let b = bed.add_pod(0, 6);
    let c = bed.add_pod(1, 7);
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &a)] {
        assert!(answers(from, to.v4()), "{} to {}", from.index, to.v4());
        assert!(answers(from, to.v6()), "{} to {}", from.index, to.v6());
    }
    assert!(!answers(&a, "10.80.0.9".parse().unwrap()), "nobody has it");
    let large = ping(&a.space, c.v4(), 1370 - 28, Duration::from_secs(1));
    assert!(large.is_some(), "a full packet");
}

#[test]
fn what_is_for_all_arrives_once_at_each() {
    let mut bed = Bed::with_programs(3, RATE);
    let a = bed.add_pod(0, 5);
    let others = [
        bed.add_pod(0, 6),
        bed.add_pod(1, 5),
        bed.add_pod(1, 6),
        bed.add_pod(2, 5),
    ];
    let own = a.wire();
    let wires: Vec<Wire> = others.iter().map(BedPod::wire).collect();
    for wire in &wires {
        wire.collect(Duration::from_millis(20));
    }
    own.send(&ethernet(Mac::BROADCAST, a.mac(), 0x88b5, MARK));
    for (pod, wire) in others.iter().zip(&wires) {
        assert_eq!(marked(&wire.collect(SETTLE)), 1, "at {}", pod.index);
    }
    assert_eq!(marked(&own.collect(SETTLE)), 0, "and not at its sender");
}

#[test]
fn more_for_all_than_the_slice_allows_is_dropped() {
    let mut bed = Bed::with_programs(1, RATE);
    let (a, b) = (bed.add_pod(0, 5), bed.add_pod(0, 6));
    let slow = SliceRules {
        group_rate: 50,
        ..rules(RATE)
    };
    bed.nodes[0].programs().set_slice(SLICE, &slow).unwrap();
    let (from, to) = (a.wire(), b.wire());
    to.collect(Duration::from_millis(50));
    let before = dropped(&mut bed.nodes[0], Reason::Budget);
    let start = std::time::Instant::now();
    for _ in 0..500 {
        from.send(&ethernet(Mac::BROADCAST, a.mac(), 0x88b5, MARK));
    }
    let arrived = marked(&to.collect(SETTLE));
    let allowed = 51 + (start.elapsed().as_secs_f64() * 50.0) as usize;
    assert!(
        (40..=allowed).contains(&arrived),
        "{arrived} of at most {allowed}"
    );
    let dropped = dropped(&mut bed.nodes[0], Reason::Budget) - before;
    assert_eq!(dropped as usize, 500 - arrived);
    assert!(answers(&a, b.v4()), "unicast and ARP have no budget");
}

fn padded(frame: Vec<u8>) -> Vec<u8> {
    [frame, MARK.to_vec()].concat()
}

#[test]
fn no_disguise_helps_a_hostile_pod() {
    let mut bed = Bed::with_programs(2, RATE);
    let a = bed.add_pod(0, 5);
    let victims = [bed.add_pod(0, 6), bed.add_pod(1, 5)];
    let foreign: IpAddr = "10.80.0.13".parse().unwrap();
    for victim in &victims {
        let wire = victim.wire();
        let own = udp4(victim.mac(), (a.mac(), a.v4()), victim.v4(), MARK);
        assert!(passes(&a, &wire, &own), "control");
        let IpAddr::V6(victims_own) = victim.v6() else {
            panic!("IPv6")
        };
        let claim = [&[0x60, 0, 0, 0][..], &victims_own.octets()].concat();
        let attacks = [
            udp4(victim.mac(), (a.mac(), foreign), victim.v4(), MARK),
            udp4(victim.mac(), (Mac::of_index(13), a.v4()), victim.v4(), MARK),
            udp4(Mac::BROADCAST, (a.mac(), foreign), victim.v4(), MARK),
            ethernet(victim.mac(), Mac::of_index(13), 0x88b5, MARK),
            padded(arp_request(a.mac(), (a.mac(), foreign), victim.v4())),
            padded(arp_request(a.mac(), (Mac::of_index(13), a.v4()), victim.v4())),
            icmp6(a.mac(), "fe80::1".parse().unwrap(), 134, &[0; 12]),
            icmp6(a.mac(), a.v6(), 134, &[0; 12]),
            icmp6(a.mac(), a.v6(), 137, &[0; 36]),
            icmp6(a.mac(), a.v6(), 136, &claim),
            icmp6(a.mac(), "2001:db8::1".parse().unwrap(), 200, &[0; 4]),
        ];
        for attack in &attacks {
            for tags in [
                &[][..],
                &[0x8100],
                &[0x88a8],
                &[0x88a8, 0x8100],
                &[0x8100, 0x8100, 0x8100],
            ] {
                let frame = tagged(tags, attack);
                assert!(!passes(&a, &wire, &frame), "{tags:04x?} {attack:02x?}");
            }
        }
        assert!(
            !passes(&a, &wire, &tagged(&[0x8100], &own)),
            "a tag is not carried"
        );
    }
    assert!(
        dropped(&mut bed.nodes[0], Reason::Spoofed) > 0 && dropped(&mut bed.nodes[0], Reason::Tagged) > 0
    );
}

/// A node that sends what is not its own to send.
#[test]
fn a_node_speaks_for_its_own_pods() {
    let mut bed = Bed::with_programs(3, RATE);
    let a = bed.add_pod(0, 5);
    let liar = bed.add_pod(1, 6);
    // Node 1 believes that the pod has an index of node 2.
    let stolen = 2 * 64 + 6;
    let interface = bed.nodes[1].ports()[0];
    let port = Port {
        slice: SLICE,
        role: Role::Pod,
        index: stolen,
        class: 0,
    };
    let wire = a.wire();
    let honest = ethernet(a.mac(), liar.mac(), 0x88b5, MARK);
    assert!(passes(&liar, &wire, &honest), "control");
    bed.nodes[1].programs().set_port(interface, port).unwrap();
    let lie = ethernet(a.mac(), Mac::of_index(stolen), 0x88b5, MARK);
    assert!(!passes(&liar, &wire, &lie));
    assert_eq!(dropped(&mut bed.nodes[0], Reason::Spoofed), 1);
}

/// What the maps of the kernel are told, for the host.
struct Host(SliceEntry);

impl Tables for Host {
    fn slice(&self, number: u32) -> Option<Slice<'_>> {
        (number == SLICE).then_some(Slice(&self.0))
    }

    fn route(&self, _: u32, index: u32) -> Hop {
        match index {
            5 => Hop::port(1, 0),
            64..128 => Hop::node(address(1)),
            128..192 => Hop::cluster(9),
            _ => Hop::NOWHERE,
        }
    }

    fn exit(&self, _: u32, cluster: u32) -> Hop {
        if cluster == 9 {
            Hop::port(1, 0)
        } else {
            Hop::NOWHERE
        }
    }

    fn has_gateway(&self, _: u32, _: Ipv6Addr) -> bool {
        false
    }

    fn relay(&self, _: u32, _: u32) -> Hop {
        Hop::NOWHERE
    }
}

/// The fuzzer's corpus of frames and random ones, through the program in the kernel and the same code on the host.
#[test]
fn the_kernel_judges_as_the_host_does() {
    let mut programs = Programs::load(Limits {
        ports: 16,
        slices: 16,
        routes: 64,
    })
    .unwrap();
    programs.set_slice(SLICE, &rules(RATE)).unwrap();
    for (start, size, route) in [
        (5, 1, Hop::port(1, 0)),
        (64, 64, Hop::node(address(1))),
        (128, 64, Hop::cluster(9)),
    ] {
        programs
            .set_route(SLICE, IndexRange::new(start, size), route)
            .unwrap();
    }
    programs.set_exit(SLICE, Some(9), Hop::port(1, 0)).unwrap();
    programs.set_members(SLICE, []).unwrap();
    programs
        .set_tunnel(Tunnel {
            to_pods: 1,
            to_gateways: 1,
            local: address(0),
        })
        .unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../slice-gateway/fuzz/corpus/frame");
    let mut frames: Vec<Vec<u8>> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        // The first byte is the fuzz target's.
        .map(|bytes| bytes.get(1..).unwrap_or_default().to_vec())
        .collect();
    assert!(frames.len() > 50);
    frames.extend((0..2000).map(generated));
    // What test runs see: the interface that all packets of a test come by.
    let interface = 1;
    let host = Host(rules(RATE).entry());
    let roles = [
        (Role::Pod, 70),
        (Role::Pod, 5),
        (Role::Router, 70),
        (Role::Gateway, 0),
    ];
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for (role, index) in roles {
        let port = Port {
            slice: SLICE,
            role,
            index,
            class: 0,
        };
        programs.set_port(interface, port).unwrap();
        for frame in frames.iter().filter(|frame| is_runnable(frame)) {
            let expected = match Frame::read(&frame[..]) {
                Ok(read) => judge(&frame[..], &read, &Origin::port(port), &host),
                Err(_) => Verdict::drop(Reason::Unreadable),
            };
            let reasons: Vec<u64> = counts(&mut programs);
            let mut out = vec![0; frame.len().max(128)];
            let result = programs
                .program(Program::FromPort)
                .test_run(TestRunOptions {
                    data_in: Some(frame),
                    data_out: Some(&mut out),
                    ..TestRunOptions::default()
                })
                .unwrap();
            let after = counts(&mut programs);
            let counted: Vec<usize> = (0..after.len()).filter(|n| after[*n] > reasons[*n]).collect();
            let context = format!("{port:?} {expected:?} {frame:02x?}");
            let number = expected.number;
            let what = match expected.action {
                Action::Drop => {
                    assert_eq!(result.return_value, 2, "{context}");
                    assert_eq!(counted, [number as usize], "{context}");
                    Reason::ALL[number as usize].label()
                }
                Action::CopyToAll | Action::CopyToCluster | Action::CopyToPods => {
                    // The budget of a second is soon used up.
                    assert_eq!(result.return_value, 2, "{context}");
                    "group"
                }
                Action::Answer => {
                    assert_eq!(result.return_value, 7, "{context}");
                    assert_answers(frame, &out, number)
                }
                Action::Pod | Action::Gateway | Action::Node | Action::NodeGateway => {
                    assert_eq!(result.return_value, 7, "{context}");
                    assert_eq!(counted, [Reason::ALL.len()], "{context}");
                    "passed"
                }
            };
            *seen.entry(what.to_owned()).or_default() += 1;
        }
    }
    for what in [
        "passed",
        "group",
        "arp",
        "nd",
        "spoofed",
        "tagged",
        "unreadable",
        "router",
        "neighbour",
    ] {
        assert!(seen.get(what).is_some_and(|count| *count > 3), "{what}: {seen:?}");
    }
}

/// The kernel runs programs on whole headers with something behind them only.
fn is_runnable(frame: &[u8]) -> bool {
    let least = match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 15,
    };
    frame.len() >= least
}

/// Whether `out` is what is to be answered to the question `frame` for this index, and by which protocol.
fn assert_answers(frame: &[u8], out: &[u8], index: u32) -> &'static str {
    let read = Frame::read(frame).unwrap();
    if let Some(arp) = read.arp() {
        let mut reply = [0; slice_frame::arp::REPLY];
        arp.answer(Mac::of_index(index), &mut reply);
        assert_eq!(out[..reply.len()], reply, "{frame:02x?}");
        return "arp";
    }
    let mut reply = [0; slice_frame::nd::REPLY];
    let solicitation = Solicitation::read(frame, &read).unwrap();
    solicitation.answer(Mac::of_index(index), &mut reply);
    assert_eq!(out[..reply.len()], reply, "{frame:02x?}");
    "nd"
}

fn counts(programs: &mut Programs) -> Vec<u64> {
    let reasons = Reason::ALL.map(Some).into_iter().chain([None]);
    reasons.map(|reason| counted(programs, reason)).collect()
}

/// A frame that is nearly right: of a pod or a peer cluster, to somebody, with one thing or two changed.
fn generated(seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let source = [70, 5, 130, 71][next(4) as usize];
    let target = [5, 66, 130, 9, 400][next(5) as usize];
    let to = match next(4) {
        0 => Mac::BROADCAST,
        _ => Mac::of_index(target),
    };
    let (own, asked): (Ipv4Addr, Ipv4Addr) = (
        Ipv4Addr::new(10, 80, 0, source as u8),
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 80, 0, 0).to_bits() + target),
    );
    let from = Mac::of_index(source);
    let mut v6 = |kind: u8| {
        let message = [
            &[kind, 0, 0, 0, 0, 0, 0, 0][..],
            &format!("fd42::{target:x}").parse::<Ipv6Addr>().unwrap().octets(),
        ]
        .concat();
        let options = [0, 0, 0, 0, 0, 1, 2, 7, 8, 9][next(10) as usize];
        let chain: Vec<u8> = (0..options)
            .flat_map(|n| [if n + 1 < options { 60 } else { 58 }, 0, 1, 4, 0, 0, 0, 0])
            .collect();
        let mut packet = vec![0x60, 0, 0, 0, 0, (chain.len() + message.len()) as u8];
        packet.extend([if options > 0 { 60 } else { 58 }, 255]);
        packet.extend(format!("fd42::{source:x}").parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("ff02::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(chain);
        packet.extend(message);
        ethernet(to, from, 0x86dd, &packet)
    };
    let mut frame = match seed % 6 {
        0 => udp4(to, (from, own.into()), asked.into(), MARK),
        1 => arp_request(from, (from, own.into()), asked.into()),
        2 => v6(135),
        3 => v6(134),
        4 => v6(128),
        _ => ethernet(to, from, 0x88b5, MARK),
    };
    if seed.is_multiple_of(5) {
        let kind: [u8; 2] = if seed.is_multiple_of(2) {
            [0x81, 0]
        } else {
            [0x88, 0xa8]
        };
        frame.splice(12..12, [kind[0], kind[1], 0, (seed % 3) as u8]);
    }
    if seed.is_multiple_of(7) {
        let at = 12 + (u64::from(seed) * 31 % (frame.len() as u64 - 12)) as usize;
        frame[at] ^= 1 << (seed % 8);
    }
    if seed.is_multiple_of(11) {
        frame.truncate(14 + (seed as usize * 13) % (frame.len() - 14));
    }
    frame
}
