//! Addressing: everything about an attachment follows from its index.
//!
//! ```text
//!  slice 10.80.0.0/16, fd42:80::/64
//!  index   0 │ 1 … 63 │ 64 … 127 │ … 16384 …          one number per attachment
//!          └─reserved  └block, node 1└block, node 2     └range of the next cluster
//!  i = 70  →  10.80.0.70   fd42:80::46   02:5c:00:00:00:46
//! ```
//!
//! Index 0 (the IPv4 network address, the IPv6 subnet-router anycast address of RFC 4291 §2.6.1) and the
//! last index of an IPv4 subnet (its broadcast address) are never given to an attachment.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Cidr;

/// Clusters are numbered `1..=MAX_CLUSTER`; 198.18.0.0/15 has room for that many times 256 gateways.
pub const MAX_CLUSTER: u32 = 510;

/// The cluster number under which the hosts outside every cluster have their VTEPs; see [`vtep`].
pub const OUTSIDE: u32 = MAX_CLUSTER + 1;

/// Gateways of one slice in one cluster are numbered `0..=MAX_ORDINAL`.
pub const MAX_ORDINAL: u32 = 253;

/// The subnets of a slice: one per address family at most, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnets {
    pub v4: Option<Ipv4Net>,
    pub v6: Option<Ipv6Net>,
}

/// Why a list of networks cannot be the subnets of a slice.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubnetsError {
    #[error("a slice needs at least one subnet, such as 10.80.0.0/16")]
    Empty,
    #[error("subnets {0} and {1} are of one family; a slice takes at most one IPv4 and one IPv6 subnet")]
    TwoOfOneFamily(IpNet, IpNet),
}

impl Subnets {
    pub fn new(subnets: &[Cidr]) -> Result<Self, SubnetsError> {
        let mut this = Self { v4: None, v6: None };
        for cidr in subnets {
            match cidr.net() {
                IpNet::V4(net) => {
                    if let Some(first) = this.v4.replace(net) {
                        return Err(SubnetsError::TwoOfOneFamily(first.into(), net.into()));
                    }
                }
                IpNet::V6(net) => {
                    if let Some(first) = this.v6.replace(net) {
                        return Err(SubnetsError::TwoOfOneFamily(first.into(), net.into()));
                    }
                }
            }
        }
        if this.v4.is_none() && this.v6.is_none() {
            Err(SubnetsError::Empty)
        } else {
            Ok(this)
        }
    }

    /// How many indices the subnets have: the smaller of the two families, at most 2³².
    pub fn capacity(&self) -> u64 {
        let v4 = self.v4.map_or(1 << 32, |net| 1u64 << (32 - net.prefix_len()));
        let v6 = self
            .v6
            .map_or(1 << 32, |net| 1u64 << (128 - net.prefix_len()).min(32));
        v4.min(v6)
    }

    /// Whether an attachment may have this index.
    pub fn usable(&self, index: u32) -> bool {
        let last_v4 = self.v4.map(|net| (1u64 << (32 - net.prefix_len())) - 1);
        index != 0 && u64::from(index) < self.capacity() && last_v4 != Some(u64::from(index))
    }

    /// How many indices of a range an attachment may have.
    pub fn usable_in(&self, range: IndexRange) -> u32 {
        let last = range.start + (range.size - 1);
        range.size - u32::from(!self.usable(range.start)) - u32::from(range.size > 1 && !self.usable(last))
    }

    pub fn ipv4(&self, index: u32) -> Option<Ipv4Addr> {
        let net = self.v4?;
        net.network()
            .to_bits()
            .checked_add(index)
            .map(Ipv4Addr::from_bits)
            .filter(|ip| net.contains(ip))
    }

    pub fn ipv6(&self, index: u32) -> Option<Ipv6Addr> {
        let net = self.v6?;
        let ip = Ipv6Addr::from_bits(net.network().to_bits().checked_add(index.into())?);
        net.contains(&ip).then_some(ip)
    }

    /// The addresses of an attachment, IPv4 first.
    pub fn addresses(&self, index: u32) -> impl Iterator<Item = IpNet> + use<> {
        let v4 = self
            .v4
            .zip(self.ipv4(index))
            .and_then(|(net, ip)| Ipv4Net::new(ip, net.prefix_len()).ok());
        let v6 = self
            .v6
            .zip(self.ipv6(index))
            .and_then(|(net, ip)| Ipv6Net::new(ip, net.prefix_len()).ok());
        v4.map(IpNet::from).into_iter().chain(v6.map(IpNet::from))
    }

    /// The index whose address this is, or `None` where the address lies outside the subnets.
    pub fn index_of(&self, ip: IpAddr) -> Option<u32> {
        match ip {
            IpAddr::V4(ip) => {
                let net = self.v4.filter(|net| net.contains(&ip))?;
                Some(ip.to_bits() - net.network().to_bits())
            }
            IpAddr::V6(ip) => {
                let net = self.v6.filter(|net| net.contains(&ip))?;
                u32::try_from(ip.to_bits() - net.network().to_bits()).ok()
            }
        }
    }
}

/// A run of indices: a cluster's range or a node's block. `size` is a power of two and `start` a multiple of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "UncheckedRange")]
pub struct IndexRange {
    /// First index.
    pub start: u32,
    /// Number of indices, a power of two.
    pub size: u32,
}

#[derive(Deserialize, JsonSchema)]
struct UncheckedRange {
    /// First index.
    start: u32,
    /// Number of indices, a power of two.
    size: u32,
}

/// Two numbers are not an [`IndexRange`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{start}+{size} is no run of indices: the size is a power of two and the start a multiple of it")]
pub struct RangeError {
    start: u32,
    size: u32,
}

impl TryFrom<UncheckedRange> for IndexRange {
    type Error = RangeError;

    fn try_from(UncheckedRange { start, size }: UncheckedRange) -> Result<Self, RangeError> {
        Self::checked(start, size).ok_or(RangeError { start, size })
    }
}

/// Reads a list of runs. What is none is passed over: a machine wrote it, and the rest is as good as it was.
///
/// # Errors
/// Where it is no list of pairs of numbers.
pub fn runs<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IndexRange>, D::Error> {
    let all = Vec::<UncheckedRange>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|run| run.try_into().ok()).collect())
}

impl IndexRange {
    /// # Panics
    /// Where `size` is no power of two or `start` no multiple of it.
    pub const fn new(start: u32, size: u32) -> Self {
        assert!(size.is_power_of_two() && start.is_multiple_of(size));
        Self { start, size }
    }

    /// The range, or `None` where `size` is no power of two or `start` no multiple of it.
    pub const fn checked(start: u32, size: u32) -> Option<Self> {
        if size.is_power_of_two() && start.is_multiple_of(size) {
            Some(Self { start, size })
        } else {
            None
        }
    }

    pub const fn contains(self, index: u32) -> bool {
        index >= self.start && index - self.start < self.size
    }

    /// Whether every index of `other` is in this range.
    pub const fn covers(self, other: Self) -> bool {
        self.contains(other.start) && self.contains(other.start + (other.size - 1))
    }

    pub const fn overlaps(self, other: Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    /// The pieces of this size that the range consists of, none where it is smaller.
    pub fn pieces(self, size: u32) -> impl Iterator<Item = Self> {
        (0..self.size / size).map(move |n| Self::new(self.start + n * size, size))
    }

    pub fn indices(self) -> impl DoubleEndedIterator<Item = u32> {
        self.start..=self.start + (self.size - 1)
    }
}

impl fmt::Display for IndexRange {
    /// `64+64`: start and size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.size)
    }
}

/// The inner IPv4 address of a gateway's VXLAN end point: `198.18.0.0 + cluster · 256 + ordinal + 1`
/// (the benchmarking range of RFC 2544, which is on no real network). It is seen inside the tunnel only.
///
/// # Panics
/// Where `cluster` is above [`OUTSIDE`] or `ordinal` above [`MAX_ORDINAL`].
pub fn vtep(cluster: u32, ordinal: u32) -> Ipv4Addr {
    assert!(
        cluster <= OUTSIDE && ordinal <= MAX_ORDINAL,
        "vtep of cluster {cluster}, gateway {ordinal}"
    );
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + cluster * 256 + ordinal + 1)
}

/// How many indices a node's block has in a slice of this capacity: 64 where there is room for many
/// blocks, fewer in a small slice so that there are at least 8 blocks, and at least 2.
pub fn block_size(capacity: u64) -> u32 {
    let eighth = u32::try_from((capacity / 8).clamp(2, 64)).expect("at most 64");
    1 << eighth.ilog2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnets(text: &[&str]) -> Subnets {
        Subnets::new(&text.iter().map(|cidr| cidr.parse().unwrap()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn addresses_follow_from_the_index() {
        let subnets = subnets(&["10.80.0.0/16", "fd42:80::/64"]);
        let addresses: Vec<_> = subnets.addresses(70).map(|net| net.to_string()).collect();
        assert_eq!(addresses, ["10.80.0.70/16", "fd42:80::46/64"]);
    }

    #[test]
    fn network_and_broadcast_addresses_are_not_usable() {
        let v4 = subnets(&["10.80.0.0/28"]);
        let usable: Vec<u32> = (0..20).filter(|index| v4.usable(*index)).collect();
        assert_eq!(usable, (1..15).collect::<Vec<_>>());
        assert!(subnets(&["fd42::/64"]).usable(u32::MAX));
    }

    #[test]
    fn usable_indices_are_counted() {
        let v4 = subnets(&["10.80.0.0/28"]);
        let counts = [(0, 2), (2, 2), (14, 2), (0, 16), (0, 1)].map(|(start, size)| {
            let range = IndexRange::new(start, size);
            assert_eq!(
                v4.usable_in(range) as usize,
                range.indices().filter(|index| v4.usable(*index)).count()
            );
            v4.usable_in(range)
        });
        assert_eq!(counts, [1, 2, 1, 14, 0]);
        assert_eq!(
            IndexRange::new(8, 8).pieces(4).collect::<Vec<_>>(),
            [IndexRange::new(8, 4), IndexRange::new(12, 4)]
        );
    }

    #[test]
    fn capacity_is_the_smaller_family() {
        assert_eq!(subnets(&["10.80.0.0/16"]).capacity(), 65536);
        assert_eq!(subnets(&["10.80.0.0/20", "fd42::/64"]).capacity(), 4096);
        assert_eq!(subnets(&["fd42::/64"]).capacity(), 1 << 32);
    }

    #[test]
    fn one_subnet_per_family() {
        let two: Vec<Cidr> = ["10.1.0.0/16", "10.2.0.0/16"]
            .map(|text| text.parse().unwrap())
            .into();
        assert!(matches!(
            Subnets::new(&two),
            Err(SubnetsError::TwoOfOneFamily(..))
        ));
        assert_eq!(Subnets::new(&[]), Err(SubnetsError::Empty));
    }

    #[test]
    fn vteps_stay_in_the_benchmarking_range() {
        assert_eq!(vtep(1, 0), Ipv4Addr::new(198, 18, 1, 1));
        assert_eq!(vtep(MAX_CLUSTER, MAX_ORDINAL), Ipv4Addr::new(198, 19, 254, 254));
        assert_eq!(vtep(OUTSIDE, MAX_ORDINAL), Ipv4Addr::new(198, 19, 255, 254));
    }

    #[test]
    fn small_slices_have_small_blocks() {
        assert_eq!(
            [16u64, 256, 512, 65536, 1 << 32].map(block_size),
            [2, 32, 64, 64, 64]
        );
    }

    proptest! {
        #[test]
        fn index_and_address_are_each_others_inverse(index in 1u32..65535) {
            let subnets = subnets(&["10.80.0.0/16", "fd42:80::/64"]);
            for net in subnets.addresses(index) {
                prop_assert_eq!(subnets.index_of(net.addr()), Some(index));
            }
        }

        #[test]
        fn ranges_overlap_when_they_share_an_index(a in 0u32..64, b in 0u32..64, x in 0u32..4, y in 0u32..4) {
            let range = |n: u32, log: u32| IndexRange::new(n >> log << log, 1 << log);
            let (a, b) = (range(a, x), range(b, y));
            let shared = a.indices().any(|index| b.contains(index));
            prop_assert_eq!(a.overlaps(b), shared);
            prop_assert_eq!(a.covers(b), b.indices().all(|index| a.contains(index)));
        }
    }
}
