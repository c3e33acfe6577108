//! What the fuzz targets hold, over the corpora in the tree and over seeded random bytes, with the stable compiler.
//! `make fuzz` looks for more (see `slice-gateway/fuzz`).
//!
//! A failure prints the input: `WEFT_FUZZ_INPUT=<hex> cargo test -p slice-gateway --test fuzz -- <target>` runs it
//! alone.

#![expect(clippy::unwrap_used, reason = "a helper that fails should fail its test")]
#![expect(clippy::print_stderr, reason = "the input that fails")]

#[path = "../sim/machine.rs"]
#[allow(dead_code, reason = "shared with the simulation")]
mod machine;
mod model;
mod parsers;
#[path = "../sim/world.rs"]
#[allow(dead_code, reason = "shared with the simulation")]
mod world;

use std::{fmt::Write as _, panic::AssertUnwindSafe, path::Path};

use slice_gateway::proto::Random;

/// Runs a target over its corpus and over so many random inputs.
fn check(target: &str, run: fn(&[u8]), random: u64, longest: u64) {
    if let Ok(hex) = std::env::var("WEFT_FUZZ_INPUT") {
        let bytes = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        return run(&bytes.collect::<Vec<_>>());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut seeds = 0;
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        guard(
            target,
            &path.display().to_string(),
            &std::fs::read(&path).unwrap(),
            run,
        );
        seeds += 1;
    }
    assert!(seeds > 0, "{} is empty", folder.display());
    for seed in 0..random {
        let mut random = Random::new(seed);
        let length = random.number() % longest;
        let bytes: Vec<u8> = (0..length).map(|_| random.number() as u8).collect();
        guard(target, &format!("seed {seed}"), &bytes, run);
    }
}

/// Names the input when it fails.
fn guard(target: &str, what: &str, bytes: &[u8], run: fn(&[u8])) {
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run(bytes)));
    if let Err(panic) = result {
        let hex = bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        eprintln!(
            "{what} fails; alone: WEFT_FUZZ_INPUT={hex} cargo test -p slice-gateway --test fuzz -- {target}"
        );
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn frame() {
    check("frame", parsers::frame, 20_000, 120);
}

#[test]
fn packet() {
    check("packet", parsers::packet, 20_000, 120);
}

#[test]
fn superframe() {
    check("superframe", parsers::superframe, 20_000, 400);
}

#[test]
fn merge() {
    check("merge", parsers::merge, 1000, 2000);
}

#[test]
fn config() {
    check("config", parsers::config, 1000, 200);
}

#[test]
fn handover() {
    check("handover", parsers::handover, 1000, 200);
}

#[test]
fn gateway() {
    check("gateway", model::follow, 40, 400);
}
