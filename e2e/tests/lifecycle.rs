//! The lab comes, goes, and leaves nothing, also when it was killed in between.
//!
//! Needs the machine for itself: refuses to run beside another lab.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use slice_e2e::lab::cgroup::Layout;
use slice_e2e::lab::network;

const LAB: &str = env!("CARGO_BIN_EXE_weft-lab");
/// Another number of clusters and nodes than usual, and other names.
const CLUSTERS: &str = "hub:1,west:2,east-coast:1";

/// Runs weft-lab with its own state directory.
fn lab(dir: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(LAB)
        .args(arguments)
        .env("WEFT_LAB_DIR", dir)
        .stdin(Stdio::null())
        .output()
        .context("run weft-lab")?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "weft-lab {}: {words}",
        arguments.join(" ")
    );
    Ok(words)
}

/// Everything that a lab could leave on the machine.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    /// The lab's own, by their names.
    namespaces: Vec<String>,
    links: BTreeSet<String>,
    mounts: BTreeSet<String>,
    groups: BTreeSet<String>,
    settings: Vec<String>,
}

impl Traces {
    fn look() -> Result<Self> {
        let names = |folder: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.path().display().to_string()).collect()
        };
        let mounts = fs::read_to_string("/proc/self/mounts").context("read mounts")?;
        // Named namespaces are told apart by name, above: others than the lab may come and go meanwhile.
        let mounts = mounts.lines().filter(|line| !line.starts_with("nsfs "));
        let groups = names("/sys/fs/cgroup")
            .into_iter()
            .flat_map(|hierarchy| names(&hierarchy));
        let settings = [
            "vm/overcommit_memory",
            "kernel/panic",
            "kernel/panic_on_oops",
            "fs/inotify/max_user_instances",
        ];
        let settings = settings.map(|name| fs::read_to_string(Path::new("/proc/sys").join(name)));
        Ok(Self {
            namespaces: network::lab_namespaces()?,
            links: names("/sys/class/net"),
            mounts: mounts.map(str::to_owned).collect(),
            groups: groups.filter(|path| Path::new(path).is_dir()).collect(),
            settings: settings
                .into_iter()
                .collect::<Result<_, _>>()
                .context("read settings")?,
        })
    }
}

/// `down` on drop, so that a failed test does not keep the machine busy.
struct Cleanup<'a>(&'a Path);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        let _ = lab(self.0, &["down"]);
    }
}

#[test]
fn a_lab_that_was_killed_comes_up_again_and_leaves_nothing() -> Result<()> {
    if !network::lab_namespaces()?.is_empty() {
        bail!("a lab is up on this machine: `make lab-down` first");
    }
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("lab");
    let before = Traces::look()?;
    let cleanup = Cleanup(&dir);

    lab(&dir, &["up", "--clusters", CLUSTERS])?;
    let kubeconfig = lab(&dir, &["kubeconfig"])?;
    for context in ["hub", "west", "east-coast"] {
        ensure!(
            kubeconfig.contains(&format!("\"name\": \"{context}\"")),
            "no context {context}: {kubeconfig}"
        );
    }

    let groups = Layout::detect()?;
    let victims = groups.processes();
    ensure!(
        victims.len() > 20,
        "only {} processes in a lab of seven machines",
        victims.len()
    );
    for victim in &victims {
        // Many are gone with their namespace before their turn comes.
        let _ = kill(Pid::from_raw(victim.pid), Signal::SIGKILL);
    }

    let words = lab(&dir, &["up", "--clusters", CLUSTERS])?;
    ensure!(words.contains("remains of an earlier lab"), "{words}");
    let status = lab(&dir, &["status"])?;
    ensure!(!status.contains("stopped"), "{status}");
    ensure!(lab(&dir, &["up", "--clusters", CLUSTERS])?.contains("already up"));

    drop(cleanup);
    ensure!(!dir.exists(), "{} is still there", dir.display());
    ensure!(
        groups.processes().is_empty(),
        "processes are left: {:?}",
        groups.processes()
    );
    let after = Traces::look()?;
    ensure!(before == after, "before: {before:#?}\nafter: {after:#?}");
    Ok(())
}
