//! What the gateways are told of each other.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{PoisonError, atomic::Ordering},
};

use slice_runtime::handover::{self, ToGateway};

use super::{Agent, Lab, eventually};

const VNI: u32 = 77;

impl Lab {
    /// Sends every gateway its configuration.
    pub(crate) fn configure(&self) {
        for agent in &self.agents {
            agent.tell(&ToGateway::Config(self.config_of(agent)));
        }
    }

    /// Asks every gateway for a new key, tells the others of it as they say so, and waits until there are only new ones.
    pub(crate) fn renew_keys(&self) {
        let keys =
            || -> Vec<handover::Keys> { self.agents.iter().filter_map(|agent| agent.keys()).collect() };
        let before = keys();
        self.renewals.fetch_add(1, Ordering::Relaxed);
        self.configure();
        let mut told = before.clone();
        eventually("every gateway has a new key and no other", || {
            let now = keys();
            if now != told {
                self.configure();
                told.clone_from(&now);
            }
            let mut pairs = now.iter().zip(&before);
            let renewed =
                pairs.all(|(now, before)| now.public_key != before.public_key && now.former_key.is_none());
            renewed.then_some(())
        });
    }

    /// From the next configuration on, every gateway has this peer.
    pub(crate) fn invite(&self, guest: handover::Peer) {
        self.guests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(guest);
    }

    /// What a gateway is told.
    pub(crate) fn config(&self, name: &str) -> handover::Config {
        let agent = self.agents.iter().find(|agent| agent.name == name);
        self.config_of(agent.expect("a gateway of the lab"))
    }

    /// The clusters, as a peer outside them must know them.
    pub(crate) fn members(&self) -> Vec<handover::Peer> {
        self.peers_of(None).into_values().collect()
    }

    /// A gateway as its peers know it.
    pub(crate) fn member_gateway(&self, name: &str) -> handover::PeerGateway {
        let all = self.members().into_iter().flat_map(|member| member.gateways);
        all.into_iter()
            .find(|gateway| gateway.name == name)
            .expect("a gateway of the lab")
    }

    pub(crate) fn vni(&self) -> u32 {
        VNI
    }

    pub(super) fn peers_of(&self, own: Option<char>) -> BTreeMap<char, handover::Peer> {
        let mut peers: BTreeMap<char, handover::Peer> = BTreeMap::new();
        for other in self
            .agents
            .iter()
            .filter(|other| Some(cluster_of(&other.name)) != own)
        {
            let cluster = cluster_of(&other.name);
            let peer = peers.entry(cluster).or_insert_with(|| handover::Peer {
                cluster: cluster.to_string(),
                outside: false,
                ranges: vec![range(cluster)],
                gateways: vec![],
            });
            let Some(hello) = other.hello() else { continue };
            let Some(keys) = other.keys() else { continue };
            let ordinal = hello.ordinal as usize;
            let endpoint = self.endpoint(cluster, ordinal);
            peer.gateways.push(handover::PeerGateway {
                name: other.name.clone(),
                public_key: keys.public_key,
                former_key: keys.former_key,
                vtep: vtep(cluster, ordinal),
                endpoints: vec![SocketAddr::new(endpoint.ip(), hello.udp_port)],
            });
        }
        peers
    }

    pub(super) fn config_of(&self, agent: &Agent) -> handover::Config {
        let own = cluster_of(&agent.name);
        let mut peers = self.peers_of(Some(own));
        for absent in 0..self.absent.load(Ordering::Relaxed) {
            let cluster = char::from_u32(0x4e00 + absent).expect("a character");
            let key: [u8; 32] = std::array::from_fn(|at| if at < 4 { absent.to_be_bytes()[at] } else { 9 });
            let gateway = handover::PeerGateway {
                name: format!("{cluster}/0"),
                public_key: slice_gateway::proto::config::encode_key(&key),
                former_key: None,
                vtep: Ipv4Addr::from_bits(Ipv4Addr::new(198, 19, 0, 1).to_bits() + absent),
                endpoints: vec![SocketAddr::from(([192, 0, 2, 250], 51820))],
            };
            let range = handover::Range {
                start: 4096 + absent * 64,
                size: 64,
            };
            let (cluster_name, ranges, gateways) = (cluster.to_string(), vec![range], vec![gateway]);
            peers.insert(
                cluster,
                handover::Peer {
                    cluster: cluster_name,
                    outside: false,
                    ranges,
                    gateways,
                },
            );
        }
        let ordinal = agent.name[2..].parse().expect("an ordinal");
        handover::Config {
            slice: "shop".into(),
            cluster: own.to_string(),
            vni: VNI,
            mtu: self.mtu.load(Ordering::Relaxed),
            largest_mtu: None,
            subnets: vec![
                "10.80.0.0/16".parse().expect("a subnet"),
                "fd42:80::/64".parse().expect("a subnet"),
            ],
            vtep: vtep(own, ordinal),
            ranges: vec![range(own)],
            frames: handover::Frames::default(),
            dscp: 10,
            rotation_secs: None,
            renewal: Some(self.renewals.load(Ordering::Relaxed).to_string()),
            revocation: None,
            peers: peers
                .into_values()
                .chain(self.guests.lock().unwrap_or_else(PoisonError::into_inner).clone())
                .collect(),
        }
    }
}

pub(super) fn number(cluster: char) -> u32 {
    u32::from(cluster) - u32::from('a')
}

pub(super) fn cluster_of(name: &str) -> char {
    name.chars().next().expect("a name")
}

pub(super) fn range(cluster: char) -> handover::Range {
    handover::Range {
        start: number(cluster) * 64,
        size: 64,
    }
}

/// The index of a pod.
pub(crate) fn index(cluster: char, pod: u32) -> u32 {
    number(cluster) * 64 + 10 + pod
}

pub(crate) fn v4(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 80, 0, 0).to_bits() + index)
}

pub(crate) fn v6(index: u32) -> std::net::Ipv6Addr {
    format!("fd42:80::{index:x}").parse().expect("an address")
}

pub(super) fn vtep(cluster: char, ordinal: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, number(cluster) as u8 + 1, ordinal as u8 + 1)
}
