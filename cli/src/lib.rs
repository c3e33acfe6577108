//! The command line: `slicectl`, and `kubectl slice` as a plugin of kubectl.
//!
//! ```text
//!  install hub ─► token issue b ─► (at b) join --token … ─► create slice shop ─► attach ns cart shop ─► status, verify
//! ```
//!
//! It does with the user's own credential what the user could do with kubectl and helm, prints what it did, and where
//! something fails what to try. Exit status: 0 done, 1 failed or not in order, 2 wrong usage.
//!
//! Deliberately not here: anything that must go on after the command ends. That is the operator's.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod age;
pub mod args;
#[cfg(test)]
mod chart_readme;
mod commands;
mod connect;
mod exec;
mod objects;
mod output;
pub mod peer;
mod selector;
pub mod token;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Args, Command};

/// What a command found: everything in order, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    Bad,
}

/// Runs the command line under the name it was called by.
pub fn main(name: &'static str) -> ExitCode {
    let matches = Args::command().name(name).bin_name(name).get_matches();
    let args = match Args::from_arg_matches(&matches) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    slice_runtime::client::install_crypto_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let target = args.target.clone();
    match runtime.block_on(run(name, args)) {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::FAILURE,
        Err(error) => {
            let mut line = objects::explain(&error);
            if objects::is_unknown_kind(&error)
                && let Some(roles) = runtime.block_on(connect::roles(&target))
            {
                line = format!("{line} {roles}");
            }
            eprintln!("error: {line}");
            ExitCode::FAILURE
        }
    }
}

async fn run(name: &'static str, args: Args) -> anyhow::Result<Outcome> {
    let target = args.target;
    match args.command {
        Command::Install(what) => commands::install::install(&target, what).await,
        Command::Uninstall(what) => commands::install::uninstall(&target, what).await,
        Command::Token(what) => commands::token::run(&target, what).await,
        Command::Join(what) => commands::join::run(&target, what).await,
        Command::Leave(what) => commands::leave::run(&target, what).await,
        Command::Create(what) => commands::slice::create(&target, what).await,
        Command::Delete(what) => commands::delete::run(&target, what).await,
        Command::Attach(what) => commands::attach::attach(&target, what).await,
        Command::Detach(what) => commands::attach::detach(&target, what).await,
        Command::Peer(what) => commands::peer::run(&target, what).await,
        Command::Renew(args::Keys::Keys(what)) => commands::keys::renew(&target, what).await,
        Command::Revoke(args::Keys::Keys(what)) => commands::keys::revoke(&target, what).await,
        Command::Get(what) => commands::get::run(&target, what).await,
        Command::Status(what) => commands::status::run(&target, what).await,
        Command::Node(what) => commands::node::run(&target, what).await,
        Command::Verify(what) => commands::verify::run(&target, what).await,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Args::command(), name, &mut std::io::stdout());
            Ok(Outcome::Good)
        }
    }
}
