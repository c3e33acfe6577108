//! Weft itself, as a user installs and uses it: with `slicectl`, charts and YAML.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures::future::join;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Namespace, Node, Pod, Secret},
};
use kube::{
    Client, ResourceExt,
    api::{Api, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use slice_crds::{
    annotations, conditions,
    labels::{self, Attachment},
    names,
    v1alpha1::{Slice, SliceConfig, SliceGateway},
};

use super::{Cluster, Environment, PodSpec, is_ready, poll, variable};
use crate::lab::programs::Cache;

/// The project namespace that the hub's chart makes.
pub const PROJECT: &str = "weft-default";
/// A slice is set up in all its clusters and every tunnel is up.
const SLICE_READY: Duration = Duration::from_secs(60);
/// Attached, as the pod's own annotation says.
const ATTACHED: Duration = Duration::from_secs(20);
/// What a slice is given has come to a node, and the node shows it.
const LIMITED: Duration = Duration::from_secs(30);
/// Before a node's name, the name of the pod that is put on it.
const ON_NODE: &str = "on-";
/// Seconds that helm may take.
const INSTALL: &str = "120";

/// A test pod and what it has in one slice.
#[derive(Clone)]
pub struct Member {
    pub cluster: Cluster,
    pub namespace: String,
    pub name: String,
    pub attachment: Attachment,
}

impl Member {
    /// The first of some pods that runs in a cluster.
    pub fn of<'a>(members: &'a [Self], cluster: &Cluster) -> Result<&'a Self> {
        let mut own = members.iter().filter(|one| one.cluster.name == cluster.name);
        own.next().with_context(|| format!("no pod in {}", cluster.name))
    }

    /// Runs `weft-probe` in the pod.
    pub async fn probe(&self, arguments: &[&str]) -> Result<Value> {
        self.cluster.probe(&self.namespace, &self.name, arguments).await
    }

    /// Waits until another pod answers by the slice.
    pub async fn await_reached(&self, to: &Self, deadline: Duration) -> Result<()> {
        let address = to.v4()?.to_string();
        poll(deadline, &format!("{self} reaches {to}"), async || {
            let answer = self.probe(&["ping", &address, "--timeout", "500"]).await?;
            Ok((answer["received"] == 1).then_some(()))
        })
        .await
    }

    /// Gbit/s of TCP that another pod receives at one of its addresses.
    pub async fn tcp(&self, to: &Self, address: IpAddr, seconds: &str) -> Result<f64> {
        let receive = ["throughput", "receive", "--seconds", seconds];
        let receiving = to.cluster.start_probe(&to.namespace, &to.name, &receive).await?;
        let address = address.to_string();
        let send = ["throughput", "send", &address];
        // Both to their end: where one fails, the other's words tell why.
        let (received, sent) = join(receiving.finish(), self.probe(&send)).await;
        let received = received.with_context(|| format!("receive at {to}"))?;
        sent.with_context(|| format!("the receiver prints {received:?}"))?;
        let answer: Value = received.json()?;
        answer["gbps"]
            .as_f64()
            .with_context(|| format!("no gbps in {answer}"))
    }

    /// Its IPv4 address in the slice.
    pub fn v4(&self) -> Result<IpAddr> {
        let ip = self.attachment.ips.iter().find(|ip| ip.is_ipv4());
        ip.copied()
            .with_context(|| format!("{} has no IPv4 address: {:?}", self.name, self.attachment))
    }

    /// The node that [`Environment::members`] has put it on.
    pub fn node(&self) -> &str {
        self.name.trim_start_matches(ON_NODE)
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.cluster.name, self.namespace, self.name)
    }
}

impl Environment {
    /// The hub, which is also the first member.
    pub fn hub(&self) -> Result<&Cluster> {
        self.cluster(0)
    }

    /// Runs `slicectl` in a context; fails with what it said.
    pub fn slicectl(&self, context: &str, arguments: &[&str]) -> Result<String> {
        self.slicectl_of(&own_slicectl(), context, arguments)
    }

    /// The same with a `slicectl` of another version, and so with its charts.
    pub fn slicectl_of(&self, program: &Path, context: &str, arguments: &[&str]) -> Result<String> {
        let output = self.run_slicectl(program, context, arguments)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!(
                "slicectl {} in {context}: {}{}",
                arguments.join(" "),
                said.trim(),
                why.trim()
            );
        }
        Ok(said)
    }

    /// Runs `slicectl` in a context, however it ends.
    pub fn try_slicectl(&self, context: &str, arguments: &[&str]) -> Result<Output> {
        self.run_slicectl(&own_slicectl(), context, arguments)
    }

    fn run_slicectl(&self, program: &Path, context: &str, arguments: &[&str]) -> Result<Output> {
        self.slicectl_command(program, context, arguments)
            .output()
            .with_context(|| format!("run {}: `make build` makes it", program.display()))
    }

    /// A `slicectl` in a context, not yet started.
    pub fn slicectl_command(
        &self,
        program: &Path,
        context: &str,
        arguments: &[&str],
    ) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["--context", context])
            .args(arguments);
        command.env("WEFT_HELM", own_helm());
        command
    }

    /// The same helm in a context, not yet started: what a person without slicectl runs.
    pub fn helm_command(&self, context: &str, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(own_helm());
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["--kube-context", context, "--namespace", "kube-system"])
            .args(arguments);
        command
    }

    /// Installs hub and members where that is not so yet, and waits until every cluster is Ready on the hub.
    pub async fn install(&self) -> Result<()> {
        let hub = self.hub()?;
        if !has_deployment(hub, names::HUB_NAMESPACE, "weft-hub").await? {
            let mut install = vec!["install", "hub", "--set", "image.tag=dev", "--timeout", INSTALL];
            let values = variable("WEFT_E2E_HUB_VALUES");
            install.extend(values.iter().flat_map(|file| ["--values", file]));
            self.slicectl(&hub.name, &install)?;
        }
        for cluster in &self.clusters {
            let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), names::MEMBER_NAMESPACE);
            if secrets.get_opt("weft-hub-credential").await?.is_none() {
                let token = self.slicectl(&hub.name, &["token", "issue", &cluster.name])?;
                let mut join = vec![
                    "join",
                    "--token",
                    token.trim(),
                    "--set",
                    "image.tag=dev",
                    "--timeout",
                    INSTALL,
                ];
                let values = variable("WEFT_E2E_MEMBER_VALUES");
                join.extend(values.iter().flat_map(|file| ["--values", file]));
                self.slicectl(&cluster.name, &join)?;
            }
        }
        for cluster in &self.clusters {
            self.await_joined(&cluster.name).await?;
            let agents: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), names::MEMBER_NAMESPACE);
            let all = |set: &DaemonSet| {
                set.status.as_ref().is_some_and(|status| {
                    status.desired_number_scheduled > 0
                        && status.number_ready == status.desired_number_scheduled
                })
            };
            cluster
                .await_object(&agents, "weft-netop", "every node agent ready", SLICE_READY, all)
                .await?;
        }
        Ok(())
    }

    /// Waits until a cluster is Ready on the hub.
    pub async fn await_joined(&self, name: &str) -> Result<()> {
        use slice_crds::v1alpha1::Cluster as Member;
        let hub = self.hub()?;
        let clusters: Api<Member> = Api::namespaced(hub.client.clone(), PROJECT);
        let ready = |cluster: &Member| conditions::is_true(conditions::of(cluster), conditions::READY);
        hub.await_object(
            &clusters,
            name,
            &format!("cluster {name} Ready"),
            SLICE_READY,
            ready,
        )
        .await?;
        Ok(())
    }

    /// Installs Weft and makes a slice over all clusters, removed first where an earlier run left it; waits until it
    /// is Ready.
    pub async fn slice(&self, name: &str, spec: Value) -> Result<SliceConfig> {
        self.apply_slice(name, spec).await?;
        self.await_slice(name).await
    }

    /// The same, and nothing is waited for.
    pub async fn apply_slice(&self, name: &str, spec: Value) -> Result<()> {
        self.install().await?;
        self.remove_slice(name).await?;
        let hub = self.hub()?;
        let members: Vec<&str> = self
            .clusters
            .iter()
            .map(|cluster| cluster.name.as_str())
            .collect();
        let mut object = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig",
            "metadata": {"name": name, "namespace": PROJECT},
            "spec": {"clusters": members, "gateway": {"replicas": 1}},
        });
        if let (Some(into), Value::Object(more)) = (object["spec"].as_object_mut(), spec) {
            into.extend(more);
        }
        hub.apply(&object.to_string()).await
    }

    /// Waits until a slice is Ready and as large as its paths carry.
    pub async fn await_slice(&self, name: &str) -> Result<SliceConfig> {
        let hub = self.hub()?;
        let ready = |slice: &SliceConfig| {
            let found = conditions::of(slice);
            let measured = conditions::find(found, conditions::PATH_MTU)
                .is_some_and(|path| path.status != "Unknown" && !path.message.contains("; the slice has"));
            conditions::is_true(found, conditions::READY) && measured
        };
        hub.await_object(
            &self.slices()?,
            name,
            &format!("slice {name} Ready"),
            SLICE_READY,
            ready,
        )
        .await
    }

    pub fn slices(&self) -> Result<Api<SliceConfig>> {
        Ok(Api::namespaced(self.hub()?.client.clone(), PROJECT))
    }

    /// Gives a slice something else of the uplinks.
    pub async fn give(&self, slice: &str, qos: &Value) -> Result<()> {
        let slices = self.slices()?;
        // A merge would leave what is not named as it was.
        let patch = json!({"spec": {"qos": null}});
        slices
            .patch(slice, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        if !qos.is_null() {
            let patch = json!({"spec": {"qos": qos}});
            slices
                .patch(slice, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
        }
        Ok(())
    }

    /// What `slicectl node` shows of a slice on a node.
    pub fn shown(&self, context: &str, node: &str, slice: &str) -> Result<Value> {
        let shown = self.slicectl(context, &["node", node, "--slice", slice, "-o", "json"])?;
        serde_json::from_str(&shown).context("what slicectl node prints")
    }

    /// Waits until the shaper of a node has a class for either direction of a slice, or of a pod of it, with these limits as
    /// `slicectl node` shows them.
    pub async fn await_limits(&self, cluster: &Cluster, node: &str, slice: &str, limits: &str) -> Result<()> {
        let what = format!("node {node}: slice {slice} has {limits}");
        poll(LIMITED, &what, async || {
            let shown = self.shown(&cluster.name, node, slice)?;
            let classes = shown["classes"].as_array().cloned().unwrap_or_default();
            let has = |direction: &str| {
                let mut own = classes.iter().filter(|class| class["direction"] == direction);
                own.any(|class| class["limits"].as_str().unwrap_or_default().contains(limits))
            };
            Ok((has("egress") && has("ingress")).then_some(()))
        })
        .await
    }

    /// Removes a slice and waits until no member has it any more.
    pub async fn remove_slice(&self, name: &str) -> Result<()> {
        let slices = self.slices()?;
        if slices.get_opt(name).await?.is_some() {
            // As `slicectl delete slice --yes` does it: pods that are attached are not waited for.
            let at_once = json!({"metadata": {"annotations": {annotations::DELETE: annotations::NOW}}});
            slices
                .patch(name, &PatchParams::default(), &Patch::Merge(at_once))
                .await?;
            slices.delete(name, &Default::default()).await?;
        }
        for cluster in &self.clusters {
            let mirrors: Api<Slice> = Api::all(cluster.client.clone());
            poll(
                SLICE_READY,
                &format!("cluster {}: slice {name} gone", cluster.name),
                async || Ok(mirrors.get_opt(name).await?.is_none().then_some(())),
            )
            .await?;
        }
        Ok(())
    }

    /// A namespace in every cluster with a serving pod on every node, each attached to the slice.
    pub async fn members(&self, slice: &str, namespace: &str) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        for cluster in &self.clusters {
            cluster
                .fresh_namespace(namespace, &[(labels::SLICE, slice)])
                .await?;
            for node in cluster.nodes().await? {
                let name = format!("{ON_NODE}{node}");
                cluster
                    .create_pod(namespace, &PodSpec::new(&name, &self.image).node(&node))
                    .await?;
                members.push((cluster, name));
            }
        }
        let mut attached = Vec::new();
        for (cluster, name) in members {
            attached.push(cluster.member(namespace, &name, slice).await?);
        }
        Ok(attached)
    }

    pub async fn remove_namespaces(&self, namespace: &str) -> Result<()> {
        for cluster in &self.clusters {
            cluster.remove_namespace(namespace).await?;
        }
        Ok(())
    }
}

/// The `slicectl` that was built here, or the one that `WEFT_SLICECTL` names.
pub fn own_slicectl() -> PathBuf {
    std::env::var("WEFT_SLICECTL").map_or_else(
        |_| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/lab/slicectl")),
        PathBuf::from,
    )
}

/// The helm that `WEFT_HELM` names, the lab's, or the one that is installed.
fn own_helm() -> PathBuf {
    let built = || Cache::open().map_or_else(|_| PathBuf::from("helm"), |cache| cache.bin().join("helm"));
    std::env::var_os("WEFT_HELM").map_or_else(built, PathBuf::from)
}

impl Cluster {
    /// The slice's gateways here, in the order of their ordinals.
    pub async fn gateways(&self, slice: &str) -> Result<Vec<SliceGateway>> {
        let gateways: Api<SliceGateway> = Api::namespaced(self.client.clone(), names::MEMBER_NAMESPACE);
        let mut gateways = gateways.list(&ListParams::default()).await?.items;
        gateways.retain(|gateway| gateway.spec.slice == slice);
        gateways.sort_by_key(|gateway| gateway.spec.ordinal);
        Ok(gateways)
    }

    /// The pod of a node's agent.
    pub async fn agent_of(&self, node: &str) -> Result<Pod> {
        let agents = ListParams::default()
            .labels(&format!("{}=netop", labels::COMPONENT))
            .fields(&format!("spec.nodeName={node}"));
        let agents = self.pods(names::MEMBER_NAMESPACE).list(&agents).await?;
        // One that ends may still be there beside its successor.
        let stays = |agent: &Pod| agent.metadata.deletion_timestamp.is_none();
        let agent = agents.items.into_iter().find(stays);
        agent.with_context(|| format!("no agent on {node}"))
    }

    /// A client with the permissions of a node's agent: its token is bound to the agent's pod there.
    pub async fn as_agent_of(&self, node: &str) -> Result<Client> {
        let agent = self.agent_of(node).await?;
        self.as_account(names::MEMBER_NAMESPACE, "weft-netop", Some(&agent))
            .await
    }

    /// Waits until a pod runs and is attached.
    pub async fn member(&self, namespace: &str, name: &str, slice: &str) -> Result<Member> {
        let what = format!("pod {namespace}/{name} running and attached to {slice}");
        let holds = |pod: &Pod| is_ready(pod) && attachment(pod, slice).is_some();
        let pod = self
            .await_object(&self.pods(namespace), name, &what, ATTACHED * 2, holds)
            .await?;
        let attachment = attachment(&pod, slice).context("just seen")?;
        Ok(Member {
            cluster: self.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            attachment,
        })
    }

    /// Waits until a running pod's annotation says that it is in the slice, or that it is not.
    pub async fn await_attachment(
        &self,
        namespace: &str,
        name: &str,
        slice: &str,
        wanted: bool,
    ) -> Result<()> {
        let state = if wanted { "attached to" } else { "detached from" };
        let what = format!("pod {namespace}/{name} {state} {slice}");
        let holds = |pod: &Pod| attachment(pod, slice).is_some() == wanted;
        self.await_object(&self.pods(namespace), name, &what, ATTACHED, holds)
            .await?;
        Ok(())
    }

    /// Sets or removes a label of a namespace.
    pub async fn label_namespace(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"metadata": {"labels": {key: value}}}));
        namespaces
            .patch(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("label namespace {name} in cluster {}", self.name))?;
        Ok(())
    }

    /// Sets or removes an annotation of a node.
    pub async fn annotate_node(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
        nodes
            .patch(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("annotate node {name} in cluster {}", self.name))?;
        Ok(())
    }

    /// Runs a shell line in a pod.
    pub async fn shell(&self, namespace: &str, pod: &str, line: &str) -> Result<String> {
        let output = self.exec(namespace, pod, &["/bin/sh", "-c", line]).await?;
        ensure!(output.code == 0, "`{line}` in {namespace}/{pod}: {output:?}");
        Ok(output.stdout)
    }

    /// Deletes the pods with a label, as a crash or an upgrade does, and returns their names.
    pub async fn delete_pods(&self, namespace: &str, selector: &str) -> Result<Vec<String>> {
        let pods = self.pods(namespace);
        let found = pods.list(&ListParams::default().labels(selector)).await?;
        for pod in &found {
            pods.delete(
                &pod.name_any(),
                &kube::api::DeleteParams::default().grace_period(0),
            )
            .await?;
        }
        ensure!(
            !found.items.is_empty(),
            "no pod {selector} in {namespace} of cluster {}",
            self.name
        );
        Ok(found.iter().map(ResourceExt::name_any).collect())
    }
}

/// What the pod's annotation says of one slice.
pub fn attachment(pod: &Pod, slice: &str) -> Option<Attachment> {
    let text = pod.annotations().get(labels::ATTACHMENTS)?;
    let all: Vec<Attachment> = serde_json::from_str(text).ok()?;
    all.into_iter().find(|attachment| attachment.slice == slice)
}

/// The address part of what a probe says it was seen as.
pub fn seen_as(answer: &Value) -> Result<IpAddr> {
    let text = answer["seen_as"]
        .as_str()
        .with_context(|| format!("no seen_as in {answer}"))?;
    Ok(text
        .parse::<SocketAddr>()
        .with_context(|| format!("seen_as \"{text}\""))?
        .ip()
        .to_canonical())
}

async fn has_deployment(cluster: &Cluster, namespace: &str, name: &str) -> Result<bool> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    Ok(deployments.get_opt(name).await?.is_some())
}
