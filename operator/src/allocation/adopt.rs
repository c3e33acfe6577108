//! A hub that has lost its memory takes over what is there.

use std::collections::BTreeSet;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::SignedDuration};
use slice_crds::{
    IndexRange,
    conditions::reason,
    wire::{AllocationState, ClusterAllocation, SliceAllocationSpec},
};

use super::{Config, Party, Plan, Request, share, space};

/// When a slice that waits for a report is looked at again.
const AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// What a cluster is known to have of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    pub vni: u32,
    pub number: u32,
    pub revision: u64,
    pub ranges: Vec<IndexRange>,
}

/// The allocation of a slice that has none.
///
/// `None` where a member that has the slice has not reported yet what of it: what it has must not be given to another.
pub(super) fn first(
    config: &Config<'_>,
    request: &Request<'_>,
    plan: &mut Plan,
) -> Option<SliceAllocationSpec> {
    // Nobody is there whom anything could be given to.
    if !request.parties.iter().any(|party| party.chosen && party.reported) {
        return None;
    }
    if let Some(party) = request.parties.iter().find(|party| party.awaited) {
        plan.trouble(
            reason::WAITS_FOR_REPORT,
            format!(
                "cluster {} may have this slice from before and has not reported yet what of it; see `kubectl describe \
                 clusters.weft.dev {0}`",
                party.name
            ),
        );
        plan.wake_at(request.now + AGAIN);
        return None;
    }
    // What others know of counts before what a cluster alone claims, and that before the claims of one that the slice does
    // not name.
    let mut parties: Vec<&Party<'_>> = request
        .parties
        .iter()
        .filter(|party| !party.holdings.is_empty())
        .collect();
    parties.sort_by_key(|party| (!party.chosen, !party.vouched));
    let holdings = parties
        .iter()
        .filter(|party| party.chosen)
        .flat_map(|party| &party.holdings);
    let known = holdings.map(|holding| holding.vni).chain(config.remembered_vni);
    let known = known
        .into_iter()
        .find(|vni| *vni != 0 && !request.taken_vnis.contains(vni));
    let Some(vni) =
        known.or_else(|| space::vni(request.taken_vnis, &format!("{}/{}", request.hub, request.slice)))
    else {
        plan.trouble(
            reason::EXHAUSTED,
            "every VXLAN network identifier is taken: remove a slice".into(),
        );
        return None;
    };
    let mut spec = SliceAllocationSpec {
        slice: request.slice.to_owned(),
        namespace: config.namespace.to_owned(),
        uid: config.uid.to_owned(),
        hub: request.hub.to_owned(),
        vni,
        subnets: config.cidrs.iter().map(ToString::to_string).collect(),
        block_size: config.block,
        mtu: config.mtu,
        largest_mtu: Some(config.largest_mtu),
        state: AllocationState::Held,
        since: Some(Time(request.now)),
        ..SliceAllocationSpec::default()
    };
    // Before anybody is given anything: what each has stays its own, also where it is not chosen any more.
    for party in parties {
        match cluster(&spec, config, party, request) {
            Ok(cluster) => spec.clusters.push(cluster),
            Err(why) => plan.trouble(reason::HOLDINGS_CONFLICT, why),
        }
    }
    spec.hosts = super::hosts::remembered(&spec, config);
    Some(spec)
}

const REMEDY: &str = "it keeps what it has and reaches nobody; `slicectl leave` there takes it down, then it can join \
                      again: its pods get new addresses";

/// A cluster's allocation from what it is known to have.
///
/// # Errors
/// A sentence for a person: what it has is another network, or somebody else's.
pub(super) fn cluster(
    spec: &SliceAllocationSpec,
    config: &Config<'_>,
    party: &Party<'_>,
    request: &Request<'_>,
) -> Result<ClusterAllocation, String> {
    let holding = party.holdings.iter().find(|holding| holding.vni == spec.vni);
    let Some(holding) = holding else {
        let other = party
            .holdings
            .first()
            .map(|holding| holding.vni)
            .unwrap_or_default();
        return Err(format!(
            "cluster {} has slice {} as VNI {other} from another hub, and here it is {}: {REMEDY}",
            party.name, spec.slice, spec.vni
        ));
    };
    check(spec, config, party.name, &holding.ranges)?;
    let others = spec.clusters.iter().filter(|cluster| cluster.name != party.name);
    let numbers: BTreeSet<u32> = others.map(|cluster| cluster.number).collect();
    let free = holding.number != 0
        && holding.number <= slice_crds::index::MAX_CLUSTER
        && !numbers.contains(&holding.number);
    let number = match free {
        true => Some(holding.number),
        false => space::cluster_number(&numbers),
    };
    let number = number.ok_or_else(|| format!("cluster {}: no number is left", party.name))?;
    Ok(ClusterAllocation {
        name: party.name.to_owned(),
        number,
        state: AllocationState::Held,
        revision: share::first_revision(party),
        since: Some(Time(request.now)),
        release_after: None,
        ranges: holding
            .ranges
            .iter()
            .map(|range| share::held(*range, request))
            .collect(),
    })
}

/// A cluster that acts by a newer deletion than the allocation has: the allocation is from an old backup, and what the
/// cluster has beyond it is taken up.
///
/// # Errors
/// As [`cluster`].
pub(super) fn extend(
    spec: &mut SliceAllocationSpec,
    at: usize,
    config: &Config<'_>,
    party: &Party<'_>,
    request: &Request<'_>,
) -> Result<(), String> {
    let known = &spec.clusters[at];
    let newer = |holding: &&Holding| holding.vni == spec.vni && holding.revision > known.revision;
    let Some(holding) = party.holdings.iter().find(newer) else {
        return Ok(());
    };
    let new: Vec<IndexRange> = holding
        .ranges
        .iter()
        .filter(|range| {
            !known
                .ranges
                .iter()
                .any(|own| own.range().is_some_and(|own| own.covers(**range)))
        })
        .copied()
        .collect();
    check(spec, config, party.name, &new)?;
    let size: u64 = new.iter().map(|range| u64::from(range.size)).sum();
    if size > share::allowance(spec, config, party.name, request) {
        return Err(format!(
            "cluster {} has {size} indices of slice {} more than it was given, which are kept for others: {REMEDY}",
            party.name, spec.slice
        ));
    }
    let cluster = &mut spec.clusters[at];
    // What it was given and then gave back after the backup is in none of its ranges.
    cluster.ranges.retain(|own| {
        own.range()
            .is_some_and(|own| !new.iter().any(|range| range.overlaps(own)))
    });
    cluster
        .ranges
        .extend(new.into_iter().map(|range| share::held(range, request)));
    cluster.ranges.sort_by_key(|range| range.start);
    cluster.revision = holding.revision + 1;
    Ok(())
}

/// Whether a cluster may have these runs beside the others.
fn check(
    spec: &SliceAllocationSpec,
    config: &Config<'_>,
    name: &str,
    ranges: &[IndexRange],
) -> Result<(), String> {
    let others = spec.clusters.iter().filter(|cluster| cluster.name != name);
    let taken: Vec<(&str, IndexRange)> = others
        .flat_map(|cluster| {
            let ranges = cluster.ranges.iter().filter_map(|range| range.range());
            ranges.map(|range| (cluster.name.as_str(), range))
        })
        .chain(
            spec.hosts
                .iter()
                .map(|host| (host.name.as_str(), IndexRange::new(host.index, 1))),
        )
        .collect();
    for range in ranges {
        if u64::from(range.start) + u64::from(range.size) > config.subnets.capacity() {
            return Err(format!(
                "cluster {name} has the indices {range} of slice {}, which spec.subnets do not have: {REMEDY}",
                spec.slice
            ));
        }
        if let Some((other, theirs)) = taken.iter().find(|(_, theirs)| theirs.overlaps(*range)) {
            return Err(format!(
                "cluster {name} has the indices {range} of slice {}, of which {other} has {theirs}: {REMEDY}",
                spec.slice
            ));
        }
    }
    Ok(())
}
