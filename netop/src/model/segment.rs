//! What the eBPF programs know of a slice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use slice_crds::IndexRange;
pub use slice_datapath::{Role, SliceRules};

use super::{ClassId, Name};

/// One slice on a node: its number, and the entries that the programs' maps have of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub vni: u32,
    entries: BTreeMap<Key, Entry>,
}

impl Segment {
    pub fn new(vni: u32) -> Self {
        Self {
            vni,
            entries: BTreeMap::new(),
        }
    }

    /// Puts an entry in the place of any with its key.
    pub fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.key(), entry);
    }

    pub fn remove(&mut self, key: &Key) {
        self.entries.remove(key);
    }

    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Indices that ports have.
    pub fn indices(&self) -> impl Iterator<Item = u32> {
        self.entries().filter_map(|entry| match entry {
            Entry::Port(_, Port::Pod(index) | Port::Router(index), _) => Some(*index),
            _ => None,
        })
    }
}

/// An entry of one of the programs' maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// What the slice is and carries.
    Rules(SliceRules),
    /// What is behind an interface, and the class by which goes what it sends.
    Port(Name, Port, Option<ClassId>),
    /// Where a run of indices is.
    Route(IndexRange, Hop),
    /// How pods' frames leave for other clusters.
    Exit(Clusters, Hop),
    /// The gateway here that carries what other nodes send for other clusters, with the class by which it is sent.
    Relay(Clusters, Name, Option<ClassId>),
    /// Another node, and whether it has a gateway, so that it speaks for other clusters too.
    Node(IpAddr, bool),
    /// Who gets copies of what is for all.
    Members(Members),
}

/// What an entry is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Rules,
    Node(IpAddr),
    Route(IndexRange),
    Port(Name),
    Relay(Clusters),
    Exit(Clusters),
    Members,
}

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The pod of an index.
    Pod(u32),
    /// As [`Port::Pod`]; it may say that it is a router.
    Router(u32),
    Gateway,
}

/// Where frames go next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// With the class by which it is sent.
    Port(Name, Option<ClassId>),
    Node(IpAddr),
    Cluster(u32),
}

/// Which clusters a gateway is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clusters {
    One(u32),
    /// All, where a frame is for a group.
    All,
}

/// Ports of pods here with the classes by which they are sent to, and other nodes that have pods or gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    pub ports: BTreeMap<Name, Option<ClassId>>,
    pub nodes: BTreeSet<IpAddr>,
}

impl Entry {
    pub fn key(&self) -> Key {
        match self {
            Self::Rules(_) => Key::Rules,
            Self::Port(name, ..) => Key::Port(name.clone()),
            Self::Route(indices, _) => Key::Route(*indices),
            Self::Exit(clusters, _) => Key::Exit(*clusters),
            Self::Relay(clusters, ..) => Key::Relay(*clusters),
            Self::Node(node, _) => Key::Node(*node),
            Self::Members(_) => Key::Members,
        }
    }

    /// The interfaces that it names.
    pub fn links(&self) -> impl Iterator<Item = &Name> {
        let (one, many) = match self {
            Self::Port(name, ..)
            | Self::Relay(_, name, _)
            | Self::Route(_, Hop::Port(name, _))
            | Self::Exit(_, Hop::Port(name, _)) => (Some(name), None),
            Self::Members(members) => (None, Some(members.ports.keys())),
            Self::Rules(_) | Self::Route(..) | Self::Exit(..) | Self::Node(..) => (None, None),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// The port that it makes reachable or heard.
    pub fn port(&self) -> Option<&Name> {
        match self {
            Self::Port(name, ..) | Self::Route(_, Hop::Port(name, _)) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(rules) => {
                let SliceRules {
                    non_ip,
                    tagged,
                    routers,
                    group_rate,
                    ..
                } = rules;
                write!(f, "{} {group_rate} broadcasts/s", Key::Rules)?;
                for (set, word) in [(non_ip, " non-ip"), (tagged, " tagged"), (routers, " routers")] {
                    if *set {
                        f.write_str(word)?;
                    }
                }
                Ok(())
            }
            Self::Port(_, port, class) => {
                self.key().fmt(f)?;
                match port {
                    Port::Pod(index) => write!(f, " index {index}")?,
                    Port::Router(index) => write!(f, " index {index} router")?,
                    Port::Gateway => f.write_str(" gateway")?,
                }
                by_class(f, *class)
            }
            Self::Route(_, hop) | Self::Exit(_, hop) => write!(f, "{} {hop}", self.key()),
            Self::Relay(_, tap, class) => {
                write!(f, "{} dev {tap}", self.key())?;
                by_class(f, *class)
            }
            Self::Node(_, true) => write!(f, "{} gateway", self.key()),
            Self::Node(_, false) => self.key().fmt(f),
            Self::Members(Members { ports, nodes }) => {
                self.key().fmt(f)?;
                for (port, class) in ports {
                    write!(f, " {port}")?;
                    by_class(f, *class)?;
                }
                nodes.iter().try_for_each(|node| write!(f, " {node}"))
            }
        }
    }
}

fn by_class(f: &mut fmt::Formatter<'_>, class: Option<ClassId>) -> fmt::Result {
    class.map_or(Ok(()), |class| write!(f, " class {class}"))
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules => f.write_str("rules"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Route(indices) => write!(f, "route {indices}"),
            Self::Port(name) => write!(f, "port {name}"),
            Self::Relay(clusters) => write!(f, "relay to {clusters}"),
            Self::Exit(clusters) => write!(f, "exit to {clusters}"),
            Self::Members => f.write_str("members"),
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(name, class) => {
                write!(f, "dev {name}")?;
                by_class(f, *class)
            }
            Self::Node(node) => write!(f, "node {node}"),
            Self::Cluster(number) => write!(f, "cluster {number}"),
        }
    }
}

impl fmt::Display for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(number) => number.fmt(f),
            Self::All => f.write_str("all"),
        }
    }
}
