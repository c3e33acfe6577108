//! `weft-lab measure`: Weft's own figures on the lab, with real pods.
//!
//! ```text
//! creation   SliceConfig → interfaces → first ping between clusters
//! attach     label → interface, new pod → Running, beside pods outside slices
//! deployment 60 pods of a Deployment → all Running, beside as many outside
//! path       round trips and TCP inside a cluster and between two
//! idle       memory and processor time of each process
//! ```
//!
//! Each run prints a table and writes `target/bench/lab.json`, in the form of
//! `make bench`. The data path by itself, beside other carriers, is measured there.

mod attach;
mod creation;
mod docs;
pub mod failover;
mod figures;
mod machine;
mod paths;
mod processes;
pub mod qos;
pub mod scale;
mod watch;

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::harness::Environment;
use crate::progress::{Progress, say};
use figures::Figures;

/// The slice that everything but creation is measured in.
const SLICE: &str = "measure";

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    Creation,
    Attach,
    Deployment,
    Path,
    Idle,
}

impl Part {
    const ALL: [Self; 5] = [
        Self::Creation,
        Self::Attach,
        Self::Deployment,
        Self::Path,
        Self::Idle,
    ];
}

/// Measures the named parts, all when none is named, and writes the rows to `out`.
///
/// # Errors
/// Where a step fails; nothing is written then.
pub async fn run(parts: &[Part], out: &Path) -> Result<()> {
    let progress = Progress::start();
    let environment = Environment::open().await?;
    environment.lab()?;
    let parts = if parts.is_empty() { &Part::ALL[..] } else { parts };
    let mut figures = Figures::default();
    environment
        .slice(
            SLICE,
            json!({"subnets": ["10.78.0.0/16", "fd42:78::/64"], "join": {"podLabels": true}}),
        )
        .await
        .context("install Weft and create a slice")?;
    progress.done("Weft is installed, the slice is Ready");
    for part in parts {
        match part {
            Part::Creation => creation::measure(&environment, &mut figures, &progress).await,
            Part::Attach => {
                attach::live(&environment, &mut figures, &progress).await?;
                attach::new(&environment, &mut figures, &progress).await
            }
            Part::Deployment => attach::deployment(&environment, &mut figures, &progress).await,
            Part::Path => paths::measure(&environment, &mut figures, &progress).await,
            Part::Idle => processes::idle(&environment, &mut figures).await,
        }
        .with_context(|| format!("measure {part:?}"))?;
    }
    environment.remove_slice(SLICE).await?;
    say(figures.table());
    figures.write(out)?;
    paths::compare(&figures, &out.with_file_name("datapath.json"))?;
    progress.done(format!("written to {}", out.display()));
    Ok(())
}
