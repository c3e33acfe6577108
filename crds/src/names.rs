//! Every derived name: interfaces, tables, namespaces, objects. Pure, and never longer than what it names may be.
//!
//! Kernel interface names have 15 bytes (`IFNAMSIZ` less its NUL). Names made from a slice's name carry eight
//! characters of its SHA-256 in base 32: with 1,000 slices on a node two collide with probability 5·10⁻⁷.

use sha2::{Digest, Sha256};

/// Namespace of everything that runs in a member cluster.
pub const MEMBER_NAMESPACE: &str = "weft-system";
/// Namespace of the hub's controllers.
pub const HUB_NAMESPACE: &str = "weft-hub";
/// Deployment of the hub's operator, its Lease in [`HUB_NAMESPACE`], and the field manager of what it writes.
pub const HUB_OPERATOR: &str = "weft-hub";
/// Lease of a member's operator in [`MEMBER_NAMESPACE`], and the field manager of what it writes, here and on the hub.
pub const MEMBER_OPERATOR: &str = "weft-cluster";
/// Service account, in a member's namespace on the hub, that the member logs in as.
pub const MEMBER_ACCOUNT: &str = "weft-member";
/// Namespace of a member cluster's gateways, which hold no privilege: whoever may create pods there gets none.
pub const GATEWAY_NAMESPACE: &str = "weft-gateways";
/// Service account, in a member's namespace on the hub, that a cluster asks to join with.
pub const JOIN_ACCOUNT: &str = "weft-join";
/// UDP port of frames for pods of another node. Not 4789: another network plugin may use that.
pub const TO_PODS_PORT: u16 = 14789;
/// UDP port of frames for a gateway of another node.
pub const TO_GATEWAYS_PORT: u16 = 14790;
/// The one [`crate::wire::MemberReport`] in a member's namespace on the hub.
pub const MEMBER_REPORT: &str = "report";
/// The one [`crate::wire::MemberHub`] in a member's namespace on the hub.
pub const MEMBER_HUB: &str = "hub";
/// The Lease in a member's namespace on the hub that the member renews.
pub const MEMBER_LEASE: &str = "weft-member";
/// The one [`crate::wire::Hub`] in the hub's namespace.
pub const HUB: &str = "hub";
/// Secret in a member cluster with its credential for the hub, where the chart names no other.
pub const HUB_CREDENTIAL: &str = "weft-hub-credential";
/// Taint that a node may be registered with, so that no pod starts there without the interface that it should have. It is
/// taken off when the node's agent is ready.
pub const AGENT_NOT_READY: &str = "weft.dev/agent-not-ready";
/// The zone that `slice-dns` answers for.
pub const SLICE_ZONE: &str = "slice.local";
/// UID and GID of the processes that run without privilege.
pub const UNPRIVILEGED_UID: u32 = 65532;
/// Longest name of a slice or a cluster: leaves room for what derived names add to it. The longest is the label
/// `controller-revision-hash` of a slice's gateways, the StatefulSet's name with eleven characters more, which has 63.
pub const MAX_NAME: usize = 39;
/// Longest name of a kernel interface.
pub const MAX_INTERFACE: usize = 15;

/// Namespace on the hub that belongs to one member cluster.
pub fn member_namespace(cluster: &str) -> String {
    format!("weft-member-{cluster}")
}

/// The cluster whose namespace this is.
pub fn member_of(namespace: &str) -> Option<&str> {
    namespace.strip_prefix("weft-member-")
}

/// Namespace on the hub of what the clusters of one slice share.
pub fn slice_namespace(slice: &str) -> String {
    format!("weft-slice-{slice}")
}

/// The slice whose namespace this is.
pub fn slice_of_namespace(namespace: &str) -> Option<&str> {
    namespace.strip_prefix("weft-slice-")
}

/// TAP device of a gateway on its node.
pub fn tap(slice: &str, ordinal: u32) -> String {
    format!("wt-{}{ordinal}", hash(&[slice], 8))
}

/// WireGuard device of a host that is a peer of the slice without an agent.
pub fn host_tunnel(slice: &str) -> String {
    format!("wg-{}", hash(&[slice], 8))
}

/// Host end of an attachment's veth pair.
pub fn pod_port(slice: &str, pod_uid: &str) -> String {
    format!("wp-{}", hash(&[slice, pod_uid], 12))
}

/// The interface inside the pod: `sl-<slice>` where that fits, else its first three characters and a hash.
pub fn pod_interface(slice: &str) -> String {
    let plain = format!("sl-{slice}");
    if plain.len() <= MAX_INTERFACE {
        return plain;
    }
    let start = slice[..3].trim_end_matches('-');
    format!("sl-{start}-{}", hash(&[slice], 8))
}

/// StatefulSet of a slice's gateways in a member cluster.
pub fn gateway_workload(slice: &str) -> String {
    format!("weft-gateway-{slice}")
}

/// [`crate::v1alpha1::SliceGateway`], pod and per-replica Service of one gateway.
pub fn gateway(slice: &str, ordinal: u32) -> String {
    format!("{}-{ordinal}", gateway_workload(slice))
}

/// [`crate::v1alpha1::SliceBlock`] of a slice on a node. Node names may have 253 characters.
pub fn block(slice: &str, node: &str) -> String {
    let plain = format!("{slice}.{node}");
    if plain.len() <= 253 {
        plain
    } else {
        format!("{slice}.{}", hash(&[node], 16))
    }
}

/// [`crate::wire::SliceAllocation`] of a VXLAN network identifier.
pub fn allocation(vni: u32) -> String {
    format!("vni-{vni}")
}

/// [`crate::wire::SliceShare`] of some of a slice's clusters.
pub fn shard(slice: &str, shard: u32) -> String {
    format!("{slice}.{shard}")
}

/// The number of the shard, where that is what the name stands for: a service's has four parts.
pub fn shard_of(name: &str) -> Option<u32> {
    let (_, shard) = name.split_once('.')?;
    shard.parse().ok()
}

/// The slice that an object of the exchange is about, by its name: slices have no dots in theirs.
pub fn slice_of(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// Lease by which a node's agent says that it lives, in [`MEMBER_NAMESPACE`].
pub fn node_lease(node: &str) -> String {
    format!("node.{node}")
}

/// Secret that a join token's credential is bound to.
pub fn join_secret(token: &str) -> String {
    format!("weft-join-{token}")
}

/// [`crate::v1alpha1::SliceService`], [`crate::wire::MemberService`] and [`crate::wire::SliceShare`] of one exported service
/// of one cluster.
pub fn service(slice: &str, cluster: &str, namespace: &str, name: &str) -> String {
    format!("{slice}.{cluster}.{namespace}.{name}")
}

/// Directory on a node, mounted into the slice's gateways, that holds the hand-over socket.
pub fn gateway_directory(slice: &str) -> String {
    format!("/run/weft/gateway/{slice}")
}

/// The first `length` characters of the base-32 (RFC 4648, lower case) SHA-256 of the parts joined by `/`.
fn hash(parts: &[&str], length: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(parts.join("/"));
    let (mut bits, mut have) = (0u32, 0);
    let mut text = String::with_capacity(length);
    for byte in digest {
        bits = bits << 8 | u32::from(byte);
        have += 8;
        while have >= 5 && text.len() < length {
            have -= 5;
            text.push(char::from(ALPHABET[(bits >> have & 31) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_the_kernel() {
        let slice = "a-slice-with-a-name-of-39-characters-xx";
        let uid = "0a1b2c3d-0000-4000-8000-0123456789ab";
        for name in [
            host_tunnel(slice),
            tap(slice, crate::index::MAX_ORDINAL),
            pod_port(slice, uid),
            pod_interface(slice),
        ] {
            assert!(name.len() <= MAX_INTERFACE, "{name}");
        }
    }

    #[test]
    fn a_short_slice_is_named_whole_in_the_pod() {
        assert_eq!(pod_interface("shop"), "sl-shop");
        assert_eq!(pod_interface("twelve-chars"), "sl-twelve-chars");
        assert_eq!(pod_interface("thirteen-char").len(), 15);
    }

    #[test]
    fn names_are_stable_across_versions() {
        assert_eq!(tap("shop", 0), "wt-rwiaduzm0");
        assert_eq!(hash(&[""], 8), "4oymiquy", "base 32 of the SHA-256 of nothing");
    }

    #[test]
    fn object_names_stay_labels() {
        let longest = "x".repeat(MAX_NAME);
        let revision = format!("{}-{}", gateway_workload(&longest), "x".repeat(10));
        assert!(
            revision.len() <= 63,
            "the label controller-revision-hash: {revision}"
        );
        assert!(gateway(&longest, crate::index::MAX_ORDINAL).len() <= 63);
        assert!(member_namespace(&longest).len() <= 63);
        assert!(slice_namespace(&longest).len() <= 63);
    }
}
