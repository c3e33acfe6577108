//! The real hub process, outside a pod: what it takes and what it counts.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::poll;

/// It stops when it is told to, after its last write.
const STOPS: Duration = Duration::from_secs(30);

pub(super) struct Process {
    child: Child,
    admin: SocketAddr,
    pub(super) started: Instant,
}

impl Process {
    /// Starts `slice-operator` with some arguments, as the account of a kubeconfig file.
    pub(super) fn start(arguments: &[&str], port: u16, kubeconfig: &Path, log: &Path) -> Result<Self> {
        let program = PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../target/lab/slice-operator"
        ));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = Command::new(&program)
            .args(arguments)
            .args(["--admin", &admin.to_string()])
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stderr(log.try_clone().context("the log once more")?)
            .stdout(log)
            .spawn()
            .with_context(|| format!("run {}: `make build` makes it", program.display()))?;
        Ok(Self {
            child,
            admin,
            started: Instant::now(),
        })
    }

    /// Stops it as Kubernetes does, and waits.
    pub(super) async fn stop(mut self) -> Result<()> {
        kill(self.pid()?, Signal::SIGTERM).context("stop the process")?;
        let child = &mut self.child;
        poll(STOPS, "the process stops", async || {
            Ok(child.try_wait().context("wait for the process")?.map(drop))
        })
        .await
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(
            i32::try_from(self.child.id()).context("a process id")?,
        ))
    }

    /// User and system time since it started, in seconds, and resident memory in MiB (proc_pid_stat(5)).
    pub(super) fn usage(&self) -> Result<(f64, f64)> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .context("read what the process takes")?;
        let fields: Vec<f64> = stat
            .rsplit_once(')')
            .context("the form of /proc/PID/stat")?
            .1
            .split_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        ensure!(fields.len() > 21, "/proc/PID/stat has {} fields", fields.len());
        Ok(((fields[11] + fields[12]) / 100.0, fields[21] * 4096.0 / 1048576.0))
    }

    /// Its metrics, once it answers.
    pub(super) async fn metrics(&self) -> Result<Metrics> {
        let mut stream = TcpStream::connect(self.admin).await.context("ask for metrics")?;
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .await
            .context("ask for metrics")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.context("read metrics")?;
        Ok(Metrics(text))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already, or of no more use to anybody.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Prometheus text format.
pub(super) struct Metrics(pub(super) String);

impl Metrics {
    /// Sum of a metric over the label sets that contain a text.
    pub(super) fn sum(&self, name: &str, labelled: &str) -> f64 {
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with([' ', '{']) && rest.contains(labelled))
            .filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok())
            // The sum of no numbers would be −0.
            .fold(0.0, |sum, value| sum + value)
    }

    /// The lines of a metric as they stand.
    pub(super) fn lines(&self, name: &str) -> String {
        let lines = self.0.lines().filter(|line| line.starts_with(name));
        lines.collect::<Vec<_>>().join(", ")
    }

    pub(super) fn leads(&self) -> bool {
        self.sum("weft_operator_leader", "") > 0.0
    }

    /// Objects whose write is due, under way, or waits.
    pub(super) fn queued(&self) -> f64 {
        self.sum("weft_operator_queue", "")
    }

    pub(super) fn writes(&self) -> f64 {
        self.sum("weft_operator_writes_total", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let metrics = Metrics(
            "# HELP a_b x\na_b{k=\"1\"} 2\na_b{k=\"2\"} 3\na_b_total 7\nweft_operator_leader 1\n".into(),
        );
        assert_eq!(metrics.sum("a_b", ""), 5.0);
        assert_eq!(metrics.sum("a_b", "k=\"2\""), 3.0);
        assert!(metrics.leads());
    }
}
