//! How a slice's indices are divided among its clusters.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use slice_crds::{
    IndexRange,
    conditions::reason,
    wire::{AllocationState, ClusterAllocation, RangeAllocation, SliceAllocationSpec},
};

use super::{Config, Party, Plan, Request, SHORT_REST, adopt, runs, space};

/// A cluster that has nothing yet: a number, and as many indices as its nodes need.
pub(super) fn join(
    spec: &mut SliceAllocationSpec,
    config: &Config<'_>,
    party: &Party<'_>,
    request: &Request<'_>,
    plan: &mut Plan,
) {
    if !party.holdings.is_empty() {
        match adopt::cluster(spec, config, party, request) {
            Ok(cluster) => spec.clusters.push(cluster),
            Err(why) => plan.trouble(reason::HOLDINGS_CONFLICT, why),
        }
        return;
    }
    let taken: BTreeSet<u32> = spec.clusters.iter().map(|cluster| cluster.number).collect();
    let Some(number) = space::cluster_number(&taken) else {
        plan.trouble(
            reason::EXHAUSTED,
            format!(
                "the slice has {} clusters, which is as many as it can number: leave {} out",
                taken.len(),
                party.name
            ),
        );
        return;
    };
    let chosen = request.parties.iter().filter(|party| party.chosen).count();
    let wanted = space::first_range(config.subnets.capacity(), config.block, chosen, party.nodes);
    let Some(range) = take(spec, config, wanted, request) else {
        let subnets: Vec<_> = config.cidrs.iter().map(ToString::to_string).collect();
        plan.trouble(
            reason::SUBNET_TOO_SMALL,
            format!(
                "spec.subnets {} has {} addresses, too few for cluster {} beside the others: every node of a cluster \
                 takes {} of them; create a slice with a larger subnet",
                subnets.join(", "),
                config.subnets.capacity(),
                party.name,
                config.block
            ),
        );
        press(spec, config, party.name, request);
        return;
    };
    spec.clusters.push(ClusterAllocation {
        name: party.name.to_owned(),
        number,
        state: AllocationState::Held,
        revision: first_revision(party),
        since: Some(Time(request.now)),
        release_after: None,
        ranges: vec![held(range, request)],
    });
}

/// A member that was given something by an earlier life of this hub must not take the new deletion for an older one.
pub(super) fn first_revision(party: &Party<'_>) -> u64 {
    let known = party.holdings.iter().map(|holding| holding.revision).max();
    known.unwrap_or_default() + 1
}

pub(super) fn held(range: IndexRange, request: &Request<'_>) -> RangeAllocation {
    RangeAllocation {
        start: range.start,
        size: range.size,
        state: AllocationState::Held,
        since: Some(Time(request.now)),
    }
}

/// Clusters that need more get more; what others do not need comes back.
pub(super) fn adjust(
    spec: &mut SliceAllocationSpec,
    config: &Config<'_>,
    request: &Request<'_>,
    plan: &mut Plan,
) {
    for party in request.parties.iter().filter(|party| party.chosen) {
        let Some(at) = position(spec, party.name) else {
            continue;
        };
        let Some(demand) = party.demand else { continue };
        let have = indices(&spec.clusters[at], &[AllocationState::Held]);
        let need = u64::from(demand.blocks) * u64::from(config.block);
        // What it asks for counts when it has seen what it was given.
        let current = demand
            .revision
            .is_none_or(|revision| revision == spec.clusters[at].revision);
        if need > have && current {
            grow(spec, config, (party, at), need - have, request, plan);
        } else if have > need {
            shrink(&mut spec.clusters[at], config, party, (have, need), request);
        }
    }
}

fn grow(
    spec: &mut SliceAllocationSpec,
    config: &Config<'_>,
    (party, at): (&Party<'_>, usize),
    missing: u64,
    request: &Request<'_>,
    plan: &mut Plan,
) {
    let subnets = || {
        config
            .cidrs
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let block = u64::from(config.block);
    let allowance = allowance(spec, config, party.name, request);
    let wanted = missing.next_multiple_of(block).next_power_of_two().min(1 << 24);
    // A power of two that fits into the allowance, one block at least.
    let within = allowance.checked_ilog2().map_or(0, |log| 1u64 << log);
    let size = wanted.min(within);
    if size < block {
        let all: u64 = spec
            .clusters
            .iter()
            .map(|cluster| indices(cluster, &[AllocationState::Held, AllocationState::Releasing]))
            .sum();
        plan.trouble(
            reason::EXHAUSTED,
            format!(
                "cluster {} needs {missing} more addresses, and of spec.subnets {} {all} of {} are given: what is left \
                 is kept for the other clusters. Pods that run keep theirs; move namespaces to another slice",
                party.name,
                subnets(),
                config.subnets.capacity(),
            ),
        );
        press(spec, config, party.name, request);
        return;
    }
    let size = u32::try_from(size).expect("at most 2^24");
    match take(spec, config, size, request) {
        Some(range) => {
            let cluster = &mut spec.clusters[at];
            cluster.ranges.push(held(range, request));
            cluster.revision += 1;
        }
        None => {
            plan.trouble(
                reason::EXHAUSTED,
                format!(
                    "cluster {} needs {missing} more addresses and spec.subnets {} has none left: pods that run keep \
                     theirs; move namespaces to another slice",
                    party.name,
                    subnets()
                ),
            );
            press(spec, config, party.name, request);
        }
    }
}

/// How many indices a cluster may still be given: no member can keep another from its fair share, whatever it reports.
pub(super) fn allowance(
    spec: &SliceAllocationSpec,
    config: &Config<'_>,
    name: &str,
    request: &Request<'_>,
) -> u64 {
    let used: u64 = spec
        .clusters
        .iter()
        .map(|cluster| indices(cluster, &[AllocationState::Held, AllocationState::Releasing]))
        .sum();
    let others = request
        .parties
        .iter()
        .filter(|party| party.chosen && party.name != name);
    let chosen = others.clone().count() + 1;
    let fair = space::fair_share(config.subnets.capacity(), chosen);
    let reserved: u64 = others
        .map(|party| {
            let has = position(spec, party.name)
                .map_or(0, |at| indices(&spec.clusters[at], &[AllocationState::Held]));
            fair.saturating_sub(has)
        })
        .sum();
    let hosts = spec.hosts.len() as u64;
    config.subnets.capacity().saturating_sub(used + reserved + hosts)
}

/// Gives a run of indices; smaller pieces where the whole does not fit, down to one block, and then also what has rested
/// for a short time only.
fn take(
    spec: &mut SliceAllocationSpec,
    config: &Config<'_>,
    size: u32,
    request: &Request<'_>,
) -> Option<IndexRange> {
    let capacity = config.subnets.capacity();
    let sizes = || {
        let halves = std::iter::successors(Some(size), |size| Some(size / 2));
        halves.take_while(|size| *size >= config.block)
    };
    for short in [false, true] {
        let taken = taken(spec, short, request);
        if let Some(range) = sizes().find_map(|size| space::range(&taken, capacity, size)) {
            if short {
                carve(spec, range);
            }
            return Some(range);
        }
    }
    None
}

/// Every run that cannot be given; with `short` without those that have rested a little.
fn taken(spec: &SliceAllocationSpec, short: bool, request: &Request<'_>) -> Vec<IndexRange> {
    let rested = |since: &Option<Time>| {
        short
            && since
                .as_ref()
                .is_some_and(|since| request.now.duration_since(since.0) >= SHORT_REST)
    };
    let mut taken = Vec::new();
    for cluster in &spec.clusters {
        let whole = cluster.state == AllocationState::Resting && rested(&cluster.since);
        let kept = cluster
            .ranges
            .iter()
            .filter(|range| !(range.state == AllocationState::Resting && rested(&range.since)));
        taken.extend(kept.filter(|_| !whole).filter_map(RangeAllocation::range));
    }
    taken.extend(spec.hosts.iter().map(|host| IndexRange::new(host.index, 1)));
    taken
}

/// Takes a run out of what rests.
fn carve(spec: &mut SliceAllocationSpec, hole: IndexRange) {
    for cluster in &mut spec.clusters {
        let resting = cluster.state == AllocationState::Resting;
        let ranges = std::mem::take(&mut cluster.ranges);
        for allocation in ranges {
            let Some(range) = allocation.range().filter(|range| range.overlaps(hole)) else {
                cluster.ranges.push(allocation);
                continue;
            };
            if resting || allocation.state == AllocationState::Resting {
                cluster.ranges.extend(
                    space::without(range, hole)
                        .into_iter()
                        .map(|rest| RangeAllocation {
                            start: rest.start,
                            size: rest.size,
                            ..allocation.clone()
                        }),
                );
            } else {
                cluster.ranges.push(allocation);
            }
        }
    }
}

/// A cluster has far more than it needs: an idle part of it comes back, so that it is there when others need it.
fn shrink(
    cluster: &mut ClusterAllocation,
    config: &Config<'_>,
    party: &Party<'_>,
    (have, need): (u64, u64),
    request: &Request<'_>,
) {
    let chosen = request.parties.iter().filter(|party| party.chosen).count();
    let first = space::first_range(config.subnets.capacity(), config.block, chosen, party.nodes);
    // Twice what it needs and what it would get today stays, so that it does not give back what it asks for next.
    let keep = (2 * need).max(first.into());
    let Some(demand) = party
        .demand
        .filter(|demand| demand.revision == Some(cluster.revision))
    else {
        return;
    };
    if let Some(idle) = largest(cluster, demand.idle, have.saturating_sub(keep)) {
        give_up(cluster, idle, request);
    }
}

/// Somebody else needs indices and there are none: whoever has the largest idle run beyond its own need gives it back.
fn press(spec: &mut SliceAllocationSpec, config: &Config<'_>, needy: &str, request: &Request<'_>) {
    let under_way = spec
        .clusters
        .iter()
        .any(|cluster| runs(cluster, &[AllocationState::Releasing]).next().is_some());
    if under_way {
        return;
    }
    let candidates = request
        .parties
        .iter()
        .filter(|party| party.name != needy)
        .filter_map(|party| {
            let at = position(spec, party.name)?;
            let cluster = &spec.clusters[at];
            let demand = party
                .demand
                .filter(|demand| demand.revision == Some(cluster.revision))?;
            let have = indices(cluster, &[AllocationState::Held]);
            let need = (u64::from(demand.blocks) * u64::from(config.block)).max(config.block.into());
            Some((largest(cluster, demand.idle, have.saturating_sub(need))?, at))
        });
    if let Some((idle, at)) = candidates.max_by_key(|(idle, _)| idle.size) {
        give_up(&mut spec.clusters[at], idle, request);
    }
}

/// The largest idle run that a cluster holds and can spare.
fn largest(cluster: &ClusterAllocation, idle: &[IndexRange], spare: u64) -> Option<IndexRange> {
    let held = |idle: &&IndexRange| runs(cluster, &[AllocationState::Held]).any(|range| range.covers(**idle));
    let idle = idle
        .iter()
        .filter(held)
        .filter(|idle| u64::from(idle.size) <= spare);
    idle.max_by_key(|idle| (idle.size, idle.start)).copied()
}

/// Part of a cluster's indices is to be given back.
fn give_up(cluster: &mut ClusterAllocation, idle: IndexRange, request: &Request<'_>) {
    let mut changed = false;
    for allocation in std::mem::take(&mut cluster.ranges) {
        let range = allocation.range();
        match range.filter(|range| allocation.state == AllocationState::Held && range.covers(idle)) {
            Some(range) => {
                let rest = space::without(range, idle)
                    .into_iter()
                    .map(|rest| RangeAllocation {
                        start: rest.start,
                        size: rest.size,
                        ..allocation.clone()
                    });
                cluster.ranges.extend(rest);
                cluster.ranges.push(RangeAllocation {
                    start: idle.start,
                    size: idle.size,
                    state: AllocationState::Releasing,
                    since: Some(Time(request.now)),
                });
                changed = true;
            }
            None => cluster.ranges.push(allocation),
        }
    }
    cluster.ranges.sort_by_key(|range| range.start);
    if changed {
        cluster.revision += 1;
    }
}

pub(super) fn position(spec: &SliceAllocationSpec, name: &str) -> Option<usize> {
    spec.clusters.iter().position(|cluster| cluster.name == name)
}

fn indices(cluster: &ClusterAllocation, states: &[AllocationState]) -> u64 {
    runs(cluster, states).map(|range| u64::from(range.size)).sum()
}
