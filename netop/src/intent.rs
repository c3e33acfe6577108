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
    model::{Name, Netns},
    world::{PodView, SliceFacts, World},
};

/// What is known on this node besides the objects.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// This node's name.
    pub node: String,
    /// Pods' network namespaces, by pod UID.
    pub sandboxes: BTreeMap<String, Netns>,
    /// Gateways on this node that carry frames, by slice and ordinal.
    pub carrying: BTreeSet<(String, u32)>,
    /// Gateways on this node that have, or are about to get, a TAP.
    pub taps: BTreeSet<(String, u32)>,
    /// Gateways whose object has not changed for so long that their node may be dead.
    pub silent: BTreeSet<(String, u32)>,
}

/// What is asked for, and what is to be said about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub node: NodeIntent,
    /// By pod UID; pods that are in no slice and ask for none are absent.
    pub pods: BTreeMap<String, PodDecision>,
    /// What is wrong with a slice on this node, by slice.
    pub problems: BTreeMap<String, String>,
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
            Ok(segment) => _ = decision.node.segments.insert(name.clone(), segment),
            Err(Some(problem)) => _ = decision.problems.insert(name.clone(), problem),
            Err(None) => {}
        }
    }
    attach(world, local, ledger, now, &mut decision);
    decision
}

/// One slice without its pods; `Err(None)` where this node has no block of it.
fn segment(
    world: &World,
    local: &Local,
    name: &str,
    facts: &SliceFacts,
) -> Result<SegmentIntent, Option<String>> {
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
    let of_slice = |set: &BTreeSet<(String, u32)>| -> BTreeSet<u32> {
        set.iter()
            .filter(|(slice, _)| slice == name)
            .map(|(_, ordinal)| *ordinal)
            .collect()
    };
    Ok(SegmentIntent {
        vni: facts.spec.vni,
        mtu: facts.spec.mtu.into(),
        subnets: facts.subnets,
        broadcast: facts.spec.broadcast,
        local: address,
        remotes,
        taps: of_slice(&local.taps),
        uplink: uplink(world, local, name),
        attachments: BTreeMap::new(),
    })
}

/// The gateway that this node uses: its own with the lowest ordinal, otherwise one by rendezvous hashing over the
/// nodes that have one, so that nodes spread evenly and only those of a gateway that leaves move.
fn uplink(world: &World, local: &Local, slice: &str) -> Uplink {
    let carrying = local
        .carrying
        .iter()
        .filter(|(of, _)| of == slice)
        .map(|(_, ordinal)| *ordinal);
    if let Some(ordinal) = carrying.min() {
        return Uplink::Local(ordinal);
    }
    let mut candidates: Vec<(bool, &str, IpAddr)> = vec![];
    for (key, gateway) in world.gateways.iter().filter(|((of, _), _)| of == slice) {
        let Some(status) = &gateway.status else { continue };
        let Some(node) = status
            .node
            .as_deref()
            .filter(|node| status.connected && *node != local.node)
        else {
            continue;
        };
        if let Some(block) = world.blocks.get(&(slice.to_owned(), node.to_owned())) {
            candidates.push((!local.silent.contains(key), node, block.spec.node_address));
        }
    }
    // One that is heard of before one that is not; where none is, silence says nothing about any of them.
    let best = candidates.into_iter().max_by_key(|(heard, node, _)| {
        let weight = SipHasher13::new().hash(format!("{slice}/{}/{node}", local.node).as_bytes());
        (*heard, weight, node.to_owned())
    });
    best.map_or(Uplink::None, |(_, _, address)| Uplink::Remote(address))
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
        (cluster <= index::MAX_CLUSTER && ordinal <= index::MAX_ORDINAL)
            .then(|| index::vtep(cluster, ordinal))
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
        ranges: ranges(&peer.ranges),
        gateways: (peer.gateways.iter())
            .filter_map(|gateway| {
                Some(handover::PeerGateway {
                    name: format!("{}/{}", peer.name, gateway.ordinal),
                    public_key: gateway.public_key.clone(),
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
        peers: peers.collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slice_crds::{
        IndexRange,
        v1alpha1::{SliceBlock, SliceBlockSpec, SliceGateway, SliceGatewaySpec, SliceGatewayStatus},
    };

    use super::*;

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

    fn choice(world: &World, n: u32, silent: &[u32]) -> Uplink {
        let silent = silent
            .iter()
            .map(|ordinal| ("shop".to_owned(), *ordinal))
            .collect();
        uplink(
            world,
            &Local {
                node: format!("n{n}"),
                silent,
                ..Local::default()
            },
            "shop",
        )
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
    fn the_own_gateway_with_the_lowest_ordinal_comes_first() {
        let world = cluster(3, 2);
        let carrying = [
            ("shop".to_owned(), 7),
            ("shop".to_owned(), 3),
            ("bank".to_owned(), 1),
        ]
        .into();
        let local = Local {
            node: "n2".into(),
            carrying,
            ..Local::default()
        };
        assert_eq!(uplink(&world, &local, "shop"), Uplink::Local(3));
    }
}
