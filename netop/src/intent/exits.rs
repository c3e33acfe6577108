//! Which gateways carry this node's frames to other clusters, for each of these and for all. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use siphasher::sip::SipHasher13;
use slice_crds::v1alpha1::SliceBlockSpec;

use super::{Local, segment::reach};
use crate::{
    desired::Exit,
    liveness::{self, Adjacency, Health},
    model::Clusters,
    world::{SliceFacts, World},
};

/// Gateways of other nodes, by the node's address.
pub(super) type Watched = BTreeSet<(IpAddr, liveness::Gateway)>;

/// The order of gateways toward a cluster, best last: how sure it is that one carries, then how many clusters it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Its node is silent, or does not know it. `current`: the API server's state does not speak against it.
    Lost {
        current: bool,
    },
    /// It does not reach the cluster.
    Lacks,
    /// It has not been asked about yet.
    Unknown,
    Draining(u32),
    Carries(u32),
}

impl Rank {
    fn of(health: &Health, toward: Clusters) -> Self {
        let (lacks, reached) = match toward {
            // Any that reaches it is as good as another.
            Clusters::One(number) => (health.lacks(number), 0),
            Clusters::All => (false, health.reached),
        };
        match (lacks, health.draining) {
            (true, _) => Self::Lacks,
            (false, true) => Self::Draining(reached),
            (false, false) => Self::Carries(reached),
        }
    }
}

/// How a gateway on another node is known to be.
enum Known<'a> {
    Reports(&'a Health),
    Otherwise(Rank),
}

/// A gateway on another node that frames can be sent to.
struct Candidate<'a> {
    known: Known<'a>,
    node: &'a str,
    gateway: (IpAddr, liveness::Gateway),
}

impl Candidate<'_> {
    fn rank(&self, toward: Clusters) -> Rank {
        match &self.known {
            Known::Reports(health) => Rank::of(health, toward),
            Known::Otherwise(rank) => *rank,
        }
    }
}

/// The gateways on this node that carry what other nodes send here.
pub(super) fn relays(local: &Local, slice: &str, toward: &BTreeSet<Clusters>) -> BTreeMap<Clusters, u32> {
    let relays = toward
        .iter()
        .map(|toward| Some((*toward, own(local, slice, *toward)?.1)));
    relays.flatten().collect()
}

/// The best gateway of this node toward a cluster: its rank and ordinal.
fn own(local: &Local, slice: &str, toward: Clusters) -> Option<(Rank, u32)> {
    let own = local.carrying.iter().filter(|((of, _), _)| of == slice);
    let ranked = own.map(|((_, ordinal), health)| (Rank::of(health, toward), Reverse(*ordinal)));
    ranked.max().map(|(rank, Reverse(ordinal))| (rank, ordinal))
}

/// The gateways that this node uses: toward each cluster its own, where none is surer to carry; otherwise one by rendezvous
/// hashing over the nodes that have one, so that nodes and clusters spread evenly and only those of a gateway that leaves
/// move.
///
/// Watched are the best two of other nodes toward each; all where the best does not reach every cluster, or where this node
/// shares with them what the slice is given.
pub(super) fn exits(
    world: &World,
    local: &Local,
    slice: &str,
    facts: &SliceFacts,
    own_block: &SliceBlockSpec,
    toward: &BTreeSet<Clusters>,
) -> (BTreeMap<Clusters, Exit>, Watched) {
    let mut candidates = candidates(world, local, slice, facts, own_block);
    let all = facts.spec.peers.iter().filter(|peer| !peer.gateways.is_empty());
    let all = all.count();
    let shares = facts.spec.shaping.is_some() && local.taps.keys().any(|(of, _)| of == slice);
    let (mut exits, mut watched) = (BTreeMap::new(), Watched::new());
    for toward in toward {
        let weight = |candidate: &Candidate<'_>| {
            let pair = format!("{slice}/{toward}/{}/{}", local.node, candidate.node);
            SipHasher13::new().hash(pair.as_bytes())
        };
        candidates.sort_by_cached_key(|candidate| {
            Reverse((candidate.rank(*toward), weight(candidate), candidate.gateway))
        });
        let own = own(local, slice, *toward);
        let best = candidates
            .first()
            .map(|best| (best.rank(*toward), best.gateway.0));
        let (rank, exit) = match (own, best) {
            (Some((rank, ordinal)), best) if best.is_none_or(|best| rank >= best.0) => {
                (rank, Exit::Local(ordinal))
            }
            (_, Some((rank, address))) => (rank, Exit::Remote(address)),
            (_, None) => continue,
        };
        exits.insert(*toward, exit);
        let complete = match (rank, *toward) {
            (Rank::Carries(reached), Clusters::All) => reached as usize >= all,
            (Rank::Carries(_), Clusters::One(_)) => true,
            _ => false,
        };
        let first = candidates
            .iter()
            .take(if complete && !shares { 2 } else { candidates.len() });
        watched.extend(first.map(|candidate| candidate.gateway));
    }
    (exits, watched)
}

fn candidates<'a>(
    world: &'a World,
    local: &'a Local,
    slice: &str,
    facts: &SliceFacts,
    own_block: &SliceBlockSpec,
) -> Vec<Candidate<'a>> {
    let mut candidates = vec![];
    for (key, gateway) in world.gateways.iter().filter(|((of, _), _)| of == slice) {
        let Some(status) = &gateway.status else { continue };
        let Some(node) = status
            .node
            .as_deref()
            .filter(|node| status.connected && *node != local.node)
        else {
            continue;
        };
        let block = world.blocks.get(slice, node);
        let reached = block.map(|block| reach((&local.node, own_block), (node, &block.spec)));
        let Some(Ok(address)) = reached else { continue };
        let gateway_id = (address, (facts.spec.vni, key.1));
        // A status is out of date where its node's agent sends no heartbeat, or where the gateway's pod is elsewhere.
        let moved = gateway
            .spec
            .node
            .as_deref()
            .is_some_and(|assigned| assigned != node);
        let current = !gateway.spec.lost && !moved;
        let known = match local.liveness.get(&gateway_id) {
            Some(Adjacency::Reports(health)) => Known::Reports(health),
            Some(Adjacency::Absent) => Known::Otherwise(Rank::Lost { current: false }),
            // Where all are silent, the API server's state decides.
            Some(Adjacency::Silent) => Known::Otherwise(Rank::Lost { current }),
            None if current => Known::Otherwise(Rank::Unknown),
            None => Known::Otherwise(Rank::Lost { current }),
        };
        candidates.push(Candidate {
            known,
            node,
            gateway: gateway_id,
        });
    }
    candidates
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slice_crds::v1alpha1::SliceGatewaySpec;

    use super::*;
    use crate::intent::testing::{cluster, edit_block, facts, node};

    fn health(reached: u32) -> Health {
        Health {
            reached,
            ..Health::default()
        }
    }

    fn draining(reached: u32) -> Health {
        Health {
            reached,
            draining: true,
            ..Health::default()
        }
    }

    fn lacking(reached: u32, missing: &[u32]) -> Health {
        Health {
            missing: missing.to_vec(),
            ..health(reached)
        }
    }

    /// What a node chooses that observes this of the others' gateways, by ordinal.
    fn choose(world: &World, mut local: Local, observed: &[(u8, Adjacency)]) -> (Option<Exit>, Watched) {
        let observed = observed.iter().map(|(n, adjacency)| {
            (
                (IpAddr::from([10, 0, 0, *n]), (7, u32::from(*n))),
                adjacency.clone(),
            )
        });
        local.liveness = Arc::new(observed.collect());
        let toward = BTreeSet::from([Clusters::All]);
        let (exits, watched) = exits_of(world, &local, &toward);
        (exits.get(&Clusters::All).copied(), watched)
    }

    fn exits_of(
        world: &World,
        local: &Local,
        toward: &BTreeSet<Clusters>,
    ) -> (BTreeMap<Clusters, Exit>, Watched) {
        let own = &world.blocks.get("shop", &local.node).unwrap().spec;
        exits(world, local, "shop", &facts(), own, toward)
    }

    /// What a node chooses where these gateways' nodes are lost.
    fn choice(world: &World, n: u32, lost: &[u32]) -> Option<Exit> {
        let mut world = world.clone();
        for ordinal in lost {
            edit(&mut world, *ordinal, |spec| spec.lost = true);
        }
        choose(&world, node(n), &[]).0
    }

    fn edit(world: &mut World, ordinal: u32, change: impl FnOnce(&mut SliceGatewaySpec)) {
        let gateway = world.gateways.get_mut(&("shop".to_owned(), ordinal)).unwrap();
        change(&mut Arc::make_mut(gateway).spec);
    }

    fn remote(n: u8) -> Option<Exit> {
        Some(Exit::Remote([10, 0, 0, n].into()))
    }

    #[test]
    fn nodes_spread_over_gateways_and_only_those_of_one_that_leaves_move() {
        let world = cluster(200, 4);
        let before: Vec<Option<Exit>> = (4..200).map(|n| choice(&world, n, &[])).collect();
        for ordinal in 0..4u8 {
            let users = before.iter().filter(|uplink| **uplink == remote(ordinal)).count();
            assert!(
                (30..70).contains(&users),
                "gateway {ordinal} has {users} of 196 nodes"
            );
        }
        let mut fewer = world;
        fewer.gateways.remove(&("shop".to_owned(), 2));
        for (n, before) in (4..200).zip(before) {
            let after = choice(&fewer, n, &[]);
            assert!(after == before || before == remote(2), "n{n}");
        }
    }

    #[test]
    fn a_gateway_of_a_lost_node_is_the_last_resort() {
        let world = cluster(3, 2);
        assert_eq!(choice(&world, 2, &[0]), remote(1));
        assert_eq!(choice(&world, 2, &[1]), remote(0));
        assert_eq!(
            choice(&world, 2, &[0, 1]),
            choice(&world, 2, &[]),
            "an API server that is away changes nothing"
        );
        assert_eq!(choice(&cluster(3, 0), 2, &[]), None);
    }

    #[test]
    fn a_status_from_another_node_than_the_pods_is_of_before() {
        let mut world = cluster(4, 2);
        let Some(Exit::Remote(first)) = choice(&world, 2, &[]) else {
            panic!("one of them")
        };
        let (used, other) = if Some(Exit::Remote(first)) == remote(0) {
            (0, 1)
        } else {
            (1, 0)
        };
        edit(&mut world, used.into(), |spec| spec.node = Some("n3".into()));
        assert_eq!(choice(&world, 2, &[]), remote(other));
        let well = Adjacency::Reports(health(1));
        let both = [(used, well), (other, Adjacency::Silent)];
        assert_eq!(
            choose(&world, node(2), &both).0,
            remote(used),
            "while it carries, it may be used"
        );
        edit(&mut world, used.into(), |spec| {
            spec.node = Some(format!("n{used}"))
        });
        assert_eq!(choice(&world, 2, &[]), remote(used));
    }

    #[test]
    fn a_gateway_of_a_node_that_cannot_be_reached_is_not_used() {
        let world = cluster(3, 1);
        assert_eq!(choice(&world, 2, &[]), remote(0));
        let block = |change: fn(&mut SliceBlockSpec)| {
            let mut world = world.clone();
            edit_block(&mut world, 0, change);
            choice(&world, 2, &[])
        };
        assert_eq!(
            block(|spec| spec.withdrawn = Some("two nodes have it".into())),
            None
        );
        assert_eq!(block(|spec| spec.node_address = [10, 0, 0, 2].into()), None);
        assert_eq!(block(|spec| spec.node_address = "fd00::1".parse().unwrap()), None);
    }

    #[test]
    fn a_gateway_that_does_not_answer_is_left_at_once_and_the_last_one_never() {
        let world = cluster(3, 2);
        let first = choice(&world, 2, &[]);
        let (used, other) = if first == remote(0) { (0, 1) } else { (1, 0) };
        let well = Adjacency::Reports(health(1));
        let choose = |used_is: &Adjacency, other_is: &Adjacency| {
            let observed = [(used, used_is.clone()), (other, other_is.clone())];
            choose(&world, node(2), &observed).0
        };
        assert_eq!(choose(&well, &well), first);
        for lost in [
            Adjacency::Silent,
            Adjacency::Absent,
            Adjacency::Reports(health(0)),
        ] {
            assert_eq!(choose(&lost, &well), remote(other), "{lost:?}");
        }
        let draining = Adjacency::Reports(draining(1));
        assert_eq!(choose(&draining, &well), remote(other));
        assert_eq!(choose(&draining, &draining), first);
        assert_eq!(choose(&Adjacency::Silent, &Adjacency::Silent), first);
        assert_eq!(choose(&Adjacency::Absent, &Adjacency::Silent), remote(other));
    }

    #[test]
    fn the_own_gateway_comes_first_unless_another_reaches_more() {
        let world = cluster(3, 2);
        let own = |reports: &[(u32, Health)]| {
            let carrying = reports
                .iter()
                .map(|(n, health)| (("shop".to_owned(), *n), health.clone()));
            let other = (("bank".to_owned(), 1), health(9));
            Local {
                carrying: carrying.chain([other]).collect(),
                ..node(2)
            }
        };
        let others = [(0, Adjacency::Reports(health(2))), (1, Adjacency::Silent)];
        let choose = |local: &Local| choose(&world, local.clone(), &others).0;
        let equal = own(&[(7, health(2)), (3, health(2))]);
        assert_eq!(choose(&equal), Some(Exit::Local(3)));
        let fewer = own(&[(3, health(1)), (7, health(1))]);
        assert_eq!(choose(&fewer), remote(0));
        let all = BTreeSet::from([Clusters::All]);
        let relay = |local: &Local| relays(local, "shop", &all).get(&Clusters::All).copied();
        assert_eq!(relay(&fewer), Some(3), "it still carries for others");
        let stops = own(&[(3, draining(2))]);
        assert_eq!(choose(&stops), remote(0));
        assert_eq!(relay(&node(2)), None);
    }

    #[test]
    fn two_are_watched_and_all_where_two_are_not_enough() {
        let world = cluster(9, 5);
        let watched = |reached| {
            let observed: Vec<_> = (0..5).map(|n| (n, Adjacency::Reports(health(reached)))).collect();
            choose(&world, node(8), &observed).1.len()
        };
        assert_eq!((watched(1), watched(0)), (2, 5));
    }
    /// Two other clusters, one of which each gateway has lost.
    #[test]
    fn a_gateway_is_chosen_for_each_cluster() {
        let world = cluster(4, 2);
        let toward = BTreeSet::from([Clusters::One(2), Clusters::One(3), Clusters::All]);
        let mut local = node(3);
        let observe = |zero: Health, one: Health| {
            let observed = [(0u8, zero), (1, one)].map(|(n, health)| {
                let address = IpAddr::from([10, 0, 0, n]);
                ((address, (7, u32::from(n))), Adjacency::Reports(health))
            });
            Arc::new(BTreeMap::from(observed))
        };
        local.liveness = observe(lacking(1, &[2]), lacking(1, &[3]));
        let (exits, watched) = exits_of(&world, &local, &toward);
        assert_eq!(exits.get(&Clusters::One(2)).copied(), remote(1));
        assert_eq!(exits.get(&Clusters::One(3)).copied(), remote(0));
        assert_eq!(watched.len(), 2);
        // What is lost everywhere goes by the one that reaches most, for when it comes back.
        local.liveness = observe(lacking(1, &[2]), lacking(0, &[2, 3]));
        let (exits, _) = exits_of(&world, &local, &toward);
        assert_eq!(exits.get(&Clusters::One(3)).copied(), remote(0));
        assert_eq!(exits.get(&Clusters::All).copied(), remote(0));
        assert!(exits.contains_key(&Clusters::One(2)));
        // The own gateway carries what it reaches, and another the rest.
        local.carrying = BTreeMap::from([(("shop".to_owned(), 5), lacking(1, &[3]))]);
        local.liveness = observe(health(2), health(2));
        let (exits, _) = exits_of(&world, &local, &toward);
        assert_eq!(exits[&Clusters::One(2)], Exit::Local(5));
        assert!(matches!(exits[&Clusters::One(3)], Exit::Remote(_)));
        assert_eq!(relays(&local, "shop", &toward).len(), 3);
    }

    #[test]
    fn clusters_spread_over_gateways() {
        let world = cluster(5, 4);
        let toward: BTreeSet<Clusters> = (0..40).map(Clusters::One).collect();
        let (exits, _) = exits_of(&world, &node(4), &toward);
        for n in 0..4 {
            let of_gateway = exits.values().filter(|exit| Some(**exit) == remote(n)).count();
            assert!(
                (4..=18).contains(&of_gateway),
                "{of_gateway} of 40 clusters by {n}"
            );
        }
    }
}
