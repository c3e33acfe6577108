//! Bad input: refused or said in a condition, in words that help, and nothing that runs is disturbed.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use slice_crds::{conditions, labels, v1alpha1::SliceConfig};
use slice_e2e::harness::{
    Environment, PodSpec, poll,
    weft::{PROJECT, attachment},
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn apply(environment: &Environment, name: &str, spec: Value) -> Result<()> {
    let object = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig",
        "metadata": {"name": name, "namespace": PROJECT}, "spec": spec,
    });
    environment.hub()?.apply(&object.to_string()).await
}

/// The API server refuses the object, with this in its words.
async fn refused(environment: &Environment, name: &str, spec: Value, words: &str) -> Result<()> {
    match apply(environment, name, spec).await {
        Ok(()) => bail!("{name} was taken"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(words), "\"{said}\" lacks \"{words}\"");
            Ok(())
        }
    }
}

/// The object is taken and a condition says what is wrong, with all of these in its words.
async fn complained(
    environment: &Environment,
    name: &str,
    spec: Value,
    reason: &str,
    words: &[&str],
) -> Result<()> {
    apply(environment, name, spec).await?;
    let says = |slice: &SliceConfig| {
        slice.status.as_ref().is_some_and(|status| {
            conditions::find_false(&status.conditions, conditions::ACCEPTED).is_some_and(|refused| {
                refused.reason == reason && words.iter().all(|word| refused.message.contains(word))
            })
        })
    };
    let hub = environment.hub()?;
    hub.await_object(
        &environment.slices()?,
        name,
        &format!("Accepted=False {reason} {words:?}"),
        PATIENCE,
        says,
    )
    .await?;
    environment.remove_slice(name).await
}

#[tokio::test]
async fn bad_input_is_said_in_words_and_disturbs_nothing() -> Result<()> {
    let environment = Environment::open().await?;
    let (slice, namespace) = ("steady", "weft-steady");
    environment
        .slice(slice, json!({"subnets": ["10.85.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let (from, to) = (&members[0], &members[members.len() - 1]);
    let address = to.v4()?.to_string();
    let stream = [
        "stream",
        &address,
        "--over",
        "udp",
        "--interval",
        "10",
        "--seconds",
        "60",
    ];
    let running = from
        .cluster
        .start_probe(&from.namespace, &from.name, &stream)
        .await?;

    let both: Vec<&str> = environment
        .clusters
        .iter()
        .map(|cluster| cluster.name.as_str())
        .collect();
    let with = |subnets: Value, clusters: &[&str]| json!({"subnets": subnets, "clusters": clusters});
    refused(&environment, "syntax", with(json!(["10.80.0.0"]), &both), "CIDR").await?;
    refused(
        &environment,
        "host-bits",
        with(json!(["10.80.1.0/16"]), &both),
        "zero host bits",
    )
    .await?;
    refused(
        &environment,
        "tiny",
        with(json!(["10.80.0.0/30"]), &both),
        "from /8 to /28",
    )
    .await?;
    refused(
        &environment,
        "twice",
        with(json!(["10.80.0.0/16", "10.90.0.0/16"]), &both),
        "at most one IPv4",
    )
    .await?;
    refused(
        &environment,
        slice,
        with(json!(["10.86.0.0/16"]), &both),
        "spec.subnets cannot be changed",
    )
    .await?;
    complained(
        &environment,
        "over-pods",
        with(json!(["10.244.0.0/20"]), &both),
        "SubnetOverlap",
        &["10.244.0.0/20", "pod network", both[0]],
    )
    .await?;
    complained(
        &environment,
        "over-services",
        with(json!(["10.96.0.0/12"]), &both),
        "SubnetOverlap",
        &["10.96.0.0/12", "overlaps"],
    )
    .await?;
    complained(
        &environment,
        "unknown",
        with(json!(["10.87.0.0/16"]), &[both[0], "mars"]),
        "UnknownCluster",
        &["mars", both[0], both[1]],
    )
    .await?;
    malformed_label(&environment).await?;
    two_slices_one_address(&environment).await?;

    let end = running.finish().await?;
    let told: Value = end.json()?;
    ensure!(
        told["lost"] == 0,
        "a running stream lost datagrams meanwhile: {told}"
    );
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

/// A label that names no slice: an event on the namespace, a condition on the Cluster.
async fn malformed_label(environment: &Environment) -> Result<()> {
    use slice_crds::v1alpha1::Cluster;
    let member = environment.cluster(1)?;
    let namespace = "weft-malformed";
    member
        .fresh_namespace(namespace, &[(labels::SLICE, "No_Such-Slice")])
        .await?;
    let events: Api<Event> = Api::all(member.client.clone());
    poll(PATIENCE, "an event on the namespace", async || {
        let all = events
            .list(&ListParams::default().fields("reason=MalformedLabel"))
            .await?;
        let of_it = |event: &Event| {
            event
                .regarding
                .as_ref()
                .is_some_and(|object| object.name.as_deref() == Some(namespace))
                && event
                    .note
                    .as_deref()
                    .is_some_and(|note| note.contains("No_Such-Slice"))
        };
        Ok(all.iter().any(of_it).then_some(()))
    })
    .await?;
    let hub = environment.hub()?;
    let clusters: Api<Cluster> = Api::namespaced(hub.client.clone(), PROJECT);
    let invalid = |cluster: &Cluster| {
        conditions::find_false(conditions::of(cluster), conditions::LABELS_VALID)
            .is_some_and(|invalid| invalid.message.contains(namespace))
    };
    hub.await_object(&clusters, &member.name, "LabelsValid=False", PATIENCE, invalid)
        .await?;
    member.remove_namespace(namespace).await
}

/// A pod in two slices whose subnets overlap would have one address range on two interfaces: the second is refused.
async fn two_slices_one_address(environment: &Environment) -> Result<()> {
    let (first, second, namespace) = ("twin-one", "twin-two", "weft-twins");
    let spec = json!({"subnets": ["10.88.0.0/16"]});
    environment.slice(first, spec.clone()).await?;
    environment.slice(second, spec).await?;
    let cluster = environment.cluster(1)?;
    cluster
        .fresh_namespace(namespace, &[(labels::SLICE, first)])
        .await?;
    cluster
        .create_pod(namespace, &PodSpec::new("torn", &environment.image))
        .await?;
    cluster.member(namespace, "torn", first).await?;
    cluster
        .label_namespace(namespace, labels::SLICE, Some(&format!("{first}.{second}")))
        .await?;
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
    poll(PATIENCE, "an event that names both slices", async || {
        let all = events.list(&ListParams::default()).await?;
        let said = |event: &Event| {
            event.reason.as_deref() == Some("AddressConflict")
                && event
                    .note
                    .as_deref()
                    .is_some_and(|note| note.contains(first) && note.contains(second))
        };
        Ok(all.iter().any(said).then_some(()))
    })
    .await?;
    let pod = cluster.pods(namespace).get("torn").await?;
    ensure!(
        attachment(&pod, first).is_some(),
        "the first attachment was disturbed"
    );
    ensure!(attachment(&pod, second).is_none(), "the second was made");
    cluster.remove_namespace(namespace).await?;
    environment.remove_slice(first).await?;
    environment
        .remove_slice(second)
        .await
        .context("remove the second")
}
