//! Three slices that compete for the uplink of one gateway node: whether each gets what it is given.
//!
//! ```text
//! guarantees  two are guaranteed something, and the third goes first to what is left
//! ceilings    two have a ceiling, the third takes the rest
//! spare       equal guarantees, and what is left for all
//! priority    round trips of the first in order, idle and while the others fill the uplink
//! ```
//!
//! Each in both directions, over TCP between pods of two clusters; rates are those of frames.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::{try_join, try_join_all};
use serde_json::{Value, json};
use slice_crds::annotations;

use super::{Figures, docs, machine};
use crate::{
    harness::{Environment, weft::Member},
    progress::{Progress, say},
};

mod page;

const SLICES: [&str; 3] = ["gold", "silver", "bronze"];
/// Of the hub's one node.
const UPLINK_MBPS: f64 = 200.0;
const PINGS: &str = "1000";
/// Longer than the pings take.
const LOAD_SECONDS: &str = "8";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Of each test and direction.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each stream.
    #[arg(long, default_value = "4")]
    seconds: String,
    #[arg(long, default_value = "target/bench/qos.json")]
    out: PathBuf,
    /// Write the table and the plot in docs/ too.
    #[arg(long)]
    docs: bool,
}

/// What slices are given, and what each has to get then.
struct Test {
    name: &'static str,
    given: [Value; 3],
    /// What tells in `slicectl node` that it has come, by slice.
    shown: [&'static str; 3],
    wanted: [Wanted; 3],
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    AtLeast(f64),
    Exactly(f64),
    Anything,
}

impl Wanted {
    /// The metric, and by how many per cent it is missed.
    fn error(self, mbps: f64) -> Option<(&'static str, f64)> {
        match self {
            Self::AtLeast(wanted) => {
                Some(("guarantee_error_pct", ((wanted - mbps) / wanted * 100.0).max(0.0)))
            }
            Self::Exactly(wanted) => Some(("ceiling_error_pct", (mbps - wanted).abs() / wanted * 100.0)),
            Self::Anything => None,
        }
    }
}

fn tests() -> [Test; 3] {
    [
        Test {
            name: "guarantees",
            given: [
                json!({"guaranteedMbps": 100}),
                json!({"guaranteedMbps": 60}),
                json!({"priority": 7}),
            ],
            shown: [
                "rate 100M ceil 200M prio 7",
                "rate 60M ceil 200M prio 7",
                "prio 0",
            ],
            wanted: [Wanted::AtLeast(100.0), Wanted::AtLeast(60.0), Wanted::Anything],
        },
        Test {
            name: "ceilings",
            given: [
                json!({"guaranteedMbps": 60, "ceilingMbps": 100, "priority": 1}),
                json!({"ceilingMbps": 50, "priority": 1}),
                Value::Null,
            ],
            shown: ["rate 60M ceil 100M prio 6", "ceil 50M prio 6", "ceil 200M prio 7"],
            wanted: [Wanted::Exactly(100.0), Wanted::Exactly(50.0), Wanted::Anything],
        },
        Test {
            name: "spare",
            given: [
                json!({"guaranteedMbps": 40}),
                json!({"guaranteedMbps": 40}),
                json!({"guaranteedMbps": 40}),
            ],
            shown: ["rate 40M ceil 200M prio 7"; 3],
            wanted: [Wanted::AtLeast(40.0); 3],
        },
    ]
}

/// The slices' pods in two clusters, and which way they send.
struct Scene<'a> {
    environment: &'a Environment,
    /// At the hub's node, whose uplink is shared, by slice.
    near: Vec<Member>,
    far: Vec<Member>,
    /// Bytes of frames for each byte that TCP carries.
    overhead: f64,
}

const DIRECTIONS: [&str; 2] = ["egress", "ingress"];

impl Scene<'_> {
    fn pair(&self, direction: &str, slice: usize) -> (&Member, &Member) {
        let (near, far) = (&self.near[slice], &self.far[slice]);
        match direction {
            "egress" => (near, far),
            _ => (far, near),
        }
    }

    /// Mbit/s of frames that arrive.
    async fn stream(&self, direction: &str, slice: usize, seconds: &str) -> Result<f64> {
        let (from, to) = self.pair(direction, slice);
        let gbps = from.tcp(to, to.v4()?, seconds).await?;
        Ok(gbps * 1000.0 * self.overhead)
    }

    async fn give(&self, given: &[Value; 3], shown: &[&str; 3]) -> Result<()> {
        let near = &self.near[0];
        for (slice, given) in SLICES.into_iter().zip(given) {
            self.environment.give(slice, given).await?;
        }
        for (slice, shown) in SLICES.into_iter().zip(shown) {
            self.environment
                .await_limits(&near.cluster, near.node(), slice, shown)
                .await?;
        }
        Ok(())
    }

    /// The 99th percentile of round trips of the first slice, in ms.
    async fn round_trip_p99(&self, direction: &str) -> Result<f64> {
        let (from, to) = self.pair(direction, 0);
        let address = to.v4()?.to_string();
        let answer = from.probe(&["ping", &address, "--count", PINGS]).await?;
        ensure!(answer["received"] == answer["sent"], "pings are lost: {answer}");
        answer["rtt_ms"]["p99"].as_f64().context("a round trip")
    }
}

/// Runs all tests and writes what came of them.
///
/// # Errors
/// Where a step fails.
pub async fn run(options: &Options) -> Result<()> {
    let progress = Progress::start();
    let environment = Environment::open().await?;
    environment.lab()?;
    let scene = scene(&environment).await?;
    progress.done("three slices are Ready, their gateways on one node of each cluster");
    let mut figures = Figures::default();
    for test in tests() {
        scene.give(&test.given, &test.shown).await?;
        for direction in DIRECTIONS {
            let mut rates = [vec![], vec![], vec![]];
            for _ in 0..options.rounds {
                let streams = (0..SLICES.len()).map(|slice| scene.stream(direction, slice, &options.seconds));
                let round = try_join_all(streams).await?;
                for (slice, mbps) in round.into_iter().enumerate() {
                    rates[slice].push(mbps);
                }
            }
            for ((slice, wanted), rates) in SLICES.into_iter().zip(test.wanted).zip(&rates) {
                let name = format!("{}/{direction}/{slice}", test.name);
                figures.add("weft", &name, "mbps", "Mbit/s", rates);
                let errors: Vec<_> = rates.iter().filter_map(|mbps| wanted.error(*mbps)).collect();
                if let Some((metric, _)) = errors.first() {
                    let values: Vec<f64> = errors.iter().map(|(_, error)| *error).collect();
                    figures.add("weft", &name, metric, "%", &values);
                }
            }
            progress.done(format!("{}, {direction}", test.name));
        }
    }
    let first = json!({"guaranteedMbps": 20, "priority": 7});
    let shown = ["rate 20M ceil 200M prio 0", "prio 7", "prio 7"];
    scene.give(&[first, Value::Null, Value::Null], &shown).await?;
    for direction in DIRECTIONS {
        let (mut idle, mut loaded, mut ratios) = (vec![], vec![], vec![]);
        for _ in 0..options.rounds {
            let quiet = scene.round_trip_p99(direction).await?;
            let load = try_join(
                scene.stream(direction, 1, LOAD_SECONDS),
                scene.stream(direction, 2, LOAD_SECONDS),
            );
            let pings = async {
                // After slow start.
                tokio::time::sleep(Duration::from_secs(2)).await;
                scene.round_trip_p99(direction).await
            };
            let (rates, busy) = try_join(load, pings).await?;
            let total = rates.0 + rates.1;
            ensure!(
                total > UPLINK_MBPS * 0.8,
                "the uplink is not full: {total:.0} Mbit/s"
            );
            idle.push(quiet);
            loaded.push(busy);
            ratios.push(busy / quiet);
        }
        let name = format!("priority/{direction}/gold");
        figures.add("weft", &name, "idle_p99_ms", "ms", &idle);
        figures.add("weft", &name, "loaded_p99_ms", "ms", &loaded);
        figures.add("weft", &name, "high_prio_p99_ratio", "", &ratios);
        progress.done(format!("priority, {direction}"));
    }
    for slice in SLICES {
        environment.remove_slice(slice).await?;
        environment.remove_namespaces(&namespace(slice)).await?;
    }
    say(figures.table());
    figures.write(&options.out)?;
    let svg = page::svg(&figures);
    docs::write(&options.out.with_extension("svg"), &svg)?;
    if options.docs {
        docs::write(&docs::folder().join("plots/qos.svg"), &svg)?;
        docs::replace("benchmarks.md", "qos", &page::text(&figures, &machine::line()))?;
    }
    progress.done(format!("written to {}", options.out.display()));
    Ok(())
}

fn namespace(slice: &str) -> String {
    format!("weft-qos-{slice}")
}

async fn scene(environment: &Environment) -> Result<Scene<'_>> {
    let hub = environment.hub()?;
    for cluster in &environment.clusters {
        let nodes = cluster.nodes().await?;
        ensure!(
            nodes.len() == 1,
            "cluster {} has {} nodes: slices compete where their gateways share one; `make bench-qos` makes such a lab",
            cluster.name,
            nodes.len()
        );
    }
    let node = hub.nodes().await?.remove(0);
    let uplink = format!("{UPLINK_MBPS}M");
    hub.annotate_node(&node, annotations::UPLINK, Some(&uplink))
        .await?;
    let (mut near, mut far, mut overhead) = (vec![], vec![], 1.0);
    for (place, slice) in (90..).zip(SLICES) {
        let spec = json!({"subnets": [format!("10.{place}.0.0/16")]});
        let made = environment.slice(slice, spec).await?;
        let mtu = made.status.and_then(|status| status.mtu).context("its MTU")?;
        // Ethernet; IPv4, TCP and its timestamps.
        overhead = f64::from(mtu + 14) / f64::from(mtu - 20 - 32);
        for member in environment.members(slice, &namespace(slice)).await? {
            match member.cluster.name == hub.name {
                true => near.push(member),
                false => far.push(member),
            }
        }
    }
    ensure!(
        near.len() == SLICES.len() && far.len() == SLICES.len(),
        "two clusters are needed"
    );
    Ok(Scene {
        environment,
        near,
        far,
        overhead,
    })
}
