//! One control group per machine, which becomes the root of the machine's own
//! cgroup namespace.
//!
//! ```text
//! v1   <hierarchy>/weft-lab/a1            one in every mounted hierarchy
//! v2   /sys/fs/cgroup/weft-lab/a1         controllers delegated to kubelet
//!      /sys/fs/cgroup/weft-lab/a1/system  processes: a group with controllers may hold none itself
//! ```
//! See cgroups(7), cgroup_namespaces(7) and the kernel's cgroup-v2.rst, "No Internal Process Constraint".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use super::process::Identity;

const ROOT: &str = "/sys/fs/cgroup";
const GROUP: &str = "weft-lab";
/// What kubelet asks for on a v2 host; others are delegated when they exist.
const WANTED: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// A group competes as if it were one process: with the default share, a compiler beside the lab takes almost all
/// processor time from a dozen servers, and their leases and probes fail. Version 1 and version 2, ten times the default.
const WEIGHTS: [(&str, &str); 2] = [("cpu.shares", "10240"), ("cpu.weight", "1000")];

/// How this machine mounts control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One directory per hierarchy below `/sys/fs/cgroup`, named by the mount.
    V1(Vec<Hierarchy>),
    V2,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Directory name below `/sys/fs/cgroup`.
    name: String,
    fstype: String,
    /// Mount options that select the hierarchy: `cpu,cpuacct`, `none,name=systemd`, nothing for v2.
    options: String,
}

impl Layout {
    pub fn detect() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
        Self::parse(&mounts)
    }

    fn parse(mounts: &str) -> Result<Self> {
        let mut hierarchies = Vec::new();
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, point, fstype @ ("cgroup" | "cgroup2"), options, ..] = fields[..] else {
                continue;
            };
            if point == ROOT && fstype == "cgroup2" {
                return Ok(Self::V2);
            }
            let Some(name) = point.strip_prefix(ROOT).and_then(|rest| rest.strip_prefix('/')) else {
                continue;
            };
            if name.contains('/') {
                continue;
            }
            let (name, fstype) = (name.to_owned(), fstype.to_owned());
            hierarchies.push(Hierarchy {
                options: selecting(&fstype, options),
                name,
                fstype,
            });
        }
        if !hierarchies
            .iter()
            .any(|hierarchy| hierarchy.options.split(',').any(|o| o == "memory"))
        {
            bail!(
                "no control groups with a memory controller under {ROOT}: mount cgroup2 there (or the v1 hierarchies below it)"
            );
        }
        Ok(Self::V1(hierarchies))
    }

    /// The lab's own group in every hierarchy.
    fn groups(&self) -> Vec<PathBuf> {
        match self {
            Self::V1(all) => all
                .iter()
                .map(|h| Path::new(ROOT).join(&h.name).join(GROUP))
                .collect(),
            Self::V2 => vec![Path::new(ROOT).join(GROUP)],
        }
    }

    /// Makes a machine's group with everything a kubelet needs in it.
    pub fn create(&self, machine: &str) -> Result<()> {
        if *self == Self::V2 {
            delegate(Path::new(ROOT))?;
        }
        for group in self.groups() {
            let own = group.join(machine);
            fs::create_dir_all(&own).with_context(|| format!("make control group {}", own.display()))?;
            match self {
                Self::V1(_) => {
                    fill_cpuset(&group)?;
                    fill_cpuset(&own)?;
                }
                Self::V2 => delegate(&group)?,
            }
            for (file, value) in WEIGHTS {
                if group.join(file).exists() {
                    write(&group.join(file), value)?;
                }
            }
        }
        Ok(())
    }

    /// Moves the calling process into a machine's group, before it leaves for the machine's namespaces.
    pub fn enter(&self, machine: &str) -> Result<()> {
        for group in self.groups() {
            write(&group.join(machine).join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// v2 only, after the cgroup namespace was made: leaves the namespace's root empty so that it can delegate.
    pub fn settle(&self, machine: &str) -> Result<()> {
        if *self != Self::V2 {
            return Ok(());
        }
        let own = Path::new(ROOT).join(GROUP).join(machine);
        let system = own.join("system");
        fs::create_dir_all(&system).with_context(|| format!("make control group {}", system.display()))?;
        write(&system.join("cgroup.procs"), "0")?;
        delegate(&own)
    }

    /// Mounts the machine's own view below `root`, from inside its cgroup namespace.
    pub fn mount(&self, root: &Path) -> Result<()> {
        let target = root.join("sys/fs/cgroup");
        let Self::V1(hierarchies) = self else {
            return mount_one("cgroup2", &target, "");
        };
        mount(
            Some("cgroup"),
            &target,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=755"),
        )
        .with_context(|| format!("mount {}", target.display()))?;
        for hierarchy in hierarchies {
            let target = target.join(&hierarchy.name);
            fs::create_dir(&target).with_context(|| format!("make {}", target.display()))?;
            mount_one(&hierarchy.fstype, &target, &hierarchy.options)?;
        }
        Ok(())
    }

    /// Removes what a machine that has ended left behind.
    pub fn remove(&self, machine: &str, deadline: Duration) -> Result<()> {
        self.groups()
            .iter()
            .try_for_each(|group| remove_tree(&group.join(machine), deadline))
    }

    /// Removes the lab's own groups with everything below.
    pub fn remove_all(&self, deadline: Duration) -> Result<()> {
        self.groups()
            .iter()
            .try_for_each(|group| remove_tree(group, deadline))
    }

    /// Every process that lives in the lab's groups, whatever its name and whoever recorded it.
    pub fn processes(&self) -> Vec<Identity> {
        let mut found = Vec::new();
        for group in self.groups() {
            collect(&group, &mut found);
        }
        found.sort_by_key(|identity| identity.pid);
        found.dedup();
        found
    }
}

fn selecting(fstype: &str, options: &str) -> String {
    if fstype == "cgroup2" {
        return String::new();
    }
    // The rest of the option list says how it is mounted, not what.
    let generic = [
        "rw",
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "relatime",
        "noatime",
        "xattr",
        "clone_children",
    ];
    let named = options
        .split(',')
        .filter(|option| !generic.contains(option) && !option.starts_with("release_agent"));
    let named: Vec<&str> = named.collect();
    if named.iter().all(|option| option.starts_with("name=")) {
        return format!("none,{}", named.join(","));
    }
    named.join(",")
}

fn mount_one(fstype: &str, target: &Path, options: &str) -> Result<()> {
    let options = Some(options).filter(|options| !options.is_empty());
    mount(Some(fstype), target, Some(fstype), MsFlags::empty(), options).with_context(|| {
        format!(
            "mount {fstype} {} at {}",
            options.unwrap_or_default(),
            target.display()
        )
    })
}

/// Hands every controller that exists to the groups below `group` (v2).
fn delegate(group: &Path) -> Result<()> {
    let path = group.join("cgroup.controllers");
    let present = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let present: Vec<&str> = present.split_whitespace().collect();
    for controller in WANTED
        .into_iter()
        .filter(|controller| present.contains(controller))
    {
        write(&group.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

/// A new v1 cpuset is empty and refuses processes until it has cpus and memory nodes.
fn fill_cpuset(group: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = group.join(name);
        let Ok(now) = fs::read_to_string(&file) else {
            continue;
        };
        if now.trim().is_empty() {
            let parent = group.parent().map(|parent| parent.join(name)).unwrap_or_default();
            let value = fs::read_to_string(&parent).with_context(|| format!("read {}", parent.display()))?;
            write(&file, value.trim())?;
        }
    }
    Ok(())
}

fn remove_tree(group: &Path, deadline: Duration) -> Result<()> {
    for child in children(group) {
        remove_tree(&child, deadline)?;
    }
    let until = Instant::now() + deadline;
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A killed process leaves its group a moment after it is gone; the kernel gives no event for v1.
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => {
                return Err(error).with_context(|| format!("remove control group {}", group.display()));
            }
        }
    }
}

fn collect(group: &Path, found: &mut Vec<Identity>) {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(
        listed
            .lines()
            .filter_map(|pid| Identity::of(pid.parse().ok()?).ok()),
    );
    for child in children(group) {
        collect(&child, found);
    }
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {value} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_hierarchies_keep_their_names_and_options() {
        let mounts = "\
tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,release_agent=/lib/agent,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";
        let Layout::V1(all) = Layout::parse(mounts).unwrap() else {
            panic!("not v1")
        };
        let seen: Vec<_> = all
            .iter()
            .map(|h| (h.name.as_str(), h.options.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("cpu,cpuacct", "cpu,cpuacct"),
                ("memory", "memory"),
                ("systemd", "none,name=systemd"),
                ("unified", "")
            ]
        );
    }

    #[test]
    fn one_mount_at_the_root_is_version_two() {
        assert_eq!(
            Layout::parse("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").unwrap(),
            Layout::V2
        );
    }

    #[test]
    fn a_machine_without_control_groups_is_refused() {
        let error = Layout::parse("proc /proc proc rw 0 0\n").unwrap_err().to_string();
        assert!(error.contains("mount cgroup2"), "{error}");
    }
}
