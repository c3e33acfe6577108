//! `delete slice`, `delete cluster` and `delete peer`: what is attached is listed first.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::DynamicObject,
};
use serde_json::{Value, json};
use slice_crds::{
    annotations, conditions, names,
    v1alpha1::{Cluster, SliceConfig},
};

use super::no_slice;
use crate::{
    Outcome,
    age::Heartbeat,
    args::{Delete, DeleteCluster, DeleteSlice, Target},
    connect,
    objects::{self, Found},
    output::{self, count},
};

pub(crate) async fn run(target: &Target, delete: Delete) -> anyhow::Result<Outcome> {
    match delete {
        Delete::Slice(what) => slice(target, &what).await,
        Delete::Cluster(what) => cluster(target, &what).await,
        Delete::Peer(what) => super::peer::delete(target, what).await,
    }
}

async fn slice(target: &Target, what: &DeleteSlice) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let name = &what.name;
    let found = objects::get::<SliceConfig>(&client, Some(&target.namespace), name).await?;
    let found = found.with_context(|| no_slice(target, name))?;
    let silent = silent(&client, target).await?;
    let uses = uses_of_slice(&found.raw.data, &silent);
    eprint!("{}", listing(&format!("slice {name}"), &uses));
    refuse(&format!("slice {name}"), &uses, what.yes)?;
    let api = objects::raw::<SliceConfig>(&client, Some(&target.namespace));
    remove(&api, &found.raw, what.yes.then_some(annotations::NOW)).await?;
    println!(
        "sliceconfig/{name} deleted: its clusters take it down; `kubectl -n {} get sliceallocations` shows what is left",
        names::HUB_NAMESPACE
    );
    Ok(Outcome::Good)
}

async fn cluster(target: &Target, what: &DeleteCluster) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let name = &what.name;
    let found = objects::get::<Cluster>(&client, Some(&target.namespace), name).await?;
    let found = found.with_context(|| {
        format!(
            "there is no cluster {name} in namespace {}; see `slicectl get clusters`",
            target.namespace
        )
    })?;
    if what.gone {
        refuse_alive(&client, &found).await?;
    }
    let slices =
        objects::list::<SliceConfig>(&client, Some(&target.namespace), &ListParams::default()).await?;
    let uses = uses_of_cluster(name, &slices, is_silent(&found));
    eprint!("{}", listing(&format!("cluster {name}"), &uses));
    refuse(&format!("cluster {name}"), &uses, what.yes)?;
    let word = match (what.gone, what.yes) {
        (true, _) => Some(annotations::GONE),
        (false, true) => Some(annotations::NOW),
        (false, false) => None,
    };
    let api = objects::raw::<Cluster>(&client, Some(&target.namespace));
    remove(&api, &found.raw, word).await?;
    output::print(&deleted(name, &slices, what.gone))?;
    Ok(Outcome::Good)
}

/// Fails where a cluster that is to be gone still sends heartbeats.
async fn refuse_alive(client: &Client, cluster: &Found<Cluster>) -> anyhow::Result<()> {
    let name = cluster.name();
    let leases: Api<Lease> = Api::namespaced(client.clone(), &names::member_namespace(name));
    let lease = leases
        .get_opt(names::MEMBER_LEASE)
        .await
        .with_context(|| format!("read lease {} of cluster {name}", names::MEMBER_LEASE))?;
    let now = Timestamp::now();
    let heartbeat = lease
        .map(|lease| Heartbeat::of(&lease, now))
        .filter(|heartbeat| !heartbeat.overdue);
    let reachable = conditions::is_true(&cluster.conditions(), conditions::REACHABLE);
    let shown = match heartbeat {
        Some(heartbeat) => heartbeat.show(now),
        None if reachable => "its condition Reachable is True".to_owned(),
        None => return Ok(()),
    };
    bail!(
        "cluster {name} is not gone ({shown}), and others would be given addresses that its pods use: leave --gone out"
    )
}

/// No heartbeat comes any more, so there may be pods that nobody counts.
fn is_silent(cluster: &Found<Cluster>) -> bool {
    let conditions = cluster.conditions();
    conditions::find(&conditions, conditions::REACHABLE).is_none_or(|reachable| reachable.status == "Unknown")
}

/// Clusters that send no heartbeat.
async fn silent(client: &Client, target: &Target) -> anyhow::Result<BTreeSet<String>> {
    let clusters = objects::list::<Cluster>(client, Some(&target.namespace), &ListParams::default()).await?;
    let silent = clusters.iter().filter(|cluster| is_silent(cluster));
    Ok(silent.map(|cluster| cluster.name().to_owned()).collect())
}

/// One slice in one cluster.
#[derive(Debug, PartialEq, Eq)]
struct Use {
    /// The slice or the cluster: whatever is not deleted.
    of: String,
    pods: u64,
    silent: bool,
}

impl Use {
    const fn counts(&self) -> bool {
        self.pods > 0 || self.silent
    }
}

/// Names and attachments of a slice's clusters, as far as they can be read.
fn clusters(slice: &Value) -> impl Iterator<Item = (&str, u64)> {
    let clusters = slice.pointer("/status/clusters").and_then(Value::as_array);
    clusters.into_iter().flatten().filter_map(|one| {
        Some((
            one["name"].as_str()?,
            one["attachments"].as_u64().unwrap_or_default(),
        ))
    })
}

fn uses_of_slice(slice: &Value, silent: &BTreeSet<String>) -> Vec<Use> {
    let uses = clusters(slice).map(|(cluster, pods)| Use {
        of: format!("cluster {cluster}"),
        pods,
        silent: silent.contains(cluster),
    });
    uses.collect()
}

fn uses_of_cluster(cluster: &str, slices: &[Found<SliceConfig>], silent: bool) -> Vec<Use> {
    let uses = slices.iter().flat_map(|slice| {
        let here = clusters(&slice.raw.data).filter(|(name, _)| *name == cluster);
        here.map(|(_, pods)| Use {
            of: format!("slice {}", slice.name()),
            pods,
            silent,
        })
    });
    uses.collect()
}

/// What is deleted, and what uses it. Pure.
fn listing(what: &str, uses: &[Use]) -> String {
    let lines = uses.iter().map(|one| {
        let silent = if one.silent {
            ", at the last report: no heartbeat comes since"
        } else {
            ""
        };
        format!("  {}: {} attached{silent}\n", one.of, count(one.pods, "pod"))
    });
    format!("{what}\n{}", lines.collect::<String>())
}

/// Fails where pods are attached and nobody has agreed to that. Pure.
fn refuse(what: &str, uses: &[Use], yes: bool) -> anyhow::Result<()> {
    let counting: Vec<_> = uses
        .iter()
        .filter(|one| one.counts())
        .map(|one| one.of.as_str())
        .collect();
    if counting.is_empty() || yes {
        return Ok(());
    }
    bail!(
        "{what} is in use, by {}: pods lose their interfaces and go on without. Repeat with --yes to delete it at once",
        counting.join(", ")
    )
}

/// What a deletion does, and what is left to do. Pure.
fn deleted(cluster: &str, slices: &[Found<SliceConfig>], gone: bool) -> String {
    let mut text = match gone {
        true => format!(
            "clusters.weft.dev/{cluster} deleted: what it had rests for some minutes, and others are given it then\n"
        ),
        false => format!(
            "clusters.weft.dev/{cluster} deleted: it gives back every slice, then its namespace and credential here go\n"
        ),
    };
    let names = |slice: &&Found<SliceConfig>| {
        let named = slice.raw.data.pointer("/spec/clusters").and_then(Value::as_array);
        named.is_some_and(|named| named.iter().any(|name| name == cluster))
    };
    for slice in slices.iter().filter(names) {
        text += &format!(
            "sliceconfig/{} names it in spec.clusters, and is not Ready until it is taken out there\n",
            slice.name()
        );
    }
    text
}

/// Deletes the object that was looked at, and no other of its name; with a word for the hub, which reads it as the object
/// goes.
async fn remove(api: &Api<DynamicObject>, object: &DynamicObject, word: Option<&str>) -> anyhow::Result<()> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if let Some(word) = word {
        let patch =
            json!({"metadata": {"uid": object.metadata.uid, "annotations": {annotations::DELETE: word}}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("annotate {name} with {}={word}", annotations::DELETE))?;
    }
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        preconditions: Some(Preconditions {
            uid: object.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("delete {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::from_json;

    fn slice(name: &str, spec: Value) -> Found<SliceConfig> {
        from_json(json!({
            "metadata": {"name": name}, "spec": spec,
            "status": {"clusters": [{"name": "a", "attachments": 12}, {"name": "b", "attachments": 0}]},
        }))
    }

    #[test]
    fn a_slice_in_use_is_listed_and_stays() {
        let shop = slice("shop", json!({"subnets": "odd"}));
        assert!(
            shop.object.is_err(),
            "what cannot be read can be deleted all the same"
        );
        let uses = uses_of_slice(&shop.raw.data, &BTreeSet::from(["b".to_owned()]));
        assert_eq!(
            listing("slice shop", &uses),
            "slice shop\n  cluster a: 12 pods attached\n  cluster b: 0 pods attached, at the last report: no heartbeat \
             comes since\n"
        );
        let error = refuse("slice shop", &uses, false).unwrap_err().to_string();
        assert!(
            error.starts_with("slice shop is in use, by cluster a, cluster b:") && error.contains("--yes"),
            "{error}"
        );
        assert!(refuse("slice shop", &uses, true).is_ok());
    }

    #[test]
    fn what_nobody_uses_needs_no_agreement() {
        let slices = [slice(
            "shop",
            json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"]}),
        )];
        assert!(refuse("cluster b", &uses_of_cluster("b", &slices, false), false).is_ok());
        assert!(refuse("cluster b", &uses_of_cluster("b", &slices, true), false).is_err());
        assert!(refuse("cluster c", &uses_of_cluster("c", &slices, true), false).is_ok());
        let uses = uses_of_cluster("a", &slices, false);
        assert!(listing("cluster a", &uses).starts_with("cluster a\n  slice shop: 12 pods attached\n"));
    }

    #[test]
    fn slices_that_name_a_deleted_cluster_are_named() {
        let slices = [
            slice(
                "shop",
                json!({"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"]}),
            ),
            slice("bank", json!({"subnets": ["10.81.0.0/16"], "clusters": ["a"]})),
        ];
        let text = deleted("b", &slices, false);
        assert!(
            text.contains("sliceconfig/shop names it") && !text.contains("bank"),
            "{text}"
        );
        assert!(deleted("b", &slices, true).contains("rests"));
    }
}
