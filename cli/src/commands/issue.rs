//! `token issue`: registers a member on the hub and prints what it joins with.
//!
//! ```text
//!  Cluster ──► the hub makes the namespace weft-member-<cluster> and the account weft-join in it
//!  JoinToken, created there ──► the hub makes a Secret beside it
//!  a token of weft-join, bound to that Secret ──► printed; void as soon as the Secret is gone
//! ```

use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, bail};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject},
};
use serde_json::{Value, json};
use slice_crds::{
    conditions::{self, reason},
    labels, names,
    v1alpha1::{Cluster, ClusterNetworks},
    wire::{JoinToken, JoinTokenSpec, JoinTokenStatus},
};

use super::{text, wait_for};
use crate::{
    age,
    args::{Networks, Target, TokenIssue},
    connect, objects,
    token::Invitation,
};

/// What [`JoinTokenSpec::expires_seconds`] takes.
const EXPIRY: std::ops::RangeInclusive<u64> = 600..=604_800;
/// Letters and digits that make a token's name one of its own, 5 bits each.
const SUFFIX: usize = 6;

/// Makes a token. What goes wrong leaves none behind.
pub(super) async fn issue(target: &Target, issue: &TokenIssue) -> anyhow::Result<Invitation> {
    let cluster = &issue.cluster;
    check(issue)?;
    let config = connect::config(target).await?;
    let kubeconfigs = config.cluster_url.to_string();
    let server = server(issue.server.as_deref().unwrap_or(&kubeconfigs)).map_err(anyhow::Error::msg)?;
    let ca = authorities(&config, issue.ca.as_deref())?;
    let client = Client::try_from(config).context("set up the Kubernetes client")?;
    register(&client, target, cluster, &issue.networks).await?;
    let registered = registered(&client, target, issue).await?;
    let namespace = names::member_namespace(cluster);
    let spec = JoinTokenSpec {
        cluster: cluster.clone(),
        expires_seconds: u32::try_from(issue.expires.as_secs()).context("--expires")?,
        replaces: replaced(issue, &registered)?,
    };
    let tokens: Api<JoinToken> = Api::namespaced(client.clone(), &namespace);
    let name = format!("{cluster}-{}", suffix()?);
    tokens
        .create(&PostParams::default(), &JoinToken::new(&name, spec))
        .await
        .with_context(|| format!("create jointoken {name} in namespace {namespace}"))?;
    match credential(&client, &tokens, &name, issue).await {
        Ok(token) => Ok(Invitation {
            server,
            ca,
            namespace,
            cluster: cluster.clone(),
            join: name,
            token,
        }),
        Err(error) => {
            let _ = tokens.delete(&name, &DeleteParams::default()).await;
            Err(error)
        }
    }
}

fn check(issue: &TokenIssue) -> anyhow::Result<()> {
    let TokenIssue { cluster, expires, .. } = issue;
    if !labels::is_name(cluster) || cluster.len() > names::MAX_NAME {
        bail!(
            "\"{cluster}\" names no cluster: use at most {} lower-case letters, digits and dashes",
            names::MAX_NAME
        );
    }
    if !EXPIRY.contains(&expires.as_secs()) {
        bail!(
            "--expires {} s: a token is good for 10m at least and 7d at most",
            expires.as_secs()
        );
    }
    Ok(())
}

/// The URL at which members reach the hub. Pure.
fn server(url: &str) -> Result<String, String> {
    let fix = "give the one that they reach with --server, such as --server https://192.0.2.1:6443";
    let parsed: http::Uri = url
        .parse()
        .map_err(|error| format!("\"{url}\" is no URL ({error}): {fix}"))?;
    let (Some("https"), Some(host)) = (parsed.scheme_str(), parsed.host()) else {
        return Err(format!(
            "members reach the hub by https only, and not at {url}: {fix}"
        ));
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = bare.trim_end_matches('.').to_ascii_lowercase();
    let own = match name.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) => address.is_loopback() || address.is_unspecified(),
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    };
    if own {
        return Err(format!(
            "members cannot reach {url}, which is each machine's own address: {fix}"
        ));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// The certificate authorities of that URL, PEM; empty for those that every system knows.
fn authorities(config: &Config, file: Option<&Path>) -> anyhow::Result<String> {
    if let Some(file) = file {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        if !text.trim().is_empty() && !text.contains("-----BEGIN CERTIFICATE-----") {
            bail!(
                "{} holds no certificate: --ca takes PEM, or an empty file",
                file.display()
            );
        }
        return Ok(if text.trim().is_empty() {
            String::new()
        } else {
            text
        });
    }
    match &config.root_cert {
        Some(certificates) => Ok(pem(certificates)),
        None if config.accept_invalid_certs => bail!(
            "the kubeconfig leaves the hub's certificate unchecked (insecure-skip-tls-verify), and members check it: name \
             its authority with --ca FILE"
        ),
        None => Ok(String::new()),
    }
}

/// Creates the Cluster where there is none. Of one that is there only what was asked for is changed.
async fn register(client: &Client, target: &Target, name: &str, networks: &Networks) -> anyhow::Result<()> {
    let api: Api<DynamicObject> = objects::raw::<Cluster>(client, Some(&target.namespace));
    let spec = networks_patch(networks).map_or_else(|| json!({}), |patch| patch["spec"].clone());
    let object = DynamicObject::new(name, &ApiResource::erase::<Cluster>(&())).data(json!({ "spec": spec }));
    let params = PostParams {
        field_manager: Some("slicectl".into()),
        ..PostParams::default()
    };
    match api.create(&params, &object).await {
        Ok(_) => {
            eprintln!("clusters.weft.dev/{name} registered in namespace {}", target.namespace);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => match networks_patch(networks) {
            None => Ok(()),
            Some(patch) => api
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map(drop)
                .with_context(|| format!("write the networks of clusters.weft.dev {name}")),
        },
        Err(error) => Err(error).with_context(|| {
            format!(
                "register cluster {name} in namespace {}; is this the hub, and Weft installed (`slicectl install hub`)?",
                target.namespace
            )
        }),
    }
}

/// Lists that were given replace those that stand there, the others stay. Pure.
fn networks_patch(networks: &Networks) -> Option<Value> {
    let Networks {
        pods,
        services,
        nodes,
    } = networks.clone();
    let declared = ClusterNetworks {
        pods,
        services,
        nodes,
    };
    (declared != ClusterNetworks::default()).then(|| json!({"spec": {"networks": declared}}))
}

/// Waits until the hub has made the member's namespace; the Cluster then.
async fn registered(client: &Client, target: &Target, issue: &TokenIssue) -> anyhow::Result<DynamicObject> {
    let cluster = &issue.cluster;
    let api = objects::raw::<Cluster>(client, Some(&target.namespace));
    let why = format!(
        "the hub has not set it up: see `kubectl -n {} describe clusters.weft.dev {cluster}` and `kubectl -n {} logs \
         deploy/weft-hub`",
        target.namespace,
        names::HUB_NAMESPACE
    );
    let decided = |object: Option<&DynamicObject>| {
        object.is_some_and(|object| {
            !text(&object.data, "/status/namespace").is_empty() || taken(object).is_some()
        })
    };
    let what = format!("cluster {cluster}");
    let object = wait_for(&api, cluster, &what, issue.timeout, &why, decided).await?;
    let object = object.context("the Cluster was deleted meanwhile")?;
    if let Some(why) = taken(&object) {
        bail!("{why}");
    }
    let namespace = names::member_namespace(cluster);
    let spaces: Api<Namespace> = Api::all(client.clone());
    let stands =
        |space: Option<&Namespace>| space.is_some_and(|space| space.metadata.deletion_timestamp.is_none());
    let what = format!("namespace {namespace}");
    wait_for(&spaces, &namespace, &what, issue.timeout, &why, stands).await?;
    Ok(object)
}

/// Why the hub takes no cluster of this name here. Pure.
fn taken(object: &DynamicObject) -> Option<String> {
    let conditions = object.data.pointer("/status/conditions")?;
    let conditions: Vec<_> = serde_json::from_value(conditions.clone()).ok()?;
    let ready = conditions::find_false(&conditions, conditions::READY)?;
    (ready.reason == reason::NAME_TAKEN).then(|| ready.message.clone())
}

/// UID of the cluster whose place is taken. Pure.
fn replaced(issue: &TokenIssue, registered: &DynamicObject) -> anyhow::Result<Option<String>> {
    let cluster = &issue.cluster;
    match (issue.replace, text(&registered.data, "/status/clusterUID")) {
        (false, _) => Ok(None),
        (true, "") => {
            bail!("no cluster has joined as {cluster} yet, so none can be replaced: leave --replace out")
        }
        (true, uid) => Ok(Some(uid.to_owned())),
    }
}

/// A credential that is good for asking to join, while the token stands.
async fn credential(
    client: &Client,
    tokens: &Api<JoinToken>,
    name: &str,
    issue: &TokenIssue,
) -> anyhow::Result<String> {
    let cluster = &issue.cluster;
    let namespace = names::member_namespace(cluster);
    let why = format!(
        "the hub has not taken it, so it is deleted again: see `slicectl status` and `kubectl -n {} get pods`",
        names::HUB_NAMESPACE
    );
    let decided = |token: Option<&JoinToken>| {
        let state = token
            .and_then(|token| token.status.as_ref())
            .map(|status| status.state.as_str());
        !matches!(state, None | Some("" | "Pending"))
    };
    let what = format!("token {name}");
    let token = wait_for(tokens, name, &what, issue.timeout, &why, decided).await?;
    let status = token.and_then(|token| token.status).unwrap_or_default();
    refused(&status, name, cluster)?;
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: i64::try_from(issue.expires.as_secs()).ok(),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Secret".into()),
                name: Some(status.secret_name),
                uid: Some(status.secret_uid),
            }),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let answer = accounts
        .create_token_request(names::JOIN_ACCOUNT, &PostParams::default(), &request)
        .await
        .with_context(|| {
            format!(
                "ask for a token of account {} in namespace {namespace}",
                names::JOIN_ACCOUNT
            )
        })?;
    let answer = answer.status.context("the API server's answer has no token")?;
    note(name, issue, answer.expiration_timestamp.0);
    Ok(answer.token)
}

/// Fails where the hub does not make a token good. Pure.
fn refused(status: &JoinTokenStatus, name: &str, cluster: &str) -> anyhow::Result<()> {
    match (status.state.as_str(), status.secret_uid.as_str()) {
        ("Ready", uid) if !uid.is_empty() => Ok(()),
        ("Used", _) => bail!(
            "token {name} is void, because cluster {cluster} joins with another one at this moment: see `slicectl token \
             list`, and revoke that one where it is not to join"
        ),
        (state, _) => bail!(
            "the hub does not take token {name}, whose state is {state}: {}",
            if status.message.is_empty() {
                "see its logs"
            } else {
                &status.message
            }
        ),
    }
}

/// Beside the token, which alone goes to standard output.
fn note(name: &str, issue: &TokenIssue, expires: jiff::Timestamp) {
    let now = jiff::Timestamp::now();
    let good = expires.duration_since(now);
    let good = good.round(jiff::Unit::Second).unwrap_or(good);
    eprintln!(
        "token {name} lets cluster {} join once, within {}; `slicectl token revoke {name}` makes it void",
        issue.cluster,
        age::long(good)
    );
    // API servers may be set to less than they are asked for.
    if good.unsigned_abs() + Duration::from_secs(60) < issue.expires {
        eprintln!("this API server makes tokens for no longer");
    }
}

/// Lower-case letters and digits that nobody guesses twice.
fn suffix() -> anyhow::Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0; SUFFIX];
    getrandom::fill(&mut bytes).context("ask the kernel for randomness")?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_members_cannot_reach_is_refused() {
        for url in [
            "https://127.0.0.1:6443",
            "https://127.8.0.1",
            "https://[::1]:6443",
            "https://[::ffff:127.0.0.1]:6443",
            "https://LOCALHOST:6443",
            "https://kind.localhost.",
            "https://0.0.0.0:6443",
            "https://[::]:6443",
        ] {
            let error = server(url).unwrap_err();
            assert!(
                error.contains(url) && error.contains("--server https://"),
                "{error}"
            );
        }
        for url in ["http://192.0.2.1:6443", "192.0.2.1:6443", "https://", "a b"] {
            assert!(server(url).unwrap_err().contains("--server"), "{url}");
        }
        assert_eq!(
            server("https://192.0.2.1:6443/").unwrap(),
            "https://192.0.2.1:6443"
        );
        assert_eq!(
            server("https://hub.example.com/k8s/clusters/c-1").unwrap(),
            "https://hub.example.com/k8s/clusters/c-1"
        );
    }

    #[test]
    fn only_networks_that_were_named_are_written() {
        assert_eq!(networks_patch(&Networks::default()), None);
        let networks = Networks {
            pods: vec!["10.42.0.0/16".parse().unwrap()],
            ..Networks::default()
        };
        assert_eq!(
            networks_patch(&networks),
            Some(json!({"spec": {"networks": {"pods": ["10.42.0.0/16"]}}}))
        );
    }

    fn cluster(status: Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": {"name": "b"}, "status": status})).unwrap()
    }

    fn issue(replace: bool) -> TokenIssue {
        TokenIssue {
            cluster: "b".into(),
            expires: Duration::from_secs(3600),
            server: None,
            ca: None,
            replace,
            networks: Networks::default(),
            timeout: Duration::from_secs(30),
        }
    }

    #[test]
    fn a_name_of_another_project_is_refused() {
        let ready = |status: &str, reason: &str| {
            cluster(json!({"conditions": [{
                "type": "Ready", "status": status, "reason": reason, "message": "it is registered already",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]}))
        };
        assert_eq!(
            taken(&ready("False", "NameTaken")).as_deref(),
            Some("it is registered already")
        );
        assert_eq!(taken(&ready("False", "NotRegistered")), None);
        assert_eq!(taken(&cluster(json!({}))), None);
    }

    #[test]
    fn the_one_that_is_replaced_is_named_by_its_uid() {
        let there = cluster(json!({"clusterUID": "u-1"}));
        assert_eq!(replaced(&issue(false), &there).unwrap(), None);
        assert_eq!(replaced(&issue(true), &there).unwrap().as_deref(), Some("u-1"));
        assert!(replaced(&issue(true), &cluster(json!({}))).is_err());
    }

    #[test]
    fn bounds_of_a_token_are_checked_before_anything_is_written() {
        assert!(check(&issue(false)).is_ok());
        let short = TokenIssue {
            expires: Duration::from_secs(60),
            ..issue(false)
        };
        assert!(check(&short).unwrap_err().to_string().contains("10m"));
        let long = TokenIssue {
            cluster: "x".repeat(40),
            ..issue(false)
        };
        assert!(check(&long).unwrap_err().to_string().contains("39"));
        let name = suffix().unwrap();
        assert!(
            name.len() == SUFFIX && labels::is_name(&format!("b-{name}")),
            "{name}"
        );
    }

    #[test]
    fn a_token_that_is_no_good_is_explained() {
        let status = |state: &str, uid: &str, message: &str| JoinTokenStatus {
            state: state.into(),
            secret_uid: uid.into(),
            message: message.into(),
            ..JoinTokenStatus::default()
        };
        let check = |status, why: &str| {
            let error = refused(&status, "b-k3x9qa", "b").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        assert!(refused(&status("Ready", "u", ""), "b-k3x9qa", "b").is_ok());
        check(status("Invalid", "", "it names cluster c"), "it names cluster c");
        check(status("Used", "", ""), "joins with another one");
        check(status("Expired", "", ""), "Expired");
    }
}
