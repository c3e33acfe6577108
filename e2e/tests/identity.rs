//! Who is who: a cluster joins once, under its own name, and its credential is good for its own namespace and for reading
//! what its slices share.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::{Namespace, Secret},
};
use kube::{
    Client, ResourceExt,
    api::{Api, ListParams, PostParams},
    discovery::Discovery,
};
use serde_json::json;
use slice_crds::{annotations::credential as key, names};
use slice_e2e::{
    harness::{Cluster, Environment, poll},
    progress::say,
};

const SOON: Duration = Duration::from_secs(60);

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

async fn uid(cluster: &Cluster) -> Result<String> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.get("kube-system").await?.uid().context("a UID")
}

async fn credential(cluster: &Cluster) -> Result<Secret> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), names::MEMBER_NAMESPACE);
    secrets
        .get(names::HUB_CREDENTIAL)
        .await
        .context("the member's credential")
}

fn value(secret: &Secret, key: &str) -> String {
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    data.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
        .unwrap_or_default()
}

#[tokio::test]
async fn a_name_is_one_clusters_and_a_token_is_good_once() -> Result<()> {
    let environment = Environment::open().await?;
    environment.install().await?;
    let (hub, member) = (environment.cluster(0)?, environment.cluster(1)?);
    let join = |token: &str| {
        let arguments = [
            "join",
            "--token",
            token.trim(),
            "--replace",
            "--no-install",
            "--timeout",
            "40",
        ];
        environment.try_slicectl(&member.name, &arguments)
    };
    // The hub's own member has this name.
    let token = environment.slicectl(&hub.name, &["token", "issue", &hub.name])?;
    let refused = join(&token)?;
    ensure!(
        !refused.status.success(),
        "a second cluster joined as {}",
        hub.name
    );
    for uid in [uid(hub).await?, uid(member).await?] {
        ensure!(text(&refused).contains(&uid), "no {uid} in: {}", text(&refused));
    }
    environment.await_joined(&member.name).await?;
    environment.await_joined(&hub.name).await?;

    // Its own name again, with a token that is used then.
    let token = environment.slicectl(&hub.name, &["token", "issue", &member.name])?;
    let joined = join(&token)?;
    ensure!(joined.status.success(), "{}", text(&joined));
    let again = join(&token)?;
    ensure!(
        !again.status.success(),
        "a token was good twice: {}",
        text(&again)
    );
    environment.await_joined(&member.name).await?;

    // Revoked before it was used.
    let token = environment.slicectl(&hub.name, &["token", "issue", &member.name])?;
    let list = environment.slicectl(&hub.name, &["token", "list"])?;
    let name = list
        .lines()
        .filter(|line| line.starts_with(&format!("{}-", member.name)) && line.contains("Ready"))
        .find_map(|line| line.split_whitespace().next())
        .with_context(|| format!("no token is ready: {list}"))?;
    environment.slicectl(&hub.name, &["token", "revoke", name])?;
    let revoked = join(&token)?;
    ensure!(
        !revoked.status.success(),
        "a revoked token was good: {}",
        text(&revoked)
    );
    environment.await_joined(&member.name).await?;

    let loopback = [
        "token",
        "issue",
        &member.name,
        "--server",
        "https://127.0.0.1:6443",
    ];
    let refused = environment.try_slicectl(&hub.name, &loopback)?;
    ensure!(
        !refused.status.success() && text(&refused).contains("--server"),
        "{}",
        text(&refused)
    );
    Ok(())
}

/// What RBAC lets the holder of a token do with a kind somewhere.
async fn may(client: &Client, verb: &str, group: &str, resource: &str, namespace: &str) -> Result<bool> {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, part)) => (resource, Some(part.to_owned())),
        None => (resource, None),
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[tokio::test]
async fn a_members_credential_opens_its_own_namespace_and_its_slices_and_nothing_else() -> Result<()> {
    let environment = Environment::open().await?;
    environment.install().await?;
    let (hub, member) = (environment.cluster(0)?, environment.cluster(1)?);
    let (mine, foreign) = ("mine", "foreign");
    environment
        .slice(mine, json!({"subnets": ["10.85.0.0/24"]}))
        .await?;
    environment
        .slice(
            foreign,
            json!({"subnets": ["10.86.0.0/24"], "clusters": [hub.name]}),
        )
        .await?;
    let shared = |slice: &str| names::slice_namespace(slice);
    let secret = credential(member).await?;
    ensure!(value(&secret, key::JOIN).is_empty(), "it has not joined");
    let client = hub.with_token(&value(&secret, key::TOKEN))?;
    let own = value(&secret, key::NAMESPACE);

    let discovery = Discovery::new(hub.client.clone())
        .run()
        .await
        .context("discover the hub's kinds")?;
    let mut kinds = vec![("".to_owned(), "serviceaccounts/token".to_owned())];
    for group in discovery.groups() {
        for (resource, _) in group.recommended_resources() {
            kinds.push((resource.group.clone(), resource.plural.clone()));
        }
    }
    let spaces: Api<Namespace> = Api::all(hub.client.clone());
    let spaces = spaces.list(&ListParams::default()).await?;
    // Whatever every account may do.
    let nobody = hub.as_account("default", "default", None).await?;
    let verbs = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
    ];
    let (mut tried, mut allowed) = (0, vec![]);
    for namespace in spaces.iter().map(ResourceExt::name_any).chain([String::new()]) {
        for (group, resource) in &kinds {
            for verb in verbs {
                tried += 1;
                if may(&client, verb, group, resource, &namespace).await? {
                    allowed.push((
                        namespace.clone(),
                        format!("{verb} {resource}"),
                        verb,
                        group.clone(),
                        resource.clone(),
                    ));
                }
            }
        }
    }
    let (mut own_verbs, mut slice_verbs) = (vec![], vec![]);
    for (namespace, what, verb, group, resource) in allowed {
        match &namespace {
            here if *here == own => own_verbs.push(what),
            _ if may(&nobody, verb, &group, &resource, &namespace).await? => {}
            here if *here == shared(mine) => slice_verbs.push(what),
            elsewhere => bail!("a member may {what} in namespace \"{elsewhere}\""),
        }
    }
    ensure!(
        slice_verbs == ["get sliceshares", "list sliceshares", "watch sliceshares"],
        "in its slice's namespace: {slice_verbs:?}"
    );
    say(format!(
        "{tried} verbs of a member's credential tried; it may, in its own namespace: {}",
        own_verbs.join(", ")
    ));
    ensure!(
        own_verbs.iter().any(|what| what == "patch memberreports"),
        "{own_verbs:?}"
    );
    ensure!(
        !own_verbs
            .iter()
            .any(|what| what.contains("secrets") || what.contains("memberjoins")),
        "{own_verbs:?}"
    );
    // A token that would outlive its revocation by years.
    let refused = mint(&client, &own, 10 * 365 * 86400).await;
    ensure!(
        refused
            .as_ref()
            .is_err_and(|error| error.to_string().contains("2678400")),
        "{:?}",
        refused.map(drop)
    );
    environment.remove_slice(mine).await?;
    environment.remove_slice(foreign).await
}

async fn mint(client: &Client, namespace: &str, seconds: i64) -> kube::Result<()> {
    use k8s_openapi::api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::ServiceAccount,
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(seconds),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    accounts
        .create_token_request(names::MEMBER_ACCOUNT, &PostParams::default(), &request)
        .await
        .map(drop)
}

#[tokio::test]
async fn a_revoked_member_is_cut_off_and_comes_back_with_a_token() -> Result<()> {
    let environment = Environment::open().await?;
    environment.install().await?;
    let (hub, member) = (environment.cluster(0)?, environment.cluster(1)?);
    let secret = credential(member).await?;
    let client = hub.with_token(&value(&secret, key::TOKEN))?;
    environment.slicectl(
        &hub.name,
        &["token", "revoke", "--cluster", &member.name, "--yes"],
    )?;
    poll(SOON, "the member's credential is void", async || {
        Ok(mint(&client, &value(&secret, key::NAMESPACE), 3600)
            .await
            .is_err()
            .then_some(()))
    })
    .await?;
    let token = environment.slicectl(&hub.name, &["token", "issue", &member.name])?;
    environment.slicectl(
        &member.name,
        &["join", "--token", token.trim(), "--replace", "--no-install"],
    )?;
    environment.await_joined(&member.name).await
}
