//! Clusters that come into a slice and leave it while it is in use.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use slice_crds::{conditions, labels, names, v1alpha1::Slice};
use slice_e2e::harness::{Cluster, Environment, poll};

const SLICE: &str = "shrinking";
const SOON: Duration = Duration::from_secs(60);
/// In which writes are counted: objects that do not change are not written.
const STILL: Duration = Duration::from_secs(5);

/// How many slices the operators of a cluster have written.
async fn written(cluster: &Cluster) -> Result<f64> {
    let operators = ListParams::default().labels(&format!("{}=operator", labels::COMPONENT));
    let pods = cluster.pods(names::MEMBER_NAMESPACE);
    let mut all = 0.0;
    for pod in pods.list(&operators).await? {
        let name = pod.metadata.name.unwrap_or_default();
        let path = format!(
            "/api/v1/namespaces/{}/pods/{name}:9400/proxy/metrics",
            names::MEMBER_NAMESPACE
        );
        let request = http::Request::get(path).body(vec![])?;
        let metrics = cluster.client.request_text(request).await?;
        let counts = metrics
            .lines()
            .filter(|line| line.starts_with("weft_operator_writes_total{kind=\"Slice\""))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        all += counts.sum::<f64>();
    }
    Ok(all)
}

#[tokio::test]
async fn a_cluster_that_leaves_a_slice_is_gone_from_the_others() -> Result<()> {
    let environment = Environment::open().await?;
    environment
        .slice(SLICE, json!({"subnets": ["10.82.0.0/16"]}))
        .await?;
    let (stays, leaves) = (environment.cluster(0)?, environment.cluster(1)?);
    let mirrors: Api<Slice> = Api::all(stays.client.clone());
    let peers =
        |slice: &Slice| -> Vec<String> { slice.spec.peers.iter().map(|peer| peer.name.clone()).collect() };
    let before = peers(&mirrors.get(SLICE).await?);
    ensure!(before == [&*leaves.name], "{before:?}");

    let slices = environment.slices()?;
    let is_in = async |clusters: &[&str]| {
        let patch = Patch::Merge(json!({"spec": {"clusters": clusters}}));
        slices.patch(SLICE, &PatchParams::default(), &patch).await
    };
    is_in(&[&stays.name]).await?;
    let is_alone = |slice: &Slice| {
        peers(slice).is_empty() && conditions::is_true(conditions::of(slice), conditions::READY)
    };
    stays
        .await_object(&mirrors, SLICE, "without the cluster that left", SOON, is_alone)
        .await?;
    let left: Api<Slice> = Api::all(leaves.client.clone());
    poll(SOON, "the cluster that left has no slice", async || {
        Ok(left.get_opt(SLICE).await?.is_none().then_some(()))
    })
    .await?;
    let before = written(stays).await?;
    tokio::time::sleep(STILL).await;
    let after = written(stays).await?;
    ensure!(
        after - before < 5.0,
        "{} writes of a slice that does not change",
        after - before
    );

    is_in(&[&stays.name, &leaves.name]).await?;
    environment.await_slice(SLICE).await?;
    stays
        .await_object(&mirrors, SLICE, "with both clusters", SOON, |slice| {
            peers(slice).len() == 1
        })
        .await?;
    environment.remove_slice(SLICE).await
}
