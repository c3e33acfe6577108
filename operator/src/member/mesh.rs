//! What the nodes' probes of each other mean for a slice. Pure.
//!
//! Each agent reports with which other nodes something is wrong. A pair matters to a slice where both are in it and both live:
//! a node that is gone answers nobody, and that is said of the node. It is what the two nodes say that counts; a node that lies
//! says it of itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use slice_crds::{
    conditions::{NODES_CONNECTED, Verdict, reason},
    names::TO_PODS_PORT,
    v1alpha1::{BrokenPair, MeshStatus, PairFault, SliceBlock},
};

use super::nodes::{NodeAddress, Nodes};

/// Pairs that a condition names.
const NAMED: usize = 3;
/// Bytes around an IP packet of a slice between two nodes, the outer IP header not counted: Ethernet, VXLAN, UDP.
const HEADERS: u16 = 14 + 8 + 8;

/// What agents report, by node; those that report nothing wrong are not in it.
pub(super) type Reported = BTreeMap<String, MeshStatus>;

/// What is known of the nodes of a slice.
pub(super) struct Known<'a> {
    pub(super) reported: &'a Reported,
    /// Bytes of the slice's largest packet, and what that could be.
    pub(super) mtu: u16,
    pub(super) largest_mtu: u16,
    /// Of the slice, by node.
    pub(super) blocks: &'a BTreeMap<String, Arc<SliceBlock>>,
    pub(super) nodes: &'a Nodes,
    /// Agents that send no heartbeat.
    pub(super) silent: &'a BTreeSet<String>,
}

/// How what the nodes of a slice send each other fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mesh {
    /// A sentence for each pair by which the slice does not carry all.
    pub(super) broken: Vec<String>,
    /// A sentence for each by which it carries all in fragments, or could carry more.
    narrow: Vec<String>,
    /// Bytes of the largest packet that passes between all of them, where that is less than it could be.
    pub(super) path_mtu: Option<u16>,
    /// Pairs of which only the number is known, and which may be in other slices.
    more: u32,
    /// Nodes that can be probed, and those that cannot.
    answering: usize,
    mute: usize,
}

pub(super) fn of_slice(known: &Known<'_>) -> Mesh {
    let mut mesh = Mesh::default();
    for (name, block) in known.blocks {
        if known.lives(name).is_some() {
            let answers = (block.status.as_ref()).is_some_and(|status| status.answers_probes);
            *(if answers {
                &mut mesh.answering
            } else {
                &mut mesh.mute
            }) += 1;
        }
    }
    let mut pairs = BTreeMap::new();
    for (name, status) in known.reported {
        let Some(from) = known.lives(name) else { continue };
        let named = u32::try_from(status.pairs.len()).unwrap_or(u32::MAX);
        mesh.more = mesh.more.saturating_add(status.broken.saturating_sub(named));
        for pair in &status.pairs {
            let Some(to) = known.lives(&pair.node).filter(|to| to.address == pair.address) else {
                continue;
            };
            let carried = pair.carried.filter(|_| pair.fault != PairFault::Silent);
            // Another slice that both are in could have larger ones.
            if carried.is_some_and(|carried| carried >= known.largest_mtu) {
                continue;
            }
            mesh.path_mtu = [mesh.path_mtu, carried].into_iter().flatten().min();
            let fits = carried.is_some_and(|carried| carried >= known.mtu);
            pairs.insert((fits, pair.fault, from, to, pair.port), pair);
        }
    }
    // What is sent to gateways is answered by the port for pods: where that is closed, it is what is said.
    let closed: BTreeSet<_> = pairs
        .keys()
        .filter(|(.., port)| *port == TO_PODS_PORT)
        .flat_map(|(.., from, to, _)| [(from.address, to.address), (to.address, from.address)])
        .collect();
    pairs.retain(|(.., from, to, port), _| {
        *port == TO_PODS_PORT || !closed.contains(&(from.address, to.address))
    });
    for ((fits, fault, from, to, _), pair) in pairs {
        let list = match fault {
            PairFault::Silent | PairFault::Size if !fits => &mut mesh.broken,
            _ => &mut mesh.narrow,
        };
        list.push(sentence(known, from, to, pair));
    }
    mesh
}

impl<'a> Known<'a> {
    /// A node of the slice that is not known to be down.
    fn lives(&self, name: &str) -> Option<&'a NodeAddress> {
        let here = self.blocks.get(name)?.spec.withdrawn.is_none();
        let lives = here && !self.nodes.unready.contains(name) && !self.silent.contains(name);
        self.nodes.usable.get(name).filter(|_| lives)
    }
}

impl Mesh {
    /// What is wrong, where the slice does not carry all: the first pair, and how many there are.
    pub(super) fn problem(&self) -> Option<String> {
        summary(&self.broken, 1, self.more)
    }

    pub(super) fn verdict(&self) -> Verdict {
        if let Some(text) = summary(&self.broken, NAMED, self.more) {
            return Verdict::no(NODES_CONNECTED, reason::PAIR_BROKEN, text);
        }
        if let Some(text) = summary(&self.narrow, NAMED, self.more) {
            return Verdict::no(NODES_CONNECTED, reason::PATH_NARROW, text);
        }
        match (self.answering, self.mute) {
            (0 | 1, 0) => {
                let text = "there are no two nodes in it";
                Verdict::yes(NODES_CONNECTED, reason::PAIRS_CARRY, text)
            }
            (answering, 0) => Verdict::yes(
                NODES_CONNECTED,
                reason::PAIRS_CARRY,
                format!("what its {answering} nodes send each other arrives, at the slice's full size"),
            ),
            (answering, mute) => Verdict::unknown(
                NODES_CONNECTED,
                reason::PENDING,
                format!(
                    "{mute} of its {} nodes do not answer probes: their agents have not set it up yet, or are of an earlier \
                     release; nothing is known to be wrong between the others",
                    answering + mute
                ),
            ),
        }
    }
}

fn summary(sentences: &[String], most: usize, more: u32) -> Option<String> {
    let named = sentences.get(..most.min(sentences.len()))?;
    if named.is_empty() {
        return None;
    }
    let text = named.join("; ");
    let rest = u32::try_from(sentences.len() - named.len()).unwrap_or(u32::MAX);
    Some(match rest.saturating_add(more) {
        0 => text,
        rest => {
            format!("{text} (and {rest} more pairs: see status.mesh of `kubectl get slicenodes -o yaml`)")
        }
    })
}

fn sentence(known: &Known<'_>, from: &NodeAddress, to: &NodeAddress, pair: &BrokenPair) -> String {
    let (a, b) = (&from.name, &to.name);
    let (ip_a, ip_b) = (from.address, to.address);
    let since = &pair.since.0;
    let port = pair.port;
    let Some(carried) = pair.carried.filter(|_| pair.fault != PairFault::Silent) else {
        return match port {
            TO_PODS_PORT => format!(
                "nodes {a} ({ip_a}) and {b} ({ip_b}): what they send each other for slices by UDP port {port} is lost since \
                 {since}, at least one way: let that port pass between them both ways; `tcpdump -ni any udp port {port} and \
                 host {ip_b}` on {a}, and with {ip_a} on {b}, tells on which way it is lost"
            ),
            _ => format!(
                "nodes {a} ({ip_a}) and {b} ({ip_b}): what pods on {a} send to other clusters by gateways on {b} is lost since \
                 {since}: let UDP port {port} pass from {a} to {b}; `tcpdump -ni any udp port {port} and host {ip_a}` on {b} \
                 tells whether it arrives"
            ),
        };
    };
    let (outer, ping) = match ip_b {
        IpAddr::V4(_) => (HEADERS + 20, 20 + 8),
        IpAddr::V6(_) => (HEADERS + 40, 40 + 8),
    };
    let on_underlay = |size: u16| size.saturating_add(outer);
    let fate = match pair.fault {
        PairFault::Fragments => "pass in fragments only (slow)",
        PairFault::Silent | PairFault::Size => "do not pass",
    };
    let (size, consequence) = match carried >= known.mtu {
        true => (
            known.largest_mtu,
            format!("the slice could have {} and has {}", known.largest_mtu, known.mtu),
        ),
        false => (
            known.mtu,
            format!(
                "the slice has {}, and follows unless spec.gateway.mtu of its SliceConfig says otherwise or IPv6 needs more",
                known.mtu
            ),
        ),
    };
    let whole = on_underlay(size);
    format!(
        "nodes {a} ({ip_a}) and {b} ({ip_b}): packets of more than {carried} bytes ({} on the underlay, by UDP port \
         {port}) {fate} since {since}; {consequence}: let the network between them carry {whole} bytes, `ping -M do -s {} \
         {ip_b}` on {a} tells",
        on_underlay(carried),
        whole.saturating_sub(ping)
    )
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use slice_crds::{
        names,
        v1alpha1::{SliceBlockSpec, SliceBlockStatus},
    };

    use super::*;

    struct Scene {
        reported: Reported,
        blocks: BTreeMap<String, Arc<SliceBlock>>,
        nodes: Nodes,
        silent: BTreeSet<String>,
    }

    fn ip(n: u8) -> IpAddr {
        [172, 30, 1, n].into()
    }

    /// Nodes a1 to a4, all of them in the slice.
    fn scene() -> Scene {
        let mut scene = Scene {
            reported: Reported::new(),
            blocks: BTreeMap::new(),
            nodes: Nodes::default(),
            silent: BTreeSet::new(),
        };
        for n in 1..=4 {
            let name = format!("a{n}");
            let spec = SliceBlockSpec {
                slice: "shop".into(),
                node: name.clone(),
                node_address: ip(n),
                blocks: vec![],
                releasing: vec![],
                withdrawn: None,
            };
            let mut block = SliceBlock::new(&names::block("shop", &name), spec);
            block.status = Some(SliceBlockStatus {
                answers_probes: true,
                ..SliceBlockStatus::default()
            });
            scene.blocks.insert(name.clone(), Arc::new(block));
            let node = NodeAddress {
                name: name.clone(),
                address: ip(n),
            };
            scene.nodes.usable.insert(name, node);
        }
        scene
    }

    fn pair(to: u8, fault: PairFault, carried: Option<u16>) -> BrokenPair {
        BrokenPair {
            node: format!("a{to}"),
            address: ip(to),
            port: TO_PODS_PORT,
            fault,
            size: 1450,
            carried,
            since: Time(Timestamp::UNIX_EPOCH),
        }
    }

    impl Scene {
        fn report(&mut self, from: u8, pairs: Vec<BrokenPair>, broken: u32) -> &mut Self {
            let status = MeshStatus { broken, pairs };
            self.reported.insert(format!("a{from}"), status);
            self
        }

        fn mesh(&self) -> Mesh {
            of_slice(&Known {
                reported: &self.reported,
                mtu: 1370,
                largest_mtu: 1450,
                blocks: &self.blocks,
                nodes: &self.nodes,
                silent: &self.silent,
            })
        }

        #[track_caller]
        fn check(&self, expected: &Expect) {
            let mesh = self.mesh();
            let Verdict {
                status,
                reason,
                message,
                ..
            } = mesh.verdict();
            expected.assert_eq(&format!("{status:?} {reason}\n{message}"));
            assert_eq!(mesh.problem().is_some(), !mesh.broken.is_empty());
        }
    }

    #[test]
    fn a_slice_whose_nodes_reach_each_other_says_so() {
        scene().check(&expect![[r#"
            Some(true) PairsCarry
            what its 4 nodes send each other arrives, at the slice's full size"#]]);
    }

    #[test]
    fn a_pair_is_named_with_what_to_open_and_to_try() {
        let mut scene = scene();
        scene.report(1, vec![pair(2, PairFault::Silent, None)], 1);
        scene.check(&expect![[r#"
            Some(false) PairBroken
            nodes a1 (172.30.1.1) and a2 (172.30.1.2): what they send each other for slices by UDP port 14789 is lost since 1970-01-01T00:00:00Z, at least one way: let that port pass between them both ways; `tcpdump -ni any udp port 14789 and host 172.30.1.2` on a1, and with 172.30.1.1 on a2, tells on which way it is lost"#]]);
    }

    #[test]
    fn a_size_that_is_lost_is_named_with_the_one_that_is_not() {
        let mut scene = scene();
        scene.report(1, vec![pair(2, PairFault::Size, Some(1350))], 1);
        scene.check(&expect![[r#"
            Some(false) PairBroken
            nodes a1 (172.30.1.1) and a2 (172.30.1.2): packets of more than 1350 bytes (1400 on the underlay, by UDP port 14789) do not pass since 1970-01-01T00:00:00Z; the slice has 1370, and follows unless spec.gateway.mtu of its SliceConfig says otherwise or IPv6 needs more: let the network between them carry 1420 bytes, `ping -M do -s 1392 172.30.1.2` on a1 tells"#]]);
        assert_eq!(scene.mesh().path_mtu, Some(1350));
    }

    #[test]
    fn a_slice_that_has_followed_the_path_carries_all() {
        let mut scene = scene();
        scene.report(1, vec![pair(2, PairFault::Size, Some(1370))], 1);
        scene.report(3, vec![pair(4, PairFault::Size, Some(1400))], 1);
        scene.check(&expect![[r#"
            Some(false) PathNarrow
            nodes a1 (172.30.1.1) and a2 (172.30.1.2): packets of more than 1370 bytes (1420 on the underlay, by UDP port 14789) do not pass since 1970-01-01T00:00:00Z; the slice could have 1450 and has 1370: let the network between them carry 1500 bytes, `ping -M do -s 1472 172.30.1.2` on a1 tells; nodes a3 (172.30.1.3) and a4 (172.30.1.4): packets of more than 1400 bytes (1450 on the underlay, by UDP port 14789) do not pass since 1970-01-01T00:00:00Z; the slice could have 1450 and has 1370: let the network between them carry 1500 bytes, `ping -M do -s 1472 172.30.1.4` on a3 tells"#]]);
        assert_eq!(
            (scene.mesh().problem(), scene.mesh().path_mtu),
            (None, Some(1370))
        );
        // Another slice could have larger packets than this one.
        scene.report(1, vec![pair(2, PairFault::Size, Some(1450))], 1);
        scene.report(3, vec![], 0);
        assert_eq!((scene.mesh().narrow, scene.mesh().path_mtu), (vec![], None));
    }

    #[test]
    fn fragments_are_told_and_break_nothing() {
        let mut scene = scene();
        scene.report(1, vec![pair(2, PairFault::Fragments, Some(1350))], 1);
        scene.check(&expect![[r#"
            Some(false) PathNarrow
            nodes a1 (172.30.1.1) and a2 (172.30.1.2): packets of more than 1350 bytes (1400 on the underlay, by UDP port 14789) pass in fragments only (slow) since 1970-01-01T00:00:00Z; the slice has 1370, and follows unless spec.gateway.mtu of its SliceConfig says otherwise or IPv6 needs more: let the network between them carry 1420 bytes, `ping -M do -s 1392 172.30.1.2` on a1 tells"#]]);
        assert_eq!(scene.mesh().problem(), None);
    }

    #[test]
    fn many_pairs_are_a_few_and_a_number_the_worst_first() {
        let mut scene = scene();
        let silent = |to| pair(to, PairFault::Silent, None);
        scene.report(
            1,
            vec![pair(2, PairFault::Size, Some(1300)), silent(3), silent(4)],
            7,
        );
        scene.report(2, vec![silent(3)], 1);
        let mesh = scene.mesh();
        let order = ["a1", "a1", "a2", "a1"];
        for (sentence, first) in mesh.broken.iter().zip(order) {
            assert!(sentence.starts_with(&format!("nodes {first} (")), "{sentence}");
        }
        let message = mesh.verdict().message;
        assert!(message.contains("(and 5 more pairs"), "{message}");
        assert!(message.len() < 2000);
        assert!(mesh.problem().unwrap().contains("(and 7 more pairs"));
    }

    #[test]
    fn the_port_to_gateways_is_named_where_the_one_to_pods_is_open() {
        let mut scene = scene();
        let by_gateway = |to| BrokenPair {
            port: names::TO_GATEWAYS_PORT,
            ..pair(to, PairFault::Silent, None)
        };
        scene.report(1, vec![by_gateway(2)], 1);
        scene.check(&expect![[r#"
            Some(false) PairBroken
            nodes a1 (172.30.1.1) and a2 (172.30.1.2): what pods on a1 send to other clusters by gateways on a2 is lost since 1970-01-01T00:00:00Z: let UDP port 14790 pass from a1 to a2; `tcpdump -ni any udp port 14790 and host 172.30.1.1` on a2 tells whether it arrives"#]]);
        // Whichever of the two says so.
        scene.report(2, vec![pair(1, PairFault::Silent, None)], 1);
        let mesh = scene.mesh();
        assert_eq!(mesh.broken.len(), 1);
        assert!(mesh.broken[0].contains("UDP port 14789"), "{:?}", mesh.broken);
    }

    /// A node that is down is said to be so; that it answers nobody follows.
    #[test]
    fn a_pair_counts_where_both_are_in_the_slice_and_live() {
        let mut broken = scene();
        broken.report(1, vec![pair(2, PairFault::Silent, None)], 1);
        let check = |change: &dyn Fn(&mut Scene), counts: bool| {
            let mut scene = scene();
            scene.reported.clone_from(&broken.reported);
            change(&mut scene);
            assert_eq!(!scene.mesh().broken.is_empty(), counts);
        };
        check(&|_| {}, true);
        for node in ["a1", "a2"] {
            check(&|scene| _ = scene.nodes.unready.insert(node.into()), false);
            check(&|scene| _ = scene.silent.insert(node.into()), false);
            check(&|scene| _ = scene.blocks.remove(node), false);
            check(&|scene| _ = scene.nodes.usable.remove(node), false);
        }
        check(
            &|scene| {
                let other = NodeAddress {
                    name: "a2".into(),
                    address: ip(77),
                };
                scene.nodes.usable.insert("a2".into(), other);
            },
            false,
        );
    }

    #[test]
    fn what_cannot_be_known_is_not_said_to_be_well() {
        let mut scene = scene();
        let block = Arc::make_mut(scene.blocks.get_mut("a2").unwrap());
        block.status = None;
        scene.check(&expect![[r#"
            None Pending
            1 of its 4 nodes do not answer probes: their agents have not set it up yet, or are of an earlier release; nothing is known to be wrong between the others"#]]);
        for node in ["a1", "a3", "a4"] {
            scene.blocks.remove(node);
        }
        scene.check(&expect![[r#"
            None Pending
            1 of its 1 nodes do not answer probes: their agents have not set it up yet, or are of an earlier release; nothing is known to be wrong between the others"#]]);
    }
}
