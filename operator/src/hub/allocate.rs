//! Allocation of what must be unique: VNIs, cluster numbers, index ranges. Pure; what was given stays given.

use std::collections::BTreeSet;

use slice_crds::{IndexRange, index};

/// The smallest VNI that nobody has. VNI 0 means "untagged" to some hardware, and CNIs like to use 1: start above.
pub const FIRST_VNI: u32 = 4097;
/// Largest VNI (RFC 7348 §5: 24 bits).
pub const LAST_VNI: u32 = (1 << 24) - 1;

pub fn vni(taken: &BTreeSet<u32>) -> Option<u32> {
    (FIRST_VNI..=LAST_VNI).find(|vni| !taken.contains(vni))
}

pub fn cluster_number(taken: &BTreeSet<u32>) -> Option<u32> {
    (1..=index::MAX_CLUSTER).find(|number| !taken.contains(number))
}

/// The first free range of `size` indices, a power of two, in a slice of `capacity` indices.
pub fn range(taken: &[IndexRange], capacity: u64, size: u32) -> Option<IndexRange> {
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
pub fn first_range(capacity: u64, block: u32, clusters: usize, nodes: u32) -> u32 {
    let needed = (u64::from(nodes.max(1)) * u64::from(block)).next_power_of_two();
    let share = capacity / 4 / (clusters.max(1) as u64).next_power_of_two();
    let share = if share == 0 { 0 } else { 1 << share.ilog2() };
    u32::try_from(needed.max(share).min(1 << 24)).expect("at most 2^24")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gaps_are_filled_first() {
        assert_eq!(vni(&BTreeSet::from([4097, 4099])), Some(4098));
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
    }
}
