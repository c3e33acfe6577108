//! Names: what an exported service is called in the slice, and how fast a name follows its pods.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::api::Api;
use serde_json::{Value, json};
use slice_crds::v1alpha1::Slice;
use slice_e2e::harness::{Cluster, Environment, PodSpec, poll, weft::Member};
use slice_e2e::progress::say;

const PATIENCE: Duration = Duration::from_secs(20);
/// From a pod's readiness going away to its address gone from answers in the other cluster.
const UNREADY: Duration = Duration::from_secs(2);

/// The addresses that a pod is told for a name.
async fn ask(client: &Member, name: &str, server: Option<&str>) -> Result<Vec<String>> {
    let mut arguments = vec!["dns", name];
    if let Some(server) = server {
        arguments.extend(["--server", server]);
    }
    let answer = client.probe(&arguments).await?;
    let list = answer["answers"].as_array().with_context(|| answer.to_string())?;
    let mut addresses: Vec<String> = list
        .iter()
        .filter_map(Value::as_str)
        .map(ToOwned::to_owned)
        .collect();
    addresses.sort();
    Ok(addresses)
}

async fn await_answer(client: &Member, name: &str, server: Option<&str>, wanted: &[String]) -> Result<()> {
    poll(
        PATIENCE,
        &format!("{client} is told {wanted:?} for {name}"),
        async || {
            let answer = ask(client, name, server).await?;
            ensure!(answer == wanted, "it is told {answer:?}");
            Ok(Some(()))
        },
    )
    .await
}

/// The slice DNS of a cluster, as pods on the slice reach it.
async fn slice_dns(cluster: &Cluster, slice: &str) -> Result<String> {
    let slices: Api<Slice> = Api::all(cluster.client.clone());
    let told = |slice: &Slice| {
        slice
            .status
            .as_ref()
            .is_some_and(|status| status.dns.iter().any(|ip| ip.is_ipv4()))
    };
    let slice = cluster
        .await_object(&slices, slice, "slice DNS on the slice", PATIENCE, told)
        .await?;
    let dns = slice.status.context("status")?.dns;
    let ip = dns
        .iter()
        .find(|ip| ip.is_ipv4())
        .context("an IPv4 address of the slice DNS")?;
    Ok(format!("{ip}:53"))
}

#[tokio::test]
async fn a_name_follows_the_ready_pods_of_the_other_cluster() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("names", "weft-names");
    environment
        .slice(slice, json!({"subnets": ["10.83.0.0/16", "fd42:83::/64"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let (exporter, importer) = (environment.cluster(0)?, environment.cluster(1)?);
    // A readiness that the test holds in its hand.
    for name in ["web-0", "web-1"] {
        let pod = PodSpec::new(name, &environment.image)
            .label("app", "web")
            .command(&["/bin/sh", "-c", "touch /tmp/ready; exec /usr/bin/weft-probe serve"])
            .readiness(json!({"exec": {"command": ["/bin/cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1}));
        exporter.create_pod(namespace, &pod).await?;
    }
    let mut web = Vec::new();
    for name in ["web-0", "web-1"] {
        web.push(exporter.member(namespace, name, slice).await?);
    }
    for cluster_ip in ["None", ""] {
        let service = if cluster_ip.is_empty() {
            "web"
        } else {
            "web-headless"
        };
        exporter
            .apply(&format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: {namespace}}}\n\
                 spec: {{clusterIP: \"{cluster_ip}\", selector: {{app: web}}, ports: [{{name: echo, port: 7777}}]}}\n---\n\
                 apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: {service}, namespace: {namespace}}}\n"
            ))
            .await?;
    }
    let v4 = |pods: &[&Member]| {
        let mut all: Vec<String> = pods
            .iter()
            .map(|pod| pod.v4().map(|ip| ip.to_string()))
            .collect::<Result<_>>()?;
        all.sort();
        anyhow::Ok(all)
    };
    let both = v4(&[&web[0], &web[1]])?;
    let client = members
        .iter()
        .find(|member| member.cluster.name == importer.name)
        .context("a pod in the other cluster")?;
    let server = slice_dns(importer, slice).await?;
    let long = format!("web.{namespace}.svc.{slice}.slice.local.");
    await_answer(client, &long, Some(&server), &both).await?;
    await_answer(
        client,
        &format!("web.{namespace}.svc.slice.local."),
        Some(&server),
        &both,
    )
    .await?;
    await_answer(
        client,
        &format!("web-headless.{namespace}.svc.{slice}.slice.local."),
        Some(&server),
        &both,
    )
    .await?;
    let own = format!(
        "web-1.{}.web-headless.{namespace}.svc.{slice}.slice.local.",
        exporter.name
    );
    await_answer(client, &own, Some(&server), &v4(&[&web[1]])?).await?;
    // The cluster's own DNS forwards the zone: an ordinary look-up in an ordinary pod.
    await_answer(client, &long, None, &both).await?;

    let left = v4(&[&web[0]])?;
    let turned = Instant::now();
    exporter.shell(namespace, "web-1", "rm /tmp/ready").await?;
    // Kubernetes itself notices within the probe's period of one second; what follows is ours.
    let unready = |pod: &k8s_openapi::api::core::v1::Pod| !slice_e2e::harness::is_ready(pod);
    exporter
        .await_object(
            &exporter.pods(namespace),
            "web-1",
            "web-1 not ready",
            PATIENCE,
            unready,
        )
        .await?;
    let noticed = Instant::now();
    await_answer(client, &long, Some(&server), &left).await?;
    let took = noticed.elapsed();
    say(format!(
        "{}: gone from answers {took:?} after not ready, {:?} after its cause",
        importer.name,
        turned.elapsed()
    ));
    ensure!(took < UNREADY, "gone from answers only after {took:?}");
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}
