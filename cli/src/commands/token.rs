//! `token issue`: registers a member on the hub and prints what it joins with.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
    rbac::v1::RoleBinding,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use slice_crds::{names, v1alpha1::Cluster};

use super::wait_for;
use crate::{
    Outcome,
    args::{Target, Token, TokenIssue},
    connect, output,
    token::JoinToken,
};

/// How long the hub's controller may take to set a member up.
const SET_UP: Duration = Duration::from_secs(30);

pub(crate) async fn run(target: &Target, token: Token) -> anyhow::Result<Outcome> {
    match token {
        Token::Issue(issue) => {
            let token = issue_token(target, issue).await?;
            output::print(&(token.encode() + "\n"))?;
            Ok(Outcome::Good)
        }
    }
}

async fn issue_token(target: &Target, issue: TokenIssue) -> anyhow::Result<JoinToken> {
    let config = connect::config(target).await?;
    let server = issue
        .server
        .unwrap_or_else(|| config.cluster_url.to_string().trim_end_matches('/').to_owned());
    let ca = config.root_cert.clone().context(
        "the kubeconfig names no certificate authority for the hub: add certificate-authority-data to its cluster",
    )?;
    let client = Client::try_from(config).context("set up the Kubernetes client")?;
    register(&client, &target.namespace, &issue.cluster).await?;
    let namespace = names::member_namespace(&issue.cluster);
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let bindings: Api<RoleBinding> = Api::namespaced(client, &namespace);
    let why = "the hub's controller has not made it; see `kubectl -n weft-hub logs deploy/weft-hub`";
    wait_for(&accounts, names::MEMBER_ACCOUNT, SET_UP, why, |account| {
        account.is_some()
    })
    .await?;
    wait_for(&bindings, names::MEMBER_ACCOUNT, SET_UP, why, |binding| {
        binding.is_some()
    })
    .await?;
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: i64::try_from(issue.expires.as_secs()).ok(),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(names::MEMBER_ACCOUNT, &PostParams::default(), &request)
        .await
        .context("ask for a token of the member's account")?;
    Ok(JoinToken {
        server,
        ca: pem(&ca),
        namespace,
        cluster: issue.cluster,
        token: answer
            .status
            .context("the API server's answer has no token")?
            .token,
    })
}

async fn register(client: &Client, project: &str, cluster: &str) -> anyhow::Result<()> {
    let api: Api<Cluster> = Api::namespaced(client.clone(), project);
    let object = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": cluster}, "spec": {},
    });
    api.patch(cluster, &PatchParams::apply("slicectl"), &Patch::Apply(object))
        .await
        .with_context(|| format!("register cluster {cluster} in namespace {project}; is the hub installed (`slicectl install hub`)?"))?;
    Ok(())
}

fn pem(certificates: &[Vec<u8>]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let block = |der: &Vec<u8>| {
        let text = BASE64_STANDARD.encode(der);
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).expect("base 64 is ASCII"))
            .collect();
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            lines.join("\n")
        )
    };
    certificates.iter().map(block).collect()
}
