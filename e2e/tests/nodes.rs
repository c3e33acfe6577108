//! Nodes that come, boot again, move to another address and go: no pod of a `Required` slice runs without its interface.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod, Taint},
};
use kube::{
    Client, ResourceExt,
    api::{Api, DeleteParams, EvictParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use slice_crds::{
    conditions, names,
    v1alpha1::{Slice, SliceBlock, SliceConfig, SliceNode, SliceNodePhase},
};
use slice_e2e::{
    harness::{
        Cluster, Environment, PodSpec, forgive_absence, is_ready, poll,
        weft::{Member, attachment},
    },
    lab::running::Running,
    progress::say,
};
use tokio::task::block_in_place;

const SOON: Duration = Duration::from_secs(30);
/// A machine boots, its kubelet registers it, the agent starts there.
const BOOTED: Duration = Duration::from_secs(120);

/// How a container ends that finds no interface of its slice.
const NO_INTERFACE: i32 = 77;

/// A pod template whose container serves, and ends with [`NO_INTERFACE`] where it starts without its interface.
fn template(image: &str, app: &str, slice: &str, node: Option<&str>) -> Value {
    let interface = names::pod_interface(slice);
    let line =
        format!("test -e /sys/class/net/{interface} || exit {NO_INTERFACE}; exec /usr/bin/weft-probe serve");
    let selector = node.map(|node| json!({"kubernetes.io/hostname": node}));
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "nodeSelector": selector,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", line],
                "readinessProbe": {"tcpSocket": {"port": 7777}, "periodSeconds": 1},
                // Raw sockets, for the probe.
                "securityContext": {"capabilities": {"add": ["NET_RAW", "NET_ADMIN"]}}
            }]
        }
    })
}

/// No container of a pod has ever started without its interface.
fn ensure_never_without(pod: &Pod) -> Result<()> {
    let statuses = pod.status.iter().flat_map(|status| &status.container_statuses);
    for status in statuses.flatten() {
        for state in [&status.state, &status.last_state].into_iter().flatten() {
            let code = state.terminated.as_ref().map(|ended| ended.exit_code);
            ensure!(
                code != Some(NO_INTERFACE),
                "{} started without its interface: {status:?}",
                pod.name_any()
            );
        }
    }
    Ok(())
}

/// Of all its containers.
fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| &status.container_statuses);
    statuses.flatten().map(|status| status.restart_count).sum()
}

fn internal_address(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let own = addresses.iter().find(|one| one.type_ == "InternalIP")?;
    own.address.parse().ok()
}

/// A node whose address is another one, until this goes.
struct Moved<'a> {
    lab: &'a Running,
    node: String,
    from: Ipv4Addr,
    to: Ipv4Addr,
}

impl<'a> Moved<'a> {
    fn new(lab: &'a Running, node: &str) -> Result<Self> {
        let machine = lab.plan().machine(node)?;
        let (from, to) = (machine.ip4, machine.other_ip4());
        lab.move_node(node, from, to)?;
        Ok(Self {
            lab,
            node: node.to_owned(),
            from,
            to,
        })
    }
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.lab.move_node(&self.node, self.to, self.from) {
            say(format!("{}: {error:#}", self.node));
        }
    }
}

/// Waits until a node has an address in all that follows from it, and a pod on it reaches the others.
async fn await_followed(
    environment: &Environment,
    slice: &str,
    node: &str,
    address: Ipv4Addr,
    from: &Member,
    others: &[Member],
) -> Result<()> {
    let cluster = environment.cluster(1)?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let what = format!("its InternalIP is {address}");
    let moved = |node: &Node| internal_address(node) == Some(address);
    cluster.await_object(&nodes, node, &what, BOOTED, moved).await?;
    let begun = Instant::now();
    let blocks: Api<SliceBlock> = Api::all(cluster.client.clone());
    let what = format!("a block of {node} with {address}");
    let block = |block: &SliceBlock| block.spec.node_address == address;
    cluster
        .await_object(&blocks, &names::block(slice, node), &what, SOON, block)
        .await?;
    for other in others.iter().filter(|other| other.name != from.name) {
        from.await_reached(other, SOON).await?;
        other.await_reached(from, SOON).await?;
    }
    say(format!(
        "{node} at {address}: its pod reaches every other, {:.1} s after its Node says so",
        begun.elapsed().as_secs_f64()
    ));
    // A full round of probes between the nodes, and the agent's report of it.
    let slice_nodes: Api<SliceNode> = Api::all(cluster.client.clone());
    let ready = |node: &SliceNode| {
        node.status
            .as_ref()
            .is_some_and(|status| status.phase == SliceNodePhase::Ready)
    };
    cluster
        .await_object(&slice_nodes, node, "Ready", SOON, ready)
        .await?;
    let slices: Api<Slice> = Api::all(cluster.client.clone());
    let connected = |slice: &Slice| conditions::is_true(conditions::of(slice), conditions::NODES_CONNECTED);
    cluster
        .await_object(&slices, slice, "its nodes connected", BOOTED, connected)
        .await?;
    environment.await_slice(slice).await?;
    Ok(())
}

/// Waits until the pods of an app are ready and attached; none ever ran without its interface.
async fn await_app(
    cluster: &Cluster,
    namespace: &str,
    app: &str,
    slice: &str,
    count: usize,
    holds: impl Fn(&Pod) -> bool,
) -> Result<Vec<Member>> {
    let selected = ListParams::default().labels(&format!("app={app}"));
    let pods = cluster.pods(namespace);
    let what = format!("{count} pods of {app} ready and attached");
    let names = poll(BOOTED, &what, async || {
        let pods = pods.list(&selected).await?;
        let there: Vec<&Pod> = (pods.iter())
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .collect();
        there.iter().try_for_each(|pod| ensure_never_without(pod))?;
        let good = |pod: &&&Pod| is_ready(pod) && attachment(pod, slice).is_some() && holds(pod);
        let done = there.len() == count && there.iter().filter(good).count() == count;
        Ok(done.then(|| there.iter().map(|pod| pod.name_any()).collect::<Vec<_>>()))
    })
    .await?;
    let mut members = Vec::new();
    for name in names {
        members.push(cluster.member(namespace, &name, slice).await?);
    }
    members.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(members)
}

fn startup_taint() -> Taint {
    Taint {
        key: names::AGENT_NOT_READY.into(),
        value: Some("true".into()),
        effect: "NoSchedule".into(),
        ..Taint::default()
    }
}

fn has_startup_taint(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let mut taints = taints.into_iter().flatten();
    taints.any(|taint| taint.key == names::AGENT_NOT_READY)
}

/// A machine that never had an agent takes the place of a node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_fresh_node_a_pod_has_its_interface_from_its_first_moment() -> Result<()> {
    let environment = Environment::open().await?;
    let lab = environment.lab()?;
    let (slice, namespace) = ("growing", "weft-growing");
    environment
        .slice(slice, json!({"subnets": ["10.90.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let cluster = environment.cluster(1)?;
    let far = Member::of(&members, environment.cluster(0)?)?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let name = cluster.nodes().await?.pop().context("a node")?;

    block_in_place(|| lab.replace_node(&name, &[startup_taint()]))?;
    let registered = nodes.get(&name).await?;
    ensure!(
        has_startup_taint(&registered),
        "registered without the taint: {:?}",
        registered.spec
    );
    // It ends with an error where it starts without its interface.
    let interface = format!("/sys/class/net/{}", names::pod_interface(slice));
    let line = format!("test -e {interface} && exec /usr/bin/weft-probe serve");
    // By the scheduler, which looks at taints.
    let early = PodSpec::new("early", &environment.image)
        .spec(json!({"nodeSelector": {"kubernetes.io/hostname": name}}))
        .command(&["/bin/sh", "-c", &line])
        .readiness(json!({"tcpSocket": {"port": 7777}, "periodSeconds": 1}));
    cluster.create_pod(namespace, &early).await?;
    cluster
        .await_object(&nodes, &name, "has no startup taint", BOOTED, |node| {
            !has_startup_taint(node)
        })
        .await?;
    let early = cluster.member(namespace, "early", slice).await?;
    let pod = cluster.pods(namespace).get("early").await?;
    let restarts = restarts(&pod);
    ensure!(
        restarts == 0,
        "it has started {restarts} times without its interface"
    );
    // The slice's only gateway may have been on this node.
    early.await_reached(far, SOON).await?;
    say(format!(
        "{early} started on a node that had no agent before, and reaches {far}"
    ));
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

#[tokio::test]
async fn a_startup_taint_is_taken_off_and_nothing_else_of_a_node_is_changed() -> Result<()> {
    let environment = Environment::open().await?;
    environment.install().await?;
    let cluster = environment.cluster(1)?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let name = cluster.nodes().await?.remove(0);
    let set = async |client: &Client, patch: Value| {
        let nodes: Api<Node> = Api::all(client.clone());
        nodes
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    };
    const OTHER: &str = "example.org/keep";
    let mut before = nodes
        .get(&name)
        .await?
        .spec
        .and_then(|spec| spec.taints)
        .unwrap_or_default();
    // Not what an earlier run left.
    before.retain(|taint| ![OTHER, names::AGENT_NOT_READY].contains(&&*taint.key));
    let before: Vec<Value> = before.iter().map(|taint| json!(taint)).collect();
    let with = |more: &[Value]| json!({"spec": {"taints": ([&before, more].concat())}});
    let other = json!({"key": OTHER, "effect": "PreferNoSchedule"});
    let ours = json!({"key": names::AGENT_NOT_READY, "value": "true", "effect": "NoSchedule"});
    set(&cluster.client, with(&[ours, other.clone()])).await?;
    let wanted = with(&[other]);
    let off = |node: &Node| {
        json!(node.spec.as_ref().and_then(|spec| spec.taints.clone())) == wanted["spec"]["taints"]
    };
    cluster
        .await_object(&nodes, &name, "has its other taint only", SOON, off)
        .await?;

    let operator = cluster
        .as_account(names::MEMBER_NAMESPACE, "weft-operator", None)
        .await?;
    for patch in [
        json!({"metadata": {"labels": {"example.org/role": "db"}}}),
        json!({"spec": {"unschedulable": true}}),
        with(&[]),
    ] {
        let refused = set(&operator, patch.clone()).await;
        ensure!(
            refused.is_err_and(|error| error.to_string().contains("changes nothing else of it")),
            "{patch} was taken"
        );
    }
    set(&cluster.client, with(&[])).await?;
    Ok(())
}

/// The power fails and comes back: the pods are the same, so are their addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_each_pod_has_the_address_that_it_had() -> Result<()> {
    let environment = Environment::open().await?;
    let lab = environment.lab()?;
    let (slice, namespace) = ("booting", "weft-booting");
    environment
        .slice(slice, json!({"subnets": ["10.93.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let far = Member::of(&members, environment.cluster(0)?)?;
    let cluster = environment.cluster(1)?;
    let node = cluster.nodes().await?.pop().context("a node")?;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "kept", "namespace": namespace},
        "spec": {
            "replicas": 4, "serviceName": "kept", "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "kept"}},
            "template": template(&environment.image, "kept", slice, Some(&node)),
        },
    });
    cluster.apply(&set.to_string()).await?;
    let before = await_app(cluster, namespace, "kept", slice, 4, |_| true).await?;

    let containers = |pod: &Pod| -> Vec<String> {
        let statuses = pod.status.iter().flat_map(|status| &status.container_statuses);
        statuses
            .flatten()
            .filter_map(|status| status.container_id.clone())
            .collect()
    };
    let all = cluster.pods(namespace).list(&ListParams::default()).await?;
    let old: Vec<String> = all.iter().flat_map(containers).collect();
    block_in_place(|| {
        lab.stop_machine(&node)?;
        lab.start_machine(&node)
    })?;
    let begun = Instant::now();
    let anew = |pod: &Pod| containers(pod).iter().all(|id| !old.contains(id));
    let after = await_app(cluster, namespace, "kept", slice, 4, anew).await?;
    say(format!(
        "four pods of a StatefulSet run again {:.1} s after their node was switched on",
        begun.elapsed().as_secs_f64()
    ));
    for (before, after) in before.iter().zip(&after) {
        ensure!(
            before.name == after.name && before.attachment == after.attachment,
            "{before} had {:?}, {after} has {:?}",
            before.attachment,
            after.attachment
        );
        after.await_reached(far, SOON).await?;
    }
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_moves_to_another_address_is_followed() -> Result<()> {
    let environment = Environment::open().await?;
    let lab = environment.lab()?;
    let (slice, namespace) = ("moving", "weft-moving");
    environment
        .slice(slice, json!({"subnets": ["10.94.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let cluster = environment.cluster(1)?;
    let node = cluster.nodes().await?.pop().context("a node")?;
    let of_node = |member: &&Member| member.cluster.name == cluster.name && member.node() == node;
    let own = members.iter().find(of_node).context("its pod")?;
    let agent = cluster.agent_of(&node).await?;

    let moved = block_in_place(|| Moved::new(lab, &node))?;
    let (first, second) = (moved.from, moved.to);
    await_followed(&environment, slice, &node, second, own, &members).await?;
    block_in_place(|| drop(moved));
    await_followed(&environment, slice, &node, first, own, &members).await?;

    let now = cluster.agent_of(&node).await?;
    ensure!(
        now.uid() == agent.uid() && restarts(&now) == restarts(&agent),
        "the agent was restarted"
    );
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_drained_and_deleted_is_missed_by_nobody() -> Result<()> {
    let environment = Environment::open().await?;
    let lab = environment.lab()?;
    let (slice, namespace) = ("drained", "weft-drained");
    environment
        .slice(slice, json!({"subnets": ["10.95.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let far = Member::of(&members, environment.cluster(0)?)?;
    let cluster = environment.cluster(1)?;
    let client = || cluster.client.clone();
    let node = cluster.nodes().await?.pop().context("a node")?;
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "roaming", "namespace": namespace},
        "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "roaming"}},
            "template": template(&environment.image, "roaming", slice, None),
        },
    });
    cluster.apply(&deployment.to_string()).await?;
    await_app(cluster, namespace, "roaming", slice, 3, |_| true).await?;

    let nodes: Api<Node> = Api::all(client());
    nodes.cordon(&node).await?;
    let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let all: Api<Pod> = Api::all(client());
    for pod in all.list(&here).await?.iter() {
        let of_a_daemon = pod
            .owner_references()
            .iter()
            .any(|owner| owner.kind == "DaemonSet");
        if of_a_daemon {
            continue;
        }
        let pods: Api<Pod> = Api::namespaced(client(), &pod.namespace().context("its namespace")?);
        let name = pod.name_any();
        // A PodDisruptionBudget may ask for a moment of patience, as kubectl drain has it.
        poll(BOOTED, &format!("{name} may be evicted"), async || {
            match pods.evict(&name, &EvictParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 429 => Ok(None),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(Some(())),
                other => Ok(other.map(|_| Some(()))?),
            }
        })
        .await?;
    }
    let elsewhere = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        spec.and_then(|spec| spec.node_name.as_deref()) != Some(&*node)
    };
    let moved = await_app(cluster, namespace, "roaming", slice, 3, elsewhere).await?;
    for pod in &moved {
        pod.await_reached(far, SOON).await?;
    }
    block_in_place(|| lab.stop_machine(&node))?;
    forgive_absence(nodes.delete(&node, &DeleteParams::default()).await)?;
    // Its blocks stay its own for ten minutes, because it may only be cut off: nobody else waits for them.
    let hub = environment.hub()?;
    let slices = environment.slices()?;
    let ready = |slice: &SliceConfig| conditions::is_true(conditions::of(slice), conditions::READY);
    let missed = hub.await_object(&slices, slice, "Ready", BOOTED, ready).await;
    // A machine of that name is bought again.
    block_in_place(|| lab.replace_node(&node, &[startup_taint()]))?;
    missed?;
    let free = |node: &Node| !has_startup_taint(node);
    cluster
        .await_object(&nodes, &node, "has no startup taint", BOOTED, free)
        .await?;
    let deployments: Api<Deployment> = Api::namespaced(client(), namespace);
    let scale = Patch::Merge(json!({"spec": {"replicas": 6}}));
    deployments
        .patch("roaming", &PatchParams::default(), &scale)
        .await?;
    let grown = await_app(cluster, namespace, "roaming", slice, 6, |_| true).await?;
    let pods = cluster.pods(namespace).list(&here).await?;
    ensure!(!pods.items.is_empty(), "nothing runs on the new machine");
    for pod in &grown {
        pod.await_reached(far, SOON).await?;
    }
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}
