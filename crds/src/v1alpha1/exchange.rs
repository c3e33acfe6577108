//! What hub and member tell each other, in the member's namespace on the hub. Users read these, never write them.
//!
//! One writer each: the hub writes [`MemberSlice`] and the [`MemberService`]s of other clusters, the member its
//! [`MemberReport`] and the [`MemberService`]s of its own.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    member::{SliceServiceSpec, SliceSpec},
    shared::TunnelStatus,
};
use crate::Cidr;

/// What a member must know about one of its slices; named as the slice.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MemberSlice",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "VNI", json_path = ".spec.slice.vni", type_ = "integer"),
    printcolumn(name = "Peers", json_path = ".spec.slice.peers[*].name", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct MemberSliceSpec {
    pub slice: SliceSpec,
}

/// A service that one cluster exports into a slice; see [`crate::names::service`].
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MemberService",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "Slice", json_path = ".spec.service.slice", type_ = "string"),
    printcolumn(name = "Cluster", json_path = ".spec.service.cluster", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct MemberServiceSpec {
    pub service: SliceServiceSpec,
}

/// What a member tells the hub about itself. It is written on every change, and at least every 15 s as a heartbeat.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MemberReport",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "Nodes", json_path = ".spec.nodes", type_ = "integer"),
    printcolumn(name = "Observed", json_path = ".spec.observedAt", type_ = "date"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct MemberReportSpec {
    pub observed_at: Time,
    pub weft_version: String,
    pub kubernetes_version: String,
    /// Nodes of the cluster.
    pub nodes: u32,
    /// Bytes of the largest packet that every node's own network carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_mtu: Option<u16>,
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<Cidr>,
    #[serde(default, rename = "serviceCIDRs")]
    pub service_cidrs: Vec<Cidr>,
    #[serde(default, rename = "nodeCIDRs")]
    pub node_cidrs: Vec<Cidr>,
    #[serde(default)]
    pub warnings: Vec<ReportWarning>,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub slices: Vec<SliceReport>,
}

/// Something a user wrote in the member cluster that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportWarning {
    /// `<kind> <name>` or `<kind> <namespace>/<name>`.
    pub object: String,
    pub message: String,
}

/// A slice as the member sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SliceReport {
    pub name: String,
    /// Attached pods.
    pub attachments: u32,
    /// Blocks that nodes want and the member's ranges have no room for.
    #[serde(default)]
    pub blocks_wanted: u32,
    #[serde(default)]
    pub gateways: Vec<GatewayReport>,
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    #[serde(default)]
    pub problems: Vec<String>,
}

/// A gateway as its member sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayReport {
    pub ordinal: u32,
    /// `None` until the gateway process has made its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// The key before that one, while the gateway still answers to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_key: Option<String>,
    /// [`super::shared::KeyPolicy::revocation`] under which the key was made: where the slice has another one, it is not trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<String>,
    /// The peer that keeps the next key from being made, because it only knows the former one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_waits_for: Option<String>,
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// It runs and its node agent hears from it.
    pub up: bool,
    #[serde(default)]
    pub tunnels: Vec<TunnelStatus>,
}
