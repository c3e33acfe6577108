//! How many went together: the figure that says whether batching works.

/// Upper bounds of the buckets, in things per batch; the last is what one system call may hold.
pub const BOUNDS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// A histogram of batch sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// One for each bound, and one for what is beyond.
    buckets: [u64; BOUNDS.len() + 1],
    sum: u64,
}

impl Sizes {
    /// Counts a batch of so many.
    pub fn add(&mut self, size: usize) {
        let place = match size {
            0 | 1 => 0,
            _ => (size - 1).ilog2() as usize + 1,
        };
        self.buckets[place.min(BOUNDS.len())] += 1;
        self.sum += size as u64;
    }

    /// Batches.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What was in all of them.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Each bound with the number of batches of no more than that.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let so_far = self.buckets.iter().scan(0, |total, count| {
            *total += count;
            Some(*total)
        });
        BOUNDS.into_iter().zip(so_far)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_in_the_first_bucket_that_holds_it() {
        for size in 0..200usize {
            let mut sizes = Sizes::default();
            sizes.add(size);
            for (bound, count) in sizes.cumulative() {
                assert_eq!(count, u64::from(size as u64 <= bound), "{size} in {bound}");
            }
            assert_eq!((sizes.count(), sizes.sum()), (1, size as u64));
        }
    }
}
