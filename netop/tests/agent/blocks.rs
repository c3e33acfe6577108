//! What becomes of blocks: what is given out of them, how they come back, and how a slice that goes is confirmed.

use std::time::Duration;

use slice_crds::{IndexRange, names};
use slice_netop::{agent::Event, cni::wire::Command, status::BlockReport};

use crate::support::{Node, block, edit_block, edit_pod, labelled, pod, shop, slice};

fn report(node: &Node) -> BlockReport {
    node.reports().blocks["shop.n1"].clone()
}

fn ranges(blocks: &[(u32, u32)]) -> Vec<IndexRange> {
    let range = |(start, size): &(u32, u32)| IndexRange::new(*start, *size);
    blocks.iter().map(range).collect()
}

/// A node with two blocks of two indices each, and pods `a`, `b` in the first.
async fn two_blocks() -> Node {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 2);
        edit_block(world, "shop", "n1", |spec| {
            spec.blocks = ranges(&[(8, 2), (16, 2)])
        });
        labelled(world, "cart", "shop");
        pod(world, "cart", "a", &[]);
        pod(world, "cart", "b", &[]);
    });
    node.sandbox("a");
    node.sandbox("b");
    node.settle().await;
    node
}

#[tokio::test]
async fn a_block_comes_back_when_its_pods_have_gone_and_never_before() {
    let mut node = two_blocks().await;
    assert_eq!(
        (report(&node).idle, report(&node).observed_generation),
        (ranges(&[(16, 2)]), Some(2))
    );
    node.objects(|world| {
        edit_block(world, "shop", "n1", |spec| spec.releasing = ranges(&[(8, 2)]));
        world.pods.remove("uid-b");
        pod(world, "cart", "c", &[]);
    });
    node.sandbox("c");
    node.settle().await;
    let seen = report(&node);
    assert_eq!((seen.observed_generation, seen.attachments), (Some(3), 2));
    assert_eq!(
        (seen.usage.usable, seen.usage.free),
        (2, 1),
        "of the block that stays"
    );
    assert_eq!((seen.released, seen.idle), (vec![], vec![]));

    // It is gone by its object, and its interface cannot be removed yet.
    node.kernel.inner().refused.push("- link wp-".into());
    node.objects(|world| {
        world.pods.remove("uid-a");
    });
    node.settle().await;
    assert_eq!(report(&node).released, [], "an interface has an index of it");
    node.kernel.inner().refused.clear();
    node.event(Event::Tick);
    node.settle().await;
    assert_eq!(report(&node).released, ranges(&[(8, 2)]));

    // An agent that starts again, with a watch that shows what was before, falls not back.
    let newest = node.world().blocks.clone();
    node.objects(|world| {
        edit_block(world, "shop", "n1", |spec| spec.releasing = vec![]);
        let old = world.blocks.get_mut("shop", "n1").unwrap();
        old.metadata.generation = Some(2);
        for name in ["d", "e"] {
            pod(world, "cart", name, &[]);
        }
    });
    node.sandbox("d");
    node.sandbox("e");
    node.restart().await;
    node.settle().await;
    let seen = report(&node);
    assert_eq!(
        (seen.released, seen.observed_generation),
        (ranges(&[(8, 2)]), Some(3))
    );
    assert_eq!(seen.attachments, 2, "the third finds no index");
    assert!(seen.ready.message.contains("generation 2"), "{:?}", seen.ready);

    // It is the node's again.
    node.objects(|world| {
        world.blocks = newest;
        edit_block(world, "shop", "n1", |spec| spec.releasing = vec![]);
    });
    node.advance(Duration::from_secs(10));
    node.settle().await;
    let seen = report(&node);
    assert_eq!(
        (seen.released, seen.observed_generation, seen.attachments),
        (vec![], Some(4), 3)
    );
    assert_eq!(seen.ready.status, Some(true));
}

#[tokio::test]
async fn nothing_comes_back_that_the_next_agent_would_not_know_of() {
    let mut node = two_blocks().await;
    // Where the checkpoint would be written there is a directory.
    std::fs::remove_file(node.run.checkpoint()).unwrap();
    std::fs::create_dir(node.run.checkpoint()).unwrap();
    node.objects(|world| {
        edit_block(world, "shop", "n1", |spec| spec.releasing = ranges(&[(16, 2)]));
    });
    node.settle().await;
    let seen = report(&node);
    assert_eq!((seen.released, seen.observed_generation), (vec![], Some(2)));
    let ready = node.reports().node.unwrap().ready;
    assert!(ready.message.contains("cannot keep its records"), "{ready:?}");
    std::fs::remove_dir(node.run.checkpoint()).unwrap();
    node.event(Event::Tick);
    node.settle().await;
    let seen = report(&node);
    assert_eq!(
        (seen.released, seen.observed_generation),
        (ranges(&[(16, 2)]), Some(3))
    );
    assert_eq!(node.reports().node.unwrap().ready.status, Some(true));
}

#[tokio::test]
async fn a_pod_that_has_ended_gives_its_index_to_the_next_after_a_short_rest() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 2);
        labelled(world, "cart", "shop");
        for name in ["job-1", "job-2", "job-3"] {
            pod(world, "cart", name, &[]);
        }
        edit_pod(world, "job-3", |pod| pod.running = false);
    });
    for name in ["job-1", "job-2"] {
        node.sandbox(name);
    }
    node.settle().await;
    let mut waits = node.call(Command::Add, "job-3");
    node.settle().await;
    assert!(waits.try_recv().is_err());
    // It has ended, and its object is there.
    node.objects(|world| edit_pod(world, "job-1", |pod| (pod.running, pod.finished) = (false, true)));
    node.settle().await;
    let usage = report(&node).usage;
    assert_eq!((usage.held, usage.resting, usage.free), (1, 1, 0));
    node.advance(Duration::from_secs(9));
    node.settle().await;
    let refused = format!("{:?}", waits.await.unwrap());
    assert!(refused.contains("the next is free at"), "{refused}");
    let next = node.call(Command::Add, "job-3");
    node.advance(Duration::from_secs(1));
    node.settle().await;
    let attached = format!("{:?}", next.await.unwrap());
    assert!(attached.contains("02:5c:00:00:00:08"), "{attached}");
}

#[tokio::test]
async fn a_slice_that_goes_is_confirmed_when_nothing_of_it_is_seen_any_more() {
    let mut node = two_blocks().await;
    assert!(report(&node).present);
    node.kernel
        .inner()
        .refused
        .push(format!("- link {}", names::pod_port("shop", "uid-a")));
    node.objects(|world| {
        world.slices.remove("shop");
    });
    node.settle().await;
    node.event(Event::Tick);
    node.settle().await;
    let seen = report(&node);
    assert!(seen.present, "an interface could not be removed");
    assert!(seen.ready.message.contains("refused"), "{:?}", seen.ready);
    node.kernel.inner().refused.clear();
    node.event(Event::Tick);
    node.settle().await;
    assert!(report(&node).present, "removed, and not looked at since");
    node.event(Event::Tick);
    node.settle().await;
    let seen = report(&node);
    assert!(!seen.present && seen.ready.status == Some(true), "{seen:?}");
    assert_eq!((seen.attachments, seen.usage.usable), (0, 0));
    let ready = node.reports().node.unwrap().ready;
    assert_eq!(
        ready.status,
        Some(true),
        "a block without a slice is no problem: {ready:?}"
    );

    // Another slice's changes say nothing against it.
    node.objects(|world| {
        slice(world, "bank", 78, "10.90.0.0/24");
        block(world, "bank", "n1", 8, 8);
    });
    node.settle().await;
    assert!(!report(&node).present && node.reports().blocks["bank.n1"].present);

    // It comes back, and goes before anybody has looked.
    node.objects(|world| slice(world, "shop", 77, "10.80.0.0/24"));
    node.settle().await;
    assert!(report(&node).present);
    node.objects(|world| {
        world.slices.remove("shop");
    });
    node.settle().await;
    assert!(report(&node).present);
    node.event(Event::Tick);
    node.settle().await;
    assert!(!report(&node).present);
}

#[tokio::test]
async fn a_slice_that_never_was_here_is_confirmed_at_once_and_one_that_cannot_be_understood_never_is() {
    let mut node = Node::new();
    node.objects(|world| block(world, "shop", "n1", 8, 8));
    node.settle().await;
    assert!(!report(&node).present);
    node.objects(|world| {
        world.broken.insert("shop".into(), "it has no subnet".into());
    });
    node.settle().await;
    assert!(report(&node).present);
}

/// A port that does not say whose it is may be any slice's.
#[tokio::test]
async fn a_port_that_is_left_over_keeps_a_slice_from_being_confirmed() {
    let mut node = two_blocks().await;
    node.kernel.inner().refused.push("- link wp-".into());
    node.objects(|world| {
        world.slices.remove("shop");
    });
    for _ in 0..3 {
        node.event(Event::Tick);
        node.settle().await;
    }
    for link in node.kernel.inner().state.links.values_mut() {
        link.alias = None;
    }
    node.event(Event::Tick);
    node.settle().await;
    assert!(report(&node).present);
    node.kernel.inner().refused.clear();
    for _ in 0..2 {
        node.event(Event::Tick);
        node.settle().await;
    }
    assert!(!report(&node).present);
}

#[tokio::test]
async fn before_the_kernel_was_looked_at_nothing_is_reported_of_blocks() {
    let mut node = Node::new();
    node.kernel.inner().unreadable = true;
    node.objects(shop);
    node.settle().await;
    assert!(node.reports().decided && node.reports().blocks.is_empty());
    node.kernel.inner().unreadable = false;
    node.event(Event::Tick);
    node.settle().await;
    assert!(report(&node).present);
}

#[tokio::test]
async fn the_address_of_the_node_is_that_of_its_blocks() {
    let mut node = Node::new();
    let address = |node: &Node| node.liveness.borrow().address;
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 2);
        edit_block(world, "shop", "n1", |spec| {
            spec.node_address = [10, 0, 0, 1].into()
        });
    });
    node.settle().await;
    assert_eq!(address(&node), Some([10, 0, 0, 1].into()));
    node.objects(|world| {
        edit_block(world, "shop", "n1", |spec| {
            spec.node_address = [10, 0, 0, 9].into()
        });
    });
    node.settle().await;
    assert_eq!(
        address(&node),
        Some([10, 0, 0, 9].into()),
        "followed without a restart"
    );
    assert_eq!(node.mesh.borrow().address, Some([10, 0, 0, 9].into()));
}
