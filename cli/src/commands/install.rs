//! Installing and removing, with the charts that this program carries and the user's helm.

use std::{fmt, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use include_dir::{Dir, include_dir};
use k8s_openapi::{
    ClusterResourceScope, api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ListParams,
    runtime::{conditions::is_deleted, wait::await_condition},
};
use serde::de::DeserializeOwned;
use tokio::process::Command;

use super::release::{self, Found, RELEASE_NAMESPACE, Removal};
use crate::{
    Outcome,
    args::{Chart, Install, Part, Target, Uninstall},
    connect,
};

static HUB: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../charts/weft-hub");
static MEMBER: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../charts/weft-member");

impl Part {
    const fn chart(self) -> &'static Dir<'static> {
        match self {
            Self::Hub => &HUB,
            Self::Cluster => &MEMBER,
        }
    }
}

pub(crate) async fn install(target: &Target, install: Install) -> anyhow::Result<Outcome> {
    if install.print {
        let (command, _folder) = with_chart(target, install.part, &install.chart, &["template"])?;
        run(command, &install.chart.helm).await?;
    } else {
        ensure(target, install.part, &install.chart).await?;
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
    resume(target, part, chart).await?;
    upgrade(target, part, chart, &["--wait"]).await
}

async fn upgrade(target: &Target, part: Part, chart: &Chart, more: &[&str]) -> anyhow::Result<()> {
    let (mut command, _folder) = with_chart(target, part, chart, &["upgrade", "--install"])?;
    command
        .args(more)
        .args(["--timeout", &seconds(chart.timeout)])
        .stdout(Stdio::null());
    eprintln!("installing {} …", part.release());
    run(command, &chart.helm).await
}

/// A helm command with the part's chart and values; the chart is there as long as its folder.
fn with_chart(
    target: &Target,
    part: Part,
    chart: &Chart,
    verb: &[&str],
) -> anyhow::Result<(Command, tempfile::TempDir)> {
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
    Ok((command, folder))
}

/// Clears the way for an installation: what was broken off before, or is being deleted.
async fn resume(target: &Target, part: Part, chart: &Chart) -> anyhow::Result<()> {
    let client = connect::client(target).await?;
    release::settle(&client, part, chart.timeout).await?;
    match release::record(&client, part).await? {
        None => release::adopt(&client, part).await,
        Some(record) if record.is_pending() => release::forget(&client, part, &record, chart.timeout).await,
        // helm upgrades nothing that it has begun to remove.
        Some(record) if record.is_uninstalling() => {
            eprintln!("{} was not removed to the end; undoing that …", part.release());
            release::stop_hook(&client, part, chart.timeout).await?;
            roll_back(target, part, chart, record.revision).await
        }
        Some(_) => Ok(()),
    }
}

/// Makes everything again that a revision has, and waits for none of it.
async fn roll_back(target: &Target, part: Part, chart: &Chart, revision: u64) -> anyhow::Result<()> {
    let mut command = helm(target, chart);
    command
        .args(["rollback", part.release(), &revision.to_string()])
        .args(["--timeout", &seconds(chart.timeout)])
        .stdout(Stdio::null());
    run(command, &chart.helm).await
}

pub(crate) async fn uninstall(target: &Target, uninstall: Uninstall) -> anyhow::Result<Outcome> {
    let Uninstall { part, purge, chart } = uninstall;
    let (name, argument) = (part.release(), part.argument());
    let client = connect::client(target).await?;
    release::settle(&client, part, chart.timeout).await?;
    let found = Found::look(&client, part).await?;
    match found.removal() {
        // What was uninstalled before may be purged yet.
        Removal::Nothing if purge => eprintln!("{name} is not installed; going on with what it left"),
        Removal::Nothing => bail!(
            "{name} is not installed here: helm has no record of it in namespace {RELEASE_NAMESPACE}, and nothing bears its \
             name. Where nodes still have something of it, `slicectl install {argument}` and then this takes it off them"
        ),
        Removal::Whole => remove_release(target, part, &chart, true).await?,
        Removal::Objects => {
            remove_release(target, part, &chart, false).await?;
            release::remove_hook_roles(&client, part).await?;
        }
        Removal::Restored(revision) => {
            eprintln!(
                "{name} has lost {}; bringing that back to clean up with …",
                found.lacks()
            );
            roll_back(target, part, &chart, revision).await?;
            await_agents(&client, part, &chart).await?;
            remove_release(target, part, &chart, true).await?;
        }
        Removal::Installed => {
            eprintln!(
                "helm has no record of {name}, and some of it is there; installing it again to clean up with, and with the \
                 values that are given by --values and --set …"
            );
            release::adopt(&client, part).await?;
            upgrade(target, part, &chart, &[]).await?;
            await_agents(&client, part, &chart).await?;
            remove_release(target, part, &chart, true).await?;
        }
    }
    let kept = Kept::of(&client, name).await?;
    if kept.is_empty() {
        return Ok(Outcome::Good);
    }
    if !purge {
        println!(
            "Kept, with what people wrote there: {kept}. `slicectl uninstall {argument} --purge` removes it."
        );
        return Ok(Outcome::Good);
    }
    eprintln!("removing {kept} …");
    kept.remove(&client, chart.timeout).await?;
    Ok(Outcome::Good)
}

async fn await_agents(client: &Client, part: Part, chart: &Chart) -> anyhow::Result<()> {
    match part {
        Part::Hub => Ok(()),
        Part::Cluster => release::await_agents(client, chart.timeout).await,
    }
}

async fn remove_release(target: &Target, part: Part, chart: &Chart, hooks: bool) -> anyhow::Result<()> {
    let mut command = helm(target, chart);
    command
        .args(["uninstall", part.release()])
        .args(["--wait", "--timeout", &seconds(chart.timeout)]);
    if !hooks {
        command.arg("--no-hooks");
    }
    eprintln!("removing {} …", part.release());
    run(command, &chart.helm).await.with_context(|| {
        format!(
            "{} is not removed to the end: `slicectl uninstall {argument}` goes on from there, `slicectl install {argument}` \
             undoes it",
            part.release(),
            argument = part.argument()
        )
    })
}

fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs())
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
        .filter(|object| {
            release::is_kept(object.annotations()) && release::is_of(object.annotations(), release)
        })
        .map(|object| (object.name_any(), object.uid().unwrap_or_default()))
        .collect())
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
        release::delete::<K>(client, name).await?;
    }
    for (name, uid) in objects {
        let gone = await_condition(api.clone(), name, is_deleted(uid));
        match tokio::time::timeout(patience, gone).await {
            Ok(gone) => gone.with_context(|| format!("watch {kind} {name}"))?,
            Err(_) => return Err(release::still_there(client, &kind, name).await),
        };
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
