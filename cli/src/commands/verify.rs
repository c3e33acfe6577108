//! `verify`: tries a slice from end to end, between every two nodes, with pods that it takes away again.
//!
//! A check that was not answered in full has failed: nothing here says "ok" because a program ended well.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, anyhow, bail};
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::ObjectMeta,
};
use serde::Serialize;
use serde_json::{Value, json};
use slice_crds::{
    conditions,
    labels::{self, Attachment},
    mcs::ServiceExport,
    membership::{self, Labels, PodFacts, Rules},
    names,
    v1alpha1::{Slice, SliceNode},
};
use slice_runtime::apply;
use tokio::signal::unix::{SignalKind, signal};

use super::wait_for;
use crate::{
    Outcome,
    args::{Format, Target, Verify},
    connect, exec, objects, output,
};

/// Service of the probes, and what their names begin with.
const PROBE: &str = "probe";
/// Bytes sent over TCP: many packets of full size.
const TRANSFER: &str = "1000000";
/// A DNS pod needs at most this long to come to a slice, and a name from export to answer, the cluster DNS's own
/// reload not counted.
const DNS_LIMIT: Duration = Duration::from_secs(20);
/// Why a container waits that will not start by waiting longer.
const HOPELESS: [&str; 7] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
];

/// A cluster whose part of the slice is tried.
struct Member {
    context: String,
    client: Client,
    namespace: String,
    slice: String,
    cluster: String,
    mtu: u16,
    /// Its DNS pods on the slice; none where they did not come in time.
    dns: Vec<IpAddr>,
    /// Where a probe runs.
    nodes: Vec<String>,
    /// And where none can.
    without_agent: Vec<String>,
}

/// One probe pod.
struct Site<'a> {
    member: &'a Member,
    node: String,
    pod: String,
    ips: Vec<IpAddr>,
}

impl Site<'_> {
    /// As it is called in the report.
    fn name(&self) -> String {
        format!("{}/{}", self.member.context, self.node)
    }
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

impl Check {
    fn new(from: String, to: String, check: String, result: anyhow::Result<String>) -> Self {
        Self {
            from,
            to,
            check,
            ok: result.is_ok(),
            detail: result.unwrap_or_else(|error| objects::explain(&error)),
        }
    }
}

pub(crate) async fn run(target: &Target, verify: Verify) -> anyhow::Result<Outcome> {
    let namespace = format!("weft-verify-{}", std::process::id());
    let mut clients = Vec::new();
    for context in &verify.contexts {
        let client = connect::client(&connect::in_context(target, context)).await?;
        clients.push((context.clone(), client));
    }
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    let checks = tokio::select! {
        checks = try_slice(&clients, &namespace, &verify) => checks,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow!("terminated")),
    };
    let removals = clients.iter().map(async |(context, client)| {
        let api: Api<Namespace> = Api::all(client.clone());
        let removed = apply::delete(&api, &namespace).await;
        removed.with_context(|| {
            format!("remove the probes from {context}: kubectl --context {context} delete ns {namespace}")
        })
    });
    let removed: Vec<anyhow::Result<_>> = join_all(removals).await;
    let checks = checks?;
    report(&checks, verify.output)?;
    for result in removed {
        result?;
    }
    let good = checks.iter().all(|check| check.ok);
    Ok(if good { Outcome::Good } else { Outcome::Bad })
}

async fn try_slice(
    clients: &[(String, Client)],
    namespace: &str,
    verify: &Verify,
) -> anyhow::Result<Vec<Check>> {
    let members = (clients.iter()).map(|(context, client)| member(context, client, namespace, verify));
    let mut members = try_join_all(members).await?;
    let probes: usize = members.iter().map(|member| member.nodes.len()).sum();
    if probes < 2 {
        bail!(
            "a slice is verified between two nodes, and {probes} has an agent that is ready: see `kubectl get slicenodes`"
        );
    }
    eprintln!(
        "starting a probe on {probes} nodes of {} …",
        verify.contexts.join(", ")
    );
    try_join_all(members.iter().map(|member| set_up(member, verify))).await?;
    let servers = join_all(members.iter().map(dns_servers)).await;
    for (member, servers) in members.iter_mut().zip(servers) {
        member.dns = servers;
    }
    let sites =
        (members.iter()).flat_map(|member| member.nodes.iter().map(|node| site(member, node, verify)));
    let sites = try_join_all(sites).await?;
    let absent = members.iter().flat_map(|member| {
        member.without_agent.iter().map(|node| {
            let name = format!("{}/{node}", member.context);
            let trouble = format!(
                "it is not ready: see `kubectl --context {} get slicenode {node}`",
                member.context
            );
            Check::new(name.clone(), name, "agent".into(), Err(anyhow!(trouble)))
        })
    });
    let mut checks: Vec<Check> = absent.collect();
    checks.extend(
        join_all(sites.iter().map(|from| try_from(from, &sites, &members)))
            .await
            .into_iter()
            .flatten(),
    );
    Ok(checks)
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

/// What there is to try in a cluster.
async fn member(context: &str, client: &Client, namespace: &str, verify: &Verify) -> anyhow::Result<Member> {
    let slice = objects::get::<Slice>(client, None, &verify.slice).await?;
    let slice = slice
        .with_context(|| {
            format!(
                "cluster {context} is in no slice {}; see `slicectl get slices` on the hub",
                verify.slice
            )
        })?
        .into_object(&format!("slice {} of {context}", verify.slice))?;
    may_join(&slice, namespace, &labels_of_probe(verify))?;
    let nodes = objects::list::<SliceNode>(client, None, &ListParams::default()).await?;
    let (ready, others): (Vec<_>, Vec<_>) =
        (nodes.iter()).partition(|node| conditions::is_true(&node.conditions(), conditions::READY));
    let names = |nodes: Vec<&objects::Found<SliceNode>>| -> Vec<String> {
        nodes.iter().map(|node| node.name().to_owned()).collect()
    };
    let mut nodes = names(ready);
    nodes.sort();
    nodes.truncate(verify.nodes.unwrap_or(usize::MAX));
    Ok(Member {
        context: context.to_owned(),
        client: client.clone(),
        namespace: namespace.to_owned(),
        slice: verify.slice.clone(),
        cluster: slice.spec.cluster,
        mtu: slice.spec.mtu,
        dns: Vec::new(),
        nodes,
        without_agent: names(others),
    })
}

/// Makes what the probes of a cluster share: their namespace, and a Service that is exported.
async fn set_up(member: &Member, verify: &Verify) -> anyhow::Result<()> {
    let (client, namespace) = (&member.client, &member.namespace);
    let params = PatchParams::apply("slicectl").force();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = Namespace {
        metadata: ObjectMeta {
            name: Some(namespace.clone()),
            labels: Some(labels_of_probe(verify)),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    namespaces
        .patch(namespace, &params, &Patch::Apply(&object))
        .await
        .context("make a namespace for the probes")?;
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": PROBE},
        "spec": {"selector": {"app": PROBE}, "ports": [{"name": "echo", "port": 7777}]},
    });
    services
        .patch(PROBE, &params, &Patch::Apply(service))
        .await
        .context("make the probes' Service")?;
    let exports: Api<ServiceExport> = Api::namespaced(client.clone(), namespace);
    let export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": {"name": PROBE},
    });
    exports
        .patch(PROBE, &params, &Patch::Apply(export))
        .await
        .context("export the probes' Service")?;
    Ok(())
}

/// The DNS pods of a cluster on the slice. A slice that was just made is waited for; where none comes, the check says so.
async fn dns_servers(member: &Member) -> Vec<IpAddr> {
    let slices: Api<Slice> = Api::all(member.client.clone());
    let of = |slice: &Slice| {
        slice
            .status
            .as_ref()
            .map_or_else(Vec::new, |status| status.dns.clone())
    };
    let what = format!("a DNS pod of {} on slice {}", member.context, member.slice);
    let there = |slice: Option<&Slice>| slice.is_none_or(|slice| !of(slice).is_empty());
    match wait_for(&slices, &member.slice, &what, DNS_LIMIT, "none came", there).await {
        Ok(slice) => slice.as_ref().map(of).unwrap_or_default(),
        Err(error) => {
            eprintln!("{}", objects::explain(&error));
            Vec::new()
        }
    }
}

/// Starts a probe on a node and waits until it is attached.
async fn site<'a>(member: &'a Member, node: &str, verify: &Verify) -> anyhow::Result<Site<'a>> {
    let (context, namespace) = (&member.context, &member.namespace);
    let pods: Api<Pod> = Api::namespaced(member.client.clone(), namespace);
    let name = format!("{PROBE}-{node}");
    let params = PatchParams::apply("slicectl").force();
    pods.patch(&name, &params, &Patch::Apply(&probe(&name, node, &verify.image)))
        .await
        .with_context(|| format!("start the probe on {context}/{node}"))?;
    let settled = |pod: Option<&Pod>| {
        pod.is_some_and(|pod| {
            hopeless(pod).is_some() || is_ready(pod) && attachment(pod, &member.slice).is_some()
        })
    };
    let what = format!("the probe on {context}/{node}");
    let why =
        format!("it is not attached; see `kubectl --context {context} -n {namespace} describe pod {name}`");
    let pod = wait_for(&pods, &name, &what, verify.timeout, &why, settled).await?;
    let pod = pod.with_context(|| format!("{what} was deleted"))?;
    if let Some(trouble) = hopeless(&pod) {
        bail!(
            "{what} does not start: {trouble}. With --image give one with weft-probe in it that the node can pull; \
             images/Dockerfile builds it"
        );
    }
    let attachment = attachment(&pod, &member.slice).context(why)?;
    Ok(Site {
        member,
        node: node.to_owned(),
        pod: name,
        ips: attachment.ips,
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

/// A pod on a node, whatever keeps others away from there.
fn probe(name: &str, node: &str, image: &str) -> Value {
    let on_node = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": PROBE}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": on_node}}},
            "containers": [{
                "name": PROBE, "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["weft-probe", "serve"],
                "securityContext": {"capabilities": {"add": ["NET_RAW"]}},
            }],
        },
    })
}

fn attachment(pod: &Pod, slice: &str) -> Option<Attachment> {
    let text = pod.annotations().get(labels::ATTACHMENTS)?;
    let all: Vec<Attachment> = serde_json::from_str(text).ok()?;
    all.into_iter().find(|attachment| attachment.slice == slice)
}

/// Why a pod will not start by waiting longer. Pure.
fn hopeless(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let mut waiting = (statuses.iter()).filter_map(|status| status.state.as_ref()?.waiting.as_ref());
    waiting.find_map(|waiting| {
        let reason = waiting
            .reason
            .as_deref()
            .filter(|reason| HOPELESS.contains(reason))?;
        Some(format!(
            "{reason}: {}",
            waiting.message.as_deref().unwrap_or_default()
        ))
    })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Everything that one probe tries, one after the other.
async fn try_from(from: &Site<'_>, sites: &[Site<'_>], members: &[Member]) -> Vec<Check> {
    let mut checks = Vec::new();
    for to in sites.iter().filter(|to| to.name() != from.name()) {
        eprintln!("{} → {} …", from.name(), to.name());
        for ip in &to.ips {
            checks.extend(try_address(from, to, *ip).await);
        }
    }
    let others = |member: &&Member| member.context != from.member.context || members.len() == 1;
    for member in members.iter().filter(others) {
        let here = |site: &&Site<'_>| site.member.context == member.context;
        let ips: Vec<IpAddr> = sites
            .iter()
            .filter(here)
            .flat_map(|site| site.ips.clone())
            .collect();
        checks.extend(try_dns(from, member, &ips).await);
    }
    checks
}

async fn try_address(from: &Site<'_>, to: &Site<'_>, ip: IpAddr) -> Vec<Check> {
    let ip_text = ip.to_string();
    // What an ICMP echo adds to its payload: the IP header and 8 bytes.
    let header = if ip.is_ipv4() { 28 } else { 48 };
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let run = async |arguments: &[&str]| execute(from, arguments).await.and_then(|answer| judge(&answer));
    let mut checks = Vec::new();
    let mut push = |name: &str, result| {
        checks.push(Check::new(
            from.name(),
            to.name(),
            format!("{name} {family}"),
            result,
        ));
    };
    push("ping", run(&["ping", &ip_text, "--count", "3"]).await);

    let whole = async |mtu: u16| {
        let size = mtu.saturating_sub(header).to_string();
        run(&["ping", &ip_text, "--size", &size, "--df", "--count", "3"]).await
    };
    let mut mtu = to.member.mtu.min(from.member.mtu);
    let mut result = whole(mtu).await;
    // It follows what the paths carry, and may have done so since it was read.
    if result.is_err()
        && let (Some(here), Some(there)) = (mtu_of(from.member).await, mtu_of(to.member).await)
        && here.min(there) < mtu
    {
        mtu = here.min(there);
        result = whole(mtu).await;
    }
    push(&format!("{mtu}-byte packet"), result);

    push("TCP, 1 MB", run(&["tcp", &ip_text, "--bytes", TRANSFER]).await);
    push("UDP", run(&["udp", &ip_text, "--count", "3"]).await);
    checks
}

/// The slice's MTU in a cluster, as it is now; `None` where that cannot be read.
async fn mtu_of(member: &Member) -> Option<u16> {
    let slices: Api<Slice> = Api::all(member.client.clone());
    slices.get(&member.slice).await.ok().map(|slice| slice.spec.mtu)
}

/// The name of another cluster's probes, asked of this cluster's slice DNS, and as every pod asks.
async fn try_dns(from: &Site<'_>, to: &Member, ips: &[IpAddr]) -> Vec<Check> {
    let name = format!("{PROBE}.{}.svc.{}", to.namespace, names::SLICE_ZONE);
    let slice_dns = match from.member.dns.first() {
        Some(server) => {
            let server = std::net::SocketAddr::new(*server, 53).to_string();
            try_name(from, &name, &["--server", &server], to, ips).await
        }
        None => Err(anyhow!(
            "no DNS pod of this cluster is on the slice yet: see `kubectl --context {} -n weft-system get pods`",
            from.member.context
        )),
    };
    let by_resolver = try_name(from, &name, &[], to, ips).await.with_context(|| {
        format!(
            "the pod's own resolver does not hand {} on to slice DNS: see ZoneForwarded and NamesResolve of the Cluster on the hub, and `kubectl --context {} -n kube-system get cm coredns -o yaml`",
            names::SLICE_ZONE,
            from.member.context
        )
    });
    vec![
        Check::new(from.name(), to.context.clone(), "slice DNS".into(), slice_dns),
        Check::new(
            from.name(),
            to.context.clone(),
            "DNS of the pod".into(),
            by_resolver,
        ),
    ]
}

async fn try_name(
    from: &Site<'_>,
    name: &str,
    more: &[&str],
    to: &Member,
    ips: &[IpAddr],
) -> anyhow::Result<String> {
    let question = [&["dns", name], more].concat();
    let deadline = tokio::time::Instant::now() + DNS_LIMIT;
    loop {
        let answer = execute(from, &question).await.map(|answer| answer.to_string());
        match answer {
            Ok(text) if ips.iter().any(|ip| text.contains(&format!("\"{ip}\""))) => {
                return Ok(name.to_owned());
            }
            _ if tokio::time::Instant::now() < deadline => {}
            Ok(text) => bail!("{name} is {text}, without an address of cluster {}", to.cluster),
            Err(error) => return Err(error),
        }
    }
}

/// What a probe's result comes to: a few words where everything was answered, and otherwise what was not. Pure.
fn judge(answer: &Value) -> anyhow::Result<String> {
    let number = |path: &str| answer.pointer(path).and_then(Value::as_f64);
    if let (Some(sent), Some(received)) = (answer["sent"].as_u64(), answer["received"].as_u64())
        && (sent == 0 || received < sent)
    {
        bail!("{} of {sent} lost", sent - received);
    }
    match (number("/rtt_ms/p50"), number("/mbit")) {
        (Some(p50), _) => Ok(format!("{p50:.2} ms")),
        (None, Some(mbit)) => Ok(format!("{mbit:.0} Mbit/s")),
        (None, None) => bail!("the probe does not say what was answered: {answer}"),
    }
}

/// Runs the probe program in a site's pod; its last line is JSON, also where something was lost.
async fn execute(site: &Site<'_>, arguments: &[&str]) -> anyhow::Result<Value> {
    let pods: Api<Pod> = Api::namespaced(site.member.client.clone(), &site.member.namespace);
    let command = ["weft-probe"].iter().chain(arguments).copied();
    let command: Vec<&str> = command.collect();
    let ran = exec::run(&pods, &site.pod, command)
        .await
        .context("run the probe")?;
    let last = ran.stdout.lines().last().unwrap_or_default();
    let answer: Value = serde_json::from_str(last)
        .with_context(|| format!("the probe printed \"{last}\" and \"{}\"", ran.stderr.trim()))?;
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
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

    #[test]
    fn what_was_not_answered_in_full_has_failed() {
        let verdict = |answer: Value| judge(&answer).map_err(|error| error.to_string());
        let rtt = json!({"min": 0.1, "p50": 0.25, "p99": 0.4, "max": 0.4});
        assert_eq!(
            verdict(json!({"sent": 3, "received": 3, "rtt_ms": rtt})).as_deref(),
            Ok("0.25 ms")
        );
        assert_eq!(
            verdict(json!({"bytes": 1_000_000, "mbit": 812.4})).as_deref(),
            Ok("812 Mbit/s")
        );
        for (sent, received, expected) in [
            (3, 0, "3 of 3 lost"),
            (3, 2, "1 of 3 lost"),
            (0, 0, "0 of 0 lost"),
        ] {
            let answer = json!({"sent": sent, "received": received, "rtt_ms": rtt});
            assert_eq!(verdict(answer).unwrap_err(), expected);
        }
        assert!(verdict(json!({})).is_err(), "nothing said is nothing answered");
    }

    #[test]
    fn a_probe_that_cannot_start_is_not_waited_for() {
        let pod = |reason: &str| -> Pod {
            let state = json!({"waiting": {"reason": reason, "message": "no such image"}});
            let statuses = json!([{
                "name": "probe", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            }]);
            serde_json::from_value(json!({"metadata": {}, "status": {"containerStatuses": statuses}}))
                .unwrap()
        };
        assert_eq!(
            hopeless(&pod("ImagePullBackOff")).unwrap(),
            "ImagePullBackOff: no such image"
        );
        assert!(hopeless(&pod("ContainerCreating")).is_none());
    }
}
