//! What pods, people, a lying member and faults do.

use serde_json::json;
use slice_operator::member::Event;

use super::{
    controller::{Controller, Servers},
    world::{Cluster, LASTING, LASTING_CLUSTERS, LIAR, OF_THE_HUB, PASSING, World, text},
};

impl World {
    pub(super) fn pod(&mut self) {
        let now = self.now();
        let at = self.random.below(self.clusters.len());
        let slice = (*self.random.pick(&[LASTING, PASSING].concat())).to_owned();
        let Self { clusters, random, .. } = self;
        let Cluster { server, agents, .. } = &mut clusters[at];
        let which = random.below(agents.len());
        let agent = &mut agents[which];
        let there = agent.pods(&slice);
        if there.len() > random.below(24) {
            let (_, pod) = random.pick(&there).clone();
            agent.leave(&slice, &pod, now.wall);
            server.delete("Pod", "shop", &pod);
            return;
        }
        self.pods += 1;
        let pod = format!("{}-{}", agent.node, self.pods);
        self.attach(at, which, &slice, &pod, now.wall);
    }

    /// What people do: slices and clusters come and go, but for those that last.
    pub(super) fn people(&mut self) {
        let slice = (*self.random.pick(&PASSING)).to_owned();
        let key = ("SliceConfig", slice.clone());
        match self.random.below(8) {
            0 | 1 => {
                let subnet = *self.random.pick(&["10.82.0.0/24", "10.83.0.0/25"]);
                let clusters =
                    *self
                        .random
                        .pick(&[["a", "b", "c"].as_slice(), &["b", "c", LIAR], &["a", "c"]]);
                self.wanted
                    .entry(key)
                    .or_insert_with(|| json!({"subnets": [subnet]}))["clusters"] = json!(clusters);
                self.log(format!("slice {slice} over {clusters:?}"));
                self.apply("SliceConfig", &slice);
            }
            2 => {
                self.wanted.remove(&key);
                let now = self.random.chance(2);
                self.log(format!("slice {slice} deleted{}", if now { " now" } else { "" }));
                if now && let Some(mut object) = self.hub.get("SliceConfig", "weft-default", &slice).cloned()
                {
                    object["metadata"]["annotations"]["weft.dev/delete"] = "now".into();
                    self.hub.put("SliceConfig", object);
                }
                self.hub.delete("SliceConfig", "weft-default", &slice);
            }
            3 => {
                let with = self.random.chance(2);
                self.log(format!("cluster c {} gold", if with { "in" } else { "out of" }));
                let clusters = if with {
                    vec!["a", "b", "c", LIAR]
                } else {
                    vec!["a", "b", LIAR]
                };
                self.wanted.get_mut(&("SliceConfig", "gold".to_owned())).unwrap()["clusters"] =
                    json!(clusters);
                self.apply("SliceConfig", "gold");
            }
            4 => {
                // What only a newer or an older version reads.
                let broken = match self.random.chance(2) {
                    true => ("SliceConfig", json!({"subnets": 7})),
                    false => ("Cluster", json!({"gateway": {"advertise": ["gw.example.com"]}})),
                };
                self.log(format!("an unreadable {}", broken.0));
                self.hub.put(
                    broken.0,
                    json!({
                        "apiVersion": "weft.dev/v1alpha1", "kind": broken.0,
                        "metadata": {"name": "odd", "namespace": "weft-default"}, "spec": broken.1,
                    }),
                );
            }
            5 => {
                let there = self.hub.get("Cluster", "weft-default", "c").is_some();
                self.log(format!(
                    "cluster c {}",
                    if there { "deleted" } else { "registered" }
                ));
                match there {
                    true => {
                        self.wanted.remove(&("Cluster", "c".to_owned()));
                        self.hub.delete("Cluster", "weft-default", "c");
                    }
                    false => {
                        self.wanted.insert(("Cluster", "c".to_owned()), json!({}));
                        self.apply("Cluster", "c");
                    }
                }
            }
            6 => {
                let cluster = (*self.random.pick(&LASTING_CLUSTERS)).to_owned();
                let exposure = *self
                    .random
                    .pick(&["NodePort", "HostPort", "LoadBalancer", "None"]);
                self.log(format!("cluster {cluster} has exposure {exposure}"));
                let spec = self.wanted.entry(("Cluster", cluster.clone())).or_default();
                spec["gateway"]["exposure"] = exposure.into();
                self.apply("Cluster", &cluster);
            }
            // Whatever is wanted and not there is applied.
            _ => {
                for (kind, name) in self.wanted.keys().cloned().collect::<Vec<_>>() {
                    self.apply(kind, &name);
                }
            }
        }
    }

    pub(super) fn lie(&mut self) {
        let room = format!("weft-member-{LIAR}");
        // Where a hub lost its memory, it believes whom the others vouch for: those must be there.
        let honest = self
            .clusters
            .iter()
            .filter(|cluster| LASTING_CLUSTERS.contains(&cluster.name.as_str()));
        let is_back = |cluster: &Cluster| {
            let room = format!("weft-member-{}", cluster.name);
            LASTING
                .iter()
                .all(|slice| self.hub.get("MemberSliceReport", &room, slice).is_some())
        };
        if self.hub.get("Namespace", "", &room).is_none() || !honest.into_iter().all(is_back) {
            return;
        }
        let slice = (*self.random.pick(&[LASTING, PASSING].concat())).to_owned();
        let served = self
            .hub
            .get("MemberSlice", &room, &slice)
            .cloned()
            .unwrap_or_default();
        let run = || json!([{"start": 0, "size": 256}]);
        let r = &mut self.random;
        let number = r.next() % 6000;
        let report = json!({
            "name": slice, "hub": served["spec"]["hub"], "revision": served["spec"]["revision"],
            "vni": if r.chance(3) { json!(4097 + number % 4) } else { served["spec"]["slice"]["vni"].clone() },
            "clusterNumber": number % 5, "subnets": ["10.80.0.0/24"],
            "ranges": if r.chance(2) { run() } else { served["spec"]["slice"]["ranges"].clone() },
            "blocksNeeded": if r.chance(2) { u64::from(u32::MAX) } else { number },
            "released": r.chance(6), "idle": if r.chance(3) { run() } else { json!([]) },
            "givenBack": if r.chance(3) { run() } else { json!([]) },
            "peers": [{"name": "b", "number": 1, "ranges": [{"start": 0, "size": 128}]}],
            "gateways": [{"ordinal": number % 3, "publicKey": "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "endpoints": ["127.0.0.1:1"]}],
        });
        let kind = *r.pick(&["MemberSliceReport", "MemberSliceReport", "MemberReport"]);
        let (name, spec) = match kind {
            "MemberReport" => (
                "report".to_owned(),
                json!({
                    "wire": 2, "identity": {"clusterUID": "cluster-x"}, "nodes": number, "underlayMtu": number,
                    "podCIDRs": ["0.0.0.0/0"], "holds": LASTING, "leaving": r.chance(4),
                }),
            ),
            _ if r.chance(6) => (slice, json!({"gateways": "many", "ranges": 3})),
            _ => (slice, report),
        };
        self.hub.put(
            kind,
            json!({"metadata": {"namespace": room, "name": name}, "spec": spec}),
        );
    }

    pub(super) fn fault(&mut self) {
        let now = self.now();
        let at = self.random.below(self.clusters.len());
        let which = self.random.below(2);
        match self.random.below(15) {
            0 => {
                self.log(format!("the hub's replica {which} crashes"));
                self.controller.crash(which);
                self.relist_hub(which);
            }
            1 => {
                let next = [None, Some(0), Some(1)][self.random.below(3)];
                self.log(format!("the hub's lead goes to {next:?}"));
                let mut servers = Servers::of_hub(&mut self.hub);
                self.controller
                    .elect(next, &mut servers, self.late, &mut self.random, now);
            }
            2 => {
                self.log(format!("{}: replica {which} crashes", self.clusters[at].name));
                self.clusters[at].member.crash(which);
                self.start_member(at);
                self.relist_member(at, which);
            }
            3 => {
                let next = [None, Some(0), Some(1)][self.random.below(3)];
                self.log(format!("{}: the lead goes to {next:?}", self.clusters[at].name));
                let (member, mut servers) = self.clusters[at].parts(&mut self.hub);
                member.elect(next, &mut servers, self.late, &mut self.random, now);
            }
            4 => {
                let cluster = &mut self.clusters[at];
                cluster.is_cut = !cluster.is_cut;
                let line = format!(
                    "{}: {} the hub",
                    cluster.name,
                    if cluster.is_cut { "cut off from" } else { "reaches" }
                );
                self.log(line);
            }
            5 | 6 => {
                let which = self.random.below(self.clusters[at].agents.len());
                let agent = &mut self.clusters[at].agents[which];
                agent.is_cut = !agent.is_cut;
                let line = format!(
                    "{}: {} its API server",
                    agent.node,
                    if agent.is_cut { "cut off from" } else { "reaches" }
                );
                self.log(line);
            }
            7 => self.relist_hub(which),
            8 => self.relist_member(at, which),
            9 => {
                let names: Vec<String> = self.clusters[at]
                    .server
                    .list("SliceBlock")
                    .map(|object| text(object, "name"))
                    .collect();
                if !names.is_empty() {
                    let name = self.random.pick(&names).clone();
                    self.log(format!("{}: SliceBlock {name} deleted", self.clusters[at].name));
                    self.clusters[at].server.delete("SliceBlock", "", &name);
                }
            }
            10 | 11 => {
                let kind =
                    *self
                        .random
                        .pick(&["MemberSliceReport", "MemberReport", "MemberSlice", "SliceShare"]);
                let of: Vec<(String, String)> = self
                    .hub
                    .list(kind)
                    .map(|object| (text(object, "namespace"), text(object, "name")))
                    .collect();
                if !of.is_empty() {
                    let (namespace, name) = self.random.pick(&of).clone();
                    self.log(format!("{kind} {namespace}/{name} deleted"));
                    self.hub.delete(kind, &namespace, &name);
                }
            }
            12 if self.random.chance(3) => self.lose_memory(),
            _ => self.rejoin(at),
        }
    }

    /// The hub's objects are gone, all of them, and the hub is installed anew.
    fn lose_memory(&mut self) {
        self.log("the hub loses its memory".to_owned());
        self.hub.forget(&OF_THE_HUB);
        for which in 0..2 {
            self.controller = Controller::new("");
            self.relist_hub(which);
        }
        for at in 0..self.clusters.len() {
            self.clusters[at].is_joined = false;
            let now = self.now();
            self.clusters[at]
                .member
                .each(|member| member.handle(Event::Linked(Err("refused".into())), now));
        }
        self.relist_hub(0);
        self.relist_hub(1);
    }
}
