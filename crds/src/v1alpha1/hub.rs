//! What users write on the hub, in a project's namespace.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::{AttachMode, Broadcast, Exposure, Frames, Shaping, SliceJoin, Toleration};
use crate::{Cidr, IndexRange, index, pattern};

/// Networks in CIDR notation without host bits.
const NETWORKS: &str = "self.all(n, isCIDR(n) && cidr(n) == cidr(n).masked())";
/// No network of a slice shares an address with one that a host treats by itself: "this network" and loopback (RFC 1122),
/// link-local (RFC 3927, RFC 4291), the gateways' inner addresses (RFC 2544), multicast, reserved and IPv4-mapped.
const NOT_RESERVED: &str = "self.all(s, !isCIDR(s) || ['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '198.18.0.0/15', '224.0.0.0/4', '240.0.0.0/4', '::/96', 'fe80::/10', 'ff00::/8'].all(r, cidr(r).ip().family() != cidr(s).ip().family() || !(cidr(r).containsIP(cidr(s).ip()) || cidr(s).containsIP(cidr(r).ip()))))";
const RESERVED: &str = "spec.subnets must not share addresses with 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4, ::/96, fe80::/10 or ff00::/8, which hosts treat by rules of their own: take a private network such as 10.80.0.0/16 or fd42:80::/64";
/// What is guaranteed is within what is allowed.
const GUARANTEE_FITS: &str =
    "!has(self.guaranteedMbps) || !has(self.ceilingMbps) || self.guaranteedMbps <= self.ceilingMbps";
/// An address and a port each, as [`SocketAddr`] reads them.
const ENDPOINTS: &str = "self.all(e, e.matches('^(\\\\[[0-9a-fA-F:.]+\\\\]|[0-9.]+):(6553[0-5]|655[0-2][0-9]|65[0-4][0-9][0-9]|6[0-4][0-9][0-9][0-9]|[1-5][0-9][0-9][0-9][0-9]|[1-9][0-9]?[0-9]?[0-9]?)$') && isIP(e.substring(0, e.lastIndexOf(':')).replace('[', '').replace(']', '')) && (ip(e.substring(0, e.lastIndexOf(':')).replace('[', '').replace(']', '')).family() == 6) == e.startsWith('['))";

/// A slice: one private Ethernet segment across the pods of several clusters.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "SliceConfig",
    namespaced,
    status = "SliceConfigStatus",
    shortname = "slcfg",
    category = "weft",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 39 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name names interfaces, labels and DNS zones: use at most 39 lower-case letters, digits and dashes"),
    printcolumn(name = "Subnets", json_path = ".spec.subnets", type_ = "string"),
    printcolumn(name = "Clusters", json_path = ".spec.clusters", type_ = "string"),
    printcolumn(name = "Accepted", json_path = ".status.conditions[?(@.type==\"Accepted\")].status", type_ = "string"),
    printcolumn(name = "Ready", json_path = ".status.conditions[?(@.type==\"Ready\")].status", type_ = "string"),
    printcolumn(name = "Message", json_path = ".status.conditions[?(@.type==\"Ready\")].message", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.clusters) != has(self.clusterSelector)")
    .message("set spec.clusters or spec.clusterSelector, one of the two"))]
pub struct SliceConfigSpec {
    /// The slice's networks, at most one per address family. Cannot be changed: addresses follow from them.
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(validation = Rule::new("self.all(s, isCIDR(s) && cidr(s) == cidr(s).masked())")
        .message("spec.subnets takes networks in CIDR notation with zero host bits, such as 10.80.0.0/16 or fd42:80::/64"))]
    #[x_kube(validation = Rule::new("self.filter(s, isCIDR(s) && cidr(s).ip().family() == 4).size() <= 1 && self.filter(s, isCIDR(s) && cidr(s).ip().family() == 6).size() <= 1")
        .message("spec.subnets takes at most one IPv4 and one IPv6 network"))]
    #[x_kube(validation = Rule::new("self.all(s, !isCIDR(s) || (cidr(s).ip().family() == 4 ? (cidr(s).prefixLength() >= 8 && cidr(s).prefixLength() <= 28) : (cidr(s).prefixLength() >= 48 && cidr(s).prefixLength() <= 112)))")
        .message("spec.subnets takes IPv4 networks from /8 to /28 and IPv6 networks from /48 to /112"))]
    #[x_kube(validation = Rule::new(NOT_RESERVED).message(RESERVED))]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("spec.subnets cannot be changed, because every address in the slice follows from it: create a slice of another name"))]
    pub subnets: Vec<Cidr>,
    /// Names of the member clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 510), inner(length(min = 1, max = 39)))]
    pub clusters: Option<Vec<String>>,
    /// Member clusters by the labels of their Cluster objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_selector: Option<LabelSelector>,
    /// Which namespaces are in, in addition to those that carry the label `weft.dev/slice`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub namespaces: Vec<NamespaceRule>,
    /// Whose labels may put pods in, beside [`Self::namespaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<SliceJoin>,
    #[serde(default)]
    pub attach: AttachMode,
    #[serde(default)]
    pub gateway: SliceGatewaySettings,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<SliceQos>,
    /// What is carried beside IPv4, IPv6 and ARP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
    /// Former name of some of `frames`, which holds where both are there. Read for one release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<Broadcast>,
    /// Hosts outside every cluster that are in the slice without an agent: the kernel's VXLAN over WireGuard, set up
    /// by the script that `slicectl peer script` prints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("self.all(p, self.exists_one(q, q.publicKey == p.publicKey))")
        .message("elements of spec.peers have a publicKey of their own each: two hosts with one key could not be told apart"))]
    pub peers: Vec<SlicePeer>,
}

impl SliceConfigSpec {
    /// What is carried, by whichever field says it.
    pub fn carried(&self) -> Frames {
        let former = || self.broadcast.unwrap_or_default().into();
        self.frames.clone().unwrap_or_else(former)
    }
}

/// A host outside every cluster.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlicePeer {
    /// Its name, which no member cluster may have.
    #[schemars(length(max = 39), regex(pattern = pattern::NAME))]
    pub name: String,
    /// Its WireGuard public key, as `wg pubkey` prints it.
    #[schemars(length(max = 44), regex(pattern = pattern::PUBLIC_KEY))]
    pub public_key: String,
    /// Where its WireGuard listens, best first. None where only it can dial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 53)))]
    #[x_kube(validation = Rule::new(ENDPOINTS)
        .message("endpoints of spec.peers are an address and a port each, such as 192.0.2.9:51820 or [2001:db8::9]:51820"))]
    pub endpoints: Vec<SocketAddr>,
}

/// Pods of namespaces that are in the slice.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) != has(self.selector)")
    .message("an element of spec.namespaces has a name or a selector, one of the two"))]
pub struct NamespaceRule {
    /// The namespace's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub name: Option<String>,
    /// Namespaces by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Only in these clusters; in all of the slice's where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 510), inner(length(min = 1, max = 39)))]
    pub clusters: Vec<String>,
    /// Only the pods with these labels; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// The gateways of a slice in each of its clusters.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceGatewaySettings {
    /// Gateways per cluster; all of them carry traffic.
    #[serde(default = "SliceGatewaySettings::default_replicas")]
    #[schemars(range(min = 1, max = 32))]
    pub replicas: u32,
    /// Threads of each gateway, each with its own queue of the TAP device and its own tunnels. One carries some Gbit/s;
    /// how much depends on the processor. A flow is carried by one thread, so more of them help where there are many
    /// flows, and no more than the node has processors to spare. A change restarts the gateways, one after the other.
    #[serde(default = "SliceGatewaySettings::default_threads")]
    #[schemars(range(min = 1, max = 16))]
    pub threads: u8,
    /// In place of what the Cluster says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure: Option<Exposure>,
    /// Bytes of the largest IP packet on the slice, in place of what the nodes' and the paths' sizes allow: paths that carry
    /// less are still found and their senders told, but the slice's interfaces keep this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 65_000))]
    pub mtu: Option<u16>,
    /// Age at which a gateway makes itself a new key, such as `24h` or `1h30m`; the one before is wiped when every peer
    /// has moved to the new one. A gateway that starts makes a new key in any case.
    #[serde(default = "SliceGatewaySettings::default_rotation")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('8760h')")
        .message("spec.gateway.rotation takes a duration from 1m to 8760h, such as 24h"))]
    #[schemars(length(max = 32), regex(pattern = pattern::DURATION))]
    pub rotation: Duration,
    /// A change has every gateway of the slice make itself a new key now, without a frame lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed_at: Option<Time>,
    /// A change has every gateway of the slice make itself a new key and wipe the one that it has, at once: nothing
    /// passes between the clusters until the new keys are known, seconds at most. Keys that were made before are
    /// trusted no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
}

impl SliceGatewaySettings {
    const fn default_replicas() -> u32 {
        2
    }

    pub(super) const fn default_threads() -> u8 {
        1
    }

    fn default_rotation() -> Duration {
        std::time::Duration::from_hours(24).into()
    }
}

impl Default for SliceGatewaySettings {
    fn default() -> Self {
        Self {
            replicas: Self::default_replicas(),
            threads: Self::default_threads(),
            exposure: None,
            mtu: None,
            rotation: Self::default_rotation(),
            renewed_at: None,
            revoked_at: None,
        }
    }
}

/// Quality of service: a profile by name, or the values themselves.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.profile) != (has(self.guaranteedMbps) || has(self.ceilingMbps) || has(self.priority) || has(self.dscp))")
    .message("spec.qos has a profile or inline values, one of the two"))]
#[x_kube(validation = Rule::new(GUARANTEE_FITS).message("spec.qos.guaranteedMbps is at most ceilingMbps"))]
pub struct SliceQos {
    /// A QoSProfile in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub profile: Option<String>,
    /// See [`QosProfileSpec::guaranteed_mbps`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub guaranteed_mbps: Option<u32>,
    /// See [`QosProfileSpec::ceiling_mbps`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub ceiling_mbps: Option<u32>,
    /// See [`QosProfileSpec::priority`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 7))]
    pub priority: Option<u8>,
    /// See [`QosProfileSpec::dscp`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 63))]
    pub dscp: Option<u8>,
}

impl SliceQos {
    /// The inline values.
    pub fn inline(&self) -> QosProfileSpec {
        QosProfileSpec {
            guaranteed_mbps: self.guaranteed_mbps,
            ceiling_mbps: self.ceiling_mbps,
            priority: self.priority.unwrap_or_default(),
            dscp: self.dscp.unwrap_or_default(),
        }
    }
}

/// Quality of service that several slices share. Rates are those of the slice's frames, from the first byte of the Ethernet
/// header, without what the tunnel adds; they hold in each member cluster, for what its pods send to other clusters together
/// and again for what comes from them. A change reaches running traffic within seconds and drops none of it.
#[derive(CustomResource, KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "QoSProfile",
    root = "QosProfile",
    plural = "qosprofiles",
    namespaced,
    shortname = "qos",
    category = "weft",
    derive = "PartialEq",
    printcolumn(name = "Guaranteed", json_path = ".spec.guaranteedMbps", type_ = "integer"),
    printcolumn(name = "Ceiling", json_path = ".spec.ceilingMbps", type_ = "integer"),
    printcolumn(name = "Priority", json_path = ".spec.priority", type_ = "integer"),
    printcolumn(name = "DSCP", json_path = ".spec.dscp", type_ = "integer"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(GUARANTEE_FITS).message("spec.guaranteedMbps is at most ceilingMbps"))]
pub struct QosProfileSpec {
    /// Mbit/s that the slice has whatever other slices do, as far as the uplinks of its gateways' nodes reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub guaranteed_mbps: Option<u32>,
    /// Mbit/s that it never has more than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub ceiling_mbps: Option<u32>,
    /// Who goes first to what no slice is guaranteed: 7 before 6, and 0 last (as in IEEE 802.1Q). Slices of one priority
    /// share evenly.
    #[serde(default)]
    #[schemars(range(min = 0, max = 7))]
    pub priority: u8,
    /// Differentiated-services code point (RFC 2474) on the datagrams between gateways. The frames inside keep theirs.
    #[serde(default)]
    #[schemars(range(min = 0, max = 63))]
    pub dscp: u8,
}

impl QosProfileSpec {
    /// What the slice's traffic is given between clusters, and `None` where it is given nothing.
    pub fn shaping(&self) -> Option<Shaping> {
        let shaping = Shaping {
            guaranteed_mbps: self.guaranteed_mbps,
            ceiling_mbps: self.ceiling_mbps,
            priority: self.priority,
        };
        (shaping != Shaping::default()).then_some(shaping)
    }
}

/// What the hub knows of a slice.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceConfigStatus {
    /// VXLAN network identifier, unique on this hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// Bytes of the largest IP packet on the slice, the same for every interface of it: what its nodes and every path between
    /// its clusters carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub clusters: Vec<SliceCluster>,
    /// What the hosts of `spec.peers` were given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub peers: Vec<SlicePeerStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
}

/// A host outside every cluster, as the slice knows it. What it was given stays its own while it is in `spec.peers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlicePeerStatus {
    pub name: String,
    /// Its attachment's index: its MAC and addresses follow from it.
    pub index: u32,
    /// Which of the outside hosts it is; see [`crate::index::vtep`].
    pub ordinal: u32,
    /// Its addresses in the slice.
    #[schemars(inner(regex(pattern = pattern::IP)))]
    pub addresses: Vec<IpAddr>,
}

/// A slice in one of its clusters: what was decided, and counts. Measurements are metrics, and `slicectl status` asks
/// the members.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceCluster {
    pub name: String,
    /// The cluster's number in this slice; see [`crate::index::vtep`].
    #[serde(default)]
    pub number: u32,
    /// Index ranges that belong to the cluster. They are never moved.
    #[serde(default, deserialize_with = "index::runs")]
    pub ranges: Vec<IndexRange>,
    /// Attached pods.
    #[serde(default)]
    pub attachments: u32,
    #[serde(default)]
    pub gateways_up: u32,
    #[serde(default)]
    pub gateways_wanted: u32,
    /// What keeps the slice from working there; empty when nothing does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// A member cluster. `slicectl token issue` creates it; `spec.clusterSelector` of slices matches its labels.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "Cluster",
    plural = "clusters",
    namespaced,
    status = "ClusterStatus",
    shortname = "wcl",
    category = "weft",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 39 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name names namespaces and labels: use at most 39 lower-case letters, digits and dashes"),
    printcolumn(name = "Ready", json_path = ".status.conditions[?(@.type==\"Ready\")].status", type_ = "string"),
    printcolumn(name = "Nodes", json_path = ".status.nodes", type_ = "integer"),
    printcolumn(name = "Kubernetes", json_path = ".status.kubernetesVersion", type_ = "string"),
    printcolumn(name = "Reachable", json_path = ".status.conditions[?(@.type==\"Reachable\")].status", type_ = "string"),
    printcolumn(name = "Trusted", json_path = ".status.conditions[?(@.type==\"Trusted\")].status", type_ = "string"),
    printcolumn(name = "Message", json_path = ".status.conditions[?(@.type==\"Ready\")].message", type_ = "string", priority = 1),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    #[serde(default)]
    pub gateway: ClusterGateway,
    /// Networks of the cluster that its API does not name, such as the pools of a CNI: no slice of the cluster may
    /// overlap them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<ClusterNetworks>,
}

/// Networks in use in a cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetworks {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new(NETWORKS).message("spec.networks.pods takes networks in CIDR notation with zero host bits, such as 10.244.0.0/16"))]
    pub pods: Vec<Cidr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new(NETWORKS).message("spec.networks.services takes networks in CIDR notation with zero host bits, such as 10.96.0.0/12"))]
    pub services: Vec<Cidr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new(NETWORKS).message("spec.networks.nodes takes networks in CIDR notation with zero host bits, such as 192.0.2.0/24"))]
    pub nodes: Vec<Cidr>,
}

/// Where a cluster's gateways run and how they are reached.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterGateway {
    /// How other clusters reach the gateways of slices that say nothing of it. A change takes effect live: tunnels that are
    /// up stay up, as long as there is one end that can begin them. From and to HostPort the gateways' pods are replaced, one
    /// after the other.
    #[serde(default)]
    pub exposure: Exposure,
    /// Addresses that other clusters dial, in place of all that nodes have, with NodePort and HostPort: for nodes that are all
    /// behind one address translator. A node's own one goes into its annotation `weft.dev/gateway-address`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 45)))]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a) && ip(a).isGlobalUnicast())")
        .message("spec.gateway.advertise takes IP addresses that other clusters can dial, such as 203.0.113.7; a host name is not one, because it would be asked for by every gateway of every member"))]
    pub advertise: Vec<IpAddr>,
    /// Only nodes with these labels host gateways.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that gateways tolerate. Where there are any, they take the place of `gateways.tolerations` of the
    /// cluster's chart. A change replaces the gateways' pods, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
}

/// What the hub knows of a member cluster. Its heartbeat is the Lease `weft-member` in [`Self::namespace`].
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// The namespace on the hub that this member, and no other, can read and write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// UID of the namespace kube-system of the cluster that has this name; from its first join on no other can have it.
    #[serde(default, rename = "clusterUID", skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weft_version: Option<String>,
    #[serde(default)]
    pub nodes: u32,
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = pattern::CIDR)))]
    pub pod_cidrs: Vec<Cidr>,
    #[serde(default, rename = "serviceCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = pattern::CIDR)))]
    pub service_cidrs: Vec<Cidr>,
    #[serde(default, rename = "nodeCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = pattern::CIDR)))]
    pub node_cidrs: Vec<Cidr>,
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// When the rest of this status was seen to be so. How fresh a member's report is, the condition Reachable says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
}
