//! A slice from YAML to packets: who is attached, who reaches whom, and who does not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use slice_crds::{labels, names};
use slice_e2e::harness::{
    Environment, PodSpec, poll,
    weft::{Member, attachment, seen_as},
};
use slice_e2e::progress::say;

const READY: Duration = Duration::from_secs(40);
/// From a namespace's label to an interface in its running pods.
const LIVE: Duration = Duration::from_secs(2);

fn dual_stack() -> Value {
    json!({"subnets": ["10.80.0.0/16", "fd42:80::/64"]})
}

/// Every ordered pair.
fn pairs(members: &[Member]) -> impl Iterator<Item = (&Member, &Member)> {
    members.iter().flat_map(move |from| {
        members
            .iter()
            .filter(move |to| !std::ptr::eq(from, *to))
            .map(move |to| (from, to))
    })
}

#[tokio::test]
async fn a_label_attaches_running_pods_at_once_and_its_removal_detaches_them() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("live", "weft-live");
    environment.slice(slice, dual_stack()).await?;
    let interface = names::pod_interface(slice);
    for cluster in &environment.clusters {
        cluster.fresh_namespace(namespace, &[]).await?;
        let node = cluster.nodes().await?.remove(0);
        cluster
            .create_pod(namespace, &PodSpec::new("before", &environment.image).node(&node))
            .await?;
        let pod = cluster.await_pod(namespace, "before", READY).await?;
        ensure!(attachment(&pod, slice).is_none(), "attached without a label");

        let labelled = Instant::now();
        cluster
            .label_namespace(namespace, labels::SLICE, Some(slice))
            .await?;
        cluster.await_attachment(namespace, "before", slice, true).await?;
        let took = labelled.elapsed();
        say(format!("{}: attached {took:?} after the label", cluster.name));
        ensure!(took < LIVE, "{}: attached after {took:?}", cluster.name);
        let links = cluster.shell(namespace, "before", "ls /sys/class/net").await?;
        ensure!(links.lines().any(|link| link == interface), "{links}");
        // What is shown is what the agent saw when it last looked.
        poll(READY, "the node shows the pod's port", async || {
            let shown = environment.slicectl(&cluster.name, &["node", &node, "--slice", slice])?;
            let whose = format!("slice {slice} index ");
            Ok(["wp-", &whose, "route ", "from_pod"]
                .iter()
                .all(|part| shown.contains(part))
                .then_some(()))
        })
        .await?;
        let restarts = cluster
            .pods(namespace)
            .get("before")
            .await?
            .status
            .and_then(|status| status.container_statuses);
        ensure!(
            restarts.is_some_and(|all| all.iter().all(|one| one.restart_count == 0)),
            "the pod was restarted"
        );

        cluster.label_namespace(namespace, labels::SLICE, None).await?;
        cluster
            .await_attachment(namespace, "before", slice, false)
            .await?;
        let links = cluster.shell(namespace, "before", "ls /sys/class/net").await?;
        ensure!(!links.lines().any(|link| link == interface), "{links}");
    }
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

#[tokio::test]
async fn a_new_pod_has_its_interface_before_its_first_container_starts() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("early", "weft-early");
    environment
        .slice(
            slice,
            json!({"subnets": ["10.81.0.0/16"], "namespaces": [{"name": namespace}]}),
        )
        .await?;
    let interface = names::pod_interface(slice);
    for cluster in &environment.clusters {
        cluster.fresh_namespace(namespace, &[]).await?;
        let look = PodSpec::new("looks", &environment.image)
            .command(&[
                "/bin/sh",
                "-c",
                "cat /sys/class/net/*/address > /tmp/first; exec /usr/bin/weft-probe serve",
            ])
            .spec(json!({"initContainers": [{
                "name": "first", "image": environment.image, "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", format!("test -e /sys/class/net/{interface}")],
            }]}));
        cluster.create_pod(namespace, &look).await?;
        let member = cluster.member(namespace, "looks", slice).await?;
        let first = cluster.shell(namespace, "looks", "cat /tmp/first").await?;
        ensure!(
            first.contains(&member.attachment.mac),
            "{first} lacks {}",
            member.attachment.mac
        );
        let pod = cluster.pods(namespace).get("looks").await?;
        let init = pod
            .status
            .and_then(|status| status.init_container_statuses)
            .context("init container")?;
        ensure!(
            init[0].restart_count == 0,
            "the interface was not there when the first container looked"
        );
    }
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

#[tokio::test]
async fn every_pod_reaches_every_other_by_every_protocol() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("mesh", "weft-mesh");
    let config = environment.slice(slice, dual_stack()).await?;
    let mtu = config.status.and_then(|status| status.mtu).context("an MTU")?;
    let members = environment.members(slice, namespace).await?;
    ensure!(
        members.len() >= 4,
        "this test wants four pods, on two nodes of two clusters"
    );
    for (from, to) in pairs(&members) {
        for ip in &to.attachment.ips {
            let text = ip.to_string();
            let header = if ip.is_ipv4() { 28 } else { 48 };
            let ping = from.probe(&["ping", &text, "--count", "3"]).await?;
            ensure!(ping["received"] == 3, "{from} → {to}: {ping}");
            let full = (mtu - header).to_string();
            let whole = from.probe(&["ping", &text, "--size", &full, "--df"]).await?;
            ensure!(whole["received"] == 1, "{from} → {to}: {whole}");
            let own = from
                .attachment
                .ips
                .iter()
                .find(|own| own.is_ipv4() == ip.is_ipv4())
                .context("an address")?;
            for probe in [
                ["tcp", &text, "--bytes", "1000000"],
                ["udp", &text, "--count", "3"],
            ] {
                let answer = from.probe(&probe).await?;
                ensure!(
                    seen_as(&answer)? == *own,
                    "{from} → {to}: {answer}, not from {own}"
                );
            }
        }
    }
    // One byte more than the slice carries is refused by the sender's own stack, not lost on the way.
    let (from, to) = (&members[0], &members[members.len() - 1]);
    let over = (mtu - 27).to_string();
    ensure!(
        from.probe(&["ping", &to.v4()?.to_string(), "--size", &over, "--df"])
            .await
            .is_err(),
        "fragmented"
    );
    group_traffic_arrives_once(&members, &names::pod_interface(slice)).await?;
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

/// Broadcast, multicast and frames that are not IP: each of them once at every other member.
async fn group_traffic_arrives_once(members: &[Member], interface: &str) -> Result<()> {
    let count = 20;
    let number = count.to_string();
    let on = ["--interface", interface];
    let cases: [(&str, Vec<&str>, Vec<&str>); 4] = [
        (
            "broadcast",
            vec!["datagrams", "send", "255.255.255.255"],
            vec!["datagrams", "receive"],
        ),
        (
            "IPv4 multicast",
            vec!["datagrams", "send", "239.7.7.9"],
            vec!["datagrams", "receive", "--group", "239.7.7.9"],
        ),
        (
            "IPv6 multicast",
            vec!["datagrams", "send", "ff15::77"],
            vec!["datagrams", "receive", "--group", "ff15::77"],
        ),
        (
            "EtherType 0x88b5",
            vec!["frames", "send"],
            vec!["frames", "receive"],
        ),
    ];
    for sender in [&members[0], &members[members.len() - 1]] {
        for (what, send, receive) in &cases {
            let mut listening = Vec::new();
            for receiver in members.iter().filter(|one| !std::ptr::eq(*one, sender)) {
                let arguments = [receive.as_slice(), &on, &["--expect", &number, "--seconds", "10"]].concat();
                let session = receiver
                    .cluster
                    .start_probe(&receiver.namespace, &receiver.name, &arguments)
                    .await?;
                listening.push((receiver, session));
            }
            sender
                .probe(&[send.as_slice(), &on, &["--count", &number]].concat())
                .await?;
            for (receiver, session) in listening {
                let heard: Value = session.finish().await?.json()?;
                let senders = heard["senders"].as_object().context("senders")?;
                let exact = senders
                    .values()
                    .all(|one| one["unique"] == count && one["duplicates"] == 0);
                ensure!(
                    senders.len() == 1 && exact,
                    "{what} from {sender} at {receiver}: {heard}"
                );
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn slices_with_one_subnet_do_not_see_each_other_and_outsiders_see_neither() -> Result<()> {
    let environment = Environment::open().await?;
    let one = json!({"subnets": ["10.82.0.0/16"]});
    environment.slice("red", one.clone()).await?;
    environment.slice("blue", one).await?;
    let red = environment.members("red", "weft-red").await?;
    let blue = environment.members("blue", "weft-blue").await?;
    let mut outside = Vec::new();
    for cluster in &environment.clusters {
        cluster.fresh_namespace("weft-outside", &[]).await?;
        cluster
            .create_pod("weft-outside", &PodSpec::new("outsider", &environment.image))
            .await?;
        cluster.await_pod("weft-outside", "outsider", READY).await?;
        outside.push(cluster);
    }
    // The two slices give the same addresses; each pod must reach its own slice's owner of an address, never the other's.
    for (from, to) in pairs(&red) {
        let ip = to.v4()?.to_string();
        let answer = from.probe(&["tcp", &ip]).await?;
        ensure!(seen_as(&answer)? == from.v4()?, "{answer}");
    }
    let only_blue: Vec<_> = blue
        .iter()
        .filter(|pod| red.iter().all(|one| one.attachment.ips != pod.attachment.ips))
        .collect();
    for (from, to) in red
        .iter()
        .flat_map(|from| only_blue.iter().map(move |to| (from, to)))
    {
        let ip = to.v4()?.to_string();
        let answer = from.probe(&["ping", &ip, "--timeout", "500"]).await?;
        ensure!(answer["received"] == 0, "{from} reaches {to}: {answer}");
    }
    let broadcast = [
        "frames",
        "receive",
        "--interface",
        &names::pod_interface("blue"),
        "--seconds",
        "2",
    ];
    let mut listening = Vec::new();
    for pod in &blue {
        listening.push((
            pod,
            pod.cluster
                .start_probe(&pod.namespace, &pod.name, &broadcast)
                .await?,
        ));
    }
    red[0]
        .probe(&[
            "frames",
            "send",
            "--interface",
            &names::pod_interface("red"),
            "--count",
            "5",
        ])
        .await?;
    for (pod, session) in listening {
        let heard: Value = session.finish().await?.json()?;
        ensure!(
            heard["senders"]
                .as_object()
                .is_some_and(|senders| senders.is_empty()),
            "{pod} heard {heard}"
        );
    }
    for (cluster, to) in outside
        .iter()
        .flat_map(|cluster| red.iter().map(move |to| (cluster, to)))
    {
        let ip = to.v4()?.to_string();
        // Not by ping: whatever a cluster's default route leads to may answer one in the pod's place.
        let answer = cluster
            .probe("weft-outside", "outsider", &["udp", &ip, "--timeout", "500"])
            .await?;
        ensure!(
            answer["received"] == 0,
            "a pod outside the slice reaches {to}: {answer}"
        );
    }
    for namespace in ["weft-red", "weft-blue", "weft-outside"] {
        environment.remove_namespaces(namespace).await?;
    }
    environment.remove_slice("red").await?;
    environment.remove_slice("blue").await
}
