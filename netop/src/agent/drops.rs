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
    counted: BTreeMap<(Name, String), Counted>,
    passages: BTreeMap<Family, Passage>,
}

/// What a counter said, and whose it is.
struct Counted {
    slice: String,
    packets: u64,
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
                filter::PASSAGE_TABLE => None,
                filter::HOST_TABLE => Some(&""),
                _ => slices.get(table),
            };
            let Some(slice) = slice else { continue };
            let counted = self
                .counted
                .entry((table.clone(), counter.clone()))
                .or_insert_with(|| Counted {
                    slice: (*slice).to_owned(),
                    packets: 0,
                });
            // A table that was written anew counts from zero.
            let more = packets.checked_sub(counted.packets).unwrap_or(*packets);
            counted.packets = *packets;
            count(slice, counter, more);
        }
        let gone = self.counted.extract_if(.., |key, _| !counters.contains_key(key));
        for ((_, counter), counted) in gone {
            // An error says that there is no such series.
            let _ = metrics
                .dropped_frames
                .remove_label_values(&[counted.slice.as_str(), counter.as_str()]);
        }
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
    use prometheus::Registry;

    use super::*;

    #[test]
    fn a_slice_that_ends_takes_its_series_with_it() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry);
        let table = Name::new("weft_a");
        let slices = BTreeMap::from([(table.clone(), "shop")]);
        let spoofed = |packets| BTreeMap::from([((table.clone(), "spoofed".to_owned()), packets)]);
        let mut drops = Drops::default();
        let series = || {
            let families = registry.gather();
            let family = families
                .iter()
                .find(|family| family.name() == "weft_netop_dropped_frames_total");
            let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
            metrics
                .iter()
                .map(|metric| metric.get_counter().get_value())
                .collect::<Vec<_>>()
        };
        drops.take(&spoofed(3), &slices, &metrics);
        drops.take(&spoofed(5), &slices, &metrics);
        assert_eq!(series(), [5.0]);
        drops.take(&spoofed(2), &slices, &metrics);
        assert_eq!(series(), [7.0], "its table was written anew");
        // Its objects go before what is in the kernel.
        drops.take(&spoofed(2), &BTreeMap::new(), &metrics);
        assert_eq!(series(), [7.0]);
        drops.take(&BTreeMap::new(), &BTreeMap::new(), &metrics);
        assert!(series().is_empty());
    }

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
