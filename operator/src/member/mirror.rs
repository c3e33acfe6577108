//! Whether what the hub says of a slice becomes what the cluster's own processes work from. Pure.
//!
//! The mirror is what everything here follows from, also while the hub is away. So what the hub desires is taken where it takes
//! nothing from a pod that runs, and refused with a sentence where it would: a hub that was built anew, or restored from an
//! old backup, may not know yet what is in use here.

use std::collections::BTreeMap;

use slice_crds::{IndexRange, v1alpha1::SliceSpec};

/// What becomes of the hub's desired state.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Take(Box<SliceSpec>),
    /// It is older than what is here: a watch that lags behind.
    Stale,
    Refuse(String),
}

/// What there is already.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// The slice, where it is.
    pub spec: Option<&'a SliceSpec>,
    /// The blocks of its nodes.
    pub used: &'a [IndexRange],
    /// VNIs of the other slices.
    pub vnis: &'a BTreeMap<u32, String>,
}

/// Compares what is here with what is `desired`.
pub fn judge(there: &Here<'_>, desired: SliceSpec) -> Verdict {
    let Some(here) = there.spec else {
        return match there.vnis.get(&desired.vni) {
            Some(other) => Verdict::Refuse(format!(
                "the hub has it as VNI {}, which slice {other} has here from another hub: pods of both would reach each other",
                desired.vni
            )),
            None => Verdict::Take(Box::new(desired)),
        };
    };
    if let (Some(ours), Some(theirs)) = (&here.source, &desired.source)
        && ours.hub == theirs.hub
        && theirs.revision < ours.revision
    {
        return Verdict::Stale;
    }
    let text = |spec: &SliceSpec| {
        let subnets: Vec<String> = spec.subnets.iter().map(ToString::to_string).collect();
        format!("VNI {} with {}", spec.vni, subnets.join(", "))
    };
    if (here.vni, &here.subnets, here.block_size) != (desired.vni, &desired.subnets, desired.block_size) {
        return Verdict::Refuse(format!(
            "the hub has it as {}, and pods here have it as {}: what is here stays and reaches nobody new; `slicectl leave` \
             takes it down, and the cluster can join again",
            text(&desired),
            text(here)
        ));
    }
    let lost = there
        .used
        .iter()
        .find(|block| !desired.ranges.iter().any(|range| range.covers(**block)));
    if let Some(lost) = lost {
        return Verdict::Refuse(format!(
            "the hub does not know that the indices {lost} are used here: what is here stays until it does; see `kubectl \
             describe clusters.weft.dev` on the hub"
        ));
    }
    Verdict::Take(Box::new(desired))
}

#[cfg(test)]
mod tests {
    use slice_crds::v1alpha1::{AttachMode, SliceSource};

    use super::*;

    fn spec(vni: u32, ranges: &[(u32, u32)], hub: &str, revision: u64) -> SliceSpec {
        SliceSpec {
            vni,
            subnets: vec!["10.80.0.0/16".parse().unwrap()],
            mtu: 1370,
            largest_mtu: None,
            block_size: 64,
            cluster: "a".into(),
            cluster_number: 1,
            ranges: ranges
                .iter()
                .map(|(start, size)| IndexRange::new(*start, *size))
                .collect(),
            releasing: vec![],
            peers: vec![],
            namespaces: vec![],
            join: None,
            attach: AttachMode::Required,
            gateway: Default::default(),
            frames: None,
            broadcast: Default::default(),
            dscp: 0,
            shaping: None,
            source: Some(SliceSource {
                hub: hub.into(),
                revision,
            }),
        }
    }

    fn judged(spec: Option<&SliceSpec>, desired: SliceSpec, used: &[IndexRange]) -> Verdict {
        let vnis = BTreeMap::from([(5000, "bank".to_owned())]);
        judge(
            &Here {
                spec,
                used,
                vnis: &vnis,
            },
            desired,
        )
    }

    #[test]
    fn two_slices_never_share_a_vni() {
        let verdict = judged(None, spec(5000, &[(0, 128)], "h2", 1), &[]);
        assert!(
            matches!(&verdict, Verdict::Refuse(why) if why.contains("VNI 5000, which slice bank has here"))
        );
    }

    #[test]
    fn what_takes_nothing_away_is_taken() {
        let here = spec(4097, &[(0, 128)], "h1", 3);
        let used = [IndexRange::new(64, 64)];
        let desired = spec(4097, &[(64, 64), (256, 64)], "h1", 4);
        assert_eq!(
            judged(Some(&here), desired.clone(), &used),
            Verdict::Take(Box::new(desired.clone()))
        );
        assert_eq!(
            judged(None, desired.clone(), &[]),
            Verdict::Take(Box::new(desired))
        );
        // From another hub that has taken it over.
        let other = spec(4097, &[(0, 128)], "h2", 1);
        assert!(matches!(judged(Some(&here), other, &used), Verdict::Take(_)));
    }

    #[test]
    fn an_older_revision_of_the_same_hub_is_stale() {
        let here = spec(4097, &[(0, 128)], "h1", 3);
        assert_eq!(
            judged(Some(&here), spec(4097, &[(0, 256)], "h1", 2), &[]),
            Verdict::Stale
        );
    }

    #[test]
    fn nothing_is_taken_from_a_pod_that_runs() {
        let here = spec(4097, &[(0, 128)], "h1", 3);
        for (desired, words) in [
            (
                spec(4098, &[(0, 128)], "h2", 9),
                "the hub has it as VNI 4098 with 10.80.0.0/16",
            ),
            (
                spec(4097, &[(256, 128)], "h2", 9),
                "the indices 64+64 are used here",
            ),
        ] {
            let verdict = judged(Some(&here), desired, &[IndexRange::new(64, 64)]);
            assert!(
                matches!(&verdict, Verdict::Refuse(why) if why.contains(words)),
                "{verdict:?}"
            );
        }
    }
}
