//! The lab itself: are these real clusters, and do they overlap as promised?

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::{Api, ListParams};
use slice_e2e::harness::{Cluster, Environment, PodSpec};

const READY: Duration = Duration::from_secs(30);

/// A client pod and a server pod on different nodes of one cluster.
async fn two_pods(environment: &Environment, cluster: &Cluster, namespace: &str) -> Result<(Pod, Pod)> {
    cluster.fresh_namespace(namespace, &[]).await?;
    let nodes = cluster.nodes().await?;
    let image = &environment.image;
    let last = nodes.last().context("a node")?;
    cluster
        .create_pod(namespace, &PodSpec::new("client", image).node(&nodes[0]))
        .await?;
    cluster
        .create_pod(namespace, &PodSpec::new("server", image).node(last))
        .await?;
    let client = cluster.await_pod(namespace, "client", READY).await?;
    let server = cluster.await_pod(namespace, "server", READY).await?;
    Ok((client, server))
}

fn address(pod: &Pod) -> Result<String> {
    pod.status
        .as_ref()
        .and_then(|status| status.pod_ip.clone())
        .context("a pod without an address")
}

#[tokio::test]
async fn pods_talk_inside_a_cluster_by_address_service_and_name() -> Result<()> {
    let environment = Environment::open().await?;
    let namespace = "lab-inside";
    for cluster in &environment.clusters {
        let (client, server) = two_pods(&environment, cluster, namespace).await?;
        cluster
            .apply(&format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: server, namespace: {namespace}}}\n\
                 spec: {{selector: {{app: server}}, ports: [{{port: 7777}}]}}\n"
            ))
            .await?;

        let direct = cluster
            .probe(
                namespace,
                "client",
                &["tcp", &address(&server)?, "--bytes", "100000"],
            )
            .await?;
        let seen_as = direct["seen_as"].as_str().unwrap_or_default();
        ensure!(
            seen_as.starts_with(&address(&client)?),
            "{}: the server saw {seen_as}",
            cluster.name
        );

        let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
        let service = services.get("server").await?;
        let virtual_address = service
            .spec
            .and_then(|spec| spec.cluster_ip)
            .context("a ClusterIP")?;
        let name = format!("server.{namespace}.svc.cluster.local.");
        let answer = cluster.probe(namespace, "client", &["dns", &name]).await?;
        ensure!(
            answer["answers"][0] == virtual_address,
            "{}: {answer}, not {virtual_address}",
            cluster.name
        );

        // Endpoints and kube-proxy's rules follow the Service, not the other way round.
        slice_e2e::harness::poll(READY, "the Service answers", async || {
            let through = cluster
                .probe(namespace, "client", &["tcp", &virtual_address, "--timeout", "2"])
                .await?;
            Ok((through["bytes"] == 1000).then_some(()))
        })
        .await?;
        cluster.remove_namespace(namespace).await?;
    }
    Ok(())
}

#[tokio::test]
async fn ranges_of_the_clusters_overlap() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let (a, b) = (environment.cluster(0)?, environment.cluster(1)?);
    let mut ranges = Vec::new();
    let mut apis = Vec::new();
    for cluster in [a, b] {
        let nodes: Api<Node> = Api::all(cluster.client.clone());
        let first = nodes
            .list(&ListParams::default())
            .await?
            .items
            .into_iter()
            .next()
            .context("a node")?;
        ranges.push(
            first
                .spec
                .and_then(|spec| spec.pod_cidr)
                .context("a node without a pod range")?,
        );
        let services: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
        apis.push(
            services
                .get("kubernetes")
                .await?
                .spec
                .and_then(|spec| spec.cluster_ip),
        );
    }
    ensure!(ranges[0] == ranges[1], "pod ranges differ: {ranges:?}");
    ensure!(apis[0] == apis[1], "Service ranges differ: {apis:?}");
    Ok(())
}

#[tokio::test]
async fn a_udp_node_port_of_one_cluster_is_reached_from_a_pod_of_the_other() -> Result<()> {
    let environment = Environment::open().await?;
    let (a, b) = (environment.cluster(0)?, environment.cluster(1)?);
    let namespace = "lab-node-port";
    two_pods(&environment, a, namespace).await?;
    two_pods(&environment, b, namespace).await?;
    b.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: port, namespace: {namespace}}}\n\
         spec: {{type: NodePort, selector: {{app: server}}, ports: [{{port: 7777, protocol: UDP, nodePort: 30777}}]}}\n"
    ))
    .await?;
    let nodes: Api<Node> = Api::all(b.client.clone());
    let node = nodes
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .next()
        .context("a node")?;
    let addresses = node
        .status
        .and_then(|status| status.addresses)
        .unwrap_or_default();
    let internal = addresses
        .iter()
        .find(|address| address.type_ == "InternalIP")
        .context("a node address")?;
    slice_e2e::harness::poll(READY, "the node port answers", async || {
        let arguments = ["udp", &internal.address, "--port", "30777", "--count", "3"];
        let answer = a.probe(namespace, "client", &arguments).await?;
        Ok((answer["received"] == 3).then_some(()))
    })
    .await?;
    a.remove_namespace(namespace).await?;
    b.remove_namespace(namespace).await
}
