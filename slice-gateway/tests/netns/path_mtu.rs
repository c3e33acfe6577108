//! Paths that carry less than the slice would use: by the gateway's own device, or somewhere behind it without a word.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{libc, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};

use slice_gateway::{
    io::udp::Udp,
    proto::{Destination, Endpoint},
};

use super::{
    addresses,
    lab::{Lab, MTU, Underlay, eventually, within},
    send_over_tcp,
};

sockopt_impl!(
    /// What the sender of a packet that may not be cut learns of its path.
    MtuDiscover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);

/// Bytes around a packet of the slice on an IPv4 and an IPv6 underlay.
const OVERHEAD: [u16; 2] = [110, 130];

fn path_mtu(lab: &Lab, gateway: &str) -> Option<u16> {
    lab.report(gateway).tunnels.first()?.path_mtu
}

/// Waits until both gateways have found that packets of this size fit.
fn await_path(lab: &Lab, mtu: u16) {
    for gateway in ["a-gw0", "b-gw0"] {
        let what = format!(
            "{gateway} knows that its path carries {mtu}, and not {:?}",
            path_mtu(lab, gateway)
        );
        eventually(&what, || (path_mtu(lab, gateway) == Some(mtu)).then_some(()));
    }
}

/// Sends a megabyte over TCP each way, in the family at that place of [`addresses`].
fn transfer(lab: &Lab, family: usize) {
    for (from, to, cluster) in [("a-pod0", "b-pod0", 'b'), ("b-pod0", "a-pod0", 'a')] {
        send_over_tcp(lab, from, (to, addresses(cluster, 0)[family]), 1 << 20);
    }
}

/// Two clusters whose gateways' own devices take packets of this size.
fn lab_with_devices(underlay: Underlay, mtu: u16) -> Lab {
    let lab = Lab::new(&[1, 1], underlay);
    for gateway in ["a-gw0", "b-gw0"] {
        lab.set_device_mtu(gateway, mtu);
    }
    lab
}

/// Ends what goes on beside a test, also where that fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether a datagram makes an IP packet of `size` bytes that arrives; `cut` where it may be fragmented.
fn arrives(lab: &Lab, pod: u32, size: u16, v6: bool, cut: bool) -> bool {
    let to = addresses('b', pod)[usize::from(v6)];
    let receiver = within(&lab.at(&format!("b-pod{pod}")), || {
        std::net::UdpSocket::bind((to, 0)).unwrap()
    });
    receiver
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let target = receiver.local_addr().unwrap();
    let from = addresses('a', 0)[usize::from(v6)];
    let sender = within(&lab.at("a-pod0"), || {
        std::net::UdpSocket::bind((from, 0)).unwrap()
    });
    if let (IpAddr::V4(_), true) = (to, cut) {
        setsockopt(&sender, MtuDiscover, &libc::IP_PMTUDISC_DONT).unwrap();
    }
    let headers = if v6 { 48 } else { 28 };
    let payload = vec![3; usize::from(size) - headers];
    sender.send_to(&payload, target).is_ok()
        && receiver
            .recv(&mut [0; 9000])
            .is_ok_and(|length| length == payload.len())
}

/// A group of datagrams that are too long for one device is refused as a group that it cannot segment would be. What is
/// concluded from that must not reach beyond.
#[test]
fn a_peer_behind_a_small_device_takes_segmentation_from_nobody() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    lab.namespace("small");
    lab.ip_in("small", "link add small mtu 1280 type veth peer name far");
    lab.ip_in("small", "address add 198.51.100.1/24 dev small");
    lab.ip_in("small", "link set small up");
    lab.ip_in("small", "link set far up");
    let mut udp = within(&lab.at("small"), || Udp::bind("[::]:0".parse().unwrap(), false)).unwrap();
    assert!(udp.segmentation());
    let to = |address: [u8; 4]| Destination::from(Endpoint::from(SocketAddr::from((address, 9))));
    // Only the last is short enough; kernels that say of the group that it is too long (EMSGSIZE) take none of it.
    let too_long = udp.send(to([198, 51, 100, 9]), &[0; 3 * 1400 + 100], 1400);
    let (_, lost) = too_long.unwrap_err();
    assert!([3 * 1400, 3 * 1400 + 100].contains(&lost), "{lost}");
    assert!(udp.segmentation());
    let sent = udp.send(to([198, 51, 100, 9]), &[0; 3 * 1200 + 100], 1200);
    assert!(sent.is_ok() && udp.segmentation());
}

#[test]
fn a_pod_network_with_an_overhead_of_its_own_is_no_black_hole() {
    for (place, underlay) in [Underlay::V4, Underlay::V6].into_iter().enumerate() {
        let lab = lab_with_devices(underlay, 1450);
        transfer(&lab, 0);
        transfer(&lab, 1);
        await_path(&lab, 1450 - OVERHEAD[place]);
    }
}

#[test]
fn jumbo_packets_go_as_far_as_the_path_carries() {
    let lab = lab_with_devices(Underlay::V4, 9000);
    for gateway in ["a-gw0", "b-gw0"] {
        lab.set_path_mtu(gateway, 9000);
    }
    lab.set_slice_mtu(8870);
    await_path(&lab, 8870);
    transfer(&lab, 0);
    lab.set_path_mtu("b-gw0", 1500);
    transfer(&lab, 0);
    transfer(&lab, 1);
    await_path(&lab, 1390);
}

#[test]
fn a_path_that_narrows_and_widens_stalls_no_stream_for_long() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    // What travels as one through this kernel is measured as one by no device.
    lab.plain_wire();
    await_path(&lab, MTU);
    let to = addresses('b', 0)[0];
    let listener = within(&lab.at("b-pod0"), || TcpListener::bind((to, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let (stop, longest, received) = (AtomicBool::new(false), AtomicU64::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut buffer, mut last) = ([0; 65536], Instant::now());
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                let gap = u64::try_from(last.elapsed().as_millis()).unwrap();
                longest.fetch_max(gap, Ordering::Relaxed);
                received.fetch_add(length, Ordering::Relaxed);
                last = Instant::now();
            }
        });
        scope.spawn(|| {
            let mut stream = within(&lab.at("a-pod0"), || TcpStream::connect(target).unwrap());
            // Paced: the machine is to be busy with the path and not with the stream.
            while !stop.load(Ordering::Relaxed) && stream.write_all(&[7; 20_000]).is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        });
        let _stop = StopOnDrop(&stop);
        // Until the path is known to carry so much and the stream goes on: the longest silence meanwhile.
        let change = |underlay: u16, carries: u16| {
            longest.store(0, Ordering::Relaxed);
            lab.set_path_mtu("b-gw0", underlay);
            let changed = Instant::now();
            let known = eventually(&format!("the path is known to carry {carries}"), || {
                (path_mtu(&lab, "a-gw0") == Some(carries)).then(|| changed.elapsed())
            });
            let before = received.load(Ordering::Relaxed);
            eventually("the stream goes on", || {
                (received.load(Ordering::Relaxed) > before + (1 << 20)).then_some(())
            });
            println!("{underlay}: known after {known:?}");
            longest.load(Ordering::Relaxed)
        };
        let (narrowed, widened) = (change(1400, 1290), change(1500, MTU));
        println!("the stream stood {narrowed} ms, and {widened} ms when it widened");
        assert!(narrowed < 2000 && widened < 2000, "{narrowed} ms, {widened} ms");
    });
}

#[test]
fn an_underlay_of_1280_carries_ipv6_in_fragments() {
    for (place, underlay) in [Underlay::V4, Underlay::V6].into_iter().enumerate() {
        let lab = lab_with_devices(underlay, 1280);
        let carries = 1280 - OVERHEAD[place];
        transfer(&lab, 0);
        transfer(&lab, 1);
        await_path(&lab, carries);
        assert!(
            arrives(&lab, 1, 1280, true, false),
            "IPv6 has 1280 bytes everywhere"
        );
        assert!(!arrives(&lab, 1, MTU, true, false), "a longer one is lost");
        assert!(arrives(&lab, 1, MTU, true, false), "and its sender knows");
        assert!(arrives(&lab, 1, carries, false, false));
        assert!(arrives(&lab, 1, MTU, false, true), "what may be cut is cut");
    }
}
