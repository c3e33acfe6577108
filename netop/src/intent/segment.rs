//! One slice on this node, without its pods: whom it exchanges frames with. Pure.
//!
//! Another node's block that makes no sense is passed over, and is reported as a problem with its node's name;
//! everything else goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use slice_crds::{
    IndexRange,
    v1alpha1::{SliceBlock, SliceBlockSpec},
};
use slice_datapath::MAX_MEMBERS;

use super::{
    Local,
    exits::{Watched, exits, relays},
};
use crate::{
    desired::{Carried, Remote, SegmentIntent},
    ledger::Ledger,
    model::Clusters,
    world::{SliceFacts, World},
};

/// Most problems of one slice that are reported in full.
const NAMED: usize = 3;

/// One slice on this node.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) intent: SegmentIntent,
    /// This node's address.
    pub(super) local: IpAddr,
    /// Gateways of other nodes that are to be watched.
    pub(super) watched: Watched,
    /// What is left out, or in doubt.
    pub(super) problem: Option<String>,
}

/// One slice without its pods; `None` where this node has no block of it.
///
/// # Errors
/// Where this node cannot take part at all.
pub(super) fn segment(
    world: &World,
    local: &Local,
    ledger: &Ledger,
    slice: &str,
    facts: &SliceFacts,
) -> Option<Result<Resolved, String>> {
    let own = &world.blocks.get(slice, &local.node)?.spec;
    let address = own.node_address;
    if !is_node_address(address) {
        return Some(Err(format!(
            "this node has the address {address} in its SliceBlock, which no other node can send to: correct the \
             InternalIP of the Node"
        )));
    }
    let mut problems: Vec<String> = own.withdrawn.iter().map(|why| withdrawn(why)).collect();
    let remotes = remotes(world, local, ledger, slice, own, &mut problems);
    let members = remotes.values().filter(|remote| remote.is_member).count();
    if members > MAX_MEMBERS as usize {
        problems.push(format!(
            "{members} nodes have pods of the slice, and broadcast reaches {MAX_MEMBERS} of them: make several slices of it"
        ));
    }
    let taps = local.taps.iter().filter(|((of, _), _)| of == slice);
    let clusters = clusters(facts);
    let toward = clusters.keys().copied().map(Clusters::One);
    let toward: BTreeSet<Clusters> = toward.chain([Clusters::All]).collect();
    let (exits, watched) = exits(world, local, slice, facts, own, &toward);
    let intent = SegmentIntent {
        vni: facts.spec.vni,
        mtu: facts.spec.mtu.into(),
        subnets: facts.subnets,
        carried: Carried::from(&facts.spec.carried()),
        shaping: facts.spec.shaping,
        remotes,
        clusters,
        taps: taps.map(|((_, ordinal), queues)| (*ordinal, *queues)).collect(),
        exits,
        relays: relays(local, slice, &toward),
        attachments: BTreeMap::new(),
    };
    Some(Ok(Resolved {
        intent,
        local: address,
        watched,
        problem: summary(problems),
    }))
}

/// The ranges of the other clusters, by number. All hosts outside have one number, and all gateways reach them.
fn clusters(facts: &SliceFacts) -> BTreeMap<u32, BTreeSet<IndexRange>> {
    let mut clusters: BTreeMap<u32, BTreeSet<IndexRange>> = BTreeMap::new();
    for peer in &facts.spec.peers {
        clusters.entry(peer.number).or_default().extend(&peer.ranges);
    }
    clusters
}

/// Nodes that may have a gateway of a slice: where the pod is, and where it was last seen.
fn with_gateway<'a>(world: &'a World, slice: &'a str) -> BTreeSet<&'a str> {
    let gateways = world.gateways.iter().filter(|((of, _), _)| of == slice);
    let nodes = gateways.flat_map(|(_, gateway)| {
        let seen = gateway.status.as_ref().and_then(|status| status.node.as_deref());
        [seen, gateway.spec.node.as_deref()]
    });
    nodes.flatten().collect()
}

fn withdrawn(why: &str) -> String {
    format!("the cluster operator keeps this node out of the slice, so other nodes send it nothing: {why}")
}

fn summary(problems: Vec<String>) -> Option<String> {
    let more = problems.len().saturating_sub(NAMED);
    let named = problems.into_iter().take(NAMED).collect::<Vec<_>>().join("; ");
    match more {
        0 => Some(named).filter(|named| !named.is_empty()),
        more => Some(format!("{named} (and {more} more)")),
    }
}

/// The other nodes' blocks, by the node's address.
fn remotes(
    world: &World,
    local: &Local,
    ledger: &Ledger,
    slice: &str,
    own: &SliceBlockSpec,
    problems: &mut Vec<String>,
) -> BTreeMap<IpAddr, Remote> {
    let of_slice = world.blocks.of_slice(slice);
    let others = of_slice.into_iter().flat_map(|blocks| blocks.iter());
    let mut reached = vec![];
    for (node, block) in others.filter(|(node, _)| **node != local.node) {
        let node = node.as_str();
        match reach((&local.node, own), (node, &block.spec)) {
            Ok(address) => reached.push((node, address, &**block)),
            Err(problem) => problems.extend(problem),
        }
    }
    // What a node has released may be another one's already, before its own object says so.
    let released = ledger.released(slice);
    let mut owners = Owners::default();
    for block in own.blocks.iter().filter(|block| !released.contains(block)) {
        owners.add(*block, &local.node);
    }
    let with_gateway = with_gateway(world, slice);
    let mut remotes: BTreeMap<IpAddr, Remote> = BTreeMap::new();
    for releasing in [false, true] {
        for (node, address, block) in &reached {
            let spec = &block.spec;
            let blocks = spec.blocks.iter();
            for block in blocks.filter(|block| spec.releasing.contains(block) == releasing) {
                match owners.add(*block, node) {
                    None => _ = remotes.entry(*address).or_default().blocks.insert(*block),
                    Some(_) if releasing => {}
                    Some(owner) => problems.push(format!(
                        "nodes {owner} and {node} both have the block {block}, and {owner} gets its frames: see their \
                         SliceBlocks"
                    )),
                }
            }
            // A node without a block is there all the same: its gateway carries for others.
            let remote = remotes.entry(*address).or_default();
            remote.has_gateway |= with_gateway.contains(node);
            remote.is_member |= remote.has_gateway || has_pods(block);
        }
    }
    remotes
}

/// Whether a node may have pods of the slice: one that has said nothing yet may.
fn has_pods(block: &SliceBlock) -> bool {
    block.status.as_ref().is_none_or(|status| status.attachments > 0)
}

/// The address that another node's frames go to.
///
/// # Errors
/// Where they cannot be sent; with a text, unless the cluster operator withdrew the node.
pub(super) fn reach(
    (own_name, own): (&str, &SliceBlockSpec),
    (name, other): (&str, &SliceBlockSpec),
) -> Result<IpAddr, Option<String>> {
    let (address, ours) = (other.node_address, own.node_address);
    if other.withdrawn.is_some() {
        return Err(None);
    }
    let problem = if !is_node_address(address) {
        format!(
            "node {name} has the address {address}, which nothing can be sent to: correct the InternalIP of the Node"
        )
    } else if address == ours {
        format!(
            "nodes {own_name} and {name} both have the address {address}, so neither reaches the other: correct the \
             InternalIP of one, or delete the Node that is gone"
        )
    } else if address.is_ipv4() != ours.is_ipv4() {
        format!(
            "node {name} has the address {address} and this node {ours}, of another family, so neither reaches the \
             other: give all nodes addresses of one family"
        )
    } else {
        return Ok(address);
    };
    Err(Some(problem))
}

/// Whether an address can be one node's: what is not would make the kernel refuse the whole segment.
pub(super) fn is_node_address(address: IpAddr) -> bool {
    let odd = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !odd && match address {
        IpAddr::V4(address) => !address.is_broadcast(),
        // A link-local address needs an interface beside it.
        IpAddr::V6(address) => !address.is_unicast_link_local() && address.to_ipv4_mapped().is_none(),
    }
}

/// Who has which block: each index has one owner.
#[derive(Default)]
struct Owners<'a>(BTreeMap<u32, (IndexRange, &'a str)>);

impl<'a> Owners<'a> {
    /// Gives a block to a node, unless it overlaps with one that a node has: that node.
    fn add(&mut self, block: IndexRange, node: &'a str) -> Option<&'a str> {
        let before = self.0.range(..=block.start).next_back();
        let after = self.0.range(block.start..).next();
        let overlaps =
            |(_, (other, owner)): (&u32, &(IndexRange, &'a str))| other.overlaps(block).then_some(*owner);
        let owner = before.and_then(overlaps).or_else(|| after.and_then(overlaps));
        if owner.is_none() {
            self.0.insert(block.start, (block, node));
        }
        owner
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use slice_crds::v1alpha1::SliceBlockStatus;

    use super::*;
    use crate::{
        intent::{
            Decision, Memo, resolve,
            testing::{cluster, edit_block, facts, node},
        },
        ledger::Grant,
    };

    fn decide(world: &World, n: u32, ledger: &mut Ledger) -> Decision {
        resolve(
            world,
            &node(n),
            ledger,
            &mut Memo::default(),
            Timestamp::UNIX_EPOCH,
        )
    }

    /// Node n1 of three, of which something is odd: whom it sends to, and the problem.
    #[track_caller]
    fn check(change: impl FnOnce(&mut World), remotes: &[&str], problem: &[&str]) {
        let mut world = cluster(3, 0);
        world.slices.insert("shop".into(), facts().into());
        change(&mut world);
        let decision = decide(&world, 1, &mut Ledger::default());
        let segment = decision.node.segments.get("shop").expect("the segment is there");
        let text = |(address, remote): (&IpAddr, &Remote)| {
            let blocks: Vec<_> = remote.blocks.iter().map(ToString::to_string).collect();
            format!("{address} {}", blocks.join(" "))
        };
        assert_eq!(segment.remotes.iter().map(text).collect::<Vec<_>>(), remotes);
        let reported = decision.problems.get("shop").cloned().unwrap_or_default();
        assert_eq!(reported.is_empty(), problem.is_empty(), "{reported}");
        for part in problem {
            assert!(reported.contains(part), "{reported}");
        }
    }

    #[test]
    fn nodes_that_make_no_sense_are_passed_over_and_the_others_are_not() {
        check(|_| {}, &["10.0.0.0 0+8", "10.0.0.2 16+8"], &[]);
        let address = |world: &mut World, node, text: &str| {
            edit_block(world, node, |spec| spec.node_address = text.parse().unwrap());
        };
        check(
            |world| address(world, 2, "10.0.0.1"),
            &["10.0.0.0 0+8"],
            &["nodes n1 and n2 both have the address 10.0.0.1", "InternalIP"],
        );
        check(|world| address(world, 0, "10.0.0.2"), &["10.0.0.2 0+8 16+8"], &[]);
        check(
            |world| address(world, 2, "fd00::2"),
            &["10.0.0.0 0+8"],
            &["node n2", "another family"],
        );
        for odd in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "fe80::1",
            "::ffff:10.0.0.9",
        ] {
            check(
                |world| address(world, 2, odd),
                &["10.0.0.0 0+8"],
                &["node n2", odd],
            );
        }
    }

    #[test]
    fn who_is_withdrawn_is_passed_over_without_a_word_except_on_its_own_node() {
        let withdraw = |world: &mut World, node| {
            edit_block(world, node, |spec| {
                spec.withdrawn = Some("nodes n2 and n9 have one address".into())
            });
        };
        check(|world| withdraw(world, 2), &["10.0.0.0 0+8"], &[]);
        check(
            |world| withdraw(world, 1),
            &["10.0.0.0 0+8", "10.0.0.2 16+8"],
            &["keeps this node out of the slice", "n2 and n9"],
        );
    }

    #[test]
    fn who_has_nothing_of_the_slice_gets_nothing_that_is_for_all() {
        let mut world = cluster(4, 1);
        world.slices.insert("shop".into(), facts().into());
        for (node, attachments) in [(2, 0), (3, 1)] {
            let block = world.blocks.get_mut("shop", &format!("n{node}")).unwrap();
            block.status = Some(SliceBlockStatus {
                attachments,
                ..SliceBlockStatus::default()
            });
        }
        let members = |world: &World| -> Vec<String> {
            let decision = decide(world, 1, &mut Ledger::default());
            let remotes = decision.node.segments["shop"].remotes.iter();
            let members = remotes.filter(|(_, remote)| remote.is_member);
            members.map(|(address, _)| address.to_string()).collect()
        };
        // A gateway is on the first, a pod on the last.
        assert_eq!(members(&world), ["10.0.0.0", "10.0.0.3"]);
        world.blocks.get_mut("shop", "n2").unwrap().status = None;
        assert_eq!(
            members(&world),
            ["10.0.0.0", "10.0.0.2", "10.0.0.3"],
            "it may have one"
        );
    }

    #[test]
    fn who_is_withdrawn_or_nowhere_may_not_send() {
        let mut world = cluster(4, 0);
        edit_block(&mut world, 2, |spec| spec.withdrawn = Some("why".into()));
        edit_block(&mut world, 3, |spec| spec.node_address = [127, 0, 0, 1].into());
        let nodes = |n| decide(&world, n, &mut Ledger::default()).node.nodes;
        let addresses = |last: &[u8]| {
            last.iter()
                .map(|n| IpAddr::from([10, 0, 0, *n]))
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(nodes(1), addresses(&[0, 1]));
        assert_eq!(nodes(2), addresses(&[0, 1, 2]));
    }

    #[test]
    fn a_node_whose_own_address_makes_no_sense_harms_itself_only() {
        let mut world = cluster(3, 0);
        world.slices.insert("shop".into(), facts().into());
        edit_block(&mut world, 1, |spec| spec.node_address = [0, 0, 0, 0].into());
        let decide = |n| decide(&world, n, &mut Ledger::default());
        let (own, other) = (decide(1), decide(0));
        assert!(own.node.segments.is_empty() && own.problems["shop"].contains("0.0.0.0"));
        assert_eq!(other.node.segments["shop"].remotes.len(), 1);
    }

    #[test]
    fn an_index_has_one_owner() {
        let blocks = |world: &mut World, node, start| {
            edit_block(world, node, |spec| spec.blocks = vec![IndexRange::new(start, 8)]);
        };
        check(
            |world| blocks(world, 2, 8),
            &["10.0.0.0 0+8", "10.0.0.2 "],
            &["nodes n1 and n2 both have the block 8+8, and n1 gets its frames"],
        );
        check(
            |world| {
                edit_block(world, 2, |spec| {
                    spec.blocks = vec![IndexRange::new(0, 16), IndexRange::new(16, 8)]
                })
            },
            &["10.0.0.0 0+8", "10.0.0.2 16+8"],
            &["both have the block 0+16"],
        );
        // A block on its way from one node to another.
        let moves = |world: &mut World, from| {
            edit_block(world, from, |spec| spec.releasing = spec.blocks.clone());
        };
        check(
            |world| {
                moves(world, 0);
                blocks(world, 2, 0);
            },
            &["10.0.0.0 ", "10.0.0.2 0+8"],
            &[],
        );
        check(
            |world| {
                moves(world, 1);
                blocks(world, 2, 8);
            },
            &["10.0.0.0 0+8", "10.0.0.2 8+8"],
            &[],
        );
    }

    #[test]
    fn a_block_that_was_lost_to_a_backup_is_a_problem_and_stops_nothing() {
        let mut world = cluster(3, 0);
        world.slices.insert("shop".into(), facts().into());
        let mut ledger = Ledger::default();
        let newer = Grant {
            generation: 7,
            ..Grant::default()
        };
        ledger.accept("shop", newer.clone()).unwrap();
        let decision = decide(&world, 1, &mut ledger);
        assert!(
            decision.problems["shop"].contains("generation 7"),
            "{:?}",
            decision.problems
        );
        assert!(decision.node.segments.contains_key("shop"));
        assert_eq!(ledger.grant("shop"), Some(&newer));
        world.slices.clear();
        let decision = decide(&world, 1, &mut ledger);
        assert!(decision.problems.is_empty(), "a slice that is gone has none");
    }

    #[test]
    fn many_problems_are_counted() {
        let problems = |count: u32| summary((0..count).map(|n| format!("p{n}")).collect());
        assert_eq!(problems(0), None);
        assert_eq!(problems(3).as_deref(), Some("p0; p1; p2"));
        assert_eq!(problems(5).as_deref(), Some("p0; p1; p2 (and 2 more)"));
    }
}
