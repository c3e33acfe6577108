//! Plans as a reviewer reads them: one `check` per situation, from what there is to what there should be.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use expect_test::{Expect, expect};
use slice_crds::{
    IndexRange, Subnets,
    v1alpha1::{Frames, Shaping},
};
use slice_netop::{
    desired::{AttachmentIntent, Carried, Exit, Made, NodeIntent, Remote, SegmentIntent, desired},
    model::{Alias, ClassId, Clusters, Kind, Link, Name, Netns, Queues, State},
    plan::{Action, diff},
};

/// Node 192.168.7.1 of a slice 10.80.0.0/28, whose other node has the indices 4 and 5, and whose other cluster those from
/// 8 on.
fn shop() -> SegmentIntent {
    let remote = Remote {
        blocks: BTreeSet::from([IndexRange::new(4, 2)]),
        has_gateway: false,
        is_member: true,
    };
    SegmentIntent {
        vni: 77,
        mtu: 1370,
        subnets: Subnets::new(&["10.80.0.0/28".parse().unwrap()]).unwrap(),
        carried: Carried::from(&Frames::default()),
        shaping: None,
        remotes: BTreeMap::from([(ip("192.168.7.2"), remote)]),
        clusters: BTreeMap::from([(2, BTreeSet::from([IndexRange::new(8, 8)]))]),
        taps: BTreeMap::new(),
        exits: BTreeMap::new(),
        relays: BTreeMap::new(),
        attachments: BTreeMap::new(),
    }
}

fn with_pod(mut segment: SegmentIntent, port: &str, index: u32) -> SegmentIntent {
    let netns = Netns::new(format!("/run/netns/cni-{port}"));
    segment.attachments.insert(
        Name::new(port),
        AttachmentIntent {
            index,
            router: false,
            limit: None,
            netns,
        },
    );
    segment
}

fn everywhere<T: Copy>(what: T) -> BTreeMap<Clusters, T> {
    BTreeMap::from([(Clusters::One(2), what), (Clusters::All, what)])
}

fn with_gateway(mut segment: SegmentIntent, ordinal: u32) -> SegmentIntent {
    segment.taps.insert(ordinal, Queues::One);
    segment.exits = everywhere(Exit::Local(ordinal));
    segment.relays = everywhere(ordinal);
    segment
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn state(segment: Option<SegmentIntent>) -> State {
    let segments = segment
        .into_iter()
        .map(|segment| ("shop".to_owned(), segment.into()))
        .collect();
    let intent = NodeIntent {
        segments,
        local: Some(ip("192.168.7.1")),
        nodes: BTreeSet::from([ip("192.168.7.1"), ip("192.168.7.2")]),
        ..NodeIntent::default()
    };
    desired(&intent, &mut Made::default())
}

/// Checks the steps from one state to another, and that nothing is left to do after them.
#[track_caller]
fn check(before: &State, after: &State, steps: Expect) {
    let plan = diff(after, before);
    let mut done = before.clone();
    for step in &plan.0 {
        done.take(&step.action);
    }
    assert_eq!(diff(after, &done).to_string(), "", "a second plan is empty");
    steps.assert_eq(&plan.to_string());
}

#[test]
fn a_segment_is_born_closed_and_opens_last() {
    check(
        &State::default(),
        &state(Some(with_pod(shop(), "wp-a", 1))),
        expect![[r#"
            + guard weft_host 192.168.7.1 192.168.7.2
            + link wp-a veth mtu 1370 slice shop index 1 peer sl-shop mac 02:5c:00:00:00:01 in cni-wp-a
            + link wq-shaper shaper mtu 65000
            + link wu-gateways vxlan external port 14790 mtu 65000
            + link wx-pods vxlan external port 14789 mtu 65000
            ~ link wq-shaper attach
            ~ link wq-shaper up
            + shaper wq-shaper
            + tunnel wx-pods wu-gateways local 192.168.7.1
            + entry shop rules 1000 broadcasts/s non-ip
            + entry shop node 192.168.7.2
            + entry shop route 1+1 dev wp-a
            + entry shop route 4+2 node 192.168.7.2
            + entry shop route 8+8 cluster 2
            + entry shop port wp-a index 1
            + entry shop members wp-a 192.168.7.2
            ~ link wp-a attach
            ~ link wu-gateways attach
            ~ link wx-pods attach
            + address 10.80.0.1/28 dev sl-shop in cni-wp-a
            ~ link wp-a up
            ~ link wu-gateways up
            ~ link wx-pods up
            ~ link sl-shop up in cni-wp-a
            + route 10.80.0.0/28 dev sl-shop in cni-wp-a
        "#]],
    );
}

#[test]
fn a_pod_comes_behind_its_program() {
    check(
        &state(Some(with_pod(shop(), "wp-b", 2))),
        &state(Some(with_pod(with_pod(shop(), "wp-b", 2), "wp-a", 1))),
        expect![[r#"
            + link wp-a veth mtu 1370 slice shop index 1 peer sl-shop mac 02:5c:00:00:00:01 in cni-wp-a
            + entry shop route 1+1 dev wp-a
            + entry shop port wp-a index 1
            + entry shop members wp-a wp-b 192.168.7.2
            ~ link wp-a attach
            + address 10.80.0.1/28 dev sl-shop in cni-wp-a
            ~ link wp-a up
            ~ link sl-shop up in cni-wp-a
            + route 10.80.0.0/28 dev sl-shop in cni-wp-a
        "#]],
    );
}

#[test]
fn a_pod_goes_once_nothing_leads_there() {
    check(
        &state(Some(with_pod(with_pod(shop(), "wp-b", 2), "wp-a", 1))),
        &state(Some(with_pod(shop(), "wp-b", 2))),
        expect![[r#"
            - entry shop port wp-a
            - entry shop route 1+1
            - link wp-a
            + entry shop members wp-b 192.168.7.2
        "#]],
    );
}

#[test]
fn a_block_that_moves_is_elsewhere_at_one_moment() {
    let shop = || with_pod(shop(), "wp-a", 1);
    let mut moved = shop();
    let remote = moved.remotes.remove(&ip("192.168.7.2")).unwrap();
    moved.remotes.insert(ip("192.168.7.3"), remote);
    check(
        &state(Some(shop())),
        &state(Some(moved)),
        expect![[r#"
            - entry shop node 192.168.7.2
            + entry shop node 192.168.7.3
            + entry shop route 4+2 node 192.168.7.3
            + entry shop members wp-a 192.168.7.3
        "#]],
    );
}

#[test]
fn another_gateway_is_used_at_one_moment() {
    let mut elsewhere = with_gateway(shop(), 0);
    elsewhere.exits = everywhere(Exit::Remote(ip("192.168.7.2")));
    elsewhere.remotes.get_mut(&ip("192.168.7.2")).unwrap().has_gateway = true;
    let here = with_gateway(shop(), 0);
    check(
        &state(Some(here.clone())),
        &state(Some(elsewhere)),
        expect![[r#"
        + entry shop node 192.168.7.2 gateway
        + entry shop exit to 2 node 192.168.7.2
        + entry shop exit to all node 192.168.7.2
    "#]],
    );
    let mut second = with_gateway(with_gateway(shop(), 0), 1);
    second.relays = everywhere(0);
    check(
        &state(Some(here)),
        &state(Some(second)),
        expect![[r#"
        + link wt-rwiaduzm1 tap mtu 1370 slice shop gateway 1
        + entry shop port wt-rwiaduzm1 gateway
        + entry shop exit to 2 dev wt-rwiaduzm1
        + entry shop exit to all dev wt-rwiaduzm1
        ~ link wt-rwiaduzm1 attach
        ~ link wt-rwiaduzm1 up
    "#]],
    );
}

#[test]
fn a_new_budget_replaces_one_entry() {
    let shop = || with_pod(shop(), "wp-a", 1);
    let mut busy = shop();
    busy.carried.broadcast_per_second = 5;
    busy.carried.non_ip = false;
    check(
        &state(Some(shop())),
        &state(Some(busy)),
        expect![[r#"
        + entry shop rules 5 broadcasts/s
    "#]],
    );
}

#[test]
fn what_cannot_be_changed_is_made_again() {
    let mut foreign = state(Some(with_pod(shop(), "wp-a", 1)));
    foreign.links.get_mut(&Name::to_pods()).unwrap().kind = Kind::Foreign;
    check(
        &foreign,
        &state(Some(with_pod(shop(), "wp-a", 1))),
        expect![[r#"
            - link wx-pods
            + link wx-pods vxlan external port 14789 mtu 65000
            + tunnel wx-pods wu-gateways local 192.168.7.1
            ~ link wx-pods attach
            ~ link wx-pods up
        "#]],
    );
}

#[test]
fn a_slice_with_another_number_is_another_segment() {
    let shop = || with_pod(shop(), "wp-a", 1);
    let mut other = shop();
    other.vni = 78;
    check(
        &state(Some(shop())),
        &state(Some(other)),
        expect![[r#"
            - entry shop members
            - entry shop port wp-a
            - entry shop route 8+8
            - entry shop route 4+2
            - entry shop route 1+1
            - entry shop node 192.168.7.2
            - entry shop rules
            + entry shop rules 1000 broadcasts/s non-ip
            + entry shop node 192.168.7.2
            + entry shop route 1+1 dev wp-a
            + entry shop route 4+2 node 192.168.7.2
            + entry shop route 8+8 cluster 2
            + entry shop port wp-a index 1
            + entry shop members wp-a 192.168.7.2
        "#]],
    );
}

#[test]
fn a_tap_for_more_queues_takes_the_place_of_the_one_before() {
    let mut several = with_gateway(shop(), 0);
    several.taps.insert(0, Queues::Several);
    check(
        &state(Some(with_gateway(shop(), 0))),
        &state(Some(several)),
        expect![[r#"
            - link wt-rwiaduzm0
            + link wt-rwiaduzm0 tap multi_queue mtu 1370 slice shop gateway 0
            + entry shop port wt-rwiaduzm0 gateway
            + entry shop relay to 2 dev wt-rwiaduzm0
            + entry shop relay to all dev wt-rwiaduzm0
            + entry shop exit to 2 dev wt-rwiaduzm0
            + entry shop exit to all dev wt-rwiaduzm0
            ~ link wt-rwiaduzm0 attach
            ~ link wt-rwiaduzm0 up
        "#]],
    );
}

#[test]
fn a_pod_whose_namespace_changed_gets_a_new_pair() {
    let mut restarted = with_pod(shop(), "wp-a", 1);
    restarted.attachments.get_mut(&Name::new("wp-a")).unwrap().netns = Netns::new("/run/netns/cni-new");
    check(
        &state(Some(with_pod(shop(), "wp-a", 1))),
        &state(Some(restarted)),
        expect![[r#"
            - link wp-a
            + link wp-a veth mtu 1370 slice shop index 1 peer sl-shop mac 02:5c:00:00:00:01 in cni-new
            + entry shop route 1+1 dev wp-a
            + entry shop port wp-a index 1
            + entry shop members wp-a 192.168.7.2
            ~ link wp-a attach
            + address 10.80.0.1/28 dev sl-shop in cni-new
            ~ link wp-a up
            ~ link sl-shop up in cni-new
            + route 10.80.0.0/28 dev sl-shop in cni-new
        "#]],
    );
}

#[test]
fn a_pod_with_another_index_loses_the_old_address_and_keeps_its_own() {
    let mut seen = state(Some(with_pod(shop(), "wp-a", 1)));
    let pod = seen.pods.get_mut(&Name::new("wp-a")).unwrap();
    pod.addresses.insert("172.16.0.1/24".parse().unwrap());
    check(
        &seen,
        &state(Some(with_pod(shop(), "wp-a", 2))),
        expect![[r#"
            - entry shop port wp-a
            - entry shop route 1+1
            ~ link wp-a slice shop index 2
            + entry shop route 2+1 dev wp-a
            + entry shop port wp-a index 2
            ~ link sl-shop mac 02:5c:00:00:00:02 in cni-wp-a
            - address 10.80.0.1/28 dev sl-shop in cni-wp-a
            + address 10.80.0.2/28 dev sl-shop in cni-wp-a
        "#]],
    );
}

/// A new agent finds interfaces with an earlier one's programs, and its own maps empty.
#[test]
fn an_agent_that_starts_again_attaches_programs_that_know_everything() {
    let wanted = state(Some(with_gateway(with_pod(shop(), "wp-a", 1), 0)));
    let mut found = wanted.clone();
    found.segments.clear();
    found.tunnel = None;
    found.links.values_mut().for_each(|link| link.attached = false);
    check(
        &found,
        &wanted,
        expect![[r#"
            + tunnel wx-pods wu-gateways local 192.168.7.1
            + entry shop rules 1000 broadcasts/s non-ip
            + entry shop node 192.168.7.2
            + entry shop route 1+1 dev wp-a
            + entry shop route 4+2 node 192.168.7.2
            + entry shop route 8+8 cluster 2
            + entry shop port wp-a index 1
            + entry shop port wt-rwiaduzm0 gateway
            + entry shop relay to 2 dev wt-rwiaduzm0
            + entry shop relay to all dev wt-rwiaduzm0
            + entry shop exit to 2 dev wt-rwiaduzm0
            + entry shop exit to all dev wt-rwiaduzm0
            + entry shop members wp-a 192.168.7.2
            ~ link wp-a attach
            ~ link wq-shaper attach
            ~ link wt-rwiaduzm0 attach
            ~ link wu-gateways attach
            ~ link wx-pods attach
        "#]],
    );
}

/// The release before had a bridge and two VXLAN devices for each slice, and tables that filtered at the bridge.
#[test]
fn what_an_earlier_release_had_goes_when_its_part_is_taken() {
    let wanted = state(Some(with_pod(shop(), "wp-a", 1)));
    let mut found = wanted.clone();
    found.segments.clear();
    found.tunnel = None;
    found.links.retain(|_, link| link.kind == Kind::Veth);
    for link in found.links.values_mut() {
        (link.attached, link.alias) = (false, None);
    }
    for name in ["wb-rwiaduzm", "wu-rwiaduzm", "wx-rwiaduzm"] {
        let link = Link {
            kind: Kind::Foreign,
            mtu: 1370,
            up: true,
            autoconf: false,
            alias: None,
            attached: false,
        };
        found.links.insert(Name::new(name), link);
    }
    found.former_tables.insert("bridge weft_rwiaduzm".into());
    check(
        &found,
        &wanted,
        expect![[r#"
            - link wu-rwiaduzm
            - link wx-rwiaduzm
            + link wq-shaper shaper mtu 65000
            + link wu-gateways vxlan external port 14790 mtu 65000
            + link wx-pods vxlan external port 14789 mtu 65000
            ~ link wp-a slice shop index 1
            ~ link wq-shaper attach
            ~ link wq-shaper up
            + shaper wq-shaper
            + tunnel wx-pods wu-gateways local 192.168.7.1
            + entry shop rules 1000 broadcasts/s non-ip
            + entry shop node 192.168.7.2
            + entry shop route 1+1 dev wp-a
            + entry shop route 4+2 node 192.168.7.2
            + entry shop route 8+8 cluster 2
            + entry shop port wp-a index 1
            + entry shop members wp-a 192.168.7.2
            ~ link wp-a attach
            ~ link wu-gateways attach
            ~ link wx-pods attach
            ~ link wu-gateways up
            ~ link wx-pods up
            - link wb-rwiaduzm
            - table bridge weft_rwiaduzm
        "#]],
    );
}

#[test]
fn what_somebody_changed_at_a_port_comes_back() {
    let wanted = state(Some(with_pod(shop(), "wp-a", 1)));
    let mut changed = wanted.clone();
    let port = changed.links.get_mut(&Name::new("wp-a")).unwrap();
    (port.attached, port.autoconf, port.mtu) = (false, true, 1200);
    port.alias = Some(Alias::index("shop", 9));
    check(
        &changed,
        &wanted,
        expect![[r#"
        ~ link wp-a mtu 1370
        ~ link wp-a slice shop index 1
        ~ link wp-a addrgenmode none
        ~ link wp-a attach
    "#]],
    );
}

#[test]
fn an_interface_made_anew_is_another() {
    let wanted = state(Some(with_gateway(with_pod(shop(), "wp-a", 1), 0)));
    let mut seen = wanted.clone();
    for name in [Name::new("wp-a"), Name::tap("shop", 0), Name::to_gateways()] {
        // Its entries are still in the maps.
        seen.links.remove(&name);
        seen.pods.remove(&name);
    }
    check(
        &seen,
        &wanted,
        expect![[r#"
        + link wp-a veth mtu 1370 slice shop index 1 peer sl-shop mac 02:5c:00:00:00:01 in cni-wp-a
        + link wt-rwiaduzm0 tap mtu 1370 slice shop gateway 0
        + link wu-gateways vxlan external port 14790 mtu 65000
        + tunnel wx-pods wu-gateways local 192.168.7.1
        + entry shop route 1+1 dev wp-a
        + entry shop port wp-a index 1
        + entry shop port wt-rwiaduzm0 gateway
        + entry shop relay to 2 dev wt-rwiaduzm0
        + entry shop relay to all dev wt-rwiaduzm0
        + entry shop exit to 2 dev wt-rwiaduzm0
        + entry shop exit to all dev wt-rwiaduzm0
        + entry shop members wp-a 192.168.7.2
        ~ link wp-a attach
        ~ link wt-rwiaduzm0 attach
        ~ link wu-gateways attach
        + address 10.80.0.1/28 dev sl-shop in cni-wp-a
        ~ link wp-a up
        ~ link wt-rwiaduzm0 up
        ~ link wu-gateways up
        ~ link sl-shop up in cni-wp-a
        + route 10.80.0.0/28 dev sl-shop in cni-wp-a
    "#]],
    );
    seen.take(&Action::DelLink(Name::to_pods()));
    assert_eq!(seen.tunnel, None);
}

#[test]
fn a_slice_without_pods_and_gateways_here_takes_no_room() {
    let bare = state(Some(shop()));
    assert!(bare.segments.is_empty());
    check(
        &state(Some(with_pod(shop(), "wp-a", 1))),
        &bare,
        expect![[r#"
            - entry shop members
            - entry shop port wp-a
            - entry shop route 8+8
            - entry shop route 4+2
            - entry shop route 1+1
            - entry shop node 192.168.7.2
            - entry shop rules
            - link wp-a
            - link wq-shaper
        "#]],
    );
}

#[test]
fn nothing_is_left_of_a_slice_that_ends() {
    check(
        &state(Some(with_gateway(with_pod(shop(), "wp-a", 1), 0))),
        &state(None),
        expect![[r#"
            - entry shop members
            - entry shop exit to all
            - entry shop exit to 2
            - entry shop relay to all
            - entry shop relay to 2
            - entry shop port wt-rwiaduzm0
            - entry shop port wp-a
            - entry shop route 8+8
            - entry shop route 4+2
            - entry shop route 1+1
            - entry shop node 192.168.7.2
            - entry shop rules
            - link wp-a
            - link wq-shaper
            - link wt-rwiaduzm0
            - link wu-gateways
            - link wx-pods
            - guard
        "#]],
    );
}

fn given(guaranteed: u32) -> Option<Shaping> {
    Some(Shaping {
        guaranteed_mbps: Some(guaranteed),
        ceiling_mbps: Some(100),
        priority: 3,
    })
}

#[test]
fn a_guarantee_comes_before_what_is_sent_by_it() {
    let before = with_gateway(shop(), 0);
    let mut after = before.clone();
    after.shaping = given(40);
    check(
        &state(Some(before)),
        &state(Some(after)),
        expect![[r#"
            + class 1:2 root rate 100G ceil 100G prio 0
            + class 1:3 root rate 100G ceil 100G prio 0
            + class 1:1000 parent 1:2 rate 40M ceil 100M prio 4
            + class 1:2000 parent 1:3 rate 40M ceil 100M prio 4
            + entry shop port wt-rwiaduzm0 gateway class 1:2000
            + entry shop relay to 2 dev wt-rwiaduzm0 class 1:1000
            + entry shop relay to all dev wt-rwiaduzm0 class 1:1000
            + entry shop exit to 2 dev wt-rwiaduzm0 class 1:1000
            + entry shop exit to all dev wt-rwiaduzm0 class 1:1000
        "#]],
    );
}

#[test]
fn a_guarantee_changes_with_what_waits() {
    let mut before = with_gateway(shop(), 0);
    before.shaping = given(40);
    let mut after = before.clone();
    after.shaping = given(60);
    check(
        &state(Some(before)),
        &state(Some(after)),
        expect![[r#"
            + class 1:1000 parent 1:2 rate 60M ceil 100M prio 4
            + class 1:2000 parent 1:3 rate 60M ceil 100M prio 4
        "#]],
    );
}

#[test]
fn a_class_goes_when_nothing_waits_in_it() {
    let after = with_pod(shop(), "wp-a", 1);
    let mut before = after.clone();
    let pod = before.attachments.values_mut().next().unwrap();
    pod.limit = Some("5M".parse().unwrap());
    let (mut before, after) = (state(Some(before)), state(Some(after)));
    before.queued.insert(ClassId(0x3000));
    check(
        &before,
        &after,
        expect![[r#"
            + entry shop route 1+1 dev wp-a
            + entry shop port wp-a index 1
            + entry shop members wp-a 192.168.7.2
            - class 1:4000
        "#]],
    );
    before.queued.clear();
    check(
        &before,
        &after,
        expect![[r#"
            + entry shop route 1+1 dev wp-a
            + entry shop port wp-a index 1
            + entry shop members wp-a 192.168.7.2
            - class 1:4000
            - class 1:3000
        "#]],
    );
}
