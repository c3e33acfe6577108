//! The tables, and how their entries look in a map of the kernel: a few words, in the machine's order.
//!
//! Values are flat, with every field there whatever its kind: a value that is there on some ways only costs the kernel's
//! verifier dear, and the compiler may leave it undefined on the others, which the verifier refuses.

use core::net::{Ipv4Addr, Ipv6Addr};

use slice_frame::{Addressing, Network, Subnets};

use crate::Direction;

/// What a frame is judged by. Addresses of nodes are IPv6; those of IPv4 are mapped (RFC 4291 §2.5.5.2).
pub trait Tables {
    fn slice(&self, slice: u32) -> Option<Slice<'_>>;

    /// By the longest prefix that has the index; [`Hop::NOWHERE`] where none has.
    fn route(&self, slice: u32, index: u32) -> Hop;

    /// How frames leave for a cluster, or, with [`ALL_CLUSTERS`], for all.
    fn exit(&self, slice: u32, cluster: u32) -> Hop;

    /// Whether a node has a gateway of the slice, and so speaks for peer clusters too.
    fn has_gateway(&self, slice: u32, node: Ipv6Addr) -> bool;

    /// The port of the node's own gateway that carries what other nodes send here for a cluster, or, with
    /// [`ALL_CLUSTERS`], for all.
    fn relay(&self, slice: u32, cluster: u32) -> Hop;
}

/// The cluster that stands for all in the exits.
pub const ALL_CLUSTERS: u32 = u32::MAX;

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    Pod,
    /// A pod that may say that it is a router.
    Router,
    Gateway,
}

/// An interface of the node that belongs to a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub slice: u32,
    pub role: Role,
    /// Of the pod.
    pub index: u32,
    /// Of the shaper, by which goes what it sends before anything else; zero for none.
    pub class: u32,
}

/// A port's entry: slice, role, index, class.
pub type PortEntry = [u32; 4];

impl Port {
    #[must_use]
    pub const fn entry(&self) -> PortEntry {
        [self.slice, self.role as u32, self.index, self.class]
    }

    #[inline(always)]
    #[must_use]
    pub const fn of(entry: &PortEntry) -> Self {
        let [slice, role, index, class] = *entry;
        let role = match role {
            0 => Role::Pod,
            1 => Role::Router,
            _ => Role::Gateway,
        };
        Self {
            slice,
            role,
            index,
            class,
        }
    }
}

/// What a slice is, as its entry in a map says: read where it is, since it is long.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a>(pub &'a SliceEntry);

/// A slice's entry: flags and rate, IPv4 network and mask, and two words each of the IPv6 network and its mask.
pub type SliceEntry = [u64; 6];

const NON_IP: u32 = 1;
const TAGGED: u32 = 2;
const V4: u32 = 4;
const V6: u32 = 8;
const ROUTERS: u32 = 16;

/// What a slice's entry is made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SliceRules {
    pub subnets: Subnets,
    /// It carries frames that are not IP.
    pub non_ip: bool,
    /// It carries frames with VLAN tags.
    pub tagged: bool,
    /// Some of its pods may say that they are routers: what other nodes and clusters let through is carried.
    pub routers: bool,
    /// Group-addressed frames a second that a port may send.
    pub group_rate: u32,
}

impl SliceRules {
    #[must_use]
    pub fn entry(&self) -> SliceEntry {
        let (v4, v6) = (self.subnets.v4(), self.subnets.v6());
        let bits = [
            (self.non_ip, NON_IP),
            (self.tagged, TAGGED),
            (self.routers, ROUTERS),
            (v4.is_some(), V4),
            (v6.is_some(), V6),
        ];
        let flags: u32 = bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
        let v4 = v4.unwrap_or(Network { first: 0, mask: 0 });
        let v6 = v6.unwrap_or(Network { first: 0, mask: 0 });
        [
            pair(flags, self.group_rate),
            pair(v4.first, v4.mask),
            (v6.first >> 64) as u64,
            v6.first as u64,
            (v6.mask >> 64) as u64,
            v6.mask as u64,
        ]
    }
}

impl Slice<'_> {
    #[inline(always)]
    const fn has(&self, flag: u32) -> bool {
        (self.0[0] >> 32) as u32 & flag != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn non_ip(&self) -> bool {
        self.has(NON_IP)
    }

    #[inline(always)]
    #[must_use]
    pub const fn tagged(&self) -> bool {
        self.has(TAGGED)
    }

    #[inline(always)]
    #[must_use]
    pub const fn routers(&self) -> bool {
        self.has(ROUTERS)
    }

    #[inline(always)]
    #[must_use]
    pub const fn group_rate(&self) -> u32 {
        self.0[0] as u32
    }
}

impl Addressing for Slice<'_> {
    #[inline(always)]
    fn index_of_v4(&self, ip: Ipv4Addr) -> Option<u32> {
        let network = Network {
            first: (self.0[1] >> 32) as u32,
            mask: self.0[1] as u32,
        };
        if self.has(V4) { network.index_of(ip) } else { None }
    }

    #[inline(always)]
    fn index_of_v6(&self, ip: Ipv6Addr) -> Option<u32> {
        let long = |high: usize| (self.0[high] as u128) << 64 | self.0[high + 1] as u128;
        let network = Network {
            first: long(2),
            mask: long(4),
        };
        if self.has(V6) { network.index_of(ip) } else { None }
    }
}

/// What the next hop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// There is none.
    Nowhere,
    /// An interface of the node.
    Port,
    Node,
    Cluster,
}

/// Where frames go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub kind: Kind,
    /// Of the interface or of the cluster.
    pub number: u32,
    /// Of a node. Of an interface, its [`class`](Self::class) in the last word.
    pub node: Ipv6Addr,
}

/// The entry of a hop: its kind and number, and the address of a node, or the class of an interface, in two words.
pub type HopEntry = [u64; 3];

impl Hop {
    pub const NOWHERE: Self = Self::new(Kind::Nowhere, 0, Ipv6Addr::UNSPECIFIED);

    const fn new(kind: Kind, number: u32, node: Ipv6Addr) -> Self {
        Self { kind, number, node }
    }

    /// An interface, and the class of the shaper by which goes what is sent to it; zero for none.
    #[must_use]
    pub const fn port(interface: u32, class: u32) -> Self {
        Self::new(Kind::Port, interface, Ipv6Addr::from_bits(class as u128))
    }

    /// The class of an interface.
    #[inline(always)]
    #[must_use]
    pub const fn class(&self) -> u32 {
        self.node.to_bits() as u32
    }

    #[must_use]
    pub const fn node(node: Ipv6Addr) -> Self {
        Self::new(Kind::Node, 0, node)
    }

    #[must_use]
    pub const fn cluster(cluster: u32) -> Self {
        Self::new(Kind::Cluster, cluster, Ipv6Addr::UNSPECIFIED)
    }

    #[must_use]
    pub const fn entry(&self) -> HopEntry {
        let bits = self.node.to_bits();
        [
            pair(self.kind as u32, self.number),
            (bits >> 64) as u64,
            bits as u64,
        ]
    }

    #[inline(always)]
    #[must_use]
    pub const fn of(entry: &HopEntry) -> Self {
        let kind = match (entry[0] >> 32) as u32 {
            1 => Kind::Port,
            2 => Kind::Node,
            3 => Kind::Cluster,
            _ => Kind::Nowhere,
        };
        let node = Ipv6Addr::from_bits((entry[1] as u128) << 64 | entry[2] as u128);
        Self::new(kind, entry[0] as u32, node)
    }
}

/// The two VXLAN devices, and the address of the node that other nodes know it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The interface by which frames for other nodes' pods go and come.
    pub to_pods: u32,
    /// The same for other nodes' gateways.
    pub to_gateways: u32,
    pub local: Ipv6Addr,
}

impl Tunnel {
    #[must_use]
    pub const fn entry(&self) -> HopEntry {
        let bits = self.local.to_bits();
        [
            pair(self.to_pods, self.to_gateways),
            (bits >> 64) as u64,
            bits as u64,
        ]
    }

    #[inline(always)]
    #[must_use]
    pub const fn of(entry: &HopEntry) -> Self {
        Self {
            to_pods: (entry[0] >> 32) as u32,
            to_gateways: entry[0] as u32,
            local: Ipv6Addr::from_bits((entry[1] as u128) << 64 | entry[2] as u128),
        }
    }
}

/// On a frame that comes from the shaper: the interface that it came by before, or, with this bit, the one that it goes to.
pub const DELIVER: u32 = 1 << 31;

/// The priority by which the shaper knows a class (tc(8), `classid`): of its first and only queueing discipline.
#[inline(always)]
#[must_use]
pub const fn class_priority(class: u32) -> u32 {
    SHAPER << 16 | class
}

/// The major number of the shaper's queueing discipline.
pub const SHAPER: u32 = 1;

/// The key of a count: slice, and direction and [`Reason`](crate::Reason).
pub type CountKey = [u32; 2];

/// What stands in a count's key for frames that passed.
pub const PASSED: u32 = 0xffff;

/// The key of the frames of a slice that came so, and passed or were dropped.
#[inline(always)]
#[must_use]
pub const fn count_key(slice: u32, direction: Direction, what: u32) -> CountKey {
    [slice, (direction as u32) << 16 | what]
}

/// The key of a node: the slice, and the address in its words.
pub type NodeKey = [u32; 5];

/// The key of `node` in a slice.
#[inline(always)]
#[must_use]
pub const fn node_key(slice: u32, node: Ipv6Addr) -> NodeKey {
    let bits = node.to_bits();
    [
        slice,
        (bits >> 96) as u32,
        (bits >> 64) as u32,
        (bits >> 32) as u32,
        bits as u32,
    ]
}

/// The key of a port among those of nodes: no node has the address of zeroes.
#[inline(always)]
#[must_use]
pub const fn port_key(interface: u32) -> NodeKey {
    [interface, 0, 0, 0, 0]
}

/// Copies of one group-addressed frame at most: ports of the node and other nodes, all together.
pub const MAX_MEMBERS: u32 = 1024;

/// The key of a run of indices: as many bits, of slice and first index in the network's order.
#[inline(always)]
#[must_use]
pub const fn prefix(slice: u32, index: u32) -> [u32; 2] {
    [slice.to_be(), index.to_be()]
}

const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = Ipv6Addr> {
        any::<u128>().prop_map(Ipv6Addr::from_bits)
    }

    proptest! {
        #[test]
        fn entries_are_read_as_they_were_written(
            slice: u32, index: u32, node in address(), non_ip: bool, tagged: bool, routers: bool,
            group_rate: u32, v4 in any::<Option<(u32, u8)>>(), v6 in any::<Option<(u128, u8)>>(), other: u32,
        ) {
            for role in [Role::Pod, Role::Router, Role::Gateway] {
                let port = Port { slice, role, index, class: other };
                prop_assert_eq!(Port::of(&port.entry()), port);
            }
            let hops = [
                Hop::NOWHERE, Hop::port(index, other), Hop::node(node), Hop::cluster(index),
            ];
            for hop in hops {
                prop_assert_eq!(Hop::of(&hop.entry()), hop);
            }
            let tunnel = Tunnel { to_pods: index, to_gateways: other, local: node };
            prop_assert_eq!(Tunnel::of(&tunnel.entry()), tunnel);
            let subnets = Subnets::new(
                v4.map(|(bits, length)| (Ipv4Addr::from_bits(bits), length % 33)),
                v6.map(|(bits, length)| (Ipv6Addr::from_bits(bits), length % 129)),
            );
            let entry = SliceRules { subnets, non_ip, tagged, routers, group_rate }.entry();
            let read = Slice(&entry);
            prop_assert_eq!((read.non_ip(), read.tagged(), read.routers()), (non_ip, tagged, routers));
            prop_assert_eq!(read.group_rate(), group_rate);
            for bits in v4.map(|(bits, _)| bits ^ (index % 512)).into_iter().chain([other]) {
                let ip = Ipv4Addr::from_bits(bits);
                prop_assert_eq!(read.index_of_v4(ip), subnets.index_of_v4(ip));
            }
            for bits in v6.map(|(bits, _)| bits ^ u128::from(index)).into_iter().chain([node.to_bits()]) {
                let ip = Ipv6Addr::from_bits(bits);
                prop_assert_eq!(read.index_of_v6(ip), subnets.index_of_v6(ip));
            }
        }
    }
}
