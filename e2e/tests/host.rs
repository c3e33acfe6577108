//! A stock Linux host outside every cluster is in a slice, by what `slicectl peer script` prints.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use slice_crds::{conditions, names};
use slice_e2e::{
    harness::{Environment, Host, poll, weft::Member},
    progress::say,
};

const SLICE: &str = "hosted";
const NAMESPACE: &str = "weft-hosted";
const NAME: &str = "db1";
/// On the lab's node network, away from every cluster.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 250, 1);
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_an_agent_is_in_the_slice_and_stays_when_keys_change() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let subnets = json!(["10.85.0.0/16", "fd42:85::/64"]);
    let slice = json!({"subnets": subnets, "gateway": {"replicas": 2}});
    environment.slice(SLICE, slice).await?;
    let members = environment.members(SLICE, NAMESPACE).await?;
    let hub = environment.hub()?.name.clone();

    let wireguard = slice_go::wireguard_go()?;
    let folder = wireguard.parent().context("the folder of wireguard-go")?;
    let key_file = tempfile::NamedTempFile::new().context("a file for the host's key")?;
    let mut host = Host::plug_in(NAME, ADDRESS, folder.to_owned(), key_file.path().to_owned())?;
    let (key, endpoint) = (host.public_key()?, format!("{ADDRESS}:51820"));
    let create = ["create", "peer", NAME, "--slice", SLICE, "--public-key", &key];
    environment.slicectl(&hub, &[&create[..], &["--endpoint", &endpoint]].concat())?;
    let own = addresses(&environment).await?;
    bring_up_to_date(&environment, &hub, &mut host)?;
    for member in &members {
        await_talk(&host, member, &own).await?;
    }
    broadcast(&host, &members).await?;
    say("the host and every pod reach each other, and its broadcast arrives once");

    // The host keeps its word with the former keys, and the clusters say that they wait for it.
    let renew = || environment.slicectl(&hub, &["renew", "keys", SLICE, "--timeout", "0"]);
    renew()?;
    await_keys(&environment, "True", |gateway| gateway["formerKey"].is_string()).await?;
    renew()?;
    await_keys(&environment, "False", |gateway| {
        gateway["renewalWaitsFor"] == "db1/0"
    })
    .await?;
    for member in &members {
        await_talk(&host, member, &own).await?;
    }
    say("after a renewal it is reached by the former keys, and the next renewal waits for it");
    bring_up_to_date(&environment, &hub, &mut host)?;
    await_keys(&environment, "True", |gateway| {
        gateway["renewalWaitsFor"].is_null()
    })
    .await?;
    bring_up_to_date(&environment, &hub, &mut host)?;
    for member in &members {
        await_talk(&host, member, &own).await?;
    }

    environment.slicectl(&hub, &["delete", "peer", NAME, "--slice", SLICE])?;
    environment.remove_namespaces(NAMESPACE).await?;
    environment.remove_slice(SLICE).await
}

/// Runs the script that is printed now.
fn bring_up_to_date(environment: &Environment, hub: &str, host: &mut Host) -> Result<()> {
    let key = host.key.display().to_string();
    let script = environment.slicectl(hub, &["peer", "script", NAME, "--slice", SLICE, "--key", &key])?;
    host.run(&script, &names::host_tunnel(SLICE))
}

/// What the hub has given the host.
async fn addresses(environment: &Environment) -> Result<Vec<String>> {
    let status = environment.slices()?.get(SLICE).await?.status;
    let status = status.context("the slice has a status")?;
    let given = status.peers.iter().find(|peer| peer.name == NAME);
    let given = given.context("the host has addresses")?;
    Ok(given.addresses.iter().map(ToString::to_string).collect())
}

/// Host and pod answer each other, over both families, and a TCP connection carries.
async fn await_talk(host: &Host, member: &Member, own: &[String]) -> Result<()> {
    let theirs = member.attachment.ips.iter().map(ToString::to_string);
    for (ours, theirs) in own.iter().zip(theirs) {
        poll(
            SOON,
            &format!("{member} and the host by {ours} and {theirs}"),
            async || {
                let ping = |answer: &Value| answer["received"] == 1;
                let there = host.probe(&["ping", &theirs, "--timeout", "500"])?;
                let back = member.probe(&["ping", ours, "--timeout", "500"]).await?;
                Ok((ping(&there) && ping(&back)).then_some(()))
            },
        )
        .await?;
        host.probe(&["tcp", &theirs, "--bytes", "1000000"])
            .with_context(|| format!("TCP from the host to {member}"))?;
    }
    Ok(())
}

/// Broadcast datagrams of the host arrive once in every pod.
async fn broadcast(host: &Host, members: &[Member]) -> Result<()> {
    let interface = names::pod_interface(SLICE);
    let receive = [
        "datagrams",
        "receive",
        "--interface",
        &interface,
        "--expect",
        "20",
    ];
    let mut listening = Vec::new();
    for member in members {
        let cluster = &member.cluster;
        listening.push(
            cluster
                .start_probe(&member.namespace, &member.name, &receive)
                .await?,
        );
    }
    let send = [
        "datagrams",
        "send",
        "255.255.255.255",
        "--interface",
        &interface,
        "--count",
        "20",
    ];
    host.probe(&send)?;
    for (receiver, member) in listening.into_iter().zip(members) {
        let heard: Value = receiver.finish().await?.json()?;
        let senders = heard["senders"].as_object().context("senders")?;
        let exact = |one: &Value| one["unique"] == 20 && one["duplicates"] == 0;
        ensure!(
            senders.len() == 1 && senders.values().all(exact),
            "{member} heard {heard}"
        );
    }
    Ok(())
}

/// Waits until all gateways are as `gateway` says, and the slice's condition says so too.
async fn await_keys(
    environment: &Environment,
    current: &str,
    gateway: impl Fn(&Value) -> bool,
) -> Result<()> {
    let what = format!("{}={current}", conditions::KEYS_CURRENT);
    poll(SOON, &what, async || {
        let slice = serde_json::to_value(environment.slices()?.get(SLICE).await?)?;
        let status = &slice["status"];
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let condition = conditions.find(|one| one["type"] == conditions::KEYS_CURRENT);
        let said = condition.is_some_and(|one| one["status"] == current);
        let clusters = status["clusters"].as_array().into_iter().flatten();
        let mut gateways = clusters.flat_map(|cluster| cluster["gateways"].as_array().into_iter().flatten());
        let all = gateways.all(&gateway);
        ensure!(said && all, "{status}");
        Ok(Some(()))
    })
    .await
}
