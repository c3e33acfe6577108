//! What a node's kernel holds for Weft, as plain values: the same types say what it should hold and what it does.
//!
//! ```text
//!  State ─ links ──────── bridge, VXLAN, TAP, host ends of veth pairs, and each one's place on a bridge
//!        ├ pods ───────── the other ends, inside the pods' network namespaces
//!        ├ fdb ────────── static entries of bridges and VXLAN devices
//!        ├ neighbours ─── permanent entries that let a bridge answer ARP and ND
//!        └ tables ─────── nftables: filters, and the way past the bridge
//! ```
//!
//! Deliberately not here: interface indices, handles, sockets. What is not Weft's by name is not represented.

pub mod element;
pub mod fastpath;
pub mod filter;
pub mod link;
pub mod table;

pub use element::{Element, Exit};
pub use filter::{Rules, Table};
pub use link::{Kind, Link, Netns, PodLink, Port, Queues, Vxlan};
pub use table::{Fdb, Neighbour, Via};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use slice_crds::names;

/// UDP port of the VXLAN mesh between the nodes of a cluster. Not 4789: another network plugin may use that.
pub const MESH_PORT: u16 = 14789;
/// UDP port of what nodes send to a gateway on another node.
pub const UPLINK_PORT: u16 = 14790;

/// The name of a kernel interface or of an nftables table that belongs to Weft.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// First characters of every interface that belongs to Weft on a node: the bridge, then its ports.
    pub const LINK_PREFIXES: [&'static str; 5] = ["wb-", "wx-", "wu-", "wt-", "wp-"];
    /// First characters of every nftables table that belongs to Weft.
    pub const TABLE_PREFIX: &'static str = "weft_";
    /// Last characters of every segment's second table; see [`fastpath`].
    pub const FAST_PATH_SUFFIX: &'static str = "_fastpath";

    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is that of a segment's [`fastpath`].
    pub fn is_fast_path(&self) -> bool {
        self.0.ends_with(Self::FAST_PATH_SUFFIX)
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

/// The names of one segment: bridge, VXLAN devices and filter table of a slice on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment(String);

impl Segment {
    pub fn of_slice(slice: &str) -> Self {
        Self(names::bridge(slice).split_off("wb-".len()))
    }

    /// The segment that a bridge or a filter table belongs to.
    pub fn of_name(name: &str) -> Option<Self> {
        let hash = name
            .strip_prefix("wb-")
            .or_else(|| name.strip_prefix(Name::TABLE_PREFIX))?;
        let hash = hash.strip_suffix(Name::FAST_PATH_SUFFIX).unwrap_or(hash);
        Some(Self(hash.to_owned()))
    }

    /// Whether an interface or a table is this segment's by its name: all but the pods' ports, which are named after
    /// their pods.
    pub fn owns(&self, name: &Name) -> bool {
        let named = |prefix: &str| name.0.strip_prefix(prefix) == Some(&self.0);
        let tap = || {
            let ordinal = name
                .0
                .strip_prefix("wt-")
                .and_then(|rest| rest.strip_prefix(&self.0));
            ordinal.is_some_and(|ordinal| ordinal.bytes().all(|byte| byte.is_ascii_digit()))
        };
        ["wb-", "wx-", "wu-"].into_iter().any(named)
            || tap()
            || *name == self.table()
            || *name == self.fast_path()
    }

    pub fn bridge(&self) -> Name {
        Name(format!("wb-{}", self.0))
    }

    pub fn mesh(&self) -> Name {
        Name(format!("wx-{}", self.0))
    }

    pub fn uplink(&self) -> Name {
        Name(format!("wu-{}", self.0))
    }

    pub fn tap(&self, ordinal: u32) -> Name {
        Name(format!("wt-{}{ordinal}", self.0))
    }

    pub fn table(&self) -> Name {
        Name(format!("{}{}", Name::TABLE_PREFIX, self.0))
    }

    pub fn fast_path(&self) -> Name {
        Name(format!("{}{}", self.table(), Name::FAST_PATH_SUFFIX))
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything of Weft on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub links: BTreeMap<Name, Link>,
    /// By the host end's name. A host end without its other end here is one whose other end was not found.
    pub pods: BTreeMap<Name, PodLink>,
    pub fdb: BTreeSet<Fdb>,
    pub neighbours: BTreeSet<Neighbour>,
    pub tables: BTreeMap<Name, Table>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_the_names_of_its_slice() {
        let segment = Segment::of_slice("shop");
        assert_eq!(segment.bridge().as_str(), names::bridge("shop"));
        assert_eq!(segment.mesh().as_str(), names::vxlan("shop"));
        assert_eq!(segment.uplink().as_str(), names::uplink("shop"));
        assert_eq!(segment.tap(12).as_str(), names::tap("shop", 12));
        assert_eq!(segment.table().as_str(), names::filter_table("shop"));
        let tables = [segment.table(), segment.fast_path()];
        for table in tables {
            assert_eq!(Segment::of_name(table.as_str()), Some(segment.clone()));
        }
    }

    #[test]
    fn a_segment_owns_what_has_its_name() {
        let (shop, bank) = (Segment::of_slice("shop"), Segment::of_slice("bank"));
        let names = [
            shop.bridge(),
            shop.mesh(),
            shop.uplink(),
            shop.tap(12),
            shop.table(),
            shop.fast_path(),
        ];
        for name in names {
            assert!(shop.owns(&name) && !bank.owns(&name), "{name}");
        }
        assert!(!shop.owns(&Name::new("wp-rwiaduzm")) && !shop.owns(&Name::new("wt-rwiaduzmx")));
    }

    #[test]
    fn other_interfaces_are_not_ours() {
        assert!(Name::is_link("wb-rwiaduzm") && Name::is_link("wp-abc"));
        assert!(
            !["cni0", "eth0", "vethwb-1", "weft"]
                .iter()
                .any(|name| Name::is_link(name))
        );
    }
}
