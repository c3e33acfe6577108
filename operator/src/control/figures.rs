//! What both roles count while they work; whoever runs them takes it away.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::take,
};

use super::Id;

/// Counts since they were last taken, and what cannot be read now; `S` are the role's sources.
#[derive(Debug)]
pub struct Figures<S> {
    plans: u64,
    dropped_notices: u64,
    unreadable: BTreeMap<S, BTreeSet<Id>>,
}

impl<S> Default for Figures<S> {
    fn default() -> Self {
        Self {
            plans: 0,
            dropped_notices: 0,
            unreadable: BTreeMap::new(),
        }
    }
}

impl<S: Ord> Figures<S> {
    /// Something was planned.
    pub fn planned(&mut self) {
        self.plans += 1;
    }

    /// Notices did not fit.
    pub fn dropped(&mut self, notices: u64) {
        self.dropped_notices += notices;
    }

    /// An object was seen, and whether this build can read it.
    pub fn seen(&mut self, source: S, id: Id, is_unreadable: bool) {
        let unreadable = self.unreadable.entry(source).or_default();
        match is_unreadable {
            true => unreadable.insert(id),
            false => unreadable.remove(&id),
        };
    }

    /// An object is gone.
    pub fn gone(&mut self, source: &S, id: &Id) {
        if let Some(unreadable) = self.unreadable.get_mut(source) {
            unreadable.remove(id);
        }
    }

    /// Things planned since this was last asked.
    pub fn take_plans(&mut self) -> u64 {
        take(&mut self.plans)
    }

    /// Notices that did not fit since this was last asked.
    pub fn take_dropped_notices(&mut self) -> u64 {
        take(&mut self.dropped_notices)
    }

    /// How many objects of each source this build cannot read.
    pub fn unreadable(&self) -> impl Iterator<Item = (&S, usize)> {
        self.unreadable
            .iter()
            .map(|(source, objects)| (source, objects.len()))
    }
}
