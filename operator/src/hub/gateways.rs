//! The gateways of a slice: where a member's run, when they change their keys, and which of the others' it may talk to.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use slice_crds::{
    IndexRange,
    v1alpha1::{
        Cluster, GatewayPlacement, KeyPolicy, PeerCluster, PeerGateway, SliceConfig, SliceGatewaySettings,
    },
};

use super::member::Member;

pub(super) fn placement(slice: &SliceConfig, cluster: &Cluster) -> GatewayPlacement {
    let gateway = &cluster.spec.gateway;
    GatewayPlacement {
        replicas: slice.spec.gateway.replicas,
        threads: slice.spec.gateway.threads,
        exposure: slice.spec.gateway.exposure.unwrap_or(gateway.exposure),
        advertise: gateway.advertise.clone(),
        node_selector: gateway.node_selector.clone(),
        keys: key_policy(&slice.spec.gateway),
    }
}

pub(super) fn key_policy(gateway: &SliceGatewaySettings) -> KeyPolicy {
    let text = |time: &Option<Time>| time.as_ref().map(|time| time.0.to_string());
    KeyPolicy {
        rotation_seconds: Some(Duration::from(gateway.rotation).as_secs()),
        renewal: text(&gateway.renewed_at),
        revocation: text(&gateway.revoked_at),
    }
}

/// Every other served cluster, with the gateways that have a key: one that was made under this revocation, where there is
/// one.
pub(super) fn peers(
    slice: &str,
    revocation: Option<&str>,
    member: &Member,
    served: &[(&Member, &[IndexRange])],
) -> Vec<PeerCluster> {
    served
        .iter()
        .filter(|(peer, _)| peer.name != member.name)
        .map(|(peer, ranges)| {
            let gateways = peer
                .slice(slice)
                .map(|slice| slice.gateways.as_slice())
                .unwrap_or_default();
            PeerCluster {
                name: peer.name.clone(),
                number: peer.number.unwrap_or_default(),
                ranges: ranges.to_vec(),
                gateways: gateways
                    .iter()
                    .filter(|gateway| revocation.is_none() || gateway.revocation.as_deref() == revocation)
                    .filter_map(|gateway| {
                        Some(PeerGateway {
                            ordinal: gateway.ordinal,
                            public_key: gateway.public_key.clone()?,
                            former_key: gateway.former_key.clone(),
                            endpoints: gateway.endpoints.clone(),
                        })
                    })
                    .collect(),
            }
        })
        .collect()
}
