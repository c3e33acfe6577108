//! `create slice`.

use anyhow::{Context, bail};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use slice_crds::{
    conditions,
    v1alpha1::{NamespaceRule, SliceConfig, SliceConfigSpec, SliceGatewaySettings, SliceJoin, SliceQos},
};

use super::wait_for;
use crate::{
    Outcome,
    args::{Create, CreateSlice, Target},
    connect, output,
};

pub(crate) async fn create(target: &Target, create: Create) -> anyhow::Result<Outcome> {
    let slice = match create {
        Create::Slice(slice) => slice,
        Create::Peer(peer) => return super::peer::create(target, peer).await,
    };
    let object = object(&slice, &target.namespace);
    if slice.dry_run {
        output::print(&output::yaml(&object)?)?;
        return Ok(Outcome::Good);
    }
    let api: Api<SliceConfig> = Api::namespaced(connect::client(target).await?, &target.namespace);
    let params = PostParams {
        field_manager: Some("slicectl".into()),
        ..PostParams::default()
    };
    match api.create(&params, &object).await {
        // What it is now is not to be lost by a second `create` with fewer clusters.
        Err(kube::Error::Api(status)) if status.is_already_exists() => bail!(
            "slice {0} exists already and was left as it is; `slicectl status {0}` shows it, and `kubectl -n {1} edit sliceconfig \
             {0}` changes it",
            slice.name,
            target.namespace
        ),
        created => created.with_context(|| format!("create slice {}", slice.name))?,
    };
    println!("sliceconfig/{} created", slice.name);
    if slice.timeout.is_zero() {
        return Ok(Outcome::Good);
    }
    // Shown at once, not after the time is over: a configuration that is refused does not get better by waiting.
    let why = format!("it is not ready; see `slicectl status {}`", slice.name);
    let what = format!("slice {}", slice.name);
    let found = wait_for(&api, &slice.name, &what, slice.timeout, &why, |slice| {
        slice.is_some_and(is_decided)
    })
    .await?;
    let status = found.and_then(|slice| slice.status).unwrap_or_default();
    for condition in &status.conditions {
        println!("{}={} {}", condition.type_, condition.status, condition.message);
    }
    let good = conditions::is_true(&status.conditions, conditions::READY);
    Ok(if good { Outcome::Good } else { Outcome::Bad })
}

/// Whether the hub has taken note of the slice as it is, and made it ready or refused it.
fn is_decided(slice: &SliceConfig) -> bool {
    let conditions = slice.status.iter().flat_map(|status| &status.conditions);
    let mut current =
        conditions.filter(|condition| condition.observed_generation == slice.metadata.generation);
    current.any(|condition| match condition.type_.as_str() {
        conditions::READY => condition.status == "True",
        conditions::ACCEPTED => condition.status == "False",
        _ => false,
    })
}

fn object(slice: &CreateSlice, namespace: &str) -> SliceConfig {
    let spec = SliceConfigSpec {
        subnets: slice.subnets.clone(),
        clusters: Some(slice.clusters.clone()),
        cluster_selector: None,
        namespaces: slice
            .namespaces
            .iter()
            .map(|name| NamespaceRule {
                name: Some(name.clone()),
                ..NamespaceRule::default()
            })
            .collect(),
        join: join(slice),
        attach: Default::default(),
        gateway: SliceGatewaySettings {
            replicas: slice.gateways,
            threads: slice.gateway_threads,
            rotation: slice.rotation,
            ..SliceGatewaySettings::default()
        },
        qos: qos(slice),
        frames: None,
        broadcast: None,
        peers: Vec::new(),
    };
    let mut object = SliceConfig::new(&slice.name, spec);
    object.metadata = ObjectMeta {
        namespace: Some(namespace.to_owned()),
        ..object.metadata
    };
    object
}

/// What it is given; nothing where nothing is asked for.
fn qos(slice: &CreateSlice) -> Option<SliceQos> {
    let qos = SliceQos {
        profile: slice.qos.qos_profile.clone(),
        guaranteed_mbps: slice.qos.guaranteed_mbps,
        ceiling_mbps: slice.qos.ceiling_mbps,
        priority: slice.qos.priority,
        dscp: slice.qos.dscp,
    };
    (qos != SliceQos::default()).then_some(qos)
}

/// Whose labels may put pods in; the hub's default where nothing is asked for.
fn join(slice: &CreateSlice) -> Option<SliceJoin> {
    let join = SliceJoin {
        namespace_selector: slice.join_selector.clone(),
        namespace_labels: !slice.no_namespace_labels,
        pod_labels: slice.pod_labels,
    };
    (join != SliceJoin::default()).then_some(join)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;
    use crate::args::{Args, Command};

    fn spec(flags: &str) -> Value {
        let line = format!("slicectl create slice shop --subnet 10.80.0.0/16 --cluster a {flags}");
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Create(Create::Slice(slice)) = args.command else {
            panic!("{line}");
        };
        json!(object(&slice, "weft-default"))["spec"].clone()
    }

    #[test]
    fn what_it_is_given_is_written_where_it_was_asked_for() {
        assert_eq!(spec("").get("qos"), None);
        assert_eq!(spec("--qos-profile gold")["qos"], json!({"profile": "gold"}));
        assert_eq!(
            spec("--guaranteed-mbps 50 --ceiling-mbps 80 --priority 5")["qos"],
            json!({"guaranteedMbps": 50, "ceilingMbps": 80, "priority": 5})
        );
    }

    #[test]
    fn who_may_join_is_written_where_it_was_asked_for() {
        assert_eq!(spec("").get("join"), None);
        assert_eq!(
            spec("--join-selector team=shop --pod-labels")["join"],
            json!({"namespaceSelector": {"matchLabels": {"team": "shop"}}, "namespaceLabels": true, "podLabels": true})
        );
        assert_eq!(
            spec("--no-namespace-labels --in cart")["join"],
            json!({"namespaceLabels": false, "podLabels": false})
        );
    }

    #[test]
    fn what_was_decided_of_an_earlier_generation_is_not_waited_for() {
        let slice = |generation: i64, type_: &str, status: &str| -> SliceConfig {
            serde_json::from_value(json!({
                "metadata": {"name": "shop", "generation": 2}, "spec": {"subnets": ["10.80.0.0/16"], "clusters": ["a"]},
                "status": {"conditions": [{
                    "type": type_, "status": status, "reason": "X", "message": "", "observedGeneration": generation,
                    "lastTransitionTime": "2027-01-15T08:00:00Z",
                }]},
            }))
            .unwrap()
        };
        assert!(is_decided(&slice(2, "Ready", "True")) && is_decided(&slice(2, "Accepted", "False")));
        assert!(!is_decided(&slice(1, "Ready", "True")) && !is_decided(&slice(2, "Ready", "False")));
    }
}
