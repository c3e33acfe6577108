//! What a frame costs on a node, by the number of slices there, beside a plain kernel bridge and VXLAN in the same run:
//! `make bench-node`. Nothing filters at the bridge; the programs check every frame.
//!
//! A frame's time is that of the call that sends it, with all that the kernel does before the call returns, up to the
//! receiver's IP stack, which drops it. Systems take turns in every round; medians of rounds are compared.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark")]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use slice_crds::Mac;

#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "helpers, not every one of which is used here"
)]
#[path = "../tests/netns/support/mod.rs"]
mod support;

use support::{
    bed::{Bed, BedPod},
    udp4,
};

const SLICES: [u32; 4] = [1, 30, 100, 1000];
const ROUNDS: usize = 9;
const FRAMES: u32 = 10_000;
const STREAM: Duration = Duration::from_millis(1000);
/// Slices beside the measured one are numbered from here on.
const FIRST: u32 = 1000;

/// One of the two, with its pods: two of one node, one of another.
struct System {
    name: &'static str,
    bed: Bed,
    pods: [BedPod; 3],
}

impl System {
    fn new(name: &'static str, mut bed: Bed) -> Self {
        let pods = [(0, 5), (0, 6), (1, 7)].map(|(node, nth)| bed.add_pod(node, nth));
        // Bridges learn where everybody is, and both know their neighbours.
        for (from, to) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
            let answer = support::ping(&pods[from].space, pods[to].v4(), 8, Duration::from_secs(2));
            assert!(answer.is_some(), "{name}: pod {from} does not reach pod {to}");
        }
        Self { name, bed, pods }
    }
}

/// Nanoseconds for each frame to `to`.
fn ns_per_frame(from: &BedPod, to: Mac) -> f64 {
    let nobody = "10.80.77.77".parse().unwrap();
    let frame = udp4(to, (from.mac(), from.v4()), nobody, &[0; 64]);
    let wire = from.wire();
    let begun = Instant::now();
    (0..FRAMES).for_each(|_| wire.send(&frame));
    begun.elapsed().as_nanos() as f64 / f64::from(FRAMES)
}

/// Gigabits a second of one TCP stream.
fn gbps(from: &BedPod, to: &BedPod) -> f64 {
    let listener = to.space.run(|| TcpListener::bind(SocketAddr::new(to.v4(), 0)));
    let address = listener.local_addr().unwrap();
    let sink = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 20];
        let (mut bytes, begun) = (0u64, Instant::now());
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            bytes += read as u64;
        }
        bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9
    });
    let mut stream = from.space.run(|| TcpStream::connect(address));
    let payload = vec![0; 1 << 18];
    let begun = Instant::now();
    while begun.elapsed() < STREAM {
        stream.write_all(&payload).unwrap();
    }
    drop(stream);
    sink.join().unwrap()
}

fn main() {
    let mut systems = [
        System::new("weft", Bed::with_programs(2, u32::MAX)),
        System::new("bridge", Bed::with_bridges(2)),
    ];
    let mut records = vec![];
    println!("slices | test       | metric       |   weft | bridge | weft/bridge");
    let mut there = 1;
    for slices in SLICES {
        for system in &mut systems {
            system.bed.add_slices(FIRST + there, slices - there);
        }
        there = slices;
        let mut seen: BTreeMap<(&str, &str, &str), Vec<f64>> = BTreeMap::new();
        for _ in 0..ROUNDS {
            for system in &systems {
                let [a, b, c] = &system.pods;
                for (test, to) in [
                    ("same-node", b.mac()),
                    ("cross-node", c.mac()),
                    ("broadcast", Mac::BROADCAST),
                ] {
                    let key = (test, "ns_per_frame", system.name);
                    seen.entry(key).or_default().push(ns_per_frame(a, to));
                }
                for (test, to) in [("same-node", b), ("cross-node", c)] {
                    let key = (test, "gbps", system.name);
                    seen.entry(key).or_default().push(gbps(a, to));
                }
            }
        }
        let mut medians = BTreeMap::new();
        for ((test, metric, system), mut values) in seen {
            values.sort_by(f64::total_cmp);
            let (median, n) = (values[values.len() / 2], values.len());
            records.push(json!({
                "system": system, "test": test, "slices": slices, "metric": metric,
                "median": median, "min": values[0], "max": values[n - 1], "n": n,
            }));
            medians.insert((test, metric, system), median);
        }
        for ((test, metric, _), weft) in medians.iter().filter(|((.., system), _)| *system == "weft") {
            let bridge = medians[&(*test, *metric, "bridge")];
            println!(
                "{slices:6} | {test:10} | {metric:12} | {weft:6.1} | {bridge:6.1} | {:11.2}",
                weft / bridge
            );
        }
    }
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    std::fs::create_dir_all(&out).unwrap();
    let text = serde_json::to_string_pretty(&records).unwrap();
    std::fs::write(out.join("node.json"), text).unwrap();
    for (text, met) in floors(&records) {
        println!("{} {text}", if met { "met:   " } else { "NOT MET:" });
    }
}

/// What is required, and whether it is so.
fn floors(records: &[serde_json::Value]) -> Vec<(String, bool)> {
    let median = |system: &str, test: &str, metric: &str, slices: u32| {
        let found = records.iter().find(|record| {
            record["system"] == system
                && record["test"] == test
                && record["metric"] == metric
                && record["slices"] == slices
        });
        found.and_then(|record| record["median"].as_f64()).unwrap()
    };
    let mut floors = vec![];
    for test in ["same-node", "cross-node", "broadcast"] {
        let of = |system, slices| median(system, test, "ns_per_frame", slices);
        let ratio = of("weft", 1000) / of("weft", 1);
        floors.push((
            format!("{test}: 1,000 slices cost {ratio:.2} of one (at most 1.15)"),
            ratio <= 1.15,
        ));
        let ratio = of("weft", 1) / of("bridge", 1);
        floors.push((
            format!("{test}: a frame costs {ratio:.2} of the bare bridge's (at most 1)"),
            ratio <= 1.0,
        ));
    }
    for test in ["same-node", "cross-node"] {
        let ratio = median("weft", test, "gbps", 1) / median("bridge", test, "gbps", 1);
        floors.push((
            format!("{test}: one TCP stream has {ratio:.2} of the bare bridge's (at least 0.95)"),
            ratio >= 0.95,
        ));
    }
    floors
}
