//! Interfaces.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use slice_crds::Mac;

use super::Name;

/// An interface in the node's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub kind: Kind,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    pub up: bool,
    /// Whether the kernel may give it an IPv6 address by itself. It never should: nothing on the node is in a slice.
    pub autoconf: bool,
    pub port: Option<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `snooping`: whether it forwards multicast to those only whom it heard asking. Off: a pod's question
    /// would have to cross the WAN first.
    Bridge {
        snooping: bool,
    },
    Vxlan(Vxlan),
    /// For how many queues, which cannot be changed.
    Tap(Queues),
    /// The host end of a pair whose other end is in [`super::State::pods`].
    Veth,
    /// Carries one of our names and is something else.
    Foreign,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// The node's address: source of outer packets, and their family.
    pub local: IpAddr,
    /// Where frames go whose destination is not in its table. It changes in place: no frame is lost or doubled.
    pub remote: Option<IpAddr>,
}

impl Vxlan {
    /// What cannot be changed without making the interface anew.
    pub fn fixed(self) -> Self {
        Self { remote: None, ..self }
    }
}

impl Kind {
    pub const fn tap(&self) -> Option<Queues> {
        match self {
            Self::Tap(queues) => Some(*queues),
            Self::Bridge { .. } | Self::Vxlan(_) | Self::Veth | Self::Foreign => None,
        }
    }

    pub const fn vxlan(&self) -> Option<Vxlan> {
        match self {
            Self::Vxlan(vxlan) => Some(*vxlan),
            Self::Bridge { .. } | Self::Tap(_) | Self::Veth | Self::Foreign => None,
        }
    }
}

/// A place on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub bridge: Name,
    /// Gets frames whose destination the bridge does not know.
    pub unknown: bool,
    /// Gets broadcast and multicast.
    pub group: bool,
    /// Does not get the ARP and ND questions that the bridge can answer.
    pub suppress: bool,
    /// Exchanges nothing with other isolated ports, whatever the filters say: without it, a filter table that
    /// somebody deletes would make a loop of the two VXLAN devices.
    pub isolated: bool,
    /// The bridge learns addresses from it. Never: every address is known beforehand.
    pub learning: bool,
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
            Self::Bridge { .. } => f.write_str("bridge"),
            Self::Vxlan(Vxlan {
                vni,
                port,
                local,
                remote,
            }) => {
                write!(f, "vxlan {vni} port {port} local {local}")?;
                remote.map_or(Ok(()), |remote| write!(f, " remote {remote}"))
            }
            Self::Tap(Queues::One) => f.write_str("tap"),
            Self::Tap(Queues::Several) => f.write_str("tap multi_queue"),
            Self::Veth => f.write_str("veth"),
            Self::Foreign => f.write_str("foreign"),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "master {}", self.bridge)?;
        for (set, word) in [
            (self.unknown, " unknown"),
            (self.group, " group"),
            (self.suppress, " suppress"),
            (self.isolated, " isolated"),
            (self.learning, " learning"),
        ] {
            if set {
                f.write_str(word)?;
            }
        }
        Ok(())
    }
}
