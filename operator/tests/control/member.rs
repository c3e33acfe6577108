//! A member beside its hub: both roles, and the agents' ledgers, driven by hand.

use std::time::Duration;

use serde_json::{Value, json};
use slice_crds::{annotations, annotations::DNS_STUB, conditions, names};
use slice_operator::member::Event;

use crate::{
    simulation::{Agent, World, node},
    stage::KEYS,
};

fn world() -> World {
    let mut world = World::new(1, false);
    world.begin();
    world.check_rest().unwrap();
    world
}

/// The blocks of a slice in a cluster, by node.
fn blocks(world: &World, cluster: &str, slice: &str) -> Vec<String> {
    let cluster = world.clusters.iter().find(|one| one.name == cluster).unwrap();
    let of = cluster
        .server
        .list("SliceBlock")
        .filter(|object| object["spec"]["slice"] == slice);
    of.map(|object| {
        format!(
            "{} {}",
            object["spec"]["node"].as_str().unwrap(),
            object["spec"]["blocks"]
        )
    })
    .collect()
}

fn condition(object: &Value, type_: &str) -> String {
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == type_);
    found.map_or_else(String::new, |found| {
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        format!("{}: {}", text("status"), text("message"))
    })
}

#[test]
fn a_start_with_everything_already_so_writes_nothing() {
    let mut world = world();
    world.calm(3);
    let before = world.writes();
    for at in 0..world.clusters.len() {
        for which in 0..2 {
            world.clusters[at].member.crash(which);
        }
        world.start_member(at);
    }
    world.heal();
    // Before the first heartbeat, and after.
    while world.quiet_round() {}
    assert_eq!(world.writes(), before);
    world.calm(8);
    assert_eq!(world.writes(), before);
}

#[test]
fn a_standby_that_takes_the_lead_knows_no_less_of_the_hub() {
    let mut world = world();
    world.calm(20);
    let before = world.writes();
    let now = world.now();
    let World {
        hub,
        clusters,
        random,
        ..
    } = &mut world;
    for cluster in clusters {
        let (member, mut servers) = cluster.parts(hub);
        member.elect(Some(1), &mut servers, false, random, now);
    }
    while world.quiet_round() {}
    world.calm(8);
    assert_eq!(world.writes(), before);
}

#[test]
fn a_hub_that_does_not_answer_keeps_nothing_local_back() {
    let mut world = world();
    world.clusters[0].is_cut = true;
    world.calm(6);
    let reachable = |world: &World| {
        let slice = world.clusters[0].server.get("Slice", "", "gold").unwrap();
        condition(slice, conditions::REACHABLE)
    };
    assert!(
        reachable(&world).starts_with("False: the hub has taken no heartbeat since 2027-"),
        "{}",
        reachable(&world)
    );
    world.clusters[0].server.put("Node", node("a3", 3));
    world.clusters[0].agents.push(Agent::new("a3"));
    // The range that the cluster has is full with two blocks, so one is needed that only the hub can give.
    world.calm(1);
    assert!(world.clusters[0].agents[2].segments.contains_key("gold"));
    world.clusters[0].is_cut = false;
    world.calm(3);
    assert!(reachable(&world).starts_with("True"), "{}", reachable(&world));
    assert_eq!(blocks(&world, "a", "gold").len(), 3);
    world.check().unwrap();
}

#[test]
fn odd_nodes_are_left_out_and_the_others_go_on() {
    let mut world = world();
    let before = (blocks(&world, "a", "gold"), blocks(&world, "a", "iron"));
    let odd = |name: &str, addresses: Value| {
        let mut object = node(name, 9);
        object["status"]["addresses"] = addresses;
        object
    };
    let address = |address: &str| json!([{"type": "InternalIP", "address": address}]);
    let server = &mut world.clusters[0].server;
    let first = server.get("Node", "", "a1").unwrap()["status"]["addresses"][0]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    server.put("Node", odd("b-twin", address(&first)));
    server.put("Node", odd("c-none", json!([])));
    server.put("Node", odd("d-six", address("2001:db8::1")));
    let mut windows = odd("e-windows", address("172.30.1.250"));
    windows["status"]["nodeInfo"]["operatingSystem"] = "windows".into();
    server.put("Node", windows);
    let mut dead = odd("f-dead", address("172.30.1.251"));
    dead["status"]["conditions"][0]["status"] = "Unknown".into();
    server.put("Node", dead);
    world.calm(4);
    assert_eq!((blocks(&world, "a", "gold"), blocks(&world, "a", "iron")), before);
    world.check().unwrap();
    world.check_rest().unwrap();
    let report = world.hub.get("MemberReport", "weft-member-a", "report").unwrap();
    let text = report["spec"]["warnings"].to_string();
    for name in ["b-twin", "c-none", "d-six", "e-windows", "f-dead"] {
        assert!(text.contains(&format!("Node {name}")), "{name}: {text}");
    }
    assert!(
        text.contains("kubectl delete node") || text.contains("--node-ip"),
        "a remedy that lasts: {text}"
    );
}

#[test]
fn a_node_has_its_startup_taint_until_its_own_agent_is_ready() {
    let mut world = world();
    let registered = || {
        let mut object = node("a3", 3);
        object["spec"]["taints"] = json!([
            {"key": "example.org/gpu", "effect": "NoSchedule"},
            {"key": names::AGENT_NOT_READY, "value": "true", "effect": "NoExecute"},
        ]);
        object
    };
    let taints = |world: &World| -> Vec<String> {
        let node = world.clusters[0].server.get("Node", "", "a3").unwrap();
        let taints = node["spec"]["taints"].as_array().unwrap();
        taints
            .iter()
            .map(|taint| taint["key"].as_str().unwrap().to_owned())
            .collect()
    };
    let set_phase = |world: &mut World, phase: &str| {
        let server = &mut world.clusters[0].server;
        let mut object = server.get("SliceNode", "", "a3").unwrap().clone();
        object["status"] = json!({"phase": phase});
        server.put("SliceNode", object);
    };
    let (both, other) = (["example.org/gpu", names::AGENT_NOT_READY], ["example.org/gpu"]);

    world.clusters[0].server.put("Node", registered());
    world.calm(1);
    assert_eq!(taints(&world), both);
    set_phase(&mut world, "Ready");
    world.calm(1);
    assert_eq!(taints(&world), both, "whoever wrote that does not live");
    set_phase(&mut world, "Degraded");
    // Which renews its Lease.
    world.clusters[0].agents.push(Agent::new("a3"));
    world.calm(1);
    assert_eq!(taints(&world), both);
    set_phase(&mut world, "Ready");
    world.calm(1);
    assert_eq!(taints(&world), other);
    let spec = &world.clusters[0].server.get("Node", "", "a3").unwrap()["spec"];
    assert_eq!(spec["podCIDRs"], json!(["10.244.3.0/24"]), "nothing else changes");
    let rest = world.writes();
    world.calm(2);
    assert_eq!(world.writes(), rest);

    // Another machine of that name, before the first one's objects are gone.
    world.advance(Duration::from_secs(5));
    let uid = |world: &World| {
        let object = world.clusters[0].server.get("SliceNode", "", "a3").unwrap();
        object["metadata"]["uid"].clone()
    };
    let before = uid(&world);
    world.clusters[0].server.delete("Node", "", "a3");
    world.clusters[0].server.put("Node", registered());
    world.calm(1);
    assert_eq!(taints(&world), both);
    assert_ne!(uid(&world), before);
    set_phase(&mut world, "Ready");
    world.calm(1);
    assert_eq!(taints(&world), other);
}

#[test]
fn gateways_follow_tolerations_and_a_taint_that_keeps_them_away_is_named() {
    let mut world = world();
    let set = |world: &World| {
        let set = world.clusters[0]
            .server
            .get("StatefulSet", "weft-gateways", "weft-gateway-gold");
        set.unwrap()["spec"]["template"]["spec"]["tolerations"].clone()
    };
    assert_eq!(set(&world), Value::Null);
    let pod = names::gateway("gold", 0);
    let message = "0/2 nodes are available: 2 node(s) had untolerated taint {infra: }. preemption: 0/2 nodes are available: 2 \
                   Preemption is not helpful for scheduling.";
    world.clusters[0].server.put(
        "Pod",
        json!({
            "metadata": {"name": pod, "namespace": "weft-gateways",
                "labels": {"weft.dev/component": "gateway", "weft.dev/for-slice": "gold"}},
            "spec": {"containers": []},
            "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]},
        }),
    );
    world.calm(2);
    let slice = world.clusters[0].server.get("Slice", "", "gold").unwrap();
    assert_eq!(
        condition(slice, conditions::READY),
        format!(
            "False: no gateway runs: pod weft-gateways/{pod} is on no node: 0/2 nodes are available: 2 node(s) had untolerated \
             taint {{infra: }}; on the hub, tolerate the taint with spec.gateway.tolerations of Cluster a"
        )
    );
    let tolerations = json!([{"key": "infra", "operator": "Exists"}]);
    let mut cluster = world.hub.get("Cluster", "weft-default", "a").cloned().unwrap();
    cluster["spec"]["gateway"]["tolerations"] = tolerations.clone();
    world.hub.put("Cluster", cluster);
    world.calm(2);
    assert_eq!(set(&world), tolerations);
}

/// A gateway of a slice as the cluster makes it, with a key that its agent reports.
fn run_gateway(world: &mut World, at: usize, slice: &str) {
    let name = names::gateway(slice, 0);
    let node = format!("{}1", world.clusters[at].name);
    let labels = json!({"weft.dev/component": "gateway", "weft.dev/for-slice": slice});
    let server = &mut world.clusters[at].server;
    server.put(
        "Pod",
        json!({
            "metadata": {"name": name, "namespace": "weft-gateways", "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "gateway"}]},
            "status": {"phase": "Running"},
        }),
    );
    let mut gateway = server.get("SliceGateway", "weft-system", &name).unwrap().clone();
    gateway["status"] = json!({"publicKey": KEYS[at], "connected": true, "node": node, "tunnels": []});
    server.put("SliceGateway", gateway);
    world.calm(1);
}

/// What a controller of the cluster writes into a gateway's Service.
fn serve_gateway(world: &mut World, at: usize, slice: &str, node_port: Option<u16>, ingress: Value) {
    let server = &mut world.clusters[at].server;
    let mut service = server
        .get("Service", "weft-gateways", &names::gateway(slice, 0))
        .unwrap()
        .clone();
    service["spec"]["ports"][0]["nodePort"] = json!(node_port);
    service["status"] = json!({"loadBalancer": {"ingress": ingress}});
    server.put("Service", service);
    world.calm(1);
}

/// What the other members of a slice get of a cluster's gateway.
fn told(world: &World, cluster: &str, slice: &str) -> Value {
    let shares = world
        .hub
        .list("SliceShare")
        .filter(|object| object["spec"]["slice"] == slice);
    let mut peers = shares.flat_map(|object| object["spec"]["peers"].as_array().cloned().unwrap_or_default());
    let peer = peers.find(|peer| peer["name"] == cluster).unwrap_or_default();
    peer["gateways"][0]["endpoints"].clone()
}

fn expose(world: &mut World, cluster: &str, exposure: &str) {
    let mut object = world
        .hub
        .get("Cluster", "weft-default", cluster)
        .cloned()
        .unwrap();
    object["spec"]["gateway"]["exposure"] = exposure.into();
    world.hub.put("Cluster", object);
    world.calm(2);
}

fn exposed(world: &World, cluster: &str) -> String {
    let object = world.hub.get("Cluster", "weft-default", cluster).unwrap();
    condition(object, conditions::GATEWAYS_EXPOSED)
}

#[test]
fn exposure_changes_live_and_what_it_waits_for_is_said() {
    let mut world = world();
    run_gateway(&mut world, 0, "iron");
    run_gateway(&mut world, 1, "iron");
    serve_gateway(&mut world, 0, "iron", Some(30_001), json!([]));
    let at_node = told(&world, "a", "iron");
    assert!(at_node[0].as_str().unwrap().ends_with(":30001"), "{at_node}");
    assert!(
        exposed(&world, "a").starts_with("True"),
        "{}",
        exposed(&world, "a")
    );

    expose(&mut world, "a", "LoadBalancer");
    let name = names::gateway("iron", 0);
    let waits = format!("its Service weft-gateways/{name} of type LoadBalancer was given no address");
    assert!(
        exposed(&world, "a").starts_with("False: Gateways of slice "),
        "{}",
        exposed(&world, "a")
    );
    let of_slice = |world: &World| {
        let slice = world.clusters[0].server.get("Slice", "", "iron").unwrap();
        condition(slice, conditions::GATEWAYS_EXPOSED)
    };
    assert!(of_slice(&world).contains(&waits), "{}", of_slice(&world));
    assert_eq!(told(&world, "a", "iron"), at_node, "until there is another");
    serve_gateway(
        &mut world,
        0,
        "iron",
        Some(30_001),
        json!([{"ip": "203.0.113.7"}]),
    );
    assert_eq!(told(&world, "a", "iron"), json!(["203.0.113.7:51820"]));
    assert!(of_slice(&world).starts_with("True"), "{}", of_slice(&world));

    // A name is asked for, and what is not known of another one takes nothing away.
    let balancer = "nlb.example.com";
    serve_gateway(
        &mut world,
        0,
        "iron",
        Some(30_001),
        json!([{"hostname": balancer}]),
    );
    let now = world.now();
    world.clusters[0].member.each(|member| {
        let names = member.take_names().unwrap_or_default();
        let answers = names.into_iter().map(|name| {
            assert_eq!(name, balancer);
            (name, Ok(vec!["203.0.113.9".parse().unwrap()]))
        });
        member.handle(Event::Resolved(answers.collect()), now);
    });
    world.calm(1);
    assert_eq!(told(&world, "a", "iron"), json!(["203.0.113.9:51820"]));

    expose(&mut world, "a", "None");
    assert_eq!(told(&world, "a", "iron"), json!([]));
    assert_eq!(
        world.clusters[0].server.get("Service", "weft-gateways", &name),
        None
    );
    assert!(
        of_slice(&world).starts_with("True: its gateways are not to be reached"),
        "{}",
        of_slice(&world)
    );
    let ready = |world: &World| {
        let object = world.hub.get("SliceConfig", "weft-default", "iron").unwrap();
        condition(object, conditions::READY)
    };
    // In the order in which a cluster reports, no gateway's tunnel is up here in any case.
    assert!(
        ready(&world).contains("UDP between their gateways' endpoints"),
        "{}",
        ready(&world)
    );
    expose(&mut world, "b", "None");
    assert!(
        ready(&world).contains("the gateways of neither are to be reached (exposure None): set another"),
        "{}",
        ready(&world)
    );
    let rest = world.writes();
    world.calm(3);
    assert_eq!(world.writes(), rest);
    world.check().unwrap();

    expose(&mut world, "a", "NodePort");
    serve_gateway(&mut world, 0, "iron", Some(30_005), json!([]));
    assert!(told(&world, "a", "iron")[0].as_str().unwrap().ends_with(":30005"));
}

#[test]
fn an_annotation_of_a_node_that_is_none_is_said_and_takes_nothing_away() {
    let mut world = world();
    run_gateway(&mut world, 0, "iron");
    serve_gateway(&mut world, 0, "iron", Some(30_001), json!([]));
    let annotate = |world: &mut World, value: &str| {
        let mut node = world.clusters[0].server.get("Node", "", "a1").unwrap().clone();
        node["metadata"]["annotations"] = json!({annotations::GATEWAY_ADDRESS: value});
        world.clusters[0].server.put("Node", node);
        world.calm(2);
    };
    annotate(&mut world, "203.0.113.7:4500");
    assert_eq!(told(&world, "a", "iron"), json!(["203.0.113.7:4500"]));
    let before = blocks(&world, "a", "iron");
    annotate(&mut world, "127.0.0.1");
    let said = exposed(&world, "a");
    assert!(
        said.starts_with("False: Gateways on node a1: annotation weft.dev/gateway-address has \"127.0.0.1\", an address that"),
        "{said}"
    );
    assert_eq!(told(&world, "a", "iron")[0], "203.0.113.7:4500");
    assert_eq!(blocks(&world, "a", "iron"), before);
    annotate(&mut world, "203.0.113.8");
    assert_eq!(told(&world, "a", "iron"), json!(["203.0.113.8:30001"]));
    assert!(exposed(&world, "a").starts_with("True"));
    world.check().unwrap();
}

#[test]
fn a_vni_is_not_free_while_a_node_may_have_it() {
    let mut world = world();
    world.wanted.insert(
        ("SliceConfig", "tin".into()),
        json!({"subnets": ["10.82.0.0/24"], "clusters": ["a", "b"]}),
    );
    world.heal();
    world.calm(3);
    let vni = world.clusters[0].agents[0].segments["tin"].vni;
    world.clusters[0].agents[1].is_cut = true;
    world.wanted.remove(&("SliceConfig", "tin".to_owned()));
    world.hub.delete("SliceConfig", "weft-default", "tin");
    world.wanted.insert(
        ("SliceConfig", "lead".into()),
        json!({"subnets": ["10.83.0.0/24"], "clusters": ["a", "b"]}),
    );
    world.hub.put(
        "SliceConfig",
        json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig",
            "metadata": {"name": "lead", "namespace": "weft-default"},
            "spec": {"subnets": ["10.83.0.0/24"], "clusters": ["a", "b"]},
        }),
    );
    world.calm(60);
    let state = |world: &World| {
        let name = format!("vni-{vni}");
        let object = world.hub.get("SliceAllocation", "weft-hub", &name).cloned();
        object.map(|object| object["spec"]["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(state(&world).as_deref(), Some("Releasing"));
    assert_ne!(world.clusters[0].agents[0].segments["lead"].vni, vni);
    world.clusters[0].agents[1].is_cut = false;
    world.calm(3);
    assert_eq!(state(&world).as_deref(), Some("Resting"));
    world.calm(61);
    assert_eq!(state(&world), None);
}

#[test]
fn lost_blocks_come_back_to_their_pods_also_through_a_restart() {
    let mut world = world();
    let now = world.now().wall;
    for pod in 0..3 {
        world.attach(0, 0, "gold", &format!("web-{pod}"), now);
    }
    let (before, pods) = (
        blocks(&world, "a", "gold"),
        world.clusters[0].agents[0].pods("gold"),
    );
    // Nobody leads while they are deleted.
    for which in 0..2 {
        world.clusters[0].member.crash(which);
    }
    world.clusters[0].server.delete("SliceBlock", "", "gold.a1");
    world.clusters[0].server.delete("SliceBlock", "", "gold.a2");
    for which in 0..2 {
        world.start_member(0);
        world.relist_member(0, which);
    }
    world.heal();
    world.calm(4);
    world.check().unwrap();
    assert_eq!(world.clusters[0].agents[0].pods("gold"), pods);
    let after = blocks(&world, "a", "gold");
    assert!(
        after[0].contains(r#"{"size":32,"start":0}"#),
        "{before:?} became {after:?}"
    );
}

#[test]
fn a_cluster_that_leaves_gives_everything_back() {
    let mut world = world();
    world.leave(1);
    world.calm(6);
    assert!(world.clusters[1].server.list("Slice").next().is_none());
    assert!(world.clusters[1].member.role().unwrap().has_left());
    let peers = world.hub.get("SliceShare", "weft-slice-iron", "iron.0").unwrap();
    assert!(!peers["spec"].to_string().contains(r#""name":"b""#), "{peers}");
    let allocation = world
        .hub
        .list("SliceAllocation")
        .find(|object| object["spec"]["slice"] == "iron")
        .unwrap();
    let b = allocation["spec"]["clusters"]
        .as_array()
        .unwrap()
        .iter()
        .find(|cluster| cluster["name"] == "b")
        .unwrap();
    assert_eq!(b["state"], "Resting");
}

#[test]
fn the_clusters_dns_gets_its_stub_once_and_what_is_for_a_person_to_write_is_reported() {
    const BEFORE: &str = ".:5353 {\n    kubernetes cluster.local\n}\n";
    let mut world = world();
    let config = |text: &str| json!({"metadata": {"name": "coredns", "namespace": "kube-system"}, "data": {"Corefile": text}});
    let corefile = |world: &World| {
        let server = &world.clusters[0].server;
        let config = server.get("ConfigMap", "kube-system", "coredns").unwrap();
        config["data"]["Corefile"].as_str().unwrap().to_owned()
    };
    let service = json!({"metadata": {"name": "weft-dns", "namespace": names::MEMBER_NAMESPACE}, "spec": {"clusterIP": "10.96.7.7"}});
    world.clusters[0].server.put("Service", service);
    world.calm(2);
    assert!(
        forwarded(&world).contains("no ConfigMap of a CoreDNS was found"),
        "{}",
        forwarded(&world)
    );

    world.clusters[0].server.put("ConfigMap", config(BEFORE));
    world.calm(2);
    let stubbed = corefile(&world);
    assert!(
        stubbed.starts_with(BEFORE) && stubbed.contains("\nslice.local:5353 {\n"),
        "{stubbed}"
    );
    assert!(forwarded(&world).starts_with("True"), "{}", forwarded(&world));

    // A tool writes it without its comments.
    let bare: String = stubbed
        .split_inclusive('\n')
        .filter(|line| !line.starts_with('#'))
        .collect();
    world.clusters[0].server.put("ConfigMap", config(&bare));
    let writes = world.writes();
    world.calm(2);
    assert_eq!((corefile(&world), world.writes()), (bare, writes));

    let broken = format!("{BEFORE}example.org {{\n");
    world.clusters[0].server.put("ConfigMap", config(&broken));
    world.calm(2);
    assert_eq!(corefile(&world), broken);
    let message = forwarded(&world);
    assert!(
        message.starts_with("False") && message.contains("line 4") && message.contains("forward . 10.96.7.7"),
        "{message}"
    );

    world.clusters[0].server.put("ConfigMap", config(BEFORE));
    world.calm(2);
    assert_eq!(corefile(&world), stubbed);
    assert!(forwarded(&world).starts_with("True"), "{}", forwarded(&world));
    world.check().unwrap();
}

/// The ConfigMap of the cluster's DNS in the first cluster.
fn dns_config(world: &World) -> &Value {
    let server = &world.clusters[0].server;
    server.get("ConfigMap", "kube-system", "coredns").unwrap()
}

fn forwarded(world: &World) -> String {
    let mut clusters = world.hub.list("Cluster");
    let cluster = clusters
        .find(|cluster| cluster["metadata"]["name"] == "a")
        .unwrap();
    condition(cluster, conditions::ZONE_FORWARDED)
}

#[test]
fn a_stub_with_which_the_clusters_dns_fails_is_taken_out_once_by_whoever_leads() {
    const BEFORE: &str = ".:53 {\n    kubernetes cluster.local\n}\n";
    let mut world = world();
    let config = |text: &str| json!({"metadata": {"name": "coredns", "namespace": "kube-system"}, "data": {"Corefile": text}});
    let service = json!({"metadata": {"name": "weft-dns", "namespace": names::MEMBER_NAMESPACE}, "spec": {"clusterIP": "10.96.7.7"}});
    world.clusters[0].server.put("Service", service);
    world.clusters[0].dns_breaks_by = Some("slice.local");
    world.clusters[0].server.put("ConfigMap", config(BEFORE));
    world.calm(1);
    let mark = |world: &World| {
        let mark = &dns_config(world)["metadata"]["annotations"][DNS_STUB];
        mark.as_str().unwrap_or_default().to_owned()
    };
    let corefile = |world: &World| dns_config(world)["data"]["Corefile"].as_str().unwrap().to_owned();
    assert!(
        corefile(&world).contains("\nslice.local:53 {\n"),
        "{}",
        corefile(&world)
    );
    assert!(
        mark(&world).starts_with("written ") && mark(&world).ends_with(" checked"),
        "{}",
        mark(&world)
    );

    // Whoever leads next knows that it is on trial, and has to see for himself that names do not resolve.
    world.calm(2);
    for which in 0..2 {
        world.clusters[0].member.crash(which);
    }
    world.start_member(0);
    world.heal();
    world.calm(2);
    assert!(corefile(&world).contains("slice.local"), "after 20 s");
    world.calm(2);
    assert_eq!(corefile(&world), BEFORE);
    assert!(mark(&world).starts_with("taken-out "), "{}", mark(&world));
    let said = forwarded(&world);
    for part in [
        "False: ",
        "kube-system/coredns",
        "10.96.0.10: it does not answer",
        "weft.dev/dns-stub-`",
    ] {
        assert!(said.contains(part), "{said}");
    }

    // It stays out while the configuration is the same, whoever leads.
    let writes = world.writes();
    for which in 0..2 {
        world.clusters[0].member.crash(which);
    }
    world.start_member(0);
    world.heal();
    world.calm(40);
    assert_eq!((corefile(&world).as_str(), world.writes()), (BEFORE, writes));
    assert_eq!(forwarded(&world), said);

    // A person has found what was wrong with it, and changes nothing else.
    world.clusters[0].dns_breaks_by = None;
    world.clusters[0].server.put("ConfigMap", config(BEFORE));
    world.calm(2);
    assert!(
        corefile(&world).contains("\nslice.local:53 {\n"),
        "{}",
        corefile(&world)
    );
    assert!(forwarded(&world).starts_with("True"), "{}", forwarded(&world));

    // What fails later is not its doing.
    world.calm(40);
    world.clusters[0].dns_breaks_by = Some("slice.local");
    let writes = world.writes();
    world.calm(10);
    assert!(corefile(&world).contains("slice.local"));
    assert_eq!(world.writes(), writes);
    world.check().unwrap();
}

#[test]
fn agents_ask_for_names_while_the_zone_is_forwarded_and_what_they_find_is_the_clusters_condition() {
    let mut world = world();
    let asked = |world: &World| {
        let server = &world.clusters[0].server;
        let node = server.get("SliceNode", "", "a1").unwrap();
        node["spec"]["sliceDns"].as_str().map(str::to_owned)
    };
    let resolve = |world: &World| {
        let mut clusters = world.hub.list("Cluster");
        let cluster = clusters
            .find(|cluster| cluster["metadata"]["name"] == "a")
            .unwrap();
        condition(cluster, conditions::NAMES_RESOLVE)
    };
    let service = json!({"metadata": {"name": "weft-dns", "namespace": names::MEMBER_NAMESPACE}, "spec": {"clusterIP": "10.96.7.7"}});
    world.clusters[0].server.put("Service", service);
    world.calm(2);
    assert_eq!((asked(&world), resolve(&world)), (None, String::new()));
    let config = json!({
        "metadata": {"name": "coredns", "namespace": "kube-system"},
        "data": {"Corefile": ".:53 {\n    kubernetes cluster.local\n}\n"},
    });
    world.clusters[0].server.put("ConfigMap", config);
    world.calm(2);
    assert_eq!(asked(&world).as_deref(), Some("10.96.7.7"));

    let say = |world: &mut World, status: &str, reason: &str| {
        let server = &mut world.clusters[0].server;
        let mut object = server.get("SliceNode", "", "a1").unwrap().clone();
        object["status"] = json!({"phase": "Ready", "conditions": [{
            "type": conditions::NAMES_RESOLVE, "status": status, "reason": reason, "message": "what the agent says",
            "lastTransitionTime": "2026-11-29T12:00:00Z",
        }]});
        server.put("SliceNode", object);
    };
    say(&mut world, "False", "ZoneUnknown");
    world.calm(2);
    assert_eq!(
        resolve(&world),
        "False: names of slices do not resolve on node a1 of 1 since 2026-11-29T12:00:00Z: what the agent says"
    );
    say(&mut world, "True", "NamesResolve");
    world.calm(2);
    assert!(resolve(&world).starts_with("True: "), "{}", resolve(&world));

    // A new operator knows nothing yet, and lets them go on.
    let writes = world.writes();
    for which in 0..2 {
        world.clusters[0].member.crash(which);
    }
    world.start_member(0);
    world.heal();
    while world.quiet_round() {}
    assert_eq!(
        (asked(&world).as_deref(), world.writes()),
        (Some("10.96.7.7"), writes)
    );

    world.clusters[0]
        .server
        .delete("ConfigMap", "kube-system", "coredns");
    world.calm(2);
    assert_eq!(asked(&world), None);
}

#[test]
fn a_dns_that_answers_nobody_is_waited_for_and_then_blames_nothing() {
    const BEFORE: &str = ".:53 {\n    kubernetes cluster.local\n}\n";
    let mut world = world();
    let corefile = |world: &World| dns_config(world)["data"]["Corefile"].as_str().unwrap().to_owned();
    world.clusters[0].dns_breaks_by = Some("kubernetes");
    let config =
        json!({"metadata": {"name": "coredns", "namespace": "kube-system"}, "data": {"Corefile": BEFORE}});
    world.clusters[0].server.put("ConfigMap", config);
    let service = json!({"metadata": {"name": "weft-dns", "namespace": names::MEMBER_NAMESPACE}, "spec": {"clusterIP": "10.96.7.7"}});
    world.clusters[0].server.put("Service", service);
    world.calm(11);
    assert_eq!(corefile(&world), BEFORE);
    assert!(
        forwarded(&world).contains("waits for it"),
        "{}",
        forwarded(&world)
    );
    world.calm(3);
    assert!(
        corefile(&world).contains("\nslice.local:53 {\n"),
        "{}",
        corefile(&world)
    );
    world.calm(30);
    assert!(corefile(&world).contains("slice.local"));
    let said = forwarded(&world);
    assert!(
        said.starts_with("True: ") && said.contains("nobody knows"),
        "{said}"
    );
    world.clusters[0].dns_breaks_by = None;
    world.calm(2);
    assert!(
        !forwarded(&world).contains("nobody knows"),
        "{}",
        forwarded(&world)
    );
    world.check().unwrap();
}

#[test]
fn a_broken_pair_of_nodes_is_the_slices_condition_and_the_hubs_problem_until_it_heals() {
    let mut world = world();
    world.calm(1);
    let set_mesh = |world: &mut World, mesh: Value| {
        let server = &mut world.clusters[0].server;
        let mut object = server.get("SliceNode", "", "a1").unwrap().clone();
        object["status"] = json!({"phase": "Ready", "mesh": mesh});
        server.put("SliceNode", object);
        world.calm(1);
    };
    let address = |world: &World, node: &str| {
        let node = world.clusters[0].server.get("Node", "", node).unwrap();
        node["status"]["addresses"][0]["address"].clone()
    };
    let shown = |world: &World, type_: &str| {
        let slice = world.clusters[0].server.get("Slice", "", "gold").unwrap();
        condition(slice, type_)
    };
    let before = [conditions::READY, conditions::NODES_CONNECTED].map(|type_| shown(&world, type_));
    let problems = |world: &World| {
        let reports = world.hub.list("MemberSliceReport");
        let of_slice: Vec<_> = reports
            .filter(|report| report["spec"]["name"] == "gold")
            .map(|report| report["spec"]["problems"].to_string())
            .collect();
        of_slice.join("\n")
    };
    let told = |text: &str| {
        ["nodes a1 (", ") and a2 (", "UDP port 14789", "tcpdump"]
            .iter()
            .all(|part| text.contains(part))
    };
    assert!(!told(&problems(&world)));
    let pair = json!({
        "node": "a2", "address": address(&world, "a2"), "port": 14789, "fault": "Silent", "size": 1370,
        "since": "2027-01-01T00:00:00Z",
    });
    set_mesh(&mut world, json!({"broken": 1, "pairs": [pair]}));
    for type_ in [conditions::READY, conditions::NODES_CONNECTED] {
        let text = shown(&world, type_);
        assert!(text.starts_with("False: ") && told(&text), "{type_}: {text}");
    }
    assert!(told(&problems(&world)), "{}", problems(&world));
    let rest = world.writes();
    world.calm(2);
    assert_eq!(world.writes(), rest);

    // One that carries less is followed by the slice, and is no problem then.
    let mtu = |world: &World| {
        let slice = world.clusters[0].server.get("Slice", "", "gold").unwrap();
        slice["spec"]["mtu"].as_u64().unwrap()
    };
    let largest = mtu(&world);
    let narrow = json!({
        "node": "a2", "address": address(&world, "a2"), "port": 14789, "fault": "Size", "size": 1370, "carried": largest - 20,
        "since": "2027-01-01T00:00:00Z",
    });
    set_mesh(&mut world, json!({"broken": 1, "pairs": [narrow]}));
    world.calm(3);
    assert_eq!(mtu(&world), largest - 20);
    assert_eq!(shown(&world, conditions::READY), before[0]);
    let text = shown(&world, conditions::NODES_CONNECTED);
    assert!(
        text.starts_with("False: nodes a1 (") && text.contains(&format!("more than {} bytes", largest - 20)),
        "{text}"
    );

    set_mesh(&mut world, json!({"broken": 0}));
    world.calm(3);
    assert_eq!(mtu(&world), largest);
    let after = [conditions::READY, conditions::NODES_CONNECTED].map(|type_| shown(&world, type_));
    assert_eq!(after, before);
    assert!(!told(&problems(&world)));
}

#[test]
fn an_operator_that_runs_takes_back_that_weft_is_to_leave_a_node() {
    // An uninstallation stops the operator first: one that was broken off and undone has left this behind.
    let mut world = world();
    let server = &mut world.clusters[0].server;
    let mut object = server.get("SliceNode", "", "a1").unwrap().clone();
    object["spec"]["teardown"] = json!(true);
    server.put("SliceNode", object);
    world.calm(1);
    let object = world.clusters[0].server.get("SliceNode", "", "a1").unwrap();
    assert_eq!(object["spec"]["teardown"], false);
}
