//! Who has which index of this node's blocks. Pure: time comes in as an argument.
//!
//! An index that is given back rests for [`REST`] before another pod gets it, so that nobody who still sends to the
//! old pod reaches the new one; the same pod gets it back at once. Next-fit: the search goes on where it last ended, which spares the resting ones.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use slice_crds::{IndexRange, Subnets};

/// How long an index stays unused after its pod.
pub const REST: SignedDuration = SignedDuration::from_mins(10);

/// The pod that has an index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// What one slice's indices are doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub held: BTreeMap<u32, Holder>,
    pub resting: BTreeMap<u32, Rest>,
    /// The index given out last.
    pub last: u32,
}

/// An index that was given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    pub since: Timestamp,
    /// UID of the pod that had it.
    pub uid: String,
}

/// All slices of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub pages: BTreeMap<String, Page>,
}

/// Where a slice's indices on this node come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub subnets: Subnets,
    pub blocks: Vec<IndexRange>,
}

/// How much is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Indices that an attachment may have, in all blocks.
    pub usable: u32,
    pub held: u32,
    /// Free and rested.
    pub free: u32,
}

/// No index is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "all {} indices of this node's blocks are taken ({} by pods, {} rest for {} minutes after a pod that left): \
     the cluster operator adds a block within seconds; where it cannot, the slice's subnet is too small",
    usage.usable, usage.held, usage.usable - usage.held - usage.free, REST.as_mins()
)]
pub struct Exhausted {
    pub usage: Usage,
}

impl Source {
    /// Every index that an attachment may have.
    fn indices(&self) -> impl Iterator<Item = u32> {
        self.blocks
            .iter()
            .flat_map(|block| block.indices())
            .filter(|index| self.subnets.usable(*index))
    }
}

impl Rest {
    fn lasts(&self, now: Timestamp) -> bool {
        now.duration_since(self.since) < REST
    }
}

impl Page {
    fn index_of(&self, uid: &str) -> Option<u32> {
        self.held
            .iter()
            .find(|(_, holder)| holder.uid == uid)
            .map(|(index, _)| *index)
    }

    fn is_free(&self, index: u32, now: Timestamp) -> bool {
        !self.held.contains_key(&index) && !self.resting.get(&index).is_some_and(|rest| rest.lasts(now))
    }
}

impl Ledger {
    pub fn index_of(&self, slice: &str, uid: &str) -> Option<u32> {
        self.pages.get(slice)?.index_of(uid)
    }

    /// The index that a pod has, or a new one.
    ///
    /// # Errors
    /// Where none is left.
    pub fn allocate(
        &mut self,
        slice: &str,
        holder: Holder,
        source: &Source,
        now: Timestamp,
    ) -> Result<u32, Exhausted> {
        let page = self.pages.entry(slice.to_owned()).or_default();
        if let Some(index) = page.index_of(&holder.uid) {
            return Ok(index);
        }
        let free = |index: &u32| page.is_free(*index, now);
        let own = (page.resting.iter())
            .find(|(_, rest)| rest.uid == holder.uid)
            .map(|(index, _)| *index);
        let own = own.filter(|own| source.indices().any(|index| index == *own));
        let next = || source.indices().filter(free).find(|index| *index > page.last);
        let Some(index) = own.or_else(next).or_else(|| source.indices().find(free)) else {
            return Err(Exhausted {
                usage: self.usage(slice, source, now),
            });
        };
        page.resting.remove(&index);
        page.last = index;
        page.held.insert(index, holder);
        Ok(index)
    }

    /// Writes down an index that a pod was found to have. What others had it for, or it had before, is forgotten.
    pub fn adopt(&mut self, slice: &str, holder: Holder, index: u32) {
        let page = self.pages.entry(slice.to_owned()).or_default();
        page.held.retain(|_, held| held.uid != holder.uid);
        page.resting.remove(&index);
        page.held.insert(index, holder);
    }

    /// Gives back every index whose holder `keeps` does not want.
    pub fn retain(&mut self, now: Timestamp, keeps: impl Fn(&str, &Holder) -> bool) {
        for (slice, page) in &mut self.pages {
            page.resting.retain(|_, rest| rest.lasts(now));
            let resting = &mut page.resting;
            page.held.retain(|index, holder| {
                let stays = keeps(slice, holder);
                if !stays {
                    resting.insert(
                        *index,
                        Rest {
                            since: now,
                            uid: holder.uid.clone(),
                        },
                    );
                }
                stays
            });
        }
        self.pages
            .retain(|_, page| !page.held.is_empty() || !page.resting.is_empty());
    }

    pub fn usage(&self, slice: &str, source: &Source, now: Timestamp) -> Usage {
        let none = Page::default();
        let page = self.pages.get(slice).unwrap_or(&none);
        let mut usage = Usage {
            held: u32::try_from(page.held.len()).unwrap_or(u32::MAX),
            ..Usage::default()
        };
        for index in source.indices() {
            usage.usable += 1;
            usage.free += u32::from(page.is_free(index, now));
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn source(blocks: &[(u32, u32)]) -> Source {
        Source {
            subnets: Subnets::new(&["10.80.0.0/26".parse().unwrap()]).unwrap(),
            blocks: blocks
                .iter()
                .map(|(start, size)| IndexRange::new(*start, *size))
                .collect(),
        }
    }

    fn pod(n: u32) -> Holder {
        Holder {
            uid: format!("uid-{n}"),
            namespace: "cart".into(),
            name: format!("web-{n}"),
        }
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    #[test]
    fn a_pod_keeps_its_index() {
        let (mut ledger, source) = (Ledger::default(), source(&[(8, 4)]));
        let first = ledger.allocate("shop", pod(1), &source, at(0)).unwrap();
        assert_eq!(ledger.allocate("shop", pod(1), &source, at(1)), Ok(first));
        assert_eq!(ledger.index_of("shop", "uid-1"), Some(first));
        assert_eq!(ledger.index_of("bank", "uid-1"), None);
    }

    #[test]
    fn an_index_rests_before_the_next_pod_gets_it() {
        let (mut ledger, source) = (Ledger::default(), source(&[(8, 2)]));
        assert_eq!(ledger.allocate("shop", pod(1), &source, at(0)), Ok(8));
        assert_eq!(ledger.allocate("shop", pod(2), &source, at(0)), Ok(9));
        ledger.retain(at(1), |_, holder| holder.uid != "uid-1");
        let exhausted = ledger.allocate("shop", pod(3), &source, at(10)).unwrap_err();
        assert_eq!(
            exhausted.usage,
            Usage {
                usable: 2,
                held: 1,
                free: 0
            }
        );
        assert!(exhausted.to_string().contains("all 2 indices"), "{exhausted}");
        assert_eq!(ledger.allocate("shop", pod(3), &source, at(11)), Ok(8));
    }

    #[test]
    fn a_pod_that_comes_back_gets_its_index_back() {
        let (mut ledger, source) = (Ledger::default(), source(&[(8, 2)]));
        assert_eq!(ledger.allocate("shop", pod(1), &source, at(0)), Ok(8));
        assert_eq!(ledger.allocate("shop", pod(2), &source, at(0)), Ok(9));
        ledger.retain(at(1), |_, _| false);
        assert_eq!(ledger.allocate("shop", pod(2), &source, at(1)), Ok(9));
        assert!(ledger.allocate("shop", pod(3), &source, at(1)).is_err());
    }

    #[test]
    fn reserved_addresses_are_never_given() {
        let (mut ledger, source) = (Ledger::default(), source(&[(0, 2), (62, 2)]));
        let given: Vec<_> = (0..3)
            .map(|n| ledger.allocate("shop", pod(n), &source, at(0)).ok())
            .collect();
        assert_eq!(given, [Some(1), Some(62), None]);
    }

    #[test]
    fn what_a_pod_was_found_with_wins() {
        let (mut ledger, source) = (Ledger::default(), source(&[(8, 4)]));
        ledger.allocate("shop", pod(1), &source, at(0)).unwrap();
        ledger.adopt("shop", pod(1), 11);
        assert_eq!(ledger.index_of("shop", "uid-1"), Some(11));
        assert_eq!(ledger.pages["shop"].held.len(), 1);
    }

    proptest! {
        /// Whatever comes and goes: no index twice, none outside the blocks, none before it has rested, and the
        /// figures add up.
        #[test]
        fn indices_are_handed_out_soundly(steps in prop::collection::vec((0u32..12, any::<bool>(), 0i64..4), 1..200)) {
            let source = source(&[(0, 4), (16, 4)]);
            let mut ledger = Ledger::default();
            let mut freed: BTreeMap<u32, (Timestamp, u32)> = BTreeMap::new();
            let mut clock = 0;
            for (n, comes, minutes) in steps {
                clock += minutes;
                let now = at(clock);
                if comes {
                    let known = ledger.index_of("shop", &pod(n).uid);
                    let before = ledger.usage("shop", &source, now);
                    match ledger.allocate("shop", pod(n), &source, now) {
                        Ok(index) => {
                            prop_assert!(source.indices().any(|usable| usable == index));
                            prop_assert!(known.is_none_or(|known| known == index));
                            if known.is_none() {
                                let rested = freed.get(&index).is_none_or(|(since, of)| *of == n || now.duration_since(*since) >= REST);
                                prop_assert!(rested, "{} was free since {:?}", index, freed.get(&index));
                            }
                        }
                        Err(_) => prop_assert_eq!(before.free, 0),
                    }
                } else {
                    if let Some(index) = ledger.index_of("shop", &pod(n).uid) {
                        freed.insert(index, (now, n));
                    }
                    ledger.retain(now, |_, holder| *holder != pod(n));
                }
                let usage = ledger.usage("shop", &source, now);
                let held = ledger.pages.get("shop").map(|page| page.held.clone()).unwrap_or_default();
                let pods: BTreeSet<_> = held.values().collect();
                prop_assert_eq!(pods.len(), held.len());
                prop_assert!(usage.held + usage.free <= usage.usable);
            }
        }
    }
}
