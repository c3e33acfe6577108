//! What a member cluster's own processes work from. The cluster operator writes the specs; users only read.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    hub::NamespaceRule,
    shared::{
        AttachMode, Broadcast, Frames, GatewayPlacement, PeerCluster, ServiceEndpoint, ServicePort, Shaping,
        SliceJoin, TunnelStatus,
    },
};
use crate::{Cidr, IndexRange, index, pattern};

/// A slice that this cluster is a member of: the hub's word, mirrored, so that everything goes on without the hub.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "Slice",
    status = "SliceStatus",
    shortname = "sl",
    category = "weft",
    derive = "PartialEq",
    printcolumn(name = "Subnets", json_path = ".spec.subnets", type_ = "string"),
    printcolumn(name = "MTU", json_path = ".spec.mtu", type_ = "integer"),
    printcolumn(name = "Pods", json_path = ".status.attachments", type_ = "integer"),
    printcolumn(
        name = "Ready",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        type_ = "string"
    ),
    printcolumn(
        name = "Nodes-Connected",
        json_path = ".status.conditions[?(@.type==\"NodesConnected\")].status",
        type_ = "string"
    ),
    printcolumn(
        name = "Message",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        type_ = "string"
    ),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct SliceSpec {
    /// VXLAN network identifier, 1 to 2²⁴ − 1.
    pub vni: u32,
    #[schemars(inner(regex(pattern = pattern::CIDR)))]
    pub subnets: Vec<Cidr>,
    /// Bytes of the largest IP packet on every interface of the slice.
    pub mtu: u16,
    /// What that could be if every path carried it; absent from operators before 0.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_mtu: Option<u16>,
    /// Indices per node block, a power of two.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub block_size: u32,
    /// This cluster's name on the hub.
    pub cluster: String,
    /// This cluster's number on the hub.
    #[schemars(range(max = 510))]
    pub cluster_number: u32,
    /// This cluster's indices.
    #[serde(deserialize_with = "index::runs")]
    pub ranges: Vec<IndexRange>,
    /// Those of [`Self::ranges`] that are to be given back: nodes get no block of them any more.
    #[serde(
        default,
        deserialize_with = "index::runs",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub releasing: Vec<IndexRange>,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub peers: Vec<PeerCluster>,
    /// Rules that hold in this cluster; `clusters` is empty in each.
    #[serde(default)]
    pub namespaces: Vec<NamespaceRule>,
    /// Whose labels may put pods in; as by its default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<SliceJoin>,
    #[serde(default)]
    pub attach: AttachMode,
    pub gateway: GatewayPlacement,
    /// Absent from operators before 0.3, which write `broadcast` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
    /// For agents before 0.3.
    #[serde(default)]
    pub broadcast: Broadcast,
    /// See [`super::hub::QosProfileSpec::dscp`]; 0 where the slice has no profile.
    #[serde(default)]
    pub dscp: u8,
    /// What it is given of the uplinks; it shares what is left where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shaping: Option<Shaping>,
    /// Where this comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SliceSource>,
}

impl SliceSpec {
    /// What is carried, by whichever field says it.
    pub fn carried(&self) -> Frames {
        self.frames.clone().unwrap_or_else(|| self.broadcast.into())
    }
}

/// The hub's object that a Slice mirrors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceSource {
    /// Identity of the hub: [`crate::wire::MemberHubSpec::identity`].
    pub hub: String,
    /// [`crate::wire::MemberSliceSpec::revision`]: an older one of the same hub never replaces a newer one.
    pub revision: u64,
}

#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceStatus {
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Attached pods in this cluster.
    #[serde(default)]
    pub attachments: u32,
    /// Addresses on which this cluster's DNS answers inside the slice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = pattern::IP)))]
    pub dns: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
}

/// The indices of one slice that one node hands out; see [`crate::names::block`].
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "SliceBlock",
    status = "SliceBlockStatus",
    shortname = "slb",
    category = "weft",
    derive = "PartialEq",
    printcolumn(name = "Slice", json_path = ".spec.slice", type_ = "string"),
    printcolumn(name = "Node", json_path = ".spec.node", type_ = "string"),
    printcolumn(name = "Pods", json_path = ".status.attachments", type_ = "integer"),
    printcolumn(name = "Free", json_path = ".status.free", type_ = "integer"),
    printcolumn(
        name = "Ready",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        type_ = "string"
    ),
    printcolumn(
        name = "Message",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        type_ = "string",
        priority = 1
    ),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct SliceBlockSpec {
    pub slice: String,
    pub node: String,
    /// The node's address in its own cluster: where the other nodes send this block's frames.
    #[schemars(regex(pattern = pattern::IP))]
    pub node_address: IpAddr,
    #[serde(deserialize_with = "index::runs")]
    pub blocks: Vec<IndexRange>,
    /// Those of [`Self::blocks`] that are to be given back: the node gives out no index of them any more, and says in
    /// [`SliceBlockStatus::released`] when none is used.
    #[serde(
        default,
        deserialize_with = "index::runs",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub releasing: Vec<IndexRange>,
    /// Why the node takes no part for now, such as an address that two nodes have: other nodes send it nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<String>,
}

#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceBlockStatus {
    /// Attached pods.
    #[serde(default)]
    pub attachments: u32,
    /// Indices that a new pod could have at once. One that was given back rests before it counts.
    #[serde(default)]
    pub free: u32,
    /// Usable indices of all the blocks that the node agent knows.
    #[serde(default)]
    pub usable: u32,
    /// Blocks that no pod has an index of, and whose indices have rested: they can be taken back at once.
    #[serde(
        default,
        deserialize_with = "index::runs",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub idle: Vec<IndexRange>,
    /// Those of [`SliceBlockSpec::releasing`] that are not used any more, and never will be.
    #[serde(
        default,
        deserialize_with = "index::runs",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub released: Vec<IndexRange>,
    /// Indices that pods have and that lie in none of the blocks: the SliceBlock that they came from was lost.
    #[serde(
        default,
        deserialize_with = "index::runs",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub strays: Vec<IndexRange>,
    /// Whether anything of the slice is on the node. Only where this is `false` was it taken down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
    /// Whether the node answers the probes of other nodes; those of earlier releases do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answers_probes: bool,
    /// Generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
}

/// One gateway replica of a slice; see [`crate::names::gateway`].
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "SliceGateway",
    namespaced,
    status = "SliceGatewayStatus",
    shortname = "slgw",
    category = "weft",
    derive = "PartialEq",
    printcolumn(name = "Slice", json_path = ".spec.slice", type_ = "string"),
    printcolumn(name = "Node", json_path = ".status.node", type_ = "string"),
    printcolumn(name = "Endpoints", json_path = ".spec.endpoints", type_ = "string"),
    printcolumn(name = "Connected", json_path = ".status.connected", type_ = "boolean"),
    printcolumn(
        name = "Tunnels",
        json_path = ".status.tunnels[*].peer",
        type_ = "string",
        priority = 1
    ),
    printcolumn(name = "Observed", json_path = ".status.observedAt", type_ = "date"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct SliceGatewaySpec {
    pub slice: String,
    #[schemars(range(max = 253))]
    pub ordinal: u32,
    /// Where other clusters reach it, best first; follows the pod from node to node.
    #[serde(default)]
    #[schemars(inner(regex(pattern = pattern::SOCKET)))]
    pub endpoints: Vec<SocketAddr>,
    /// The node that its pod was put on: that node's agent writes its status, and no other's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// That node is not ready, or its agent sends no heartbeat: what the status says may not be so any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

/// Written by the agent of the node that the gateway runs on: the gateway itself has no credential.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceGatewayStatus {
    /// Curve25519 public key, base 64. The private key never leaves the gateway process.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether the gateway talks to its node agent.
    #[serde(default)]
    pub connected: bool,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["peer".into()]))]
    pub tunnels: Vec<TunnelStatus>,
    /// What of the kernel's help the gateway has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<DataPathStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
}

/// What of the kernel's help a gateway has: without some of it, it carries less.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataPathStatus {
    /// Threads that carry frames.
    pub threads: u32,
    /// Queues of the TAP device that are read: fewer than threads where the node's kernel cannot keep a flow on one.
    pub tap_queues: u32,
    /// What the TAP device leaves to the gateway: none, checksum, tcp, udp or tunnel, each with what is before it. With tcp,
    /// udp (Linux 6.2) and tunnel (6.17: tcp and udp in a VXLAN or Geneve of the pods' own) it gives super-frames.
    pub tap_offload: String,
    /// Whether datagrams are handed to the kernel in groups (UDP_SEGMENT, Linux 4.18).
    pub udp_segmentation: bool,
    /// Whether datagrams come from the kernel in groups (UDP_GRO, Linux 5.0).
    pub udp_coalescing: bool,
}

/// A node of this cluster, named as its Node.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "SliceNode",
    status = "SliceNodeStatus",
    shortname = "sln",
    category = "weft",
    derive = "PartialEq",
    printcolumn(name = "Phase", json_path = ".status.phase", type_ = "string"),
    printcolumn(name = "Version", json_path = ".status.version", type_ = "string"),
    printcolumn(name = "Underlay-MTU", json_path = ".status.underlayMtu", type_ = "integer"),
    printcolumn(
        name = "Guarantees-Fit",
        json_path = ".status.conditions[?(@.type==\"GuaranteesFit\")].status",
        type_ = "string"
    ),
    printcolumn(
        name = "Message",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        type_ = "string"
    ),
    printcolumn(name = "Observed", json_path = ".status.observedAt", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct SliceNodeSpec {
    /// Asks the node agent to take everything of Weft off the node; set while Weft is uninstalled.
    #[serde(default)]
    pub teardown: bool,
    /// What the node has to other clusters, as the annotation `weft.dev/uplink` of its Node has it; see [`crate::rate`].
    /// Where absent, the speed of the interface with its address counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// Where slice DNS answers, while the cluster's DNS forwards names of slices to it: the agent asks whether they resolve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = pattern::IP))]
    pub slice_dns: Option<IpAddr>,
}

/// Where a node agent stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SliceNodePhase {
    #[default]
    Starting,
    Ready,
    /// Something is missing; the Ready condition says what.
    Degraded,
    /// Nothing of Weft is left on the node.
    Removed,
}

#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceNodeStatus {
    #[serde(default)]
    pub phase: SliceNodePhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Bytes of the largest packet on the interface that holds the node's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_mtu: Option<u16>,
    /// Networks that the addresses of the node's pods lie in.
    #[serde(default, rename = "podNetworks", skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = pattern::CIDR)))]
    pub pod_networks: Vec<Cidr>,
    /// Kernel features probed at start, by name, and whether they are there.
    #[serde(default)]
    pub features: BTreeMap<String, bool>,
    /// Nodes that what this one sends does not reach as it should, or the other way round.
    #[serde(default, skip_serializing_if = "MeshStatus::is_well")]
    pub mesh: MeshStatus,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
}

/// What a node's probes of the other nodes say. Of each two nodes one probes the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshStatus {
    /// How many pairs of this node and another one are broken.
    #[serde(default)]
    pub broken: u32,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub pairs: Vec<BrokenPair>,
}

impl MeshStatus {
    pub const fn is_well(&self) -> bool {
        self.broken == 0 && self.pairs.is_empty()
    }
}

/// The node of the status and another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokenPair {
    /// The other node.
    #[schemars(length(max = 253))]
    pub node: String,
    #[schemars(regex(pattern = pattern::IP))]
    pub address: IpAddr,
    /// UDP port there: 14789 for its pods, 14790 for its gateways.
    pub port: u16,
    pub fault: PairFault,
    /// Bytes of the largest IP packet that the slices that both are in could have.
    pub size: u16,
    /// Bytes of the largest that passes without being cut on its way, where one of that size does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<u16>,
    pub since: Time,
}

/// What is wrong between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum PairFault {
    /// Nothing passes, at least one way.
    Silent,
    /// Small packets pass, and full ones do not.
    Size,
    /// Full packets pass only in fragments.
    Fragments,
}

/// What DNS answers for one service that one cluster exports into one slice; see [`crate::names::service`].
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "SliceService",
    namespaced,
    shortname = "slsvc",
    category = "weft",
    derive = "PartialEq",
    printcolumn(name = "Slice", json_path = ".spec.slice", type_ = "string"),
    printcolumn(name = "Cluster", json_path = ".spec.cluster", type_ = "string"),
    printcolumn(name = "Service", json_path = ".spec.name", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct SliceServiceSpec {
    pub slice: String,
    /// The cluster that exports it.
    pub cluster: String,
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// Without a cluster address: its pods have names of their own.
    #[serde(default)]
    pub headless: bool,
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// Ready pods only, sorted.
    #[serde(default)]
    pub endpoints: Vec<ServiceEndpoint>,
}
