//! Arithmetic of what must be unique: VNIs, numbers, runs of indices.

use std::{collections::BTreeSet, hash::Hasher};

use siphasher::sip::SipHasher13;
use slice_crds::{IndexRange, index};

/// The smallest VNI that is given. VNI 0 means "untagged" to some hardware, and CNIs like to use 1: start above.
pub const FIRST_VNI: u32 = 4097;
/// Largest VNI (RFC 7348 §5: 24 bits).
pub const LAST_VNI: u32 = (1 << 24) - 1;
/// Ports of a node that gateways may have.
pub const HOST_PORTS: u32 = 10_000;
/// The largest run that is given in one piece.
const LARGEST: u64 = 1 << 24;

/// A VNI that nobody has. It is drawn by `seed` and not the smallest: a hub that was built anew and does not know yet what
/// its members have would otherwise draw what they have.
///
/// Gateways that listen on a port of their node have one that follows from their VNI, so where it can be no two slices
/// have the same.
pub fn vni(taken: &BTreeSet<u32>, seed: &str) -> Option<u32> {
    let mut hasher = SipHasher13::new();
    hasher.write(seed.as_bytes());
    let count = LAST_VNI - FIRST_VNI + 1;
    let start = u32::try_from(hasher.finish() % u64::from(count)).ok()?;
    let drawn = |n: u32| FIRST_VNI + (start + n) % count;
    let ports: BTreeSet<u32> = taken.iter().map(|vni| vni % HOST_PORTS).collect();
    let with_port = (0..HOST_PORTS)
        .map(drawn)
        .find(|vni| !ports.contains(&(vni % HOST_PORTS)));
    with_port.or_else(|| (0..count).map(drawn).find(|vni| !taken.contains(vni)))
}

/// The smallest cluster number that nobody has.
pub(super) fn cluster_number(taken: &BTreeSet<u32>) -> Option<u32> {
    (1..=index::MAX_CLUSTER).find(|number| !taken.contains(number))
}

/// The first free run of `size` indices, a power of two, in a slice of `capacity` indices.
pub(super) fn range(taken: &[IndexRange], capacity: u64, size: u32) -> Option<IndexRange> {
    let mut start = 0u64;
    while start + u64::from(size) <= capacity {
        let candidate = IndexRange::new(u32::try_from(start).ok()?, size);
        match taken.iter().find(|range| range.overlaps(candidate)) {
            None => return Some(candidate),
            // On behind the range that is in the way, at the next multiple of the size.
            Some(blocker) => {
                let behind = u64::from(blocker.start) + u64::from(blocker.size);
                start = behind.next_multiple_of(size.into());
            }
        }
    }
    None
}

/// How many indices a cluster gets at first: a block for each node at least, and a share of a quarter of the slice
/// at most, so that three quarters are left for growth.
pub(super) fn first_range(capacity: u64, block: u32, clusters: usize, nodes: u32) -> u32 {
    let needed = (u64::from(nodes.max(1)) * u64::from(block)).next_power_of_two();
    let share = capacity / 4 / (clusters.max(1) as u64).next_power_of_two();
    let share = if share == 0 { 0 } else { 1 << share.ilog2() };
    u32::try_from(needed.max(share).min(LARGEST)).expect("at most 2^24")
}

/// What no cluster may keep from another: half of an equal share.
pub(super) fn fair_share(capacity: u64, clusters: usize) -> u64 {
    capacity / 2 / (clusters.max(1) as u64)
}

/// A range without a run inside it: the largest aligned pieces of the rest.
pub fn without(range: IndexRange, hole: IndexRange) -> Vec<IndexRange> {
    if !range.overlaps(hole) {
        return vec![range];
    }
    if hole.covers(range) {
        return vec![];
    }
    let half = range.size / 2;
    let halves = [
        IndexRange::new(range.start, half),
        IndexRange::new(range.start + half, half),
    ];
    halves.into_iter().flat_map(|half| without(half, hole)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_taken_is_passed_over() {
        let first = vni(&BTreeSet::new(), "h1/shop").unwrap();
        assert!((FIRST_VNI..=LAST_VNI).contains(&first));
        assert_eq!(vni(&BTreeSet::from([first + 1]), "h1/shop"), Some(first));
        assert_eq!(vni(&BTreeSet::from([first]), "h1/shop"), Some(first + 1));
        assert_eq!(
            vni(&BTreeSet::from([first + HOST_PORTS]), "h1/shop"),
            Some(first + 1),
            "its port"
        );
        assert_ne!(vni(&BTreeSet::new(), "h2/shop"), Some(first));
        assert_eq!(cluster_number(&BTreeSet::from([1, 2])), Some(3));
        let taken = [IndexRange::new(0, 64), IndexRange::new(128, 64)];
        assert_eq!(range(&taken, 256, 64), Some(IndexRange::new(64, 64)));
        assert_eq!(range(&taken, 512, 128), Some(IndexRange::new(256, 128)));
        assert_eq!(range(&taken, 256, 128), None);
    }

    #[test]
    fn a_small_slice_still_serves_every_node() {
        assert_eq!(first_range(16, 2, 2, 2), 4);
        assert_eq!(first_range(65536, 64, 2, 2), 8192);
        assert_eq!(first_range(65536, 64, 2, 200), 16384);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_stay_inside(sizes in prop::collection::vec(0u32..8, 1..40)) {
            let mut taken: Vec<IndexRange> = Vec::new();
            for log in sizes {
                if let Some(next) = range(&taken, 1024, 1 << log) {
                    prop_assert!(taken.iter().all(|old| !old.overlaps(next)));
                    prop_assert!(next.start + next.size <= 1024);
                    taken.push(next);
                } else {
                    // Refused only where no aligned gap is left.
                    let size = 1u32 << log;
                    let free = (0..1024 / size).map(|n| IndexRange::new(n * size, size));
                    prop_assert!(free.into_iter().all(|gap| taken.iter().any(|old| old.overlaps(gap))));
                }
            }
        }

        #[test]
        fn a_hole_leaves_exactly_the_rest(start in 0u32..64, log in 0u32..7, at in 0u32..64, size in 0u32..7) {
            let run = |n: u32, log: u32| IndexRange::new(n >> log << log, 1 << log);
            let (range, hole) = (run(start, log), run(at, size));
            let rest = without(range, hole);
            for index in 0..128 {
                let expected = range.contains(index) && !hole.contains(index);
                prop_assert_eq!(rest.iter().filter(|piece| piece.contains(index)).count(), usize::from(expected));
            }
        }
    }
}
