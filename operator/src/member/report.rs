//! What a member reports: to the hub about the cluster, and to its own users about each slice. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use slice_crds::{
    Cidr,
    conditions::{self, Verdict, reason},
    index, names,
    v1alpha1::{Exposure, PeerGateway, Slice, SliceNode, SliceStatus, TunnelStatus},
    wire::{
        Gateway, MemberIdentity, MemberReportSpec, MemberSliceReportSpec, MemberSliceSpec, NamesReport,
        NarrowPath, Peer, ReportWarning, WIRE,
    },
};

use super::{
    cluster_dns, gateways,
    mesh::Mesh,
    nodes::{NodeFacts, Nodes},
    state::{Facts, Link, SliceState},
};

/// More warnings than this are not reported one by one.
const MOST_WARNINGS: usize = 20;
/// Problems of one slice that are reported.
const MOST_PROBLEMS: usize = 8;

/// What a cluster's own report is made from.
pub(super) struct Cluster<'a> {
    pub(super) facts: &'a Facts,
    pub(super) link: &'a Link,
    pub(super) version: &'a str,
    pub(super) inline: bool,
    pub(super) nodes: &'a Nodes,
    pub(super) node_facts: &'a BTreeMap<String, NodeFacts>,
    pub(super) slice_nodes: &'a BTreeMap<String, std::sync::Arc<SliceNode>>,
    pub(super) dns_warnings: &'a [cluster_dns::Warning],
    pub(super) dns_unchecked: Option<&'a str>,
    pub(super) names: Option<NamesReport>,
    /// By object.
    pub(super) warnings: &'a BTreeMap<String, String>,
    pub(super) slices: &'a BTreeMap<String, SliceState>,
}

pub(super) fn cluster(from: &Cluster<'_>) -> MemberReportSpec {
    let mtus = from
        .slice_nodes
        .iter()
        .filter(|(name, _)| from.nodes.usable.contains_key(*name));
    let mtus = mtus.filter_map(|(_, node)| node.status.as_ref()?.underlay_mtu);
    // What Node objects name, and what the agents see where those name nothing.
    let named = from
        .node_facts
        .values()
        .flat_map(|node| &node.pod_cidrs)
        .filter_map(|cidr| cidr.parse().ok());
    let seen = from
        .slice_nodes
        .values()
        .filter_map(|node| node.status.as_ref())
        .flat_map(|status| status.pod_networks.iter().map(|cidr| cidr.net()));
    let addresses = from
        .nodes
        .usable
        .values()
        .map(|node| ipnet::IpNet::from(node.address));
    let dns = from.dns_warnings.iter().map(|warning| ReportWarning {
        object: ReportWarning::CLUSTER_DNS.to_owned(),
        message: warning.message.clone(),
    });
    let left_out = from.nodes.left_out.iter().map(|(node, why)| ReportWarning {
        object: format!("Node {node}"),
        message: why.clone(),
    });
    let labels = from.warnings.iter().map(|(object, message)| ReportWarning {
        object: object.clone(),
        message: message.clone(),
    });
    MemberReportSpec {
        wire: WIRE,
        inline: from.inline,
        identity: MemberIdentity {
            cluster_uid: from.facts.cluster_uid.clone(),
            join: from.link.join.clone(),
        },
        leaving: from.link.leaving,
        weft_version: from.version.to_owned(),
        kubernetes_version: from.facts.kubernetes_version.clone(),
        nodes: u32::try_from(from.nodes.usable.len()).unwrap_or(u32::MAX),
        underlay_mtu: mtus.min().map(u32::from),
        pod_cidrs: aggregate(named.chain(seen).collect()),
        service_cidrs: from.facts.service_cidrs.clone(),
        node_cidrs: aggregate(addresses.collect()),
        names: from.names.clone(),
        zone_unchecked: from.dns_unchecked.map(ToOwned::to_owned),
        warnings: dns
            .chain(left_out)
            .chain(unexposed(from))
            .chain(labels)
            .take(MOST_WARNINGS)
            .collect(),
        holds: from
            .slices
            .iter()
            .filter_map(|(name, slice)| {
                let spec = &slice.object.as_ref()?.spec;
                Some(slice_crds::wire::Held {
                    slice: name.clone(),
                    hub: spec.source.clone().unwrap_or_default().hub,
                    vni: spec.vni,
                })
            })
            .collect(),
        ..MemberReportSpec::default()
    }
}

/// Where gateways are not reached as they should be.
fn unexposed(from: &Cluster<'_>) -> Vec<ReportWarning> {
    let warning = |of: String, message: &str| ReportWarning {
        object: format!("{}{of}", ReportWarning::GATEWAYS),
        message: message.to_owned(),
    };
    let nodes = from.nodes.misannotated();
    let nodes = nodes.map(|(node, why)| warning(format!("on node {node}"), &why));
    let slices = from.slices.iter().filter_map(|(slice, state)| {
        let [first, rest @ ..] = state.exposure.as_slice() else {
            return None;
        };
        Some(warning(
            format!("of slice {slice}"),
            &with_more(first, rest.len()),
        ))
    });
    nodes.chain(slices).collect()
}

fn with_more(first: &str, more: usize) -> String {
    match more {
        0 => first.to_owned(),
        more => format!("{first} (and {more} more)"),
    }
}

/// The few networks that cover the many.
fn aggregate(networks: Vec<ipnet::IpNet>) -> Vec<String> {
    let mut cidrs: Vec<Cidr> = ipnet::IpNet::aggregate(&networks)
        .into_iter()
        .map(Cidr::from)
        .collect();
    cidrs.sort();
    cidrs.iter().map(ToString::to_string).collect()
}

/// What a slice's report is made from.
pub(super) struct OfSlice<'a> {
    pub(super) name: &'a str,
    pub(super) state: &'a SliceState,
    /// The hub's desired state, and the identity of the hub that is reported to.
    pub(super) desired: Option<&'a MemberSliceSpec>,
    pub(super) hub: &'a str,
    pub(super) nodes: &'a Nodes,
    /// Agents that send no heartbeat.
    pub(super) silent: &'a BTreeSet<String>,
    /// What its nodes' probes of each other say.
    pub(super) mesh: &'a Mesh,
    /// Pods of DNS in the slice: they are in every one, and nobody's.
    pub(super) dns_pods: u32,
}

pub(super) fn slice(from: &OfSlice<'_>) -> MemberSliceReportSpec {
    let Some(object) = &from.state.object else {
        // Nothing of it is here, or it is being taken down.
        return MemberSliceReportSpec {
            name: from.name.to_owned(),
            hub: from
                .desired
                .map(|desired| desired.hub.clone())
                .unwrap_or_default(),
            revision: from.desired.map(|desired| desired.revision).unwrap_or_default(),
            released: from.state.is_empty(),
            attachments: attachments(from),
            problems: coming_down(from.state),
            ..MemberSliceReportSpec::default()
        };
    };
    let spec = &object.spec;
    let source = spec.source.clone().unwrap_or_default();
    let gateways: Vec<Gateway> = from
        .state
        .gateways
        .values()
        .map(|gateway| wire_gateway(gateway))
        .collect();
    // A hub that this slice does not come from may have lost its memory: it gets what the others have.
    let peers = match source.hub == from.hub {
        true => vec![],
        false => {
            let clusters = spec.peers.iter().filter(|peer| peer.number != index::OUTSIDE);
            clusters
                .map(|peer| Peer {
                    name: peer.name.clone(),
                    number: peer.number,
                    ranges: peer.ranges.iter().map(|range| (*range).into()).collect(),
                    gateways: vec![],
                })
                .collect()
        }
    };
    MemberSliceReportSpec {
        name: from.name.to_owned(),
        hub: source.hub,
        revision: source.revision,
        released: false,
        vni: spec.vni,
        cluster_number: spec.cluster_number,
        subnets: spec.subnets.iter().map(ToString::to_string).collect(),
        ranges: spec.ranges.iter().map(|range| (*range).into()).collect(),
        idle: from
            .state
            .planned
            .idle
            .iter()
            .map(|range| (*range).into())
            .collect(),
        given_back: from
            .state
            .planned
            .given_back
            .iter()
            .map(|range| (*range).into())
            .collect(),
        peers,
        attachments: attachments(from),
        blocks_needed: from.state.planned.needed,
        gateways,
        unreached: unreached(from.state),
        unmeasured: unmeasured(from.state),
        narrow_paths: narrow_paths(from),
        problems: problems(from),
        ..MemberSliceReportSpec::default()
    }
}

fn wire_gateway(gateway: &slice_crds::v1alpha1::SliceGateway) -> Gateway {
    let status = gateway.status.clone().unwrap_or_default();
    Gateway {
        ordinal: gateway.spec.ordinal,
        public_key: status.public_key,
        former_key: status.former_key,
        revocation: status.revocation,
        renewal_waits_for: status.renewal_waits_for,
        endpoints: gateway.spec.endpoints.iter().map(ToString::to_string).collect(),
        node: status.node,
        up: status.connected && !gateway.spec.lost,
        tunnels: vec![],
    }
}

/// Attached pods of users.
fn attachments(from: &OfSlice<'_>) -> u32 {
    let statuses = from
        .state
        .blocks
        .values()
        .filter_map(|block| block.status.as_ref());
    let all: u32 = statuses.map(|status| status.attachments).sum();
    all.saturating_sub(from.dns_pods)
}

/// The tunnels that are up, of all gateways, with the cluster or host that each leads to.
fn tunnels_up(state: &SliceState) -> impl Iterator<Item = (&str, &TunnelStatus)> {
    let gateways = state.gateways.values().filter(|gateway| !gateway.spec.lost);
    gateways
        .filter_map(|gateway| gateway.status.as_ref())
        .flat_map(|status| &status.tunnels)
        .filter(|tunnel| tunnel.up)
        .filter_map(|tunnel| Some((tunnel.peer.split('/').next()?, tunnel)))
}

/// Clusters that none of the gateways has a tunnel to.
fn unreached(state: &SliceState) -> Vec<String> {
    let peers = state.object.iter().flat_map(|object| &object.spec.peers);
    let up: BTreeSet<&str> = tunnels_up(state).map(|(cluster, _)| cluster).collect();
    // A host outside the clusters may be switched off.
    peers
        .filter(|peer| peer.number != index::OUTSIDE && !up.contains(peer.name.as_str()))
        .map(|peer| peer.name.clone())
        .collect()
}

/// Clusters with tunnels that are up and all of which are still to be measured.
fn unmeasured(state: &SliceState) -> Vec<String> {
    let mut measured: BTreeMap<&str, bool> = BTreeMap::new();
    for (cluster, tunnel) in tunnels_up(state) {
        *measured.entry(cluster).or_default() |= tunnel.path_mtu.is_some();
    }
    let peers = state.object.iter().flat_map(|object| &object.spec.peers);
    // A host outside the clusters answers no probes.
    peers
        .filter(|peer| peer.number != index::OUTSIDE && measured.get(&*peer.name) == Some(&false))
        .map(|peer| peer.name.clone())
        .collect()
}

/// Clusters to which a path carries less than the slice would use; this one itself where one between its nodes does.
fn narrow_paths(from: &OfSlice<'_>) -> Vec<NarrowPath> {
    let Some(spec) = from.state.object.as_ref().map(|object| &object.spec) else {
        return vec![];
    };
    let Some(largest) = spec.largest_mtu else {
        return vec![];
    };
    let mut narrow: BTreeMap<&str, u16> = BTreeMap::new();
    narrow.extend(from.mesh.path_mtu.map(|mtu| (spec.cluster.as_str(), mtu)));
    for (cluster, tunnel) in tunnels_up(from.state) {
        if let Some(mtu) = tunnel.path_mtu.filter(|mtu| *mtu < largest) {
            let known = narrow.entry(cluster).or_insert(mtu);
            *known = mtu.min(*known);
        }
    }
    let path = |(cluster, mtu): (&str, u16)| NarrowPath {
        cluster: cluster.to_owned(),
        mtu: mtu.into(),
    };
    narrow.into_iter().map(path).collect()
}

fn coming_down(state: &SliceState) -> Vec<String> {
    let nodes: Vec<&str> = state.blocks.keys().map(String::as_str).collect();
    let services: Vec<String> = (state.services.keys())
        .map(|(namespace, name)| format!("{namespace}/{name}"))
        .collect();
    let nodes = (!nodes.is_empty()).then(|| {
        format!(
            "it is being taken down, and these nodes still have to report that nothing of it is left: {}; see `kubectl get \
             sliceblocks`",
            nodes.join(", ")
        )
    });
    // Whoever made a load balancer for one keeps it until that is gone.
    let services = (!services.is_empty()).then(|| {
        format!(
            "it is being taken down, and these Services of its gateways are still there: {}; where they stay, their events \
             and finalizers say whose load balancer has to go first (`kubectl describe service`)",
            services.join(", ")
        )
    });
    nodes.into_iter().chain(services).collect()
}

/// Sentences a person can act on; the first is the one that is shown.
fn problems(from: &OfSlice<'_>) -> Vec<String> {
    let mut problems: Vec<String> = from.state.refused.iter().cloned().collect();
    if let Some(why) = &from.state.unreadable {
        problems.push(format!(
            "the Slice cannot be read by this version, and stays as it was: {why}"
        ));
    }
    for node in &from.state.planned.short {
        problems.push(format!(
            "node {node} needs more addresses and the cluster has none left: pods that run keep theirs; see the slice's \
             conditions on the hub"
        ));
    }
    for (node, block) in &from.state.blocks {
        // What is wrong with a node that takes no part is reported once, on its cluster.
        if !from.nodes.usable.contains_key(node) || from.nodes.unready.contains(node) {
            continue;
        }
        if from.silent.contains(node) {
            problems.push(format!(
                "node {node}: its agent sends no heartbeat: see `kubectl -n {} get pods -o wide`",
                names::MEMBER_NAMESPACE
            ));
            continue;
        }
        let Some(status) = &block.status else {
            problems.push(format!(
                "node {node} has not set the slice up: see `kubectl get slicenode {node}`, and `kubectl -n {} get pods -o \
                 wide`",
                names::MEMBER_NAMESPACE
            ));
            continue;
        };
        let failed = status
            .conditions
            .iter()
            .filter(|condition| condition.status == "False");
        problems.extend(failed.map(|condition| format!("node {node}: {}", condition.message)));
    }
    // Before what follows from it.
    problems.extend(from.mesh.problem());
    let connected = |gateway: &slice_crds::v1alpha1::SliceGateway| {
        !gateway.spec.lost && gateway.status.as_ref().is_some_and(|status| status.connected)
    };
    if !from.state.gateways.values().any(|gateway| connected(gateway)) {
        let cluster = from
            .state
            .object
            .as_ref()
            .map(|object| object.spec.cluster.as_str());
        let why = gateways::obstacle(from.state.pods.values(), cluster.unwrap_or_default());
        problems.push(why.map_or_else(
            || {
                format!(
                    "no gateway runs: see `kubectl -n {} describe statefulset {}`",
                    names::GATEWAY_NAMESPACE,
                    names::gateway_workload(from.name)
                )
            },
            |why| format!("no gateway runs: {why}"),
        ));
    }
    // Without an endpoint others can only be dialled from here, and that does not help with all of them.
    let known = |gateway: &slice_crds::v1alpha1::SliceGateway| !gateway.spec.endpoints.is_empty();
    if !from.state.gateways.values().any(|gateway| known(gateway)) && !unreached(from.state).is_empty() {
        problems.extend(from.state.exposure.iter().cloned());
    }
    problems.truncate(MOST_PROBLEMS);
    problems
}

/// The local mirror's status; `dns` are the addresses on which DNS answers inside the slice. What the status says of the
/// hub stays where there is no verdict.
pub(super) fn status(
    object: &Slice,
    report: &MemberSliceReportSpec,
    dns: Vec<IpAddr>,
    more: [Verdict; 2],
    hub: Option<Verdict>,
    now: Timestamp,
) -> SliceStatus {
    let before = conditions::of(object);
    let ready = match (report.problems.first(), report.unreached.first()) {
        (Some(problem), _) => Verdict::no(conditions::READY, reason::DEGRADED, problem.clone()),
        (None, Some(peer)) => Verdict::no(conditions::READY, reason::TUNNELS_DOWN, cut_off(object, peer)),
        (None, None) => Verdict::yes(
            conditions::READY,
            reason::READY,
            "set up, and every other cluster is reached",
        ),
    };
    let kept = match hub {
        Some(_) => None,
        None => conditions::find(before, conditions::REACHABLE).cloned(),
    };
    let verdicts = [ready].into_iter().chain(more).chain(hub);
    let mut conditions = conditions::conditions(before, verdicts, object.metadata.generation, now);
    conditions.extend(kept);
    SliceStatus {
        conditions,
        attachments: report.attachments,
        dns,
        observed_at: None,
    }
}

/// Whether other clusters can be told where the slice's gateways are reached.
pub(super) fn exposed(object: &Slice, troubles: &[String]) -> Verdict {
    let yes = |reason, message: &str| Verdict::yes(conditions::GATEWAYS_EXPOSED, reason, message);
    match (object.spec.gateway.exposure, troubles) {
        (Exposure::None, _) => yes(
            reason::DIALS_ONLY,
            "its gateways are not to be reached and begin every tunnel themselves: the other clusters have to be reached",
        ),
        (_, []) => yes(reason::EXPOSED, "no gateway waits for an address"),
        (_, [first, rest @ ..]) => Verdict::no(
            conditions::GATEWAYS_EXPOSED,
            reason::NO_ADDRESS,
            with_more(first, rest.len()),
        ),
    }
}

/// That a cluster is not reached, and where to look: there, where it has no gateway that could be.
fn cut_off(object: &Slice, peer: &str) -> String {
    let spec = &object.spec;
    let there = spec.peers.iter().find(|one| one.name == peer);
    let gateways = there.map(|there| there.gateways.as_slice());
    if gateways.is_some_and(<[_]>::is_empty) {
        return format!(
            "no tunnel to cluster {peer} is up, because no gateway of it is known: see `slicectl status {}` there",
            object.name_any()
        );
    }
    let unreachable = |all: &[PeerGateway]| all.iter().all(|gateway| gateway.endpoints.is_empty());
    if spec.gateway.exposure == Exposure::None && gateways.is_some_and(unreachable) {
        return format!(
            "no tunnel to cluster {peer} is up, because neither can be reached: here spec.gateway.exposure is None, and no \
             gateway there has an endpoint. On the hub, give Cluster {} or Cluster {peer} another exposure",
            spec.cluster
        );
    }
    format!(
        "no tunnel to cluster {peer} is up: see `kubectl -n {} get slicegateways -o wide`; UDP to its endpoints must pass",
        names::MEMBER_NAMESPACE
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(exposure: &str, gateways: serde_json::Value, says: &str) {
        let slice = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "Slice", "metadata": {"name": "shop"}, "spec": {
                "vni": 7, "subnets": ["10.80.0.0/16"], "mtu": 1370, "blockSize": 8, "cluster": "paris",
                "clusterNumber": 1, "ranges": [], "gateway": {"replicas": 2, "exposure": exposure},
                "peers": [{"name": "tokyo", "number": 2, "ranges": [], "gateways": gateways}],
            },
        });
        let slice: Slice = serde_json::from_value(slice).unwrap();
        let report = MemberSliceReportSpec {
            unreached: vec!["tokyo".to_owned()],
            ..MemberSliceReportSpec::default()
        };
        let other = Verdict::yes(
            conditions::NODES_CONNECTED,
            reason::PAIRS_CARRY,
            "not looked at here",
        );
        let more = [other.clone(), other];
        let status = status(&slice, &report, vec![], more, None, Timestamp::UNIX_EPOCH);
        let ready = conditions::find(&status.conditions, conditions::READY).unwrap();
        assert_eq!(ready.message, says);
    }

    #[test]
    fn udp_is_blamed_only_where_there_is_somebody_to_reach() {
        check(
            "NodePort",
            json!([]),
            "no tunnel to cluster tokyo is up, because no gateway of it is known: see `slicectl status shop` there",
        );
        let reached = json!([{"ordinal": 0, "publicKey": "k", "endpoints": ["192.0.2.1:30000"]}]);
        for exposure in ["NodePort", "None"] {
            check(
                exposure,
                reached.clone(),
                "no tunnel to cluster tokyo is up: see `kubectl -n weft-system get slicegateways -o wide`; UDP to its endpoints \
                 must pass",
            );
        }
        check(
            "None",
            json!([{"ordinal": 0, "publicKey": "k", "endpoints": []}]),
            "no tunnel to cluster tokyo is up, because neither can be reached: here spec.gateway.exposure is None, and no \
             gateway there has an endpoint. On the hub, give Cluster paris or Cluster tokyo another exposure",
        );
    }

    #[test]
    fn a_load_balancer_that_does_not_go_is_named() {
        assert_eq!(coming_down(&SliceState::default()), Vec::<String>::new());
        let mut state = SliceState::default();
        let id = ("weft-gateways".to_owned(), "weft-gateway-shop-0".to_owned());
        state.services.insert(id, std::sync::Arc::default());
        let said = coming_down(&state);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0]
                .contains("weft-gateways/weft-gateway-shop-0; where they stay, their events and finalizers"),
            "{said:?}"
        );
    }
}
