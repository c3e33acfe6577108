//! `weft-lab up`: from nothing to clusters whose nodes are Ready and whose
//! names resolve.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeSpec, Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};

use super::cgroup::Layout;
use super::cluster_dns;
use super::config::{self, Site};
use super::dir::{LabDir, Record, write_json};
use super::images;
use super::machine;
use super::network;
use super::options::Options;
use super::pki;
use super::plan::{Cluster, Machine, Plan};
use super::preflight;
use super::programs::Cache;
use super::remove::{self, Remains};
use super::sysctl;
use super::wire;
use crate::harness;
use crate::progress::{Progress, say};

/// More than enough on two busy cores; beyond it something is broken.
const DEADLINE: Duration = Duration::from_secs(120);

/// Starts the lab of `plan`, or finds it running already.
pub fn up(dir: &LabDir, plan: &Plan, options: &Options) -> Result<()> {
    let progress = Progress::start();
    preflight::root()?;
    preflight::packages()?;
    let cache = Cache::open()?;
    if !cache.is_built() || !cache.containerd().join("contents").exists() {
        bail!("Kubernetes is not built yet: run `weft-lab setup` (about 12 minutes once, on two cores)");
    }
    let groups = Layout::detect()?;
    match remove::look(dir, &groups)? {
        Remains::None => {}
        Remains::Running => return already(dir, plan, options),
        Remains::Some => {
            say("removing the remains of an earlier lab");
            remove::all(dir)?;
        }
    }
    build(dir, plan, options, &cache, &groups)?;
    if options.delay.is_some() {
        groups.create(wire::GROUP)?;
        let mut far = plan.clusters().iter().skip(1);
        far.try_for_each(|cluster| wire::start(dir, cluster))?;
    }
    progress.done("networks, certificates and files");
    for cluster in plan.clusters() {
        machine::start(dir, &groups, options, cluster, &cluster.control_plane)?;
    }
    for cluster in plan.clusters() {
        for node in &cluster.nodes {
            machine::start(dir, &groups, options, cluster, node)?;
        }
    }
    progress.done("machines started");
    runtime()?.block_on(async {
        try_join_all(
            plan.clusters()
                .iter()
                .map(async |cluster| bring_up(dir, options, cluster, None, &progress).await),
        )
        .await
    })?;
    progress.done(format!(
        "up: kubeconfig {} with contexts {plan}",
        dir.kubeconfig().display()
    ));
    Ok(())
}

/// A tokio runtime for the parts that talk to API servers.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")
}

fn already(dir: &LabDir, plan: &Plan, options: &Options) -> Result<()> {
    let record = dir.expect_record()?;
    let running = record.plan;
    if running == *plan && record.options != *options {
        bail!("a lab with other options is up: run `weft-lab down` first");
    }
    if running == *plan {
        say(format!("already up: {running}"));
        return Ok(());
    }
    bail!("a lab with clusters {running} is up, {plan} is wanted: run `weft-lab down` first");
}

fn build(dir: &LabDir, plan: &Plan, options: &Options, cache: &Cache, groups: &Layout) -> Result<()> {
    fs::create_dir_all(dir.root()).with_context(|| format!("create {}", dir.root().display()))?;
    // First of all, so that an `up` that dies at any later point is cleaned by the next one.
    write_json(
        &dir.record(),
        &Record {
            plan: plan.clone(),
            options: options.clone(),
            programs: cache.bin(),
        },
    )?;
    sysctl::save(&dir.sysctl())?;
    // Its own copy: a rebuild must not pull the program out from under running machines.
    let program = std::env::current_exe().context("find this program")?;
    fs::copy(&program, dir.program()).with_context(|| format!("copy {}", program.display()))?;
    network::build_switch(options, plan)?;
    let site = Site {
        dir,
        programs: &cache.bin(),
        options,
    };
    for cluster in plan.clusters() {
        pki::write(cluster, options.family, &dir.pki(&cluster.name))?;
        for machine in cluster.machines() {
            config::write(&site, cluster, machine)?;
        }
        for node in &cluster.nodes {
            images::install(&cache.containerd(), &dir.machine(&node.name).state("containerd"))?;
        }
    }
    let all: Vec<_> = plan
        .clusters()
        .iter()
        .map(|cluster| (cluster, dir.pki(&cluster.name)))
        .collect();
    let kubeconfig = pki::kubeconfig(all.iter().map(|(cluster, pki)| (*cluster, pki.as_path())))?;
    write_json(&dir.kubeconfig(), &kubeconfig)?;
    groups.processes(); // reads every group once: an unreadable hierarchy shows here, not half-way
    Ok(())
}

/// What a cluster's records say from before it was stopped, and what is known better.
pub struct Restart<'a> {
    /// Machines that were started just now.
    pub booted: &'a [&'a str],
    /// Before the first of them was.
    pub since: Timestamp,
}

/// Waits for one cluster's API server, nodes and CoreDNS; a new cluster gets its Node objects and CoreDNS first.
pub async fn bring_up(
    dir: &LabDir,
    options: &Options,
    cluster: &Cluster,
    restart: Option<&Restart<'_>>,
    progress: &Progress,
) -> Result<()> {
    let (booted, since) = restart.map_or((&[][..], Timestamp::MIN), |restart| {
        (restart.booted, restart.since)
    });
    let name = &cluster.name;
    let api = harness::connect(&dir.kubeconfig(), name).await?;
    api.await_api(DEADLINE)
        .await
        .with_context(|| hint(dir, &cluster.control_plane.name))?;
    progress.done(format!("{name}: API server ready"));
    if restart.is_none() {
        declare_nodes(&api, options, cluster).await?;
        api.apply(&cluster_dns::manifests(options)).await?;
    }
    let leases: Api<Lease> = Api::namespaced(api.client.clone(), "kube-node-lease");
    for node in cluster
        .nodes
        .iter()
        .filter(|node| booted.contains(&node.name.as_str()))
    {
        // The record of a node that was stopped still says Ready: first a sign of life. Leases have microseconds.
        let what = format!("node {} alive", node.name);
        let fresh = |lease: &Lease| {
            let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
            renewed.is_some_and(|at| at.0 > since)
        };
        api.await_object(&leases, &node.name, &what, DEADLINE, fresh)
            .await
            .with_context(|| hint(dir, &node.name))?;
    }
    for node in &cluster.nodes {
        let nodes: Api<Node> = Api::all(api.client.clone());
        let what = format!("node {} Ready", node.name);
        api.await_object(&nodes, &node.name, &what, DEADLINE, is_ready)
            .await
            .with_context(|| hint(dir, &node.name))?;
    }
    progress.done(format!("{name}: nodes Ready"));
    let accounts: Api<ServiceAccount> = Api::namespaced(api.client.clone(), "default");
    api.await_object(&accounts, "default", "service account default", DEADLINE, |_| {
        true
    })
    .await?;
    let pods: Api<Pod> = Api::namespaced(api.client.clone(), "kube-system");
    let selected = ListParams::default().labels("k8s-app=kube-dns");
    harness::poll(DEADLINE, &format!("cluster {name}: CoreDNS Ready"), async || {
        let pods = pods.list(&selected).await.context("list CoreDNS' pods")?;
        let answers = |pod: &Pod| {
            let node = pod
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.as_deref())
                .unwrap_or_default();
            harness::is_ready(pod) && (!booted.contains(&node) || started_after(pod, since))
        };
        Ok(pods.iter().any(answers).then_some(()))
    })
    .await?;
    progress.done(format!("{name}: CoreDNS ready"));
    Ok(())
}

/// Node n of every cluster has the same pod range. A kubelet may have registered its node already: applying covers both.
async fn declare_nodes(api: &harness::Cluster, options: &Options, cluster: &Cluster) -> Result<()> {
    let nodes: Api<Node> = Api::all(api.client.clone());
    for machine in &cluster.nodes {
        let ranges = machine.pod_ranges(options.family);
        let ranges: Vec<String> = ranges.into_iter().map(|(range, _)| range).collect();
        let node = Node {
            metadata: ObjectMeta {
                name: Some(machine.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                pod_cidr: ranges.first().cloned(),
                pod_cidrs: Some(ranges),
                taints: options.taint.clone().map(|taint| vec![taint]),
                ..NodeSpec::default()
            }),
            ..Node::default()
        };
        let params = PatchParams::apply("weft-lab").force();
        let applied = nodes.patch(&machine.name, &params, &Patch::Apply(&node)).await;
        applied.with_context(|| format!("declare node {}", machine.name))?;
    }
    Ok(())
}

/// Removes what the cluster knows of a node, starts its machine and waits until its kubelet has registered it anew.
pub async fn renew_node(
    dir: &LabDir,
    options: &Options,
    cluster: &Cluster,
    machine: &Machine,
    start: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let api = harness::connect(&dir.kubeconfig(), &cluster.name).await?;
    let nodes: Api<Node> = Api::all(api.client.clone());
    let name = &machine.name;
    let deleted = nodes.delete(name, &DeleteParams::default()).await;
    harness::forgive_absence(deleted).with_context(|| format!("delete node {name}"))?;
    start()?;
    let what = format!("node {name} registered");
    api.await_object(&nodes, name, &what, DEADLINE, |_| true)
        .await
        .with_context(|| hint(dir, name))?;
    declare_nodes(&api, options, cluster).await
}

/// Kubernetes writes whole seconds.
fn started_after(pod: &Pod, since: Timestamp) -> bool {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let started = statuses
        .into_iter()
        .flatten()
        .filter_map(|status| status.state.as_ref()?.running.as_ref()?.started_at.as_ref());
    started
        .into_iter()
        .any(|at| at.0.as_second() >= since.as_second())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

fn hint(dir: &LabDir, machine: &str) -> String {
    let folder = dir.machine(machine).log("x");
    let folder = folder.parent().unwrap_or_else(|| Path::new("/"));
    format!("see the logs in {}", folder.display())
}
