//! Exactly-once counting: which numbers of which sender arrived, and how often.

use std::collections::BTreeMap;

use serde::Serialize;

/// The first bytes of every counted payload, so that strangers' traffic is not counted.
const MAGIC: &[u8; 8] = b"weftcnt1";

/// A payload that carries a sequence number, padded with a pattern to `size` bytes.
pub(super) fn payload(number: u32, size: usize) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(number.to_be_bytes());
    let filler = (bytes.len()..size.max(bytes.len())).map(|index| (index % 251) as u8);
    bytes.extend(filler);
    bytes
}

/// The number in a payload of ours.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    let rest = payload.strip_prefix(MAGIC)?;
    Some(u32::from_be_bytes(*rest.first_chunk()?))
}

/// What arrived, by sender.
#[derive(Debug, Default)]
pub(super) struct Count {
    seen: BTreeMap<String, BTreeMap<u32, u32>>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct FromSender {
    /// Different numbers.
    pub(super) unique: usize,
    /// Arrivals beyond the first of each number.
    pub(super) duplicates: u32,
}

impl Count {
    pub(super) fn note(&mut self, sender: String, number: u32) {
        *self.seen.entry(sender).or_default().entry(number).or_default() += 1;
    }

    pub(super) fn unique(&self) -> usize {
        self.seen.values().map(BTreeMap::len).sum()
    }

    pub(super) fn by_sender(&self) -> BTreeMap<&str, FromSender> {
        let summary = |numbers: &BTreeMap<u32, u32>| FromSender {
            unique: numbers.len(),
            duplicates: numbers.values().map(|times| times - 1).sum(),
        };
        self.seen
            .iter()
            .map(|(sender, numbers)| (sender.as_str(), summary(numbers)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_survives_the_wire_and_strangers_have_none() {
        assert_eq!(number(&payload(7, 64)), Some(7));
        assert_eq!(payload(7, 64).len(), 64);
        assert_eq!(number(b"something else entirely"), None);
    }

    #[test]
    fn second_arrivals_are_duplicates() {
        let mut count = Count::default();
        for number in [1, 2, 2, 2, 3] {
            count.note("a".into(), number);
        }
        assert_eq!(
            count.by_sender()["a"],
            FromSender {
                unique: 3,
                duplicates: 2
            }
        );
    }
}
