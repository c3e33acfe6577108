//! Was the machine ours? A measurement during which somebody else computed says nothing and is repeated.

use std::{collections::BTreeMap, fs, time::Instant};

/// Share of the machine that others may use during a measurement.
const FOREIGN: f64 = 0.04;
/// How often a measurement is repeated before it counts as it is.
const ATTEMPTS: usize = 4;

/// Measures until the machine was ours, and counts into `disturbed` how often it was not.
pub(crate) fn measured<T>(ours: &[u32], disturbed: &mut usize, mut measure: impl FnMut() -> T) -> T {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let mut attempt = 1;
    loop {
        let (before, start) = (foreign(ours), Instant::now());
        let result = measure();
        let used: f64 = foreign(ours)
            .iter()
            .map(|(pid, time)| (time - before.get(pid).unwrap_or(&0.0)).max(0.0))
            .sum();
        if used <= FOREIGN * cores * start.elapsed().as_secs_f64() || attempt == ATTEMPTS {
            return result;
        }
        *disturbed += 1;
        attempt += 1;
    }
}

/// Seconds that each other program has run so far, with what its ended children have run.
fn foreign(ours: &[u32]) -> BTreeMap<u32, f64> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            if pid == std::process::id() || ours.contains(&pid) {
                return None;
            }
            // May have ended.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
            // The kernel's threads work for us; their parent is kthreadd, number 2 (proc_pid_stat(5)).
            if pid == 2 || fields[1] == "2" {
                return None;
            }
            let ticks: f64 = fields[11..15]
                .iter()
                .map(|field| field.parse::<f64>().unwrap())
                .sum();
            Some((pid, ticks / 100.0))
        })
        .collect()
}
