//! What a lab imitates of other people's networks and clusters. Pure: [`super::network`] and [`super::config`] render it.
//!
//! Without any option a lab is what kubeadm makes: MTU 1500 everywhere, IPv4, kube-proxy with iptables, CoreDNS on port 53, no
//! taints, and between the clusters nothing but a switch.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Taint;
use serde::{Deserialize, Serialize};

use super::family::Family;
use super::plan::{Machine, Plan};

/// Where nodes listen for the other clusters: Kubernetes' default range of node ports.
const NODE_PORTS: &str = "30000-32767";

/// Where pods ask a NodeLocal DNSCache, as its manifests have it.
pub const NODE_LOCAL_DNS: &str = "169.254.20.10";

/// Options of `weft-lab up`; `lab.json` keeps them, because a machine that is booted again needs them.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Address families of nodes, pods and Services.
    #[arg(long, value_enum, default_value_t)]
    pub family: Family,
    /// MTU of the pods' own interface, as 1450 behind a VXLAN network; that of the nodes by default.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..=65000))]
    pub pod_mtu: Option<u16>,
    /// MTU of the nodes' interfaces.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..=65000))]
    pub node_mtu: Option<u16>,
    /// Drop packets between clusters that are longer than this, without a word to the sender; TCP is told by its handshake.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..=65000))]
    pub path_mtu: Option<u16>,
    /// Packets of a thousand between clusters that get lost, at random.
    #[arg(long, value_name = "PERMILLE", value_parser = clap::value_parser!(u16).range(1..=500))]
    pub loss: Option<u16>,
    /// How long a packet takes from the first cluster to each other one, in milliseconds: half of the round trip.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u16).range(1..=500))]
    pub delay: Option<u16>,
    /// Between clusters let only node ports and the API servers pass.
    #[arg(long)]
    pub firewall: bool,
    /// Give what a node sends by UDP to other clusters source ports at random, as a NAT gateway does.
    #[arg(long)]
    pub snat: bool,
    /// How kube-proxy works.
    #[arg(long, value_enum, default_value_t)]
    pub kube_proxy: KubeProxy,
    /// The port on which CoreDNS listens behind its Service, as 5353 on OpenShift.
    #[arg(long, value_name = "PORT")]
    pub dns_port: Option<u16>,
    /// A NodeLocal DNSCache on every node, and pods that ask it.
    #[arg(long)]
    pub node_local_dns: bool,
    /// A taint on every node: KEY=VALUE:EFFECT.
    #[arg(long, value_name = "TAINT", value_parser = taint)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taint: Option<Taint>,
    /// Admit pods of Kubernetes' own priority classes only where a quota lets them, as GKE does.
    #[arg(long)]
    pub priority_quota: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KubeProxy {
    #[default]
    Iptables,
    Nftables,
}

impl KubeProxy {
    /// As its configuration names it.
    pub fn mode(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

impl Options {
    /// Of the pods' own interface, where it is not the plugin's default.
    pub fn mtu_of_pods(&self) -> Option<u16> {
        self.pod_mtu.or(self.node_mtu)
    }

    /// Whether single packets are judged on the switch: then nothing longer than a packet may pass it.
    pub fn judges_packets(&self) -> bool {
        self.path_mtu.is_some() || self.loss.is_some()
    }

    /// What the switch does with frames from one cluster to another: a script for nft, or nothing.
    pub fn between_clusters(&self, plan: &Plan) -> Option<String> {
        let mut rules = Vec::new();
        if let Some(bytes) = self.path_mtu {
            rules.push(format!("ip length > {bytes} counter drop"));
            // Without the header of 40 bytes, which its length does not count.
            rules.push(format!("ip6 length > {} counter drop", bytes - 40));
            // As border routers do (RFC 4459 §3.2): a stream that is not a slice's does not hang.
            let segment = bytes - 60;
            rules.push(format!(
                "tcp flags syn tcp option maxseg size > {segment} tcp option maxseg size set {segment}"
            ));
        }
        if let Some(permille) = self.loss {
            rules.push(format!("numgen random mod 1000 < {permille} counter drop"));
        }
        if self.firewall {
            rules.push("meta l4proto { icmp, icmpv6 } accept".to_owned());
            for pass in [format!("udp dport {NODE_PORTS}"), "tcp dport 6443".to_owned()] {
                rules.push(format!("{pass} accept"));
                rules.push(format!("{} accept", pass.replace("dport", "sport")));
            }
            rules.push("meta protocol { ip, ip6 } counter drop".to_owned());
        }
        if rules.is_empty() {
            return None;
        }
        let mut script = "add table bridge wan\nadd chain bridge wan between\n\
                          add chain bridge wan forward { type filter hook forward priority 0; }\n"
            .to_owned();
        for cluster in plan.clusters() {
            let ports: Vec<_> = cluster
                .machines()
                .map(|machine| format!("\"{}\"", machine.port))
                .collect();
            let ports = ports.join(", ");
            let _ = writeln!(
                script,
                "add rule bridge wan forward iifname {{ {ports} }} oifname != {{ {ports}, \"host\" }} jump between"
            );
        }
        for rule in rules {
            let _ = writeln!(script, "add rule bridge wan between {rule}");
        }
        Some(script)
    }

    /// What a node does with what leaves for other clusters: a script for nft, or nothing.
    pub fn leaving(&self, own: &[Machine]) -> Option<String> {
        if !self.snat {
            return None;
        }
        let of = |family: &str, addresses: Vec<String>| {
            let own = addresses.join(", ");
            format!(
                "add rule inet nat out oifname \"eth0\" {family} daddr != {{ {own} }} meta l4proto udp masquerade fully-random\n"
            )
        };
        let v4 = own.iter().map(|machine| machine.ip4.to_string()).collect();
        let v6 = own.iter().map(|machine| machine.ip6.to_string()).collect();
        Some(format!(
            "add table inet nat\nadd chain inet nat out {{ type nat hook postrouting priority 90; }}\n{}{}",
            of("ip", v4),
            of("ip6", v6)
        ))
    }
}

/// KEY=VALUE:EFFECT, as `kubectl taint` writes it.
fn taint(text: &str) -> Result<Taint, String> {
    let form = || format!("\"{text}\" is not KEY=VALUE:EFFECT, as in dedicated=infra:NoSchedule");
    let (pair, effect) = text.split_once(':').ok_or_else(form)?;
    let (key, value) = pair.split_once('=').ok_or_else(form)?;
    if key.is_empty() || !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(form());
    }
    Ok(Taint {
        key: key.to_owned(),
        value: Some(value.to_owned()),
        effect: effect.to_owned(),
        time_added: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_between_clusters_unless_asked_for() {
        let plan: Plan = "a:1,b:1".parse().unwrap();
        let none = Options::default();
        assert_eq!(none.between_clusters(&plan), None);
        assert_eq!(none.leaving(&[]), None);
        assert!(!none.judges_packets());
    }

    #[test]
    fn only_what_passes_between_clusters_is_judged() {
        let plan: Plan = "a:1,b:1".parse().unwrap();
        let narrow = Options {
            path_mtu: Some(1400),
            ..Options::default()
        };
        let script = narrow.between_clusters(&plan).unwrap();
        let expected = "add rule bridge wan forward iifname { \"port1-10\", \"port1-11\" } \
                        oifname != { \"port1-10\", \"port1-11\", \"host\" } jump between";
        assert!(script.contains(expected), "{script}");
        assert!(script.contains("ip length > 1400"), "{script}");
        assert!(script.contains("ip6 length > 1360"), "{script}");
    }

    #[test]
    fn a_taint_reads_as_kubectl_writes_it() {
        let good = taint("dedicated=infra:NoSchedule").unwrap();
        assert_eq!((&*good.key, good.value.as_deref()), ("dedicated", Some("infra")));
        for bad in ["dedicated", "dedicated:NoSchedule", "a=b:Never", "=b:NoExecute"] {
            assert!(taint(bad).unwrap_err().contains("KEY=VALUE:EFFECT"), "{bad}");
        }
    }

    #[test]
    fn options_survive_being_written_down() {
        let options = Options {
            family: Family::Ipv6,
            taint: Some(taint("a=b:NoExecute").unwrap()),
            ..Options::default()
        };
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), options);
        // A lab that an older program made.
        assert_eq!(serde_json::from_str::<Options>("{}").unwrap(), Options::default());
    }
}
