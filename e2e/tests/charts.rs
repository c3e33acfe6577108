//! What the charts render, a real API server takes: by default, and with every value that platforms ask for.

use anyhow::{Context, Result, ensure};
use slice_e2e::harness::{Cluster, Environment};

/// Renders a part of Weft with its chart's `ci/full-values.yaml`, or with its defaults, and has a cluster check every object.
async fn check(
    environment: &Environment,
    cluster: &Cluster,
    part: &str,
    chart: &str,
    full: bool,
) -> Result<String> {
    let values = format!(
        "{}/../charts/{chart}/ci/full-values.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    let mut arguments = vec!["install", part, "--print"];
    if full {
        arguments.extend(["--values", &values]);
    }
    let rendered = environment.slicectl(&cluster.name, &arguments)?;
    cluster
        .check(&rendered)
        .await
        .with_context(|| format!("{chart}, full: {full}"))?;
    Ok(rendered)
}

#[tokio::test]
async fn an_api_server_takes_every_object_of_the_charts() -> Result<()> {
    let environment = Environment::open().await?;
    // Dry runs want namespaces and kinds to be there.
    environment.install().await?;
    let hub = environment.hub()?;
    for (part, chart, pods) in [("hub", "weft-hub", 2), ("cluster", "weft-member", 4)] {
        check(&environment, hub, part, chart, false).await?;
        let full = check(&environment, hub, part, chart, true).await?;
        for (what, count) in [
            // Of deployments, daemon set and the hook that takes all down.
            ("imagePullSecrets: [{name: registry}]", pods),
            // Not of the hook, which is gone when it is done.
            ("team: network", pods - 1),
            (
                "cluster-autoscaler.kubernetes.io/safe-to-evict: \"true\"",
                pods - 1,
            ),
            ("kubernetes.io/os: linux", pods),
        ] {
            let seen = full.matches(what).count();
            ensure!(seen == count, "{chart}: \"{what}\" {seen} times, not {count}");
        }
    }
    // Kinds that this API server does not have: only that they come when they are asked for, and not before.
    for (part, chart, scc) in [("hub", "weft-hub", 0), ("cluster", "weft-member", 2)] {
        let values = format!(
            "{}/../charts/{chart}/ci/openshift-values.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        let asked = environment.slicectl(&hub.name, &["install", part, "--print", "--values", &values])?;
        let default = environment.slicectl(&hub.name, &["install", part, "--print"])?;
        for (kind, count) in [("SecurityContextConstraints", scc), ("PodMonitor", 1)] {
            let line = format!("\nkind: {kind}\n");
            ensure!(
                asked.matches(&line).count() == count,
                "{chart}: {kind} is not there {count} times"
            );
            ensure!(
                !default.contains(&line),
                "{chart}: {kind}, which nobody asked for"
            );
        }
    }
    let typo =
        environment.try_slicectl(&hub.name, &["install", "hub", "--print", "--set", "toleration=x"])?;
    let words = String::from_utf8_lossy(&typo.stderr).into_owned();
    ensure!(!typo.status.success() && words.contains("toleration"), "{words}");
    Ok(())
}
