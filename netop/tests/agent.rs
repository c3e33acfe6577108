//! The agent with a kernel in memory: objects, pods, plugin and gateways in, kernel, answers and reports out.

#[allow(
    clippy::unwrap_used,
    unreachable_pub,
    dead_code,
    reason = "helpers, not every one of which every test uses"
)]
#[path = "agent/support.rs"]
mod support;

use std::time::Duration;

use slice_crds::{names, v1alpha1::SliceNodePhase};
use slice_netop::{
    agent::{Chain, Event, Fetched},
    cni::wire::{Command, Reply},
    liveness::{self, Heard, Word},
    model::{Element, Exit, Name, Segment},
    status::Standing,
    world::PodView,
};
use slice_runtime::handover::{FromGateway, MAX_QUEUES, Report, ToGateway};
use support::{Node, block, gateway, labelled, pod, slice};

/// The element that decides by which exit the pods' frames leave the node.
fn way(exit: Exit) -> String {
    let table = Segment::of_slice("shop").table();
    format!("element {table} ways {}", Element::Way(exit))
}

fn port(slice: &str, pod: &str) -> Name {
    Name::new(names::pod_port(slice, &format!("uid-{pod}")))
}

#[tokio::test]
async fn a_label_attaches_running_pods_and_its_removal_detaches_them() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        pod(world, "cart", "web", &[]);
    });
    node.sandbox("web");
    node.settle().await;
    assert!(node.attached().is_empty(), "not labelled yet");
    node.objects(|world| labelled(world, "cart", "shop"));
    node.settle().await;
    assert_eq!(node.attached(), [port("shop", "web")]);
    let report = &node.reports().pods["uid-web"].patch;
    let said = report["metadata"]["annotations"]["weft.dev/attachments"]
        .as_str()
        .unwrap();
    assert!(said.contains("10.80.0.8") && said.contains("sl-shop"), "{said}");
    assert_eq!(node.reports().blocks["shop.n1"].attachments, 1);
    assert_eq!(
        node.announced(),
        ["Attached web: attached to slice shop as sl-shop with 10.80.0.8"]
    );
    node.objects(|world| labelled(world, "cart", ""));
    node.settle().await;
    assert!(node.attached().is_empty());
    assert_eq!(node.announced(), ["Detached web: detached from slice shop"]);
    assert_eq!(node.reports().blocks["shop.n1"].usage.free, 7, "an index rests");
}

#[tokio::test]
async fn a_restart_changes_nothing_with_or_without_its_checkpoint() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        labelled(world, "cart", "shop");
        pod(world, "cart", "web", &[]);
        pod(world, "cart", "db", &[]);
    });
    node.sandbox("web");
    node.sandbox("db");
    node.settle().await;
    // An order of indices that nobody would give out again.
    node.objects(|world| {
        world.pods.remove("uid-db");
    });
    node.settle().await;
    node.objects(|world| {
        pod(world, "cart", "cache", &[]);
    });
    node.sandbox("cache");
    node.settle().await;
    let before = node.kernel.inner().state.clone();
    assert_eq!(node.attached().len(), 2);
    node.announced();
    node.objects(support::attached_annotation);
    for keep in [true, false] {
        if !keep {
            std::fs::remove_file(node.run.checkpoint()).unwrap();
            // Nor does libcni remember.
            node.forget_sandboxes();
        }
        node.kernel.take_log();
        node.restart().await;
        node.settle().await;
        assert_eq!(
            node.kernel.take_log(),
            Vec::<String>::new(),
            "checkpoint kept: {keep}"
        );
        assert_eq!(node.kernel.inner().state, before);
        assert_eq!(node.metric("weft_netop_drift_repaired_total"), 0.0);
        assert_eq!(
            node.announced(),
            Vec::<String>::new(),
            "what pods say already is not said again"
        );
    }
}

#[tokio::test]
async fn before_the_objects_are_known_nothing_is_touched_and_the_plugin_is_on_its_own() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        labelled(world, "cart", "shop");
        pod(world, "cart", "web", &[]);
    });
    node.sandbox("web");
    node.settle().await;
    node.kernel.take_log();
    node.restart_without_objects().await;
    let answer = node.call(Command::Add, "web");
    node.settle().await;
    assert_eq!(node.kernel.take_log(), Vec::<String>::new());
    assert!(
        answer.await.is_err(),
        "no answer: the plugin decides by the members file"
    );
    let members = std::fs::read_to_string(node.run.members()).unwrap();
    assert_eq!(members, r#"{"requiredNamespaces":["cart"]}"#);
}

#[tokio::test]
async fn a_new_pod_is_attached_before_the_plugin_is_answered() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        labelled(world, "cart", "shop");
        pod(world, "cart", "web", &[]);
        pod(world, "plain", "other", &[]);
    });
    let (inside, outside) = (
        node.call(Command::Add, "web"),
        node.call_in("plain", Command::Add, "other"),
    );
    node.settle().await;
    let Ok(Reply::Attached(interfaces)) = inside.await else {
        panic!("attached")
    };
    assert_eq!(
        (interfaces[0].name.as_str(), interfaces[0].mac.as_str()),
        ("sl-shop", "02:5c:00:00:00:08")
    );
    assert_eq!(outside.await.unwrap(), Reply::Attached(vec![]));
    assert_eq!(node.attached(), [port("shop", "web")]);
    // The record outlives a restart that comes before libcni has written its own.
    node.restart().await;
    node.settle().await;
    assert_eq!(node.attached(), [port("shop", "web")]);
    let gone = node.call(Command::Del, "web");
    node.settle().await;
    assert_eq!(gone.await.unwrap(), Reply::Attached(vec![]));
    assert!(node.attached().is_empty());
}

#[tokio::test]
async fn a_pod_that_the_watch_has_not_shown_is_asked_for_once() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        labelled(world, "cart", "shop");
    });
    let mut answer = node.call(Command::Add, "web");
    node.settle().await;
    node.settle().await;
    let fetch = node.fetches.try_recv().unwrap();
    assert!(node.fetches.try_recv().is_err(), "asked once");
    assert!(answer.try_recv().is_err(), "waits");
    let mut world = slice_netop::world::World::default();
    pod(&mut world, "cart", "web", &[]);
    let found = Ok(Some((world.pods["uid-web"].clone(), Default::default())));
    node.event(Event::Fetched(Fetched { fetch, found }));
    node.settle().await;
    assert!(matches!(answer.await, Ok(Reply::Attached(interfaces)) if interfaces.len() == 1));
    // And one that is not there at all starts as it likes.
    let answer = node.call(Command::Add, "ghost");
    node.settle().await;
    let fetch = node.fetches.try_recv().unwrap();
    node.event(Event::Fetched(Fetched {
        fetch,
        found: Ok(None),
    }));
    node.settle().await;
    assert_eq!(answer.await.unwrap(), Reply::Attached(vec![]));
}

#[tokio::test]
async fn a_required_pod_is_refused_with_the_reason_and_a_best_effort_one_is_not() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 2);
        labelled(world, "cart", "shop");
        for name in ["a", "b", "c"] {
            pod(world, "cart", name, &[]);
        }
    });
    for name in ["a", "b"] {
        let answer = node.call(Command::Add, name);
        node.settle().await;
        assert!(matches!(answer.await, Ok(Reply::Attached(interfaces)) if interfaces.len() == 1));
    }
    let mut answer = node.call(Command::Add, "c");
    node.settle().await;
    assert!(answer.try_recv().is_err(), "a block may come yet");
    node.advance(Duration::from_secs(9));
    node.settle().await;
    let Ok(Reply::Refused(reason)) = answer.await else {
        panic!("refused")
    };
    assert!(
        reason.contains("slice shop requires") && reason.contains("all 2 indices"),
        "{reason}"
    );
    node.objects(|world| support::best_effort(world, "shop"));
    let answer = node.call(Command::Add, "c");
    node.settle().await;
    assert_eq!(answer.await.unwrap(), Reply::Attached(vec![]));
    // A new block, and the pod that runs already is attached.
    node.objects(|world| block(world, "shop", "n1", 8, 8));
    node.settle().await;
    assert_eq!(node.attached().len(), 3);
}

#[tokio::test]
async fn one_slice_in_trouble_leaves_the_others_alone() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        slice(world, "bank", 78, "10.90.0.0/24");
        for name in ["shop", "bank"] {
            block(world, name, "n1", 8, 8);
        }
        labelled(world, "cart", "shop.bank");
        pod(world, "cart", "web", &[]);
    });
    node.sandbox("web");
    let table = names::filter_table("bank");
    node.kernel.inner().refused.push(format!("table {table}"));
    node.settle().await;
    assert_eq!(
        node.attached(),
        [port("shop", "web")],
        "no port of bank opens without its filter"
    );
    let reports = node.reports();
    assert_eq!(reports.blocks["shop.n1"].ready.status, Some(true));
    let bank = &reports.blocks["bank.n1"].ready;
    assert!(
        bank.status == Some(false) && bank.message.contains("refused"),
        "{bank:?}"
    );
    node.kernel.inner().refused.clear();
    node.event(Event::Tick);
    node.settle().await;
    assert_eq!(node.attached().len(), 2);
    assert_eq!(node.reports().blocks["bank.n1"].ready.status, Some(true));
}

#[tokio::test]
async fn a_pod_cannot_be_in_two_slices_with_one_subnet() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        labelled(world, "cart", "shop");
        pod(world, "cart", "web", &[]);
    });
    node.sandbox("web");
    node.settle().await;
    node.announced();
    node.objects(|world| {
        slice(world, "bank", 78, "10.80.0.0/16");
        block(world, "bank", "n1", 8, 8);
        labelled(world, "cart", "bank.shop");
    });
    node.settle().await;
    node.advance(Duration::from_secs(4));
    node.settle().await;
    assert_eq!(
        node.attached(),
        [port("shop", "web")],
        "what the pod has, it keeps"
    );
    let announced = node.announced().join("\n");
    assert!(
        announced.contains("AddressConflict") && announced.contains("bank and shop"),
        "{announced}"
    );
}

#[tokio::test]
async fn what_others_change_is_repaired_and_counted_and_what_was_asked_for_is_not() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
    });
    node.settle().await;
    node.event(Event::Tick);
    node.settle().await;
    assert_eq!(node.metric("weft_netop_drift_repaired_total"), 0.0);
    node.kernel
        .inner()
        .state
        .links
        .remove(&Name::new(names::vxlan("shop")));
    node.event(Event::KernelChanged);
    node.settle().await;
    assert!(
        node.kernel
            .inner()
            .state
            .links
            .contains_key(&Name::new(names::vxlan("shop")))
    );
    assert!(node.metric("weft_netop_drift_repaired_total") > 0.0);
}

#[tokio::test]
async fn a_pod_that_ends_or_is_made_anew_is_followed() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        labelled(world, "cart", "shop");
        pod(world, "cart", "web", &[]);
    });
    node.sandbox("web");
    node.settle().await;
    // Its sandbox ends without anybody saying so, and another comes.
    node.end_sandbox("web");
    node.event(Event::Tick);
    node.settle().await;
    assert!(node.attached().is_empty());
    let answer = node.call(Command::Add, "web");
    node.settle().await;
    assert!(
        matches!(answer.await, Ok(Reply::Attached(interfaces)) if interfaces[0].mac == "02:5c:00:00:00:08")
    );
    node.objects(|world| {
        let mut finished = PodView::clone(&world.pods["uid-web"]);
        finished.finished = true;
        world.pods.insert("uid-web".into(), finished.into());
    });
    node.settle().await;
    assert!(node.attached().is_empty());
}

#[tokio::test]
async fn a_gateway_gets_its_tap_and_its_node_uses_it_until_it_goes() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        block(world, "shop", "n2", 16, 8);
        gateway(world, "shop", 0, None);
        gateway(world, "shop", 1, Some("n2"));
    });
    node.settle().await;
    let uplink = names::uplink("shop");
    let log = node.kernel.take_log();
    assert!(
        log.iter()
            .any(|step| step.contains(&uplink) && step.contains("remote 192.168.7.2")),
        "the other node's gateway is used: {log:?}"
    );
    assert!(log.contains(&format!("+ {}", way(Exit::UPLINK))));

    let mut near = node.connect("shop", 0, false).await;
    let log = node.kernel.take_log();
    let place = |step: String| log.iter().position(|line| *line == step).unwrap();
    let moved = place(format!("+ {}", way(Exit::tap(0))));
    assert_eq!(
        place(format!("- {}", way(Exit::UPLINK))) + 1,
        moved,
        "in one transaction"
    );
    assert!(place(format!("~ link {uplink} remote none")) > moved);
    let (ToGateway::Config(config), _) = near.receive().await else {
        panic!("configuration first")
    };
    assert_eq!((config.vni, config.vtep.to_string().as_str()), (77, "198.18.1.1"));
    let (ToGateway::Tap(tap), queues) = near.receive().await else {
        panic!("then the TAP")
    };
    assert_eq!((tap.interface, queues.len()), (names::tap("shop", 0), 1));
    let reports = node.reports();
    let said = &reports.gateways["weft-gateway-shop-0"];
    assert!(
        said.connected
            && said.node == "n1"
            && said.keys.as_ref().is_some_and(|keys| keys.public_key == "key-0")
    );
    assert_eq!(
        reports.gateways.len(),
        1,
        "another node's gateway is its own agent's"
    );

    // A change of the slice is told, once.
    node.objects(|world| support::peer(world, "shop", "tokyo", 2));
    node.settle().await;
    node.settle().await;
    let (ToGateway::Config(config), _) = near.receive().await else {
        panic!("a configuration")
    };
    assert_eq!(config.peers[0].gateways[0].name, "tokyo/0");
    near.send(FromGateway::Report(Report::default()));
    node.gateway_event().await;
    node.settle().await;

    drop(near);
    node.gateway_event().await;
    node.kernel.inner().held.clear();
    node.settle().await;
    let log = node.kernel.take_log();
    assert!(
        log.contains(&format!("~ link {uplink} remote 192.168.7.2")),
        "the other node's gateway again: {log:?}"
    );
    assert!(
        !node.reports().gateways.contains_key("weft-gateway-shop-0"),
        "its object never said it was here"
    );
}

/// A pod that was deleted by force runs on for a while, beside its successor on another node.
#[tokio::test]
async fn who_leaves_does_not_speak_against_its_successor() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        gateway(world, "shop", 0, Some("n1"));
    });
    node.settle().await;
    let mut near = node.connect("shop", 0, false).await;
    near.receive().await;
    let standing = |node: &Node| {
        let said = node.reports().gateways.get("weft-gateway-shop-0").cloned();
        said.map(|report| report.standing)
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
    drop(near);
    node.gateway_event().await;
    node.kernel.inner().held.clear();
    node.settle().await;
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
        support::peer(world, "shop", "tokyo", 2);
        for (n, name) in (1..).zip(["n1", "n2", "n3"]) {
            block(world, "shop", name, 8 * n, 8);
        }
        gateway(world, "shop", 0, None);
        gateway(world, "shop", 1, Some("n2"));
        gateway(world, "shop", 2, Some("n3"));
    });
    node.settle().await;
    let (first, second) = (("192.168.7.2", (77, 1)), ("192.168.7.3", (77, 2)));
    let asked = node.liveness.borrow().wanted.clone();
    for (address, gateway) in [first, second] {
        assert!(asked[&address.parse().unwrap()].contains(&gateway), "{asked:?}");
    }
    let well = Word {
        reached: 1,
        draining: false,
    };
    type Place<'a> = (&'a str, liveness::Gateway);
    let hear = |node: &mut Node, heard: &[(Place<'_>, Heard)]| {
        let heard = heard
            .iter()
            .map(|((address, gateway), heard)| ((address.parse().unwrap(), *gateway), *heard));
        node.event(Event::Heard(std::sync::Arc::new(heard.collect())));
    };
    hear(&mut node, &[(first, Heard::Says(well)), (second, Heard::Silent)]);
    node.settle().await;
    node.kernel.take_log();
    hear(&mut node, &[(first, Heard::Silent), (second, Heard::Says(well))]);
    node.settle().await;
    let uplink = names::uplink("shop");
    assert_eq!(
        node.kernel.take_log(),
        [format!("~ link {uplink} remote 192.168.7.3")],
        "one change, at one moment"
    );

    let mut near = node.connect("shop", 0, false).await;
    let report = |reached, draining| {
        FromGateway::Report(Report {
            reached,
            draining,
            ..Report::default()
        })
    };
    let say = async |node: &mut Node, near: &support::Near, message| {
        near.send(message);
        node.gateway_event().await;
        node.settle().await;
        node.kernel.take_log()
    };
    node.kernel.take_log();
    let log = say(&mut node, &near, report(1, false)).await;
    assert!(log.contains(&format!("+ {}", way(Exit::tap(0)))), "{log:?}");
    assert_eq!(node.liveness.borrow().own[&(77, 0)], well);

    let log = say(&mut node, &near, report(1, true)).await;
    assert_eq!(
        log,
        [
            format!("~ link {uplink} remote 192.168.7.3"),
            format!("- {}", way(Exit::tap(0))),
            format!("+ {}", way(Exit::UPLINK)),
        ],
        "the other way is open before it is taken, and what others send still passes"
    );
    assert!(
        node.liveness.borrow().own[&(77, 0)].draining,
        "the others are told"
    );
    assert!(say(&mut node, &near, report(1, true)).await.is_empty());
    assert!(matches!(near.receive().await, (ToGateway::Config(_), _)));

    drop(near);
    node.gateway_event().await;
    node.kernel.inner().held.clear();
    node.settle().await;
    assert!(node.liveness.borrow().own.is_empty());
}

#[tokio::test]
async fn a_gateway_that_outlives_its_agent_keeps_its_tap_and_its_place() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        block(world, "shop", "n2", 16, 8);
        gateway(world, "shop", 0, Some("n1"));
        gateway(world, "shop", 1, Some("n2"));
    });
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
            .any(|step| step.ends_with("remote 192.168.7.2"))
    );
}

#[tokio::test]
async fn a_gateway_with_more_threads_waits_for_its_device_until_the_one_before_lets_go() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
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
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        gateway(world, "shop", 0, None);
    });
    let mut unknown = node.connect("shop", 5, false).await;
    assert!(unknown.is_closed().await, "there is no such SliceGateway");
    node.serve_as(4242).await;
    let mut other_user = node.dial("shop");
    assert!(other_user.is_closed().await, "another user's process");
}

#[tokio::test]
async fn a_teardown_takes_everything_away_and_stays_so() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 8);
        labelled(world, "cart", "shop");
        pod(world, "cart", "web", &[]);
    });
    node.chain.send_replace(Chain::Installed);
    let added = node.call(Command::Add, "web");
    node.settle().await;
    added.await.unwrap();
    node.objects(support::attached_annotation);
    node.settle().await;
    assert_eq!(node.reports().node.unwrap().phase, SliceNodePhase::Ready);
    node.objects(support::teardown);
    node.settle().await;
    assert_eq!(node.kernel.inner().state, Default::default());
    assert_eq!(
        node.reports().node.unwrap().phase,
        SliceNodePhase::Degraded,
        "the CNI chain is not clean yet"
    );
    node.chain.send_replace(Chain::Removed);
    node.settle().await;
    let reports = node.reports();
    assert!(reports.pods["uid-web"].patch["metadata"]["annotations"]["weft.dev/attachments"].is_null());
    assert_eq!(
        reports.node.unwrap().phase,
        SliceNodePhase::Degraded,
        "a pod still says that it is attached"
    );
    node.objects(support::bare_annotations);
    node.settle().await;
    assert_eq!(node.reports().node.unwrap().phase, SliceNodePhase::Removed);
    assert!(!node.run.checkpoint().exists() && !node.run.members().exists());
    let answer = node.call(Command::Add, "web");
    node.settle().await;
    assert_eq!(answer.await.unwrap(), Reply::Attached(vec![]));
    assert_eq!(node.kernel.inner().state, Default::default());
}
