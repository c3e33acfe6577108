//! Interfaces.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use slice_crds::Mac;

/// An interface in the node's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub kind: Kind,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    pub up: bool,
    /// Whether the kernel may give it an IPv6 address by itself. It never should: nothing on the node is in a slice.
    pub autoconf: bool,
    /// What it is for, which only the node can say: its ports have one.
    pub alias: Option<Alias>,
    /// Whether this agent's program is the first to see what it receives.
    pub attached: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For all slices and nodes: each frame says which (`external`). With its UDP destination port.
    Vxlan(u16),
    /// For how many queues, which cannot be changed.
    Tap(Queues),
    /// The host end of a pair whose other end is in [`super::State::pods`].
    Veth,
    /// Holds frames until it is their turn, and gives them back by its other end, which has the program: both are one.
    Shaper,
    /// Carries one of our names and is something else.
    Foreign,
}

/// Whose port an interface is, as its alias says (ifAlias of RFC 2863, `ip link`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub slice: String,
    pub holder: Holder,
}

/// Who is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The pod of an index.
    Index(u32),
    /// The gateway of an ordinal.
    Gateway(u32),
}

impl Alias {
    pub fn index(slice: &str, index: u32) -> Self {
        Self {
            slice: slice.to_owned(),
            holder: Holder::Index(index),
        }
    }

    pub fn gateway(slice: &str, ordinal: u32) -> Self {
        Self {
            slice: slice.to_owned(),
            holder: Holder::Gateway(ordinal),
        }
    }

    /// From the text; `None` where it is another.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let ["slice", slice, what, number] = words[..] else {
            return None;
        };
        let number = number.parse().ok()?;
        let holder = match what {
            "index" => Holder::Index(number),
            "gateway" => Holder::Gateway(number),
            _ => return None,
        };
        Some(Self {
            slice: slice.to_owned(),
            holder,
        })
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slice {} ", self.slice)?;
        match self.holder {
            Holder::Index(index) => write!(f, "index {index}"),
            Holder::Gateway(ordinal) => write!(f, "gateway {ordinal}"),
        }
    }
}

/// How many queues a TAP device is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queues {
    One,
    /// Only where they are used: such a device has 256 transmit queues, with a queueing discipline each.
    Several,
}

impl Queues {
    /// The sort of a device for somebody who uses so many.
    pub const fn of(count: u8) -> Self {
        if count > 1 { Self::Several } else { Self::One }
    }
}

impl Kind {
    pub const fn tap(&self) -> Option<Queues> {
        match self {
            Self::Tap(queues) => Some(*queues),
            Self::Vxlan(_) | Self::Veth | Self::Shaper | Self::Foreign => None,
        }
    }
}

/// A network namespace by the path of its file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Netns(PathBuf);

impl Netns {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.file_name() {
            Some(name) => name.display().fmt(f),
            None => self.0.display().fmt(f),
        }
    }
}

/// The end of a veth pair that a pod sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    pub netns: Netns,
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
    /// With the subnet's prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// Networks reached directly: the slice's subnets.
    pub routes: BTreeSet<IpNet>,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan(port) => write!(f, "vxlan external port {port}"),
            Self::Tap(Queues::One) => f.write_str("tap"),
            Self::Tap(Queues::Several) => f.write_str("tap multi_queue"),
            Self::Veth => f.write_str("veth"),
            Self::Shaper => f.write_str("shaper"),
            Self::Foreign => f.write_str("foreign"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_read_as_it_was_written() {
        for alias in [Alias::index("shop", 70), Alias::gateway("shop", 1)] {
            assert_eq!(Alias::parse(&alias.to_string()), Some(alias));
        }
        for text in [
            "",
            "slice shop",
            "slice shop index x",
            "slice shop port 1",
            "slice a index 1 2",
        ] {
            assert_eq!(Alias::parse(text), None, "{text}");
        }
    }
}
