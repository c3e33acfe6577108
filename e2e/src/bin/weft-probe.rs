//! What tests run inside pods: one binary that talks at every layer and
//! answers in JSON, one object per line on standard output.

use std::process::ExitCode;

use clap::Parser;
use slice_e2e::probe::{Command, LOST, Verdict};

/// Talks at every layer, for tests. Results are JSON, one object per line.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match Args::parse().command.run() {
        Ok(Verdict::Done) => ExitCode::SUCCESS,
        Ok(Verdict::Lost) => LOST.into(),
        Err(error) => {
            slice_e2e::progress::say(serde_json::json!({"error": format!("{error:#}")}).to_string());
            ExitCode::FAILURE
        }
    }
}
