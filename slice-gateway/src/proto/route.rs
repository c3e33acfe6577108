//! Whose index is it? Ranges are disjoint, so the longest match is the only match.

use slice_runtime::handover::Range;

/// A map from indices to owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<T> {
    /// First index, last index, owner; sorted, disjoint.
    runs: Vec<(u32, u32, T)>,
}

/// Why ranges do not make a table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("range {0}+{1} is not a power of two long, or does not start at a multiple of its length")]
    Unaligned(u32, u32),
    #[error("ranges {0}+{1} and {2}+{3} overlap")]
    Overlap(u32, u32, u32, u32),
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { runs: Vec::new() }
    }
}

impl<T: Copy + Eq> Table<T> {
    /// Adds a range.
    pub fn insert(&mut self, range: Range, owner: T) -> Result<(), Error> {
        let Range { start, size } = range;
        if !size.is_power_of_two() || !start.is_multiple_of(size) {
            return Err(Error::Unaligned(start, size));
        }
        let last = start + (size - 1);
        let place = self.runs.partition_point(|run| run.1 < start);
        if let Some(next) = self.runs.get(place).filter(|next| next.0 <= last) {
            return Err(Error::Overlap(start, size, next.0, next.1 - next.0 + 1));
        }
        self.runs.insert(place, (start, last, owner));
        Ok(())
    }

    pub fn owner(&self, index: u32) -> Option<T> {
        let place = self.runs.partition_point(|run| run.1 < index);
        self.runs.get(place).filter(|run| run.0 <= index).map(|run| run.2)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(ranges: &[(u32, u32, u8)]) -> Result<Table<u8>, Error> {
        let mut table = Table::default();
        for (start, size, owner) in ranges {
            table.insert(
                Range {
                    start: *start,
                    size: *size,
                },
                *owner,
            )?;
        }
        Ok(table)
    }

    #[test]
    fn an_index_has_one_owner() {
        let table = table(&[(64, 64, 1), (0, 64, 0), (256, 256, 2)]).unwrap();
        let owners = [0, 63, 64, 127, 128, 255, 256, 511, 512].map(|index| table.owner(index));
        let (a, b, c) = (Some(0), Some(1), Some(2));
        assert_eq!(owners, [a, a, b, b, None, None, c, c, None]);
    }

    #[test]
    fn the_last_range_ends_at_the_last_index() {
        let table = table(&[(1 << 31, 1 << 31, 9)]).unwrap();
        assert_eq!((table.owner(u32::MAX), table.owner(0)), (Some(9), None));
    }

    #[test]
    fn bad_ranges_are_named() {
        assert_eq!(table(&[(32, 64, 0)]), Err(Error::Unaligned(32, 64)));
        assert_eq!(table(&[(0, 0, 0)]), Err(Error::Unaligned(0, 0)));
        assert_eq!(
            table(&[(0, 64, 0), (32, 32, 1)]),
            Err(Error::Overlap(32, 32, 0, 64))
        );
    }

    proptest! {
        #[test]
        fn a_table_agrees_with_a_search(ranges in prop::collection::vec((0u32..64, 0u32..4), 0..8), index in 0u32..80) {
            let mut table = Table::default();
            let mut kept = Vec::new();
            for (n, (start, log)) in ranges.into_iter().enumerate() {
                let range = Range { start: start >> log << log, size: 1 << log };
                let overlaps = kept.iter().any(|(other, _): &(Range, usize)| {
                    range.start < other.start + other.size && other.start < range.start + range.size
                });
                prop_assert_eq!(table.insert(range, n).is_err(), overlaps);
                if !overlaps {
                    kept.push((range, n));
                }
            }
            let owner = kept.iter().find(|(r, _)| (r.start..r.start + r.size).contains(&index)).map(|(_, n)| *n);
            prop_assert_eq!(table.owner(index), owner);
        }
    }
}
