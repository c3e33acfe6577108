//! What the nodes' agents find when they ask the cluster's DNS for names of slices. Pure.
//!
//! Each agent says for its node which part of the way fails (`netop/src/names`), as the condition `NamesResolve` of its SliceNode.
//! What most nodes have is said first: it is one cause. A node that is down says nothing that counts.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use slice_crds::{
    conditions::{self, NAMES_RESOLVE},
    v1alpha1::SliceNode,
    wire::NamesReport,
};

/// Nodes that are named.
const NAMED: usize = 3;

/// What follows from the nodes that live; nothing where none of them asks.
pub(super) fn of_nodes<'a>(nodes: impl Iterator<Item = (&'a str, &'a SliceNode)>) -> Option<NamesReport> {
    let mut resolving = 0_usize;
    // By reason: the nodes, the first moment, and what the first node says.
    let mut failing: BTreeMap<&str, (BTreeSet<&str>, Timestamp, &str)> = BTreeMap::new();
    for (name, node) in nodes {
        let Some(status) = &node.status else { continue };
        let Some(found) = conditions::find(&status.conditions, NAMES_RESOLVE) else {
            continue;
        };
        match found.status.as_str() {
            "True" => resolving += 1,
            "False" => {
                let since = found.last_transition_time.0;
                let of_reason = failing
                    .entry(&found.reason)
                    .or_insert_with(|| (BTreeSet::new(), since, &found.message));
                of_reason.0.insert(name);
                of_reason.1 = of_reason.1.min(since);
            }
            _ => {}
        }
    }
    let total: usize = failing.values().map(|(nodes, ..)| nodes.len()).sum();
    let worst = failing.values().max_by_key(|(nodes, ..)| nodes.len());
    let Some((nodes, since, message)) = worst else {
        return (resolving > 0).then(|| NamesReport {
            resolve: true,
            message: format!(
                "names of slices resolve by the cluster's DNS on the {resolving} nodes that ask"
            ),
        });
    };
    let named: Vec<&str> = nodes.iter().take(NAMED).copied().collect();
    let named = named.join(", ");
    let more = match nodes.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let word = if nodes.len() == 1 { "node" } else { "nodes" };
    let others = match total - nodes.len() {
        0 => String::new(),
        others => format!(" ({others} nodes have other trouble: see `kubectl get slicenodes -o yaml` there)"),
    };
    Some(NamesReport {
        resolve: false,
        message: format!(
            "names of slices do not resolve on {word} {named}{more} of {} since {since}{others}: {message}",
            resolving + total
        ),
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, conditions: &Value) -> SliceNode {
        let object = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "SliceNode", "metadata": {"name": name}, "spec": {},
            "status": {"conditions": conditions},
        });
        serde_json::from_value(object).unwrap()
    }

    fn condition(status: &str, reason: &str, message: &str, hour: u32) -> Value {
        json!([{
            "type": NAMES_RESOLVE, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": format!("2026-11-29T{hour:02}:00:00Z"),
        }])
    }

    #[track_caller]
    fn check(nodes: &[SliceNode], wanted: &Expect) {
        let nodes = nodes
            .iter()
            .map(|node| (node.metadata.name.as_deref().unwrap(), node));
        let report = of_nodes(nodes);
        let report = report.map(|report| format!("{} {}", report.resolve, report.message));
        wanted.assert_eq(&report.unwrap_or_default());
    }

    #[test]
    fn nodes_that_do_not_ask_say_nothing() {
        check(&[node("a1", &json!([]))], &expect![""]);
        let unknown = condition("Unknown", "Pending", "x", 1);
        check(&[node("a1", &unknown)], &expect![""]);
        let well = condition("True", "NamesResolve", "x", 1);
        check(
            &[node("a1", &unknown), node("a2", &well), node("a3", &well)],
            &expect!["true names of slices resolve by the cluster's DNS on the 2 nodes that ask"],
        );
    }

    #[test]
    fn what_most_nodes_have_is_said_once() {
        let well = node("a9", &condition("True", "NamesResolve", "x", 1));
        let zone = |name: &str, hour| node(name, &condition("False", "ZoneUnknown", "it is unknown", hour));
        check(
            &[well.clone(), zone("a1", 3)],
            &expect![
                "false names of slices do not resolve on node a1 of 2 since 2026-11-29T03:00:00Z: it is unknown"
            ],
        );
        let cut_off = node("a0", &condition("False", "PodsCutOff", "a policy", 1));
        check(
            &[
                cut_off,
                zone("a1", 3),
                zone("a2", 2),
                zone("a3", 4),
                zone("a4", 5),
                well,
            ],
            &expect![
                "false names of slices do not resolve on nodes a1, a2, a3 and 1 more of 6 since 2026-11-29T02:00:00Z (1 nodes have other trouble: see `kubectl get slicenodes -o yaml` there): it is unknown"
            ],
        );
    }
}
