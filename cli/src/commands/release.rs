//! What there is of an installation, seen from beside helm: whether one goes on, was broken off, or has lost a part that helm
//! needs to go on.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use k8s_openapi::{
    ClusterResourceScope,
    api::{
        apps::v1::DaemonSet,
        batch::v1::Job,
        core::v1::{Namespace, Secret},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PartialObjectMeta, Patch, PatchParams},
    runtime::{conditions::is_deleted, wait::await_condition},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use slice_crds::{
    names,
    v1alpha1::{SliceNode, SliceNodePhase},
};
use tokio::time::{Instant, timeout_at};

use super::wait_for;
use crate::{args::Part, objects};

/// Namespace of the helm releases. The charts own their namespaces, so that uninstalling removes these.
pub(super) const RELEASE_NAMESPACE: &str = "kube-system";
/// How long helm goes on where nobody says anything (its own `--timeout`).
const LONGEST: Duration = Duration::from_secs(300);
/// By which helm knows what is whose.
const RELEASE: &str = "meta.helm.sh/release-name";
const NAMESPACE: &str = "meta.helm.sh/release-namespace";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const POLICY: &str = "helm.sh/resource-policy";
/// The DaemonSet of node agents, which clean the nodes.
const AGENTS: &str = "weft-netop";

impl Part {
    pub(super) const fn release(self) -> &'static str {
        match self {
            Self::Hub => "weft-hub",
            Self::Cluster => "weft-member",
        }
    }

    /// As it is called on the command line.
    pub(super) const fn argument(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Cluster => "cluster",
        }
    }

    /// In which the chart's hook for uninstalling has objects.
    const fn namespaces(self) -> &'static [&'static str] {
        match self {
            Self::Hub => &[names::HUB_NAMESPACE],
            Self::Cluster => &[names::MEMBER_NAMESPACE, names::GATEWAY_NAMESPACE],
        }
    }

    /// The Job of that hook, and its cluster-wide role.
    const fn hook(self) -> &'static str {
        match self {
            Self::Hub => "weft-hub-teardown",
            Self::Cluster => "weft-teardown",
        }
    }

    /// A kind that goes with the release, after all workloads.
    const fn kind(self) -> &'static str {
        match self {
            Self::Hub => "memberslices.weft.dev",
            Self::Cluster => "slicenodes.weft.dev",
        }
    }
}

/// helm's newest record of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The Secret.
    name: String,
    pub(super) revision: u64,
    status: String,
    since: Timestamp,
}

impl Record {
    /// An installation, an upgrade or a rollback that goes on, or that was broken off in a way that helm could not record.
    pub(super) fn is_pending(&self) -> bool {
        self.status.starts_with("pending-")
    }

    /// helm writes this when it begins to uninstall, before the hook has run.
    pub(super) fn is_uninstalling(&self) -> bool {
        self.status == "uninstalling"
    }
}

/// What helm has recorded, as it does by default: a Secret for each revision.
pub(super) async fn record(client: &Client, part: Part) -> anyhow::Result<Option<Record>> {
    let records = Api::<Secret>::namespaced(client.clone(), RELEASE_NAMESPACE);
    let own = ListParams::default().labels(&format!("owner=helm,name={}", part.release()));
    let found = records.list_metadata(&own).await;
    Ok(newest(&found.context("look for helm's records")?.items))
}

fn newest(records: &[PartialObjectMeta<Secret>]) -> Option<Record> {
    let read = |record: &PartialObjectMeta<Secret>| {
        Some(Record {
            name: record.name_any(),
            revision: record.labels().get("version")?.parse().ok()?,
            status: record.labels().get("status")?.clone(),
            since: (record.creation_timestamp()).map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        })
    };
    records
        .iter()
        .filter_map(read)
        .max_by_key(|record| record.revision)
}

/// Forgets an installation that was broken off in a way that helm could not record, such as a machine that lost its power: helm
/// takes that for one that goes on, for good.
pub(super) async fn forget(
    client: &Client,
    part: Part,
    record: &Record,
    patience: Duration,
) -> anyhow::Result<()> {
    let (release, Record { name, since, .. }) = (part.release(), record);
    let age = Duration::try_from(Timestamp::now().duration_since(*since)).unwrap_or_default();
    let limit = patience.max(LONGEST) + Duration::from_secs(60);
    if age < limit {
        bail!(
            "an installation of {release} goes on since {since}, or was broken off: wait for it; in {} s this command takes \
             it for broken off. Where you know that it was: `kubectl -n {RELEASE_NAMESPACE} delete secret {name}`, and again",
            (limit - age).as_secs()
        );
    }
    eprintln!("an installation of {release} was broken off at {since}; going on from there …");
    let records = Api::<Secret>::namespaced(client.clone(), RELEASE_NAMESPACE);
    records
        .delete(name, &DeleteParams::default())
        .await
        .with_context(|| format!("delete Secret {RELEASE_NAMESPACE}/{name}"))?;
    Ok(())
}

/// How an installation comes off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// There is none.
    Nothing,
    /// As helm does it: the chart's hook cleans up, then the objects go.
    Whole,
    /// The hook has done its work: it was broken off while the objects went.
    Objects,
    /// What cleans up is gone, and something is left to be cleaned: the same revision is brought back first.
    Restored(u64),
    /// helm knows nothing of what is there: it is installed first.
    Installed,
}

/// What there is of an installation.
#[derive(Debug, Default)]
pub(super) struct Found {
    record: Option<Record>,
    /// Of the namespaces in which the hook works, those that are not there.
    missing: Vec<&'static str>,
    has_kind: bool,
    /// Whether there are agents that could clean the nodes; none are needed on a hub.
    has_agents: bool,
    /// Whether every node has reported that nothing of Weft is left on it.
    clean: bool,
    /// Whether anything bears the release's name that goes with it.
    owned: bool,
}

impl Found {
    pub(super) async fn look(client: &Client, part: Part) -> anyhow::Result<Self> {
        let namespaces = Api::<Namespace>::all(client.clone());
        let mut missing = vec![];
        for name in part.namespaces() {
            let there = namespaces.get_metadata_opt(name).await;
            if there
                .with_context(|| format!("look for namespace {name}"))?
                .is_none()
            {
                missing.push(*name);
            }
        }
        let kinds = Api::<CustomResourceDefinition>::all(client.clone());
        let kind = kinds.get_metadata_opt(part.kind()).await;
        let has_kind = kind
            .with_context(|| format!("look for kind {}", part.kind()))?
            .is_some();
        let (has_agents, clean) = match part {
            Part::Hub => (true, false),
            Part::Cluster => {
                let agents = Api::<DaemonSet>::namespaced(client.clone(), names::MEMBER_NAMESPACE);
                let there = agents.get_metadata_opt(AGENTS).await;
                let there = there.with_context(|| format!("look for DaemonSet {AGENTS}"))?;
                (there.is_some(), has_kind && is_clean(client).await?)
            }
        };
        let owned = is_owned::<Namespace>(client, part).await?
            || is_owned::<CustomResourceDefinition>(client, part).await?
            || is_owned::<ClusterRole>(client, part).await?;
        Ok(Self {
            record: record(client, part).await?,
            missing,
            has_kind,
            has_agents,
            clean,
            owned,
        })
    }

    pub(super) fn removal(&self) -> Removal {
        let Some(record) = &self.record else {
            return if self.owned {
                Removal::Installed
            } else {
                Removal::Nothing
            };
        };
        // Kinds go after the workloads, and these after the hook.
        if record.is_uninstalling() && (self.clean || !self.has_kind) {
            return Removal::Objects;
        }
        let is_whole = self.missing.is_empty() && self.has_agents && self.has_kind;
        // Somebody has had helm keep the record, and nothing else is there.
        let is_history = record.status == "uninstalled";
        match is_whole || is_history {
            true => Removal::Whole,
            false => Removal::Restored(record.revision),
        }
    }

    /// What is gone of it, for whoever wonders what takes so long.
    pub(super) fn lacks(&self) -> String {
        let mut parts: Vec<String> = (self.missing.iter())
            .map(|name| format!("namespace {name}"))
            .collect();
        if !self.has_kind {
            parts.push("its kinds".to_owned());
        }
        if !self.has_agents {
            parts.push("its node agents".to_owned());
        }
        parts.join(", ")
    }
}

/// Whether every node has reported that nothing is left. Where none has an object, nobody has reported anything.
async fn is_clean(client: &Client) -> anyhow::Result<bool> {
    let nodes = objects::list::<SliceNode>(client, None, &ListParams::default()).await?;
    let removed = |node: &SliceNode| {
        node.spec.teardown
            && (node.status.as_ref()).is_some_and(|status| status.phase == SliceNodePhase::Removed)
    };
    Ok(!nodes.is_empty() && nodes.iter().all(|node| node.readable().is_some_and(removed)))
}

/// Whether an object is of a release.
pub(super) fn is_of(annotations: &BTreeMap<String, String>, release: &str) -> bool {
    let has = |key: &str, value: &str| annotations.get(key).is_some_and(|found| found == value);
    has(RELEASE, release) && has(NAMESPACE, RELEASE_NAMESPACE)
}

/// Whether helm leaves an object when it uninstalls.
pub(super) fn is_kept(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(POLICY).is_some_and(|policy| policy == "keep")
}

async fn is_owned<K>(client: &Client, part: Part) -> anyhow::Result<bool>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
{
    let of_helm = ListParams::default().labels(&format!("{MANAGED_BY}=Helm"));
    let all = Api::<K>::all(client.clone()).list_metadata(&of_helm).await;
    let all = all.with_context(|| format!("list {}", K::plural(&())))?;
    Ok(all
        .items
        .iter()
        .any(|object| is_of(object.annotations(), part.release()) && !is_kept(object.annotations())))
}

/// Waits until what is being deleted of an installation is gone: nothing can be made in its place before.
pub(super) async fn settle(client: &Client, part: Part, patience: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + patience;
    await_going::<Namespace>(client, part, until).await?;
    await_going::<CustomResourceDefinition>(client, part, until).await
}

async fn await_going<K>(client: &Client, part: Part, until: Instant) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api = Api::<K>::all(client.clone());
    let kind = K::kind(&());
    let all = api.list_metadata(&ListParams::default()).await;
    let all = all.with_context(|| format!("list {}", K::plural(&())))?;
    let ours = all.items.iter().filter(|object| {
        object.metadata.deletion_timestamp.is_some()
            && (is_of(object.annotations(), part.release())
                || part.namespaces().contains(&&*object.name_any()))
    });
    for object in ours {
        let (name, uid) = (object.name_any(), object.uid().unwrap_or_default());
        eprintln!("{kind} {name} is being deleted; waiting until it is gone …");
        match timeout_at(until, await_condition(api.clone(), &name, is_deleted(&uid))).await {
            Ok(gone) => _ = gone.with_context(|| format!("watch {kind} {name}"))?,
            Err(_) => return Err(still_there(client, &kind, &name).await),
        }
    }
    Ok(())
}

/// Why an object that is being deleted does not go, as far as the API server says.
pub(super) async fn still_there(client: &Client, kind: &str, name: &str) -> anyhow::Error {
    let plural = match kind {
        "Namespace" => "namespace",
        other => other,
    };
    let why = match Api::<Namespace>::all(client.clone()).get_opt(name).await {
        Ok(Some(namespace)) if kind == "Namespace" => holding(&namespace),
        _ => String::new(),
    };
    anyhow!(
        "{kind} {name} is still there{why}: see `kubectl get {plural} {name} -o yaml`, then run this again"
    )
}

/// What a namespace says about why it does not go.
fn holding(namespace: &Namespace) -> String {
    let conditions = namespace.status.iter().flat_map(|status| &status.conditions);
    let said: Vec<String> = conditions
        .flatten()
        .filter(|condition| condition.status == "True")
        .filter_map(|condition| condition.message.clone())
        .collect();
    match said.is_empty() {
        true => String::new(),
        false => format!(" ({})", said.join("; ")),
    }
}

/// Ends what cleans up while a release is removed: it goes on where helm itself was killed, and would take down again what is
/// made anew.
pub(super) async fn stop_hook(client: &Client, part: Part, patience: Duration) -> anyhow::Result<()> {
    let name = part.hook();
    for namespace in part.namespaces() {
        let jobs = Api::<Job>::namespaced(client.clone(), namespace);
        let there = jobs.get_metadata_opt(name).await;
        let Some(job) = there.with_context(|| format!("look for Job {namespace}/{name}"))? else {
            continue;
        };
        // With its pods.
        match jobs.delete(name, &DeleteParams::foreground()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error).with_context(|| format!("delete Job {namespace}/{name}")),
        }
        let uid = job.uid().unwrap_or_default();
        tokio::time::timeout(patience, await_condition(jobs.clone(), name, is_deleted(&uid)))
            .await
            .map_err(|_| {
                anyhow!(
                    "Job {namespace}/{name} is still there: see `kubectl -n {namespace} get job {name} -o yaml`, then run this \
                     again"
                )
            })?
            .with_context(|| format!("watch Job {namespace}/{name}"))?;
    }
    Ok(())
}

/// Takes away what the hook was allowed beyond its namespaces: helm does when it has run the hook to its end.
pub(super) async fn remove_hook_roles(client: &Client, part: Part) -> anyhow::Result<()> {
    delete::<ClusterRoleBinding>(client, part.hook()).await?;
    delete::<ClusterRole>(client, part.hook()).await
}

/// Deletes an object of the cluster; one that is gone already is fine.
pub(super) async fn delete<K>(client: &Client, name: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
{
    let deleted = Api::<K>::all(client.clone())
        .delete(name, &DeleteParams::default())
        .await;
    match deleted {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("delete {} {name}", K::kind(&()))),
    }
}

/// Gives namespaces that somebody has made by hand to the release: helm refuses to install into them.
pub(super) async fn adopt(client: &Client, part: Part) -> anyhow::Result<()> {
    let namespaces = Api::<Namespace>::all(client.clone());
    for name in part.namespaces() {
        let there = namespaces.get_metadata_opt(name).await;
        let Some(there) = there.with_context(|| format!("look for namespace {name}"))? else {
            continue;
        };
        // Another release's is its own business, and helm says so.
        if there.annotations().contains_key(RELEASE) {
            continue;
        }
        eprintln!(
            "namespace {name} is there already; {} takes it over",
            part.release()
        );
        let patch = json!({"metadata": {
            "labels": {MANAGED_BY: "Helm"},
            "annotations": {RELEASE: part.release(), NAMESPACE: RELEASE_NAMESPACE},
        }});
        namespaces
            .patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("annotate namespace {name}"))?;
    }
    Ok(())
}

/// Waits until every node has its agent, as far as that comes within `patience`: what does not is named by whoever needs it.
pub(super) async fn await_agents(client: &Client, patience: Duration) -> anyhow::Result<()> {
    let agents = Api::<DaemonSet>::namespaced(client.clone(), names::MEMBER_NAMESPACE);
    let waited = wait_for(
        &agents,
        AGENTS,
        "the node agents",
        patience,
        "not all are ready",
        is_rolled_out,
    )
    .await;
    if let Err(why) = waited {
        eprintln!("{why:#}; going on");
    }
    Ok(())
}

fn is_rolled_out(set: Option<&DaemonSet>) -> bool {
    let Some(set) = set else { return false };
    (set.status.as_ref()).is_some_and(|status| {
        status.observed_generation >= set.metadata.generation
            && status.number_ready >= status.desired_number_scheduled
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(version: u32, status: &str) -> PartialObjectMeta<Secret> {
        let name = format!("sh.helm.release.v1.weft-member.v{version}");
        let labels = json!({"owner": "helm", "version": version.to_string(), "status": status});
        serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
    }

    fn record(status: &str) -> Option<Record> {
        newest(&[secret(7, status)])
    }

    #[test]
    fn the_newest_revision_says_whether_an_installation_was_broken_off() {
        let check = |records: &[(u32, &str)], pending: Option<u64>| {
            let records: Vec<_> = (records.iter())
                .map(|(version, status)| secret(*version, status))
                .collect();
            let found = newest(&records).filter(Record::is_pending);
            assert_eq!(found.map(|record| record.revision), pending);
        };
        check(&[], None);
        check(&[(1, "deployed")], None);
        check(&[(1, "pending-install")], Some(1));
        check(&[(9, "superseded"), (10, "pending-upgrade")], Some(10));
        check(&[(10, "deployed"), (9, "pending-upgrade")], None);
        check(&[(1, "superseded"), (2, "failed")], None);
        check(&[(1, "uninstalling")], None);
    }

    /// An installation with everything in its place.
    fn whole(status: &str) -> Found {
        Found {
            record: record(status),
            missing: vec![],
            has_kind: true,
            has_agents: true,
            clean: false,
            owned: true,
        }
    }

    #[test]
    fn helm_removes_what_is_whole_however_far_it_came() {
        for status in [
            "deployed",
            "failed",
            "pending-install",
            "pending-upgrade",
            "uninstalling",
        ] {
            assert_eq!(whole(status).removal(), Removal::Whole, "{status}");
        }
    }

    #[test]
    fn what_cleans_up_is_brought_back_where_it_is_gone() {
        for status in ["deployed", "failed", "pending-install", "uninstalling"] {
            let without_namespace = Found {
                missing: vec![names::MEMBER_NAMESPACE],
                has_agents: false,
                ..whole(status)
            };
            assert_eq!(without_namespace.removal(), Removal::Restored(7), "{status}");
            assert_eq!(
                without_namespace.lacks(),
                "namespace weft-system, its node agents"
            );
            // Somebody has made it again.
            let without_agents = Found {
                has_agents: false,
                ..whole(status)
            };
            assert_eq!(without_agents.removal(), Removal::Restored(7), "{status}");
        }
        let without_kinds = Found {
            has_kind: false,
            ..whole("deployed")
        };
        assert_eq!(without_kinds.removal(), Removal::Restored(7));
    }

    #[test]
    fn a_removal_that_was_broken_off_after_the_nodes_were_clean_only_deletes() {
        let clean = Found {
            clean: true,
            has_agents: false,
            ..whole("uninstalling")
        };
        assert_eq!(clean.removal(), Removal::Objects);
        let deleted = Found {
            has_kind: false,
            has_agents: false,
            missing: vec![names::MEMBER_NAMESPACE, names::GATEWAY_NAMESPACE],
            ..whole("uninstalling")
        };
        assert_eq!(deleted.removal(), Removal::Objects);
        // Clean as of a removal that was undone since: helm says that it stands.
        let undone = Found {
            clean: true,
            ..whole("deployed")
        };
        assert_eq!(undone.removal(), Removal::Whole);
        let kept = Found {
            has_kind: false,
            ..whole("uninstalled")
        };
        assert_eq!(kept.removal(), Removal::Whole);
    }

    #[test]
    fn without_helms_record_what_bears_the_releases_name_tells() {
        let left = Found {
            record: None,
            ..whole("")
        };
        assert_eq!(left.removal(), Removal::Installed);
        assert_eq!(Found::default().removal(), Removal::Nothing);
    }

    #[test]
    fn whose_an_object_is_its_annotations_say() {
        let annotations = |policy: &str, release: &str, namespace: &str| {
            BTreeMap::from([
                (POLICY.to_owned(), policy.to_owned()),
                (RELEASE.to_owned(), release.to_owned()),
                (NAMESPACE.to_owned(), namespace.to_owned()),
            ])
        };
        for (policy, release, namespace, of, kept) in [
            ("keep", "weft-member", "kube-system", true, true),
            ("", "weft-member", "kube-system", true, false),
            ("keep", "submariner", "kube-system", false, true),
            ("keep", "weft-member", "elsewhere", false, true),
        ] {
            let annotations = annotations(policy, release, namespace);
            assert_eq!(is_of(&annotations, "weft-member"), of);
            assert_eq!(is_kept(&annotations), kept);
        }
        assert!(!is_of(&BTreeMap::new(), "weft-member"));
    }

    #[test]
    fn what_holds_a_namespace_is_said_in_its_own_words() {
        let namespace = |conditions: serde_json::Value| -> Namespace {
            serde_json::from_value(json!({"status": {"phase": "Terminating", "conditions": conditions}}))
                .unwrap()
        };
        let condition =
            |status: &str, message: &str| json!({"type": "X", "status": status, "message": message});
        let held = namespace(json!([
            condition("False", "All content successfully deleted"),
            condition(
                "True",
                "Some content in the namespace has finalizers remaining: example.org/x in 1 resource instances"
            ),
        ]));
        assert_eq!(
            holding(&held),
            " (Some content in the namespace has finalizers remaining: example.org/x in 1 resource instances)"
        );
        assert_eq!(holding(&Namespace::default()), "");
    }

    #[test]
    fn agents_are_there_when_the_controller_has_seen_the_set_and_all_are_ready() {
        let set = |status: serde_json::Value| -> DaemonSet {
            serde_json::from_value(json!({"metadata": {"generation": 2}, "status": status})).unwrap()
        };
        let status = |generation: i64, desired: i32, ready: i32| {
            json!({"observedGeneration": generation, "desiredNumberScheduled": desired, "numberReady": ready,
                "currentNumberScheduled": desired, "numberMisscheduled": 0})
        };
        assert!(!is_rolled_out(None));
        assert!(!is_rolled_out(Some(&set(json!(null)))), "not seen yet");
        assert!(!is_rolled_out(Some(&set(status(1, 0, 0)))), "seen before");
        assert!(!is_rolled_out(Some(&set(status(2, 2, 1)))));
        assert!(is_rolled_out(Some(&set(status(2, 2, 2)))));
    }
}
