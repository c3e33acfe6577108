use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{super::PodSettings, *};
use crate::member::{
    gateways::plan,
    nodes::{NodeFacts, Nodes, sort},
};

/// A cluster of two nodes with one gateway on each, and what its API server makes of a plan.
struct Cluster {
    slice: Slice,
    nodes: Vec<Value>,
    pods: Vec<Arc<Pod>>,
    services: Vec<Arc<Service>>,
    gateways: BTreeMap<u32, Arc<SliceGateway>>,
    resolved: BTreeMap<String, Resolved>,
    settings: PodSettings,
    troubles: Vec<String>,
    names: BTreeSet<String>,
}

fn slice(gateway: Value) -> Slice {
    let mut placement = json!({"replicas": 2});
    placement
        .as_object_mut()
        .unwrap()
        .extend(gateway.as_object().unwrap().clone());
    let slice = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "Slice", "metadata": {"name": "shop"}, "spec": {
            "vni": 7, "subnets": ["10.80.0.0/16"], "mtu": 1370, "blockSize": 8, "cluster": "paris",
            "clusterNumber": 1, "ranges": [], "gateway": placement,
        },
    });
    serde_json::from_value(slice).unwrap()
}

fn node(name: &str, internal: &str, external: &[&str]) -> Value {
    let external = external
        .iter()
        .map(|address| json!({"type": "ExternalIP", "address": address}));
    let addresses: Vec<Value> = [json!({"type": "InternalIP", "address": internal})]
        .into_iter()
        .chain(external)
        .collect();
    json!({
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod(ordinal: u32, node: &str, host_port: Option<u16>) -> Arc<Pod> {
    let pod = json!({
        "metadata": {"namespace": "weft-gateways", "name": names::gateway("shop", ordinal)},
        "spec": {"nodeName": node, "containers": [{"name": "gateway",
            "ports": [{"containerPort": PORT, "hostPort": host_port, "protocol": "UDP"}, {"containerPort": 9402}]}]},
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

impl Cluster {
    fn new(gateway: Value) -> Self {
        Self {
            slice: slice(gateway),
            nodes: vec![node("n0", "10.0.0.1", &[]), node("n1", "10.0.0.2", &[])],
            pods: vec![pod(0, "n0", None), pod(1, "n1", None)],
            services: vec![],
            gateways: BTreeMap::new(),
            resolved: BTreeMap::new(),
            settings: PodSettings::default(),
            troubles: vec![],
            names: BTreeSet::new(),
        }
    }

    fn annotate(&mut self, node: usize, value: &str) -> &mut Self {
        self.nodes[node]["metadata"]["annotations"] = json!({GATEWAY_ADDRESS: value});
        self
    }

    fn set(&mut self, gateway: Value) -> &mut Self {
        self.slice = slice(gateway);
        self
    }

    fn nodes(&self) -> Nodes {
        let nodes: Vec<NodeFacts> = self
            .nodes
            .iter()
            .map(|node| NodeFacts::of(&serde_json::from_value(node.clone()).unwrap()))
            .collect();
        sort(&nodes, Timestamp::UNIX_EPOCH)
    }

    /// One plan, written.
    fn step(&mut self) -> &mut Self {
        let planned = plan(&Request {
            slice: &self.slice,
            image: "gateway:1",
            pod: &self.settings,
            namespace: "weft-gateways",
            nodes: &self.nodes(),
            lost: &BTreeSet::new(),
            sets: &[],
            pods: &self.pods,
            services: &self.services,
            gateways: &self.gateways,
            resolved: &self.resolved,
        });
        let before = std::mem::take(&mut self.services);
        let written = planned.services.into_iter().map(|mut service| {
            let there = before.iter().find(|there| there.name_any() == service.name_any());
            let name = service.name_any();
            let spec = service.spec.as_mut().unwrap();
            // As an API server gives and takes node ports.
            if spec.type_.as_deref() != Some(INSIDE) {
                let has = there.and_then(|there| there.spec.as_ref()?.ports.as_ref()?[0].node_port);
                let given = 30_000 + i32::from(name.ends_with("-1"));
                spec.ports.as_mut().unwrap()[0].node_port = has.or(Some(given));
            }
            if spec.type_.as_deref() == Some(BALANCED) {
                service.status = there.and_then(|there| there.status.clone());
            }
            Arc::new(service)
        });
        self.services = written.collect();
        self.gateways = planned
            .gateways
            .into_iter()
            .map(|gateway| (gateway.spec.ordinal, Arc::new(gateway)))
            .collect();
        (self.troubles, self.names) = (planned.troubles, planned.names);
        self
    }

    /// Until nothing changes, as what is written is seen.
    fn settle(&mut self) -> &mut Self {
        for _ in 0..5 {
            let before = (self.told(0), self.told(1), self.types());
            if (self.step().told(0), self.told(1), self.types()) == before {
                return self;
            }
        }
        panic!("it never comes to rest: {:?}", self.gateways);
    }

    /// What a cloud's controller writes.
    fn balance(&mut self, ordinal: usize, ingress: Value) -> &mut Self {
        let mut service = (*self.services[ordinal]).clone();
        let status = json!({"loadBalancer": {"ingress": ingress}});
        service.status = Some(serde_json::from_value(status).unwrap());
        self.services[ordinal] = Arc::new(service);
        self
    }

    /// What the others are told of a gateway.
    fn told(&self, ordinal: u32) -> String {
        let gateway = self.gateways.get(&ordinal);
        let endpoints = gateway.into_iter().flat_map(|gateway| &gateway.spec.endpoints);
        endpoints.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    fn types(&self) -> Vec<String> {
        self.services
            .iter()
            .map(|service| type_of(service).unwrap().to_owned())
            .collect()
    }
}

#[test]
fn a_gateway_is_reached_where_its_node_is() {
    let mut cluster = Cluster::new(json!({}));
    assert_eq!(cluster.settle().told(0), "10.0.0.1:30000");
    assert_eq!(cluster.told(1), "10.0.0.2:30001");
    // Beside the address that was told before, and behind it: clusters that use that one go no other way.
    cluster.nodes[0] = node(
        "n0",
        "10.0.0.1",
        &["203.0.113.7", "127.0.0.1", "2001:db8::7", "10.0.0.1"],
    );
    assert_eq!(cluster.settle().told(0), "10.0.0.1:30000 203.0.113.7:30000");
    cluster.annotate(0, "198.51.100.4,[2001:db8::4]:4500");
    assert_eq!(cluster.settle().told(0), "198.51.100.4:30000 [2001:db8::4]:4500");
    cluster.annotate(0, "bank=198.51.100.9");
    assert_eq!(
        cluster.settle().told(0),
        "10.0.0.1:30000 203.0.113.7:30000",
        "that is for another slice"
    );
    cluster
        .annotate(0, "198.51.100.4")
        .set(json!({"advertise": ["192.0.2.1", "192.0.2.2"]}));
    assert_eq!(cluster.settle().told(0), "192.0.2.1:30000 192.0.2.2:30000");
    assert_eq!(cluster.told(1), "192.0.2.1:30001 192.0.2.2:30001");
    assert_eq!(cluster.troubles, Vec::<String>::new());
}

#[test]
fn an_annotation_that_is_none_takes_nothing_away() {
    let mut cluster = Cluster::new(json!({}));
    cluster.annotate(0, "203.0.113.7:4500").settle();
    cluster.annotate(0, "gw.example.com");
    assert_eq!(cluster.settle().told(0), "203.0.113.7:4500 10.0.0.1:30000");
    let nodes = cluster.nodes();
    let said: Vec<_> = nodes.misannotated().collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].0 == "n0" && said[0].1.contains("has \"gw.example.com\", which is no address"),
        "{said:?}"
    );
    // On another node nothing of this one holds.
    cluster.pods[0] = pod(0, "n1", None);
    assert_eq!(cluster.settle().told(0), "10.0.0.2:30000");
    cluster.pods[0] = pod(0, "n0", None);
    assert_eq!(cluster.settle().told(0), "10.0.0.1:30000");
}

#[test]
fn a_port_of_a_translator_leads_to_one_gateway() {
    let mut cluster = Cluster::new(json!({}));
    cluster.pods[1] = pod(1, "n0", None);
    cluster.annotate(0, "203.0.113.7:4500");
    assert_eq!(cluster.settle().told(0), "203.0.113.7:4500");
    assert_eq!(cluster.told(1), "10.0.0.1:30001");
    assert_eq!(cluster.troubles.len(), 1, "{:?}", cluster.troubles);
    assert!(
        cluster.troubles[0].contains("gateways 0 and 1 of the slice are there"),
        "{:?}",
        cluster.troubles
    );
    // A port for one, and an address for all.
    cluster.annotate(0, "203.0.113.7:4500,203.0.113.7");
    assert_eq!(cluster.settle().told(1), "203.0.113.7:30001");
    assert_eq!(cluster.troubles, Vec::<String>::new());
    cluster.annotate(0, "203.0.113.7:4500");
    cluster.pods[1] = pod(1, "n1", None);
    cluster.settle();
    assert_eq!(cluster.troubles, Vec::<String>::new());
}

#[test]
fn each_gateway_has_a_load_balancer_of_its_own() {
    let mut cluster = Cluster::new(json!({"exposure": "LoadBalancer"}));
    cluster.settings.service_annotations = BTreeMap::from([("cloud".to_owned(), "nlb".to_owned())]);
    cluster.settle();
    assert_eq!(cluster.types(), [BALANCED, BALANCED]);
    let service = &cluster.services[0];
    assert_eq!(service.annotations()["cloud"], "nlb");
    let spec = service.spec.as_ref().unwrap();
    assert_eq!(spec.external_traffic_policy.as_deref(), Some("Local"));
    assert_eq!((cluster.told(0), cluster.told(1)), (String::new(), String::new()));
    let name = service.name_any();
    assert_eq!(
        cluster.troubles[0],
        format!(
            "gateway 0: its Service weft-gateways/{name} of type LoadBalancer was given no address: see its events in `kubectl \
             -n weft-gateways describe service {name}`. Where no cloud gives one, install what does, such as MetalLB, or set \
             another spec.gateway.exposure of Cluster paris on the hub"
        )
    );
    cluster
        .balance(0, json!([{"ip": "203.0.113.7"}, {"ip": "2001:db8::7"}]))
        .settle();
    assert_eq!(cluster.told(0), "203.0.113.7:51820 [2001:db8::7]:51820");
    assert_eq!(cluster.troubles.len(), 1, "{:?}", cluster.troubles);
    // It stays its own wherever the pod is.
    cluster.pods.remove(0);
    assert_eq!(cluster.settle().told(0), "203.0.113.7:51820 [2001:db8::7]:51820");
}

#[test]
fn a_load_balancers_status_is_not_believed_blindly() {
    let mut cluster = Cluster::new(json!({"exposure": "LoadBalancer", "replicas": 1}));
    cluster.settle();
    for hostile in [
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "0.0.0.0",
        "::1",
        "x; rm -rf",
        &"9".repeat(999),
    ] {
        cluster.balance(0, json!([{"ip": hostile}])).settle();
        assert_eq!(cluster.told(0), "", "{hostile}");
        let said = &cluster.troubles[0];
        assert!(
            said.contains("which nobody else can reach") && said.len() < 600,
            "{said}"
        );
        // What is good beside it counts.
        cluster
            .balance(0, json!([{"ip": hostile}, {"ip": "203.0.113.7"}]))
            .settle();
        assert_eq!(cluster.told(0), "203.0.113.7:51820");
        assert_eq!(cluster.troubles.len(), 1);
    }
    let many: Vec<Value> = (0..100)
        .map(|n| json!({"ip": format!("203.0.113.{n}")}))
        .collect();
    cluster.balance(0, json!(many)).settle();
    assert_eq!(cluster.told(0).split(' ').count(), MOST_ENDPOINTS);
    cluster.balance(0, json!([{}])).settle();
    assert!(
        cluster.troubles[0].contains("an ingress without address and name"),
        "{:?}",
        cluster.troubles
    );
}

#[test]
fn a_load_balancers_name_is_resolved_and_what_was_known_stays() {
    let mut cluster = Cluster::new(json!({"exposure": "LoadBalancer", "replicas": 1}));
    let name = "nlb-1.elb.example.com";
    cluster.settle().balance(0, json!([{"hostname": name}])).settle();
    assert_eq!(cluster.names, BTreeSet::from([name.to_owned()]));
    assert_eq!(
        (cluster.told(0), cluster.troubles.len()),
        (String::new(), 0),
        "it is being asked for"
    );
    let answer = |addresses: &[&str], error: Option<&str>| Resolved {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        error: error.map(ToOwned::to_owned),
    };
    let answers = |cluster: &mut Cluster, resolved| {
        cluster.resolved.insert(name.to_owned(), resolved);
        cluster.settle();
    };
    answers(&mut cluster, answer(&[], Some("no such name")));
    assert!(
        cluster.troubles[0].contains("could not be resolved here: no such name"),
        "{:?}",
        cluster.troubles
    );
    let two = "203.0.113.7:51820 203.0.113.8:51820";
    answers(
        &mut cluster,
        answer(&["203.0.113.8", "127.0.0.1", "203.0.113.7"], None),
    );
    assert_eq!((cluster.told(0), cluster.troubles.len()), (two.to_owned(), 0));
    answers(
        &mut cluster,
        answer(&["203.0.113.7", "203.0.113.8"], Some("timed out")),
    );
    assert_eq!((cluster.told(0), cluster.troubles.len()), (two.to_owned(), 0));
    // An operator that has just started knows no name yet.
    cluster.resolved.clear();
    assert_eq!(cluster.settle().told(0), two);
    answers(&mut cluster, answer(&["10.80.0.1"], None));
    assert_eq!(
        cluster.told(0),
        "10.80.0.1:51820",
        "the hub refuses what lies in the slice"
    );
}

#[test]
fn what_led_there_is_told_until_what_is_to_lead_there_does() {
    let mut cluster = Cluster::new(json!({}));
    let at_nodes = "10.0.0.1:30000";
    assert_eq!(cluster.settle().told(0), at_nodes);

    // To a load balancer, which keeps the node's port.
    cluster.set(json!({"exposure": "LoadBalancer"})).settle();
    assert_eq!(
        (cluster.told(0), cluster.types()),
        (at_nodes.into(), vec![BALANCED.into(), BALANCED.into()])
    );
    assert_eq!(cluster.troubles.len(), 2, "and it is said what is waited for");
    cluster.balance(0, json!([{"ip": "203.0.113.7"}])).settle();
    assert_eq!(
        (cluster.told(0), cluster.told(1)),
        ("203.0.113.7:51820".into(), "10.0.0.2:30001".into())
    );
    // A pod that has moved is not where it was told to be.
    cluster.pods[1] = pod(1, "n0", None);
    assert_eq!(cluster.settle().told(1), "");
    cluster.pods[1] = pod(1, "n1", None);

    // To ports of the nodes: what leads to a gateway stays until its pod has the port.
    cluster.set(json!({"exposure": "HostPort"})).settle();
    assert_eq!(
        (cluster.told(0), cluster.types()),
        ("203.0.113.7:51820".into(), vec![BALANCED.into(), BALANCED.into()])
    );
    cluster.pods[1] = pod(1, "n1", Some(20_007));
    cluster.settle();
    assert_eq!(
        (cluster.told(0), cluster.told(1)),
        ("203.0.113.7:51820".into(), "10.0.0.2:20007".into())
    );
    assert_eq!(cluster.types(), [BALANCED, INSIDE]);
    cluster.pods[0] = pod(0, "n0", Some(20_007));
    assert_eq!(cluster.settle().told(0), "10.0.0.1:20007");

    // And back: the pods have theirs until they are replaced.
    cluster.set(json!({"exposure": "LoadBalancer"})).settle();
    assert_eq!(cluster.told(0), "10.0.0.1:20007");
    let replaced = cluster.pods.remove(0);
    assert_eq!(cluster.settle().told(0), "10.0.0.1:20007");
    cluster.pods.insert(0, pod(0, "n0", None));
    assert_eq!(cluster.settle().told(0), at_nodes);
    cluster.pods[0] = replaced;
    cluster.set(json!({})).step();
    assert_eq!(cluster.told(0), at_nodes);
}

#[test]
fn gateways_that_are_not_to_be_reached_have_no_service_and_no_endpoint() {
    let mut cluster = Cluster::new(json!({}));
    cluster.annotate(0, "203.0.113.7:4500").settle();
    for (exposure, types) in [("None", vec![]), ("NodePort", vec![AT_NODES, AT_NODES])] {
        cluster.set(json!({"exposure": exposure})).settle();
        assert_eq!(cluster.types(), types);
        assert_eq!(cluster.told(0).is_empty(), types.is_empty());
        assert_eq!(cluster.troubles, Vec::<String>::new());
    }
    cluster
        .set(json!({"exposure": "None", "advertise": ["192.0.2.1"]}))
        .settle();
    assert_eq!((cluster.told(0), cluster.told(1)), (String::new(), String::new()));
    let node = cluster.gateways[&0].spec.node.as_deref();
    assert_eq!(node, Some("n0"), "its agent reports all the same");
}
