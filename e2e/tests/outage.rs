//! Nodes that are odd, cut off or gone, and a hub that packets do not reach: what is local goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    ResourceExt,
    api::{Api, DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use slice_crds::{
    conditions, labels, names,
    v1alpha1::{Cluster as Registered, Slice, SliceBlock},
    wire::SliceAllocation,
};
use slice_e2e::{
    harness::{
        Environment, Pace, PodSpec, Streams, poll,
        weft::{Member, PROJECT},
    },
    progress::say,
};

const SOON: Duration = Duration::from_secs(60);

/// By when a hub that does not answer is reported: 45 s of silence, counted anew by an operator that takes the lead, which
/// itself takes up to the 15 s of its Lease.
const NOTICED: Duration = Duration::from_secs(90);

/// For how long the hub is away: longer than it takes to notice. `WEFT_E2E_OUTAGE=300` is as long as it was found at.
fn outage() -> Duration {
    let seconds = std::env::var("WEFT_E2E_OUTAGE")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(70))
}

/// The message of a condition that is `False`.
fn message(conditions: &[Condition], type_: &str) -> String {
    conditions::find_false(conditions, type_)
        .map(|one| one.message.clone())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_packets_to_the_hub_lost_everything_local_goes_on() -> Result<()> {
    let environment = Environment::open().await?;
    let (hub, member) = (environment.cluster(0)?, environment.cluster(1)?);
    let (slice, namespace) = ("island", "weft-island");
    environment
        .slice(
            slice,
            json!({"subnets": ["10.77.0.0/20"], "gateway": {"replicas": 2}}),
        )
        .await?;
    let members = environment.members(slice, namespace).await?;
    let (far, near) = (Member::of(&members, hub)?, Member::of(&members, member)?);
    let away = outage();
    let pace = Pace {
        interval: Duration::from_millis(10),
        gap: Duration::from_millis(600),
        lasts: away + Duration::from_secs(10),
    };
    let nodes = member.nodes().await?;
    let cut = environment.cut(&nodes, &hub.name)?;
    let since = Instant::now();
    let streams = Streams::start(near, far, pace).await?;
    let address = far.v4()?.to_string();

    // Pods attach, on every node, a gateway restarts, and the operator itself.
    for (number, node) in nodes.iter().enumerate() {
        let name = format!("late-{number}");
        let pod = PodSpec::new(&name, &environment.image).node(node);
        member.create_pod(namespace, &pod).await?;
        let pod = member.member(namespace, &name, slice).await?;
        pod.probe(&["tcp", &address, "--bytes", "100000"]).await?;
    }
    member
        .delete_pods(
            names::MEMBER_NAMESPACE,
            &format!("{}=operator", labels::COMPONENT),
        )
        .await?;
    let one = member.gateways(slice).await?.remove(0);
    member
        .pods(names::GATEWAY_NAMESPACE)
        .delete(&one.name_any(), &DeleteParams::default().grace_period(0))
        .await?;
    let up = |gateway: &slice_crds::v1alpha1::SliceGateway| {
        gateway.status.as_ref().is_some_and(|status| status.connected)
    };
    poll(SOON, "its gateways are up again", async || {
        Ok(member.gateways(slice).await?.iter().all(up).then_some(()))
    })
    .await?;
    // A node that comes in the meantime has a block of the cluster's range.
    let newcomer = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "newcomer", "labels": {"kubernetes.io/os": "linux"}},
    });
    member.apply(&newcomer.to_string()).await?;
    let ready = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "172.30.2.99"}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}],
    }});
    let all_nodes: Api<Node> = Api::all(member.client.clone());
    let result = async {
        all_nodes
            .patch_status("newcomer", &PatchParams::default(), &Patch::Merge(ready))
            .await?;
        let blocks: Api<SliceBlock> = Api::all(member.client.clone());
        let name = names::block(slice, "newcomer");
        member
            .await_object(
                &blocks,
                &name,
                "a block for the new node",
                SOON,
                |block: &SliceBlock| !block.spec.blocks.is_empty(),
            )
            .await?;
        // It is told where users look, with the cause.
        let mirrors: Api<Slice> = Api::all(member.client.clone());
        let unreachable = |slice: &Slice| {
            message(conditions::of(slice), conditions::REACHABLE).contains("has taken no heartbeat since")
        };
        member
            .await_object(
                &mirrors,
                slice,
                "Reachable=False on the mirror",
                NOTICED,
                unreachable,
            )
            .await?;
        anyhow::Ok(())
    }
    .await;
    all_nodes.delete("newcomer", &DeleteParams::default()).await?;
    result?;
    let (udp, tcp) = streams.finish().await?;
    say(format!(
        "packets to the hub lost for {} s: UDP {udp:?}, TCP {tcp:?}",
        since.elapsed().as_secs()
    ));
    ensure!(
        udp.longest_gap_ms < 1500.0 && tcp.broken.is_none(),
        "{udp:?} {tcp:?}"
    );

    cut.mend()?;
    let mended = Instant::now();
    let mirrors: Api<Slice> = Api::all(member.client.clone());
    let reachable = |slice: &Slice| conditions::is_true(conditions::of(slice), conditions::REACHABLE);
    member
        .await_object(&mirrors, slice, "Reachable=True again", SOON, reachable)
        .await?;
    environment.await_slice(slice).await?;
    let took = mended.elapsed();
    say(format!(
        "the hub is reached again {:.1} s after packets pass",
        took.as_secs_f64()
    ));
    ensure!(took < Duration::from_secs(30), "{took:?}");
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_nodes_harm_nobody() -> Result<()> {
    let environment = Environment::open().await?;
    let member = environment.cluster(1)?;
    let (slice, namespace) = ("plain", "weft-plain");
    environment
        .slice(slice, json!({"subnets": ["10.76.0.0/24"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let pace = Pace {
        interval: Duration::from_millis(5),
        gap: Duration::from_millis(100),
        lasts: Duration::from_secs(25),
    };
    let streams = Streams::start(&members[0], members.last().context("a pod")?, pace).await?;
    let nodes: Api<Node> = Api::all(member.client.clone());
    let real = nodes.get(&member.nodes().await?[0]).await?;
    let address = |node: &Node| {
        let addresses = node
            .status
            .as_ref()
            .and_then(|status| status.addresses.clone())
            .unwrap_or_default();
        addresses
            .into_iter()
            .find(|one| one.type_ == "InternalIP")
            .map(|one| one.address)
    };
    let own = address(&real).context("an address")?;
    let odd: [(&str, Value); 4] = [
        ("odd-twin", json!([{"type": "InternalIP", "address": own}])),
        (
            "odd-six",
            json!([{"type": "InternalIP", "address": "2001:db8::9"}]),
        ),
        ("odd-none", json!([])),
        (
            "odd-stale",
            json!([{"type": "InternalIP", "address": "172.30.2.98"}]),
        ),
    ];
    for (name, addresses) in &odd {
        let ready = if *name == "odd-stale" { "Unknown" } else { "True" };
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}});
        member.apply(&object.to_string()).await?;
        let status = json!({"status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": ready, "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}],
        }});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
    }
    let result = async {
        let clusters: Api<Registered> = Api::namespaced(environment.hub()?.client.clone(), PROJECT);
        let named = |cluster: &Registered| {
            message(conditions::of(cluster), conditions::NODES_USABLE).contains("odd-")
        };
        environment
            .hub()?
            .await_object(&clusters, &member.name, "NodesUsable=False", SOON, named)
            .await?;
        let status = environment.try_slicectl(&member.name, &["status"])?;
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        for (name, _) in &odd {
            ensure!(status.contains(name), "{name} is not in: {status}");
        }
        member
            .create_pod(namespace, &PodSpec::new("later", &environment.image))
            .await?;
        member.member(namespace, "later", slice).await?;
        anyhow::Ok(())
    }
    .await;
    for (name, _) in &odd {
        nodes.delete(name, &DeleteParams::default()).await?;
    }
    result?;
    let (udp, tcp) = streams.finish().await?;
    ensure!(udp.lost == 0 && tcp.broken.is_none(), "{udp:?} {tcp:?}");
    for one in &members {
        let now = one.cluster.member(namespace, &one.name, slice).await?;
        ensure!(now.attachment == one.attachment, "{one} moved");
    }
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slice_that_a_node_may_still_have_keeps_its_vni() -> Result<()> {
    let environment = Environment::open().await?;
    let member = environment.cluster(1)?;
    environment
        .slice("former", json!({"subnets": ["10.75.0.0/24"]}))
        .await?;
    let members = environment.members("former", "weft-former").await?;
    let hub = environment.hub()?;
    let allocations: Api<SliceAllocation> = Api::namespaced(hub.client.clone(), names::HUB_NAMESPACE);
    let of = |all: &[SliceAllocation], slice: &str| {
        all.iter()
            .find(|one| one.spec.slice == slice && one.spec.state == slice_crds::wire::AllocationState::Held)
            .map(|one| one.spec.vni)
    };
    let vni = of(&allocations.list(&Default::default()).await?.items, "former").context("an allocation")?;
    let node = members
        .iter()
        .rfind(|one| one.cluster.name == member.name)
        .context("a pod")?
        .node()
        .to_owned();
    let cut = environment.cut(std::slice::from_ref(&node), &member.name)?;
    let config = environment.slices()?;
    let now = Patch::Merge(json!({"metadata": {"annotations": {"weft.dev/delete": "now"}}}));
    config.patch("former", &PatchParams::default(), &now).await?;
    config.delete("former", &DeleteParams::default()).await?;
    let name = names::allocation(vni);
    let held_back = |one: &SliceAllocation| {
        one.spec.state == slice_crds::wire::AllocationState::Releasing
            && one.spec.message.contains(&member.name)
    };
    hub.await_object(
        &allocations,
        &name,
        "the allocation waits for the member",
        SOON,
        held_back,
    )
    .await?;
    environment
        .apply_slice("latter", json!({"subnets": ["10.75.0.0/24"]}))
        .await?;
    let new = poll(SOON, "an allocation for the other slice", async || {
        Ok(of(&allocations.list(&Default::default()).await?.items, "latter"))
    })
    .await?;
    ensure!(new != vni, "both slices have VNI {vni}");
    cut.mend()?;
    let resting = |one: &SliceAllocation| one.spec.state == slice_crds::wire::AllocationState::Resting;
    hub.await_object(&allocations, &name, "the allocation rests", SOON, resting)
        .await?;
    environment.remove_namespaces("weft-former").await?;
    environment.remove_slice("latter").await
}
