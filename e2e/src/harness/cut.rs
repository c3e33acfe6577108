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
        let family = if server.is_ipv4() { "ip" } else { "ip6" };
        let rule = format!("{family} daddr {} tcp dport {} drop", server.ip(), server.port());
        let rules = [
            ("type filter hook output priority -1", rule.clone()),
            ("type filter hook forward priority -1", rule),
        ];
        self.filter(nodes, &format!("cut_{from}"), &rules)
    }

    /// Drops what the nodes get of UDP from those of a cluster in packets of more than so many bytes. What the kernel has not
    /// cut into packets yet passes: no device would see it so.
    pub fn narrow(&self, nodes: &[String], from: &str, bytes: u32) -> Result<Cut> {
        let what = format!("meta l4proto udp meta length {}-9000 drop", bytes + 1);
        self.filter(nodes, &format!("narrow_{from}"), &self.from(from, &what)?)
    }

    /// Drops what a node gets by a UDP port from the nodes of a cluster.
    pub fn close(&self, node: &str, from: &str, port: u16) -> Result<Cut> {
        let rules = self.from(from, &format!("udp dport {port} drop"))?;
        self.filter(&[node.to_owned()], &format!("close_{port}"), &rules)
    }

    /// A rule for each address family about what comes from the nodes of a cluster, before anything else looks at it.
    fn from(&self, cluster: &str, what: &str) -> Result<[(&'static str, String); 2]> {
        let nodes = &self.lab()?.plan().cluster(cluster)?.nodes;
        let rule = |family: &str, addresses: Vec<String>| {
            let hook = "type filter hook prerouting priority -400";
            (
                hook,
                format!("{family} saddr {{ {} }} {what}", addresses.join(", ")),
            )
        };
        Ok([
            rule("ip", nodes.iter().map(|node| node.ip4.to_string()).collect()),
            rule("ip6", nodes.iter().map(|node| node.ip6.to_string()).collect()),
        ])
    }

    /// A table of chains with one rule each.
    fn filter(&self, nodes: &[String], table: &str, rules: &[(&str, String)]) -> Result<Cut> {
        let mut script = format!("add table inet {table}");
        for (number, (hook, rule)) in rules.iter().enumerate() {
            script += &format!(
                "; add chain inet {table} c{number} {{ {hook}; }}; add rule inet {table} c{number} {rule}"
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
            undo.args(["delete", "table", "inet", table]);
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
