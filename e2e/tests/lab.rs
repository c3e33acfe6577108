//! The lab itself: are these real clusters, and do they overlap as promised?

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use kube::api::{Api, ListParams, Patch, PatchParams};
use slice_e2e::harness::{Cluster, Environment, PodSpec, poll};

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
        poll(READY, "the Service answers", async || {
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
    poll(READY, "the node port answers", async || {
        let arguments = ["udp", &internal.address, "--port", "30777", "--count", "3"];
        let answer = a.probe(namespace, "client", &arguments).await?;
        Ok((answer["received"] == 3).then_some(()))
    })
    .await?;
    a.remove_namespace(namespace).await?;
    b.remove_namespace(namespace).await
}

/// What an agent on a node relies on: it sees pods' namespaces come, and may install a CNI plugin.
#[tokio::test]
async fn a_node_agent_sees_namespaces_and_owns_the_cni_folders() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let cluster = environment.cluster(0)?;
    let namespace = "lab-agent";
    cluster.fresh_namespace(namespace, &[]).await?;
    let node = cluster.nodes().await?.into_iter().next().context("a node")?;
    let host = |path: &str, propagation: &str| {
        let name = path.trim_start_matches('/').replace(['/', '.'], "-");
        let mount = serde_json::json!({"name": name, "mountPath": path, "mountPropagation": propagation});
        (
            serde_json::json!({"name": name, "hostPath": {"path": path}}),
            mount,
        )
    };
    let (volumes, mounts): (Vec<_>, Vec<_>) = [
        host("/run/netns", "HostToContainer"),
        host("/etc/cni/net.d", "None"),
        host("/opt/cni/bin", "None"),
        host("/var/lib/cni", "None"),
        host("/dev/net/tun", "None"),
    ]
    .into_iter()
    .unzip();
    let agent = PodSpec::new("agent", &environment.image).node(&node).spec(serde_json::json!({
        "hostNetwork": true, "volumes": volumes,
        "containers": [{
            "name": "main", "image": environment.image, "command": ["/usr/bin/weft-probe", "serve", "--port", "17777"],
            "volumeMounts": mounts, "securityContext": {"capabilities": {"add": ["NET_ADMIN", "SYS_ADMIN"]}}
        }]
    }));
    cluster.create_pod(namespace, &agent).await?;
    cluster.await_pod(namespace, "agent", READY).await?;
    cluster
        .create_pod(
            namespace,
            &PodSpec::new("newcomer", &environment.image).node(&node),
        )
        .await?;
    let newcomer = cluster.await_pod(namespace, "newcomer", READY).await?;
    // By identity and not by number: what a test before this one left may still be ending on this node.
    let own = cluster
        .exec(namespace, "newcomer", &["readlink", "/proc/self/ns/net"])
        .await?;
    ensure!(own.stdout.starts_with("net:["), "{own:?}");
    let entered = "for n in /run/netns/*; do nsenter --net=$n readlink /proc/self/ns/net; done";
    let seen = cluster.exec(namespace, "agent", &["sh", "-c", entered]).await?;
    ensure!(
        seen.stdout.lines().any(|line| line == own.stdout.trim()),
        "the agent does not see the new pod's network namespace {}: {seen:?}",
        own.stdout.trim()
    );

    let script = "set -e; echo > /opt/cni/bin/lab-test; rm /opt/cni/bin/lab-test; test -c /dev/net/tun; \
                  grep -q portmap /etc/cni/net.d/10-lab.conflist; touch /etc/cni/net.d/x; rm /etc/cni/net.d/x";
    let output = cluster.exec(namespace, "agent", &["sh", "-c", script]).await?;
    ensure!(output.code == 0, "{output:?}");
    let uid = newcomer.metadata.uid.context("a pod without a uid")?;
    let results = cluster
        .exec(namespace, "agent", &["sh", "-c", "cat /var/lib/cni/results/*"])
        .await?;
    ensure!(results.stdout.contains(&uid), "no CNI result names pod {uid}");
    cluster.remove_namespace(namespace).await
}

/// A stub that an operator adds to the Corefile answers within seconds.
#[tokio::test]
async fn coredns_follows_its_configuration() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let cluster = environment.cluster(0)?;
    let namespace = "lab-coredns";
    cluster.fresh_namespace(namespace, &[]).await?;
    cluster
        .create_pod(namespace, &PodSpec::new("client", &environment.image))
        .await?;
    cluster.await_pod(namespace, "client", READY).await?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "kube-system");
    let before = maps.get("coredns").await?.data.context("a Corefile")?["Corefile"].clone();
    let replace = async |text: &str| -> Result<()> {
        let patch = serde_json::json!({"data": {"Corefile": text}});
        maps.patch("coredns", &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    };
    let answers = async || -> Result<bool> {
        let answer = cluster
            .probe(namespace, "client", &["dns", "stub.lab.test."])
            .await?;
        Ok(answer["answers"][0] == "192.0.2.53")
    };
    let stub = "lab.test:53 {\n    hosts {\n        192.0.2.53 stub.lab.test\n    }\n}\n";
    replace(&format!("{before}{stub}")).await?;
    let seen = poll(READY, "the stub answers", async || {
        Ok(answers().await?.then_some(()))
    })
    .await;
    replace(&before).await?;
    seen?;
    poll(READY, "the stub is gone", async || {
        Ok((!answers().await?).then_some(()))
    })
    .await?;
    cluster.remove_namespace(namespace).await
}
