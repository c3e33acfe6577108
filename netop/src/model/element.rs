//! What is in the sets of an nftables table.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use slice_crds::Mac;

use super::{Name, fastpath::Side, filter::Family};

/// One element of one of a table's sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A port with a pod behind it.
    Pod(Name),
    /// The Ethernet address that the port's frames come from.
    Mac(Name, Mac),
    /// An address that the port's packets come from.
    Source(Name, IpAddr),
    /// An address that the port may call its own in a neighbour advertisement.
    Target(Name, Ipv6Addr),
    /// A port with a gateway behind it.
    Tap(Name),
    /// A port that leads out of the node, and the mark of frames that may leave by it.
    Exit(Name, Exit),
    /// By which exit the pods' frames go to other clusters.
    Way(Exit),
    /// By which exit goes what comes in by the uplink from other nodes.
    Relay(Exit),
    /// The address of a node of this cluster.
    Node(IpAddr),
    /// A port whose frames are offered to the fast path first. Its base chain, and no element of a set.
    Hook(Name, Side),
    /// What a port's packets on the fast path come from.
    Sender(Name, Mac, IpAddr),
    /// The port behind which an address is.
    Place(Mac, Name),
    /// The port behind which a block of addresses is, both ends included.
    Block(Mac, Mac, Name),
    /// The port to all other addresses, for packets of one family.
    Others(Family, Name),
}

/// The mark of a frame (skb->mark) that leaves the node by one of its ports: the uplink's, or a gateway's. A frame has it
/// between two chains of its segment's table only, and none of the host's IP filters sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exit(u32);

impl Exit {
    pub const UPLINK: Self = Self(3);

    /// A gateway's.
    pub const fn tap(ordinal: u32) -> Self {
        Self(4 + ordinal)
    }
}

/// The marks of frames whose exit has not been looked up: keys of the map of exits, and no exit's mark.
pub(super) const FROM_PODS: u32 = 1;
pub(super) const FROM_UPLINK: u32 = 2;

impl Element {
    /// The set or map that the element is in. A hook is in none, and is named as if it were.
    pub const fn set(&self) -> &'static str {
        match self {
            Self::Pod(_) => "pods",
            Self::Mac(..) => "macs",
            Self::Source(_, IpAddr::V4(_)) => "sources4",
            Self::Source(_, IpAddr::V6(_)) => "sources6",
            Self::Target(..) => "targets",
            Self::Tap(_) => "taps",
            Self::Exit(..) => "exits",
            Self::Way(_) | Self::Relay(_) => "ways",
            Self::Node(IpAddr::V4(_)) => "nodes4",
            Self::Node(IpAddr::V6(_)) => "nodes6",
            Self::Hook(..) => "hooks",
            Self::Sender(_, _, IpAddr::V4(_)) => "senders4",
            Self::Sender(_, _, IpAddr::V6(_)) => "senders6",
            Self::Place(..) => "places",
            Self::Block(..) => "blocks",
            Self::Others(..) => "others",
        }
    }

    /// The key alone, of an element of a map of the fast path: its value may be a port that is gone, which nft cannot
    /// name.
    pub fn key(&self) -> Option<String> {
        match self {
            Self::Place(mac, _) => Some(mac.to_string()),
            Self::Block(first, last, _) if first == last => Some(first.to_string()),
            Self::Block(first, last, _) => Some(format!("{first}-{last}")),
            Self::Others(family, _) => Some(family.ether_type().to_owned()),
            Self::Pod(_)
            | Self::Mac(..)
            | Self::Source(..)
            | Self::Target(..)
            | Self::Tap(_)
            | Self::Exit(..)
            | Self::Way(_)
            | Self::Relay(_)
            | Self::Node(_)
            | Self::Hook(..)
            | Self::Sender(..) => None,
        }
    }

    /// The element of a set or map, from the parts of its key, and of its value, as nft lists them.
    pub fn parse(set: &str, key: &[&str]) -> Option<Self> {
        let port = || key.first().map(|name| Name::new(*name));
        let second = || key.get(1);
        Some(match (set, key.len()) {
            ("pods", 1) => Self::Pod(port()?),
            ("taps", 1) => Self::Tap(port()?),
            ("exits", 2) => Self::Exit(port()?, Exit(second()?.parse().ok()?)),
            ("ways", 2) => {
                let exit = Exit(second()?.parse().ok()?);
                match key.first()?.parse().ok()? {
                    FROM_PODS => Self::Way(exit),
                    FROM_UPLINK => Self::Relay(exit),
                    _ => return None,
                }
            }
            ("macs", 2) => Self::Mac(port()?, second()?.parse().ok()?),
            ("sources4" | "sources6", 2) => Self::Source(port()?, second()?.parse().ok()?),
            ("targets", 2) => {
                let bits = u128::from_str_radix(second()?.strip_prefix("0x")?, 16).ok()?;
                Self::Target(port()?, Ipv6Addr::from_bits(bits))
            }
            ("nodes4" | "nodes6", 1) => Self::Node(key.first()?.parse().ok()?),
            ("senders4" | "senders6", 3) => {
                Self::Sender(port()?, second()?.parse().ok()?, key.get(2)?.parse().ok()?)
            }
            ("places", 2) => Self::Place(key.first()?.parse().ok()?, Name::new(*second()?)),
            ("blocks", 2 | 3) => {
                let (port, macs) = key.split_last()?;
                Self::Block(
                    macs.first()?.parse().ok()?,
                    macs.last()?.parse().ok()?,
                    Name::new(*port),
                )
            }
            ("others", 2) => Self::Others(Family::of_ether_type(key.first()?)?, Name::new(*second()?)),
            _ => return None,
        })
    }

    /// The port that the element is about.
    pub const fn port(&self) -> Option<&Name> {
        match self {
            Self::Pod(port)
            | Self::Mac(port, _)
            | Self::Source(port, _)
            | Self::Target(port, _)
            | Self::Sender(port, ..) => Some(port),
            Self::Hook(port, Side::Pod) | Self::Place(_, port) => Some(port),
            Self::Tap(_)
            | Self::Exit(..)
            | Self::Way(_)
            | Self::Relay(_)
            | Self::Node(_)
            | Self::Hook(..)
            | Self::Block(..)
            | Self::Others(..) => None,
        }
    }

    /// The interface without which it means nothing.
    pub const fn link(&self) -> Option<&Name> {
        if let Self::Hook(port, _) | Self::Place(_, port) | Self::Block(_, _, port) | Self::Others(_, port) =
            self
        {
            Some(port)
        } else {
            None
        }
    }

    /// Whether it decides which way frames take.
    pub const fn is_switch(&self) -> bool {
        matches!(self, Self::Way(_) | Self::Relay(_))
    }
}

impl fmt::Display for Element {
    /// The element as nft reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(port) | Self::Tap(port) => write!(f, "\"{port}\""),
            Self::Exit(port, Exit(mark)) => write!(f, "\"{port}\" . {mark}"),
            Self::Way(Exit(mark)) => write!(f, "{FROM_PODS} : {mark}"),
            Self::Relay(Exit(mark)) => write!(f, "{FROM_UPLINK} : {mark}"),
            Self::Mac(port, mac) => write!(f, "\"{port}\" . {mac}"),
            Self::Source(port, ip) => write!(f, "\"{port}\" . {ip}"),
            Self::Target(port, ip) => write!(f, "\"{port}\" . {:#034x}", ip.to_bits()),
            Self::Node(ip) => ip.fmt(f),
            Self::Hook(port, side) => write!(f, "\"{port}\" {}", side.chain()),
            Self::Sender(port, mac, ip) => write!(f, "\"{port}\" . {mac} . {ip}"),
            Self::Place(_, port) | Self::Block(_, _, port) | Self::Others(_, port) => {
                write!(f, "{} : \"{port}\"", self.key().unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_are_written() {
        let port = Name::new("wp-a");
        let elements = [
            Element::Pod(port.clone()),
            Element::Tap(port.clone()),
            Element::Mac(port.clone(), Mac::of_index(7)),
            Element::Source(port.clone(), "10.80.0.7".parse().unwrap()),
            Element::Source(port.clone(), "fd42::7".parse().unwrap()),
            Element::Target(port, "fd42::7".parse().unwrap()),
            Element::Node("fd00::1".parse().unwrap()),
            Element::Exit(Name::new("wu-a"), Exit::UPLINK),
            Element::Way(Exit::tap(1)),
            Element::Relay(Exit::tap(0)),
            Element::Sender(Name::new("wp-a"), Mac::of_index(7), "10.80.0.7".parse().unwrap()),
            Element::Sender(Name::new("wp-a"), Mac::of_index(7), "fd42::7".parse().unwrap()),
            Element::Place(Mac::of_index(7), Name::new("wp-a")),
            Element::Block(Mac::of_index(64), Mac::of_index(127), Name::new("wx-a")),
            Element::Block(Mac::of_index(64), Mac::of_index(64), Name::new("wx-a")),
            Element::Others(Family::Ipv6, Name::new("wt-a0")),
        ];
        for element in elements {
            let text = element.to_string().replace('"', "").replace(" : ", " . ");
            let text = match element {
                Element::Block(..) => text.replace('-', " . ").replace("wx . ", "wx-"),
                _ => text,
            };
            let key: Vec<&str> = text.split(" . ").collect();
            assert_eq!(Element::parse(element.set(), &key), Some(element));
        }
    }
}
