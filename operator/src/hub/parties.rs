//! What the planning of an allocation knows of each cluster: what it reports, what it is known to have, whether it has to
//! be waited for.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::SignedDuration;
use slice_crds::{
    IndexRange,
    wire::{AllocationState as State, ClusterAllocation, SliceAllocationSpec, WIRE},
};

use super::{
    core::{AWAIT_REPORTS, Hub},
    slice::{Member, Scene},
    state::ClusterState,
};
use crate::{
    allocation::{self, Deletion, Demand, Holding, Party},
    control::Now,
    trust::Claim,
};

/// Before an older member that asks for more is given more again: it does not report whether it has seen the last.
const OLD_MEMBERS_WAIT: SignedDuration = SignedDuration::from_secs(60);
/// How long a hub that was built anew waits for clusters that have not joined it yet, before it gives out what they may have.
pub(super) const REBUILD: Duration = Duration::from_secs(600);

impl Hub {
    pub(super) fn parties<'a>(
        &self,
        scene: &Scene<'_>,
        before: Option<&SliceAllocationSpec>,
        members: &'a [Member],
        now: Now,
    ) -> Vec<Party<'a>> {
        let gone = before
            .and_then(|before| self.allocations.get(&before.vni))
            .map(|state| state.gone.as_slice());
        let relayed = relayed(scene.identity, members);
        members
            .iter()
            .map(|member| {
                let own =
                    before.and_then(|before| before.clusters.iter().find(|one| one.name == member.name));
                let state = self.clusters.get(&member.name);
                let facts = state.and_then(ClusterState::facts);
                let claim = member.claim.as_ref();
                let attachments = claim.map_or(0, |claim| claim.attachments);
                let is_held = own.is_some_and(|own| own.state == State::Held);
                let silent = !state.is_some_and(ClusterState::is_fresh);
                let is_old = facts.is_some_and(|facts| facts.wire < WIRE);
                let is_gone = gone.is_some_and(|gone| gone.contains(&member.name));
                Party {
                    name: &member.name,
                    chosen: member.chosen,
                    reported: facts.is_some(),
                    awaited: own.is_none() && self.is_awaited(scene, member, members, now),
                    vouched: is_vouched(scene.identity, member, members),
                    nodes: facts.map_or(1, |facts| facts.nodes),
                    // A member that is silent may have pods that nobody counts.
                    in_use: attachments > 0 || is_held && claim.is_some() && silent,
                    attachments,
                    demand: claim.map(|claim| demand(claim, own.zip(before), is_old, now)),
                    holdings: self.holdings(scene, before, member, &relayed),
                    deletion: if is_gone {
                        Deletion::Gone
                    } else {
                        state.map_or(Deletion::Graceful, super::cluster::deletion_of)
                    },
                }
            })
            .collect()
    }

    /// What a member is known to have that the allocation does not know of.
    fn holdings(
        &self,
        scene: &Scene<'_>,
        before: Option<&SliceAllocationSpec>,
        member: &Member,
        relayed: &BTreeMap<&str, Holding>,
    ) -> Vec<Holding> {
        let own = before.and_then(|before| before.clusters.iter().find(|one| one.name == member.name));
        let served = self
            .clusters
            .get(&member.name)
            .and_then(|state| state.served.get(scene.slice));
        let served = served
            .filter(|served| !served.released)
            .map(|served| served.holding.clone());
        let claim = member.claim.as_ref().filter(|claim| !claim.released);
        // Where the member has it from this hub, what it was served is the newer of the two.
        let same = claim.is_none_or(|claim| claim.hub.is_empty() || claim.hub == scene.identity);
        let claimed = claim
            .filter(|_| served.is_none() || !same)
            .map(|claim| claim.holding.clone());
        let second_hand = relayed.get(member.name.as_str()).cloned();
        // What it has from an allocation that this hub knows is no memory that it lacks.
        let known = |vni: u32| {
            let others = scene
                .allocations
                .iter()
                .filter(|one| before.is_none_or(|before| before.vni != one.vni));
            others.into_iter().any(|one| one.vni == vni)
        };
        let all = served.into_iter().chain(claimed).chain(second_hand);
        all.filter(|holding| holding.vni != 0 && !known(holding.vni))
            .filter(|holding| own.is_none_or(|own| holding.revision > own.revision))
            .collect()
    }

    /// Whether a member has the slice, or may have it, and has not reported yet what of it.
    fn is_awaited(&self, scene: &Scene<'_>, member: &Member, others: &[Member], now: Now) -> bool {
        if member.claim.is_some() {
            return false;
        }
        let report = self
            .clusters
            .get(&member.name)
            .and_then(|state| state.report.as_ref());
        if let Some(report) = report {
            let facts = report.facts.as_ref();
            let holds = facts.is_some_and(|facts| facts.holds.contains_key(scene.slice));
            return holds && now.clock.saturating_sub(report.since) < AWAIT_REPORTS;
        }
        // Others have the slice from another hub, so this one is new, and who has not joined it yet may have it as well.
        let claimants = others.iter().filter(|other| {
            other
                .claim
                .as_ref()
                .is_some_and(|claim| is_foreign(claim, scene.identity))
        });
        let states = claimants.filter_map(|other| self.clusters.get(&other.name)?.report.as_ref());
        let first = states.map(|report| report.since).min();
        member.chosen && first.is_some_and(|first| now.clock.saturating_sub(first) < REBUILD)
    }
}

/// Whether a member has the slice from another hub.
fn is_foreign(claim: &Claim, identity: &str) -> bool {
    claim.hub != identity && !claim.released
}

/// Whether another member knows of everything that this one claims to have.
fn is_vouched(identity: &str, member: &Member, others: &[Member]) -> bool {
    let Some(claim) = &member.claim else { return false };
    let mut others = others.iter().filter(|other| other.name != member.name);
    others.any(|other| {
        let known = other.claim.as_ref().filter(|other| is_foreign(other, identity));
        let mut known = known.into_iter().flat_map(|known| &known.peers);
        known.any(|(name, known)| {
            let ranges = &claim.holding.ranges;
            let is_known = |range: &IndexRange| known.ranges.iter().any(|known| known.covers(*range));
            *name == member.name && ranges.iter().all(is_known)
        })
    })
}

/// What members of another hub know of clusters that have not reported here.
fn relayed<'a>(identity: &str, members: &'a [Member]) -> BTreeMap<&'a str, Holding> {
    let mut known = BTreeMap::new();
    for claim in members.iter().filter_map(|member| member.claim.as_ref()) {
        if !is_foreign(claim, identity) {
            continue;
        }
        for (name, holding) in &claim.peers {
            known.entry(name.as_str()).or_insert_with(|| holding.clone());
        }
    }
    // Who is here says it himself.
    for member in members.iter().filter(|member| member.claim.is_some()) {
        known.remove(member.name.as_str());
    }
    known
}

fn demand<'a>(
    claim: &'a Claim,
    given: Option<(&ClusterAllocation, &SliceAllocationSpec)>,
    is_old: bool,
    now: Now,
) -> Demand<'a> {
    let blocks = match given.filter(|_| is_old) {
        // An older member asks for what it lacks, and not for what it needs.
        Some((own, spec)) => {
            let runs = allocation::runs(own, &[State::Held]);
            let have: u32 = runs.map(|range| range.size / spec.block_size.max(1)).sum();
            let last = own
                .ranges
                .iter()
                .filter_map(|range| range.since.as_ref())
                .map(|since| since.0)
                .max();
            let waited = last.is_none_or(|last| now.wall.duration_since(last) >= OLD_MEMBERS_WAIT);
            have + if waited { claim.blocks } else { 0 }
        }
        None => claim.blocks,
    };
    Demand {
        revision: claim.revision,
        released: claim.released,
        blocks,
        idle: &claim.idle,
        given_back: &claim.given_back,
    }
}
