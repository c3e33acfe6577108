//! Parse, set up, run one role until a signal stops it.

use std::process::ExitCode;

use clap::Parser;
use slice_operator::{
    args::{Args, Command},
    io,
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
        Command::Hub(options) => io::hub::run(options, stop).await,
        Command::HubTeardown(options) => io::teardown::hub::run(options).await,
        Command::Cluster(options) => io::member::run(*options, stop).await,
        Command::ClusterTeardown(options) => io::teardown::member::run(options).await,
    }
}
