//! From the objects to what this node is asked for. Pure.
//!
//! Everything that cannot be done is said here, with the next step, and never stops the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;
use siphasher::sip::SipHasher13;
use slice_crds::{Mac, Subnets, index, names, v1alpha1::AttachMode};
use slice_runtime::handover;

use crate::{
    desired::{AttachmentIntent, NodeIntent, SegmentIntent, Uplink},
    ledger::{Exhausted, Holder, Ledger, Source},
    liveness::{self, Heard, Word},
    model::{Name, Netns, Queues},
    world::{PodView, SliceFacts, World},
};

/// What is known on this node besides the objects.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// This node's name.
    pub node: String,
    /// Whether this kernel hands known unicast straight from port to port.
    pub fast_path: bool,
    /// Pods' network namespaces, by pod UID.
    pub sandboxes: BTreeMap<String, Netns>,
    /// Gateways on this node that carry frames, by slice and ordinal, and what they say.
    pub carrying: BTreeMap<(String, u32), Word>,
    /// TAP devices of gateways on this node that have, or are about to get, one.
    pub taps: BTreeMap<(String, u32), Queues>,
    /// Gateways whose object has not changed for so long that their node may be dead.
    pub silent: BTreeSet<(String, u32)>,
    /// What other nodes say of their gateways.
    pub heard: liveness::View,
}

/// What is asked for, and what is to be said about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub node: NodeIntent,
    /// By pod UID; pods that are in no slice and ask for none are absent.
    pub pods: BTreeMap<String, PodDecision>,
    /// What is wrong with a slice on this node, by slice.
    pub problems: BTreeMap<String, String>,
    /// Other nodes' gateways that are to be watched, by the node's address.
    pub watched: BTreeMap<IpAddr, BTreeSet<liveness::Gateway>>,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDecision {
    /// By slice.
    pub slices: BTreeMap<String, Wanted>,
    /// Labels that cannot be followed.
    pub errors: Vec<String>,
}

/// One pod in one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whether the pod's containers wait for it.
    pub required: bool,
    pub outcome: Result<Placed, Obstacle>,
}

/// Why a pod cannot be attached at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error(
        "the pod's network namespace is not known yet: the CNI plugin names it when the pod starts, or the container \
         runtime's record under /var/lib/cni/results does"
    )]
    NoNamespace,
    #[error(
        "this node has no SliceBlock of slice {0} yet: the cluster operator makes one; see the slice's conditions \
         where it does not"
    )]
    NoBlock(String),
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    #[error(
        "slices {slice} and {other} have overlapping subnets, and a pod can be in only one of them: give one of them \
         another subnet, or take the pod out of one"
    )]
    Conflict { slice: String, other: String },
}

impl Obstacle {
    /// The reason of an event about it.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoNamespace | Self::NoBlock(_) | Self::Exhausted(_) => "AttachFailed",
            Self::Conflict { .. } => slice_crds::conditions::reason::ADDRESS_CONFLICT,
        }
    }
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub port: Name,
    pub index: u32,
    pub interface: String,
    pub addresses: Vec<IpAddr>,
    pub mac: Mac,
    pub mtu: u32,
}

/// Decides everything for one moment. Indices come from the ledger, and go back to it.
pub fn resolve(world: &World, local: &Local, ledger: &mut Ledger, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    if world.teardown() {
        ledger.retain(now, |_, _| false);
        return decision;
    }
    decision.node.fast_path = local.fast_path;
    decision.node.nodes = world
        .blocks
        .values()
        .map(|block| block.spec.node_address)
        .collect();
    for (name, error) in &world.broken {
        decision
            .problems
            .insert(name.clone(), format!("the Slice cannot be understood: {error}"));
    }
    for (name, facts) in &world.slices {
        match segment(world, local, name, facts) {
            Ok((segment, watched)) => {
                decision.node.segments.insert(name.clone(), segment);
                for (node, gateway) in watched {
                    decision.watched.entry(node).or_default().insert(gateway);
                }
            }
            Err(Some(problem)) => _ = decision.problems.insert(name.clone(), problem),
            Err(None) => {}
        }
    }
    attach(world, local, ledger, now, &mut decision);
    decision
}

/// One slice without its pods, and the gateways to be watched; `Err(None)` where this node has no block of it.
fn segment(
    world: &World,
    local: &Local,
    name: &str,
    facts: &SliceFacts,
) -> Result<(SegmentIntent, Watched), Option<String>> {
    let own = world
        .blocks
        .get(&(name.to_owned(), local.node.clone()))
        .ok_or(None)?;
    let address = own.spec.node_address;
    let mut remotes: BTreeMap<IpAddr, BTreeSet<_>> = BTreeMap::new();
    let of_slice = (name.to_owned(), String::new())..;
    let blocks = world
        .blocks
        .range(of_slice)
        .take_while(|((slice, _), _)| slice == name);
    for ((_, node), block) in blocks.filter(|((_, node), _)| *node != local.node) {
        let remote = block.spec.node_address;
        if remote == address {
            return Err(Some(format!(
                "nodes {node} and {} both have the address {address}: delete the SliceBlock of the one that is gone",
                local.node
            )));
        }
        if remote.is_ipv4() != address.is_ipv4() {
            return Err(Some(format!(
                "node {node} has the address {remote} and this node {address}, of another family: give all nodes \
                 addresses of one family in SliceBlock.spec.nodeAddress"
            )));
        }
        remotes.entry(remote).or_default().extend(&block.spec.blocks);
    }
    let taps = local.taps.iter().filter(|((slice, _), _)| slice == name);
    let (uplink, watched) = uplink(world, local, name, facts);
    let segment = SegmentIntent {
        vni: facts.spec.vni,
        mtu: facts.spec.mtu.into(),
        subnets: facts.subnets,
        broadcast: facts.spec.broadcast,
        local: address,
        remotes,
        taps: taps.map(|((_, ordinal), queues)| (*ordinal, *queues)).collect(),
        uplink,
        relay: relay(local, name),
        attachments: BTreeMap::new(),
    };
    Ok((segment, watched))
}

/// Gateways of other nodes, by the node's address.
type Watched = Vec<(IpAddr, liveness::Gateway)>;

/// How much a gateway is worth, best last: how sure it is that it carries, then how many clusters it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Its node is silent, or does not know it.
    Lost {
        reported: bool,
    },
    /// Nothing was heard of it yet.
    Unknown,
    Draining(u32),
    Carries(u32),
}

impl From<Word> for Worth {
    fn from(word: Word) -> Self {
        match word.draining {
            true => Self::Draining(word.reached),
            false => Self::Carries(word.reached),
        }
    }
}

/// The gateway on this node that carries what other nodes send here.
fn relay(local: &Local, slice: &str) -> Option<u32> {
    let own = local.carrying.iter().filter(|((of, _), _)| of == slice);
    let best = own.max_by_key(|((_, ordinal), word)| (Worth::from(**word), std::cmp::Reverse(*ordinal)));
    best.map(|((_, ordinal), _)| *ordinal)
}

/// The gateway that this node uses: of those that reach most clusters its own, otherwise one by rendezvous hashing
/// over the nodes that have one, so that nodes spread evenly and only those of a gateway that leaves move.
///
/// Watched are the best two of other nodes; all where the best does not reach every cluster.
fn uplink(world: &World, local: &Local, slice: &str, facts: &SliceFacts) -> (Uplink, Watched) {
    let mut remote = vec![];
    for (key, gateway) in world.gateways.iter().filter(|((of, _), _)| of == slice) {
        let Some(status) = &gateway.status else { continue };
        let Some(node) = status
            .node
            .as_deref()
            .filter(|node| status.connected && *node != local.node)
        else {
            continue;
        };
        let Some(block) = world.blocks.get(&(slice.to_owned(), node.to_owned())) else {
            continue;
        };
        let (address, id) = (block.spec.node_address, (facts.spec.vni, key.1));
        let worth = match local.heard.get(&(address, id)) {
            Some(Heard::Says(word)) => Worth::from(*word),
            Some(Heard::Absent) => Worth::Lost { reported: false },
            // Where all are silent, the API server's word decides.
            Some(Heard::Silent) => Worth::Lost {
                reported: !local.silent.contains(key),
            },
            None if local.silent.contains(key) => Worth::Lost { reported: false },
            None => Worth::Unknown,
        };
        let weight = SipHasher13::new().hash(format!("{slice}/{}/{node}", local.node).as_bytes());
        remote.push((worth, weight, node, (address, id)));
    }
    remote.sort_unstable_by_key(|candidate| std::cmp::Reverse(*candidate));
    let own = relay(local, slice)
        .map(|ordinal| (ordinal, Worth::from(local.carrying[&(slice.to_owned(), ordinal)])));
    let best = remote.first();
    let uplink = match (own, best) {
        (Some((ordinal, worth)), best) if best.is_none_or(|best| worth >= best.0) => Uplink::Local(ordinal),
        (_, Some((.., (address, _)))) => Uplink::Remote(*address),
        (_, None) => Uplink::None,
    };
    let worth = own.map(|(_, worth)| worth).max(best.map(|best| best.0));
    let all = facts
        .spec
        .peers
        .iter()
        .filter(|peer| !peer.gateways.is_empty())
        .count();
    let complete =
        worth.is_some_and(|worth| matches!(worth, Worth::Carries(reached) if reached as usize >= all));
    let watched = remote.iter().take(if complete { 2 } else { remote.len() });
    (uplink, watched.map(|(.., gateway)| *gateway).collect())
}

fn attach(world: &World, local: &Local, ledger: &mut Ledger, now: Timestamp, decision: &mut Decision) {
    let rules = world.rules();
    let memberships: BTreeMap<&str, _> = world
        .pods
        .iter()
        .map(|(uid, pod)| (uid.as_str(), world.membership(pod, &rules)))
        .collect();
    ledger.retain(now, |slice, holder| {
        memberships
            .get(holder.uid.as_str())
            .is_some_and(|membership| membership.slices.contains(slice))
    });
    for (uid, pod) in &world.pods {
        let membership = &memberships[uid.as_str()];
        if membership.slices.is_empty() && membership.errors.is_empty() {
            continue;
        }
        let entry = decision.pods.entry(uid.clone()).or_default();
        entry.errors = membership.errors.iter().map(ToString::to_string).collect();
        // What a pod has goes before what it might get.
        let mut slices: Vec<&str> = membership.slices.iter().copied().collect();
        slices.sort_by_key(|slice| ledger.index_of(slice, uid).is_none());
        for slice in slices {
            let facts = &world.slices[slice];
            let overlaps = |other: &&String| subnets_overlap(&world.slices[*other].subnets, &facts.subnets);
            let taken = entry
                .slices
                .iter()
                .filter(|(_, wanted)| wanted.outcome.is_ok())
                .map(|(other, _)| other);
            // DNS binds its sockets to one interface each, so it may have one address twice.
            let conflict = if World::is_dns(pod) {
                None
            } else {
                taken.clone().find(overlaps)
            };
            let outcome = match conflict {
                Some(other) => Err(Obstacle::Conflict {
                    slice: slice.to_owned(),
                    other: other.clone(),
                }),
                None => place(world, local, ledger, now, (slice, facts), pod),
            };
            if let (Ok(placed), Some(netns), Some(segment)) = (
                &outcome,
                local.sandboxes.get(uid),
                decision.node.segments.get_mut(slice),
            ) {
                let attachment = AttachmentIntent {
                    index: placed.index,
                    netns: netns.clone(),
                };
                segment.attachments.insert(placed.port.clone(), attachment);
            }
            let required = facts.rules.attach == AttachMode::Required && !World::is_dns(pod);
            entry
                .slices
                .insert(slice.to_owned(), Wanted { required, outcome });
        }
    }
}

fn place(
    world: &World,
    local: &Local,
    ledger: &mut Ledger,
    now: Timestamp,
    (slice, facts): (&str, &SliceFacts),
    pod: &PodView,
) -> Result<Placed, Obstacle> {
    let block = world.blocks.get(&(slice.to_owned(), local.node.clone()));
    let block = block.ok_or_else(|| Obstacle::NoBlock(slice.to_owned()))?;
    if !local.sandboxes.contains_key(&pod.uid) {
        return Err(Obstacle::NoNamespace);
    }
    let holder = Holder {
        uid: pod.uid.clone(),
        namespace: pod.facts.namespace.clone(),
        name: pod.name.clone(),
    };
    let source = Source {
        subnets: facts.subnets,
        blocks: block.spec.blocks.clone(),
    };
    let index = ledger.allocate(slice, holder, &source, now)?;
    Ok(Placed {
        port: Name::new(names::pod_port(slice, &pod.uid)),
        index,
        interface: names::pod_interface(slice),
        addresses: facts.subnets.addresses(index).map(|net| net.addr()).collect(),
        mac: Mac::of_index(index),
        mtu: facts.spec.mtu.into(),
    })
}

fn subnets_overlap(a: &Subnets, b: &Subnets) -> bool {
    let v4 =
        a.v4.zip(b.v4)
            .is_some_and(|(a, b)| a.contains(&b.network()) || b.contains(&a.network()));
    let v6 =
        a.v6.zip(b.v6)
            .is_some_and(|(a, b)| a.contains(&b.network()) || b.contains(&a.network()));
    v4 || v6
}

/// What a gateway of a slice works from.
pub fn gateway_config(slice: &str, facts: &SliceFacts, ordinal: u32) -> Option<handover::Config> {
    let vtep = |cluster: u32, ordinal: u32| {
        (cluster <= index::OUTSIDE && ordinal <= index::MAX_ORDINAL).then(|| index::vtep(cluster, ordinal))
    };
    let ranges = |ranges: &[slice_crds::IndexRange]| {
        ranges
            .iter()
            .map(|range| handover::Range {
                start: range.start,
                size: range.size,
            })
            .collect()
    };
    let spec = &facts.spec;
    let peers = spec.peers.iter().map(|peer| handover::Peer {
        cluster: peer.name.clone(),
        outside: peer.number == index::OUTSIDE,
        ranges: ranges(&peer.ranges),
        gateways: (peer.gateways.iter())
            .filter_map(|gateway| {
                Some(handover::PeerGateway {
                    name: format!("{}/{}", peer.name, gateway.ordinal),
                    public_key: gateway.public_key.clone(),
                    former_key: gateway.former_key.clone(),
                    vtep: vtep(peer.number, gateway.ordinal)?,
                    endpoints: gateway.endpoints.clone(),
                })
            })
            .collect(),
    });
    Some(handover::Config {
        slice: slice.to_owned(),
        cluster: spec.cluster.clone(),
        vni: spec.vni,
        mtu: spec.mtu,
        subnets: spec.subnets.iter().map(|cidr| cidr.net()).collect(),
        vtep: vtep(spec.cluster_number, ordinal)?,
        ranges: ranges(&spec.ranges),
        dscp: spec.dscp,
        rotation_secs: spec.gateway.keys.rotation_seconds,
        renewal: spec.gateway.keys.renewal.clone(),
        revocation: spec.gateway.keys.revocation.clone(),
        peers: peers.collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slice_crds::{
        IndexRange,
        v1alpha1::{
            GatewayPlacement, PeerCluster, PeerGateway, Slice, SliceBlock, SliceBlockSpec, SliceGateway,
            SliceGatewaySpec, SliceGatewayStatus, SliceSpec,
        },
    };

    use super::*;

    /// A slice with one other cluster that has a gateway.
    fn facts() -> SliceFacts {
        let peer = PeerCluster {
            name: "tokyo".into(),
            number: 2,
            ranges: vec![],
            gateways: vec![PeerGateway {
                ordinal: 0,
                public_key: String::new(),
                former_key: None,
                endpoints: vec![],
            }],
        };
        let spec = SliceSpec {
            vni: 7,
            subnets: vec!["10.80.0.0/16".parse().unwrap()],
            mtu: 1370,
            block_size: 8,
            cluster: "paris".into(),
            cluster_number: 1,
            ranges: vec![],
            peers: vec![peer],
            namespaces: vec![],
            attach: AttachMode::Required,
            gateway: GatewayPlacement::default(),
            broadcast: slice_crds::v1alpha1::Broadcast::default(),
            dscp: 0,
        };
        SliceFacts::parse(&Slice::new("shop", spec)).unwrap()
    }

    /// Nodes n0, n1, … of which the first so many have a gateway.
    fn cluster(nodes: u32, gateways: u32) -> World {
        let mut world = World::default();
        for n in 0..nodes {
            let spec = SliceBlockSpec {
                slice: "shop".into(),
                node: format!("n{n}"),
                node_address: IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]),
                blocks: vec![IndexRange::new(n * 8, 8)],
            };
            let block = SliceBlock::new(&format!("shop.n{n}"), spec);
            world
                .blocks
                .insert(("shop".into(), format!("n{n}")), Arc::new(block));
        }
        for ordinal in 0..gateways {
            let spec = SliceGatewaySpec {
                slice: "shop".into(),
                ordinal,
                endpoints: vec![],
            };
            let mut gateway = SliceGateway::new(&format!("weft-gateway-shop-{ordinal}"), spec);
            let node = Some(format!("n{ordinal}"));
            gateway.status = Some(SliceGatewayStatus {
                node,
                connected: true,
                ..SliceGatewayStatus::default()
            });
            world.gateways.insert(("shop".into(), ordinal), Arc::new(gateway));
        }
        world
    }

    fn node(n: u32) -> Local {
        Local {
            node: format!("n{n}"),
            ..Local::default()
        }
    }

    fn word(reached: u32) -> Word {
        Word {
            reached,
            draining: false,
        }
    }

    fn draining(reached: u32) -> Word {
        Word {
            reached,
            draining: true,
        }
    }

    /// What a node chooses to whom the others' gateways say this, by ordinal.
    fn choose(world: &World, mut local: Local, heard: &[(u8, Heard)]) -> (Uplink, Watched) {
        let heard = heard
            .iter()
            .map(|(n, heard)| ((IpAddr::from([10, 0, 0, *n]), (7, u32::from(*n))), *heard));
        local.heard = Arc::new(heard.collect());
        uplink(world, &local, "shop", &facts())
    }

    fn choice(world: &World, n: u32, silent: &[u32]) -> Uplink {
        let silent = silent.iter().map(|ordinal| ("shop".to_owned(), *ordinal));
        let local = Local {
            silent: silent.collect(),
            ..node(n)
        };
        choose(world, local, &[]).0
    }

    fn remote(n: u8) -> Uplink {
        Uplink::Remote([10, 0, 0, n].into())
    }

    #[test]
    fn nodes_spread_over_gateways_and_only_those_of_one_that_leaves_move() {
        let world = cluster(200, 4);
        let before: Vec<Uplink> = (4..200).map(|n| choice(&world, n, &[])).collect();
        for ordinal in 0..4u8 {
            let users = before
                .iter()
                .filter(|uplink| **uplink == Uplink::Remote([10, 0, 0, ordinal].into()))
                .count();
            assert!(
                (30..70).contains(&users),
                "gateway {ordinal} has {users} of 196 nodes"
            );
        }
        let mut fewer = world;
        fewer.gateways.remove(&("shop".to_owned(), 2));
        for (n, before) in (4..200).zip(before) {
            let after = choice(&fewer, n, &[]);
            assert!(
                after == before || before == Uplink::Remote([10, 0, 0, 2].into()),
                "n{n}"
            );
        }
    }

    #[test]
    fn a_silent_gateway_is_the_last_resort() {
        let world = cluster(3, 2);
        assert_eq!(choice(&world, 2, &[0]), Uplink::Remote([10, 0, 0, 1].into()));
        assert_eq!(choice(&world, 2, &[1]), Uplink::Remote([10, 0, 0, 0].into()));
        assert_eq!(
            choice(&world, 2, &[0, 1]),
            choice(&world, 2, &[]),
            "an API server that is away changes nothing"
        );
        assert_eq!(choice(&cluster(3, 0), 2, &[]), Uplink::None);
    }

    #[test]
    fn a_gateway_that_is_not_heard_is_left_at_once_and_the_last_one_never() {
        let world = cluster(3, 2);
        let first = choice(&world, 2, &[]);
        let (used, other) = if first == remote(0) { (0, 1) } else { (1, 0) };
        let well = Heard::Says(word(1));
        let choose = |used_is, other_is| choose(&world, node(2), &[(used, used_is), (other, other_is)]).0;
        assert_eq!(choose(well, well), first);
        for lost in [Heard::Silent, Heard::Absent, Heard::Says(word(0))] {
            assert_eq!(choose(lost, well), remote(other), "{lost:?}");
        }
        let draining = Heard::Says(draining(1));
        assert_eq!(choose(draining, well), remote(other));
        assert_eq!(choose(draining, draining), first);
        assert_eq!(choose(Heard::Silent, Heard::Silent), first);
        assert_eq!(choose(Heard::Absent, Heard::Silent), remote(other));
    }

    #[test]
    fn the_own_gateway_comes_first_unless_another_reaches_more() {
        let world = cluster(3, 2);
        let own = |words: &[(u32, Word)]| {
            let carrying = words.iter().map(|(n, word)| (("shop".to_owned(), *n), *word));
            let other = (("bank".to_owned(), 1), word(9));
            Local {
                carrying: carrying.chain([other]).collect(),
                ..node(2)
            }
        };
        let others = [(0, Heard::Says(word(2))), (1, Heard::Silent)];
        let choose = |local: &Local| choose(&world, local.clone(), &others).0;
        let equal = own(&[(7, word(2)), (3, word(2))]);
        assert_eq!(choose(&equal), Uplink::Local(3));
        let fewer = own(&[(3, word(1)), (7, word(1))]);
        assert_eq!(choose(&fewer), remote(0));
        assert_eq!(relay(&fewer, "shop"), Some(3), "it still carries for others");
        let stops = own(&[(3, draining(2))]);
        assert_eq!(choose(&stops), remote(0));
        assert_eq!(relay(&node(2), "shop"), None);
    }

    #[test]
    fn two_are_watched_and_all_where_two_are_not_enough() {
        let world = cluster(9, 5);
        let watched = |reached| {
            let heard: Vec<_> = (0..5).map(|n| (n, Heard::Says(word(reached)))).collect();
            choose(&world, node(8), &heard).1.len()
        };
        assert_eq!((watched(1), watched(0)), (2, 5));
    }
}
