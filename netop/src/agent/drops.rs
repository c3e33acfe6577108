//! Frames that were dropped on this node, from counters that only grow and begin anew when their table is written anew.

use std::collections::BTreeMap;

use crate::{
    metrics::Metrics,
    model::{Name, filter, filter::Family},
};

/// Frames of which none passed before it is said that none does. A single one may be between the two counters.
const NONE_OF: u64 = 3;
/// The reason for frames that neither Weft's filters nor the bridge dropped.
const FIREWALL: &str = "firewall";

/// What the counters said last.
#[derive(Default)]
pub(super) struct Drops {
    counted: BTreeMap<(Name, String), u64>,
    passages: BTreeMap<Family, Passage>,
}

impl Drops {
    /// Takes what the counters say now; `slices` are those of the tables.
    pub(super) fn take(
        &mut self,
        counters: &BTreeMap<(Name, String), u64>,
        slices: &BTreeMap<Name, &str>,
        metrics: &Metrics,
    ) {
        let count = |slice: &str, reason: &str, more: u64| {
            metrics
                .dropped_frames
                .with_label_values(&[slice, reason])
                .inc_by(more);
        };
        for ((table, counter), packets) in counters {
            let slice = match table.as_str() {
                filter::PASSAGE_TABLE => continue,
                filter::HOST_TABLE => Some(&""),
                _ => slices.get(table),
            };
            let last = self.counted.insert((table.clone(), counter.clone()), *packets);
            let last = last.filter(|last| last <= packets).unwrap_or(0);
            if let Some(slice) = slice {
                count(slice, counter, packets - last);
            }
        }
        self.counted.retain(|key, _| counters.contains_key(key));
        let passage = Name::new(filter::PASSAGE_TABLE);
        for family in Family::ALL {
            let now = |counter: &str| counters.get(&(passage.clone(), counter.to_owned()));
            if let (Some(offered), Some(passed)) =
                (now(family.offered_counter()), now(family.passed_counter()))
            {
                let more = self.passages.entry(family).or_default().look(*offered, *passed);
                count("", FIREWALL, more);
            }
        }
    }

    /// What the node's own IP filters do to the frames of slices, where they let none pass.
    pub(super) fn obstacle(&self) -> Option<String> {
        let stops = |family| {
            let passage = self.passages.get(&family);
            passage.is_some_and(|passage| passage.unpassed >= NONE_OF)
        };
        let (family, program) = match (stops(Family::Ipv4), stops(Family::Ipv6)) {
            (false, false) => return None,
            (true, false) => ("IPv4", "iptables"),
            (false, true) => ("IPv6", "ip6tables"),
            (true, true) => ("IPv4 and IPv6", "iptables (and ip6tables)"),
        };
        Some(format!(
            "the node's own IP filters drop every {family} frame between the ports of a slice's bridge: a FORWARD policy \
             or rule, as Docker, firewalld and ufw bring them; let the bridges through: {program} -I FORWARD -i wb-+ -o \
             wb-+ -j ACCEPT"
        ))
    }
}

/// Frames of one family on their way through the node's own IP filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Passage {
    offered: u64,
    passed: u64,
    lost: u64,
    /// Offered since one passed.
    unpassed: u64,
}

impl Passage {
    /// Takes what the two counters say now, and returns how many more frames were lost.
    ///
    /// The second counter is read after the first, so frames that pass in between hide as many that were lost: those
    /// are counted once fewer pass.
    fn look(&mut self, offered: u64, passed: u64) -> u64 {
        if offered < self.offered || passed < self.passed {
            // The table was written anew.
            *self = Self {
                unpassed: self.unpassed,
                ..Self::default()
            };
        }
        if passed > self.passed {
            self.unpassed = 0;
        } else {
            self.unpassed += offered - self.offered;
        }
        let lost = offered.saturating_sub(passed).max(self.lost);
        let more = lost - self.lost;
        *self = Self {
            offered,
            passed,
            lost,
            ..*self
        };
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_between_the_looks_at_two_counters_is_not_lost() {
        let mut passage = Passage::default();
        assert_eq!(passage.look(100, 104), 0, "four passed in between");
        assert_eq!(passage.look(110, 104), 6);
        assert_eq!(passage.look(110, 104), 0, "said once");
        assert_eq!(passage.look(120, 120), 0, "six are hidden");
        assert_eq!(passage.look(127, 120), 1);
        assert_eq!(passage.unpassed, 7);
        assert_eq!(passage.look(2, 1), 1, "the table is new");
        assert_eq!(passage.unpassed, 0);
    }
}
