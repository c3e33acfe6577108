//! `token issue`, `token list` and `token revoke`.

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use slice_crds::{annotations, names, v1alpha1::Cluster, wire::JoinToken};

use super::{issue, wait_for};
use crate::{
    Outcome, age,
    args::{Format, Target, Token, TokenRevoke},
    connect,
    objects::{self, Found},
    output,
};

pub(crate) async fn run(target: &Target, token: Token) -> anyhow::Result<Outcome> {
    match token {
        Token::Issue(what) => {
            let invitation = issue::issue(target, &what).await?;
            output::print(&(invitation.encode() + "\n"))?;
        }
        Token::List(what) => {
            let client = connect::client(target).await?;
            print(&tokens(&client, &ListParams::default()).await?, what.output)?;
        }
        Token::Revoke(what) => revoke(target, &what).await?,
    }
    Ok(Outcome::Good)
}

/// The tokens of every member.
pub(super) async fn tokens(client: &Client, params: &ListParams) -> anyhow::Result<Vec<Found<JoinToken>>> {
    let mut tokens = objects::list::<JoinToken>(client, None, params).await?;
    tokens.sort_by(|a, b| (a.namespace(), a.name()).cmp(&(b.namespace(), b.name())));
    Ok(tokens)
}

pub(super) fn print(tokens: &[Found<JoinToken>], format: Format) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let head = ["name", "cluster", "state", "expires", "age", "used-by", "message"];
    let head = if format == Format::Wide {
        &head[..]
    } else {
        &head[..6]
    };
    output::objects(tokens, "jointokens", format, head, |_, token| {
        let mut row = row(token, now);
        row.truncate(head.len());
        row
    })
}

fn row(token: &JoinToken, now: Timestamp) -> Vec<String> {
    let status = token.status.clone().unwrap_or_default();
    let state = if status.state.is_empty() {
        "Pending".to_owned()
    } else {
        status.state
    };
    let used_by = match status.used_by.as_deref() {
        None => "-".to_owned(),
        Some("") => "another token".to_owned(),
        Some(uid) => uid.to_owned(),
    };
    vec![
        token.name_any(),
        token.spec.cluster.clone(),
        state,
        age::column(status.expires_at.map(|time| time.0), now),
        age::column(token.creation_timestamp().map(|time| time.0), now),
        used_by,
        status.message,
    ]
}

async fn revoke(target: &Target, what: &TokenRevoke) -> anyhow::Result<()> {
    let client = connect::client(target).await?;
    match &what.cluster {
        Some(cluster) => revoke_cluster(&client, target, cluster, what).await,
        None => {
            for name in &what.tokens {
                revoke_token(&client, name).await?;
            }
            Ok(())
        }
    }
}

async fn revoke_token(client: &Client, name: &str) -> anyhow::Result<()> {
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = tokens(client, &params).await?;
    if found.is_empty() {
        bail!("there is no token {name}: see `slicectl token list`");
    }
    for token in &found {
        let api: Api<JoinToken> = Api::namespaced(client.clone(), token.namespace());
        api.delete(name, &DeleteParams::default())
            .await
            .with_context(|| format!("delete jointoken {name} in namespace {}", token.namespace()))?;
        output::print(&revoked(token))?;
    }
    Ok(())
}

/// What a revocation does, and what it does not. Pure.
fn revoked(token: &Found<JoinToken>) -> String {
    let name = token.name();
    let cluster = names::member_of(token.namespace()).unwrap_or_default();
    let used = token
        .readable()
        .and_then(|token| token.status.as_ref()?.used_by.as_deref());
    match used.is_some_and(|uid| !uid.is_empty()) {
        true => format!(
            "jointoken/{name} revoked; the cluster that has joined with it stays: `slicectl token revoke --cluster \
             {cluster}` cuts it off\n"
        ),
        false => format!("jointoken/{name} revoked: nobody can join with it\n"),
    }
}

async fn revoke_cluster(
    client: &Client,
    target: &Target,
    name: &str,
    what: &TokenRevoke,
) -> anyhow::Result<()> {
    let api = objects::raw::<Cluster>(client, Some(&target.namespace));
    let found = api
        .get_opt(name)
        .await
        .with_context(|| format!("read clusters.weft.dev {name}"))?;
    if found.is_none() {
        bail!(
            "there is no cluster {name} in namespace {}; see `slicectl get clusters`",
            target.namespace
        );
    }
    if !what.yes {
        bail!(
            "every credential of cluster {name} becomes void, its own and its tokens: its pods go on, and changes to its \
             slices wait until it has joined again with a new token. Repeat with --yes to do it"
        );
    }
    let namespace = names::member_namespace(name);
    let tokens: Api<JoinToken> = Api::namespaced(client.clone(), &namespace);
    for token in objects::list::<JoinToken>(client, Some(&namespace), &ListParams::default()).await? {
        match tokens.delete(token.name(), &DeleteParams::default()).await {
            Ok(_) => println!("jointoken/{} revoked", token.name()),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| format!("delete jointoken {}", token.name())),
        }
    }
    let moment = Timestamp::now().to_string();
    let patch = json!({"metadata": {"annotations": {annotations::REVOKED: moment}}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .with_context(|| format!("annotate clusters.weft.dev {name}"))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let remade = |account: Option<&ServiceAccount>| {
        account.is_some_and(|account| account.annotations().get(annotations::MADE_AFTER) == Some(&moment))
    };
    let why = format!(
        "the hub has not made it anew, so what was handed out is still good: see `kubectl -n {} get pods`",
        names::HUB_NAMESPACE
    );
    let what_for = format!("account {} in namespace {namespace}", names::MEMBER_ACCOUNT);
    wait_for(
        &accounts,
        names::MEMBER_ACCOUNT,
        &what_for,
        what.timeout,
        &why,
        remade,
    )
    .await?;
    println!(
        "clusters.weft.dev/{name}: its account is a new one, and every credential that was made before is void.\n\
         To let the cluster in again: `slicectl token issue {name}` here, and `slicectl join` there."
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::from_json;

    fn token(status: Value) -> Found<JoinToken> {
        from_json(json!({
            "metadata": {
                "name": "b-k3x9qa", "namespace": "weft-member-b", "creationTimestamp": "2027-01-15T07:00:00Z",
            },
            "spec": {"cluster": "b"}, "status": status,
        }))
    }

    #[track_caller]
    fn check(status: Value, expected: &[&str]) {
        let now: Timestamp = "2027-01-15T07:30:00Z".parse().unwrap();
        let token = token(status);
        assert_eq!(row(token.readable().unwrap(), now), expected);
    }

    #[test]
    fn a_token_is_a_row() {
        check(json!({}), &["b-k3x9qa", "b", "Pending", "-", "30m", "-", ""]);
        check(
            json!({"state": "Ready", "expiresAt": "2027-01-15T08:30:00Z"}),
            &["b-k3x9qa", "b", "Ready", "in 60m", "30m", "-", ""],
        );
        check(
            json!({"state": "Used", "usedBy": "u-1", "expiresAt": "2027-01-15T07:28:20Z"}),
            &["b-k3x9qa", "b", "Used", "100s", "30m", "u-1", ""],
        );
        check(
            json!({"state": "Used", "usedBy": ""}),
            &["b-k3x9qa", "b", "Used", "-", "30m", "another token", ""],
        );
    }

    #[test]
    fn revoking_a_used_token_does_not_cut_its_cluster_off() {
        assert!(revoked(&token(json!({"usedBy": "u-1"}))).contains("token revoke --cluster b"));
        assert!(!revoked(&token(json!({"usedBy": ""}))).contains("--cluster"));
        assert!(revoked(&token(json!({}))).contains("nobody can join"));
    }
}
