//! Whole networks of gateways under a virtual clock.

#![expect(clippy::unwrap_used, reason = "a helper that fails should fail its test")]

mod drain;
mod forge;
mod keys;
mod lanes;
mod machine;
#[allow(dead_code, reason = "shared with the fuzz targets")]
mod world;

use std::{collections::BTreeMap, net::SocketAddr};

use slice_frame::Mac;
use slice_gateway::proto::{Config, Event, Reason};
use world::{CALM, MS, MTU, ODD, STORM, World, frame, udp};

fn counts<const N: usize>(expected: [(&str, usize); N]) -> BTreeMap<String, usize> {
    expected
        .map(|(cluster, count)| (cluster.to_owned(), count))
        .into()
}

/// How many frames were delivered, anywhere; forgets them.
fn delivered(world: &mut World) -> usize {
    world
        .nodes
        .values_mut()
        .map(|node| node.delivered.drain(..).count())
        .sum()
}

/// Which gateway brings each of fifty flows from a to b.
fn places(world: &mut World) -> Vec<String> {
    let mut places = Vec::new();
    for port in 0..50 {
        world.inject("a/0", &udp(5, 70, port, b"where?"));
        world.run(MS * 5);
        let place = world.nodes.iter().find(|(_, node)| !node.delivered.is_empty());
        places.push(place.map(|(name, _)| name.clone()).unwrap());
        delivered(world);
    }
    places
}

#[test]
fn a_frame_reaches_the_cluster_of_its_destination() {
    let mut world = World::new(1, &[2, 2, 2]);
    world.settle();
    for (to, cluster) in [(70, "b"), (130, "c")] {
        let frame = frame(5, Mac::of_index(to), ODD, b"to one");
        world.inject("a/0", &frame);
        world.run(MS * 10);
        let mut expected = counts([("a", 0), ("b", 0), ("c", 0)]);
        expected.insert(cluster.to_owned(), 1);
        assert_eq!(world.collect(&frame), expected);
    }
}

#[test]
fn a_full_frame_with_a_tag_passes_and_a_longer_one_does_not() {
    let mut world = World::new(2, &[1, 1]);
    world.settle();
    let full = frame(5, Mac::of_index(70), ODD, &vec![7; usize::from(MTU) + 4]);
    let long = frame(5, Mac::of_index(70), ODD, &vec![7; usize::from(MTU) + 5]);
    world.inject("a/0", &full);
    world.inject("a/0", &long);
    world.run(MS * 10);
    assert_eq!(world.collect(&full), counts([("a", 0), ("b", 1)]));
    assert_eq!(world.stats("a/0").drops.of(Reason::FrameTooLong), 1);
}

#[test]
fn a_broadcast_arrives_once_in_every_other_cluster() {
    for gateways in [[1, 1, 1], [1, 2, 3], [4, 4, 4]] {
        let mut world = World::new(3, &gateways);
        world.settle();
        for n in 0..64u8 {
            let sent = frame(5, Mac::BROADCAST, ODD, &[n]);
            world.inject(&format!("a/{}", u32::from(n) % gateways[0]), &sent);
            world.run(MS * 5);
            assert_eq!(world.collect(&sent), counts([("a", 0), ("b", 1), ("c", 1)]));
        }
    }
}

#[test]
fn a_broadcast_arrives_at_most_once_in_a_storm() {
    let mut world = World::new(4, &[2, 3, 2]);
    world.settle();
    world.weather = STORM;
    let mut arrived = 0;
    for n in 0..500u16 {
        let sent = frame(5, Mac::BROADCAST, ODD, &n.to_be_bytes());
        world.inject("a/1", &sent);
        world.run(MS * 30);
        for (cluster, count) in world.collect(&sent) {
            assert!(count <= 1, "{cluster} got broadcast {n} {count} times");
            arrived += count;
        }
    }
    // Ten in a hundred are lost, and nothing else loses any.
    assert!((850..=950).contains(&arrived), "{arrived} of 1000 arrived");
}

#[test]
fn what_came_over_the_wan_stays() {
    let mut world = World::new(5, &[2, 2, 2]);
    world.settle();
    let sent = frame(5, Mac::BROADCAST, ODD, b"once");
    world.inject("a/0", &sent);
    world.run(MS * 10);
    assert_eq!(world.collect(&sent), counts([("a", 0), ("b", 1), ("c", 1)]));
    // The bridges of b and c hand the frame to their other gateway as well.
    for name in ["b/0", "b/1", "c/0", "c/1"] {
        world.inject(name, &sent);
        assert_eq!(world.stats(name).drops.of(Reason::ForeignSource), 1);
    }
    world.run(MS * 100);
    assert_eq!(world.collect(&sent), counts([("a", 0), ("b", 0), ("c", 0)]));
}

#[test]
fn a_cluster_cannot_speak_for_another() {
    let mut world = World::new(6, &[1, 1, 1]);
    world.settle();
    // Gateway a is made to believe that c's range is its own, and that the slice has other addresses.
    let mut config = world.config_of("a/0");
    config.subnets = vec!["10.81.0.0/16".parse().unwrap()];
    config.ranges.push(config.peers[1].ranges[0]);
    config.peers[1].ranges.clear();
    let (config, _) = Config::new(&config).unwrap();
    let now = world.now;
    world.node("a/0").gateway.reconfigure(now, &config);
    let spoofed = frame(130, Mac::of_index(70), ODD, b"I am c");
    let stolen_address = {
        let mut frame = udp(5, 70, 9, b"I am elsewhere");
        frame[27] = 81;
        frame
    };
    world.inject("a/0", &spoofed);
    world.inject("a/0", &stolen_address);
    world.run(MS * 10);
    assert_eq!(world.collect(&spoofed)["b"], 0);
    let drops = world.stats("b/0").peers[0].drops;
    assert_eq!(
        (drops.of(Reason::SpoofedSource), drops.of(Reason::SpoofedAddress)),
        (1, 1)
    );
}

#[test]
fn neighbours_are_answered_without_asking_the_other_cluster() {
    let mut world = World::new(7, &[1, 1]);
    world.settle();
    let before = world.wire.len();
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend(Mac::of_index(5).0);
    request.extend([10, 80, 0, 5, 0, 0, 0, 0, 0, 0, 10, 80, 0, 70]);
    world.inject("a/0", &frame(5, Mac::BROADCAST, 0x0806, &request));
    assert_eq!(world.wire.len(), before);
    let answers = std::mem::take(&mut world.node("a/0").delivered);
    assert_eq!(answers.len(), 1);
    assert_eq!(
        answers[0][..12],
        [Mac::of_index(5).0, Mac::of_index(70).0].concat()
    );
    assert_eq!(answers[0][20..28], [0, 2, 0x02, 0x5c, 0, 0, 0, 70]);
}

#[test]
fn packets_of_a_flow_stay_in_order() {
    let mut world = World::new(8, &[3, 3]);
    world.settle();
    for port in 0..20 {
        for n in 0..50u8 {
            world.inject("a/0", &udp(5, 70, port, &[n]));
        }
        world.run(MS * 5);
        let busy: Vec<_> = world
            .nodes
            .values()
            .filter(|node| !node.delivered.is_empty())
            .collect();
        assert_eq!(busy.len(), 1, "flow {port} took one tunnel");
        let order: Vec<u8> = busy[0].delivered.iter().map(|frame| frame[42]).collect();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
        world.nodes.values_mut().for_each(|node| node.delivered.clear());
    }
}

#[test]
fn flows_spread_over_all_tunnels() {
    let mut world = World::new(9, &[1, 4]);
    world.settle();
    for port in 0..400 {
        world.inject("a/0", &udp(5, 70, port, b""));
    }
    world.run(MS * 5);
    for (name, node) in world.nodes.iter().filter(|(name, _)| name.starts_with('b')) {
        assert!(
            (60..140).contains(&node.delivered.len()),
            "{name} got {} of 400",
            node.delivered.len()
        );
    }
}

/// Sends one frame of each of 40 flows every 10 ms and returns for how long any of them was interrupted.
fn longest_gap(world: &mut World, duration_ms: u32) -> u32 {
    let (mut last, mut longest) = ([0; 40], 0);
    for ms in (0..duration_ms).step_by(10) {
        for port in 0..40 {
            world.inject("a/0", &udp(5, 70, port, &ms.to_be_bytes()));
        }
        world.run(MS * 10);
        for node in world.nodes.values_mut() {
            for frame in node.delivered.drain(..) {
                let port = usize::from(u16::from_be_bytes([frame[34], frame[35]]));
                let sent = u32::from_be_bytes(frame[42..46].try_into().unwrap());
                last[port] = last[port].max(sent + 10);
            }
        }
        longest = last
            .iter()
            .map(|last| ms + 10 - last.min(&(ms + 10)))
            .max()
            .unwrap()
            .max(longest);
    }
    longest
}

#[test]
fn a_dead_gateway_is_routed_round_within_half_a_second() {
    for seed in 10..30 {
        let mut world = World::new(seed, &[1, 3]);
        world.settle();
        assert_eq!(longest_gap(&mut world, 300), 0);
        world.node("b/1").alive = false;
        let gap = longest_gap(&mut world, 2000);
        assert!(gap > 0 && gap < 450, "seed {seed}: {gap} ms");
        let down = Event::Down { peer: "b/1".into() };
        assert_eq!(
            world.nodes["a/0"]
                .events
                .iter()
                .filter(|event| **event == down)
                .count(),
            1
        );
    }
}

#[test]
fn a_path_that_works_one_way_is_routed_round_within_half_a_second() {
    for (from, to) in [("a/0", "b/1"), ("b/1", "a/0")] {
        for seed in 30..40 {
            let mut world = World::new(seed, &[1, 3]);
            world.settle();
            world.run(MS * 500);
            world.cut(from, to);
            let gap = longest_gap(&mut world, 2000);
            assert!(gap < 450, "seed {seed}, {from} to {to}: {gap} ms");
            // And it is used again when it works again.
            world.cuts.clear();
            world.run(MS * 8000);
            assert!(world.stats("a/0").peers.iter().all(|peer| peer.up));
        }
    }
}

#[test]
fn the_last_tunnel_is_used_even_when_it_looks_dead() {
    let mut world = World::new(40, &[1, 1]);
    world.settle();
    world.run(MS * 500);
    world.cut("b/0", "a/0");
    world.run(MS * 2000);
    assert!(!world.stats("a/0").peers[0].up);
    let sent = frame(5, Mac::of_index(70), ODD, b"anybody there?");
    world.inject("a/0", &sent);
    world.run(MS * 10);
    assert_eq!(world.collect(&sent)["b"], 1);
}

#[test]
fn a_gateway_that_restarts_has_a_new_key_and_joins_again() {
    let mut world = World::new(41, &[2, 2]);
    world.settle();
    world.restart("b/0");
    world.configure();
    world.settle();
    let sent = frame(5, Mac::BROADCAST, ODD, b"welcome back");
    world.inject("a/0", &sent);
    world.run(MS * 10);
    assert_eq!(world.collect(&sent), counts([("a", 0), ("b", 1)]));
}

#[test]
fn a_new_configuration_keeps_sessions() {
    let mut world = World::new(42, &[2, 2, 1]);
    world.settle();
    world.run(MS * 500);
    let handshakes = |world: &World| -> BTreeMap<String, u64> {
        let up = world.stats("a/0").peers.into_iter().filter(|peer| peer.up);
        up.map(|peer| (peer.name, peer.handshakes)).collect()
    };
    let mut before = handshakes(&world);
    world.nodes.remove("c/0");
    world.configure();
    world.run(MS * 100);
    before.remove("c/0");
    assert_eq!(before.keys().collect::<Vec<_>>(), ["b/0", "b/1"]);
    assert_eq!(handshakes(&world), before);
}

#[test]
fn a_peer_is_where_its_last_authentic_datagram_came_from() {
    let mut world = World::new(43, &[1, 1]);
    world.settle();
    let moved: SocketAddr = "203.0.113.9:4000".parse().unwrap();
    world.node("b/0").gateway.address = moved;
    world.run(MS * 400);
    assert_eq!(world.stats("a/0").peers[0].endpoint, Some(moved));
    // Garbage from elsewhere does not move it, nor does a replay.
    let (replay, to) = (
        world.wire.last().unwrap().clone(),
        world.nodes["a/0"].gateway.address,
    );
    world.transmit("198.51.100.1:1".parse().unwrap(), to, replay);
    world.transmit("198.51.100.1:1".parse().unwrap(), to, vec![4; 200]);
    world.run(MS * 10);
    assert_eq!(world.stats("a/0").peers[0].endpoint, Some(moved));
    let sent = frame(5, Mac::of_index(70), ODD, b"follow");
    world.inject("a/0", &sent);
    world.run(MS * 10);
    assert_eq!(world.collect(&sent)["b"], 1);
}

#[test]
fn a_silent_peer_is_looked_for_where_it_is_configured() {
    let mut world = World::new(44, &[1, 1]);
    // Only a can call: b is not told where a is.
    let mut config = world.config_of("b/0");
    config.peers[0].gateways[0].endpoints.clear();
    let (config, _) = Config::new(&config).unwrap();
    let now = world.now;
    world.node("b/0").gateway.reconfigure(now, &config);
    let home = world.nodes["b/0"].gateway.address;
    world.settle();
    world.node("b/0").gateway.address = "203.0.113.9:4000".parse().unwrap();
    world.run(MS * 400);
    // Both move, so that neither is where the other heard it last.
    world.node("b/0").gateway.address = home;
    world.node("a/0").gateway.address = "203.0.113.10:4000".parse().unwrap();
    world.run(MS * 8000);
    assert_eq!(world.stats("a/0").peers[0].endpoint, Some(home));
    assert!(world.stats("a/0").peers[0].up);
}

/// Tells a gateway that its first peer is reached there, and nowhere else.
fn tell(world: &mut World, name: &str, endpoints: &[&str]) {
    let mut config = world.config_of(name);
    config.peers[0].gateways[0].endpoints = endpoints.iter().map(|text| text.parse().unwrap()).collect();
    let (config, _) = Config::new(&config).unwrap();
    let now = world.now;
    world.node(name).gateway.reconfigure(now, &config);
}

#[test]
fn flows_go_on_while_it_changes_what_leads_to_a_peer() {
    for seed in 45..50 {
        let mut world = World::new(seed, &[1, 1]);
        world.settle();
        assert_eq!(longest_gap(&mut world, 300), 0);
        // Somewhere else, nowhere any more, and where it was.
        let home = world.nodes["b/0"].gateway.address.to_string();
        for endpoints in [["203.0.113.9:51820"].as_slice(), &[], &[home.as_str()], &[]] {
            tell(&mut world, "a/0", endpoints);
            assert_eq!(longest_gap(&mut world, 1000), 0, "{endpoints:?}");
        }
        // What led there is gone: the peer is reached as it is heard.
        world.node("b/0").gateway.address = "203.0.113.9:4000".parse().unwrap();
        let gap = longest_gap(&mut world, 2000);
        assert!(gap > 0 && gap < 450, "seed {seed}: {gap} ms");
    }
}

#[test]
fn a_peer_is_found_at_whichever_of_its_endpoints_leads_there() {
    for seed in 45..50 {
        let mut world = World::new(seed, &[1, 1]);
        let home = world.nodes["b/0"].gateway.address.to_string();
        // It has nowhere to call itself.
        tell(&mut world, "b/0", &[]);
        tell(&mut world, "a/0", &["10.0.0.5:30000", &home]);
        let begun = world.now;
        world.settle();
        assert!(world.now - begun < MS * 2500, "{:?}", world.now - begun);
    }
}

#[test]
fn a_mark_on_the_way_reaches_the_frame() {
    let mut world = World::new(51, &[1, 1]);
    world.settle();
    let with = |ecn: u8| {
        let mut frame = udp(5, 70, 9, b"marked?");
        frame[15] |= ecn;
        frame
    };
    for (sent, outer, expected) in [
        (2, 2, Some(2)),
        (2, 3, Some(3)),
        (0, 0, Some(0)),
        (0, 3, None),
        (3, 2, Some(3)),
    ] {
        world.node("b/0").delivered.clear();
        world.marks = Some(outer);
        world.inject("a/0", &with(sent));
        world.run(MS * 5);
        world.marks = None;
        let got = world.node("b/0").delivered.pop().map(|frame| frame[15]);
        assert_eq!(got, expected, "{sent} within {outer}");
    }
    assert_eq!(world.stats("b/0").peers[0].drops.of(Reason::Congested), 1);
    world.inject("a/0", &with(2));
    assert_eq!(world.last_ecn, 2, "the datagram takes the frame's mark");
}

#[test]
fn sessions_are_renewed_without_a_lost_frame() {
    let mut world = World::new(45, &[1, 1]);
    world.settle();
    for second in 0..600u32 {
        let sent = frame(5, Mac::of_index(70), ODD, &second.to_be_bytes());
        world.inject("a/0", &sent);
        world.run(MS * 1000);
        assert_eq!(world.collect(&sent)["b"], 1, "second {second}");
    }
    let stats = world.stats("a/0");
    assert!(
        (5..=8).contains(&stats.peers[0].handshakes),
        "{} handshakes in 600 s",
        stats.peers[0].handshakes
    );
}

/// Datagrams a second over so many seconds, in both directions.
fn rate(world: &mut World, seconds: usize) -> usize {
    let before = world.wire.len();
    world.run(MS * 1000 * seconds as u32);
    (world.wire.len() - before) / seconds
}

#[test]
fn an_idle_tunnel_costs_a_probe_in_two_seconds() {
    let mut world = World::new(46, &[1, 1]);
    world.settle();
    world.run(MS * 1000);
    // Each side asks ten times a second and answers ten times: at first, and when frames go either way.
    let fast = 38..=42;
    assert!(fast.contains(&rate(&mut world, 8)));
    for (from, to, sender) in [(5, 70, "a/0"), (70, 5, "b/0")] {
        world.run(MS * 3000);
        let idle = rate(&mut world, 30);
        assert!((2..=3).contains(&idle), "{idle} datagrams a second");
        world.inject(sender, &udp(from, to, 1, b"wake"));
        assert!(fast.contains(&rate(&mut world, 9)));
    }
    assert!(world.nodes.values().all(|node| {
        let mut events = node.events.iter();
        !events.any(|event| matches!(event, Event::Down { .. }))
    }));
}

#[test]
fn a_path_that_died_asleep_is_left_within_half_a_second_of_the_first_frame() {
    for (seed, cut) in (70..90).zip(
        [
            &[("a/0", "b/1")][..],
            &[("b/1", "a/0")],
            &[("a/0", "b/1"), ("b/1", "a/0")],
        ]
        .into_iter()
        .cycle(),
    ) {
        let mut world = World::new(seed, &[1, 3]);
        world.settle();
        world.run(MS * 20_000);
        for (from, to) in cut {
            world.cut(from, to);
        }
        world.run(MS * 200);
        let gap = longest_gap(&mut world, 2000);
        assert!(gap < 450, "seed {seed}, {cut:?}: {gap} ms");
    }
}

#[test]
fn nobody_is_taken_for_dead_when_the_pace_changes() {
    let mut world = World::new(91, &[2, 2]);
    world.settle();
    world.weather.jitter = MS * 60;
    world.weather.loss = 20;
    for round in 0..60u32 {
        world.inject("a/0", &udp(5, 70, round as u16, b"wake"));
        world.inject("b/1", &udp(70, 5, round as u16, b"wake"));
        world.run(MS * (9_800 + round * 10));
    }
    for (name, node) in &world.nodes {
        let down: Vec<_> = node
            .events
            .iter()
            .filter(|event| matches!(event, Event::Down { .. }))
            .collect();
        assert!(down.is_empty(), "{name}: {down:?}");
    }
}

/// A gateway stands still, what comes meanwhile waits as far as its socket has room, and all is read before it judges.
#[test]
fn who_stood_still_takes_nobody_for_dead() {
    for (seed, in_use) in [(92, false), (93, true)] {
        for stall in [500, 2000] {
            let mut world = World::new(seed, &[1, 40]);
            world.settle();
            world.run(MS * 12_000);
            for port in 0..2000 * u16::from(in_use) {
                world.inject("a/0", &udp(5, 70, port, b"wake"));
            }
            world.run(MS * 1000);
            world.node("a/0").events.clear();
            world.stall("a/0", MS * stall);
            world.run(MS * 3000);
            let events = &world.nodes["a/0"].events;
            assert!(events.is_empty(), "{stall} ms, in use {in_use}: {events:?}");
            assert!(world.is_settled());
            // Who dies meanwhile is missed all the same.
            world.node("b/7").alive = false;
            world.stall("a/0", MS * stall);
            world.run(MS * 7000);
            let down = Event::Down { peer: "b/7".into() };
            assert_eq!(world.nodes["a/0"].events, [down], "{stall} ms");
        }
    }
}

/// When initiations leave, in milliseconds to the grain of a tick, while nothing arrives.
fn initiations_in_silence(seed: u64) -> Vec<u32> {
    let mut world = World::new(seed, &[1, 1]);
    world.settle();
    world.cut("a/0", "b/0");
    world.cut("b/0", "a/0");
    let (mut times, mut seen) = (Vec::new(), world.wire.len());
    for ms in (0..80_000).step_by(50) {
        world.run(MS * 50);
        let new = world.wire[seen..].iter().filter(|datagram| datagram[0] == 1);
        times.extend(new.map(|_| ms));
        seen = world.wire.len();
    }
    times
}

#[test]
fn those_that_lost_each_other_do_not_try_in_step() {
    let mut gaps = Vec::new();
    for seed in 60..64 {
        let times = initiations_in_silence(seed);
        // Two ends, each every 5 to 5.4 s once it has slowed down.
        let late: Vec<u32> = times.into_iter().filter(|ms| *ms > 20_000).collect();
        assert!(
            (22..=26).contains(&late.len()),
            "{} in a minute: {late:?}",
            late.len()
        );
        gaps.extend(late.windows(3).map(|three| three[2] - three[0]));
    }
    assert!(gaps.iter().all(|gap| (4900..=5500).contains(gap)), "{gaps:?}");
    gaps.sort_unstable();
    gaps.dedup();
    assert!(gaps.len() >= 5, "no jitter: {gaps:?}");
}

#[test]
fn silence_of_the_slice_is_no_reason_for_a_new_key() {
    let mut world = World::new(64, &[1, 1]);
    world.settle();
    let sent = frame(5, Mac::of_index(70), ODD, b"the last for a while");
    world.inject("a/0", &sent);
    world.run(MS * 90_000);
    for name in ["a/0", "b/0"] {
        let peer = &world.stats(name).peers[0];
        assert!(peer.up && peer.handshakes == 1, "{name}: {peer:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let run = || {
        let mut world = World::new(47, &[2, 2]);
        world.weather = STORM;
        let start = world.now;
        world.run(MS * 5000);
        let events: Vec<_> = world.nodes.values().map(|node| node.events.clone()).collect();
        (
            world.wire.iter().map(Vec::len).collect::<Vec<_>>(),
            events,
            world.now - start,
        )
    };
    assert_eq!(run(), run());
}

#[test]
fn strangers_and_garbage_are_counted_and_ignored() {
    let mut world = World::new(48, &[1, 1]);
    world.settle();
    let stranger = {
        let mut other = World::new(49, &[1, 1]);
        other.run(MS * 1000);
        other.wire.into_iter().find(|datagram| datagram[0] == 1).unwrap()
    };
    let to = world.nodes["a/0"].gateway.address;
    let from: SocketAddr = "198.51.100.1:1".parse().unwrap();
    let mut unknown_session = vec![4, 0, 0, 0];
    unknown_session.extend([0xff; 60]);
    for datagram in [
        vec![],
        vec![1],
        vec![1; 148],
        vec![9; 1500],
        stranger,
        unknown_session,
    ] {
        world.transmit(from, to, datagram);
    }
    world.run(MS * 10);
    let drops = world.stats("a/0").drops;
    assert_eq!(drops.of(Reason::NotWireguard), 4, "{drops:?}");
    assert_eq!(drops.of(Reason::BadHandshake), 1);
    assert_eq!(drops.of(Reason::UnknownSession), 1);
    assert!(world.stats("a/0").peers[0].up);
}

#[test]
fn nothing_crosses_before_the_handshake() {
    let mut world = World::new(50, &[1, 1]);
    world.weather = CALM;
    let sent = frame(5, Mac::of_index(70), ODD, b"too early");
    world.inject("a/0", &sent);
    assert_eq!(world.stats("a/0").drops.of(Reason::NoTunnel), 1);
    world.settle();
    assert_eq!(world.collect(&sent)["b"], 0);
    assert!(
        world
            .wire
            .iter()
            .all(|datagram| !datagram.windows(9).any(|bytes| bytes == b"too early"))
    );
}
