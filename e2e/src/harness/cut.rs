//! Packets that are lost on a node of the lab: dropped, not refused, as by a firewall or a network that is down.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Environment;

/// Dropped packets on nodes, until this goes.
pub struct Cut {
    tables: Vec<(Command, String)>,
}

impl Environment {
    /// Drops what the nodes, and the pods on them, send to the API server of a cluster.
    pub fn cut(&self, nodes: &[String], from: &str) -> Result<Cut> {
        let lab = self.lab()?;
        let server = lab.plan().cluster(from)?.api_server();
        let (address, port) = address_of(&server)?;
        let mut cut = Cut { tables: vec![] };
        for node in nodes {
            let table = format!("cut_{from}");
            let rules = format!(
                "add table ip {table}; \
                 add chain ip {table} out {{ type filter hook output priority -1; }}; \
                 add chain ip {table} forward {{ type filter hook forward priority -1; }}; \
                 add rule ip {table} out ip daddr {address} tcp dport {port} drop; \
                 add rule ip {table} forward ip daddr {address} tcp dport {port} drop"
            );
            let made = lab
                .command(node, "nft")?
                .arg(&rules)
                .output()
                .context("run nft")?;
            ensure!(
                made.status.success(),
                "{node}: {}",
                String::from_utf8_lossy(&made.stderr)
            );
            let mut undo = lab.command(node, "nft")?;
            undo.args(["delete", "table", "ip", &table]);
            cut.tables.push((undo, node.clone()));
        }
        Ok(cut)
    }
}

impl Cut {
    /// Packets pass again.
    pub fn mend(mut self) -> Result<()> {
        for (undo, node) in &mut self.tables {
            let output = undo.output().context("run nft")?;
            ensure!(
                output.status.success(),
                "{node}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        self.tables.clear();
        Ok(())
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        for (undo, _) in &mut self.tables {
            let _ = undo.output();
        }
    }
}

fn address_of(server: &str) -> Result<(&str, &str)> {
    let rest = server.split("://").last().unwrap_or(server);
    rest.split_once(':')
        .with_context(|| format!("\"{server}\" has no port"))
}
