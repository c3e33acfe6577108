//! What may pass, and where to. The two tables of the gateway:
//!
//! ```text
//!  from the slice                                   from a peer cluster
//!    source MAC not of the own ranges    drop         source MAC not of its ranges         drop
//!    ARP, ND for a peer's address        answer       source address not the MAC's         drop
//!    other ARP, ND                       drop         ARP, ND                              drop
//!    group address                       one tunnel   group address                        deliver
//!                                        per cluster  own ranges                           deliver
//!    a peer cluster's range              its tunnel   anything else                        drop
//!    anything else                       drop
//! ```
//!
//! There is no line from a peer cluster to a peer cluster: what came over the WAN never goes back there, so there
//! are no loops to break, and a cluster can speak for its own indices only.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    address::{Mac, Subnets},
    arp,
    ethernet::{self, Header},
    ip, nd,
    reason::Reason,
    route::Table,
};

/// Bytes that a frame may have beyond the MTU: the Ethernet header and one VLAN tag.
pub const FRAME_OVERHEAD: usize = ethernet::HEADER + 4;

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
    /// Bytes of the largest IP packet.
    pub mtu: usize,
    pub subnets: Subnets,
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
    Arp(arp::Request, Mac),
    Nd(nd::Solicitation, Mac),
}

impl Segment {
    /// Judges a frame that the TAP delivered. Its length is not looked at: it may be a super-frame.
    pub fn outbound(&self, header: &Header, payload: &[u8]) -> Result<Outbound, Reason> {
        if header.source.index().and_then(|index| self.owners.owner(index)) != Some(Owner::Own) {
            return Err(Reason::ForeignSource);
        }
        match neighbour(header, payload) {
            Neighbour::No => {}
            Neighbour::Arp(Some(request)) => {
                let mac = self.answer(self.subnets.index_of_v4(request.target))?;
                return Ok(Outbound::Arp(request, mac));
            }
            Neighbour::Nd(Some(solicitation)) => {
                let mac = self.answer(self.subnets.index_of_v6(solicitation.target))?;
                return Ok(Outbound::Nd(solicitation, mac));
            }
            Neighbour::Arp(None) | Neighbour::Nd(None) => return Err(Reason::NeighbourDiscovery),
        }
        if header.destination.is_link_local_group() {
            return Err(Reason::LinkLocalGroup);
        }
        if header.destination.is_group() {
            return Ok(Outbound::Group);
        }
        match header
            .destination
            .index()
            .and_then(|index| self.owners.owner(index))
        {
            Some(Owner::Peer(cluster)) => Ok(Outbound::Unicast(cluster)),
            Some(Owner::Own) => Err(Reason::LocalDestination),
            None => Err(Reason::UnknownDestination),
        }
    }

    /// The MAC to answer with: only for addresses of peer clusters; the own cluster answers for itself.
    fn answer(&self, index: Option<u32>) -> Result<Mac, Reason> {
        let index = index.ok_or(Reason::NeighbourDiscovery)?;
        match self.owners.owner(index) {
            Some(Owner::Peer(_)) => Ok(Mac::of_index(index)),
            Some(Owner::Own) | None => Err(Reason::NeighbourDiscovery),
        }
    }

    /// Judges a frame that came out of a tunnel to `cluster`.
    pub fn inbound(&self, frame: &[u8], cluster: u16) -> Result<(), Reason> {
        let (header, payload) = Header::parse(frame).ok_or(Reason::FrameTooShort)?;
        if frame.len() > self.mtu + FRAME_OVERHEAD {
            return Err(Reason::FrameTooLong);
        }
        let source = header.source.index().ok_or(Reason::SpoofedSource)?;
        if self.owners.owner(source) != Some(Owner::Peer(cluster)) {
            return Err(Reason::SpoofedSource);
        }
        if neighbour(&header, payload) != Neighbour::No {
            return Err(Reason::NeighbourDiscovery);
        }
        if !self.source_fits(&header, payload, source) {
            return Err(Reason::SpoofedAddress);
        }
        if header.destination.is_link_local_group() {
            return Err(Reason::LinkLocalGroup);
        }
        let ours = header.destination.is_group()
            || header
                .destination
                .index()
                .and_then(|index| self.owners.owner(index))
                == Some(Owner::Own);
        if ours { Ok(()) } else { Err(Reason::NotOurs) }
    }

    /// Whether the IP source is the address of the source MAC's index, or no address at all.
    fn source_fits(&self, header: &Header, payload: &[u8], index: u32) -> bool {
        match header.ethertype {
            ethernet::IPV4 => ip::V4::parse(payload).is_some_and(|packet| {
                packet.source == Ipv4Addr::UNSPECIFIED
                    || self.subnets.index_of_v4(packet.source) == Some(index)
            }),
            ethernet::IPV6 => ip::V6::parse(payload).is_some_and(|packet| {
                packet.source == Ipv6Addr::UNSPECIFIED
                    || packet.source.is_unicast_link_local()
                    || self.subnets.index_of_v6(packet.source) == Some(index)
            }),
            _ => true,
        }
    }
}

/// Is it ARP or ND, and is it a question that can be answered?
#[derive(Debug, PartialEq, Eq)]
enum Neighbour {
    No,
    Arp(Option<arp::Request>),
    Nd(Option<nd::Solicitation>),
}

fn neighbour(header: &Header, payload: &[u8]) -> Neighbour {
    match header.ethertype {
        ethernet::ARP => Neighbour::Arp(arp::Request::parse(header, payload)),
        // Inside a VLAN tag nothing is looked at: those addresses are not ours to answer for.
        ethernet::IPV6 => match ip::V6::parse(payload) {
            Some(packet) if nd::is_neighbour_discovery(&packet) => {
                Neighbour::Nd(nd::Solicitation::parse(header, &packet))
            }
            _ => Neighbour::No,
        },
        _ => Neighbour::No,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use slice_runtime::handover::Range;

    use super::*;

    /// Own 0+64; cluster 0 has 64+64, cluster 1 has 128+64.
    fn segment() -> Segment {
        let mut owners = Table::default();
        for (start, owner) in [(0, Owner::Own), (64, Owner::Peer(0)), (128, Owner::Peer(1))] {
            owners.insert(Range { start, size: 64 }, owner).unwrap();
        }
        let subnets = Subnets::new(&["10.80.0.0/24".parse().unwrap(), "fd42::/64".parse().unwrap()]);
        Segment {
            mtu: 1370,
            subnets,
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

    #[track_caller]
    fn check_out(frame: &[u8], expected: Result<&str, Reason>) {
        let (header, payload) = Header::parse(frame).unwrap();
        let got = segment().outbound(&header, payload).map(|verdict| match verdict {
            Outbound::Unicast(cluster) => format!("to {cluster}"),
            Outbound::Group => "to all".to_owned(),
            Outbound::Arp(_, mac) | Outbound::Nd(_, mac) => format!("answer {mac}"),
        });
        assert_eq!(got.as_deref().map_err(|reason| *reason), expected);
    }

    #[track_caller]
    fn check_in(frame: &[u8], cluster: u16, expected: Result<(), Reason>) {
        assert_eq!(segment().inbound(frame, cluster), expected);
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
    }

    #[test]
    fn neighbours_elsewhere_are_answered_here() {
        check_out(&arp(5, 70), Ok("answer 02:5c:00:00:00:46"));
        check_out(&arp(5, 6), Err(Reason::NeighbourDiscovery));
        check_out(&arp(5, 200), Err(Reason::NeighbourDiscovery));
        check_out(&arp(5, 5), Err(Reason::NeighbourDiscovery));
        let ask =
            |target: &str| nd::tests::solicitation(5, "fd42::5".parse().unwrap(), target.parse().unwrap());
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
            Err(Reason::SpoofedAddress),
        );
    }

    #[test]
    fn the_wan_is_crossed_once() {
        check_in(&frame(70, Mac::of_index(130), ODD, &[]), 0, Err(Reason::NotOurs));
        check_in(&frame(70, Mac::of_index(71), ODD, &[]), 0, Err(Reason::NotOurs));
        check_in(&frame(70, Mac::of_index(200), ODD, &[]), 0, Err(Reason::NotOurs));
        check_in(&arp(70, 5), 0, Err(Reason::NeighbourDiscovery));
        let solicitation =
            nd::tests::solicitation(70, "fd42::46".parse().unwrap(), "fd42::5".parse().unwrap());
        check_in(&solicitation, 0, Err(Reason::NeighbourDiscovery));
    }

    #[test]
    fn lengths_are_checked() {
        check_in(&[0; 13], 0, Err(Reason::FrameTooShort));
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
            let (header, payload) = Header::parse(&frame).unwrap();
            let left = segment().outbound(&header, payload).is_ok();
            let came = segment().inbound(&frame, cluster).is_ok();
            prop_assert!(!(left && came));
        }
    }
}
