//! Histograms whose bounds are the powers of two: of batch sizes, round trips, losses.

/// How many values were no more than 1, 2, 4, … 2^(N − 1), and how many were more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes<const N: usize = 7> {
    buckets: [u64; N],
    beyond: u64,
    sum: u64,
}

impl<const N: usize> Default for Sizes<N> {
    fn default() -> Self {
        Self {
            buckets: [0; N],
            beyond: 0,
            sum: 0,
        }
    }
}

impl<const N: usize> Sizes<N> {
    /// Counts one value.
    pub fn add(&mut self, size: usize) {
        let place = match size {
            0 | 1 => 0,
            _ => (size - 1).ilog2() as usize + 1,
        };
        *self.buckets.get_mut(place).unwrap_or(&mut self.beyond) += 1;
        self.sum += size as u64;
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(other.buckets) {
            *count += more;
        }
        self.beyond += other.beyond;
        self.sum += other.sum;
    }

    /// Values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum::<u64>() + self.beyond
    }

    /// All of them together.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Each bound with the number of values of no more than that.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let so_far = self.buckets.iter().scan(0, |total, count| {
            *total += count;
            Some(*total)
        });
        so_far.enumerate().map(|(place, count)| (1 << place, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_that_holds_it() {
        for size in 0..200usize {
            let mut sizes = Sizes::<7>::default();
            sizes.add(size);
            let bounds: Vec<u64> = sizes.cumulative().map(|(bound, _)| bound).collect();
            assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 64]);
            for (bound, count) in sizes.cumulative() {
                assert_eq!(count, u64::from(size as u64 <= bound), "{size} in {bound}");
            }
            assert_eq!((sizes.count(), sizes.sum()), (1, size as u64));
        }
    }
}
