//! `renew keys` and `revoke keys`: asked for on the hub, and seen in what the members report.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
};

use anyhow::{Context, bail};
use futures::StreamExt;
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    core::DynamicObject,
    runtime::{
        WatchStreamExt,
        watcher::{Config, Event, watcher},
    },
};
use serde_json::json;
use slice_crds::{
    names,
    v1alpha1::SliceConfig,
    wire::{MemberSliceReport, MemberSliceReportSpec},
};

use super::find_slice;
use crate::{
    Outcome,
    args::{ChangeKeys, Target},
    connect,
    objects::{self, Found},
};

/// What members report of one slice, by cluster.
type Reports = BTreeMap<String, MemberSliceReportSpec>;

pub(crate) async fn renew(target: &Target, what: ChangeKeys) -> anyhow::Result<Outcome> {
    change(target, &what, "renewedAt", "renewed").await
}

pub(crate) async fn revoke(target: &Target, what: ChangeKeys) -> anyhow::Result<Outcome> {
    change(target, &what, "revokedAt", "revoked").await
}

async fn change(target: &Target, what: &ChangeKeys, field: &str, done: &str) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let name = &what.slice;
    let slice = find_slice(&client, target, name).await?;
    let before = reports(&client, name).await?;
    let api: Api<SliceConfig> = Api::namespaced(client.clone(), &target.namespace);
    let patch = json!({"spec": {"gateway": {field: Timestamp::now()}}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .with_context(|| format!("ask for new keys of slice {name}"))?;
    if what.timeout.is_zero() {
        println!("sliceconfig/{name}: keys are being {done}");
        return Ok(Outcome::Good);
    }
    let unseen = unseen(&slice, &before);
    if !unseen.is_empty() {
        eprintln!(
            "{}: no report of its gateways, so it is not waited for",
            unseen.join(", ")
        );
    }
    wait(&client, what, before).await?;
    println!("sliceconfig/{name}: keys {done}");
    Ok(Outcome::Good)
}

/// Reports of a slice that this version can read.
pub(super) async fn reports(client: &Client, slice: &str) -> anyhow::Result<Reports> {
    let params = ListParams::default().fields(&format!("metadata.name={slice}"));
    let found = objects::list::<MemberSliceReport>(client, None, &params).await?;
    Ok(found.into_iter().filter_map(of_cluster).collect())
}

fn of_cluster(found: Found<MemberSliceReport>) -> Option<(String, MemberSliceReportSpec)> {
    let cluster = names::member_of(found.namespace())?.to_owned();
    Some((cluster, found.object.ok()?.spec))
}

/// Clusters of the slice whose gateways nobody sees here: of a version that reports otherwise, or not set up yet. Pure.
fn unseen<'a>(slice: &'a SliceConfig, reports: &Reports) -> Vec<&'a str> {
    let clusters = slice.status.iter().flat_map(|status| &status.clusters);
    let unseen = clusters.filter(|cluster| !reports.contains_key(&cluster.name));
    unseen.map(|cluster| cluster.name.as_str()).collect()
}

async fn wait(client: &Client, what: &ChangeKeys, before: Reports) -> anyhow::Result<()> {
    let name = &what.slice;
    let known: BTreeSet<String> = gateways(&before)
        .filter_map(|(_, gateway)| gateway.public_key.clone())
        .collect();
    let mut reports = before;
    let api: Api<DynamicObject> = objects::raw::<MemberSliceReport>(client, None);
    let config = Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(api, config).default_backoff());
    let watched = async {
        let mut listed = false;
        while !(listed && waiting(&reports, &known).is_empty()) {
            match events.next().await {
                Some(Ok(Event::InitApply(object) | Event::Apply(object))) => {
                    reports.extend(of_cluster(objects::found(object)))
                }
                Some(Ok(Event::Delete(object))) => {
                    let namespace = object.metadata.namespace.unwrap_or_default();
                    reports.remove(names::member_of(&namespace).unwrap_or_default());
                }
                Some(Ok(Event::InitDone)) => listed = true,
                Some(Ok(Event::Init)) => {}
                // The watch is taken up again, unless it never can be.
                Some(Err(error)) if listed => drop(error),
                Some(Err(error)) => return Err(error).context("watch what members report"),
                None => bail!("watch what members report: the API server ended it"),
            }
        }
        Ok(())
    };
    let result = tokio::time::timeout(what.timeout, watched).await;
    match result {
        Ok(result) => result,
        Err(_) => bail!(
            "after {} s not every gateway of slice {name} has a new key and nothing but that: {}; see `slicectl status \
             {name}`",
            what.timeout.as_secs(),
            waiting(&reports, &known).join(", ")
        ),
    }
}

fn gateways(reports: &Reports) -> impl Iterator<Item = (&str, &slice_crds::wire::Gateway)> {
    let there = reports.iter().filter(|(_, report)| !report.released);
    there.flat_map(|(cluster, report)| {
        report
            .gateways
            .iter()
            .map(move |gateway| (cluster.as_str(), gateway))
    })
}

/// Gateways that have a key of before, or a former one yet. Pure.
fn waiting(reports: &Reports, before: &BTreeSet<String>) -> Vec<String> {
    let waiting = gateways(reports).filter(|(_, gateway)| {
        let new = gateway
            .public_key
            .as_ref()
            .is_some_and(|key| !before.contains(key));
        !new || gateway.former_key.is_some()
    });
    let named = waiting.map(|(cluster, gateway)| match &gateway.renewal_waits_for {
        Some(peer) => format!("{cluster}/{} (waits for {peer})", gateway.ordinal),
        None => format!("{cluster}/{}", gateway.ordinal),
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn report(cluster: &str, gateway: Value) -> (String, MemberSliceReportSpec) {
        let report = serde_json::from_value(json!({"name": "shop", "gateways": [gateway]})).unwrap();
        (cluster.to_owned(), report)
    }

    #[test]
    fn all_gateways_must_have_new_keys_only() {
        let before = BTreeSet::from(["A".to_owned(), "B".to_owned()]);
        let check = |a: Value, b: Value, expected: &[&str]| {
            let reports = Reports::from([report("a", a), report("b", b)]);
            assert_eq!(waiting(&reports, &before), expected);
        };
        check(json!({"publicKey": "A2"}), json!({"publicKey": "B2"}), &[]);
        check(json!({"publicKey": "A2"}), json!({"publicKey": "B"}), &["b/0"]);
        check(
            json!({"publicKey": "A2"}),
            json!({"publicKey": "B2", "formerKey": "B", "renewalWaitsFor": "db1/0"}),
            &["b/0 (waits for db1/0)"],
        );
        check(json!({}), json!({"publicKey": "B2"}), &["a/0"]);
    }

    #[test]
    fn what_was_given_back_is_not_waited_for_and_what_is_not_seen_is_named() {
        let (name, mut gone) = report("a", json!({"publicKey": "A"}));
        gone.released = true;
        let reports = Reports::from([(name, gone)]);
        assert!(waiting(&reports, &BTreeSet::from(["A".to_owned()])).is_empty());
        let slice: SliceConfig = serde_json::from_value(json!({
            "metadata": {"name": "shop"}, "spec": {"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"]},
            "status": {"clusters": [{"name": "a"}, {"name": "b"}]},
        }))
        .unwrap();
        assert_eq!(unseen(&slice, &reports), ["b"]);
    }
}
