//! What a flood of bogus handshakes costs a flow: `make bench-flood`. Fails below four fifths of the throughput that
//! the flow has while the same flood goes to a port where nobody listens.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should stop")]
#![expect(clippy::print_stdout, reason = "its result")]
#![allow(dead_code, unused_imports, reason = "the lab has more than is used here")]

#[path = "../../tests/netns/flood.rs"]
mod flood;
#[path = "../../tests/netns/lab/mod.rs"]
mod lab;

use std::time::Duration;

fn main() {
    let lab = lab::Lab::new(&[1, 1], lab::Underlay::V4);
    let figures = flood::measure(&lab, 9, Duration::from_secs(1), 50_000);
    let show = |name: &str, values: &[f64]| {
        let [min, median, max] = [0, values.len() / 2, values.len() - 1].map(|at| values[at] / 1e9);
        println!("{name:<24} {median:.2} Gbit/s [{min:.2}-{max:.2}]");
    };
    println!("flood of {:.0} messages a second at least", figures.rate);
    show("flood at a closed port", &figures.closed);
    show("flood at the gateway", &figures.open);
    let [first, last] = figures.memory;
    println!(
        "ratio {:.3}; resident memory {first} KiB, at the end {last} KiB",
        figures.ratio()
    );
    assert!(
        figures.rate > 45_000.0,
        "the machine did not make the flood that is wanted"
    );
    assert!(figures.ratio() >= 0.8, "below four fifths");
    assert!(last <= first + 1024, "memory grew");
}
