//! Writes what the agent reports to the API server: where an object does not say it yet, at most once a second an
//! object. What lives is told by [`crate::heartbeat`]; a status that says what it should is left alone.
//!
//! The node's credential lets it write what belongs to the node and nothing else: the statuses of its SliceNode, of its
//! SliceBlocks and of the SliceGateways that are on it, and of its pods annotations and one condition.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::ready,
    time::Duration,
};

use anyhow::Context;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};
use slice_crds::{
    names::MEMBER_NAMESPACE,
    v1alpha1::{SliceBlock, SliceBlockStatus, SliceGateway, SliceGatewayStatus, SliceNode, SliceNodeStatus},
};
use slice_runtime::apply;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Announcement,
    metrics::Metrics,
    status::{self, GatewayReport, PodReport, Reports, Standing},
};

/// Field manager of everything the agent writes.
pub const MANAGER: &str = "slice-netop";
/// Shortest time between two writes of one object.
const PAUSE: Duration = Duration::from_secs(1);
/// Writes of one pod or block with news that may follow each other at once; then each takes its [`PAUSE`]. People wait for what
/// a pod is attached to, and the kubelet writes the same object meanwhile; a slice waits for its last block to be gone.
const BURST: u32 = 4;
/// Longest time until a write that failed is tried again: keys of gateways go this way.
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Until a status that was taken, and that the object still does not have, is written again: somebody else may have
/// written it, or the watch is behind. It doubles with each time in a row.
const FIRST_REPAIR: Duration = Duration::from_secs(2);
const LAST_REPAIR: Duration = Duration::from_secs(30);
/// How long a write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes at a time of one [`Lane`].
const CONCURRENT: usize = 8;
/// No write is begun so long after the snapshot that it is from.
const FRESH: Duration = Duration::from_secs(5);

/// Objects that are written beside others, so that those that hang, as a webhook can make them, keep few others waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Pods,
    /// By these, other clusters learn keys.
    Gateways,
    /// The node and its blocks.
    Node,
}

/// An object that is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// By UID.
    Pod(String),
    /// The others by name.
    Gateway(String),
    Node(String),
    Block(String),
}

/// What an object should hold.
struct Write {
    target: Target,
    /// What of it others act on.
    content: Value,
    /// The object has it.
    recorded: bool,
    /// Somebody else may write it too, so it is written at once where it is not there.
    contested: bool,
    body: Body,
}

enum Body {
    Pod(PodReport),
    Gateway(Box<GatewayReport>, Box<SliceGatewayStatus>),
    Node(SliceNodeStatus),
    Block(SliceBlockStatus),
}

/// What came of the last write of an object.
struct Attempt {
    at: Instant,
    /// When the next one would be due if each had waited for its turn (the generic cell rate algorithm).
    next: Instant,
    content: Value,
    /// Writes in a row that were not taken.
    failures: u32,
    /// Writes of the same content in a row that were taken, and that the object does not have.
    repairs: u32,
    /// The failure is in the log.
    failing: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Taken,
    /// The object is gone, has changed, or is another node's: the watch shows it, and the report is made again.
    Outdated,
    Failed(String),
}

/// Writes until `stop`.
pub async fn run(
    client: Client,
    node: String,
    metrics: Metrics,
    reports: watch::Receiver<Reports>,
    announcements: mpsc::Receiver<Announcement>,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    tasks.spawn(announce(
        client.clone(),
        node.clone(),
        announcements,
        metrics.clone(),
        stop.clone(),
    ));
    for lane in [Lane::Pods, Lane::Gateways, Lane::Node] {
        let writer = Writer {
            client: client.clone(),
            node: node.clone(),
            metrics: metrics.clone(),
            lane,
            attempts: BTreeMap::new(),
        };
        let work = writer.follow(reports.clone());
        let stop = stop.clone();
        tasks.spawn(async move { _ = stop.run_until_cancelled(work).await });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(error = %error, "a task that writes to the API server has ended");
        }
    }
}

struct Writer {
    client: Client,
    node: String,
    metrics: Metrics,
    lane: Lane,
    attempts: BTreeMap<Target, Attempt>,
}

impl Writer {
    async fn follow(mut self, mut reports: watch::Receiver<Reports>) {
        let mut tick = tokio::time::interval(PAUSE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                changed = reports.changed() => if changed.is_err() { return },
            }
            let current = reports.borrow_and_update().clone();
            // Nothing has been decided before.
            if current.decided {
                self.write(&current).await;
            }
        }
    }

    async fn write(&mut self, reports: &Reports) {
        let (begun, now) = (Instant::now(), Timestamp::now());
        let mut writes = match self.lane {
            Lane::Pods => pods(reports),
            Lane::Gateways => gateways(reports, now),
            Lane::Node => of_node(&self.node, reports, now),
        };
        let known: BTreeSet<&Target> = writes.iter().map(|write| &write.target).collect();
        self.attempts.retain(|target, _| known.contains(target));
        for write in writes.iter().filter(|write| write.recorded) {
            if let Some(attempt) = self.attempts.get_mut(&write.target) {
                attempt.repairs = 0;
            }
        }
        writes.retain(|write| self.is_due(write, begun));
        // What fails comes last.
        writes.sort_by_key(|write| {
            self.attempts
                .get(&write.target)
                .is_some_and(|attempt| attempt.failures > 0)
        });
        let client = self.client.clone();
        let sent = stream::iter(writes)
            .take_while(|_| ready(begun.elapsed() < FRESH))
            .map(|write| async {
                let at = Instant::now();
                let outcome = send(&client, &write).await;
                (write, at, outcome)
            });
        let mut sent = std::pin::pin!(sent.buffer_unordered(CONCURRENT));
        while let Some((write, at, outcome)) = sent.next().await {
            self.note(write, at, outcome);
        }
    }

    fn is_due(&self, write: &Write, now: Instant) -> bool {
        if write.recorded {
            return false;
        }
        let Some(attempt) = self.attempts.get(&write.target) else {
            return true;
        };
        let is_news = attempt.content != write.content && !attempt.failing;
        if is_news && matches!(write.target, Target::Pod(_) | Target::Block(_)) {
            return attempt.next <= now + PAUSE * (BURST - 1);
        }
        let pause = match attempt {
            Attempt { failures: 1.., .. } => back_off(PAUSE, attempt.failures - 1, LAST_RETRY),
            _ if write.contested || attempt.content != write.content => PAUSE,
            _ => back_off(FIRST_REPAIR, attempt.repairs, LAST_REPAIR),
        };
        now.duration_since(attempt.at) >= pause
    }

    fn note(&mut self, write: Write, at: Instant, outcome: Outcome) {
        let before = self.attempts.remove(&write.target);
        let (failures, failing) = before
            .as_ref()
            .map_or((0, false), |last| (last.failures, last.failing));
        let last = before.as_ref().map_or(at, |last| last.next.max(at));
        let mut attempt = Attempt {
            at,
            next: last + PAUSE,
            content: write.content,
            failures: failures.saturating_add(1),
            repairs: 0,
            failing,
        };
        match outcome {
            Outcome::Taken => {
                let repeated = before.filter(|last| last.failures == 0 && last.content == attempt.content);
                attempt.repairs = repeated.map_or(0, |last| last.repairs.saturating_add(1));
                (attempt.failures, attempt.failing) = (0, false);
                if failing {
                    tracing::info!(object = %write.target, "status written again");
                }
            }
            Outcome::Outdated => {
                tracing::debug!(object = %write.target, "status not written, its object is another now");
            }
            Outcome::Failed(error) => {
                self.metrics.status_errors.inc();
                attempt.failing = true;
                if failing {
                    tracing::debug!(object = %write.target, error, "status still not written");
                } else {
                    tracing::warn!(object = %write.target, error, "status not written, trying again");
                }
            }
        }
        self.attempts.insert(write.target, attempt);
    }
}

fn pods(reports: &Reports) -> Vec<Write> {
    let pods = reports.pods.iter();
    pods.map(|(uid, report)| Write {
        target: Target::Pod(uid.clone()),
        content: json!([report.patch, report.resource_version]),
        // The report is there because the object says something else.
        recorded: false,
        contested: false,
        body: Body::Pod(report.clone()),
    })
    .collect()
}

fn gateways(reports: &Reports, now: Timestamp) -> Vec<Write> {
    let gateways = reports.gateways.iter();
    gateways
        .map(|(name, report)| {
            let status = report.status(now);
            let content = status::content(&status);
            let before = reports.recorded.gateways.get(name).map(status::content);
            Write {
                target: Target::Gateway(name.clone()),
                recorded: before.as_ref() == Some(&content),
                content,
                contested: report.standing == Standing::Here { denied: true },
                body: Body::Gateway(Box::new(report.clone()), Box::new(status)),
            }
        })
        .collect()
}

/// The node and its blocks.
fn of_node(node: &str, reports: &Reports, now: Timestamp) -> Vec<Write> {
    let recorded = &reports.recorded;
    let node = reports.node.iter().map(|report| {
        let status = report.status(recorded.node.as_ref(), now);
        let content = status::content(&status);
        Write {
            target: Target::Node(node.to_owned()),
            recorded: recorded.node.as_ref().map(status::content).as_ref() == Some(&content),
            content,
            contested: false,
            body: Body::Node(status),
        }
    });
    let blocks = reports.blocks.iter().map(|(name, report)| {
        let before = recorded.blocks.get(name);
        let status = report.status(before, now);
        let content = status::content(&status);
        Write {
            target: Target::Block(name.clone()),
            recorded: before.map(status::content).as_ref() == Some(&content),
            content,
            contested: false,
            body: Body::Block(status),
        }
    });
    node.chain(blocks).collect()
}

/// Of the answer no more is read than whose it is: an object that this version cannot decode is reported on all the same.
async fn send(client: &Client, write: &Write) -> Outcome {
    let sent = async {
        match (&write.target, &write.body) {
            (Target::Pod(uid), Body::Pod(report)) => send_pod(client, uid, report).await,
            (Target::Gateway(name), Body::Gateway(report, status)) => {
                send_gateway(client, name, report, status).await
            }
            (Target::Node(name), Body::Node(status)) => {
                let api = Api::<PartialObjectMeta<SliceNode>>::all(client.clone());
                apply::apply_status(&api, MANAGER, name, status)
                    .await
                    .map(|()| true)
            }
            (Target::Block(name), Body::Block(status)) => {
                let api = Api::<PartialObjectMeta<SliceBlock>>::all(client.clone());
                apply::apply_status(&api, MANAGER, name, status)
                    .await
                    .map(|()| true)
            }
            (target, _) => anyhow::bail!("{target} is given what is not its"),
        }
    };
    match tokio::time::timeout(WRITE_TIMEOUT, sent).await {
        Ok(Ok(true)) => Outcome::Taken,
        Ok(Ok(false)) => Outcome::Outdated,
        Ok(Err(error)) if answer(&error) == Some(404) => Outcome::Outdated,
        // A gateway has moved, and the watch is behind.
        Ok(Err(error)) if answer(&error) == Some(403) && matches!(write.target, Target::Gateway(_)) => {
            Outcome::Outdated
        }
        Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
        Err(_) => Outcome::Failed(format!("the API server did not answer within {WRITE_TIMEOUT:?}")),
    }
}

/// Whether the object was still what the report is about.
async fn send_pod(client: &Client, uid: &str, report: &PodReport) -> anyhow::Result<bool> {
    let mut patch = report.patch.clone();
    // A pod of the same name that came after it, or news that we have not read, must not be overwritten.
    patch["metadata"]["uid"] = uid.into();
    if let Some(version) = &report.resource_version {
        patch["metadata"]["resourceVersion"] = version.as_str().into();
    }
    let api = Api::<PartialObjectMeta<Pod>>::namespaced(client.clone(), &report.namespace);
    match api
        .patch_status(&report.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => {
            Err(error).with_context(|| format!("annotate pod {}/{}", report.namespace, report.name))
        }
    }
}

async fn send_gateway(
    client: &Client,
    name: &str,
    report: &GatewayReport,
    status: &SliceGatewayStatus,
) -> anyhow::Result<bool> {
    let namespace = report.namespace.as_deref().unwrap_or(MEMBER_NAMESPACE);
    let api = Api::<PartialObjectMeta<SliceGateway>>::namespaced(client.clone(), namespace);
    match &report.standing {
        Standing::Leaving {
            version: Some(version),
        } => apply::apply_status_of_version(&api, MANAGER, name, version, status).await,
        Standing::Leaving { version: None } | Standing::Here { .. } => {
            apply::apply_status(&api, MANAGER, name, status)
                .await
                .map(|()| true)
        }
    }
}

/// The status code that the API server answered with.
fn answer(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

fn back_off(first: Duration, times: u32, last: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(last)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match self {
            Self::Pod(uid) => ("pod with UID", uid),
            Self::Gateway(name) => ("SliceGateway", name),
            Self::Node(name) => ("SliceNode", name),
            Self::Block(name) => ("SliceBlock", name),
        };
        write!(f, "{kind} {name}")
    }
}

async fn announce(
    client: Client,
    node: String,
    mut announcements: mpsc::Receiver<Announcement>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let reporter = Reporter {
        controller: MANAGER.into(),
        instance: Some(node),
    };
    let recorder = Recorder::new(client, reporter);
    while let Some(Some(announcement)) = stop.run_until_cancelled(announcements.recv()).await {
        let event = Event {
            type_: if announcement.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: announcement.reason.into(),
            note: Some(announcement.message.chars().take(1000).collect()),
            action: "Attaching".into(),
            secondary: None,
        };
        let pod = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(announcement.namespace),
            name: Some(announcement.name),
            uid: Some(announcement.uid),
            ..ObjectReference::default()
        };
        match tokio::time::timeout(WRITE_TIMEOUT, recorder.publish(&event, &pod)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                metrics.events_dropped.inc();
                tracing::debug!(error = %error, "event not written");
            }
            Err(_) => metrics.events_dropped.inc(),
        }
    }
}
