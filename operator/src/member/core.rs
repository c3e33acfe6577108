//! A member as a value: events in, writes to two API servers out. No client, no clock. Driven as [`crate::hub::Hub`] is.
//!
//! The cluster's own API and the hub have an output each, so a hub that is slow, silent or gone keeps nothing here back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use slice_crds::{membership::Labels, names, v1alpha1::SliceNode};

use super::{
    cluster_dns,
    gateways::{PodSettings, Resolved},
    input::{Input, PodFacts, Side, Source},
    mesh,
    nodes::{NodeFacts, Nodes},
    state::{Agent, Facts, HubState, Link, ServiceState, SliceState},
};
use crate::control::{Depth, Figures, Id, Key, Meta, Notice, Now, Outcome, Outputs, Write, notice::Notices};

/// Field manager of the member role, here and on the hub, and the value of the label on what it prunes.
pub const MANAGER: &str = names::MEMBER_OPERATOR;
/// A hub that has not taken a heartbeat for this long is not reachable: two were missed.
pub const HUB_SILENCE: Duration = Duration::from_secs(45);
/// An agent that has not renewed its Lease for this long is silent: it renews every 40 s.
pub const AGENT_SILENCE: Duration = Duration::from_secs(130);
/// How long services of a hub that was built anew may take to be there again.
pub(super) const REBUILT: Duration = Duration::from_secs(120);
/// Things that are planned between two looks at what else there is to do.
const PLANS_AT_ONCE: usize = 16;

/// What is set when the member starts.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub version: &'static str,
    pub gateway_image: String,
    pub gateway_pod: PodSettings,
    /// Where the gateways are to be.
    pub gateway_namespace: String,
    /// Service of slice-dns in [`names::MEMBER_NAMESPACE`].
    pub dns_service: String,
    /// Where the configuration of the cluster's DNS is.
    pub cluster_dns: cluster_dns::Config,
    /// See [`slice_crds::wire::MemberReportSpec::inline`].
    pub inline: bool,
}

/// Everything that can wake the member.
#[derive(Debug)]
pub enum Event {
    Seen(Box<Input>),
    Gone(Source, Meta),
    Listed(Source, BTreeSet<Id>),
    /// One ConfigMap of [`cluster_dns::Config::ids`] was looked for; these are there.
    DnsListed(cluster_dns::Id, BTreeSet<Id>),
    /// A name of the cluster was asked of its DNS: why it did not resolve.
    DnsAsked(Result<(), String>),
    /// Everything was seen that is shared in a namespace of [`Member::take_followed`].
    Shared(Box<str>, BTreeSet<Id>),
    Written(Side, Key, Outcome),
    Leading(bool),
    /// The credential for the hub; `None` where there is none, and why.
    Linked(Result<Link, String>),
    /// What became of a heartbeat to the hub.
    Heartbeat(Result<(), String>),
    Facts(Facts),
    /// What became of asking for names of [`Member::take_names`].
    Resolved(BTreeMap<String, Result<Vec<IpAddr>, String>>),
    Tick,
}

/// The member.
#[derive(Debug)]
pub struct Member {
    pub(super) settings: Settings,
    pub(super) listed: BTreeSet<Source>,
    pub(super) leading: bool,
    pub(super) slices: BTreeMap<String, SliceState>,
    pub(super) node_facts: BTreeMap<String, NodeFacts>,
    pub(super) nodes: Nodes,
    pub(super) nodes_dirty: bool,
    /// Nodes that are gone and had blocks, and since when.
    pub(super) gone: BTreeMap<String, Duration>,
    pub(super) slice_nodes: BTreeMap<String, Arc<SliceNode>>,
    /// What agents report of other nodes, where something is wrong.
    pub(super) broken_pairs: mesh::Reported,
    pub(super) agents: BTreeMap<String, Agent>,
    pub(super) namespaces: BTreeMap<String, Labels>,
    /// By namespace and name.
    pub(super) pods: BTreeMap<String, BTreeMap<String, PodFacts>>,
    /// Pods that carry the label of a slice.
    pub(super) labelled: BTreeSet<(String, String)>,
    pub(super) exports: BTreeMap<(String, String), ServiceState>,
    /// Services of other clusters that are here: slice, cluster, hub.
    pub(super) imported: BTreeMap<String, (String, String, String)>,
    /// ConfigMaps with the configuration of the cluster's DNS.
    pub(super) dns_configs: cluster_dns::ConfigMaps,
    /// What they are, for writes and events.
    pub(super) dns_metas: BTreeMap<cluster_dns::Id, Meta>,
    /// Those of them that were looked for, there or not.
    pub(super) dns_listed: BTreeSet<cluster_dns::Id>,
    /// What was done to them.
    pub(super) dns_marks: BTreeMap<cluster_dns::Id, cluster_dns::Mark>,
    pub(super) dns_answers: cluster_dns::Answers,
    pub(super) dns_warnings: Vec<cluster_dns::Warning>,
    /// Where slice DNS answers, while the cluster's DNS forwards names to it; `None` while that is not known.
    pub(super) dns_forwards: Option<Option<IpAddr>>,
    /// See [`cluster_dns::Plan::unchecked`].
    pub(super) dns_unchecked: Option<String>,
    pub(super) facts: Facts,
    pub(super) link: Result<Link, String>,
    pub(super) hub: HubState,
    /// Whether anything is known of a credential yet.
    pub(super) link_seen: bool,
    /// Until when no heartbeat says nothing: this process has only begun to send them.
    pub(super) unjudged_until: Duration,
    pub(super) heartbeat: Option<Duration>,
    pub(super) heartbeat_error: Option<String>,
    pub(super) reachable: bool,
    pub(super) local: Outputs,
    pub(super) remote: Outputs,
    pub(super) notices: Notices,
    pub(super) warnings: BTreeMap<String, String>,
    pub(super) dirty: Dirty,
    pub(super) timers: BTreeSet<Duration>,
    /// Other namespaces on the hub are to be followed than before.
    pub(super) follows_others: bool,
    /// What is known of the names of load balancers.
    pub(super) resolved: BTreeMap<String, Resolved>,
    /// Other names are to be resolved than before.
    pub(super) other_names: bool,
    pub figures: Figures<Source>,
}

/// What is to be planned again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) slices: BTreeSet<String>,
    pub(super) exports: BTreeSet<(String, String)>,
    pub(super) imports: bool,
    pub(super) labels: bool,
    pub(super) report: bool,
    pub(super) cluster_dns: bool,
    /// Of these nodes.
    pub(super) taints: BTreeSet<String>,
}

/// A moment's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub slices: usize,
    pub nodes: usize,
    pub nodes_left_out: usize,
    pub hub_reachable: bool,
    pub local: Depth,
    pub hub: Depth,
}

impl Member {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            listed: BTreeSet::new(),
            leading: false,
            slices: BTreeMap::new(),
            node_facts: BTreeMap::new(),
            nodes: Nodes::default(),
            nodes_dirty: true,
            gone: BTreeMap::new(),
            slice_nodes: BTreeMap::new(),
            broken_pairs: mesh::Reported::new(),
            agents: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            labelled: BTreeSet::new(),
            exports: BTreeMap::new(),
            imported: BTreeMap::new(),
            dns_configs: BTreeMap::new(),
            dns_metas: BTreeMap::new(),
            dns_listed: BTreeSet::new(),
            dns_marks: BTreeMap::new(),
            dns_answers: cluster_dns::Answers::default(),
            dns_warnings: Vec::new(),
            dns_forwards: None,
            dns_unchecked: None,
            facts: Facts::default(),
            link: Err("no credential was read yet".to_owned()),
            hub: HubState::default(),
            link_seen: false,
            unjudged_until: Duration::ZERO,
            heartbeat: None,
            heartbeat_error: None,
            reachable: false,
            local: Outputs::new(MANAGER),
            remote: Outputs::new(MANAGER),
            notices: Notices::default(),
            warnings: BTreeMap::new(),
            dirty: Dirty::default(),
            timers: BTreeSet::new(),
            follows_others: false,
            resolved: BTreeMap::new(),
            other_names: false,
            figures: Figures::default(),
        }
    }

    /// Whether everything of the cluster's own API was seen once. The hub may never be, and slices wait for no configuration of
    /// the cluster's DNS.
    pub fn is_synced(&self) -> bool {
        let mut awaited = Source::LOCAL
            .iter()
            .filter(|source| **source != Source::ConfigMap);
        awaited.all(|source| self.listed.contains(source))
    }

    /// Takes note of an event. It matters with the next [`Member::poll_write`].
    pub fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Seen(input) => self.see(*input, now),
            Event::Gone(source, meta) => self.lose(source, &meta, Some(&meta.version), now),
            Event::Listed(source, there) => self.list(source, &there, now),
            Event::DnsListed(id, there) => self.list_dns(id, &there, now),
            Event::DnsAsked(result) => {
                let before = self.dns_answers.clone();
                self.dns_answers.note(result, now);
                // How long they have failed counts too.
                self.dirty.cluster_dns |=
                    self.dns_answers != before || self.dns_answers != cluster_dns::Answers::Resolving;
            }
            Event::Shared(namespace, there) => self.list_shared(&namespace, &there, now),
            Event::Written(side, key, outcome) => _ = self.outputs(side).written(&key, outcome, now),
            Event::Leading(leading) => {
                self.leading = leading;
                self.local.forget_flights();
                self.remote.forget_flights();
                if leading {
                    self.unjudged_until = now.clock + HUB_SILENCE;
                    self.wake_after(HUB_SILENCE, now);
                    self.touch_all();
                }
            }
            Event::Linked(link) => {
                self.link_seen = true;
                self.link(link);
            }
            Event::Heartbeat(Ok(())) => {
                self.heartbeat = Some(now.clock);
                self.heartbeat_error = None;
                self.judge_hub(now);
            }
            Event::Heartbeat(Err(error)) => {
                self.heartbeat_error = Some(error);
                self.judge_hub(now);
            }
            Event::Facts(facts) => {
                if self.facts != facts {
                    self.facts = facts;
                    self.dirty.report = true;
                }
            }
            Event::Resolved(answers) => self.resolve(answers),
            Event::Tick => {}
        }
    }

    /// The next write to one of the two API servers.
    pub fn poll_write(&mut self, side: Side, now: Now) -> Option<Write> {
        self.wake(now);
        if !self.leading || !self.is_synced() {
            return None;
        }
        self.plan(now);
        if side == Side::Hub && !self.is_hub_synced() {
            return None;
        }
        self.outputs(side).poll(now)
    }

    /// Namespaces on the hub in which [`Source::SliceShare`] is to be watched, when that has changed.
    pub fn take_followed(&mut self) -> Option<BTreeSet<String>> {
        let changed = std::mem::take(&mut self.follows_others);
        changed.then(|| self.hub.shared.keys().cloned().collect())
    }

    /// Names of load balancers that are to be resolved now and then, when they have changed.
    pub fn take_names(&mut self) -> Option<BTreeSet<String>> {
        std::mem::take(&mut self.other_names).then(|| self.balancers())
    }

    fn balancers(&self) -> BTreeSet<String> {
        self.slices
            .values()
            .flat_map(|slice| slice.balancers.iter().cloned())
            .collect()
    }

    fn resolve(&mut self, answers: BTreeMap<String, Result<Vec<IpAddr>, String>>) {
        let before = self.resolved.clone();
        for (name, answer) in answers {
            let known = self.resolved.entry(name).or_default();
            match answer {
                Ok(mut addresses) => {
                    // Whoever answers may turn them round with each answer.
                    addresses.sort_unstable();
                    addresses.dedup();
                    *known = Resolved {
                        addresses,
                        error: None,
                    };
                }
                Err(why) => known.error = Some(why),
            }
        }
        let wanted = self.balancers();
        self.resolved.retain(|name, _| wanted.contains(name));
        if self.resolved != before {
            let of_names = self
                .slices
                .iter()
                .filter(|(_, slice)| !slice.balancers.is_empty());
            self.dirty.slices.extend(of_names.map(|(name, _)| name.clone()));
        }
    }

    /// The next event to be recorded on somebody's object.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.figures.dropped(self.notices.take_dropped());
        self.notices.pop().filter(|_| self.leading)
    }

    /// Whether the cluster is off the hub as a person wanted: nothing is left, and the hub knows, where it can be reached.
    pub fn has_left(&self) -> bool {
        let leaving = self.link.as_ref().is_ok_and(|link| link.leaving);
        let reported = !self.reachable || {
            let Depth { due, in_flight, .. } = self.remote.depth();
            due + in_flight == 0 && self.hub.slices.values().all(|desired| desired.released)
        };
        leaving && self.is_synced() && self.slices.values().all(SliceState::is_empty) && reported
    }

    /// When [`Member::poll_write`] is to be called although nothing happens.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.leading && self.is_synced() && self.has_plans() {
            return Some(Duration::ZERO);
        }
        let heartbeat = self
            .heartbeat
            .filter(|_| self.reachable)
            .map(|at| at + HUB_SILENCE);
        let agents = self
            .agents
            .values()
            .filter(|agent| !agent.silent)
            .map(|agent| agent.at + AGENT_SILENCE)
            .min();
        let outputs = self
            .local
            .next_timeout()
            .into_iter()
            .chain(self.remote.next_timeout());
        self.timers
            .first()
            .copied()
            .into_iter()
            .chain(heartbeat)
            .chain(agents)
            .chain(outputs)
            .min()
    }

    pub fn in_flight(&self, side: Side) -> usize {
        match side {
            Side::Local => self.local.in_flight(),
            Side::Hub => self.remote.in_flight(),
        }
    }

    pub fn gauges(&self) -> Gauges {
        Gauges {
            slices: self.slices.len(),
            nodes: self.nodes.usable.len(),
            nodes_left_out: self.nodes.left_out.len(),
            hub_reachable: self.reachable,
            local: self.local.depth(),
            hub: self.remote.depth(),
        }
    }

    pub(super) fn outputs(&mut self, side: Side) -> &mut Outputs {
        match side {
            Side::Local => &mut self.local,
            Side::Hub => &mut self.remote,
        }
    }

    pub(super) fn is_hub_synced(&self) -> bool {
        self.link.is_ok() && Source::HUB.iter().all(|source| self.listed.contains(source))
    }

    pub(super) fn has_plans(&self) -> bool {
        let dirty = &self.dirty;
        self.nodes_dirty
            || !dirty.slices.is_empty()
            || !dirty.exports.is_empty()
            || dirty.imports
            || dirty.labels
            || dirty.report
            || dirty.cluster_dns
            || !dirty.taints.is_empty()
    }

    pub(super) fn touch_all(&mut self) {
        self.nodes_dirty = true;
        self.touch_slices();
        self.dirty.exports.extend(self.exports.keys().cloned());
        self.dirty.imports = true;
        self.dirty.labels = true;
        self.dirty.report = true;
        self.dirty.cluster_dns = true;
        self.dirty.taints.extend(self.node_facts.keys().cloned());
    }

    pub(super) fn touch_slices(&mut self) {
        let known = self.slices.keys().chain(self.hub.slices.keys());
        self.dirty.slices.extend(known.cloned());
    }

    /// This cluster's name on the hub: as its credential says, or as its slices do.
    pub(super) fn name(&self) -> String {
        let of_slices = || {
            let mut objects = self.slices.values().filter_map(|slice| slice.object.as_ref());
            objects.next().map(|object| object.spec.cluster.clone())
        };
        let of_link = self.link.as_ref().ok().map(|link| link.cluster.clone());
        of_link.or_else(of_slices).unwrap_or_default()
    }

    /// Its namespace on the hub; empty while there is no credential.
    pub(super) fn namespace(&self) -> String {
        let link = self.link.as_ref();
        link.map(|link| link.namespace.clone()).unwrap_or_default()
    }

    /// Who the hub is; empty until it was seen.
    pub(super) fn hub_identity(&self) -> String {
        let hub = self.hub.hub.as_ref();
        hub.map(|hub| hub.identity.clone()).unwrap_or_default()
    }

    pub(super) fn link(&mut self, link: Result<Link, String>) {
        // The watches of the credential before are gone.
        self.follows_others = true;
        let same = match (&self.link, &link) {
            (Ok(before), Ok(after)) => {
                (&before.namespace, &before.cluster) == (&after.namespace, &after.cluster)
            }
            (_, Err(_)) => true,
            (Err(_), Ok(_)) => false,
        };
        if !same {
            // Another hub, or another name: what was seen of the one before says nothing.
            self.hub = HubState::default();
            self.remote = Outputs::new(MANAGER);
            self.listed.retain(|source| source.side() == Side::Local);
        }
        if self.link != link {
            self.link = link;
            self.touch_all();
        }
    }

    pub(super) fn judge_hub(&mut self, now: Now) {
        let reachable = self
            .heartbeat
            .is_some_and(|at| now.clock.saturating_sub(at) < HUB_SILENCE);
        if self.reachable != reachable || !reachable {
            self.reachable = reachable;
            self.touch_slices();
        }
    }

    pub(super) fn wake(&mut self, now: Now) {
        while let Some(at) = self.timers.first().copied().filter(|at| *at <= now.clock) {
            self.timers.remove(&at);
            self.nodes_dirty = true;
            self.dirty.imports = true;
            self.dirty.cluster_dns = true;
            self.touch_slices();
        }
        if self.reachable
            && self
                .heartbeat
                .is_none_or(|at| now.clock.saturating_sub(at) >= HUB_SILENCE)
        {
            self.judge_hub(now);
        }
        let mut fell_silent = false;
        for agent in self.agents.values_mut() {
            if !agent.silent && now.clock.saturating_sub(agent.at) >= AGENT_SILENCE {
                agent.silent = true;
                fell_silent = true;
            }
        }
        if fell_silent {
            self.dirty.report = true;
            self.touch_slices();
        }
    }

    pub(super) fn wake_after(&mut self, wait: Duration, now: Now) {
        // A whole second: many that want the same are one.
        let at = (now.clock + wait).as_secs() + 1;
        self.timers.insert(Duration::from_secs(at));
    }

    pub(super) fn plan(&mut self, now: Now) {
        if std::mem::take(&mut self.nodes_dirty) {
            self.plan_nodes(now);
        }
        for _ in 0..PLANS_AT_ONCE {
            if let Some(slice) = self.dirty.slices.pop_first() {
                self.plan_slice(&slice, now);
            } else if let Some(export) = self.dirty.exports.pop_first() {
                self.plan_export(&export, now);
            } else if std::mem::take(&mut self.dirty.imports) {
                self.plan_imports(now);
            } else if std::mem::take(&mut self.dirty.labels) {
                self.plan_labels();
            } else if std::mem::take(&mut self.dirty.cluster_dns) {
                self.plan_cluster_dns(now);
            } else if let Some(node) = self.dirty.taints.pop_first() {
                self.plan_taint(&node);
            } else if std::mem::take(&mut self.dirty.report) {
                self.plan_report();
            } else {
                return;
            }
            self.figures.planned();
        }
    }
}
