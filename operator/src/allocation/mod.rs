//! What a slice, its clusters and its outside hosts are given. Pure.
//!
//! ```text
//!             ┌──────── Held ◄────────────┐ chosen again
//!             │          │ left, deleted; after a grace where pods are attached
//!             │          ▼                │
//!             │      Releasing ── the member reports, for this revision, that nothing is left ──► Resting ──► free
//!             └── a range: to be given back, reported given back ─────────────────────────────────┘
//! ```
//!
//! [`next`] says what the allocation of a slice is to be. It is written before any member has it, and what members get
//! follows from what was written ([`crate::hub`]). What is held is never moved; what was given back is given to nobody
//! until it has rested. A hub without an allocation takes over, in this order, what it had written for its members, what it had
//! written into the slice's status before there were allocations, and what the members report that they hold.

mod adopt;
mod hosts;
mod share;
pub mod space;

use std::collections::BTreeSet;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use slice_crds::{
    Cidr, IndexRange, Subnets,
    conditions::reason,
    v1alpha1::SlicePeer,
    wire::{AllocationState, ClusterAllocation, RangeAllocation, SliceAllocationSpec},
};

pub use adopt::Holding;

/// How long something that was given back is kept from others: longer than any name in DNS lives and any pod that was
/// deleted terminates, so that nobody who still means the old owner reaches the new one.
pub const REST: SignedDuration = SignedDuration::from_mins(10);
/// How long where nothing else is free. Indices have rested at their node before a range comes back at all.
pub const SHORT_REST: SignedDuration = SignedDuration::from_secs(30);

/// A slice as its allocation sees it.
#[derive(Debug)]
pub struct Request<'a> {
    /// Identity of this hub.
    pub hub: &'a str,
    /// The slice's name.
    pub slice: &'a str,
    /// `None` where there is no such SliceConfig.
    pub config: Option<Config<'a>>,
    /// Every cluster that the SliceConfig or the allocation names, by name.
    pub parties: &'a [Party<'a>],
    /// How long what pods use stays held after it was deleted.
    pub grace: SignedDuration,
    /// A person asked for the deletion not to wait.
    pub at_once: bool,
    /// VNIs that are not to be given: allocated, or held by a member for another slice.
    pub taken_vnis: &'a BTreeSet<u32>,
    pub now: Timestamp,
}

/// What a SliceConfig asks for.
#[derive(Debug)]
pub struct Config<'a> {
    pub namespace: &'a str,
    pub uid: &'a str,
    pub cidrs: &'a [Cidr],
    pub subnets: Subnets,
    pub block: u32,
    pub mtu: u16,
    pub largest_mtu: u16,
    pub hosts: &'a [SlicePeer],
    /// The slice's VNI as its status has it, from a hub that kept no allocations.
    pub remembered_vni: Option<u32>,
    /// The outside hosts as the status has them: name, index, ordinal.
    pub remembered_hosts: Vec<(String, u32, u32)>,
}

/// One cluster and one slice.
#[derive(Debug, Default)]
pub struct Party<'a> {
    pub name: &'a str,
    /// The slice is to have it.
    pub chosen: bool,
    /// Its facts are known, so it can be given something.
    pub reported: bool,
    /// It has the slice, or may have it, and has not reported yet what of it.
    pub awaited: bool,
    /// Another cluster knows of what it claims to have.
    pub vouched: bool,
    pub nodes: u32,
    /// Pods may be attached.
    pub in_use: bool,
    /// How many, for a person.
    pub attachments: u32,
    /// What it needs, and what it has given back.
    pub demand: Option<Demand<'a>>,
    /// What it is known to have, the best source first, where the allocation does not know of it: there is none, or it is
    /// older than what the member has.
    pub holdings: Vec<Holding>,
    pub deletion: Deletion,
}

/// What a member reports of its indices.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand<'a> {
    /// The revision that the member acts by; `None` from an older member.
    pub revision: Option<u64>,
    pub released: bool,
    /// Blocks that its nodes have and want.
    pub blocks: u32,
    pub idle: &'a [IndexRange],
    pub given_back: &'a [IndexRange],
}

/// How a cluster was deleted, or a slice in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deletion {
    /// Pods that are attached have a grace.
    #[default]
    Graceful,
    /// It is not to be waited for pods that are attached there.
    Now,
    /// The cluster is no more: nothing is waited for.
    Gone,
}

/// What is to become of the allocation.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub verdict: Verdict,
    /// Reason and message, for the slice's condition.
    pub troubles: Vec<(&'static str, String)>,
    /// When it is to be looked at again although nothing happens.
    pub wake: Option<Timestamp>,
}

#[derive(Debug, Default, PartialEq)]
pub enum Verdict {
    /// It is as it should be, or nothing can be decided yet.
    #[default]
    Keep,
    Write(Box<SliceAllocationSpec>),
    /// Everything has rested.
    Delete,
}

impl Plan {
    fn trouble(&mut self, reason: &'static str, message: String) {
        self.troubles.push((reason, message));
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// What the allocation is to be, from what it is.
pub fn next(before: Option<&SliceAllocationSpec>, request: &Request<'_>) -> Plan {
    let mut plan = Plan::default();
    let after = match (before, &request.config) {
        (None, None) => return plan,
        (None, Some(config)) => match adopt::first(config, request, &mut plan) {
            Some(spec) => spec,
            None => return plan,
        },
        (Some(before), _) => before.clone(),
    };
    let mut after = after;
    match after.state {
        AllocationState::Held => held(&mut after, request, &mut plan),
        AllocationState::Releasing => releasing(&mut after, request, &mut plan),
        AllocationState::Resting => {
            let rested = after.since.as_ref().map_or(request.now, |since| since.0) + REST;
            if request.now >= rested {
                plan.verdict = Verdict::Delete;
                return plan;
            }
            plan.wake_at(rested);
        }
    }
    if before != Some(&after) {
        plan.verdict = Verdict::Write(Box::new(after));
    }
    plan
}

/// Whether an allocation and a SliceConfig are of one network.
fn is_of(spec: &SliceAllocationSpec, config: &Config<'_>) -> bool {
    let subnets: BTreeSet<String> = config.cidrs.iter().map(ToString::to_string).collect();
    spec.subnets.iter().cloned().collect::<BTreeSet<_>>() == subnets
}

fn held(spec: &mut SliceAllocationSpec, request: &Request<'_>, plan: &mut Plan) {
    match &request.config {
        Some(config) if is_of(spec, config) => serve(spec, config, request, plan),
        Some(_) => {
            plan.trouble(
                reason::HELD_BACK,
                format!(
                    "a slice {} with subnets {} was deleted and is not given back yet: this one is set up when it is; \
                     `kubectl annotate sliceallocation -n {} {} weft.dev/delete=now` does not wait for its pods",
                    request.slice,
                    spec.subnets.join(", "),
                    slice_crds::names::HUB_NAMESPACE,
                    slice_crds::names::allocation(spec.vni),
                ),
            );
            delete(spec, request, plan);
        }
        None if spec.hub == request.hub => delete(spec, request, plan),
        None => {
            // Restored from a backup, and its SliceConfig not yet: nobody has deleted anything.
            let message = "this hub has never seen its SliceConfig: apply it, or annotate this object with \
                           weft.dev/delete=now";
            match request.at_once {
                true => delete(spec, request, plan),
                false => spec.message = message.to_owned(),
            }
        }
    }
}

/// The slice is to go: at once, or after a grace where pods use it.
fn delete(spec: &mut SliceAllocationSpec, request: &Request<'_>, plan: &mut Plan) {
    let in_use: Vec<String> = request
        .parties
        .iter()
        .filter(|party| party.in_use && party.deletion == Deletion::Graceful)
        .filter(|party| {
            spec.clusters
                .iter()
                .any(|cluster| cluster.name == party.name && cluster.state == AllocationState::Held)
        })
        .map(|party| format!("{} ({} pods)", party.name, party.attachments))
        .collect();
    if !in_use.is_empty() && !request.at_once {
        let until = spec
            .release_after
            .get_or_insert_with(|| Time(request.now + request.grace))
            .0;
        if request.now < until {
            spec.message = format!(
                "its SliceConfig was deleted while it is in use in {}: apply it again to keep it, or annotate this \
                 object with weft.dev/delete=now",
                in_use.join(", ")
            );
            plan.wake_at(until);
            return;
        }
    }
    (spec.state, spec.since, spec.release_after) =
        (AllocationState::Releasing, Some(Time(request.now)), None);
    for cluster in spec
        .clusters
        .iter_mut()
        .filter(|cluster| cluster.state == AllocationState::Held)
    {
        release(cluster, request.now);
    }
    releasing(spec, request, plan);
}

fn release(cluster: &mut ClusterAllocation, now: Timestamp) {
    cluster.state = AllocationState::Releasing;
    cluster.since = Some(Time(now));
    cluster.release_after = None;
    cluster.revision += 1;
}

/// Waits for the members, then lets the VNI rest.
fn releasing(spec: &mut SliceAllocationSpec, request: &Request<'_>, plan: &mut Plan) {
    let mut waits = Vec::new();
    for cluster in &mut spec.clusters {
        if cluster.state == AllocationState::Releasing && !let_go(cluster, request) {
            waits.push(cluster.name.clone());
        }
    }
    if waits.is_empty() {
        (spec.state, spec.since) = (AllocationState::Resting, Some(Time(request.now)));
        spec.message = String::new();
        plan.wake_at(request.now + REST);
    } else {
        spec.message = format!(
            "waits for {} to report that nothing of it is left there; a cluster that is no more is named with \
             `kubectl annotate sliceallocation -n {} {} weft.dev/gone=CLUSTER`",
            waits.join(", "),
            slice_crds::names::HUB_NAMESPACE,
            slice_crds::names::allocation(spec.vni),
        );
    }
}

/// Whether the cluster has let go of everything; then it rests.
fn let_go(cluster: &mut ClusterAllocation, request: &Request<'_>) -> bool {
    let party = request.parties.iter().find(|party| party.name == cluster.name);
    let gone = party.is_some_and(|party| party.deletion == Deletion::Gone);
    let demand = party.and_then(|party| party.demand);
    // A report of an older revision may be from before the slice was given to the cluster anew.
    let released = demand.is_some_and(|demand| {
        demand.released
            && demand
                .revision
                .is_none_or(|revision| revision == cluster.revision)
    });
    if gone || released {
        cluster.state = AllocationState::Resting;
        cluster.since = Some(Time(request.now));
    }
    gone || released
}

/// A slice that is wanted: its clusters come, grow, shrink and go.
fn serve(spec: &mut SliceAllocationSpec, config: &Config<'_>, request: &Request<'_>, plan: &mut Plan) {
    (spec.hub, spec.uid) = (request.hub.to_owned(), config.uid.to_owned());
    spec.namespace = config.namespace.to_owned();
    spec.release_after = None;
    spec.message = String::new();
    (spec.mtu, spec.largest_mtu) = (config.mtu, Some(config.largest_mtu));
    rest(spec, request, plan);
    for party in request.parties {
        let at = spec
            .clusters
            .iter()
            .position(|cluster| cluster.name == party.name);
        match at {
            Some(at) => {
                if let Err(why) = adopt::extend(spec, at, config, party, request) {
                    plan.trouble(reason::HOLDINGS_CONFLICT, why);
                }
                stand(&mut spec.clusters[at], party, request, plan);
            }
            None if party.chosen && party.reported && !party.awaited => {
                share::join(spec, config, party, request, plan);
            }
            None => {}
        }
    }
    share::adjust(spec, config, request, plan);
    hosts::place(spec, config, request, plan);
    spec.clusters.sort_by(|a, b| a.name.cmp(&b.name));
}

/// What has rested is nobody's any more.
fn rest(spec: &mut SliceAllocationSpec, request: &Request<'_>, plan: &mut Plan) {
    let mut is_over = |state: AllocationState, since: &Option<Time>| {
        if state != AllocationState::Resting {
            return false;
        }
        let until = since.as_ref().map_or(request.now, |since| since.0) + REST;
        if request.now < until {
            plan.wake_at(until);
        }
        request.now >= until
    };
    for cluster in &mut spec.clusters {
        cluster.ranges.retain(|range| !is_over(range.state, &range.since));
    }
    spec.clusters
        .retain(|cluster| !is_over(cluster.state, &cluster.since));
    spec.hosts.retain(|host| !is_over(host.state, &host.since));
}

/// A cluster that has something already.
fn stand(cluster: &mut ClusterAllocation, party: &Party<'_>, request: &Request<'_>, plan: &mut Plan) {
    match cluster.state {
        AllocationState::Held if party.chosen => {
            cluster.release_after = None;
            give_back(cluster, party, request.now);
        }
        AllocationState::Held => leave(cluster, party, request, plan),
        AllocationState::Releasing => _ = let_go(cluster, request),
        // It has let go, so what it had can be its own again.
        AllocationState::Resting if party.chosen && party.reported => {
            cluster.state = AllocationState::Held;
            cluster.since = Some(Time(request.now));
            cluster.revision += 1;
        }
        AllocationState::Resting => {}
    }
}

/// The slice is not to have the cluster any more.
fn leave(cluster: &mut ClusterAllocation, party: &Party<'_>, request: &Request<'_>, plan: &mut Plan) {
    if party.in_use && party.deletion == Deletion::Graceful {
        let until = cluster
            .release_after
            .get_or_insert_with(|| Time(request.now + request.grace))
            .0;
        if request.now < until {
            plan.wake_at(until);
            plan.trouble(
                reason::HELD_BACK,
                format!(
                    "cluster {} is to leave while {} of its pods are attached: they are detached at {until}; name the \
                     cluster again to keep it, or `slicectl delete cluster {0} --yes` does not wait",
                    cluster.name, party.attachments
                ),
            );
            return;
        }
    }
    release(cluster, request.now);
    let_go(cluster, request);
}

/// Ranges that the member was to give back and has.
fn give_back(cluster: &mut ClusterAllocation, party: &Party<'_>, now: Timestamp) {
    let Some(demand) = party
        .demand
        .filter(|demand| demand.revision == Some(cluster.revision))
    else {
        return;
    };
    let mut changed = false;
    for range in &mut cluster.ranges {
        let is_back = range
            .range()
            .is_some_and(|range| demand.given_back.iter().any(|back| back.covers(range)));
        if range.state == AllocationState::Releasing && is_back {
            (range.state, range.since) = (AllocationState::Resting, Some(Time(now)));
            changed = true;
        }
    }
    if changed {
        cluster.revision += 1;
    }
}

/// The runs of a cluster that are in one of these states.
pub fn runs<'a>(
    cluster: &'a ClusterAllocation,
    states: &'a [AllocationState],
) -> impl Iterator<Item = IndexRange> + use<'a> {
    let in_state = move |range: &&RangeAllocation| states.contains(&range.state);
    cluster
        .ranges
        .iter()
        .filter(in_state)
        .filter_map(RangeAllocation::range)
}

#[cfg(test)]
mod tests;
