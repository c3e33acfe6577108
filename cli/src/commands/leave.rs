//! `leave`: has the operator take everything of the hub off this cluster, and waits until it has.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::Duration,
};

use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        wait::await_condition,
        watcher::{Config, Event, watcher},
    },
};
use serde_json::json;
use slice_crds::{
    annotations::{self, credential as key},
    names,
    v1alpha1::{Slice, SliceBlock},
};

use crate::{
    Outcome,
    args::{Leave, Target},
    connect,
    objects::{self, Found},
    output::count,
};

const SECRET: &str = names::HUB_CREDENTIAL;

pub(crate) async fn run(target: &Target, leave: Leave) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), names::MEMBER_NAMESPACE);
    let secret = secrets
        .get_opt(SECRET)
        .await
        .with_context(|| format!("read secret {SECRET} in namespace {}", names::MEMBER_NAMESPACE))?;
    let Some(secret) = secret else {
        bail!(
            "this cluster has no hub to leave: there is no secret {SECRET} in namespace {}",
            names::MEMBER_NAMESPACE
        );
    };
    let slices = objects::list::<Slice>(&client, None, &ListParams::default()).await?;
    let text = |key: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        value
            .map(|value| String::from_utf8_lossy(&value.0).into_owned())
            .unwrap_or_default()
    };
    eprint!("{}", listing(&text(key::CLUSTER), &text(key::SERVER), &slices));
    let leaving = secret
        .annotations()
        .get(annotations::LEAVE)
        .is_some_and(|leave| leave == "true");
    if leaving {
        eprintln!("it is leaving already");
    } else if !leave.yes {
        bail!("the pods of these slices lose their interfaces and go on without. Repeat with --yes to leave");
    } else if !text(key::JOIN).is_empty() {
        return give_up(&secrets, &secret, &slices).await;
    } else {
        let patch = json!({"metadata": {"annotations": {annotations::LEAVE: "true"}}});
        secrets
            .patch(SECRET, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("annotate secret {SECRET}"))?;
    }
    wait(&client, &secrets, leave.timeout).await?;
    println!(
        "Cluster {0} has left hub {1}. There, `slicectl delete cluster {0}` takes its name off too.",
        text(key::CLUSTER),
        text(key::SERVER)
    );
    Ok(Outcome::Good)
}

/// What leaving is about. Pure.
fn listing(cluster: &str, server: &str, slices: &[Found<Slice>]) -> String {
    let mut text = format!("cluster {cluster} of hub {server}\n");
    for slice in slices {
        let pods = slice
            .raw
            .data
            .pointer("/status/attachments")
            .and_then(serde_json::Value::as_u64);
        let pods = pods.map_or_else(
            || "pods not counted yet".to_owned(),
            |pods| format!("{} attached", count(pods, "pod")),
        );
        text += &format!("  slice {}: {pods}\n", slice.name());
    }
    if slices.is_empty() {
        text += "  in no slice\n";
    }
    text
}

/// A cluster that has not joined yet is on no hub: its token is thrown away.
async fn give_up(secrets: &Api<Secret>, secret: &Secret, slices: &[Found<Slice>]) -> anyhow::Result<Outcome> {
    if !slices.is_empty() {
        bail!(
            "this cluster has slices of a hub, and its credential waits for a join that has not come about: join it with \
             another token (`slicectl token issue` there) and leave then, or take Weft off with `slicectl uninstall \
             cluster`"
        );
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: secret.uid(),
            resource_version: secret.resource_version(),
        }),
        ..DeleteParams::default()
    };
    secrets
        .delete(SECRET, &params)
        .await
        .with_context(|| format!("delete secret {SECRET}"))?;
    println!("The cluster had not joined yet; its token is deleted.");
    Ok(Outcome::Good)
}

/// Waits until the operator has deleted the credential, and shows what is left meanwhile.
async fn wait(client: &Client, secrets: &Api<Secret>, timeout: Duration) -> anyhow::Result<()> {
    let gone = await_condition(secrets.clone(), SECRET, |secret: Option<&Secret>| {
        secret.is_none()
    });
    let mut gone = pin!(tokio::time::timeout(timeout, gone));
    let blocks: Api<PartialObjectMeta<SliceBlock>> = Api::all(client.clone());
    let mut events = pin!(watcher(blocks, Config::default()).default_backoff());
    let mut left: BTreeSet<String> = BTreeSet::new();
    let mut shown = String::new();
    let mut listed = false;
    loop {
        tokio::select! {
            result = &mut gone => {
                return match result {
                    Ok(result) => result.map(drop).with_context(|| format!("watch secret {SECRET}")),
                    Err(_) => bail!(
                        "after {} s, {}; the cluster goes on leaving by itself: see `kubectl -n {} logs \
                         deploy/weft-operator` and `kubectl get sliceblocks`",
                        timeout.as_secs(),
                        remaining(&left),
                        names::MEMBER_NAMESPACE
                    ),
                };
            }
            Some(event) = events.next() => {
                match event {
                    Ok(Event::Init) => {
                        listed = false;
                        left.clear();
                    }
                    Ok(Event::InitApply(block) | Event::Apply(block)) => _ = left.insert(block.name_any()),
                    Ok(Event::Delete(block)) => _ = left.remove(&block.name_any()),
                    Ok(Event::InitDone) => listed = true,
                    Err(_) => {}
                }
                let text = remaining(&left);
                if listed && shown != text {
                    eprintln!("{text} …");
                    shown = text;
                }
            }
        }
    }
}

/// What has not been taken down yet, by the names of its blocks. Pure.
fn remaining(blocks: &BTreeSet<String>) -> String {
    let mut nodes: BTreeMap<&str, u64> = BTreeMap::new();
    for block in blocks {
        *nodes.entry(names::slice_of(block)).or_default() += 1;
    }
    if nodes.is_empty() {
        return "nothing is left on any node, and the hub is to take note".to_owned();
    }
    let slices: Vec<_> = nodes
        .iter()
        .map(|(slice, nodes)| format!("slice {slice} on {}", count(*nodes, "node")))
        .collect();
    format!("left: {}", slices.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::from_json;

    #[test]
    fn what_is_attached_is_listed_even_where_a_slice_cannot_be_read() {
        let slices = [
            from_json(
                json!({"metadata": {"name": "bank"}, "spec": {"vni": "odd"}, "status": {"attachments": 2}}),
            ),
            from_json(json!({"metadata": {"name": "shop"}, "spec": {}})),
        ];
        assert_eq!(
            listing("b", "https://192.0.2.1:6443", &slices),
            "cluster b of hub https://192.0.2.1:6443\n  slice bank: 2 pods attached\n  slice shop: pods not counted yet\n"
        );
        assert!(listing("b", "https://192.0.2.1:6443", &[]).ends_with("  in no slice\n"));
    }

    #[test]
    fn progress_counts_nodes_by_slice() {
        let blocks = ["bank.n1", "shop.n1", "shop.n2"].map(ToOwned::to_owned).into();
        assert_eq!(
            remaining(&blocks),
            "left: slice bank on 1 node, slice shop on 2 nodes"
        );
        assert!(remaining(&BTreeSet::new()).contains("nothing is left"));
    }
}
