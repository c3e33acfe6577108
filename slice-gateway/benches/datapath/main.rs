//! How fast is it? Pod to pod through the real process, beside two pods on the same machine over a plain veth pair,
//! over the kernel's VXLAN without encryption, and over what else carries packets encrypted in user space. All in one
//! run and interleaved, because the machine's speed changes from minute to minute.
//!
//! ```text
//!  make bench [BENCH="--rounds N --seconds S --only weft,vxlan --test tcp1,rr --threads N --share PERCENT --docs"]
//! ```
//!
//! With `--threads` our gateways have so many, and with `--share` each of those gets no more than that of a processor
//! ([`share`]). The tests are tcp1 and any other number of streams, udp, rr, and peers-1, -8 and -64.
//!
//! On a plain wire (tests `…-wire`, systems `veth-wire` and `vxlan-wire`; see [`wire`]) no device between the clusters
//! segments for its host, and packets cross it as they cross a plain Ethernet.
//!
//! Sender, receiver and both gateways share the machine. CPU is what the whole machine was busy, per KiB delivered.
//! Results: a table, `target/bench/datapath.json`, `target/bench/*.svg`; with `--docs` in `docs/` too.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should stop")]
#![expect(clippy::print_stdout, reason = "its result")]
#![allow(dead_code, unused_imports, reason = "the lab has more than is used here")]

mod floors;
#[path = "../../tests/netns/lab/mod.rs"]
mod lab;
mod measure;
mod obtain;
mod openvpn;
mod quiet;
#[path = "../report/mod.rs"]
mod report;
mod share;
mod systems;
mod wire;
mod wireguard;

use std::{collections::BTreeMap, fs};

use lab::{Lab, Underlay};
use openvpn::OpenVpn;
use report::{
    Results, Row, find,
    plot::{Bar, Chart},
};
use systems::{Carries, System};
use wireguard::Program;

const GBPS: (&str, &str) = ("gbps", "Gbit/s");
const CPU: (&str, &str) = ("cpu_ns_per_kb", "ns/KiB");
const OWN_CPU: (&str, &str) = ("own_cpu_ns_per_kb", "ns/KiB");
const RSS: (&str, &str) = ("rss_kib", "KiB");
const PPS: (&str, &str) = ("pps", "1/s");
/// Where the search for a rate of datagrams begins.
const FIRST_RATE: f64 = 60_000.0;
/// How many peers a gateway is given, of which one is there.
const PEERS: [u32; 3] = [1, 8, 64];
/// Which system is measured on a plain wire too, and which of its tests; under which name, where that is another.
const WIRE: [(&str, &[&str], Option<&str>); 4] = [
    ("veth", &["tcp1", "tcp4", "udp", "rr"], Some("veth-wire")),
    ("vxlan", &["tcp1", "tcp4", "udp", "rr"], Some("vxlan-wire")),
    ("wireguard-go", &["tcp1", "tcp4"], None),
    ("weft", &["tcp1", "tcp4"], None),
];

fn main() {
    let arguments = Arguments::parse();
    let mut run = Run::new(&arguments);
    let start = std::time::Instant::now();
    for round in 0..arguments.rounds {
        run.round(round);
        println!(
            "round {} of {} after {:.0} s",
            round + 1,
            arguments.rounds,
            start.elapsed().as_secs_f64()
        );
    }
    run.report();
}

struct Arguments {
    rounds: usize,
    seconds: f64,
    only: Option<Vec<String>>,
    tests: Option<Vec<String>>,
    /// Of each of our gateways.
    threads: u8,
    /// Hundredths of a processor for each of them.
    share: Option<u64>,
    docs: bool,
    counters: bool,
}

impl Arguments {
    fn parse() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let value = |flag: &str| {
            let place = arguments.iter().position(|argument| argument == flag)?;
            arguments.get(place + 1).cloned()
        };
        let list = |flag: &str| value(flag).map(|text| text.split(',').map(str::to_owned).collect());
        Self {
            rounds: value("--rounds").map_or(5, |text| text.parse().unwrap()),
            seconds: value("--seconds").map_or(1.5, |text| text.parse().unwrap()),
            only: list("--only"),
            tests: list("--test"),
            threads: value("--threads").map_or(1, |text| text.parse().unwrap()),
            share: value("--share").map(|text| text.parse().unwrap()),
            docs: arguments.iter().any(|argument| argument == "--docs"),
            counters: arguments.iter().any(|argument| argument == "--counters"),
        }
    }

    fn wants(&self, system: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| only.iter().any(|name| name == system))
    }

    fn wants_test(&self, test: &str) -> bool {
        self.tests
            .as_ref()
            .is_none_or(|tests| tests.iter().any(|name| name == test))
    }
}

/// Everything that is set up once. Fields are dropped in this order: programs before the namespaces that they are in.
struct Run<'a> {
    arguments: &'a Arguments,
    systems: Vec<System>,
    shares: Option<share::Shares>,
    programs: Programs,
    lab: Lab,
    results: Results,
    /// By system: the rate of datagrams that was last found.
    rates: BTreeMap<String, f64>,
    /// Every process that was started for this.
    pids: Vec<u32>,
    /// Measurements that were repeated.
    disturbed: usize,
}

#[derive(Default)]
struct Programs {
    wireguard_go: Option<Program>,
    boringtun: Option<Program>,
    openvpn: Option<OpenVpn>,
}

impl<'a> Run<'a> {
    fn new(arguments: &'a Arguments) -> Self {
        obtain::packages(&["ip"]);
        let any = |names: &[&str]| names.iter().any(|name| arguments.wants(name));
        let programs = Programs {
            wireguard_go: any(&["wireguard-go", "wireguard-go-vxlan"]).then(Program::wireguard_go),
            boringtun: any(&["boringtun-vxlan"]).then(Program::boringtun),
            openvpn: any(&["openvpn-gcm", "openvpn-cbc", "openvpn-tap"]).then(OpenVpn::new),
        };
        let lab = Lab::with_threads(&[1, 1], Underlay::V4, arguments.threads);
        let mut systems = Vec::new();
        let mut add = |name: &str, make: &dyn Fn() -> Option<System>| {
            if arguments.wants(name) {
                systems.extend(make());
            }
        };
        let gcm = ["--data-ciphers", "AES-256-GCM"];
        let cbc = ["--data-ciphers", "AES-256-CBC", "--auth", "SHA256"];
        let (go, bt, ov) = (&programs.wireguard_go, &programs.boringtun, &programs.openvpn);
        add("veth", &|| Some(systems::veth(&lab)));
        add("vxlan", &|| Some(systems::vxlan(&lab)));
        add("wireguard-go", &|| {
            Some(go.as_ref()?.layer3(&lab, "wireguard-go"))
        });
        add("wireguard-go-vxlan", &|| Some(go.as_ref()?.layer2(&lab)));
        add("boringtun-vxlan", &|| Some(bt.as_ref()?.layer2(&lab)));
        add("openvpn-gcm", &|| {
            Some(ov.as_ref()?.layer3(&lab, "openvpn-gcm", 120, &gcm))
        });
        add("openvpn-cbc", &|| {
            Some(ov.as_ref()?.layer3(&lab, "openvpn-cbc", 122, &cbc))
        });
        add("openvpn-tap", &|| {
            Some(ov.as_ref()?.layer2(&lab, "openvpn-tap", 124, &gcm))
        });
        add("weft", &|| Some(systems::weft(&lab)));
        for system in &systems {
            system.settle(&lab);
        }
        let limit = |share| share::Shares::limit(&lab.pids(), share);
        Self {
            arguments,
            shares: arguments.share.map(limit),
            pids: systems.iter().flat_map(|system| system.pids.clone()).collect(),
            systems,
            programs,
            lab,
            results: Results::default(),
            rates: BTreeMap::new(),
            disturbed: 0,
        }
    }

    /// Every test of every system; back and forth, so that a drift of the machine is nobody's gain. What is compared
    /// with ourselves is near to it, and measured twice.
    fn round(&mut self, round: usize) {
        let mut systems = std::mem::take(&mut self.systems);
        let forth = round.is_multiple_of(2);
        for place in 0..systems.len() {
            let system = &systems[if forth { place } else { systems.len() - 1 - place }];
            let tests: &[&str] = match system.name {
                "weft" => &["tcp1", "tcp4", "udp", "rr", "tcp4", "tcp1"],
                _ => &["tcp1", "tcp4", "udp", "rr"],
            };
            let more = self.arguments.tests.iter().flatten();
            let more: Vec<&str> = more
                .map(String::as_str)
                .filter(|test| streams(test).is_some() && !tests.contains(test))
                .collect();
            for test in tests.iter().chain(&more) {
                self.measure(system, test, &[(system.name, test)]);
            }
            for (name, tests, other) in WIRE {
                if name != system.name || !tests.iter().any(|test| self.wants_wire(test, other)) {
                    continue;
                }
                let _plain = wire::plain(&system.wire);
                for test in tests {
                    if self.wants_wire(test, other) {
                        let wire = format!("{test}-wire");
                        let names = [(Some(name), wire.as_str()), (other, test)];
                        let names: Vec<_> = names
                            .into_iter()
                            .filter_map(|(name, test)| Some((name?, test)))
                            .collect();
                        self.measure(system, test, &names);
                    }
                }
            }
            if system.name == "weft" {
                self.many_peers(system);
            }
        }
        std::mem::swap(&mut self.systems, &mut systems);
    }

    fn wants_wire(&self, test: &str, other: Option<&str>) -> bool {
        self.arguments.wants_test(&format!("{test}-wire"))
            || (other.is_some() && self.arguments.tests.is_none())
    }

    /// Runs a test, and writes its values down under these names.
    fn measure(&mut self, system: &System, test: &str, names: &[(&str, &str)]) {
        if !names.iter().any(|(_, test)| self.arguments.wants_test(test)) {
            return;
        }
        let seconds = self.arguments.seconds;
        let mut values = Vec::new();
        match (test, streams(test)) {
            (_, Some(streams)) => {
                let load = quiet::measured(&self.pids, &mut self.disturbed, || {
                    measure::tcp(&self.lab, system, streams, seconds)
                });
                values.extend([(GBPS, load.gbps()), (CPU, load.cpu)]);
                if !system.pids.is_empty() {
                    values.extend([(OWN_CPU, load.own), (RSS, measure::resident(&system.pids))]);
                }
            }
            ("udp", None) => {
                let hint = self
                    .rates
                    .entry(names[0].0.to_owned() + names[0].1)
                    .or_insert(FIRST_RATE);
                let load = quiet::measured(&self.pids, &mut self.disturbed, || {
                    measure::udp(&self.lab, system, *hint)
                });
                *hint = load.datagrams();
                values.extend([(PPS, load.datagrams()), (CPU, load.cpu)]);
                if !system.pids.is_empty() {
                    values.push((OWN_CPU, load.own));
                }
            }
            _ => {
                let times = quiet::measured(&self.pids, &mut self.disturbed, || {
                    measure::round_trips(&self.lab, system, seconds)
                });
                let at = |share: f64| times[(times.len() as f64 * share) as usize];
                values.push((("p50_us", "µs"), at(0.5)));
                values.push((("p99_us", "µs"), at(0.99)));
                values.push((("p999_us", "µs"), at(0.999)));
            }
        }
        for (name, test) in names {
            for (metric, value) in &values {
                self.results.add(name, test, *metric, *value);
            }
        }
    }

    /// The same traffic with more peers configured, none of which is there, and what they cost in memory.
    fn many_peers(&mut self, system: &System) {
        if !PEERS
            .iter()
            .any(|peers| self.arguments.wants_test(&format!("peers-{peers}")))
        {
            return;
        }
        let configure = |peers: u32| {
            self.lab
                .absent
                .store(peers - 1, std::sync::atomic::Ordering::Relaxed);
            self.lab.configure();
            lab::eventually("the peers are configured", || {
                (self.lab.report("a-gw0").tunnels.len() == peers as usize).then_some(())
            });
        };
        for peers in PEERS.into_iter().chain(PEERS.into_iter().rev()) {
            configure(peers);
            let load = quiet::measured(&self.pids, &mut self.disturbed, || {
                measure::tcp(&self.lab, system, 1, self.arguments.seconds)
            });
            let test = format!("peers-{peers}");
            self.results.add("weft", &test, GBPS, load.gbps());
            self.results.add("weft", &test, OWN_CPU, load.own);
            // Memory is not given back: it is only comparable on the way up, the first time.
            if self.rates.insert(test.clone(), 0.0).is_none() {
                self.results
                    .add("weft", &test, RSS, measure::resident(&system.pids));
            }
        }
        configure(1);
    }

    fn report(&self) {
        let rows = self.results.rows();
        println!(
            "\n{:<20} {:<12} {:<18} {:>10} {:>10} {:>10} {:>3}  unit",
            "system", "test", "metric", "median", "min", "max", "n"
        );
        for row in &rows {
            println!(
                "{:<20} {:<12} {:<18} {:>10.2} {:>10.2} {:>10.2} {:>3}  {}",
                row.system, row.test, row.metric, row.median, row.min, row.max, row.n, row.unit
            );
        }
        let floors = floors::floors(&rows);
        let requirements = floors::requirements(&floors);
        println!("\n{}\n\n{requirements}", report::machine());
        if self.disturbed > 0 {
            println!(
                "{} measurements were disturbed by other programs and repeated",
                self.disturbed
            );
        }
        let path = report::write_json("datapath", &rows);
        println!("written: {}", path.display());
        let charts = charts(&rows, &self.names());
        for (name, svg) in &charts {
            fs::write(report::directory().join(name), svg).unwrap();
        }
        if self.arguments.counters {
            self.counters();
        }
        if self.arguments.docs {
            let plots = report::docs().join("plots");
            fs::create_dir_all(&plots).unwrap();
            for (name, svg) in &charts {
                fs::write(plots.join(name), svg).unwrap();
            }
            report::write_docs("datapath", &self.page(&rows, &requirements));
        }
    }

    /// The systems, with those that have another name on a plain wire.
    fn names(&self) -> Vec<(&'static str, &'static str, Carries)> {
        let mut names = Vec::new();
        for system in &self.systems {
            names.push((system.name, system.what, system.carries));
            for (name, _, other) in WIRE {
                if let Some(other) = other.filter(|_| name == system.name) {
                    names.push((other, "the same on a plain wire", system.carries));
                }
            }
        }
        names
    }

    /// What stands in the documentation.
    fn page(&self, rows: &[Row], requirements: &str) -> String {
        let wire: String = [
            ("weft", "tcp1-wire"),
            ("weft", "tcp4-wire"),
            ("wireguard-go", "tcp1-wire"),
        ]
        .iter()
        .filter_map(|(system, test)| {
            let row = find(rows, system, test, "gbps")?;
            Some(format!(
                "{system} {test} {} Gbit/s; ",
                report::plot::number(row.median)
            ))
        })
        .collect();
        let n = rows.first().map_or(0, |row| row.n);
        format!(
            "{}. Medians of {n} interleaved rounds.\n\n{requirements}\n{}\nOn a plain wire: {}veth and kernel VXLAN are \
             in the table.\n\n{}\n![TCP](plots/datapath-tcp.svg)\n![UDP](plots/datapath-udp.svg)\n\
             ![request and response](plots/datapath-rr.svg)\n![CPU](plots/datapath-cpu.svg)\n",
            report::machine(),
            floors::table(rows, &self.names()),
            wire,
            floors::peers(rows)
        )
    }

    /// What the kernel and the gateways have lost, for whoever looks for the reason of a figure.
    fn counters(&self) {
        for name in ["a-gw0", "b-gw0", "a-pod0", "b-pod0", "a-node", "b-node"] {
            println!("{name}: {}", losses(&self.lab, name));
        }
        for gateway in ["a-gw0", "b-gw0"] {
            let metrics = self.lab.admin(gateway, "/metrics");
            for line in metrics.lines().filter(|line| line.starts_with("weft_gateway_")) {
                println!("{gateway}: {line}");
            }
        }
    }
}

/// How many streams a test of TCP has.
fn streams(test: &str) -> Option<usize> {
    test.strip_prefix("tcp")?.parse().ok()
}

fn charts(rows: &[Row], systems: &[(&'static str, &'static str, Carries)]) -> Vec<(&'static str, String)> {
    let chart = |title, unit, series: &[&str], scale: f64, wanted: &[(&str, &str)]| {
        let bar = |system: &str, (test, metric): (&str, &str)| {
            let row = find(rows, system, test, metric)?;
            Some(Bar {
                value: row.median * scale,
                min: row.min * scale,
                max: row.max * scale,
            })
        };
        let groups = systems
            .iter()
            .map(|(name, _, _)| {
                let bars: Vec<_> = wanted.iter().map(|wanted| bar(name, *wanted)).collect();
                ((*name).to_owned(), bars)
            })
            .filter(|(_, bars)| bars.iter().any(Option::is_some))
            .collect();
        Chart {
            title,
            unit,
            series,
            groups,
            ours: "weft",
        }
        .svg()
    };
    vec![
        (
            "datapath-tcp.svg",
            chart(
                "TCP from pod to pod",
                "Gbit/s",
                &["one stream", "four streams"],
                1.0,
                &[("tcp1", "gbps"), ("tcp4", "gbps")],
            ),
        ),
        (
            "datapath-udp.svg",
            chart(
                "Datagrams of 1200 bytes, at most 1 % lost",
                "thousands a second",
                &["datagrams"],
                1e-3,
                &[("udp", "pps")],
            ),
        ),
        (
            "datapath-rr.svg",
            chart(
                "Request and response of 64 bytes over TCP",
                "µs",
                &["p50", "p99"],
                1.0,
                &[("rr", "p50_us"), ("rr", "p99_us")],
            ),
        ),
        (
            "datapath-cpu.svg",
            chart(
                "CPU of the whole machine, one TCP stream",
                "µs per KiB",
                &["one stream"],
                1e-3,
                &[("tcp1", "cpu_ns_per_kb")],
            ),
        ),
    ]
}

/// What the kernel lost in a namespace.
fn losses(lab: &Lab, namespace: &str) -> String {
    lab::within(&lab.at(namespace), || {
        let snmp = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let mut found = Vec::new();
        for pair in snmp.lines().collect::<Vec<_>>().chunks(2) {
            let names = pair[0].split_whitespace().skip(1);
            for (name, value) in names.zip(pair[1].split_whitespace().skip(1)) {
                if ["RetransSegs", "RcvbufErrors", "SndbufErrors"].contains(&name) && value != "0" {
                    found.push(format!("{name} {value}"));
                }
            }
        }
        let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
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
