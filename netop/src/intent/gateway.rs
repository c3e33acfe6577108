//! What a gateway on this node works from. Pure.

use slice_crds::index;
use slice_runtime::handover;

use crate::world::SliceFacts;

/// What a gateway of a slice works from.
pub fn gateway_config(slice: &str, facts: &SliceFacts, ordinal: u32) -> Option<handover::Config> {
    let vtep = |cluster: u32, ordinal: u32| {
        (cluster <= index::OUTSIDE && ordinal <= index::MAX_ORDINAL).then(|| index::vtep(cluster, ordinal))
    };
    let ranges = |ranges: &[slice_crds::IndexRange]| {
        ranges
            .iter()
            .map(|range| handover::Range {
                start: range.start,
                size: range.size,
            })
            .collect()
    };
    let spec = &facts.spec;
    let carried = spec.carried();
    let peers = spec.peers.iter().map(|peer| handover::Peer {
        cluster: peer.name.clone(),
        outside: peer.number == index::OUTSIDE,
        ranges: ranges(&peer.ranges),
        gateways: (peer.gateways.iter())
            .filter_map(|gateway| {
                Some(handover::PeerGateway {
                    name: format!("{}/{}", peer.name, gateway.ordinal),
                    public_key: gateway.public_key.clone(),
                    former_key: gateway.former_key.clone(),
                    vtep: vtep(peer.number, gateway.ordinal)?,
                    endpoints: gateway.endpoints.clone(),
                })
            })
            .collect(),
    });
    Some(handover::Config {
        slice: slice.to_owned(),
        cluster: spec.cluster.clone(),
        vni: spec.vni,
        mtu: spec.mtu,
        largest_mtu: spec.largest_mtu,
        subnets: spec.subnets.iter().map(|cidr| cidr.net()).collect(),
        vtep: vtep(spec.cluster_number, ordinal)?,
        ranges: ranges(&spec.ranges),
        frames: handover::Frames {
            non_ip: carried.non_ip,
            tagged: carried.tagged,
            routers: !carried.routers.is_empty(),
        },
        dscp: spec.dscp,
        rotation_secs: spec.gateway.keys.rotation_seconds,
        renewal: spec.gateway.keys.renewal.clone(),
        revocation: spec.gateway.keys.revocation.clone(),
        peers: peers.collect(),
    })
}
