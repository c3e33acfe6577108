//! What becomes of gateways: their TAP devices, whose way the node's frames take, and what is reported of them.

use std::{sync::Arc, time::Duration};

use slice_crds::names;
use slice_netop::{
    agent::Event,
    liveness::{self, Adjacency, Health},
    model::{Clusters, Key, Name},
    status::Standing,
    world::World,
};
use slice_runtime::handover::{FromGateway, MAX_QUEUES, Report, ToGateway, Tunnel};

use crate::support::{Near, Node, block, edit_gateway, gateway, labelled, peer, pod, shop, slice};

/// How the pods' frames for all clusters leave, as a change of the kernel.
fn exit(hop: &str) -> String {
    format!("+ entry shop exit to all {hop}")
}

fn tap(ordinal: u32) -> String {
    format!("dev {}", Name::tap("shop", ordinal))
}

fn up(peer: &str) -> Tunnel {
    Tunnel {
        peer: peer.into(),
        up: true,
        away: false,
        endpoint: None,
        handshake_age_ms: None,
        rtt_micros: None,
        path_mtu: None,
    }
}

/// A pod that wants to send.
fn web(world: &mut World) {
    labelled(world, "cart", "shop");
    pod(world, "cart", "web", &[]);
}

#[tokio::test]
async fn a_gateway_gets_its_tap_and_its_node_uses_it_until_it_goes() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        web(world);
        block(world, "shop", "n2", 16, 8);
        gateway(world, "shop", 0, None);
        gateway(world, "shop", 1, Some("n2"));
    });
    node.sandbox("web");
    node.settle().await;
    let log = node.kernel.take_log();
    assert!(
        log.contains(&exit("node 192.168.7.2")),
        "the other node's gateway is used: {log:?}"
    );

    let mut near = node.connect("shop", 0, false).await;
    let log = node.kernel.take_log();
    let place = |step: &str| log.iter().position(|line| line == step);
    let (attached, moved) = (format!("~ link {} up", Name::tap("shop", 0)), exit(&tap(0)));
    assert!(place(&attached).unwrap() < place(&moved).unwrap(), "{log:?}");
    let (ToGateway::Config(config), _) = near.receive().await else {
        panic!("configuration first")
    };
    assert_eq!((config.vni, config.vtep.to_string().as_str()), (77, "198.18.1.1"));
    let (ToGateway::Tap(tap), queues) = near.receive().await else {
        panic!("then the TAP")
    };
    assert_eq!((tap.interface, queues.len()), (names::tap("shop", 0), 1));
    let reports = node.reports();
    let report = &reports.gateways["weft-gateway-shop-0"];
    assert!(
        report.connected
            && report.node == "n1"
            && report
                .keys
                .as_ref()
                .is_some_and(|keys| keys.public_key == "key-0")
    );
    assert_eq!(
        reports.gateways.len(),
        1,
        "another node's gateway is its own agent's"
    );

    // A change of the slice is sent, once.
    node.objects(|world| peer(world, "shop", "tokyo", 2));
    node.settle().await;
    node.settle().await;
    let (ToGateway::Config(config), _) = near.receive().await else {
        panic!("a configuration")
    };
    assert_eq!(config.peers[0].gateways[0].name, "tokyo/0");
    near.send(FromGateway::Report(Report::default()));
    node.gateway_event().await;
    node.settle().await;

    node.lose(near).await;
    let log = node.kernel.take_log();
    assert!(
        log.contains(&exit("node 192.168.7.2")),
        "the other node's gateway again: {log:?}"
    );
    assert!(
        !node.reports().gateways.contains_key("weft-gateway-shop-0"),
        "its object never said it was here"
    );
}

#[tokio::test]
async fn a_new_gateway_carries_to_a_cluster_when_it_reports_a_tunnel_there() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        peer(world, "shop", "tokyo", 2);
        web(world);
        block(world, "shop", "n2", 16, 8);
        gateway(world, "shop", 0, None);
        gateway(world, "shop", 1, Some("n2"));
    });
    node.sandbox("web");
    let well = Health {
        reached: 1,
        ..Health::default()
    };
    let place = ("192.168.7.2".parse().unwrap(), (77, 1));
    node.event(Event::Liveness(Arc::new(
        [(place, Adjacency::Reports(well))].into(),
    )));
    node.settle().await;
    let toward = |hop: &str| format!("exit to 2 {hop}");
    let log = node.kernel.take_log();
    assert!(
        log.iter().any(|step| step.ends_with(&toward("node 192.168.7.2"))),
        "{log:?}"
    );

    let near = node.connect("shop", 0, false).await;
    let log = node.kernel.take_log();
    assert!(
        log.iter().any(|step| step.ends_with("up")),
        "it has its TAP: {log:?}"
    );
    assert!(
        !log.iter().any(|step| step.contains("exit to 2")),
        "it has no tunnel yet: {log:?}"
    );

    near.send(FromGateway::Report(Report {
        tunnels: vec![up("tokyo/0")],
        reached: 1,
        ..Report::default()
    }));
    node.gateway_event().await;
    node.settle().await;
    let log = node.kernel.take_log();
    assert!(log.iter().any(|step| step.ends_with(&toward(&tap(0)))), "{log:?}");
}

/// A pod that was deleted by force runs on for a while, beside its successor on another node.
#[tokio::test]
async fn who_leaves_does_not_report_against_its_successor() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        gateway(world, "shop", 0, Some("n1"));
    });
    node.settle().await;
    let mut near = node.connect("shop", 0, false).await;
    near.receive().await;
    let standing = |node: &Node| {
        let report = node.reports().gateways.get("weft-gateway-shop-0").cloned();
        report.map(|report| report.standing)
    };
    assert_eq!(standing(&node), Some(Standing::Here { denied: false }));
    // What another node's agent wrote last of the process before this one.
    node.objects(|world| gateway(world, "shop", 0, Some("n2")));
    node.settle().await;
    assert_eq!(standing(&node), Some(Standing::Here { denied: true }));

    let draining = Report {
        draining: true,
        ..Report::default()
    };
    near.send(FromGateway::Report(draining));
    node.gateway_event().await;
    node.settle().await;
    assert_eq!(standing(&node), None, "the successor is on n2");
    node.objects(|world| gateway(world, "shop", 0, Some("n1")));
    node.settle().await;
    assert_eq!(
        standing(&node),
        Some(Standing::Leaving { version: None }),
        "nobody else has reported yet"
    );
    node.lose(near).await;
    assert_eq!(standing(&node), Some(Standing::Leaving { version: None }));
    node.objects(|world| gateway(world, "shop", 0, Some("n2")));
    node.settle().await;
    assert_eq!(standing(&node), None);
}

#[tokio::test]
async fn a_gateway_that_falls_silent_is_left_and_one_that_drains_still_carries_for_others() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        peer(world, "shop", "tokyo", 2);
        web(world);
        for (n, name) in (1..).zip(["n1", "n2", "n3"]) {
            block(world, "shop", name, 8 * n, 8);
        }
        gateway(world, "shop", 0, None);
        gateway(world, "shop", 1, Some("n2"));
        gateway(world, "shop", 2, Some("n3"));
    });
    node.sandbox("web");
    node.settle().await;
    let (first, second) = (("192.168.7.2", (77, 1)), ("192.168.7.3", (77, 2)));
    let asked = node.liveness.borrow().wanted.clone();
    for (address, gateway) in [first, second] {
        assert!(asked[&address.parse().unwrap()].contains(&gateway), "{asked:?}");
    }
    let well = Health {
        reached: 1,
        ..Health::default()
    };
    type Place<'a> = (&'a str, liveness::Gateway);
    let observe = |node: &mut Node, observed: &[(Place<'_>, Adjacency)]| {
        let observed = observed
            .iter()
            .map(|((address, gateway), adjacency)| ((address.parse().unwrap(), *gateway), adjacency.clone()));
        node.event(Event::Liveness(Arc::new(observed.collect())));
    };
    observe(
        &mut node,
        &[
            (first, Adjacency::Reports(well.clone())),
            (second, Adjacency::Silent),
        ],
    );
    node.settle().await;
    node.kernel.take_log();
    observe(
        &mut node,
        &[
            (first, Adjacency::Silent),
            (second, Adjacency::Reports(well.clone())),
        ],
    );
    node.settle().await;
    let moved = ["2", "all"].map(|to| format!("+ entry shop exit to {to} node 192.168.7.3"));
    assert_eq!(node.kernel.take_log(), moved, "at one moment each");

    let mut near = node.connect("shop", 0, false).await;
    let report = |reached, draining| {
        FromGateway::Report(Report {
            reached,
            draining,
            tunnels: vec![up("tokyo/0")],
            ..Report::default()
        })
    };
    let take = async |node: &mut Node, near: &Near, message| {
        near.send(message);
        node.gateway_event().await;
        node.settle().await;
        node.kernel.take_log()
    };
    node.kernel.take_log();
    let log = take(&mut node, &near, report(1, false)).await;
    assert!(log.contains(&exit(&tap(0))), "{log:?}");
    assert_eq!(node.liveness.borrow().own[&(77, 0)], well);

    let log = take(&mut node, &near, report(1, true)).await;
    assert_eq!(log, moved, "what others send still passes");
    assert!(node.liveness.borrow().own[&(77, 0)].draining, "the others know");
    assert!(take(&mut node, &near, report(1, true)).await.is_empty());
    assert!(matches!(near.receive().await, (ToGateway::Config(_), _)));

    node.lose(near).await;
    assert!(node.liveness.borrow().own.is_empty());
}

#[tokio::test]
async fn a_gateway_that_outlives_its_agent_keeps_its_tap_and_its_place() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        web(world);
        block(world, "shop", "n2", 16, 8);
        gateway(world, "shop", 0, Some("n1"));
        gateway(world, "shop", 1, Some("n2"));
    });
    node.sandbox("web");
    let mut near = node.connect("shop", 0, false).await;
    near.receive().await;
    near.receive().await;
    node.kernel.take_log();
    node.restart().await;
    node.settle().await;
    assert_eq!(
        node.kernel.take_log(),
        Vec::<String>::new(),
        "a restart changes nothing"
    );
    assert!(
        !node.reports().gateways.contains_key("weft-gateway-shop-0"),
        "nobody says that it is gone"
    );
    let mut near = node.connect("shop", 0, true).await;
    assert_eq!(
        node.kernel.take_log(),
        Vec::<String>::new(),
        "nor does its return"
    );
    assert!(matches!(near.receive().await, (ToGateway::Config(_), _)));
    assert!(node.reports().gateways["weft-gateway-shop-0"].connected);
    // One that does not come back is given up.
    node.restart().await;
    node.settle().await;
    node.advance(Duration::from_secs(20));
    node.settle().await;
    assert!(!node.reports().gateways["weft-gateway-shop-0"].connected);
    assert!(
        node.kernel
            .take_log()
            .iter()
            .any(|step| *step == exit("node 192.168.7.2"))
    );
}

#[tokio::test]
async fn a_gateway_with_more_threads_waits_for_its_device_until_the_one_before_lets_go() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        gateway(world, "shop", 0, Some("n1"));
    });
    let mut one = node.connect("shop", 0, false).await;
    one.receive().await;
    assert_eq!(one.receive().await.1.len(), 1);
    node.kernel.take_log();
    let mut four = node.connect_with("shop", 0, false, 4).await;
    assert!(matches!(four.receive().await, (ToGateway::Config(_), _)));
    assert!(one.is_closed().await, "another process speaks for it");
    node.gateway_event().await;
    node.advance(Duration::from_secs(1));
    node.settle().await;
    let log = node.kernel.take_log();
    assert!(
        !log.iter().any(|step| step.contains(" link wt-")),
        "it carries still: {log:?}"
    );

    let tap = names::tap("shop", 0);
    node.kernel.inner().held.clear();
    node.advance(Duration::from_secs(1));
    node.settle().await;
    let log = node.kernel.take_log();
    let place = |start: String| log.iter().position(|step| step.starts_with(&start)).unwrap();
    assert!(place(format!("- link {tap}")) < place(format!("+ link {tap} tap multi_queue ")));
    // Said once more, because frames come with the TAP.
    assert!(matches!(four.receive().await, (ToGateway::Config(_), _)));
    let (ToGateway::Tap(_), queues) = four.receive().await else {
        panic!("the TAP")
    };
    assert_eq!(queues.len(), 4);

    // It outlives the agent, and keeps its device, whatever it says that it can use.
    for queues in [4, 1] {
        node.restart().await;
        node.settle().await;
        let _back = node.connect_with("shop", 0, true, queues).await;
        node.event(Event::Tick);
        node.settle().await;
        assert_eq!(node.kernel.take_log(), Vec::<String>::new(), "{queues}");
        assert!(node.reports().gateways["weft-gateway-shop-0"].connected);
    }
    // It ends; its device stays as it is until its next process says otherwise.
    node.restart().await;
    node.kernel.inner().held.clear();
    node.settle().await;
    let log = node.kernel.take_log();
    assert!(!log.iter().any(|step| step.contains(" link wt-")), "{log:?}");
    let mut many = node.connect_with("shop", 0, false, 200).await;
    many.receive().await;
    assert_eq!(
        many.receive().await.1.len(),
        usize::from(MAX_QUEUES),
        "no more than a device is to have"
    );
}

#[tokio::test]
async fn a_stranger_is_no_gateway() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        gateway(world, "shop", 0, None);
    });
    let mut unknown = node.connect("shop", 5, false).await;
    assert!(unknown.is_closed().await, "there is no such SliceGateway");
    node.serve_as(4242).await;
    let mut other_user = node.dial("shop");
    assert!(other_user.is_closed().await, "another user's process");
}

/// Where the operator says which node a gateway's pod was put on, that node's agent reports it and no other.
#[tokio::test]
async fn a_gateway_is_reported_by_the_node_that_its_pod_was_put_on() {
    let mut node = Node::new();
    let assign = |node: &mut Node, to: &str, status: Option<&str>| {
        node.objects(|world| {
            gateway(world, "shop", 0, status);
            edit_gateway(world, "shop", 0, |spec| spec.node = Some(to.into()));
        });
    };
    node.objects(|world| {
        shop(world);
        block(world, "shop", "n2", 16, 8);
    });
    assign(&mut node, "n1", None);
    node.settle().await;
    let mut near = node.connect("shop", 0, false).await;
    near.receive().await;
    let standing = |node: &Node| {
        let report = node.reports().gateways.get("weft-gateway-shop-0").cloned();
        report.map(|report| report.standing)
    };
    assert_eq!(standing(&node), Some(Standing::Here { denied: false }));
    // What the node before it reported is put right.
    assign(&mut node, "n1", Some("n2"));
    node.settle().await;
    assert_eq!(standing(&node), Some(Standing::Here { denied: true }));
    // It stops: what n2 reported was of before, so it is for this node to say.
    near.send(FromGateway::Report(Report {
        draining: true,
        ..Report::default()
    }));
    node.gateway_event().await;
    node.settle().await;
    assert_eq!(standing(&node), Some(Standing::Leaving { version: None }));
    // Its pod was made anew on n2: nothing is written from here, whether it runs on or not.
    assign(&mut node, "n2", Some("n1"));
    node.settle().await;
    assert_eq!(standing(&node), None);
    let tap = Name::new(names::tap("shop", 0));
    let has_tap = |node: &Node| node.kernel.inner().state.links.contains_key(&tap);
    assert!(has_tap(&node), "while it runs it keeps its device");
    node.lose(near).await;
    assert_eq!(standing(&node), None);
    node.event(Event::Tick);
    node.settle().await;
    assert!(!has_tap(&node), "which goes with it");
}

#[tokio::test]
async fn a_gateway_of_a_lost_node_is_left_for_another() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        web(world);
        for (n, name) in (1..).zip(["n1", "n2", "n3"]) {
            block(world, "shop", name, 8 * n, 8);
        }
        gateway(world, "shop", 1, Some("n2"));
        gateway(world, "shop", 2, Some("n3"));
    });
    node.sandbox("web");
    node.settle().await;
    let used = |node: &Node| {
        let inner = node.kernel.inner();
        let exit = inner.state.segments["shop"].get(&Key::Exit(Clusters::All));
        exit.unwrap().to_string()
    };
    let ordinal = match used(&node).as_str() {
        "exit to all node 192.168.7.2" => 1,
        _ => 2,
    };
    let lost = |node: &mut Node, ordinal, lost| {
        node.objects(|world| edit_gateway(world, "shop", ordinal, |spec| spec.lost = lost));
    };
    let before = used(&node);
    lost(&mut node, ordinal, true);
    node.settle().await;
    assert_ne!(used(&node), before);
    lost(&mut node, 3 - ordinal, true);
    node.settle().await;
    assert_eq!(
        used(&node),
        before,
        "where all are lost, one is used all the same"
    );
}
