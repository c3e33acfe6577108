//! Gateways of two threads, which change their keys every minute: everything is as with one thread, and nothing is lost.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use kube::api::Api;
use serde_json::json;
use slice_crds::v1alpha1::SliceNode;
use slice_e2e::{
    harness::{Environment, Pace, Streams, weft::Member},
    progress::say,
};

const SLICE: &str = "threads";
const NAMESPACE: &str = "weft-threads";
/// Conversations at once; each is two flows.
const CONVERSATIONS: usize = 3;
/// Shortest that can be asked for.
const ROTATION: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_threads_carry_and_change_their_keys_every_minute() -> Result<()> {
    let environment = Environment::open().await?;
    let gateway = json!({"threads": 2, "replicas": 1, "rotation": "1m"});
    let spec = json!({"subnets": ["10.83.0.0/16"], "gateway": gateway});
    environment.slice(SLICE, spec).await?;
    let members = environment.members(SLICE, NAMESPACE).await?;
    let from = &members[0];
    let away = |member: &&Member| member.cluster.name != from.cluster.name;
    let to = members.iter().find(away).context("a pod in another cluster")?;

    let pace = Pace {
        interval: Duration::from_millis(5),
        gap: Duration::from_millis(100),
        // A key is replaced within a minute of when it was made, and they are made before this.
        lasts: ROTATION + Duration::from_secs(10),
    };
    let start = Instant::now();
    let before = keys(&environment).await?;
    let streams = (0..CONVERSATIONS).map(|_| Streams::start(from, to, pace));
    let streams = try_join_all(streams).await?;
    let finished = try_join_all(streams.into_iter().map(Streams::finish)).await?;
    let lasted = start.elapsed();
    for (udp, tcp) in &finished {
        say(format!("keys changed every minute: {udp:?}, TCP {tcp:?}"));
        ensure!(tcp.broken.is_none() && tcp.lost == 0, "{tcp:?}");
        ensure!(udp.lost == 0, "{udp:?}");
    }
    let after = keys(&environment).await?;
    ensure!(
        after.is_disjoint(&before),
        "after {lasted:?} some keys are still those of before: {before:?} became {after:?}"
    );
    check_queues(&environment).await?;
    environment.remove_namespaces(NAMESPACE).await?;
    environment.remove_slice(SLICE).await
}

/// The current key of each gateway of the slice.
async fn keys(environment: &Environment) -> Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    for cluster in &environment.clusters {
        for gateway in cluster.gateways(SLICE).await? {
            let status = gateway.status.context("a gateway without a status")?;
            keys.insert(status.public_key.context("a gateway without a key")?);
        }
    }
    Ok(keys)
}

/// Each thread has a queue of the TAP device, unless the node says that it cannot have it.
async fn check_queues(environment: &Environment) -> Result<()> {
    for cluster in &environment.clusters {
        let nodes: Api<SliceNode> = Api::all(cluster.client.clone());
        for gateway in cluster.gateways(SLICE).await? {
            let status = gateway.status.context("a gateway without a status")?;
            let node = status.node.context("a gateway without a node")?;
            let node = nodes.get(&node).await?.status.unwrap_or_default();
            let steers = *node
                .features
                .get("tapQueues")
                .context("a node that was not probed")?;
            let path = status.data_path.context("a gateway without a data path")?;
            let queues = if steers { 2 } else { 1 };
            ensure!((path.threads, path.tap_queues) == (2, queues), "{path:?}");
            say(format!("cluster {}: {path:?}", cluster.name));
        }
    }
    Ok(())
}
