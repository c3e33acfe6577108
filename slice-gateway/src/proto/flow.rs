//! Which tunnel does a frame take?
//!
//! The hash of a frame's addresses and ports names its flow. Among the tunnels to a cluster the one with the highest
//! score for that flow is taken (rendezvous hashing, Thaler and Ravishankar 1998), so that a flow stays where it is
//! until its own tunnel goes, and no other flow moves then.

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;

use super::{
    ethernet::{self, Header},
    ip,
};

/// The flow that a frame belongs to: frames of one connection have one number.
pub fn hash(header: &Header, payload: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    let key = match header.ethertype {
        ethernet::IPV4 => ip::V4::parse(payload).map(|packet| {
            hasher.write_u32(packet.source.to_bits());
            hasher.write_u32(packet.destination.to_bits());
            (packet.protocol, packet.fragment, packet.payload)
        }),
        ethernet::IPV6 => ip::V6::parse(payload).map(|packet| {
            hasher.write_u128(packet.source.to_bits());
            hasher.write_u128(packet.destination.to_bits());
            (packet.protocol, packet.fragment, packet.payload)
        }),
        _ => None,
    };
    match key {
        // Only the first fragment has ports, and all fragments of a packet must go one way.
        Some((protocol @ (ip::TCP | ip::UDP), false, transport)) => {
            hasher.write_u8(protocol);
            if let Some(ports) = transport.first_chunk::<4>() {
                hasher.write(ports);
            }
        }
        Some(_) => {}
        None => {
            hasher.write(&header.source.0);
            hasher.write(&header.destination.0);
            hasher.write_u16(header.ethertype);
        }
    }
    hasher.finish()
}

/// The number of a tunnel in [`score`]: the same in every process and after every restart.
pub fn tunnel_key(name: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// How much a flow wants a tunnel.
pub fn score(flow: u64, tunnel: u64) -> u64 {
    // The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit moves every output bit.
    let mut mixed = flow ^ tunnel;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::address::Mac;

    fn udp4(source_port: u16, fragment: u16) -> Vec<u8> {
        let mut packet = vec![0; 32];
        packet[0] = 0x45;
        packet[3] = 32;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = ip::UDP;
        packet[20..22].copy_from_slice(&source_port.to_be_bytes());
        packet
    }

    fn of(payload: &[u8]) -> u64 {
        let header = Header {
            destination: Mac::of_index(1),
            source: Mac::of_index(2),
            ethertype: ethernet::IPV4,
        };
        hash(&header, payload)
    }

    #[test]
    fn ports_tell_flows_apart() {
        assert_eq!(of(&udp4(1000, 0)), of(&udp4(1000, 0x4000)));
        assert_ne!(of(&udp4(1000, 0)), of(&udp4(1001, 0)));
    }

    #[test]
    fn fragments_of_a_packet_go_one_way() {
        let (first, second) = (udp4(1000, 0x2000), udp4(0x4242, 0x0002));
        assert_eq!(of(&first), of(&second));
    }

    #[test]
    fn other_frames_are_told_apart_by_station() {
        let header = |source| Header {
            destination: Mac::BROADCAST,
            source: Mac::of_index(source),
            ethertype: 0x88b5,
        };
        assert_eq!(hash(&header(1), &[1]), hash(&header(1), &[2]));
        assert_ne!(hash(&header(1), &[1]), hash(&header(2), &[1]));
    }

    #[test]
    fn only_flows_of_a_lost_tunnel_move() {
        let tunnels: Vec<u64> = (0..4).map(|n| tunnel_key(&format!("paris/{n}"))).collect();
        let pick = |flow, tunnels: &[u64]| *tunnels.iter().max_by_key(|key| score(flow, **key)).unwrap();
        let mut load = [0; 4];
        for flow in (0..4000).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let before = pick(flow, &tunnels);
            load[tunnels.iter().position(|key| *key == before).unwrap()] += 1;
            if before != tunnels[0] {
                assert_eq!(pick(flow, &tunnels[1..]), before);
            }
        }
        assert!(load.iter().all(|flows| (850..1150).contains(flows)), "{load:?}");
    }
}
