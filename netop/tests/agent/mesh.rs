//! Which nodes are probed, and what is reported of them.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use slice_crds::v1alpha1::{BrokenPair, MeshStatus, PairFault, SliceBlockStatus, SliceNodeStatus};
use slice_netop::{
    agent::Event,
    mesh::{Seen, asks},
    world::World,
};

use crate::support::{Node, block, shop, slice};

const SELF: &str = "192.168.7.1";

fn set_answers(world: &mut World, slice: &str, node: &str, answers_probes: bool) {
    world.blocks.get_mut(slice, node).unwrap().status = Some(SliceBlockStatus {
        answers_probes,
        ..SliceBlockStatus::default()
    });
}

/// Whom the node probes, and how large.
fn probed(node: &Node) -> Vec<String> {
    let local = node.mesh.borrow();
    let peers = local.peers.iter();
    peers
        .filter(|(_, peer)| peer.asked)
        .map(|(address, peer)| format!("{} {address} {}", peer.node, peer.size))
        .collect()
}

fn expected(nodes: impl IntoIterator<Item = (u32, u16)>) -> Vec<String> {
    let nodes = nodes.into_iter().filter(|(n, _)| {
        let address = format!("192.168.7.{n}");
        asks(SELF.parse().unwrap(), address.parse().unwrap())
    });
    let mut all: Vec<String> = nodes
        .map(|(n, size)| format!("n{n} 192.168.7.{n} {size}"))
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn nodes_that_answer_and_share_a_slice_are_probed_once_at_the_larger_size() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        slice(world, "post", 78, "10.81.0.0/24");
        slice(world, "far", 79, "10.82.0.0/24");
        let post = Arc::make_mut(world.slices.get_mut("post").unwrap());
        (post.spec.mtu, post.spec.largest_mtu) = (1300, Some(1450));
        block(world, "post", "n1", 8, 8);
        for n in 2..=7 {
            block(world, "shop", &format!("n{n}"), 8 * n, 8);
        }
        for n in 4..=9 {
            block(world, "post", &format!("n{n}"), 8 * n, 8);
        }
        block(world, "far", "n10", 8, 8);
        set_answers(world, "far", "n10", true);
    });
    node.settle().await;
    assert_eq!(probed(&node), [""; 0], "none of them says that it answers");
    node.objects(|world| {
        for n in 2..=6 {
            set_answers(world, "shop", &format!("n{n}"), true);
        }
        for n in 4..=8 {
            set_answers(world, "post", &format!("n{n}"), true);
        }
        set_answers(world, "post", "n9", false);
    });
    node.settle().await;
    let all = [2, 3].map(|n| (n, 1370)).into_iter();
    let all = expected(all.chain((4..=8).map(|n| (n, 1450))));
    assert!((2..7).contains(&all.len()), "{all:?}");
    assert_eq!(probed(&node), all);
    assert!(node.reports().blocks["shop.n1"].answers_probes);
    node.objects(|world| world.blocks.remove("post", "n1"));
    node.settle().await;
    assert_eq!(probed(&node), expected((2..=6).map(|n| (n, 1370))));
    node.objects(|world| world.blocks.remove("shop", "n1"));
    node.settle().await;
    assert_eq!(probed(&node), [""; 0]);
}

#[tokio::test]
async fn what_probes_say_is_reported_and_outlives_the_agent() {
    let broken = |node: &str| BrokenPair {
        node: node.into(),
        address: "192.168.7.2".parse().unwrap(),
        port: 14789,
        fault: PairFault::Silent,
        size: 1370,
        carried: None,
        since: Time(Timestamp::UNIX_EPOCH),
    };
    let status = |broken: u32, pairs: &[BrokenPair]| MeshStatus {
        broken,
        pairs: pairs.to_vec(),
    };
    let mut node = Node::with_web().await;
    let reported = |node: &Node| node.reports().node.unwrap().mesh;
    assert_eq!(reported(&node), MeshStatus::default());
    node.event(Event::Mesh(Arc::new(Seen {
        pairs: 500,
        faults: [(PairFault::Silent, 8), (PairFault::Size, 3)].into(),
        broken: vec![broken("n2")],
    })));
    node.settle().await;
    assert_eq!(reported(&node), status(11, &[broken("n2")]));
    node.objects(|world| {
        let written = SliceNodeStatus {
            mesh: status(11, &[broken("n2")]),
            ..SliceNodeStatus::default()
        };
        Arc::make_mut(world.node.as_mut().unwrap()).status = Some(written);
    });
    node.restart().await;
    node.settle().await;
    assert_eq!(
        reported(&node),
        status(11, &[broken("n2")]),
        "nothing else is known yet"
    );
    assert_eq!(node.mesh.borrow().before, [broken("n2")]);
    node.event(Event::Mesh(Arc::default()));
    node.settle().await;
    assert_eq!(reported(&node), MeshStatus::default());
}
