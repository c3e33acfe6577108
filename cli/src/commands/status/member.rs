//! A member: its operator and the hub, its nodes, its slices with every tunnel, and labels that cannot be followed.

use std::collections::BTreeMap;

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Pod, Secret},
};
use kube::{Api, Client, ResourceExt, api::ListParams, core::PartialObjectMeta};
use slice_crds::{
    annotations, conditions, labels,
    membership::{self, Labels, MembershipError, PodFacts, Rules},
    names,
    v1alpha1::{Exposure, Slice, SliceBlock, SliceGateway, SliceNode, TunnelStatus},
};

use super::{Listed, Report, lease, list};
use crate::{
    age::Heartbeat,
    commands::attach,
    objects::{self, Found},
    output::count,
};

/// What is shown.
pub(super) struct Facts {
    operator: Result<Option<Lease>, String>,
    /// Annotations of the credential for the hub, where there is one; nothing else of it is read.
    credential: Result<Option<Labels>, String>,
    slices: Listed<Slice>,
    gateways: Listed<SliceGateway>,
    blocks: Listed<SliceBlock>,
    nodes: Listed<SliceNode>,
    leases: Listed<Lease>,
    labelled: Result<Labelled, String>,
}

/// Who may carry the label of a slice.
#[derive(Default)]
struct Labelled {
    /// Labels of every namespace.
    namespaces: BTreeMap<String, Labels>,
    /// Labels of the pods that carry it, by namespace and name.
    pods: BTreeMap<(String, String), Labels>,
}

pub(super) async fn gather(client: &Client) -> Facts {
    let all = ListParams::default();
    let own = Some(names::MEMBER_NAMESPACE);
    let (operator, credential, slices, gateways, blocks, nodes, leases, labelled) = tokio::join!(
        lease(client, names::MEMBER_NAMESPACE, names::MEMBER_OPERATOR),
        credential(client),
        list(client, None, &all),
        list(client, own, &all),
        list(client, None, &all),
        list(client, None, &all),
        list(client, own, &all),
        labelled(client),
    );
    Facts {
        operator,
        credential,
        slices,
        gateways,
        blocks,
        nodes,
        leases,
        labelled,
    }
}

async fn credential(client: &Client) -> Result<Option<Labels>, String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), names::MEMBER_NAMESPACE);
    let found = secrets
        .get_metadata_opt(names::HUB_CREDENTIAL)
        .await
        .with_context(|| format!("read the metadata of secret {}", names::HUB_CREDENTIAL));
    let found = found.map_err(|error| objects::explain(&error))?;
    Ok(found.map(|meta| meta.annotations().clone()))
}

async fn labelled(client: &Client) -> Result<Labelled, String> {
    let (spaces, pods): (Api<Namespace>, Api<Pod>) = (Api::all(client.clone()), Api::all(client.clone()));
    let (all, with) = (ListParams::default(), ListParams::default().labels(labels::SLICE));
    let (spaces, pods) = tokio::join!(spaces.list_metadata(&all), pods.list_metadata(&with));
    let spaces = spaces
        .context("list namespaces")
        .map_err(|error| objects::explain(&error))?;
    let pods = pods
        .context("list pods")
        .map_err(|error| objects::explain(&error))?;
    let of_pod = |pod: PartialObjectMeta<Pod>| {
        (
            (pod.namespace().unwrap_or_default(), pod.name_any()),
            pod.labels().clone(),
        )
    };
    Ok(Labelled {
        namespaces: spaces
            .items
            .into_iter()
            .map(|space| (space.name_any(), space.labels().clone()))
            .collect(),
        pods: pods.items.into_iter().map(of_pod).collect(),
    })
}

impl Facts {
    pub(super) fn knows(&self, slice: Option<&str>) -> bool {
        let here = |slices: &Vec<Found<Slice>>| slices.iter().any(|one| Some(one.name()) == slice);
        // Where they cannot be listed nobody knows.
        self.slices.as_ref().map_or(true, here)
    }

    fn slices(&self) -> &[Found<Slice>] {
        self.slices.as_deref().unwrap_or_default()
    }

    /// Whether somebody has deleted the namespace under what is left of Weft.
    fn lost_namespace(&self) -> bool {
        let labelled = self.labelled.as_ref();
        matches!(self.operator, Ok(None))
            && labelled.is_ok_and(|labelled| !labelled.namespaces.contains_key(names::MEMBER_NAMESPACE))
    }

    fn heartbeat(&self, lease: &str, now: Timestamp) -> Option<Heartbeat> {
        let mut all = self.leases.iter().flatten();
        let found = all.find(|one| one.name() == lease)?;
        found.readable().map(|lease| Heartbeat::of(lease, now))
    }
}

pub(super) fn render(facts: &Facts, only: Option<&str>, report: &mut Report) {
    report.gap();
    let name = facts
        .slices()
        .iter()
        .find_map(|slice| Some(slice.readable()?.spec.cluster.as_str()));
    let title = name.map_or_else(|| "member".to_owned(), |name| format!("member {name}"));
    let remedy = format!("see `kubectl -n {} get pods`", names::MEMBER_NAMESPACE);
    if facts.lost_namespace() {
        report.bad(format_args!(
            "{title}  NOT running: namespace {} was deleted; `slicectl join` with a token of the hub brings Weft back, `slicectl \
             uninstall cluster` takes it off the nodes; what is below is as it was then",
            names::MEMBER_NAMESPACE
        ));
    } else {
        report.operator(&title, &facts.operator, &remedy);
        render_credential(&facts.credential, report);
    }
    report.good &= facts.slices.is_ok();
    report.unreadable("slice", &facts.slices);
    report.unreadable("slicegateway", &facts.gateways);
    report.unreadable("sliceblock", &facts.blocks);
    report.unreadable("slicenode", &facts.nodes);
    report.unreadable("lease", &facts.leases);
    render_nodes(facts, report);
    for slice in facts
        .slices()
        .iter()
        .filter(|slice| only.is_none_or(|only| slice.name() == only))
    {
        report.gap();
        render_slice(facts, slice, report);
    }
    let labelled = match &facts.labelled {
        Ok(labelled) => labelled,
        Err(why) => return report.line(format_args!("NOT shown: {why}")),
    };
    let warnings = warnings(labelled, &attach::rules(facts.slices()), only);
    if !warnings.is_empty() {
        report.gap();
        report.line(format_args!("labels that cannot be followed"));
        for (object, why) in warnings {
            report.bad(format_args!("  {object}: {why}"));
        }
    }
}

fn render_credential(credential: &Result<Option<Labels>, String>, report: &mut Report) {
    let annotations = match credential {
        Ok(Some(annotations)) => annotations,
        Ok(None) => {
            return report.bad(format_args!(
                "  NOT joined: there is no credential for a hub; run `slicectl join` with a token of the hub"
            ));
        }
        Err(why) => return report.line(format_args!("  NOT shown: {why}")),
    };
    if annotations
        .get(annotations::LEAVE)
        .is_some_and(|leave| leave == "true")
    {
        report.bad(format_args!("  it is leaving its hub, as `slicectl leave` asked"));
    }
    if let Some(problem) = annotations.get(annotations::JOIN_PROBLEM) {
        report.bad(format_args!("  NOT joined: {problem}"));
    }
}

/// The nodes in one line, and each that is not in order.
fn render_nodes(facts: &Facts, report: &mut Report) {
    let mut good = 0;
    let mut oldest: Option<Timestamp> = None;
    let mut bad = Vec::new();
    // By what is wrong: the first node, what it says, and how many more say so.
    let mut unresolved: BTreeMap<String, (String, String, usize)> = BTreeMap::new();
    for node in facts.nodes.iter().flatten() {
        let name = node.name();
        let conditions = node.conditions();
        let status = node.readable().and_then(|node| node.status.as_ref());
        let observed = report.observed(
            status
                .and_then(|status| status.observed_at.as_ref())
                .map(|at| at.0),
        );
        let heartbeat = facts.heartbeat(&names::node_lease(name), report.now);
        let shown = heartbeat
            .as_ref()
            .map_or_else(|| "no heartbeat yet".to_owned(), |beat| beat.show(report.now));
        let ready = conditions::find(&conditions, conditions::READY);
        if facts.lost_namespace() {
            bad.push(format!("node {name}  NO agent{observed}"));
        // An agent of an older version sends none.
        } else if heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.overdue) {
            bad.push(format!(
                "node {name}  SILENT  {shown}{observed}: see `kubectl -n {} get pods -o wide`",
                names::MEMBER_NAMESPACE
            ));
        } else if ready.is_none_or(|ready| ready.status != "True") {
            let message = ready.map_or("it has reported nothing yet", |ready| ready.message.as_str());
            bad.push(format!("node {name}  NOT ready  {shown}{observed}: {message}"));
        } else {
            good += 1;
            let renewed = heartbeat.and_then(|heartbeat| heartbeat.renewed);
            oldest = [oldest, renewed].into_iter().flatten().min();
            if let Some(found) = conditions::find_false(&conditions, conditions::NAMES_RESOLVE) {
                unresolved
                    .entry(found.reason.clone())
                    .and_modify(|(_, _, more)| *more += 1)
                    .or_insert_with(|| (name.to_owned(), found.message.clone(), 0));
            }
        }
    }
    let oldest = oldest
        .map(|at| format!(", the oldest heartbeat {}", report.ago(at)))
        .unwrap_or_default();
    report.line(format_args!("nodes  {} in order{oldest}", count(good, "agent")));
    for (node, message, more) in unresolved.into_values() {
        let more = match more {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        bad.push(format!(
            "names of slices do not resolve on node {node}{more}: {message}"
        ));
    }
    for line in bad {
        report.bad(format_args!("{line}"));
    }
}

fn render_slice(facts: &Facts, slice: &Found<Slice>, report: &mut Report) {
    let name = slice.name();
    let conditions = slice.conditions();
    report.good &= conditions::is_true(&conditions, conditions::READY);
    match slice.readable() {
        Some(object) => {
            let subnets: Vec<_> = object.spec.subnets.iter().map(ToString::to_string).collect();
            let status = object.status.clone().unwrap_or_default();
            let observed = report.observed(status.observed_at.map(|at| at.0));
            report.line(format_args!(
                "slice {name}  {}  vni {}  mtu {}  {} attached{observed}",
                subnets.join(" "),
                object.spec.vni,
                object.spec.mtu,
                count(status.attachments.into(), "pod")
            ));
        }
        None => report.line(format_args!("slice {name}")),
    }
    conditions
        .iter()
        .for_each(|condition| report.condition(condition));
    let gateways = facts.gateways.iter().flatten().filter_map(Found::readable);
    for gateway in gateways.filter(|gateway| gateway.spec.slice == name) {
        let exposure = slice.readable().map(|object| object.spec.gateway.exposure);
        render_gateway(gateway, exposure.unwrap_or_default(), report);
    }
    let blocks = facts.blocks.iter().flatten().filter_map(Found::readable);
    for block in blocks.filter(|block| block.spec.slice == name) {
        let status = block.status.clone().unwrap_or_default();
        let observed = report.observed(status.observed_at.map(|at| at.0));
        if let Some(why) = &block.spec.withdrawn {
            report.bad(format_args!("  node {} takes no part: {why}", block.spec.node));
        }
        for condition in status
            .conditions
            .iter()
            .filter(|condition| condition.status == "False")
        {
            report.bad(format_args!(
                "  node {}: {}{observed}",
                block.spec.node, condition.message
            ));
        }
    }
}

fn render_gateway(gateway: &SliceGateway, exposure: Exposure, report: &mut Report) {
    let status = gateway.status.clone().unwrap_or_default();
    let state = match (status.connected, gateway.spec.lost) {
        (_, true) => "LOST (its node is not ready, or the agent there sends no heartbeat)",
        (true, false) => "up",
        (false, false) => "DOWN",
    };
    let endpoints: Vec<_> = gateway.spec.endpoints.iter().map(ToString::to_string).collect();
    let observed = report.observed(status.observed_at.as_ref().map(|at| at.0));
    report.line(format_args!(
        "  gateway {} {state} on {} at {}{observed}",
        gateway.spec.ordinal,
        status.node.as_deref().unwrap_or("no node"),
        match (endpoints.is_empty(), exposure) {
            (true, Exposure::None) => "no endpoint, as it is to have none".to_owned(),
            (true, _) => "no endpoint".to_owned(),
            (false, _) => endpoints.join(", "),
        }
    ));
    for tunnel in &status.tunnels {
        render_tunnel(tunnel, report);
    }
}

fn render_tunnel(tunnel: &TunnelStatus, report: &mut Report) {
    let mut parts = vec![if tunnel.up {
        "up".to_owned()
    } else {
        "DOWN".to_owned()
    }];
    parts.extend(tunnel.endpoint.map(|endpoint| format!("by {endpoint}")));
    parts.extend(
        tunnel
            .rtt_micros
            .map(|rtt| format!("{:.1} ms there and back", f64::from(rtt) / 1000.0)),
    );
    parts.extend(
        tunnel
            .last_handshake
            .as_ref()
            .map(|at| format!("handshake {}", report.ago(at.0))),
    );
    parts.extend(tunnel.path_mtu.map(|mtu| format!("packets of {mtu}")));
    report.line(format_args!("    tunnel to {} {}", tunnel.peer, parts.join(", ")));
}

/// Labels that cannot be followed, by object; of one slice where that is asked for. Pure.
fn warnings(labelled: &Labelled, rules: &[Rules], only: Option<&str>) -> Vec<(String, String)> {
    let about = |error: &&MembershipError| match error {
        MembershipError::Label(_) => only.is_none(),
        MembershipError::UnknownSlice(slice)
        | MembershipError::NamespaceNotAllowed { slice, .. }
        | MembershipError::PodNotAllowed { slice, .. } => only.is_none_or(|only| only == slice),
    };
    let mut warnings = Vec::new();
    let mut warn = |object: String, errors: &[MembershipError]| {
        let errors: Vec<_> = errors.iter().filter(about).map(ToString::to_string).collect();
        if !errors.is_empty() {
            warnings.push((object, errors.join("; ")));
        }
    };
    let errors = |namespace: &str, pod: Labels, of_namespace: &Labels| {
        let facts = PodFacts {
            namespace: namespace.to_owned(),
            labels: pod,
            host_network: false,
        };
        membership::of_pod(&facts, of_namespace, rules).errors
    };
    for (name, of_namespace) in &labelled.namespaces {
        warn(
            format!("namespace {name}"),
            &errors(name, Labels::new(), of_namespace),
        );
    }
    let none = Labels::new();
    for ((namespace, name), pod) in &labelled.pods {
        let of_namespace = labelled.namespaces.get(namespace).unwrap_or(&none);
        // What the namespace's own label cannot have stands there already.
        let known = errors(namespace, Labels::new(), of_namespace);
        let mut own = errors(namespace, pod.clone(), of_namespace);
        own.retain(|error| !known.contains(error));
        warn(format!("pod {namespace}/{name}"), &own);
    }
    warnings
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

    fn one<T: DeserializeOwned>(name: &str, more: Value) -> Found<T> {
        let mut object = more;
        object["metadata"] = json!({"name": name});
        from_json(object)
    }

    fn condition(type_: &str, status: &str, message: &str) -> Value {
        json!({
            "type": type_, "status": status, "reason": "X", "message": message, "lastTransitionTime": "2027-01-15T07:57:00Z",
        })
    }

    fn slice(name: &str) -> Found<Slice> {
        exposed(name, "NodePort")
    }

    fn exposed(name: &str, exposure: &str) -> Found<Slice> {
        one(
            name,
            json!({
                "spec": {
                    "vni": 4097, "subnets": ["10.80.0.0/16"], "mtu": 1370, "blockSize": 64, "cluster": "b", "clusterNumber": 1,
                    "ranges": [], "gateway": {"replicas": 2, "exposure": exposure}, "join": {"namespaceLabels": false},
                },
                "status": {"attachments": 3, "conditions": [
                    condition("Ready", "True", "set up"), condition("Reachable", "False", "the hub has taken no heartbeat"),
                ]},
            }),
        )
    }

    fn facts() -> Facts {
        let beat =
            |name: &str, renewed: &str| one(name, json!({"spec": lease_of(Some("x"), renewed, 120).spec}));
        let ready = json!({
            "spec": {}, "status": {"conditions": [condition("Ready", "True", "")], "observedAt": "2027-01-15T06:00:00Z"},
        });
        Facts {
            operator: Ok(Some(lease_of(
                Some("weft-operator-0"),
                "2027-01-15T07:59:59.000000Z",
                15,
            ))),
            credential: Ok(Some(Labels::new())),
            slices: Ok(vec![slice("shop")]),
            gateways: Ok(vec![one(
                "weft-gateway-shop-0",
                json!({
                    "spec": {"slice": "shop", "ordinal": 0, "endpoints": ["192.0.2.7:30001"]},
                    "status": {
                        "node": "b1", "connected": true, "observedAt": "2027-01-15T07:59:55Z", "tunnels": [{
                            "peer": "a/0", "up": true, "endpoint": "192.0.2.1:30001", "rttMicros": 1234,
                            "lastHandshake": "2027-01-15T07:59:00Z",
                        }],
                    },
                }),
            )]),
            blocks: Ok(vec![]),
            nodes: Ok(vec![one("b1", ready.clone()), one("b2", ready)]),
            leases: Ok(vec![
                beat("node.b1", "2027-01-15T07:59:30.000000Z"),
                beat("node.b2", "2027-01-15T07:59:50.000000Z"),
            ]),
            labelled: Ok(Labelled::default()),
        }
    }

    #[track_caller]
    fn check(facts: &Facts, lines: &[&str], good: bool) {
        let mut report = report();
        render(facts, None, &mut report);
        for line in lines {
            assert!(
                report.text.lines().any(|found| found == *line),
                "{line} is not in\n{}",
                report.text
            );
        }
        assert_eq!(report.good, good, "{}", report.text);
    }

    #[test]
    fn a_member_in_order_is_shown_with_the_age_of_what_was_observed() {
        check(
            &facts(),
            &[
                "member b  ok  led by weft-operator-0, heartbeat 1 s ago",
                "nodes  2 agents in order, the oldest heartbeat 30 s ago",
                "slice shop  10.80.0.0/16  vni 4097  mtu 1370  3 pods attached",
                "  ok  Ready (X, for 3 min): set up",
                "  NOT Reachable (X, for 3 min): the hub has taken no heartbeat",
                "  gateway 0 up on b1 at 192.0.2.7:30001, observed 5 s ago",
                "    tunnel to a/0 up, by 192.0.2.1:30001, 1.2 ms there and back, handshake 60 s ago",
            ],
            true,
        );
    }

    #[test]
    fn a_gateway_that_nobody_is_to_reach_misses_no_endpoint() {
        let gateway = json!({
            "spec": {"slice": "shop", "ordinal": 0, "endpoints": []},
            "status": {"node": "b1", "connected": true, "tunnels": []},
        });
        for (exposure, says) in [
            ("LoadBalancer", "no endpoint"),
            ("None", "no endpoint, as it is to have none"),
        ] {
            let facts = Facts {
                slices: Ok(vec![exposed("shop", exposure)]),
                gateways: Ok(vec![one("weft-gateway-shop-0", gateway.clone())]),
                ..facts()
            };
            let mut report = report();
            render(&facts, None, &mut report);
            let line = format!("  gateway 0 up on b1 at {says}");
            let found = report.text.lines().find(|found| found.starts_with("  gateway 0"));
            assert!(
                found.is_some_and(|found| found.starts_with(&line)),
                "{}",
                report.text
            );
            assert_eq!(
                report.text.contains("none"),
                exposure == "None",
                "{}",
                report.text
            );
        }
    }

    #[test]
    fn a_silent_agent_and_a_block_that_is_not_well_are_bad() {
        let mut facts = facts();
        let old = one(
            "node.b1",
            json!({"spec": lease_of(Some("x"), "2027-01-15T07:57:00.000000Z", 120).spec}),
        );
        facts.leases.as_mut().unwrap()[0] = old;
        check(
            &facts,
            &[
                "nodes  1 agent in order, the oldest heartbeat 10 s ago",
                "node b1  SILENT  heartbeat 3 min ago, observed 2 h ago: see `kubectl -n weft-system get pods -o wide`",
            ],
            false,
        );
        let mut facts = self::facts();
        facts.blocks = Ok(vec![one(
            "shop.b1",
            json!({
                "spec": {"slice": "shop", "node": "b1", "nodeAddress": "192.0.2.7", "blocks": []},
                "status": {"observedAt": "2027-01-15T07:59:55Z", "conditions": [condition("Ready", "False", "no VXLAN")]},
            }),
        )]);
        check(&facts, &["  node b1: no VXLAN, observed 5 s ago"], false);
    }

    #[test]
    fn names_that_do_not_resolve_are_told_once_for_all_nodes() {
        let mut facts = facts();
        let node = |name: &str| {
            one(
                name,
                json!({"spec": {}, "status": {"conditions": [
                    condition("Ready", "True", ""),
                    condition("NamesResolve", "False", "slice DNS answers nobody"),
                ], "observedAt": "2027-01-15T06:00:00Z"}}),
            )
        };
        facts.nodes = Ok(vec![node("b1"), node("b2")]);
        check(
            &facts,
            &["names of slices do not resolve on node b1 (and 1 more): slice DNS answers nobody"],
            false,
        );
    }

    #[test]
    fn a_join_that_meets_with_something_is_shown() {
        let mut facts = facts();
        facts.credential = Ok(None);
        check(
            &facts,
            &["  NOT joined: there is no credential for a hub; run `slicectl join` with a token of the hub"],
            false,
        );
        facts.credential = Ok(Some(Labels::from([(
            annotations::JOIN_PROBLEM.to_owned(),
            "the hub refuses".to_owned(),
        )])));
        check(&facts, &["  NOT joined: the hub refuses"], false);
    }

    #[test]
    fn a_namespace_that_was_deleted_is_named_with_both_ways_out() {
        let mut facts = facts();
        facts.operator = Ok(None);
        facts.credential = Ok(None);
        facts.leases = Ok(vec![]);
        check(
            &facts,
            &[
                "member b  NOT running: namespace weft-system was deleted; `slicectl join` with a token of the hub brings Weft \
                 back, `slicectl uninstall cluster` takes it off the nodes; what is below is as it was then",
                "nodes  0 agents in order",
                "node b1  NO agent, observed 2 h ago",
            ],
            false,
        );
        // It is there, and nothing runs in it.
        let there = BTreeMap::from([(names::MEMBER_NAMESPACE.to_owned(), Labels::new())]);
        facts.labelled.as_mut().unwrap().namespaces = there;
        check(
            &facts,
            &["member b  NOT running: no operator has ever led; see `kubectl -n weft-system get pods`"],
            false,
        );
    }

    #[test]
    fn labels_that_cannot_be_followed_are_named_once() {
        let label = |value: &str| Labels::from([(labels::SLICE.to_owned(), value.to_owned())]);
        let labelled = Labelled {
            namespaces: BTreeMap::from([
                ("cart".to_owned(), label("shop")),
                ("plain".to_owned(), Labels::new()),
            ]),
            pods: BTreeMap::from([
                (("cart".to_owned(), "web".to_owned()), label("nowhere")),
                (("plain".to_owned(), "db".to_owned()), label("shop")),
            ]),
        };
        let rules = attach::rules(&[slice("shop")]);
        let objects = |only| -> Vec<String> {
            warnings(&labelled, &rules, only)
                .into_iter()
                .map(|(object, _)| object)
                .collect()
        };
        assert_eq!(objects(None), ["namespace cart", "pod cart/web", "pod plain/db"]);
        assert_eq!(objects(Some("shop")), ["namespace cart", "pod plain/db"]);
    }
}
