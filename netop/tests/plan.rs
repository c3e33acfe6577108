//! Plans as a reviewer reads them: one `check` per situation, from what there is to what there should be.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use expect_test::{Expect, expect};
use slice_crds::{IndexRange, Mac, Subnets, v1alpha1::Broadcast};
use slice_netop::{
    desired::{AttachmentIntent, NodeIntent, SegmentIntent, Uplink, desired},
    model::{Element, Kind, Name, Netns, Queues, Rules, Segment, State, fastpath::Side, filter::HOST_TABLE},
    plan::{Action, diff},
};

/// Node 192.168.7.1 of a slice 10.80.0.0/28, whose other node has the indices 4 and 5.
fn shop() -> SegmentIntent {
    SegmentIntent {
        vni: 77,
        mtu: 1370,
        subnets: Subnets::new(&["10.80.0.0/28".parse().unwrap()]).unwrap(),
        broadcast: Broadcast::default(),
        local: ip("192.168.7.1"),
        remotes: BTreeMap::from([(ip("192.168.7.2"), BTreeSet::from([IndexRange::new(4, 2)]))]),
        taps: BTreeMap::new(),
        uplink: Uplink::None,
        relay: None,
        attachments: BTreeMap::new(),
    }
}

fn with_pod(mut segment: SegmentIntent, port: &str, index: u32) -> SegmentIntent {
    let netns = Netns::new(format!("/run/netns/cni-{port}"));
    segment
        .attachments
        .insert(Name::new(port), AttachmentIntent { index, netns });
    segment
}

fn with_gateway(mut segment: SegmentIntent, ordinal: u32) -> SegmentIntent {
    segment.taps.insert(ordinal, Queues::One);
    segment.uplink = Uplink::Local(ordinal);
    segment.relay = Some(ordinal);
    segment
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn state(segment: Option<SegmentIntent>) -> State {
    node(segment, false)
}

fn fast(segment: Option<SegmentIntent>) -> State {
    node(segment, true)
}

fn node(segment: Option<SegmentIntent>, fast_path: bool) -> State {
    let segments = segment
        .into_iter()
        .map(|segment| ("shop".to_owned(), segment))
        .collect();
    desired(&NodeIntent {
        segments,
        nodes: BTreeSet::from([ip("192.168.7.1"), ip("192.168.7.2")]),
        fast_path,
    })
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
            + table weft_host host
            + element weft_host nodes4 192.168.7.1
            + element weft_host nodes4 192.168.7.2
            + table weft_passage passage
            + table weft_rwiaduzm segment, 1000 broadcasts/s, any protocol
            + element weft_rwiaduzm pods "wp-a"
            + element weft_rwiaduzm macs "wp-a" . 02:5c:00:00:00:01
            + element weft_rwiaduzm sources4 "wp-a" . 10.80.0.1
            + element weft_rwiaduzm sources6 "wp-a" . ::
            + element weft_rwiaduzm sources6 "wp-a" . fe80::5c:ff:fe00:1
            + element weft_rwiaduzm targets "wp-a" . 0xfe80000000000000005c00fffe000001
            + element weft_rwiaduzm exits "wu-rwiaduzm" . 3
            + link wb-rwiaduzm bridge mtu 1370
            + link wx-rwiaduzm vxlan 77 port 14789 local 192.168.7.1 mtu 1370 master wb-rwiaduzm group suppress isolated
            + link wu-rwiaduzm vxlan 77 port 14790 local 192.168.7.1 mtu 1370 master wb-rwiaduzm unknown group suppress isolated
            + link wp-a veth mtu 1370 master wb-rwiaduzm group peer sl-shop mac 02:5c:00:00:00:01 in cni-wp-a
            + fdb 00:00:00:00:00:00 dev wx-rwiaduzm dst 192.168.7.2
            + fdb 02:5c:00:00:00:04 dev wx-rwiaduzm dst 192.168.7.2
            + fdb 02:5c:00:00:00:05 dev wx-rwiaduzm dst 192.168.7.2
            + fdb 02:5c:00:00:00:01 dev wp-a master
            + fdb 02:5c:00:00:00:04 dev wx-rwiaduzm master
            + fdb 02:5c:00:00:00:05 dev wx-rwiaduzm master
            + neighbour 10.80.0.1 is 02:5c:00:00:00:01 dev wb-rwiaduzm
            + neighbour 10.80.0.4 is 02:5c:00:00:00:04 dev wb-rwiaduzm
            + neighbour 10.80.0.5 is 02:5c:00:00:00:05 dev wb-rwiaduzm
            + address 10.80.0.1/28 dev sl-shop in cni-wp-a
            ~ link wb-rwiaduzm up
            ~ link wx-rwiaduzm up
            ~ link wu-rwiaduzm up
            ~ link wp-a up
            ~ link sl-shop up in cni-wp-a
            + route 10.80.0.0/28 dev sl-shop in cni-wp-a
        "#]],
    );
}

#[test]
fn a_pod_comes_behind_its_filter() {
    check(
        &state(Some(shop())),
        &state(Some(with_pod(shop(), "wp-a", 1))),
        expect![[r#"
        + element weft_rwiaduzm pods "wp-a"
        + element weft_rwiaduzm macs "wp-a" . 02:5c:00:00:00:01
        + element weft_rwiaduzm sources4 "wp-a" . 10.80.0.1
        + element weft_rwiaduzm sources6 "wp-a" . ::
        + element weft_rwiaduzm sources6 "wp-a" . fe80::5c:ff:fe00:1
        + element weft_rwiaduzm targets "wp-a" . 0xfe80000000000000005c00fffe000001
        + link wp-a veth mtu 1370 master wb-rwiaduzm group peer sl-shop mac 02:5c:00:00:00:01 in cni-wp-a
        + fdb 02:5c:00:00:00:01 dev wp-a master
        + neighbour 10.80.0.1 is 02:5c:00:00:00:01 dev wb-rwiaduzm
        + address 10.80.0.1/28 dev sl-shop in cni-wp-a
        ~ link wp-a up
        ~ link sl-shop up in cni-wp-a
        + route 10.80.0.0/28 dev sl-shop in cni-wp-a
    "#]],
    );
}

#[test]
fn a_pod_goes_before_its_filter() {
    check(
        &state(Some(with_pod(shop(), "wp-a", 1))),
        &state(Some(shop())),
        expect![[r#"
        - neighbour 10.80.0.1 is 02:5c:00:00:00:01 dev wb-rwiaduzm
        - link wp-a
        - element weft_rwiaduzm pods "wp-a"
        - element weft_rwiaduzm macs "wp-a" . 02:5c:00:00:00:01
        - element weft_rwiaduzm sources4 "wp-a" . 10.80.0.1
        - element weft_rwiaduzm sources6 "wp-a" . ::
        - element weft_rwiaduzm sources6 "wp-a" . fe80::5c:ff:fe00:1
        - element weft_rwiaduzm targets "wp-a" . 0xfe80000000000000005c00fffe000001
    "#]],
    );
}

#[test]
fn a_block_that_moves_is_unreachable_before_it_is_elsewhere() {
    let mut moved = shop();
    let blocks = moved.remotes.remove(&ip("192.168.7.2")).unwrap();
    moved.remotes.insert(ip("192.168.7.3"), blocks);
    check(
        &state(Some(shop())),
        &state(Some(moved)),
        expect![[r#"
        - fdb 00:00:00:00:00:00 dev wx-rwiaduzm dst 192.168.7.2
        - fdb 02:5c:00:00:00:04 dev wx-rwiaduzm dst 192.168.7.2
        - fdb 02:5c:00:00:00:05 dev wx-rwiaduzm dst 192.168.7.2
        + fdb 00:00:00:00:00:00 dev wx-rwiaduzm dst 192.168.7.3
        + fdb 02:5c:00:00:00:04 dev wx-rwiaduzm dst 192.168.7.3
        + fdb 02:5c:00:00:00:05 dev wx-rwiaduzm dst 192.168.7.3
    "#]],
    );
}

#[test]
fn a_node_that_leaves_is_forgotten_by_the_bridge_first() {
    let mut alone = shop();
    alone.remotes.clear();
    check(
        &state(Some(shop())),
        &state(Some(alone)),
        expect![[r#"
        - fdb 02:5c:00:00:00:04 dev wx-rwiaduzm master
        - fdb 02:5c:00:00:00:05 dev wx-rwiaduzm master
        - fdb 00:00:00:00:00:00 dev wx-rwiaduzm dst 192.168.7.2
        - fdb 02:5c:00:00:00:04 dev wx-rwiaduzm dst 192.168.7.2
        - fdb 02:5c:00:00:00:05 dev wx-rwiaduzm dst 192.168.7.2
        - neighbour 10.80.0.4 is 02:5c:00:00:00:04 dev wb-rwiaduzm
        - neighbour 10.80.0.5 is 02:5c:00:00:00:05 dev wb-rwiaduzm
    "#]],
    );
}

#[test]
fn the_way_to_other_clusters_changes_at_one_moment() {
    let mut remote = shop();
    remote.uplink = Uplink::Remote(ip("192.168.7.2"));
    let (remote, first) = (state(Some(remote)), state(Some(with_gateway(shop(), 0))));
    let mut both = with_gateway(shop(), 0);
    both.taps.insert(1, Queues::One);
    let mut second = both.clone();
    second.uplink = Uplink::Local(1);
    let (both, second) = (state(Some(both)), state(Some(second)));
    check(
        &remote,
        &first,
        expect![[r#"
            + element weft_rwiaduzm taps "wt-rwiaduzm0"
            + element weft_rwiaduzm exits "wt-rwiaduzm0" . 4
            + link wt-rwiaduzm0 tap mtu 1370 master wb-rwiaduzm unknown group suppress
            ~ link wt-rwiaduzm0 up
            - element weft_rwiaduzm ways 1 : 3
            + element weft_rwiaduzm ways 1 : 4
            + element weft_rwiaduzm ways 2 : 4
            ~ link wu-rwiaduzm remote none
        "#]],
    );
    check(
        &both,
        &second,
        expect![[r#"
            - element weft_rwiaduzm ways 1 : 4
            + element weft_rwiaduzm ways 1 : 5
        "#]],
    );
    check(
        &first,
        &remote,
        expect![[r#"
            - link wt-rwiaduzm0
            - element weft_rwiaduzm taps "wt-rwiaduzm0"
            - element weft_rwiaduzm exits "wt-rwiaduzm0" . 4
            ~ link wu-rwiaduzm remote 192.168.7.2
            - element weft_rwiaduzm ways 1 : 4
            - element weft_rwiaduzm ways 2 : 4
            + element weft_rwiaduzm ways 1 : 3
        "#]],
    );
}

#[test]
fn a_new_budget_replaces_the_table_in_one_go() {
    let mut strict = with_pod(shop(), "wp-a", 1);
    strict.broadcast = Broadcast {
        frames_per_second: 5,
        non_ip: false,
    };
    check(
        &state(Some(with_pod(shop(), "wp-a", 1))),
        &state(Some(strict)),
        expect![[r#"
            + table weft_rwiaduzm segment, 5 broadcasts/s, IP and ARP only
            + element weft_rwiaduzm pods "wp-a"
            + element weft_rwiaduzm macs "wp-a" . 02:5c:00:00:00:01
            + element weft_rwiaduzm sources4 "wp-a" . 10.80.0.1
            + element weft_rwiaduzm sources6 "wp-a" . ::
            + element weft_rwiaduzm sources6 "wp-a" . fe80::5c:ff:fe00:1
            + element weft_rwiaduzm targets "wp-a" . 0xfe80000000000000005c00fffe000001
            + element weft_rwiaduzm exits "wu-rwiaduzm" . 3
        "#]],
    );
}

#[test]
fn what_cannot_be_changed_is_made_again() {
    let mut other = shop();
    other.vni = 78;
    check(
        &state(Some(shop())),
        &state(Some(other)),
        expect![[r#"
        - link wu-rwiaduzm
        - link wx-rwiaduzm
        + link wx-rwiaduzm vxlan 78 port 14789 local 192.168.7.1 mtu 1370 master wb-rwiaduzm group suppress isolated
        + link wu-rwiaduzm vxlan 78 port 14790 local 192.168.7.1 mtu 1370 master wb-rwiaduzm unknown group suppress isolated
        + fdb 00:00:00:00:00:00 dev wx-rwiaduzm dst 192.168.7.2
        + fdb 02:5c:00:00:00:04 dev wx-rwiaduzm dst 192.168.7.2
        + fdb 02:5c:00:00:00:05 dev wx-rwiaduzm dst 192.168.7.2
        + fdb 02:5c:00:00:00:04 dev wx-rwiaduzm master
        + fdb 02:5c:00:00:00:05 dev wx-rwiaduzm master
        ~ link wx-rwiaduzm up
        ~ link wu-rwiaduzm up
    "#]],
    );
    let mut foreign = state(Some(shop()));
    foreign
        .links
        .get_mut(&Segment::of_slice("shop").bridge())
        .unwrap()
        .kind = Kind::Foreign;
    foreign.fdb.clear();
    foreign.neighbours.clear();
    let mut bare = shop();
    bare.remotes.clear();
    check(
        &foreign,
        &state(Some(bare)),
        expect![[r#"
        - link wb-rwiaduzm
        + link wb-rwiaduzm bridge mtu 1370
        ~ link wu-rwiaduzm master wb-rwiaduzm unknown group suppress isolated
        ~ link wx-rwiaduzm master wb-rwiaduzm group suppress isolated
        ~ link wb-rwiaduzm up
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
            + link wt-rwiaduzm0 tap multi_queue mtu 1370 master wb-rwiaduzm unknown group suppress
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
        + link wp-a veth mtu 1370 master wb-rwiaduzm group peer sl-shop mac 02:5c:00:00:00:01 in cni-new
        + fdb 02:5c:00:00:00:01 dev wp-a master
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
        - fdb 02:5c:00:00:00:01 dev wp-a master
        - neighbour 10.80.0.1 is 02:5c:00:00:00:01 dev wb-rwiaduzm
        + element weft_rwiaduzm macs "wp-a" . 02:5c:00:00:00:02
        + element weft_rwiaduzm sources4 "wp-a" . 10.80.0.2
        + element weft_rwiaduzm sources6 "wp-a" . fe80::5c:ff:fe00:2
        + element weft_rwiaduzm targets "wp-a" . 0xfe80000000000000005c00fffe000002
        - element weft_rwiaduzm macs "wp-a" . 02:5c:00:00:00:01
        - element weft_rwiaduzm sources4 "wp-a" . 10.80.0.1
        - element weft_rwiaduzm sources6 "wp-a" . fe80::5c:ff:fe00:1
        - element weft_rwiaduzm targets "wp-a" . 0xfe80000000000000005c00fffe000001
        + fdb 02:5c:00:00:00:02 dev wp-a master
        + neighbour 10.80.0.2 is 02:5c:00:00:00:02 dev wb-rwiaduzm
        ~ link sl-shop mac 02:5c:00:00:00:02 in cni-wp-a
        - address 10.80.0.1/28 dev sl-shop in cni-wp-a
        + address 10.80.0.2/28 dev sl-shop in cni-wp-a
    "#]],
    );
}

#[test]
fn nothing_is_left_of_a_slice_that_ends() {
    let mut seen = state(Some(with_gateway(with_pod(shop(), "wp-a", 1), 0)));
    seen.tables
        .get_mut(&Name::new(HOST_TABLE))
        .unwrap()
        .elements
        .insert(Element::Node(ip("10.0.0.9")));
    check(
        &seen,
        &state(None),
        expect![[r#"
            - link wp-a
            - link wt-rwiaduzm0
            - link wu-rwiaduzm
            - link wx-rwiaduzm
            - link wb-rwiaduzm
            - table weft_host
            - table weft_passage
            - table weft_rwiaduzm
        "#]],
    );
}

/// A pod, the gateway of its node, and another node's block.
fn busy() -> SegmentIntent {
    with_gateway(with_pod(shop(), "wp-a", 1), 0)
}

#[test]
fn the_fast_path_opens_last() {
    check(
        &state(Some(busy())),
        &fast(Some(busy())),
        expect![[r#"
            + table weft_rwiaduzm_fastpath fast path
            + element weft_rwiaduzm_fastpath hooks "wp-a" from_pod
            + element weft_rwiaduzm_fastpath hooks "wt-rwiaduzm0" from_gateway
            + element weft_rwiaduzm_fastpath senders4 "wp-a" . 02:5c:00:00:00:01 . 10.80.0.1
            + element weft_rwiaduzm_fastpath places 02:5c:00:00:00:01 : "wp-a"
            + element weft_rwiaduzm_fastpath blocks 02:5c:00:00:00:04-02:5c:00:00:00:05 : "wx-rwiaduzm"
            + element weft_rwiaduzm_fastpath others ip : "wt-rwiaduzm0"
            + element weft_rwiaduzm_fastpath others ip6 : "wt-rwiaduzm0"
        "#]],
    );
}

#[test]
fn while_the_way_to_other_clusters_changes_the_bridge_has_it() {
    let mut elsewhere = busy();
    elsewhere.uplink = Uplink::Remote(ip("192.168.7.2"));
    check(
        &fast(Some(busy())),
        &fast(Some(elsewhere)),
        expect![[r#"
            - element weft_rwiaduzm_fastpath others ip : "wt-rwiaduzm0"
            - element weft_rwiaduzm_fastpath others ip6 : "wt-rwiaduzm0"
            ~ link wu-rwiaduzm remote 192.168.7.2
            - element weft_rwiaduzm ways 1 : 4
            + element weft_rwiaduzm ways 1 : 3
            + element weft_rwiaduzm_fastpath others ip : "wu-rwiaduzm"
            + element weft_rwiaduzm_fastpath others ip6 : "wu-rwiaduzm"
        "#]],
    );
}

#[test]
fn the_fast_path_does_not_lead_where_nothing_is() {
    let mut seen = fast(Some(with_pod(busy(), "wp-b", 2)));
    let (a, b) = (Name::new("wp-a"), Name::new("wp-b"));
    seen.take(&Action::DelLink(a.clone()));
    // The kernel forgets the name of an interface that is gone, and may forget the chain.
    let places = &mut seen
        .tables
        .get_mut(&Segment::of_slice("shop").fast_path())
        .unwrap()
        .elements;
    places.remove(&Element::Place(Mac::of_index(1), a));
    places.insert(Element::Place(Mac::of_index(1), Name::new("17")));
    places.remove(&Element::Hook(b, Side::Pod));
    check(
        &seen,
        &fast(Some(busy())),
        expect![[r#"
        - element weft_rwiaduzm_fastpath hooks "wp-a" from_pod
        - element weft_rwiaduzm_fastpath senders4 "wp-b" . 02:5c:00:00:00:02 . 10.80.0.2
        - element weft_rwiaduzm_fastpath places 02:5c:00:00:00:01 : "17"
        - element weft_rwiaduzm_fastpath places 02:5c:00:00:00:02 : "wp-b"
        - neighbour 10.80.0.2 is 02:5c:00:00:00:02 dev wb-rwiaduzm
        - link wp-b
        - element weft_rwiaduzm pods "wp-b"
        - element weft_rwiaduzm macs "wp-b" . 02:5c:00:00:00:02
        - element weft_rwiaduzm sources4 "wp-b" . 10.80.0.2
        - element weft_rwiaduzm sources6 "wp-b" . ::
        - element weft_rwiaduzm sources6 "wp-b" . fe80::5c:ff:fe00:2
        - element weft_rwiaduzm targets "wp-b" . 0xfe80000000000000005c00fffe000002
        + link wp-a veth mtu 1370 master wb-rwiaduzm group peer sl-shop mac 02:5c:00:00:00:01 in cni-wp-a
        + fdb 02:5c:00:00:00:01 dev wp-a master
        + address 10.80.0.1/28 dev sl-shop in cni-wp-a
        ~ link wp-a up
        ~ link sl-shop up in cni-wp-a
        + route 10.80.0.0/28 dev sl-shop in cni-wp-a
        + element weft_rwiaduzm_fastpath hooks "wp-a" from_pod
        + element weft_rwiaduzm_fastpath places 02:5c:00:00:00:01 : "wp-a"
    "#]],
    );
}

#[test]
fn nothing_is_left_of_a_fast_path_that_somebody_changed() {
    let mut seen = fast(Some(busy()));
    let table = Segment::of_slice("shop").fast_path();
    seen.tables.get_mut(&table).unwrap().rules = Rules::Altered;
    check(
        &seen,
        &state(Some(busy())),
        expect![[r#"
        - table weft_rwiaduzm_fastpath
    "#]],
    );
}
