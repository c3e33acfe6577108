//! The agent: one loop over a closed set of events, then one settlement.
//!
//! ```text
//!  World ──────┐                     ┌─ resolve ─ desired ─ diff ─ apply      the kernel
//!  Sandboxes ──┤                     ├─ configurations and TAPs               gateways on this node
//!  Call ───────┼─► handle ─► settle ─┼─ answers                               the CNI plugin
//!  Gateway ────┤                     ├─ checkpoint, members                   files
//!  Tick, … ────┘                     └─ reports, announcements                the API server, by way of `report`
//! ```
//!
//! Nothing here talks to the API server, and nothing waits for anything but the kernel: with the API server away the
//! node goes on as it was. Time comes in with each step.

mod announce;
mod calls;
mod frames;
mod gateway;
mod recover;
mod reports;
mod sandboxes;
mod shaping;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use jiff::{SignedDuration, Timestamp};
use slice_crds::{membership::Labels, names::MEMBER_NAMESPACE, v1alpha1::MeshStatus};
use tokio::sync::{mpsc, watch};

pub use announce::Announcement;
pub use shaping::GUARANTEES;

use crate::{
    checkpoint,
    cni::{members::Members, server::Call},
    desired::{Made, desired},
    files::{self, Directories},
    gateways::{GatewayEvent, Server},
    intent::{self, Decision, Local},
    kernel::{Kernel, Observation, Outcome, Query},
    ledger::Ledger,
    liveness, mesh,
    metrics::Metrics,
    model::{Key, Name, Netns, PodLink, State},
    names,
    plan::{self, PodEnd},
    pod_network::PodNetworks,
    pods::{NetnsDirectory, Records, Sandbox},
    show,
    status::Reports,
    world::{PodView, World},
};

/// How long after its start the agent takes a TAP that somebody holds for a gateway that is about to call.
const ADOPTION: SignedDuration = SignedDuration::from_secs(15);
/// How long a pod that was fetched for the CNI plugin is believed to exist without the watch saying so.
const FETCHED: SignedDuration = SignedDuration::from_secs(60);

/// Everything that can wake the agent.
#[derive(Debug)]
pub enum Event {
    /// A new snapshot of the objects.
    World(Arc<World>),
    /// libcni's cache was read anew.
    Sandboxes(Vec<Sandbox>),
    /// The CNI plugin asks.
    Call(Call),
    /// What became of a [`Fetch`].
    Fetched(Fetched),
    Gateway(GatewayEvent),
    /// Other nodes' gateways are other than they were.
    Liveness(liveness::View),
    /// What the probes of other nodes say is other than it was.
    Mesh(mesh::View),
    /// Whether names of slices resolve is other than it was.
    Names(names::View),
    /// Something on the node changed, perhaps by somebody else's hand.
    KernelChanged,
    /// Time to look at everything.
    Tick,
    /// Time to see what the shaper carries.
    Measure,
    /// Somebody waits: time to see whether it can go on, or has waited too long.
    Wake,
    /// The CNI chain is other than it was.
    Chain,
}

/// A pod that the watch has not shown yet is wanted from the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub namespace: String,
    pub name: String,
}

/// Its answer.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub fetch: Fetch,
    /// The pod and its namespace's labels, `None` where there is no such pod; an error where nobody could say.
    pub found: Result<Option<(Arc<PodView>, Labels)>, String>,
}

/// What an agent is made with.
pub struct Setup {
    pub node: String,
    pub node_address: Option<IpAddr>,
    pub directories: Directories,
    pub netns: NetnsDirectory,
    pub features: BTreeMap<String, bool>,
    pub metrics: Metrics,
    pub server: Server,
    /// Takes one request at a time; one that does not fit is made again.
    pub fetches: mpsc::Sender<Fetch>,
    pub announcements: mpsc::Sender<Announcement>,
    pub reports: watch::Sender<Reports>,
    pub chain: watch::Receiver<Chain>,
    /// What was seen last.
    pub shown: watch::Sender<Arc<show::Seen>>,
    /// What the other agents are answered, and which of them are asked.
    pub liveness: watch::Sender<liveness::Local>,
    /// Which other nodes are probed.
    pub mesh: watch::Sender<mesh::Local>,
    /// Whether it is asked for names of slices, and from which pods.
    pub names: watch::Sender<names::Local>,
}

/// How the agent's own part of the node's CNI chain is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chain {
    #[default]
    Unknown,
    Installed,
    Removed,
    Broken(String),
}

/// The agent of one node.
pub struct Agent<K> {
    kernel: K,
    node: String,
    node_address: Option<IpAddr>,
    directories: Directories,
    netns: NetnsDirectory,
    records: Records,
    features: BTreeMap<String, bool>,
    metrics: Metrics,
    server: Server,
    fetches: mpsc::Sender<Fetch>,
    announcements: mpsc::Sender<Announcement>,
    reports: watch::Sender<Reports>,
    chain: watch::Receiver<Chain>,
    shown: watch::Sender<Arc<show::Seen>>,
    liveness: watch::Sender<liveness::Local>,
    mesh: watch::Sender<mesh::Local>,
    names: watch::Sender<names::Local>,

    /// The newest snapshot, and what it is with the fetched pods in it.
    snapshot: Option<Arc<World>>,
    world: Arc<World>,
    fetched: BTreeMap<String, (Arc<PodView>, Labels, Timestamp)>,
    ledger: Ledger,
    /// The ledger and the members as they were last written to files.
    saved: (Ledger, Option<Members>),
    cached: Vec<Sandbox>,
    /// What is in [`Self::records`], by UID.
    recorded: BTreeMap<String, Sandbox>,
    gateways: BTreeMap<(String, u32), gateway::Gateway>,
    adopted: BTreeSet<(String, u32)>,
    started: Option<Timestamp>,
    /// What is observed of other nodes' gateways.
    view: liveness::View,
    /// What the probes of other nodes say; `None` before they say anything.
    mesh_view: Option<mesh::View>,
    /// What an earlier agent reported of them.
    mesh_before: MeshStatus,
    /// Whether names of slices resolve, and what an earlier agent reported of that.
    names_view: names::View,
    names_before: names::View,
    pod_networks: PodNetworks,
    /// They go on from what an earlier agent reported.
    resumed: bool,
    calls: Vec<calls::Pending>,

    /// What is in the kernel, as far as is known; `None` until the first look.
    seen: Option<Observation>,
    look: bool,
    /// Whether anything happened that can change more than what is reported.
    dirty: bool,
    desired: State,
    /// Whether the last settlement left the kernel as desired.
    clean: bool,
    decision: Decision,
    /// What decisions and states were made of last.
    memo: intent::Memo,
    made: Made,
    errors: Errors,
    frames: frames::Frames,
    shaping: shaping::Shaping,
    /// Whether the shaper is to be read.
    measures: bool,
    remains: reports::Remains,
    /// Since when an attachment has been wanted that is not there yet; `None` for one that is.
    wanted: BTreeMap<Name, Option<Instant>>,
    announced: BTreeMap<(String, String), announce::Announced>,
}

/// What the kernel refused, by what it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Errors {
    ports: BTreeMap<Name, String>,
    /// By slice.
    segments: BTreeMap<String, String>,
    /// Neither, or the kernel could not be looked at.
    node: Option<String>,
    /// The checkpoint could not be written.
    records: Option<String>,
}

impl<K: Kernel> Agent<K> {
    pub fn new(kernel: K, setup: Setup) -> Self {
        let directories = &setup.directories;
        let loaded = match checkpoint::load(&directories.checkpoint()) {
            Ok(None) => checkpoint::load(&directories.former_checkpoint()),
            loaded => loaded,
        };
        let ledger = match loaded {
            Ok(ledger) => ledger.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "checkpoint lost, the pods' interfaces tell what they have"
                );
                Ledger::default()
            }
        };
        for (feature, there) in &setup.features {
            let gauge = setup.metrics.features.with_label_values(&[feature]);
            gauge.set(i64::from(*there));
        }
        let records = Records::new(setup.directories.records());
        let recorded = records
            .all()
            .into_iter()
            .map(|sandbox| (sandbox.uid.clone(), sandbox))
            .collect();
        Self {
            kernel,
            node: setup.node,
            node_address: setup.node_address,
            directories: setup.directories,
            netns: setup.netns,
            records,
            features: setup.features,
            metrics: setup.metrics,
            server: setup.server,
            fetches: setup.fetches,
            announcements: setup.announcements,
            reports: setup.reports,
            chain: setup.chain,
            shown: setup.shown,
            liveness: setup.liveness,
            mesh: setup.mesh,
            names: setup.names,
            snapshot: None,
            world: Arc::default(),
            fetched: BTreeMap::new(),
            saved: (ledger.clone(), None),
            ledger,
            cached: vec![],
            recorded,
            gateways: BTreeMap::new(),
            adopted: BTreeSet::new(),
            started: None,
            view: liveness::View::default(),
            mesh_view: None,
            mesh_before: MeshStatus::default(),
            names_view: None,
            names_before: None,
            pod_networks: PodNetworks::default(),
            resumed: false,
            calls: vec![],
            seen: None,
            look: true,
            dirty: false,
            desired: State::default(),
            clean: false,
            decision: Decision::default(),
            memo: intent::Memo::default(),
            made: Made::default(),
            errors: Errors::default(),
            frames: frames::Frames::default(),
            shaping: shaping::Shaping::default(),
            measures: false,
            remains: reports::Remains::default(),
            wanted: BTreeMap::new(),
            announced: BTreeMap::new(),
        }
    }

    /// Takes note of an event. [`Agent::settle`] makes it matter.
    pub fn handle(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::World(world) => self.snapshot = Some(world),
            Event::Sandboxes(sandboxes) => self.cached = sandboxes,
            Event::Call(call) => self.take_call(call, now),
            Event::Fetched(fetched) => self.take_fetched(fetched, now),
            Event::Gateway(GatewayEvent::Report { connection, report }) => {
                if !self.take_report(connection, report) {
                    return;
                }
            }
            Event::Measure => {
                self.measures = true;
                return;
            }
            Event::Mesh(view) => {
                self.mesh_view = Some(view);
                return;
            }
            Event::Names(view) => {
                (self.names_view, self.names_before) = (view, None);
                return;
            }
            Event::Liveness(view) => self.view = view,
            Event::Gateway(event) => self.take_gateway(event),
            Event::KernelChanged | Event::Tick => self.look = true,
            Event::Wake | Event::Chain => {}
        }
        self.dirty = true;
    }

    /// Brings kernel, gateways, files and reports to what the events so far ask for.
    pub async fn settle(&mut self, now: Timestamp) {
        let Some(snapshot) = self.snapshot.clone() else {
            // Nothing is known yet, so nothing is changed; the plugin decides by the members file.
            self.calls.clear();
            return;
        };
        if std::mem::take(&mut self.measures) && self.seen.is_some() {
            self.dirty |= self.measure().await;
        }
        if !std::mem::take(&mut self.dirty) {
            // Only what is reported may have changed.
            self.publish(now);
            return;
        }
        let begun = Instant::now();
        self.world = self.with_fetched(&snapshot, now);
        self.forget_old_sandboxes(now);
        self.listen_for_gateways();
        self.give_up_adoption(now);
        self.note_pod_networks(now);
        if let Err(error) = self.settle_kernel(now).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the node's network could not be read"
            );
            self.metrics.reconcile_errors.inc();
            self.errors.node = Some(format!("{error:#}"));
            self.clean = false;
        }
        self.serve_gateways();
        self.write_files();
        self.answer_calls(now);
        self.publish(now);
        self.metrics
            .reconcile_seconds
            .observe(begun.elapsed().as_secs_f64());
    }

    /// Whether somebody waits for something that no event may announce.
    pub fn is_waiting(&self) -> bool {
        !self.calls.is_empty() || self.has_idle_gateway()
    }

    /// Whether nothing of Weft is left on the node, as was asked for.
    pub fn is_removed(&self) -> bool {
        let empty = self.state().is_some_and(|state| *state == State::default());
        self.world.teardown() && empty && *self.chain.borrow() == Chain::Removed
    }

    /// What is in the kernel, as far as is known.
    pub fn state(&self) -> Option<&State> {
        self.seen.as_ref().map(|seen| &seen.state)
    }

    async fn settle_kernel(&mut self, now: Timestamp) -> anyhow::Result<()> {
        if self.seen.is_none() {
            self.recover(now).await?;
        }
        let looked = self.look;
        if looked {
            self.observe(now).await?;
        }
        // A gateway that comes into use by getting its TAP changes what is desired: twice at most.
        for _ in 0..2 {
            self.decide(now);
            self.change(looked).await;
            if !self.hand_over_taps() {
                break;
            }
        }
        self.update_mesh();
        self.update_names();
        Ok(())
    }

    /// Looks at everything.
    async fn observe(&mut self, now: Timestamp) -> anyhow::Result<()> {
        let ends = self
            .desired
            .pods
            .iter()
            .map(|(port, pod)| (port.clone(), pod.end()));
        let query = Query {
            pods: ends.collect(),
            node_address: self.address(),
        };
        let mut seen = self.kernel.observe(&query).await?;
        for (port, error) in &seen.unread {
            tracing::warn!(interface = %port, error, "a pod's interface could not be read, it is left as it is");
            // To make it anew would punish the pod for what may be the node's trouble.
            let as_it_was = self.desired.pods.get(port).cloned();
            seen.state.pods.extend(as_it_was.map(|pod| (port.clone(), pod)));
        }
        self.look = false;
        self.forget_ended(&seen.gone);
        self.count_frames(&seen);
        self.show(&seen, now);
        self.check_taps(&seen.held);
        self.errors.node = None;
        self.remains.observe(&seen.state);
        self.seen = Some(seen);
        Ok(())
    }

    /// The node's address: as its blocks have it, which the operator keeps true, and until there are any the one with which
    /// the agent was started.
    fn address(&self) -> Option<IpAddr> {
        let mut own = self.world.blocks.of_node(&self.node);
        let of_block = own.next().map(|(_, block)| block.spec.node_address);
        of_block.or(self.node_address)
    }

    fn decide(&mut self, now: Timestamp) {
        let local = Local {
            node: self.node.clone(),
            address: self.address(),
            sandboxes: self.sandboxes(),
            pod_addresses: self.pod_addresses(),
            carrying: self.carrying(),
            taps: self.taps(),
            liveness: Arc::clone(&self.view),
            underlay: self.seen.as_ref().and_then(|seen| seen.underlay_speed),
            parts: self.shaping.parts.clone(),
        };
        self.decision = intent::resolve(&self.world, &local, &mut self.ledger, &mut self.memo, now);
        self.keep_sandboxes();
        self.update_liveness();
    }

    /// Says which nodes can be probed: none before answers can arrive.
    fn update_mesh(&self) {
        let peers = match self.answers_probes() {
            true => Arc::clone(&self.decision.peers),
            false => Arc::default(),
        };
        let local = mesh::Local {
            address: self.address(),
            peers,
            gateways: self.decision.watched.keys().copied().collect(),
            before: self.mesh_before.pairs.clone(),
        };
        self.mesh.send_if_modified(|before| {
            let changed = *before != local;
            *before = local;
            changed
        });
    }

    /// Says whether it is asked for names of slices, and from where.
    fn update_names(&self) {
        let slice_dns = self.slice_dns();
        let pods = match slice_dns {
            Some(_) => self.askers(),
            None => vec![],
        };
        let local = names::Local {
            slice_dns,
            pods,
            before: self.names_before.clone(),
        };
        self.names.send_if_modified(|before| {
            let changed = *before != local;
            *before = local;
            changed
        });
    }

    /// Where slice DNS answers, where the operator wants to know whether its names resolve.
    fn slice_dns(&self) -> Option<IpAddr> {
        let spec = &self.world.node.as_ref()?.spec;
        spec.slice_dns.filter(|_| !spec.teardown)
    }

    /// Attached pods that can be asked from. Those of slice DNS would ask themselves.
    fn askers(&self) -> Vec<names::Pod> {
        let sandboxes = self.newest_sandboxes();
        let attached = self.decision.pods.iter().filter(|(_, decision)| {
            let mut slices = decision.slices.values();
            slices.any(|wanted| wanted.outcome.is_ok())
        });
        let pods = attached.filter_map(|(uid, _)| {
            let pod = self.world.pods.get(uid)?;
            let runs = pod.running && !pod.finished && !pod.terminating;
            let asks = runs && pod.facts.namespace != MEMBER_NAMESPACE;
            let sandbox = sandboxes.get(pod.sandbox_uid.as_str()).filter(|_| asks)?;
            Some(names::Pod {
                namespace: pod.facts.namespace.clone(),
                name: pod.name.clone(),
                netns: self.netns.reach(&sandbox.netns).path().to_owned(),
            })
        });
        pods.take(names::MOST_ASKERS).collect()
    }

    /// Whether probes of other nodes, and answers to this node's, reach the programs.
    fn answers_probes(&self) -> bool {
        self.state().is_some_and(|state| {
            let device = state.links.get(&Name::to_pods());
            state.tunnel.is_some() && device.is_some_and(|device| device.attached && device.up)
        })
    }

    fn note_pod_networks(&mut self, now: Timestamp) {
        let recorded = self.world.node.as_ref().and_then(|node| node.status.as_ref());
        if let Some(recorded) = recorded.filter(|_| !std::mem::replace(&mut self.resumed, true)) {
            self.pod_networks.resume(&recorded.pod_networks, now);
            self.mesh_before = recorded.mesh.clone();
            self.names_before = names::recorded(&recorded.conditions);
        }
        let pods = self.world.pods.values();
        let pods = pods.filter(|pod| !pod.facts.host_network && !pod.finished);
        self.pod_networks
            .observe(pods.flat_map(|pod| pod.addresses.iter().copied()), now);
    }

    async fn change(&mut self, looked: bool) {
        let Some(seen) = &mut self.seen else { return };
        self.errors.ports.clear();
        self.errors.segments.clear();
        let wanted = desired(&self.decision.node, &mut self.made);
        self.remains.extend(&wanted);
        let plan = plan::diff(&wanted, &seen.state);
        for (port, pod) in &wanted.pods {
            let there = seen.state.pods.get(port).is_some_and(|seen| has(seen, pod));
            self.wanted
                .entry(port.clone())
                .or_insert_with(|| (!there).then(Instant::now));
        }
        if !plan.0.is_empty() {
            if looked && self.clean && wanted == self.desired {
                self.metrics.drift_repaired.inc_by(plan.0.len() as u64);
                tracing::warn!(
                    changes = plan::summary(&plan),
                    "somebody changed the node's slices, repairing"
                );
            }
            tracing::debug!(plan = %plan, "changing the kernel");
            let outcome = self.kernel.apply(&plan).await;
            for step in &outcome.done {
                seen.state.take(&step.action);
            }
            tracing::info!(
                changes = plan::summary(&plan),
                done = outcome.done.len(),
                failed = outcome.failed.len(),
                skipped = outcome.skipped.len(),
                "kernel changed"
            );
            self.note_failures(&outcome);
        }
        self.clean = seen_as(&self.seen, &wanted);
        if let Some(seen) = &mut self.seen {
            share(&mut seen.state, &wanted);
        }
        self.desired = wanted;
        self.note_attached();
    }

    fn note_failures(&mut self, outcome: &Outcome) {
        let steps = &self.metrics.steps;
        steps
            .with_label_values(&["done"])
            .inc_by(outcome.done.len() as u64);
        steps
            .with_label_values(&["failed"])
            .inc_by(outcome.failed.len() as u64);
        steps
            .with_label_values(&["skipped"])
            .inc_by(outcome.skipped.len() as u64);
        self.metrics.reconcile_errors.inc_by(outcome.failed.len() as u64);
        for failure in &outcome.failed {
            let text = format!("{:#}", failure.error);
            tracing::warn!(error = text, "change refused");
            let scope = &failure.step.scope;
            let ends = |slice: &String| !self.world.slices.contains_key(slice);
            match (&scope.port, &scope.slice) {
                (Some(port), slice) if port.is_pod_port() && !slice.as_ref().is_some_and(ends) => {
                    _ = self.errors.ports.insert(port.clone(), text);
                }
                (_, Some(slice)) => _ = self.errors.segments.insert(slice.clone(), text),
                (_, None) => self.errors.node = Some(text),
            }
        }
        // What a failure left behind is best seen, not guessed; at the next tick, lest a refusal be repeated at once.
    }

    /// Measures how long attachments took that exist now.
    fn note_attached(&mut self) {
        self.wanted.retain(|port, _| self.desired.pods.contains_key(port));
        let attached: Vec<Name> = self
            .wanted
            .keys()
            .filter(|port| self.is_attached(port))
            .cloned()
            .collect();
        for port in attached {
            if let Some(since) = self.wanted.get_mut(&port).and_then(Option::take) {
                self.metrics.attach_seconds.observe(since.elapsed().as_secs_f64());
            }
        }
    }

    /// Whether a pod's port is there as it should be, at both ends.
    fn is_attached(&self, port: &Name) -> bool {
        let Some(state) = self.state() else { return false };
        let (wanted, seen) = (&self.desired, state);
        let Some(link) = wanted.links.get(port) else {
            return false;
        };
        let slice = link.alias.as_ref().map(|alias| alias.slice.as_str());
        let segment = |state: &State| state.segments.get(slice?).cloned();
        let (Some(wanted_entries), Some(seen_entries)) = (segment(wanted), segment(seen)) else {
            return false;
        };
        let key = Key::Port(port.clone());
        seen.links.get(port) == Some(link)
            && (Arc::ptr_eq(&wanted_entries, &seen_entries)
                || seen_entries.get(&key).is_some() && wanted_entries.get(&key) == seen_entries.get(&key))
            && match (wanted.pods.get(port), seen.pods.get(port)) {
                (Some(wanted), Some(seen)) => has(seen, wanted),
                _ => false,
            }
    }

    fn show(&self, seen: &Observation, now: Timestamp) {
        let slices = self.world.slices.iter();
        self.shown.send_replace(Arc::new(show::Seen {
            at: now,
            node: self.node.clone(),
            state: seen.state.clone(),
            counters: seen.counters.clone(),
            carried: seen.carried.clone(),
            numbers: self.made.numbers().clone(),
            underlay_drops: seen.underlay_drops,
            slices: slices
                .map(|(slice, facts)| (facts.spec.vni, slice.clone()))
                .collect(),
        }));
    }

    fn count_frames(&mut self, seen: &Observation) {
        let slices = self.world.slices.iter();
        let slices = slices
            .map(|(slice, facts)| (facts.spec.vni, slice.as_str()))
            .collect();
        self.frames.take(seen, &slices, &self.metrics);
    }

    fn write_files(&mut self) {
        if self.is_removed() {
            let of_agent = &self.directories;
            for path in [
                of_agent.checkpoint(),
                of_agent.former_checkpoint(),
                of_agent.members(),
            ] {
                if let Err(error) = files::remove(&path) {
                    tracing::warn!(path = %path.display(), error = %error, "file not removed");
                }
            }
            for uid in self.recorded.keys().cloned().collect::<Vec<_>>() {
                self.forget_sandbox(&uid);
            }
            self.saved = (self.ledger.clone(), None);
            return;
        }
        if self.saved.0 != self.ledger {
            match checkpoint::save(&self.directories.checkpoint(), &self.ledger) {
                Ok(()) => {
                    self.saved.0 = self.ledger.clone();
                    self.errors.records = None;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "checkpoint not written");
                    self.errors.records = Some(error);
                }
            }
        }
        let required = match self.world.teardown() {
            true => BTreeSet::new(),
            false => self.world.required_namespaces().into_keys().collect(),
        };
        let members = Members {
            required_namespaces: required,
        };
        if self.saved.1.as_ref() != Some(&members) {
            match members.write(&self.directories.members()) {
                Ok(()) => self.saved.1 = Some(members),
                Err(error) => tracing::warn!(error = %error, "members file not written"),
            }
        }
    }
}

/// Whether what is seen is what is wanted.
fn seen_as(seen: &Option<Observation>, wanted: &State) -> bool {
    seen.as_ref()
        .is_some_and(|seen| plan::diff(wanted, &seen.state).0.is_empty())
}

/// Makes what is equal the same, which is soon seen the next time.
fn share(seen: &mut State, wanted: &State) {
    for (slice, seen) in &mut seen.segments {
        if let Some(wanted) = wanted.segments.get(slice).filter(|wanted| *wanted == seen) {
            *seen = Arc::clone(wanted);
        }
    }
}

/// Whether a pod's end has everything that is wanted of it; it may have more.
fn has(seen: &PodLink, wanted: &PodLink) -> bool {
    seen.end() == wanted.end()
        && seen.mac == wanted.mac
        && seen.up
        && seen.addresses.is_superset(&wanted.addresses)
}

/// The ends that pods of this world may have, by port, of those ports that exist.
fn candidates(
    world: &World,
    sandboxes: &BTreeMap<String, Netns>,
    ports: &BTreeSet<Name>,
) -> BTreeMap<Name, (String, String, PodEnd)> {
    use slice_crds::names;
    let mut candidates = BTreeMap::new();
    for (uid, netns) in sandboxes {
        for slice in world.slices.keys() {
            let port = Name::new(names::pod_port(slice, uid));
            if ports.contains(&port) {
                let end = PodEnd {
                    netns: netns.clone(),
                    interface: names::pod_interface(slice),
                };
                candidates.insert(port, (slice.clone(), uid.clone(), end));
            }
        }
    }
    candidates
}
