//! A hub: its operator, its member clusters, its slices, and what was given back and is not free yet.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Client, api::ListParams};
use slice_crds::{
    conditions::{self, reason},
    names,
    v1alpha1::{Cluster, SliceConfig},
    wire::{
        AllocationState, Gateway, MemberReport, MemberSliceReport, MemberSliceReportSpec, SliceAllocation,
        SliceAllocationSpec,
    },
};

use super::{Listed, Report, lease, list};
use crate::{
    age::{self, Heartbeat},
    objects::Found,
    output::count,
};

/// What is shown.
pub(super) struct Facts {
    project: String,
    operator: Result<Option<Lease>, String>,
    slices: Listed<SliceConfig>,
    clusters: Listed<Cluster>,
    allocations: Listed<SliceAllocation>,
    reports: Listed<MemberReport>,
    slice_reports: Listed<MemberSliceReport>,
    heartbeats: Listed<Lease>,
}

pub(super) async fn gather(client: &Client, project: &str) -> Facts {
    let all = ListParams::default();
    let own = all
        .clone()
        .fields(&format!("metadata.name={}", names::MEMBER_REPORT));
    let beats = all
        .clone()
        .fields(&format!("metadata.name={}", names::MEMBER_LEASE));
    let (operator, slices, clusters, allocations, reports, slice_reports, heartbeats) = tokio::join!(
        lease(client, names::HUB_NAMESPACE, names::HUB_OPERATOR),
        list(client, Some(project), &all),
        list(client, Some(project), &all),
        list(client, Some(names::HUB_NAMESPACE), &all),
        list(client, None, &own),
        list(client, None, &all),
        list(client, None, &beats),
    );
    Facts {
        project: project.to_owned(),
        operator,
        slices,
        clusters,
        allocations,
        reports,
        slice_reports,
        heartbeats,
    }
}

impl Facts {
    pub(super) fn knows(&self, slice: Option<&str>) -> bool {
        let here = |slices: &Vec<Found<SliceConfig>>| slices.iter().any(|one| Some(one.name()) == slice);
        // Where they cannot be listed nobody knows.
        self.slices.as_ref().map_or(true, here)
    }

    fn slices(&self) -> &[Found<SliceConfig>] {
        self.slices.as_deref().unwrap_or_default()
    }

    /// Allocations of the project, and those of slices whose project cannot be read.
    fn allocations(&self) -> impl Iterator<Item = (&str, &SliceAllocationSpec)> {
        let all = self.allocations.iter().flatten();
        let readable = all.filter_map(|one| Some((one.name(), &one.readable()?.spec)));
        readable.filter(|(_, spec)| spec.namespace == self.project)
    }

    fn heartbeat(&self, cluster: &str, now: Timestamp) -> Option<Heartbeat> {
        let namespace = names::member_namespace(cluster);
        let mut all = self.heartbeats.iter().flatten();
        let lease = all.find(|lease| lease.namespace() == namespace)?;
        lease.readable().map(|lease| Heartbeat::of(lease, now))
    }

    fn report(&self, cluster: &str) -> Option<&MemberReport> {
        let namespace = names::member_namespace(cluster);
        let mut all = self.reports.iter().flatten();
        all.find(|report| report.namespace() == namespace)?.readable()
    }

    /// What a member reports of a slice; of an older member it stands in its one report.
    fn slice_report(&self, cluster: &str, slice: &str) -> Option<&MemberSliceReportSpec> {
        let namespace = names::member_namespace(cluster);
        let mut all = self.slice_reports.iter().flatten();
        let found = all.find(|report| report.namespace() == namespace && report.name() == slice);
        let own = found.and_then(Found::readable).map(|report| &report.spec);
        let older = || {
            self.report(cluster)?
                .spec
                .slices
                .iter()
                .find(|report| report.name == slice)
        };
        own.or_else(older)
    }
}

pub(super) fn render(facts: &Facts, only: Option<&str>, report: &mut Report) {
    report.gap();
    let remedy = format!("see `kubectl -n {} get pods`", names::HUB_NAMESPACE);
    report.operator("hub", &facts.operator, &remedy);
    unreadable(facts, report);
    report.good &= facts.slices.is_ok();
    let named = only.map(|slice| clusters_of(facts, slice));
    for cluster in facts.clusters.iter().flatten() {
        if named.as_ref().is_none_or(|named| named.contains(cluster.name())) {
            render_cluster(facts, cluster, report);
        }
    }
    if facts.slices.as_ref().is_ok_and(Vec::is_empty) && only.is_none() {
        report.gap();
        report.line(format_args!(
            "No slices yet. Create one with `slicectl create slice`."
        ));
    }
    for slice in facts
        .slices()
        .iter()
        .filter(|slice| only.is_none_or(|only| slice.name() == only))
    {
        report.gap();
        render_slice(facts, slice, report);
    }
    let held: Vec<_> = facts
        .allocations()
        .filter(|(_, spec)| only.is_none_or(|only| spec.slice == only))
        .filter_map(|(name, spec)| held_back(name, spec, report.now))
        .collect();
    if !held.is_empty() {
        report.gap();
        report.line(format_args!("given back, and not free yet"));
        for line in held {
            report.line(format_args!("  {line}"));
        }
    }
}

fn unreadable(facts: &Facts, report: &mut Report) {
    report.unreadable("sliceconfig", &facts.slices);
    report.unreadable("clusters.weft.dev", &facts.clusters);
    report.unreadable("sliceallocation", &facts.allocations);
    report.unreadable("memberreport", &facts.reports);
    report.unreadable("memberslicereport", &facts.slice_reports);
    report.unreadable("lease", &facts.heartbeats);
}

/// The clusters that a slice has or names, by name.
fn clusters_of(facts: &Facts, slice: &str) -> BTreeSet<String> {
    let found = facts.slices().iter().filter(|one| one.name() == slice);
    let readable = found.filter_map(Found::readable);
    let names = readable.flat_map(|slice| {
        let status = slice
            .status
            .iter()
            .flat_map(|status| &status.clusters)
            .map(|one| one.name.clone());
        status.chain(slice.spec.clusters.iter().flatten().cloned())
    });
    names.collect()
}

fn render_cluster(facts: &Facts, cluster: &Found<Cluster>, report: &mut Report) {
    let name = cluster.name();
    let conditions = cluster.conditions();
    let status = cluster
        .readable()
        .and_then(|cluster| cluster.status.clone())
        .unwrap_or_default();
    let mut parts = vec![count(status.nodes.into(), "node")];
    parts.extend(
        status
            .kubernetes_version
            .map(|version| format!("Kubernetes {version}")),
    );
    parts.extend(status.weft_version.map(|version| format!("Weft {version}")));
    let heartbeat = facts.heartbeat(name, report.now);
    let own = facts
        .report(name)
        .and_then(|report| report.spec.observed_at.as_ref());
    match (&heartbeat, own) {
        (Some(heartbeat), _) => parts.push(heartbeat.show(report.now)),
        // An older member reports when it looked.
        (None, Some(at)) => parts.push(format!("reported {}", report.ago(at.0))),
        (None, None) => parts.push("no heartbeat yet".to_owned()),
    }
    let reason_of = |type_| conditions::find(&conditions, type_).map(|one| one.reason.as_str());
    // Nothing is wrong with a cluster that is registered and has not joined yet.
    let awaited = reason_of(conditions::REACHABLE) == Some(reason::NOT_REGISTERED);
    let ready = conditions::is_true(&conditions, conditions::READY);
    let overdue = heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.overdue);
    report.good &= (ready && !overdue) || awaited;
    let mark = match (ready, awaited) {
        (true, _) if overdue => "SILENT",
        (true, _) => "ok",
        (false, true) => "awaited",
        (false, false) => "NOT",
    };
    report.line(format_args!("cluster {name}  {mark}  {}", parts.join(", ")));
    let warnings = facts
        .report(name)
        .map(|report| report.spec.warnings.as_slice())
        .unwrap_or_default();
    for condition in conditions.iter().filter(|condition| condition.status != "True") {
        report.good &= awaited || condition.status == "Unknown";
        // Ready repeats what Reachable has, and these four the first of the warnings.
        let repeats = match condition.type_.as_str() {
            conditions::READY => {
                let reachable = conditions::find(&conditions, conditions::REACHABLE);
                reachable.is_some_and(|reachable| reachable.message == condition.message)
            }
            conditions::LABELS_VALID
            | conditions::NODES_USABLE
            | conditions::ZONE_FORWARDED
            | conditions::GATEWAYS_EXPOSED => !warnings.is_empty(),
            _ => false,
        };
        if !repeats {
            report.condition(condition);
        }
    }
    for warning in warnings {
        report.bad(format_args!("  NOT {}: {}", warning.object, warning.message));
    }
}

fn render_slice(facts: &Facts, slice: &Found<SliceConfig>, report: &mut Report) {
    let name = slice.name();
    let conditions = slice.conditions();
    report.good &= conditions::is_true(&conditions, conditions::READY);
    let Some(object) = slice.readable() else {
        report.line(format_args!("slice {name}"));
        return conditions
            .iter()
            .for_each(|condition| report.condition(condition));
    };
    let status = object.status.clone().unwrap_or_default();
    let subnets: Vec<_> = object.spec.subnets.iter().map(ToString::to_string).collect();
    let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let observed = report.observed(status.observed_at.map(|time| time.0));
    report.line(format_args!(
        "slice {name}  {}  vni {}  mtu {}{observed}",
        subnets.join(" "),
        number(status.vni),
        number(status.mtu.map(u32::from))
    ));
    conditions
        .iter()
        .for_each(|condition| report.condition(condition));
    let own = facts
        .allocations()
        .find(|(_, spec)| spec.slice == name && spec.state == AllocationState::Held);
    for cluster in &status.clusters {
        let at = &cluster.name;
        let seen = match facts.heartbeat(at, report.now) {
            Some(heartbeat) => heartbeat.show(report.now),
            None => "no heartbeat".to_owned(),
        };
        report.line(format_args!(
            "  cluster {at}: {}, {} of {} gateways up; {seen}",
            count(cluster.attachments.into(), "pod"),
            cluster.gateways_up,
            cluster.gateways_wanted
        ));
        let of_member = facts.slice_report(at, name);
        for gateway in of_member.iter().flat_map(|one| &one.gateways) {
            render_gateway(gateway, report);
        }
        for peer in of_member.iter().flat_map(|one| &one.unreached) {
            report.bad(format_args!("    NO tunnel to cluster {peer}"));
        }
        for problem in &cluster.problems {
            report.bad(format_args!("    problem: {problem}"));
        }
        let given = own.and_then(|(_, spec)| spec.clusters.iter().find(|one| one.name == *at));
        if let Some(given) = given.filter(|given| given.state != AllocationState::Held) {
            let since = given
                .since
                .as_ref()
                .map(|since| format!(" since {}", report.ago(since.0)));
            report.line(format_args!(
                "    {}{}",
                state(given.state),
                since.unwrap_or_default()
            ));
        }
        if let Some(until) = given.and_then(|given| given.release_after.as_ref()) {
            report.line(format_args!(
                "    leaves the slice {}: pods are attached there; `slicectl delete cluster {at} --yes` does not wait",
                report.ago(until.0)
            ));
        }
    }
    for peer in &status.peers {
        let addresses: Vec<_> = peer.addresses.iter().map(ToString::to_string).collect();
        report.line(format_args!("  host {}: {}", peer.name, addresses.join(", ")));
    }
}

fn render_gateway(gateway: &Gateway, report: &mut Report) {
    let state = if gateway.up { "up" } else { "DOWN" };
    let node = gateway.node.as_deref().unwrap_or("no node");
    let waits = gateway.renewal_waits_for.as_ref();
    let waits = waits
        .map(|peer| format!(", its next key waits for {peer}"))
        .unwrap_or_default();
    report.line(format_args!(
        "    gateway {} {state} on {node} at {}{waits}",
        gateway.ordinal,
        if gateway.endpoints.is_empty() {
            "no endpoint".to_owned()
        } else {
            gateway.endpoints.join(", ")
        }
    ));
    for tunnel in &gateway.tunnels {
        let state = if tunnel.up { "up" } else { "DOWN" };
        report.line(format_args!("      tunnel to {} {state}", tunnel.peer));
    }
}

const fn state(state: AllocationState) -> &'static str {
    match state {
        AllocationState::Held => "held",
        AllocationState::Releasing => "being given back",
        AllocationState::Resting => "given back, resting",
    }
}

/// A slice's allocation that waits for something, or of which something is not free yet. Pure.
fn held_back(name: &str, spec: &SliceAllocationSpec, now: Timestamp) -> Option<String> {
    let since = |since: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        since
            .as_ref()
            .map(|since| format!(" since {}", age::ago(since.0, now)))
            .unwrap_or_default()
    };
    let mut parts = Vec::new();
    if spec.state != AllocationState::Held {
        parts.push(format!("{}{}", state(spec.state), since(&spec.since)));
    } else {
        let others = spec
            .clusters
            .iter()
            .filter(|cluster| cluster.state != AllocationState::Held);
        parts.extend(others.map(|cluster| {
            format!(
                "cluster {} {}{}",
                cluster.name,
                state(cluster.state),
                since(&cluster.since)
            )
        }));
    }
    if let Some(until) = &spec.release_after {
        parts.push(format!(
            "its SliceConfig was deleted; it is given back {}",
            age::ago(until.0, now)
        ));
    }
    if !spec.message.is_empty() {
        parts.push(spec.message.clone());
    }
    (!parts.is_empty()).then(|| format!("slice {} ({name}): {}", spec.slice, parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::{
        super::tests::{lease_of, report},
        *,
    };
    use crate::objects::from_json;

    const SINCE: &str = "2027-01-15T07:57:00Z";

    fn one<T: DeserializeOwned>(namespace: &str, name: &str, more: Value) -> Found<T> {
        let mut object = more;
        object["metadata"] = json!({"namespace": namespace, "name": name});
        from_json(object)
    }

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": SINCE})
    }

    fn facts() -> Facts {
        let ready = |message: &str| condition("Ready", "True", "Ready", message);
        let beat = |namespace: &str, renewed: &str| {
            let lease = lease_of(Some("b"), renewed, 75);
            one(namespace, "weft-member", json!({"spec": lease.spec}))
        };
        Facts {
            project: "weft-default".into(),
            operator: Ok(Some(lease_of(
                Some("weft-hub-0"),
                "2027-01-15T07:59:59.000000Z",
                15,
            ))),
            slices: Ok(vec![one(
                "weft-default",
                "shop",
                json!({
                    "spec": {"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"]},
                    "status": {
                        "vni": 4097, "mtu": 1370, "conditions": [ready("every cluster is set up")],
                        "clusters": [
                            {"name": "a", "attachments": 12, "gatewaysUp": 1, "gatewaysWanted": 2},
                            {"name": "b", "attachments": 1, "gatewaysUp": 0, "gatewaysWanted": 2},
                        ],
                    },
                }),
            )]),
            clusters: Ok(vec![
                one(
                    "weft-default",
                    "a",
                    json!({
                        "spec": {},
                        "status": {"nodes": 2, "kubernetesVersion": "v1.37.1", "conditions": [ready("joined")]},
                    }),
                ),
                one(
                    "weft-default",
                    "c",
                    json!({"spec": {}, "status": {"conditions": [
                        condition("Ready", "False", "NotRegistered", "it has not reported yet"),
                        condition("Reachable", "False", "NotRegistered", "it has not reported yet"),
                    ]}}),
                ),
            ]),
            allocations: Ok(vec![]),
            reports: Ok(vec![one(
                "weft-member-b",
                "report",
                json!({"spec": {"slices": [
                    {"name": "shop", "gateways": [{"ordinal": 0, "endpoints": [], "tunnels": [{"peer": "a/0", "up": false}]}]},
                ]}}),
            )]),
            slice_reports: Ok(vec![one(
                "weft-member-a",
                "shop",
                json!({"spec": {
                    "name": "shop", "gateways": [{"ordinal": 0, "up": true, "node": "a1", "endpoints": ["192.0.2.1:30001"]}],
                }}),
            )]),
            heartbeats: Ok(vec![beat("weft-member-a", "2027-01-15T07:59:48.000000Z")]),
        }
    }

    #[track_caller]
    fn check(facts: &Facts, only: Option<&str>, lines: &[&str], good: bool) -> String {
        let mut report = report();
        render(facts, only, &mut report);
        for line in lines {
            assert!(
                report.text.lines().any(|found| found == *line),
                "{line} is not in\n{}",
                report.text
            );
        }
        assert_eq!(report.good, good, "{}", report.text);
        report.text
    }

    #[test]
    fn a_hub_in_order_is_shown_with_the_age_of_every_heartbeat() {
        check(
            &facts(),
            None,
            &[
                "hub  ok  led by weft-hub-0, heartbeat 1 s ago",
                "cluster a  ok  2 nodes, Kubernetes v1.37.1, heartbeat 12 s ago",
                "cluster c  awaited  0 nodes, no heartbeat yet",
                "  NOT Reachable (NotRegistered, for 3 min): it has not reported yet",
                "slice shop  10.80.0.0/16  vni 4097  mtu 1370",
                "  ok  Ready (Ready, for 3 min): every cluster is set up",
                "  cluster a: 12 pods, 1 of 2 gateways up; heartbeat 12 s ago",
                "    gateway 0 up on a1 at 192.0.2.1:30001",
                "  cluster b: 1 pod, 0 of 2 gateways up; no heartbeat",
                "    gateway 0 DOWN on no node at no endpoint",
                "      tunnel to a/0 DOWN",
            ],
            true,
        );
    }

    #[test]
    fn one_slice_is_shown_with_its_own_clusters_only() {
        let text = check(
            &facts(),
            Some("shop"),
            &["slice shop  10.80.0.0/16  vni 4097  mtu 1370"],
            true,
        );
        assert!(
            text.contains("cluster a  ok") && !text.contains("cluster c"),
            "{text}"
        );
        assert!(facts().knows(Some("shop")) && !facts().knows(Some("bank")));
    }

    #[test]
    fn what_cannot_be_read_or_listed_is_named_and_the_rest_is_shown() {
        let mut facts = facts();
        let odd: Found<Cluster> = one("weft-default", "odd", json!({"spec": {"gateway": 7}}));
        facts.clusters.as_mut().unwrap().push(odd);
        facts.heartbeats = Err("list leases.coordination.k8s.io: forbidden".to_owned());
        let text = check(
            &facts,
            None,
            &[
                "NOT shown: list leases.coordination.k8s.io: forbidden",
                "slice shop  10.80.0.0/16  vni 4097  mtu 1370",
            ],
            false,
        );
        assert!(
            text.contains(
                "NOT readable by this slicectl: clusters.weft.dev weft-default/odd: spec.gateway (it is 7)"
            ),
            "{text}"
        );
    }

    #[test]
    fn labels_that_cannot_be_followed_and_unreached_clusters_are_bad() {
        let mut facts = facts();
        facts.reports = Ok(vec![one(
            "weft-member-a",
            "report",
            json!({"spec": {"warnings": [
                {"object": "Namespace cart", "message": "label weft.dev/slice names the slice \"shp\""},
            ]}}),
        )]);
        check(
            &facts,
            None,
            &["  NOT Namespace cart: label weft.dev/slice names the slice \"shp\""],
            false,
        );
        let mut facts = self::facts();
        let report = json!({"spec": {"name": "shop", "unreached": ["b"]}});
        facts.slice_reports = Ok(vec![one("weft-member-a", "shop", report)]);
        check(&facts, None, &["    NO tunnel to cluster b"], false);
    }

    #[test]
    fn what_is_held_back_waits_for_something_that_is_named() {
        let now = report().now;
        let spec = |value: Value| -> SliceAllocationSpec { serde_json::from_value(value).unwrap() };
        let check = |value: Value, expected: Option<&str>| {
            assert_eq!(held_back("vni-4097", &spec(value), now).as_deref(), expected);
        };
        check(json!({"slice": "shop", "clusters": [{"name": "a"}]}), None);
        check(
            json!({"slice": "shop", "state": "Releasing", "since": SINCE, "message": "waits for b"}),
            Some("slice shop (vni-4097): being given back since 3 min ago; waits for b"),
        );
        check(
            json!({"slice": "shop", "clusters": [{"name": "b", "state": "Resting", "since": SINCE}]}),
            Some("slice shop (vni-4097): cluster b given back, resting since 3 min ago"),
        );
        check(
            json!({"slice": "shop", "releaseAfter": "2027-01-15T08:05:00Z"}),
            Some("slice shop (vni-4097): its SliceConfig was deleted; it is given back in 5 min"),
        );
    }
}
