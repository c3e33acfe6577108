//! An allocation through its life, as a reviewer wants to read it.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// A slice, its members and its allocation, which is written at once.
struct Scene {
    cidrs: Vec<Cidr>,
    uid: &'static str,
    hub: &'static str,
    gone: bool,
    at_once: bool,
    members: Vec<Member>,
    hosts: Vec<SlicePeer>,
    spec: Option<SliceAllocationSpec>,
    remembered: Option<u32>,
    clock: i64,
    last: Plan,
}

#[derive(Clone, Default)]
struct Member {
    name: &'static str,
    chosen: bool,
    silent: bool,
    attachments: u32,
    blocks: u32,
    nodes: u32,
    released: bool,
    idle: Vec<IndexRange>,
    given_back: Vec<IndexRange>,
    /// What it acts by; the newest where `None`.
    revision: Option<u64>,
    awaited: bool,
    vouched: bool,
    holdings: Vec<Holding>,
    deletion: Deletion,
}

fn scene(subnet: &str, members: &[&'static str]) -> Scene {
    Scene {
        cidrs: vec![subnet.parse().unwrap()],
        uid: "u1",
        hub: "h1",
        gone: false,
        at_once: false,
        members: members
            .iter()
            .map(|name| Member {
                name,
                chosen: true,
                nodes: 2,
                blocks: 2,
                ..Member::default()
            })
            .collect(),
        hosts: vec![],
        spec: None,
        remembered: None,
        clock: 0,
        last: Plan::default(),
    }
}

impl Scene {
    fn member(&mut self, name: &str) -> &mut Member {
        self.members
            .iter_mut()
            .find(|member| member.name == name)
            .unwrap()
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.clock * 60).unwrap()
    }

    /// Plans once and writes.
    fn step(&mut self) {
        let subnets = Subnets::new(&self.cidrs).unwrap();
        let revision = |name: &str| {
            let clusters = self.spec.iter().flat_map(|spec| &spec.clusters);
            let mut named = clusters.filter(|cluster| cluster.name == name);
            named.next().map_or(0, |cluster| cluster.revision)
        };
        let parties: Vec<Party<'_>> = self
            .members
            .iter()
            .map(|member| Party {
                name: member.name,
                chosen: member.chosen,
                reported: !member.silent,
                awaited: member.awaited,
                vouched: member.vouched,
                nodes: member.nodes,
                in_use: member.attachments > 0,
                attachments: member.attachments,
                demand: (!member.silent).then(|| Demand {
                    revision: Some(member.revision.unwrap_or_else(|| revision(member.name))),
                    released: member.released,
                    blocks: member.blocks,
                    idle: &member.idle,
                    given_back: &member.given_back,
                }),
                holdings: member.holdings.clone(),
                deletion: member.deletion,
            })
            .collect();
        let request = Request {
            hub: self.hub,
            slice: "shop",
            config: (!self.gone).then(|| Config {
                namespace: "weft-default",
                uid: self.uid,
                cidrs: &self.cidrs,
                subnets,
                block: slice_crds::index::block_size(subnets.capacity()),
                mtu: 1370,
                largest_mtu: 1370,
                hosts: &self.hosts,
                remembered_vni: self.remembered,
                remembered_hosts: vec![],
            }),
            parties: &parties,
            grace: SignedDuration::from_mins(5),
            at_once: self.at_once,
            taken_vnis: &BTreeSet::from([4097]),
            now: self.now(),
        };
        let plan = next(self.spec.as_ref(), &request);
        match &plan.verdict {
            Verdict::Keep => {}
            Verdict::Write(spec) => self.spec = Some((**spec).clone()),
            Verdict::Delete => self.spec = None,
        }
        self.last = plan;
    }

    /// Until nothing changes.
    fn settle(&mut self) -> &mut Self {
        for _ in 0..50 {
            self.step();
            if self.last.verdict == Verdict::Keep {
                return self;
            }
        }
        panic!("it never settles: {}", self.text());
    }

    fn after(&mut self, minutes: i64) -> &mut Self {
        self.clock += minutes;
        self.settle()
    }

    fn text(&self) -> String {
        let Some(spec) = &self.spec else {
            return "none\n".into();
        };
        let mut lines = vec![format!("vni {} {:?}", spec.vni, spec.state)];
        for cluster in &spec.clusters {
            let ranges: Vec<String> = cluster
                .ranges
                .iter()
                .map(|range| format!("{}+{}{}", range.start, range.size, mark(range.state)))
                .collect();
            lines.push(format!(
                "{}#{}{} {}",
                cluster.name,
                cluster.number,
                mark(cluster.state),
                ranges.join(" ")
            ));
        }
        for host in &spec.hosts {
            lines.push(format!(
                "host {} {} {}{}",
                host.name,
                host.ordinal,
                host.index,
                mark(host.state)
            ));
        }
        lines.extend(
            self.last
                .troubles
                .iter()
                .map(|(reason, message)| format!("{reason}: {message}")),
        );
        lines.join("\n") + "\n"
    }

    #[track_caller]
    fn check(&self, expected: Expect) {
        expected.assert_eq(&self.text());
    }
}

const fn mark(state: AllocationState) -> &'static str {
    match state {
        AllocationState::Held => "",
        AllocationState::Releasing => "!",
        AllocationState::Resting => "~",
    }
}

fn range(start: u32, size: u32) -> IndexRange {
    IndexRange::new(start, size)
}

#[test]
fn two_clusters_share_a_slice() {
    scene("10.80.0.0/16", &["a", "b"]).settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+8192
        b#2 8192+8192
    "#]]);
}

#[test]
fn what_is_asked_for_is_given_once() {
    let mut scene = scene("10.80.0.0/16", &["a", "b"]);
    scene.settle().member("a").blocks = 131;
    // It is asked again and again, as a report is read that nobody renews, and given once.
    for _ in 0..20 {
        scene.after(1);
    }
    scene.check(expect![[r#"
        vni 9469848 Held
        a#1 0+8192 16384+256
        b#2 8192+8192
    "#]]);
    // The member has not seen yet what it was given.
    (scene.member("a").blocks, scene.member("a").revision) = (500, Some(1));
    scene.after(1).check(expect![[r#"
        vni 9469848 Held
        a#1 0+8192 16384+256
        b#2 8192+8192
    "#]]);
}

#[test]
fn no_member_keeps_another_from_its_fair_share() {
    let mut scene = scene("10.80.0.0/20", &["a", "b"]);
    scene.settle().member("a").blocks = 100_000;
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+512 2048+2048 1024+512
        b#2 512+512
        RangeExhausted: cluster a needs 6396928 more addresses, and of spec.subnets 10.80.0.0/20 3584 of 4096 are given: what is left is kept for the other clusters. Pods that run keep theirs; move namespaces to another slice
    "#]]);
    scene.member("b").blocks = 16;
    scene.settle();
    assert!(
        scene.text().contains("b#2 512+512 1536+512\n"),
        "{}",
        scene.text()
    );
}

#[test]
fn a_deleted_slice_in_use_is_held_back_and_an_unused_one_goes() {
    let mut scene = scene("10.80.0.0/16", &["a", "b"]);
    scene.settle().member("a").attachments = 3;
    scene.gone = true;
    scene.after(4);
    assert_eq!(scene.spec.as_ref().unwrap().state, AllocationState::Held);
    let message = scene.spec.as_ref().unwrap().message.clone();
    assert!(
        message.contains("in use in a (3 pods): apply it again"),
        "{message}"
    );
    assert_eq!(scene.last.wake, Some(Timestamp::from_second(9 * 60).unwrap()));
    // It comes back in time, under another UID.
    (scene.gone, scene.uid) = (false, "u2");
    scene.settle();
    assert_eq!(scene.spec.as_ref().unwrap().release_after, None);
    scene.gone = true;
    scene.settle();
    scene.after(5).check(expect![[r#"
        vni 9469848 Releasing
        a#1! 0+8192
        b#2! 8192+8192
    "#]]);
    scene.member("a").attachments = 0;
    for name in ["a", "b"] {
        scene.member(name).released = true;
    }
    scene.settle().check(expect![[r#"
        vni 9469848 Resting
        a#1~ 0+8192
        b#2~ 8192+8192
    "#]]);
    scene.after(9).check(expect![[r#"
        vni 9469848 Resting
        a#1~ 0+8192
        b#2~ 8192+8192
    "#]]);
    scene.after(1).check(expect!["none\n"]);
}

#[test]
fn a_vni_is_not_free_while_one_member_has_not_let_go() {
    let mut scene = scene("10.80.0.0/16", &["a", "b"]);
    scene.settle().gone = true;
    scene.member("a").released = true;
    scene.member("b").silent = true;
    scene.settle();
    scene.after(60 * 24 * 30).check(expect![[r#"
        vni 9469848 Releasing
        a#1~ 0+8192
        b#2! 8192+8192
    "#]]);
    scene.member("b").deletion = Deletion::Gone;
    scene.settle();
    scene.after(10).check(expect!["none\n"]);
}

#[test]
fn a_report_from_before_is_no_release() {
    let mut scene = scene("10.80.0.0/16", &["a", "b"]);
    scene.settle();
    // It let go of the slice in an earlier round and has not seen yet that it has it again.
    (scene.member("a").released, scene.member("a").revision) = (true, Some(1));
    scene.member("a").chosen = false;
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1! 0+8192
        b#2 8192+8192
    "#]]);
    scene.member("a").revision = None;
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1~ 0+8192
        b#2 8192+8192
    "#]]);
    // It comes back before that has rested, and has what it had.
    scene.member("a").chosen = true;
    scene.member("a").released = false;
    scene.after(5).check(expect![[r#"
        vni 9469848 Held
        a#1 0+8192
        b#2 8192+8192
    "#]]);
}

#[test]
fn a_cluster_that_leaves_in_use_has_a_grace() {
    let mut scene = scene("10.80.0.0/16", &["a", "b"]);
    scene.settle().member("b").attachments = 2;
    scene.member("b").chosen = false;
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+8192
        b#2 8192+8192
        HeldBack: cluster b is to leave while 2 of its pods are attached: they are detached at 1970-01-01T00:05:00Z; name the cluster again to keep it, or `slicectl delete cluster b --yes` does not wait
    "#]]);
    scene.member("b").deletion = Deletion::Now;
    scene.settle();
    assert!(scene.text().contains("b#2! 8192+8192"), "{}", scene.text());
}

#[test]
fn what_is_idle_comes_back_and_rests() {
    let mut scene = scene("10.80.0.0/20", &["a", "b"]);
    scene.settle().member("a").blocks = 40;
    scene.settle();
    assert!(scene.text().contains("a#1 0+512 2048+2048\n"), "{}", scene.text());
    (scene.member("a").blocks, scene.member("a").idle) = (2, vec![range(2048, 1024), range(3072, 1024)]);
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+512 2048+1024! 3072+1024!
        b#2 512+512
    "#]]);
    (scene.member("a").idle, scene.member("a").given_back) = (vec![], vec![range(3072, 1024)]);
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+512 2048+1024! 3072+1024~
        b#2 512+512
    "#]]);
    scene.after(10).check(expect![[r#"
        vni 9469848 Held
        a#1 0+512 2048+1024!
        b#2 512+512
    "#]]);
}

#[test]
fn under_pressure_what_is_idle_is_asked_for_and_rests_for_less() {
    let mut scene = scene("10.80.0.0/26", &["a", "b", "c"]);
    scene.member("c").chosen = false;
    scene.settle().member("a").blocks = 4;
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+16 32+16
        b#2 16+16
    "#]]);
    scene.member("c").chosen = true;
    scene.member("b").blocks = 4;
    (scene.member("a").blocks, scene.member("a").idle) = (1, vec![range(32, 16)]);
    scene.settle();
    assert!(scene.text().contains("a#1 0+16 32+16!"), "{}", scene.text());
    (scene.member("a").idle, scene.member("a").given_back) = (vec![], vec![range(32, 16)]);
    scene.settle();
    let all_given = scene.text();
    assert!(all_given.contains("c#3 48+16"), "{all_given}");
    scene.after(1);
    let later = scene.text();
    assert!(!later.contains('~') || later.contains("b#2 16+16 32+"), "{later}");
}

#[test]
fn a_hub_without_memory_takes_over_what_members_have() {
    let mut scene = scene("10.80.0.0/16", &["a", "b", "c"]);
    let holding = |number, ranges: Vec<IndexRange>| Holding {
        vni: 5000,
        number,
        revision: 7,
        ranges,
    };
    scene.member("a").holdings = vec![holding(4, vec![range(8192, 8192), range(0, 64)])];
    scene.member("b").holdings = vec![holding(2, vec![range(16384, 256)])];
    scene.member("b").awaited = true;
    scene.settle().check(expect!["none\n"]);
    assert_eq!(scene.last.troubles[0].0, reason::WAITS_FOR_REPORT);
    scene.member("b").awaited = false;
    scene.settle().check(expect![[r#"
        vni 5000 Held
        a#4 8192+8192 0+64
        b#2 16384+256
        c#1 4096+4096
    "#]]);
    assert!(
        scene
            .spec
            .as_ref()
            .unwrap()
            .clusters
            .iter()
            .all(|cluster| cluster.revision >= 1)
    );
    assert_eq!(scene.spec.as_ref().unwrap().clusters[0].revision, 8);
}

#[test]
fn holdings_that_cannot_be_are_refused_and_harm_nobody() {
    let mut scene = scene("10.80.0.0/16", &["a", "b", "c"]);
    let holding = |vni, ranges: Vec<IndexRange>| Holding {
        vni,
        number: 1,
        revision: 1,
        ranges,
    };
    scene.member("a").holdings = vec![holding(5000, vec![range(0, 64)])];
    scene.member("b").holdings = vec![holding(5000, vec![range(32, 32)])];
    scene.member("c").holdings = vec![holding(6000, vec![range(64, 64)])];
    scene.settle();
    let text = scene.text();
    assert!(
        text.starts_with("vni 5000 Held\na#1 0+64 64+64\nHoldingsConflict: cluster b has"),
        "{text}"
    );
    assert!(
        text.contains("cluster c has slice shop as VNI 6000 from another hub, and here it is 5000"),
        "{text}"
    );
}

#[test]
fn what_others_know_of_counts_before_what_a_cluster_claims_alone() {
    let mut scene = scene("10.80.0.0/16", &["a", "b", "x"]);
    let holding = |start, size| Holding {
        vni: 5000,
        number: 1,
        revision: 3,
        ranges: vec![range(start, size)],
    };
    scene.member("a").holdings = vec![holding(0, 65536)];
    scene.member("b").holdings = vec![holding(0, 8192)];
    scene.member("b").vouched = true;
    // The slice does not name it.
    scene.member("x").chosen = false;
    scene.member("x").holdings = vec![Holding {
        vni: 6000,
        ..holding(0, 65536)
    }];
    scene.settle();
    let held: Vec<_> = scene
        .spec
        .as_ref()
        .unwrap()
        .clusters
        .iter()
        .map(|cluster| cluster.name.clone())
        .collect();
    assert_eq!(
        (scene.spec.as_ref().unwrap().vni, held),
        (5000, vec!["b".to_owned()])
    );
}

#[test]
fn an_allocation_from_an_old_backup_takes_up_what_was_given_since() {
    let mut scene = scene("10.80.0.0/16", &["a", "b"]);
    scene.settle();
    let vni = scene.spec.as_ref().unwrap().vni;
    let holding = |ranges: Vec<IndexRange>| Holding {
        vni,
        number: 1,
        revision: 9,
        ranges,
    };
    scene.member("a").holdings = vec![holding(vec![range(0, 8192), range(16384, 256)])];
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+8192 16384+256
        b#2 8192+8192
    "#]]);
    assert_eq!(scene.spec.as_ref().unwrap().clusters[0].revision, 10);
    scene.member("a").holdings = vec![];
    scene.member("b").holdings = vec![Holding {
        revision: 11,
        ..holding(vec![range(0, 64)])
    }];
    scene.settle();
    assert!(scene.text().contains("of which a has 0+8192"), "{}", scene.text());
}

#[test]
fn an_allocation_of_another_hub_waits_for_its_slice() {
    let mut scene = scene("10.80.0.0/16", &["a", "b"]);
    scene.settle();
    (scene.hub, scene.gone) = ("h2", true);
    scene.settle();
    scene.after(60 * 24);
    assert_eq!(scene.spec.as_ref().unwrap().state, AllocationState::Held);
    scene.gone = false;
    scene.settle();
    assert_eq!(scene.spec.as_ref().unwrap().hub, "h2");
    scene.gone = true;
    scene.settle();
    assert_eq!(scene.spec.as_ref().unwrap().state, AllocationState::Releasing);
}

#[test]
fn a_slice_with_another_network_waits_for_the_one_of_its_name() {
    let mut scene = scene("10.80.0.0/16", &["a"]);
    scene.settle();
    (scene.uid, scene.cidrs) = ("u2", vec!["10.90.0.0/16".parse().unwrap()]);
    scene.settle();
    let text = scene.text();
    assert!(
        text.starts_with("vni 9469848 Releasing\na#1! 0+16384\n"),
        "{text}"
    );
    scene.member("a").released = true;
    scene.settle();
    assert_eq!(scene.spec.as_ref().unwrap().state, AllocationState::Resting);
}

#[test]
fn hosts_have_indices_from_the_top_and_keep_them() {
    let mut scene = scene("10.80.0.0/16", &["a", "b"]);
    let host = |name: &str| SlicePeer {
        name: name.into(),
        public_key: String::new(),
        endpoints: vec![],
    };
    scene.hosts = vec![host("db1"), host("db2"), host("b")];
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+8192
        b#2 8192+8192
        host db1 0 65534
        host db2 1 65533
        PeerRefused: spec.peers names "b", which is a member cluster of the slice: give the host another name
    "#]]);
    scene.hosts = vec![host("db0"), host("db2")];
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+8192
        b#2 8192+8192
        host db1 0 65534~
        host db2 1 65533
        host db0 2 65532
    "#]]);
    scene.after(11);
    assert!(!scene.text().contains("db1"), "{}", scene.text());
}

#[test]
fn a_slice_too_small_says_what_a_cluster_needs() {
    let mut scene = scene("10.80.0.0/28", &["a", "b"]);
    (scene.member("a").nodes, scene.member("a").blocks) = (8, 8);
    scene.settle().check(expect![[r#"
        vni 9469848 Held
        a#1 0+16
        SubnetTooSmall: spec.subnets 10.80.0.0/28 has 16 addresses, too few for cluster b beside the others: every node of a cluster takes 2 of them; create a slice with a larger subnet
    "#]]);
}

#[test]
fn a_slice_of_a_hub_without_allocations_keeps_its_vni() {
    let mut scene = scene("10.80.0.0/16", &["a"]);
    scene.remembered = Some(4321);
    scene.settle();
    assert_eq!(scene.spec.as_ref().unwrap().vni, 4321);
}

proptest! {
    /// Whatever members report and users do: no index is two clusters', nothing leaves the slice, and what is held stays
    /// held until it is released.
    #[test]
    fn nothing_is_owned_twice(steps in prop::collection::vec((0usize..4, 0u8..9, 0u32..40, 0i64..6), 1..80)) {
        let mut scene = scene("10.80.0.0/22", &["a", "b", "c", "d"]);
        for (who, what, amount, minutes) in steps {
            let held_before = held_indices(&scene);
            let spec = scene.spec.clone();
            let member = &mut scene.members[who];
            let own = spec.iter().flat_map(|spec| &spec.clusters).find(|cluster| cluster.name == member.name);
            match what {
                0 => member.chosen = !member.chosen,
                1 => member.blocks = amount,
                2 => member.attachments = amount % 3,
                3 => member.silent = !member.silent,
                4 => {
                    let held = own.into_iter().flat_map(|own| runs(own, &[AllocationState::Held]));
                    member.idle = held.skip(amount as usize % 2).collect();
                }
                5 => {
                    let releasing = own.into_iter().flat_map(|own| runs(own, &[AllocationState::Releasing]));
                    member.given_back = releasing.collect();
                    member.idle.clear();
                }
                6 => member.released = own.is_some_and(|own| own.state == AllocationState::Releasing),
                7 => scene.gone = !scene.gone,
                _ => member.revision = (amount % 2 == 0).then_some(amount.into()),
            }
            scene.clock += minutes;
            scene.step();
            let Some(spec) = &scene.spec else { continue };
            let mut all: Vec<(String, IndexRange)> = Vec::new();
            for cluster in &spec.clusters {
                for range in cluster.ranges.iter().filter_map(RangeAllocation::range) {
                    prop_assert!(range.start + range.size <= 1024);
                    let twice = all.iter().find(|(_, other)| other.overlaps(range));
                    prop_assert!(twice.is_none(), "{} has {range}, and {twice:?}", cluster.name);
                    all.push((cluster.name.clone(), range));
                }
            }
            // What was held is still the same cluster's, in whichever state.
            for (name, index) in held_before {
                let still = all.iter().any(|(other, range)| *other == name && range.contains(index));
                prop_assert!(still, "{name} lost {index}:\n{}", scene.text());
            }
        }
    }
}

/// The first index of each run that a cluster holds.
fn held_indices(scene: &Scene) -> Vec<(String, u32)> {
    let clusters = scene.spec.iter().flat_map(|spec| &spec.clusters);
    clusters
        .filter(|cluster| cluster.state == AllocationState::Held)
        .flat_map(|cluster| {
            runs(cluster, &[AllocationState::Held]).map(|range| (cluster.name.clone(), range.start))
        })
        .collect()
}
