//! What a restart breaks: one component at a time under a running UDP stream and a running TCP connection.
//!
//! docs/operations.md has the table that this test prints; nothing here needs a human, and no pod is restarted.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::{ResourceExt, api::Api};
use serde_json::json;
use slice_crds::{conditions, labels, names, v1alpha1::Slice};
use tokio::task::block_in_place;

use slice_e2e::{
    harness::{Cluster, Environment, Pace, PodSpec, Streams, is_ready, poll, weft::Member},
    lab::running::Part,
    probe::Conversation,
    progress::say,
};

/// A component that was deleted runs again.
const BACK: Duration = Duration::from_secs(60);
/// The longest that any restart may stop traffic: a single gateway, its new key told through both operators.
const OUTAGE_MS: f64 = 15_000.0;

/// Who talks to whom.
struct Ends<'a> {
    from: &'a Member,
    to: &'a Member,
}

impl Ends<'_> {
    /// Both conversations while `disturb` does what it does.
    async fn under(
        &self,
        seconds: u64,
        disturb: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<(Conversation, Conversation)> {
        let pace = Pace {
            interval: Duration::from_millis(10),
            gap: Duration::from_millis(100),
            lasts: Duration::from_secs(seconds),
        };
        let streams = Streams::start(self.from, self.to, pace).await?;
        disturb().await?;
        streams.finish().await
    }
}

async fn restart(cluster: &Cluster, namespace: &str, component: &str) -> Result<()> {
    let selector = format!("{}={component}", labels::COMPONENT);
    let old = cluster.delete_pods(namespace, &selector).await?;
    ensure!(
        !old.is_empty(),
        "no {component} runs in {namespace} of {}",
        cluster.name
    );
    let pods = cluster.pods(namespace);
    poll(
        BACK,
        &format!("{component} of cluster {} is back", cluster.name),
        async || {
            let now = pods
                .list(&kube::api::ListParams::default().labels(&selector))
                .await?;
            let fresh = |pod: &&k8s_openapi::api::core::v1::Pod| {
                // A StatefulSet's pod comes back under its old name.
                is_ready(pod) && pod.metadata.deletion_timestamp.is_none()
            };
            Ok((now.iter().filter(fresh).count() >= old.len()).then_some(()))
        },
    )
    .await
}

fn row(what: &str, udp: &Conversation, tcp: &Conversation) {
    say(format!(
        "{what:<28} UDP lost {:>4} of {:<5} longest gap {:>8} ms   TCP longest gap {:>8} ms  broken {:?}",
        udp.lost, udp.sent, udp.longest_gap_ms, tcp.longest_gap_ms, tcp.broken
    ));
}

// The lab's own work blocks: it is done beside the conversations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_any_component_needs_nobody_and_breaks_no_connection() -> Result<()> {
    let environment = Environment::open().await?;
    let lab = environment.lab()?;
    let (slice, namespace) = ("lasting", "weft-lasting");
    environment
        .slice(slice, json!({"subnets": ["10.89.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    // From the member that is not the hub: commands in pods run through their own cluster's API server.
    let (from, to) = (&members[members.len() - 1], &members[0]);
    let (hub, member) = (environment.cluster(0)?, environment.cluster(1)?);
    let ends = Ends { from, to };

    let untouched: [(&str, &Cluster, &str, &str); 5] = [
        ("netop of both ends", hub, names::MEMBER_NAMESPACE, "netop"),
        (
            "netop of the other cluster",
            member,
            names::MEMBER_NAMESPACE,
            "netop",
        ),
        ("hub operator", hub, names::HUB_NAMESPACE, "hub"),
        ("cluster operator", member, names::MEMBER_NAMESPACE, "operator"),
        ("dns", member, names::MEMBER_NAMESPACE, "dns"),
    ];
    for (what, cluster, at, component) in untouched {
        let (udp, tcp) = ends
            .under(20, async || restart(cluster, at, component).await)
            .await?;
        row(what, &udp, &tcp);
        ensure!(udp.lost == 0 && tcp.broken.is_none(), "{what}: {udp:?} {tcp:?}");
    }
    let (udp, tcp) = ends
        .under(20, async || block_in_place(|| lab.restart_apiserver(&hub.name)))
        .await?;
    row("API server of the hub", &udp, &tcp);
    ensure!(
        udp.lost == 0 && tcp.broken.is_none(),
        "API server: {udp:?} {tcp:?}"
    );

    let (udp, tcp) = ends
        .under(30, async || {
            restart(member, names::GATEWAY_NAMESPACE, "gateway").await
        })
        .await?;
    row("the only gateway", &udp, &tcp);
    // Where its successor is there before it has gone, there is no gap at all.
    ensure!(
        udp.longest_gap_ms < OUTAGE_MS && tcp.broken.is_none(),
        "gateway: {udp:?} {tcp:?}"
    );

    for pod in &members {
        let now = pod.cluster.pods(namespace).get(&pod.name).await?;
        let statuses = now
            .status
            .and_then(|status| status.container_statuses)
            .unwrap_or_default();
        ensure!(
            statuses.iter().all(|one| one.restart_count == 0),
            "{pod} was restarted"
        );
    }
    without_the_hub(&environment, slice, namespace, &members).await?;
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

/// The hub's control plane is switched off: who talks goes on, and a new pod of the other cluster joins in.
async fn without_the_hub(
    environment: &Environment,
    slice: &str,
    namespace: &str,
    members: &[Member],
) -> Result<()> {
    let lab = environment.lab()?;
    let (hub, member) = (environment.cluster(0)?, environment.cluster(1)?);
    let (far, near) = (Member::of(members, hub)?, Member::of(members, member)?);
    block_in_place(|| lab.stop_cluster(&hub.name, Part::ControlPlane))?;
    let result = async {
        let address = far.v4()?.to_string();
        near.probe(&["tcp", &address, "--bytes", "100000"]).await?;
        member
            .create_pod(namespace, &PodSpec::new("newcomer", &environment.image))
            .await?;
        let newcomer = member.member(namespace, "newcomer", slice).await?;
        newcomer.probe(&["tcp", &address, "--bytes", "100000"]).await?;
        // It is said where users look, and every process of the member may restart.
        let mirrors: Api<Slice> = Api::all(member.client.clone());
        let unreachable =
            |slice: &Slice| conditions::find_false(conditions::of(slice), conditions::REACHABLE).is_some();
        member
            .await_object(
                &mirrors,
                slice,
                "Reachable=False on the mirror",
                BACK,
                unreachable,
            )
            .await?;
        restart(member, names::MEMBER_NAMESPACE, "netop").await?;
        restart(member, names::MEMBER_NAMESPACE, "operator").await?;
        newcomer.probe(&["tcp", &address, "--bytes", "100000"]).await?;
        say("the hub's control plane off      existing pods talk, a new pod attached and talks");
        anyhow::Ok(())
    }
    .await;
    block_in_place(|| lab.start_cluster(&hub.name))?;
    result?;
    await_workloads(environment).await?;
    environment.await_slice(slice).await.map(drop)
}

/// After a control plane was away: everything of Weft is available again.
async fn await_workloads(environment: &Environment) -> Result<()> {
    for cluster in &environment.clusters {
        let client = &cluster.client;
        let namespace = names::MEMBER_NAMESPACE;
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), names::GATEWAY_NAMESPACE);
        let agents: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
        poll(
            BACK,
            &format!("everything of Weft runs in cluster {}", cluster.name),
            async || {
                let list = Default::default();
                let late = deployments.list(&list).await?.into_iter().find(|one| {
                    let status = one.status.clone().unwrap_or_default();
                    status.available_replicas.unwrap_or(0)
                        < one.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
                });
                ensure!(
                    late.is_none(),
                    "{}",
                    late.map(|one| one.name_any()).unwrap_or_default()
                );
                let late = sets.list(&list).await?.into_iter().find(|one| {
                    let status = one.status.clone().unwrap_or_default();
                    status.ready_replicas.unwrap_or(0) < status.replicas
                });
                ensure!(
                    late.is_none(),
                    "{}",
                    late.map(|one| one.name_any()).unwrap_or_default()
                );
                let late = agents.list(&list).await?.into_iter().find(|one| {
                    one.status
                        .as_ref()
                        .is_none_or(|status| status.number_ready < status.desired_number_scheduled)
                });
                ensure!(
                    late.is_none(),
                    "{}",
                    late.map(|one| one.name_any()).unwrap_or_default()
                );
                Ok(Some(()))
            },
        )
        .await?;
    }
    Ok(())
}
