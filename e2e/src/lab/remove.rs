//! `weft-lab down`, and the same before an `up` that finds remains.

use std::fs;

use anyhow::{Context, Result};

use super::cgroup::Layout;
use super::dir::{LabDir, Record, read_json};
use super::machine::END;
use super::network;
use super::process::Identity;
use super::sysctl;

/// What a directory and this machine say about a lab.
#[derive(Debug, PartialEq, Eq)]
pub enum Remains {
    /// Nothing at all.
    None,
    /// Every machine of the record runs.
    Running,
    /// Something is there, but not a whole lab.
    Some,
}

/// Looks for a lab, dead or alive.
pub fn look(dir: &LabDir, groups: &Layout) -> Result<Remains> {
    let Some(record) = dir.read_record().unwrap_or_default() else {
        let traces =
            !network::lab_namespaces()?.is_empty() || !groups.processes().is_empty() || dir.record().exists();
        return Ok(if traces { Remains::Some } else { Remains::None });
    };
    let whole = network::missing(&record.plan).is_empty()
        // Asked, not looked up: a process that was killed a moment ago still has its number.
        && record.plan.machines().all(|machine| super::machine::units(dir, &machine.name).is_ok());
    Ok(if whole { Remains::Running } else { Remains::Some })
}

/// Removes everything that `up` made, however much of it is left. Whatever fails does not keep the rest alive.
pub fn all(dir: &LabDir) -> Result<()> {
    let groups = Layout::detect()?;
    let mut troubles = Vec::new();
    let mut note = |result: Result<()>| troubles.extend(result.err());

    // Pid 1 of each machine first: the kernel takes the rest of its namespace along.
    for identity in recorded(dir) {
        note(identity.kill(END));
    }
    // Then whoever is left in the lab's control groups, also from a lab whose records are lost.
    for identity in groups.processes() {
        note(identity.kill(END));
    }
    note(network::remove_all());
    note(groups.remove_all(END));
    note(sysctl::restore(&dir.sysctl()));
    if let Some(trouble) = troubles.into_iter().next() {
        return Err(trouble);
    }
    if dir.root().exists() && is_ours(dir) {
        fs::remove_dir_all(dir.root()).with_context(|| format!("remove {}", dir.root().display()))?;
    }
    Ok(())
}

fn recorded(dir: &LabDir) -> Vec<Identity> {
    let record: Option<Record> = dir.read_record().unwrap_or_default();
    let machines = record.iter().flat_map(|record| record.plan.machines());
    machines
        .filter_map(|machine| read_json(&dir.machine(&machine.name).identity()).ok())
        .collect()
}

/// A directory that somebody named by mistake is not to be emptied.
fn is_ours(dir: &LabDir) -> bool {
    dir.record().exists()
}
