//! What a node's own programs do to the container runtime's CNI directories, and that pods start all the same.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::Api;
use serde_json::json;
use slice_crds::{
    names,
    v1alpha1::{SliceNode, SliceNodePhase},
};
use slice_e2e::{
    harness::{Cluster, Environment, PodSpec, poll},
    progress::say,
};

const SOON: Duration = Duration::from_secs(30);
/// The kubelet waits up to 10 s before it starts a container again that ended.
const RESTARTED: Duration = Duration::from_secs(60);
/// The other program writes for 20 s, and the agent every 30 s at least.
const CALM: Duration = Duration::from_secs(60);
/// Takes the plugin's element out of the list that is read, as if nobody had put it in.
const WITHOUT: &str = r#"sed 's/,{[^{}]*"slice-cni"[^{}]*}//'"#;

struct Node<'a> {
    environment: &'a Environment,
    cluster: &'a Cluster,
    name: String,
}

impl Node<'_> {
    fn run(&self, script: &str) -> Result<String> {
        let output = self
            .environment
            .lab()?
            .command(&self.name, "sh")?
            .args(["-euc", script])
            .output()
            .context("run a script on a node")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{script} on {}: {errors}", self.name);
        Ok(text)
    }

    /// Waits until a command on the node succeeds.
    async fn holds(&self, what: &str, deadline: Duration, test: &str) -> Result<()> {
        let what = format!("{what} on {}", self.name);
        poll(deadline, &what, async || Ok(self.run(test).is_ok().then_some(()))).await
    }

    /// A pod of the slice that ends with an error where it starts without its interface, and one that is in no slice.
    async fn pods_start(&self, slice: &str, inside: &str, outside: &str, suffix: &str) -> Result<()> {
        let interface = format!("/sys/class/net/{}", names::pod_interface(slice));
        let line = format!("test -e {interface} && exec /usr/bin/weft-probe serve");
        let image = &self.environment.image;
        let member = PodSpec::new(&format!("member-{suffix}"), image)
            .node(&self.name)
            .command(&["/bin/sh", "-c", &line])
            .readiness(json!({"tcpSocket": {"port": 7777}, "periodSeconds": 1}));
        let other = PodSpec::new(&format!("other-{suffix}"), image).node(&self.name);
        self.cluster.create_pod(inside, &member).await?;
        self.cluster.create_pod(outside, &other).await?;
        self.cluster.member(inside, &member.name, slice).await?;
        self.cluster.await_pod(outside, &other.name, SOON).await?;
        let pod = self.cluster.pods(inside).get(&member.name).await?;
        let statuses = pod.status.and_then(|status| status.container_statuses);
        let restarts: i32 = (statuses.iter().flatten())
            .map(|status| status.restart_count)
            .sum();
        ensure!(restarts == 0, "{suffix}: it has started without its interface");
        Ok(())
    }

    async fn phase(&self, phase: SliceNodePhase, part: &str, deadline: Duration) -> Result<()> {
        let nodes: Api<SliceNode> = Api::all(self.cluster.client.clone());
        let what = format!("{phase:?} with {part:?}");
        let holds = |node: &SliceNode| {
            let Some(status) = &node.status else { return false };
            let mut conditions = status.conditions.iter();
            status.phase == phase && conditions.any(|condition| condition.message.contains(part))
        };
        self.cluster
            .await_object(&nodes, &self.name, &what, deadline, holds)
            .await?;
        Ok(())
    }
}

#[tokio::test]
async fn pods_start_whatever_becomes_of_the_cni_directories() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let (slice, inside, outside) = ("moving", "weft-moving", "plain-moving");
    environment
        .slice(slice, json!({"subnets": ["10.93.0.0/16"]}))
        .await?;
    environment.members(slice, inside).await?;
    let cluster = environment.cluster(1)?;
    cluster.fresh_namespace(outside, &[]).await?;
    let node = Node {
        environment: &environment,
        cluster,
        name: cluster.nodes().await?.remove(0),
    };
    let chained = "grep -q slice-cni /etc/cni/net.d/10-lab.conflist";
    node.holds("the plugin in its list", SOON, chained).await?;

    // That the directory of lists is replaced is followed too (netop/tests/netns/cni.rs); containerd 1.6 itself does not,
    // and is without a network until it starts again.

    // The agent has this directory mounted: only another container of it sees the new one.
    let agent = cluster.agent_of(&node.name).await?;
    let agent = agent.metadata.name.context("a name")?;
    node.run("mv /opt/cni /opt/moved && cp -a /opt/moved /opt/cni && rm /opt/cni/bin/slice-cni")?;
    node.holds(
        "the plugin in the new directory",
        RESTARTED,
        "test -x /opt/cni/bin/slice-cni",
    )
    .await?;
    cluster
        .await_pod(names::MEMBER_NAMESPACE, &agent, RESTARTED)
        .await?;
    node.pods_start(slice, inside, outside, "plugins").await?;
    say("the directory of plugins was replaced");

    // A runtime that does not find a plugin starts no pod: it is in the list no longer than it is there.
    node.run("rm -r /opt/moved; mkdir /opt/cni/away; mv /opt/cni/bin/* /opt/cni/away/")?;
    node.phase(SliceNodePhase::Degraded, "netop.cniBinDir", SOON)
        .await?;
    ensure!(node.run(chained).is_err(), "it is still in the list");
    node.run("mv /opt/cni/away/* /opt/cni/bin/; rmdir /opt/cni/away")?;
    node.phase(SliceNodePhase::Ready, "", SOON).await?;
    node.pods_start(slice, inside, outside, "again").await?;

    // Another program restores its own list, 50 times a second for 20 s.
    let list = "/etc/cni/net.d/10-lab.conflist";
    node.run(&format!(
        "{WITHOUT} {list} > /run/own-list; \
         (n=0; while [ $n -lt 1000 ]; do cmp -s /run/own-list {list} || {{ cp /run/own-list {list}.tmp && mv {list}.tmp {list}; }}; \
         sleep 0.02; n=$((n + 1)); done) > /dev/null 2>&1 &"
    ))?;
    node.phase(SliceNodePhase::Degraded, "cni.exclusive=false", SOON)
        .await?;
    let other = PodSpec::new("other-contested", &environment.image).node(&node.name);
    cluster.create_pod(outside, &other).await?;
    cluster.await_pod(outside, &other.name, SOON).await?;
    // Once that is over the plugin comes back by itself.
    node.holds("the plugin in the list again", CALM, chained).await?;
    node.pods_start(slice, inside, outside, "calm").await?;
    say("another program restored its own list, and stopped");
    environment.remove_namespaces(inside).await?;
    cluster.remove_namespace(outside).await?;
    environment.remove_slice(slice).await
}
