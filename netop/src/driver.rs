//! Wires the agent to the world: clocks, watches, sockets, files. What it decides is [`crate::agent`]'s.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, Client, ResourceExt};
use slice_crds::names::UNPRIVILEGED_UID;
use slice_runtime::{admin, store::Watches};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{Agent, Chain, Event, Fetch, Fetched, Setup},
    args::Args,
    chain,
    cni::{
        host::HostRoot,
        install::{Installer, PLUGIN},
        server,
    },
    files::Directories,
    gateways::Server,
    heartbeat,
    kernel::Linux,
    liveness, mesh,
    metrics::Metrics,
    names,
    pods::NetnsDirectory,
    report, sandboxes, show,
    status::Reports,
    watch as objects,
    world::PodView,
};

/// How often everything is looked at.
const TICK: Duration = Duration::from_secs(5);
/// How often it is looked at because something changed: at most once in this time.
const LOOK: Duration = Duration::from_secs(1);
/// How soon after a change: changes come in runs.
const QUIET: Duration = Duration::from_millis(200);
/// How often those that wait are looked after.
const WAKE: Duration = Duration::from_millis(250);
/// How often what the shaper carries is read, while it has anything to do.
const MEASURE: Duration = Duration::from_millis(500);
/// How long a loop may take for one turn before the process counts as dead: everything is looked at every 5 s, and a plan
/// for a thousand nodes takes some seconds.
const STALLED: Duration = Duration::from_secs(60);
/// Questions, announcements and the like that may wait for the agent.
const BACKLOG: usize = 256;
/// How long the API server may take to answer about one pod.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The kubelet writes into it what it writes into every pod's (`dnsPolicy: ClusterFirstWithHostNet`).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Runs the agent until `stop`.
///
/// # Errors
/// Where something cannot be set up at all.
pub async fn run(args: Args, client: Client, stop: CancellationToken) -> anyhow::Result<()> {
    let registry = admin::registry("netop");
    let metrics = Metrics::register(&registry);
    let watches = Watches::new(stop.clone());
    watches.undecodable().register(&registry, "netop");
    let readiness = admin::Readiness::default();
    let mut first = Some(readiness.wait_for("first settlement"));
    let pulse = readiness.pulse("agent loop", STALLED);
    let cni_pulse = readiness.pulse("CNI socket", STALLED);
    let admin = tokio::spawn(admin::serve(args.admin, registry, readiness, stop.clone()));

    allow_descriptors();
    let directories = Directories {
        run: args.run_dir.clone(),
        state: args.state_dir.clone(),
    };
    let mut kernel = Linux::open(None)?;
    let mut kernel_changes = kernel.watch()?;
    let mut world = objects::start(&client, &args.node, &watches, &stop);
    let mut kept = sandboxes::follow(
        args.cni_results_dir.clone(),
        args.netns_dir.clone(),
        None,
        stop.clone(),
    );

    let mut tasks = JoinSet::new();
    let (chain_state, chain_seen) = watch::channel(Chain::default());
    let keeper = chain::keep(
        installer(&args, &directories)?,
        world.clone(),
        chain_state,
        metrics.cni_undone.clone(),
        stop.clone(),
    );
    tasks.spawn(keeper.map(|outcome| ("the CNI chain", outcome)));
    let (calls, mut called) = mpsc::channel(BACKLOG);
    let socket = directories.cni_socket();
    tasks.spawn({
        let stop = stop.clone();
        async move {
            (
                "the CNI socket",
                server::serve(&socket, calls, cni_pulse, stop).await,
            )
        }
    });
    let (shown, seen) = watch::channel(Arc::default());
    tasks.spawn({
        let (socket, stop) = (directories.show_socket(), stop.clone());
        async move {
            (
                "the socket that shows the state",
                show::serve(&socket, seen, stop).await,
            )
        }
    });
    let (gateway_events, mut gateways) = mpsc::channel(BACKLOG);
    let (fetches, wanted) = mpsc::channel(BACKLOG);
    let mut fetched = fetch(client.clone(), wanted);
    let (announcements, announced) = mpsc::channel(BACKLOG);
    let (reports, reported) = watch::channel(Reports::default());
    let (turns, turned) = watch::channel(Instant::now());
    let pace = heartbeat::Pace::default();
    let heartbeat = heartbeat::run(client.clone(), args.node.clone(), turned, pace, stop.clone());
    tasks.spawn(heartbeat.map(|()| ("the heartbeat", Ok(()))));
    let writer = report::run(
        client,
        args.node.clone(),
        metrics.clone(),
        reported,
        announced,
        stop.clone(),
    );
    tasks.spawn(writer.map(|()| ("the writer of statuses", Ok(()))));

    let (liveness, local) = watch::channel(liveness::Local::default());
    let (view, mut observed) = watch::channel(liveness::View::default());
    let prober = liveness::task::run(local, view, stop.clone());
    tasks.spawn(prober.map(|()| ("the prober of gateways", Ok(()))));

    let (mesh, local) = watch::channel(mesh::Local::default());
    let (mesh_view, mut probed) = watch::channel(mesh::View::default());
    if let Some(prober) = kernel.prober()? {
        let work = mesh::task::run(
            prober,
            mesh::Pace::default(),
            metrics.clone(),
            local,
            mesh_view,
            stop.clone(),
        );
        tasks.spawn(work.map(|()| ("the prober of nodes", Ok(()))));
    }

    let (names, local) = watch::channel(names::Local::default());
    let (names_view, mut resolved) = watch::channel(names::View::default());
    let asking = names::task::run(
        RESOLV_CONF.into(),
        names::Pace::default(),
        metrics.clone(),
        local,
        names_view,
        stop.clone(),
    );
    tasks.spawn(asking.map(|()| ("the questions for names", Ok(()))));

    let mut chain_changes = chain_seen.clone();
    let features = kernel.features().await;
    let mut agent = Agent::new(
        kernel,
        Setup {
            node: args.node,
            node_address: args.node_address,
            server: Server::new(directories.clone(), UNPRIVILEGED_UID, gateway_events),
            directories: directories.clone(),
            netns: NetnsDirectory(args.netns_dir),
            features,
            metrics,
            fetches,
            announcements,
            reports,
            chain: chain_seen,
            shown,
            liveness,
            mesh,
            names,
        },
    );
    // Which pods were there is to be known before the first decision.
    if let Some(found) = kept.recv().await {
        agent.handle(Event::Sandboxes(found), Timestamp::now());
    }
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut measure = tokio::time::interval(MEASURE);
    measure.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut look_at, mut looked): (Option<Instant>, Instant) = (None, Instant::now());
    loop {
        turns.send_replace(Instant::now());
        pulse.beat();
        let wake = agent.is_waiting();
        let event = tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = tasks.join_next() => {
                let (name, outcome) = ended.context("a task of the agent panicked")?;
                outcome.context(name)?;
                if stop.is_cancelled() {
                    break;
                }
                // Another agent does better than one without a part.
                bail!("{name} has ended");
            }
            changed = world.changed() => {
                if changed.is_err() && stop.is_cancelled() {
                    break;
                }
                changed.context("the watches have ended")?;
                let Some(world) = world.borrow_and_update().clone() else { continue };
                Event::World(world)
            }
            Some(call) = called.recv() => Event::Call(call),
            Some(event) = gateways.recv() => Event::Gateway(event),
            Ok(()) = observed.changed() => Event::Liveness(observed.borrow_and_update().clone()),
            Ok(()) = probed.changed() => Event::Mesh(probed.borrow_and_update().clone()),
            Ok(()) = resolved.changed() => Event::Names(resolved.borrow_and_update().clone()),
            Some(answer) = fetched.recv() => Event::Fetched(answer),
            Some(found) = kept.recv() => Event::Sandboxes(found),
            Ok(()) = chain_changes.changed() => Event::Chain,
            Some(()) = kernel_changes.recv() => {
                let now = Instant::now();
                look_at.get_or_insert_with(|| (now + QUIET).max(looked + LOOK));
                continue;
            }
            () = sleep_until(look_at) => {
                (look_at, looked) = (None, Instant::now());
                Event::KernelChanged
            }
            _ = tick.tick() => Event::Tick,
            _ = measure.tick(), if agent.is_shaping() => Event::Measure,
            () = tokio::time::sleep(WAKE), if wake => Event::Wake,
        };
        agent.handle(event, Timestamp::now());
        while let Ok(call) = called.try_recv() {
            agent.handle(Event::Call(call), Timestamp::now());
        }
        agent.settle(Timestamp::now()).await;
        if agent.state().is_some() {
            first.take();
        }
    }
    let removed = agent.is_removed();
    drop(agent);
    while let Some(ended) = tasks.join_next().await {
        let (name, outcome) = ended.context("a task of the agent panicked")?;
        outcome.context(name)?;
    }
    admin.await.context("the admin listener")??;
    if removed {
        // The directory is a mount: what is in it goes.
        for socket in [directories.cni_socket(), directories.show_socket()] {
            let _ = crate::files::remove(&socket);
        }
        for directory in ["gateway", "pods", "cni"] {
            let _ = std::fs::remove_dir_all(directories.run.join(directory));
        }
    }
    Ok(())
}

/// Descriptors come with gateways, pods' namespaces and questions: as many as this process may have.
fn allow_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(error = %error, "limit of open files stays as it is");
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn installer(args: &Args, directories: &Directories) -> anyhow::Result<Installer> {
    let binary = match &args.cni_plugin {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .context("find this program's own path")?
            .with_file_name(PLUGIN),
    };
    Ok(Installer {
        host: HostRoot(args.host_root.clone()),
        conf_dir: args.cni_conf_dir.clone(),
        bin_dirs: args.cni_bin_dir.clone(),
        binary,
        socket: directories.cni_socket(),
        members: directories.members(),
    })
}

/// Asks the API server about pods, one after the other.
fn fetch(client: Client, mut wanted: mpsc::Receiver<Fetch>) -> mpsc::Receiver<Fetched> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        while let Some(fetch) = wanted.recv().await {
            let found = match tokio::time::timeout(FETCH_TIMEOUT, find(&client, &fetch)).await {
                Ok(Ok(found)) => Ok(found),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("the API server did not answer within {FETCH_TIMEOUT:?}")),
            };
            if sender.send(Fetched { fetch, found }).await.is_err() {
                return;
            }
        }
    });
    receiver
}

async fn find(
    client: &Client,
    fetch: &Fetch,
) -> kube::Result<Option<(Arc<PodView>, slice_crds::membership::Labels)>> {
    let pods = Api::<Pod>::namespaced(client.clone(), &fetch.namespace);
    let Some(pod) = pods.get_opt(&fetch.name).await? else {
        return Ok(None);
    };
    let namespaces = Api::<Namespace>::all(client.clone());
    let namespace = namespaces.get_opt(&fetch.namespace).await?;
    let labels = namespace
        .map(|namespace| namespace.labels().clone())
        .unwrap_or_default();
    Ok(Some((Arc::new(PodView::of(&pod)), labels)))
}
