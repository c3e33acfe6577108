//! What a node's kernel holds for Weft, as plain values: the same types say what it should hold and what it does.
//!
//! ```text
//!  State ─ links ──────── VXLAN devices, TAPs and host ends of veth pairs, and which of them have the programs
//!        ├ pods ───────── the other ends, inside the pods' network namespaces
//!        ├ tunnel ─────── by which devices frames go to other nodes
//!        ├ segments ───── what the programs know of each slice
//!        ├ shaper ─────── by which device frames go that wait for their turn
//!        ├ classes ────── whose turn it is
//!        └ guard ──────── nftables: who may send to the VXLAN ports
//! ```
//!
//! Deliberately not here: interface indices, handles, sockets. What is not Weft's by name is not represented.

pub mod class;
pub mod guard;
pub mod link;
pub mod segment;

pub use class::{Carried, Class, ClassId, Flow};
pub use guard::Guard;
pub use link::{Alias, Holder, Kind, Link, Netns, PodLink, Queues};
pub use segment::{Clusters, Entry, Hop, Key, Members, Port, Segment};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

pub use names::{TO_GATEWAYS_PORT, TO_PODS_PORT};
use slice_crds::names;

/// The name of a kernel interface or of an nftables table that belongs to Weft.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// First characters of every interface that belongs to Weft on a node: what carries frames to other nodes, gateways'
    /// and pods' ports, the shaper's two ends. Releases before 0.3 had bridges too.
    pub const LINK_PREFIXES: [&'static str; 7] =
        ["wx-", "wu-", "wt-", "wp-", "wq-", "wr-", Self::FORMER_BRIDGE];
    /// First characters of the bridges that earlier releases made.
    pub const FORMER_BRIDGE: &'static str = "wb-";

    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The VXLAN device for pods of other nodes.
    pub fn to_pods() -> Self {
        Self::new("wx-pods")
    }

    /// The VXLAN device for gateways of other nodes.
    pub fn to_gateways() -> Self {
        Self::new("wu-gateways")
    }

    /// The shaper: what is sent to it waits for its turn.
    pub fn shaper() -> Self {
        Self::new("wq-shaper")
    }

    /// Its other end, where frames come back.
    pub fn shaper_end() -> Self {
        Self::new("wr-shaper")
    }

    /// The TAP device of a gateway.
    pub fn tap(slice: &str, ordinal: u32) -> Self {
        Self::new(names::tap(slice, ordinal))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a pod is behind it, or was.
    pub fn is_pod_port(&self) -> bool {
        self.0.starts_with("wp-")
    }

    /// Whether an interface on a node is Weft's.
    pub fn is_link(name: &str) -> bool {
        Self::LINK_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// By which devices frames go to other nodes, and from which address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub to_pods: Name,
    pub to_gateways: Name,
    pub local: IpAddr,
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            to_pods,
            to_gateways,
            local,
        } = self;
        write!(f, "tunnel {to_pods} {to_gateways} local {local}")
    }
}

/// Everything of Weft on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub links: BTreeMap<Name, Link>,
    /// By the host end's name. A host end without its other end here is one whose other end was not found.
    pub pods: BTreeMap<Name, PodLink>,
    pub tunnel: Option<Tunnel>,
    /// By slice.
    pub segments: BTreeMap<String, Arc<Segment>>,
    /// The device that the programs send to what is to be shaped.
    pub shaper: Option<Name>,
    pub classes: BTreeMap<ClassId, Class>,
    /// Classes in which frames wait. Only observed; nobody desires it.
    pub queued: BTreeSet<ClassId>,
    pub guard: Option<Guard>,
    /// Tables of earlier releases, as nft names them: family and name.
    pub former_tables: BTreeSet<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_interfaces_are_not_ours() {
        for name in [
            Name::to_pods(),
            Name::to_gateways(),
            Name::shaper(),
            Name::shaper_end(),
            Name::tap("shop", 3),
        ] {
            assert!(Name::is_link(name.as_str()), "{name}");
            assert!(name.as_str().len() <= names::MAX_INTERFACE, "{name}");
        }
        assert!(Name::is_link("wb-rwiaduzm") && Name::is_link("wp-abc"));
        assert!(
            !["cni0", "eth0", "vethwb-1", "weft"]
                .iter()
                .any(|name| Name::is_link(name))
        );
    }
}
