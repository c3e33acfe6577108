//! A machine seen from outside: switching it on and off, running commands in
//! it, giving orders to its pid 1.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cgroup::Layout;
use super::dir::{LabDir, read_json};
use super::network;
use super::options::Options;
use super::plan::{Cluster, Machine};
use super::process::{Identity, run};
use super::unit::{Request, Response, Status};

/// Mounting and starting takes a fraction of a second; more than this means that pid 1 has failed.
const BOOT: Duration = Duration::from_secs(20);
/// SIGKILL takes effect at once, but a namespace full of processes may take a moment to collapse.
pub const END: Duration = Duration::from_secs(20);

/// Plugs a machine in and boots it. Its files must have been written.
pub fn start(
    dir: &LabDir,
    groups: &Layout,
    options: &Options,
    cluster: &Cluster,
    machine: &Machine,
) -> Result<()> {
    network::build_machine(options, cluster, machine)?;
    groups.create(&machine.name)?;
    let mut boot = Command::new(dir.program());
    boot.args(["machine", "boot", &machine.name])
        .env("WEFT_LAB_DIR", dir.root());
    run(&mut boot).with_context(|| format!("boot machine {}", machine.name))?;
    let until = Instant::now() + BOOT;
    while order(dir, &machine.name, &Request::List).is_err() {
        if !is_running(dir, &machine.name) || Instant::now() > until {
            let log = dir.machine(&machine.name).log("init");
            let words = std::fs::read_to_string(&log).unwrap_or_default();
            bail!(
                "machine {} does not come up; {}: {}",
                machine.name,
                log.display(),
                words.trim()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Pulls the plug: every process, mount, link and control group of the machine is gone; its disk stays.
pub fn stop(dir: &LabDir, groups: &Layout, machine: &Machine) -> Result<()> {
    let identity = dir.machine(&machine.name).identity();
    if identity.exists() {
        read_json::<Identity>(&identity)?.kill(END)?;
        std::fs::remove_file(&identity).context("forget the machine's pid 1")?;
    }
    network::remove_machine(machine)?;
    groups.remove(&machine.name, END)
}

pub fn is_running(dir: &LabDir, name: &str) -> bool {
    pid(dir, name).is_ok()
}

/// Pid 1 of a running machine, as the real machine numbers it.
pub fn pid(dir: &LabDir, name: &str) -> Result<i32> {
    let identity = dir.machine(name).identity();
    if identity.exists() {
        let identity: Identity = read_json(&identity)?;
        if identity.is_alive() {
            return Ok(identity.pid);
        }
    }
    bail!("machine {name} is not running: see `weft-lab status`");
}

/// A command that runs inside a machine, in all its namespaces.
pub fn command(dir: &LabDir, name: &str, program: impl AsRef<OsStr>) -> Result<Command> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--target={}", pid(dir, name)?))
        .args(["--all", "--"])
        .arg(program);
    Ok(command)
}

/// The state of a machine's units.
pub fn units(dir: &LabDir, name: &str) -> Result<Vec<Status>> {
    match order(dir, name, &Request::List)? {
        Response::Units(units) => Ok(units),
        other @ (Response::Done | Response::Error(_)) => bail!("machine {name} answered {other:?}"),
    }
}

/// Gives one order to a machine's pid 1.
pub fn order(dir: &LabDir, name: &str, request: &Request) -> Result<Response> {
    let path = dir.machine(name).control();
    let mut stream = UnixStream::connect(&path).with_context(|| format!("reach machine {name}"))?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .context("set a deadline")?;
    writeln!(stream, "{}", serde_json::to_string(request)?)
        .with_context(|| format!("speak to machine {name}"))?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .with_context(|| format!("hear machine {name}"))?;
    match serde_json::from_str(&line).with_context(|| format!("understand machine {name}"))? {
        Response::Error(words) => bail!("machine {name}: {words}"),
        response @ (Response::Units(_) | Response::Done) => Ok(response),
    }
}
