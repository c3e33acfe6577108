//! Settings of the whole real machine that the lab's programs change or that
//! the lab needs larger: saved before the start, put back after the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::dir::{read_json, write_json};

/// Written by every kubelet (`pkg/kubelet/cm`, setupKernelTunables): they have no namespace.
const CHANGED: [&str; 6] = [
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
];
/// Shared by all nodes here; the usual defaults are made for one.
const AT_LEAST: [(&str, u64); 2] = [
    ("fs.inotify.max_user_instances", 8192),
    ("fs.inotify.max_user_watches", 1_048_576),
];

/// Remembers the settings in `file` and raises those that must be larger.
pub fn save(file: &Path) -> Result<()> {
    let names = CHANGED.into_iter().chain(AT_LEAST.map(|(name, _)| name));
    let before: BTreeMap<&str, String> = names.filter_map(|name| Some((name, read(name)?))).collect();
    write_json(file, &before)?;
    for (name, least) in AT_LEAST {
        if read(name)
            .and_then(|now| now.parse::<u64>().ok())
            .is_some_and(|now| now < least)
        {
            write(name, &least.to_string())?;
        }
    }
    Ok(())
}

/// Puts back what [`save`] remembered; nothing to do when it never ran.
pub fn restore(file: &Path) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    let before: BTreeMap<String, String> = read_json(file)?;
    for (name, value) in before {
        if read(&name).as_ref() != Some(&value) {
            write(&name, &value)?;
        }
    }
    fs::remove_file(file).context("forget the saved settings")
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

/// `None` where the kernel has no such setting.
fn read(name: &str) -> Option<String> {
    fs::read_to_string(path(name))
        .ok()
        .map(|text| text.trim().to_owned())
}

fn write(name: &str, value: &str) -> Result<()> {
    fs::write(path(name), value).with_context(|| format!("set {name} to {value}"))
}
