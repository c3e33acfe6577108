//! One object that cannot be read, written or followed costs nobody else anything, and is named where its owner looks.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        batch::v1::Job,
        core::v1::{ConfigMap, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    ResourceExt,
    api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::ApiResource,
};
use serde_json::{Value, json};
use slice_crds::{
    annotations, conditions, labels, names,
    v1alpha1::{Cluster as Registered, SliceBlock, SliceConfig},
    wire::{MemberReport, MemberSliceReport},
};
use slice_e2e::{
    harness::{Environment, Pace, PodSpec, Streams, is_ready, poll, weft::PROJECT},
    progress::say,
};

const SOON: Duration = Duration::from_secs(30);

/// A condition's `<status> <reason>: <message>`.
fn condition(
    conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
    type_: &str,
) -> String {
    conditions::find(conditions, type_).map_or_else(String::new, |one| {
        format!("{} {}: {}", one.status, one.reason, one.message)
    })
}

async fn registered(environment: &Environment, name: &str, spec: Value) -> Result<()> {
    let object = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "Cluster",
        "metadata": {"name": name, "namespace": PROJECT}, "spec": spec,
    });
    environment.hub()?.apply(&object.to_string()).await
}

fn clusters(environment: &Environment) -> Result<Api<DynamicObject>> {
    let resource = ApiResource::erase::<Registered>(&());
    Ok(Api::namespaced_with(
        environment.hub()?.client.clone(),
        PROJECT,
        &resource,
    ))
}

async fn await_cluster(
    environment: &Environment,
    name: &str,
    what: &str,
    type_: &str,
    words: &[&str],
) -> Result<()> {
    let holds = |object: &DynamicObject| {
        let conditions: Vec<_> =
            serde_json::from_value(object.data["status"]["conditions"].clone()).unwrap_or_default();
        let text = condition(&conditions, type_);
        words.iter().all(|word| text.contains(word))
    };
    let api = clusters(environment)?;
    environment
        .hub()?
        .await_object(&api, name, what, SOON, |object| holds(object))
        .await?;
    Ok(())
}

/// Every pod of the hub's controller is ready, as at the start.
async fn hub_is_ready(environment: &Environment) -> Result<()> {
    let pods = environment
        .hub()?
        .pods(names::HUB_NAMESPACE)
        .list(&Default::default())
        .await?;
    ensure!(
        !pods.items.is_empty() && pods.iter().all(is_ready),
        "{:?}",
        pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
    );
    Ok(())
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_and_one_that_was_stored_stops_nobody() -> Result<()> {
    let environment = Environment::open().await?;
    environment.install().await?;
    let hub = environment.hub()?;
    let bad = json!({"gateway": {"advertise": ["gw.example.com"]}});
    let Err(refusal) = registered(&environment, "odd", bad.clone()).await else {
        bail!("it was taken");
    };
    ensure!(
        format!("{refusal:#}").contains("spec.gateway.advertise"),
        "{refusal:#}"
    );

    // Stored by a version whose schema did not say so.
    let crds: Api<CustomResourceDefinition> = Api::all(hub.client.clone());
    let strict = crds.get("clusters.weft.dev").await?;
    let mut lax = strict.clone();
    lax.metadata.managed_fields = None;
    let mut value = serde_json::to_value(&lax)?;
    let advertise = value
        .pointer_mut(
            "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/gateway/properties/advertise",
        )
        .and_then(Value::as_object_mut)
        .context("the field advertise")?;
    advertise.remove("x-kubernetes-validations");
    crds.replace(
        "clusters.weft.dev",
        &Default::default(),
        &serde_json::from_value(value)?,
    )
    .await?;
    let stored = poll(SOON, "the object is stored", async || {
        Ok(registered(&environment, "odd", bad.clone())
            .await
            .is_ok()
            .then_some(()))
    })
    .await;
    let schema = json!({"spec": {"versions": strict.spec.versions}});
    crds.patch(
        "clusters.weft.dev",
        &PatchParams::default(),
        &Patch::Merge(schema),
    )
    .await?;
    stored?;

    let words = ["False Unreadable", "spec.gateway.advertise[0]", "gw.example.com"];
    await_cluster(
        &environment,
        "odd",
        "Ready=False Unreadable",
        conditions::READY,
        &words,
    )
    .await?;
    hub_is_ready(&environment).await?;
    let table = environment.slicectl(&hub.name, &["get", "clusters"])?;
    ensure!(
        table.contains("odd") && table.contains("gw.example.com") && table.contains(&hub.name),
        "{table}"
    );
    // A hub that starts with it there serves the others.
    hub.delete_pods(names::HUB_NAMESPACE, &format!("{}=hub", labels::COMPONENT))
        .await?;
    environment
        .slice("calm", json!({"subnets": ["10.93.0.0/24"]}))
        .await?;
    poll(SOON, "the hub's pods are ready", async || {
        Ok(hub_is_ready(&environment).await.ok())
    })
    .await?;
    environment.remove_slice("calm").await?;
    clusters(&environment)?
        .delete("odd", &DeleteParams::default())
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_members_namespace_that_hangs_is_named_and_stops_nobody() -> Result<()> {
    let environment = Environment::open().await?;
    environment.install().await?;
    let hub = environment.hub()?;
    let namespace = names::member_namespace("ghost");
    registered(&environment, "ghost", json!({})).await?;
    let maps: Api<ConfigMap> = Api::namespaced(hub.client.clone(), &namespace);
    let stuck = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "stuck", "namespace": namespace, "finalizers": ["example.com/never"]},
    });
    poll(SOON, "the member's namespace is there", async || {
        Ok(hub.apply(&stuck.to_string()).await.ok())
    })
    .await?;
    let spaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(hub.client.clone());
    spaces.delete(&namespace, &DeleteParams::default()).await?;
    let mut members: Vec<&str> = environment
        .clusters
        .iter()
        .map(|cluster| cluster.name.as_str())
        .collect();
    members.push("ghost");
    let result = async {
        let spec = json!({"subnets": ["10.94.0.0/24"], "clusters": members});
        let object = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig",
            "metadata": {"name": "haunted", "namespace": PROJECT}, "spec": spec,
        });
        hub.apply(&object.to_string()).await?;
        for cluster in &environment.clusters {
            let mirrors: Api<slice_crds::v1alpha1::Slice> = Api::all(cluster.client.clone());
            let there = |slice: &slice_crds::v1alpha1::Slice| slice.status.is_some();
            cluster
                .await_object(&mirrors, "haunted", "the slice is set up", SOON, there)
                .await?;
        }
        let words = [namespace.as_str(), "is being deleted", "example.com/never"];
        await_cluster(
            &environment,
            "ghost",
            "the namespace is named",
            conditions::REACHABLE,
            &words,
        )
        .await
    }
    .await;
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("stuck", &PatchParams::default(), &free).await?;
    environment.remove_slice("haunted").await?;
    clusters(&environment)?
        .delete("ghost", &DeleteParams::default())
        .await?;
    result
}

// The lab's own work blocks: it is done beside the conversations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_reports_and_blocks_move_no_pod_and_removed_fields_are_taken_back() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("lasts", "weft-lasts");
    environment
        .slice(slice, json!({"subnets": ["10.95.0.0/24"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let pace = Pace {
        interval: Duration::from_millis(5),
        gap: Duration::from_millis(100),
        lasts: Duration::from_secs(20),
    };
    let streams = Streams::start(&members[0], members.last().context("a pod")?, pace).await?;
    let hub = environment.hub()?;
    for cluster in &environment.clusters {
        let room = names::member_namespace(&cluster.name);
        let reports: Api<MemberReport> = Api::namespaced(hub.client.clone(), &room);
        reports
            .delete(names::MEMBER_REPORT, &DeleteParams::default())
            .await?;
        let of_slices: Api<MemberSliceReport> = Api::namespaced(hub.client.clone(), &room);
        of_slices.delete(slice, &DeleteParams::default()).await?;
        let blocks: Api<SliceBlock> = Api::all(cluster.client.clone());
        for node in cluster.nodes().await? {
            let name = names::block(slice, &node);
            let before = blocks.get(&name).await?;
            // Not by mistake.
            let refused = blocks.delete(&name, &DeleteParams::default()).await;
            ensure!(
                refused.is_err_and(|error| error.to_string().contains("weft.dev/delete=now")),
                "{name} was deleted"
            );
            let meant = json!({"metadata": {"annotations": {annotations::DELETE: annotations::NOW}}});
            blocks
                .patch(&name, &PatchParams::default(), &Patch::Merge(meant))
                .await?;
            blocks.delete(&name, &DeleteParams::default()).await?;
            let again =
                |block: &SliceBlock| block.uid() != before.uid() && block.spec.blocks == before.spec.blocks;
            cluster
                .await_object(&blocks, &name, "the block is there again, as it was", SOON, again)
                .await?;
        }
    }
    let (udp, tcp) = streams.finish().await?;
    ensure!(udp.lost == 0 && tcp.broken.is_none(), "{udp:?} {tcp:?}");
    for member in &members {
        let pod = member.cluster.member(namespace, &member.name, slice).await?;
        ensure!(
            pod.attachment == member.attachment,
            "{member} moved from {:?} to {:?}",
            member.attachment,
            pod.attachment
        );
    }

    // Fields that a StatefulSet has and then has not.
    let config = environment.slices()?;
    let exposure = |value: Value| Patch::Merge(json!({"spec": {"gateway": {"exposure": value}}}));
    for (value, wanted) in [(json!("HostPort"), true), (Value::Null, false)] {
        config
            .patch(slice, &PatchParams::default(), &exposure(value))
            .await?;
        for cluster in &environment.clusters {
            let sets: Api<StatefulSet> = Api::namespaced(cluster.client.clone(), names::GATEWAY_NAMESPACE);
            let has = |set: &StatefulSet| {
                serde_json::to_string(&set.spec).is_ok_and(|text| text.contains("hostPort")) == wanted
            };
            cluster
                .await_object(
                    &sets,
                    &names::gateway_workload(slice),
                    "hostPort as wanted",
                    SOON,
                    has,
                )
                .await?;
        }
    }
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

#[tokio::test]
async fn the_longest_name_has_gateways_and_declared_networks_are_kept_free() -> Result<()> {
    let environment = Environment::open().await?;
    let longest = "x".repeat(names::MAX_NAME);
    environment
        .slice(&longest, json!({"subnets": ["10.97.0.0/24"]}))
        .await?;
    environment.remove_slice(&longest).await?;
    let one_more = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig",
        "metadata": {"name": "x".repeat(names::MAX_NAME + 1), "namespace": PROJECT},
        "spec": {"subnets": ["10.97.0.0/24"], "clusters": ["a"]},
    });
    let Err(refusal) = environment.hub()?.apply(&one_more.to_string()).await else {
        bail!("a longer name was taken");
    };
    ensure!(format!("{refusal:#}").contains("39"), "{refusal:#}");

    // Networks that no Node object names: a pool of the CNI.
    let name = environment.cluster(1)?.name.clone();
    let declare = |pods: Value| Patch::Merge(json!({"spec": {"networks": {"pods": pods}}}));
    let api = clusters(&environment)?;
    api.patch(&name, &PatchParams::default(), &declare(json!(["10.98.0.0/16"])))
        .await?;
    let object = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig",
        "metadata": {"name": "covers", "namespace": PROJECT},
        "spec": {"subnets": ["10.98.4.0/24"], "clusters": [name]},
    });
    environment.hub()?.apply(&object.to_string()).await?;
    let refused = |slice: &SliceConfig| {
        let text = condition(conditions::of(slice), conditions::ACCEPTED);
        ["False SubnetOverlap", "10.98.4.0/24", "10.98.0.0/16", &name]
            .iter()
            .all(|word| text.contains(word))
    };
    let hub = environment.hub()?;
    let result = hub
        .await_object(
            &environment.slices()?,
            "covers",
            "Accepted=False SubnetOverlap",
            SOON,
            refused,
        )
        .await;
    api.patch(&name, &PatchParams::default(), &declare(Value::Null))
        .await?;
    environment.remove_slice("covers").await?;
    result.map(drop)
}

/// Who may put pods in is the slice's to say.
#[tokio::test]
async fn a_pods_label_counts_only_where_the_slice_allows_it() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, outside) = ("guarded", "weft-outside");
    let member = environment.cluster(1)?;
    environment
        .slice(slice, json!({"subnets": ["10.99.0.0/24"]}))
        .await?;
    member.fresh_namespace(outside, &[]).await?;
    let pod = PodSpec::new("intruder", &environment.image).label(labels::SLICE, slice);
    member.create_pod(outside, &pod).await?;
    member.await_pod(outside, "intruder", SOON).await?;
    // It is reported on the pod, on the Cluster, and by the command.
    let events: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(member.client.clone(), outside);
    poll(SOON, "an event on the pod", async || {
        let all = events.list(&Default::default()).await?;
        let note = |event: &k8s_openapi::api::events::v1::Event| event.note.clone().unwrap_or_default();
        Ok(all
            .iter()
            .any(|event| note(event).contains(slice) && note(event).contains("podLabels"))
            .then_some(()))
    })
    .await?;
    // The condition names one of them, the command all.
    let words = ["False MalformedLabel"];
    await_cluster(
        &environment,
        &member.name,
        "LabelsValid=False",
        conditions::LABELS_VALID,
        &words,
    )
    .await?;
    let status = environment.try_slicectl(&member.name, &["status"])?;
    ensure!(
        String::from_utf8_lossy(&status.stdout).contains("intruder"),
        "{status:?}"
    );
    member.await_attachment(outside, "intruder", slice, false).await?;

    let allow = Patch::Merge(json!({"spec": {"join": {"podLabels": true}}}));
    environment
        .slices()?
        .patch(slice, &PatchParams::default(), &allow)
        .await?;
    member.await_attachment(outside, "intruder", slice, true).await?;
    let never = Patch::Merge(
        json!({"spec": {"join": {"podLabels": true, "namespaceSelector": {"matchLabels": {"may": "join"}}}}}),
    );
    environment
        .slices()?
        .patch(slice, &PatchParams::default(), &never)
        .await?;
    member.await_attachment(outside, "intruder", slice, false).await?;
    member.label_namespace(outside, "may", Some("join")).await?;
    member.await_attachment(outside, "intruder", slice, true).await?;
    member.remove_namespace(outside).await?;
    environment.remove_slice(slice).await
}

/// Short pods in a small slice: indices rest, and under pressure they rest as long as they must. None runs without its
/// interface, no two have an address at once, and none waits long.
#[tokio::test]
async fn three_hundred_short_pods_have_their_turn_in_a_slice_of_sixty_addresses() -> Result<()> {
    const PODS: i32 = 300;
    const PATIENCE: i64 = 30;
    let environment = Environment::open().await?;
    let (slice, namespace) = ("turns", "weft-turns");
    let member = environment.cluster(1)?;
    environment
        .slice(
            slice,
            json!({"subnets": ["10.92.1.0/26"], "clusters": [member.name]}),
        )
        .await?;
    member
        .fresh_namespace(namespace, &[(labels::SLICE, slice)])
        .await?;
    let interface = names::pod_interface(slice);
    // What it has, from inside: the container's last words are in its pod's status.
    let line = format!("ip -4 -o addr show dev {interface} > /dev/termination-log && sleep 1");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "short", "namespace": namespace},
        "spec": {"completions": PODS, "parallelism": 16, "backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": environment.image, "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", line],
            }],
        }}},
    });
    let started = std::time::Instant::now();
    member.apply(&job.to_string()).await?;
    let jobs: Api<Job> = Api::namespaced(member.client.clone(), namespace);
    let ended = |job: &Job| {
        job.status.as_ref().is_some_and(|status| {
            status.succeeded == Some(PODS) || status.failed.is_some_and(|failed| failed > 0)
        })
    };
    let job = member
        .await_object(
            &jobs,
            "short",
            "its pods have run",
            Duration::from_secs(360),
            ended,
        )
        .await?;
    ensure!(
        job.status.as_ref().and_then(|status| status.succeeded) == Some(PODS),
        "a pod found no interface: {:?}",
        job.status
    );
    let pods = member.pods(namespace).list(&ListParams::default()).await?;
    let mut turns = Vec::new();
    for pod in &pods.items {
        let turn = Turn::of(pod).with_context(|| format!("what became of {}", pod.name_any()))?;
        ensure!(
            turn.waited <= PATIENCE,
            "{} waited for {} s",
            pod.name_any(),
            turn.waited
        );
        turns.push(turn);
    }
    // Whole seconds: what ends and begins within one is taken for one after the other.
    turns.sort_by_key(|turn| (turn.address, turn.from));
    for pair in turns.windows(2) {
        ensure!(
            pair[0].address != pair[1].address || pair[0].to <= pair[1].from,
            "two pods had an address at once: {pair:?}"
        );
    }
    turns.sort_by_key(|turn| turn.waited);
    say(format!(
        "{PODS} short pods in a /26 took {} s; until its container ran a pod waited for {} s, {} s at most",
        started.elapsed().as_secs(),
        turns[turns.len() / 2].waited,
        turns[turns.len() - 1].waited
    ));
    member.remove_namespace(namespace).await?;
    environment.remove_slice(slice).await
}

/// When a short pod had which address, in seconds.
#[derive(Debug)]
struct Turn {
    address: IpAddr,
    from: i64,
    to: i64,
    /// From its place on a node to its container's start.
    waited: i64,
}

impl Turn {
    fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let container = status.container_statuses.as_ref()?.first()?;
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        let mut words = ended.message.as_ref()?.split_whitespace();
        let from = ended.started_at.as_ref()?.0.as_second();
        Some(Self {
            // 7: sl-turns    inet 10.92.1.9/26 brd …
            address: words
                .find(|word| word.contains('/'))?
                .split('/')
                .next()?
                .parse()
                .ok()?,
            from,
            to: ended.finished_at.as_ref()?.0.as_second(),
            waited: from - status.start_time.as_ref()?.0.as_second(),
        })
    }
}

/// What an API server refuses of a node's agent beyond its own node, and of a pod in the gateways' namespace.
#[tokio::test]
async fn an_agents_token_is_good_for_its_own_node_only() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("bound", "weft-bound");
    environment
        .slice(slice, json!({"subnets": ["10.92.2.0/24"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let cluster = environment.cluster(1)?;
    let here: Vec<_> = members
        .iter()
        .filter(|member| member.cluster.name == cluster.name)
        .collect();
    let (own, other) = (here[0], here[1]);
    let agent = cluster.as_agent_of(own.node()).await?;
    let status = |name: &str, body: Value| {
        let pods: Api<Pod> = Api::namespaced(agent.clone(), namespace);
        let name = name.to_owned();
        async move {
            pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body))
                .await
        }
    };
    let attachments = json!({"metadata": {"annotations": {labels::ATTACHMENTS: "[]"}}});
    let refused = async |what: &str, name: &str, body: Value, words: &str| -> Result<()> {
        match status(name, body).await {
            Ok(_) => bail!("{what} was taken"),
            Err(error) => {
                let text = error.to_string();
                ensure!(text.contains(words), "{what}: {text}");
                Ok(())
            }
        }
    };
    refused(
        "another node's pod",
        &other.name,
        attachments.clone(),
        "may not write pod",
    )
    .await?;
    refused(
        "a label",
        &own.name,
        json!({"metadata": {"labels": {"app": "db"}}}),
        "nothing else of its metadata",
    )
    .await?;
    let phase = json!({"status": {"phase": "Failed"}});
    refused("a phase", &own.name, phase, "nothing of a pod's status").await?;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    refused("a condition", &own.name, ready, "no other").await?;
    status(&own.name, attachments)
        .await
        .context("its own pod's annotation")?;
    let blocks: Api<SliceBlock> = Api::all(agent.clone());
    let gateways: Api<slice_crds::v1alpha1::SliceGateway> =
        Api::namespaced(agent.clone(), names::MEMBER_NAMESPACE);
    let present = Patch::Merge(json!({"status": {"present": false}}));
    let of_other = blocks
        .patch_status(
            &names::block(slice, other.node()),
            &PatchParams::default(),
            &present,
        )
        .await;
    ensure!(
        of_other.is_err_and(|error| error.to_string().contains("which is about node")),
        "another node's block"
    );
    let gateway = cluster.gateways(slice).await?.remove(0);
    let foreign = match gateway.spec.node.as_deref() == Some(own.node()) {
        true => cluster.as_agent_of(other.node()).await?,
        false => agent.clone(),
    };
    let of_foreign: Api<slice_crds::v1alpha1::SliceGateway> =
        Api::namespaced(foreign, names::MEMBER_NAMESPACE);
    let key = Patch::Merge(json!({"status": {"publicKey": "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}));
    let stolen = of_foreign
        .patch_status(&gateway.name_any(), &PatchParams::default(), &key)
        .await;
    ensure!(
        stolen.is_err_and(|error| error.to_string().contains("which is about node")),
        "another node's gateway"
    );
    drop(gateways);

    let privileged = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "grab", "namespace": names::GATEWAY_NAMESPACE},
        "spec": {"hostNetwork": true, "containers": [{"name": "main", "image": "x"}],
            "volumes": [{"name": "root", "hostPath": {"path": "/"}}]},
    });
    let Err(refusal) = cluster.apply(&privileged.to_string()).await else {
        bail!(
            "a pod with the host's network was taken into {}",
            names::GATEWAY_NAMESPACE
        );
    };
    ensure!(
        format!("{refusal:#}").contains(names::GATEWAY_NAMESPACE),
        "{refusal:#}"
    );
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}
