//! Parse, set up, run until told to stop. Stopping cleans nothing: pods go on talking.

use std::process::ExitCode;

use clap::Parser;
use slice_netop::{args::Args, driver};
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
    tracing::info!(version = version::VERSION, ?args, "starting");
    let stop = shutdown::on_signal()?;
    driver::run(args, client::local().await?, stop).await
}
