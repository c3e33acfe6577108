//! Values that more than one kind is made of.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hub::{NamespaceRule, SliceGatewaySettings};
use crate::{IndexRange, index, pattern};

/// Whose labels may put pods into a slice. The namespaces that a SliceConfig names are in whatever stands here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceJoin {
    /// Namespaces whose own label, and whose pods' labels, count; every namespace where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Whether the label `weft.dev/slice` on a namespace counts.
    pub namespace_labels: bool,
    /// Whether the label on a pod counts in every one of these namespaces. Where it does not, it counts within
    /// namespaces that are in the slice, for pods that its rules leave out.
    pub pod_labels: bool,
}

impl Default for SliceJoin {
    fn default() -> Self {
        Self {
            namespace_selector: None,
            namespace_labels: true,
            pod_labels: false,
        }
    }
}

/// What happens to a pod of the slice that cannot get its interface when it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AttachMode {
    /// Its containers wait for the interface.
    #[default]
    Required,
    /// It starts and is attached as soon as that is possible.
    BestEffort,
}

/// How gateways are reached from other clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Exposure {
    /// A port of the gateway's node, allocated by Kubernetes.
    #[default]
    NodePort,
    /// A port of the gateway's node, opened by the container runtime.
    HostPort,
    /// A Service of type LoadBalancer for each gateway.
    LoadBalancer,
    /// Not at all: gateways begin every tunnel themselves, so that the clusters that they are to reach need another one.
    None,
}

impl Exposure {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NodePort => "NodePort",
            Self::HostPort => "HostPort",
            Self::LoadBalancer => "LoadBalancer",
            Self::None => "None",
        }
    }
}

/// A taint that gateways tolerate, as in a pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')")
    .message("an element of spec.gateway.tolerations without a key is for every taint: add operator: Exists, or the taint's key"))]
#[x_kube(validation = Rule::new("!(has(self.operator) && self.operator == 'Exists' && has(self.value) && self.value != '')")
    .message("an element of spec.gateway.tolerations with operator Exists is for every value: take out the value, or the operator"))]
#[x_kube(validation = Rule::new("!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')")
    .message("tolerationSeconds of spec.gateway.tolerations goes with effect NoExecute only: take it out, or say that effect"))]
pub struct Toleration {
    /// The taint's key; every taint where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317), regex(pattern = pattern::TAINT_KEY))]
    pub key: Option<String>,
    /// Equal where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// The taint's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = pattern::TAINT_VALUE))]
    pub value: Option<String>,
    /// Every effect where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// How long a gateway stays on a node that gets the taint; for good where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub toleration_seconds: Option<i64>,
}

/// How a toleration is compared with a taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    /// Key and value are the taint's.
    Equal,
    /// The key is the taint's.
    Exists,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// What a slice carries beside IPv4, IPv6 and ARP from one attachment to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Frames {
    /// Broadcast and multicast frames a second that each pod may send, and that each node and gateway takes in; more are
    /// dropped and counted.
    #[serde(default = "Broadcast::default_rate")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub broadcast_per_second: u32,
    /// Whether frames that are not IPv4, IPv6 or ARP are carried.
    #[serde(default = "Broadcast::default_non_ip", rename = "nonIP")]
    pub non_ip: bool,
    /// Whether frames with a VLAN tag are carried (802.1Q and 802.1ad). What is in a tag without a VLAN is checked as without
    /// the tag; what is in a VLAN only by the addresses of its frames, so pods of one VLAN have to trust each other.
    #[serde(default)]
    pub tagged: bool,
    /// Pods that may say that they are routers, by router advertisements and redirects: every pod of the slice may follow
    /// them. None where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub routers: Vec<NamespaceRule>,
}

impl Default for Frames {
    fn default() -> Self {
        Broadcast::default().into()
    }
}

impl From<Broadcast> for Frames {
    fn from(broadcast: Broadcast) -> Self {
        Self {
            broadcast_per_second: broadcast.frames_per_second,
            non_ip: broadcast.non_ip,
            tagged: false,
            routers: vec![],
        }
    }
}

/// What a slice is given of the uplinks of its gateways' nodes; see [`super::hub::QosProfileSpec`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shaping {
    /// Mbit/s that it has whatever other slices do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub guaranteed_mbps: Option<u32>,
    /// Mbit/s that it never has more than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub ceiling_mbps: Option<u32>,
    /// 7 goes first, 0 last.
    #[serde(default)]
    #[schemars(range(min = 0, max = 7))]
    pub priority: u8,
}

/// What stood in the place of [`Frames`] before 0.3; read and written for one release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Broadcast {
    /// Broadcast and multicast frames a second that each node may send into the slice; more are dropped and counted.
    #[serde(default = "Broadcast::default_rate")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub frames_per_second: u32,
    /// Whether frames that are not IPv4, IPv6 or ARP are carried.
    #[serde(default = "Broadcast::default_non_ip", rename = "nonIP")]
    pub non_ip: bool,
}

impl Broadcast {
    const fn default_rate() -> u32 {
        1000
    }

    const fn default_non_ip() -> bool {
        true
    }
}

impl From<&Frames> for Broadcast {
    fn from(frames: &Frames) -> Self {
        Self {
            frames_per_second: frames.broadcast_per_second,
            non_ip: frames.non_ip,
        }
    }
}

impl Default for Broadcast {
    fn default() -> Self {
        Self {
            frames_per_second: Self::default_rate(),
            non_ip: Self::default_non_ip(),
        }
    }
}

/// Where a member's gateways run and how the other clusters reach them: resolved from SliceConfig and Cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayPlacement {
    pub replicas: u32,
    /// Threads of each gateway.
    #[serde(default = "SliceGatewaySettings::default_threads")]
    #[schemars(range(min = 1, max = 16))]
    pub threads: u8,
    #[serde(default)]
    pub exposure: Exposure,
    /// Addresses to advertise in place of the nodes' own, where gateways are reached by their nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = pattern::IP)))]
    pub advertise: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// In place of those of the chart, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    #[serde(default)]
    pub keys: KeyPolicy,
}

impl Default for GatewayPlacement {
    /// No gateway.
    fn default() -> Self {
        Self {
            replicas: 0,
            threads: SliceGatewaySettings::default_threads(),
            exposure: Exposure::default(),
            advertise: Vec::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            keys: KeyPolicy::default(),
        }
    }
}

/// When gateways make themselves new keys: resolved from SliceConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyPolicy {
    /// See [`super::hub::SliceGatewaySettings::rotation`]; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_seconds: Option<u64>,
    /// See [`super::hub::SliceGatewaySettings::renewed_at`]; only ever compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<String>,
    /// See [`super::hub::SliceGatewaySettings::revoked_at`]; only ever compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<String>,
}

/// Another member cluster of the slice.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerCluster {
    pub name: String,
    /// The number that the hub gave the cluster; see [`crate::index::vtep`].
    #[schemars(range(max = 511))]
    pub number: u32,
    /// Where its attachments' indices lie.
    #[serde(deserialize_with = "index::runs")]
    pub ranges: Vec<IndexRange>,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["ordinal".into()]))]
    pub gateways: Vec<PeerGateway>,
}

/// A gateway of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerGateway {
    #[schemars(range(max = 253))]
    pub ordinal: u32,
    /// Curve25519 public key, base 64, as `wg` prints it.
    pub public_key: String,
    /// The key before that one, while the gateway still answers to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_key: Option<String>,
    /// Where it listens, best first. Empty when it can only dial out.
    #[schemars(inner(regex(pattern = pattern::SOCKET)))]
    pub endpoints: Vec<SocketAddr>,
}

/// One WireGuard session as the near end sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// `<cluster>/<ordinal>` of the far gateway.
    pub peer: String,
    /// A session exists and something came within the dead time.
    pub up: bool,
    /// Where datagrams go at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = pattern::SOCKET))]
    pub endpoint: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<Time>,
    /// Microseconds there and back, smoothed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_micros: Option<u32>,
    /// Bytes of the largest packet of the slice that the path carries, up to [`super::member::SliceSpec::largest_mtu`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u16>,
}

/// A port of an exported service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    pub port: u16,
}

/// A ready pod behind an exported service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEndpoint {
    /// The pod's hostname, or its name where it has none.
    pub hostname: String,
    /// Its addresses in the slice.
    #[schemars(inner(regex(pattern = pattern::IP)))]
    pub addresses: Vec<IpAddr>,
}
