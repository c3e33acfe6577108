//! The inside of a machine: how its namespaces come to be, its root file
//! system, and its pid 1.
//!
//! ```text
//! boot    joins the control group and the network namespace, makes the others, leaves pid 1 behind
//! init    pid 1: mounts a copy-on-write root over the real machine's, then supervises
//! ```
//! Killing pid 1 ends everything in the machine, as pulling the plug would: the kernel kills
//! the rest of the pid namespace, and mounts vanish with the mount namespace (pid_namespaces(7)).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{pivot_root, setsid};

use super::cgroup::Layout;
use super::config::STOCK_CNI;
use super::dir::{LabDir, MachineDir, Record, STATES, read_json, write_json};
use super::process::Identity;
use super::supervise;
use super::unit::Boot;

/// Runs as a short-lived process of the real machine; single-threaded, as setns(2) wants it.
pub fn boot(dir: &LabDir, name: &str) -> Result<()> {
    let record = dir.expect_record()?;
    let machine = record.plan.machine(name)?;
    let groups = Layout::detect()?;
    groups.enter(name)?;
    setsid().context("start a session")?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")?;

    let netns = Path::new("/run/netns").join(machine.netns());
    let netns = fs::File::open(&netns).with_context(|| format!("open {}", netns.display()))?;
    setns(netns, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("make the machine's namespaces (needs root)")?;
    groups.settle(name)?;

    let log = dir.machine(name).log("init");
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .context("open the log of pid 1")?;
    // The first child after unshare is pid 1 of the new namespace.
    let mut init = Command::new(dir.program())
        .args(["machine", "init", name])
        .env("WEFT_LAB_DIR", dir.root())
        .stdin(Stdio::piped())
        .stdout(log.try_clone().context("share the log")?)
        .stderr(log)
        .spawn()
        .context("start pid 1")?;
    let identity = Identity::of(init.id().cast_signed())?;
    write_json(&dir.machine(name).identity(), &identity)?;
    // Only now: both share a mount namespace, and its new /proc would show other numbers.
    let mut go = init.stdin.take().context("the pipe to pid 1")?;
    go.write_all(b"!").context("let pid 1 go on")
}

/// Pid 1. Comes back only with an error.
pub fn init(dir: &LabDir, name: &str) -> Result<()> {
    if std::process::id() != 1 {
        bail!("`weft-lab machine init` is pid 1 of a machine, started by `weft-lab up`");
    }
    // Whoever made this machine must have noted it down before anything runs in it.
    std::io::stdin()
        .read_exact(&mut [0])
        .context("wait until this machine is on record")?;
    let record: Record = dir.expect_record()?;
    let own = dir.machine(name);
    let boot: Boot = read_json(&own.units())?;
    build_root(dir, &own, &record)?;
    nix::unistd::sethostname(&boot.hostname).context("set the host name")?;
    fs::write("/etc/hostname", &boot.hostname).context("write /etc/hostname")?;
    fs::write(
        "/etc/hosts",
        format!("127.0.0.1 localhost\n127.0.1.1 {}\n", boot.hostname),
    )
    .context("write /etc/hosts")?;
    for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let path = Path::new("/proc/sys").join(setting);
        fs::write(&path, "1").with_context(|| format!("write {}", path.display()))?;
    }
    install_cni(&own)?;
    supervise::run(&boot, &own.control())
}

/// A copy-on-write root over the real one, with everything that must be a machine's own mounted into it.
fn build_root(dir: &LabDir, own: &MachineDir, record: &Record) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;

    let root = own.mount();
    let layers = format!(
        "lowerdir=/,upperdir={},workdir={}",
        own.upper().display(),
        own.work().display()
    );
    mount(
        Some("overlay"),
        &root,
        Some("overlay"),
        MsFlags::empty(),
        Some(layers.as_str()),
    )
    .with_context(|| format!("mount the root file system ({layers})"))?;
    bind(Path::new("/dev"), &root.join("dev"), MsFlags::MS_REC)?;
    fresh("proc", &root, "proc", None)?;
    fresh("sysfs", &root, "sys", None)?;
    Layout::detect()?.mount(&root)?;
    fresh("tmpfs", &root, "run", Some("mode=755"))?;
    fresh("tmpfs", &root, "tmp", Some("mode=1777"))?;
    for part in ["run/lock", "run/netns"] {
        fs::create_dir_all(root.join(part)).with_context(|| format!("create /{part}"))?;
    }
    // The state directory and the programs may lie on file systems that the overlay does not show. Not recursive:
    // the root being built is mounted inside the state directory.
    for shared in [dir.root(), record.programs.as_path()] {
        bind(shared, &below(&root, shared)?, MsFlags::empty())?;
    }
    for name in STATES {
        bind(
            &own.state(name),
            &below(&root, &Path::new("/var/lib").join(name))?,
            MsFlags::empty(),
        )?;
    }

    let old = root.join(".old");
    fs::create_dir_all(&old).context("create the old root's place")?;
    pivot_root(&root, &old).context("change the root")?;
    std::env::set_current_dir("/").context("go to the new root")?;
    umount2("/.old", MntFlags::MNT_DETACH).context("let go of the old root")?;
    fs::remove_dir("/.old").context("remove the old root's place")?;
    // As systemd does on a real node: mounts made by the runtime show up in pods that ask for them.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("make mounts shared")
}

/// Empty CNI folders at the first boot, whatever the real machine has in its own.
fn install_cni(own: &MachineDir) -> Result<()> {
    let conflist = own.etc().join("10-lab.conflist");
    let done = own.cni_installed();
    if !conflist.exists() || done.exists() {
        return Ok(());
    }
    for folder in ["/etc/cni/net.d", "/opt/cni/bin", "/var/lib/cni"] {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("empty {folder}"));
            }
            _ => fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?,
        }
    }
    let plugins = fs::read_dir(STOCK_CNI).with_context(|| format!("read {STOCK_CNI}"))?;
    for plugin in plugins {
        let plugin = plugin.with_context(|| format!("read {STOCK_CNI}"))?;
        let target = Path::new("/opt/cni/bin").join(plugin.file_name());
        symlink(plugin.path(), &target).with_context(|| format!("link {}", target.display()))?;
    }
    fs::copy(&conflist, "/etc/cni/net.d/10-lab.conflist").context("install the CNI configuration")?;
    fs::write(&done, "").context("note that CNI is installed")
}

fn below(root: &Path, absolute: &Path) -> Result<std::path::PathBuf> {
    let path = root.join(
        absolute
            .strip_prefix("/")
            .context("a path that does not begin with /")?,
    );
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

fn bind(source: &Path, target: &Path, depth: MsFlags) -> Result<()> {
    let none: Option<&str> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND | depth, none)
        .with_context(|| format!("show {} as {}", source.display(), target.display()))
}

fn fresh(fstype: &str, root: &Path, place: &str, options: Option<&str>) -> Result<()> {
    mount(
        Some(fstype),
        &root.join(place),
        Some(fstype),
        MsFlags::empty(),
        options,
    )
    .with_context(|| format!("mount {fstype} at /{place}"))
}
