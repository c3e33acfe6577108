//! A long line between two Ethernet segments: what goes in at one end comes out at the other after a delay, in its order. For
//! kernels without netem(8).
//!
//! ```text
//!   br0 ── wan2 (TAP) ── this process ── far2 (TAP) ── br2 ── machines of cluster 2
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::unistd::setsid;
use slice_runtime::tap;

use super::cgroup::Layout;
use super::dir::LabDir;
use super::network;
use super::plan::Cluster;
use crate::progress::say;

/// Frames on their way in one direction: 100 ms of a gigabit in full packets. What finds no room is dropped and counted.
const FRAMES: usize = 8192;
/// More than a frame and its virtio_net_hdr: the devices cut what is longer (no offloads).
const LONGEST: usize = 65536 + 64;
/// How often dropped frames are reported, while there are any.
const REPORT: Duration = Duration::from_secs(10);

/// Control group of these processes: what ends a lab ends who is in one of its groups.
pub const GROUP: &str = "wires";

/// Starts the line of a cluster to the first one, as a process of its own.
pub fn start(dir: &LabDir, cluster: &Cluster) -> Result<()> {
    let log = dir.root().join(format!("wire-{}.log", cluster.name));
    let log = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    Command::new(dir.program())
        .args(["machine", "wire", &cluster.name])
        .env("WEFT_LAB_DIR", dir.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share a log")?)
        .stderr(log)
        .spawn()
        .context("start a line")
        .map(drop)
}

/// Is such a process; single-threaded until it is in the switch's namespace, as setns(2) wants it. Comes back only with an error.
pub fn run(dir: &LabDir, cluster: &str) -> Result<()> {
    let record = dir.expect_record()?;
    let delay = record.options.delay.context("a lab without delay")?;
    Layout::detect()?.enter(GROUP)?;
    setsid().context("start a session")?;
    let netns = Path::new("/run/netns").join(network::SWITCH);
    let netns = File::open(&netns).with_context(|| format!("open {}", netns.display()))?;
    setns(netns, CloneFlags::CLONE_NEWNET).context("enter the switch")?;
    let (near, far) = network::wire_ends(record.plan.cluster(cluster)?);
    carry([&near, &far], Duration::from_millis(delay.into()))
}

/// Carries frames between two TAP devices that exist.
fn carry(ends: [&str; 2], delay: Duration) -> Result<()> {
    let [a, b] = ends.map(open);
    let (a, b) = (a?, b?);
    let directions = [
        (
            a.try_clone().context("share a device")?,
            b.try_clone().context("share a device")?,
        ),
        (b, a),
    ];
    let dropped = AtomicU64::new(0);
    thread::scope(|scope| {
        for (from, to) in directions {
            let (sender, receiver) = sync_channel(FRAMES);
            let dropped = &dropped;
            scope.spawn(move || end("read", take_in(from, &sender, delay, dropped)));
            scope.spawn(move || end("write", let_out(to, &receiver)));
        }
        let mut reported = 0;
        loop {
            thread::sleep(REPORT);
            let now = dropped.load(Ordering::Relaxed);
            if now != reported {
                say(format!("{now} frames found no room in {ends:?}"));
                reported = now;
            }
        }
    })
}

fn open(name: &str) -> Result<File> {
    let opened = tap::open(name, 1).with_context(|| format!("open {name}"))?;
    let Some(opened) = opened else {
        bail!("{name} is held by another process");
    };
    let queue: OwnedFd = opened.queues.into_iter().next().context("a queue")?;
    Ok(File::from(queue))
}

/// A line that is cut in one direction only would be another imitation than the one asked for.
fn end(what: &str, result: Result<()>) {
    if let Err(error) = result {
        say(format!("{what}: {error:#}"));
        std::process::exit(1);
    }
}

type Frame = (Instant, Vec<u8>);

fn take_in(mut from: File, line: &SyncSender<Frame>, delay: Duration, dropped: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let read = from.read(&mut buffer).context("read a frame")?;
        match line.try_send((Instant::now() + delay, buffer[..read].to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => bail!("the other end is gone"),
        }
    }
}

fn let_out(mut to: File, line: &Receiver<Frame>) -> Result<()> {
    loop {
        let (due, frame) = line.recv().context("the other end is gone")?;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        to.write_all(&frame).context("write a frame")?;
    }
}
