//! `create slice` and `delete slice`.

use anyhow::Context;
use kube::{
    Api, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
};
use slice_crds::{
    conditions,
    v1alpha1::{NamespaceRule, SliceConfig, SliceConfigSpec, SliceGatewaySettings},
};
use slice_runtime::apply;

use super::{find_slice, wait_for};
use crate::{
    Outcome,
    args::{Create, CreateSlice, Delete, Target},
    connect, output,
};

pub(crate) async fn create(target: &Target, create: Create) -> anyhow::Result<Outcome> {
    let slice = match create {
        Create::Slice(slice) => slice,
        Create::Peer(peer) => return super::peer::create(target, peer).await,
    };
    let object = object(&slice, &target.namespace);
    if slice.dry_run {
        output::print(&serde_saphyr::to_string(&object)?)?;
        return Ok(Outcome::Good);
    }
    let api: Api<SliceConfig> = Api::namespaced(connect::client(target).await?, &target.namespace);
    api.patch(
        &slice.name,
        &PatchParams::apply("slicectl"),
        &Patch::Apply(&object),
    )
    .await
    .with_context(|| format!("create slice {}", slice.name))?;
    println!("sliceconfig/{} created", slice.name);
    if slice.timeout.is_zero() {
        return Ok(Outcome::Good);
    }
    // Said at once, not after the time is over: a configuration that is refused does not get better by waiting.
    let decided = |slice: Option<&SliceConfig>| {
        slice
            .and_then(|slice| slice.status.as_ref())
            .is_some_and(|status| {
                conditions::is_true(&status.conditions, conditions::READY)
                    || conditions::find_false(&status.conditions, conditions::ACCEPTED).is_some()
            })
    };
    let why = format!("it is not ready; see `slicectl status {}`", slice.name);
    wait_for(&api, &slice.name, slice.timeout, &why, decided).await?;
    let status = api.get(&slice.name).await?.status.unwrap_or_default();
    for condition in &status.conditions {
        println!("{}={} {}", condition.type_, condition.status, condition.message);
    }
    let good = conditions::is_true(&status.conditions, conditions::READY);
    Ok(if good { Outcome::Good } else { Outcome::Bad })
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
        attach: Default::default(),
        gateway: SliceGatewaySettings {
            replicas: slice.gateways,
            threads: slice.gateway_threads,
            rotation: slice.rotation,
            ..SliceGatewaySettings::default()
        },
        qos: None,
        broadcast: Default::default(),
        peers: Vec::new(),
    };
    let mut object = SliceConfig::new(&slice.name, spec);
    object.metadata = ObjectMeta {
        namespace: Some(namespace.to_owned()),
        ..object.metadata
    };
    object
}

pub(crate) async fn delete(target: &Target, delete: Delete) -> anyhow::Result<Outcome> {
    let slice = match delete {
        Delete::Slice(slice) => slice,
        Delete::Peer(peer) => return super::peer::delete(target, peer).await,
    };
    let api: Api<SliceConfig> = Api::namespaced(connect::client(target).await?, &target.namespace);
    let found = find_slice(&api, target, &slice.name).await?;
    apply::delete(&api, &found.name_any()).await?;
    println!("sliceconfig/{} deleted", slice.name);
    Ok(Outcome::Good)
}
