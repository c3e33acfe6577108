//! What a member reports to the hub. Everything here is a claim.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Peer, Run};

/// What a member says of itself; the one object is named [`crate::names::MEMBER_REPORT`]. It is written on change only.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MemberReport",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "Nodes", json_path = ".spec.nodes", type_ = "integer"),
    printcolumn(name = "Version", json_path = ".spec.weftVersion", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberReportSpec {
    /// The heartbeat of a member that speaks no [`super::WIRE`]; others send a Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
    /// See [`super::WIRE`]; 0 from a member that reports its slices in [`Self::slices`].
    #[schemars(range(min = 0))]
    pub wire: u32,
    /// Peers and services are to stand in its own namespace, as for a smaller [`Self::wire`]: it is about to become a version
    /// that reads them nowhere else.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inline: bool,
    pub identity: MemberIdentity,
    /// It is leaving this hub and takes every slice down.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    pub weft_version: String,
    pub kubernetes_version: String,
    /// Nodes of the cluster that can take part.
    #[schemars(range(min = 0))]
    pub nodes: u32,
    /// Bytes of the largest packet that every node's own network carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub underlay_mtu: Option<u32>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<String>,
    #[serde(rename = "nodeCIDRs")]
    pub node_cidrs: Vec<String>,
    /// What users wrote in the member that cannot be followed, nodes that cannot take part, and a cluster DNS that does not
    /// forward names of slices.
    pub warnings: Vec<ReportWarning>,
    /// Why nobody knows whether the cluster's DNS goes on answering with Weft's block in its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_unchecked: Option<String>,
    /// What its nodes find when they ask the cluster's DNS for names of slices; absent where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<NamesReport>,
    /// Every slice that the member has, so that a hub knows whose reports it must wait for before it gives anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<Held>,
    /// Reports of a member that speaks no [`super::WIRE`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<MemberSliceReportSpec>,
}

/// Whether names of slices resolve by a member's own DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NamesReport {
    /// On every node that asks.
    pub resolve: bool,
    /// A sentence for a person: which nodes, since when, and what to try.
    pub message: String,
}

/// Which cluster this is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberIdentity {
    /// UID of its namespace kube-system.
    #[serde(rename = "clusterUID")]
    pub cluster_uid: String,
    /// The [`super::MemberJoin`] by which its credential was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
}

/// A slice that the member has.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Held {
    pub slice: String,
    /// Identity of the hub that it has it from.
    pub hub: String,
    pub vni: u32,
}

/// Something in the member cluster that cannot be followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReportWarning {
    /// `<kind> <name>` or `<kind> <namespace>/<name>`, or `Cluster DNS`.
    pub object: String,
    pub message: String,
}

impl ReportWarning {
    /// How the objects of warnings begin that are about where gateways are reached.
    pub const GATEWAYS: &str = "Gateways ";
    /// The object of a warning about the cluster's own DNS.
    pub const CLUSTER_DNS: &str = "Cluster DNS";
}

/// One slice as the member has it; named as the slice.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MemberSliceReport",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "Revision", json_path = ".spec.revision", type_ = "integer"),
    printcolumn(name = "Pods", json_path = ".spec.attachments", type_ = "integer"),
    printcolumn(name = "Problem", json_path = ".spec.problems[0]", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberSliceReportSpec {
    /// The slice.
    pub name: String,
    /// Identity of the hub by whose desired state the member acts.
    pub hub: String,
    /// [`super::MemberSliceSpec::revision`] that it acts by.
    #[schemars(range(min = 0))]
    pub revision: u64,
    /// Nothing of the slice is left on any node.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    pub vni: u32,
    pub cluster_number: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    /// What it uses.
    pub ranges: Vec<Run>,
    /// Ranges of which no node has a block.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub idle: Vec<Run>,
    /// Ranges that were to be given back and of which nothing is used any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub given_back: Vec<Run>,
    /// The other clusters, while the hub that it is reported to is not the one that the member has the slice from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// Attached pods.
    #[schemars(range(min = 0))]
    pub attachments: u32,
    /// Blocks that its nodes have and want, together.
    #[schemars(range(min = 0))]
    pub blocks_needed: u32,
    /// Blocks that nodes want and the member's ranges have no room for, from a member that speaks no [`super::WIRE`].
    #[serde(skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub blocks_wanted: u32,
    pub gateways: Vec<Gateway>,
    /// Clusters that none of its gateways reaches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreached: Vec<String>,
    /// Paths that carry less than [`super::Grant::largest_mtu`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub narrow_paths: Vec<NarrowPath>,
    /// Clusters that are reached by paths of which none is measured yet; never from members before 0.2.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unmeasured: Vec<String>,
    /// Sentences a person can act on; the first is the one that is shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// A path to another cluster, or between two nodes of this one, that carries less than the slice's nodes do.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NarrowPath {
    pub cluster: String,
    /// Bytes of the largest packet of the slice that every path there carries.
    #[schemars(range(min = 0))]
    pub mtu: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A gateway as its member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    pub ordinal: u32,
    /// None until the gateway process has made its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub former_key: Option<String>,
    /// [`super::KeySettings::revocation`] under which the key was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation: Option<String>,
    /// The peer that keeps the next key from being made, because it only knows the former one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewal_waits_for: Option<String>,
    pub endpoints: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// It runs, and its node's agent has a connection to it.
    pub up: bool,
    /// Tunnels, from a member that speaks no [`super::WIRE`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tunnels: Vec<Tunnel>,
}

/// One tunnel of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Tunnel {
    /// `<cluster>/<ordinal>` of the far gateway.
    pub peer: String,
    pub up: bool,
}
