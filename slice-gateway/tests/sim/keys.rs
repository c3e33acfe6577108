//! From one key to the next: make before break, and break where that is asked for.

use slice_gateway::proto::Keys;

use super::*;
use crate::world::Policy;

/// How long after a change others hear of it, through status, hub and mirror.
const PUBLISHED: std::time::Duration = std::time::Duration::from_millis(700);

/// A network whose gateways have just been told to make new keys.
fn renewing(seed: u64, gateways: &[u32]) -> World {
    let mut world = World::new(seed, gateways);
    world.settle();
    world.run(MS * 500);
    ask(&mut world, |policy| policy.renewal = Some("1".into()));
    world
}

fn ask(world: &mut World, change: impl FnOnce(&mut Policy)) {
    change(&mut world.policy);
    world.configure();
}

fn keys(world: &World) -> BTreeMap<String, Keys> {
    let nodes = world.nodes.iter();
    nodes
        .map(|(name, node)| (name.clone(), node.gateway.keys()))
        .collect()
}

/// Lets time pass in which flows cross in both directions between a and b, a frame every 2 ms in each of five; says
/// how many were lost. Whatever the gateways say of their keys reaches the others after [`PUBLISHED`].
fn carry(world: &mut World, ms: u32, publish: bool) -> usize {
    let (mut sent, mut arrived, mut said) = (0, 0, keys(world));
    let mut due: Vec<std::time::Instant> = Vec::new();
    for n in 0..ms / 2 {
        for port in 0..5 {
            world.inject("a/0", &udp(5, 70, port, &n.to_be_bytes()));
            world.inject("b/0", &udp(70, 5, port, &n.to_be_bytes()));
            sent += 2;
        }
        world.run(MS * 2);
        let now = keys(world);
        if now != said {
            said = now;
            due.push(world.now + PUBLISHED);
        }
        if publish && due.first().is_some_and(|at| *at <= world.now) {
            due.remove(0);
            world.configure();
        }
        arrived += delivered(world);
    }
    world.run(MS * 50);
    sent - arrived - delivered(world)
}

#[test]
fn a_renewal_under_traffic_loses_nothing_and_leaves_one_key() {
    for seed in 80..90 {
        let mut world = renewing(seed, &[2, 2]);
        let before = keys(&world);
        assert_eq!(carry(&mut world, 5000, true), 0, "seed {seed}");
        for (name, keys) in keys(&world) {
            assert_ne!(keys.current, before[&name].current, "{name}");
            assert_eq!(keys.former, None, "{name}");
            let events = &world.nodes[&name].events;
            let down = |event: &&Event| matches!(event, Event::Down { .. });
            assert_eq!(events.iter().find(down), None, "{name}");
        }
    }
}

#[test]
fn keys_change_every_minute_and_nothing_is_lost() {
    let mut world = World::new(91, &[1, 2]);
    world.settle();
    world.run(MS * 500);
    ask(&mut world, |policy| policy.rotation_secs = Some(60));
    let mut seen: BTreeMap<String, Vec<[u8; 32]>> = BTreeMap::new();
    let mut lost = 0;
    for _ in 0..40 {
        lost += carry(&mut world, 5000, true);
        for (name, keys) in keys(&world) {
            let seen = seen.entry(name).or_default();
            if seen.last() != Some(&keys.current) {
                seen.push(keys.current);
            }
        }
    }
    assert_eq!(lost, 0);
    // 200 s, of which a key lasts 54 to 60.
    for (name, seen) in seen {
        assert_eq!(seen.len(), 4, "{name}");
    }
}

#[test]
fn a_renewal_in_a_storm_ends_well() {
    for seed in 92..97 {
        let mut world = renewing(seed, &[2, 1]);
        world.weather = STORM;
        carry(&mut world, 10_000, true);
        world.weather = CALM;
        carry(&mut world, 15_000, true);
        assert!(
            keys(&world).values().all(|keys| keys.former.is_none()),
            "seed {seed}"
        );
        assert_eq!(carry(&mut world, 500, true), 0, "seed {seed}");
    }
}

#[test]
fn what_nobody_hears_of_breaks_nothing_and_is_not_repeated() {
    let mut world = renewing(98, &[1, 1]);
    assert_eq!(carry(&mut world, 5000, false), 0, "while the hub is away");
    let waiting = keys(&world);
    assert!(waiting.values().all(|keys| keys.former.is_some()));
    let mut config = world.config_of("a/0");
    config.peers[0].gateways[0].former_key = None;
    config.renewal = Some("2".into());
    let old = slice_gateway::proto::config::encode_key(&waiting["b/0"].former.unwrap());
    config.peers[0].gateways[0].public_key = old;
    let (config, _) = Config::new(&config).unwrap();
    let now = world.now;
    world.node("a/0").gateway.reconfigure(now, &config);
    assert_eq!(carry(&mut world, 5000, false), 0);
    assert_eq!(keys(&world), waiting, "the next renewal waits");
    assert_eq!(world.stats("a/0").renewal_waits_for.as_deref(), Some("b/0"));
    ask(&mut world, |policy| policy.renewal = Some("2".into()));
    assert_eq!(carry(&mut world, 8000, true), 0, "the hub is back");
    for (name, keys) in keys(&world) {
        assert_ne!(keys.current, waiting[&name].current, "{name}: and goes on then");
        assert_eq!(keys.former, None, "{name}");
    }
}

#[test]
fn who_is_away_finds_the_former_key_until_the_next_is_due() {
    let mut world = World::new(99, &[1, 1, 1]);
    world.settle();
    world.run(MS * 500);
    let before = keys(&world);
    world.node("c/0").alive = false;
    world.run(MS * 1000);
    ask(&mut world, |policy| policy.renewal = Some("1".into()));
    assert_eq!(carry(&mut world, 3000, true), 0);
    assert_eq!(keys(&world)["a/0"].former, Some(before["a/0"].current));
    world.node("c/0").alive = true;
    world.settle();
    carry(&mut world, 3000, true);
    assert_eq!(keys(&world)["a/0"].former, None, "c has moved");

    world.node("c/0").alive = false;
    world.run(MS * 1000);
    for renewal in ["2", "3"] {
        ask(&mut world, |policy| policy.renewal = Some(renewal.into()));
        assert_eq!(carry(&mut world, 4000, true), 0, "renewal {renewal}");
    }
    world.node("c/0").alive = true;
    world.configure();
    world.settle();
}

#[test]
fn a_peer_that_only_dials_hears_of_a_new_key_too() {
    let mut world = World::new(100, &[1, 1]);
    let configure = |world: &mut World| {
        let mut config = world.config_of("a/0");
        config.peers[0].gateways[0].endpoints.clear();
        let (config, _) = Config::new(&config).unwrap();
        let now = world.now;
        world.configure();
        world.node("a/0").gateway.reconfigure(now, &config);
    };
    configure(&mut world);
    world.settle();
    world.policy.renewal = Some("1".into());
    for _ in 0..8 {
        configure(&mut world);
        assert_eq!(carry(&mut world, 1000, false), 0);
    }
    assert!(keys(&world).values().all(|keys| keys.former.is_none()));
}

#[test]
fn a_peer_that_starts_again_amid_a_renewal_is_back_soon() {
    for seed in 101..106 {
        let mut world = renewing(seed, &[1, 2]);
        carry(&mut world, 400 + (seed as u32 - 101) * 200, true);
        world.restart("b/0");
        world.configure();
        world.settle();
        carry(&mut world, 4000, true);
        assert_eq!(carry(&mut world, 500, true), 0, "seed {seed}");
        assert!(keys(&world).values().all(|keys| keys.former.is_none()));
    }
}

#[test]
fn a_revoked_key_is_gone_at_once() {
    let mut world = World::new(107, &[1, 1]);
    world.settle();
    world.run(MS * 500);
    let before = keys(&world);
    let held: Vec<Vec<u8>> = world.wire.clone();
    ask(&mut world, |policy| policy.revocation = Some("1".into()));
    world.run(MS * 60);
    for (name, keys) in keys(&world) {
        assert_ne!(keys.current, before[&name].current, "{name}");
        assert_eq!(
            (keys.former, keys.revocation.as_deref()),
            (None, Some("1")),
            "{name}"
        );
    }
    // Nothing that was sealed or begun with the old keys is taken.
    let frames = |world: &World| world.stats("a/0").peers[0].received.frames;
    let taken = frames(&world);
    let from = world.nodes["b/0"].gateway.address;
    for datagram in held {
        world.offer("a/0", from, &datagram);
    }
    assert_eq!(frames(&world), taken);
    assert!(!world.is_settled(), "nobody knows the new keys yet");
    world.configure();
    world.settle();
    assert_eq!(carry(&mut world, 500, true), 0);
}

#[test]
fn a_renewal_changes_no_flows_gateway() {
    let mut world = World::new(108, &[1, 3]);
    world.settle();
    world.run(MS * 500);
    let before = places(&mut world);
    ask(&mut world, |policy| policy.renewal = Some("1".into()));
    carry(&mut world, 4000, true);
    assert_eq!(places(&mut world), before);
}
