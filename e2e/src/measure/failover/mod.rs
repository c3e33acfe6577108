//! What traffic between clusters feels when something breaks, or is taken away as planned.
//!
//! Every round: a UDP conversation (a datagram each 5 ms) and a TCP connection between two clusters, one fault at a
//! random moment, healed where it does not heal itself. An outage is the longest silence of the UDP conversation where
//! a datagram was lost at all.
//!
//! ```text
//! scene     the clusters, the conversations, the fault ──► a Round
//! record    failover-rounds.json: the rounds of each fault's latest run, and failover.json, the figures of them
//! plot      failover.svg: every round of every fault
//! page      the table in docs/benchmarks.md
//! ```

mod page;
mod plot;
mod record;
mod scene;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{docs, machine};
use crate::{
    harness::Environment,
    progress::{Progress, say},
};
use record::Record;
pub use scene::Scene;

/// What 99 of 100 outages that nobody planned must not exceed, in milliseconds.
const LIMIT_MS: f64 = 500.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The process of a gateway is killed; the new one has another key.
    GatewayKill,
    /// A node loses its network.
    NodeCut,
    /// A node's plug is pulled; it boots again when the conversations are over.
    NodeOff,
    /// Nothing passes between two nodes of different clusters.
    PathCut,
    /// The same in one direction.
    OneWayCut,
    /// A gateway is told to stop.
    Drain,
    /// All gateways of a cluster are replaced, one after the other.
    RollingUpdate,
    /// All gateways of the slice change their keys.
    Rotation,
}

impl Fault {
    pub const ALL: [Self; 8] = [
        Self::GatewayKill,
        Self::NodeCut,
        Self::NodeOff,
        Self::PathCut,
        Self::OneWayCut,
        Self::Drain,
        Self::RollingUpdate,
        Self::Rotation,
    ];

    /// Nothing may be lost.
    pub const fn is_planned(self) -> bool {
        matches!(self, Self::Drain | Self::RollingUpdate | Self::Rotation)
    }

    /// Who is on the node that is struck has no network either.
    const fn takes_the_node(self) -> bool {
        matches!(self, Self::NodeCut | Self::NodeOff)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::GatewayKill => "gateway-kill",
            Self::NodeCut => "node-cut",
            Self::NodeOff => "node-off",
            Self::PathCut => "path-cut",
            Self::OneWayCut => "one-way-cut",
            Self::Drain => "drain",
            Self::RollingUpdate => "rolling-update",
            Self::Rotation => "rotation",
        }
    }

    /// How long conversations last: until after everything is healed.
    const fn lasts(self) -> Duration {
        match self {
            Self::RollingUpdate => Duration::from_secs(12),
            Self::Rotation => Duration::from_secs(10),
            _ => Duration::from_secs(5),
        }
    }
}

/// What one round showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    pub fault: Fault,
    /// When it ended (RFC 3339).
    pub at: String,
    /// Whom it struck, who talked, the silences of their UDP conversation, and when datagrams left that had no answer.
    pub what: String,
    pub outage_ms: f64,
    pub lost: f64,
    /// The longest silence of the TCP connection.
    pub tcp_ms: f64,
}

/// What `weft-lab failover` is to do.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which; every kind when nothing is named.
    faults: Vec<Fault>,
    /// Of each kind; 0 draws again what was measured before, and needs no lab.
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// Makes the same choices again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Figures; the rounds are written to FILE-rounds.json beside it, the plot to FILE.svg.
    #[arg(long, value_name = "FILE.json", default_value = "target/bench/failover.json")]
    out: std::path::PathBuf,
    /// Write table and plot into docs/ too.
    #[arg(long)]
    docs: bool,
}

/// So many rounds of each fault; prints a table and writes figures, rounds and a plot. What earlier runs found of
/// other faults on this machine stays in all of them.
///
/// # Errors
/// Where a connection breaks, or a step fails; the rounds until then are written, but not drawn.
pub async fn run(options: &Options) -> Result<()> {
    let progress = Progress::start();
    let mut record = Record::open(&options.out, &machine::line())?;
    if options.rounds > 0 {
        measure(options, &mut record, &progress).await?;
    }
    ensure!(
        !record.is_empty(),
        "{} has no rounds yet: run with --rounds 1 or more",
        record.rounds_file().display()
    );
    record.write()?;
    say(record.figures().table());
    let svg = plot::svg(&record);
    docs::write(&options.out.with_extension("svg"), &svg)?;
    if options.docs {
        docs::write(&docs::folder().join("plots/failover.svg"), &svg)?;
        docs::replace("benchmarks.md", "failover", &page::text(&record))?;
    }
    progress.done(format!("written to {}", options.out.display()));
    Ok(())
}

async fn measure(options: &Options, record: &mut Record, progress: &Progress) -> Result<()> {
    let environment = Environment::open().await?;
    let mut scene = Scene::open(&environment, options.seed).await?;
    progress.done(format!("slice and pods are there, seed {}", options.seed));
    let faults = match options.faults.as_slice() {
        [] => &Fault::ALL[..],
        some => some,
    };
    for fault in faults {
        let mut seen = Vec::new();
        for number in 1..=options.rounds {
            let round = scene.round(*fault).await.with_context(|| fault.name())?;
            say(format!(
                "{number} of {}: {}: UDP lost {} in {} ms, TCP silent for {} ms",
                options.rounds, round.what, round.lost, round.outage_ms, round.tcp_ms
            ));
            seen.push(round);
            // After each, because a run takes an hour and may be stopped.
            record.replace(*fault, &seen);
            record.write()?;
        }
        progress.done(format!("{} {}", seen.len(), fault.name()));
    }
    scene.close().await
}
