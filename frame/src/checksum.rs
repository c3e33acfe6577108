//! The internet checksum (RFC 1071).

/// A one's-complement sum in progress, in the order of the bytes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes. Where several slices are added, all but the last must be of even length.
    #[must_use]
    #[inline]
    pub fn with(self, bytes: &[u8]) -> Self {
        // RFC 1071 §2: the sum may be taken in words of any size, and in any byte order as long as it is one. Two
        // chains of 64-bit words with their carries are the fastest that a compiler makes without vector
        // instructions beyond the baseline: 26 ns for 1350 bytes, where four lanes of 32 bits took 53.
        let (mut even, mut odd) = (0u128, 0u128);
        let mut chunks = bytes.chunks_exact(16);
        for chunk in &mut chunks {
            let word = |at: usize| u64::from_ne_bytes(*chunk[at..].first_chunk().expect("16 bytes"));
            even += u128::from(word(0));
            odd += u128::from(word(8));
        }
        let total = even + odd;
        let mut sum = fold(total as u64) + (total >> 64) as u64;
        let mut words = chunks.remainder().chunks_exact(2);
        for word in &mut words {
            sum += u64::from(u16::from_ne_bytes([word[0], word[1]]));
        }
        if let [last] = words.remainder() {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(fold(self.0) + fold(sum))
    }

    /// Adds a 16-bit number.
    #[must_use]
    #[inline]
    pub fn with_u16(self, number: u16) -> Self {
        Self(fold(self.0) + u64::from(u16::from_ne_bytes(number.to_be_bytes())))
    }

    /// The folded sum, not complemented, as it is left in a `CHECKSUM_PARTIAL` packet.
    #[inline]
    pub fn partial(self) -> [u8; 2] {
        let once = fold(self.0);
        let folded = (once & 0xffff) + (once >> 16);
        // Of 33 bits 18 are left, of these 17, and of these 16.
        let twice = (folded & 0xffff) + (folded >> 16);
        (((twice & 0xffff) + (twice >> 16)) as u16).to_ne_bytes()
    }

    /// The checksum, as it goes into the header.
    #[inline]
    pub fn finish(self) -> [u8; 2] {
        let [a, b] = self.partial();
        [!a, !b]
    }
}

/// Folds 64 bits to at most 33, so that many sums can be added without overflow.
const fn fold(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §4.1, word by word.
    fn reference(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u64;
        for word in bytes.chunks(2) {
            sum += u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0));
        }
        while sum >> 16 > 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().with(&bytes).partial(), [0xdd, 0xf2]);
    }

    #[test]
    fn full_words_do_not_overflow() {
        let bytes = vec![0xff; 65535];
        assert_eq!(Sum::default().with(&bytes).finish(), reference(&bytes));
    }

    proptest! {
        #[test]
        fn sums_agree(a in prop::collection::vec(any::<[u8; 2]>(), 0..40), b: Vec<u8>, number: u16) {
            let a = a.concat();
            let whole = [&a[..], &number.to_be_bytes(), &b].concat();
            let sum = Sum::default().with(&a).with_u16(number).with(&b);
            prop_assert_eq!(sum.finish(), reference(&whole));
        }
    }
}
