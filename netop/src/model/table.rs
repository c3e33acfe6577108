//! Entries of forwarding databases and neighbour tables.

use std::{fmt, net::IpAddr};

use slice_crds::Mac;

use super::Name;

/// The all-zero address: where a VXLAN device sends what it knows no other place for, one entry per place.
pub const ANY: Mac = Mac([0; 6]);

/// A static forwarding entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fdb {
    pub link: Name,
    pub mac: Mac,
    pub via: Via,
}

/// Whose entry it is. Ordered as entries are added: the VXLAN device must know where to send a frame before the
/// bridge hands it one, otherwise it would go to every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// The VXLAN device's own: send to this node.
    Remote(IpAddr),
    /// The bridge's: send out of this port.
    Bridge,
}

/// A permanent neighbour entry on a bridge: what it answers to ARP and ND.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub bridge: Name,
    pub ip: IpAddr,
    pub mac: Mac,
}

impl fmt::Display for Fdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { link, mac, via } = self;
        match via {
            Via::Remote(node) => write!(f, "fdb {mac} dev {link} dst {node}"),
            Via::Bridge => write!(f, "fdb {mac} dev {link} master"),
        }
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "neighbour {} is {} dev {}", self.ip, self.mac, self.bridge)
    }
}
