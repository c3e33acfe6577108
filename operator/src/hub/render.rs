//! What members get, as objects. Pure functions of what was allocated and what users wrote.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use slice_crds::{
    index, labels,
    v1alpha1::{
        AttachMode, Broadcast, Cluster, Exposure, Frames, NamespaceRule, QosProfileSpec, Shaping,
        SliceConfig, SliceGatewaySettings, TaintEffect, Toleration, TolerationOperator,
    },
    wire::{
        self, AllocationState as State, ClusterAllocation, GatewaySettings, Grant, KeySettings,
        MemberSliceSpec, Peer, PeerGateway, Range, Rule, SHARD, SliceAllocationSpec, SliceShareSpec,
    },
};

use super::slice::ranges_of;

pub(super) fn labels(slice: &str, cluster: Option<&str>) -> BTreeMap<String, String> {
    let mut map = BTreeMap::from([(labels::FOR_SLICE.to_owned(), slice.to_owned())]);
    if let Some(cluster) = cluster {
        map.insert(labels::FOR_CLUSTER.to_owned(), cluster.to_owned());
    }
    map
}

/// A slice that a member has.
pub(super) fn member_slice(
    hub: &str,
    config: &SliceConfig,
    cluster: Option<&Cluster>,
    allocation: &SliceAllocationSpec,
    own: &ClusterAllocation,
    qos: &QosProfileSpec,
) -> MemberSliceSpec {
    let carried = config.spec.carried();
    MemberSliceSpec {
        slice: Grant {
            namespaces: rules(&config.spec.namespaces, &own.name),
            join: config.spec.join.clone(),
            attach: match config.spec.attach {
                AttachMode::Required => "Required",
                AttachMode::BestEffort => "BestEffort",
            }
            .to_owned(),
            gateway: gateway(config, cluster),
            frames: Some(frames(&carried, &own.name)),
            broadcast: Broadcast::from(&carried),
            dscp: qos.dscp,
            shaping: qos.shaping().map(shaping),
            ..grant(allocation, own)
        },
        hub: hub.to_owned(),
        revision: own.revision,
        released: false,
        shared_in: String::new(),
        peer_shards: vec![],
    }
}

/// A slice that a member is to take down.
pub(super) fn released(
    hub: &str,
    allocation: &SliceAllocationSpec,
    own: &ClusterAllocation,
) -> MemberSliceSpec {
    MemberSliceSpec {
        slice: grant(allocation, own),
        hub: hub.to_owned(),
        revision: own.revision,
        released: true,
        shared_in: String::new(),
        peer_shards: vec![],
    }
}

fn grant(allocation: &SliceAllocationSpec, own: &ClusterAllocation) -> Grant {
    let mut ranges: Vec<Range> = own
        .ranges
        .iter()
        .filter(|range| range.state != State::Resting)
        .map(|range| Range {
            start: range.start,
            size: range.size,
            releasing: range.state == State::Releasing,
        })
        .collect();
    ranges.sort();
    Grant {
        vni: allocation.vni,
        subnets: allocation.subnets.clone(),
        mtu: allocation.mtu,
        largest_mtu: allocation.largest_mtu,
        block_size: allocation.block_size,
        cluster: own.name.clone(),
        cluster_number: own.number,
        ranges,
        attach: "Required".to_owned(),
        ..Grant::default()
    }
}

/// Those of the rules that hold in a cluster.
fn frames(carried: &Frames, cluster: &str) -> wire::Frames {
    wire::Frames {
        broadcast_per_second: carried.broadcast_per_second,
        non_ip: carried.non_ip,
        tagged: carried.tagged,
        routers: rules(&carried.routers, cluster),
    }
}

fn shaping(shaping: Shaping) -> wire::Shaping {
    wire::Shaping {
        guaranteed_mbps: shaping.guaranteed_mbps.unwrap_or_default(),
        ceiling_mbps: shaping.ceiling_mbps.unwrap_or_default(),
        priority: shaping.priority,
    }
}

fn rules(rules: &[NamespaceRule], cluster: &str) -> Vec<Rule> {
    let here = rules
        .iter()
        .filter(|rule| rule.clusters.is_empty() || rule.clusters.iter().any(|one| one == cluster));
    here.map(|rule| Rule {
        name: rule.name.clone(),
        selector: rule.selector.clone(),
        pod_selector: rule.pod_selector.clone(),
    })
    .collect()
}

fn gateway(config: &SliceConfig, cluster: Option<&Cluster>) -> GatewaySettings {
    let own = cluster
        .map(|cluster| cluster.spec.gateway.clone())
        .unwrap_or_default();
    GatewaySettings {
        replicas: config.spec.gateway.replicas,
        threads: config.spec.gateway.threads,
        exposure: exposure(config, cluster).name().to_owned(),
        advertise: own.advertise.iter().map(ToString::to_string).collect(),
        node_selector: own.node_selector,
        tolerations: own.tolerations.iter().map(toleration).collect(),
        keys: key_settings(&config.spec.gateway),
    }
}

/// How a slice's gateways in a cluster are reached.
pub(super) fn exposure(config: &SliceConfig, cluster: Option<&Cluster>) -> Exposure {
    let of_cluster = || cluster.map(|cluster| cluster.spec.gateway.exposure);
    let of_slice = config.spec.gateway.exposure;
    of_slice.or_else(of_cluster).unwrap_or_default()
}

fn toleration(own: &Toleration) -> wire::Toleration {
    let operator = own.operator.map(|operator| match operator {
        TolerationOperator::Equal => "Equal",
        TolerationOperator::Exists => "Exists",
    });
    let effect = own.effect.map(|effect| match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    });
    wire::Toleration {
        key: own.key.clone().unwrap_or_default(),
        operator: operator.unwrap_or_default().to_owned(),
        value: own.value.clone().unwrap_or_default(),
        effect: effect.unwrap_or_default().to_owned(),
        toleration_seconds: own.toleration_seconds,
    }
}

pub(super) fn key_settings(gateway: &SliceGatewaySettings) -> KeySettings {
    let text = |time: &Option<Time>| time.as_ref().map(|time| time.0.to_string());
    KeySettings {
        rotation_seconds: Some(Duration::from(gateway.rotation).as_secs()),
        renewal: text(&gateway.renewed_at),
        revocation: text(&gateway.revoked_at),
    }
}

/// Every cluster and outside host of the slice, by shard.
pub(super) fn shards(
    slice: &str,
    config: &SliceConfig,
    allocation: &SliceAllocationSpec,
    gateways: &BTreeMap<String, Vec<PeerGateway>>,
) -> BTreeMap<u32, SliceShareSpec> {
    let clusters = allocation
        .clusters
        .iter()
        .filter(|own| own.state == State::Held)
        .map(|own| Peer {
            name: own.name.clone(),
            number: own.number,
            ranges: ranges_of(own).into_iter().map(Into::into).collect(),
            gateways: gateways.get(&own.name).cloned().unwrap_or_default(),
        });
    let hosts = allocation
        .hosts
        .iter()
        .filter(|host| host.state == State::Held)
        .filter_map(|host| {
            let peer = config.spec.peers.iter().find(|peer| peer.name == host.name)?;
            Some(Peer {
                name: host.name.clone(),
                number: index::OUTSIDE,
                ranges: vec![slice_crds::IndexRange::new(host.index, 1).into()],
                gateways: vec![PeerGateway {
                    ordinal: host.ordinal,
                    public_key: peer.public_key.clone(),
                    former_key: None,
                    endpoints: peer.endpoints.iter().map(ToString::to_string).collect(),
                }],
            })
        });
    let mut shards: BTreeMap<u32, SliceShareSpec> = BTreeMap::new();
    for peer in clusters.chain(hosts) {
        let shard = peer.number / SHARD;
        let spec = shards.entry(shard).or_insert_with(|| SliceShareSpec {
            slice: slice.to_owned(),
            ..SliceShareSpec::default()
        });
        spec.peers.push(peer);
    }
    for spec in shards.values_mut() {
        spec.peers
            .sort_by(|a, b| (a.number, &a.name).cmp(&(b.number, &b.name)));
    }
    shards
}

/// The peers of a member that reads no shards.
pub(super) fn inline(shards: &BTreeMap<u32, SliceShareSpec>, own: &str) -> Vec<Peer> {
    let peers = shards.values().flat_map(|shard| &shard.peers);
    peers.filter(|peer| peer.name != own).cloned().collect()
}
