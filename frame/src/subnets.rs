use core::net::{Ipv4Addr, Ipv6Addr};

/// How addresses are indices in a slice.
pub trait Addressing {
    /// The index whose address this is, or `None` where the address lies outside the subnet.
    fn index_of_v4(&self, ip: Ipv4Addr) -> Option<u32>;

    /// As [`Self::index_of_v4`]; an index has 32 bits, however large the subnet is.
    fn index_of_v6(&self, ip: Ipv6Addr) -> Option<u32>;
}

/// The subnets of a slice, one per family at most: an attachment's addresses are the network's first and its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subnets {
    v4: Option<Network<u32>>,
    v6: Option<Network<u128>>,
}

/// A network as its first address and the bits that all its addresses have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network<N> {
    pub first: N,
    pub mask: N,
}

impl Subnets {
    /// Takes a network of each family with the length of its prefix; bits beyond that are left out.
    #[must_use]
    pub const fn new(v4: Option<(Ipv4Addr, u8)>, v6: Option<(Ipv6Addr, u8)>) -> Self {
        let v4 = match v4 {
            Some((address, length)) => {
                let mask = match length {
                    0 => 0,
                    1..32 => u32::MAX << (32 - length),
                    _ => u32::MAX,
                };
                let first = address.to_bits() & mask;
                Some(Network { first, mask })
            }
            None => None,
        };
        let v6 = match v6 {
            Some((address, length)) => {
                let mask = match length {
                    0 => 0,
                    1..128 => u128::MAX << (128 - length),
                    _ => u128::MAX,
                };
                let first = address.to_bits() & mask;
                Some(Network { first, mask })
            }
            None => None,
        };
        Self { v4, v6 }
    }

    #[must_use]
    pub const fn v4(&self) -> Option<Network<u32>> {
        self.v4
    }

    #[must_use]
    pub const fn v6(&self) -> Option<Network<u128>> {
        self.v6
    }
}

impl Addressing for Subnets {
    fn index_of_v4(&self, ip: Ipv4Addr) -> Option<u32> {
        self.v4.and_then(|network| network.index_of(ip))
    }

    fn index_of_v6(&self, ip: Ipv6Addr) -> Option<u32> {
        self.v6.and_then(|network| network.index_of(ip))
    }
}

impl Network<u32> {
    #[inline(always)]
    #[must_use]
    pub const fn index_of(self, ip: Ipv4Addr) -> Option<u32> {
        if ip.to_bits() & self.mask == self.first {
            Some(ip.to_bits() - self.first)
        } else {
            None
        }
    }
}

impl Network<u128> {
    #[inline(always)]
    #[must_use]
    pub const fn index_of(self, ip: Ipv6Addr) -> Option<u32> {
        let index = ip.to_bits() & !self.mask;
        if ip.to_bits() & self.mask == self.first && index >> 32 == 0 {
            Some(index as u32)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_indices() {
        let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let subnets = Subnets::new(
            Some((Ipv4Addr::new(10, 80, 0, 0), 16)),
            Some((v6("fd42:80::"), 64)),
        );
        assert_eq!(subnets.index_of_v4(Ipv4Addr::new(10, 80, 1, 2)), Some(258));
        assert_eq!(subnets.index_of_v4(Ipv4Addr::new(10, 81, 1, 2)), None);
        assert_eq!(subnets.index_of_v6(v6("fd42:80::46")), Some(0x46));
        assert_eq!(subnets.index_of_v6(v6("fd42:80::1:0:0")), None);
        assert_eq!(subnets.index_of_v6(v6("fe80::46")), None);
    }

    #[test]
    fn bits_of_a_host_are_left_out() {
        let subnets = Subnets::new(Some((Ipv4Addr::new(10, 80, 3, 9), 24)), None);
        assert_eq!(subnets.index_of_v4(Ipv4Addr::new(10, 80, 3, 1)), Some(1));
        let all = Subnets::new(Some((Ipv4Addr::UNSPECIFIED, 0)), Some((Ipv6Addr::UNSPECIFIED, 0)));
        assert_eq!(all.index_of_v4(Ipv4Addr::new(0, 0, 1, 0)), Some(256));
        assert_eq!(all.index_of_v6(Ipv6Addr::from_bits(7)), Some(7));
    }
}
