//! A member: the real process in a cluster of many nodes and slices; the nodes are played, the hub is real.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use slice_crds::names;
use tokio::task::JoinSet;

use super::{
    PORT, SET_UP, await_no_pods, await_rest, baseline, check, end, folder_of, idle, nodes::Nodes, open, page,
    process::Process, starts, take_off, write_kubeconfig,
};
use crate::{
    harness::{Cluster, Environment, poll, weft::PROJECT},
    measure::{Figures, docs},
    progress::{Progress, say},
};

const SYSTEM: &str = "weft-cluster";
const FLOORS: [(&str, &str, f64); 2] = [("idle", "writes_per_s", 5.0), ("start", "writes", 0.0)];

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Nodes, beside those of the lab.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    #[arg(long, default_value_t = 50)]
    slices: usize,
    #[arg(long, default_value = "target/bench/scale-member.json")]
    out: PathBuf,
    /// Write the table of docs/benchmarks.md as well.
    #[arg(long)]
    docs: bool,
}

/// Measures, prints, writes the records.
///
/// # Errors
/// Where a step fails, or a figure exceeds what it must not.
pub async fn run(options: &Options) -> Result<()> {
    let progress = Progress::start();
    let environment = open().await?;
    let cluster = environment.hub()?;
    let folder = folder_of(&options.out)?;
    for what in ["hub", "cluster"] {
        environment.slicectl(&cluster.name, &["install", what, "--set", "image.tag=dev"])?;
    }
    stop_member(cluster).await?;
    let kubeconfig = folder.join("scale-member.kubeconfig");
    let account = (names::MEMBER_NAMESPACE, "weft-operator");
    write_kubeconfig(&environment, cluster, account, &kubeconfig).await?;
    let nodes = Nodes::make(cluster.client.clone(), options.nodes).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&nodes).kubelets());
    progress.done(format!("{} nodes", nodes.count()));
    let kubelets = || nodes.renewed.load(Ordering::Relaxed);
    let baseline = baseline(&cluster.client, kubelets).await?;
    tasks.spawn(Arc::clone(&nodes).agents());
    let start = |number: usize| {
        let arguments = [
            "cluster",
            "--pod-name",
            "scale",
            "--namespace",
            names::MEMBER_NAMESPACE,
            "--gateway-image",
            "localhost/weft/gateway:dev",
        ];
        let log = folder.join(format!("scale-member-{number}.log"));
        Process::start(&arguments, PORT, &kubeconfig, &log)
    };
    let process = start(0)?;
    join(&environment, cluster)?;
    tasks.spawn(Arc::clone(&nodes).act());
    for number in 0..options.slices {
        let spec = json!({
            "subnets": [format!("10.{}.0.0/16", 100 + number)], "clusters": [cluster.name], "gateway": {"replicas": 2},
        });
        let object = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig", "spec": spec,
            "metadata": {"name": format!("s{number:03}"), "namespace": PROJECT},
        });
        cluster.apply(&object.to_string()).await?;
    }
    let blocks = nodes.count() * options.slices;
    let mut shown = Instant::now();
    poll(SET_UP, "a block of every slice on every node", async || {
        let reported = nodes.reported.load(Ordering::Relaxed);
        if shown.elapsed() > Duration::from_secs(20) {
            shown = Instant::now();
            progress.done(format!("{reported} of {blocks} blocks"));
        }
        Ok((reported >= blocks).then_some(()))
    })
    .await?;
    await_rest(&process).await?;
    progress.done("everything is written");
    let mut figures = Figures::default();
    idle(
        &cluster.client,
        &process,
        SYSTEM,
        (baseline, &kubelets),
        &mut figures,
    )
    .await?;
    progress.done("idle is measured");
    let process = starts(process, start, SYSTEM, &mut figures).await?;
    progress.done("starts are measured");
    end(tasks).await?;
    process.stop().await?;
    say(figures.table());
    figures.write(&options.out)?;
    if options.docs {
        let intro = format!(
            "{} nodes, {} slices, two gateways in each",
            nodes.count(),
            options.slices
        );
        docs::replace("benchmarks.md", "scale-member", &page(&intro, &figures, &FLOORS))?;
    }
    progress.done(format!("written to {}", options.out.display()));
    check(&figures, SYSTEM, &FLOORS)
}

/// Takes the member's own pods away; what the chart has installed for them stays.
async fn stop_member(cluster: &Cluster) -> Result<()> {
    take_off(cluster, names::MEMBER_NAMESPACE, &["weft-operator", "weft-dns"]).await?;
    let sets: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), names::MEMBER_NAMESPACE);
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"weft.dev/played": "never"}}}}});
    sets.patch("weft-netop", &PatchParams::default(), &Patch::Merge(nowhere))
        .await
        .context("take the node agents away")?;
    await_no_pods(cluster, names::MEMBER_NAMESPACE).await
}

fn join(environment: &Environment, cluster: &Cluster) -> Result<()> {
    let token = environment.slicectl(&cluster.name, &["token", "issue", &cluster.name])?;
    environment
        .slicectl(&cluster.name, &["join", "--token", token.trim(), "--no-install"])
        .map(drop)
}
