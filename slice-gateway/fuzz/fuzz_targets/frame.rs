#![no_main]
#![allow(dead_code, reason = "it holds all targets")]

#[path = "../../tests/fuzz/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| parsers::frame(bytes));
