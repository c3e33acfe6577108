//! The state directory: everything the lab writes is below it.
//!
//! ```text
//! /var/lib/weft-lab/
//!   lab.json                 the plan and options; its presence means "there is something to remove"
//!   sysctl.json              machine-wide settings as they were before
//!   weft-lab                 the program that runs as pid 1 of the machines
//!   kubeconfig               contexts of all clusters
//!   loaded.json              which image digest each cluster has
//!   pki/CLUSTER/             keys, certificates, kubeconfigs
//!   machines/NAME/           machine.json units.json etc/ log/ root/ state/ control.sock
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::plan::Plan;

/// Where the lab lives unless told otherwise.
pub const DEFAULT: &str = "/var/lib/weft-lab";

#[derive(Debug, Clone)]
pub struct LabDir {
    root: PathBuf,
}

/// What `lab.json` holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    pub plan: Plan,
    #[serde(default)]
    pub options: Options,
    /// Programs of Kubernetes and its friends, built by `weft-lab setup`.
    pub programs: PathBuf,
}

impl LabDir {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn record(&self) -> PathBuf {
        self.root.join("lab.json")
    }

    pub fn sysctl(&self) -> PathBuf {
        self.root.join("sysctl.json")
    }

    pub fn program(&self) -> PathBuf {
        self.root.join("weft-lab")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    pub fn loaded(&self) -> PathBuf {
        self.root.join("loaded.json")
    }

    pub fn pki(&self, cluster: &str) -> PathBuf {
        self.root.join("pki").join(cluster)
    }

    pub fn machine(&self, name: &str) -> MachineDir {
        MachineDir {
            root: self.root.join("machines").join(name),
        }
    }

    /// The running lab's record, or `None` when there is no lab in this directory.
    pub fn read_record(&self) -> Result<Option<Record>> {
        if !self.record().exists() {
            return Ok(None);
        }
        read_json(&self.record()).map(Some)
    }

    /// The record of a lab that must be there.
    pub fn expect_record(&self) -> Result<Record> {
        let Some(record) = self.read_record()? else {
            bail!("no lab in {}: start one with `weft-lab up`", self.root.display());
        };
        Ok(record)
    }
}

#[derive(Debug, Clone)]
pub struct MachineDir {
    root: PathBuf,
}

impl MachineDir {
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The identity of the machine's pid 1.
    pub fn identity(&self) -> PathBuf {
        self.root.join("machine.json")
    }

    pub fn units(&self) -> PathBuf {
        self.root.join("units.json")
    }

    pub fn control(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    pub fn etc(&self) -> PathBuf {
        self.root.join("etc")
    }

    pub fn log(&self, unit: &str) -> PathBuf {
        self.root.join("log").join(format!("{unit}.log"))
    }

    /// Where the machine's root file system is put together.
    pub fn mount(&self) -> PathBuf {
        self.root.join("root/mount")
    }

    pub fn upper(&self) -> PathBuf {
        self.root.join("root/upper")
    }

    pub fn work(&self) -> PathBuf {
        self.root.join("root/work")
    }

    /// A directory that replaces `/var/lib/NAME` in the machine: containerd cannot work on an overlay.
    pub fn state(&self, name: &str) -> PathBuf {
        self.root.join("state").join(name)
    }

    /// Removes what the machine has written while it ran, but for the images of its container runtime.
    pub fn empty(&self) -> Result<()> {
        for part in [self.upper(), self.work(), self.state("kubelet")] {
            fs::remove_dir_all(&part).with_context(|| format!("remove {}", part.display()))?;
        }
        let installed = self.cni_installed();
        fs::remove_file(&installed).with_context(|| format!("remove {}", installed.display()))?;
        self.create()
    }

    /// Is there once the machine has its CNI folders.
    pub fn cni_installed(&self) -> PathBuf {
        self.etc().join("cni-installed")
    }

    pub fn create(&self) -> Result<()> {
        let parts = [
            self.etc(),
            self.root.join("log"),
            self.mount(),
            self.upper(),
            self.work(),
        ];
        for part in parts.into_iter().chain(STATES.map(|name| self.state(name))) {
            fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        }
        Ok(())
    }
}

/// The directories of `/var/lib` that a machine keeps on a real disk.
pub const STATES: [&str; 3] = ["containerd", "kubelet", "etcd"];

pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}

/// Writes whole or not at all: readers in other processes never see half a file.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let partial = path.with_extension("partial");
    let text = serde_json::to_vec_pretty(value).context("encode")?;
    fs::write(&partial, text).with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("rename to {}", path.display()))
}
