//! The hosts outside every cluster that a slice has: what each is given.
//!
//! To the members such a host is a cluster of one attachment and one gateway, so everything that holds between
//! clusters (who may speak for which address, broadcast once for each) holds for it as well.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use slice_crds::{
    IndexRange, Subnets,
    conditions::reason,
    index,
    wire::{AllocationState, HostAllocation, RangeAllocation, SliceAllocationSpec},
};

use super::{Config, Plan, Request};

/// Gives every host of the slice an index and a number. Clusters take their ranges from the bottom of the slice, hosts
/// their indices from the top, so that they do not cut up what clusters need whole.
pub(super) fn place(
    spec: &mut SliceAllocationSpec,
    config: &Config<'_>,
    request: &Request<'_>,
    plan: &mut Plan,
) {
    for host in &mut spec.hosts {
        let wanted = config.hosts.iter().any(|peer| peer.name == host.name);
        let state = if wanted {
            AllocationState::Held
        } else {
            AllocationState::Resting
        };
        if host.state != state {
            (host.state, host.since) = (state, Some(Time(request.now)));
            plan.wake_at(request.now + super::REST);
        }
    }
    for peer in config.hosts {
        if request
            .parties
            .iter()
            .any(|party| party.chosen && party.name == peer.name)
        {
            plan.trouble(
                reason::PEER_REFUSED,
                format!(
                    "spec.peers names \"{0}\", which is a member cluster of the slice: give the host another name",
                    peer.name
                ),
            );
            spec.hosts.retain(|host| host.name != peer.name);
            continue;
        }
        if spec.hosts.iter().any(|host| host.name == peer.name) {
            continue;
        }
        let ordinals: BTreeSet<u32> = spec.hosts.iter().map(|host| host.ordinal).collect();
        let ordinal = (0..=index::MAX_ORDINAL).find(|ordinal| !ordinals.contains(ordinal));
        let Some((ordinal, index)) = ordinal.zip(free(&config.subnets, spec)) else {
            plan.trouble(
                reason::PEER_REFUSED,
                format!(
                    "spec.subnets have no address left for host {} of spec.peers: remove another host, or create a \
                     slice with a larger subnet",
                    peer.name
                ),
            );
            continue;
        };
        spec.hosts.push(HostAllocation {
            name: peer.name.clone(),
            index,
            ordinal,
            state: AllocationState::Held,
            since: Some(Time(request.now)),
        });
    }
}

/// The hosts as the slice's status has them, for a hub that keeps no allocation of it yet.
pub(super) fn remembered(spec: &SliceAllocationSpec, config: &Config<'_>) -> Vec<HostAllocation> {
    let free = |index: u32| {
        let mut ranges = spec.clusters.iter().flat_map(|cluster| &cluster.ranges);
        config.subnets.usable(index)
            && !ranges.any(|range| range.range().is_some_and(|range| range.contains(index)))
    };
    let hosts = config
        .remembered_hosts
        .iter()
        .filter(|(_, index, _)| free(*index));
    hosts
        .map(|(name, index, ordinal)| HostAllocation {
            name: name.clone(),
            index: *index,
            ordinal: *ordinal,
            state: AllocationState::Held,
            since: None,
        })
        .collect()
}

/// The highest index that nobody has.
fn free(subnets: &Subnets, spec: &SliceAllocationSpec) -> Option<u32> {
    let ranges: Vec<IndexRange> = spec
        .clusters
        .iter()
        .flat_map(|cluster| cluster.ranges.iter().filter_map(RangeAllocation::range))
        .collect();
    let taken: BTreeSet<u32> = spec.hosts.iter().map(|host| host.index).collect();
    let mut next = u32::try_from(subnets.capacity() - 1).ok();
    while let Some(index) = next {
        next = match ranges.iter().find(|range| range.contains(index)) {
            Some(range) => range.start.checked_sub(1),
            None if taken.contains(&index) || !subnets.usable(index) => index.checked_sub(1),
            None => return Some(index),
        };
    }
    None
}
