//! What a gateway costs that carries nothing: `make bench-idle`. Fails above a fiftieth of a core for 500 peers.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should stop")]
#![expect(clippy::print_stdout, reason = "its result")]
#![allow(dead_code, unused_imports, reason = "the lab has more than is used here")]

#[path = "../../tests/netns/farm.rs"]
mod farm;
#[path = "../../tests/netns/lab/mod.rs"]
mod lab;
#[path = "../report/mod.rs"]
mod report;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use report::Results;

const PEERS: u32 = 500;
/// Of a core, in percent.
const LIMIT: f64 = 2.0;
const WINDOW: Duration = Duration::from_secs(4);
const CPU: (&str, &str) = ("cpu", "% of a core");

fn main() {
    let lab = lab::Lab::new(&[1, 1], lab::Underlay::V4);
    let mut results = Results::default();
    let mut measure = |test: &str, windows: usize| {
        for _ in 0..windows {
            results.add("weft", test, CPU, 100.0 * share(lab.pids()[0]));
        }
    };
    // A path is in use for ten seconds after its last frame, and after it was made.
    let idle = || thread::sleep(Duration::from_secs(13));
    idle();
    measure("1 peer, idle", 3);
    let farm = farm::Farm::start(&lab, PEERS);
    measure("500 peers, in use", 2);
    idle();
    measure("500 peers, idle", 5);
    drop(farm);
    let rows = results.rows();
    for row in &rows {
        println!(
            "{:<20} {:>6.2} % of a core [{:.2}-{:.2}], {} times {} s",
            row.test,
            row.median,
            row.min,
            row.max,
            row.n,
            WINDOW.as_secs()
        );
    }
    println!("{}", report::write_json("idle", &rows).display());
    let idle = report::find(&rows, "weft", "500 peers, idle", CPU.0).unwrap();
    assert!(
        idle.median <= LIMIT,
        "{:.2} % of a core for {PEERS} idle peers",
        idle.median
    );
}

/// The share of a core that a process takes.
fn share(pid: u32) -> f64 {
    let (start, before) = (Instant::now(), on_cpu(pid));
    thread::sleep(WINDOW);
    (on_cpu(pid) - before).as_secs_f64() / start.elapsed().as_secs_f64()
}

/// Time that all threads of a process were on a processor (the kernel's sched-stats.rst).
fn on_cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let times = tasks.map(|task| {
        let stat = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        stat.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(times.sum())
}
