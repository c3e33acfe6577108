//! Pods outside every slice: they start as fast with Weft as without, and while its agent is away.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use slice_crds::{labels, names};
use slice_e2e::harness::{Cluster, Environment, PodSpec, poll};
use slice_e2e::progress::say;

const READY: Duration = Duration::from_secs(40);
const STARTS: usize = 7;
/// The agent is asked by each new pod: that may cost this much at the median, which is within the noise of a start.
const SURCHARGE: Duration = Duration::from_millis(300);

/// The median time from creation to a running container.
async fn start(environment: &Environment, cluster: &Cluster, namespace: &str) -> Result<Duration> {
    let node = cluster.nodes().await?.remove(0);
    let mut times = Vec::new();
    for number in 0..STARTS {
        let name = format!("plain-{number}");
        let pod = PodSpec::new(&name, &environment.image)
            .node(&node)
            .command(&["/usr/bin/weft-probe", "serve"]);
        let started = Instant::now();
        cluster.create_pod(namespace, &pod).await?;
        cluster.await_pod(namespace, &name, READY).await?;
        times.push(started.elapsed());
        cluster.pods(namespace).delete(&name, &Default::default()).await?;
    }
    times.sort();
    Ok(times[STARTS / 2])
}

/// Takes the agent off every node, or lets it come back.
async fn agent(cluster: &Cluster, wanted: bool) -> Result<()> {
    let agents: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), names::MEMBER_NAMESPACE);
    let selector = if wanted {
        json!(null)
    } else {
        json!({"weft.dev/nowhere": "true"})
    };
    let patch = Patch::Merge(json!({"spec": {"template": {"spec": {"nodeSelector": selector}}}}));
    agents
        .patch("weft-netop", &PatchParams::default(), &patch)
        .await?;
    let pods = cluster.pods(names::MEMBER_NAMESPACE);
    poll(
        READY,
        if wanted {
            "the agents are back"
        } else {
            "no agent runs"
        },
        async || {
            let of_agent = kube::api::ListParams::default().labels(&format!("{}=netop", labels::COMPONENT));
            let there = pods.list(&of_agent).await?.items.len();
            let set = agents.get("weft-netop").await?.status.unwrap_or_default();
            let settled = if wanted {
                set.number_ready > 0 && set.number_ready == set.desired_number_scheduled
            } else {
                there == 0
            };
            Ok(settled.then_some(()))
        },
    )
    .await
}

#[tokio::test]
async fn a_pod_outside_every_slice_never_waits() -> Result<()> {
    let environment = Environment::open().await?;
    environment
        .slice("crowd", json!({"subnets": ["10.91.0.0/16"]}))
        .await?;
    let cluster = environment.cluster(1)?;
    let (plain, inside) = ("weft-plain", "weft-inside");
    cluster.fresh_namespace(plain, &[]).await?;
    let with = start(&environment, cluster, plain).await?;
    // In a slice that requires the interface: known to the agent before it goes.
    cluster
        .fresh_namespace(inside, &[(labels::SLICE, "crowd")])
        .await?;
    cluster
        .create_pod(inside, &PodSpec::new("first", &environment.image))
        .await?;
    cluster.member(inside, "first", "crowd").await?;
    agent(cluster, false).await?;
    let result = async {
        let without = start(&environment, cluster, plain).await?;
        say(format!(
            "start of a pod outside: {with:?} with the agent, {without:?} without, medians of {STARTS}"
        ));
        ensure!(
            with < without + SURCHARGE,
            "{with:?} with the agent, {without:?} without"
        );
        cluster
            .create_pod(inside, &PodSpec::new("second", &environment.image))
            .await?;
        let refused = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.status
                .as_ref()
                .is_some_and(|status| status.phase.as_deref() == Some("Running"))
        };
        let events: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(cluster.client.clone(), inside);
        poll(READY, "the kubelet says why the pod waits", async || {
            let all = events.list(&Default::default()).await?;
            Ok(all
                .iter()
                .any(|event| {
                    event
                        .message
                        .as_deref()
                        .is_some_and(|text| text.contains("node agent does not answer"))
                })
                .then_some(()))
        })
        .await?;
        ensure!(
            !refused(&cluster.pods(inside).get("second").await?),
            "it started without its interface"
        );
        anyhow::Ok(())
    }
    .await;
    agent(cluster, true).await?;
    result?;
    cluster.member(inside, "second", "crowd").await?;
    cluster.remove_namespace(plain).await?;
    cluster.remove_namespace(inside).await?;
    environment.remove_slice("crowd").await
}
