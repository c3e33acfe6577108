//! `join`: installs the member chart and gives it the credential for the hub.

use std::io::Read;

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use slice_crds::names;

use super::install;
use crate::{
    Outcome,
    args::{Join, Part, Target},
    connect,
    token::JoinToken,
};

/// The Secret that the operator reads, as the chart's `operator.hubSecret`.
const SECRET: &str = "weft-hub-credential";

pub(crate) async fn run(target: &Target, join: Join) -> anyhow::Result<Outcome> {
    let text = match join.token.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("read the token from standard input")?;
            text
        }
        text => text.to_owned(),
    };
    let token = JoinToken::decode(&text)?;
    install::ensure(target, Part::Cluster, &join.chart).await?;
    let client = connect::client(target).await?;
    let api: Api<Secret> = Api::namespaced(client, names::MEMBER_NAMESPACE);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "type": "Opaque",
        "stringData": {
            "server": token.server, "ca.crt": token.ca, "token": token.token,
            "namespace": token.namespace, "cluster": token.cluster,
        },
    });
    api.patch(
        SECRET,
        &PatchParams::apply("slicectl").force(),
        &Patch::Apply(secret),
    )
    .await
    .with_context(|| format!("write secret {SECRET} in namespace {}", names::MEMBER_NAMESPACE))?;
    println!(
        "Cluster {} has its credential for {}. On the hub, `slicectl get clusters` shows it Ready within seconds.",
        token.cluster, token.server
    );
    Ok(Outcome::Good)
}
