//! The hub as a value: events in, writes out. No client, no clock.
//!
//! ```text
//!  loop {
//!      hub.handle(event, now)               what was seen, what became of a write, who leads, that time has passed
//!      while let Some(write) = hub.poll_write(now) { … }        at most as many as the API server is to have at once
//!      while let Some(notice) = hub.poll_notice() { … }
//!      wait for an event, or until hub.next_timeout()
//!  }
//! ```
//!
//! A change marks what it touches, a slice, a cluster or the services of one cluster in one slice, and only that is
//! planned again. So what a change costs does not grow with the number of slices.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use slice_crds::{names, v1alpha1::QosProfileSpec, wire::SliceAllocationSpec};

use super::{
    input::{Input, Source},
    state::{AllocationState, ClusterState, SliceState},
};
use crate::control::{
    Depth, Figures, Id, Key, Kind, Meta, Notice, Now, Outcome, Outputs, Write, notice::Notices,
};

/// Field manager of the hub, and the value of the label on what it prunes.
pub const MANAGER: &str = names::HUB_OPERATOR;
/// A member whose heartbeat has not changed for this long is not reachable: three missed, and some way.
pub const SILENCE: Duration = Duration::from_secs(75);
/// How long a hub waits for the reports of slices that a member says it has.
pub(super) const AWAIT_REPORTS: Duration = Duration::from_secs(30);
/// Things that are planned between two looks at what else there is to do.
const PLANS_AT_ONCE: usize = 16;

/// What is set when the hub starts.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub version: &'static str,
    /// URL and certificate authorities that members get; empty for what each has joined by.
    pub server: String,
    pub ca: String,
    /// How long what pods use stays after it was deleted.
    pub grace: SignedDuration,
}

/// Everything that can wake the hub.
#[derive(Debug)]
pub enum Event {
    /// An object was seen.
    Seen(Box<Input>),
    /// An object was seen to go, at a version where one is known.
    Gone(Source, Meta),
    /// Everything of a kind was seen: namespaces and names.
    Listed(Source, BTreeSet<Id>),
    Written(Key, Outcome),
    /// Whether this process may write.
    Leading(bool),
    Tick,
}

/// The hub.
#[derive(Debug)]
pub struct Hub {
    pub(super) settings: Settings,
    pub(super) listed: BTreeSet<Source>,
    pub(super) leading: bool,
    /// UID of the [`slice_crds::wire::Hub`] object.
    pub(super) identity: Option<String>,
    pub(super) slices: BTreeMap<String, SliceState>,
    pub(super) allocations: BTreeMap<u32, AllocationState>,
    /// VNIs by which members hold slices, and whose they are.
    pub(super) held_vnis: BTreeMap<u32, BTreeSet<(String, String)>>,
    pub(super) clusters: BTreeMap<String, ClusterState>,
    /// Slices that a cluster's facts matter to.
    pub(super) slices_of: BTreeMap<String, BTreeSet<String>>,
    pub(super) clusters_of: BTreeMap<String, BTreeSet<String>>,
    /// Slices that choose their clusters by labels.
    pub(super) selecting: BTreeSet<String>,
    /// Code points by namespace and profile.
    pub(super) profiles: BTreeMap<(String, String), QosProfileSpec>,
    pub(super) outputs: Outputs,
    pub(super) notices: Notices,
    pub(super) dirty_slices: BTreeSet<String>,
    pub(super) dirty_services: BTreeSet<(String, String)>,
    pub(super) dirty_clusters: BTreeSet<String>,
    pub(super) timers: BTreeSet<(Duration, Wake)>,
    pub(super) propagation: BTreeMap<String, (Duration, BTreeSet<Key>)>,
    /// Secrets of join tokens that were deleted: nobody watches Secrets.
    pub(super) voided: BTreeSet<String>,
    pub figures: Figures<Source>,
    /// Seconds from the report of a gateway's key to the moment when the last peer had it.
    pub propagation_seconds: Vec<f64>,
}

/// What is to be looked at again when its time has come.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wake {
    Slice(String),
    Cluster(String),
}

/// A moment's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub clusters: usize,
    pub reachable: usize,
    pub untrusted: usize,
    pub slices: usize,
    pub indices_held: u64,
    pub indices_free: u64,
    pub queue: Depth,
}

impl Hub {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            listed: BTreeSet::new(),
            leading: false,
            identity: None,
            slices: BTreeMap::new(),
            allocations: BTreeMap::new(),
            held_vnis: BTreeMap::new(),
            clusters: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            clusters_of: BTreeMap::new(),
            selecting: BTreeSet::new(),
            profiles: BTreeMap::new(),
            outputs: Outputs::new(MANAGER),
            notices: Notices::default(),
            dirty_slices: BTreeSet::new(),
            dirty_services: BTreeSet::new(),
            dirty_clusters: BTreeSet::new(),
            timers: BTreeSet::new(),
            propagation: BTreeMap::new(),
            voided: BTreeSet::new(),
            figures: Figures::default(),
            propagation_seconds: Vec::new(),
        }
    }

    /// Whether everything was seen once.
    pub fn is_synced(&self) -> bool {
        Source::ALL.iter().all(|source| self.listed.contains(source))
    }

    /// Takes note of an event. It matters with the next [`Hub::poll_write`].
    pub fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Seen(input) => self.see(*input, now),
            Event::Gone(source, meta) => self.lose(source, &meta, Some(&meta.version), now),
            Event::Listed(source, there) => self.list(source, &there, now),
            Event::Written(key, outcome) => self.written(&key, outcome, now),
            Event::Leading(leading) => self.lead(leading),
            Event::Tick => {}
        }
    }

    /// The next write, where there is one.
    pub fn poll_write(&mut self, now: Now) -> Option<Write> {
        self.wake(now);
        if !self.leading || !self.is_synced() {
            return None;
        }
        if self.identity.is_none() {
            self.want_identity();
            return self.outputs.poll(now);
        }
        for _ in 0..PLANS_AT_ONCE {
            if let Some(cluster) = self.dirty_clusters.pop_first() {
                self.plan_cluster(&cluster, now);
            } else if let Some(slice) = self.dirty_slices.pop_first() {
                self.plan_slice(&slice, now);
            } else if let Some((slice, cluster)) = self.dirty_services.pop_first() {
                self.plan_services(&slice, &cluster);
            } else {
                break;
            }
            self.figures.planned();
        }
        self.outputs.poll(now)
    }

    /// The next event to be recorded on somebody's object.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.figures.dropped(self.notices.take_dropped());
        self.notices.pop().filter(|_| self.leading)
    }

    /// When [`Hub::poll_write`] is to be called although nothing happens.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.leading && self.is_synced() && self.has_plans() {
            return Some(Duration::ZERO);
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        let heartbeat = self
            .clusters
            .values()
            .filter_map(|cluster| cluster.heartbeat.as_ref())
            .filter(|heartbeat| heartbeat.fresh)
            .map(|heartbeat| heartbeat.at + SILENCE)
            .min();
        timer
            .into_iter()
            .chain(heartbeat)
            .chain(self.outputs.next_timeout())
            .min()
    }

    pub fn gauges(&self) -> Gauges {
        let mut gauges = Gauges {
            clusters: self
                .clusters
                .values()
                .filter(|cluster| !cluster.objects.is_empty())
                .count(),
            reachable: self
                .clusters
                .values()
                .filter(|cluster| cluster.is_fresh())
                .count(),
            untrusted: self
                .clusters
                .values()
                .filter(|cluster| !cluster.violations.is_empty())
                .count(),
            slices: self
                .slices
                .values()
                .filter(|slice| !slice.configs.is_empty())
                .count(),
            queue: self.outputs.depth(),
            ..Gauges::default()
        };
        for allocation in self.allocations.values() {
            let (held, capacity) = usage(&allocation.spec);
            gauges.indices_held += held;
            gauges.indices_free += capacity.saturating_sub(held);
        }
        gauges
    }

    pub fn in_flight(&self) -> usize {
        self.outputs.in_flight()
    }

    /// The slices that have an allocation, each with it.
    pub fn allocations(&self) -> impl Iterator<Item = &SliceAllocationSpec> {
        self.allocations.values().map(|allocation| &*allocation.spec)
    }

    pub(super) fn has_plans(&self) -> bool {
        !(self.dirty_slices.is_empty() && self.dirty_services.is_empty() && self.dirty_clusters.is_empty())
    }

    pub(super) fn touch_slice(&mut self, slice: &str) {
        self.dirty_slices.insert(slice.to_owned());
    }

    pub(super) fn touch_cluster(&mut self, cluster: &str) {
        self.dirty_clusters.insert(cluster.to_owned());
    }

    pub(super) fn touch_services(&mut self, slice: &str, cluster: &str) {
        self.dirty_services.insert((slice.to_owned(), cluster.to_owned()));
    }

    /// A cluster's facts have changed, and with them what its slices are.
    pub(super) fn touch_slices_of(&mut self, cluster: &str) {
        let known = self.slices_of.get(cluster).into_iter().flatten();
        self.dirty_slices.extend(known.chain(&self.selecting).cloned());
    }

    /// Which clusters a slice depends on.
    pub(super) fn depend(&mut self, slice: &str, clusters: BTreeSet<String>) {
        let before = self
            .clusters_of
            .insert(slice.to_owned(), clusters.clone())
            .unwrap_or_default();
        for gone in before.difference(&clusters) {
            if let Some(slices) = self.slices_of.get_mut(gone) {
                slices.remove(slice);
            }
        }
        for cluster in clusters {
            self.slices_of
                .entry(cluster)
                .or_default()
                .insert(slice.to_owned());
        }
    }

    pub(super) fn wake_slice(&mut self, slice: &str, at: Timestamp, now: Now) {
        let wait = at.duration_since(now.wall).unsigned_abs();
        let wait = if at < now.wall { Duration::ZERO } else { wait };
        self.timers
            .insert((now.clock + wait, Wake::Slice(slice.to_owned())));
    }

    pub(super) fn wake_cluster(&mut self, cluster: &str, after: Duration, now: Now) {
        self.timers
            .insert((now.clock + after, Wake::Cluster(cluster.to_owned())));
    }

    pub(super) fn wake(&mut self, now: Now) {
        while let Some((at, wake)) = self.timers.first().cloned() {
            if at > now.clock {
                break;
            }
            self.timers.pop_first();
            match wake {
                Wake::Slice(slice) => self.touch_slice(&slice),
                Wake::Cluster(cluster) => {
                    self.touch_cluster(&cluster);
                    self.touch_slices_of(&cluster);
                }
            }
        }
        let mut fell_silent = Vec::new();
        for (name, cluster) in &mut self.clusters {
            if let Some(heartbeat) = &mut cluster.heartbeat
                && heartbeat.fresh
                && now.clock.saturating_sub(heartbeat.at) >= SILENCE
            {
                heartbeat.fresh = false;
                fell_silent.push(name.clone());
            }
        }
        for cluster in fell_silent {
            self.touch_cluster(&cluster);
            self.touch_slices_of(&cluster);
        }
    }

    pub(super) fn lead(&mut self, leading: bool) {
        self.leading = leading;
        self.outputs.forget_flights();
        self.propagation.clear();
        if leading {
            self.dirty_slices.extend(self.slices.keys().cloned());
            self.dirty_clusters.extend(self.clusters.keys().cloned());
        }
    }

    pub(super) fn want_identity(&mut self) {
        let object = slice_crds::wire::Hub::new(names::HUB, slice_crds::wire::HubSpec {});
        let key = Key::new(Kind::Hub, names::HUB_NAMESPACE, names::HUB);
        self.outputs.want(key, crate::control::Content::of(&object));
    }

    pub(super) fn written(&mut self, key: &Key, outcome: Outcome, now: Now) {
        if let (Kind::Hub, Outcome::Written(observed)) = (key.kind, &outcome) {
            self.identity = Some(observed.uid.to_string());
        }
        if key.kind == Kind::Secret {
            if let (Outcome::Deleted, Some(there)) = (&outcome, self.outputs.observed(key)) {
                self.voided.insert(there.uid.to_string());
            }
            self.touch_owner(key);
        }
        if self.outputs.written(key, outcome, now) {
            self.touch_owner(key);
        }
        self.propagated(key, now);
    }

    /// What cannot be written any more, or can again, stands in the conditions of what it belongs to.
    pub(super) fn touch_owner(&mut self, key: &Key) {
        if let Some(cluster) = names::member_of(&key.namespace) {
            self.touch_cluster(cluster);
            self.touch_slices_of(cluster);
        } else if let Some(slice) = names::slice_of_namespace(&key.namespace) {
            self.touch_slice(slice);
        } else if let (Kind::Namespace, Some(slice)) = (key.kind, names::slice_of_namespace(&key.name)) {
            self.touch_slice(slice);
        } else if key.kind == Kind::Namespace
            && let Some(cluster) = names::member_of(&key.name)
        {
            self.touch_cluster(cluster);
        }
    }

    pub(super) fn propagated(&mut self, key: &Key, now: Now) {
        let Some(slice) = names::slice_of_namespace(&key.namespace).map(ToOwned::to_owned) else {
            return;
        };
        let settled = self.outputs.is_settled(key);
        let Some((since, waiting)) = self.propagation.get_mut(&slice) else {
            return;
        };
        if settled {
            waiting.remove(key);
        }
        if waiting.is_empty() {
            let took = now.clock.saturating_sub(*since);
            self.propagation_seconds.push(took.as_secs_f64());
            self.propagation.remove(&slice);
        }
    }

    /// Why something cannot be written for a member, where that has lasted.
    pub(super) fn trouble_of(&self, cluster: &str) -> Option<String> {
        let namespace = self.clusters.get(cluster)?.namespace.as_ref();
        let going = namespace.and_then(|namespace| namespace.going.as_deref());
        self.trouble_in(&names::member_namespace(cluster), going)
    }

    /// Why something that the members of a slice share cannot be written, where that has lasted.
    pub(super) fn trouble_of_slice(&self, slice: &str) -> Option<String> {
        let shared = self.slices.get(slice)?.shared.as_ref();
        let going = shared.and_then(|shared| shared.going.as_deref());
        self.trouble_in(&names::slice_namespace(slice), going)
    }

    fn trouble_in(&self, namespace: &str, going: Option<&str>) -> Option<String> {
        if let Some(going) = going {
            return Some(format!(
                "namespace {namespace} on the hub is being deleted and does not go ({going}): see `kubectl get namespace \
                 {namespace} -o yaml` there"
            ));
        }
        let failure = self.outputs.trouble_in(namespace)?;
        Some(format!(
            "something cannot be written into namespace {namespace} on the hub: {}",
            failure.message
        ))
    }
}

/// Indices that are given, and those that there are.
fn usage(spec: &SliceAllocationSpec) -> (u64, u64) {
    let ranges = spec.clusters.iter().flat_map(|cluster| &cluster.ranges);
    let held = ranges.map(|range| u64::from(range.size)).sum();
    let cidrs: Vec<slice_crds::Cidr> = spec.subnets.iter().filter_map(|text| text.parse().ok()).collect();
    let capacity = slice_crds::Subnets::new(&cidrs).map_or(0, |subnets| subnets.capacity());
    (held, capacity)
}
