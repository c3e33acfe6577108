//! Parse, set up, run one role until told to stop.

use std::process::ExitCode;

use clap::Parser;
use slice_operator::{
    args::{Args, Command},
    cluster, hub,
};
use slice_runtime::{client, shutdown, telemetry, version};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = run(args).await {
        tracing::error!(error = format!("{error:#}"), "stopped by an error");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::init(&args.log)?;
    client::install_crypto_provider();
    tracing::info!(version = version::VERSION, command = ?args.command, "starting");
    let stop = shutdown::on_signal()?;
    match args.command {
        Command::Hub(options) => hub::run(options, stop).await,
        Command::HubTeardown => hub::teardown::run().await,
        Command::Cluster(options) => cluster::run(options, stop).await,
        Command::ClusterTeardown(options) => cluster::teardown::run(options).await,
    }
}
