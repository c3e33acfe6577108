//! Pid 1 of a machine: starts units in order, starts them again when they end,
//! reaps what nobody else reaps, and takes orders on a socket.
//!
//! One thread, one poll(2): signals arrive on a descriptor, orders on another,
//! and the next thing due decides how long to wait.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::unit::{Boot, Kind, Request, Response, State, Status, Unit};

/// A unit that ended is started again after this long: long enough not to spin, short enough not to be noticed.
const RETRY: Duration = Duration::from_millis(200);
/// A unit that was asked to end is killed after this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// An order is one short line; whoever connects and says nothing is left after this long.
const ORDER: Duration = Duration::from_secs(1);

pub fn run(boot: &Boot, control: &Path) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().context("block signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("open the signal descriptor")?;
    let _ = fs::remove_file(control);
    let listener = UnixListener::bind(control).with_context(|| format!("listen on {}", control.display()))?;
    listener
        .set_nonblocking(true)
        .context("make the socket non-blocking")?;

    let mut machine = Machine::new(boot);
    loop {
        let due = machine.advance(Instant::now())?;
        let left = due.map(|due| due.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait for events"),
        }
        while signals.read_signal().context("read a signal")?.is_some() {}
        machine.reap();
        while let Ok((stream, _)) = listener.accept() {
            // A client that went away has its answer dropped; nothing else depends on it.
            let _ = answer(&mut machine, stream);
        }
    }
}

fn answer(machine: &mut Machine<'_>, mut stream: UnixStream) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ORDER))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let response = match serde_json::from_str(&line) {
        Ok(request) => machine.obey(request, Instant::now()),
        Err(error) => Response::Error(format!("not an order: {error}")),
    };
    writeln!(stream, "{}", serde_json::to_string(&response)?)?;
    Ok(())
}

struct Machine<'a> {
    boot: &'a Boot,
    slots: Vec<Slot<'a>>,
}

struct Slot<'a> {
    unit: &'a Unit,
    /// Whether it shall run.
    wanted: bool,
    pid: Option<Pid>,
    done: bool,
    starts: u32,
    /// Not to be started before this.
    not_before: Option<Instant>,
    /// To be killed at this time.
    kill_at: Option<Instant>,
}

impl<'a> Machine<'a> {
    fn new(boot: &'a Boot) -> Self {
        let slot = |unit| Slot {
            unit,
            wanted: true,
            pid: None,
            done: false,
            starts: 0,
            not_before: None,
            kill_at: None,
        };
        Self {
            boot,
            slots: boot.units.iter().map(slot).collect(),
        }
    }

    /// Starts and kills what is due; tells when to look again.
    fn advance(&mut self, now: Instant) -> Result<Option<Instant>> {
        for index in 0..self.slots.len() {
            let ready = self.slots[index].may_start(now) && self.is_after(index);
            let slot = &mut self.slots[index];
            if let (Some(pid), Some(at)) = (slot.pid, slot.kill_at)
                && at <= now
            {
                slot.kill_at = None;
                let _ = kill(pid, Signal::SIGKILL);
            }
            if ready {
                slot.start(self.boot, now);
            }
        }
        let due = self.slots.iter().flat_map(|slot| {
            let start = slot
                .not_before
                .filter(|_| slot.wanted && slot.pid.is_none() && !slot.done);
            [start, slot.kill_at]
        });
        Ok(due.flatten().filter(|at| *at > now).min())
    }

    fn is_after(&self, index: usize) -> bool {
        let after = &self.slots[index].unit.after;
        after.iter().all(|name| {
            self.slots
                .iter()
                .any(|slot| slot.unit.name == *name && slot.is_up())
        })
    }

    fn reap(&mut self) {
        loop {
            let (pid, success) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code == 0),
                Ok(WaitStatus::Signaled(pid, _, _)) => (pid, false),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if let Some(slot) = self.slots.iter_mut().find(|slot| slot.pid == Some(pid)) {
                slot.ended(success, Instant::now());
            }
        }
    }

    fn obey(&mut self, request: Request, now: Instant) -> Response {
        let (name, action): (String, fn(&mut Slot<'_>, Instant)) = match request {
            Request::List => return Response::Units(self.slots.iter().map(Slot::status).collect()),
            Request::Stop(name) => (name, |slot, now| {
                slot.wanted = false;
                slot.end(now);
            }),
            Request::Start(name) => (name, |slot, _| {
                slot.wanted = true;
                slot.not_before = None;
            }),
            Request::Restart(name) => (name, |slot, now| {
                slot.wanted = true;
                slot.end(now);
            }),
            Request::Kill(name) => (name, |slot, now| {
                slot.kill_at = slot.pid.map(|_| now);
            }),
        };
        match self.slots.iter_mut().find(|slot| slot.unit.name == name) {
            Some(slot) => {
                action(slot, now);
                Response::Done
            }
            None => {
                let names: Vec<_> = self.slots.iter().map(|slot| slot.unit.name.as_str()).collect();
                Response::Error(format!(
                    "no unit \"{name}\" on this machine; it has {}",
                    names.join(", ")
                ))
            }
        }
    }
}

impl Slot<'_> {
    fn may_start(&self, now: Instant) -> bool {
        self.wanted && self.pid.is_none() && !self.done && self.not_before.is_none_or(|at| at <= now)
    }

    fn is_up(&self) -> bool {
        match self.unit.kind {
            Kind::Service => self.pid.is_some(),
            Kind::Task => self.done,
        }
    }

    fn start(&mut self, boot: &Boot, now: Instant) {
        self.starts += 1;
        match spawn(boot, self.unit) {
            Ok(pid) => self.pid = Some(pid),
            Err(error) => {
                crate::progress::say(format!("{}: {error:#}", self.unit.name));
                self.not_before = Some(now + RETRY);
            }
        }
    }

    fn ended(&mut self, success: bool, now: Instant) {
        self.pid = None;
        self.kill_at = None;
        match self.unit.kind {
            Kind::Task if success => self.done = true,
            Kind::Task | Kind::Service => self.not_before = Some(now + RETRY),
        }
    }

    fn end(&mut self, now: Instant) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGTERM);
            self.kill_at = Some(now + PATIENCE);
        }
    }

    fn status(&self) -> Status {
        let state = match (self.pid, self.done, self.wanted) {
            (Some(_), _, _) => State::Running,
            (None, true, _) => State::Done,
            (None, false, true) => State::Waiting,
            (None, false, false) => State::Stopped,
        };
        Status {
            name: self.unit.name.clone(),
            kind: self.unit.kind,
            state,
            starts: self.starts,
        }
    }
}

fn spawn(boot: &Boot, unit: &Unit) -> Result<Pid> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&unit.log)
        .with_context(|| format!("open {}", unit.log.display()))?;
    let (program, arguments) = unit.argv.split_first().context("a unit without a program")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&boot.env)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share the log")?)
        .stderr(log);
    unblock_signals(&mut command);
    let child = command.spawn().with_context(|| format!("run {program}"))?;
    // Reaped by `Machine::reap`, as every other process of the machine.
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// A child inherits the blocked signals of its parent; programs written in C rarely expect that.
fn unblock_signals(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let unblock = || SigSet::all().thread_unblock().map_err(std::io::Error::from);
    // SAFETY: between fork and exec this makes one async-signal-safe system call and touches no memory of others.
    unsafe { command.pre_exec(unblock) };
}
