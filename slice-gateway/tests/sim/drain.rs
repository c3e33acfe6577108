//! A planned stop loses nothing: peers send elsewhere before it, and until then everything is delivered.

use super::*;

/// Sends a frame of each of 20 flows every 5 ms for so long; how many arrived.
fn stream(world: &mut World, number: &mut u32, ms: u32) -> (usize, usize) {
    let (mut sent, mut arrived) = (0, 0);
    for _ in 0..ms / 5 {
        for port in 0..20 {
            *number += 1;
            world.inject("a/0", &udp(5, 70, port, &number.to_be_bytes()));
            sent += 1;
        }
        world.run(MS * 5);
        arrived += delivered(world);
    }
    world.run(MS * 50);
    (sent, arrived + delivered(world))
}

/// Frames that one gateway has brought to its slice since it was last asked.
fn received(world: &World, name: &str) -> u64 {
    world
        .stats(name)
        .peers
        .iter()
        .map(|peer| peer.received.frames)
        .sum()
}

#[test]
fn a_gateway_that_drains_is_left_by_all_flows_and_loses_none() {
    for seed in 60..70 {
        let mut world = World::new(seed, &[1, 3]);
        world.settle();
        world.run(MS * 500);
        let number = &mut 0;
        assert_eq!(stream(&mut world, number, 500), (2000, 2000));
        let before: Vec<u64> = (0..3).map(|n| received(&world, &format!("b/{n}"))).collect();
        assert!(before.iter().all(|frames| *frames > 0), "{before:?}");

        world.node("b/1").gateway.set_away(true);
        assert_eq!(stream(&mut world, number, 500), (2000, 2000), "seed {seed}");
        let event = Event::Wants {
            peer: "b/1".into(),
            frames: false,
        };
        assert!(world.nodes["a/0"].events.contains(&event));
        let left = received(&world, "b/1");
        assert_eq!(stream(&mut world, number, 500), (2000, 2000));
        assert_eq!(received(&world, "b/1"), left, "nothing comes any more");
        assert!(world.stats("a/0").peers.iter().all(|peer| peer.up));

        world.node("b/1").alive = false;
        assert_eq!(stream(&mut world, number, 1000), (4000, 4000), "seed {seed}");
    }
}

#[test]
fn flows_that_need_not_move_do_not() {
    let mut world = World::new(71, &[1, 3]);
    world.settle();
    world.run(MS * 500);
    let before = places(&mut world);
    world.node("b/1").gateway.set_away(true);
    world.run(MS * 200);
    let during = places(&mut world);
    for (before, during) in before.iter().zip(&during) {
        assert!(before == during || before == "b/1", "from {before} to {during}");
    }
    assert!(!during.contains(&"b/1".to_owned()));
    world.node("b/1").gateway.set_away(false);
    world.run(MS * 200);
    assert_eq!(places(&mut world), before, "and they come back");
}

#[test]
fn the_last_gateway_carries_until_the_end() {
    let mut world = World::new(72, &[1, 2]);
    world.settle();
    world.run(MS * 500);
    assert_eq!(world.stats("a/0").reach.reached, 1);
    for name in ["b/0", "b/1"] {
        world.node(name).gateway.set_away(true);
    }
    world.run(MS * 200);
    assert_eq!(world.stats("a/0").reach.reached, 0);
    assert_eq!(stream(&mut world, &mut 0, 500), (2000, 2000));
}

#[test]
fn a_host_outside_the_clusters_that_is_off_is_not_missed() {
    let mut world = World::new(73, &[1, 1, 1]);
    world.settle();
    world.node("c/0").alive = false;
    world.run(MS * 1000);
    let reach = |world: &World| world.stats("a/0").reach;
    assert_eq!((reach(&world).reached, reach(&world).missing), (1, 1));
    let mut config = world.config_of("a/0");
    let host = config.peers.iter_mut().find(|peer| peer.cluster == "c");
    host.unwrap().outside = true;
    let (config, _) = Config::new(&config).unwrap();
    let now = world.now;
    world.node("a/0").gateway.reconfigure(now, &config);
    assert_eq!((reach(&world).reached, reach(&world).missing), (1, 0));
}
