//! What must be true before anything is changed; every refusal says what to do.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nix::unistd::Uid;

/// Programs that the lab and the tests in namespaces run, and the Debian package each comes from.
pub const PROGRAMS: [(&str, &str); 11] = [
    ("etcd", "etcd-server"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("wg", "wireguard-tools"),
    ("jq", "jq"),
];

pub fn root() -> Result<()> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    bail!("the lab makes namespaces, mounts and network devices: run it as root");
}

/// Names of Debian packages that are needed and absent.
pub fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<_> = PROGRAMS
        .into_iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| package)
        .collect();
    if !Path::new(super::config::STOCK_CNI).join("bridge").exists() {
        missing.push("containernetworking-plugins");
    }
    if find("tcpdump").is_none() {
        missing.push("tcpdump");
    }
    missing
}

pub fn packages() -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("not installed: {}; run `weft-lab setup`", missing.join(", "));
}

/// Looks a program up as a shell would.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
