//! The nodes of a member, played: what their kubelets and agents renew, and what agents report of blocks and gateways.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{TryStreamExt, stream};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use slice_crds::{
    labels, names,
    v1alpha1::{SliceBlock, SliceGateway, SliceNode},
};

use super::{AT_ONCE, played_key};

/// As a kubelet renews its Node's Lease, and a node's agent its own.
const KUBELET: Duration = Duration::from_secs(10);
const AGENT: Duration = Duration::from_secs(40);
const MANAGER: &str = "scale";

pub(super) struct Nodes {
    client: Client,
    /// Those of the cluster itself among them, whose kubelets are real.
    all: Vec<String>,
    played: Vec<String>,
    /// Blocks that an agent has reported on.
    pub(super) reported: AtomicUsize,
    /// Renewals by kubelets, which are there without Weft.
    pub(super) renewed: AtomicU64,
}

impl Nodes {
    /// Makes `count` nodes that are Ready.
    pub(super) async fn make(client: Client, count: usize) -> Result<Arc<Self>> {
        let nodes: Api<Node> = Api::all(client.clone());
        let there = nodes
            .list(&ListParams::default())
            .await
            .context("list the nodes")?;
        // No gateway is to start on a node that is real.
        for node in &there {
            patch(
                &nodes,
                &node.name_any(),
                json!({"spec": {"unschedulable": true}}),
                "node",
            )
            .await?;
        }
        let played: Vec<String> = (1..=count).map(|number| format!("n{number:03}")).collect();
        let own = Self {
            all: there
                .iter()
                .map(ResourceExt::name_any)
                .chain(played.clone())
                .collect(),
            client,
            played,
            reported: AtomicUsize::new(0),
            renewed: AtomicU64::new(0),
        };
        let numbered: Vec<(usize, &String)> = own.played.iter().enumerate().collect();
        stream::iter(numbered.into_iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, async |(number, name): (usize, &String)| {
                own.renew("kube-node-lease", name, 40).await?;
                let object = json!({
                    "apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name}},
                });
                apply(&nodes, name, object).await?;
                let now = format!("{:.0}", jiff::Timestamp::now());
                let status = json!({"status": {
                    "addresses": [{"type": "InternalIP", "address": format!("198.51.100.{}", number + 1)}],
                    "capacity": {"pods": "110", "cpu": "8", "memory": "32Gi"},
                    "allocatable": {"pods": "110", "cpu": "8", "memory": "32Gi"},
                    "conditions": [{"type": "Ready", "status": "True", "reason": "Played", "message": "",
                        "lastHeartbeatTime": now, "lastTransitionTime": now}],
                }});
                nodes
                    .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
                    .await
                    .map(drop)
                    .with_context(|| format!("the status of node {name}"))
            })
            .await?;
        Ok(Arc::new(own))
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Renews the kubelets' Leases, one after the other, all within the interval.
    pub(super) async fn kubelets(self: Arc<Self>) -> Result<()> {
        let mut clock = every(KUBELET, self.played.len());
        for node in self.played.iter().cycle() {
            clock.tick().await;
            self.renew("kube-node-lease", node, 40).await?;
            self.renewed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The same of the agents.
    pub(super) async fn agents(self: Arc<Self>) -> Result<()> {
        let mut clock = every(AGENT, self.all.len());
        for node in self.all.iter().cycle() {
            clock.tick().await;
            self.renew(names::MEMBER_NAMESPACE, &names::node_lease(node), 120)
                .await?;
        }
        Ok(())
    }

    async fn renew(&self, namespace: &str, name: &str, seconds: u32) -> Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": seconds,
                "renewTime": format!("{:.6}", jiff::Timestamp::now())},
        });
        apply(&leases, name, lease).await
    }

    /// Reports, as the agents do, what the member's operator asks of their nodes, until it fails.
    pub(super) async fn act(self: Arc<Self>) -> Result<()> {
        tokio::try_join!(self.nodes(), self.blocks(), self.gateways(), self.pods()).map(drop)
    }

    async fn nodes(&self) -> Result<()> {
        let api: Api<SliceNode> = Api::all(self.client.clone());
        let seen = watcher(api.clone(), watcher::Config::default()).applied_objects();
        seen.map_err(|error| anyhow::Error::new(error).context("watch SliceNodes"))
            .try_for_each_concurrent(AT_ONCE, async |node| {
                if node.status.is_some() {
                    return Ok(());
                }
                let status =
                    json!({"phase": "Ready", "version": "0.1.0", "underlayMtu": 1500, "conditions": ready()});
                patch_status(&api, &node.name_any(), status).await
            })
            .await
    }

    async fn blocks(&self) -> Result<()> {
        let api: Api<SliceBlock> = Api::all(self.client.clone());
        let seen = watcher(api.clone(), watcher::Config::default()).applied_objects();
        seen.map_err(|error| anyhow::Error::new(error).context("watch SliceBlocks"))
            .try_for_each_concurrent(AT_ONCE, async |block| {
                let known = block.status.as_ref().and_then(|status| status.observed_generation);
                if known == block.metadata.generation {
                    return Ok(());
                }
                let status = json!({
                    "present": true, "observedGeneration": block.metadata.generation, "attachments": 3, "free": 50,
                    "usable": 61, "conditions": ready(),
                });
                patch_status(&api, &block.name_any(), status).await?;
                if known.is_none() {
                    self.reported.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
            .await
    }

    async fn gateways(&self) -> Result<()> {
        let api: Api<SliceGateway> = Api::namespaced(self.client.clone(), names::MEMBER_NAMESPACE);
        let seen = watcher(api.clone(), watcher::Config::default()).applied_objects();
        seen.map_err(|error| anyhow::Error::new(error).context("watch SliceGateways"))
            .try_for_each_concurrent(AT_ONCE, async |gateway| {
                let reported = gateway.status.as_ref().and_then(|status| status.node.clone());
                if gateway.spec.node.is_none() || reported == gateway.spec.node {
                    return Ok(());
                }
                let status = json!({"node": gateway.spec.node, "connected": true, "publicKey": played_key(&gateway.name_any())});
                patch_status(&api, &gateway.name_any(), status).await
            })
            .await
    }

    /// Pods of gateways that were put on a played node become Ready there.
    async fn pods(&self) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), names::GATEWAY_NAMESPACE);
        let config = watcher::Config::default().labels(&format!(
            "{}={}",
            labels::COMPONENT,
            labels::COMPONENT_GATEWAY
        ));
        let seen = watcher(api.clone(), config).applied_objects();
        seen.map_err(|error| anyhow::Error::new(error).context("watch the gateways' pods"))
            .try_for_each_concurrent(AT_ONCE, async |pod| {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                if phase == Some("Running") || !node.is_some_and(|node| self.played.contains(node)) {
                    return Ok(());
                }
                let now = format!("{:.0}", jiff::Timestamp::now());
                let state = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
                let status = json!({
                    "phase": "Running", "podIP": "203.0.113.1", "podIPs": [{"ip": "203.0.113.1"}],
                    "conditions": [state("Initialized"), state("ContainersReady"), state("Ready"), state("PodScheduled")],
                });
                patch_status(&api, &pod.name_any(), status).await
            })
            .await
    }
}

fn every(interval: Duration, count: usize) -> tokio::time::Interval {
    tokio::time::interval(interval / u32::try_from(count.max(1)).unwrap_or(u32::MAX))
}

fn ready() -> Value {
    json!([{"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-11-28T00:00:00Z"}])
}

async fn apply<K>(api: &Api<K>, name: &str, object: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object))
        .await
        .map(drop)
        .with_context(|| format!("apply {name}"))
}

async fn patch<K>(api: &Api<K>, name: &str, change: Value, what: &str) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(change))
        .await
        .map(drop)
        .with_context(|| format!("patch {what} {name}"))
}

/// What was deleted meanwhile has no status.
async fn patch_status<K>(api: &Api<K>, name: &str, status: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let change = Patch::Merge(json!({"status": status}));
    match api.patch_status(name, &PatchParams::default(), &change).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("the status of {name}")),
    }
}
