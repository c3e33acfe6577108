//! The hub, its members, their nodes, the people and the faults, as one value that is stepped by a seed.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use slice_crds::labels::Attachment;
use slice_operator::{
    control::Now,
    hub::Hub,
    member::{Event, Facts, Link, Member},
};

use super::{
    agent::Agent,
    controller::{Controller, Most, Role, Servers},
    random::Random,
};
use crate::{server::Server, stage::START};

/// Slices that nobody deletes, and clusters that nobody takes from them: nothing there may ever lose an attachment.
pub(crate) const LASTING: [&str; 2] = ["gold", "iron"];
pub(crate) const LASTING_CLUSTERS: [&str; 2] = ["a", "b"];
/// Slices that come and go.
pub(super) const PASSING: [&str; 2] = ["tin", "lead"];
const HONEST: [(&str, usize); 3] = [("a", 2), ("b", 2), ("c", 1)];
/// A member that writes whatever it may.
pub(super) const LIAR: &str = "x";
/// What a hub loses that is built anew.
pub(super) const OF_THE_HUB: [&str; 15] = [
    "Hub",
    "SliceAllocation",
    "SliceConfig",
    "Cluster",
    "MemberHub",
    "MemberSlice",
    "SliceShare",
    "MemberService",
    "MemberReport",
    "MemberSliceReport",
    "Lease",
    "Namespace",
    "ServiceAccount",
    "RoleBinding",
    "Secret",
];

/// A member cluster.
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) server: Server,
    pub(crate) member: Controller<Member>,
    pub(crate) agents: Vec<Agent>,
    /// No packet passes between it and the hub.
    pub(crate) is_cut: bool,
    /// Its own DNS, which answers nobody while this is in its Corefile.
    pub(crate) dns_breaks_by: Option<&'static str>,
    /// Its credential is good.
    pub(super) is_joined: bool,
    joins: u32,
    is_leaving: bool,
}

impl Cluster {
    /// Its operator, and the API servers that it reaches.
    pub(crate) fn parts<'a>(&'a mut self, hub: &'a mut Server) -> (&'a mut Controller<Member>, Servers<'a>) {
        let servers = Servers {
            local: &mut self.server,
            hub: (self.is_joined && !self.is_cut).then_some(hub),
        };
        (&mut self.member, servers)
    }

    /// Each of its operators asks the cluster's DNS.
    fn ask_dns(&mut self, now: Now) {
        let config = self.server.get("ConfigMap", "kube-system", "coredns");
        let corefile = config.and_then(|config| config["data"]["Corefile"].as_str());
        let breaks = self
            .dns_breaks_by
            .zip(corefile)
            .is_some_and(|(by, corefile)| corefile.contains(by));
        let result = match breaks {
            true => Err("10.96.0.10: it does not answer".to_owned()),
            false => Ok(()),
        };
        self.member
            .each(|member| member.handle(Event::DnsAsked(result.clone()), now));
    }
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) clock: Duration,
    pub(crate) hub: Server,
    pub(crate) controller: Controller<Hub>,
    pub(crate) clusters: Vec<Cluster>,
    /// What people want: the spec of every SliceConfig and Cluster.
    pub(crate) wanted: BTreeMap<(&'static str, String), Value>,
    /// Writes of a deposed leader may come after its successor's.
    pub(super) late: bool,
    pub(super) pods: u32,
    pub(crate) history: Vec<String>,
}

impl World {
    pub(crate) fn new(seed: u64, late: bool) -> Self {
        let mut world = Self {
            random: Random(seed),
            clock: Duration::ZERO,
            hub: Server::default(),
            controller: Controller::new(""),
            clusters: vec![],
            wanted: BTreeMap::new(),
            late,
            pods: 0,
            history: vec![],
        };
        for (name, nodes) in HONEST {
            world.clusters.push(cluster(name, nodes));
        }
        for name in HONEST.iter().map(|(name, _)| *name).chain([LIAR]) {
            world.wanted.insert(("Cluster", name.to_owned()), json!({}));
        }
        let slice = |subnet: &str, clusters: &[&str]| json!({"subnets": [subnet], "clusters": clusters, "gateway": {"replicas": 1}});
        world.wanted.insert(
            ("SliceConfig", "gold".into()),
            slice("10.80.0.0/24", &["a", "b", "c", LIAR]),
        );
        world
            .wanted
            .insert(("SliceConfig", "iron".into()), slice("10.81.0.0/24", &["a", "b"]));
        for key in world.wanted.keys().cloned().collect::<Vec<_>>() {
            world.apply(key.0, &key.1);
        }
        world
    }

    pub(crate) fn now(&self) -> Now {
        let passed = SignedDuration::try_from(self.clock).unwrap();
        Now {
            clock: self.clock,
            wall: Timestamp::from_second(START).unwrap() + passed,
        }
    }

    pub(super) fn log(&mut self, line: String) {
        self.history
            .push(format!("{:>6.1} {line}", self.clock.as_secs_f64()));
    }

    pub(super) fn apply(&mut self, kind: &'static str, name: &str) {
        if let Some(spec) = self.wanted.get(&(kind, name.to_owned())).cloned() {
            let object = json!({
                "apiVersion": "weft.dev/v1alpha1", "kind": kind,
                "metadata": {"name": name, "namespace": "weft-default"}, "spec": spec,
            });
            self.hub.put(kind, object);
        }
    }

    /// One thing happens.
    pub(crate) fn step(&mut self) {
        match self.random.below(100) {
            0..8 => self.pass(),
            8..28 => self.run_hub(),
            28..56 => self.run_member(),
            56..72 => self.run_agent(),
            72..84 => self.pod(),
            84..88 => self.people(),
            88..92 => self.lie(),
            _ => self.fault(),
        }
    }

    fn pass(&mut self) {
        let seconds = match self.random.below(12) {
            0 => 60 + self.random.below(700),
            n => n,
        };
        self.advance(Duration::from_secs(seconds as u64));
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.clock += by;
        let now = self.now();
        self.hub.now = now.wall;
        self.controller.each(|hub| hub.tick(now));
        for at in 0..self.clusters.len() {
            self.clusters[at].server.now = now.wall;
            self.heartbeat(at);
            self.clusters[at].ask_dns(now);
            self.clusters[at].member.each(|member| member.tick(now));
        }
    }

    fn heartbeat(&mut self, at: usize) {
        let now = self.now();
        let cluster = &mut self.clusters[at];
        for agent in cluster.agents.iter().filter(|agent| !agent.is_cut) {
            cluster.server.put(
                "Lease",
                json!({
                    "metadata": {"namespace": "weft-system", "name": format!("node.{}", agent.node)},
                    "spec": {"renewTime": now.wall.to_string()},
                }),
            );
        }
        let room = format!("weft-member-{}", cluster.name);
        let reaches = cluster.is_joined && !cluster.is_cut && self.hub.get("Namespace", "", &room).is_some();
        let result = if reaches {
            Ok(())
        } else {
            Err("no answer".to_owned())
        };
        if reaches {
            self.hub.put(
                "Lease",
                json!({
                    "metadata": {"namespace": room, "name": "weft-member"},
                    "spec": {"holderIdentity": cluster.name, "renewTime": now.wall.to_string()},
                }),
            );
        }
        // Only who leads sends them.
        if let Some(member) = cluster.member.leader() {
            member.handle(Event::Heartbeat(result), now);
        }
    }

    fn run_hub(&mut self) {
        let now = self.now();
        let most = Most {
            burst: 30,
            events: 5,
            answers: 8,
        };
        let mut servers = Servers::of_hub(&mut self.hub);
        self.controller
            .turn(most, &mut servers, self.late, &mut self.random, now);
    }

    fn run_member(&mut self) {
        let now = self.now();
        let at = self.random.below(self.clusters.len());
        let most = Most {
            burst: 40,
            events: 8,
            answers: 10,
        };
        let (member, mut servers) = self.clusters[at].parts(&mut self.hub);
        member.turn(most, &mut servers, self.late, &mut self.random, now);
    }

    fn run_agent(&mut self) {
        let now = self.now();
        let at = self.random.below(self.clusters.len());
        let Self { clusters, random, .. } = self;
        let Cluster { server, agents, .. } = &mut clusters[at];
        let which = random.below(agents.len());
        let agent = &mut agents[which];
        agent.deliver(server, 1 + random.below(5), now.wall);
        if random.chance(2) {
            agent.report(server, now.wall);
        }
    }

    /// A person issues a token and joins the cluster.
    pub(crate) fn rejoin(&mut self, at: usize) {
        let cluster = &mut self.clusters[at];
        if cluster.is_joined
            || self
                .hub
                .get("Namespace", "", &format!("weft-member-{}", cluster.name))
                .is_none()
        {
            return;
        }
        cluster.is_joined = true;
        cluster.joins += 1;
        let line = format!("{} joins", cluster.name);
        self.log(line);
        self.start_member(at);
        for which in 0..2 {
            self.relist_member(at, which);
        }
    }

    /// What a process knows when it starts.
    pub(crate) fn start_member(&mut self, at: usize) {
        let now = self.now();
        let Cluster {
            name,
            member,
            is_joined,
            joins,
            is_leaving,
            ..
        } = &mut self.clusters[at];
        let link = match is_joined {
            true => Ok(Link {
                namespace: format!("weft-member-{name}"),
                cluster: name.clone(),
                join: Some(format!("{name}-{joins}")),
                leaving: *is_leaving,
            }),
            false => Err("no credential".to_owned()),
        };
        let facts = Facts {
            cluster_uid: format!("cluster-{name}"),
            kubernetes_version: "v1.37.1".into(),
            service_cidrs: vec!["10.96.0.0/16".into()],
        };
        member.each(|member| {
            member.handle(Event::Facts(facts.clone()), now);
            member.handle(Event::Linked(link.clone()), now);
        });
        self.clusters[at].ask_dns(now);
    }

    pub(super) fn relist_hub(&mut self, which: usize) {
        let now = self.now();
        let mut servers = Servers::of_hub(&mut self.hub);
        self.controller.list(which, &mut servers, now);
    }

    pub(crate) fn relist_member(&mut self, at: usize, which: usize) {
        let now = self.now();
        let (member, mut servers) = self.clusters[at].parts(&mut self.hub);
        member.list(which, &mut servers, now);
    }

    /// A person runs `slicectl leave` there.
    pub(crate) fn leave(&mut self, at: usize) {
        self.clusters[at].is_leaving = true;
        self.start_member(at);
    }

    /// A pod asks for an attachment, and has it where its node can give one.
    pub(crate) fn attach(&mut self, at: usize, which: usize, slice: &str, pod: &str, now: Timestamp) {
        let Cluster { server, agents, .. } = &mut self.clusters[at];
        let agent = &mut agents[which];
        let Some(index) = agent.attach(slice, pod, now) else {
            return;
        };
        let attachment = Attachment {
            interface: format!("sl-{slice}"),
            ips: agent.segments[slice]
                .subnets
                .addresses(index)
                .map(|net| net.addr())
                .collect(),
            mac: String::new(),
            slice: slice.to_owned(),
        };
        let annotation = serde_json::to_string(&[attachment]).unwrap();
        server.put(
            "Pod",
            json!({"metadata": {
                "namespace": "shop", "name": pod, "annotations": {"weft.dev/attachments": annotation},
            }}),
        );
    }

    /// Both sides start, and everybody joins.
    pub(crate) fn begin(&mut self) {
        self.hub.now = self.now().wall;
        for which in 0..2 {
            self.relist_hub(which);
        }
        for at in 0..self.clusters.len() {
            self.start_member(at);
            for which in 0..2 {
                self.relist_member(at, which);
            }
        }
        self.heal();
        self.calm(4);
    }

    /// Every fault ends.
    pub(crate) fn heal(&mut self) {
        let now = self.now();
        for (kind, name) in self.wanted.keys().cloned().collect::<Vec<_>>() {
            self.apply(kind, &name);
        }
        let Self {
            hub,
            controller,
            clusters,
            random,
            ..
        } = self;
        if !controller.has_leader() {
            controller.elect(Some(0), &mut Servers::of_hub(hub), false, random, now);
        }
        for cluster in clusters {
            cluster.is_cut = false;
            cluster.agents.iter_mut().for_each(|agent| agent.is_cut = false);
            let (member, mut servers) = cluster.parts(hub);
            if !member.has_leader() {
                member.elect(Some(0), &mut servers, false, random, now);
            }
        }
    }

    /// Time passes without any fault, ten seconds at a time.
    pub(crate) fn calm(&mut self, times: usize) {
        for _ in 0..times {
            for at in 0..self.clusters.len() {
                self.rejoin(at);
            }
            self.advance(Duration::from_secs(10));
            for _ in 0..200 {
                if !self.quiet_round() {
                    break;
                }
            }
        }
    }

    /// Everything that is due is done once; whether anything was.
    pub(crate) fn quiet_round(&mut self) -> bool {
        let now = self.now();
        let Self {
            hub,
            controller,
            clusters,
            random,
            ..
        } = self;
        let mut busy = false;
        for cluster in clusters {
            for agent in &mut cluster.agents {
                agent.deliver(&cluster.server, 1000, now.wall);
                agent.report(&mut cluster.server, now.wall);
            }
            let (member, mut servers) = cluster.parts(hub);
            busy |= member.deliver_all(&mut servers, now);
            busy |= member.send(now);
            while member.settle_one(&mut servers, false, random, now) {}
        }
        let mut servers = Servers::of_hub(hub);
        busy |= controller.deliver_all(&mut servers, now);
        busy |= controller.send(now);
        while controller.settle_one(&mut servers, false, random, now) {}
        busy
    }

    /// Writes that changed something, by all controllers.
    pub(crate) fn writes(&self) -> u64 {
        let servers = self
            .clusters
            .iter()
            .map(|cluster| &cluster.server)
            .chain([&self.hub]);
        servers.flat_map(|server| server.writes.values()).sum()
    }
}

fn cluster(name: &str, nodes: usize) -> Cluster {
    let mut server = Server::default();
    server.now = Timestamp::from_second(START).unwrap();
    let mut agents = vec![];
    for number in 1..=nodes {
        let node = format!("{name}{number}");
        server.put("Node", self::node(&node, number));
        agents.push(Agent::new(&node));
    }
    Cluster {
        name: name.to_owned(),
        server,
        member: Controller::new(name),
        agents,
        is_cut: false,
        dns_breaks_by: None,
        is_joined: false,
        joins: 0,
        is_leaving: false,
    }
}

/// A Node object.
pub(crate) fn node(name: &str, number: usize) -> Value {
    let nothing = [
        "architecture",
        "bootID",
        "containerRuntimeVersion",
        "kernelVersion",
        "kubeProxyVersion",
    ]
    .into_iter()
    .chain(["kubeletVersion", "machineID", "osImage", "systemUUID"]);
    let mut info: serde_json::Map<String, Value> =
        nothing.map(|field| (field.to_owned(), "".into())).collect();
    info.insert("operatingSystem".to_owned(), "linux".into());
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDRs": [format!("10.244.{number}.0/24")]},
        "status": {
            "addresses": [{
                "type": "InternalIP",
                "address": format!("172.30.1.{}", number + usize::from(name.as_bytes()[0])),
            }],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "nodeInfo": info,
        },
    })
}

pub(super) fn text(object: &Value, field: &str) -> String {
    object["metadata"][field].as_str().unwrap_or_default().to_owned()
}
