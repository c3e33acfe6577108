//! What follows from an attachment's index: its MAC and its addresses.
//!
//! The same arithmetic as the API types have; kept apart from them so that the process that faces the internet links
//! no Kubernetes client.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address of the attachment with this index: `02:5c:<index, big endian>`.
    pub const fn of_index(index: u32) -> Self {
        let [a, b, c, d] = index.to_be_bytes();
        Self([0x02, 0x5c, a, b, c, d])
    }

    /// The index of the attachment with this address, or `None` where it is not an attachment's.
    pub const fn index(self) -> Option<u32> {
        match self.0 {
            [0x02, 0x5c, a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d])),
            _ => None,
        }
    }

    /// Broadcast or multicast (IEEE 802 §8.2, the I/G bit).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// 01:80:c2:00:00:00 to 0f, which no bridge forwards (IEEE 802.1D §7.12.6).
    pub const fn is_link_local_group(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0, 0, last] if last < 0x10)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The subnets of a slice, one per family at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subnets {
    v4: Option<Ipv4Net>,
    v6: Option<Ipv6Net>,
}

impl Subnets {
    /// Keeps the first subnet of each family.
    pub fn new(subnets: &[IpNet]) -> Self {
        let mut this = Self::default();
        for subnet in subnets {
            match subnet {
                IpNet::V4(net) => this.v4 = this.v4.or_else(|| Some(net.trunc())),
                IpNet::V6(net) => this.v6 = this.v6.or_else(|| Some(net.trunc())),
            }
        }
        this
    }

    /// The index whose address this is, or `None` where the address lies outside the subnet.
    pub fn index_of_v4(&self, ip: Ipv4Addr) -> Option<u32> {
        let net = self.v4.filter(|net| net.contains(&ip))?;
        Some(ip.to_bits() - net.network().to_bits())
    }

    /// As [`Self::index_of_v4`].
    pub fn index_of_v6(&self, ip: Ipv6Addr) -> Option<u32> {
        let net = self.v6.filter(|net| net.contains(&ip))?;
        u32::try_from(ip.to_bits() - net.network().to_bits()).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_indices() {
        let subnets = Subnets::new(&["10.80.0.0/16".parse().unwrap(), "fd42:80::/64".parse().unwrap()]);
        assert_eq!(subnets.index_of_v4(Ipv4Addr::new(10, 80, 1, 2)), Some(258));
        assert_eq!(subnets.index_of_v4(Ipv4Addr::new(10, 81, 1, 2)), None);
        assert_eq!(subnets.index_of_v6("fd42:80::46".parse().unwrap()), Some(0x46));
        assert_eq!(subnets.index_of_v6("fd42:80::1:0:0".parse().unwrap()), None);
        assert_eq!(subnets.index_of_v6("fe80::46".parse().unwrap()), None);
    }

    #[test]
    fn groups() {
        assert!(Mac::BROADCAST.is_group() && !Mac::BROADCAST.is_link_local_group());
        assert!(Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e]).is_link_local_group());
        assert!(!Mac([0x01, 0x80, 0xc2, 0, 0, 0x10]).is_link_local_group());
        assert!(!Mac::of_index(7).is_group());
    }

    proptest! {
        #[test]
        fn a_mac_gives_its_index_back(index: u32) {
            prop_assert_eq!(Mac::of_index(index).index(), Some(index));
        }

        #[test]
        fn foreign_macs_have_no_index(mac: [u8; 6]) {
            let ours = mac[..2] == [0x02, 0x5c];
            prop_assert_eq!(Mac(mac).index().is_some(), ours);
        }
    }
}
