//! What the shaper carries, twice a second: what is counted, and which part of what a slice is given this node takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use slice_crds::{
    Rate, annotations,
    conditions::{Verdict, reason},
};

use super::Agent;
use crate::{
    classes::{self, Owner},
    desired,
    kernel::Kernel,
    liveness::Adjacency,
    metrics::Metrics,
    model::{Carried, ClassId, Flow},
    shares::{self, Part, Share},
};

/// Of a guarantee that is met, at least so many thousandths are there.
const MET: u64 = 950;
/// Whether what slices are guaranteed is there.
pub const GUARANTEES: &str = "GuaranteesFit";

/// What was measured last.
#[derive(Default)]
pub(super) struct Shaping {
    /// Which part of what a slice is given falls to this node, by slice.
    pub(super) parts: BTreeMap<String, Part>,
    at: Option<Instant>,
    carried: BTreeMap<(Owner, Flow), Carried>,
}

/// What a class did since it was measured last.
#[derive(Clone, Copy, Debug, Default)]
struct Lately {
    /// Bits a second.
    rate: u64,
    /// It had more than it could send.
    waiting: bool,
}

impl Shaping {
    /// Takes what classes have carried, and counts it.
    fn take<'a>(
        &mut self,
        now: Instant,
        owners: impl Iterator<Item = (&'a Owner, Flow, ClassId)>,
        seen: &BTreeMap<ClassId, Carried>,
        metrics: &Metrics,
    ) -> BTreeMap<(Owner, Flow), Lately> {
        let elapsed = self.at.map_or(Duration::ZERO, |at| now.duration_since(at));
        let mut lately = BTreeMap::new();
        let mut carried = BTreeMap::new();
        for (owner, flow, id) in owners {
            let Some(seen) = seen.get(&id) else { continue };
            let key = (owner.clone(), flow);
            let before = self.carried.get(&key).copied().unwrap_or_default();
            let more = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
            let (bytes, dropped) = (more(before.bytes, seen.bytes), more(before.dropped, seen.dropped));
            let labels = labels(owner, flow);
            metrics.class_bytes.with_label_values(&labels).inc_by(bytes);
            metrics.class_dropped.with_label_values(&labels).inc_by(dropped);
            let micros = elapsed.as_micros().max(1);
            let of_class = Lately {
                rate: u64::try_from(u128::from(bytes) * 8_000_000 / micros).unwrap_or(u64::MAX),
                waiting: dropped > 0 || seen.backlog > 0 && before.backlog > 0,
            };
            lately.insert(key.clone(), of_class);
            carried.insert(key, *seen);
        }
        let of = |carried: &BTreeMap<(Owner, Flow), Carried>| -> BTreeSet<_> {
            let keys = carried.keys();
            keys.map(|(owner, flow)| labels(owner, *flow).map(str::to_owned))
                .collect()
        };
        for labels in of(&self.carried).difference(&of(&carried)) {
            // An error says that there is no such series.
            let _ = metrics.class_bytes.remove_label_values(labels);
            let _ = metrics.class_dropped.remove_label_values(labels);
        }
        metrics.class_backlog.reset();
        for ((owner, flow), carried) in &carried {
            let gauge = metrics.class_backlog.with_label_values(&labels(owner, *flow));
            gauge.add(i64::try_from(carried.backlog).unwrap_or(i64::MAX));
        }
        (self.carried, self.at) = (carried, Some(now));
        lately
    }
}

/// Of a class's series; those of all attachments of a slice are one, since nobody knows how many there are.
fn labels(owner: &Owner, flow: Flow) -> [&str; 3] {
    let of = match owner {
        Owner::Slice(_) => "slice",
        Owner::Attachment(..) => "attachments",
    };
    [owner.slice(), flow.label(), of]
}

impl<K: Kernel> Agent<K> {
    /// Whether anything is shaped, or was when it was measured last.
    pub fn is_shaping(&self) -> bool {
        !self.desired.classes.is_empty() || !self.shaping.carried.is_empty()
    }

    /// Measures, and takes the part that follows; whether it is another one.
    pub(super) async fn measure(&mut self) -> bool {
        let seen = match self.kernel.carried().await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the shaper could not be read");
                return false;
            }
        };
        let now = Instant::now();
        let numbers = self.made.numbers().iter();
        let lately = self.shaping.take(now, numbers, &seen, &self.metrics);
        let mut parts = BTreeMap::new();
        self.metrics.guarantee_met.reset();
        for (slice, segment) in &self.decision.node.segments {
            let Some(shaping) = segment.shaping.filter(|_| !segment.taps.is_empty()) else {
                continue;
            };
            let others = self.others(segment.vni);
            let before = self.shaping.parts.get(slice).copied();
            let mut part = before.unwrap_or_else(|| Part::even(others.len() + 1));
            let whole = shaping.ceiling_mbps.or(shaping.guaranteed_mbps);
            for flow in Flow::ALL {
                let key = (Owner::Slice(slice.clone()), flow);
                let lately = lately.get(&key).copied().unwrap_or_default();
                if let Some(guaranteed) = classes::guaranteed(&shaping, &part, flow) {
                    let met = !lately.waiting || lately.rate >= guaranteed.0 / 1000 * MET;
                    let gauge = &self.metrics.guarantee_met;
                    gauge.with_label_values(&[slice, flow.label()]).set(met.into());
                }
                let Some(whole) = whole else { continue };
                let wanted = shares::wanted(lately.rate, Rate::from_mbps(whole).0, lately.waiting);
                let used = part.of(flow);
                let others: Vec<Share> = others.iter().map(|other| other.share(flow)).collect();
                let used = shares::next(Share { used, wanted }, &others);
                part.set(flow, Share { used, wanted });
            }
            parts.insert(slice.clone(), part);
        }
        let changed = parts != self.shaping.parts;
        self.shaping.parts = parts;
        changed
    }

    /// What other nodes with gateways of a slice say of their part.
    fn others(&self, vni: u32) -> Vec<Part> {
        let mut parts = BTreeMap::new();
        let watched = self.decision.watched.iter();
        let nodes: Vec<_> = watched
            .filter(|(_, gateways)| gateways.iter().any(|(of, _)| *of == vni))
            .collect();
        let all = nodes.len() + 1;
        for (node, gateways) in nodes {
            for gateway in gateways.iter().filter(|(of, _)| *of == vni) {
                let part = match self.view.get(&(*node, *gateway)) {
                    Some(Adjacency::Reports(health)) => Some(health.part.unwrap_or_else(|| Part::even(all))),
                    None => Some(Part::even(all)),
                    // Who is not there or not alive carries nothing.
                    Some(Adjacency::Absent | Adjacency::Silent) => None,
                };
                parts.extend(part.map(|part| (*node, part)));
            }
        }
        parts.into_values().collect()
    }

    /// Whether the node has what slices are guaranteed that have a gateway here, also when it is the last that carries;
    /// `None` where none is guaranteed anything.
    pub(super) fn guarantees(&self) -> Option<Verdict> {
        let mut wish = desired::wish(&self.decision.node);
        let parts = wish.slices.values_mut().map(|(_, part)| part);
        parts.for_each(|part| *part = Part::default());
        let promised = classes::promised(&wish);
        let promised = promised.values().copied().max().filter(|rate| rate.0 > 0)?;
        let annotated = self
            .world
            .node
            .as_ref()
            .and_then(|node| node.spec.uplink.as_ref());
        let no = |reason, text| Some(Verdict::no(GUARANTEES, reason, text));
        if let Some(Err(error)) = annotated.map(|text| text.parse::<Rate>()) {
            return no(
                reason::UPLINK_UNKNOWN,
                format!("annotation {} of this Node: {error}", annotations::UPLINK),
            );
        }
        match wish.uplink {
            None => no(
                reason::UPLINK_UNKNOWN,
                format!(
                    "slices are guaranteed {promised}bit/s here, and nothing says what the node has to other clusters: its \
                     interface does not tell its speed; say it with `kubectl annotate node {} {}=1G`",
                    self.node,
                    annotations::UPLINK
                ),
            ),
            Some(uplink) if uplink < promised => no(
                reason::OVERCOMMITTED,
                format!(
                    "slices are guaranteed {promised}bit/s here and the node has {uplink}bit/s to other clusters, so each gets \
                     less in proportion: lower spec.qos of some, give them more gateway nodes, or say what the node really has \
                     with `kubectl annotate node {} {}=10G`",
                    self.node,
                    annotations::UPLINK
                ),
            ),
            Some(uplink) => Some(Verdict::yes(
                GUARANTEES,
                reason::GUARANTEED,
                format!("slices are guaranteed {promised}bit/s of {uplink}bit/s"),
            )),
        }
    }
}
