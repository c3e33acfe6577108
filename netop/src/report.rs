//! Writes what the agent says to the API server: on change, at most once a second an object, and again every
//! [`HEARTBEAT`] so that readers can tell old news from none.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use slice_crds::{
    conditions::{self, Verdict},
    names::MEMBER_NAMESPACE,
    v1alpha1::{SliceBlock, SliceBlockStatus, SliceGateway, SliceGatewayStatus, SliceNode, SliceNodeStatus},
};
use slice_runtime::{apply, version::VERSION};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Announcement,
    metrics::Metrics,
    status::{BlockReport, GatewayReport, NodeReport, PodReport, Reports, Standing},
};

/// Field manager of everything the agent writes.
pub const MANAGER: &str = "slice-netop";
/// Shortest time between two writes of one object.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a status is written whose content has not changed.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How long a write may take: an API server that hangs must not keep other news back.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is written where, and when it last was.
pub struct Writer {
    client: Client,
    node: String,
    metrics: Metrics,
    nodes: Last<NodeReport>,
    blocks: BTreeMap<String, Last<BlockReport>>,
    gateways: BTreeMap<String, Last<GatewayReport>>,
    pods: BTreeMap<String, Last<PodReport>>,
}

struct Last<T> {
    report: Option<T>,
    at: Option<Instant>,
    conditions: Vec<Condition>,
}

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self {
            report: None,
            at: None,
            conditions: vec![],
        }
    }
}

impl<T> Last<T> {
    /// Whether a report is to be written now; `same` compares it with the last one.
    fn is_due(&self, same: impl FnOnce(&T) -> bool, now: Instant) -> bool {
        let age = self.at.map(|at| now.duration_since(at));
        match age {
            None => true,
            Some(age) if age < PAUSE => false,
            Some(age) => age >= HEARTBEAT || !self.report.as_ref().is_some_and(same),
        }
    }

    fn conditions(&mut self, verdict: Verdict, now: Timestamp) -> Vec<Condition> {
        self.conditions = conditions::conditions(&self.conditions, [verdict], None, now);
        self.conditions.clone()
    }
}

/// Writes until `stop`.
pub async fn run(
    client: Client,
    node: String,
    metrics: Metrics,
    mut reports: watch::Receiver<Reports>,
    announcements: mpsc::Receiver<Announcement>,
    stop: CancellationToken,
) {
    let events = tokio::spawn(announce(
        client.clone(),
        node.clone(),
        announcements,
        metrics.clone(),
        stop.clone(),
    ));
    let mut writer = Writer {
        client,
        node,
        metrics,
        nodes: Last::default(),
        blocks: BTreeMap::new(),
        gateways: BTreeMap::new(),
        pods: BTreeMap::new(),
    };
    let mut tick = tokio::time::interval(PAUSE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
            changed = reports.changed() => if changed.is_err() { break },
        }
        let current = reports.borrow_and_update().clone();
        // Nothing has been decided yet.
        if current.decided {
            writer.write(&current).await;
        }
    }
    let _ = events.await;
}

impl Writer {
    async fn write(&mut self, reports: &Reports) {
        // Pods first: somebody is waiting for theirs.
        self.pods.retain(|uid, _| reports.pods.contains_key(uid));
        for (uid, report) in &reports.pods {
            self.write_pod(uid, report).await;
        }
        self.gateways
            .retain(|name, _| reports.gateways.contains_key(name));
        for (name, report) in &reports.gateways {
            self.write_gateway(name, report).await;
        }
        if let Some(node) = &reports.node {
            self.write_node(node).await;
        }
        self.blocks.retain(|name, _| reports.blocks.contains_key(name));
        for (name, report) in &reports.blocks {
            self.write_block(name, report).await;
        }
    }

    async fn write_node(&mut self, report: &NodeReport) {
        let now = Instant::now();
        if !self.nodes.is_due(|last| last == report, now) {
            return;
        }
        let time = Timestamp::now();
        let status = SliceNodeStatus {
            phase: report.phase,
            version: Some(VERSION.to_owned()),
            underlay_mtu: report.underlay_mtu,
            features: report.features.clone(),
            conditions: self.nodes.conditions(report.ready.clone(), time),
            observed_at: Some(Time(time)),
        };
        self.nodes.at = Some(now);
        let api = Api::<SliceNode>::all(self.client.clone());
        if self
            .done(apply::apply_status(&api, MANAGER, &self.node, &status))
            .await
        {
            self.nodes.report = Some(report.clone());
        }
    }

    async fn write_block(&mut self, name: &str, report: &BlockReport) {
        let (now, time) = (Instant::now(), Timestamp::now());
        let last = self.blocks.entry(name.to_owned()).or_default();
        if !last.is_due(|last| last == report, now) {
            return;
        }
        let status = SliceBlockStatus {
            attachments: report.attachments,
            free: report.usage.free,
            usable: report.usage.usable,
            conditions: last.conditions(report.ready.clone(), time),
            observed_at: Some(Time(time)),
        };
        last.at = Some(now);
        let api = Api::<SliceBlock>::all(self.client.clone());
        if self.done(apply::apply_status(&api, MANAGER, name, &status)).await
            && let Some(last) = self.blocks.get_mut(name)
        {
            last.report = Some(report.clone());
        }
    }

    async fn write_gateway(&mut self, name: &str, report: &GatewayReport) {
        let now = Instant::now();
        let last = self.gateways.entry(name.to_owned()).or_default();
        let denied = report.standing == Standing::Here { denied: true };
        if !last.is_due(|last| !denied && last.same_state(report), now) {
            return;
        }
        last.at = Some(now);
        let keys = report.keys.clone();
        let status = SliceGatewayStatus {
            public_key: keys.as_ref().map(|keys| keys.public_key.clone()),
            former_key: keys.as_ref().and_then(|keys| keys.former_key.clone()),
            revocation: keys.and_then(|keys| keys.revocation),
            renewal_waits_for: report.renewal_waits_for.clone(),
            node: Some(report.node.clone()),
            connected: report.connected,
            tunnels: report.tunnels.clone(),
            data_path: report.data_path.clone(),
            observed_at: Some(Time(Timestamp::now())),
        };
        let api = Api::<SliceGateway>::namespaced(self.client.clone(), MEMBER_NAMESPACE);
        let write = async {
            match &report.standing {
                Standing::Leaving {
                    version: Some(version),
                } => apply::apply_status_of_version(&api, MANAGER, name, version, &status).await,
                _ => apply::apply_status(&api, MANAGER, name, &status)
                    .await
                    .map(|()| true),
            }
        };
        // Where the object has changed meanwhile the watch tells, and the report is made again.
        if self.timed(write).await == Some(true)
            && let Some(last) = self.gateways.get_mut(name)
        {
            last.report = Some(report.clone());
        }
    }

    async fn write_pod(&mut self, uid: &str, report: &PodReport) {
        let now = Instant::now();
        let last = self.pods.entry(uid.to_owned()).or_default();
        if !last.is_due(|last| last == report, now) {
            return;
        }
        last.at = Some(now);
        let mut patch = report.patch.clone();
        // A pod of the same name that came after it, or news that we have not read, must not be overwritten.
        patch["metadata"]["uid"] = uid.into();
        if let Some(version) = &report.resource_version {
            patch["metadata"]["resourceVersion"] = version.as_str().into();
        }
        let api = Api::<Pod>::namespaced(self.client.clone(), &report.namespace);
        let write = async {
            match api
                .patch_status(&report.name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Ok(_) => Ok(true),
                // Gone, or changed: the watch tells, and the report is made again.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
                Err(error) => {
                    Err(error).with_context(|| format!("annotate pod {}/{}", report.namespace, report.name))
                }
            }
        };
        if let Some(true) = self.timed(write).await
            && let Some(last) = self.pods.get_mut(uid)
        {
            last.report = Some(report.clone());
        }
    }

    async fn done(&self, write: impl Future<Output = anyhow::Result<()>>) -> bool {
        self.timed(write).await.is_some()
    }

    async fn timed<T>(&self, write: impl Future<Output = anyhow::Result<T>>) -> Option<T> {
        let error = match tokio::time::timeout(PATIENCE, write).await {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) if is_gone(&error) => {
                tracing::debug!(
                    error = format!("{error:#}"),
                    "status not written, its object is gone"
                );
                return None;
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("the API server did not answer within {PATIENCE:?}"),
        };
        self.metrics.status_errors.inc();
        tracing::warn!(error, "status not written");
        None
    }
}

fn is_gone(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404)
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
        match tokio::time::timeout(PATIENCE, recorder.publish(&event, &pod)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                metrics.events_dropped.inc();
                tracing::debug!(error = %error, "event not written");
            }
            Err(_) => metrics.events_dropped.inc(),
        }
    }
}
