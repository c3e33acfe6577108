//! A slice as the hub hands it to one member.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;

use crate::IndexRange;

/// Clusters in one [`SliceShare`]: those whose number divided by this is the shard's. A slice of up to this many has one
/// or two of these objects, and a new key rewrites one of them.
pub const SHARD: u32 = 16;

/// One slice of one member; named as the slice.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MemberSlice",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "VNI", json_path = ".spec.slice.vni", type_ = "integer"),
    printcolumn(name = "Revision", json_path = ".spec.revision", type_ = "integer"),
    printcolumn(name = "Released", json_path = ".spec.released", type_ = "boolean"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberSliceSpec {
    pub slice: Grant,
    /// Identity of the hub that wrote this: [`super::MemberHubSpec::identity`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hub: String,
    /// Grows with every change of what this member may use. A member's report echoes the one it acts by, and the hub
    /// takes something as given back only from a report of the newest.
    #[schemars(range(min = 0))]
    pub revision: u64,
    /// The slice was deleted, or this cluster taken out of it: the member takes it down and reports so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    /// Namespace on the hub with the slice's [`SliceShare`]s; empty where the peers stand in [`Grant::peers`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub shared_in: String,
    /// The shards of its clusters there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peer_shards: Vec<u32>,
}

/// What a member must know of a slice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Grant {
    /// VXLAN network identifier, 1 to 2²⁴ − 1.
    pub vni: u32,
    pub subnets: Vec<String>,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// What that could be if every path between clusters carried it: gateways find out how much of it theirs do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_mtu: Option<u16>,
    /// Indices per node block, a power of two.
    pub block_size: u32,
    /// The member's name on this hub.
    pub cluster: String,
    /// The member's number in this slice; see [`crate::index::vtep`].
    pub cluster_number: u32,
    pub ranges: Vec<Range>,
    /// The other clusters, for members that report no [`super::WIRE`] or 1.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// Rules that hold in this cluster.
    pub namespaces: Vec<Rule>,
    /// Who may join by label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<crate::v1alpha1::SliceJoin>,
    /// Required or BestEffort.
    pub attach: String,
    pub gateway: GatewaySettings,
    /// Absent from hubs before 0.3, which write `broadcast` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
    /// For members before 0.3.
    pub broadcast: crate::v1alpha1::Broadcast,
    /// Code point on the datagrams between gateways.
    pub dscp: u8,
    /// Absent where the slice is given nothing, and from hubs before 0.3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shaping: Option<Shaping>,
}

/// A run of indices that the member may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Range {
    pub start: u32,
    pub size: u32,
    /// To be given back: no node gets a block of it any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub releasing: bool,
}

/// A run of indices as text of the exchange has it: any two numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Run {
    pub start: u32,
    pub size: u32,
}

impl Run {
    /// The run, where it is one: see [`IndexRange::checked`].
    pub fn range(self) -> Option<IndexRange> {
        IndexRange::checked(self.start, self.size)
    }
}

impl From<IndexRange> for Run {
    fn from(IndexRange { start, size }: IndexRange) -> Self {
        Self { start, size }
    }
}

impl Range {
    /// As [`Run::range`].
    pub fn range(self) -> Option<IndexRange> {
        IndexRange::checked(self.start, self.size)
    }
}

/// As [`crate::v1alpha1::NamespaceRule`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// What the slice carries beside IPv4, IPv6 and ARP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Frames {
    pub broadcast_per_second: u32,
    #[serde(rename = "nonIP")]
    pub non_ip: bool,
    pub tagged: bool,
    /// Pods that may say that they are routers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<Rule>,
}

/// As [`crate::v1alpha1::Shaping`]; zero Mbit/s stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Shaping {
    pub guaranteed_mbps: u32,
    pub ceiling_mbps: u32,
    pub priority: u8,
}

/// Where the member's gateways run and how they are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySettings {
    pub replicas: u32,
    pub threads: u8,
    /// NodePort, HostPort, LoadBalancer or None.
    pub exposure: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    pub keys: KeySettings,
}

/// As [`crate::v1alpha1::Toleration`]; empty stands for absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Equal or Exists.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operator: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// NoSchedule, PreferNoSchedule or NoExecute.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// As [`crate::v1alpha1::KeyPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KeySettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation: Option<String>,
}

/// What every cluster of a slice reads of it, in the slice's namespace on the hub: some of its clusters
/// ([`crate::names::shard`]) or a service of one of them ([`crate::names::service`]). Written once, however many read it.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "SliceShare",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "Slice", json_path = ".spec.slice", type_ = "string"),
    printcolumn(name = "Peers", json_path = ".spec.peers[*].name", type_ = "string"),
    printcolumn(name = "Service", json_path = ".spec.service.name", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceShareSpec {
    pub slice: String,
    /// Those whose number divided by [`SHARD`] is the shard's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<super::Service>,
}

/// One cluster of a slice, or one host outside every cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    pub name: String,
    /// [`crate::index::OUTSIDE`] for a host outside every cluster.
    pub number: u32,
    pub ranges: Vec<Run>,
    pub gateways: Vec<PeerGateway>,
}

/// A gateway of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerGateway {
    pub ordinal: u32,
    /// Curve25519 public key, base 64.
    pub public_key: String,
    /// The key before that one, while the gateway still answers to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub former_key: Option<String>,
    /// Where it listens, best first, `<address>:<port>`. Empty where it can only dial out.
    pub endpoints: Vec<String>,
}
