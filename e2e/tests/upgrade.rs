//! `make test-upgrade REF=…`: hub, members and agents roll from another version to this one and back, and no pod notices.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{Api, ListParams},
};
use serde_json::json;
use slice_crds::{
    names,
    v1alpha1::{Slice, SliceNode},
};
use slice_e2e::{
    harness::{
        Cluster, Environment, Pace, Streams, is_ready, poll,
        weft::{Member, own_slicectl},
    },
    lab::ours,
    progress::{Progress, say},
};

/// For how long packets flow in each direction of the roll, which must be over before.
const ROLL: Duration = Duration::from_secs(150);
/// For every pod of a component to be replaced and ready.
const REPLACED: Duration = Duration::from_secs(180);
const SLICE: &str = "rolls";
const NAMESPACE: &str = "weft-rolls";

/// A `slicectl`, which has its charts in it, and the tag of the images that belong to it.
struct Version {
    slicectl: PathBuf,
    tag: &'static str,
}

impl Version {
    fn former() -> Result<Self> {
        let slicectl = std::env::var_os("WEFT_UPGRADE_SLICECTL")
            .context("no version to come from: run `make test-upgrade REF=…`")?;
        Ok(Self {
            slicectl: slicectl.into(),
            tag: "ref",
        })
    }

    fn present() -> Self {
        Self {
            slicectl: own_slicectl(),
            tag: ours::TAG,
        }
    }

    fn run(&self, environment: &Environment, cluster: &Cluster, arguments: &[&str]) -> Result<String> {
        environment.slicectl_of(&self.slicectl, &cluster.name, arguments)
    }

    fn install(
        &self,
        environment: &Environment,
        cluster: &Cluster,
        what: &str,
        values: &[&str],
    ) -> Result<()> {
        let tag = format!("image.tag={}", self.tag);
        let mut arguments = vec!["install", what, "--timeout", "180", "--set", &tag];
        for value in values {
            arguments.extend(["--set", value]);
        }
        self.run(environment, cluster, &arguments).map(drop)
    }

    /// Installs it in a member, and waits until every pod there is of this version: also gateways, which nothing waits for
    /// that installs.
    async fn install_member(
        &self,
        environment: &Environment,
        cluster: &Cluster,
        values: &[&str],
    ) -> Result<()> {
        self.install(environment, cluster, "cluster", values)?;
        for namespace in [names::MEMBER_NAMESPACE, names::GATEWAY_NAMESPACE] {
            poll(
                REPLACED,
                &format!(
                    "cluster {}: every pod in {namespace} of version {}",
                    cluster.name, self.tag
                ),
                async || {
                    let pods = cluster.pods(namespace).list(&ListParams::default()).await?;
                    let all = pods.iter().all(|pod| self.has_made(pod) && is_ready(pod));
                    Ok(all.then_some(()))
                },
            )
            .await?;
        }
        Ok(())
    }

    fn has_made(&self, pod: &Pod) -> bool {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let mut images = containers.filter_map(|container| container.image.as_ref());
        images.all(|image| image.ends_with(&format!(":{}", self.tag)))
    }
}

/// What must not change.
async fn facts(environment: &Environment) -> Result<Vec<String>> {
    let mut facts = vec![];
    for cluster in &environment.clusters {
        let slices: Api<Slice> = Api::all(cluster.client.clone());
        let spec = slices.get(SLICE).await.context("the mirror")?.spec;
        facts.push(format!(
            "{}: VNI {} ranges {:?}",
            cluster.name, spec.vni, spec.ranges
        ));
        let pods = cluster.pods(NAMESPACE).list(&ListParams::default()).await?;
        for pod in pods {
            let member = cluster.member(NAMESPACE, &pod.name_any(), SLICE).await?;
            facts.push(format!("{member} {:?} {:?}", pod.uid(), member.attachment));
        }
    }
    Ok(facts)
}

/// Between clusters and between the nodes of one.
async fn start(members: &[Member]) -> Result<Vec<(&'static str, Streams)>> {
    let pace = Pace {
        interval: Duration::from_millis(5),
        gap: Duration::from_millis(100),
        lasts: ROLL,
    };
    let last = members.last().context("a pod")?;
    Ok(vec![
        ("between clusters", Streams::start(&members[0], last, pace).await?),
        (
            "between nodes",
            Streams::start(&members[0], &members[1], pace).await?,
        ),
    ])
}

/// Whether the nodes carry frames by programs, as every release since the one with bridges does.
async fn has_programs(environment: &Environment) -> Result<bool> {
    let mut nodes = vec![];
    for cluster in &environment.clusters {
        let all: Api<SliceNode> = Api::all(cluster.client.clone());
        nodes.extend(all.list(&ListParams::default()).await?);
    }
    let has = |node: &SliceNode| {
        node.status
            .as_ref()
            .is_some_and(|status| status.features.contains_key("ebpf"))
    };
    Ok(nodes.iter().all(has))
}

/// What a roll may cost.
#[derive(Clone, Copy)]
struct Allowance {
    /// Messages of each conversation.
    lost: usize,
    gap_ms: f64,
}

impl Allowance {
    const NOTHING: Self = Self {
        lost: 0,
        gap_ms: f64::MAX,
    };
    /// A node changes its VXLAN devices at one moment and those of the others at another: docs/operations.md, "Another
    /// version, and back".
    const CHANGE_OF_DATA_PATH: Self = Self {
        lost: 200,
        gap_ms: 500.0,
    };
}

async fn finish(what: &str, begun: Instant, streams: Vec<(&str, Streams)>, allowed: Allowance) -> Result<()> {
    ensure!(
        begun.elapsed() < ROLL,
        "{what} took {:?}, longer than the streams",
        begun.elapsed()
    );
    let mut troubles = vec![];
    for (path, streams) in streams {
        let (udp, tcp) = streams.finish().await?;
        say(format!("{what}, {path}: UDP {udp:?}, TCP {tcp:?}"));
        let lost = udp.lost > allowed.lost || udp.longest_gap_ms > allowed.gap_ms;
        if lost || tcp.lost > 0 || tcp.broken.is_some() {
            troubles.push(format!("{path}: UDP {udp:?}, TCP {tcp:?}"));
        }
    }
    ensure!(troubles.is_empty(), "{what}: {}", troubles.join("; "));
    Ok(())
}

/// Moves gateways and peers to where a version with bridges looks for them; it knows of no other place.
async fn move_back(environment: &Environment, cluster: &Cluster, present: &Version) -> Result<()> {
    let place = format!("gateways.namespace={}", names::MEMBER_NAMESPACE);
    let values = [&*place, "operator.servedInline=true"];
    present.install_member(environment, cluster, &values).await?;
    poll(REPLACED, "the gateways are where they were", async || {
        let pods = cluster.pods(names::GATEWAY_NAMESPACE);
        let pods = pods.list(&ListParams::default()).await?;
        Ok(pods.items.is_empty().then_some(()))
    })
    .await
}

/// Takes our programs off the ports of every node, once an agent that does not know them has built its bridges.
async fn remove_programs(environment: &Environment, cluster: &Cluster) -> Result<()> {
    const LINE: &str =
        "for port in $(ls /sys/class/net | grep -E '^w[pt]-'); do tc qdisc del dev $port clsact; done";
    for node in cluster.nodes().await? {
        let mut shell = environment.lab()?.command(&node, "sh")?;
        let output = shell
            .args(["-c", LINE])
            .output()
            .context("run a shell on a node")?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "node {node}: `{LINE}`: {words}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_to_this_version_and_back_loses_nothing() -> Result<()> {
    let progress = Progress::start();
    let environment = Environment::open().await?;
    environment.lab()?;
    let hub = environment.hub()?;
    let (former, present) = (Version::former()?, Version::present());
    former.install(&environment, hub, "hub", &[])?;
    for cluster in &environment.clusters {
        let token = former.run(&environment, hub, &["token", "issue", &cluster.name])?;
        let tag = format!("image.tag={}", former.tag);
        let join = ["join", "--token", token.trim(), "--timeout", "180", "--set", &tag];
        former.run(&environment, cluster, &join)?;
        environment.await_joined(&cluster.name).await?;
    }
    let spec = json!({"subnets": ["10.83.0.0/22"], "gateway": {"replicas": 2}});
    environment.slice(SLICE, spec).await?;
    let members = environment.members(SLICE, NAMESPACE).await?;
    let before = facts(&environment).await?;
    let like_ours = has_programs(&environment).await?;
    let allowed = if like_ours {
        Allowance::NOTHING
    } else {
        Allowance::CHANGE_OF_DATA_PATH
    };
    progress.done("the former version is installed");

    let (begun, streams) = (Instant::now(), start(&members).await?);
    present.install(&environment, hub, "hub", &[])?;
    progress.done("the hub is of this version");
    for cluster in &environment.clusters {
        present.install_member(&environment, cluster, &[]).await?;
        environment.await_joined(&cluster.name).await?;
        progress.done(format!("cluster {} is of this version", cluster.name));
    }
    environment.await_slice(SLICE).await?;
    finish("to this version", begun, streams, allowed).await?;
    ensure!(
        facts(&environment).await? == before,
        "{before:#?} became {:#?}",
        facts(&environment).await?
    );

    let (begun, streams) = (Instant::now(), start(&members).await?);
    for cluster in &environment.clusters {
        if !like_ours {
            move_back(&environment, cluster, &present).await?;
        }
        former.install_member(&environment, cluster, &[]).await?;
        if !like_ours {
            remove_programs(&environment, cluster).await?;
        }
        progress.done(format!("cluster {} is of the former version", cluster.name));
    }
    former.install(&environment, hub, "hub", &[])?;
    for cluster in &environment.clusters {
        environment.await_joined(&cluster.name).await?;
    }
    environment.await_slice(SLICE).await?;
    progress.done("the hub is of the former version");
    finish("back", begun, streams, allowed).await?;
    ensure!(
        facts(&environment).await? == before,
        "{before:#?} became {:#?}",
        facts(&environment).await?
    );
    Ok(())
}
