//! Who has which index of this node's blocks. Pure: time comes in as an argument.
//!
//! ```text
//!  SliceBlock ─► Grant ── blocks ─┬─ free ──► held by a pod ──► resting ──► free
//!                                 └─ releasing: nothing is taken from it; without a holder it is released
//! ```
//!
//! An index that is given back rests for [`REST`], so that nobody who still sends to the old pod reaches the new one;
//! the same pod gets it back at once, and so does one of its name: a StatefulSet's comes back with its address. Where no index has rested for so long, the one that has rested longest is taken,
//! after [`MIN_REST`]. Next-fit: the search goes on where it last ended, which spares the resting ones.

use std::{collections::BTreeMap, fmt};

use jiff::{SignedDuration, Timestamp};
use slice_crds::{IndexRange, Subnets};

/// How long an index stays unused after its pod, where there are others.
pub const REST: SignedDuration = SignedDuration::from_mins(10);
/// How long it stays unused in any case.
///
/// MAC and addresses follow from the index, so nobody has a neighbour or forwarding entry that is wrong for the next
/// pod. What can reach it is a late packet of a connection to the pod before, which it answers as any host answers what
/// it knows nothing of, and a client that was given the address by DNS: such an answer holds for a second.
pub const MIN_REST: SignedDuration = SignedDuration::from_secs(10);

/// Strays that are reported at once; more follow when these have a block again.
const MOST_STRAYS: usize = 64;

/// The pod that has an index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

impl Holder {
    /// Whether the other is a pod of the same name, which there is one of at a time.
    fn is_namesake(&self, other: &Self) -> bool {
        !self.name.is_empty() && (&self.namespace, &self.name) == (&other.namespace, &other.name)
    }
}

/// What one slice's indices are doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// `None` while the node has no SliceBlock of the slice.
    pub grant: Option<Grant>,
    pub held: BTreeMap<u32, Holder>,
    pub resting: BTreeMap<u32, Rest>,
    /// The index given out last.
    pub last: u32,
}

/// The spec of a SliceBlock, and which version of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// UID of the object.
    pub uid: String,
    /// `metadata.generation`: grows with each change of one object's spec.
    pub generation: i64,
    pub blocks: Vec<IndexRange>,
    /// Of which no index is given out.
    pub releasing: Vec<IndexRange>,
}

/// An index that was given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    pub since: Timestamp,
    /// The pod that had it.
    pub holder: Holder,
}

/// All slices of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub pages: BTreeMap<String, Page>,
}

/// How much is left in blocks that are not releasing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Indices that an attachment may have.
    pub usable: u32,
    /// Indices that pods have, in releasing blocks too.
    pub held: u32,
    /// Free and rested.
    pub free: u32,
    /// Free, and not rested yet.
    pub resting: u32,
}

/// A SliceBlock is older than the one that the node works from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the SliceBlock has generation {generation}, and this node has acted upon generation {known} of it, which was lost, \
     as by a restored backup: the node goes on with what it knows; annotate the SliceBlock with \
     weft.dev/delete=now and delete it, and the cluster operator writes it again"
)]
pub struct Outdated {
    pub generation: i64,
    pub known: i64,
}

/// No index is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub usage: Usage,
    /// When the next one has rested enough; `None` where pods have them all.
    pub next: Option<Timestamp>,
}

impl std::error::Error for Exhausted {}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage {
            usable,
            free,
            resting,
            ..
        } = self.usage;
        if usable == 0 {
            return f.write_str(
                "this node has no block that indices are given from: the cluster operator adds one within seconds; \
                 where it cannot, the slice's subnet is too small",
            );
        }
        let held = usable - free - resting;
        write!(
            f,
            "all {usable} indices of this node's blocks are taken ({held} by pods, {resting} rest after a pod that left"
        )?;
        if let Some(next) = self.next {
            // In whole seconds, and not too soon. A moment, not a time to wait: the same failure has one text.
            let next = Timestamp::from_second(next.as_second() + 1).unwrap_or(next);
            write!(f, "; the next is free at {next}")?;
        }
        f.write_str(
            "): the cluster operator adds a block within seconds; where it cannot, the slice's subnet is too small",
        )
    }
}

impl Grant {
    /// Whether an index is in a block that is to be given back.
    fn releases(&self, index: u32) -> bool {
        self.releasing.iter().any(|block| block.contains(index))
    }

    /// Every index that may be given out.
    fn indices(&self, subnets: Subnets) -> impl Iterator<Item = u32> {
        self.blocks
            .iter()
            .flat_map(|block| block.indices())
            .filter(move |index| subnets.usable(*index) && !self.releases(*index))
    }

    /// Whether an index may be given out.
    fn offers(&self, index: u32, subnets: Subnets) -> bool {
        self.blocks.iter().any(|block| block.contains(index))
            && subnets.usable(index)
            && !self.releases(index)
    }
}

impl Rest {
    fn age(&self, now: Timestamp) -> SignedDuration {
        now.duration_since(self.since)
    }
}

impl Page {
    fn index_of(&self, uid: &str) -> Option<u32> {
        self.held
            .iter()
            .find(|(_, holder)| holder.uid == uid)
            .map(|(index, _)| *index)
    }

    fn has_rested(&self, index: u32, now: Timestamp) -> bool {
        self.resting.get(&index).is_none_or(|rest| rest.age(now) >= REST)
    }

    fn is_held(&self, block: IndexRange) -> bool {
        self.held.keys().any(|index| block.contains(*index))
    }

    /// An index for a pod that has none.
    fn find(&self, holder: &Holder, subnets: Subnets, now: Timestamp) -> Option<u32> {
        let grant = self.grant.as_ref()?;
        let resting = || {
            let resting = self.resting.iter();
            resting.filter(|(index, _)| grant.offers(**index, subnets) && !self.held.contains_key(index))
        };
        let had = |same: fn(&Holder, &Holder) -> bool| resting().find(|(_, rest)| same(&rest.holder, holder));
        let own = had(|a, b| a.uid == b.uid).or_else(|| had(Holder::is_namesake));
        let free = |index: &u32| !self.held.contains_key(index) && self.has_rested(*index, now);
        let next = || {
            grant
                .indices(subnets)
                .filter(free)
                .find(|index| *index > self.last)
        };
        let longest = || {
            let rested = resting().filter(|(_, rest)| rest.age(now) >= MIN_REST);
            rested.min_by_key(|(index, rest)| (rest.since, **index))
        };
        own.map(|(index, _)| *index)
            .or_else(next)
            .or_else(|| grant.indices(subnets).find(free))
            .or_else(|| longest().map(|(index, _)| *index))
    }

    fn give_back(&mut self, uid: &str, now: Timestamp) {
        if let Some(index) = self.index_of(uid)
            && let Some(holder) = self.held.remove(&index)
        {
            self.resting.insert(index, Rest { since: now, holder });
        }
    }
}

impl Ledger {
    pub fn index_of(&self, slice: &str, uid: &str) -> Option<u32> {
        self.pages.get(slice)?.index_of(uid)
    }

    /// The grant that a slice's indices come from.
    pub fn grant(&self, slice: &str) -> Option<&Grant> {
        self.pages.get(slice)?.grant.as_ref()
    }

    /// Takes what a SliceBlock says.
    ///
    /// # Errors
    /// Where the object is older than one that was taken before: that one stays, because what it released may be
    /// another node's by now.
    pub fn accept(&mut self, slice: &str, grant: Grant) -> Result<(), Outdated> {
        let page = self.pages.entry(slice.to_owned()).or_default();
        if let Some(known) = &page.grant
            && known.uid == grant.uid
            && known.generation > grant.generation
        {
            return Err(Outdated {
                generation: grant.generation,
                known: known.generation,
            });
        }
        page.grant = Some(grant);
        Ok(())
    }

    /// Forgets the grants of slices that the node has no SliceBlock of any more.
    pub fn retain_grants(&mut self, keeps: impl Fn(&str) -> bool) {
        for (slice, page) in &mut self.pages {
            page.grant = page.grant.take().filter(|_| keeps(slice));
        }
    }

    /// The index that a pod has, or a new one: of the slice's grant, and never of a releasing block.
    ///
    /// # Errors
    /// Where none is left.
    pub fn allocate(
        &mut self,
        slice: &str,
        holder: Holder,
        subnets: Subnets,
        now: Timestamp,
    ) -> Result<u32, Exhausted> {
        let page = self.pages.entry(slice.to_owned()).or_default();
        if let Some(index) = page.index_of(&holder.uid) {
            return Ok(index);
        }
        let Some(index) = page.find(&holder, subnets, now) else {
            let grant = page.grant.as_ref();
            let resting = page.resting.iter();
            let next = resting
                .filter(|(index, _)| grant.is_some_and(|grant| grant.offers(**index, subnets)))
                .filter_map(|(_, rest)| rest.since.checked_add(MIN_REST).ok())
                .min();
            let usage = self.usage(slice, subnets, now);
            return Err(Exhausted { usage, next });
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

    /// Gives back the index that a pod has, if any.
    pub fn give_back(&mut self, slice: &str, uid: &str, now: Timestamp) {
        if let Some(page) = self.pages.get_mut(slice) {
            page.give_back(uid, now);
        }
    }

    /// Gives back every index whose holder `keeps` does not want.
    pub fn retain(&mut self, now: Timestamp, keeps: impl Fn(&str, &Holder) -> bool) {
        for (slice, page) in &mut self.pages {
            page.resting.retain(|_, rest| {
                // A clock that was set back must not make it rest for hours.
                rest.since = rest.since.min(now);
                rest.age(now) < REST
            });
            let gone = page.held.values().filter(|holder| !keeps(slice, holder));
            let gone: Vec<String> = gone.map(|holder| holder.uid.clone()).collect();
            gone.iter().for_each(|uid| page.give_back(uid, now));
        }
        self.pages
            .retain(|_, page| page.grant.is_some() || !page.held.is_empty() || !page.resting.is_empty());
    }

    pub fn usage(&self, slice: &str, subnets: Subnets, now: Timestamp) -> Usage {
        let mut usage = Usage::default();
        let Some(page) = self.pages.get(slice) else {
            return usage;
        };
        usage.held = u32::try_from(page.held.len()).unwrap_or(u32::MAX);
        for index in page.grant.iter().flat_map(|grant| grant.indices(subnets)) {
            usage.usable += 1;
            if page.held.contains_key(&index) {
                continue;
            }
            match page.has_rested(index, now) {
                true => usage.free += 1,
                false => usage.resting += 1,
            }
        }
        usage
    }

    /// Blocks that are not releasing, and of which every index is free and has rested.
    pub fn idle(&self, slice: &str, now: Timestamp) -> Vec<IndexRange> {
        let Some((page, grant)) = self.granted(slice) else {
            return vec![];
        };
        let is_idle = |block: &&IndexRange| {
            let releasing = grant.releasing.iter().any(|other| other.overlaps(**block));
            let resting = page
                .resting
                .range(block.start..)
                .take_while(|(index, _)| block.contains(**index));
            !releasing && !page.is_held(**block) && resting.into_iter().all(|(_, rest)| rest.age(now) >= REST)
        };
        grant.blocks.iter().filter(is_idle).copied().collect()
    }

    /// Releasing blocks that no pod has an index of. None will be given out of them under this grant.
    pub fn released(&self, slice: &str) -> Vec<IndexRange> {
        let Some((page, grant)) = self.granted(slice) else {
            return vec![];
        };
        let blocks = grant.releasing.iter();
        blocks.filter(|block| !page.is_held(**block)).copied().collect()
    }

    /// Indices that pods have outside of the blocks: those came from a SliceBlock that was lost.
    pub fn strays(&self, slice: &str) -> Vec<IndexRange> {
        let Some((page, grant)) = self.granted(slice) else {
            return vec![];
        };
        let held = page.held.keys();
        held.filter(|index| !grant.blocks.iter().any(|block| block.contains(**index)))
            .map(|index| IndexRange::new(*index, 1))
            .take(MOST_STRAYS)
            .collect()
    }

    fn granted(&self, slice: &str) -> Option<(&Page, &Grant)> {
        let page = self.pages.get(slice)?;
        Some((page, page.grant.as_ref()?))
    }
}

#[cfg(test)]
mod soundness;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn subnets() -> Subnets {
        Subnets::new(&["10.80.0.0/26".parse().unwrap()]).unwrap()
    }

    fn ranges(blocks: &[(u32, u32)]) -> Vec<IndexRange> {
        let range = |(start, size): &(u32, u32)| IndexRange::new(*start, *size);
        blocks.iter().map(range).collect()
    }

    pub(super) fn grant(generation: i64, blocks: &[(u32, u32)], releasing: &[(u32, u32)]) -> Grant {
        Grant {
            uid: "block".into(),
            generation,
            blocks: ranges(blocks),
            releasing: ranges(releasing),
        }
    }

    /// A ledger with these blocks of the slice `shop`.
    pub(super) fn ledger(blocks: &[(u32, u32)]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.accept("shop", grant(1, blocks, &[])).unwrap();
        ledger
    }

    pub(super) fn pod(n: u32) -> Holder {
        Holder {
            uid: format!("uid-{n}"),
            namespace: "cart".into(),
            name: format!("web-{n}"),
        }
    }

    pub(super) fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    pub(super) fn give(ledger: &mut Ledger, n: u32, seconds: i64) -> Result<u32, Exhausted> {
        ledger.allocate("shop", pod(n), subnets(), at(seconds))
    }

    pub(super) fn leave(ledger: &mut Ledger, n: u32, seconds: i64) {
        ledger.retain(at(seconds), |_, holder| *holder != pod(n));
    }

    #[test]
    fn a_pod_keeps_its_index() {
        let mut ledger = ledger(&[(8, 4)]);
        let first = give(&mut ledger, 1, 0).unwrap();
        assert_eq!(give(&mut ledger, 1, 60), Ok(first));
        assert_eq!(ledger.index_of("shop", "uid-1"), Some(first));
        assert_eq!(ledger.index_of("bank", "uid-1"), None);
    }

    #[test]
    fn an_index_rests_while_there_are_others() {
        let mut ledger = ledger(&[(8, 4)]);
        let given = [0, 1, 2].map(|n| give(&mut ledger, n, 0).unwrap());
        leave(&mut ledger, 0, 0);
        leave(&mut ledger, 1, 0);
        assert_eq!((given, give(&mut ledger, 3, 30)), ([8, 9, 10], Ok(11)));
        leave(&mut ledger, 3, 30);
        assert_eq!(
            give(&mut ledger, 4, 600),
            Ok(8),
            "two have rested, the third is left alone"
        );
    }

    #[test]
    fn under_pressure_the_one_that_rested_longest_is_given_out_after_a_short_rest() {
        let mut ledger = ledger(&[(8, 2)]);
        assert_eq!([1, 2].map(|n| give(&mut ledger, n, 0).unwrap()), [8, 9]);
        leave(&mut ledger, 2, 100);
        leave(&mut ledger, 1, 105);
        let exhausted = give(&mut ledger, 3, 109).unwrap_err();
        assert_eq!(exhausted.next, Some(at(110)));
        let text = exhausted.to_string();
        assert!(
            text.contains("all 2 indices")
                && text.contains("0 by pods, 2 rest")
                && text.contains("free at 1970-01-01T00:01:51Z"),
            "{text}"
        );
        assert_eq!(
            give(&mut ledger, 3, 108).unwrap_err().to_string(),
            text,
            "one failure, one text"
        );
        assert_eq!(give(&mut ledger, 3, 110), Ok(9));
        assert_eq!(give(&mut ledger, 4, 114).unwrap_err().next, Some(at(115)));
        assert_eq!(give(&mut ledger, 4, 115), Ok(8));
        let exhausted = give(&mut ledger, 5, 900).unwrap_err();
        assert_eq!((exhausted.next, exhausted.usage.held), (None, 2));
        assert!(
            exhausted
                .to_string()
                .contains("(2 by pods, 0 rest after a pod that left)"),
            "{exhausted}"
        );
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_no_index_for_hours() {
        let mut ledger = ledger(&[(8, 2)]);
        give(&mut ledger, 1, 0).unwrap();
        give(&mut ledger, 2, 0).unwrap();
        leave(&mut ledger, 1, 90_000);
        leave(&mut ledger, 1, 1000);
        assert!(give(&mut ledger, 3, 1009).is_err());
        assert_eq!(give(&mut ledger, 3, 1010), Ok(8));
    }

    #[test]
    fn a_pod_that_comes_back_gets_its_index_back() {
        let mut ledger = ledger(&[(8, 2)]);
        assert_eq!([1, 2].map(|n| give(&mut ledger, n, 0).unwrap()), [8, 9]);
        ledger.retain(at(60), |_, _| false);
        assert_eq!(give(&mut ledger, 2, 60), Ok(9));
        assert!(give(&mut ledger, 3, 60).is_err());
    }

    #[test]
    fn reserved_addresses_are_never_given() {
        let mut ledger = ledger(&[(0, 2), (62, 2)]);
        let given = [0, 1, 2].map(|n| give(&mut ledger, n, 0).ok());
        assert_eq!(given, [Some(1), Some(62), None]);
    }

    #[test]
    fn what_a_pod_was_found_with_wins() {
        let mut ledger = ledger(&[(8, 4)]);
        give(&mut ledger, 1, 0).unwrap();
        ledger.adopt("shop", pod(1), 11);
        assert_eq!(ledger.index_of("shop", "uid-1"), Some(11));
        assert_eq!(ledger.pages["shop"].held.len(), 1);
    }

    #[test]
    fn an_index_outside_of_the_blocks_is_a_stray() {
        let mut ledger = Ledger::default();
        ledger.accept("shop", grant(1, &[(8, 2)], &[])).unwrap();
        assert!(give(&mut ledger, 1, 0).is_ok());
        assert_eq!(ledger.strays("shop"), []);
        // Its SliceBlock was lost, and another one made.
        ledger.retain_grants(|_| false);
        assert_eq!(ledger.strays("shop"), []);
        ledger.accept("shop", grant(1, &[(16, 2)], &[])).unwrap();
        assert_eq!(ledger.strays("shop"), ranges(&[(8, 1)]));
    }

    #[test]
    fn a_block_is_released_when_its_last_pod_has_gone() {
        let mut ledger = ledger(&[(8, 2), (16, 2)]);
        let given = [1, 2, 3].map(|n| give(&mut ledger, n, 0).unwrap());
        assert_eq!(given, [8, 9, 16]);
        leave(&mut ledger, 2, 0);
        ledger
            .accept("shop", grant(2, &[(8, 2), (16, 2)], &[(8, 2)]))
            .unwrap();
        let usage = ledger.usage("shop", subnets(), at(0));
        assert_eq!(
            (usage.usable, usage.held, usage.free),
            (2, 2, 1),
            "of the other block"
        );
        assert_eq!(ledger.released("shop"), [], "a pod has one of its indices");
        assert_eq!(give(&mut ledger, 1, 1), Ok(8), "which is not taken from it");
        assert_eq!(give(&mut ledger, 2, 1), Ok(17), "its own is in a block that goes");
        leave(&mut ledger, 1, 2);
        assert_eq!(ledger.released("shop"), ranges(&[(8, 2)]));
        assert!(give(&mut ledger, 4, 3600).is_err());
        ledger.accept("shop", grant(3, &[(8, 2), (16, 2)], &[])).unwrap();
        assert_eq!(ledger.released("shop"), []);
        assert_eq!(give(&mut ledger, 4, 3600), Ok(8), "until it is the node's again");
    }

    #[test]
    fn with_every_block_releasing_the_reason_is_said() {
        let mut ledger = Ledger::default();
        ledger.accept("shop", grant(1, &[(8, 2)], &[(8, 2)])).unwrap();
        let exhausted = give(&mut ledger, 1, 0).unwrap_err();
        assert!(
            exhausted
                .to_string()
                .contains("no block that indices are given from"),
            "{exhausted}"
        );
    }

    #[test]
    fn an_older_spec_of_the_same_object_is_not_acted_upon() {
        let mut ledger = Ledger::default();
        let released = grant(7, &[(8, 2), (16, 2)], &[(8, 2)]);
        ledger.accept("shop", released.clone()).unwrap();
        let outdated = ledger.accept("shop", grant(6, &[(8, 2)], &[])).unwrap_err();
        assert_eq!((outdated.generation, outdated.known), (6, 7));
        assert_eq!(ledger.grant("shop"), Some(&released));
        let anew = Grant {
            uid: "another".into(),
            ..grant(1, &[(8, 2)], &[])
        };
        ledger.accept("shop", anew.clone()).unwrap();
        assert_eq!(ledger.grant("shop"), Some(&anew), "another object begins anew");
        ledger.retain_grants(|slice| slice != "shop");
        ledger.retain(at(0), |_, _| true);
        assert!(ledger.pages.is_empty());
    }

    #[test]
    fn a_block_is_idle_when_all_its_indices_have_rested() {
        let mut ledger = ledger(&[(8, 2), (16, 2)]);
        assert_eq!(ledger.idle("shop", at(0)), ranges(&[(8, 2), (16, 2)]));
        (1..=3).for_each(|n| _ = give(&mut ledger, n, 0).unwrap());
        assert_eq!(ledger.idle("shop", at(0)), []);
        leave(&mut ledger, 3, 0);
        assert_eq!(ledger.idle("shop", at(599)), []);
        assert_eq!(ledger.idle("shop", at(600)), ranges(&[(16, 2)]));
        ledger
            .accept("shop", grant(2, &[(8, 2), (16, 2)], &[(16, 2)]))
            .unwrap();
        assert_eq!(
            (ledger.idle("shop", at(600)), ledger.released("shop")),
            (vec![], ranges(&[(16, 2)]))
        );
    }
}
