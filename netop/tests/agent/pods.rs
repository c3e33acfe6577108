//! What becomes of pods: by their labels, by the plugin's questions, and of those that the kernel holds already.

use std::{sync::Arc, time::Duration};

use slice_crds::{
    Mac, names,
    v1alpha1::{SliceNodePhase, SliceNodeStatus},
};
use slice_netop::{
    agent::{Chain, Event, Fetched},
    cni::wire::{Command, Reply},
    model::{Name, State},
    world::{PodView, World},
};

use crate::support::{
    Node, attached_annotation, bare_annotations, best_effort, block, edit_pod, labelled, pod, shop, slice,
    teardown, undone,
};

fn port(slice: &str, pod: &str) -> Name {
    Name::new(names::pod_port(slice, &format!("uid-{pod}")))
}

#[tokio::test]
async fn a_label_attaches_running_pods_and_its_removal_detaches_them() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        pod(world, "cart", "web", &[]);
    });
    node.sandbox("web");
    node.settle().await;
    assert!(node.attached().is_empty(), "not labelled yet");
    node.objects(|world| labelled(world, "cart", "shop"));
    node.settle().await;
    assert_eq!(node.attached(), [port("shop", "web")]);
    let report = &node.reports().pods["uid-web"].patch;
    let annotation = report["metadata"]["annotations"]["weft.dev/attachments"]
        .as_str()
        .unwrap();
    assert!(
        annotation.contains("10.80.0.8") && annotation.contains("sl-shop"),
        "{annotation}"
    );
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
        shop(world);
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
    node.objects(attached_annotation);
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
            "what pods have already is not announced again"
        );
    }
}

#[tokio::test]
async fn before_the_objects_are_known_nothing_is_touched_and_the_plugin_is_on_its_own() {
    let mut node = Node::with_web().await;
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
        shop(world);
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
        shop(world);
        labelled(world, "cart", "shop");
    });
    let mut answer = node.call(Command::Add, "web");
    node.settle().await;
    node.settle().await;
    let fetch = node.fetches.try_recv().unwrap();
    assert!(node.fetches.try_recv().is_err(), "asked once");
    assert!(answer.try_recv().is_err(), "waits");
    let mut world = World::default();
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
    node.objects(|world| best_effort(world, "shop"));
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
    let of_bank = format!("~ link {} attach", port("bank", "web"));
    node.kernel.inner().refused.push(of_bank);
    node.settle().await;
    assert_eq!(
        node.attached(),
        [port("shop", "web")],
        "no port of bank opens without its program"
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
    let mut node = Node::with_web().await;
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
    let mut node = Node::with_web().await;
    node.event(Event::Tick);
    node.settle().await;
    assert_eq!(node.metric("weft_netop_drift_repaired_total"), 0.0);
    let device = Name::to_pods();
    node.kernel.inner().state.links.remove(&device);
    node.event(Event::KernelChanged);
    node.settle().await;
    assert!(node.kernel.inner().state.links.contains_key(&device));
    assert!(node.metric("weft_netop_drift_repaired_total") > 0.0);
}

#[tokio::test]
async fn a_pod_that_ends_or_is_made_anew_is_followed() {
    let mut node = Node::with_web().await;
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
async fn a_teardown_takes_everything_away_and_stays_so() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        labelled(world, "cart", "shop");
        pod(world, "cart", "web", &[]);
    });
    node.chain.send_replace(Chain::Installed);
    let added = node.call(Command::Add, "web");
    node.settle().await;
    added.await.unwrap();
    node.objects(attached_annotation);
    node.settle().await;
    assert_eq!(node.reports().node.unwrap().phase, SliceNodePhase::Ready);
    node.objects(teardown);
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
    node.objects(bare_annotations);
    node.settle().await;
    assert_eq!(node.reports().node.unwrap().phase, SliceNodePhase::Removed);
    assert!(!node.run.checkpoint().exists() && !node.run.members().exists());
    let answer = node.call(Command::Add, "web");
    node.settle().await;
    assert_eq!(answer.await.unwrap(), Reply::Attached(vec![]));
    assert_eq!(node.kernel.inner().state, Default::default());
}

#[tokio::test]
async fn a_teardown_that_is_undone_leaves_the_node_as_it_was() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        labelled(world, "cart", "shop");
        pod(world, "cart", "web", &[]);
    });
    node.chain.send_replace(Chain::Installed);
    node.sandbox("web");
    node.settle().await;
    assert_eq!(node.attached(), [port("shop", "web")]);
    let before = std::fs::read_to_string(node.run.members()).unwrap();
    node.objects(teardown);
    node.chain.send_replace(Chain::Removed);
    node.settle().await;
    node.objects(bare_annotations);
    node.settle().await;
    assert_eq!(node.reports().node.unwrap().phase, SliceNodePhase::Removed);
    node.objects(undone);
    node.chain.send_replace(Chain::Installed);
    node.settle().await;
    assert_eq!(node.attached(), [port("shop", "web")]);
    assert_eq!(node.reports().node.unwrap().phase, SliceNodePhase::Ready);
    assert_eq!(std::fs::read_to_string(node.run.members()).unwrap(), before);
}

/// What is in the way of a pod of `shop`, whose subnet is 10.80.0.0/24.
async fn obstacle(node: &mut Node) -> String {
    node.settle().await;
    node.advance(Duration::from_secs(4));
    node.settle().await;
    assert!(node.attached().is_empty());
    assert_eq!(
        node.reports().blocks["shop.n1"].usage.held,
        0,
        "it has no index either"
    );
    node.announced().join("\n")
}

#[tokio::test]
async fn a_pod_is_not_attached_to_a_slice_that_would_cut_it_off_from_its_cluster() {
    let mut node = Node::with_web().await;
    node.announced();
    node.objects(|world| {
        edit_pod(world, "web", |pod| {
            pod.addresses = vec!["10.80.0.77".parse().unwrap()]
        })
    });
    let text = obstacle(&mut node).await;
    for part in [
        "AddressConflict",
        "10.80.0.0/24",
        "10.80.0.77 in it is the pod's own address",
        "weft.dev/exclude=true",
    ] {
        assert!(text.contains(part), "{text}");
    }
    node.objects(|world| {
        edit_pod(world, "web", |pod| {
            pod.addresses = vec!["10.244.1.7".parse().unwrap()]
        })
    });
    node.settle().await;
    assert_eq!(node.attached(), [port("shop", "web")]);
    node.announced();
    // The subnet covers the node.
    node.objects(|world| {
        slice(world, "shop", 77, "192.168.0.0/16");
    });
    let text = obstacle(&mut node).await;
    assert!(
        text.contains("192.168.7.1 in it is the address of the pod's node"),
        "{text}"
    );
}

#[tokio::test]
async fn a_pod_whose_containers_have_a_network_of_their_own_is_refused_by_the_name_of_its_class() {
    for class in ["gvisor", "runsc-debug", "kata-qemu", "Kata-CC-isolation"] {
        let mut node = Node::with_web().await;
        node.announced();
        node.objects(|world| edit_pod(world, "web", |pod| pod.runtime_class = Some(class.into())));
        let text = obstacle(&mut node).await;
        for part in ["RuntimeNotSupported", class, "weft.dev/exclude=true"] {
            assert!(text.contains(part), "{text}");
        }
        // Where the slice requires its interface, the runtime is told the same.
        let asked = node.call(Command::Check, "web");
        node.settle().await;
        let Reply::Refused(why) = asked.await.unwrap() else {
            panic!("refused")
        };
        assert!(why.contains(class), "{why}");
    }
    let mut node = Node::with_web().await;
    node.objects(|world| edit_pod(world, "web", |pod| pod.runtime_class = Some("nvidia".into())));
    node.settle().await;
    assert_eq!(
        node.attached(),
        [port("shop", "web")],
        "others run in the namespace"
    );
}

#[tokio::test]
async fn what_the_plugins_before_gave_a_pod_counts_before_the_kubelet_reports_it() {
    let mut node = Node::new();
    node.objects(|world| {
        shop(world);
        labelled(world, "cart", "shop");
        pod(world, "cart", "web", &[]);
    });
    let mut answer = node.call_with("cart", Command::Add, "web", &["10.80.0.77", "fd00::7"]);
    node.settle().await;
    assert!(node.attached().is_empty() && answer.try_recv().is_err());
    node.advance(Duration::from_secs(9));
    node.settle().await;
    let Ok(Reply::Refused(reason)) = answer.await else {
        panic!("refused")
    };
    assert!(
        reason.contains("10.80.0.77 in it is the pod's own address"),
        "{reason}"
    );
    // The agent starts again before the kubelet has reported it.
    node.restart().await;
    node.settle().await;
    assert!(node.attached().is_empty());
    // Its next sandbox has another address.
    let answer = node.call_with("cart", Command::Add, "web", &["10.244.1.7"]);
    node.settle().await;
    assert!(matches!(answer.await, Ok(Reply::Attached(interfaces)) if interfaces.len() == 1));
}

#[tokio::test]
async fn the_networks_of_the_nodes_pods_are_reported() {
    let mut node = Node::new();
    node.objects(|world| {
        for (name, address) in [
            ("a", "10.244.1.7"),
            ("b", "10.9.0.1"),
            ("c", "192.168.7.1"),
            ("d", "10.7.0.1"),
        ] {
            pod(world, "plain", name, &[]);
            edit_pod(world, name, |pod| pod.addresses = vec![address.parse().unwrap()]);
        }
        edit_pod(world, "c", |pod| pod.facts.host_network = true);
        edit_pod(world, "d", |pod| pod.finished = true);
    });
    node.settle().await;
    let networks = |node: &Node| {
        let report = node.reports().node.unwrap();
        report
            .pod_networks
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(networks(&node), ["10.9.0.0/24", "10.244.1.0/24"]);
    node.objects(|world| {
        world.pods.remove("uid-b");
        // As the agent before it reported.
        let status = SliceNodeStatus {
            pod_networks: vec!["10.9.0.0/24".parse().unwrap(), "10.244.1.0/24".parse().unwrap()],
            ..SliceNodeStatus::default()
        };
        Arc::make_mut(world.node.as_mut().unwrap()).status = Some(status);
    });
    node.restart().await;
    node.settle().await;
    assert_eq!(
        networks(&node),
        ["10.9.0.0/24", "10.244.1.0/24"],
        "a restart forgets none"
    );
    node.advance(Duration::from_secs(600));
    node.settle().await;
    assert_eq!(networks(&node), ["10.244.1.0/24"]);
}

/// A pod may give its own end of the pair any Ethernet address.
#[tokio::test]
async fn a_pod_cannot_take_another_index_by_its_own_interface() {
    let mut node = Node::with_web().await;
    let own = port("shop", "web");
    // As the release before left it, or somebody by hand.
    let set = |node: &Node, index: u32, nameless: bool| {
        let mut inner = node.kernel.inner();
        inner.state.pods.get_mut(&own).unwrap().mac = Mac::of_index(index);
        if nameless {
            inner.state.links.get_mut(&own).unwrap().alias = None;
        }
    };
    let index = |node: &Node| node.kernel.inner().state.pods[&own].mac.index();
    for nameless in [false, true] {
        set(&node, 12, nameless);
        node.restart().await;
        node.settle().await;
        assert_eq!(index(&node), Some(8), "its port has no alias: {nameless}");
    }
    // Neither where everything else that tells is lost.
    set(&node, 12, true);
    std::fs::remove_file(node.run.checkpoint()).unwrap();
    node.restart().await;
    node.settle().await;
    assert_eq!(index(&node), Some(8));
}

#[tokio::test]
async fn a_failure_is_announced_once_though_its_figures_change() {
    let mut node = Node::new();
    node.objects(|world| {
        slice(world, "shop", 77, "10.80.0.0/24");
        block(world, "shop", "n1", 8, 2);
        labelled(world, "cart", "shop");
        for name in ["a", "b", "c"] {
            pod(world, "cart", name, &[]);
        }
    });
    for name in ["a", "b", "c"] {
        node.sandbox(name);
    }
    node.settle().await;
    node.advance(Duration::from_secs(4));
    node.settle().await;
    let announced = node.announced().join("\n");
    assert!(
        announced.contains("AttachFailed c: ") && announced.contains("2 by pods"),
        "{announced}"
    );
    node.objects(|world| {
        world.pods.remove("uid-a");
    });
    for _ in 0..2 {
        node.settle().await;
        node.advance(Duration::from_secs(4));
    }
    assert_eq!(node.announced(), Vec::<String>::new());
    node.advance(Duration::from_secs(4));
    node.settle().await;
    assert!(node.announced()[0].starts_with("Attached c: "));
}

/// The node starts again: interfaces and everything under /run are gone, the pods are the same ones.
#[tokio::test]
async fn after_a_reboot_every_pod_comes_back_with_its_address() {
    let mut node = Node::new();
    let names = ["db-0", "db-1", "db-2", "db-3"];
    node.objects(|world| {
        shop(world);
        labelled(world, "cart", "shop");
    });
    // Not in the order in which anybody would give them out.
    for name in ["db-2", "db-0", "db-3", "db-1"] {
        node.objects(|world| pod(world, "cart", name, &[]));
        node.sandbox(name);
        node.settle().await;
    }
    let indices = |node: &Node| {
        let inner = node.kernel.inner();
        names.map(|name| inner.state.pods[&port("shop", name)].mac.index().unwrap())
    };
    let before = indices(&node);
    node.kernel.inner().state = State::default();
    std::fs::remove_dir_all(&node.run.run).unwrap();
    node.forget_sandboxes();
    node.restart().await;
    let required = std::fs::read_to_string(node.run.members()).unwrap();
    assert!(
        required.contains("cart"),
        "those that must wait do, until the agent is back"
    );
    node.settle().await;
    for name in names {
        node.sandbox(name);
        node.settle().await;
    }
    assert_eq!(indices(&node), before);
}

/// A StatefulSet's pod that is deleted comes back as another pod of its name.
#[tokio::test]
async fn a_pod_of_the_same_name_gets_the_address_that_rests() {
    let mut node = Node::with_web().await;
    node.objects(|world| {
        world.pods.remove("uid-web");
        pod(world, "cart", "other", &[]);
    });
    node.sandbox("other");
    node.settle().await;
    node.objects(|world| {
        pod(world, "cart", "web", &[]);
        let mut again = PodView::clone(&world.pods.remove("uid-web").unwrap());
        (again.uid, again.sandbox_uid) = ("uid-again".into(), "uid-again".into());
        world.pods.insert("uid-again".into(), Arc::new(again));
    });
    node.sandbox("again");
    node.settle().await;
    let again = port("shop", "again");
    let index = node.kernel.inner().state.pods[&again].mac.index();
    assert_eq!(index, Some(8), "what web had, and rests");
}
