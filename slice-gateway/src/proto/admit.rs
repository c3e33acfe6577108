//! What may pass, and where to. The two tables of the gateway:
//!
//! ```text
//!  from the slice                                   from a peer cluster
//!    not to be read to its end           drop         not to be read to its end            drop
//!    source MAC not of the own ranges    drop         source MAC not of its ranges         drop
//!    what the slice does not carry       drop         what the slice does not carry        drop
//!    a router's message                  drop         a router's message                   drop
//!    ARP, ND for a peer's address        answer       ARP, ND                              drop
//!    other ARP, ND                       drop         source address not the MAC's         drop
//!    source address not the MAC's        drop
//!    group address                       one tunnel   group address                        deliver
//!                                        per cluster  own ranges                           deliver
//!    a peer cluster's range              its tunnel   anything else                        drop
//!    anything else                       drop
//! ```
//!
//! There is no line from a peer cluster to a peer cluster: what came over the WAN never goes back there, so there
//! are no loops to break, and a cluster can speak for its own indices only.

use slice_frame::{Addressing, Content, Frame, Mac, Subnets, arp::Arp, ethernet, nd::Solicitation};
use slice_runtime::handover::Frames;

use super::{reason::Reason, route::Table};

/// Bytes that a frame may have beyond the MTU: the Ethernet header and one VLAN tag.
pub const FRAME_OVERHEAD: usize = ethernet::HEADER + ethernet::TAG;

/// Who owns a range of indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Own,
    /// The number of a peer cluster.
    Peer(u16),
}

/// What the rules are about.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// Bytes of the largest IP packet that any cluster may send now: interfaces change one after the other.
    pub largest: usize,
    pub subnets: Subnets,
    pub frames: Frames,
    pub owners: Table<Owner>,
}

/// What to do with a frame from the slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// To one tunnel to this cluster.
    Unicast(u16),
    /// To one tunnel to every cluster.
    Group,
    /// Answer with this MAC.
    Arp(Arp, Mac),
    Nd(Solicitation, Mac),
}

impl Segment {
    /// Judges a frame that the TAP delivered, of which `frame` was read. Its length is not looked at: it may be a
    /// super-frame.
    pub fn outbound(&self, bytes: &[u8], frame: &Frame) -> Result<Outbound, Reason> {
        let source = frame.source.index();
        let source = source.filter(|index| self.owners.owner(*index) == Some(Owner::Own));
        let source = source.ok_or(Reason::ForeignSource)?;
        self.carries(frame)?;
        if frame.vlan().is_none() && frame.is_neighbour_discovery() {
            return self.neighbour(bytes, frame);
        }
        if !frame.is_from(source, &self.subnets) {
            return Err(Reason::SpoofedAddress);
        }
        if frame.destination.is_group() {
            return Ok(Outbound::Group);
        }
        match self.owner(frame.destination) {
            Some(Owner::Peer(cluster)) => Ok(Outbound::Unicast(cluster)),
            Some(Owner::Own) => Err(Reason::LocalDestination),
            None => Err(Reason::UnknownDestination),
        }
    }

    /// Answers a question for an address of a peer cluster; the own cluster answers for itself.
    fn neighbour(&self, bytes: &[u8], frame: &Frame) -> Result<Outbound, Reason> {
        let mac = |index: Option<u32>| {
            let index = index.filter(|index| matches!(self.owners.owner(*index), Some(Owner::Peer(_))));
            index.map(Mac::of_index)
        };
        let answer = match frame.arp() {
            Some(arp) if arp.asks(frame.source) => {
                mac(self.subnets.index_of_v4(arp.target)).map(|mac| Outbound::Arp(*arp, mac))
            }
            Some(_) => None,
            None => Solicitation::read(bytes, frame).and_then(|solicitation| {
                let mac = mac(self.subnets.index_of_v6(solicitation.target))?;
                Some(Outbound::Nd(solicitation, mac))
            }),
        };
        answer.ok_or(Reason::NeighbourDiscovery)
    }

    /// Judges a frame that came out of a tunnel to `cluster`, and returns what was read of it.
    pub fn inbound(&self, bytes: &[u8], cluster: u16) -> Result<Frame, Reason> {
        let frame = Frame::read(bytes).map_err(|_| Reason::Unreadable)?;
        if bytes.len() > self.largest + FRAME_OVERHEAD {
            return Err(Reason::FrameTooLong);
        }
        let source = frame.source.index().ok_or(Reason::SpoofedSource)?;
        if self.owners.owner(source) != Some(Owner::Peer(cluster)) {
            return Err(Reason::SpoofedSource);
        }
        self.carries(&frame)?;
        let routes = self.frames.routers && frame.is_from_router();
        if frame.vlan().is_none() && frame.is_neighbour_discovery() && !routes {
            return Err(Reason::NeighbourDiscovery);
        }
        if !frame.is_from(source, &self.subnets) {
            return Err(Reason::SpoofedAddress);
        }
        if frame.destination.is_group() || self.owner(frame.destination) == Some(Owner::Own) {
            Ok(frame)
        } else {
            Err(Reason::NotOurs)
        }
    }

    /// Whether frames of this kind cross the WAN in this slice at all.
    fn carries(&self, frame: &Frame) -> Result<(), Reason> {
        if frame.tagged && !self.frames.tagged {
            return Err(Reason::Tagged);
        }
        if frame.content == Content::Other && !self.frames.non_ip {
            return Err(Reason::NotIp);
        }
        if frame.destination.is_link_local_group() {
            return Err(Reason::LinkLocalGroup);
        }
        if frame.vlan().is_none() && frame.is_from_router() && !self.frames.routers {
            return Err(Reason::Router);
        }
        Ok(())
    }

    fn owner(&self, mac: Mac) -> Option<Owner> {
        mac.index().and_then(|index| self.owners.owner(index))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;
    use slice_frame::{ethernet::Header, ip};
    use slice_runtime::handover::Range;

    use super::*;
    use crate::proto::config::subnets;

    /// Own 0+64; cluster 0 has 64+64, cluster 1 has 128+64.
    fn segment() -> Segment {
        let mut owners = Table::default();
        for (start, owner) in [(0, Owner::Own), (64, Owner::Peer(0)), (128, Owner::Peer(1))] {
            owners.insert(Range { start, size: 64 }, owner).unwrap();
        }
        Segment {
            largest: 1370,
            subnets: subnets(&["10.80.0.0/24".parse().unwrap(), "fd42::/64".parse().unwrap()]),
            frames: Frames::default(),
            owners,
        }
    }

    fn frame(from: u32, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ethernet::HEADER];
        Header {
            destination: to,
            source: Mac::of_index(from),
            ethertype,
        }
        .write(&mut frame);
        frame.extend(payload);
        frame
    }

    fn ipv4(from: u32, to: Mac, source: [u8; 4]) -> Vec<u8> {
        let mut payload = [0; 20];
        payload[0] = 0x45;
        payload[3] = 20;
        payload[12..16].copy_from_slice(&source);
        frame(from, to, ethernet::IPV4, &payload)
    }

    fn ipv6(from: u32, to: Mac, source: &str) -> Vec<u8> {
        let mut payload = [0; 40];
        payload[0] = 0x60;
        payload[6] = 59;
        payload[8..24].copy_from_slice(&source.parse::<Ipv6Addr>().unwrap().octets());
        frame(from, to, ethernet::IPV6, &payload)
    }

    fn arp(from: u32, target: u8) -> Vec<u8> {
        let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 1];
        payload.extend(Mac::of_index(from).0);
        payload.extend([10, 80, 0, from as u8]);
        payload.extend([0; 6]);
        payload.extend([10, 80, 0, target]);
        frame(from, Mac::BROADCAST, ethernet::ARP, &payload)
    }

    fn solicitation(from: u32, source: &str, target: &str) -> Vec<u8> {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.parse::<Ipv6Addr>().unwrap().octets());
        icmpv6(from, source, &message)
    }

    fn icmpv6(from: u32, source: &str, message: &[u8]) -> Vec<u8> {
        let mut frame = ipv6(from, Mac([0x33, 0x33, 0, 0, 0, 1]), source);
        frame[18..22].copy_from_slice(&[0, message.len() as u8, ip::ICMPV6, 255]);
        frame.extend(message);
        frame
    }

    /// With a tag of this control information behind the addresses.
    fn tagged(frame: &[u8], kind: u16, control: u16) -> Vec<u8> {
        let tag = [kind.to_be_bytes(), control.to_be_bytes()].concat();
        [&frame[..12], &tag, &frame[12..]].concat()
    }

    #[track_caller]
    fn check_out(frame: &[u8], expected: Result<&str, Reason>) {
        let got = Frame::read(frame).map_err(|_| Reason::Unreadable);
        let got = got.and_then(|read| segment().outbound(frame, &read));
        let got = got.map(|verdict| match verdict {
            Outbound::Unicast(cluster) => format!("to {cluster}"),
            Outbound::Group => "to all".to_owned(),
            Outbound::Arp(_, mac) | Outbound::Nd(_, mac) => format!("answer {mac}"),
        });
        assert_eq!(got.as_deref().map_err(|reason| *reason), expected);
    }

    #[track_caller]
    fn check_in(frame: &[u8], cluster: u16, expected: Result<(), Reason>) {
        assert_eq!(segment().inbound(frame, cluster).map(drop), expected);
    }

    const ODD: u16 = 0x88b5;

    #[test]
    fn the_destination_names_the_cluster() {
        check_out(&frame(5, Mac::of_index(70), ODD, &[]), Ok("to 0"));
        check_out(&frame(5, Mac::of_index(130), ODD, &[]), Ok("to 1"));
        check_out(&frame(5, Mac::BROADCAST, ODD, &[]), Ok("to all"));
        check_out(&frame(5, Mac([0x01, 0, 0x5e, 0, 0, 1]), ODD, &[]), Ok("to all"));
        check_out(
            &frame(5, Mac::of_index(6), ODD, &[]),
            Err(Reason::LocalDestination),
        );
        check_out(
            &frame(5, Mac::of_index(200), ODD, &[]),
            Err(Reason::UnknownDestination),
        );
        check_out(
            &frame(5, Mac([2, 0, 0, 0, 0, 1]), ODD, &[]),
            Err(Reason::UnknownDestination),
        );
        check_out(
            &frame(5, Mac([1, 0x80, 0xc2, 0, 0, 0]), ODD, &[]),
            Err(Reason::LinkLocalGroup),
        );
    }

    #[test]
    fn only_own_sources_leave() {
        check_out(
            &frame(70, Mac::of_index(130), ODD, &[]),
            Err(Reason::ForeignSource),
        );
        check_out(&frame(200, Mac::BROADCAST, ODD, &[]), Err(Reason::ForeignSource));
        check_out(&ipv4(5, Mac::of_index(70), [10, 80, 0, 5]), Ok("to 0"));
        check_out(
            &ipv4(5, Mac::of_index(70), [10, 80, 0, 6]),
            Err(Reason::SpoofedAddress),
        );
    }

    #[test]
    fn neighbours_elsewhere_are_answered_here() {
        check_out(&arp(5, 70), Ok("answer 02:5c:00:00:00:46"));
        check_out(&arp(5, 6), Err(Reason::NeighbourDiscovery));
        check_out(&arp(5, 200), Err(Reason::NeighbourDiscovery));
        check_out(&arp(5, 5), Err(Reason::NeighbourDiscovery));
        let ask = |target: &str| solicitation(5, "fd42::5", target);
        check_out(&ask("fd42::46"), Ok("answer 02:5c:00:00:00:46"));
        check_out(&ask("fd42::6"), Err(Reason::NeighbourDiscovery));
        check_out(&ask("fe80::46"), Err(Reason::NeighbourDiscovery));
    }

    #[test]
    fn a_cluster_speaks_for_its_own_indices() {
        check_in(&frame(70, Mac::of_index(5), ODD, &[]), 0, Ok(()));
        check_in(&frame(70, Mac::BROADCAST, ODD, &[]), 0, Ok(()));
        check_in(
            &frame(130, Mac::of_index(5), ODD, &[]),
            0,
            Err(Reason::SpoofedSource),
        );
        check_in(
            &frame(5, Mac::of_index(6), ODD, &[]),
            0,
            Err(Reason::SpoofedSource),
        );
        check_in(
            &frame(200, Mac::BROADCAST, ODD, &[]),
            0,
            Err(Reason::SpoofedSource),
        );
    }

    #[test]
    fn addresses_are_their_macs() {
        check_in(&ipv4(70, Mac::of_index(5), [10, 80, 0, 70]), 0, Ok(()));
        check_in(&ipv4(70, Mac::BROADCAST, [0, 0, 0, 0]), 0, Ok(()));
        check_in(
            &ipv4(70, Mac::of_index(5), [10, 80, 0, 71]),
            0,
            Err(Reason::SpoofedAddress),
        );
        check_in(
            &ipv4(70, Mac::of_index(5), [192, 0, 2, 1]),
            0,
            Err(Reason::SpoofedAddress),
        );
        check_in(&ipv6(70, Mac::of_index(5), "fd42::46"), 0, Ok(()));
        check_in(&ipv6(70, Mac::of_index(5), "fe80::1"), 0, Ok(()));
        check_in(
            &ipv6(70, Mac::of_index(5), "fd42::47"),
            0,
            Err(Reason::SpoofedAddress),
        );
        check_in(
            &frame(70, Mac::of_index(5), ethernet::IPV4, &[]),
            0,
            Err(Reason::Unreadable),
        );
    }

    #[test]
    fn the_wan_is_crossed_once() {
        check_in(&frame(70, Mac::of_index(130), ODD, &[]), 0, Err(Reason::NotOurs));
        check_in(&frame(70, Mac::of_index(71), ODD, &[]), 0, Err(Reason::NotOurs));
        check_in(&frame(70, Mac::of_index(200), ODD, &[]), 0, Err(Reason::NotOurs));
        check_in(&arp(70, 5), 0, Err(Reason::NeighbourDiscovery));
        let solicitation = solicitation(70, "fd42::46", "fd42::5");
        check_in(&solicitation, 0, Err(Reason::NeighbourDiscovery));
    }

    #[test]
    fn a_tag_is_carried_where_the_slice_says_so() {
        let group = Mac::BROADCAST;
        let vlan = tagged(&arp(70, 5), ethernet::VLAN, 7);
        for tag in [ethernet::VLAN, ethernet::SERVICE_VLAN] {
            for frame in [
                ipv4(70, group, [10, 80, 0, 70]),
                arp(70, 5),
                icmpv6(70, "fe80::1", &[134, 0, 0, 0]),
            ] {
                check_in(&tagged(&frame, tag, 0), 0, Err(Reason::Tagged));
            }
        }
        check_in(&vlan, 0, Err(Reason::Tagged));
        let mut open = segment();
        open.frames.tagged = true;
        let admit = |frame: &[u8]| open.inbound(frame, 0).map(drop);
        assert_eq!(admit(&vlan), Ok(()));
        // A tag without a VLAN changes nothing.
        let priority = |frame: &[u8]| tagged(frame, ethernet::SERVICE_VLAN, 0xe000);
        assert_eq!(admit(&priority(&ipv4(70, group, [10, 80, 0, 70]))), Ok(()));
        assert_eq!(
            admit(&priority(&ipv4(70, group, [10, 80, 0, 71]))),
            Err(Reason::SpoofedAddress)
        );
        assert_eq!(admit(&priority(&arp(70, 5))), Err(Reason::NeighbourDiscovery));
        assert_eq!(
            admit(&priority(&icmpv6(70, "fe80::1", &[134, 0, 0, 0]))),
            Err(Reason::Router)
        );
    }

    #[test]
    fn only_ip_where_the_slice_says_so() {
        let mut strict = segment();
        strict.frames.non_ip = false;
        let odd = frame(70, Mac::of_index(5), ODD, &[]);
        assert_eq!(strict.inbound(&odd, 0).map(drop), Err(Reason::NotIp));
        let packet = ipv4(70, Mac::of_index(5), [10, 80, 0, 70]);
        assert_eq!(strict.inbound(&packet, 0).map(drop), Ok(()));
    }

    #[test]
    fn routers_only_where_the_slice_says_so() {
        let mut open = segment();
        open.frames.routers = true;
        let own = "fe80::5c:ff:fe00:46";
        let advertisement = |from: &str| icmpv6(70, from, &[134, 0, 0, 0]);
        assert_eq!(
            segment().inbound(&advertisement(own), 0).map(drop),
            Err(Reason::Router)
        );
        assert_eq!(open.inbound(&advertisement(own), 0).map(drop), Ok(()));
        let foreign = open.inbound(&advertisement("fe80::5c:ff:fe00:47"), 0);
        assert_eq!(foreign.map(drop), Err(Reason::SpoofedAddress));
        let question = open.inbound(&icmpv6(70, own, &[135, 0, 0, 0]), 0);
        assert_eq!(question.map(drop), Err(Reason::NeighbourDiscovery));
    }

    /// Nine destination options before a router advertisement walked round the checks once.
    #[test]
    fn nothing_hides_behind_extension_headers() {
        let options = |count: usize| {
            let mut frame = icmpv6(70, "fe80::1", &[]);
            frame[20] = 60;
            for n in 0..count {
                let next = if n + 1 == count { ip::ICMPV6 } else { 60 };
                frame.extend([next, 0, 1, 4, 0, 0, 0, 0]);
            }
            frame.extend([134, 0, 0, 0]);
            frame[19] = (frame.len() - 54) as u8;
            frame
        };
        check_in(&options(7), 0, Err(Reason::Router));
        check_in(&options(9), 0, Err(Reason::Unreadable));
    }

    #[test]
    fn lengths_are_checked() {
        check_in(&[0; 13], 0, Err(Reason::Unreadable));
        check_in(&frame(70, Mac::BROADCAST, ODD, &[0; 1374]), 0, Ok(()));
        check_in(
            &frame(70, Mac::BROADCAST, ODD, &[0; 1375]),
            0,
            Err(Reason::FrameTooLong),
        );
    }

    proptest! {
        #[test]
        fn nothing_crosses_twice(
            source in 0u32..256, to in 0u32..256, cluster in 0u16..2, ethertype: u16, payload: Vec<u8>
        ) {
            let frame = frame(source, Mac::of_index(to), ethertype, &payload);
            let left = Frame::read(&frame[..]).is_ok_and(|read| segment().outbound(&frame, &read).is_ok());
            let came = segment().inbound(&frame, cluster).is_ok();
            prop_assert!(!(left && came));
        }
    }
}
