//! Which node hands out which indices. Pure.
//!
//! Every node has a block of every slice from the start, so that its first pod waits for nobody; it gets another
//! when a quarter of a block or less is left. A block stays where it is as long as its node and its range exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use kube::{ResourceExt, core::ObjectMeta};
use slice_crds::{
    IndexRange, Subnets, labels, names,
    v1alpha1::{Slice, SliceBlock, SliceBlockSpec},
};

/// A node of the cluster: its name and the address that the other nodes reach it at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeAddress {
    pub name: String,
    pub address: IpAddr,
}

/// The blocks of one slice.
#[derive(Debug, Default)]
pub struct Blocks {
    pub objects: Vec<SliceBlock>,
    /// Blocks that nodes want and the cluster's ranges have no room for.
    pub wanted: u32,
}

pub fn plan(slice: &Slice, nodes: &[NodeAddress], there: &[Arc<SliceBlock>]) -> Blocks {
    let name = slice.name_any();
    let spec = &slice.spec;
    let mut held: BTreeMap<&str, Vec<IndexRange>> = BTreeMap::new();
    for block in there.iter().filter(|block| block.spec.slice == name) {
        if let Some(node) = nodes.iter().find(|node| node.name == block.spec.node) {
            let ours = |block: &&IndexRange| spec.ranges.iter().any(|range| range.covers(**block));
            held.insert(
                &node.name,
                block.spec.blocks.iter().filter(ours).copied().collect(),
            );
        }
    }
    let mut taken: BTreeSet<IndexRange> = held.values().flatten().copied().collect();
    let free: Vec<IndexRange> = spec
        .ranges
        .iter()
        .flat_map(|range| range.pieces(spec.block_size))
        .collect();
    let mut blocks = Blocks::default();
    for node in nodes {
        let own = held.entry(&node.name).or_default();
        let status = there
            .iter()
            .find(|block| block.spec.slice == name && block.spec.node == node.name)
            .and_then(|block| block.status.as_ref());
        let short = Subnets::new(&spec.subnets).is_ok_and(|subnets| {
            let usable: u32 = own.iter().map(|block| subnets.usable_in(*block)).sum();
            // Asked for once: what the node says counts when it has seen the last block that it was given.
            status.is_some_and(|status| status.usable == usable && status.free <= spec.block_size / 4)
        });
        if own.is_empty() || short {
            match free.iter().find(|block| !taken.contains(block)) {
                Some(block) => {
                    taken.insert(*block);
                    own.push(*block);
                }
                None => blocks.wanted += 1,
            }
        }
        let object = SliceBlockSpec {
            slice: name.clone(),
            node: node.name.clone(),
            node_address: node.address,
            blocks: own.clone(),
        };
        let mut object = SliceBlock::new(&names::block(&name, &node.name), object);
        object.metadata = ObjectMeta {
            labels: Some(BTreeMap::from([(labels::FOR_SLICE.to_owned(), name.clone())])),
            ..object.metadata
        };
        blocks.objects.push(object);
    }
    blocks
}

#[cfg(test)]
mod tests {
    use slice_crds::v1alpha1::{AttachMode, Broadcast, GatewayPlacement, SliceBlockStatus, SliceSpec};

    use super::*;

    fn slice(ranges: Vec<IndexRange>) -> Slice {
        Slice::new(
            "shop",
            SliceSpec {
                vni: 4097,
                subnets: vec!["10.80.0.0/16".parse().unwrap()],
                mtu: 1370,
                block_size: 64,
                cluster: "a".into(),
                cluster_number: 1,
                ranges,
                peers: vec![],
                namespaces: vec![],
                attach: AttachMode::Required,
                gateway: GatewayPlacement::default(),
                broadcast: Broadcast::default(),
                dscp: 0,
            },
        )
    }

    fn nodes(names: &[&str]) -> Vec<NodeAddress> {
        names
            .iter()
            .enumerate()
            .map(|(n, name)| NodeAddress {
                name: (*name).into(),
                address: [172, 30, 1, u8::try_from(n).unwrap()].into(),
            })
            .collect()
    }

    fn next(blocks: Blocks, free: u32) -> Vec<Arc<SliceBlock>> {
        let subnets = Subnets::new(&["10.80.0.0/16".parse().unwrap()]).unwrap();
        let status = |mut block: SliceBlock| {
            let usable = block
                .spec
                .blocks
                .iter()
                .map(|range| subnets.usable_in(*range))
                .sum();
            block.status = Some(SliceBlockStatus {
                free,
                usable,
                ..SliceBlockStatus::default()
            });
            Arc::new(block)
        };
        blocks.objects.into_iter().map(status).collect()
    }

    fn text(blocks: &[SliceBlock]) -> Vec<String> {
        let line = |block: &SliceBlock| {
            let ranges: Vec<_> = block.spec.blocks.iter().map(ToString::to_string).collect();
            format!("{} {}", block.spec.node, ranges.join(" "))
        };
        blocks.iter().map(line).collect()
    }

    #[test]
    fn every_node_has_a_block_and_keeps_it() {
        let slice = slice(vec![IndexRange::new(0, 256)]);
        let first = plan(&slice, &nodes(&["n1", "n2"]), &[]);
        assert_eq!(text(&first.objects), ["n1 0+64", "n2 64+64"]);
        let there = next(first, 50);
        let second = plan(&slice, &nodes(&["n0", "n1", "n2"]), &there);
        assert_eq!(text(&second.objects), ["n0 128+64", "n1 0+64", "n2 64+64"]);
        let third = plan(&slice, &nodes(&["n2"]), &there);
        assert_eq!(text(&third.objects), ["n2 64+64"]);
    }

    #[test]
    fn a_full_node_gets_another_block_once() {
        let slice = slice(vec![IndexRange::new(0, 256)]);
        let there = next(plan(&slice, &nodes(&["n1"]), &[]), 3);
        let grown = plan(&slice, &nodes(&["n1"]), &there);
        assert_eq!(text(&grown.objects), ["n1 0+64 64+64"]);
        // The node has not seen the second block yet: what it says is about the first.
        let mut unseen = (*there[0]).clone();
        unseen.spec = grown.objects[0].spec.clone();
        let again = plan(&slice, &nodes(&["n1"]), &[Arc::new(unseen)]);
        assert_eq!(text(&again.objects), ["n1 0+64 64+64"]);
    }

    #[test]
    fn what_does_not_fit_is_wanted() {
        let blocks = plan(
            &slice(vec![IndexRange::new(0, 64)]),
            &nodes(&["n1", "n2", "n3"]),
            &[],
        );
        assert_eq!(
            (text(&blocks.objects), blocks.wanted),
            (vec!["n1 0+64".into(), "n2 ".into(), "n3 ".into()], 2)
        );
    }
}
