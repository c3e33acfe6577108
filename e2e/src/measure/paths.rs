//! Round trips and throughput of the paths that a slice has, beside the cluster's own pod network.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::Value;

use super::{Figures, SLICE, processes};
use crate::harness::weft::Member;
use crate::harness::{Environment, PodSpec};
use crate::progress::{Progress, say};

const NAMESPACE: &str = "weft-measure-path";
const ROUNDS: usize = 7;
/// As `slice-gateway/benches` measures.
const SECONDS: &str = "2";
const PINGS: &str = "300";
/// Long enough for shares of processor time.
const LOAD_SECONDS: &str = "10";

/// From one pod to an address of another.
struct Route<'a> {
    system: &'static str,
    name: &'static str,
    from: &'a Member,
    to: &'a Member,
    address: IpAddr,
}

/// Measures every kind of path, interleaved, because the machine's speed changes from minute to minute.
pub(super) async fn measure(
    environment: &Environment,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    let mut members = environment.members(SLICE, NAMESPACE).await?;
    let gateways = gateways(environment).await?;
    // In each cluster the pod on the gateway's node comes first; a second pod keeps it company there.
    let place = |member: &Member| format!("{}/{}", member.cluster.name, member.node());
    members.sort_by_key(|member| !gateways.contains(&place(member)));
    let hub = environment.hub()?;
    let near = on(&members, &hub.name, 0)?;
    let neighbour = PodSpec::new("neighbour", &environment.image).node(near.node());
    hub.create_pod(NAMESPACE, &neighbour).await?;
    let neighbour = hub.member(NAMESPACE, "neighbour", SLICE).await?;
    let other = &environment.cluster(1)?.name;
    let (far, near_there, far_there) = (
        on(&members, &hub.name, 1)?,
        on(&members, other, 0)?,
        on(&members, other, 1)?,
    );
    let pod = hub.pods(NAMESPACE).get(&far.name).await?;
    let pod_ip = pod
        .status
        .and_then(|status| status.pod_ip)
        .context("a pod address")?;
    let routes = [
        Route {
            system: "pod-network",
            name: "cluster",
            from: near,
            to: far,
            address: pod_ip.parse().context("a pod address")?,
        },
        Route {
            system: "weft",
            name: "node",
            from: near,
            to: &neighbour,
            address: neighbour.v4()?,
        },
        Route {
            system: "weft",
            name: "cluster",
            from: near,
            to: far,
            address: far.v4()?,
        },
        Route {
            system: "weft",
            name: "between",
            from: near,
            to: near_there,
            address: near_there.v4()?,
        },
        Route {
            system: "weft",
            name: "between-far",
            from: far,
            to: far_there,
            address: far_there.v4()?,
        },
    ];
    let mut values: BTreeMap<(usize, &str), Vec<f64>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        for (index, route) in routes.iter().enumerate() {
            let gbps = route.tcp(SECONDS).await?;
            values.entry((index, "gbps")).or_default().push(gbps);
            let ping = ["ping", &route.address.to_string(), "--count", PINGS].map(str::to_owned);
            let answer = route.from.probe(&ping.each_ref().map(String::as_str)).await?;
            ensure!(
                answer["received"] == answer["sent"],
                "{} loses pings: {answer}",
                route.name
            );
            for (metric, pointer) in [("p50_us", "/rtt_ms/p50"), ("p99_us", "/rtt_ms/p99")] {
                let ms = answer
                    .pointer(pointer)
                    .and_then(Value::as_f64)
                    .context("a round trip")?;
                values.entry((index, metric)).or_default().push(ms * 1e3);
            }
        }
        progress.done(format!("paths, round {round} of {ROUNDS}"));
    }
    for ((index, metric), all) in &values {
        let route = &routes[*index];
        let (test, unit) = match *metric {
            "gbps" => ("tcp1", "Gbit/s"),
            _ => ("ping", "µs"),
        };
        figures.add(route.system, &format!("{test}-{}", route.name), metric, unit, all);
    }
    let [.., between, _] = &routes;
    load(environment, between, figures).await?;
    progress.done("processes under load");
    environment.remove_namespaces(NAMESPACE).await
}

impl Route<'_> {
    /// Gbit/s that the receiver gets.
    async fn tcp(&self, seconds: &str) -> Result<f64> {
        self.from.tcp(self.to, self.address, seconds).await
    }
}

/// Memory and processor time of every process while one stream crosses the clusters.
async fn load(environment: &Environment, route: &Route<'_>, figures: &mut Figures) -> Result<()> {
    let lab = environment.lab()?;
    let (before, start) = (processes::all(lab)?, processes::busy()?);
    let gbps = route.tcp(LOAD_SECONDS).await?;
    let (after, busy) = (processes::all(lab)?, processes::busy()? - start);
    processes::report(figures, "load-between", &before, &after);
    // Slow start and the end are in the processes' time and not in the stream's: a few per cent, on the safe side.
    let kib = gbps * 1e9 / 8.0 / 1024.0 * LOAD_SECONDS.parse::<f64>().context("seconds")?;
    let spent = processes::spent(&before, &after);
    for (program, seconds) in spent.into_iter().chain([("machine".to_owned(), busy)]) {
        figures.add(
            &program,
            "load-between",
            "cpu_ns_per_kb",
            "ns/KiB",
            &[seconds * 1e9 / kib],
        );
    }
    figures.add("weft", "load-between", "gbps", "Gbit/s", &[gbps]);
    Ok(())
}

/// The bare figure of the same two gateways between namespaces, where `make bench` has left one, and the ratio to it.
pub(super) fn compare(figures: &Figures, bench: &Path) -> Result<()> {
    let Ok(bytes) = std::fs::read(bench) else {
        say(format!(
            "no {}: `make bench` writes the bare figure to compare with",
            bench.display()
        ));
        return Ok(());
    };
    let rows: Vec<Value> =
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", bench.display()))?;
    let row = |row: &&Value| row["system"] == "weft" && row["test"] == "tcp1" && row["metric"] == "gbps";
    let bare = rows.iter().find(row).and_then(|row| row["median"].as_f64());
    if let (Some(bare), Some(lab)) = (bare, figures.median("weft", "tcp1-between", "gbps")) {
        say(format!(
            "TCP between clusters: {lab} Gbit/s from pod to pod, {bare} Gbit/s between bare namespaces: {:.0} %",
            lab / bare * 100.0
        ));
    }
    Ok(())
}

/// The nodes that the slice's gateways run on, as CLUSTER/NODE.
async fn gateways(environment: &Environment) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for cluster in &environment.clusters {
        for gateway in cluster.gateways(SLICE).await? {
            let node = gateway.status.as_ref().and_then(|status| status.node.clone());
            let node = node.with_context(|| format!("gateway {} runs nowhere", gateway.name_any()))?;
            found.push(format!("{}/{node}", cluster.name));
        }
    }
    Ok(found)
}

/// The pod of a cluster, in the order of the list.
fn on<'a>(members: &'a [Member], cluster: &str, index: usize) -> Result<&'a Member> {
    let mut here = members.iter().filter(|member| member.cluster.name == cluster);
    here.nth(index)
        .with_context(|| format!("cluster {cluster} has fewer than {} nodes", index + 1))
}
