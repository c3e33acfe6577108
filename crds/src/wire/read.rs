//! What the hub wrote, as the member's own objects have it. Pure.
//!
//! The hub may be a version newer: what this build does not know is passed over, and a value that it cannot read falls
//! back to the one that harms least, and is named.

use std::{collections::BTreeSet, net::SocketAddr, str::FromStr};

use super::{GatewaySettings, MemberSliceSpec, Peer, Run, Service, SliceShareSpec};
use crate::{
    Cidr, IndexRange,
    v1alpha1::{
        AttachMode, Exposure, Frames, GatewayPlacement, KeyPolicy, NamespaceRule, PeerCluster, PeerGateway,
        ServiceEndpoint, ServicePort, Shaping, SliceServiceSpec, SliceSource, SliceSpec, TaintEffect,
        Toleration, TolerationOperator,
    },
};

/// Largest rate that a slice is given, in Mbit/s.
const MAX_MBPS: u32 = 1_000_000;
const MAX_PRIORITY: u8 = 7;

/// What could not be read, and what is done instead.
pub type Problems = Vec<String>;

/// The mirror of a slice, from its object and the shards of its peers.
///
/// # Errors
/// Where there is no VNI, subnet or block size that makes sense: the mirror stays what it was.
pub fn slice<'a>(
    desired: &MemberSliceSpec,
    shards: impl IntoIterator<Item = &'a SliceShareSpec>,
) -> Result<(SliceSpec, Problems), String> {
    let mut problems = Problems::new();
    let grant = &desired.slice;
    if grant.vni == 0 || grant.vni >= 1 << 24 {
        return Err(format!("its VNI {} is none", grant.vni));
    }
    if !grant.block_size.is_power_of_two() {
        return Err(format!("its block size {} is no power of two", grant.block_size));
    }
    let mut subnets = Vec::new();
    for subnet in &grant.subnets {
        subnets.push(Cidr::from_str(subnet).map_err(|error| error.to_string())?);
    }
    crate::Subnets::new(&subnets).map_err(|error| error.to_string())?;
    let range = |run: &super::Range| run.range();
    let inline = grant.peers.iter();
    let sharded = shards.into_iter().flat_map(|shard| &shard.peers);
    let mut names = BTreeSet::from([grant.cluster.as_str()]);
    let mut peers: Vec<PeerCluster> = inline
        .chain(sharded)
        // A shard is the same for all of a slice's members, so this one is in it too.
        .filter(|peer| names.insert(&peer.name))
        .map(|peer| peer_cluster(peer, &mut problems))
        .collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    let spec = SliceSpec {
        vni: grant.vni,
        subnets,
        mtu: grant.mtu,
        largest_mtu: grant.largest_mtu,
        block_size: grant.block_size,
        cluster: grant.cluster.clone(),
        cluster_number: grant.cluster_number,
        ranges: grant.ranges.iter().filter_map(range).collect(),
        releasing: grant
            .ranges
            .iter()
            .filter(|run| run.releasing)
            .filter_map(range)
            .collect(),
        peers,
        namespaces: rules(&grant.namespaces),
        join: grant.join.clone(),
        attach: attach(&grant.attach, &mut problems),
        gateway: placement(&grant.gateway, &mut problems),
        frames: grant.frames.as_ref().map(frames),
        broadcast: grant.broadcast,
        dscp: grant.dscp,
        shaping: grant.shaping.as_ref().map(shaping),
        source: Some(SliceSource {
            hub: desired.hub.clone(),
            revision: desired.revision,
        }),
    };
    Ok((spec, problems))
}

fn frames(frames: &super::Frames) -> Frames {
    Frames {
        // A hub has checked it; nothing at all would be no slice.
        broadcast_per_second: frames.broadcast_per_second.max(1),
        non_ip: frames.non_ip,
        tagged: frames.tagged,
        routers: rules(&frames.routers),
    }
}

fn shaping(shaping: &super::Shaping) -> Shaping {
    let rate = |mbps: u32| Some(mbps.min(MAX_MBPS)).filter(|mbps| *mbps > 0);
    let (guaranteed, ceiling) = (rate(shaping.guaranteed_mbps), rate(shaping.ceiling_mbps));
    Shaping {
        guaranteed_mbps: guaranteed.map(|guaranteed| guaranteed.min(ceiling.unwrap_or(MAX_MBPS))),
        ceiling_mbps: ceiling,
        priority: shaping.priority.min(MAX_PRIORITY),
    }
}

fn rules(rules: &[super::Rule]) -> Vec<NamespaceRule> {
    let rule = |rule: &super::Rule| NamespaceRule {
        name: rule.name.clone(),
        selector: rule.selector.clone(),
        clusters: Vec::new(),
        pod_selector: rule.pod_selector.clone(),
    };
    rules.iter().map(rule).collect()
}

/// Waiting is what a user asked for who wrote a value that only a newer version knows: nothing starts without.
fn attach(text: &str, problems: &mut Problems) -> AttachMode {
    match text {
        "BestEffort" => AttachMode::BestEffort,
        "Required" | "" => AttachMode::Required,
        other => {
            problems.push(format!(
                "attach \"{other}\" is unknown to this version and read as Required"
            ));
            AttachMode::Required
        }
    }
}

fn placement(settings: &GatewaySettings, problems: &mut Problems) -> GatewayPlacement {
    let exposure = match settings.exposure.as_str() {
        "HostPort" => Exposure::HostPort,
        "NodePort" | "" => Exposure::NodePort,
        "LoadBalancer" => Exposure::LoadBalancer,
        "None" => Exposure::None,
        other => {
            problems.push(format!(
                "exposure \"{other}\" is unknown to this version and read as NodePort"
            ));
            Exposure::NodePort
        }
    };
    let mut advertise = Vec::new();
    for text in &settings.advertise {
        match text.parse() {
            Ok(address) => advertise.push(address),
            Err(_) => problems.push(format!("advertised address \"{text}\" is none and passed over")),
        }
    }
    GatewayPlacement {
        replicas: settings.replicas.min(crate::index::MAX_ORDINAL + 1),
        threads: settings.threads.clamp(1, 16),
        exposure,
        advertise,
        node_selector: settings.node_selector.clone(),
        tolerations: settings
            .tolerations
            .iter()
            .filter_map(|one| toleration(one, problems))
            .collect(),
        keys: KeyPolicy {
            rotation_seconds: settings.keys.rotation_seconds,
            renewal: settings.keys.renewal.clone(),
            revocation: settings.keys.revocation.clone(),
        },
    }
}

/// One that this version does not know in full would tolerate more than was meant: it is passed over.
fn toleration(toleration: &super::Toleration, problems: &mut Problems) -> Option<Toleration> {
    let mut unknown = |field: &str, value: &str| {
        problems.push(format!(
            "a toleration of the gateways has {field} \"{value}\", which is unknown to this version, and is passed over"
        ));
    };
    let operator = match toleration.operator.as_str() {
        "" => None,
        "Equal" => Some(TolerationOperator::Equal),
        "Exists" => Some(TolerationOperator::Exists),
        other => {
            unknown("operator", other);
            return None;
        }
    };
    let effect = match toleration.effect.as_str() {
        "" => None,
        "NoSchedule" => Some(TaintEffect::NoSchedule),
        "PreferNoSchedule" => Some(TaintEffect::PreferNoSchedule),
        "NoExecute" => Some(TaintEffect::NoExecute),
        other => {
            unknown("effect", other);
            return None;
        }
    };
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    Some(Toleration {
        key: text(&toleration.key),
        operator,
        value: text(&toleration.value),
        effect,
        toleration_seconds: toleration.toleration_seconds,
    })
}

fn peer_cluster(peer: &Peer, problems: &mut Problems) -> PeerCluster {
    let mut gateways = Vec::new();
    for gateway in &peer.gateways {
        let mut endpoints = Vec::new();
        for text in &gateway.endpoints {
            match text.parse::<SocketAddr>() {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(_) => problems.push(format!(
                    "endpoint \"{text}\" of gateway {}/{} is none and passed over",
                    peer.name, gateway.ordinal
                )),
            }
        }
        gateways.push(PeerGateway {
            ordinal: gateway.ordinal,
            public_key: gateway.public_key.clone(),
            former_key: gateway.former_key.clone(),
            endpoints,
        });
    }
    PeerCluster {
        name: peer.name.clone(),
        number: peer.number,
        ranges: ranges(&peer.ranges),
        gateways,
    }
}

fn ranges(runs: &[Run]) -> Vec<IndexRange> {
    runs.iter().filter_map(|run| run.range()).collect()
}

/// A service of another cluster.
pub fn service(service: &Service) -> SliceServiceSpec {
    SliceServiceSpec {
        slice: service.slice.clone(),
        cluster: service.cluster.clone(),
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        headless: service.headless,
        ports: (service.ports.iter())
            .map(|port| ServicePort {
                name: port.name.clone(),
                protocol: port.protocol.clone(),
                port: port.port,
            })
            .collect(),
        endpoints: (service.endpoints.iter())
            .map(|endpoint| ServiceEndpoint {
                hostname: endpoint.hostname.clone(),
                addresses: endpoint
                    .addresses
                    .iter()
                    .filter_map(|text| text.parse().ok())
                    .collect(),
            })
            .collect(),
    }
}

/// The other way round: what this cluster exports.
pub fn exported(spec: &SliceServiceSpec) -> Service {
    Service {
        slice: spec.slice.clone(),
        cluster: spec.cluster.clone(),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        headless: spec.headless,
        ports: (spec.ports.iter())
            .map(|port| super::Port {
                name: port.name.clone(),
                protocol: port.protocol.clone(),
                port: port.port,
            })
            .collect(),
        endpoints: (spec.endpoints.iter())
            .map(|endpoint| super::Endpoint {
                hostname: endpoint.hostname.clone(),
                addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn desired(more: serde_json::Value) -> MemberSliceSpec {
        let mut slice = json!({
            "vni": 4097, "subnets": ["10.80.0.0/16"], "mtu": 1370, "blockSize": 64, "cluster": "a", "clusterNumber": 1,
            "ranges": [{"start": 0, "size": 64}],
        });
        slice
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        serde_json::from_value(json!({"slice": slice, "hub": "h", "revision": 3})).unwrap()
    }

    fn shard(peers: serde_json::Value) -> SliceShareSpec {
        serde_json::from_value(json!({"slice": "shop", "shard": 0, "peers": peers})).unwrap()
    }

    #[test]
    fn what_is_carried_is_read_of_hubs_of_either_release() {
        let carried = |grant| slice(&desired(grant), []).unwrap().0.carried();
        let former = carried(json!({"broadcast": {"framesPerSecond": 7, "nonIP": false}}));
        assert_eq!(
            (former.broadcast_per_second, former.non_ip, former.tagged),
            (7, false, false)
        );
        let both = carried(json!({
            "broadcast": {"framesPerSecond": 7, "nonIP": false},
            "frames": {"broadcastPerSecond": 9, "nonIP": true, "tagged": true, "routers": [{"name": "edge"}]},
        }));
        assert_eq!(
            (both.broadcast_per_second, both.non_ip, both.tagged),
            (9, true, true)
        );
        assert_eq!(both.routers[0].name.as_deref(), Some("edge"));
        assert_eq!(carried(json!({})), Frames::default());
    }

    #[test]
    fn shaping_is_held_to_what_makes_sense() {
        let read = |grant| slice(&desired(grant), []).unwrap().0.shaping;
        assert_eq!(read(json!({})), None);
        let odd = json!({"shaping": {"guaranteedMbps": 50, "ceilingMbps": 20, "priority": 9}});
        let expected = Shaping {
            guaranteed_mbps: Some(20),
            ceiling_mbps: Some(20),
            priority: 7,
        };
        assert_eq!(read(odd), Some(expected));
        let none = Shaping::default();
        assert_eq!(read(json!({"shaping": {"guaranteedMbps": 0}})), Some(none));
    }

    #[test]
    fn tolerations_of_a_kind_that_is_not_known_are_passed_over_and_named() {
        let tolerations = json!([
            {"key": "infra", "operator": "Exists"},
            {"key": "sla", "operator": "Gt", "value": "950"},
            {"key": "edge", "effect": "NoEntry"},
        ]);
        let (spec, problems) = slice(&desired(json!({"gateway": {"tolerations": tolerations}})), []).unwrap();
        assert_eq!(
            serde_json::to_value(spec.gateway.tolerations).unwrap(),
            json!([{"key": "infra", "operator": "Exists"}])
        );
        assert!(
            problems[0].contains("operator \"Gt\"") && problems[1].contains("effect \"NoEntry\""),
            "{problems:?}"
        );
    }

    #[test]
    fn a_shard_holds_the_member_itself_and_it_is_no_peer() {
        let peers = shard(json!([{"name": "b", "number": 2}, {"name": "a", "number": 1}]));
        let (spec, problems) = slice(&desired(json!({})), [&peers]).unwrap();
        let names: Vec<_> = spec.peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!((names, problems), (vec!["b"], vec![]));
        let source = spec.source.unwrap();
        assert_eq!((source.hub.as_str(), source.revision), ("h", 3));
    }

    #[test]
    fn what_a_newer_hub_writes_is_read_as_far_as_it_is_known() {
        let newer = desired(json!({
            "attach": "Eventually", "color": "red", "ranges": [{"start": 0, "size": 64}, {"start": 3, "size": 5}],
            "gateway": {"replicas": 2, "threads": 200, "exposure": "Satellite", "advertise": ["gw.example.com", "192.0.2.1"]},
        }));
        let peers = shard(json!([{"name": "b", "number": 2, "mood": "good", "gateways": [
            {"ordinal": 0, "publicKey": "K", "endpoints": ["gw.example.com:1", "192.0.2.9:1"]}]}]));
        let (spec, problems) = slice(&newer, [&peers]).unwrap();
        assert_eq!(spec.ranges, [IndexRange::new(0, 64)]);
        assert_eq!(
            (spec.attach, spec.gateway.exposure),
            (AttachMode::Required, Exposure::NodePort)
        );
        assert_eq!(spec.gateway.threads, 16);
        assert_eq!(
            spec.gateway.advertise.len() + spec.peers[0].gateways[0].endpoints.len(),
            2
        );
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn what_makes_no_network_is_refused_whole() {
        for (broken, says) in [
            (json!({"vni": 0}), "VNI 0"),
            (json!({"blockSize": 63}), "block size 63"),
            (json!({"subnets": ["10.80.0.1/16"]}), "host bits"),
            (json!({"subnets": []}), "at least one subnet"),
        ] {
            let error = slice(&desired(broken), []).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
