//! The registered clusters, as far as they have joined and reported.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use slice_crds::{
    conditions::{self, Verdict, reason},
    index, names,
    v1alpha1::{Cluster, ClusterStatus, MemberReport, MemberReportSpec, SliceReport},
};

use super::{
    allocate,
    plan::{Plan, SILENCE, World, in_order},
};

/// A cluster that may be served, and what it last said.
pub(super) struct Member {
    pub(super) object: Arc<Cluster>,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) number: Option<u32>,
    report: Option<Arc<MemberReport>>,
    pub(super) fresh: bool,
}

impl Member {
    pub(super) fn said(&self) -> Option<&MemberReportSpec> {
        self.report.as_ref().map(|report| &report.spec)
    }

    pub(super) fn slice(&self, name: &str) -> Option<&SliceReport> {
        self.said()?.slices.iter().find(|slice| slice.name == name)
    }
}

pub(super) fn members(world: &World, now: Timestamp, plan: &mut Plan) -> Vec<Member> {
    let given = |cluster: &Cluster| cluster.status.as_ref().and_then(|status| status.number);
    let mut numbers: BTreeSet<u32> = world
        .clusters
        .iter()
        .filter_map(|cluster| given(cluster))
        .collect();
    let mut members: Vec<Member> = Vec::new();
    for cluster in in_order(&world.clusters) {
        let (name, project) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
        let before = cluster.status.clone().unwrap_or_default();
        if let Some(first) = members.iter().find(|member| member.name == name) {
            let verdict = Verdict::no(
                conditions::READY,
                reason::NAME_TAKEN,
                format!(
                    "a cluster named \"{name}\" is registered already, in namespace {}: choose another name",
                    first.object.namespace().unwrap_or_default()
                ),
            );
            let conditions =
                conditions::conditions(&before.conditions, [verdict], cluster.metadata.generation, now);
            plan.cluster_status.push((
                project,
                name,
                ClusterStatus {
                    conditions,
                    ..ClusterStatus::default()
                },
            ));
            continue;
        }
        let namespace = names::member_namespace(&name);
        let number = given(cluster).or_else(|| allocate::cluster_number(&numbers));
        numbers.extend(number);
        let report = world.reports.get(&namespace).cloned();
        let fresh = report
            .as_ref()
            .is_some_and(|report| now.duration_since(report.spec.observed_at.0) < SILENCE);
        let member = Member {
            object: Arc::new(cluster.clone()),
            name,
            namespace,
            number,
            report,
            fresh,
        };
        plan.members.insert(member.name.clone(), member.namespace.clone());
        plan.cluster_status.push((
            project,
            member.name.clone(),
            cluster_status(&member, &before, now),
        ));
        members.push(member);
    }
    members
}

fn cluster_status(member: &Member, before: &ClusterStatus, now: Timestamp) -> ClusterStatus {
    let said = member.said();
    let reachable = match (said, member.fresh) {
        (None, _) => Verdict::no(
            conditions::REACHABLE,
            reason::NOT_REGISTERED,
            format!(
                "nothing has been heard from it yet: run `slicectl token issue {0}` here and `slicectl join --token …` in cluster {0}",
                member.name
            ),
        ),
        (Some(_), true) => Verdict::yes(conditions::REACHABLE, reason::REPORTING, "it reports"),
        (Some(said), false) => Verdict::unknown(
            conditions::REACHABLE,
            reason::SILENT,
            format!(
                "nothing heard since {}: its pods go on talking; see `kubectl -n weft-system logs deploy/weft-operator` there, and whether it reaches this API server",
                said.observed_at.0
            ),
        ),
    };
    let labels = match said.map(|said| said.warnings.as_slice()).unwrap_or_default() {
        [] => Verdict::yes(
            conditions::LABELS_VALID,
            reason::LABELS_FOLLOWED,
            "every label can be followed",
        ),
        [first, rest @ ..] => Verdict::no(
            conditions::LABELS_VALID,
            reason::MALFORMED_LABEL,
            match rest.len() {
                0 => format!("{}: {}", first.object, first.message),
                more => format!("{}: {} (and {more} more)", first.object, first.message),
            },
        ),
    };
    let ready = match (&reachable, member.number) {
        (_, None) => Verdict::no(
            conditions::READY,
            reason::EXHAUSTED,
            format!(
                "this hub has {} clusters, which is as many as it can number: remove one",
                index::MAX_CLUSTER
            ),
        ),
        (
            Verdict {
                status: Some(true), ..
            },
            _,
        ) => Verdict::yes(conditions::READY, reason::READY, "joined"),
        (reachable, _) => Verdict {
            type_: conditions::READY,
            ..reachable.clone()
        },
    };
    let generation = member.object.metadata.generation;
    ClusterStatus {
        number: member.number,
        namespace: Some(member.namespace.clone()),
        kubernetes_version: said.map(|said| said.kubernetes_version.clone()),
        weft_version: said.map(|said| said.weft_version.clone()),
        nodes: said.map_or(0, |said| said.nodes),
        pod_cidrs: said.map(|said| said.pod_cidrs.clone()).unwrap_or_default(),
        service_cidrs: said.map(|said| said.service_cidrs.clone()).unwrap_or_default(),
        node_cidrs: said.map(|said| said.node_cidrs.clone()).unwrap_or_default(),
        conditions: conditions::conditions(&before.conditions, [ready, reachable, labels], generation, now),
        observed_at: said.map(|said| said.observed_at.clone()),
    }
}
