//! What Weft's processes on the lab's machines take: memory and processor time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Figures;
use crate::harness::Environment;
use crate::lab::cgroup::Layout;
use crate::lab::running::Running;

/// Hundredths of a second (proc_pid_stat(5)) over this long resolve a sixtieth of a per mille.
const IDLE: Duration = Duration::from_secs(60);
/// Programs of Weft, as /proc/PID/comm names them.
const OURS: [&str; 4] = ["slice-operator", "slice-netop", "slice-gateway", "slice-dns"];

/// One process at one moment.
#[derive(Debug, Clone)]
pub(super) struct Usage {
    /// The program, and the role of an operator.
    pub(super) program: String,
    /// Since it started.
    pub(super) seconds: f64,
    resident_mib: f64,
    at: Instant,
}

/// Every process of Weft in the lab, by process id.
pub(super) fn all(lab: &Running) -> Result<BTreeMap<i32, Usage>> {
    let machines: Vec<&str> = lab
        .plan()
        .machines()
        .map(|machine| machine.name.as_str())
        .collect();
    let ids = Layout::detect()?.processes();
    Ok(ids
        .into_iter()
        // A process that ends meanwhile is none of those that are measured.
        .filter_map(|identity| Some((identity.pid, usage(identity.pid, &machines)?)))
        .collect())
}

fn usage(pid: i32, machines: &[&str]) -> Option<Usage> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let command = read("cmdline")?;
    let mut words = command.split('\0');
    let program = words.next()?.rsplit('/').next()?.to_owned();
    if !OURS.contains(&program.as_str()) {
        return None;
    }
    let role = words.next().filter(|_| program == "slice-operator");
    let groups = read("cgroup")?;
    machines
        .iter()
        .find(|name| groups.contains(&format!("/weft-lab/{name}/")))?;
    let stat = read("stat")?;
    let fields: Vec<f64> = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    let status = read("status")?;
    let resident: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(Usage {
        program: role.map_or_else(|| program.clone(), |role| format!("{program} {role}")),
        seconds: fields.iter().sum::<f64>() / 100.0,
        resident_mib: resident / 1024.0,
        at: Instant::now(),
    })
}

/// Processor seconds between two looks, per program.
pub(super) fn spent(before: &BTreeMap<i32, Usage>, after: &BTreeMap<i32, Usage>) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for (pid, then) in before {
        if let Some(now) = after.get(pid) {
            *sums.entry(then.program.clone()).or_default() += now.seconds - then.seconds;
        }
    }
    sums
}

/// A row per program: its processes' memory, and their share of one processor between the two looks.
pub(super) fn report(
    figures: &mut Figures,
    test: &str,
    before: &BTreeMap<i32, Usage>,
    after: &BTreeMap<i32, Usage>,
) {
    let mut rows: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for (pid, now) in after {
        let Some(then) = before.get(pid) else { continue };
        let share = (now.seconds - then.seconds) / (now.at - then.at).as_secs_f64() * 100.0;
        let (memory, cpu) = rows.entry(&now.program).or_default();
        memory.push(now.resident_mib);
        cpu.push(share);
    }
    for (program, (memory, cpu)) in rows {
        figures.add(program, test, "rss_mib", "MiB", &memory);
        figures.add(program, test, "cpu_percent", "%", &cpu);
    }
}

/// Seconds that all processors of this machine were busy, since it started (proc_stat(5)).
pub(super) fn busy() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let fields = line.split_whitespace().skip(1).take(8);
    // User, nice, system, then idle and waiting for disks, then interrupts and what the hypervisor took.
    let busy = fields.enumerate().filter(|(index, _)| ![3, 4].contains(index));
    let ticks: f64 = busy.filter_map(|(_, field)| field.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

/// Nothing happens for a minute.
pub(super) async fn idle(environment: &Environment, figures: &mut Figures) -> Result<()> {
    let lab = environment.lab()?;
    let (before, start) = (all(lab).context("look at the lab's processes")?, busy()?);
    tokio::time::sleep(IDLE).await;
    report(figures, "idle", &before, &all(lab)?);
    // With everything else: what the lab's own control planes and kubelets take from whatever is measured on it.
    let share = (busy()? - start) / IDLE.as_secs_f64() * 100.0;
    figures.add("machine", "idle", "cpu_percent", "%", &[share]);
    Ok(())
}
