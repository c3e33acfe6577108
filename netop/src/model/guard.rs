//! The one nftables table: who may send to the ports that nodes talk to each other by.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use siphasher::sip::SipHasher13;

use super::{TO_GATEWAYS_PORT, TO_PODS_PORT};
use crate::liveness;

/// The table's name, of family inet.
pub const TABLE: &str = "weft_host";
/// The counter of packets from elsewhere than a node.
pub const COUNTER: &str = "underlay";
/// The chain, never reached, whose one rule carries the mark of a table's text.
pub const MARK_CHAIN: &str = "written_from";

/// The table, by what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Addresses of this cluster's nodes, this one's included.
    pub nodes: BTreeSet<IpAddr>,
}

impl Guard {
    /// The commands that put the table in place of any of its name, in one transaction.
    pub fn script(&self) -> String {
        let (body, mark) = (self.body(), self.mark());
        format!(
            "add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{body}  \
             chain {MARK_CHAIN} {{\n    accept comment \"{mark}\"\n  }}\n}}\n"
        )
    }

    /// What tells this text from any other.
    pub fn mark(&self) -> String {
        format!("{:016x}", SipHasher13::new().hash(self.body().as_bytes()))
    }

    /// How many rules it has, the mark's included.
    pub const RULES: usize = 10;

    fn body(&self) -> String {
        let elements = |v4: bool| {
            let of_family = self.nodes.iter().filter(|node| node.is_ipv4() == v4);
            let text: Vec<String> = of_family.map(ToString::to_string).collect();
            match text.is_empty() {
                true => String::new(),
                false => format!(" elements = {{ {} }};", text.join(", ")),
            }
        };
        let (nodes4, nodes6) = (elements(true), elements(false));
        let vxlan = format!("udp dport {{ {TO_PODS_PORT}, {TO_GATEWAYS_PORT} }}");
        let ports = format!(
            "udp dport {{ {TO_PODS_PORT}, {TO_GATEWAYS_PORT}, {} }}",
            liveness::PORT
        );
        // VXLAN's datagrams come from as many source ports as there are flows: tracking them would fill the node's table
        // with what no rule asks about.
        format!(
            r"  counter {COUNTER} {{ }}
  set nodes4 {{ type ipv4_addr;{nodes4} }}
  set nodes6 {{ type ipv6_addr;{nodes6} }}
  chain from_elsewhere {{
    fib saddr . iif oif missing counter name {COUNTER} drop
    ip saddr @nodes4 return
    ip6 saddr @nodes6 return
    counter name {COUNTER} drop
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    {ports} goto from_elsewhere
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    ip daddr @nodes4 {ports} goto from_elsewhere
    ip6 daddr @nodes6 {ports} goto from_elsewhere
  }}
  chain untracked_in {{
    type filter hook prerouting priority raw; policy accept;
    fib daddr type local {vxlan} notrack
  }}
  chain untracked_out {{
    type filter hook output priority raw; policy accept;
    {vxlan} notrack
  }}
"
        )
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guard {TABLE}")?;
        self.nodes.iter().try_for_each(|node| write!(f, " {node}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_nodes_are_another_text() {
        let guard = |nodes: &[&str]| Guard {
            nodes: nodes.iter().map(|node| node.parse().unwrap()).collect(),
        };
        let one = guard(&["10.0.0.1"]);
        assert_eq!(one.mark(), guard(&["10.0.0.1"]).mark());
        assert_ne!(one.mark(), guard(&["10.0.0.1", "fd00::1"]).mark());
        let script = one.script();
        // What ends a rule: a verdict.
        let verdicts = [
            " drop",
            " return",
            " goto from_elsewhere",
            " notrack",
            " accept comment",
        ];
        let rules = script
            .lines()
            .filter(|line| verdicts.iter().any(|verdict| line.contains(verdict)));
        assert_eq!(rules.count(), Guard::RULES);
    }
}
