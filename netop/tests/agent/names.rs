//! Whether it is asked for names of slices, from which pods, and what is reported.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;
use slice_crds::{
    conditions::{self, NAMES_RESOLVE, Verdict, reason},
    v1alpha1::{SliceNode, SliceNodeSpec, SliceNodeStatus},
};
use slice_netop::{agent::Event, world::World};

use crate::support::Node;

const SLICE_DNS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 7, 7));

fn set(world: &mut World, slice_dns: Option<IpAddr>, teardown: bool, status: Option<SliceNodeStatus>) {
    let spec = SliceNodeSpec {
        teardown,
        uplink: None,
        slice_dns,
    };
    let mut node = SliceNode::new("n1", spec);
    node.status = status;
    world.node = Some(Arc::new(node));
}

fn asked(node: &Node) -> (Option<IpAddr>, Vec<String>) {
    let local = node.names.borrow();
    let pods = local.pods.iter();
    let pods = pods.map(|pod| format!("{}/{} {}", pod.namespace, pod.name, pod.netns.display()));
    (local.slice_dns, pods.collect())
}

fn no(text: &str) -> Verdict {
    Verdict::no(NAMES_RESOLVE, reason::ZONE_UNKNOWN, text)
}

#[tokio::test]
async fn it_is_asked_from_attached_pods_while_the_operator_wants_to_know() {
    let mut node = Node::with_web().await;
    assert_eq!(asked(&node), (None, vec![]));
    node.objects(|world| set(world, Some(SLICE_DNS), false, None));
    node.settle().await;
    let (slice_dns, pods) = asked(&node);
    assert_eq!(slice_dns, Some(SLICE_DNS));
    assert!(
        matches!(pods.as_slice(), [one] if one.starts_with("cart/web /")),
        "{pods:?}"
    );
    node.objects(|world| {
        for pod in world.pods.values_mut() {
            Arc::make_mut(pod).terminating = true;
        }
    });
    node.settle().await;
    assert_eq!(asked(&node), (Some(SLICE_DNS), vec![]));
    node.objects(|world| set(world, Some(SLICE_DNS), true, None));
    node.settle().await;
    assert_eq!(asked(&node), (None, vec![]), "it is being taken down");
}

#[tokio::test]
async fn what_is_seen_is_reported_and_outlives_the_agent() {
    let mut node = Node::with_web().await;
    let reported = |node: &Node| node.reports().node.unwrap().names;
    node.objects(|world| set(world, Some(SLICE_DNS), false, None));
    node.settle().await;
    assert_eq!(reported(&node), None);
    node.event(Event::Names(Some(no("why"))));
    node.settle().await;
    assert_eq!(reported(&node), Some(no("why")));
    let written = |node: &Node| node.reports().node.unwrap().status(None, Timestamp::UNIX_EPOCH);
    let status = written(&node);
    let found = conditions::find_false(&status.conditions, NAMES_RESOLVE).unwrap();
    assert_eq!(
        (found.reason.as_str(), found.message.as_str()),
        (reason::ZONE_UNKNOWN, "why")
    );

    node.objects(|world| set(world, Some(SLICE_DNS), false, Some(status.clone())));
    node.restart().await;
    node.settle().await;
    assert_eq!(reported(&node), Some(no("why")), "nothing else is known yet");
    assert_eq!(node.names.borrow().before, Some(no("why")));
    let well = Verdict::yes(NAMES_RESOLVE, reason::NAMES_RESOLVE, "well");
    node.event(Event::Names(Some(well.clone())));
    node.settle().await;
    assert_eq!(reported(&node), Some(well));

    node.objects(|world| set(world, None, false, Some(status)));
    node.settle().await;
    assert_eq!(reported(&node), None, "nobody asks");
    assert!(
        written(&node)
            .conditions
            .iter()
            .all(|one| one.type_ != NAMES_RESOLVE)
    );
}
