//! A Linux host outside every cluster: a network namespace on the lab's switch, with nothing of Weft in it.

use std::{
    io::Write,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::{network, process};

/// Goes with all that is in it when it is dropped.
pub struct Host {
    netns: String,
    /// Folder of the program wireguard-go, for a kernel without WireGuard.
    wireguard: PathBuf,
    /// The file with its private key.
    pub key: PathBuf,
    /// Where wireguard-go listens for `wg`, once it runs.
    socket: Option<PathBuf>,
}

impl Host {
    /// Plugs the host in and writes a private key for it to a file.
    pub fn plug_in(name: &str, address: Ipv4Addr, wireguard: PathBuf, key: PathBuf) -> Result<Self> {
        let netns = network::build_host(name, address)?;
        let secret = process::run(Command::new("wg").arg("genkey"))?;
        std::fs::write(&key, secret).context("write the host's key")?;
        Ok(Self {
            netns,
            wireguard,
            key,
            socket: None,
        })
    }

    pub fn public_key(&self) -> Result<String> {
        let secret = std::fs::read_to_string(&self.key).context("read the host's key")?;
        let mut wg = Command::new("wg")
            .arg("pubkey")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("run wg")?;
        wg.stdin
            .take()
            .context("the input of wg")?
            .write_all(secret.as_bytes())?;
        let output = wg.wait_with_output().context("run wg")?;
        ensure!(output.status.success(), "wg pubkey: {}", output.status);
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Gives a script that sets up a WireGuard device of this name to `sh`.
    pub fn run(&mut self, script: &str, device: &str) -> Result<()> {
        if self.socket.is_none() {
            let socket = Path::new("/var/run/wireguard").join(format!("{device}.sock"));
            // One of a test that was killed may be about to end.
            await_end(&socket);
            self.socket = Some(socket);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = network::command_in(&self.netns, "sh")
            .env("PATH", format!("{}:{path}", self.wireguard.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("run sh")?;
        let mut input = shell.stdin.take().context("the input of sh")?;
        input.write_all(script.as_bytes())?;
        drop(input);
        let output = shell.wait_with_output().context("run sh")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{errors}\n{script}");
        Ok(())
    }

    /// Runs `weft-probe` there.
    pub fn probe(&self, arguments: &[&str]) -> Result<Value> {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/lab/weft-probe");
        let said = process::run(network::command_in(&self.netns, program).args(arguments))?;
        let last = said.lines().last().context("weft-probe says nothing")?;
        serde_json::from_str(last).with_context(|| format!("weft-probe {arguments:?} says {last}"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = network::remove_host(&self.netns);
        if let Some(socket) = &self.socket {
            await_end(socket);
        }
    }
}

/// wireguard-go ends with its device; while its socket is there, another one of that name does not start.
fn await_end(socket: &Path) {
    let start = Instant::now();
    while socket.exists() && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
}
