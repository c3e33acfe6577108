//! `join`: installs the member chart, hands the operator the join token, and waits until the cluster is a member.

use std::{collections::BTreeMap, io::Read, pin::pin, time::Duration};

use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    core::ObjectMeta,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use serde_json::json;
use slice_crds::{
    annotations::{self, credential as key},
    names,
};
use tokio::time::{Instant, timeout_at};

use super::{install, release};
use crate::{
    Outcome,
    args::{Join, Part, Target},
    connect,
    token::Invitation,
};

/// How long a refusal may take to turn out to be a passing one: the hub sets up what a token needs within seconds.
const GRACE: Duration = Duration::from_secs(5);
const SECRET: &str = names::HUB_CREDENTIAL;

pub(crate) async fn run(target: &Target, join: Join) -> anyhow::Result<Outcome> {
    let invitation = Invitation::decode(&text(&join.token)?)?;
    let client = connect::client(target).await?;
    // A credential in a namespace that is being deleted is none.
    release::settle(&client, Part::Cluster, join.chart.timeout).await?;
    let secrets: Api<Secret> = Api::namespaced(client, names::MEMBER_NAMESPACE);
    // Before anything is installed, and again before it is written.
    let there = read(&secrets).await?;
    judge(there.as_ref(), &invitation, join.replace).map_err(anyhow::Error::msg)?;
    if !join.no_install {
        install::ensure(target, Part::Cluster, &join.chart).await?;
    }
    let there = read(&secrets).await?;
    judge(there.as_ref(), &invitation, join.replace).map_err(anyhow::Error::msg)?;
    write(&secrets, there.as_ref(), &invitation).await?;
    eprintln!(
        "asking hub {} to let cluster {} in …",
        invitation.server, invitation.cluster
    );
    if let Waited::Refused(why) = wait(&secrets, &invitation, join.chart.timeout).await? {
        if let Some(there) = there.filter(|there| value(there, key::JOIN).is_none()) {
            restore(&secrets, &there, &invitation).await?;
            eprintln!("the credential that the cluster had is back in its place");
        }
        bail!("cluster {} cannot join: {why}", invitation.cluster);
    }
    println!(
        "Cluster {} has joined hub {}.",
        invitation.cluster, invitation.server
    );
    Ok(Outcome::Good)
}

fn text(token: &str) -> anyhow::Result<String> {
    if token != "-" {
        return Ok(token.to_owned());
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("read the token from standard input")?;
    Ok(text)
}

async fn read(secrets: &Api<Secret>) -> anyhow::Result<Option<Secret>> {
    secrets
        .get_opt(SECRET)
        .await
        .with_context(|| format!("read secret {SECRET} in namespace {}", names::MEMBER_NAMESPACE))
}

fn value(secret: &Secret, key: &str) -> Option<String> {
    let value = secret.data.as_ref()?.get(key)?;
    let value = String::from_utf8(value.0.clone()).ok()?;
    (!value.is_empty()).then_some(value)
}

/// Whether the credential that is there may make way. Pure.
fn judge(there: Option<&Secret>, new: &Invitation, replace: bool) -> Result<(), String> {
    let Some(there) = there else { return Ok(()) };
    let join = &new.join;
    if there
        .annotations()
        .get(annotations::LEAVE)
        .is_some_and(|leave| leave == "true")
    {
        return Err("this cluster is leaving its hub: join when `slicectl leave` is done".to_owned());
    }
    if value(there, key::JOIN).as_ref() == Some(join) {
        let problem = there.annotations().get(annotations::JOIN_PROBLEM);
        return Err(format!(
            "this cluster is joining with token {join} already, and goes on by itself{}; to begin anew, issue another \
             token",
            problem
                .map(|problem| format!(" (it meets with this: {problem})"))
                .unwrap_or_default()
        ));
    }
    if value(there, key::JOINED).as_ref() == Some(join) {
        return Err(format!(
            "this cluster has joined with token {join} already, and a token is good once: `slicectl status` shows how it is"
        ));
    }
    let [server, ca, cluster] =
        [key::SERVER, key::CA, key::CLUSTER].map(|key| value(there, key).unwrap_or_default());
    // A hub may be reached at several addresses; its certificate authority is its own.
    let same_ca = !ca.trim().is_empty() && ca.trim() == new.ca.trim();
    let same_hub = server.trim_end_matches('/') == new.server.trim_end_matches('/') || same_ca;
    if replace || (same_hub && cluster == new.cluster) {
        return Ok(());
    }
    Err(format!(
        "this cluster is {cluster} of hub {server}, and the token is for cluster {} of hub {}. `slicectl leave` takes it \
         off that hub first, with every slice that it has from there. --replace does not: those slices stay here as they \
         are, and that hub sees the cluster fall silent",
        new.cluster, new.server
    ))
}

/// Writes the token into the credential, and takes away what an earlier one has left there. What somebody else has
/// written meanwhile is not overwritten.
async fn write(secrets: &Api<Secret>, there: Option<&Secret>, new: &Invitation) -> anyhow::Result<()> {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let data = BTreeMap::from([
        (key::SERVER, bytes(&new.server)),
        (key::CA, bytes(&new.ca)),
        (key::TOKEN, bytes(&new.token)),
        (key::NAMESPACE, bytes(&new.namespace)),
        (key::CLUSTER, bytes(&new.cluster)),
        (key::JOIN, bytes(&new.join)),
    ]);
    let result = match there {
        None => {
            let secret = Secret {
                metadata: ObjectMeta {
                    name: Some(SECRET.to_owned()),
                    ..ObjectMeta::default()
                },
                data: Some(
                    data.into_iter()
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect(),
                ),
                type_: Some("Opaque".to_owned()),
                ..Secret::default()
            };
            secrets.create(&PostParams::default(), &secret).await
        }
        Some(there) => {
            let mut patch = json!({
                "metadata": {"resourceVersion": there.resource_version(), "annotations": {annotations::JOIN_PROBLEM: null}},
                "data": data,
            });
            patch["data"][key::JOINED] = serde_json::Value::Null;
            secrets
                .patch(SECRET, &PatchParams::default(), &Patch::Merge(patch))
                .await
        }
    };
    result.map(drop).with_context(|| {
        format!(
            "write secret {SECRET} in namespace {}; is Weft installed here (`slicectl install cluster`)?",
            names::MEMBER_NAMESPACE
        )
    })
}

/// Puts a member's credential back that a refused token has taken the place of.
async fn restore(secrets: &Api<Secret>, before: &Secret, refused: &Invitation) -> anyhow::Result<()> {
    let there = read(secrets)
        .await?
        .context("the credential was deleted meanwhile")?;
    if value(&there, key::JOIN).as_ref() != Some(&refused.join) {
        return Ok(());
    }
    let mut patch = json!({
        "metadata": {"resourceVersion": there.resource_version(), "annotations": {annotations::JOIN_PROBLEM: null}},
        "data": before.data,
    });
    patch["data"][key::JOIN] = serde_json::Value::Null;
    secrets
        .patch(SECRET, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
        .with_context(|| format!("put back what was in secret {SECRET}"))
}

/// How waiting has ended.
enum Waited {
    Joined,
    Refused(String),
}

/// Where a join stands.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Asking,
    Joined,
    /// What stands in its way, and whether that may pass by itself.
    Problem(String, bool),
    /// Somebody has given the credential another token, or deleted it.
    Overtaken,
}

/// Reads it from the credential. Pure.
fn progress(secret: Option<&Secret>, join: &str) -> Progress {
    let Some(secret) = secret else {
        return Progress::Overtaken;
    };
    match value(secret, key::JOIN) {
        None if value(secret, key::JOINED).as_deref() == Some(join) => Progress::Joined,
        Some(pending) if pending == join => match secret.annotations().get(annotations::JOIN_PROBLEM) {
            Some(problem) => Progress::Problem(problem.clone(), is_unreached(problem)),
            None => Progress::Asking,
        },
        _ => Progress::Overtaken,
    }
}

/// Whether a problem is that the hub was not reached, by the words of the operator: a way that is opened later is good
/// enough, and a token that is refused stays refused.
fn is_unreached(problem: &str) -> bool {
    problem.starts_with("ask the hub to be let in") || problem.contains("did not answer")
}

async fn wait(secrets: &Api<Secret>, invitation: &Invitation, timeout: Duration) -> anyhow::Result<Waited> {
    let Invitation { cluster, join, .. } = invitation;
    let limit = Instant::now() + timeout;
    let mut until = limit;
    let mut shown = String::new();
    let mut stream = pin!(watch_object(secrets.clone(), SECRET).default_backoff());
    loop {
        let secret = match timeout_at(until, stream.next()).await {
            Ok(Some(Ok(secret))) => secret,
            // The watch is taken up again.
            Ok(Some(Err(_))) => continue,
            Ok(None) => bail!("watch secret {SECRET}: the API server ended it"),
            Err(_) if until < limit => return Ok(Waited::Refused(shown)),
            Err(_) => bail!(
                "cluster {cluster} has not joined after {} s{}; it goes on trying: see `kubectl -n {} logs \
                 deploy/weft-operator`",
                timeout.as_secs(),
                if shown.is_empty() {
                    String::new()
                } else {
                    format!(" ({shown})")
                },
                names::MEMBER_NAMESPACE
            ),
        };
        match progress(secret.as_ref(), join) {
            Progress::Joined => return Ok(Waited::Joined),
            Progress::Overtaken => {
                bail!("somebody else has changed secret {SECRET} meanwhile: see `slicectl status`")
            }
            Progress::Asking => until = limit,
            Progress::Problem(problem, passes) => {
                if problem != shown {
                    eprintln!("{problem}");
                    until = if passes {
                        limit
                    } else {
                        limit.min(Instant::now() + GRACE)
                    };
                    shown = problem;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invitation() -> Invitation {
        Invitation {
            server: "https://192.0.2.1:6443".into(),
            ca: "CA".into(),
            namespace: "weft-member-b".into(),
            cluster: "b".into(),
            join: "b-new".into(),
            token: "t".into(),
        }
    }

    fn secret(data: &[(&str, &str)], annotations: &[(&str, &str)]) -> Secret {
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Secret {
            metadata: ObjectMeta {
                annotations: Some(annotations.collect()),
                ..ObjectMeta::default()
            },
            data: Some(
                data.iter()
                    .map(|(key, value)| ((*key).to_owned(), ByteString((*value).into())))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    const MEMBER: [(&str, &str); 3] = [
        (key::SERVER, "https://192.0.2.1:6443/"),
        (key::CA, "CA\n"),
        (key::CLUSTER, "b"),
    ];

    #[track_caller]
    fn refused(there: &Secret, why: &str) {
        let error = judge(Some(there), &invitation(), false).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn a_credential_of_another_hub_or_name_stays_unless_it_is_to_go() {
        assert!(judge(None, &invitation(), false).is_ok());
        assert!(judge(Some(&secret(&MEMBER, &[])), &invitation(), false).is_ok());
        let elsewhere = secret(
            &[(key::SERVER, "https://198.51.100.1"), MEMBER[1], MEMBER[2]],
            &[],
        );
        assert!(
            judge(Some(&elsewhere), &invitation(), false).is_ok(),
            "the same authority is the same hub"
        );
        let other_hub = secret(&[(key::SERVER, "https://198.51.100.1"), MEMBER[2]], &[]);
        refused(&other_hub, "slicectl leave");
        let other_name = secret(&[MEMBER[0], MEMBER[1], (key::CLUSTER, "c")], &[]);
        refused(&other_name, "this cluster is c of hub");
        for there in [&other_hub, &other_name] {
            assert!(judge(Some(there), &invitation(), true).is_ok());
        }
    }

    #[test]
    fn a_token_that_is_in_use_or_was_used_does_not_overwrite_what_came_of_it() {
        let problem = [(annotations::JOIN_PROBLEM, "the hub did not answer within 5s")];
        let joining = secret(&[MEMBER[0], MEMBER[2], (key::JOIN, "b-new")], &problem);
        refused(&joining, "the hub did not answer");
        refused(
            &secret(&[MEMBER[0], MEMBER[2], (key::JOINED, "b-new")], &[]),
            "has joined with token b-new already",
        );
        refused(&secret(&MEMBER, &[(annotations::LEAVE, "true")]), "is leaving");
        let earlier = secret(&[MEMBER[0], MEMBER[2], (key::JOIN, "b-old")], &problem);
        assert!(judge(Some(&earlier), &invitation(), false).is_ok());
    }

    #[test]
    fn the_credential_shows_where_a_join_stands() {
        let check = |data: &[(&str, &str)], problem: Option<&str>, expected| {
            let annotations: Vec<_> = problem
                .map(|problem| (annotations::JOIN_PROBLEM, problem))
                .into_iter()
                .collect();
            assert_eq!(progress(Some(&secret(data, &annotations)), "b-new"), expected);
        };
        check(&[(key::JOIN, "b-new")], None, Progress::Asking);
        check(&[(key::JOINED, "b-new")], None, Progress::Joined);
        check(&[(key::JOIN, "b-newer")], None, Progress::Overtaken);
        check(&[(key::JOINED, "b-old")], None, Progress::Overtaken);
        assert_eq!(progress(None, "b-new"), Progress::Overtaken);
        for (problem, passes) in [
            ("the hub did not answer within 5s", true),
            ("ask the hub to be let in: client error (Connect)", true),
            ("the hub refuses: the name b is that of another cluster", false),
            (
                "the hub does not take token b-new: it was used, revoked, or has expired",
                false,
            ),
        ] {
            let expected = Progress::Problem(problem.to_owned(), passes);
            check(&[(key::JOIN, "b-new")], Some(problem), expected);
        }
    }
}
