//! `attach` and `detach`: the label `weft.dev/slice` on a namespace or a pod.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use k8s_openapi::{
    ClusterResourceScope,
    api::core::v1::{Namespace, Pod},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use slice_crds::{labels, v1alpha1::Slice};

use crate::{
    Outcome,
    args::{Attach, Target},
    connect,
};

pub(crate) async fn attach(target: &Target, attach: Attach) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    known(&client, slice_of(&attach)).await?;
    change(&client, attach, |slices, slice| slices.insert(slice)).await
}

pub(crate) async fn detach(target: &Target, detach: Attach) -> anyhow::Result<Outcome> {
    change(&connect::client(target).await?, detach, |slices, slice| {
        slices.remove(&slice)
    })
    .await
}

fn slice_of(attach: &Attach) -> &str {
    match attach {
        Attach::Ns { slice, .. } | Attach::Pod { slice, .. } => slice,
    }
}

/// Fails where this cluster has no such slice, and says which there are.
async fn known(client: &Client, slice: &str) -> anyhow::Result<()> {
    let slices: Api<Slice> = Api::all(client.clone());
    let there = slices
        .list(&Default::default())
        .await
        .context("list the slices; is Weft installed here?")?;
    let names: Vec<_> = there.iter().map(ResourceExt::name_any).collect();
    if !names.iter().any(|name| name == slice) {
        bail!(
            "this cluster is in no slice named {slice}; it is in: {}",
            if names.is_empty() {
                "none".into()
            } else {
                names.join(", ")
            }
        );
    }
    Ok(())
}

async fn change(
    client: &Client,
    attach: Attach,
    edit: impl Fn(&mut BTreeSet<String>, String) -> bool,
) -> anyhow::Result<Outcome> {
    match attach {
        Attach::Ns { name, slice } => {
            let api = cluster_scoped::<Namespace>(client);
            label(&api, &name, slice, edit).await
        }
        Attach::Pod { name, slice } => {
            let (namespace, pod) = name
                .split_once('/')
                .with_context(|| format!("\"{name}\" names no pod: write <namespace>/<name>"))?;
            label(
                &Api::<Pod>::namespaced(client.clone(), namespace),
                pod,
                slice,
                edit,
            )
            .await
        }
    }
}

fn cluster_scoped<K: Resource<DynamicType = (), Scope = ClusterResourceScope>>(client: &Client) -> Api<K> {
    Api::all(client.clone())
}

async fn label<K>(
    api: &Api<K>,
    name: &str,
    slice: String,
    edit: impl Fn(&mut BTreeSet<String>, String) -> bool,
) -> anyhow::Result<Outcome>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let kind = K::kind(&()).to_lowercase();
    let object = api
        .get(name)
        .await
        .with_context(|| format!("read {kind} {name}"))?;
    let value = changed(object.labels(), slice, edit)?;
    let patch = json!({
        "metadata": {"labels": {labels::SLICE: value}, "resourceVersion": object.resource_version()},
    });
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .with_context(|| format!("label {kind} {name}"))?;
    match value {
        Some(value) => println!("{kind}/{name} is in {}", value.replace('.', ", ")),
        None => println!("{kind}/{name} is in no slice by label"),
    }
    Ok(Outcome::Good)
}

/// The label's new value, `None` to remove it.
fn changed(
    labels: &BTreeMap<String, String>,
    slice: String,
    edit: impl Fn(&mut BTreeSet<String>, String) -> bool,
) -> anyhow::Result<Option<String>> {
    let mut slices: BTreeSet<String> = labels::slices(labels)?
        .into_iter()
        .map(ToOwned::to_owned)
        .collect();
    edit(&mut slices, slice);
    let value = slices.into_iter().collect::<Vec<_>>().join(".");
    if value.len() > 63 {
        bail!(
            "the label's value would be \"{value}\", longer than 63 characters: name the namespace in the SliceConfig instead"
        );
    }
    Ok((!value.is_empty()).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_added_and_removed_one_by_one() {
        let labels = |value: &str| BTreeMap::from([(labels::SLICE.to_owned(), value.to_owned())]);
        let add = |slices: &mut BTreeSet<String>, slice| slices.insert(slice);
        let remove = |slices: &mut BTreeSet<String>, slice: String| slices.remove(&slice);
        assert_eq!(
            changed(&BTreeMap::new(), "shop".into(), add).unwrap(),
            Some("shop".into())
        );
        assert_eq!(
            changed(&labels("shop"), "bank".into(), add).unwrap(),
            Some("bank.shop".into())
        );
        assert_eq!(
            changed(&labels("bank.shop"), "bank".into(), remove).unwrap(),
            Some("shop".into())
        );
        assert_eq!(changed(&labels("shop"), "shop".into(), remove).unwrap(), None);
        assert!(changed(&labels("Shop!"), "bank".into(), add).is_err());
    }
}
