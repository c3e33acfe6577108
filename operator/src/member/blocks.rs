//! Which node hands out which indices. Pure.
//!
//! Every node has a block of every slice from the start, so that its first pod waits for nobody; it gets another when a
//! quarter of a block or less is left. A block stays where it is until its node has let go of it:
//!
//! ```text
//!  spec.blocks ──► spec.releasing ──► the agent reports status.released for this generation ──► free
//!                  idle, and the node has others: beyond its need, or another node has none
//! ```
//!
//! Indices rest with the agent, so a block that it calls idle has rested. A node that is gone keeps its blocks for
//! [`REST`]: it may only be cut off, with its pods alive.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use slice_crds::{
    IndexRange, Subnets,
    v1alpha1::{SliceBlock, SliceBlockSpec, SliceSpec},
};

use super::nodes::Nodes;

/// How long the blocks of a node stay its own after its Node object is gone.
pub const REST: Duration = Duration::from_secs(600);
/// Runs of idle indices that are reported, the largest first.
const MOST_IDLE: usize = 64;

/// What the blocks of one slice are planned from.
#[derive(Debug)]
pub struct Request<'a> {
    pub slice: &'a str,
    pub spec: &'a SliceSpec,
    pub nodes: &'a Nodes,
    /// The slice's blocks, by node.
    pub there: &'a BTreeMap<String, Arc<SliceBlock>>,
    /// How long each node that has none any more is gone.
    pub gone: &'a BTreeMap<String, Duration>,
    /// Addresses that pods have, by pod.
    pub used: &'a BTreeMap<(String, String), Vec<IpAddr>>,
}

/// The blocks of one slice.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// By node.
    pub specs: BTreeMap<String, SliceBlockSpec>,
    /// Nodes that are to have none any more.
    pub remove: BTreeSet<String>,
    /// Blocks that nodes have and want, together.
    pub needed: u32,
    /// Nodes whose wish did not fit.
    pub short: BTreeSet<String>,
    /// Aligned runs of the ranges of which no node has a block.
    pub idle: Vec<IndexRange>,
    /// Ranges to be given back of which no node has a block.
    pub given_back: Vec<IndexRange>,
}

pub fn plan(request: &Request<'_>) -> Plan {
    let Request {
        slice,
        spec,
        nodes,
        there,
        ..
    } = request;
    let mut plan = Plan::default();
    for (node, block) in *there {
        if !nodes.usable.contains_key(node) && is_over(request, node) {
            plan.remove.insert(node.clone());
            continue;
        }
        let mut own = block.spec.clone();
        let status = block.status.clone().unwrap_or_default();
        if is_current(block) {
            own.blocks
                .retain(|block| !(own.releasing.contains(block) && status.released.contains(block)));
        }
        own.releasing.retain(|releasing| own.blocks.contains(releasing));
        own.withdrawn = match (nodes.usable.get(node), nodes.left_out.get(node)) {
            (Some(_), _) => None,
            (None, Some(why)) => Some(why.clone()),
            (None, None) => Some("its Node is gone".to_owned()),
        };
        if let Some(address) = nodes.usable.get(node) {
            own.node_address = address.address;
        }
        plan.specs.insert(node.clone(), own);
    }
    let mut taken: BTreeSet<IndexRange> = plan
        .specs
        .values()
        .flat_map(|own| own.blocks.iter().copied())
        .collect();
    restore(request, &mut plan, &mut taken);
    plan.needed += orphaned(request, &mut taken);
    let mut wishes: Vec<String> = Vec::new();
    for (node, address) in &nodes.usable {
        let own = plan.specs.entry(node.clone()).or_insert_with(|| SliceBlockSpec {
            slice: (*slice).to_owned(),
            node: node.clone(),
            node_address: address.address,
            blocks: vec![],
            releasing: vec![],
            withdrawn: None,
        });
        let kept = own
            .blocks
            .iter()
            .filter(|block| !own.releasing.contains(block))
            .count();
        let wants = kept == 0 || there.get(node).is_some_and(|block| is_short(block, spec));
        plan.needed += u32::try_from(kept).unwrap_or(u32::MAX) + u32::from(wants);
        if wants {
            wishes.push(node.clone());
        }
    }
    for node in wishes {
        let open = spec.ranges.iter().filter(|range| !spec.releasing.contains(range));
        let free = open
            .into_iter()
            .find_map(|range| free(*range, spec.block_size, &taken));
        match (free, plan.specs.get_mut(&node)) {
            (Some(block), Some(own)) => {
                taken.insert(block);
                own.blocks.push(block);
            }
            _ => _ = plan.short.insert(node),
        }
    }
    // Blocks of nodes that are gone or left out are needed as well: nobody else may have them.
    let others = plan
        .specs
        .iter()
        .filter(|(node, _)| !nodes.usable.contains_key(*node));
    plan.needed += others
        .map(|(_, own)| u32::try_from(own.blocks.len()).unwrap_or(u32::MAX))
        .sum::<u32>();
    take_back(request, &mut plan);
    plan.idle = idle(spec, &taken);
    plan.given_back = spec
        .releasing
        .iter()
        .filter(|range| !taken.iter().any(|block| block.overlaps(**range)))
        .copied()
        .collect();
    plan
}

/// Blocks that a node's pods have indices of, and whose object was lost: the node has them again.
fn restore(request: &Request<'_>, plan: &mut Plan, taken: &mut BTreeSet<IndexRange>) {
    let ranges = &request.spec.ranges;
    for (node, own) in &mut plan.specs {
        let status = request.there.get(node).and_then(|block| block.status.as_ref());
        for stray in status.into_iter().flat_map(|status| &status.strays) {
            let block = around(stray.start, request.spec.block_size);
            let is_free = !taken.iter().any(|other| other.overlaps(block));
            if is_free && ranges.iter().any(|range| range.covers(block)) {
                taken.insert(block);
                own.blocks.push(block);
            }
        }
    }
}

/// The block that an index lies in.
fn around(index: u32, size: u32) -> IndexRange {
    let size = size.max(1);
    IndexRange::new(index - index % size, size)
}

/// Blocks with indices of pods that no node has, because their object was lost: nobody else is given them as long as the
/// pods live. Returns how many.
fn orphaned(request: &Request<'_>, taken: &mut BTreeSet<IndexRange>) -> u32 {
    let Ok(subnets) = Subnets::new(&request.spec.subnets) else {
        return 0;
    };
    let mut count = 0;
    for address in request
        .used
        .values()
        .flat_map(|addresses| addresses.iter().take(2))
    {
        let Some(index) = subnets.index_of(*address) else {
            continue;
        };
        let block = around(index, request.spec.block_size);
        if !taken.contains(&block) && !taken.iter().any(|block| block.contains(index)) {
            taken.insert(block);
            count += 1;
        }
    }
    count
}

/// The first piece of a range that no node has.
fn free(range: IndexRange, size: u32, taken: &BTreeSet<IndexRange>) -> Option<IndexRange> {
    if range.size < size {
        return None;
    }
    let mut start = range.start;
    // Blocks of one slice have one size and are aligned to it, so the one that is in the way starts where a piece does.
    while range.contains(start) {
        let candidate = IndexRange::new(start, size);
        if !taken.contains(&candidate)
            && !taken
                .iter()
                .any(|block| block.size != size && block.overlaps(candidate))
        {
            return Some(candidate);
        }
        start = start.checked_add(size)?;
    }
    None
}

/// Whether the status is about the spec that is there. Older agents do not report it.
fn is_current(block: &SliceBlock) -> bool {
    let observed = block
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    observed.is_some() && observed == block.metadata.generation
}

/// Whether a node is about to run out. Asked for once: what it reports counts when it has seen what it was given last.
fn is_short(block: &SliceBlock, spec: &SliceSpec) -> bool {
    let Some(status) = &block.status else { return false };
    let few = status.free <= spec.block_size / 4;
    if status.observed_generation.is_some() {
        return is_current(block) && few;
    }
    Subnets::new(&spec.subnets).is_ok_and(|subnets| {
        let usable: u32 = block
            .spec
            .blocks
            .iter()
            .map(|block| subnets.usable_in(*block))
            .sum();
        status.usable == usable && few
    })
}

/// Whether a node that is gone has been so for long enough.
fn is_over(request: &Request<'_>, node: &str) -> bool {
    !request.nodes.left_out.contains_key(node) && request.gone.get(node).is_some_and(|gone| *gone >= REST)
}

/// Blocks that are to come back: those that lie in a range to be given back, one that a node does not need beside its
/// others, and where a node has none, whatever another can spare.
fn take_back(request: &Request<'_>, plan: &mut Plan) {
    let spec = request.spec;
    let mut pressed = plan.short.len();
    for (node, own) in &mut plan.specs {
        let given_back = |block: &IndexRange| spec.releasing.iter().any(|range| range.covers(*block));
        let forced: Vec<IndexRange> = own
            .blocks
            .iter()
            .filter(|block| given_back(block))
            .copied()
            .collect();
        for block in forced {
            if !own.releasing.contains(&block) {
                own.releasing.push(block);
            }
        }
        let Some(block) = request.there.get(node).filter(|block| is_current(block)) else {
            continue;
        };
        let status = block.status.clone().unwrap_or_default();
        let kept = own
            .blocks
            .iter()
            .filter(|block| !own.releasing.contains(block))
            .count();
        let Some(idle) = status
            .idle
            .iter()
            .find(|idle| own.blocks.contains(idle) && !own.releasing.contains(idle))
        else {
            continue;
        };
        // With it gone there must be half a block to spare; under pressure whatever is not its only one.
        let spare = status.free >= idle.size + spec.block_size / 2;
        if kept > 1 && own.releasing.is_empty() && (spare || pressed > 0) {
            pressed = pressed.saturating_sub(1);
            own.releasing.push(*idle);
        }
    }
}

/// The largest aligned runs that no block lies in.
fn idle(spec: &SliceSpec, taken: &BTreeSet<IndexRange>) -> Vec<IndexRange> {
    fn split(run: IndexRange, block: u32, taken: &[IndexRange], idle: &mut Vec<IndexRange>) {
        let inside: Vec<IndexRange> = taken
            .iter()
            .filter(|block| block.overlaps(run))
            .copied()
            .collect();
        if inside.is_empty() {
            idle.push(run);
        } else if run.size / 2 >= block {
            let half = run.size / 2;
            split(IndexRange::new(run.start, half), block, &inside, idle);
            split(IndexRange::new(run.start + half, half), block, &inside, idle);
        }
    }
    let taken: Vec<IndexRange> = taken.iter().copied().collect();
    let mut runs = Vec::new();
    for range in spec.ranges.iter().filter(|range| !spec.releasing.contains(range)) {
        split(*range, spec.block_size, &taken, &mut runs);
    }
    runs.sort_by_key(|run| (std::cmp::Reverse(run.size), run.start));
    runs.truncate(MOST_IDLE);
    runs.sort();
    runs
}

/// What becomes of the block of a slice that is no more.
#[derive(Debug, PartialEq)]
pub enum TakeDown {
    /// The agent is to let go of everything, and to report that it has.
    Ask(SliceBlockSpec),
    Wait,
    Remove,
}

/// Takes a block back whose Slice is gone: when the node has reported, for a spec that says so, that it has nothing of the
/// slice any more.
pub fn take_down(
    block: &SliceBlock,
    nodes: &Nodes,
    known: &BTreeSet<String>,
    gone: Option<Duration>,
) -> TakeDown {
    let node = &block.spec.node;
    if !known.contains(node) {
        // It may be cut off with its pods alive.
        return match gone.is_some_and(|gone| gone >= REST) {
            true => TakeDown::Remove,
            false => TakeDown::Wait,
        };
    }
    let Some(status) = &block.status else {
        return match nodes.left_out.contains_key(node) {
            true => TakeDown::Remove,
            false => TakeDown::Wait,
        };
    };
    // An older agent: it knows of no index of a slice that it has not.
    if status.observed_generation.is_none() {
        return match status.usable == 0 && status.attachments == 0 {
            true => TakeDown::Remove,
            false => TakeDown::Wait,
        };
    }
    if block.spec.releasing != block.spec.blocks {
        return TakeDown::Ask(SliceBlockSpec {
            releasing: block.spec.blocks.clone(),
            ..block.spec.clone()
        });
    }
    match is_current(block) && status.present == Some(false) {
        true => TakeDown::Remove,
        false => TakeDown::Wait,
    }
}

#[cfg(test)]
mod tests;
