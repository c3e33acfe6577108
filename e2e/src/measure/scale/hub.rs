//! The hub: the real process, members played.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{TryStreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use slice_crds::{conditions, names, schema, v1alpha1::SliceConfig};
use tokio::task::JoinSet;

use super::{
    AT_ONCE, PORT, SET_UP, await_no_pods, await_rest, baseline, check, end,
    fleet::{self, Fleet, Size},
    folder_of, idle,
    members::Members,
    open, page,
    process::Process,
    starts, take_off, write_kubeconfig,
};
use crate::{
    harness::{Cluster, poll, weft::PROJECT},
    measure::{Figures, docs},
    progress::{Progress, say},
};

const SYSTEM: &str = "weft-hub";
/// For how long gateways change their keys, and how many in a second.
const CHANGING: Duration = Duration::from_secs(30);
const CHANGES: u32 = 20;
/// How often is shown how far the set-up is.
const SHOWN: Duration = Duration::from_secs(20);

const FLOORS: [(&str, &str, f64); 7] = [
    ("idle", "writes_per_s", 20.0),
    ("idle", "cpu_pct", 15.0),
    ("idle", "rss_mib", 256.0),
    ("start", "ready_s", 15.0),
    ("start", "writes", 0.0),
    ("change", "told_ms_p99", 1000.0),
    ("change", "max_object_kib", 256.0),
];

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    size: Size,
    #[arg(long, default_value = "target/bench/scale.json")]
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
    let hub = environment.hub()?;
    let folder = folder_of(&options.out)?;
    environment.slicectl(
        &hub.name,
        &["install", "hub", "--set", "replicas=1", "--set", "image.tag=dev"],
    )?;
    take_off(hub, names::HUB_NAMESPACE, &["weft-hub"]).await?;
    await_no_pods(hub, names::HUB_NAMESPACE).await?;
    let kubeconfig = folder.join("scale-hub.kubeconfig");
    let account = (names::HUB_NAMESPACE, "weft-hub");
    write_kubeconfig(&environment, hub, account, &kubeconfig).await?;
    let start = |number: usize| {
        let arguments = ["hub", "--pod-name", "scale", "--namespace", names::HUB_NAMESPACE];
        let log = folder.join(format!("scale-hub-{number}.log"));
        Process::start(&arguments, PORT, &kubeconfig, &log)
    };
    let mut figures = Figures::default();
    let baseline = baseline(&hub.client, || 0).await?;
    progress.done("the hub is installed, without a process of its own");

    let process = start(0)?;
    let members = Members::new(hub.client.clone(), Fleet::new(options.size));
    let mut tasks = JoinSet::new();
    set_up(hub, &members, &mut tasks, &process, &progress).await?;

    let heartbeats = || members.heartbeats.load(Ordering::Relaxed) as f64;
    let (before, begun) = (heartbeats(), Instant::now());
    idle(&hub.client, &process, SYSTEM, (baseline, &|| 0), &mut figures).await?;
    let rate = (heartbeats() - before) / begun.elapsed().as_secs_f64();
    figures.add(SYSTEM, "idle", "heartbeats_per_s", "1/s", &[rate]);
    progress.done("idle is measured");
    let process = starts(process, start, SYSTEM, &mut figures).await?;
    progress.done("starts are measured");
    change(&members, &process, &mut figures).await?;
    let largest = largest(&hub.client).await?;
    figures.add(SYSTEM, "change", "max_object_kib", "KiB", &[largest.0]);
    progress.done(format!(
        "changes are measured; the largest object is {}",
        largest.1
    ));
    end(tasks).await?;
    say(format!(
        "{} watches of the fleet were broken and begun anew",
        members.broken.load(Ordering::Relaxed)
    ));
    process.stop().await?;
    say(figures.table());
    figures.write(&options.out)?;
    if options.docs {
        let Size {
            clusters,
            slices,
            services,
        } = options.size;
        let intro = format!(
            "{clusters} clusters, {slices} slices (one over all clusters, the others over 2 to 20), {services} services, two \
             gateways in each"
        );
        docs::replace("benchmarks.md", "scale", &page(&intro, &figures, &FLOORS))?;
    }
    progress.done(format!("written to {}", options.out.display()));
    check(&figures, SYSTEM, &FLOORS)
}

async fn set_up(
    hub: &Cluster,
    members: &Arc<Members>,
    tasks: &mut JoinSet<Result<()>>,
    process: &Process,
    progress: &Progress,
) -> Result<()> {
    let fleet = members.fleet();
    let apply = async |kind: &str, name: &str, spec: Value| -> Result<()> {
        let resource = ApiResource::from_gvk_with_plural(
            &kube::core::GroupVersionKind::gvk("weft.dev", "v1alpha1", kind),
            &format!("{}s", kind.to_lowercase()),
        );
        let api: Api<DynamicObject> = Api::namespaced_with(hub.client.clone(), PROJECT, &resource);
        let object = json!({"apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        api.patch(name, &PatchParams::apply("scale").force(), &Patch::Apply(object))
            .await
            .map(drop)
            .with_context(|| format!("apply {kind} {name}"))
    };
    stream::iter(fleet.clusters.iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, async |name: &String| {
            apply("Cluster", name, json!({})).await
        })
        .await?;
    let namespaces: Api<Namespace> = Api::all(hub.client.clone());
    poll(SET_UP, "a namespace for every cluster", async || {
        let all = namespaces.list_metadata(&ListParams::default()).await?;
        let own = all
            .iter()
            .filter(|one| names::member_of(&one.name_any()).is_some());
        Ok((own.count() == fleet.clusters.len()).then_some(()))
    })
    .await?;
    members.join().await?;
    tasks.spawn(Arc::clone(members).beat());
    tasks.spawn(Arc::clone(members).obey());
    progress.done(format!("{} clusters report", fleet.clusters.len()));
    stream::iter(fleet.slices.iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, async |slice: &fleet::PlayedSlice| {
            let clusters: Vec<&String> = slice.members.iter().map(|one| &fleet.clusters[*one]).collect();
            let spec = json!({"subnets": [slice.subnet], "clusters": clusters, "gateway": {"replicas": fleet::GATEWAYS}});
            apply("SliceConfig", &slice.name, spec).await
        })
        .await?;
    let places: usize = fleet.slices.iter().map(|slice| slice.members.len()).sum();
    await_ready(hub, members, progress, places).await?;
    members.export().await?;
    progress.done(format!("{} services are exported", fleet.services.len()));
    await_rest(process).await?;
    progress.done("the hub has written everything");
    Ok(())
}

/// Follows every slice until all are Ready; a list now and then would keep the API server busy that is measured.
async fn await_ready(hub: &Cluster, members: &Members, progress: &Progress, places: usize) -> Result<()> {
    let configs: Api<SliceConfig> = Api::namespaced(hub.client.clone(), PROJECT);
    let all = members.fleet().slices.len();
    let mut ready = HashSet::new();
    let mut seen = std::pin::pin!(watcher(configs, watcher::Config::default()).touched_objects());
    let mut shown = Instant::now();
    let until_all = async {
        while ready.len() < all {
            let slice = seen.try_next().await.context("watch the slices")?;
            let slice = slice.context("the watch of the slices has ended")?;
            match conditions::is_true(conditions::of(&slice), conditions::READY) {
                true => ready.insert(slice.name_any()),
                false => ready.remove(&slice.name_any()),
            };
            if shown.elapsed() > SHOWN {
                shown = Instant::now();
                let (ready, served) = (ready.len(), members.served());
                progress.done(format!(
                    "{ready} of {all} slices Ready, {served} of {places} served"
                ));
            }
        }
        anyhow::Ok(())
    };
    let in_time = tokio::time::timeout(SET_UP, until_all).await;
    in_time.with_context(|| format!("not every slice is Ready after {SET_UP:?}"))??;
    progress.done("every slice is Ready");
    Ok(())
}

/// Gateways change their keys; each counts as told when every cluster of the slice has been served it.
async fn change(members: &Arc<Members>, process: &Process, figures: &mut Figures) -> Result<()> {
    let before = (process.metrics().await?.writes(), process.usage()?.0);
    let mut clock = tokio::time::interval(Duration::from_secs(1) / CHANGES);
    let mut changes = JoinSet::new();
    let begun = Instant::now();
    let mut memory = Vec::new();
    for position in members.fleet().scattered() {
        if begun.elapsed() > CHANGING {
            break;
        }
        clock.tick().await;
        let members = Arc::clone(members);
        changes.spawn(async move { members.change_key(position).await });
        memory.push(process.usage()?.1);
    }
    let count = changes.len();
    while let Some(change) = changes.join_next().await {
        change.context("a change")??;
    }
    poll(
        Duration::from_secs(60),
        "every change with everybody",
        async || Ok((members.awaited() == 0).then_some(())),
    )
    .await?;
    let seconds = begun.elapsed().as_secs_f64();
    let times = members.propagated();
    ensure!(
        times.len() == count,
        "{} of {count} changes came to everybody",
        times.len()
    );
    let own = process.metrics().await?.writes() - before.0;
    let cpu = process.usage()?.0 - before.1;
    figures.add(SYSTEM, "change", "told_ms", "ms", &times);
    figures.add_quantile(SYSTEM, "change", "told_ms_p99", "ms", &times, 0.99);
    figures.add(SYSTEM, "change", "hub_writes_per_s", "1/s", &[own / seconds]);
    figures.add(SYSTEM, "change", "cpu_pct", "%", &[cpu / seconds * 100.0]);
    figures.add(SYSTEM, "change", "rss_mib", "MiB", &memory);
    Ok(())
}

/// Kibibytes and name of the largest object of Weft, as JSON.
async fn largest(client: &Client) -> Result<(f64, String)> {
    let mut largest = (0.0, String::new());
    for crd in schema::hub() {
        let names = &crd.spec.names;
        let gvk = kube::core::GroupVersionKind::gvk("weft.dev", "v1alpha1", &names.kind);
        let api: Api<DynamicObject> = Api::all_with(
            client.clone(),
            &ApiResource::from_gvk_with_plural(&gvk, &names.plural),
        );
        let mut params = ListParams::default().limit(500);
        loop {
            let page = api
                .list(&params)
                .await
                .with_context(|| format!("list {}", names.plural))?;
            for mut object in page.items {
                object.metadata.managed_fields = None;
                let size = serde_json::to_string(&object).context("encode an object")?.len() as f64 / 1024.0;
                if size > largest.0 {
                    largest = (size, format!("{} {}", names.kind, object.name_any()));
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
    }
    Ok(largest)
}
