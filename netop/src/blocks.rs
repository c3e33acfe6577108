//! The SliceBlocks of all slices and nodes, by slice and then by node. The blocks of a slice are one object that two snapshots
//! share where nothing of it has changed, so that what follows from them need not be looked at again.

use std::{collections::BTreeMap, sync::Arc};

use slice_crds::v1alpha1::SliceBlock;

/// By the node's name.
pub type OfSlice = BTreeMap<String, Arc<SliceBlock>>;

/// By the slice's name.
#[derive(Clone, Debug, Default)]
pub struct Blocks(BTreeMap<String, Arc<OfSlice>>);

impl Blocks {
    pub fn get(&self, slice: &str, node: &str) -> Option<&Arc<SliceBlock>> {
        self.0.get(slice)?.get(node)
    }

    pub fn get_mut(&mut self, slice: &str, node: &str) -> Option<&mut SliceBlock> {
        let of_slice = Arc::make_mut(self.0.get_mut(slice)?);
        of_slice.get_mut(node).map(Arc::make_mut)
    }

    /// Puts a block where its spec says.
    pub fn insert(&mut self, block: Arc<SliceBlock>) {
        let of_slice = self.0.entry(block.spec.slice.clone()).or_default();
        Arc::make_mut(of_slice).insert(block.spec.node.clone(), block);
    }

    pub fn remove(&mut self, slice: &str, node: &str) {
        if let Some(of_slice) = self.0.get_mut(slice) {
            Arc::make_mut(of_slice).remove(node);
        }
    }

    /// The blocks of a slice.
    pub fn of_slice(&self, slice: &str) -> Option<&Arc<OfSlice>> {
        self.0.get(slice)
    }

    /// The blocks of a node, by slice.
    pub fn of_node<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (&'a str, &'a Arc<SliceBlock>)> {
        let slices = self.0.iter();
        slices.filter_map(move |(slice, of_slice)| Some((slice.as_str(), of_slice.get(node)?)))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<SliceBlock>> {
        self.0.values().flat_map(|of_slice| of_slice.values())
    }

    /// Takes over from an earlier snapshot what is the same.
    pub fn share(&mut self, before: &Self) {
        for (slice, of_slice) in &mut self.0 {
            let Some(before) = before.0.get(slice) else {
                continue;
            };
            let same = before.len() == of_slice.len()
                && before
                    .values()
                    .zip(of_slice.values())
                    .all(|(a, b)| Arc::ptr_eq(a, b));
            if same {
                *of_slice = Arc::clone(before);
            }
        }
    }
}

impl FromIterator<Arc<SliceBlock>> for Blocks {
    fn from_iter<I: IntoIterator<Item = Arc<SliceBlock>>>(blocks: I) -> Self {
        let mut all = Self::default();
        blocks.into_iter().for_each(|block| all.insert(block));
        all
    }
}
