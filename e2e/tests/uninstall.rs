//! `slicectl uninstall` is `helm uninstall`, and afterwards a cluster is as it was.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{ResourceExt, api::Api};
use serde_json::json;
use slice_crds::{labels, names};
use slice_e2e::harness::{Cluster, Environment};

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
