//! Installing and removing, with the charts that this program carries and the user's helm.

use std::{collections::BTreeMap, fmt, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, anyhow, bail};
use include_dir::{Dir, include_dir};
use jiff::Timestamp;
use k8s_openapi::{
    ClusterResourceScope,
    api::core::v1::{Namespace, Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PartialObjectMeta},
    runtime::{conditions::is_deleted, wait::await_condition},
};
use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::{
    Outcome,
    args::{Chart, Install, Part, Target, Uninstall},
    connect,
};

static HUB: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../charts/weft-hub");
static MEMBER: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../charts/weft-member");

/// How long helm goes on where nobody says anything (its own `--timeout`).
const LONGEST: Duration = Duration::from_secs(300);
/// Namespace of the helm releases. The charts own their namespaces, so that uninstalling removes these.
const RELEASE_NAMESPACE: &str = "kube-system";

impl Part {
    const fn release(self) -> &'static str {
        match self {
            Self::Hub => "weft-hub",
            Self::Cluster => "weft-member",
        }
    }

    const fn chart(self) -> &'static Dir<'static> {
        match self {
            Self::Hub => &HUB,
            Self::Cluster => &MEMBER,
        }
    }
}

pub(crate) async fn install(target: &Target, install: Install) -> anyhow::Result<Outcome> {
    let verb: &[&str] = if install.print {
        &["template"]
    } else {
        &["upgrade", "--install"]
    };
    apply(target, install.part, &install.chart, verb).await?;
    if !install.print {
        match install.part {
            Part::Hub => {
                println!("The hub runs. Next: `slicectl token issue CLUSTER` for each member cluster.")
            }
            Part::Cluster => println!("Weft runs. Next: `slicectl join --token …` with a token of the hub."),
        }
    }
    Ok(Outcome::Good)
}

/// Installs or brings up to date one part, and waits until it runs.
pub(super) async fn ensure(target: &Target, part: Part, chart: &Chart) -> anyhow::Result<()> {
    apply(target, part, chart, &["upgrade", "--install"]).await
}

async fn apply(target: &Target, part: Part, chart: &Chart, verb: &[&str]) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("make a folder for the chart")?;
    part.chart().extract(folder.path()).context("unpack the chart")?;
    let mut command = helm(target, chart);
    command.args(verb).arg(part.release()).arg(folder.path());
    for file in &chart.values {
        command.arg("--values").arg(file);
    }
    for value in &chart.set {
        command.args(["--set", value]);
    }
    if verb[0] == "upgrade" {
        resume(&connect::client(target).await?, part.release(), chart.timeout).await?;
        let timeout = format!("{}s", chart.timeout.as_secs());
        command
            .args(["--wait", "--timeout", &timeout])
            .stdout(Stdio::null());
        eprintln!("installing {} …", part.release());
    }
    run(command, &chart.helm).await
}

pub(crate) async fn uninstall(target: &Target, uninstall: Uninstall) -> anyhow::Result<Outcome> {
    let mut command = helm(target, &uninstall.chart);
    let timeout = format!("{}s", uninstall.chart.timeout.as_secs());
    command.args([
        "uninstall",
        uninstall.part.release(),
        "--wait",
        "--timeout",
        &timeout,
    ]);
    let release = uninstall.part.release();
    eprintln!("removing {release} …");
    let client = connect::client(target).await?;
    if let Err(error) = run(command, &uninstall.chart.helm).await {
        // What was uninstalled before may be purged yet.
        if !uninstall.purge || is_installed(&client, release).await? {
            return Err(error);
        }
        eprintln!("{release} is not installed; going on with what it left");
    }
    let kept = Kept::of(&client, release).await?;
    if kept.is_empty() {
        return Ok(Outcome::Good);
    }
    if !uninstall.purge {
        let part = match uninstall.part {
            Part::Hub => "hub",
            Part::Cluster => "cluster",
        };
        println!(
            "Kept, with what people wrote there: {kept}. `slicectl uninstall {part} --purge` removes it."
        );
        return Ok(Outcome::Good);
    }
    eprintln!("removing {kept} …");
    kept.remove(&client, uninstall.chart.timeout).await?;
    Ok(Outcome::Good)
}

/// What helm has recorded of a release, as it does by default: a Secret for each revision.
async fn records(client: &Client, release: &str) -> anyhow::Result<Vec<PartialObjectMeta<Secret>>> {
    let records = Api::<Secret>::namespaced(client.clone(), RELEASE_NAMESPACE);
    let own = ListParams::default().labels(&format!("owner=helm,name={release}"));
    let found = records
        .list_metadata(&own)
        .await
        .context("look for helm's records")?;
    Ok(found.items)
}

async fn is_installed(client: &Client, release: &str) -> anyhow::Result<bool> {
    Ok(!records(client, release).await?.is_empty())
}

/// Clears the way for an installation where one before was broken off in a way that helm could not record, such as a
/// machine that lost its power: helm takes that for one that goes on, for good.
async fn resume(client: &Client, release: &str, patience: Duration) -> anyhow::Result<()> {
    let found = records(client, release).await?;
    let Some(pending) = pending(&found) else {
        return Ok(());
    };
    let name = pending.name_any();
    let since = pending
        .creation_timestamp()
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let age = Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default();
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
        .delete(&name, &DeleteParams::default())
        .await
        .with_context(|| format!("delete Secret {RELEASE_NAMESPACE}/{name}"))?;
    Ok(())
}

/// The newest revision, where helm has it as one that goes on.
fn pending(records: &[PartialObjectMeta<Secret>]) -> Option<&PartialObjectMeta<Secret>> {
    let revision =
        |record: &PartialObjectMeta<Secret>| -> Option<u64> { record.labels().get("version")?.parse().ok() };
    let newest = records.iter().max_by_key(|record| revision(record))?;
    let status = newest.labels().get("status")?;
    status.starts_with("pending-").then_some(newest)
}

/// What helm leaves of a release because people's objects are in it.
#[derive(Debug, Default)]
struct Kept {
    /// With their UIDs.
    kinds: Vec<(String, String)>,
    namespaces: Vec<(String, String)>,
}

impl Kept {
    async fn of(client: &Client, release: &str) -> anyhow::Result<Self> {
        Ok(Self {
            kinds: kept::<CustomResourceDefinition>(client, release).await?,
            namespaces: kept::<Namespace>(client, release).await?,
        })
    }

    fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.namespaces.is_empty()
    }

    async fn remove(&self, client: &Client, patience: Duration) -> anyhow::Result<()> {
        remove::<CustomResourceDefinition>(client, &self.kinds, patience).await?;
        remove::<Namespace>(client, &self.namespaces, patience).await
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.kinds.iter().map(|(name, _)| format!("kind {name}"));
        let namespaces = self
            .namespaces
            .iter()
            .map(|(name, _)| format!("namespace {name}"));
        to.write_str(&kinds.chain(namespaces).collect::<Vec<_>>().join(", "))
    }
}

/// Names and UIDs of a release's objects of a kind that helm was told to keep.
async fn kept<K>(client: &Client, release: &str) -> anyhow::Result<Vec<(String, String)>>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + fmt::Debug + DeserializeOwned,
{
    let all = Api::<K>::all(client.clone())
        .list_metadata(&ListParams::default())
        .await
        .with_context(|| format!("list {}", K::plural(&())))?;
    Ok(all
        .items
        .iter()
        .filter(|object| is_kept(object.annotations(), release))
        .map(|object| (object.name_any(), object.uid().unwrap_or_default()))
        .collect())
}

fn is_kept(annotations: &BTreeMap<String, String>, release: &str) -> bool {
    let has = |key: &str, value: &str| annotations.get(key).is_some_and(|found| found == value);
    has("helm.sh/resource-policy", "keep")
        && has("meta.helm.sh/release-name", release)
        && has("meta.helm.sh/release-namespace", RELEASE_NAMESPACE)
}

/// Deletes objects and waits until they are gone.
async fn remove<K>(client: &Client, objects: &[(String, String)], patience: Duration) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>
        + Clone
        + fmt::Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api = Api::<K>::all(client.clone());
    let kind = K::kind(&());
    for (name, _) in objects {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| format!("delete {kind} {name}")),
        }
    }
    for (name, uid) in objects {
        let gone = await_condition(api.clone(), name, is_deleted(uid));
        tokio::time::timeout(patience, gone)
            .await
            .map_err(|_| {
                anyhow!(
                    "{kind} {name} is still there: see `kubectl get {} {name} -o yaml`",
                    K::plural(&())
                )
            })?
            .with_context(|| format!("watch {kind} {name}"))?;
    }
    Ok(())
}

fn helm(target: &Target, chart: &Chart) -> Command {
    let mut command = Command::new(&chart.helm);
    command.args(["--namespace", RELEASE_NAMESPACE]);
    if let Some(kubeconfig) = &target.kubeconfig {
        command.arg("--kubeconfig").arg(kubeconfig);
    }
    if let Some(context) = &target.context {
        command.args(["--kube-context", context]);
    }
    command
}

async fn run(mut command: Command, helm: &Path) -> anyhow::Result<()> {
    let status = command
        .status()
        .await
        .with_context(|| format!("run {}: install helm, or name it with --helm", helm.display()))?;
    if !status.success() {
        bail!("helm ended with {status}; what it says stands above");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: u32, status: &str) -> PartialObjectMeta<Secret> {
        let name = format!("sh.helm.release.v1.weft-member.v{version}");
        let labels = serde_json::json!({"owner": "helm", "version": version.to_string(), "status": status});
        serde_json::from_value(serde_json::json!({"metadata": {"name": name, "labels": labels}})).unwrap()
    }

    #[test]
    fn the_newest_revision_says_whether_an_installation_was_broken_off() {
        let check = |records: &[(u32, &str)], broken_off: Option<&str>| {
            let records: Vec<_> = records
                .iter()
                .map(|(version, status)| record(*version, status))
                .collect();
            let found = pending(&records).map(|record| record.labels()["version"].clone());
            assert_eq!(found.as_deref(), broken_off);
        };
        check(&[], None);
        check(&[(1, "deployed")], None);
        check(&[(1, "pending-install")], Some("1"));
        check(&[(9, "superseded"), (10, "pending-upgrade")], Some("10"));
        check(&[(10, "deployed"), (9, "pending-upgrade")], None);
        check(&[(1, "superseded"), (2, "failed")], None);
        check(&[(1, "uninstalling")], None);
    }

    #[test]
    fn only_what_helm_was_told_to_keep_of_this_release_is_purged() {
        let annotations = |policy: &str, release: &str, namespace: &str| {
            BTreeMap::from([
                ("helm.sh/resource-policy".to_owned(), policy.to_owned()),
                ("meta.helm.sh/release-name".to_owned(), release.to_owned()),
                ("meta.helm.sh/release-namespace".to_owned(), namespace.to_owned()),
            ])
        };
        for (policy, release, namespace, expected) in [
            ("keep", "weft-member", "kube-system", true),
            ("", "weft-member", "kube-system", false),
            ("keep", "submariner", "kube-system", false),
            ("keep", "weft-member", "elsewhere", false),
        ] {
            assert_eq!(
                is_kept(&annotations(policy, release, namespace), "weft-member"),
                expected
            );
        }
        assert!(!is_kept(&BTreeMap::new(), "weft-member"));
    }

    #[test]
    fn the_charts_are_carried_whole() {
        for part in [Part::Hub, Part::Cluster] {
            let files = [
                "Chart.yaml",
                "values.yaml",
                "values.schema.json",
                "templates/crds.yaml",
            ];
            for file in files {
                assert!(part.chart().contains(file), "{file} of {}", part.release());
            }
        }
        assert!(
            HUB.get_file("files/hub.yaml")
                .is_some_and(|file| !file.contents().is_empty())
        );
        assert!(
            MEMBER
                .get_file("files/mcs.yaml")
                .is_some_and(|file| !file.contents().is_empty())
        );
    }
}
