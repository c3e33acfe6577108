//! Installing and removing, with the charts that this program carries and the user's helm.

use std::{path::Path, process::Stdio};

use anyhow::{Context, bail};
use include_dir::{Dir, include_dir};
use tokio::process::Command;

use crate::{
    Outcome,
    args::{Chart, Install, Part, Target, Uninstall},
};

static HUB: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../charts/weft-hub");
static MEMBER: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../charts/weft-member");

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
    eprintln!("removing {} …", uninstall.part.release());
    run(command, &uninstall.chart.helm).await?;
    Ok(Outcome::Good)
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
