//! Gateways of several threads.

use std::collections::BTreeMap;

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{Mac as _, consts::U16},
};
use slice_frame::Mac;
use slice_gateway::proto::Reason;

use crate::{
    forge,
    world::{MS, ODD, World, frame, udp},
};

/// A settled world of two clusters with one gateway each, of so many threads.
fn settled(seed: u64, threads: (u8, u8)) -> World {
    let mut world = World::with_threads(seed, &[(1, threads.0), (1, threads.1)]);
    world.settle();
    // The lanes that one end has more than the other come up on their own.
    world.run(MS * 1000);
    world
}

/// Sends flows both ways; each frame must arrive exactly once.
fn exchange(world: &mut World, flows: std::ops::Range<u16>) {
    for port in flows {
        for (from, to) in [(1, 65), (65, 1)] {
            let sender = if from < 64 { "a/0" } else { "b/0" };
            let frame = udp(from, to, port, &port.to_be_bytes());
            world.inject(sender, &frame);
            world.run(MS * 5);
            let counts = world.collect(&frame);
            let expected =
                ["a", "b"].map(|cluster| (cluster.to_owned(), usize::from((cluster == "a") == (to < 64))));
            assert_eq!(counts, BTreeMap::from(expected), "flow {port} from {from}");
        }
    }
}

/// Frames that each lane has sent.
fn sent(world: &World, name: &str) -> Vec<u64> {
    let lanes = &world.nodes[name].gateway.lanes;
    let sent = |stats: slice_gateway::proto::Stats| stats.peers.iter().map(|peer| peer.sent.frames).sum();
    lanes.iter().map(|lane| sent(lane.stats(world.now))).collect()
}

#[test]
fn lanes_of_any_number_carry_all_flows() {
    for (seed, threads) in (200..).zip([(1, 1), (1, 4), (4, 1), (2, 3), (4, 4), (16, 5), (16, 16)]) {
        let mut world = settled(seed, threads);
        exchange(&mut world, 0..200);
        for (name, threads) in [("a/0", threads.0), ("b/0", threads.1)] {
            let sent = sent(&world, name);
            assert_eq!(sent.iter().sum::<u64>(), 200, "{threads:?}");
            let share = 200 / u64::from(threads);
            assert!(sent.iter().all(|sent| *sent > share / 4), "{threads:?}: {sent:?}");
            let stats = world.stats(name);
            // Sixteen handshakes at once are more than a peer has free.
            let odd = |(reason, _): &(Reason, u64)| *reason != Reason::CookieSent;
            let drops: Vec<_> = stats.drops.iter().chain(stats.peers[0].drops.iter()).collect();
            assert!(!drops.iter().any(odd), "{threads:?}: {drops:?}");
            assert_eq!(stats.peers[0].received.frames, 200);
        }
    }
}

#[test]
fn lanes_go_on_for_hours() {
    let mut world = settled(210, (4, 2));
    for _ in 0..20 {
        world.run(MS * 400_000);
        assert!(world.is_settled());
        exchange(&mut world, 0..8);
    }
    // A handshake for each of four tunnels in 110 s and a little, over 8000 s, and none in vain.
    let handshakes = world.stats("a/0").peers[0].handshakes;
    assert!((280..=300).contains(&handshakes), "{handshakes}");
}

#[test]
fn a_peer_may_come_back_with_another_number_of_threads() {
    let mut world = settled(211, (4, 2));
    for threads in [1, 3, 8, 4] {
        world.restart_with("b/0", threads);
        world.configure();
        world.settle();
        world.run(MS * 6000);
        exchange(&mut world, 0..40);
    }
}

#[test]
fn a_path_that_works_one_way_is_noticed_in_every_lane() {
    let mut world = World::with_threads(212, &[(1, 3), (2, 2)]);
    world.settle();
    world.cut("a/0", "b/1");
    world.run(MS * 500);
    for lane in &world.nodes["a/0"].gateway.lanes {
        let up: Vec<_> = lane.stats(world.now).peers.iter().map(|peer| peer.up).collect();
        assert_eq!(up, [true, false]);
    }
    let counts = |world: &mut World| {
        let frame = udp(1, 65, 7, b"x");
        world.inject("a/0", &frame);
        world.run(MS * 5);
        world.collect(&frame)["b"]
    };
    assert_eq!(counts(&mut world), 1);
}

#[test]
fn a_renewal_loses_nothing_in_any_lane() {
    for (seed, threads) in (220..).zip([(3, 3), (4, 1), (1, 4)]) {
        let mut world = settled(seed, threads);
        let before = world.nodes["a/0"].gateway.keys();
        world.policy.renewal = Some("1".into());
        for _ in 0..100 {
            world.configure();
            exchange(&mut world, 0..16);
        }
        let keys: Vec<_> = world.nodes["a/0"]
            .gateway
            .lanes
            .iter()
            .map(|lane| lane.keys())
            .collect();
        assert!(keys.iter().all(|key| *key == keys[0]), "all lanes have one key");
        assert_ne!(keys[0].current, before.current);
        assert_eq!(keys[0].former, None, "{threads:?}");
        let drops = world.stats("a/0").drops;
        assert_eq!(drops.of(Reason::NoTunnel), 0);
    }
}

#[test]
fn a_revocation_reaches_every_lane() {
    let mut world = settled(230, (4, 2));
    let before = world.nodes["a/0"].gateway.keys();
    world.policy.revocation = Some("1".into());
    for _ in 0..40 {
        world.configure();
        world.run(MS * 50);
    }
    world.settle();
    world.run(MS * 1000);
    for lane in &world.nodes["a/0"].gateway.lanes {
        let keys = lane.keys();
        assert_ne!(keys.current, before.current);
        assert_eq!((keys.former, keys.revocation.as_deref()), (None, Some("1")));
    }
    exchange(&mut world, 0..40);
}

/// Cluster c is a host outside the others: it has one tunnel to each gateway, whichever lane a flow is in.
#[test]
fn a_host_outside_is_reached_from_every_lane() {
    let mut world = World::with_threads(240, &[(1, 4), (1, 2), (1, 1)]);
    world.outside.insert("c".into());
    world.configure();
    world.settle();
    world.run(MS * 1000);
    for port in 0..100 {
        for (sender, from, to) in [("a/0", 1, 129), ("c/0", 129, 1)] {
            let frame = udp(from, to, port, &port.to_be_bytes());
            world.inject(sender, &frame);
            world.run(MS * 5);
            let counts = world.collect(&frame);
            let total: usize = counts.values().sum();
            assert_eq!((total, counts[if to == 1 { "a" } else { "c" }]), (1, 1));
        }
    }
    // Broadcast of any flow reaches each exactly once.
    for n in 0..64u8 {
        let frame = frame(1 + u32::from(n) % 32, Mac::BROADCAST, ODD + u16::from(n), &[n]);
        world.inject("a/0", &frame);
        world.run(MS * 5);
        assert_eq!(
            world.collect(&frame).into_iter().collect::<Vec<_>>(),
            [("a", 0), ("b", 1), ("c", 1)].map(|(cluster, count)| (cluster.to_owned(), count))
        );
    }
    assert_eq!(world.stats("a/0").reach.outside, 1);
    assert_eq!(world.stats("a/0").reach.reached, 1);
}

/// Somebody on the way takes the initiation of one lane for another one, which has not seen it and so cannot know that
/// it is old. He gets an answer that is no use to him, and nothing goes another way.
#[test]
fn a_recorded_initiation_moves_no_other_lane() {
    let mut world = settled(250, (2, 2));
    let (victim, mut forged) = recorded_initiation(&world);
    let responder = world.nodes[victim].gateway.keys().current;
    forged[5] |= 1;
    let mac = mac1(&responder, &forged);
    forged[116..132].copy_from_slice(&mac);
    let thief = "203.0.113.9:9".parse().unwrap();
    assert_eq!(world.offer(victim, thief, &forged), 92, "it is answered");
    for lane in &world.nodes[victim].gateway.lanes {
        let endpoint = lane.stats(world.now).peers[0].endpoint.unwrap();
        assert_ne!(endpoint, thief);
    }
    assert_eq!(world.offer(victim, thief, &forged), 0, "once");
    exchange(&mut world, 0..40);
}

/// Whoever knows the public keys of two gateways can write an initiation in the name of one to the other, which fails
/// only where it is authenticated. It must leave nothing behind: neither a tunnel, nor the work to keep one.
#[test]
fn a_stranger_in_a_peers_name_leaves_nothing() {
    let mut world = settled(251, (1, 1));
    let [victim, claimed] = ["a/0", "b/0"].map(|name| world.nodes[name].gateway.keys().current);
    let before = world.stats("a/0").drops.of(Reason::UnknownSession);
    for lane in 1..16 {
        let forged = forge::initiation(&victim, &claimed, lane << 8);
        let stranger = "203.0.113.9:9".parse().unwrap();
        assert_eq!(world.offer("a/0", stranger, &forged), 0, "no answer");
        world.run(MS * 100);
    }
    assert_eq!(guests(&world), 0);
    assert_eq!(world.stats("a/0").drops.of(Reason::UnknownSession), before);
    exchange(&mut world, 0..40);
}

/// A recorded initiation is authentic, and what it leaves must go again.
#[test]
fn what_a_recorded_initiation_leaves_goes() {
    let mut world = settled(252, (1, 1));
    let (responder, recorded) = recorded_initiation(&world);
    let victim = world.nodes[responder].gateway.keys().current;
    for lane in 1..16 {
        let mut forged = recorded.clone();
        forged[5] |= lane;
        let mac = mac1(&victim, &forged);
        forged[116..132].copy_from_slice(&mac);
        world.offer(responder, "203.0.113.9:9".parse().unwrap(), &forged);
        world.run(MS * 100);
    }
    let left = guests(&world);
    assert!(left > 0, "the recorded ones were taken");
    world.run(MS * 12_000);
    assert_eq!(guests(&world), 0);
    exchange(&mut world, 0..40);
}

/// A peer that comes back with fewer threads leaves no tunnels of the others for long.
#[test]
fn tunnels_that_a_peer_begins_no_more_go() {
    let mut world = settled(253, (1, 4));
    assert_eq!(guests(&world), 3);
    world.restart_with("b/0", 1);
    world.configure();
    world.settle();
    world.run(MS * 12_000);
    assert_eq!(guests(&world), 0);
    exchange(&mut world, 0..40);
}

/// Peers that gateways keep only because somebody else began a tunnel.
fn guests(world: &World) -> usize {
    let lanes = world.nodes.values().flat_map(|node| &node.gateway.lanes);
    lanes.map(slice_gateway::proto::Gateway::guests).sum()
}

/// An initiation of a lane 0 that was on the wire, and whom it is for.
fn recorded_initiation(world: &World) -> (&'static str, Vec<u8>) {
    let mut initiations =
        (world.wire.iter()).filter(|datagram| datagram.len() == 148 && datagram[5] & 0xf == 0);
    let found = initiations.find_map(|datagram| {
        let mut names = ["a/0", "b/0"].into_iter();
        let is_for = |name: &&str| {
            let key = world.nodes[*name].gateway.keys().current;
            mac1(&key, datagram) == datagram[116..132]
        };
        Some((names.find(is_for)?, datagram.clone()))
    });
    found.expect("an initiation")
}

/// The first authenticator of a handshake message (WireGuard paper §5.4.4).
pub(crate) fn mac1(responder: &[u8; 32], message: &[u8]) -> Vec<u8> {
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(responder)
        .finalize();
    let mac = Blake2sMac::<U16>::new_from_slice(&key).expect("a key of 32 bytes");
    mac.chain_update(&message[..116]).finalize().into_bytes().to_vec()
}
