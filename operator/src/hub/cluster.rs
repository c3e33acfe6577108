//! One member: its namespace and account on the hub, and what its user reads of it.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    core::v1::{Namespace, ServiceAccount},
    rbac::v1::{RoleBinding, RoleRef, Subject},
};
use kube::{Resource, ResourceExt, core::ObjectMeta};
use slice_crds::{
    annotations::{CLUSTER_UID, DELETE, GONE, MADE_AFTER, NOW, REVOKED},
    conditions::{self, Verdict, reason},
    labels, names,
    v1alpha1::{Cluster, ClusterStatus},
    wire::{AllocationState as State, MemberHub, MemberHubSpec, ReportWarning, WIRE},
};

use super::{
    core::Hub,
    input::Account,
    state::{ClusterState, Users},
    status,
};
use crate::{
    allocation::Deletion,
    control::{Content, Key, Kind, Now},
};

/// ClusterRoles, from the chart, that are bound in a member's namespace and nowhere else.
mod roles {
    /// For the member's account.
    pub(super) const MEMBER: &str = "weft-member";
    /// For the account that asks to join.
    pub(super) const JOIN: &str = "weft-join";
    /// For the hub's own account: the Secrets of join tokens.
    pub(super) const HUB: &str = "weft-hub-member";
}

/// Service account of the hub's controllers.
const HUB_ACCOUNT: &str = "weft-hub";
/// Things refused that are listed one by one.
const SHOWN_VIOLATIONS: usize = 5;

/// How a cluster is deleted.
pub(super) fn deletion(cluster: &Cluster) -> Deletion {
    match cluster.annotations().get(DELETE).map(String::as_str) {
        Some(NOW) => Deletion::Now,
        Some(GONE) => Deletion::Gone,
        _ => Deletion::Graceful,
    }
}

/// The same of a cluster whose object may be gone. A member that leaves by itself does not wait for its own pods.
pub(super) fn deletion_of(state: &ClusterState) -> Deletion {
    let deletion = match state.object() {
        Some((_, users)) => users
            .object
            .as_ref()
            .map_or(Deletion::Graceful, |object| deletion(object)),
        None => state.last_deletion,
    };
    match deletion {
        Deletion::Graceful if state.facts().is_some_and(|facts| facts.leaving) => Deletion::Now,
        deletion => deletion,
    }
}

impl Hub {
    pub(super) fn plan_cluster(&mut self, cluster: &str, now: Now) {
        let Some(identity) = self.identity.clone() else {
            return;
        };
        let Some(state) = self.clusters.get(cluster) else {
            return;
        };
        let namespace = names::member_namespace(cluster);
        let registered = state.object().map(|(_, users)| users.clone());
        self.refuse_namesakes_of(cluster, now);
        let here = self
            .clusters
            .get(cluster)
            .is_some_and(|state| state.namespace.is_some());
        // What it has must be given back before its credential goes.
        if registered.is_none() && !self.holds_anything(cluster) {
            if here {
                self.outputs.remove(Key::new(Kind::Namespace, "", &namespace));
            }
            self.release_objects(cluster, &namespace);
            return;
        }
        if registered.is_some() || here {
            self.admit(cluster, &namespace, now);
            self.want_objects(cluster, &namespace, &identity);
        }
        if let Some(users) = registered {
            let status = self.cluster_status(cluster, &namespace, &users, now);
            self.want_cluster_status(&users, &status);
        }
    }

    fn holds_anything(&self, cluster: &str) -> bool {
        self.allocations.values().any(|allocation| {
            let mut own = allocation.spec.clusters.iter().filter(|own| own.name == cluster);
            allocation.spec.state != State::Resting && own.any(|own| own.state != State::Resting)
        })
    }

    /// Clusters of one name in other projects.
    fn refuse_namesakes_of(&mut self, cluster: &str, now: Now) {
        let Some(state) = self.clusters.get(cluster) else {
            return;
        };
        let Some((owner, _)) = state.object() else { return };
        let owner = owner.clone();
        let others: Vec<Users<Cluster>> = state
            .objects
            .iter()
            .filter(|(namespace, _)| **namespace != owner)
            .map(|(_, users)| users.clone())
            .collect();
        for users in others {
            let message = format!(
                "a cluster named \"{cluster}\" is registered already, in namespace {owner}: choose another name"
            );
            let verdict = Verdict::no(conditions::READY, reason::NAME_TAKEN, message);
            let status = ClusterStatus {
                conditions: conditions::conditions(
                    &users.conditions,
                    [verdict],
                    users.meta.generation,
                    now.wall,
                ),
                ..ClusterStatus::default()
            };
            self.want_cluster_status(&users, &status);
        }
    }

    fn want_cluster_status(&mut self, users: &Users<Cluster>, status: &ClusterStatus) {
        let reference = status::reference("Cluster", &users.meta);
        self.notices
            .conditions(&reference, &users.conditions, &status.conditions);
        let key = Key::new(Kind::ClusterStatus, &users.meta.namespace, &users.meta.name);
        self.outputs.want(key, Content::status(status));
    }

    /// The namespace, who may do what in it, and what the member is to know of the hub.
    fn want_objects(&mut self, cluster: &str, namespace: &str, identity: &str) {
        let Some(state) = self.clusters.get(cluster) else {
            return;
        };
        if state
            .namespace
            .as_ref()
            .is_some_and(|namespace| namespace.going.is_some())
        {
            self.release_objects(cluster, namespace);
            return;
        }
        let uid = self.identity_of(cluster);
        let revoked = state
            .object()
            .and_then(|(_, users)| users.object.as_ref()?.annotations().get(REVOKED).cloned());
        let account = state.account.clone();
        let mut annotations = BTreeMap::new();
        if let Some(uid) = uid.clone() {
            annotations.insert(CLUSTER_UID.to_owned(), uid);
        }
        let meta = |name: &str, namespace: Option<&str>| ObjectMeta {
            name: Some(name.to_owned()),
            namespace: namespace.map(ToOwned::to_owned),
            labels: Some(BTreeMap::from([(
                labels::FOR_CLUSTER.to_owned(),
                cluster.to_owned(),
            )])),
            ..ObjectMeta::default()
        };
        let room = Namespace {
            metadata: ObjectMeta {
                annotations: Some(annotations),
                ..meta(namespace, None)
            },
            ..Namespace::default()
        };
        self.outputs
            .want(Key::new(Kind::Namespace, "", namespace), Content::of(&room));
        if state_has_no_room(self.clusters.get(cluster)) {
            return;
        }
        let account_key = Key::new(Kind::ServiceAccount, namespace, names::MEMBER_ACCOUNT);
        let other = |account: &Account| {
            let taken = account
                .cluster_uid
                .as_ref()
                .is_some_and(|owner| uid.as_ref() != Some(owner));
            taken || account.made_after != revoked
        };
        if account.as_ref().is_some_and(other) {
            self.outputs.remove(account_key);
        } else {
            let marks = [(MADE_AFTER, revoked), (CLUSTER_UID, uid)];
            let marks = marks
                .into_iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value?)));
            let made_after = Some(marks.collect());
            let object = ServiceAccount {
                metadata: ObjectMeta {
                    annotations: made_after,
                    ..meta(names::MEMBER_ACCOUNT, Some(namespace))
                },
                automount_service_account_token: Some(false),
                ..ServiceAccount::default()
            };
            self.outputs.want(account_key, Content::of(&object));
        }
        let join = ServiceAccount {
            metadata: meta(names::JOIN_ACCOUNT, Some(namespace)),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        };
        self.outputs.want(
            Key::new(Kind::ServiceAccount, namespace, names::JOIN_ACCOUNT),
            Content::of(&join),
        );
        let bindings = [
            (roles::MEMBER, names::MEMBER_ACCOUNT, namespace),
            (roles::JOIN, names::JOIN_ACCOUNT, namespace),
            (roles::HUB, HUB_ACCOUNT, names::HUB_NAMESPACE),
        ];
        for (role, account, of) in bindings {
            let object = RoleBinding {
                metadata: meta(role, Some(namespace)),
                ..binding(role, account, of)
            };
            self.outputs
                .want(Key::new(Kind::RoleBinding, namespace, role), Content::of(&object));
        }
        let hub = MemberHub::new(
            names::MEMBER_HUB,
            MemberHubSpec {
                identity: identity.to_owned(),
                weft_version: self.settings.version.to_owned(),
                wire: WIRE,
                server: self.settings.server.clone(),
                ca: self.settings.ca.clone(),
            },
        );
        self.outputs.want(
            Key::new(Kind::MemberHub, namespace, names::MEMBER_HUB),
            Content::of(&hub),
        );
    }

    fn release_objects(&mut self, cluster: &str, namespace: &str) {
        for kind in [
            Kind::ServiceAccount,
            Kind::RoleBinding,
            Kind::MemberHub,
            Kind::Secret,
            Kind::JoinTokenStatus,
            Kind::MemberJoinStatus,
        ] {
            let keys: Vec<Key> = self.outputs.with_prefix(kind, namespace, "").cloned().collect();
            keys.iter().for_each(|key| self.outputs.release(key));
        }
        if self
            .clusters
            .get(cluster)
            .is_some_and(|state| state.namespace.as_ref().is_some_and(|room| room.going.is_some()))
        {
            self.outputs.release(&Key::new(Kind::Namespace, "", namespace));
        }
    }

    fn cluster_status(
        &self,
        cluster: &str,
        namespace: &str,
        users: &Users<Cluster>,
        now: Now,
    ) -> ClusterStatus {
        let none = ClusterState::default();
        let state = self.clusters.get(cluster).unwrap_or(&none);
        let facts = state.facts();
        let reachable = self.reachable(cluster, state);
        let trusted = trusted(cluster, state);
        let warnings = facts.map(|facts| facts.warnings.as_slice()).unwrap_or_default();
        let (dns, others): (Vec<_>, Vec<_>) = warnings
            .iter()
            .partition(|warning| warning.object == ReportWarning::CLUSTER_DNS);
        let (gateways, others): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|warning| warning.object.starts_with(ReportWarning::GATEWAYS));
        let (nodes, labels): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|warning| warning.object.starts_with("Node "));
        let forwarded = facts.and_then(|facts| facts.zone_unchecked.as_ref()).map_or_else(
            || "the cluster's DNS forwards names of slices, or is left to its owner".to_owned(),
            |why| format!("the configuration of the cluster's DNS forwards names of slices; {why}"),
        );
        let dns = warned(
            &dns,
            (conditions::ZONE_FORWARDED, reason::ZONE_NOT_FORWARDED),
            (reason::ZONE_FORWARDED, &forwarded),
        );
        let gateways = warned(
            &gateways,
            (conditions::GATEWAYS_EXPOSED, reason::NO_ADDRESS),
            (reason::EXPOSED, "no gateway waits for an address"),
        );
        let labels = warned(
            &labels,
            (conditions::LABELS_VALID, reason::MALFORMED_LABEL),
            (reason::LABELS_FOLLOWED, "every label can be followed"),
        );
        let nodes = warned(
            &nodes,
            (conditions::NODES_USABLE, reason::NODES_LEFT_OUT),
            (reason::ALL_NODES, "every node takes part"),
        );
        let ready = match (&users.unreadable, &reachable) {
            (Some(why), _) => Verdict::no(conditions::READY, reason::UNREADABLE, status::unreadable(why)),
            (
                None,
                Verdict {
                    status: Some(true), ..
                },
            ) => Verdict::yes(conditions::READY, reason::READY, "joined"),
            (None, reachable) => Verdict {
                type_: conditions::READY,
                ..reachable.clone()
            },
        };
        // Absent where nobody asks: there is nothing to be well.
        let names = facts
            .and_then(|facts| facts.names.as_ref())
            .map(|names| match names.resolve {
                true => Verdict::yes(
                    conditions::NAMES_RESOLVE,
                    reason::NAMES_RESOLVE,
                    names.message.clone(),
                ),
                false => Verdict::no(
                    conditions::NAMES_RESOLVE,
                    reason::NAMES_FAIL,
                    names.message.clone(),
                ),
            });
        let verdicts = [ready, reachable, trusted, labels, nodes, gateways, dns]
            .into_iter()
            .chain(names);
        ClusterStatus {
            namespace: Some(namespace.to_owned()),
            cluster_uid: self.recorded_identity(cluster).map(ToOwned::to_owned),
            kubernetes_version: facts.map(|facts| facts.kubernetes_version.clone()),
            weft_version: facts.map(|facts| facts.weft_version.clone()),
            nodes: facts.map_or(0, |facts| facts.nodes),
            pod_cidrs: facts.map(|facts| facts.pod_cidrs.clone()).unwrap_or_default(),
            service_cidrs: facts.map(|facts| facts.service_cidrs.clone()).unwrap_or_default(),
            node_cidrs: facts.map(|facts| facts.node_cidrs.clone()).unwrap_or_default(),
            conditions: conditions::conditions(&users.conditions, verdicts, users.meta.generation, now.wall),
            observed_at: None,
        }
    }

    fn reachable(&self, cluster: &str, state: &ClusterState) -> Verdict {
        if let Some(trouble) = self.trouble_of(cluster) {
            return Verdict::no(conditions::REACHABLE, reason::NOT_WRITTEN, trouble);
        }
        let Some(facts) = state.facts() else {
            return Verdict::no(
                conditions::REACHABLE,
                reason::NOT_REGISTERED,
                format!(
                    "it has not reported yet: run `slicectl token issue {cluster}` here and `slicectl join --token …` in \
                     cluster {cluster}"
                ),
            );
        };
        if facts.leaving && state.is_fresh() {
            return Verdict::no(
                conditions::REACHABLE,
                reason::LEAVING,
                "it is leaving this hub: `slicectl leave` was run there",
            );
        }
        if facts.leaving {
            let message = format!(
                "it has left this hub: remove it with `slicectl delete cluster {cluster}`, or let it join again with \
                 `slicectl token issue {cluster}`"
            );
            return Verdict::no(conditions::REACHABLE, reason::LEFT, message);
        }
        match &state.heartbeat {
            Some(heartbeat) if heartbeat.fresh => {
                Verdict::yes(conditions::REACHABLE, reason::REPORTING, "it sends heartbeats")
            }
            last => {
                let since = last.as_ref().map_or_else(String::new, |last| {
                    format!(
                        " since {}",
                        last.wall.round(jiff::Unit::Second).unwrap_or(last.wall)
                    )
                });
                Verdict::unknown(
                    conditions::REACHABLE,
                    reason::SILENT,
                    format!(
                        "no heartbeat came{since}: its pods go on talking; see `kubectl -n {} logs deploy/weft-operator` \
                         there, and whether it reaches this API server",
                        names::MEMBER_NAMESPACE
                    ),
                )
            }
        }
    }
}

fn state_has_no_room(state: Option<&ClusterState>) -> bool {
    state.is_none_or(|state| state.namespace.is_none())
}

pub(super) fn role(name: &str) -> RoleRef {
    RoleRef {
        api_group: "rbac.authorization.k8s.io".to_owned(),
        kind: "ClusterRole".to_owned(),
        name: name.to_owned(),
    }
}

pub(super) fn subject(account: &str, namespace: &str) -> Subject {
    Subject {
        kind: ServiceAccount::kind(&()).into_owned(),
        name: account.to_owned(),
        namespace: Some(namespace.to_owned()),
        ..Subject::default()
    }
}

pub(super) fn binding(role: &str, account: &str, namespace: &str) -> RoleBinding {
    RoleBinding {
        role_ref: self::role(role),
        subjects: Some(vec![subject(account, namespace)]),
        ..RoleBinding::default()
    }
}

/// Whether everything that the member reports is believed.
fn trusted(cluster: &str, state: &ClusterState) -> Verdict {
    let unreadable = state
        .unreadable
        .iter()
        .map(|(slice, why)| match slice.is_empty() {
            true => format!("its report cannot be read: {why}"),
            false => format!("its report of slice {slice} cannot be read: {why}"),
        });
    let refused = state.violations.iter().flat_map(|(about, violations)| {
        violations.iter().map(move |violation| match about.is_empty() {
            true => violation.to_string(),
            false => format!("slice {}: {violation}", about.trim_end_matches("/services")),
        })
    });
    let all: Vec<String> = unreadable.chain(refused).collect();
    if all.is_empty() {
        return Verdict::yes(
            conditions::TRUSTED,
            reason::CLAIMS_ACCEPTED,
            "what it reports agrees with what it was given",
        );
    }
    let more = match all.len().saturating_sub(SHOWN_VIOLATIONS) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let shown = all
        .iter()
        .take(SHOWN_VIOLATIONS)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    Verdict::no(
        conditions::TRUSTED,
        reason::CLAIMS_REFUSED,
        format!(
            "refused: {shown}{more}. It reached nobody else; where the member's credential may have been stolen, \
             `slicectl token revoke --cluster {cluster}` cuts it off"
        ),
    )
}

fn warned(
    warnings: &[&ReportWarning],
    (type_, bad): (&'static str, &'static str),
    (good, text): (&'static str, &str),
) -> Verdict {
    match warnings {
        [] => Verdict::yes(type_, good, text),
        [first, rest @ ..] => {
            let more = match rest.len() {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            Verdict::no(type_, bad, format!("{}: {}{more}", first.object, first.message))
        }
    }
}
