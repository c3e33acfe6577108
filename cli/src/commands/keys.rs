//! `renew keys` and `revoke keys`.

use std::collections::BTreeSet;

use anyhow::Context;
use jiff::Timestamp;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use slice_crds::v1alpha1::{GatewayReport, SliceConfig};

use super::{find_slice, wait_for};
use crate::{
    Outcome,
    args::{ChangeKeys, Target},
    connect,
};

pub(crate) async fn renew(target: &Target, what: ChangeKeys) -> anyhow::Result<Outcome> {
    change(target, &what, "renewedAt", "renewed").await
}

pub(crate) async fn revoke(target: &Target, what: ChangeKeys) -> anyhow::Result<Outcome> {
    change(target, &what, "revokedAt", "revoked").await
}

async fn change(target: &Target, what: &ChangeKeys, field: &str, done: &str) -> anyhow::Result<Outcome> {
    let api: Api<SliceConfig> = Api::namespaced(connect::client(target).await?, &target.namespace);
    let name = &what.slice;
    let before = find_slice(&api, target, name).await?;
    let before: BTreeSet<String> = gateways(&before)
        .filter_map(|gateway| gateway.public_key.clone())
        .collect();
    let patch = json!({"spec": {"gateway": {field: Timestamp::now()}}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .with_context(|| format!("ask for new keys of slice {name}"))?;
    if what.timeout.is_zero() {
        println!("sliceconfig/{name}: keys are being {done}");
        return Ok(Outcome::Good);
    }
    let renewed = move |slice: Option<&SliceConfig>| slice.is_some_and(|slice| is_renewed(slice, &before));
    let why = format!(
        "not every gateway has a new key yet, or a peer still needs a former one; see `slicectl status {name}` and \
         `slicectl get clusters -o yaml`"
    );
    wait_for(&api, name, what.timeout, &why, renewed).await?;
    println!("sliceconfig/{name}: keys {done}");
    Ok(Outcome::Good)
}

fn gateways(slice: &SliceConfig) -> impl Iterator<Item = &GatewayReport> {
    let clusters = slice.status.iter().flat_map(|status| &status.clusters);
    clusters.flat_map(|cluster| &cluster.gateways)
}

/// Whether every gateway has a key that none of them had before, and only that.
fn is_renewed(slice: &SliceConfig, before: &BTreeSet<String>) -> bool {
    gateways(slice).all(|gateway| {
        let new = gateway
            .public_key
            .as_ref()
            .is_some_and(|key| !before.contains(key));
        new && gateway.former_key.is_none()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_gateways_must_have_new_keys_only() {
        let slice = |a: serde_json::Value, b: serde_json::Value| -> SliceConfig {
            let gateway = |mut keys: serde_json::Value| {
                (keys["ordinal"], keys["up"]) = (0.into(), true.into());
                json!([keys])
            };
            serde_json::from_value(json!({
                "metadata": {"name": "shop"},
                "spec": {"subnets": ["10.80.0.0/16"], "clusters": ["a", "b"]},
                "status": {"clusters": [
                    {"name": "a", "ranges": [], "gateways": gateway(a)},
                    {"name": "b", "ranges": [], "gateways": gateway(b)},
                ]},
            }))
            .unwrap()
        };
        let before = BTreeSet::from(["A".to_owned(), "B".to_owned()]);
        let check = |a, b, expected| assert_eq!(is_renewed(&slice(a, b), &before), expected);
        check(json!({"publicKey": "A2"}), json!({"publicKey": "B2"}), true);
        check(json!({"publicKey": "A2"}), json!({"publicKey": "B"}), false);
        check(
            json!({"publicKey": "A2"}),
            json!({"publicKey": "B2", "formerKey": "B"}),
            false,
        );
        check(json!({}), json!({"publicKey": "B2"}), false);
    }
}
