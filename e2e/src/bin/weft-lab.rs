//! The lab's command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use slice_e2e::lab::dir::{self, LabDir};
use slice_e2e::lab::plan::Plan;
use slice_e2e::lab::{images, init, remove, setup, up};
use slice_e2e::progress::{Progress, say};

/// Real Kubernetes clusters on this machine, without a container engine.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where the lab keeps everything it makes.
    #[arg(long, global = true, env = "WEFT_LAB_DIR", default_value = dir::DEFAULT)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install missing packages, build Kubernetes and the images of the nodes. Once per machine.
    Setup,
    /// Start clusters and wait until their nodes and CoreDNS are ready.
    Up {
        /// NAME:NODES of every cluster.
        #[arg(long, env = "WEFT_LAB_CLUSTERS", default_value = "a:2,b:2")]
        clusters: Plan,
    },
    /// Remove everything that `up` made.
    Down,
    #[command(subcommand, hide = true)]
    Machine(Inner),
}

/// What the lab runs of itself.
#[derive(Debug, Subcommand)]
enum Inner {
    Boot {
        name: String,
    },
    Init {
        name: String,
    },
    Import {
        root: PathBuf,
        images: PathBuf,
    },
    #[command(subcommand)]
    Wait(Wait),
}

#[derive(Debug, Subcommand)]
enum Wait {
    Tcp { address: String },
    Socket { path: PathBuf },
    Api { kubeconfig: PathBuf },
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format!("weft-lab: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let dir = LabDir::new(&args.dir);
    match &args.command {
        Verb::Setup => setup::setup(),
        Verb::Up { clusters } => up::up(&dir, clusters),
        Verb::Down => {
            let progress = Progress::start();
            remove::all(&dir)?;
            progress.done("down");
            Ok(())
        }
        Verb::Machine(Inner::Boot { name }) => init::boot(&dir, name),
        Verb::Machine(Inner::Init { name }) => init::init(&dir, name),
        Verb::Machine(Inner::Import { root, images }) => images::import(root, images),
        Verb::Machine(Inner::Wait(wait)) => wait.run(),
    }
}

impl Wait {
    /// Comes back when the thing is there, or with an error; the supervisor asks again then.
    fn run(&self) -> Result<()> {
        let deadline = std::time::Duration::from_secs(60);
        match self {
            Self::Tcp { address } => images::wait_tcp(address, deadline),
            Self::Socket { path } => images::wait_socket(path, deadline),
            Self::Api { kubeconfig } => up::runtime()?.block_on(async {
                let config =
                    kube::config::Kubeconfig::read_from(kubeconfig).context("read the kubeconfig")?;
                let context = config
                    .current_context
                    .context("a kubeconfig without a current context")?;
                slice_e2e::harness::connect(kubeconfig, &context)
                    .await?
                    .await_api(deadline)
                    .await
            }),
        }
    }
}
