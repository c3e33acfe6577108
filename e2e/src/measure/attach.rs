//! How long pods wait for their interface, beside pods that get none.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use slice_crds::labels;

use super::{Figures, SLICE, processes, watch::Watch};
use crate::harness::{Cluster, Environment, PodSpec, weft::attachment};
use crate::progress::Progress;

/// Pods per node that run before the label.
const RUNNING: usize = 25;
/// New pods, one after the other, in the slice and outside in turn.
const NEW: usize = 40;
/// Pods of a Deployment.
const DEPLOYED: usize = 60;
const DEPLOYED_ROUNDS: usize = 5;
const LIVE: &str = "weft-measure-live";
const INSIDE: &str = "weft-measure-in";
const OUTSIDE: &str = "weft-measure-out";
const START: Duration = Duration::from_secs(180);

fn attached(pod: &Pod) -> bool {
    attachment(pod, SLICE).is_some()
}

fn running(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    status.is_some_and(|status| status.phase.as_deref() == Some("Running"))
}

/// Pods that run get their interface by a label: all of a namespace at once, and one by one.
pub(super) async fn live(
    environment: &Environment,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    let started = try_join_all(
        environment
            .clusters
            .iter()
            .map(|cluster| crowd(environment, cluster)),
    )
    .await?;
    progress.done(format!("{} pods run", started.iter().sum::<usize>()));

    let (mut together, mut single) = (Vec::new(), Vec::new());
    let before = processes::all(environment.lab()?)?;
    for (cluster, count) in environment.clusters.iter().zip(&started) {
        let mut watch = Watch::open(cluster, LIVE).await?;
        let labelled = Instant::now();
        cluster.label_namespace(LIVE, labels::SLICE, Some(SLICE)).await?;
        together.extend(watch.until(labelled, *count, attached).await?);
        cluster.label_namespace(LIVE, labels::SLICE, None).await?;
        watch.until(Instant::now(), *count, |pod| !attached(pod)).await?;
    }
    let spent = processes::spent(&before, &processes::all(environment.lab()?)?);
    for (program, seconds) in spent {
        let each = seconds * 1e3 / together.len() as f64;
        figures.add(&program, "attach-detach", "cpu_ms", "ms", &[each]);
    }
    figures.add_times("weft", "attach-together", "ms", &together);
    progress.done("attached by the namespace's label, all at once");

    for cluster in &environment.clusters {
        let pods = cluster.pods(LIVE);
        for pod in pods.list(&ListParams::default()).await? {
            let name = pod.metadata.name.context("a pod without a name")?;
            let mut watch = Watch::open(cluster, LIVE).await?;
            let patch = Patch::Merge(json!({"metadata": {"labels": {labels::SLICE: SLICE}}}));
            let labelled = Instant::now();
            pods.patch(&name, &PatchParams::default(), &patch).await?;
            let this = |pod: &Pod| pod.metadata.name.as_ref() == Some(&name) && attached(pod);
            single.extend(watch.until(labelled, 1, this).await?);
        }
    }
    figures.add_times("weft", "attach-one", "ms", &single);
    progress.done("attached by each pod's own label, one by one");
    environment.remove_namespaces(LIVE).await?;
    for cluster in &environment.clusters {
        cluster.await_no_namespace(LIVE).await?;
    }
    Ok(())
}

async fn crowd(environment: &Environment, cluster: &Cluster) -> Result<usize> {
    cluster.fresh_namespace(LIVE, &[]).await?;
    let nodes = cluster.nodes().await?;
    let mut watch = Watch::open(cluster, LIVE).await?;
    for (number, node) in (0..RUNNING).flat_map(|number| nodes.iter().map(move |node| (number, node))) {
        let pod = quiet(&format!("on-{node}-{number}"), environment).node(node);
        cluster.create_pod(LIVE, &pod).await?;
    }
    let count = RUNNING * nodes.len();
    tokio::time::timeout(START, watch.until(Instant::now(), count, running))
        .await
        .with_context(|| format!("{count} pods of cluster {} do not run", cluster.name))??;
    Ok(count)
}

/// A pod without a readiness probe, which would add its period.
fn quiet(name: &str, environment: &Environment) -> PodSpec {
    PodSpec::new(name, &environment.image).command(&["/usr/bin/weft-probe", "serve"])
}

/// New pods: from creation to Running, which is with the interface for those in the slice.
pub(super) async fn new(environment: &Environment, figures: &mut Figures, progress: &Progress) -> Result<()> {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    let per_cluster = NEW / environment.clusters.len().max(1);
    for cluster in &environment.clusters {
        cluster.fresh_namespace(INSIDE, &[(labels::SLICE, SLICE)]).await?;
        cluster.fresh_namespace(OUTSIDE, &[]).await?;
        let (mut ins, mut outs) = (
            Watch::open(cluster, INSIDE).await?,
            Watch::open(cluster, OUTSIDE).await?,
        );
        let nodes = cluster.nodes().await?;
        for (number, node) in (0..per_cluster).zip(nodes.iter().cycle()) {
            let name = format!("new-{number}");
            let pod = quiet(&name, environment).node(node);
            outside.extend(one(cluster, OUTSIDE, &name, &pod, &mut outs, running).await?);
            let ready = |pod: &Pod| running(pod) && attached(pod);
            inside.extend(one(cluster, INSIDE, &name, &pod, &mut ins, ready).await?);
        }
    }
    for namespace in [INSIDE, OUTSIDE] {
        environment.remove_namespaces(namespace).await?;
    }
    figures.add_times("weft", "new-pod", "ms", &inside);
    figures.add_times("outside", "new-pod", "ms", &outside);
    progress.done(format!("{NEW} new pods in the slice, {NEW} outside, in turn"));
    Ok(())
}

/// All pods of a Deployment, from its creation until the last of them runs, in the slice and outside in turn. In the slice a
/// pod runs when it has its interface.
pub(super) async fn deployment(
    environment: &Environment,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    let cluster = environment.hub()?;
    cluster.fresh_namespace(INSIDE, &[(labels::SLICE, SLICE)]).await?;
    cluster.fresh_namespace(OUTSIDE, &[]).await?;
    let (mut inside, mut outside, mut ratios) = (vec![], vec![], vec![]);
    // The first round fills caches.
    for round in 0..=DEPLOYED_ROUNDS {
        let out = deployed(environment, cluster, OUTSIDE).await?;
        let within = deployed(environment, cluster, INSIDE).await?;
        if round > 0 {
            inside.push(within);
            outside.push(out);
            ratios.push(within / out);
        }
    }
    for namespace in [INSIDE, OUTSIDE] {
        environment.remove_namespaces(namespace).await?;
    }
    figures.add("weft", "deployment", "s", "s", &inside);
    figures.add("outside", "deployment", "s", "s", &outside);
    figures.add("weft", "deployment", "ratio", "", &ratios);
    progress.done(format!(
        "Deployments of {DEPLOYED} pods, {DEPLOYED_ROUNDS} in the slice and as many outside, in turn"
    ));
    Ok(())
}

/// Seconds until all pods of a Deployment run.
async fn deployed(environment: &Environment, cluster: &Cluster, namespace: &str) -> Result<f64> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let object = serde_json::from_value(json!({
        "metadata": {"name": "many"},
        "spec": {
            "replicas": DEPLOYED, "selector": {"matchLabels": {"app": "many"}},
            "template": {
                "metadata": {"labels": {"app": "many"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "main", "image": environment.image, "imagePullPolicy": "IfNotPresent",
                        "command": ["/usr/bin/weft-probe", "serve"],
                    }],
                },
            },
        },
    }))
    .context("a Deployment")?;
    let mut watch = Watch::open(cluster, namespace).await?;
    let created = Instant::now();
    deployments.create(&PostParams::default(), &object).await?;
    let all = tokio::time::timeout(START, watch.until(created, DEPLOYED, running))
        .await
        .with_context(|| format!("{DEPLOYED} pods in {namespace} do not run"))??;
    deployments.delete("many", &DeleteParams::background()).await?;
    watch.until_gone(DEPLOYED).await?;
    let last = all.into_iter().fold(0.0, f64::max);
    Ok(last / 1e3)
}

async fn one(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    pod: &PodSpec,
    watch: &mut Watch,
    holds: impl Fn(&Pod) -> bool,
) -> Result<Vec<f64>> {
    let created = Instant::now();
    cluster.create_pod(namespace, pod).await?;
    let took = watch.until(created, 1, holds).await?;
    let pods = cluster.pods(namespace);
    pods.delete(name, &DeleteParams::default().grace_period(0))
        .await?;
    watch.until_gone(1).await?;
    Ok(took)
}
