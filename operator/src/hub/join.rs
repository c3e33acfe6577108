//! How a cluster becomes a member, once.
//!
//! ```text
//!  JoinToken ──► Secret beside it; `slicectl token issue` asks for a token of the account weft-join, bound to the Secret
//!  MemberJoin, created with that token under the JoinToken's name: a second one of the same token does not fit
//!      another cluster has the name? ── refused, with both UIDs
//!      otherwise: its UID is recorded on the namespace, then ── accepted: the account may make the member's own token
//!  the member reports that it has come by this join ──► Secret, MemberJoin and that permission go
//! ```

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{core::v1::Secret, rbac::v1::RoleBinding},
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
    jiff::SignedDuration,
};
use kube::{Resource, ResourceExt, core::ObjectMeta};
use slice_crds::{
    conditions::{self, Verdict, reason},
    labels, names,
    wire::{JoinToken, JoinTokenStatus, MemberJoin, MemberJoinStatus},
};

use super::{cluster::binding, core::Hub};
use crate::control::{Content, Key, Kind, Now, Observed};

/// ClusterRole, from the chart, that is bound while an accepted cluster fetches its credential.
const GRANT: &str = "weft-join-granted";
/// How long a refusal can be read by who was refused.
const REFUSAL_STAYS: SignedDuration = SignedDuration::from_hours(1);
/// How long an API server may still take a token whose Secret is gone, and some way.
const VOID_AFTER: SignedDuration = SignedDuration::from_secs(15);

impl Hub {
    /// UID of the cluster that has the name, as its namespace says.
    pub(super) fn recorded_identity(&self, cluster: &str) -> Option<&str> {
        self.clusters
            .get(cluster)?
            .namespace
            .as_ref()?
            .cluster_uid
            .as_deref()
    }

    /// UID of the cluster that is to have the name.
    pub(super) fn identity_of(&self, cluster: &str) -> Option<String> {
        let state = self.clusters.get(cluster)?;
        let recorded = self.recorded_identity(cluster);
        let joining = state
            .joins
            .values()
            .find(|join| self.verdict(cluster, join).is_ok_and(|replaces| replaces));
        if let Some(join) = joining {
            return Some(join.spec.cluster_uid.clone());
        }
        let first = state
            .joins
            .values()
            .find(|join| recorded.is_none() && self.verdict(cluster, join).is_ok());
        let of_join = first.map(|join| join.spec.cluster_uid.clone());
        // A member from before joins were recorded says who it is with its first report.
        let of_report = state
            .facts()
            .map(|facts| facts.cluster_uid.clone())
            .filter(|uid| !uid.is_empty());
        recorded.map(ToOwned::to_owned).or(of_join).or(of_report)
    }

    /// Whether a cluster may join, and whether it takes the name over from another.
    fn verdict(&self, cluster: &str, join: &MemberJoin) -> Result<bool, String> {
        let state = self
            .clusters
            .get(cluster)
            .ok_or_else(|| format!("no cluster {cluster} is registered"))?;
        let name = join.name_any();
        let Some(token) = state.tokens.get(&name) else {
            return Err(format!(
                "there is no token {name}: it was revoked; issue another with `slicectl token issue {cluster}`"
            ));
        };
        let status = token.status.clone().unwrap_or_default();
        if let Some(used_by) = status.used_by.filter(|used_by| *used_by != join.spec.cluster_uid) {
            return Err(format!(
                "token {name} was used already, by cluster {used_by}: a token is good once; issue another with `slicectl \
                 token issue {cluster}`"
            ));
        }
        let uid = &join.spec.cluster_uid;
        match self.recorded_identity(cluster) {
            Some(recorded) if recorded != uid => match token.spec.replaces.as_deref() == Some(recorded) {
                true => Ok(true),
                false => Err(format!(
                    "the name {cluster} is that of the cluster whose namespace kube-system has the UID {recorded}; this \
                     one's is {uid}. Join under another name, or, where this cluster takes that one's place, issue a token \
                     with `slicectl token issue {cluster} --replace`"
                )),
            },
            _ => Ok(false),
        }
    }

    /// Tokens, requests to join, and the permission that follows from them.
    pub(super) fn admit(&mut self, cluster: &str, namespace: &str, now: Now) {
        let Some(state) = self.clusters.get(cluster) else {
            return;
        };
        if state.namespace.as_ref().is_none_or(|room| room.going.is_some()) {
            return;
        }
        let tokens: Vec<_> = state.tokens.values().cloned().collect();
        let (given_up, joins): (Vec<_>, Vec<_>) = state
            .joins
            .values()
            .cloned()
            .partition(|join| is_given_up(join, &tokens));

        let arrived = state.facts().and_then(|facts| facts.join.clone());
        for join in given_up {
            let name = join.name_any();
            self.outputs
                .remove(Key::new(Kind::MemberJoinStatus, namespace, &name));
        }
        let mut granted = false;
        for join in &joins {
            granted |= self.answer(cluster, namespace, join, arrived.as_deref(), &tokens, now);
        }
        let grant = Key::new(Kind::RoleBinding, namespace, GRANT);
        match granted {
            true => {
                let object = RoleBinding {
                    metadata: ObjectMeta {
                        name: Some(GRANT.to_owned()),
                        namespace: Some(namespace.to_owned()),
                        labels: Some(BTreeMap::from([(
                            labels::FOR_CLUSTER.to_owned(),
                            cluster.to_owned(),
                        )])),
                        ..ObjectMeta::default()
                    },
                    ..binding(GRANT, names::JOIN_ACCOUNT, namespace)
                };
                self.outputs.want(grant, Content::of(&object));
            }
            false => self.outputs.remove(grant),
        }
        for token in &tokens {
            self.attend(cluster, namespace, token, &joins, now);
        }
    }

    /// One request to join; whether its cluster may fetch its credential now.
    fn answer(
        &mut self,
        cluster: &str,
        namespace: &str,
        join: &MemberJoin,
        arrived: Option<&str>,
        tokens: &[Arc<JoinToken>],
        now: Now,
    ) -> bool {
        let name = join.name_any();
        let key = Key::new(Kind::MemberJoinStatus, namespace, &name);
        let verdict = self.verdict(cluster, join);
        let age = join
            .creation_timestamp()
            .map(|created| now.wall.duration_since(created.0));
        if arrived == Some(name.as_str()) || verdict.is_err() && age.is_some_and(|age| age >= REFUSAL_STAYS) {
            self.outputs.remove(key);
            return false;
        }
        let before = conditions::of(join).to_vec();
        let recorded = self.recorded_identity(cluster) == Some(join.spec.cluster_uid.as_str());
        // With another token of the name still good, its holder could use the permission: it must be void first.
        let other = tokens.iter().any(|token| {
            let status = token.status.clone().unwrap_or_default();
            let voided = status
                .used_at
                .as_ref()
                .is_some_and(|at| now.wall.duration_since(at.0) >= VOID_AFTER);
            token.name_any() != name && !status.secret_uid.is_empty() && !voided && !is_expired(token, now)
        });
        if other && recorded {
            self.wake_cluster(cluster, Duration::from_secs(5), now);
        }
        let granted = verdict.is_ok() && recorded && !other;
        let verdict = match verdict {
            Err(why) => {
                self.wake_cluster(cluster, REFUSAL_STAYS.unsigned_abs(), now);
                Verdict::no(conditions::ACCEPTED, reason::IDENTITY_TAKEN, why)
            }
            Ok(_) if granted => Verdict::yes(
                conditions::ACCEPTED,
                reason::REGISTERED,
                "the member's credential can be fetched",
            ),
            // It is written down first whose the name is.
            Ok(_) => return false,
        };
        let conditions = conditions::conditions(&before, [verdict], join.metadata.generation, now.wall);
        self.outputs
            .want(key, Content::status(&MemberJoinStatus { conditions }));
        granted
    }

    /// One token: the Secret that makes it good, and where it stands.
    fn attend(
        &mut self,
        cluster: &str,
        namespace: &str,
        token: &JoinToken,
        joins: &[Arc<MemberJoin>],
        now: Now,
    ) {
        let name = token.name_any();
        let before = token.status.clone().unwrap_or_default();
        let secret = Key::new(Kind::Secret, namespace, &names::join_secret(&name));
        let arrived = self
            .clusters
            .get(cluster)
            .and_then(|state| state.facts()?.join.clone());
        let accepted = joins
            .iter()
            .filter(|join| arrived != Some(join.name_any()))
            .find(|join| self.verdict(cluster, join).is_ok());
        let by_this = accepted
            .filter(|join| join.name_any() == name)
            .map(|join| join.spec.cluster_uid.clone());
        // One that joins voids the others of its name.
        let by_other = accepted.is_some_and(|join| join.name_any() != name);
        let mut status = JoinTokenStatus {
            expires_at: token.creation_timestamp().map(|created| {
                Time(created.0 + SignedDuration::from_secs(token.spec.expires_seconds.into()))
            }),
            ..before.clone()
        };
        let expired = is_expired(token, now);
        if before.used_by.is_none() && (by_this.is_some() || by_other) {
            status.used_by = Some(by_this.unwrap_or_default());
            status.used_at = Some(now.time());
        }
        let arrived = arrived.as_ref() == Some(&name);
        let open = !expired && !arrived && !by_other && before.used_by.as_deref() != Some("");
        if open {
            self.outputs
                .want(secret.clone(), Content::of(&secret_of(token, namespace)));
            if let Some(there) = self.outputs.observed(&secret) {
                status.secret_name = names::join_secret(&name);
                status.secret_uid = there.uid.to_string();
            }
            if let Some(at) = &status.expires_at {
                let left = at.0.duration_since(now.wall).unsigned_abs();
                self.wake_cluster(cluster, left, now);
            }
        } else if self.voided.contains(&before.secret_uid) {
            status.secret_uid = String::new();
        } else if !before.secret_uid.is_empty() {
            // Nobody watches Secrets: what stands in the status is all that is known after a restart.
            if self.outputs.observed(&secret).is_none() {
                self.outputs
                    .observe(secret.clone(), Observed::known(&before.secret_uid));
            }
            self.outputs.remove(secret);
        }
        status.message = match token.spec.cluster == cluster {
            true => String::new(),
            false => format!(
                "it names cluster {} and stands in the namespace of cluster {cluster}: delete it",
                token.spec.cluster
            ),
        };
        status.state = match () {
            () if !status.message.is_empty() => "Invalid",
            () if status.used_by.is_some() => "Used",
            () if expired => "Expired",
            () if status.secret_uid.is_empty() => "Pending",
            () => "Ready",
        }
        .to_owned();
        self.outputs.want(
            Key::new(Kind::JoinTokenStatus, namespace, &name),
            Content::status(&status),
        );
    }
}

/// A person who issues another token afterwards does not wait for this one any more.
fn is_given_up(join: &MemberJoin, tokens: &[Arc<JoinToken>]) -> bool {
    let mut others = tokens.iter().filter(|token| token.name_any() != join.name_any());
    others.any(|token| token.creation_timestamp() > join.creation_timestamp())
}

fn is_expired(token: &JoinToken, now: Now) -> bool {
    let created = token.creation_timestamp().map(|created| created.0);
    created.is_some_and(|created| {
        now.wall.duration_since(created) >= SignedDuration::from_secs(token.spec.expires_seconds.into())
    })
}

/// Nothing is in it: a token that is bound to it is good as long as it exists.
fn secret_of(token: &JoinToken, namespace: &str) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(names::join_secret(&token.name_any())),
            namespace: Some(namespace.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: JoinToken::api_version(&()).into_owned(),
                kind: JoinToken::kind(&()).into_owned(),
                name: token.name_any(),
                uid: token.uid().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        type_: Some("weft.dev/join-token".to_owned()),
        ..Secret::default()
    }
}
