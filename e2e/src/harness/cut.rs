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
        let server = lab.plan().cluster(from)?.api_server(lab.options().family);
        let rule = format!("ip daddr {} tcp dport {} drop", server.ip(), server.port());
        let rules = [
            ("type filter hook output priority -1", &*rule),
            ("type filter hook forward priority -1", &*rule),
        ];
        self.filter(nodes, &format!("cut_{from}"), &rules)
    }

    /// Drops what the nodes get of UDP from those of a cluster in packets of more than so many bytes. What the kernel has not
    /// cut into packets yet passes: no device would see it so.
    pub fn narrow(&self, nodes: &[String], from: &str, bytes: u32) -> Result<Cut> {
        let addresses = self.addresses(from)?;
        let rule = format!(
            "ip saddr {{ {addresses} }} meta l4proto udp meta length {}-9000 drop",
            bytes + 1
        );
        let rules = [("type filter hook prerouting priority -400", &*rule)];
        self.filter(nodes, &format!("narrow_{from}"), &rules)
    }

    /// Drops what a node gets by a UDP port from the nodes of a cluster.
    pub fn close(&self, node: &str, from: &str, port: u16) -> Result<Cut> {
        let addresses = self.addresses(from)?;
        let rule = format!("ip saddr {{ {addresses} }} udp dport {port} drop");
        let rules = [("type filter hook prerouting priority -400", &*rule)];
        self.filter(&[node.to_owned()], &format!("close_{port}"), &rules)
    }

    /// Addresses of the nodes of a cluster, as nft lists them.
    fn addresses(&self, cluster: &str) -> Result<String> {
        let nodes = &self.lab()?.plan().cluster(cluster)?.nodes;
        let addresses: Vec<String> = nodes.iter().map(|node| node.ip4.to_string()).collect();
        Ok(addresses.join(", "))
    }

    /// A table of chains with one rule each.
    fn filter(&self, nodes: &[String], table: &str, rules: &[(&str, &str)]) -> Result<Cut> {
        let mut script = format!("add table ip {table}");
        for (number, (hook, rule)) in rules.iter().enumerate() {
            script += &format!(
                "; add chain ip {table} c{number} {{ {hook}; }}; add rule ip {table} c{number} {rule}"
            );
        }
        let lab = self.lab()?;
        let mut cut = Cut { tables: vec![] };
        for node in nodes {
            let made = lab
                .command(node, "nft")?
                .arg(&script)
                .output()
                .context("run nft")?;
            ensure!(
                made.status.success(),
                "{node}: {}",
                String::from_utf8_lossy(&made.stderr)
            );
            let mut undo = lab.command(node, "nft")?;
            undo.args(["delete", "table", "ip", table]);
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
