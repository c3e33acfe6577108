//! Which gateway carries this node's frames to other clusters. Pure.

use std::net::IpAddr;

use siphasher::sip::SipHasher13;
use slice_crds::v1alpha1::SliceBlockSpec;

use super::{Local, segment::reach};
use crate::{
    desired::Uplink,
    liveness::{self, Adjacency, Health},
    world::{SliceFacts, World},
};

/// Gateways of other nodes, by the node's address.
pub(super) type Watched = Vec<(IpAddr, liveness::Gateway)>;

/// The order of gateways, best last: how sure it is that one carries, then how many clusters it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Its node is silent, or does not know it. `current`: the API server's state does not speak against it.
    Lost {
        current: bool,
    },
    /// It has not been asked about yet.
    Unknown,
    Draining(u32),
    Carries(u32),
}

impl From<Health> for Rank {
    fn from(health: Health) -> Self {
        match health.draining {
            true => Self::Draining(health.reached),
            false => Self::Carries(health.reached),
        }
    }
}

/// The gateway on this node that carries what other nodes send here.
pub(super) fn relay(local: &Local, slice: &str) -> Option<u32> {
    let own = local.carrying.iter().filter(|((of, _), _)| of == slice);
    let best = own.max_by_key(|((_, ordinal), health)| (Rank::from(**health), std::cmp::Reverse(*ordinal)));
    best.map(|((_, ordinal), _)| *ordinal)
}

/// The gateway that this node uses: of those that reach most clusters its own, otherwise one by rendezvous hashing
/// over the nodes that have one, so that nodes spread evenly and only those of a gateway that leaves move.
///
/// Watched are the best two of other nodes; all where the best does not reach every cluster.
pub(super) fn uplink(
    world: &World,
    local: &Local,
    slice: &str,
    facts: &SliceFacts,
    own_block: &SliceBlockSpec,
) -> (Uplink, Watched) {
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
        let block = world.blocks.get(&(slice.to_owned(), node.to_owned()));
        let reached = block.map(|block| reach((&local.node, own_block), (node, &block.spec)));
        let Some(Ok(address)) = reached else { continue };
        let id = (facts.spec.vni, key.1);
        // A status is out of date where its node's agent sends no heartbeat, or where the gateway's pod is elsewhere.
        let moved = gateway
            .spec
            .node
            .as_deref()
            .is_some_and(|assigned| assigned != node);
        let current = !gateway.spec.lost && !moved;
        let rank = match local.liveness.get(&(address, id)) {
            Some(Adjacency::Reports(health)) => Rank::from(*health),
            Some(Adjacency::Absent) => Rank::Lost { current: false },
            // Where all are silent, the API server's state decides.
            Some(Adjacency::Silent) => Rank::Lost { current },
            None if current => Rank::Unknown,
            None => Rank::Lost { current },
        };
        let weight = SipHasher13::new().hash(format!("{slice}/{}/{node}", local.node).as_bytes());
        remote.push((rank, weight, node, (address, id)));
    }
    remote.sort_unstable_by_key(|candidate| std::cmp::Reverse(*candidate));
    let own = relay(local, slice)
        .map(|ordinal| (ordinal, Rank::from(local.carrying[&(slice.to_owned(), ordinal)])));
    let best = remote.first();
    let uplink = match (own, best) {
        (Some((ordinal, rank)), best) if best.is_none_or(|best| rank >= best.0) => Uplink::Local(ordinal),
        (_, Some((.., (address, _)))) => Uplink::Remote(*address),
        (_, None) => Uplink::None,
    };
    let rank = own.map(|(_, rank)| rank).max(best.map(|best| best.0));
    let all = facts
        .spec
        .peers
        .iter()
        .filter(|peer| !peer.gateways.is_empty())
        .count();
    let complete = rank.is_some_and(|rank| matches!(rank, Rank::Carries(reached) if reached as usize >= all));
    let watched = remote.iter().take(if complete { 2 } else { remote.len() });
    (uplink, watched.map(|(.., gateway)| *gateway).collect())
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
            draining: false,
        }
    }

    fn draining(reached: u32) -> Health {
        Health {
            reached,
            draining: true,
        }
    }

    /// What a node chooses that observes this of the others' gateways, by ordinal.
    fn choose(world: &World, mut local: Local, observed: &[(u8, Adjacency)]) -> (Uplink, Watched) {
        let observed = observed
            .iter()
            .map(|(n, adjacency)| ((IpAddr::from([10, 0, 0, *n]), (7, u32::from(*n))), *adjacency));
        local.liveness = Arc::new(observed.collect());
        let own = world.blocks[&("shop".to_owned(), local.node.clone())]
            .spec
            .clone();
        uplink(world, &local, "shop", &facts(), &own)
    }

    /// What a node chooses where these gateways' nodes are lost.
    fn choice(world: &World, n: u32, lost: &[u32]) -> Uplink {
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
    fn a_gateway_of_a_lost_node_is_the_last_resort() {
        let world = cluster(3, 2);
        assert_eq!(choice(&world, 2, &[0]), remote(1));
        assert_eq!(choice(&world, 2, &[1]), remote(0));
        assert_eq!(
            choice(&world, 2, &[0, 1]),
            choice(&world, 2, &[]),
            "an API server that is away changes nothing"
        );
        assert_eq!(choice(&cluster(3, 0), 2, &[]), Uplink::None);
    }

    #[test]
    fn a_status_from_another_node_than_the_pods_is_of_before() {
        let mut world = cluster(4, 2);
        let Uplink::Remote(first) = choice(&world, 2, &[]) else {
            panic!("one of them")
        };
        let (used, other) = if Uplink::Remote(first) == remote(0) {
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
            Uplink::None
        );
        assert_eq!(
            block(|spec| spec.node_address = [10, 0, 0, 2].into()),
            Uplink::None
        );
        assert_eq!(
            block(|spec| spec.node_address = "fd00::1".parse().unwrap()),
            Uplink::None
        );
    }

    #[test]
    fn a_gateway_that_does_not_answer_is_left_at_once_and_the_last_one_never() {
        let world = cluster(3, 2);
        let first = choice(&world, 2, &[]);
        let (used, other) = if first == remote(0) { (0, 1) } else { (1, 0) };
        let well = Adjacency::Reports(health(1));
        let choose = |used_is, other_is| choose(&world, node(2), &[(used, used_is), (other, other_is)]).0;
        assert_eq!(choose(well, well), first);
        for lost in [
            Adjacency::Silent,
            Adjacency::Absent,
            Adjacency::Reports(health(0)),
        ] {
            assert_eq!(choose(lost, well), remote(other), "{lost:?}");
        }
        let draining = Adjacency::Reports(draining(1));
        assert_eq!(choose(draining, well), remote(other));
        assert_eq!(choose(draining, draining), first);
        assert_eq!(choose(Adjacency::Silent, Adjacency::Silent), first);
        assert_eq!(choose(Adjacency::Absent, Adjacency::Silent), remote(other));
    }

    #[test]
    fn the_own_gateway_comes_first_unless_another_reaches_more() {
        let world = cluster(3, 2);
        let own = |reports: &[(u32, Health)]| {
            let carrying = reports
                .iter()
                .map(|(n, health)| (("shop".to_owned(), *n), *health));
            let other = (("bank".to_owned(), 1), health(9));
            Local {
                carrying: carrying.chain([other]).collect(),
                ..node(2)
            }
        };
        let others = [(0, Adjacency::Reports(health(2))), (1, Adjacency::Silent)];
        let choose = |local: &Local| choose(&world, local.clone(), &others).0;
        let equal = own(&[(7, health(2)), (3, health(2))]);
        assert_eq!(choose(&equal), Uplink::Local(3));
        let fewer = own(&[(3, health(1)), (7, health(1))]);
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
            let observed: Vec<_> = (0..5).map(|n| (n, Adjacency::Reports(health(reached)))).collect();
            choose(&world, node(8), &observed).1.len()
        };
        assert_eq!((watched(1), watched(0)), (2, 5));
    }
}
