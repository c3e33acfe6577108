//! The cluster's own DNS under the hands of others: it forwards names of slices, by one block, and goes on answering.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    ResourceExt,
    api::{Api, DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use slice_crds::{
    annotations::DNS_STUB, conditions, names::MEMBER_NAMESPACE, v1alpha1::Cluster as Registered,
};
use slice_e2e::harness::{
    Cluster, Environment, is_ready, poll,
    weft::{Member, PROJECT},
};

/// The operator has seen a Corefile.
const SOON: Duration = Duration::from_secs(30);
/// The kubelet has brought it to CoreDNS, which has taken it.
const TAKEN: Duration = Duration::from_secs(150);
/// For as long nothing may be written.
const QUIET: Duration = Duration::from_secs(5);
/// Of every cluster.
const API: &str = "kubernetes.default.svc.cluster.local.";
const BLOCK: &str = "\nslice.local:";
/// From the moment at which nobody is answered: half a minute of it, and what the operator needs.
const TAKEN_OUT: Duration = Duration::from_secs(90);
/// Half a minute of failures, the rounds of questions around it, and the way to the hub; as long for a word that all is well.
const FOUND: Duration = Duration::from_secs(120);
/// A block of a person, in a file that CoreDNS imports and Weft knows nothing of. With the stub it is there twice, and CoreDNS
/// does not start: a running one keeps what it had, so that it is not seen before a pod of it is made anew.
const OWN: &str = "slice.local:53 {\n    errors\n    forward . 192.0.2.1\n}\n";

fn configs(cluster: &Cluster) -> Api<ConfigMap> {
    Api::namespaced(cluster.client.clone(), "kube-system")
}

fn corefile(config: &ConfigMap) -> &str {
    let data = config.data.as_ref();
    data.and_then(|data| data.get("Corefile"))
        .map_or("", String::as_str)
}

/// What a tool or a person writes.
async fn write(cluster: &Cluster, text: &str) -> Result<ConfigMap> {
    let patch = Patch::Merge(json!({"data": {"Corefile": text}}));
    configs(cluster)
        .patch("coredns", &PatchParams::default(), &patch)
        .await
        .context("write the Corefile")
}

async fn await_corefile(cluster: &Cluster, what: &str, holds: impl Fn(&str) -> bool) -> Result<String> {
    let holds = |config: &ConfigMap| holds(corefile(config));
    let config = cluster
        .await_object(&configs(cluster), "coredns", what, SOON, holds)
        .await?;
    Ok(corefile(&config).to_owned())
}

/// The Corefile stays as it was written.
async fn ensure_untouched(cluster: &Cluster, written: &ConfigMap) -> Result<()> {
    tokio::time::sleep(QUIET).await;
    let there = configs(cluster).get("coredns").await?;
    ensure!(
        there.resource_version() == written.resource_version(),
        "written over: {}",
        corefile(&there)
    );
    Ok(())
}

/// Waits until a pod is told the addresses of a name, by its own resolver or by a server.
async fn await_names(client: &Member, server: Option<SocketAddr>, names: &[(&str, &str)]) -> Result<()> {
    let server = server.map(|server| server.to_string());
    for (name, address) in names {
        let mut arguments = vec!["dns", name];
        if let Some(server) = &server {
            arguments.extend(["--server", server]);
        }
        poll(
            TAKEN,
            &format!("{client} is told {address} for {name}"),
            async || {
                let answer = client.probe(&arguments).await?;
                let told = answer["answers"].as_array().into_iter().flatten();
                let told: Vec<&str> = told.filter_map(Value::as_str).collect();
                ensure!(told == [*address], "it is told {told:?}");
                Ok(Some(()))
            },
        )
        .await?;
    }
    Ok(())
}

/// What the hub shows of a cluster's DNS; empty where all is well.
async fn await_condition(environment: &Environment, cluster: &Cluster, wanted: &str) -> Result<()> {
    let hub = environment.hub()?;
    let clusters: Api<Registered> = Api::namespaced(hub.client.clone(), PROJECT);
    let shows = |object: &Registered| {
        let conditions = conditions::of(object);
        match wanted {
            "" => conditions::is_true(conditions, conditions::ZONE_FORWARDED),
            _ => conditions::find_false(conditions, conditions::ZONE_FORWARDED)
                .is_some_and(|one| one.message.contains(wanted)),
        }
    };
    let what = format!("ZoneForwarded with \"{wanted}\"");
    hub.await_object(&clusters, &cluster.name, &what, SOON, shows)
        .await?;
    Ok(())
}

#[tokio::test]
async fn the_stub_is_there_once_whatever_others_do_to_the_corefile() -> Result<()> {
    let environment = Environment::open().await?;
    // What is done to CoreDNS here, a cluster of somebody else does not let go of.
    environment.lab()?;
    let (slice, namespace) = ("stub", "weft-stub");
    environment
        .slice(slice, json!({"subnets": ["10.78.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let (exporter, cluster) = (environment.cluster(0)?, environment.cluster(1)?);
    let (web, client) = (Member::of(&members, exporter)?, Member::of(&members, cluster)?);
    exporter
        .apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\n\
             spec: {{clusterIP: None, selector: {{app: {}}}, ports: [{{name: echo, port: 7777}}]}}\n---\n\
             apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: web, namespace: {namespace}}}\n",
            web.name
        ))
        .await?;
    let before = await_corefile(cluster, "the stub", |text| text.contains(BLOCK)).await?;
    let result = change(&environment, cluster, client, web, &before).await;
    write(cluster, &before).await?;
    await_condition(&environment, cluster, "").await?;
    result?;
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

/// What others do to the Corefile, one after the other.
async fn change(
    environment: &Environment,
    cluster: &Cluster,
    client: &Member,
    web: &Member,
    before: &str,
) -> Result<()> {
    let long = format!("web.{}.svc.stub.slice.local.", web.namespace);
    let address = web.v4()?.to_string();
    let services: Api<k8s_openapi::api::core::v1::Service> =
        Api::namespaced(cluster.client.clone(), "default");
    let api = services.get("kubernetes").await?;
    let api = api.spec.and_then(|spec| spec.cluster_ip).context("its address")?;
    let names = [(API, api.as_str()), (long.as_str(), address.as_str())];
    await_names(client, None, &names).await?;

    // A tool drops the comments.
    let bare: String = before
        .split_inclusive('\n')
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    ensure!(bare != before, "no comments in {before}");
    let written = write(cluster, &bare).await?;
    ensure_untouched(cluster, &written).await?;
    ensure!(bare.matches(BLOCK).count() == 1, "{bare}");

    // The cluster's own block is asked at another port too.
    let moved = bare.replacen(".:53 {", ".:53 .:1053 {", 1);
    ensure!(moved != bare, "no block of the root at port 53 in {bare}");
    write(cluster, &moved).await?;
    let follows = |text: &str| text.contains("\nslice.local:53 slice.local:1053 {");
    let both = await_corefile(cluster, "the stub at both ports", follows).await?;
    ensure!(both.matches(BLOCK).count() == 1, "{both}");
    let pods = ListParams::default().labels("k8s-app=kube-dns");
    let pods = cluster.pods("kube-system").list(&pods).await?;
    let coredns = pods.items.iter().find(|pod| is_ready(pod));
    let status = coredns.and_then(|pod| pod.status.as_ref());
    let coredns = status
        .and_then(|status| status.pod_ip.as_ref())
        .context("a pod of CoreDNS with an address")?;
    let port = SocketAddr::new(coredns.parse()?, 1053);
    await_names(client, Some(port), &names).await?;
    await_names(client, None, &names).await?;

    // Nobody can read what a person has written: it stays, and so does CoreDNS with what it had.
    let broken = format!("{bare}example.org {{\n");
    let written = write(cluster, &broken).await?;
    await_condition(environment, cluster, "a brace that is not closed").await?;
    ensure_untouched(cluster, &written).await?;
    await_names(client, None, &names).await?;

    // And somebody else's block for the zone.
    let foreign = before.replace("# weft begin", "#").replace("# weft end", "#");
    let line = |line: &str| match line.trim_start().starts_with("forward . ") {
        true => "    forward . 192.0.2.1".to_owned(),
        false => line.to_owned(),
    };
    let (rest, stub) = foreign.split_at(foreign.find(BLOCK).context("the stub")?);
    let stub: Vec<String> = stub.lines().map(line).collect();
    let written = write(cluster, &format!("{rest}{}\n", stub.join("\n"))).await?;
    await_condition(environment, cluster, "that Weft has not made").await?;
    ensure_untouched(cluster, &written).await
}

#[tokio::test]
async fn a_stub_with_which_coredns_does_not_start_is_taken_out() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let cluster = environment.cluster(1)?;
    let before = await_corefile(cluster, "the stub", |text| text.contains(BLOCK)).await?;
    let result = break_and_mend(&environment, cluster, &before).await;
    write_keys(cluster, json!({"Corefile": before, "own.server": null})).await?;
    await_condition(&environment, cluster, "").await?;
    result
}

async fn write_keys(cluster: &Cluster, data: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"data": data}));
    configs(cluster)
        .patch("coredns", &PatchParams::default(), &patch)
        .await
        .context("write the configuration of CoreDNS")?;
    Ok(())
}

/// Waits until the operator has noted this on the ConfigMap; returns the Corefile with it.
async fn await_mark(cluster: &Cluster, words: [&str; 2], deadline: Duration) -> Result<String> {
    let is_so = |config: &ConfigMap| {
        let mark = config.annotations().get(DNS_STUB);
        mark.is_some_and(|mark| words.iter().all(|word| mark.contains(word)))
    };
    let what = format!("{DNS_STUB} with {words:?}");
    let config = cluster
        .await_object(&configs(cluster), "coredns", &what, deadline, is_so)
        .await?;
    Ok(corefile(&config).to_owned())
}

async fn break_and_mend(environment: &Environment, cluster: &Cluster, before: &str) -> Result<()> {
    let (bare, _) = before
        .split_once("# weft begin")
        .context("the stub between its marks")?;
    let own = format!("{bare}import own.server\n");
    // What was noted before says nothing about this configuration.
    let forget = Patch::Merge(json!({"metadata": {"annotations": {DNS_STUB: null}}}));
    configs(cluster)
        .patch("coredns", &PatchParams::default(), &forget)
        .await?;
    write_keys(cluster, json!({"Corefile": own, "own.server": OWN})).await?;
    let twice = await_mark(cluster, ["written ", " checked"], SOON).await?;
    ensure!(twice.starts_with(&own) && twice.contains(BLOCK), "{twice}");

    let pods = cluster.pods("kube-system");
    let of_dns = ListParams::default().labels("k8s-app=kube-dns");
    for pod in pods.list(&of_dns).await? {
        pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
    }
    let after = await_mark(cluster, ["taken-out ", " "], TAKEN_OUT).await?;
    ensure!(after == own, "not as it was: {after}");
    await_condition(environment, cluster, "so it was taken out at").await?;

    // It answers again, and gets no stub as long as nothing changes.
    poll(TAKEN, "CoreDNS is ready again", async || {
        let pods = pods.list(&of_dns).await?;
        Ok(pods.items.iter().any(is_ready).then_some(()))
    })
    .await?;
    let there = configs(cluster).get("coredns").await?;
    ensure_untouched(cluster, &there).await?;

    // The person lets Weft have the zone. That names resolve is seen before it is written: it is noted so.
    write_keys(cluster, json!({"Corefile": bare, "own.server": null})).await?;
    let again = await_mark(cluster, ["written ", " checked"], TAKEN).await?;
    ensure!(again.starts_with(bare) && again.contains(BLOCK), "{again}");
    await_condition(environment, cluster, "").await
}

/// Waits until the hub says of a cluster that names resolve, or that they do not, with these words.
async fn await_names_resolve(environment: &Environment, cluster: &Cluster, words: &[&str]) -> Result<()> {
    let hub = environment.hub()?;
    let clusters: Api<Registered> = Api::namespaced(hub.client.clone(), PROJECT);
    let shows = |object: &Registered| {
        let conditions = conditions::of(object);
        match words.is_empty() {
            true => conditions::is_true(conditions, conditions::NAMES_RESOLVE),
            false => conditions::find_false(conditions, conditions::NAMES_RESOLVE)
                .is_some_and(|one| words.iter().all(|word| one.message.contains(word))),
        }
    };
    let what = format!("NamesResolve with {words:?}");
    hub.await_object(&clusters, &cluster.name, &what, FOUND, shows)
        .await?;
    Ok(())
}

#[tokio::test]
async fn names_that_pods_cannot_resolve_are_told_with_the_part_of_the_way_that_fails() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("names", "weft-names");
    environment
        .slice(slice, json!({"subnets": ["10.79.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let cluster = environment.cluster(1)?;
    let client = Member::of(&members, cluster)?;
    await_names_resolve(&environment, cluster, &[]).await?;

    // Nobody of slice DNS is left, so nobody answers CoreDNS.
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), MEMBER_NAMESPACE);
    let before = deployments.get("weft-dns").await?;
    let replicas = before.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let scale = async |replicas: i32| -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        deployments
            .patch("weft-dns", &PatchParams::default(), &patch)
            .await
            .context("scale slice DNS")?;
        Ok(())
    };
    scale(0).await?;
    let pod = format!("answers neither pod {}/", client.namespace);
    let told = await_names_resolve(
        &environment,
        cluster,
        &["slice DNS, ", &pod, "UDP port 53", "nslookup"],
    )
    .await;
    scale(replicas).await?;
    told?;
    await_names_resolve(&environment, cluster, &[]).await?;
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}
