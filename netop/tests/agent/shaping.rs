//! What a slice is given: the node's part of it, what is counted, and what is reported.

use std::sync::Arc;

use slice_crds::{
    Rate,
    v1alpha1::{Shaping, SliceNode, SliceNodeSpec},
};
use slice_netop::{
    agent::{Event, GUARANTEES},
    liveness::{self, Adjacency, Health},
    model::{Carried, ClassId, Flow},
    shares::{Part, Share},
    world::{SliceFacts, World},
};

use crate::support::{Node, block, gateway, shop};

const EGRESS: ClassId = ClassId(0x1000);

fn given(world: &mut World, guaranteed: u32, ceiling: u32) {
    let mut facts = SliceFacts::clone(&world.slices["shop"]);
    facts.spec.shaping = Some(Shaping {
        guaranteed_mbps: Some(guaranteed),
        ceiling_mbps: Some(ceiling),
        priority: 0,
    });
    world.slices.insert("shop".into(), facts.into());
}

fn uplink(world: &mut World, text: Option<&str>) {
    let spec = SliceNodeSpec {
        teardown: false,
        uplink: text.map(str::to_owned),
        slice_dns: None,
    };
    world.node = Some(Arc::new(SliceNode::new("n1", spec)));
}

/// A node with one of the slice's gateways; another is on node n2.
async fn with_gateway() -> Node {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        given(world, 50, 100);
        block(world, "shop", "n2", 16, 8);
        gateway(world, "shop", 0, Some("n1"));
        gateway(world, "shop", 1, Some("n2"));
    });
    node.settle().await;
    node
}

fn classes(node: &Node) -> Vec<String> {
    let inner = node.kernel.inner();
    let egress = inner.state.classes.get(&EGRESS);
    egress.iter().map(ToString::to_string).collect()
}

async fn measure(node: &mut Node, carried: Carried) {
    node.kernel.inner().carried.insert(EGRESS, carried);
    node.event(Event::Measure);
    node.settle().await;
}

fn other_reports(node: &mut Node, part: Part) {
    let health = Health {
        part: Some(part),
        ..Health::default()
    };
    let key = ([192, 168, 7, 2].into(), (77, 1));
    let view: liveness::View = Arc::new([(key, Adjacency::Reports(health))].into());
    node.event(Event::Liveness(view));
}

#[tokio::test]
async fn a_node_takes_what_the_others_leave_and_no_more() {
    let mut node = with_gateway().await;
    let _near = node.connect("shop", 0, false).await;
    let mut carried = Carried::default();
    measure(&mut node, carried).await;
    // It needs nothing, and the other, which has not said anything, may.
    assert_eq!(classes(&node), ["parent 1:2 rate 1M ceil 2M prio 7"]);
    let mut part = Part::default();
    part.set(
        Flow::Egress,
        Share {
            used: 400,
            wanted: 400,
        },
    );
    other_reports(&mut node, part);
    for _ in 0..2 {
        carried.backlog = 9000;
        measure(&mut node, carried).await;
    }
    assert_eq!(classes(&node), ["parent 1:2 rate 30M ceil 60M prio 7"]);
    part.set(
        Flow::Egress,
        Share {
            used: 400,
            wanted: 1000,
        },
    );
    other_reports(&mut node, part);
    measure(&mut node, carried).await;
    assert_eq!(classes(&node), ["parent 1:2 rate 25M ceil 50M prio 7"], "at once");
    // Egress waits and sends nothing, ingress needs nothing.
    assert_eq!(node.gauges("weft_netop_guarantee_met"), [0.0, 1.0]);
    assert_eq!(node.gauges("weft_netop_class_backlog_bytes")[0], 9000.0);
}

#[tokio::test]
async fn a_node_says_whether_it_has_what_is_promised() {
    let mut node = with_gateway().await;
    let condition = |node: &Node| {
        let guarantees = node.reports().node.and_then(|node| node.guarantees);
        guarantees.map(|verdict| (verdict.type_, verdict.status, verdict.reason, verdict.message))
    };
    node.objects(|world| uplink(world, None));
    node.settle().await;
    assert_eq!(condition(&node), None, "no gateway of the slice is here");
    let _near = node.connect("shop", 0, false).await;
    for (said, reason, words) in [
        (None, "UplinkUnknown", "weft.dev/uplink=1G"),
        (Some("fast"), "UplinkUnknown", "\"fast\" is no rate"),
        (
            Some("20M"),
            "Overcommitted",
            "guaranteed 50Mbit/s here and the node has 20Mbit/s",
        ),
        (Some("50M"), "Guaranteed", "50Mbit/s of 50Mbit/s"),
    ] {
        node.objects(|world| uplink(world, said));
        node.settle().await;
        let (name, _, seen, message) = condition(&node).unwrap();
        assert_eq!((name, seen), (GUARANTEES, reason), "{said:?}: {message}");
        assert!(message.contains(words), "{message}");
    }
    node.objects(|world| uplink(world, None));
    node.kernel.inner().underlay_speed = Some(Rate::from_mbps(10_000));
    node.event(Event::Tick);
    node.settle().await;
    assert!(condition(&node).unwrap().3.contains("50Mbit/s of 10Gbit/s"));
}
