//! `weft-lab scale` and `weft-lab scale-member`: a real controller process on a real API server, with many of everything.
//!
//! ```text
//! fleet     who is there: pure, the same in every run
//! hub       the hub process; members are played            members  reports, heartbeats, obedience, watches
//! member    the member process; nodes are played           nodes    Nodes, Leases and statuses of their agents, pods
//! process   the process: processor time, memory, metrics
//! ```
//!
//! What is measured is the controller, and the API server that it writes to. Records go to `target/bench/`, tables to
//! docs/benchmarks.md.

mod fleet;
pub mod hub;
pub mod member;
mod members;
mod nodes;
mod process;

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::api::{
    apps::v1::Deployment,
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::Kubeconfig,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use slice_crds::names;
use tokio::task::JoinSet;

use super::{Figures, machine};
use crate::{
    harness::{Cluster, Environment, poll},
    progress::say,
};
use process::{Metrics, Process};

/// For how long is counted what is written without the process.
const BASELINE: Duration = Duration::from_secs(20);
const PORT: u16 = 19_400;
/// For how long nothing happens.
const IDLE: Duration = Duration::from_secs(60);
/// Starts with everything already so.
const STARTS: usize = 3;
/// After the process leads: whatever it would write, it has begun to.
const SETTLED: Duration = Duration::from_secs(10);
/// For everything to be set up.
const SET_UP: Duration = Duration::from_secs(1800);
const AT_ONCE: usize = 16;

/// What must not be exceeded: test, metric, most.
type Floors = [(&'static str, &'static str, f64)];

/// What is written without Weft: taken once it has stopped falling, because a cluster has something to do after an installation.
async fn baseline(client: &Client, others: impl Fn() -> u64) -> Result<f64> {
    let mut last = f64::INFINITY;
    loop {
        let rate = writes_per_second(client, BASELINE, &others).await?;
        if rate > last * 0.8 {
            return Ok(rate.min(last));
        }
        last = rate;
    }
}

/// Where the records and logs go; made where it is not there.
fn folder_of(out: &Path) -> Result<PathBuf> {
    let folder = out.parent().unwrap_or_else(|| Path::new(".")).to_owned();
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// A lab on which Weft was never installed.
async fn open() -> Result<Environment> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let hub = environment.hub()?;
    ensure!(
        Api::<Namespace>::all(hub.client.clone())
            .get_opt(names::HUB_NAMESPACE)
            .await?
            .is_none(),
        "Weft is installed on {}: `make bench-scale` starts with a lab of its own",
        hub.name
    );
    Ok(environment)
}

/// Takes the pods of Deployments away; what the chart has installed for them stays.
async fn take_off(cluster: &Cluster, namespace: &str, names: &[&str]) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    for name in names {
        let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
        deployments
            .patch(name, &PatchParams::default(), &none)
            .await
            .with_context(|| format!("take the pods of {name} away"))?;
    }
    Ok(())
}

async fn await_no_pods(cluster: &Cluster, namespace: &str) -> Result<()> {
    let what = format!("no pod in {namespace}");
    poll(Duration::from_secs(60), &what, async || {
        let pods = cluster.pods(namespace).list(&ListParams::default()).await?;
        Ok(pods.items.is_empty().then_some(()))
    })
    .await
}

/// Ends what is played, where nothing of it has failed.
async fn end(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.try_join_next() {
        ended
            .context("a part that is played")?
            .context("a part that is played")?;
    }
    tasks.shutdown().await;
    Ok(())
}

/// 32 bytes that nobody else has, and that each run has again.
fn played_key(of: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(of))
}

fn check(figures: &Figures, system: &str, floors: &Floors) -> Result<()> {
    let missed: Vec<String> = floors
        .iter()
        .filter_map(|(test, metric, most)| {
            let value = figures.median(system, test, metric);
            (value.is_none_or(|value| value > *most))
                .then(|| format!("{test} {metric} is {value:?}, and may be {most}"))
        })
        .collect();
    ensure!(missed.is_empty(), "{}", missed.join("; "));
    Ok(())
}

/// A kubeconfig of the process's own account: its permissions and its share of the API server are those that it really has.
async fn write_kubeconfig(
    environment: &Environment,
    cluster: &Cluster,
    (namespace, account): (&str, &str),
    path: &Path,
) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(6 * 3600),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("ask for a token of account {account}"))?;
    let token = answer.status.context("a token")?.token;
    let all = Kubeconfig::read_from(&environment.kubeconfig).context("read the lab's kubeconfig")?;
    let context = all
        .contexts
        .iter()
        .find(|one| one.name == cluster.name)
        .and_then(|one| one.context.as_ref())
        .with_context(|| format!("context {}", cluster.name))?;
    let server = all
        .clusters
        .iter()
        .find(|one| one.name == context.cluster)
        .with_context(|| format!("cluster {}", context.cluster))?;
    let own = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "own",
        "clusters": [{"name": "own", "cluster": server.cluster}],
        "users": [{"name": "own", "user": {"token": token}}],
        "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
    });
    std::fs::write(path, own.to_string()).with_context(|| format!("write {}", path.display()))
}

/// Until nothing is to be written any more.
async fn await_rest(process: &Process) -> Result<()> {
    let mut before = -1.0;
    poll(SET_UP, "the process rests", async || {
        let metrics = process.metrics().await?;
        let writes = metrics.writes();
        let rests = metrics.queued() == 0.0 && writes == before;
        before = writes;
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(rests.then_some(()))
    })
    .await
}

/// A process while nothing happens: what it writes, what is written in all beyond what others write, what it takes. The
/// others are a rate, and a count that grows.
async fn idle(
    client: &Client,
    process: &Process,
    system: &str,
    (others, count): (f64, &impl Fn() -> u64),
    figures: &mut Figures,
) -> Result<()> {
    let before = (process.metrics().await?.writes(), process.usage()?.0);
    let memory = async {
        let mut all = Vec::new();
        for _ in 0..IDLE.as_secs() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            all.push(process.usage()?.1);
        }
        anyhow::Ok(all)
    };
    let (rate, memory) = tokio::try_join!(writes_per_second(client, IDLE, count), memory)?;
    let seconds = IDLE.as_secs_f64();
    let own = process.metrics().await?.writes() - before.0;
    let cpu = process.usage()?.0 - before.1;
    figures.add(system, "idle", "writes_per_s", "1/s", &[(rate - others).max(0.0)]);
    figures.add(system, "idle", "own_writes_per_s", "1/s", &[own / seconds]);
    figures.add(system, "idle", "cpu_pct", "%", &[cpu / seconds * 100.0]);
    figures.add(system, "idle", "rss_mib", "MiB", &memory);
    Ok(())
}

/// Stops the process and starts another, with everything already as it should be.
async fn starts(
    mut process: Process,
    start: impl Fn(usize) -> Result<Process>,
    system: &str,
    figures: &mut Figures,
) -> Result<Process> {
    let (mut ready, mut writes, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=STARTS {
        process.stop().await?;
        process = start(number)?;
        poll(Duration::from_secs(120), "the process leads", async || {
            let metrics = process.metrics().await?;
            Ok((metrics.leads() && metrics.queued() == 0.0).then_some(()))
        })
        .await?;
        ready.push(process.started.elapsed().as_secs_f64());
        tokio::time::sleep(SETTLED).await;
        let metrics = process.metrics().await?;
        let own = metrics.writes();
        if own > 0.0 {
            say(format!(
                "written after a start: {}",
                metrics.lines("weft_operator_writes_total")
            ));
        }
        writes.push(own);
        memory.push(process.usage()?.1);
    }
    figures.add(system, "start", "ready_s", "s", &ready);
    figures.add(system, "start", "writes", "", &writes);
    figures.add(system, "start", "rss_mib", "MiB", &memory);
    Ok(process)
}

/// Requests that changed something, as the API server counts them, but for those that `others` counts.
async fn writes_per_second(client: &Client, lasts: Duration, others: impl Fn() -> u64) -> Result<f64> {
    let count = async || -> Result<f64> {
        let request = http::Request::get("/metrics")
            .body(Vec::new())
            .context("a request")?;
        let text = client
            .request_text(request)
            .await
            .context("read the API server's metrics")?;
        let metrics = Metrics(text);
        let verbs = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];
        let counted = verbs.map(|verb| metrics.sum("apiserver_request_total", &format!("verb=\"{verb}\"")));
        Ok(counted.into_iter().sum::<f64>() - others() as f64)
    };
    let (before, begun) = (count().await?, Instant::now());
    tokio::time::sleep(lasts).await;
    Ok((count().await? - before) / begun.elapsed().as_secs_f64())
}

fn page(intro: &str, figures: &Figures, floors: &Floors) -> String {
    let mut page = format!(
        "{intro}; {}.\n\n\
         | test | metric | median | largest that is allowed |\n|---|---|---|---|\n",
        machine::line()
    );
    for row in figures.rows() {
        let floor = floors
            .iter()
            .find(|one| (one.0, one.1) == (&*row.test, &*row.metric));
        let floor = floor.map(|one| one.2.to_string()).unwrap_or_default();
        let _ = writeln!(
            page,
            "| {} | {} | {} {} | {floor} |",
            row.test, row.metric, row.median, row.unit
        );
    }
    page
}
