//! Which part of what a slice is given in its cluster falls to which of the nodes with its gateways. Pure.
//!
//! Each node says what part it uses and what it could use; all reckon with the same figures. A part that is too large is cut at
//! once, and one that is too small grows by no more than the others are seen to have left, so that the sum holds while it
//! moves. Nobody goes without: a node whose part is nothing could not show that it needs one.

use serde::{Deserialize, Serialize};

use crate::model::Flow;

/// All that a slice is given in its cluster, in thousandths.
pub const WHOLE: u16 = 1000;
/// What each node keeps.
const LEAST: u16 = 20;
/// What a node could use is said in steps of this, lest it changes all the time.
const STEP: u16 = 50;

/// A node's part of either flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    #[serde(rename = "e")]
    pub egress: Share,
    #[serde(rename = "i")]
    pub ingress: Share,
}

/// Of one flow, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share {
    /// What it keeps to.
    #[serde(rename = "u")]
    pub used: u16,
    /// What it could use.
    #[serde(rename = "w")]
    pub wanted: u16,
}

impl Default for Part {
    /// Alone.
    fn default() -> Self {
        Self::both(Share {
            used: WHOLE,
            wanted: WHOLE,
        })
    }
}

impl Part {
    const fn both(share: Share) -> Self {
        Self {
            egress: share,
            ingress: share,
        }
    }

    /// The even part of one of so many: of one who starts, and of one who has not said anything.
    pub fn even(nodes: usize) -> Self {
        let nodes = u16::try_from(nodes).unwrap_or(WHOLE).max(1);
        Self::both(Share {
            used: WHOLE / nodes,
            wanted: WHOLE,
        })
    }

    pub const fn share(&self, flow: Flow) -> Share {
        match flow {
            Flow::Egress => self.egress,
            Flow::Ingress => self.ingress,
        }
    }

    pub fn set(&mut self, flow: Flow, share: Share) {
        match flow {
            Flow::Egress => self.egress = share,
            Flow::Ingress => self.ingress = share,
        }
    }

    /// The part of a flow that it keeps to.
    pub const fn of(&self, flow: Flow) -> u16 {
        self.share(flow).used
    }
}

/// What a node could use that used `rate` of the `whole`, in any unit, and had frames waiting or not.
pub fn wanted(rate: u64, whole: u64, waiting: bool) -> u16 {
    if waiting || whole == 0 {
        return WHOLE;
    }
    // With room to grow.
    let thousandths = (u128::from(rate) * 5 / 4 * u128::from(WHOLE)).div_ceil(u128::from(whole));
    let thousandths = u16::try_from(thousandths).unwrap_or(WHOLE);
    thousandths.next_multiple_of(STEP).clamp(LEAST, WHOLE)
}

/// What a node with `own` is to use, among `others`.
pub fn next(own: Share, others: &[Share]) -> u16 {
    let target = target(own.wanted, others);
    if target <= own.used {
        return target;
    }
    let theirs: u32 = others.iter().map(|other| u32::from(other.used)).sum();
    let left = u32::from(WHOLE).saturating_sub(theirs);
    let left = u16::try_from(left).unwrap_or(WHOLE);
    target.min(left.max(own.used))
}

/// The fair part of one who wants `own`: nobody gets more than he wants while another wants more than he gets, and what is
/// left over is spread evenly.
fn target(own: u16, others: &[Share]) -> u16 {
    let mut wanted: Vec<u16> = others.iter().map(|other| other.wanted).chain([own]).collect();
    wanted
        .iter_mut()
        .for_each(|wanted| *wanted = (*wanted).max(LEAST));
    let own = own.max(LEAST);
    wanted.sort_unstable();
    let (mut left, mut nodes) = (WHOLE, wanted.len() as u16);
    let mut got = 0;
    for wanted in wanted {
        let fair = left / nodes;
        let gets = wanted.min(fair);
        left -= gets;
        nodes -= 1;
        if wanted == own {
            got = gets;
        }
    }
    let spread = left / (others.len() as u16 + 1);
    (got + spread).min(WHOLE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(used: u16, wanted: u16) -> Share {
        Share { used, wanted }
    }

    #[test]
    fn who_wants_gets_what_others_leave() {
        assert_eq!(next(share(500, 1000), &[share(500, 1000)]), 500);
        // It is cut at once, and grows when the other was.
        assert_eq!(next(share(500, 20), &[share(500, 1000)]), 20);
        assert_eq!(next(share(500, 1000), &[share(500, 20)]), 500);
        assert_eq!(next(share(500, 1000), &[share(20, 20)]), 980);
        assert_eq!(next(share(980, 1000), &[share(20, 1000)]), 500);
        assert_eq!(next(share(1000, 20), &[]), 1000, "alone it has all");
    }

    #[test]
    fn what_was_used_says_what_is_wanted() {
        assert_eq!(wanted(0, 100, false), LEAST);
        assert_eq!(wanted(1, 100, false), 50, "in steps");
        assert_eq!(wanted(40, 100, false), 500);
        assert_eq!(wanted(1, 100, true), WHOLE);
        assert_eq!(wanted(100, 100, false), WHOLE);
    }

    proptest! {
        /// Whatever they want, and however often they look at each other: together they never use more than there is, and in
        /// the end each has its fair part.
        #[test]
        fn the_sum_holds(wants in prop::collection::vec(prop::collection::vec(0u16..=1000, 2..6), 1..4), turns in any::<u64>()) {
            let nodes = wants[0].len();
            let mut shares = vec![share(WHOLE / nodes as u16, WHOLE); nodes];
            let mut turns = turns;
            for want in &wants {
                for (share, wanted) in shares.iter_mut().zip(want) {
                    share.wanted = *wanted;
                }
                for _ in 0..40 {
                    turns = turns.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let who = (turns >> 33) as usize % nodes;
                    let mut others = shares.clone();
                    let own = others.remove(who);
                    shares[who].used = next(own, &others);
                    let sum: u32 = shares.iter().map(|share| u32::from(share.used)).sum();
                    prop_assert!(sum <= u32::from(WHOLE), "{shares:?}");
                }
            }
            for who in 0..nodes {
                let mut others = shares.clone();
                let own = others.remove(who);
                prop_assert!(next(own, &others) >= LEAST);
            }
        }
    }
}
