//! What a member reports of one slice.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use slice_crds::{
    IndexRange, Subnets,
    gateway_address::can_be_dialled,
    index,
    wire::{Gateway, MemberSliceReportSpec, Run},
};

use super::{Violation, at_most, shown};
use crate::allocation::Holding;

/// Endpoints of one gateway: every gateway of every peer tries them in turn.
pub(crate) const MOST_ENDPOINTS: usize = 8;
/// Problems that are shown.
const MOST_PROBLEMS: usize = 8;
/// Runs of indices in one list.
const MOST_RUNS: usize = 4096;

/// What a member was given of a slice.
#[derive(Clone, Debug)]
pub struct Given {
    pub subnets: Subnets,
    /// Its ranges, those to be given back among them.
    pub ranges: Vec<IndexRange>,
    /// Its gateways are numbered below this.
    pub replicas: u32,
}

/// What is believed of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    /// Identity of the hub that the member acts by.
    pub hub: String,
    /// `None` from an older member.
    pub revision: Option<u64>,
    pub released: bool,
    pub subnets: Vec<String>,
    pub holding: Holding,
    pub idle: Vec<IndexRange>,
    pub given_back: Vec<IndexRange>,
    /// What it knows of the others: name and holding.
    pub peers: Vec<(String, Holding)>,
    pub attachments: u32,
    /// Blocks that its nodes have and want; from a member that tells no revision, those that it lacks.
    pub blocks: u32,
    pub gateways: Vec<Gateway>,
    pub unreached: BTreeSet<String>,
    /// Clusters to which a path carries packets of this many bytes only.
    pub narrow_paths: BTreeMap<String, u16>,
    /// Clusters that it reaches by paths of which none is measured yet.
    pub unmeasured: BTreeSet<String>,
    pub problems: Vec<String>,
}

/// Checks a report against what the member was `given`; `None` where this hub has given it nothing.
pub fn claim(report: &MemberSliceReportSpec, given: Option<&Given>) -> (Claim, Vec<Violation>) {
    let mut violations = Vec::new();
    let mut runs = |list: &[Run], what: &str| -> Vec<IndexRange> {
        let list = at_most(list, MOST_RUNS, what, &mut violations);
        let good = list.iter().filter_map(|run| run.range()).collect::<Vec<_>>();
        if good.len() < list.len() {
            violations.push(Violation::new(format!("{what} that are no runs of indices")));
        }
        good
    };
    let ranges = runs(&report.ranges, "ranges");
    let mut idle = runs(&report.idle, "idle ranges");
    let mut given_back = runs(&report.given_back, "ranges given back");
    let peers = report
        .peers
        .iter()
        .filter(|peer| peer.number <= index::MAX_CLUSTER)
        .map(|peer| {
            let ranges = peer.ranges.iter().filter_map(|run| run.range()).collect();
            (peer.name.clone(), holding(report, peer.number, ranges))
        })
        .collect();
    if let Some(given) = given {
        let own = |range: &IndexRange| given.ranges.iter().any(|own| own.covers(*range));
        idle.retain(own);
        given_back.retain(own);
    }
    let claim = Claim {
        hub: report.hub.clone(),
        revision: Some(report.revision).filter(|revision| *revision > 0),
        released: report.released,
        subnets: report.subnets.iter().take(2).cloned().collect(),
        holding: holding(report, report.cluster_number, ranges),
        idle,
        given_back,
        peers,
        attachments: report.attachments,
        blocks: report.blocks_needed.saturating_add(report.blocks_wanted),
        gateways: gateways(&report.gateways, given, &mut violations),
        unreached: clusters(&report.unreached),
        unmeasured: clusters(&report.unmeasured),
        narrow_paths: report
            .narrow_paths
            .iter()
            .take(index::MAX_CLUSTER as usize)
            .filter_map(|path| Some((path.cluster.clone(), u16::try_from(path.mtu).ok()?)))
            .collect(),
        problems: report
            .problems
            .iter()
            .take(MOST_PROBLEMS)
            .map(|problem| problem.chars().take(500).collect())
            .collect(),
    };
    (claim, violations)
}

/// Names of clusters, no more than there can be.
fn clusters(names: &[String]) -> BTreeSet<String> {
    names.iter().take(index::MAX_CLUSTER as usize).cloned().collect()
}

fn holding(report: &MemberSliceReportSpec, number: u32, ranges: Vec<IndexRange>) -> Holding {
    Holding {
        vni: report.vni,
        number,
        revision: report.revision,
        ranges,
    }
}

fn gateways(reported: &[Gateway], given: Option<&Given>, violations: &mut Vec<Violation>) -> Vec<Gateway> {
    let most = given.map_or(index::MAX_ORDINAL + 1, |given| {
        given.replicas.min(index::MAX_ORDINAL + 1)
    });
    let mut ordinals = BTreeSet::new();
    let mut gateways = Vec::new();
    for gateway in reported {
        let ordinal = gateway.ordinal;
        if !ordinals.insert(ordinal) {
            violations.push(Violation::new(format!(
                "gateway {ordinal} reported more than once, of which the first counts"
            )));
            continue;
        }
        // One more than there are is on its way out while replicas are taken away.
        if ordinal >= most {
            continue;
        }
        let mut gateway = gateway.clone();
        gateway.endpoints = endpoints(&gateway, given, violations);
        for key in [&mut gateway.public_key, &mut gateway.former_key] {
            if let Some(text) = key.as_ref().filter(|text| !is_key(text)) {
                violations.push(Violation::new(format!(
                    "gateway {ordinal} with \"{}\", which is no public key",
                    shown(text)
                )));
                *key = None;
            }
        }
        gateways.push(gateway);
    }
    gateways.sort_by_key(|gateway| gateway.ordinal);
    gateways
}

/// 32 bytes in base 64 (RFC 4648 §4), and not all of them zero, which is no point of the curve.
fn is_key(text: &str) -> bool {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD
        .decode(text)
        .is_ok_and(|bytes| bytes.len() == 32 && bytes.iter().any(|byte| *byte != 0))
}

fn endpoints(gateway: &Gateway, given: Option<&Given>, violations: &mut Vec<Violation>) -> Vec<String> {
    let what = format!("endpoints of gateway {}", gateway.ordinal);
    let mut endpoints = Vec::new();
    for text in at_most(&gateway.endpoints, MOST_ENDPOINTS, &what, violations) {
        let why = match text.parse::<SocketAddr>() {
            Err(_) => "is no address and port",
            Ok(endpoint) if endpoint.port() == 0 => "has no port",
            Ok(endpoint) if !can_be_dialled(endpoint.ip()) => "is an address that nobody else can reach",
            Ok(endpoint) if given.is_some_and(|given| given.subnets.index_of(endpoint.ip()).is_some()) => {
                "lies in the slice itself"
            }
            Ok(_) => {
                endpoints.push(text.clone());
                continue;
            }
        };
        violations.push(Violation::new(format!(
            "endpoint \"{}\" of gateway {} {why}",
            shown(text),
            gateway.ordinal
        )));
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const KEY: &str = "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn given() -> Given {
        Given {
            subnets: Subnets::new(&["10.80.0.0/16".parse().unwrap()]).unwrap(),
            ranges: vec![IndexRange::new(0, 8192)],
            replicas: 2,
        }
    }

    fn check(report: Value) -> (Claim, Vec<String>) {
        let (claim, violations) = claim(&serde_json::from_value(report).unwrap(), Some(&given()));
        (claim, violations.iter().map(ToString::to_string).collect())
    }

    #[track_caller]
    fn refuses(report: Value, words: &str) -> Claim {
        let (claim, violations) = check(report);
        assert!(
            violations.iter().any(|violation| violation.contains(words)),
            "{violations:?}"
        );
        claim
    }

    #[test]
    fn an_honest_report_is_believed() {
        let (claim, violations) = check(json!({
            "name": "shop", "hub": "h", "revision": 3, "vni": 4097, "clusterNumber": 1, "blocksNeeded": 4,
            "ranges": [{"start": 0, "size": 8192}],
            "gateways": [{"ordinal": 0, "publicKey": KEY, "endpoints": ["192.0.2.1:30001"], "up": true}],
        }));
        assert_eq!(violations, Vec::<String>::new());
        assert_eq!(
            (claim.revision, claim.blocks, claim.gateways.len()),
            (Some(3), 4, 1)
        );
    }

    #[test]
    fn a_duplicate_ordinal_freezes_nothing() {
        let twice = json!({"gateways": [{"ordinal": 0, "publicKey": KEY}, {"ordinal": 0}, {"ordinal": 1}]});
        let claim = refuses(twice, "gateway 0 reported more than once");
        assert_eq!(claim.gateways.len(), 2);
        assert!(claim.gateways[0].public_key.is_some());
    }

    #[test]
    fn there_are_no_more_gateways_than_asked_for() {
        let (claim, _) = check(json!({"gateways": [{"ordinal": 1}, {"ordinal": 2}, {"ordinal": 70_000}]}));
        assert_eq!(
            claim
                .gateways
                .iter()
                .map(|gateway| gateway.ordinal)
                .collect::<Vec<_>>(),
            [1]
        );
    }

    #[test]
    fn what_is_no_key_is_none() {
        for key in [
            "",
            "abc",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            &KEY[1..],
        ] {
            let claim = refuses(
                json!({"gateways": [{"ordinal": 0, "publicKey": key}]}),
                "which is no public key",
            );
            assert_eq!(claim.gateways[0].public_key, None);
        }
    }

    #[test]
    fn nobody_is_made_to_dial_what_is_no_gateway() {
        for (endpoint, why) in [
            ("gw.example.com:51820", "is no address and port"),
            ("192.0.2.1:0", "has no port"),
            ("127.0.0.1:51820", "nobody else can reach"),
            ("169.254.169.254:80", "nobody else can reach"),
            ("224.0.0.1:1", "nobody else can reach"),
            ("0.0.0.7:1", "nobody else can reach"),
            ("240.0.0.1:1", "nobody else can reach"),
            ("255.255.255.255:1", "nobody else can reach"),
            ("[fe80::1]:51820", "nobody else can reach"),
            ("[::ffff:192.0.2.1]:51820", "nobody else can reach"),
            ("10.80.3.4:51820", "lies in the slice itself"),
        ] {
            let good = "192.0.2.1:30001";
            let report = json!({"gateways": [{"ordinal": 0, "endpoints": [endpoint, good]}]});
            assert_eq!(refuses(report, why).gateways[0].endpoints, [good]);
        }
        let many: Vec<String> = (0..20).map(|n| format!("192.0.2.{n}:1")).collect();
        let claim = refuses(
            json!({"gateways": [{"ordinal": 0, "endpoints": many}]}),
            "20 endpoints of gateway 0",
        );
        assert_eq!(claim.gateways[0].endpoints.len(), MOST_ENDPOINTS);
    }

    #[test]
    fn nothing_is_given_back_that_was_not_given() {
        let (claim, _) = check(json!({
            "idle": [{"start": 8192, "size": 64}, {"start": 64, "size": 64}],
            "givenBack": [{"start": 0, "size": 16384}, {"start": 128, "size": 64}],
        }));
        assert_eq!(claim.idle, [IndexRange::new(64, 64)]);
        assert_eq!(claim.given_back, [IndexRange::new(128, 64)]);
    }

    #[test]
    fn two_numbers_that_are_no_run_are_passed_over() {
        let claim = refuses(
            json!({"ranges": [{"start": 3, "size": 5}, {"start": 0, "size": 0}]}),
            "no runs of indices",
        );
        assert_eq!(claim.holding.ranges, []);
    }
}
