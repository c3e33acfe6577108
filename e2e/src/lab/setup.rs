//! `weft-lab setup`: everything that is made once per machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::images;
use super::preflight;
use super::programs::Cache;
use crate::progress::{Progress, say};

/// Debian's hook that decides whether a package may start its service (policy-rc.d, invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

pub fn setup() -> Result<()> {
    let progress = Progress::start();
    preflight::root()?;
    packages()?;
    progress.done("packages installed");
    let cache = Cache::open()?;
    cache.build()?;
    progress.done(format!("programs in {}", cache.bin().display()));
    images::build(&cache)?;
    progress.done(format!("images in {}", cache.images().display()));
    images::prepare(&cache, &progress)?;
    progress.done("set up");
    Ok(())
}

fn packages() -> Result<()> {
    let missing = preflight::missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    if preflight::find("apt-get").is_none() {
        bail!(
            "install {} with this machine's package manager: it has no apt-get",
            missing.join(", ")
        );
    }
    say(format!("installing {}", missing.join(", ")));
    let policy = Policy::forbid_starts()?;
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        // Its output is the progress.
        apt.status()
            .with_context(|| format!("run apt-get {}", arguments.join(" ")))
    };
    let install: Vec<&str> = ["install", "-y", "--no-install-recommends"]
        .into_iter()
        .chain(missing)
        .collect();
    let done = apt(&["update"])?.success() && apt(&install)?.success();
    drop(policy);
    if !done {
        bail!("apt-get failed, see above");
    }
    preflight::packages()
}

/// Keeps apt from starting etcd and containerd on the real machine; removed on drop unless somebody had one.
struct Policy {
    ours: bool,
}

impl Policy {
    fn forbid_starts() -> Result<Self> {
        let path = Path::new(POLICY);
        if path.exists() {
            return Ok(Self { ours: false });
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("write {POLICY}"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}
