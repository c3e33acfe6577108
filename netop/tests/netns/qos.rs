//! Who gets how much of what, on a real kernel: rates are those of frames, from the Ethernet header on.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use slice_crds::{Mac, Rate, v1alpha1::Shaping};
use slice_netop::{
    kernel::{Kernel, Linux},
    model::{Class, ClassId, Name},
};

use crate::support::{
    Background, Cluster, MARK, Pod, Space, Tap, Wire, ethernet, marked, paced, slice, udp4_between,
};

const PORT: u16 = 5001;
/// Bytes of the datagrams of a flood.
const PAYLOAD: usize = 1200;
/// With the headers of UDP, IPv4 and Ethernet.
const FRAME: usize = PAYLOAD + 8 + 20 + 14;
/// An index of the other cluster.
const FAR: u32 = 0x4000;
/// Until queues are full and rates steady.
const SETTLE: Duration = Duration::from_millis(700);
const MEASURED: Duration = Duration::from_secs(2);

fn given(guaranteed: Option<u32>, ceiling: Option<u32>, priority: u8) -> Option<Shaping> {
    Some(Shaping {
        guaranteed_mbps: guaranteed,
        ceiling_mbps: ceiling,
        priority,
    })
}

fn address(index: u32) -> IpAddr {
    slice(1).1.ipv4(index).unwrap().into()
}

fn socket(space: &Space) -> UdpSocket {
    let socket = space.run(|| UdpSocket::bind(("0.0.0.0", PORT)));
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

/// As many datagrams as would be so many Mbit/s.
fn flood(from: &Space, to: IpAddr, mbps: u32) -> Background<()> {
    let socket = from.run(|| UdpSocket::bind(("0.0.0.0", 0)));
    let per_second = mbps * 1_000_000 / 8 / FRAME as u32;
    Background::start(move |stop| {
        let to = SocketAddr::new(to, PORT);
        paced(per_second, stop, |_| _ = socket.send_to(&[7; PAYLOAD], to));
    })
}

/// Mbit/s of frames that `receive` counts.
fn measure(mut receive: impl FnMut() -> usize) -> f64 {
    let settled = Instant::now() + SETTLE;
    while Instant::now() < settled {
        receive();
    }
    let begun = Instant::now();
    let mut frames = 0;
    while begun.elapsed() < MEASURED {
        frames += receive();
    }
    frames as f64 * FRAME as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e6
}

fn received(socket: &UdpSocket) -> usize {
    usize::from(socket.recv(&mut [0; 2048]).is_ok())
}

#[track_caller]
fn is_near(what: &str, seen: f64, wanted: f64) {
    let error = (seen - wanted) / wanted * 100.0;
    assert!(
        error.abs() <= 5.0,
        "{what}: {seen:.1} Mbit/s, {wanted} wanted ({error:+.1} %)"
    );
}

/// Three slices with a pod and a gateway each on one node, whose uplink is 100 Mbit/s.
async fn three_slices(given: [Option<Shaping>; 3]) -> (Cluster, Vec<Pod>, Vec<Tap>) {
    let mut cluster = Cluster::new(1);
    let names = ["gold", "silver", "bronze"];
    let (mut pods, mut taps) = (vec![], vec![]);
    for (vni, (name, given)) in (77..).zip(names.into_iter().zip(given)) {
        cluster.add_slice(name, slice(vni));
        cluster.nodes[0].segment(name).shaping = given;
        pods.push(cluster.add_pod(name, 0, 0));
    }
    cluster.nodes[0].intent.uplink = Some(Rate::from_mbps(100));
    for name in names {
        taps.push(cluster.add_gateway(name, 0).await);
    }
    (cluster, pods, taps)
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_get_what_they_are_given_toward_other_clusters() {
    let all = [given(Some(50), Some(60), 1), given(Some(20), Some(30), 1), None];
    let (_cluster, pods, taps) = three_slices(all).await;
    let _floods: Vec<_> = pods
        .iter()
        .map(|pod| flood(&pod.space, address(FAR), 120))
        .collect();
    let receivers: Vec<_> = taps
        .into_iter()
        .map(|tap| thread::spawn(move || measure(|| tap.collect(Duration::from_millis(20)).len())))
        .collect();
    let rates: Vec<f64> = receivers
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    is_near("up to its ceiling", rates[0], 60.0);
    is_near("the same with less", rates[1], 30.0);
    is_near("who is given nothing has the rest", rates[2], 10.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_in_order_gets_what_is_left_and_guarantees_hold() {
    let all = [given(Some(20), None, 7), given(Some(30), None, 0), None];
    let (_cluster, pods, taps) = three_slices(all).await;
    let sockets: Vec<UdpSocket> = pods.iter().map(|pod| socket(&pod.space)).collect();
    let payload = [7; PAYLOAD];
    let _floods: Vec<_> = (taps.into_iter().zip(&pods))
        .map(|(tap, pod)| {
            let from = (Mac::of_index(FAR), address(FAR));
            let frame = udp4_between(pod.mac(), from, pod.v4(), (PORT, PORT), &payload);
            Background::start(move |stop| {
                paced(12_000, stop, |_| tap.send(&frame));
            })
        })
        .collect();
    let receivers: Vec<_> = sockets
        .into_iter()
        .map(|socket| thread::spawn(move || measure(|| received(&socket))))
        .collect();
    let rates: Vec<f64> = receivers
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    is_near("its guarantee and all that is left", rates[0], 70.0);
    is_near("its guarantee", rates[1], 30.0);
    assert!(rates[2] < 1.0, "nothing is left: {:.2} Mbit/s", rates[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_is_limited_both_ways() {
    let mut cluster = Cluster::new(1);
    cluster.add_slice("shop", slice(77));
    let pods = [0, 1].map(|nth| cluster.add_pod("shop", 0, nth));
    let limited = cluster.nodes[0]
        .segment("shop")
        .attachments
        .get_mut(&pods[0].port);
    // Not a whole number of bytes a second, as the kernel counts.
    limited.unwrap().limit = Some(Rate(20_000_001));
    cluster.sync().await;
    for (from, to) in [(0, 1), (1, 0)] {
        let socket = socket(&pods[to].space);
        let _flood = flood(&pods[from].space, pods[to].v4(), 60);
        is_near("what it sends and gets", measure(|| received(&socket)), 20.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_all_passes_the_shaper_once() {
    let all = [given(Some(20), None, 7), None, None];
    let (mut cluster, _pods, taps) = three_slices(all).await;
    let pods = [1, 2, 3].map(|nth| cluster.add_pod("gold", 0, nth));
    for pod in &pods[..2] {
        let limited = cluster.nodes[0].segment("gold").attachments.get_mut(&pod.port);
        limited.unwrap().limit = Some(Rate::from_mbps(20));
    }
    cluster.sync().await;
    let wires: Vec<Wire> = pods
        .iter()
        .map(|pod| Wire::open(&pod.space, &pod.interface()))
        .collect();
    for (sender, pod) in pods.iter().enumerate() {
        wires[sender].send(&ethernet(Mac::BROADCAST, pod.mac(), 0x88b5, MARK));
        assert_eq!(marked(&taps[0].collect(Duration::from_millis(300))), 1);
        for (receiver, wire) in wires.iter().enumerate() {
            let seen = marked(&wire.collect(Duration::from_millis(50)));
            assert_eq!(
                seen,
                usize::from(sender != receiver),
                "from {sender} at {receiver}"
            );
        }
    }
    taps[0].send(&ethernet(Mac::BROADCAST, Mac::of_index(FAR), 0x88b5, MARK));
    for wire in &wires {
        assert_eq!(marked(&wire.collect(Duration::from_millis(300))), 1);
    }
    assert_eq!(
        marked(&taps[0].collect(Duration::from_millis(50))),
        0,
        "it came back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_changes_and_no_frame_is_lost() {
    let (mut cluster, pods, taps) = three_slices([None; 3]).await;
    let far = address(FAR);
    let socket = pods[0].space.run(|| UdpSocket::bind(("0.0.0.0", 0)));
    let sender = Background::start(move |stop| {
        paced(2000, stop, |number| {
            let datagram = [&number.to_be_bytes()[..], &[7; 300]].concat();
            socket.send_to(&datagram, SocketAddr::new(far, PORT)).unwrap();
        })
    });
    let mut taps = taps.into_iter();
    let tap = taps.next().unwrap();
    let receiver = Background::start(move |stop| {
        let mut numbers = vec![];
        while !stop.load(Ordering::Relaxed) {
            for frame in tap.collect(Duration::from_millis(50)) {
                // Ethernet, IPv4, UDP.
                if let Some(number) = frame.get(42..46).filter(|_| frame.len() > 300) {
                    numbers.push(u32::from_be_bytes(number.try_into().unwrap()));
                }
            }
        }
        numbers
    });
    let steps: [(Option<Shaping>, Option<u32>); 8] = [
        (given(Some(20), Some(40), 3), None),
        (given(Some(10), Some(80), 7), Some(30)),
        (None, Some(50)),
        (given(None, Some(30), 0), None),
        (None, None),
        (given(Some(20), None, 1), Some(40)),
        (given(Some(20), None, 1), None),
        (None, None),
    ];
    for (shaping, limit) in steps {
        for restart in [false, true] {
            if restart {
                let path = cluster.nodes[0].space.path();
                cluster.nodes[0].kernel = Linux::open(Some(&path)).unwrap();
            }
            let segment = cluster.nodes[0].segment("gold");
            segment.shaping = shaping;
            let attachment = segment.attachments.values_mut().next().unwrap();
            attachment.limit = limit.map(Rate::from_mbps);
            cluster.nodes[0].sync().await;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
    cluster.sync().await;
    let left = cluster.nodes[0].observe().await.state.classes;
    assert!(left.is_empty(), "{left:?}");
    let sent = sender.end();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut numbers = receiver.end();
    let disorder = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count();
    numbers.sort_unstable();
    let twice = numbers.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert_eq!((numbers.len(), twice), (sent as usize, 0), "of {sent} datagrams");
    assert!(sent > 4000 && disorder < 20, "{disorder} of {sent} out of order");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_changes_in_the_shaper_is_put_right() {
    let all = [given(Some(20), Some(2_000), 7), None, None];
    let (mut cluster, _pods, _taps) = three_slices(all).await;
    let node = &mut cluster.nodes[0];
    let before = node.observe().await.state.classes;
    assert!(before.len() > 2);
    for damage in [
        "qdisc del dev wq-shaper root",
        "class change dev wq-shaper parent 1:2 classid 1:1000 htb rate 1mbit",
        "class add dev wq-shaper parent 1: classid 1:99 htb rate 1mbit",
        "class add dev wq-shaper parent 1: classid 1:1fff htb rate 1mbit",
        "class del dev wq-shaper classid 1:1001",
        "filter del dev wr-shaper ingress",
    ] {
        node.space.command("tc", damage).unwrap();
        let plan = node.sync().await;
        assert_ne!(plan.to_string(), "", "{damage} is noticed");
        assert_eq!(node.observe().await.state.classes, before, "{damage}");
        assert_eq!(node.plan().await.to_string(), "", "{damage}");
    }
    for damage in [
        "link del wr-shaper",
        "link set wr-shaper down",
        "link set wq-shaper mtu 1400",
    ] {
        node.space.ip(damage);
        node.sync().await;
        assert_eq!(node.observe().await.state.classes, before, "{damage}");
        assert_eq!(node.plan().await.to_string(), "", "{damage}");
    }
    let rate = |id: ClassId, classes: &std::collections::BTreeMap<ClassId, Class>| classes[&id].rate;
    assert_eq!(rate(ClassId::EGRESS, &before), Rate::from_mbps(100));
    let name = Name::shaper();
    assert_eq!(node.observe().await.state.shaper, Some(name));
    assert!(!node.kernel.carried().await.unwrap().is_empty());
}
