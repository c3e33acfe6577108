//! The networks that this node's pods have their own addresses in, for the hub to compare with slices' subnets. Pure.
//!
//! Reported as a few networks that change seldom, not as the pods' addresses: what the hub asks is whether a subnet
//! covers addresses of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use slice_crds::Cidr;

/// Bits of an IPv4 network: network plugins give a node a /24, or something wider, to take its pods' addresses from.
const V4: u8 = 24;
/// The same of an IPv6 network (RFC 4291 §2.5.4).
const V6: u8 = 64;
/// Most networks that are reported; those that came first stay. Pods that are in more have a network each, and other
/// nodes' reports show that too.
const MAX: usize = 16;
/// How long a network is reported after the last pod in it: pods come and go, and a subnet is not free between two.
const KEEP: SignedDuration = SignedDuration::from_mins(10);

/// When each network was last seen to have a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetworks(BTreeMap<Cidr, Timestamp>);

impl PodNetworks {
    /// What an earlier agent reported counts as seen now.
    pub fn resume(&mut self, reported: &[Cidr], now: Timestamp) {
        for network in reported.iter().take(MAX) {
            self.0.entry(*network).or_insert(now);
        }
    }

    /// Takes the addresses that the node's pods have.
    pub fn observe(&mut self, addresses: impl IntoIterator<Item = IpAddr>, now: Timestamp) {
        let networks: BTreeSet<Cidr> = addresses.into_iter().filter_map(network).collect();
        for network in &networks {
            if let Some(seen) = self.0.get_mut(network) {
                *seen = now;
            }
        }
        self.0.retain(|_, seen| now.duration_since(*seen) < KEEP);
        for network in networks {
            if self.0.len() < MAX {
                self.0.insert(network, now);
            }
        }
    }

    /// In order.
    pub fn list(&self) -> Vec<Cidr> {
        self.0.keys().copied().collect()
    }
}

fn network(address: IpAddr) -> Option<Cidr> {
    let bits = match address {
        IpAddr::V4(_) => V4,
        IpAddr::V6(_) => V6,
    };
    IpNet::new(address, bits).ok().map(Cidr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    fn observe(networks: &mut PodNetworks, addresses: &[&str], minutes: i64) -> Vec<String> {
        networks.observe(addresses.iter().map(|text| text.parse().unwrap()), at(minutes));
        networks.list().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_become_networks() {
        let mut networks = PodNetworks::default();
        let seen = observe(
            &mut networks,
            &["fd00::1:0:0:0:7", "10.244.1.7", "10.244.1.200", "10.9.0.1"],
            0,
        );
        assert_eq!(seen, ["10.9.0.0/24", "10.244.1.0/24", "fd00:0:0:1::/64"]);
    }

    #[test]
    fn a_network_stays_for_a_while_after_its_last_pod() {
        let mut networks = PodNetworks::default();
        networks.resume(&["10.1.0.0/24".parse().unwrap()], at(0));
        assert_eq!(
            observe(&mut networks, &["10.2.0.1"], 1),
            ["10.1.0.0/24", "10.2.0.0/24"]
        );
        assert_eq!(observe(&mut networks, &[], 9).len(), 2);
        assert_eq!(observe(&mut networks, &[], 10), ["10.2.0.0/24"]);
        assert_eq!(observe(&mut networks, &[], 11), [""; 0]);
    }

    #[test]
    fn there_are_never_many_and_they_do_not_change_places() {
        let mut networks = PodNetworks::default();
        let many: Vec<String> = (100..130).map(|n| format!("10.{n}.0.1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let first = observe(&mut networks, &many, 0);
        assert_eq!(first.len(), MAX);
        let more: Vec<&str> = ["10.1.0.1"].into_iter().chain(many).collect();
        assert_eq!(observe(&mut networks, &more, 1), first);
    }
}
