//! Frames that passed or were dropped on this node, from counters that only grow and begin anew with the agent.

use std::collections::BTreeMap;

use slice_datapath::Direction;

use crate::{kernel::Observation, metrics::Metrics, programs::Counter};

/// Why packets to the ports between nodes are dropped that come from elsewhere.
const UNDERLAY: &str = "underlay";

/// What the counters showed last.
#[derive(Default)]
pub(super) struct Frames {
    counted: BTreeMap<Counter, Counted>,
    underlay: u64,
}

struct Counted {
    slice: String,
    frames: u64,
}

impl Frames {
    /// Takes what the counters show now; `slices` are the slices of their numbers.
    pub(super) fn take(&mut self, seen: &Observation, slices: &BTreeMap<u32, &str>, metrics: &Metrics) {
        for (counter, frames) in &seen.counters {
            let slice = match counter.slice {
                0 => Some(&""),
                number => slices.get(&number),
            };
            let counted = match (self.counted.get_mut(counter), slice) {
                (Some(counted), _) => counted,
                (None, Some(slice)) => self.counted.entry(*counter).or_insert_with(|| Counted {
                    slice: (*slice).to_owned(),
                    frames: 0,
                }),
                (None, None) => continue,
            };
            let more = since(&mut counted.frames, *frames);
            series(metrics, counter, &counted.slice, |series| series.inc_by(more));
        }
        for (counter, counted) in self
            .counted
            .extract_if(.., |counter, _| !seen.counters.contains_key(counter))
        {
            let (slice, direction) = (counted.slice.as_str(), counter.direction.label());
            // An error says that there is no such series.
            let _ = match counter.reason {
                Some(reason) => {
                    metrics
                        .dropped_frames
                        .remove_label_values(&[slice, direction, reason.label()])
                }
                None => metrics.passed_frames.remove_label_values(&[slice, direction]),
            };
        }
        if let Some(packets) = seen.underlay_drops {
            let more = since(&mut self.underlay, packets);
            let labels = ["", Direction::FromNode.label(), UNDERLAY];
            metrics.dropped_frames.with_label_values(&labels).inc_by(more);
        }
    }
}

fn series(metrics: &Metrics, counter: &Counter, slice: &str, change: impl FnOnce(prometheus::IntCounter)) {
    let direction = counter.direction.label();
    change(match counter.reason {
        Some(reason) => metrics
            .dropped_frames
            .with_label_values(&[slice, direction, reason.label()]),
        None => metrics.passed_frames.with_label_values(&[slice, direction]),
    });
}

/// How many more there are than last time; what begins anew counts from zero.
fn since(last: &mut u64, now: u64) -> u64 {
    let more = now.checked_sub(*last).unwrap_or(now);
    *last = now;
    more
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use slice_datapath::Reason;

    use super::*;

    #[test]
    fn a_slice_that_ends_takes_its_series_with_it() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry);
        let slices = BTreeMap::from([(7, "shop")]);
        let spoofed = |frames| {
            let counter = Counter {
                slice: 7,
                direction: Direction::FromPod,
                reason: Some(Reason::Spoofed),
            };
            Observation {
                counters: BTreeMap::from([(counter, frames)]),
                ..Observation::default()
            }
        };
        let mut frames = Frames::default();
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
        frames.take(&spoofed(3), &slices, &metrics);
        frames.take(&spoofed(5), &slices, &metrics);
        assert_eq!(series(), [5.0]);
        frames.take(&spoofed(2), &slices, &metrics);
        assert_eq!(series(), [7.0], "its entry was made anew");
        // Its objects go before what is in the kernel.
        frames.take(&spoofed(2), &BTreeMap::new(), &metrics);
        assert_eq!(series(), [7.0]);
        frames.take(&Observation::default(), &BTreeMap::new(), &metrics);
        assert!(series().is_empty());
    }
}
