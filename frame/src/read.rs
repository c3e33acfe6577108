use crate::{
    Addressing, Bytes, Mac,
    arp::Arp,
    ethernet::{self, Header, TAG},
    ip::{self, Packet},
    nd,
};

/// How many VLAN tags are passed: a customer's within a provider's, and no more.
const MAX_TAGS: usize = 2;
/// ICMP redirect and router advertisement (RFC 792, RFC 1256).
const ICMP_REDIRECT: u8 = 5;
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;

/// A frame that a receiver may understand in ways that this reader does not: nobody forwards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Shorter than a header.
    Header,
    /// More than two VLAN tags, or one that is cut off.
    Tags,
    /// ARP of other addresses than Ethernet's and IPv4's, or cut off.
    Arp,
    /// A version that is not the EtherType's, or a length that is not the frame's.
    Ip,
    /// More IPv6 extension headers than anybody needs, fragments of fragments, or one that is cut off.
    Extensions,
    /// A transport header that is not in the first fragment.
    Transport,
}

/// What a frame says.
///
/// Flat, and every field has a value whatever the frame is: in the kernel's virtual machine a value that is there on some
/// ways only costs its verifier dear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub destination: Mac,
    pub source: Mac,
    /// It has a tag, be it one that names no VLAN.
    pub tagged: bool,
    /// See [`Self::vlan`]; zero is none.
    vlan: u16,
    /// Of what is behind the tags.
    pub ethertype: u16,
    /// Where that begins.
    pub network: usize,
    pub content: Content,
    packet: Packet,
    arp: Arp,
}

/// What is behind an Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Arp,
    V4,
    V6,
    /// Nothing that Linux would take for one of these.
    Other,
}

impl Frame {
    /// No frame: what [`Self::read_into`] begins with.
    pub const NONE: Self = Self {
        destination: Mac([0; 6]),
        source: Mac([0; 6]),
        tagged: false,
        vlan: 0,
        ethertype: 0,
        network: ethernet::HEADER,
        content: Content::Other,
        packet: Packet::NONE,
        arp: Arp::NONE,
    };

    /// Reads a frame.
    ///
    /// # Errors
    /// Where it could be more than this reader sees.
    #[inline]
    pub fn read<B: Bytes + ?Sized>(bytes: &B) -> Result<Self, Unreadable> {
        let mut frame = Self::NONE;
        frame.read_into(bytes)?;
        Ok(frame)
    }

    /// Reads a frame over [`Self::NONE`].
    ///
    /// # Errors
    /// As [`Self::read`].
    #[inline(always)]
    pub fn read_into<B: Bytes + ?Sized>(&mut self, bytes: &B) -> Result<(), Unreadable> {
        let header = Header::of(bytes.load(0).ok_or(Unreadable::Header)?);
        (self.destination, self.source) = (header.destination, header.source);
        self.ethertype = header.ethertype;
        if let Some(control) = bytes.stripped_tag() {
            self.pass_tag(control);
        }
        for _ in 0..MAX_TAGS {
            if !is_tag(self.ethertype) {
                break;
            }
            let [c0, c1, t0, t1] = bytes.load(self.network).ok_or(Unreadable::Tags)?;
            self.pass_tag(u16::from_be_bytes([c0, c1]));
            self.ethertype = u16::from_be_bytes([t0, t1]);
            self.network += TAG;
        }
        match self.ethertype {
            ethernet::ARP => {
                self.content = Content::Arp;
                self.arp = Arp::read(bytes, self.network)?;
                Ok(())
            }
            ethernet::IPV4 => {
                self.content = Content::V4;
                self.packet.read_v4(bytes, self.network)
            }
            ethernet::IPV6 => {
                self.content = Content::V6;
                self.packet.read_v6(bytes, self.network)
            }
            other if is_tag(other) => Err(Unreadable::Tags),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    const fn pass_tag(&mut self, control: u16) {
        self.tagged = true;
        if self.vlan == 0 {
            self.vlan = control & 0x0fff;
        }
    }

    /// The outermost VLAN that is named. A tag with VLAN 0 only gives a priority (IEEE 802.1Q §9.6), and Linux takes what
    /// is in it for untagged.
    #[must_use]
    #[inline(always)]
    pub const fn vlan(&self) -> Option<u16> {
        if self.vlan == 0 { None } else { Some(self.vlan) }
    }

    /// The packet in it.
    #[must_use]
    #[inline(always)]
    pub const fn packet(&self) -> Option<&Packet> {
        match self.content {
            Content::V4 | Content::V6 => Some(&self.packet),
            Content::Arp | Content::Other => None,
        }
    }

    #[must_use]
    #[inline(always)]
    pub const fn arp(&self) -> Option<&Arp> {
        match self.content {
            Content::Arp => Some(&self.arp),
            Content::V4 | Content::V6 | Content::Other => None,
        }
    }

    /// The type of a message of ICMP, or of ICMPv6 in IPv6.
    #[inline(always)]
    pub(crate) fn message(&self) -> Option<u8> {
        match self.content {
            Content::V4 => self.packet.message(ip::ICMP),
            Content::V6 => self.packet.message(ip::ICMPV6),
            Content::Arp | Content::Other => None,
        }
    }

    /// ARP or IPv6 neighbour discovery (RFC 4861 §4): answered or refused where it enters, never carried on.
    #[must_use]
    #[inline(always)]
    pub fn is_neighbour_discovery(&self) -> bool {
        match self.content {
            Content::Arp => true,
            Content::V6 => self
                .message()
                .is_some_and(|kind| matches!(kind, nd::ROUTER_SOLICITATION..=nd::REDIRECT)),
            Content::V4 | Content::Other => false,
        }
    }

    /// What only a router says: that it is one, or where else to send packets (RFC 4861 §4.2 and §4.5, RFC 1256, RFC 792).
    #[must_use]
    #[inline(always)]
    pub fn is_from_router(&self) -> bool {
        let Some(kind) = self.message() else {
            return false;
        };
        match self.content {
            Content::V4 => matches!(kind, ICMP_REDIRECT | ICMP_ROUTER_ADVERTISEMENT),
            _ => matches!(kind, nd::ROUTER_ADVERTISEMENT | nd::REDIRECT),
        }
    }

    /// Whether every address that the frame gives as its sender's is of the attachment `index`, or none at all: the MAC,
    /// and in the slice's own network also those of ARP and IP. A link-local address may be any that is not made from another
    /// attachment's MAC address.
    #[must_use]
    #[inline(always)]
    pub fn is_from<A: Addressing + ?Sized>(&self, index: u32, subnets: &A) -> bool {
        if self.source != Mac::of_index(index) {
            return false;
        }
        if self.vlan != 0 {
            return true;
        }
        match self.content {
            Content::Arp => {
                let address = self.arp.sender_address;
                self.arp.sender == self.source
                    && (address.is_unspecified() || subnets.index_of_v4(address) == Some(index))
            }
            Content::V4 => {
                let address = ip::v4_of(self.packet.source);
                address.is_unspecified() || subnets.index_of_v4(address) == Some(index)
            }
            Content::V6 => {
                let address = self.packet.source;
                let made_from = Mac::index_of_link_local(address);
                address.is_unspecified()
                    || subnets.index_of_v6(address) == Some(index)
                    || made_from == Some(index)
                    || made_from.is_none() && address.is_unicast_link_local()
            }
            Content::Other => true,
        }
    }

    /// Type of service or traffic class; zero in a frame that is not IP.
    #[must_use]
    pub const fn tos(&self) -> u8 {
        self.packet.tos
    }
}

#[inline(always)]
const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ethernet::VLAN | ethernet::SERVICE_VLAN)
}
