//! The chained CNI plugin: environment and standard input in, one JSON object out.

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use slice_netop::cni::plugin::{self, Environment};

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let environment = Environment {
        command: variable("CNI_COMMAND"),
        container_id: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        args: variable("CNI_ARGS"),
    };
    let mut stdin = String::new();
    // An unreadable input is an empty one, which the plugin refuses with the specification's error.
    let _ = std::io::stdin().read_to_string(&mut stdin);
    let (text, code) = match plugin::run(&environment, &stdin) {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (
            serde_json::to_string(&error).unwrap_or_default(),
            ExitCode::FAILURE,
        ),
    };
    let written = std::io::stdout().write_all(text.as_bytes());
    if written.is_err() { ExitCode::FAILURE } else { code }
}
