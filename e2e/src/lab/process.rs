//! Processes known by pid *and* start time, so that a recorded pid is never
//! mistaken for a stranger that got the number later.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks after boot, field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub start_time: u64,
}

impl Identity {
    pub fn of(pid: i32) -> Result<Self> {
        let start_time = start_time(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, start_time })
    }

    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// Kills the process and waits until the kernel has removed it. A process that is gone already is fine.
    pub fn kill(&self, deadline: Duration) -> Result<()> {
        let Some(fd) = self.open()? else { return Ok(()) };
        signal(&fd, libc::SIGKILL).with_context(|| format!("kill process {}", self.pid))?;
        let until = Instant::now() + deadline;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => bail!("process {} did not end within {deadline:?} of SIGKILL", self.pid),
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => bail!("wait for process {}: {errno}", self.pid),
            }
        }
    }

    /// A handle that cannot come to mean another process; `None` when this one is gone.
    fn open(&self) -> Result<Option<OwnedFd>> {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ESRCH) {
                return Ok(None);
            }
            return Err(error).with_context(|| format!("open a handle of process {}", self.pid));
        }
        let fd = i32::try_from(fd).context("file descriptor number")?;
        // SAFETY: the kernel has just handed out this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Compared after opening: from here on the handle cannot change its meaning.
        Ok(self.is_alive().then_some(fd))
    }
}

fn signal(fd: &OwnedFd, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal(2) accepts a null siginfo and then fills in its own.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, none, 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets and may contain anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let dead = matches!(fields.first(), Some(&"Z" | &"X"));
    if dead { None } else { fields.get(19)?.parse().ok() }
}

/// Runs a program to its end; an error carries its words.
pub fn run(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {line}"))?;
    if !output.status.success() {
        let words = [output.stderr, output.stdout].concat();
        bail!(
            "{line}: {}: {}",
            output.status,
            String::from_utf8_lossy(&words).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_until_it_is_killed() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let identity = Identity::of(child.id().cast_signed()).unwrap();
        assert!(identity.is_alive());
        let stranger = Identity {
            start_time: identity.start_time + 1,
            ..identity
        };
        stranger.kill(Duration::from_secs(1)).unwrap();
        assert!(
            identity.is_alive(),
            "a process with another start time was killed"
        );
        identity.kill(Duration::from_secs(5)).unwrap();
        assert!(!identity.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let error = run(Command::new("ls").arg("/nowhere/at/all"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
