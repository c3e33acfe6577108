//! A configuration that makes sense, out of one that was received.
//!
//! What concerns the gateway itself must be right, or the configuration as a whole is refused. A peer that is wrong
//! is left out and named, so that one bad peer does not keep the others from changing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use ipnet::IpNet;
use slice_frame::Subnets;
use slice_runtime::handover;

use super::{
    admit::{Outbound, Owner, Segment},
    mtu,
    route::{self, Table},
    vxlan,
};

/// Everything a gateway works from.
#[derive(Clone, Debug)]
pub struct Config {
    pub slice: String,
    pub cluster: String,
    pub vni: u32,
    pub vtep: Ipv4Addr,
    pub dscp: u8,
    pub keys: KeyPolicy,
    pub segment: Segment,
    /// Peer clusters; [`Owner::Peer`] is a place in this list.
    pub clusters: Vec<Cluster>,
    pub gateways: Vec<Gateway>,
}

/// Another side of the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub name: String,
    /// It is a host outside all clusters, which may be switched off.
    pub outside: bool,
}

/// When the gateway makes itself a new key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPolicy {
    /// Age of a key at which the next one is made, at least [`MIN_ROTATION`].
    pub rotation: Option<Duration>,
    /// A change asks for a new key.
    pub renewal: Option<String>,
    /// A change asks for a new key in place of all that there are.
    pub revocation: Option<String>,
}

/// A gateway of a peer cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub name: String,
    /// A place in [`Config::clusters`].
    pub cluster: u16,
    /// It is a host outside the clusters, and need not be of our kind.
    pub outside: bool,
    /// What it answers to, newest first: one, or two while it changes from one to the other.
    pub public_keys: Vec<[u8; 32]>,
    pub vtep: Ipv4Addr,
    pub endpoints: Vec<SocketAddr>,
}

/// Shortest age at which a key is replaced: others must hear of the new one in between.
pub const MIN_ROTATION: Duration = Duration::from_secs(60);

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("VNI {0} of slice {1} is not between 1 and {max}", max = vxlan::MAX_VNI)]
    Vni(u32, String),
    #[error("MTU {0} of slice {1} is not between {min} and {max}", min = mtu::MIN, max = mtu::MAX)]
    Mtu(u16, String),
    #[error("DSCP {0} of slice {1} is above 63")]
    Dscp(u8, String),
    #[error("key rotation of slice {1} after {0} s: at least {min} s are needed", min = MIN_ROTATION.as_secs())]
    Rotation(u64, String),
    #[error("the own ranges of slice {1}: {0}")]
    Ranges(route::Error, String),
    #[error("slice {1} has {0} peer clusters, at most 65535 are possible")]
    TooManyClusters(usize, String),
}

/// A peer that was left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    pub peer: String,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}: {}", self.peer, self.what)
    }
}

/// The first network of each family.
pub fn subnets(networks: &[IpNet]) -> Subnets {
    let (mut v4, mut v6) = (None, None);
    for network in networks {
        match network {
            IpNet::V4(net) => _ = v4.get_or_insert_with(|| (net.network(), net.prefix_len())),
            IpNet::V6(net) => _ = v6.get_or_insert_with(|| (net.network(), net.prefix_len())),
        }
    }
    Subnets::new(v4, v6)
}

impl Config {
    /// Whether a frame goes to hosts outside the clusters, among others.
    pub(super) fn leads_outside(&self, to: Outbound) -> bool {
        match to {
            Outbound::Unicast(cluster) => self.clusters[usize::from(cluster)].outside,
            Outbound::Group => self.gateways.iter().any(|gateway| gateway.outside),
            Outbound::Arp(..) | Outbound::Nd(..) => false,
        }
    }

    /// Checks a received configuration; the problems are peers that had to be left out.
    pub fn new(received: &handover::Config) -> Result<(Self, Vec<Problem>), Error> {
        let slice = || received.slice.clone();
        if !(1..=vxlan::MAX_VNI).contains(&received.vni) {
            return Err(Error::Vni(received.vni, slice()));
        }
        let largest = received.largest_mtu.unwrap_or(received.mtu).max(received.mtu);
        for size in [received.mtu, largest] {
            if !(mtu::MIN..=mtu::MAX).contains(&size) {
                return Err(Error::Mtu(size, slice()));
            }
        }
        if received.dscp > 63 {
            return Err(Error::Dscp(received.dscp, slice()));
        }
        let rotation = received.rotation_secs.map(Duration::from_secs);
        if let Some(rotation) = rotation.filter(|rotation| *rotation < MIN_ROTATION) {
            return Err(Error::Rotation(rotation.as_secs(), slice()));
        }
        if received.peers.len() > usize::from(u16::MAX) {
            return Err(Error::TooManyClusters(received.peers.len(), slice()));
        }
        let mut owners = Table::default();
        for range in &received.ranges {
            owners
                .insert(*range, Owner::Own)
                .map_err(|error| Error::Ranges(error, slice()))?;
        }
        let segment = Segment {
            largest: largest.into(),
            subnets: subnets(&received.subnets),
            frames: received.frames,
            owners,
        };
        let mut this = Self {
            slice: slice(),
            cluster: received.cluster.clone(),
            vni: received.vni,
            vtep: received.vtep,
            dscp: received.dscp,
            keys: KeyPolicy {
                rotation,
                renewal: received.renewal.clone(),
                revocation: received.revocation.clone(),
            },
            segment,
            clusters: Vec::new(),
            gateways: Vec::new(),
        };
        let problems = this.add_peers(&received.peers);
        Ok((this, problems))
    }

    fn add_peers(&mut self, peers: &[handover::Peer]) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |peer: &str, what: String| {
            problems.push(Problem {
                peer: peer.to_owned(),
                what,
            })
        };
        let (mut names, mut clusters) = (BTreeSet::new(), BTreeSet::new());
        let mut keys = BTreeMap::new();
        for peer in peers {
            if !clusters.insert(&peer.cluster) {
                problem(
                    &peer.cluster,
                    "this cluster is listed twice; the first entry is used".into(),
                );
                continue;
            }
            let cluster = u16::try_from(self.clusters.len()).expect("counted");
            self.clusters.push(Cluster {
                name: peer.cluster.clone(),
                outside: peer.outside,
            });
            for range in &peer.ranges {
                if let Err(error) = self.segment.owners.insert(*range, Owner::Peer(cluster)) {
                    problem(&peer.cluster, format!("{error}; the range is not used"));
                }
            }
            for gateway in &peer.gateways {
                let texts = std::iter::once(&gateway.public_key).chain(&gateway.former_key);
                let mut public_keys = Vec::new();
                for text in texts {
                    match decode_key(text) {
                        Some(key) => public_keys.push(key),
                        None => problem(
                            &gateway.name,
                            format!("public key \"{text}\" is not 32 bytes in base 64"),
                        ),
                    }
                }
                if public_keys.is_empty() {
                    continue;
                }
                if gateway.vtep == self.vtep {
                    problem(&gateway.name, format!("its VTEP {} is our own", gateway.vtep));
                    continue;
                }
                if let Some(other) = public_keys.iter().find_map(|key| keys.get(key)) {
                    problem(
                        &gateway.name,
                        format!("has the public key of {other}; keys must be unique"),
                    );
                    continue;
                }
                if !names.insert(&gateway.name) {
                    problem(
                        &gateway.name,
                        "this gateway is listed twice; the first entry is used".into(),
                    );
                    continue;
                }
                public_keys.dedup();
                keys.extend(public_keys.iter().map(|key| (*key, &gateway.name)));
                self.gateways.push(Gateway {
                    name: gateway.name.clone(),
                    cluster,
                    outside: peer.outside,
                    public_keys,
                    vtep: gateway.vtep,
                    endpoints: gateway.endpoints.clone(),
                });
            }
        }
        problems
    }
}

/// A public key as it is written everywhere: base 64.
pub fn encode_key(key: &[u8; 32]) -> String {
    BASE64_STANDARD.encode(key)
}

/// The public key that is written like this; `None` where it is none.
pub fn decode_key(text: &str) -> Option<[u8; 32]> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use slice_runtime::handover::Range;

    use super::*;

    fn gateway(name: &str, key: u8) -> handover::PeerGateway {
        handover::PeerGateway {
            name: name.into(),
            public_key: encode_key(&[key; 32]),
            former_key: None,
            vtep: Ipv4Addr::new(198, 18, 2, 1),
            endpoints: vec![],
        }
    }

    fn config() -> handover::Config {
        let peer = |cluster: &str, start, gateways| handover::Peer {
            cluster: cluster.into(),
            outside: cluster == "lima",
            ranges: vec![Range { start, size: 64 }],
            gateways,
        };
        handover::Config {
            slice: "shop".into(),
            cluster: "tokyo".into(),
            vni: 7,
            mtu: 1370,
            largest_mtu: None,
            subnets: vec!["10.80.0.0/16".parse().unwrap()],
            vtep: Ipv4Addr::new(198, 18, 1, 1),
            ranges: vec![Range { start: 0, size: 64 }],
            frames: handover::Frames::default(),
            dscp: 0,
            rotation_secs: Some(3600),
            renewal: None,
            revocation: None,
            peers: vec![
                peer("paris", 64, vec![gateway("paris/0", 1), gateway("paris/1", 2)]),
                peer("lima", 128, vec![gateway("lima/0", 3)]),
            ],
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut handover::Config), expected: Result<&[&str], &str>) {
        let mut received = config();
        change(&mut received);
        match (Config::new(&received), expected) {
            (Ok((_, problems)), Ok(expected)) => {
                assert_eq!(
                    problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    expected
                );
            }
            (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected),
            (got, _) => panic!("{got:?}"),
        }
    }

    #[test]
    fn what_is_right_passes() {
        check(|_| {}, Ok(&[]));
        let (config, _) = Config::new(&config()).unwrap();
        let clusters = config.clusters.iter();
        let clusters: Vec<_> = clusters
            .map(|cluster| (cluster.name.as_str(), cluster.outside))
            .collect();
        assert_eq!(clusters, [("paris", false), ("lima", true)]);
        assert_eq!(
            config
                .gateways
                .iter()
                .map(|gateway| gateway.cluster)
                .collect::<Vec<_>>(),
            [0, 0, 1]
        );
        assert_eq!(config.segment.owners.owner(130), Some(Owner::Peer(1)));
    }

    #[test]
    fn a_former_key_comes_after_the_new_one_and_may_be_unreadable() {
        let keys = |former: &str| {
            let mut received = config();
            received.peers[0].gateways[0].former_key = Some(former.into());
            Config::new(&received).unwrap().0.gateways[0].public_keys.clone()
        };
        assert_eq!(keys(&encode_key(&[9; 32])), [[1; 32], [9; 32]]);
        assert_eq!(keys(&encode_key(&[1; 32])), [[1; 32]]);
        assert_eq!(keys("x"), [[1; 32]]);
    }

    #[test]
    fn errors_of_the_gateway_itself_name_value_and_slice() {
        check(
            |config| config.vni = 0,
            Err("VNI 0 of slice shop is not between 1 and 16777215"),
        );
        check(
            |config| config.mtu = 100,
            Err("MTU 100 of slice shop is not between 576 and 65000"),
        );
        check(
            |config| config.dscp = 64,
            Err("DSCP 64 of slice shop is above 63"),
        );
        check(
            |config| config.rotation_secs = Some(59),
            Err("key rotation of slice shop after 59 s: at least 60 s are needed"),
        );
        let unaligned = "the own ranges of slice shop: range 1+64 is not a power of two long, \
                         or does not start at a multiple of its length";
        check(|config| config.ranges[0].start = 1, Err(unaligned));
    }

    #[test]
    fn bad_peers_are_left_out_and_named() {
        check(
            |config| config.peers[0].gateways[0].public_key = "x".into(),
            Ok(&["peer paris/0: public key \"x\" is not 32 bytes in base 64"]),
        );
        check(
            |config| config.peers[1].gateways[0].public_key = encode_key(&[1; 32]),
            Ok(&["peer lima/0: has the public key of paris/0; keys must be unique"]),
        );
        check(
            |config| config.peers[1].gateways[0].former_key = Some(encode_key(&[2; 32])),
            Ok(&["peer lima/0: has the public key of paris/1; keys must be unique"]),
        );
        check(
            |config| config.peers[0].gateways[1].name = "paris/0".into(),
            Ok(&["peer paris/0: this gateway is listed twice; the first entry is used"]),
        );
        check(
            |config| config.peers[1].ranges[0].start = 64,
            Ok(&["peer lima: ranges 64+64 and 64+64 overlap; the range is not used"]),
        );
        check(
            |config| config.peers[0].gateways[0].vtep = config.vtep,
            Ok(&["peer paris/0: its VTEP 198.18.1.1 is our own"]),
        );
        check(
            |config| config.peers[1].cluster = "paris".into(),
            Ok(&["peer paris: this cluster is listed twice; the first entry is used"]),
        );
    }
}
