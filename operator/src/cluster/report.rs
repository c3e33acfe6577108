//! What the member tells: the hub about the cluster, and its own users about each slice. Pure.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{ResourceExt, core::PartialObjectMeta};
use slice_crds::{
    Cidr,
    conditions::{self, Verdict, reason},
    index, labels,
    membership::{self, Membership, PodFacts, Rules},
    names,
    v1alpha1::{
        GatewayReport, MemberReportSpec, ReportWarning, Slice, SliceBlock, SliceGateway, SliceNode,
        SliceReport, SliceStatus,
    },
};
use slice_runtime::version;

use super::{blocks::NodeAddress, services};

/// More warnings than this are counted, not listed: the report must stay small.
const MAX_WARNINGS: usize = 20;

/// What a report is made from.
pub struct Seen<'a> {
    pub slices: &'a [Arc<Slice>],
    pub blocks: &'a [Arc<SliceBlock>],
    pub gateways: &'a [Arc<SliceGateway>],
    pub slice_nodes: &'a [Arc<SliceNode>],
    pub nodes: &'a [Arc<Node>],
    pub addresses: &'a [NodeAddress],
    pub namespaces: &'a [Arc<PartialObjectMeta<Namespace>>],
    pub pods: &'a BTreeMap<(String, String), Arc<PartialObjectMeta<Pod>>>,
    pub rules: &'a [Rules],
    /// Blocks that did not fit, by slice.
    pub wanted: &'a BTreeMap<String, u32>,
    pub service_cidrs: &'a [Cidr],
    pub kubernetes_version: &'a str,
    /// What else the operator could not do.
    pub troubles: &'a [ReportWarning],
}

pub fn report(seen: &Seen<'_>, now: Timestamp) -> MemberReportSpec {
    let node_mtus = seen
        .slice_nodes
        .iter()
        .filter_map(|node| node.status.as_ref()?.underlay_mtu);
    let node_cidrs = seen
        .addresses
        .iter()
        .map(|node| ipnet::IpNet::from(node.address))
        .collect();
    let pod_cidrs = seen
        .nodes
        .iter()
        .filter_map(|node| node.spec.as_ref())
        .flat_map(|spec| {
            spec.pod_cidrs
                .clone()
                .unwrap_or_else(|| spec.pod_cidr.clone().into_iter().collect())
        })
        .filter_map(|cidr| cidr.parse().ok())
        .collect();
    MemberReportSpec {
        observed_at: Time(now),
        weft_version: version::VERSION.to_owned(),
        kubernetes_version: seen.kubernetes_version.to_owned(),
        nodes: u32::try_from(seen.nodes.len()).unwrap_or(u32::MAX),
        underlay_mtu: node_mtus.min(),
        pod_cidrs: aggregate(pod_cidrs),
        service_cidrs: seen.service_cidrs.to_vec(),
        node_cidrs: aggregate(node_cidrs),
        warnings: warnings(seen),
        slices: seen
            .slices
            .iter()
            .map(|slice| slice_report(slice, seen))
            .collect(),
    }
}

/// The report without what changes all the time: two that are equal then need not both be sent.
pub fn lasting(report: &MemberReportSpec) -> MemberReportSpec {
    let mut lasting = report.clone();
    lasting.observed_at = Time(Timestamp::UNIX_EPOCH);
    for tunnel in lasting
        .slices
        .iter_mut()
        .flat_map(|slice| &mut slice.gateways)
        .flat_map(|one| &mut one.tunnels)
    {
        tunnel.last_handshake = None;
        tunnel.rtt_micros = None;
    }
    lasting
}

/// The few networks that cover the many.
fn aggregate(networks: Vec<ipnet::IpNet>) -> Vec<Cidr> {
    let mut cidrs: Vec<Cidr> = ipnet::IpNet::aggregate(&networks)
        .into_iter()
        .map(Cidr::from)
        .collect();
    cidrs.sort();
    cidrs
}

/// Labels that cannot be followed.
fn warnings(seen: &Seen<'_>) -> Vec<ReportWarning> {
    let mut warnings = seen.troubles.to_vec();
    for namespace in seen
        .namespaces
        .iter()
        .filter(|namespace| namespace.labels().contains_key(labels::SLICE))
    {
        let facts = PodFacts {
            namespace: namespace.name_any(),
            ..PodFacts::default()
        };
        let membership = membership::of_pod(&facts, namespace.labels(), seen.rules);
        warnings.extend(complaints(
            &membership,
            format!("Namespace {}", namespace.name_any()),
        ));
    }
    for ((namespace, name), pod) in seen
        .pods
        .iter()
        .filter(|(_, pod)| pod.labels().contains_key(labels::SLICE))
    {
        let facts = PodFacts {
            namespace: namespace.clone(),
            labels: pod.labels().clone(),
            host_network: false,
        };
        let membership = membership::of_pod(&facts, &membership::Labels::new(), seen.rules);
        warnings.extend(complaints(&membership, format!("Pod {namespace}/{name}")));
    }
    warnings.sort();
    warnings.truncate(MAX_WARNINGS);
    warnings
}

fn complaints<'a>(
    membership: &'a Membership<'_>,
    object: String,
) -> impl Iterator<Item = ReportWarning> + use<'a> {
    let warning = move |message: String| ReportWarning {
        object: object.clone(),
        message,
    };
    membership
        .errors
        .iter()
        .map(move |error| warning(error.to_string()))
}

fn slice_report(slice: &Slice, seen: &Seen<'_>) -> SliceReport {
    let name = slice.name_any();
    SliceReport {
        attachments: attachments(&name, seen),
        blocks_wanted: seen.wanted.get(&name).copied().unwrap_or_default(),
        gateways: gateways(&name, seen),
        dns: dns(&name, seen),
        problems: problems(slice, seen),
        name,
    }
}

fn attachments(slice: &str, seen: &Seen<'_>) -> u32 {
    let of_slice = seen.blocks.iter().filter(|block| block.spec.slice == slice);
    of_slice
        .filter_map(|block| block.status.as_ref())
        .map(|status| status.attachments)
        .sum()
}

fn gateways(slice: &str, seen: &Seen<'_>) -> Vec<GatewayReport> {
    let mut gateways: Vec<GatewayReport> = seen
        .gateways
        .iter()
        .filter(|gateway| gateway.spec.slice == slice)
        .map(|gateway| {
            let status = gateway.status.clone().unwrap_or_default();
            GatewayReport {
                ordinal: gateway.spec.ordinal,
                public_key: status.public_key,
                former_key: status.former_key,
                revocation: status.revocation,
                renewal_waits_for: status.renewal_waits_for,
                endpoints: gateway.spec.endpoints.clone(),
                node: status.node,
                up: status.connected,
                tunnels: status.tunnels,
            }
        })
        .collect();
    gateways.sort_by_key(|gateway| gateway.ordinal);
    gateways
}

fn dns(slice: &str, seen: &Seen<'_>) -> Vec<IpAddr> {
    let pods = seen.pods.iter().filter(|((namespace, _), pod)| {
        namespace == names::MEMBER_NAMESPACE
            && pod
                .labels()
                .get(labels::COMPONENT)
                .is_some_and(|value| value == labels::COMPONENT_DNS)
    });
    let mut addresses: Vec<IpAddr> = pods
        .flat_map(|(_, pod)| services::attachments(pod))
        .filter(|attachment| attachment.slice == slice)
        .flat_map(|attachment| attachment.ips)
        .collect();
    addresses.sort();
    addresses
}

/// Sentences a person can act on; the first is the one that is shown.
fn problems(slice: &Slice, seen: &Seen<'_>) -> Vec<String> {
    let name = slice.name_any();
    let mut problems = Vec::new();
    for block in seen.blocks.iter().filter(|block| block.spec.slice == name) {
        let Some(status) = &block.status else {
            problems.push(format!(
                "node {} has not set the slice up: see `kubectl get slicenode {0}`, and `kubectl -n {1} get pods -o wide`",
                block.spec.node, names::MEMBER_NAMESPACE
            ));
            continue;
        };
        let failed = status
            .conditions
            .iter()
            .filter(|condition| condition.status == "False");
        problems.extend(failed.map(|condition| format!("node {}: {}", block.spec.node, condition.message)));
    }
    if !seen.gateways.iter().any(|gateway| {
        gateway.spec.slice == name && gateway.status.as_ref().is_some_and(|status| status.connected)
    }) {
        problems.push(format!(
            "no gateway runs: see `kubectl -n {} describe statefulset {}`",
            names::MEMBER_NAMESPACE,
            names::gateway_workload(&name)
        ));
    }
    problems
}

/// The local mirror's status.
pub fn slice_status(
    slice: &Slice,
    report: &SliceReport,
    hub_silent: Option<&str>,
    now: Timestamp,
) -> SliceStatus {
    let before: &[Condition] = slice
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let up = |peer: &str| {
        let prefix = format!("{peer}/");
        let mut tunnels = report.gateways.iter().flat_map(|gateway| &gateway.tunnels);
        tunnels.any(|tunnel| tunnel.up && tunnel.peer.starts_with(&prefix))
    };
    // A host outside the clusters may be switched off.
    let clusters = slice
        .spec
        .peers
        .iter()
        .filter(|peer| peer.number != index::OUTSIDE);
    let cut_off = clusters.into_iter().find(|peer| !up(&peer.name));
    let ready = match (report.problems.first(), cut_off) {
        (Some(problem), _) => Verdict::no(conditions::READY, reason::DEGRADED, problem.clone()),
        (None, Some(peer)) => Verdict::no(
            conditions::READY,
            reason::TUNNELS_DOWN,
            format!(
                "no tunnel to cluster {} is up: see `kubectl -n {} get slicegateways -o wide`; UDP to its endpoints must pass",
                peer.name,
                names::MEMBER_NAMESPACE
            ),
        ),
        (None, None) => Verdict::yes(
            conditions::READY,
            reason::READY,
            "set up, and every other cluster is reached",
        ),
    };
    let reachable = match hub_silent {
        None => Verdict::yes(conditions::REACHABLE, reason::REPORTING, "the hub answers"),
        Some(error) => Verdict::no(
            conditions::REACHABLE,
            reason::HUB_UNREACHABLE,
            format!("the hub does not answer, so changes to slices wait; everything else goes on: {error}"),
        ),
    };
    SliceStatus {
        conditions: conditions::conditions(before, [ready, reachable], slice.metadata.generation, now),
        attachments: report.attachments,
        dns: report.dns.clone(),
        observed_at: Some(Time(now)),
    }
}
