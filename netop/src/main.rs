//! Parse, set up, run until told to stop. Stopping cleans nothing: pods go on talking.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use slice_netop::{args::Args, driver, files::SHOW_SOCKET, show};
use slice_runtime::{client, shutdown, telemetry, version};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.show {
        let socket = args.run_dir.join(SHOW_SOCKET);
        if let Err(error) = show::print(&socket) {
            let text = format!("no agent answers on {}: {error}\n", socket.display());
            let _ = std::io::stderr().write_all(text.as_bytes());
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
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
