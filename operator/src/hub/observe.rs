//! What the hub takes in: objects one by one into its indexes, and what has to be planned again because of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::{ResourceExt, core::object::HasStatus};
use slice_crds::{
    annotations,
    conditions::{self, Conditioned},
    names,
    wire::{SliceAllocationSpec, WIRE},
};

use super::{
    core::{AWAIT_REPORTS, Hub},
    input::{Input, Object, Source},
    state::{
        AllocationState, ClusterState, Heartbeat, NamespaceState, ReportState, Served, Shared, SliceState,
        Users,
    },
};
use crate::{
    allocation::{Deletion, Holding},
    control::{Id, Key, Kind, Meta, Now, outputs::is_older},
    trust,
};

impl Hub {
    pub(super) fn see(&mut self, input: Input, now: Now) {
        let is_unreadable = input.unreadable().is_some();
        let Input {
            source,
            meta,
            observed,
            object,
        } = input;
        self.figures.seen(source, meta.id(), is_unreadable);
        let (namespace, name) = (meta.namespace.to_string(), meta.name.to_string());
        if let (Some(kind), Some(observed)) = (source.written(), observed) {
            self.outputs.observe(Key::new(kind, &namespace, &name), observed);
        }
        let cluster = names::member_of(&namespace).map(ToOwned::to_owned);
        match (object, cluster) {
            (Object::SliceConfig(config), _) => {
                let slot = self
                    .slices
                    .entry(name.clone())
                    .or_default()
                    .configs
                    .entry(namespace);
                take(slot, meta, config);
                self.touch_slice(&name);
            }
            (Object::Cluster(object), _) => {
                let state = self.clusters.entry(name.clone()).or_default();
                take(state.objects.entry(namespace), meta, object);
                state.last_deletion = Deletion::Graceful;
                self.touch_cluster(&name);
                self.touch_slices_of(&name);
            }
            (Object::QosProfile(Ok(profile)), _) => {
                self.touch_users_of(&namespace, &name);
                self.profiles.insert((namespace, name), profile);
            }
            (
                Object::Allocation {
                    object: Ok(object),
                    at_once,
                    gone,
                },
                _,
            ) => self.take_allocation(&meta, object.spec.clone(), at_once, gone),
            (Object::JoinToken(Ok(token)), Some(cluster)) => {
                self.clusters
                    .entry(cluster.clone())
                    .or_default()
                    .tokens
                    .insert(name, token);
                self.touch_cluster(&cluster);
            }
            (Object::MemberJoin(Ok(join)), Some(cluster)) => {
                self.clusters
                    .entry(cluster.clone())
                    .or_default()
                    .joins
                    .insert(name, join);
                self.touch_cluster(&cluster);
            }
            (Object::MemberSlice(Ok(object)), Some(cluster)) => {
                let spec = &object.spec;
                let served = Served {
                    holding: Holding {
                        vni: spec.slice.vni,
                        number: spec.slice.cluster_number,
                        revision: spec.revision,
                        ranges: spec
                            .slice
                            .ranges
                            .iter()
                            .filter_map(|range| range.range())
                            .collect(),
                    },
                    released: spec.released,
                    rules: spec.slice.namespaces.clone(),
                };
                self.clusters
                    .entry(cluster.clone())
                    .or_default()
                    .served
                    .insert(name.clone(), served);
                let slice = self.slices.entry(name.clone()).or_default();
                slice.involved.insert(cluster);
                if slice.allocations.is_empty() {
                    self.touch_slice(&name);
                }
            }
            (Object::Share(keys), _) => {
                // Only what an earlier hub has published: from then on this one knows.
                if let Some(slice) = names::slice_of_namespace(&namespace) {
                    let slice = self.slices.entry(slice.to_owned()).or_default();
                    for (key, owner) in keys {
                        slice.published.entry(key).or_insert(owner);
                    }
                }
            }
            (Object::MemberService(Ok(service)), Some(cluster)) if service.cluster == cluster => {
                let slice = service.slice.clone();
                let exports = &mut self.clusters.entry(cluster.clone()).or_default().exports;
                exports.entry(slice.clone()).or_default().insert(name, service);
                self.touch_services(&slice, &cluster);
            }
            (Object::MemberReport(report), Some(cluster)) if name == names::MEMBER_REPORT => {
                self.take_report(&cluster, report, now);
            }
            (Object::MemberSliceReport(report), Some(cluster)) => {
                let state = self.clusters.entry(cluster.clone()).or_default();
                let member = state.report.as_ref().and_then(|report| report.raw.as_ref());
                if member.is_some_and(|member| member.wire < WIRE) {
                    // Left by a later version that the member has gone back from: it reports otherwise now.
                    return;
                }
                match report {
                    Ok(report) => {
                        state.unreadable.remove(&name);
                        self.take_slice_report(&cluster, &name, report, now);
                    }
                    // What it reported before still holds.
                    Err(why) => _ = state.unreadable.insert(name.clone(), why),
                }
                self.slices
                    .entry(name.clone())
                    .or_default()
                    .involved
                    .insert(cluster.clone());
                self.touch_slice(&name);
                self.touch_cluster(&cluster);
            }
            (Object::Lease(value), Some(cluster)) if name == names::MEMBER_LEASE => {
                self.heartbeat(&cluster, value, now);
            }
            (Object::Namespace { going, .. }, _) if names::slice_of_namespace(&name).is_some() => {
                self.take_shared_namespace(&name, Some(Shared { going }));
            }
            (Object::Namespace { cluster_uid, going }, _) => {
                let Some(cluster) = names::member_of(&name).map(ToOwned::to_owned) else {
                    return;
                };
                let state = self.clusters.entry(cluster.clone()).or_default();
                let namespace = Some(NamespaceState { cluster_uid, going });
                if state.namespace != namespace {
                    state.namespace = namespace;
                    self.judge_report(&cluster, now);
                    self.touch_cluster(&cluster);
                    self.touch_slices_of(&cluster);
                }
            }
            (Object::ServiceAccount(account), Some(cluster)) if name == names::MEMBER_ACCOUNT => {
                self.clusters.entry(cluster.clone()).or_default().account = Some(account);
                self.touch_cluster(&cluster);
            }
            (Object::Output, _) if source == Source::Hub && name == names::HUB => {
                self.identity = Some(meta.uid.to_string());
            }
            _ => {}
        }
    }

    /// The namespace of what a slice's members share.
    fn take_shared_namespace(&mut self, namespace: &str, shared: Option<Shared>) {
        let Some(slice) = names::slice_of_namespace(namespace).map(ToOwned::to_owned) else {
            return;
        };
        let state = self.slices.entry(slice.clone()).or_default();
        if state.shared != shared {
            state.shared = shared;
            let exporters = state.audience.iter().map(|listener| listener.cluster.clone());
            let exporters = exporters.map(|cluster| (slice.clone(), cluster));
            self.dirty_services.extend(exporters);
            self.touch_slice(&slice);
        }
    }

    /// The slices of a project that use a QoSProfile.
    fn touch_users_of(&mut self, namespace: &str, profile: &str) {
        let uses = |state: &SliceState| {
            let config = state
                .configs
                .get(namespace)
                .and_then(|users| users.object.as_ref());
            let qos = config.and_then(|config| config.spec.qos.as_ref());
            qos.is_some_and(|qos| qos.profile.as_deref() == Some(profile))
        };
        let users = self.slices.iter().filter(|(_, state)| uses(state));
        self.dirty_slices.extend(users.map(|(name, _)| name.clone()));
    }

    fn take_allocation(&mut self, meta: &Meta, spec: SliceAllocationSpec, at_once: bool, gone: Vec<String>) {
        let known = self.allocations.get(&spec.vni).map(|known| &*known.version);
        if known.is_some_and(|known| is_older(&meta.version, known)) {
            return;
        }
        // How its SliceConfig was deleted stands nowhere but here, until the slice is released.
        let was_at_once = self.allocations.get(&spec.vni).is_some_and(|known| known.at_once);
        let slice = spec.slice.clone();
        let state = self.slices.entry(slice.clone()).or_default();
        state.allocations.insert(spec.vni);
        let state = AllocationState {
            version: meta.version.clone(),
            spec: Arc::new(spec),
            at_once: at_once || was_at_once && state.configs.is_empty(),
            gone,
        };
        self.allocations.insert(state.spec.vni, state);
        self.touch_slice(&slice);
    }

    fn take_report(
        &mut self,
        cluster: &str,
        report: Result<Arc<slice_crds::wire::MemberReportSpec>, String>,
        now: Now,
    ) {
        let state = self.clusters.entry(cluster.to_owned()).or_default();
        let slot = state.report.get_or_insert(ReportState {
            raw: None,
            facts: None,
            since: now.clock,
        });
        match report {
            Ok(report) => {
                state.unreadable.remove("");
                slot.raw = Some(Arc::clone(&report));
                let beat = report.observed_at.as_ref().map(|time| time.0.to_string());
                // An older member has no Lease, and its slices' reports stand in here.
                if report.wire < WIRE {
                    self.take_old_slices(cluster, &report, now);
                    if let Some(beat) = beat {
                        self.heartbeat(cluster, beat, now);
                    }
                }
                self.judge_report(cluster, now);
            }
            Err(why) => _ = state.unreadable.insert(String::new(), why),
        }
        self.touch_cluster(cluster);
    }

    fn take_old_slices(&mut self, cluster: &str, report: &slice_crds::wire::MemberReportSpec, now: Now) {
        let state = self.clusters.entry(cluster.to_owned()).or_default();
        let before: BTreeSet<String> = state.slices.keys().cloned().collect();
        let mut there = BTreeSet::new();
        for slice in &report.slices {
            there.insert(slice.name.clone());
            self.take_slice_report(cluster, &slice.name, Arc::new(slice.clone()), now);
            self.slices
                .entry(slice.name.clone())
                .or_default()
                .involved
                .insert(cluster.to_owned());
            self.touch_slice(&slice.name);
        }
        for gone in before.difference(&there) {
            if let Some(state) = self.clusters.get_mut(cluster) {
                state.slices.remove(gone);
            }
            self.touch_slice(gone);
        }
    }

    fn take_slice_report(
        &mut self,
        cluster: &str,
        slice: &str,
        report: Arc<slice_crds::wire::MemberSliceReportSpec>,
        now: Now,
    ) {
        let state = self.clusters.entry(cluster.to_owned()).or_default();
        let holder = (cluster.to_owned(), slice.to_owned());
        if let Some(old) = state.slices.get(slice)
            && let Some(holders) = self.held_vnis.get_mut(&old.vni)
        {
            holders.remove(&holder);
        }
        if !report.released && report.vni != 0 {
            self.held_vnis.entry(report.vni).or_default().insert(holder);
        }
        let keys = |report: &slice_crds::wire::MemberSliceReportSpec| {
            let keys = report
                .gateways
                .iter()
                .map(|gateway| (gateway.public_key.clone(), gateway.endpoints.clone()));
            keys.collect::<Vec<_>>()
        };
        let old = state.slices.insert(slice.to_owned(), Arc::clone(&report));
        if old.is_none_or(|old| keys(&old) != keys(&report)) {
            let slot = self.propagation.entry(slice.to_owned());
            slot.or_insert_with(|| (now.clock, BTreeSet::new()));
        }
    }

    /// Whether a member's report is believed; again when it is known whose name it is.
    fn judge_report(&mut self, cluster: &str, now: Now) {
        let Some(state) = self.clusters.get_mut(cluster) else {
            return;
        };
        let identity = state
            .namespace
            .as_ref()
            .and_then(|namespace| namespace.cluster_uid.as_deref());
        let Some(report) = &mut state.report else { return };
        let Some(raw) = &report.raw else { return };
        let before = report.facts.clone();
        let violations = match trust::facts(raw, identity) {
            Ok((facts, violations)) => {
                report.facts = Some(facts);
                violations
            }
            Err(violation) => vec![violation],
        };
        let changed = before != report.facts;
        let new = before.is_none() && report.facts.is_some();
        set_violations(&mut state.violations, "", violations);
        if changed {
            self.touch_slices_of(cluster);
        }
        if new {
            // Slices that it has and does not report are waited for, and not for ever.
            self.wake_cluster(cluster, AWAIT_REPORTS, now);
        }
    }

    fn heartbeat(&mut self, cluster: &str, value: String, now: Now) {
        let state = self.clusters.entry(cluster.to_owned()).or_default();
        let was_fresh = state.is_fresh();
        if state
            .heartbeat
            .as_ref()
            .is_some_and(|heartbeat| heartbeat.value == value)
        {
            return;
        }
        state.heartbeat = Some(Heartbeat {
            value,
            at: now.clock,
            wall: now.wall,
            fresh: true,
        });
        if !was_fresh {
            self.touch_cluster(cluster);
            self.touch_slices_of(cluster);
        }
    }

    pub(super) fn lose(&mut self, source: Source, meta: &Meta, version: Option<&str>, now: Now) {
        let (namespace, name) = (meta.namespace.to_string(), meta.name.to_string());
        self.figures.gone(&source, &meta.id());
        if let Some(kind) = source.written() {
            self.outputs.gone(&Key::new(kind, &namespace, &name), version);
        }
        let cluster = names::member_of(&namespace).map(ToOwned::to_owned);
        match (source, cluster) {
            (Source::SliceConfig, _) => {
                if let Some(slice) = self.slices.get_mut(&name)
                    && let Some(config) = slice.configs.remove(&namespace)
                {
                    self.notices.forget(&config.meta.uid);
                    let at_once = config.object.is_some_and(|object| {
                        object
                            .annotations()
                            .get(annotations::DELETE)
                            .is_some_and(|deletion| deletion == "now")
                    });
                    if at_once {
                        let own = slice.allocations.clone();
                        for vni in own {
                            let allocation = self.allocations.get_mut(&vni);
                            if let Some(allocation) = allocation.filter(|one| one.spec.namespace == namespace)
                            {
                                allocation.at_once = true;
                            }
                        }
                    }
                }
                self.touch_slice(&name);
            }
            (Source::Cluster, _) => {
                if let Some(state) = self.clusters.get_mut(&name)
                    && let Some(object) = state.objects.remove(&namespace)
                {
                    self.notices.forget(&object.meta.uid);
                    state.last_deletion = object
                        .object
                        .map_or(Deletion::Graceful, |object| super::cluster::deletion(&object));
                }
                self.touch_cluster(&name);
                self.touch_slices_of(&name);
            }
            (Source::QosProfile, _) => {
                self.touch_users_of(&namespace, &name);
                self.profiles.remove(&(namespace, name));
            }
            (Source::SliceAllocation, _) => {
                let vni = name.strip_prefix("vni-").and_then(|vni| vni.parse::<u32>().ok());
                let newer = |known: &AllocationState| {
                    version.is_some_and(|version| is_older(version, &known.version))
                };
                if vni.and_then(|vni| self.allocations.get(&vni)).is_some_and(newer) {
                    return;
                }
                if let Some(allocation) = vni.and_then(|vni| self.allocations.remove(&vni)) {
                    let slice = allocation.spec.slice.clone();
                    if let Some(state) = self.slices.get_mut(&slice) {
                        state.allocations.remove(&allocation.spec.vni);
                    }
                    self.touch_slice(&slice);
                }
            }
            (Source::Namespace, _) => {
                self.take_shared_namespace(&name, None);
                if let Some(cluster) = names::member_of(&name).map(ToOwned::to_owned) {
                    if let Some(state) = self.clusters.get_mut(&cluster) {
                        state.namespace = None;
                    }
                    self.judge_report(&cluster, now);
                    self.touch_cluster(&cluster);
                    self.touch_slices_of(&cluster);
                }
            }
            (_, Some(cluster)) => self.lose_of_member(source, &cluster, &name),
            (_, None) => {}
        }
        self.clusters.retain(|_, cluster| !cluster.is_empty());
    }

    fn lose_of_member(&mut self, source: Source, cluster: &str, name: &str) {
        let Some(state) = self.clusters.get_mut(cluster) else {
            return;
        };
        match source {
            Source::JoinToken => {
                state.tokens.remove(name);
                // What it owns goes with it; this is for a server whose garbage collector is late.
                let secret = names::join_secret(name);
                self.outputs
                    .remove(Key::new(Kind::Secret, &names::member_namespace(cluster), &secret));
            }
            Source::MemberJoin => _ = state.joins.remove(name),
            Source::MemberSlice => _ = state.served.remove(name),
            Source::ServiceAccount if name == names::MEMBER_ACCOUNT => state.account = None,
            Source::Lease if name == names::MEMBER_LEASE => state.heartbeat = None,
            Source::MemberService => {
                let mut touched = Vec::new();
                for (slice, services) in &mut state.exports {
                    if services.remove(name).is_some() {
                        touched.push(slice.clone());
                    }
                }
                state.exports.retain(|_, services| !services.is_empty());
                for slice in touched {
                    self.touch_services(&slice, cluster);
                }
                return;
            }
            // What a member has reported stays so until it reports something else: a report that was deleted moves no pod.
            Source::MemberReport => {}
            Source::MemberSliceReport if state.served.contains_key(name) => {}
            Source::MemberSliceReport => {
                if let Some(report) = state.slices.remove(name)
                    && let Some(holders) = self.held_vnis.get_mut(&report.vni)
                {
                    holders.remove(&(cluster.to_owned(), name.to_owned()));
                }
            }
            _ => return,
        }
        self.touch_cluster(cluster);
        self.touch_slices_of(cluster);
    }

    pub(super) fn list(&mut self, source: Source, there: &BTreeSet<Id>, now: Now) {
        for (namespace, name) in self.known(source) {
            if !there.contains(&(namespace.clone(), name.clone())) {
                let meta = Meta {
                    namespace,
                    name,
                    ..Meta::default()
                };
                self.lose(source, &meta, None, now);
            }
        }
        self.listed.insert(source);
    }

    /// Objects of a kind that are known.
    fn known(&self, source: Source) -> Vec<Id> {
        if let Some(kind) = source.written() {
            return self
                .outputs
                .seen(kind)
                .map(|key| (key.namespace.clone(), key.name.clone()))
                .collect();
        }
        let of_members = |list: fn(&ClusterState) -> Vec<String>| -> Vec<Id> {
            let clusters = self.clusters.iter();
            clusters
                .flat_map(|(cluster, state)| {
                    let namespace = names::member_namespace(cluster);
                    list(state)
                        .into_iter()
                        .map(move |name| (namespace.as_str().into(), name.as_str().into()))
                        .collect::<Vec<_>>()
                })
                .collect()
        };
        match source {
            Source::QosProfile => {
                let profiles = self.profiles.keys();
                profiles
                    .map(|(namespace, name)| (namespace.as_str().into(), name.as_str().into()))
                    .collect()
            }
            Source::Lease => of_members(|state| match state.heartbeat {
                Some(_) => vec![names::MEMBER_LEASE.to_owned()],
                None => vec![],
            }),
            _ => vec![],
        }
    }
}

/// Takes a user's object in; what cannot be read leaves what was read before.
fn take<T: HasStatus<Status: Conditioned>>(
    slot: std::collections::btree_map::Entry<'_, String, Users<T>>,
    meta: Meta,
    object: Result<Arc<T>, super::input::Unreadable>,
) {
    let slot = slot.or_insert_with(|| Users {
        meta: Meta::default(),
        object: None,
        unreadable: None,
        conditions: vec![],
    });
    slot.meta = meta;
    match object {
        Ok(object) => {
            slot.conditions = conditions::of(&*object).to_vec();
            (slot.object, slot.unreadable) = (Some(object), None);
        }
        Err(unreadable) => {
            slot.conditions = unreadable.conditions;
            slot.unreadable = Some(unreadable.why);
        }
    }
}

/// Puts what was refused in place of what was refused before; whether that is another.
pub(super) fn set_violations(
    all: &mut BTreeMap<String, Vec<trust::Violation>>,
    about: &str,
    violations: Vec<trust::Violation>,
) -> bool {
    let before = match violations.is_empty() {
        true => all.remove(about).unwrap_or_default(),
        false => all
            .insert(about.to_owned(), violations.clone())
            .unwrap_or_default(),
    };
    before != violations
}
