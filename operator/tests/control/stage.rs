//! One hub and its API server, driven by hand: what users and members write, and what comes of it.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use slice_crds::{conditions, wire::MemberSliceSpec};
use slice_operator::{
    control::{Meta, Now, Outcome},
    hub::{Event, Hub, Input, Settings, Source},
};

use crate::server::{Server, Watched};

pub(crate) const START: i64 = 1_800_000_000;

/// The kind that a source watches.
pub(crate) fn kind_of(source: Source) -> String {
    format!("{source:?}")
}

pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) hub: Hub,
    cursor: usize,
    pub(crate) clock: Duration,
    /// Kinds in namespaces whose writes fail, and how.
    pub(crate) broken: Vec<(&'static str, Outcome)>,
}

pub(crate) fn settings() -> Settings {
    Settings {
        version: "test",
        grace: SignedDuration::from_mins(5),
        ..Settings::default()
    }
}

impl Stage {
    pub(crate) fn new() -> Self {
        let mut server = Server::default();
        server.now = Timestamp::from_second(START).unwrap();
        let mut stage = Self {
            server,
            hub: Hub::new(settings()),
            cursor: 0,
            clock: Duration::ZERO,
            broken: vec![],
        };
        stage.restart();
        stage
    }

    pub(crate) fn now(&self) -> Now {
        let passed = SignedDuration::try_from(self.clock).unwrap();
        Now {
            clock: self.clock,
            wall: Timestamp::from_second(START).unwrap() + passed,
        }
    }

    /// The hub's process starts anew and leads.
    pub(crate) fn restart(&mut self) {
        self.hub = Hub::new(settings());
        self.cursor = self.server.log.len();
        let now = self.now();
        for source in Source::ALL {
            let objects: Vec<Value> = self.server.list(&kind_of(source)).cloned().collect();
            let mut there = BTreeSet::new();
            for object in objects {
                let meta = Meta::of(&object);
                there.insert((meta.namespace, meta.name));
                self.hub
                    .handle(Event::Seen(Box::new(Input::read(source, &object))), now);
            }
            self.hub.handle(Event::Listed(source, there), now);
        }
        self.hub.handle(Event::Leading(true), now);
        self.settle();
    }

    /// Tells the hub what has happened.
    pub(crate) fn deliver(&mut self) {
        let now = self.now();
        while let Some((kind, change)) = self.server.log.get(self.cursor).cloned() {
            self.cursor += 1;
            let Some(source) = Source::ALL.into_iter().find(|source| kind_of(*source) == kind) else {
                continue;
            };
            match change {
                Watched::Applied(object) => {
                    self.hub
                        .handle(Event::Seen(Box::new(Input::read(source, &object))), now);
                }
                Watched::Deleted(object) => self.hub.handle(Event::Gone(source, Meta::of(&object)), now),
            }
        }
    }

    /// Until nothing is to be written any more.
    pub(crate) fn settle(&mut self) -> &mut Self {
        for _ in 0..10_000 {
            self.deliver();
            let now = self.now();
            self.server.now = now.wall;
            match self.hub.poll_write(now) {
                Some(write) => {
                    let broken = self
                        .broken
                        .iter()
                        .find(|(namespace, _)| *namespace == &*write.key.namespace);
                    let outcome = match broken {
                        Some((_, outcome)) => outcome.clone(),
                        None => self.server.write(&write),
                    };
                    self.hub.handle(Event::Written(write.key, outcome), now);
                }
                None if self.hub.next_timeout() == Some(Duration::ZERO) => {}
                None => return self,
            }
        }
        panic!("the hub never comes to rest")
    }

    /// Time passes, a second at a time, with the members' heartbeats.
    pub(crate) fn pass(&mut self, seconds: u64, alive: &[&str]) -> &mut Self {
        for _ in 0..seconds {
            self.clock += Duration::from_secs(1);
            if self.clock.as_secs().is_multiple_of(20) {
                alive.iter().for_each(|cluster| self.heartbeat(cluster));
            }
            self.hub.handle(Event::Tick, self.now());
            self.settle();
        }
        self
    }

    pub(crate) fn heartbeat(&mut self, cluster: &str) {
        let time = self.now().wall.to_string();
        self.server.put(
            "Lease",
            json!({
                "metadata": {"namespace": format!("weft-member-{cluster}"), "name": "weft-member"},
                "spec": {"holderIdentity": cluster, "renewTime": time},
            }),
        );
    }

    pub(crate) fn user(&mut self, kind: &str, name: &str, spec: Value) -> &mut Self {
        let object = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": "weft-default"}, "spec": spec,
        });
        self.server.put(kind, object);
        self.settle()
    }

    pub(crate) fn annotate(
        &mut self,
        kind: &str,
        namespace: &str,
        name: &str,
        key: &str,
        value: &str,
    ) -> &mut Self {
        let mut object = self.server.get(kind, namespace, name).cloned().unwrap();
        object["metadata"]["annotations"][key] = value.into();
        self.server.put(kind, object);
        self.settle()
    }

    pub(crate) fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> &mut Self {
        self.server.delete(kind, namespace, name);
        self.settle()
    }

    /// What a member writes into its namespace.
    pub(crate) fn member(&mut self, cluster: &str, kind: &str, name: &str, spec: Value) -> &mut Self {
        let object = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": format!("weft-member-{cluster}")}, "spec": spec,
        });
        self.server.put(kind, object);
        self.settle()
    }

    /// A cluster is registered, has joined and reports.
    pub(crate) fn cluster(&mut self, name: &str) -> &mut Self {
        self.user("Cluster", name, json!({}));
        self.heartbeat(name);
        self.report(name, json!({}))
    }

    pub(crate) fn report(&mut self, cluster: &str, more: Value) -> &mut Self {
        let mut spec = json!({
            "wire": 2, "identity": {"clusterUID": format!("cluster-{cluster}")}, "weftVersion": "0.1.0",
            "kubernetesVersion": "v1.37.1", "nodes": 2, "underlayMtu": 1500,
            "podCIDRs": ["10.244.0.0/16"], "serviceCIDRs": ["10.96.0.0/16"], "nodeCIDRs": ["172.30.1.11/32"],
        });
        extend(&mut spec, more);
        self.member(cluster, "MemberReport", "report", spec)
    }

    /// The member has set the slice up as it was served, and reports so.
    pub(crate) fn obey(&mut self, cluster: &str, slice: &str, more: Value) -> &mut Self {
        let served = self
            .served(cluster, slice)
            .unwrap_or_else(|| panic!("{cluster} was not served of {slice}"));
        let ranges: Vec<Value> = served
            .slice
            .ranges
            .iter()
            .map(|range| json!({"start": range.start, "size": range.size}))
            .collect();
        let mut spec = json!({
            "name": slice, "hub": served.hub, "revision": served.revision, "vni": served.slice.vni,
            "clusterNumber": served.slice.cluster_number, "subnets": served.slice.subnets, "ranges": ranges,
            "blocksNeeded": 2,
        });
        extend(&mut spec, more);
        self.member(cluster, "MemberSliceReport", slice, spec)
    }

    pub(crate) fn served(&self, cluster: &str, slice: &str) -> Option<MemberSliceSpec> {
        let object = self
            .server
            .get("MemberSlice", &format!("weft-member-{cluster}"), slice)?;
        Some(serde_json::from_value(object["spec"].clone()).unwrap())
    }

    /// Everything that members are served, and what users read.
    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        for object in self.server.list("SliceAllocation") {
            let spec = &object["spec"];
            lines.push(format!(
                "{} {} {}",
                object["metadata"]["name"].as_str().unwrap(),
                spec["slice"].as_str().unwrap(),
                spec["state"].as_str().unwrap()
            ));
        }
        for object in self.server.list("MemberSlice") {
            let spec: MemberSliceSpec = serde_json::from_value(object["spec"].clone()).unwrap();
            let ranges: Vec<String> = spec
                .slice
                .ranges
                .iter()
                .map(|range| {
                    format!(
                        "{}+{}{}",
                        range.start,
                        range.size,
                        if range.releasing { "!" } else { "" }
                    )
                })
                .collect();
            lines.push(format!(
                "{} {}: {}vni {} mtu {} #{} {} peers {:?} rules {}",
                spec.slice.cluster,
                object["metadata"]["name"].as_str().unwrap(),
                if spec.released { "released " } else { "" },
                spec.slice.vni,
                spec.slice.mtu,
                spec.slice.cluster_number,
                ranges.join(","),
                self.peers(&spec.slice.cluster, object["metadata"]["name"].as_str().unwrap()),
                spec.slice.namespaces.len()
            ));
        }
        for object in self.server.list("SliceConfig") {
            let name = object["metadata"]["name"].as_str().unwrap();
            for type_ in [conditions::ACCEPTED, conditions::READY] {
                lines.push(format!("{name} {}", self.condition("SliceConfig", name, type_)));
            }
        }
        lines.join("\n") + "\n"
    }

    /// Names of a member's peers, with the number of gateways of each.
    pub(crate) fn peers(&self, cluster: &str, slice: &str) -> Vec<String> {
        let shared_in = self
            .served(cluster, slice)
            .map(|served| served.shared_in)
            .unwrap_or_default();
        let shards = self
            .server
            .list("SliceShare")
            .filter(|object| object["metadata"]["namespace"] == shared_in.as_str());
        let peers = shards.flat_map(|object| object["spec"]["peers"].as_array().cloned().unwrap_or_default());
        peers
            .filter(|peer| peer["name"] != cluster)
            .map(|peer| {
                let gateways = peer["gateways"].as_array().map_or(0, Vec::len);
                format!("{}:{gateways}", peer["name"].as_str().unwrap())
            })
            .collect()
    }

    /// `<type>=<status> <reason>: <message>` of a user's object.
    pub(crate) fn condition(&self, kind: &str, name: &str, type_: &str) -> String {
        let object = self.server.get(kind, "weft-default", name);
        let conditions = object.and_then(|object| object["status"]["conditions"].as_array());
        let mut conditions = conditions.into_iter().flatten();
        conditions
            .find(|condition| condition["type"] == type_)
            .map_or_else(
                || format!("no {type_}"),
                |condition| {
                    let text = |field: &str| condition[field].as_str().unwrap_or_default();
                    format!(
                        "{type_}={} {}: {}",
                        text("status"),
                        text("reason"),
                        text("message")
                    )
                },
            )
    }
}

pub(crate) fn shop() -> Value {
    json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"]})
}

/// The VNI that the slice of [`two`] draws.
pub(crate) const SHOP: u32 = 15_554_275;

/// Clusters a and b, and a slice over them.
pub(crate) fn two() -> Stage {
    let mut stage = Stage::new();
    stage
        .cluster("a")
        .cluster("b")
        .user("SliceConfig", "shop", shop());
    stage
}

pub(crate) const KEYS: [&str; 3] = [
    "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "DAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
];

pub(crate) fn gateway(key: &str) -> Value {
    json!({"gateways": [{"ordinal": 0, "publicKey": key, "endpoints": ["192.0.2.1:30001"], "up": true}]})
}

fn extend(value: &mut Value, more: Value) {
    if let (Some(map), Value::Object(more)) = (value.as_object_mut(), more) {
        map.extend(more);
    }
}
