//! `verify`: tries a slice from end to end with a pod in each cluster, and takes the pods away again.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, anyhow, bail};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    core::ObjectMeta,
};
use serde::Serialize;
use serde_json::{Value, json};
use slice_crds::{
    labels::{self, Attachment},
    mcs::ServiceExport,
    membership::{self, Labels, PodFacts, Rules},
    names,
    v1alpha1::Slice,
};
use slice_runtime::apply;

use super::wait_for;
use crate::{
    Outcome,
    args::{Format, Target, Verify},
    connect, exec, objects, output,
};

/// Pod and Service of the probe.
const PROBE: &str = "probe";
/// Bytes sent over TCP: many packets of full size.
const TRANSFER: &str = "1000000";
/// A name needs at most this long from export to answer, the cluster DNS's own reload not counted.
const DNS_LIMIT: Duration = Duration::from_secs(20);

/// One probe pod.
struct Site {
    context: String,
    client: Client,
    namespace: String,
    cluster: String,
    mtu: u16,
    ips: Vec<IpAddr>,
    dns: Vec<IpAddr>,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Check {
    from: String,
    to: String,
    check: String,
    ok: bool,
    detail: String,
}

pub(crate) async fn run(target: &Target, verify: Verify) -> anyhow::Result<Outcome> {
    if verify.contexts.len() < 2 {
        bail!(
            "--contexts names {} cluster, and it takes two to verify a slice: write --contexts a,b",
            verify.contexts.len()
        );
    }
    let namespace = format!("weft-verify-{}", std::process::id());
    let mut clients = Vec::new();
    for context in &verify.contexts {
        let client = connect::client(&connect::in_context(target, context)).await?;
        clients.push((context.clone(), client));
    }
    eprintln!("starting a probe in {} …", verify.contexts.join(", "));
    let sites = clients
        .iter()
        .map(|(context, client)| site(context, client, &namespace, &verify));
    let checks = match try_join_all(sites).await {
        Ok(sites) => Ok(try_all(&sites).await),
        Err(error) => Err(error),
    };
    for (context, client) in &clients {
        let api: Api<Namespace> = Api::all(client.clone());
        apply::delete(&api, &namespace)
            .await
            .with_context(|| format!("remove the probe from {context}"))?;
    }
    let checks = checks?;
    report(&checks, verify.output)?;
    let good = checks.iter().all(|check| check.ok);
    Ok(if good { Outcome::Good } else { Outcome::Bad })
}

fn report(checks: &[Check], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::print(&(serde_json::to_string_pretty(checks)? + "\n")),
        Format::Yaml => output::print(&output::yaml(&checks)?),
        Format::Table | Format::Wide | Format::Name => {
            let row = |check: &Check| {
                let result = if check.ok { "ok" } else { "FAILED" };
                vec![
                    check.from.clone(),
                    check.to.clone(),
                    check.check.clone(),
                    result.into(),
                    check.detail.clone(),
                ]
            };
            output::print(&output::table(
                &["from", "to", "check", "result", "detail"],
                checks.iter().map(row).collect(),
            ))
        }
    }
}

async fn site(context: &str, client: &Client, namespace: &str, verify: &Verify) -> anyhow::Result<Site> {
    let slice = objects::get::<Slice>(client, None, &verify.slice).await?;
    let slice = slice
        .with_context(|| {
            format!(
                "cluster {context} is in no slice {}; see `slicectl get slices` on the hub",
                verify.slice
            )
        })?
        .into_object(&format!("slice {} of {context}", verify.slice))?;
    let probes = labels_of_probe(verify);
    may_join(&slice, namespace, &probes)?;
    let params = PatchParams::apply("slicectl").force();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = Namespace {
        metadata: ObjectMeta {
            name: Some(namespace.to_owned()),
            labels: Some(probes),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    namespaces
        .patch(namespace, &params, &Patch::Apply(&object))
        .await
        .context("make a namespace for the probe")?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = probe(&verify.image);
    pods.patch(PROBE, &params, &Patch::Apply(&pod))
        .await
        .context("start the probe")?;
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": PROBE},
        "spec": {"selector": {"app": PROBE}, "ports": [{"name": "echo", "port": 7777}]},
    });
    services
        .patch(PROBE, &params, &Patch::Apply(service))
        .await
        .context("make the probe's Service")?;
    let exports: Api<ServiceExport> = Api::namespaced(client.clone(), namespace);
    let export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": {"name": PROBE},
    });
    exports
        .patch(PROBE, &params, &Patch::Apply(export))
        .await
        .context("export the probe's Service")?;
    let why = format!(
        "the probe is not attached; see `kubectl --context {context} -n {namespace} describe pod {PROBE}`"
    );
    let attached = |pod: Option<&Pod>| pod.is_some_and(|pod| is_ready(pod) && !attachments(pod).is_empty());
    let pod = wait_for(
        &pods,
        PROBE,
        &format!("the probe in {context}"),
        verify.timeout,
        &why,
        attached,
    )
    .await?;
    let attachment = pod
        .iter()
        .flat_map(attachments)
        .find(|attachment| attachment.slice == verify.slice)
        .with_context(|| why.clone())?;
    Ok(Site {
        context: context.to_owned(),
        client: client.clone(),
        namespace: namespace.to_owned(),
        cluster: slice.spec.cluster,
        mtu: slice.spec.mtu,
        ips: attachment.ips,
        dns: slice.status.unwrap_or_default().dns,
    })
}

/// The labels of the probe's namespace: that of the slice, and what its user adds.
fn labels_of_probe(verify: &Verify) -> Labels {
    let own = (labels::SLICE.to_owned(), verify.slice.clone());
    verify.labels.iter().cloned().chain([own]).collect()
}

/// Fails where the slice lets no such namespace join. Pure.
fn may_join(slice: &Slice, namespace: &str, probes: &Labels) -> anyhow::Result<()> {
    let name = slice.name_any();
    let rules = Rules::parse(&name, &slice.spec).with_context(|| format!("the rules of slice {name}"))?;
    let pod = PodFacts {
        namespace: namespace.to_owned(),
        ..PodFacts::default()
    };
    let rules = [rules];
    let membership = membership::of_pod(&pod, probes, &rules);
    match membership.errors.first() {
        Some(error) => bail!(
            "the probe cannot join: {error}. Where spec.join.namespaceSelector takes a label, give the probe's namespace \
             that label with --label KEY=VALUE"
        ),
        None => Ok(()),
    }
}

fn probe(image: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": PROBE, "labels": {"app": PROBE}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": PROBE, "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["weft-probe", "serve"],
                "securityContext": {"capabilities": {"add": ["NET_RAW"]}},
            }],
        },
    })
}

fn attachments(pod: &Pod) -> Vec<Attachment> {
    let text = pod.annotations().get(labels::ATTACHMENTS);
    text.and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

async fn try_all(sites: &[Site]) -> Vec<Check> {
    let mut checks = Vec::new();
    for from in sites {
        for to in sites.iter().filter(|to| to.context != from.context) {
            eprintln!("{} → {} …", from.context, to.context);
            for ip in &to.ips {
                checks.extend(try_address(from, to, *ip).await);
            }
            checks.push(try_dns(from, to).await);
        }
    }
    checks
}

async fn try_address(from: &Site, to: &Site, ip: IpAddr) -> Vec<Check> {
    let ip_text = ip.to_string();
    // What an ICMP echo adds to its payload: the IP header and 8 bytes.
    let header = if ip.is_ipv4() { 28 } else { 48 };
    let full = (to.mtu - header).to_string();
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut checks = Vec::new();
    for (name, arguments) in [
        ("ping", vec!["ping", &ip_text, "--count", "3"]),
        (
            "full-size packet",
            vec!["ping", &ip_text, "--size", &full, "--df"],
        ),
        ("TCP, 1 MB", vec!["tcp", &ip_text, "--bytes", TRANSFER]),
        ("UDP", vec!["udp", &ip_text, "--count", "3"]),
    ] {
        let result = execute(from, &arguments).await;
        checks.push(Check {
            from: from.context.clone(),
            to: to.context.clone(),
            check: format!("{name} {family}"),
            ok: result.is_ok(),
            detail: result.map_or_else(|error| objects::explain(&error), |answer| summary(&answer)),
        });
    }
    checks
}

/// The other cluster's name for its probe, asked of this cluster's slice DNS.
async fn try_dns(from: &Site, to: &Site) -> Check {
    let name = format!("{PROBE}.{}.svc.{}", to.namespace, names::SLICE_ZONE);
    let result = async {
        let server = from.dns.first().context(
            "no DNS pod of this cluster is on the slice yet: see `kubectl -n weft-system get pods`",
        )?;
        let server = std::net::SocketAddr::new(*server, 53).to_string();
        let deadline = tokio::time::Instant::now() + DNS_LIMIT;
        loop {
            let answer = execute(from, &["dns", &name, "--server", &server])
                .await
                .map(|answer| answer.to_string());
            match answer {
                Ok(text) if to.ips.iter().any(|ip| text.contains(&format!("\"{ip}\""))) => return Ok(text),
                _ if tokio::time::Instant::now() < deadline => {}
                Ok(text) => {
                    return Err(anyhow!(
                        "{name} is {text}, without an address of cluster {}",
                        to.cluster
                    ));
                }
                Err(error) => return Err(error),
            }
        }
    }
    .await;
    Check {
        from: from.context.clone(),
        to: to.context.clone(),
        check: "DNS".into(),
        ok: result.is_ok(),
        detail: result.map_or_else(|error| objects::explain(&error), |_| name),
    }
}

/// What a probe printed, in a few words.
fn summary(answer: &Value) -> String {
    let p50 = answer
        .pointer("/rtt_ms/p50")
        .or_else(|| answer.pointer("/rtt/p50"))
        .and_then(Value::as_f64);
    p50.map_or_else(String::new, |p50| format!("{p50:.2} ms"))
}

/// Runs the probe program in a site's pod; its last line is JSON.
async fn execute(site: &Site, arguments: &[&str]) -> anyhow::Result<Value> {
    let pods: Api<Pod> = Api::namespaced(site.client.clone(), &site.namespace);
    let command: Vec<&str> = ["weft-probe"]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    let out = exec::run(&pods, PROBE, command).await.context("run the probe")?;
    let last = out.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the probe printed \"{last}\", which is no JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_that_lets_no_such_namespace_join_is_not_waited_for() {
        let slice = |join: Value| -> Slice {
            serde_json::from_value(json!({
                "metadata": {"name": "shop"},
                "spec": {
                    "vni": 4097, "subnets": ["10.80.0.0/16"], "mtu": 1370, "blockSize": 64, "cluster": "a",
                    "clusterNumber": 1, "ranges": [], "gateway": {"replicas": 2}, "join": join,
                },
            }))
            .unwrap()
        };
        let plain = Labels::from([(labels::SLICE.to_owned(), "shop".to_owned())]);
        let mut team = plain.clone();
        team.insert("team".to_owned(), "shop".to_owned());
        assert!(may_join(&slice(Value::Null), "probe", &plain).is_ok());
        let selected = slice(json!({"namespaceSelector": {"matchLabels": {"team": "shop"}}}));
        assert!(may_join(&selected, "probe", &team).is_ok());
        let error = may_join(&selected, "probe", &plain).unwrap_err().to_string();
        assert!(error.contains("--label KEY=VALUE"), "{error}");
    }
}
