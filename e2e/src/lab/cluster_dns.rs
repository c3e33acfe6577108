//! What resolves names in the lab's clusters, as the options ask for. Pure.

use serde_json::json;

use super::options::{NODE_LOCAL_DNS, Options};

const COREDNS: &str = include_str!("cluster_dns.yaml");
const NODE_LOCAL: &str = include_str!("node_local_dns.yaml");

/// The objects of a new cluster's DNS, as YAML documents.
pub fn manifests(options: &Options) -> String {
    let mut text = String::new();
    if options.priority_quota {
        // As GKE has it: in its own namespace the classes may be used.
        let quota = json!({
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "critical-pods", "namespace": "kube-system"},
            "spec": {
                "hard": {"pods": "1000"},
                "scopeSelector": {"matchExpressions": [{
                    "scopeName": "PriorityClass", "operator": "In",
                    "values": ["system-node-critical", "system-cluster-critical"]
                }]}
            }
        });
        text += &format!("{quota}\n---\n");
    }
    text += COREDNS;
    if options.node_local_dns {
        text += "---\n";
        text += NODE_LOCAL;
    }
    text.replace("@PORT@", &options.dns_port.unwrap_or(53).to_string())
        .replace("@DNS@", &options.family.ranges()[0].dns.to_string())
        .replace("@LOCAL@", NODE_LOCAL_DNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_filled() {
        let all = Options {
            node_local_dns: true,
            priority_quota: true,
            dns_port: Some(5353),
            ..Options::default()
        };
        for options in [Options::default(), all] {
            let text = manifests(&options);
            assert!(!text.contains('@'), "{text}");
            for document in text.split("---\n") {
                serde_saphyr::from_str::<serde_json::Value>(document).unwrap();
            }
        }
    }
}
