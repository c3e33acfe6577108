#![no_main]
#![allow(dead_code, clippy::unwrap_used, reason = "shared with the simulation")]

#[path = "../../tests/sim/machine.rs"]
mod machine;
#[path = "../../tests/fuzz/model.rs"]
mod model;
#[path = "../../tests/sim/world.rs"]
mod world;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| model::follow(bytes));
