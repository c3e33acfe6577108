//! The hosts outside every cluster that a slice has: what each is given. Pure; what was given stays given.
//!
//! To the members such a host is a cluster of one attachment and one gateway, so everything that holds between
//! clusters (who may speak for which address, broadcast once for each) holds for it as well.

use std::collections::BTreeSet;

use slice_crds::{
    IndexRange, Subnets, index,
    v1alpha1::{PeerCluster, PeerGateway, SliceConfig, SliceConfigStatus, SlicePeer, SlicePeerStatus},
};

/// The hosts that are in, and why others are not.
pub(super) struct Outside<'a> {
    pub placed: Vec<(&'a SlicePeer, SlicePeerStatus)>,
    pub problems: Vec<String>,
}

/// Gives every host of the slice an index and a number. Clusters take their ranges from the bottom of the slice, hosts
/// their indices from the top, so that they do not cut up what clusters need whole.
pub(super) fn place<'a>(
    slice: &'a SliceConfig,
    before: &SliceConfigStatus,
    subnets: &Subnets,
    clusters: &[&str],
) -> Outside<'a> {
    let mut out = Outside {
        placed: Vec::new(),
        problems: Vec::new(),
    };
    let given = |peer: &SlicePeer| before.peers.iter().find(|given| given.name == peer.name);
    let kept = || slice.spec.peers.iter().filter_map(given);
    let mut ordinals: BTreeSet<u32> = kept().map(|given| given.ordinal).collect();
    let mut indices: BTreeSet<u32> = kept().map(|given| given.index).collect();
    let ranges: Vec<IndexRange> = before
        .clusters
        .iter()
        .flat_map(|cluster| cluster.ranges.clone())
        .collect();
    for peer in &slice.spec.peers {
        if clusters.contains(&peer.name.as_str()) {
            out.problems.push(format!(
                "spec.peers names \"{0}\", which is a member cluster of the slice: give the host another name",
                peer.name
            ));
            continue;
        }
        let place = given(peer).cloned().or_else(|| {
            let ordinal = (0..=index::MAX_ORDINAL).find(|ordinal| !ordinals.contains(ordinal))?;
            let index = free(subnets, &ranges, &indices)?;
            Some(SlicePeerStatus {
                name: peer.name.clone(),
                index,
                ordinal,
                addresses: subnets.addresses(index).map(|net| net.addr()).collect(),
            })
        });
        let Some(place) = place else {
            out.problems.push(format!(
                "spec.subnets have no address left for host {} of spec.peers: remove another host, or create a slice with a larger subnet",
                peer.name
            ));
            continue;
        };
        ordinals.insert(place.ordinal);
        indices.insert(place.index);
        out.placed.push((peer, place));
    }
    out
}

/// The highest index that nobody has.
fn free(subnets: &Subnets, ranges: &[IndexRange], taken: &BTreeSet<u32>) -> Option<u32> {
    let mut next = u32::try_from(subnets.capacity() - 1).ok();
    while let Some(index) = next {
        next = match ranges.iter().find(|range| range.contains(index)) {
            Some(range) => range.start.checked_sub(1),
            None if taken.contains(&index) || !subnets.usable(index) => index.checked_sub(1),
            None => return Some(index),
        };
    }
    None
}

/// A host as the members are told of it.
pub(super) fn as_cluster(peer: &SlicePeer, place: &SlicePeerStatus) -> PeerCluster {
    PeerCluster {
        name: peer.name.clone(),
        number: index::OUTSIDE,
        ranges: vec![IndexRange::new(place.index, 1)],
        gateways: vec![PeerGateway {
            ordinal: place.ordinal,
            public_key: peer.public_key.clone(),
            former_key: None,
            endpoints: peer.endpoints.clone(),
        }],
    }
}
