//! How fast is it? Pod to pod through the real process, beside the same two pods over a plain veth pair and over the
//! kernel's VXLAN without encryption, interleaved, because the machine's speed changes from minute to minute.
//!
//! ```text
//!  cargo bench -p slice-gateway --profile lab -- [--rounds N] [--seconds S] [--only weft] [--test tcp1]
//! ```
//!
//! Sender, receiver and both gateways share the machine. CPU is what the whole machine was busy, per KiB delivered.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should stop")]
#![expect(clippy::print_stdout, reason = "its result")]
#![allow(dead_code, reason = "the lab has more than is used here")]
#![allow(unused_imports, reason = "as above")]

#[path = "../tests/netns/lab/mod.rs"]
mod lab;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lab::{Lab, Underlay, index, v4, within};

/// A pair of pods and the way between them.
struct System {
    name: &'static str,
    from: String,
    to: String,
    address: IpAddr,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| {
        let place = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(place + 1).cloned()
    };
    let rounds: usize = value("--rounds").map_or(5, |text| text.parse().unwrap());
    let seconds: f64 = value("--seconds").map_or(2.0, |text| text.parse().unwrap());
    let (only, test) = (value("--only"), value("--test"));

    let lab = Lab::new(&[1, 1], Underlay::V4);
    let systems = [veth(&lab), vxlan(&lab), weft()];
    let systems: Vec<_> = systems
        .iter()
        .filter(|system| only.as_deref().is_none_or(|only| only.contains(system.name)))
        .collect();
    let mut results: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for system in &systems {
            let wanted = |name: &str| test.as_deref().is_none_or(|test| test == name);
            let mut add = |test, value| results.entry((test, system.name)).or_default().push(value);
            if wanted("tcp1") {
                let (gbps, cpu) = tcp(&lab, system, 1, seconds);
                add("tcp1 Gbit/s", gbps);
                add("tcp1 ns/KiB", cpu);
            }
            if wanted("tcp4") {
                add("tcp4 Gbit/s", tcp(&lab, system, 4, seconds).0);
            }
            if wanted("udp") {
                add("udp kpps", udp(&lab, system, seconds) / 1000.0);
            }
            if wanted("rr") {
                let [p50, p99] = round_trips(&lab, system, seconds);
                add("rr p50 µs", p50);
                add("rr p99 µs", p99);
            }
        }
        println!("round {} of {rounds}", round + 1);
    }
    println!(
        "{:<14} {:<6} {:>9} {:>9} {:>9}",
        "test", "system", "median", "min", "max"
    );
    for ((test, system), mut values) in results {
        values.sort_by(f64::total_cmp);
        let (median, min, max) = (values[values.len() / 2], values[0], values[values.len() - 1]);
        println!("{test:<14} {system:<6} {median:>9.2} {min:>9.2} {max:>9.2}");
    }
    let metrics = lab.admin("a-gw0", "/metrics");
    for line in metrics
        .lines()
        .filter(|line| line.contains("drops_total{") || line.contains("udp_s"))
    {
        println!("{line}");
    }
}

/// The default of hosts; a machine may have another one, which would measure its pacing.
fn cubic(stream: &TcpStream) {
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpCongestion, &"cubic".into()).unwrap();
}

fn weft() -> System {
    System {
        name: "weft",
        from: "a-pod0".into(),
        to: "b-pod0".into(),
        address: v4(index('b', 0)).into(),
    }
}

fn veth(lab: &Lab) -> System {
    for name in ["veth-x", "veth-y"] {
        lab.namespace(name);
    }
    let peer = lab.at("veth-y");
    lab.ip_in(
        "veth-x",
        &format!("link add slice0 mtu 1500 type veth peer name slice0 netns {peer}"),
    );
    for (name, address) in [("veth-x", "10.81.0.1/24"), ("veth-y", "10.81.0.2/24")] {
        lab.ip_in(name, &format!("address add {address} dev slice0"));
        lab.ip_in(name, "link set slice0 up");
    }
    let address = IpAddr::from([10, 81, 0, 2]);
    System {
        name: "veth",
        from: "veth-x".into(),
        to: "veth-y".into(),
        address,
    }
}

/// Pod, bridge, VXLAN device, underlay, VXLAN device, bridge, pod.
fn vxlan(lab: &Lab) -> System {
    for (side, own, other) in [('x', 1, 2), ('y', 2, 1)] {
        let (node, pod) = (format!("vxlan-{side}"), format!("vxlan-pod-{side}"));
        lab.namespace(&node);
        lab.namespace(&pod);
        let (peer, wan) = (lab.at(&pod), lab.at("wan"));
        lab.ip_in(
            &node,
            &format!("link add wan type veth peer name vx{side} netns {wan}"),
        );
        lab.ip_in("wan", &format!("link set vx{side} master wan up"));
        lab.ip_in(&node, &format!("address add 192.0.2.{}/24 dev wan", 200 + own));
        lab.ip_in(&node, "link set wan up");
        lab.ip_in(&node, "link add seg0 type bridge mcast_snooping 0");
        lab.ip_in(&node, "link set seg0 up");
        let remote = 200 + other;
        lab.ip_in(
            &node,
            &format!("link add vx mtu 1450 type vxlan id 9 dstport 4789 remote 192.0.2.{remote} dev wan"),
        );
        lab.ip_in(&node, "link set vx master seg0 up");
        lab.ip_in(
            &node,
            &format!("link add p0 mtu 1450 type veth peer name slice0 netns {peer} mtu 1450"),
        );
        lab.ip_in(&node, "link set p0 master seg0 up");
        lab.ip_in(&pod, &format!("address add 10.82.0.{own}/24 dev slice0"));
        lab.ip_in(&pod, "link set slice0 up");
    }
    let address = IpAddr::from([10, 82, 0, 2]);
    System {
        name: "vxlan",
        from: "vxlan-pod-x".into(),
        to: "vxlan-pod-y".into(),
        address,
    }
}

/// Busy nanoseconds of all CPUs so far.
fn busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap())
        .collect();
    // All but idle and iowait, in hundredths of a second (proc_stat(5)).
    (fields.iter().take(8).sum::<f64>() - fields[3] - fields[4]) * 1e7
}

/// Gbit/s and busy nanoseconds per KiB.
fn tcp(lab: &Lab, system: &System, streams: usize, seconds: f64) -> (f64, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let listener = within(&lab.at(&system.to), || {
        TcpListener::bind((system.address, 0)).unwrap()
    });
    let address = listener.local_addr().unwrap();
    let mut threads = Vec::new();
    for _ in 0..streams {
        let mut sender = within(&lab.at(&system.from), || TcpStream::connect(address).unwrap());
        cubic(&sender);
        let (mut receiver, _) = listener.accept().unwrap();
        let stopped = stop.clone();
        threads.push(thread::spawn(move || {
            let buffer = vec![7; 128 << 10];
            while !stopped.load(Ordering::Relaxed) && sender.write_all(&buffer).is_ok() {}
        }));
        let received = received.clone();
        threads.push(thread::spawn(move || {
            let mut buffer = vec![0; 128 << 10];
            while let Ok(count @ 1..) = receiver.read(&mut buffer) {
                received.fetch_add(count as u64, Ordering::Relaxed);
            }
        }));
    }
    thread::sleep(Duration::from_millis(300));
    let (start, before, cpu) = (Instant::now(), received.load(Ordering::Relaxed), busy());
    thread::sleep(Duration::from_secs_f64(seconds));
    let bytes = (received.load(Ordering::Relaxed) - before) as f64;
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), busy() - cpu);
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    (bytes * 8.0 / elapsed / 1e9, cpu / (bytes / 1024.0))
}

/// Datagrams of 1200 bytes a second, of as many as can be sent one by one.
fn udp(lab: &Lab, system: &System, seconds: f64) -> f64 {
    let receiver = within(&lab.at(&system.to), || {
        UdpSocket::bind((system.address, 0)).unwrap()
    });
    nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20)).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let sender = within(&lab.at(&system.from), || UdpSocket::bind("0.0.0.0:0").unwrap());
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let sending = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let _ = sender.send(&[7; 1200]);
        }
    });
    let (mut buffer, mut count, start) = ([0; 2000], 0u64, Instant::now());
    while start.elapsed().as_secs_f64() < seconds {
        count += u64::from(receiver.recv(&mut buffer).is_ok());
    }
    let elapsed = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    sending.join().unwrap();
    count as f64 / elapsed
}

/// Median and 99th percentile of 64-byte requests and answers over TCP, in microseconds.
fn round_trips(lab: &Lab, system: &System, seconds: f64) -> [f64; 2] {
    let listener = within(&lab.at(&system.to), || {
        TcpListener::bind((system.address, 0)).unwrap()
    });
    let mut client = within(&lab.at(&system.from), || {
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    });
    let (mut server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let serving = thread::spawn(move || {
        let mut buffer = [0; 64];
        while server.read_exact(&mut buffer).is_ok() && server.write_all(&buffer).is_ok() {}
    });
    let (mut times, mut buffer, start) = (Vec::new(), [0; 64], Instant::now());
    while start.elapsed().as_secs_f64() < seconds {
        let asked = Instant::now();
        client.write_all(&buffer).unwrap();
        client.read_exact(&mut buffer).unwrap();
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    drop(client);
    serving.join().unwrap();
    times.sort_by(f64::total_cmp);
    [0.5, 0.99].map(|share| times[(times.len() as f64 * share) as usize])
}
