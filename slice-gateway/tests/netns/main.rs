//! The real process on the real kernel. Needs root, makes its own namespaces and removes them.

#![expect(clippy::unwrap_used, reason = "a helper that fails should fail its test")]
#![expect(clippy::print_stdout, reason = "shown with a test that fails")]

mod farm;
mod flood;
mod interop;
mod lab;
mod path_mtu;
mod stall;
mod traffic;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use lab::{Lab, MTU, Underlay, eventually, index, packet_socket, v4, v6, within};
use slice_frame::Mac;
use socket2::SockRef;
use traffic::{Pinger, frame, receive_all};

const ODD: u16 = 0x88b5;
/// Nobody waits longer for the next bytes of a stream.
const SILENCE: Duration = Duration::from_secs(10);
const MARKER: &[u8] = b"the crown jewels of the slice";

/// Sends `bytes` over TCP from one pod to another's address in the slice and checks that they arrive.
fn transfer(lab: &Lab, from: &str, to: (&str, IpAddr), bytes: usize) -> Duration {
    transfer_over(lab, from, to, MTU, bytes)
}

/// The same over an interface with that MTU.
fn transfer_over(lab: &Lab, from: &str, to: (&str, IpAddr), mtu: u16, bytes: usize) -> Duration {
    let (mss, took) = send_over_tcp(lab, from, to, bytes);
    let expected_mss = u32::from(mtu) - if to.1.is_ipv4() { 40 } else { 60 } - 12;
    assert_eq!(mss, expected_mss, "segments fill the MTU");
    took
}

/// The same whatever the size of its segments, which comes back with the time.
fn send_over_tcp(lab: &Lab, from: &str, to: (&str, IpAddr), bytes: usize) -> (u32, Duration) {
    let payload: Vec<u8> = MARKER.iter().copied().cycle().take(bytes).collect();
    let listener = within(&lab.at(to.0), || TcpListener::bind((to.1, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let expected = payload.clone();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received == expected
    });
    let start = Instant::now();
    let mut stream = within(&lab.at(from), || TcpStream::connect(address).unwrap());
    stream.write_all(&payload).unwrap();
    let mss = SockRef::from(&stream).tcp_mss().unwrap();
    drop(stream);
    assert!(receiver.join().unwrap(), "{bytes} bytes arrive unchanged");
    (mss, start.elapsed())
}

fn addresses(cluster: char, pod: u32) -> [IpAddr; 2] {
    [v4(index(cluster, pod)).into(), v6(index(cluster, pod)).into()]
}

fn check_everything_crosses(lab: &Lab) {
    for to in addresses('b', 1) {
        within(&lab.at("a-pod0"), || Pinger::new(to)).ping("a pod of the other cluster answers");
        transfer(lab, "a-pod0", ("b-pod1", to), 1 << 20);
    }
    for from in addresses('a', 0) {
        within(&lab.at("b-pod0"), || Pinger::new(from)).ping("and the other way");
    }
}

#[test]
fn pods_of_two_clusters_talk_over_ipv4() {
    check_everything_crosses(&Lab::new(&[1, 1], Underlay::V4));
}

#[test]
fn pods_of_two_clusters_talk_over_ipv6() {
    check_everything_crosses(&Lab::new(&[1, 1], Underlay::V6));
}

#[test]
fn pods_of_three_clusters_with_several_gateways_talk() {
    let lab = Lab::new(&[2, 1, 2], Underlay::V4);
    check_everything_crosses(&lab);
    for to in addresses('c', 0) {
        within(&lab.at("b-pod0"), || Pinger::new(to)).ping("each cluster reaches each");
    }
}

#[test]
fn only_wireguard_is_on_the_wire() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    lab.plain_wire();
    let capture = lab.capture();
    transfer(&lab, "a-pod0", ("b-pod0", addresses('b', 0)[0]), 1 << 20);
    transfer(&lab, "b-pod0", ("a-pod0", addresses('a', 0)[1]), 1 << 20);
    within(&lab.at("a-pod0"), || Pinger::new(addresses('b', 0)[0])).ping("a small packet too");
    let frames = capture.finish();
    assert!(frames.len() > 1500, "only {} frames were seen", frames.len());
    for frame in &frames {
        assert!(
            !frame.windows(MARKER.len()).any(|bytes| bytes == MARKER),
            "plaintext on the wire"
        );
        assert!(frame.len() <= 1514, "a frame of {} bytes", frame.len());
        if frame[12..14] == [0x08, 0x06] {
            continue;
        }
        assert_eq!(frame[12..14], [0x08, 0x00], "only IPv4 and ARP");
        assert_eq!(frame[23], 17, "only UDP");
        assert_eq!(frame[20] & 0x3f, 0, "no fragments");
        assert_eq!(frame[15] >> 2, 10, "the slice's code point");
        assert!(
            (1..=4).contains(&frame[42]) && frame[43..46] == [0, 0, 0],
            "only WireGuard"
        );
    }
    let longest = frames.iter().map(Vec::len).max().unwrap();
    assert_eq!(
        longest,
        14 + 20 + 8 + 32 + 36 + 14 + usize::from(MTU),
        "full packets are full on the wire"
    );
}

#[test]
fn any_ethertype_crosses() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    let receiver = within(&lab.at("b-pod1"), || packet_socket(Some("slice0"), ODD));
    let sent = frame(index('a', 0), Mac::of_index(index('b', 1)), ODD, b"what am I?");
    within(&lab.at("a-pod0"), || packet_socket(Some("slice0"), ODD))
        .send(&sent)
        .unwrap();
    let received = receive_all(&receiver, 1);
    assert_eq!(received[0][..sent.len()], sent);
}

#[test]
fn super_frames_cross_as_the_datagrams_that_they_are() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    for gateway in ["a-gw0", "b-gw0"] {
        let level = lab.report(gateway).data_path.unwrap().tap_offload;
        assert!(["udp", "tunnel"].contains(&level.as_str()), "{gateway}: {level}");
    }
    for (from, to) in addresses('a', 0).into_iter().zip(addresses('b', 0)) {
        let receiver = within(&lab.at("b-pod0"), || UdpSocket::bind((to, 0)).unwrap());
        let sender = within(&lab.at("a-pod0"), || UdpSocket::bind((from, 0)).unwrap());
        // Before the neighbour is known the kernel queues a few packets only.
        sender.send_to(b"hello", receiver.local_addr().unwrap()).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = vec![0; 70_000];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 5);
        let payload: Vec<u8> = (0..20_500u32).map(|n| (n / 1000) as u8).collect();
        nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::UdpGsoSegment, &1000).unwrap();
        sender.send_to(&payload, receiver.local_addr().unwrap()).unwrap();
        for n in 0..21u8 {
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(length, if n < 20 { 1000 } else { 500 });
            assert!(buffer[..length].iter().all(|byte| *byte == n), "datagram {n}");
        }
    }
}

/// Pods make a VXLAN in the slice and send super-frames through it.
#[test]
fn what_is_in_a_tunnel_of_the_pods_own_crosses_as_the_segments_that_it_is() {
    const BYTES: usize = 8 << 20;
    let lab = Lab::new(&[1, 1], Underlay::V4);
    let whole = lab.report("a-gw0").data_path.unwrap().tap_offload == "tunnel";
    let read = || -> u64 {
        let metrics = lab.admin("a-gw0", "/metrics");
        let mut lines = metrics.lines();
        let line =
            lines.find_map(|line| line.strip_prefix("weft_gateway_tap_frames_read_total{slice=\"shop\"} "));
        line.unwrap().parse().unwrap()
    };
    for (family, headers, options) in [
        (0, 50, "udpcsum"),
        (0, 50, "noudpcsum"),
        (1, 70, "udpcsum"),
        (1, 70, "udp6zerocsumtx udp6zerocsumrx"),
    ] {
        let mtu = MTU - headers;
        let ends = [('a', 'b', 1), ('b', 'a', 2)];
        for (own, other, host) in ends {
            let (pod, local) = (format!("{own}-pod0"), addresses(own, 0)[family]);
            let remote = addresses(other, 0)[family];
            let device = format!("vx0 mtu {mtu} type vxlan id 9 dstport 5555 dev slice0");
            lab.ip_in(
                &pod,
                &format!("link add {device} local {local} remote {remote} {options}"),
            );
            lab.ip_in(&pod, &format!("address add 192.168.99.{host}/24 dev vx0"));
            lab.ip_in(&pod, &format!("address add fd99::{host}/64 dev vx0 nodad"));
            lab.ip_in(&pod, "link set vx0 up");
        }
        for to in ["192.168.99.2", "fd99::2"].map(|to| to.parse::<IpAddr>().unwrap()) {
            within(&lab.at("a-pod0"), || Pinger::new(to)).ping("through the tunnel in the slice");
            let before = read();
            transfer_over(&lab, "a-pod0", ("b-pod0", to), mtu, BYTES);
            let frames = eventually("the gateway counts the frames", || {
                Some(read() - before).filter(|frames| *frames >= (BYTES >> 16) as u64)
            });
            let segments = BYTES / usize::from(mtu);
            assert!(
                !whole || frames < segments as u64 / 3,
                "{options}, {to}: {frames} frames for {segments} segments"
            );
        }
        for pod in ["a-pod0", "b-pod0"] {
            lab.ip_in(pod, "link delete vx0");
        }
    }
    let metrics = lab.admin("a-gw0", "/metrics");
    assert!(!metrics.contains("reason=\"bad_offload\""), "{metrics}");
}

#[test]
fn broadcast_and_multicast_arrive_once_at_everybody() {
    let lab = Lab::new(&[2, 3, 1], Underlay::V4);
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let pods: Vec<_> = ['a', 'b', 'c']
        .iter()
        .flat_map(|c| [format!("{c}-pod0"), format!("{c}-pod1")])
        .collect();
    let sockets: Vec<_> = pods
        .iter()
        .map(|pod| {
            within(&lab.at(pod), || {
                let socket = UdpSocket::bind("0.0.0.0:4000").unwrap();
                let interface = nix::net::if_::if_nametoindex("slice0").unwrap();
                SockRef::from(&socket)
                    .join_multicast_v4_n(&group, &socket2::InterfaceIndexOrAddress::Index(interface))
                    .unwrap();
                nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20))
                    .unwrap();
                socket.set_broadcast(true).unwrap();
                socket.set_multicast_loop_v4(false).unwrap();
                socket
            })
        })
        .collect();
    for (n, to) in [Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 80, 255, 255), group]
        .into_iter()
        .enumerate()
    {
        for (sender, from) in sockets.iter().zip(&pods) {
            // Limited broadcast leaves by the interface of the bound device.
            SockRef::from(sender).bind_device(Some(b"slice0")).unwrap();
            for repeat in 0..20u8 {
                let text = format!("{n} {from} {repeat}");
                sender.send_to(text.as_bytes(), (to, 4000)).unwrap();
            }
        }
    }
    // Each of 6 pods sent 60; a sender hears its own broadcasts from its own stack at most, never from the wire.
    for (socket, pod) in sockets.iter().zip(&pods) {
        let others = 5 * 60;
        let mut heard = BTreeMap::new();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut buffer = [0; 100];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if !text.contains(pod.as_str()) {
                *heard.entry(text).or_insert(0) += 1;
                assert!(
                    matches!(from, SocketAddr::V4(from) if from.ip().octets()[..2] == [10, 80]),
                    "{from}"
                );
            }
        }
        let twice: Vec<_> = heard.iter().filter(|(_, count)| **count != 1).collect();
        assert!(twice.is_empty(), "{pod} heard {twice:?} more than once");
        assert_eq!(heard.len(), others, "{pod} heard all");
    }
}

#[test]
fn the_process_has_no_privilege_and_says_that_it_is_ready() {
    let mut lab = Lab::new(&[1, 1], Underlay::V4);
    for pid in lab.pids() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in [
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "Uid:\t65532\t65532\t65532\t65532",
        ] {
            assert!(
                status.lines().any(|found| found == line),
                "{line} is not in\n{status}"
            );
        }
    }
    assert!(lab.admin("a-gw0", "/readyz").starts_with("HTTP/1.1 200"));
    within(&lab.at("a-pod0"), || Pinger::new(addresses('b', 0)[0])).ping("traffic to count");
    let metrics = eventually("the frames are counted", || {
        let metrics = lab.admin("a-gw0", "/metrics");
        let sent = metrics
            .lines()
            .find(|line| line.starts_with("weft_gateway_sent_frames_total{"))?;
        (!sent.ends_with(" 0")).then_some(metrics)
    });
    assert!(
        metrics.contains(r#"weft_gateway_tunnel_up{peer="b/0",peer_cluster="b",slice="shop"} 1"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"weft_gateway_udp_receive_buffer_bytes{slice="shop"} 25165824"#),
        "{metrics}"
    );
    assert!(metrics.contains("\nprocess_cpu_seconds_total "), "{metrics}");
    eventually("round trips and losses are counted", || {
        let metrics = lab.admin("a-gw0", "/metrics");
        let counted = |name: &str| {
            let start = format!("weft_gateway_{name}_count{{");
            let line = metrics.lines().find(|line| line.starts_with(&start))?;
            line.rsplit(' ')
                .next()?
                .parse::<u64>()
                .ok()
                .filter(|count| *count > 0)
        };
        counted("tap_read_batch_frames")?;
        counted("probe_rtt_seconds")?;
        counted("probe_loss_ratio")
    });
    let rtt = eventually("the tunnel is measured", || {
        lab.report("a-gw0").tunnels[0].rtt_micros
    });
    assert!(rtt < 100_000, "{rtt} µs");
    assert!(lab.terminate("a-gw0"), "SIGTERM ends it well");
}

#[test]
fn traffic_survives_a_restart_of_the_node_agent() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    let mut pinger = within(&lab.at("a-pod0"), || Pinger::new(addresses('b', 0)[0]));
    pinger.ping("before");
    let hello = lab.hang_up("a-gw0");
    assert!(hello.has_tap, "it still holds the TAP");
    pinger.ping("after");
    assert_eq!(pinger.lost(), 0);
}

#[test]
fn a_gateway_that_was_killed_comes_back_with_a_new_key() {
    let mut lab = Lab::new(&[1, 2], Underlay::V4);
    let mut pinger = within(&lab.at("a-pod0"), || Pinger::new(addresses('b', 0)[0]));
    pinger.ping("before");
    lab.kill("b-gw0");
    lab.kill("b-gw1");
    lab.start("b-gw0");
    lab.start("b-gw1");
    lab.settle();
    pinger.ping("after");
}

#[test]
fn keys_change_under_load_without_a_loss() {
    let lab = Lab::new(&[1, 2], Underlay::V4);
    check_nothing_is_lost(&lab, 1, || (0..3).for_each(|_| lab.renew_keys()));
}

/// Two thousand datagrams a second cross, of so many flows, while `act` runs: each must arrive once, and those of a
/// flow in order.
fn check_nothing_is_lost(lab: &Lab, flows: usize, act: impl FnOnce()) {
    let to = addresses('b', 0)[0];
    let receiver = within(&lab.at("b-pod0"), || UdpSocket::bind((to, 4000)).unwrap());
    receiver
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let senders: Vec<UdpSocket> = (0..flows)
        .map(|_| within(&lab.at("a-pod0"), || UdpSocket::bind("0.0.0.0:0").unwrap()))
        .collect();
    let (stop, stopping) = std::sync::mpsc::channel::<()>();
    let sending = thread::spawn(move || {
        let mut number = 0u32;
        while stopping.recv_timeout(Duration::from_micros(500)).is_err() {
            let sender = &senders[number as usize % flows];
            sender.send_to(&number.to_be_bytes(), (to, 4000)).unwrap();
            number += 1;
        }
        number
    });
    let receiving = thread::spawn(move || {
        let (mut arrived, mut buffer) = (vec![Vec::new(); flows], [0; 4]);
        while receiver.recv(&mut buffer).is_ok() {
            let number = u32::from_be_bytes(buffer);
            arrived[number as usize % flows].push(number);
        }
        arrived
    });
    act();
    stop.send(()).unwrap();
    let (sent, arrived) = (sending.join().unwrap(), receiving.join().unwrap());
    for (first, arrived) in (0..).zip(arrived) {
        let expected: Vec<u32> = (first..sent).step_by(flows).collect();
        assert_eq!(arrived, expected, "each once and in order");
    }
}

/// A lane each way between every two gateways is a conversation of its own on the wire.
#[test]
fn several_threads_share_the_flows() {
    let mut lab = Lab::with_threads(&[1, 2], Underlay::V4, 3);
    check_everything_crosses(&lab);
    let metrics = lab.admin("b-gw1", "/metrics");
    for line in ["weft_gateway_threads{", "weft_gateway_tap_queues{"] {
        let line = metrics.lines().find(|found| found.starts_with(line)).unwrap();
        assert!(line.ends_with(" 3"), "{line}");
    }
    let capture = lab.capture();
    check_nothing_is_lost(&lab, 48, || lab.renew_keys());
    let mut conversations = BTreeMap::new();
    for frame in capture.finish() {
        // Data in IPv4, with a frame in it: probes are shorter.
        if frame[12..14] == [0x08, 0x00] && frame[42] == 4 && frame.len() > 130 {
            // Addresses and ports.
            *conversations.entry(frame[26..38].to_vec()).or_insert(0) += 1;
        }
    }
    assert!(conversations.len() >= 6, "{conversations:?}");
    assert!(lab.hang_up("a-gw0").has_tap);
    lab.ip_in("a-node", "link delete tap0");
    lab.remake_tap("a-gw0");
    within(&lab.at("a-pod0"), || Pinger::new(addresses('b', 0)[0])).ping("through the new device");
    assert!(
        lab.terminate("b-gw0"),
        "it ends when all lanes have nothing to carry"
    );
    check_nothing_is_lost(&lab, 12, || {
        within(&lab.at("a-pod0"), || Pinger::new(addresses('b', 1)[0])).ping("by the other gateway");
    });
}

#[test]
fn flows_leave_a_gateway_that_was_killed() {
    let mut lab = Lab::new(&[1, 3], Underlay::V4);
    let to = addresses('b', 0)[0];
    let receiver = within(&lab.at("b-pod0"), || UdpSocket::bind((to, 4000)).unwrap());
    receiver
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let flows: Vec<_> = (0..12)
        .map(|_| within(&lab.at("a-pod0"), || UdpSocket::bind("0.0.0.0:0").unwrap()))
        .collect();
    let (stop, stopping) = std::sync::mpsc::channel::<()>();
    let sending = thread::spawn(move || {
        while stopping.recv_timeout(Duration::from_millis(5)).is_err() {
            for (flow, socket) in flows.iter().enumerate() {
                socket.send_to(&[flow as u8], (to, 4000)).unwrap();
            }
        }
    });
    let mut last = [Instant::now(); 12];
    let mut longest = |until: Duration| {
        let (start, mut longest, mut buffer) = (Instant::now(), Duration::ZERO, [0; 10]);
        while start.elapsed() < until {
            if receiver.recv(&mut buffer).is_ok() {
                let flow = usize::from(buffer[0]);
                longest = longest.max(last[flow].elapsed());
                last[flow] = Instant::now();
            }
        }
        last.iter().map(Instant::elapsed).max().unwrap().max(longest)
    };
    longest(Duration::from_millis(500));
    let calm = longest(Duration::from_millis(1000));
    lab.kill("b-gw1");
    let gap = longest(Duration::from_millis(2000));
    stop.send(()).unwrap();
    sending.join().unwrap();
    // Liveness is 310 ms and a tick; the rest is what a busy machine adds to everything.
    assert!(
        gap < Duration::from_millis(500) + calm,
        "interrupted for {gap:?}, and for {calm:?} with nothing wrong"
    );
    assert!(
        gap > Duration::from_millis(100),
        "no flow took the gateway that was killed: {gap:?}"
    );
}

#[test]
fn a_tap_that_was_removed_is_asked_for_again() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    lab.ip_in("a-node", "link delete tap0");
    lab.remake_tap("a-gw0");
    within(&lab.at("a-pod0"), || Pinger::new(addresses('b', 0)[0])).ping("through the new device");
}

/// The gate is loose: this is an unoptimised build beside other tests. `make bench-flood` has the strict one.
#[test]
fn a_flow_survives_a_flood_of_handshakes() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    let figures = flood::measure(&lab, 5, Duration::from_millis(400), 50_000);
    println!(
        "{figures:?}, {:.2} of the closed port's throughput",
        figures.ratio()
    );
    assert!(
        figures.rate > 25_000.0,
        "the flood was only {} messages a second",
        figures.rate
    );
    assert!(
        figures.ratio() > 0.5,
        "{:.2} of the closed port's throughput",
        figures.ratio()
    );
    let [first, last] = figures.memory;
    assert!(last < first + 2048, "memory grew from {first} to {last} KiB");
    let metrics = lab.admin("a-gw0", "/metrics");
    let count = |reason: &str| {
        let line = metrics
            .lines()
            .find(|line| line.contains("drops_total{") && line.contains(reason));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    };
    assert!(count("handshake_limit") > 10_000.0, "{metrics}");
    assert!(
        count("not_wireguard") > 1000.0 && count("bad_handshake") > 100.0,
        "{metrics}"
    );
    assert_eq!(
        lab.report("a-gw0")
            .tunnels
            .iter()
            .filter(|tunnel| tunnel.up)
            .count(),
        1
    );
    within(&lab.at("a-pod0"), || Pinger::new(addresses('b', 0)[0])).ping("after the flood");
}
