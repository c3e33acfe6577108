//! What a member reports of itself.

use std::collections::BTreeMap;

use slice_crds::{
    Cidr,
    wire::{Held, MemberReportSpec, NamesReport, ReportWarning, WIRE},
};

use super::{Violation, at_most, shown};

/// More nodes than any cluster is known to have: the figure decides how many indices a cluster gets at first.
const MOST_NODES: u32 = 20_000;
/// Networks of one sort.
const MOST_NETWORKS: usize = 256;
/// Warnings that are shown.
const MOST_WARNINGS: usize = 20;
/// Characters of one, and of any other sentence.
const LONGEST: usize = 500;
/// Slices that one member can have.
const MOST_SLICES: usize = 10_000;
/// Smallest packet that the underlay must carry: what IPv6 wants of every link (RFC 8200 §5).
pub(super) const SMALLEST_UNDERLAY: u16 = 1280;
/// Largest that is believed: 64 KiB less one.
const LARGEST_UNDERLAY: u32 = 65_535;

/// A member's own facts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// See [`slice_crds::wire::WIRE`].
    pub wire: u32,
    /// Peers and services are to stand in its own namespace.
    pub inline: bool,
    /// UID of its namespace kube-system; empty from an older member.
    pub cluster_uid: String,
    pub join: Option<String>,
    pub leaving: bool,
    pub weft_version: String,
    pub kubernetes_version: String,
    pub nodes: u32,
    pub underlay_mtu: Option<u16>,
    pub pod_cidrs: Vec<Cidr>,
    pub service_cidrs: Vec<Cidr>,
    pub node_cidrs: Vec<Cidr>,
    pub warnings: Vec<ReportWarning>,
    /// See [`MemberReportSpec::zone_unchecked`].
    pub zone_unchecked: Option<String>,
    /// See [`MemberReportSpec::names`].
    pub names: Option<NamesReport>,
    /// Slices that it has, and from which hub.
    pub holds: BTreeMap<String, Held>,
}

/// Checks a report. `identity` is the cluster that has this member's name, where one has it.
///
/// # Errors
/// The report is another cluster's: nothing of it counts.
pub fn facts(
    report: &MemberReportSpec,
    identity: Option<&str>,
) -> Result<(Facts, Vec<Violation>), Violation> {
    let uid = &report.identity.cluster_uid;
    if let Some(identity) = identity.filter(|identity| !uid.is_empty() && uid != identity) {
        return Err(Violation::new(format!(
            "a report of cluster {} was refused: this name is that of cluster {identity} since it joined. Where the \
             cluster was built anew, `slicectl token issue NAME --replace` lets it take the name over",
            shown(uid)
        )));
    }
    let mut violations = Vec::new();
    let facts = Facts {
        wire: report.wire,
        inline: report.inline || report.wire < WIRE,
        cluster_uid: uid.clone(),
        join: report.identity.join.clone(),
        leaving: report.leaving,
        weft_version: shown(&report.weft_version),
        kubernetes_version: shown(&report.kubernetes_version),
        nodes: match report.nodes > MOST_NODES {
            true => {
                violations.push(Violation::new(format!(
                    "{} nodes, of which {MOST_NODES} are believed",
                    report.nodes
                )));
                MOST_NODES
            }
            false => report.nodes,
        },
        underlay_mtu: underlay(report.underlay_mtu, &mut violations),
        pod_cidrs: networks("pod", &report.pod_cidrs, &mut violations),
        service_cidrs: networks("Service", &report.service_cidrs, &mut violations),
        node_cidrs: networks("node", &report.node_cidrs, &mut violations),
        names: report.names.as_ref().map(|names| NamesReport {
            resolve: names.resolve,
            message: names.message.chars().take(LONGEST).collect(),
        }),
        zone_unchecked: (report.zone_unchecked.as_ref()).map(|why| why.chars().take(LONGEST).collect()),
        warnings: report
            .warnings
            .iter()
            .take(MOST_WARNINGS)
            .map(|warning| ReportWarning {
                object: shown(&warning.object),
                message: warning.message.chars().take(LONGEST).collect(),
            })
            .collect(),
        holds: at_most(&report.holds, MOST_SLICES, "slices held", &mut violations)
            .iter()
            .map(|held| (held.slice.clone(), held.clone()))
            .collect(),
    };
    Ok((facts, violations))
}

/// One member must not make every other's packets small.
fn underlay(mtu: Option<u32>, violations: &mut Vec<Violation>) -> Option<u16> {
    let mtu = mtu?;
    if mtu < SMALLEST_UNDERLAY.into() || mtu > LARGEST_UNDERLAY {
        violations.push(Violation::new(format!(
            "a node network that carries packets of {mtu} bytes: it takes {SMALLEST_UNDERLAY} at least, and the slices' \
             packet size is decided without it"
        )));
        return None;
    }
    u16::try_from(mtu).ok()
}

fn networks(what: &str, texts: &[String], violations: &mut Vec<Violation>) -> Vec<Cidr> {
    let mut networks = Vec::new();
    for text in at_most(texts, MOST_NETWORKS, &format!("{what} networks"), violations) {
        match text.parse() {
            Ok(cidr) => networks.push(cidr),
            Err(_) => violations.push(Violation::new(format!(
                "the {what} network \"{}\" is none",
                shown(text)
            ))),
        }
    }
    networks
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(report: Value, identity: Option<&str>) -> Result<(Facts, Vec<String>), Violation> {
        let (facts, violations) = facts(&serde_json::from_value(report).unwrap(), identity)?;
        Ok((facts, violations.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn an_honest_report_is_believed() {
        let report = json!({
            "wire": 2, "identity": {"clusterUID": "u1"}, "nodes": 3, "underlayMtu": 1500,
            "podCIDRs": ["10.244.0.0/16"], "holds": [{"slice": "shop", "hub": "h", "vni": 4097}],
        });
        let (facts, violations) = check(report, Some("u1")).unwrap();
        assert_eq!(
            (facts.nodes, facts.underlay_mtu, violations.len()),
            (3, Some(1500), 0)
        );
        assert_eq!(facts.holds["shop"].vni, 4097);
    }

    #[test]
    fn another_clusters_report_is_none() {
        let error = check(json!({"identity": {"clusterUID": "u2"}}), Some("u1")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("of cluster u2") && text.contains("of cluster u1 since it joined"),
            "{text}"
        );
        assert!(check(json!({"identity": {"clusterUID": "u2"}}), None).is_ok());
        assert!(
            check(json!({}), Some("u1")).is_ok(),
            "an older member does not say who it is"
        );
    }

    #[test]
    fn no_member_shrinks_the_packets_of_all() {
        for mtu in [0, 576, 1279, 70_000] {
            let (facts, violations) = check(json!({"underlayMtu": mtu}), None).unwrap();
            assert_eq!((facts.underlay_mtu, violations.len()), (None, 1), "{mtu}");
        }
        assert_eq!(
            check(json!({"underlayMtu": 1280}), None).unwrap().0.underlay_mtu,
            Some(1280)
        );
    }

    #[test]
    fn one_bad_network_costs_itself_only() {
        let (facts, violations) = check(json!({"podCIDRs": ["10.244.0.0/16", "everything"]}), None).unwrap();
        assert_eq!((facts.pod_cidrs.len(), violations.len()), (1, 1));
        assert!(violations[0].contains("\"everything\""), "{violations:?}");
    }

    #[test]
    fn figures_and_lists_have_an_end() {
        let many: Vec<String> = (0..300u32)
            .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))
            .collect();
        let (facts, violations) = check(json!({"nodes": 4_000_000_000u32, "nodeCIDRs": many}), None).unwrap();
        assert_eq!(
            (facts.nodes, facts.node_cidrs.len(), violations.len()),
            (MOST_NODES, MOST_NETWORKS, 2)
        );
    }
}
