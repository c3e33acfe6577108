//! `slicectl uninstall` is `helm uninstall`, and afterwards a cluster is as it was; what is broken off, also by deleting the
//! namespace, is finished or undone by running it again.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Event, Namespace, Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    ResourceExt,
    api::{Api, DeleteParams, ListParams},
};
use serde_json::json;
use slice_crds::{
    labels, names,
    v1alpha1::{SliceNode, SliceNodePhase},
};
use slice_e2e::{
    harness::{Cluster, Environment, PodSpec, poll, weft::Member},
    progress::say,
};

/// A pod starts, ends, or says why it waits; the kubelet tries again every ten seconds or so.
const SOON: Duration = Duration::from_secs(40);
/// Tunnels are up again after an installation, with new keys.
const REACHED: Duration = Duration::from_secs(90);
/// The release of a member.
const RELEASE: &str = "weft-member";

/// What Weft could leave behind in a cluster's API.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    namespaces: BTreeSet<String>,
    kinds: BTreeSet<String>,
    corefile: String,
}

async fn traces(cluster: &Cluster) -> Result<Traces> {
    let client = || cluster.client.clone();
    // Those with a slice's label are the users'.
    let ours = |namespace: &&Namespace| {
        namespace.name_any().starts_with("weft-") && !namespace.labels().contains_key(labels::SLICE)
    };
    let namespaces = Api::<Namespace>::all(client()).list(&Default::default()).await?;
    let kinds = Api::<CustomResourceDefinition>::all(client())
        .list(&Default::default())
        .await?;
    let corefile = Api::<ConfigMap>::namespaced(client(), "kube-system")
        .get("coredns")
        .await?;
    Ok(Traces {
        namespaces: namespaces
            .iter()
            .filter(ours)
            .map(ResourceExt::name_any)
            .collect(),
        kinds: kinds
            .iter()
            .map(ResourceExt::name_any)
            .filter(|name| name.contains("weft") || name.contains("multicluster"))
            .collect(),
        corefile: corefile.data.context("data")?["Corefile"].clone(),
    })
}

/// Interfaces, filter tables, programs and CNI lists of Weft on a node of the lab. The CNI plugin's file stays: runtimes that
/// keep a pod's configuration need it until the last pod that had it is gone.
fn on_node(environment: &Environment, node: &str) -> Result<String> {
    let look = "ip -o link | grep -oE ' w[xutp]-[^:@]+' ; nft list tables | grep weft ; tc filter show | grep weft ; \
                grep -l slice-cni /etc/cni/net.d/* ; ls -A /run/weft /var/lib/weft 2>/dev/null \
                | grep -v '^/' ; true";
    let output = environment
        .lab()?
        .command(node, "sh")?
        .args(["-c", look])
        .output()
        .context("look at a node")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn nothing_is_left_behind() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let slice = "gone";
    environment
        .slice(slice, json!({"subnets": ["10.92.0.0/16"]}))
        .await?;
    let members = environment.members(slice, "weft-gone").await?;
    let clusters = &environment.clusters;
    for member in &members {
        let there = on_node(&environment, member.node())?;
        ensure!(
            there.contains(" wp-") && there.contains(" wx-pods") && there.contains("/etc/cni/net.d/"),
            "before: {there}"
        );
    }
    // With pods still attached: uninstalling detaches them, and they go on.
    for cluster in clusters {
        environment.slicectl(&cluster.name, &["uninstall", "cluster", "--timeout", "150"])?;
    }
    // What people wrote stays until somebody says so, also when the release is gone already.
    let exports = "serviceexports.multicluster.x-k8s.io";
    for cluster in clusters {
        let kept = traces(cluster).await?.kinds;
        ensure!(kept.contains(exports), "{}: {kept:?}", cluster.name);
        environment.slicectl(
            &cluster.name,
            &["uninstall", "cluster", "--purge", "--timeout", "150"],
        )?;
    }
    environment.slicectl(
        &environment.hub()?.name,
        &["uninstall", "hub", "--purge", "--timeout", "150"],
    )?;
    for cluster in clusters {
        cluster.await_no_namespace(names::MEMBER_NAMESPACE).await?;
        cluster.await_no_namespace(names::GATEWAY_NAMESPACE).await?;
        cluster.await_no_namespace(names::HUB_NAMESPACE).await?;
        cluster.await_no_namespace("weft-default").await?;
        let left = traces(cluster).await?;
        ensure!(
            left.namespaces.is_empty() && left.kinds.is_empty(),
            "{}: {left:?}",
            cluster.name
        );
        ensure!(
            !left.corefile.contains("weft") && !left.corefile.contains("slice.local"),
            "{}",
            left.corefile
        );
        for node in cluster.nodes().await? {
            let left = on_node(&environment, &node)?;
            ensure!(left.trim().is_empty(), "left on {node}: {left}");
        }
    }
    for member in &members {
        let links = member
            .cluster
            .shell(&member.namespace, &member.name, "ls /sys/class/net")
            .await?;
        ensure!(
            !links.contains(&names::pod_interface(slice)),
            "{member} still has it: {links}"
        );
        let pod = member.cluster.pods(&member.namespace).get(&member.name).await?;
        ensure!(slice_e2e::harness::is_ready(&pod), "{member} did not go on");
    }
    environment.remove_namespaces("weft-gone").await?;
    // And again, as an upgrade by removal would.
    environment.install().await
}

/// A slice with a pod on every node, and a namespace outside; the second cluster is the one that something happens to.
struct Stage {
    environment: Environment,
    slice: &'static str,
    inside: String,
    outside: String,
    members: Vec<Member>,
}

impl Stage {
    async fn set(slice: &'static str, subnet: &str) -> Result<Self> {
        let environment = Environment::open().await?;
        environment.lab()?;
        environment.slice(slice, json!({"subnets": [subnet]})).await?;
        let (inside, outside) = (format!("weft-{slice}"), format!("plain-{slice}"));
        let members = environment.members(slice, &inside).await?;
        environment.cluster(1)?.fresh_namespace(&outside, &[]).await?;
        Ok(Self {
            environment,
            slice,
            inside,
            outside,
            members,
        })
    }

    fn cluster(&self) -> Result<&Cluster> {
        self.environment.cluster(1)
    }

    /// Members in that cluster.
    fn own(&self) -> Result<Vec<&Member>> {
        let name = &self.cluster()?.name;
        Ok(self
            .members
            .iter()
            .filter(|one| one.cluster.name == *name)
            .collect())
    }

    /// A pod reaches another one at the address that this has then, as soon as it does.
    async fn reaches(&self, from: &Member, to: &Member, deadline: Duration) -> Result<()> {
        poll(deadline, &format!("{from} reaches {to}"), async || {
            let to = to.cluster.member(&to.namespace, &to.name, self.slice).await?;
            let answer = from
                .probe(&["ping", &to.v4()?.to_string(), "--count", "3"])
                .await?;
            Ok((answer["received"] == 3).then_some(()))
        })
        .await
    }

    async fn create(&self, namespace: &str, name: &str) -> Result<()> {
        let cluster = self.cluster()?;
        let node = cluster.nodes().await?.remove(0);
        let pod = PodSpec::new(name, &self.environment.image).node(&node);
        cluster.create_pod(namespace, &pod).await?;
        Ok(())
    }

    /// A pod outside every slice starts and ends.
    async fn outside_goes_on(&self, name: &str) -> Result<()> {
        let cluster = self.cluster()?;
        self.create(&self.outside, name).await?;
        cluster.await_pod(&self.outside, name, SOON).await?;
        self.ends(&self.outside, name).await
    }

    async fn ends(&self, namespace: &str, name: &str) -> Result<()> {
        let pods = self.cluster()?.pods(namespace);
        pods.delete(name, &DeleteParams::default()).await?;
        poll(SOON, &format!("pod {namespace}/{name} gone"), async || {
            Ok(pods.get_opt(name).await?.is_none().then_some(()))
        })
        .await
    }

    /// A new pod of the slice waits, and its events say for what.
    async fn waits(&self, name: &str) -> Result<()> {
        self.create(&self.inside, name).await?;
        let events: Api<Event> = Api::namespaced(self.cluster()?.client.clone(), &self.inside);
        let of_pod = ListParams::default().fields(&format!("involvedObject.name={name}"));
        poll(
            SOON,
            &format!("an event of {name} with both ways out"),
            async || {
                let events = events.list(&of_pod).await?;
                let says = |event: &Event| {
                    let text = event.message.as_deref().unwrap_or_default();
                    [
                        "node agent does not answer",
                        "slicectl join",
                        "slicectl uninstall cluster",
                    ]
                    .iter()
                    .all(|part| text.contains(part))
                };
                Ok(events.iter().any(says).then_some(()))
            },
        )
        .await
    }

    async fn delete_namespace(&self) -> Result<()> {
        let cluster = self.cluster()?;
        cluster.remove_namespace(names::MEMBER_NAMESPACE).await?;
        cluster.await_no_namespace(names::MEMBER_NAMESPACE).await
    }

    /// Nothing of Weft is left in the cluster but what was there before and the plugin's file.
    async fn is_gone(&self) -> Result<()> {
        let cluster = self.cluster()?;
        for namespace in [names::MEMBER_NAMESPACE, names::GATEWAY_NAMESPACE] {
            cluster.await_no_namespace(namespace).await?;
        }
        let left = traces(cluster).await?;
        let weft: Vec<_> = left.kinds.iter().filter(|name| name.contains("weft")).collect();
        ensure!(left.namespaces.is_empty() && weft.is_empty(), "{left:?}");
        ensure!(
            !left.corefile.contains("weft") && !left.corefile.contains("slice.local"),
            "{}",
            left.corefile
        );
        for node in cluster.nodes().await? {
            let left = on_node(&self.environment, &node)?;
            ensure!(left.trim().is_empty(), "left on {node}: {left}");
        }
        ensure!(self.records().await?.is_empty(), "helm has a record still");
        Ok(())
    }

    /// helm's records, newest last, as name and status.
    async fn records(&self) -> Result<Vec<(String, String)>> {
        let secrets: Api<Secret> = Api::namespaced(self.cluster()?.client.clone(), "kube-system");
        let own = ListParams::default().labels(&format!("owner=helm,name={RELEASE}"));
        let mut records = secrets.list(&own).await?.items;
        let label = |record: &Secret, key: &str| record.labels().get(key).cloned().unwrap_or_default();
        records.sort_by_key(|record| label(record, "version").parse::<u32>().unwrap_or_default());
        Ok((records.iter())
            .map(|record| (record.name_any(), label(record, "status")))
            .collect())
    }

    async fn status(&self) -> Result<String> {
        let newest = self.records().await?.pop();
        Ok(newest.context("helm has no record")?.1)
    }

    fn uninstall(&self, more: &[&str]) -> Result<String> {
        let arguments = [&["uninstall", "cluster", "--timeout", "150"], more].concat();
        self.environment.slicectl(&self.cluster()?.name, &arguments)
    }

    /// Every member reaches the others, in its cluster and beyond.
    async fn is_back(&self) -> Result<()> {
        self.environment.await_slice(self.slice).await?;
        for member in self.own()? {
            for other in self.members.iter().filter(|other| other.name != member.name) {
                self.reaches(member, other, REACHED).await?;
            }
        }
        Ok(())
    }

    async fn clear(self) -> Result<()> {
        self.cluster()?.remove_namespace(&self.outside).await?;
        self.environment.remove_namespaces(&self.inside).await?;
        self.environment.remove_slice(self.slice).await
    }
}

#[tokio::test]
async fn what_a_deleted_namespace_took_away_comes_back_by_joining() -> Result<()> {
    let mut stage = Stage::set("undone", "10.87.0.0/16").await?;
    stage.delete_namespace().await?;

    stage.outside_goes_on("meanwhile").await?;
    stage.waits("waiting").await?;
    let status = stage
        .environment
        .try_slicectl(&stage.cluster()?.name, &["status"])?;
    let shown = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(
        !status.status.success() && shown.contains("namespace weft-system was deleted"),
        "{shown}"
    );
    let own = stage.own()?;
    let (first, last) = (own[0].clone(), own[own.len() - 1].clone());
    ensure!(
        first.name != last.name,
        "this test needs two nodes in each cluster"
    );
    stage.reaches(&first, &last, SOON).await?;
    stage.ends(&stage.inside, &first.name).await?;
    say("without its namespace: pods end, others start, nodes reach each other");

    // helm's own attempt fails, and leaves a release that it upgrades no more.
    let helm = stage
        .environment
        .helm_command(
            &stage.cluster()?.name,
            &["uninstall", RELEASE, "--timeout", "20s"],
        )
        .output()
        .context("run helm")?;
    ensure!(!helm.status.success(), "helm uninstalls without the namespace");
    ensure!(
        stage.status().await? == "uninstalling",
        "{}",
        stage.status().await?
    );

    stage.environment.install().await?;
    ensure!(stage.status().await? == "deployed", "{}", stage.status().await?);
    let waiting = stage
        .cluster()?
        .member(&stage.inside, "waiting", stage.slice)
        .await?;
    stage.members.retain(|member| member.name != first.name);
    for member in stage.own()? {
        let now = (member.cluster)
            .member(&member.namespace, &member.name, stage.slice)
            .await?;
        ensure!(
            now.v4()? == member.v4()?,
            "{member} has another address: {:?}",
            now.attachment
        );
    }
    stage.members.push(waiting);
    stage.is_back().await?;
    say("joined again: every pod is in its slice");
    stage.clear().await
}

#[tokio::test]
async fn what_a_deleted_namespace_left_is_taken_off_by_uninstalling() -> Result<()> {
    let stage = Stage::set("finished", "10.88.0.0/16").await?;
    stage.delete_namespace().await?;
    stage.waits("waiting").await?;
    // With nobody left who could clean the nodes.
    stage.uninstall(&[])?;
    stage.is_gone().await?;
    // Who waited starts without an interface, the others go on.
    stage
        .cluster()?
        .await_pod(&stage.inside, "waiting", SOON * 2)
        .await?;
    for member in stage.own()? {
        let pod = stage.cluster()?.pods(&stage.inside).get(&member.name).await?;
        ensure!(slice_e2e::harness::is_ready(&pod), "{member} did not go on");
    }
    stage.outside_goes_on("after").await?;
    stage.ends(&stage.inside, "waiting").await?;
    say("the namespace was gone");

    // Somebody has made it again, empty.
    stage.environment.install().await?;
    stage.delete_namespace().await?;
    stage
        .cluster()?
        .fresh_namespace(names::MEMBER_NAMESPACE, &[])
        .await?;
    stage.uninstall(&[])?;
    stage.is_gone().await?;
    say("the namespace was another one");

    // It is being deleted, and helm's record went too.
    stage.environment.install().await?;
    let secrets: Api<Secret> = Api::namespaced(stage.cluster()?.client.clone(), "kube-system");
    for (record, _) in stage.records().await? {
        secrets.delete(&record, &DeleteParams::default()).await?;
    }
    stage.cluster()?.remove_namespace(names::MEMBER_NAMESPACE).await?;
    stage.uninstall(&["--set", "image.tag=dev"])?;
    stage.is_gone().await?;
    say("helm's record was gone");

    let again = ["uninstall", "cluster"];
    let nothing = stage.environment.try_slicectl(&stage.cluster()?.name, &again)?;
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    ensure!(
        !nothing.status.success() && said.contains("weft-member is not installed here"),
        "{said}"
    );
    stage.environment.install().await?;
    stage.is_back().await?;
    stage.clear().await
}

#[tokio::test]
async fn what_was_removed_halfway_is_undone_by_installing_and_finished_by_uninstalling() -> Result<()> {
    let stage = Stage::set("halfway", "10.89.0.0/16").await?;
    break_off(&stage).await?;
    let cluster = stage.cluster()?;
    stage
        .environment
        .slicectl(&cluster.name, &["install", "cluster", "--timeout", "150"])?;
    ensure!(stage.status().await? == "deployed", "{}", stage.status().await?);
    let nodes: Api<SliceNode> = Api::all(cluster.client.clone());
    for node in cluster.nodes().await? {
        let stays = |object: &SliceNode| {
            let phase = object.status.as_ref().map(|status| status.phase);
            !object.spec.teardown && phase == Some(SliceNodePhase::Ready)
        };
        cluster
            .await_object(&nodes, &node, "Weft stays on it", SOON, stays)
            .await?;
    }
    stage.is_back().await?;
    say("undone");

    break_off(&stage).await?;
    stage.uninstall(&[])?;
    stage.is_gone().await?;
    say("finished");
    stage.environment.install().await?;
    stage.is_back().await?;
    stage.clear().await
}

/// Kills helm while it removes the release.
async fn break_off(stage: &Stage) -> Result<()> {
    let mut helm = stage
        .environment
        .helm_command(&stage.cluster()?.name, &["uninstall", RELEASE, "--wait"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("run helm")?;
    let begun = poll(SOON, "helm has begun to remove the release", async || {
        Ok((stage.status().await? == "uninstalling").then_some(()))
    })
    .await;
    let killed = helm.kill();
    helm.wait().context("wait for helm")?;
    begun?;
    killed.context("kill helm")
}
