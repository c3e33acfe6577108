//! How long from a SliceConfig to the first packet between two clusters.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::json;

use super::{Figures, watch::Watch};
use crate::harness::weft::{PROJECT, attachment};
use crate::harness::{Environment, PodSpec};
use crate::progress::Progress;

const TIMES: usize = 12;
const SLICE: &str = "measured";
const NAMESPACE: &str = "weft-measure-born";
const START: std::time::Duration = std::time::Duration::from_secs(60);

/// The pods run before the slice exists; the slice names their namespace.
pub(super) async fn measure(
    environment: &Environment,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    let (from, to) = (environment.cluster(0)?, environment.cluster(1)?);
    environment.remove_slice(SLICE).await?;
    for cluster in [from, to] {
        cluster.fresh_namespace(NAMESPACE, &[]).await?;
        cluster
            .create_pod(NAMESPACE, &PodSpec::new("talks", &environment.image))
            .await?;
        cluster.await_pod(NAMESPACE, "talks", START).await?;
    }
    let object = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig",
        "metadata": {"name": SLICE, "namespace": PROJECT},
        "spec": {"subnets": ["10.79.0.0/16"], "clusters": [from.name, to.name], "gateway": {"replicas": 1},
            "namespaces": [{"name": NAMESPACE}]},
    });
    let (mut attached, mut pinged, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=TIMES {
        let (mut here, mut there) = (
            Watch::open(from, NAMESPACE).await?,
            Watch::open(to, NAMESPACE).await?,
        );
        let start = Instant::now();
        environment.hub()?.apply(&object.to_string()).await?;
        let seen = |pod: &k8s_openapi::api::core::v1::Pod| attachment(pod, SLICE).is_some();
        let (one, two) =
            futures::future::try_join(here.until(start, 1, seen), there.until(start, 1, seen)).await?;
        attached.extend(one.into_iter().chain(two).reduce(f64::max));
        let pod = to.pods(NAMESPACE).get("talks").await?;
        let ip = attachment(&pod, SLICE)
            .and_then(|attachment| attachment.ips.first().copied())
            .with_context(|| format!("{} has no address", pod.name_any()))?;
        let ping = [
            "ping",
            &ip.to_string(),
            "--count",
            "3000",
            "--timeout",
            "20",
            "--first",
        ]
        .map(str::to_owned);
        let answer = from
            .probe(NAMESPACE, "talks", &ping.each_ref().map(String::as_str))
            .await?;
        ensure!(
            answer["received"] == 1,
            "no answer after slice {SLICE} was made: {answer}"
        );
        pinged.push(start.elapsed().as_secs_f64() * 1e3);
        environment.await_slice(SLICE).await?;
        ready.push(start.elapsed().as_secs_f64() * 1e3);
        environment.remove_slice(SLICE).await?;
        let gone = |pod: &k8s_openapi::api::core::v1::Pod| attachment(pod, SLICE).is_none();
        futures::future::try_join(here.until(start, 1, gone), there.until(start, 1, gone)).await?;
        progress.done(format!("slice made and pinged, {number} of {TIMES}"));
    }
    figures.add("weft", "slice-created", "attached_ms", "ms", &attached);
    figures.add("weft", "slice-created", "first_ping_ms", "ms", &pinged);
    figures.add("weft", "slice-created", "ready_ms", "ms", &ready);
    environment.remove_namespaces(NAMESPACE).await
}
