use core::{fmt, net::Ipv6Addr, str::FromStr};

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

    /// The index of the attachment whose MAC address a link-local address was made from (RFC 4291, appendix A).
    #[inline(always)]
    pub const fn index_of_link_local(ip: Ipv6Addr) -> Option<u32> {
        let bits = ip.to_bits();
        let (high, low) = ((bits >> 64) as u64, bits as u64);
        let is_ours = high == 0xfe80 << 48 && low >> 48 == 0x005c && (low >> 24) as u16 == 0xfffe;
        if is_ours {
            Some(((low >> 40) as u32) << 24 | low as u32 & 0x00ff_ffff)
        } else {
            None
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

/// A text is not an Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacError;

impl fmt::Display for MacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an Ethernet address, such as 02:5c:00:00:00:46")
    }
}

impl core::error::Error for MacError {}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(MacError)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError)?;
        }
        if parts.next().is_some() {
            Err(MacError)
        } else {
            Ok(Self(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_texts_are_no_addresses() {
        for text in [
            "",
            "02:5c",
            "02:5c:00:00:00:46:00",
            "02:5c:0:0:0:46",
            "02-5c-00-00-00-46",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError), "{text}");
        }
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
            prop_assert_eq!(Mac::of_index(index).to_string().parse(), Ok(Mac::of_index(index)));
        }

        #[test]
        fn a_link_local_address_gives_its_index_back(index: u32, other: u128) {
            let [a, b, c, d, e, f] = Mac::of_index(index).0;
            let low = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
            let ip = Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(low));
            prop_assert_eq!(Mac::index_of_link_local(ip), Some(index));
            prop_assert_eq!(Mac::index_of_link_local(Ipv6Addr::from_bits(other)), None);
            let prefix = Ipv6Addr::from_bits(ip.to_bits() ^ 1 << 64);
            prop_assert_eq!(Mac::index_of_link_local(prefix), None);
        }

        #[test]
        fn foreign_macs_have_no_index(mac: [u8; 6]) {
            let ours = mac[..2] == [0x02, 0x5c];
            prop_assert_eq!(Mac(mac).index().is_some(), ours);
        }
    }
}
