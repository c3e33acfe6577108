//! How fast is it? Pod to pod through the real process, beside the same two pods over a plain veth pair, over the
//! kernel's VXLAN without encryption, and over other implementations of WireGuard, interleaved, because the machine's
//! speed changes from minute to minute.
//!
//! ```text
//!  cargo bench -p slice-gateway --profile lab -- [--rounds N] [--seconds S] [--only weft,vxlan] [--test tcp1]
//!      [--wireguard-go PATH] [--boringtun PATH] [--wire] [--peers N]
//! ```
//!
//! With `--wire` no device between the clusters segments for its host, and packets cross it as they cross a plain
//! Ethernet: one by one, joined again by the receiver's GRO.
//!
//! Sender, receiver and both gateways share the machine. CPU is what the whole machine was busy, per KiB delivered.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should stop")]
#![expect(clippy::print_stdout, reason = "its result")]
#![allow(dead_code, unused_imports, reason = "the lab has more than is used here")]

#[path = "../../tests/netns/lab/mod.rs"]
mod lab;
mod measure;
mod systems;
mod wireguard;

use std::collections::BTreeMap;

use lab::{Lab, Underlay};
use wireguard::Program;

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
    let wanted = |name: &str| {
        only.as_deref()
            .is_none_or(|only| only.split(',').any(|only| only == name))
    };
    let mut systems = Vec::new();
    let mut add = |name: &str, make: &dyn Fn() -> systems::System| {
        if wanted(name) {
            systems.push(make());
        }
    };
    add("veth", &|| systems::veth(&lab));
    add("vxlan", &|| systems::vxlan(&lab));
    let programs = [
        value("--wireguard-go").map(|path| Program::wireguard_go(&path)),
        value("--boringtun").map(|path| Program::boringtun(&path)),
    ];
    for program in programs.iter().flatten() {
        add(program.l3, &|| program.layer3(&lab));
        add(program.l2, &|| program.layer2(&lab));
    }
    add("weft", &systems::weft);
    if arguments.iter().any(|argument| argument == "--wire") {
        lab.plain_wire();
    }
    let mut results: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for system in &systems {
            let wanted = |name: &str| test.as_deref().is_none_or(|test| test == name);
            let mut add = |test, value| results.entry((test, system.name)).or_default().push(value);
            if wanted("tcp1") {
                let (gbps, cpu, gateways) = measure::tcp(&lab, system, 1, seconds);
                add("tcp1 Gbit/s", gbps);
                add("tcp1 ns/KiB", cpu);
                if system.name == "weft" {
                    add("tcp1 own ns/KiB", gateways);
                }
            }
            if wanted("tcp4") {
                add("tcp4 Gbit/s", measure::tcp(&lab, system, 4, seconds).0);
            }
            if wanted("udp") {
                add("udp kpps", measure::udp(&lab, system, seconds) / 1000.0);
            }
            if wanted("rr") {
                let [p50, p99] = measure::round_trips(&lab, system, seconds);
                add("rr p50 µs", p50);
                add("rr p99 µs", p99);
            }
        }
        println!("round {} of {rounds}", round + 1);
    }
    if let Some(peers) = value("--peers").map(|text| text.parse().unwrap()) {
        many_peers(&lab, peers, rounds, seconds);
    }
    println!(
        "{:<16} {:<6} {:>9} {:>9} {:>9}",
        "test", "system", "median", "min", "max"
    );
    for ((test, system), mut values) in results {
        values.sort_by(f64::total_cmp);
        let (median, min, max) = (values[values.len() / 2], values[0], values[values.len() - 1]);
        println!("{test:<16} {system:<20} {median:>9.2} {min:>9.2} {max:>9.2}");
    }
    for name in ["a-gw0", "b-gw0", "a-pod0", "b-pod0", "a-node", "b-node"] {
        println!("{name}: {}", losses(&lab, name));
    }
    for gateway in ["a-gw0", "b-gw0"] {
        let metrics = lab.admin(gateway, "/metrics");
        for line in metrics
            .lines()
            .filter(|line| line.contains("drops_total{") || line.contains("_calls_total{"))
        {
            println!("{gateway}: {line}");
        }
    }
}

/// The same traffic with that many more peers configured, none of which is there, and what they cost in memory.
fn many_peers(lab: &Lab, peers: u32, rounds: usize, seconds: f64) {
    let mut results = [Vec::new(), Vec::new()];
    let mut memory = [0, 0];
    for round in 0..rounds {
        for (place, absent) in [0, peers].into_iter().enumerate() {
            lab.absent.store(absent, std::sync::atomic::Ordering::Relaxed);
            lab.configure();
            lab::eventually("the peers are configured", || {
                (lab.report("a-gw0").tunnels.len() == absent as usize + 1).then_some(())
            });
            results[place].push(measure::tcp(lab, &systems::weft(), 1, seconds));
            // Later it holds what it has once held.
            if round == 0 {
                memory[place] = resident(lab.pids()[0]);
            }
        }
    }
    for (mut measured, (peers, memory)) in results.into_iter().zip([1, peers + 1].into_iter().zip(memory)) {
        measured.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (gbps, _, own) = measured[measured.len() / 2];
        println!("{peers} peers: {gbps:.2} Gbit/s, {own:.0} own ns/KiB, {memory} KiB resident");
    }
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What the kernel lost in a namespace.
fn losses(lab: &Lab, namespace: &str) -> String {
    lab::within(&lab.at(namespace), || {
        let snmp = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let mut found = Vec::new();
        for pair in snmp.lines().collect::<Vec<_>>().chunks(2) {
            let names = pair[0].split_whitespace().skip(1);
            for (name, value) in names.zip(pair[1].split_whitespace().skip(1)) {
                if ["RetransSegs", "RcvbufErrors", "SndbufErrors"].contains(&name) && value != "0" {
                    found.push(format!("{name} {value}"));
                }
            }
        }
        let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        for line in devices.lines().skip(2) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[4] != "0" || fields[12] != "0" {
                found.push(format!(
                    "{} dropped {} in, {} out",
                    fields[0], fields[4], fields[12]
                ));
            }
        }
        found.join(", ")
    })
}
