//! The member's link to the hub: joining, the heartbeat, renewal of the credential, and an address that moves.
//!
//! It runs beside the member's loop and tells it what changes. Only the replica that leads asks and writes anything.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{ConfigMap, Namespace, Secret, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Error, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use slice_crds::{
    annotations::{JOIN_PROBLEM, credential as key},
    conditions, names,
    wire::{MemberHub, MemberHubSpec, MemberJoin, MemberJoinSpec},
};
use slice_runtime::{store::back_off, version};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::credential::{Credential, LIFETIME, bytes};
use crate::member::{Facts, Link};

/// How often the member tells the hub that it lives.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// How long one request to the hub may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often the hub's address, its certificate authorities and the credential's age are looked at.
const UPKEEP: Duration = Duration::from_secs(30);
/// How often a cluster that may not join yet asks again.
const AGAIN: Duration = Duration::from_secs(1);

/// What the member's loop is notified of.
pub(super) enum News {
    /// A credential that works as far as is known, and a client of it.
    Up {
        client: Client,
        link: Link,
    },
    Down(String),
    Heartbeat(Result<(), String>),
}

/// What the link needs to know of the loop.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) leading: bool,
    /// What the hub wants to be reached at.
    pub(super) hub: Option<Arc<MemberHubSpec>>,
    pub(super) facts: Facts,
}

/// One replica's link.
pub(super) struct Keeper {
    pub(super) local: Client,
    pub(super) namespace: String,
    pub(super) secret: String,
    pub(super) state: watch::Receiver<State>,
    pub(super) news: mpsc::Sender<News>,
    pub(super) stop: CancellationToken,
}

impl Keeper {
    /// Follows the Secret until the end.
    pub(super) async fn run(self) {
        let secrets: Api<Secret> = Api::namespaced(self.local.clone(), &self.namespace);
        let field = format!("metadata.name={}", self.secret);
        let stop = self.stop.clone();
        let stream = watcher(secrets, watcher::Config::default().fields(&field)).backoff(back_off());
        let mut stream = std::pin::pin!(stream.take_until(stop.cancelled_owned()));
        let mut current: Option<Credential> = None;
        let mut seen = None;
        let mut upkeep = interval(AGAIN);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut link: Option<Client> = None;
        let (mut beat, mut look) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                event = stream.next() => match event {
                    None => return,
                    Some(Ok(watcher::Event::Init)) => seen = None,
                    Some(Ok(watcher::Event::InitApply(secret) | watcher::Event::Apply(secret))) => {
                        seen = Some(());
                        match Credential::from_secret(&secret) {
                            Ok(credential) if current.as_ref() == Some(&credential) => {}
                            Ok(credential) => {
                                link = self.take(&credential).await;
                                current = Some(credential);
                                (beat, look) = (Instant::now(), Instant::now());
                            }
                            Err(error) => self.down(format!("{error:#}")).await,
                        }
                    }
                    Some(Ok(watcher::Event::InitDone)) if seen.is_none() => {
                        (current, link) = (None, None);
                        self.down(format!("secret {} is not there: run `slicectl join`", self.secret)).await;
                    }
                    Some(Ok(watcher::Event::Delete(_))) => {
                        (current, link) = (None, None);
                        self.down(format!("secret {} is not there: run `slicectl join`", self.secret)).await;
                    }
                    Some(Ok(watcher::Event::InitDone) | Err(_)) => {}
                },
                _ = upkeep.tick() => {
                    let Some(credential) = &current else { continue };
                    if !self.state.borrow().leading {
                        continue;
                    }
                    if credential.join.is_some() && credential.leaving {
                        self.give_up().await;
                        continue;
                    }
                    if credential.join.is_some() {
                        if Instant::now() >= look {
                            look = Instant::now() + AGAIN * 2;
                            self.join(credential).await;
                        }
                        continue;
                    }
                    let Some(client) = &link else { continue };
                    if Instant::now() >= beat {
                        beat = Instant::now() + HEARTBEAT;
                        let result = heartbeat(client, credential).await;
                        if result.is_err() {
                            // A hub that is back is to know soon.
                            beat = Instant::now() + HEARTBEAT / 4;
                        }
                        let _ = self.news.send(News::Heartbeat(result)).await;
                    }
                    if Instant::now() >= look {
                        look = Instant::now() + UPKEEP;
                        if let Err(error) = self.keep_up(credential, client).await {
                            tracing::warn!(error = format!("{error:#}"), "the hub credential could not be brought up to date");
                        }
                    }
                }
            }
        }
    }

    async fn down(&self, why: String) {
        tracing::warn!(why, "no hub");
        let _ = self.news.send(News::Down(why)).await;
    }

    /// Takes a credential up; a client where it is a member's own.
    async fn take(&self, credential: &Credential) -> Option<Client> {
        if credential.join.is_some() {
            self.down(format!(
                "the cluster has not joined hub {} yet",
                credential.server
            ))
            .await;
            return None;
        }
        let client = match credential.client() {
            Ok(client) => client,
            Err(error) => {
                self.down(format!("{error:#}")).await;
                return None;
            }
        };
        tracing::info!(
            hub = credential.server,
            cluster = credential.cluster,
            "hub credential taken up"
        );
        let link = Link {
            namespace: credential.namespace.clone(),
            cluster: credential.cluster.clone(),
            join: credential.joined.clone(),
            leaving: credential.leaving,
        };
        let up = News::Up {
            client: client.clone(),
            link,
        };
        let _ = self.news.send(up).await;
        Some(client)
    }

    /// Throws a join token away that a person does not want to be used any more.
    async fn give_up(&self) {
        let secrets: Api<Secret> = Api::namespaced(self.local.clone(), &self.namespace);
        if let Err(error) = slice_runtime::apply::delete(&secrets, &self.secret).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the join token could not be thrown away"
            );
        }
    }

    /// Asks the hub to be let in, and fetches the member's own credential when it is.
    async fn join(&self, credential: &Credential) {
        let problem = match self.try_join(credential).await {
            Ok(true) => return,
            Ok(false) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        let secrets: Api<Secret> = Api::namespaced(self.local.clone(), &self.namespace);
        let known = secrets.get_opt(&self.secret).await.ok().flatten();
        let known = known
            .and_then(|secret| secret.annotations().get(JOIN_PROBLEM).cloned())
            .unwrap_or_default();
        if known != problem {
            if !problem.is_empty() {
                tracing::warn!(problem, "the cluster cannot join");
            }
            let value = (!problem.is_empty()).then_some(problem);
            let patch = Patch::Merge(json!({"metadata": {"annotations": {JOIN_PROBLEM: value}}}));
            if let Err(error) = secrets.patch(&self.secret, &PatchParams::default(), &patch).await {
                tracing::warn!(error = error.to_string(), "the secret could not be annotated");
            }
        }
    }

    /// Whether the cluster has joined.
    async fn try_join(&self, credential: &Credential) -> anyhow::Result<bool> {
        let Some(token) = &credential.join else {
            return Ok(true);
        };
        let spaces: Api<Namespace> = Api::all(self.local.clone());
        let space = spaces
            .get("kube-system")
            .await
            .context("read namespace kube-system")?;
        let uid = space.uid().context("namespace kube-system without a UID")?;
        let client = credential.client()?;
        let joins: Api<MemberJoin> = Api::namespaced(client.clone(), &credential.namespace);
        let wanted = MemberJoin::new(
            token,
            MemberJoinSpec {
                cluster_uid: uid.clone(),
                weft_version: version::VERSION.to_owned(),
            },
        );
        let there = match in_time(joins.create(&PostParams::default(), &wanted)).await? {
            Ok(join) => join,
            Err(Error::Api(status)) if status.code == 409 => in_time(joins.get(token))
                .await?
                .context("read the request to join")?,
            Err(Error::Api(status)) if matches!(status.code, 401 | 403) => bail!(
                "the hub does not take token {token}: it was used, revoked, or has expired; issue another with `slicectl \
                 token issue {}`",
                credential.cluster
            ),
            Err(error) => return Err(error).context("ask the hub to be let in"),
        };
        if there.spec.cluster_uid != uid {
            bail!(
                "token {token} was used by cluster {} already, and this one is {uid}: a token is good once; issue another \
                 with `slicectl token issue {}`",
                there.spec.cluster_uid,
                credential.cluster
            );
        }
        let Some(accepted) = conditions::find(conditions::of(&there), conditions::ACCEPTED) else {
            return Ok(false);
        };
        if accepted.status != "True" {
            bail!("the hub refuses: {}", accepted.message);
        }
        let fresh = match in_time(request_token(&client, &credential.namespace)).await? {
            Ok(token) => token,
            // The permission comes a moment after the condition.
            Err(Error::Api(status)) if status.code == 403 => return Ok(false),
            Err(error) => return Err(error).context("fetch the member's credential"),
        };
        let secrets: Api<Secret> = Api::namespaced(self.local.clone(), &self.namespace);
        let patch = json!({
            "metadata": {"annotations": {JOIN_PROBLEM: null}},
            "data": {key::TOKEN: bytes(&fresh), key::JOINED: bytes(token), key::JOIN: null},
        });
        secrets
            .patch(&self.secret, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("write the member's credential into secret {}", self.secret))?;
        tracing::info!(cluster = credential.cluster, hub = credential.server, "joined");
        Ok(true)
    }

    /// Renews what is old, and follows the hub where it moves.
    async fn keep_up(&self, credential: &Credential, client: &Client) -> anyhow::Result<()> {
        if Timestamp::now() >= credential.renew_at()? {
            let fresh = in_time(request_token(client, &credential.namespace)).await?;
            let fresh = fresh.context("ask the hub for a fresh token")?;
            self.write(json!({key::TOKEN: bytes(&fresh)})).await?;
            tracing::info!("hub credential renewed");
            return Ok(());
        }
        let hub = self.state.borrow().hub.clone();
        if let Some(hub) = hub {
            let server = if hub.server.is_empty() {
                &credential.server
            } else {
                &hub.server
            };
            let ca = if hub.ca.is_empty() {
                &credential.ca
            } else {
                &hub.ca
            };
            if (server, ca) != (&credential.server, &credential.ca) {
                return self.move_to(&credential.at(server, ca), &hub.identity).await;
            }
            // The authorities of its own certificate, which a rotation changes; both the old and the new for a while.
            if hub.ca.is_empty() && !credential.ca.is_empty() {
                let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &credential.namespace);
                let root = in_time(maps.get_opt("kube-root-ca.crt")).await?.ok().flatten();
                let root = root.and_then(|map| map.data?.remove("ca.crt"));
                if let Some(root) = root.filter(|root| root.trim() != credential.ca.trim()) {
                    return self.move_to(&credential.at(server, &root), &hub.identity).await;
                }
            }
        }
        Ok(())
    }

    /// Takes another address up where the same hub answers there.
    async fn move_to(&self, there: &Credential, identity: &str) -> anyhow::Result<()> {
        let client = there.client()?;
        let hubs: Api<MemberHub> = Api::namespaced(client, &there.namespace);
        let hub = match in_time(hubs.get(names::MEMBER_HUB)).await {
            Ok(Ok(hub)) => hub,
            // Another front with another certificate: what there is goes on.
            Ok(Err(error)) => {
                tracing::debug!(
                    server = there.server,
                    error = error.to_string(),
                    "another address does not answer"
                );
                return Ok(());
            }
            Err(error) => {
                tracing::debug!(
                    server = there.server,
                    error = format!("{error:#}"),
                    "another address does not answer"
                );
                return Ok(());
            }
        };
        if hub.spec.identity != identity {
            bail!(
                "another hub answers at {}: it is not followed there",
                there.server
            );
        }
        self.write(json!({key::SERVER: bytes(&there.server), key::CA: bytes(&there.ca)}))
            .await?;
        tracing::info!(
            server = there.server,
            "the hub is reached at another address or by other authorities"
        );
        Ok(())
    }

    async fn write(&self, data: serde_json::Value) -> anyhow::Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.local.clone(), &self.namespace);
        let patch = Patch::Merge(json!({ "data": data }));
        secrets
            .patch(&self.secret, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("write into secret {}", self.secret))?;
        Ok(())
    }
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> anyhow::Result<kube::Result<T>> {
    tokio::time::timeout(DEADLINE, request)
        .await
        .with_context(|| format!("the hub did not answer within {DEADLINE:?}"))
}

async fn request_token(client: &Client, namespace: &str) -> kube::Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(LIFETIME.as_secs()),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(names::MEMBER_ACCOUNT, &PostParams::default(), &request)
        .await?;
    Ok(answer.status.map(|status| status.token).unwrap_or_default())
}

/// Renews the member's Lease on the hub.
async fn heartbeat(client: &Client, credential: &Credential) -> Result<(), String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), &credential.namespace);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(names::MEMBER_LEASE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(credential.cluster.clone()),
            lease_duration_seconds: Some(75),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    let apply = PatchParams::apply(crate::member::MANAGER).force();
    match in_time(leases.patch(names::MEMBER_LEASE, &apply, &Patch::Apply(&lease))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(Error::Api(status))) if status.code == 401 => Err(format!(
            "the hub does not take this cluster's credential: it was revoked or has expired; `slicectl token issue {}` on \
             the hub and `slicectl join` here",
            credential.cluster
        )),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(format!("{error:#}")),
    }
}
