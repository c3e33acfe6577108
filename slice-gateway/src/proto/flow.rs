//! Which tunnel does a frame take?
//!
//! The hash of a frame's addresses and ports names its flow ([`slice_frame::Frame::flow`]). Among the tunnels to a cluster the one with the highest
//! score for that flow is taken (rendezvous hashing, Thaler and Ravishankar 1998), so that a flow stays where it is
//! until its own tunnel goes, and no other flow moves then.

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;

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
