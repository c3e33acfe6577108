//! What a pod with NET_RAW, which container runtimes give by default, or with NET_ADMIN does not get through on real clusters.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::{Value, json};
use slice_crds::{names, v1alpha1::Slice};
use slice_e2e::{
    harness::{Cluster, Environment, PodSpec, is_ready, poll, weft::Member},
    progress::say,
};

const SLICE: &str = "attacked";
const NAMESPACE: &str = "weft-attacked";
const PORT: &str = "7779";
/// What a node shows is what its agent saw when it last looked.
const SHOWN: Duration = Duration::from_secs(20);
/// Of each attack.
const FRAMES: u64 = 5;
/// Where the attackers are that are in no slice.
const OUTSIDE: &str = "weft-attackers";

/// What counts what arrives by an interface, by sender.
const fn receive(interface: &str) -> [&str; 8] {
    [
        "datagrams",
        "receive",
        "--interface",
        interface,
        "--port",
        PORT,
        "--seconds",
        "30",
    ]
}

/// Frames of the slice that a node shows as dropped for a reason, as they came from pods.
fn dropped(environment: &Environment, pod: &Member, reason: &str) -> Result<u64> {
    let shown = environment.shown(&pod.cluster.name, pod.node(), SLICE)?;
    let all = shown["frames"].as_array().cloned().unwrap_or_default();
    let own = all
        .iter()
        .filter(|one| one["direction"] == "from_pod" && one["reason"] == reason);
    Ok(own.filter_map(|one| one["frames"].as_u64()).sum())
}

#[tokio::test]
async fn a_pod_speaks_for_itself_only_with_tags_or_without() -> Result<()> {
    let environment = Environment::open().await?;
    environment
        .slice(SLICE, json!({"subnets": ["10.80.0.0/16"]}))
        .await?;
    let members = environment.members(SLICE, NAMESPACE).await?;
    let interface = names::pod_interface(SLICE);
    let attacker = &members[0];
    let others = &members[1..];
    let mut victims = vec![];
    for victim in others {
        let session = victim
            .cluster
            .start_probe(&victim.namespace, &victim.name, &receive(&interface))
            .await?;
        victims.push((victim, session));
    }
    let (tagged, spoofed) = (
        dropped(&environment, attacker, "tagged")?,
        dropped(&environment, attacker, "spoofed")?,
    );
    let stolen = others[others.len() - 1].v4()?.to_string();
    let (count, own) = (FRAMES.to_string(), attacker.v4()?.to_string());
    let all_tags: [&[&str]; 4] = [&[], &["8100"], &["88a8"], &["88a8", "8100"]];
    for victim in others {
        let (to, mac) = (victim.v4()?.to_string(), victim.attachment.mac.clone());
        for tags in all_tags {
            // Its own address passes untagged only; what is received of it proves that the way is open.
            for source in [&stolen, &own] {
                let mut send = vec![
                    "frames",
                    "send",
                    "--interface",
                    &interface,
                    "--to",
                    &mac,
                    "--ip-source",
                    source,
                    "--ip-destination",
                    &to,
                    "--udp-port",
                    PORT,
                    "--count",
                    &count,
                    "--interval",
                    "1",
                ];
                send.extend(tags.iter().flat_map(|tag| ["--tag", *tag]));
                attacker.probe(&send).await?;
            }
        }
    }
    let attacks = FRAMES * others.len() as u64;
    poll(SHOWN, "the node counts every attack", async || {
        let seen = (
            dropped(&environment, attacker, "tagged")? - tagged,
            dropped(&environment, attacker, "spoofed")? - spoofed,
        );
        // Three kinds of tags, with either address; and the stolen one without.
        Ok((seen.0 >= attacks * 6 && seen.1 >= attacks).then_some(()))
    })
    .await?;
    for (victim, session) in victims {
        let seen: Value = session.finish().await?.json()?;
        let senders = seen["senders"].as_object().context("who has sent")?;
        ensure!(
            senders.len() == 1 && senders.contains_key(&own),
            "{victim} has something from others than {own}: {seen}"
        );
    }
    environment.remove_slice(SLICE).await?;
    environment.remove_namespaces(NAMESPACE).await
}

/// Its IPv4 address among the nodes of its cluster.
async fn address(cluster: &Cluster, node: &str) -> Result<Option<String>> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let status = nodes.get(node).await?.status.unwrap_or_default();
    let mut addresses = status.addresses.into_iter().flatten();
    let found = addresses.find(|one| one.type_ == "InternalIP" && !one.address.contains(':'));
    Ok(found.map(|one| one.address))
}

/// Pods that are in no slice write the nodes' VXLAN by hand, from the node of their victim and from another one.
#[tokio::test]
async fn a_pod_outside_puts_nothing_into_a_slice() -> Result<()> {
    let environment = Environment::open().await?;
    environment
        .slice(SLICE, json!({"subnets": ["10.80.0.0/16"]}))
        .await?;
    let members = environment.members(SLICE, NAMESPACE).await?;
    let victim = &members[0];
    let cluster = &victim.cluster;
    let mut friends = members
        .iter()
        .filter(|member| member.cluster.name == cluster.name);
    let friend = friends
        .find(|member| member.node() != victim.node())
        .context("a second node")?;
    let (Some(here), Some(there)) = (
        address(cluster, victim.node()).await?,
        address(cluster, friend.node()).await?,
    ) else {
        say("nodes without IPv4 addresses: not tried");
        environment.remove_slice(SLICE).await?;
        return environment.remove_namespaces(NAMESPACE).await;
    };
    let slices: Api<Slice> = Api::all(cluster.client.clone());
    let vni = slices.get(SLICE).await?.spec.vni.to_string();
    let (own, friends_own) = (victim.v4()?.to_string(), friend.v4()?.to_string());

    let interface = names::pod_interface(SLICE);
    let session = cluster
        .start_probe(&victim.namespace, &victim.name, &receive(&interface))
        .await?;
    cluster.fresh_namespace(OUTSIDE, &[]).await?;
    let drops = |node: &str| -> Result<u64> {
        let shown = environment.shown(&cluster.name, node, SLICE)?;
        Ok(shown["underlayDrops"].as_u64().unwrap_or_default())
    };
    for node in [victim.node(), friend.node()] {
        let name = format!("from-{node}");
        let attacker = PodSpec::new(&name, &environment.image).node(node);
        cluster.create_pod(OUTSIDE, &attacker).await?;
        let pod = cluster.await_pod(OUTSIDE, &name, SHOWN).await?;
        // Beside the victim it pretends to be the other node; what leaves a node has that node's address anyway, where the pod
        // network translates.
        let source = match node == victim.node() {
            true => there.clone(),
            false => pod
                .status
                .and_then(|status| status.pod_ip)
                .context("an address")?,
        };
        let before = drops(node)?;
        let count = FRAMES.to_string();
        let attack = [
            "frames",
            "send",
            "--interface",
            "eth0",
            "--count",
            &count,
            "--interval",
            "1",
            // Between the nodes.
            "--vni",
            &vni,
            "--outer-source",
            &source,
            "--outer-destination",
            &here,
            // In the slice.
            "--source",
            &friend.attachment.mac,
            "--to",
            &victim.attachment.mac,
            "--ip-source",
            &friends_own,
            "--ip-destination",
            &own,
            "--udp-port",
            PORT,
        ];
        cluster.probe(OUTSIDE, &name, &attack).await?;
        poll(SHOWN, "the node counts every datagram", async || {
            Ok((drops(node)? >= before + FRAMES).then_some(()))
        })
        .await?;
    }
    let send = [
        "datagrams",
        "send",
        &own,
        "--interface",
        &interface,
        "--port",
        PORT,
        "--count",
        "3",
    ];
    friend.probe(&send).await?;
    let seen: Value = session.finish().await?.json()?;
    ensure!(
        seen["senders"] == json!({friends_own: {"unique": 3, "duplicates": 0}}),
        "{victim} has something from others than {friend}, or not all: {seen}"
    );
    cluster.remove_namespace(OUTSIDE).await?;
    environment.remove_slice(SLICE).await?;
    environment.remove_namespaces(NAMESPACE).await
}

/// The agent's pod on a node, and how often its containers have ended.
async fn agent(cluster: &Cluster, node: &str) -> Result<(String, i32)> {
    let agent = cluster.agent_of(node).await?;
    let statuses = agent.status.and_then(|status| status.container_statuses);
    let ended = statuses.iter().flatten().map(|one| one.restart_count);
    Ok((agent.metadata.name.unwrap_or_default(), ended.sum()))
}

/// With NET_ADMIN a pod may do anything in its own network namespace, and an agent that starts finds it done.
#[tokio::test]
async fn a_pods_own_namespace_is_its_own_affair() -> Result<()> {
    const ROUTES: &str = "1000000";
    let environment = Environment::open().await?;
    environment
        .slice(SLICE, json!({"subnets": ["10.80.0.0/16"]}))
        .await?;
    let members = environment.members(SLICE, NAMESPACE).await?;
    let (victim, far) = (&members[0], &members[members.len() - 1]);
    let (cluster, node) = (&victim.cluster, victim.node());
    let interface = names::pod_interface(SLICE);
    for name in ["hoarder", "thief"] {
        let pod = PodSpec::new(name, &environment.image).node(node);
        cluster.create_pod(NAMESPACE, &pod).await?;
    }
    let hoarder = cluster.member(NAMESPACE, "hoarder", SLICE).await?;
    let thief = cluster.member(NAMESPACE, "thief", SLICE).await?;
    let fill = ["routes", "--interface", &interface, "--count", ROUTES];
    hoarder.probe(&fill).await?;
    let mac = &victim.attachment.mac;
    let steal = format!(
        "ip link set {interface} address {mac} && ip address add {}/16 dev {interface}",
        victim.v4()?
    );
    cluster.shell(NAMESPACE, "thief", &steal).await?;

    let before = agent(cluster, node).await?.0;
    let namespace = names::MEMBER_NAMESPACE;
    cluster
        .pods(namespace)
        .delete(&before, &Default::default())
        .await?;
    poll(SHOWN * 3, "another agent is ready", async || {
        let agent = cluster.agent_of(node).await?;
        let another = agent.metadata.name.as_ref() != Some(&before);
        Ok((another && is_ready(&agent)).then_some(()))
    })
    .await?;
    let started = agent(cluster, node).await?;
    // It does its work: for a pod that comes, and for those that were there.
    let newcomer = PodSpec::new("newcomer", &environment.image).node(node);
    cluster.create_pod(NAMESPACE, &newcomer).await?;
    let newcomer = cluster.member(NAMESPACE, "newcomer", SLICE).await?;
    for (pod, asked) in [(&newcomer, victim), (far, victim), (victim, far)] {
        let address = asked.v4()?.to_string();
        let seen = pod.probe(&["tcp", &address, "--bytes", "100000"]).await?;
        ensure!(seen["bytes"] == 100_000, "{pod} asked {asked}: {seen}");
    }
    let shown = environment.shown(&cluster.name, node, SLICE)?;
    let ports = shown["ports"].as_array().context("ports")?;
    for pod in [victim, &hoarder, &thief, &newcomer] {
        // An address of a /16 ends with the attachment's index.
        let IpAddr::V4(address) = pod.v4()? else {
            bail!("{pod} has no IPv4 address");
        };
        let alias = format!("slice {SLICE} index {}", address.to_bits() & 0xffff);
        let own = ports.iter().filter(|port| port["alias"] == alias);
        ensure!(
            own.count() == 1,
            "not exactly one port is {pod}'s, \"{alias}\": {shown}"
        );
    }
    ensure!(
        agent(cluster, node).await? == started,
        "the agent has ended: {started:?} before"
    );
    environment.remove_slice(SLICE).await?;
    environment.remove_namespaces(NAMESPACE).await
}
