//! IPv4 (RFC 791) and IPv6 (RFC 8200) as far as a judge must look: addresses, and what is behind the headers.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::{Bytes, Unreadable, checksum::Sum};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const DCCP: u8 = 33;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;
pub const UDP_LITE: u8 = 136;

/// Bytes of an IPv4 header without options.
pub const V4_HEADER: usize = 20;
/// Bytes of the fixed IPv6 header.
pub const V6_HEADER: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// How many extension headers are passed. No sender that means well has more.
const MAX_EXTENSIONS: usize = 8;

/// Which part of a packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it; also an atomic fragment (RFC 6946).
    Whole,
    /// The part with the transport header.
    First,
    /// What follows the headers need not be a transport header.
    Later,
}

/// A packet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// IPv4 addresses are mapped (RFC 4291 §2.5.5.2).
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    /// Of what is behind all extension headers.
    pub protocol: u8,
    pub fragment: Fragment,
    /// Type of service or traffic class: six bits of DSCP, two of ECN.
    pub tos: u8,
    /// Time to live in IPv4.
    pub hop_limit: u8,
    /// Where in the frame the transport header is.
    pub transport: usize,
    /// Where the packet ends; behind it is padding.
    pub end: usize,
    /// The first bytes of the transport header: both ports, or type and code. Zeros in a later fragment, and where an
    /// unknown protocol has less.
    pub head: [u8; 4],
}

impl Packet {
    /// No packet.
    pub(crate) const NONE: Self = Self {
        source: Ipv6Addr::UNSPECIFIED,
        destination: Ipv6Addr::UNSPECIFIED,
        protocol: 0,
        fragment: Fragment::Whole,
        tos: 0,
        hop_limit: 0,
        transport: 0,
        end: 0,
        head: [0; 4],
    };

    /// Reads the packet of either family at `network`, wherever in a frame that is.
    ///
    /// # Errors
    /// Where it could be more than this reader sees.
    pub fn read<B: Bytes + ?Sized>(bytes: &B, network: usize) -> Result<Self, Unreadable> {
        let mut packet = Self::NONE;
        match bytes.load(network).map(|[first]| first >> 4) {
            Some(4) => packet.read_v4(bytes, network)?,
            Some(6) => packet.read_v6(bytes, network)?,
            _ => return Err(Unreadable::Ip),
        }
        Ok(packet)
    }

    /// Source and destination port, of a protocol that has them there.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let has =
            matches!(self.protocol, TCP | UDP | DCCP | SCTP | UDP_LITE) && self.fragment != Fragment::Later;
        let [a, b, c, d] = self.head;
        has.then(|| (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }

    /// The type of a message of `protocol`, which is [`ICMP`] or [`ICMPV6`].
    #[inline(always)]
    pub(crate) fn message(&self, protocol: u8) -> Option<u8> {
        (self.protocol == protocol && self.fragment != Fragment::Later).then_some(self.head[0])
    }

    /// Reads the IPv4 packet at `network`.
    #[inline(always)]
    pub(crate) fn read_v4<B: Bytes + ?Sized>(&mut self, bytes: &B, network: usize) -> Result<(), Unreadable> {
        let header: [u8; V4_HEADER] = bytes.load(network).ok_or(Unreadable::Ip)?;
        let length = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        self.end = network + total;
        if header[0] >> 4 != 4 || length < V4_HEADER || total < length || self.end > bytes.length() {
            return Err(Unreadable::Ip);
        }
        let place = u16::from_be_bytes([header[6], header[7]]);
        self.fragment = fragment(place & 0x1fff, place & 0x2000 != 0);
        self.source = Ipv4Addr::new(header[12], header[13], header[14], header[15]).to_ipv6_mapped();
        self.destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]).to_ipv6_mapped();
        self.protocol = header[9];
        self.tos = header[1];
        self.hop_limit = header[8];
        self.transport = network + length;
        self.load_head(bytes)
    }

    /// Reads the IPv6 packet at `network`.
    #[inline(always)]
    pub(crate) fn read_v6<B: Bytes + ?Sized>(&mut self, bytes: &B, network: usize) -> Result<(), Unreadable> {
        let header: [u8; 8] = bytes.load(network).ok_or(Unreadable::Ip)?;
        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
        self.end = network + V6_HEADER + payload;
        if header[0] >> 4 != 6 || self.end > bytes.length() {
            return Err(Unreadable::Ip);
        }
        self.protocol = header[6];
        self.tos = header[0] << 4 | header[1] >> 4;
        self.hop_limit = header[7];
        self.source = Ipv6Addr::from_octets(bytes.load(network + 8).ok_or(Unreadable::Ip)?);
        self.destination = Ipv6Addr::from_octets(bytes.load(network + 24).ok_or(Unreadable::Ip)?);
        self.transport = network + V6_HEADER;
        let mut in_fragment = false;
        for _ in 0..MAX_EXTENSIONS {
            if !is_extension(self.protocol) {
                break;
            }
            // A jumbogram (RFC 2675) ends here: its length of zero leaves no room for the header that says more.
            let [next, units, high, low] =
                load(bytes, self.transport, self.end).ok_or(Unreadable::Extensions)?;
            if self.protocol == FRAGMENT {
                // A fragment of a fragment is put together twice by the receiver, and nobody else means it.
                if in_fragment {
                    return Err(Unreadable::Extensions);
                }
                in_fragment = true;
                let place = u16::from_be_bytes([high, low]);
                self.fragment = fragment(place >> 3, place & 1 != 0);
                self.transport += 8;
            } else {
                // In units of eight bytes (RFC 8200 §4, RFC 6275, RFC 7401, RFC 5533).
                self.transport += usize::from(units) * 8 + 8;
            }
            self.protocol = next;
            if self.fragment == Fragment::Later {
                return Ok(());
            }
        }
        if is_extension(self.protocol) {
            return Err(Unreadable::Extensions);
        }
        self.load_head(bytes)
    }

    /// Fetches the transport header's first bytes, which a known protocol must have: a packet that keeps them for a later
    /// fragment hides what it is (RFC 7112 §5, RFC 1858 §3).
    #[inline(always)]
    fn load_head<B: Bytes + ?Sized>(&mut self, bytes: &B) -> Result<(), Unreadable> {
        if self.fragment == Fragment::Later {
            return Ok(());
        }
        let known = matches!(self.protocol, ICMP | TCP | UDP | DCCP | ICMPV6 | SCTP | UDP_LITE);
        match load(bytes, self.transport, self.end) {
            Some(head) => self.head = head,
            None if known => return Err(Unreadable::Transport),
            None => {}
        }
        Ok(())
    }
}

/// Bytes of a packet that ends at `end`.
#[inline(always)]
fn load<const N: usize, B: Bytes + ?Sized>(bytes: &B, at: usize, end: usize) -> Option<[u8; N]> {
    if at + N <= end { bytes.load(at) } else { None }
}

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6
    )
}

#[inline(always)]
const fn fragment(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

/// The sum over the pseudo-header of RFC 8200 §8.1.
#[must_use]
pub fn v6_pseudo_header(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: u16) -> Sum {
    Sum::default()
        .with(&source.octets())
        .with(&destination.octets())
        .with_u16(length)
        .with_u16(protocol.into())
}

/// The IPv4 address that was mapped.
#[inline(always)]
#[must_use]
pub const fn v4_of(mapped: Ipv6Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(mapped.to_bits() as u32)
}
