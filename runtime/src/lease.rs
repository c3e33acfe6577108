//! Leader election by a Lease (coordination.k8s.io/v1), as client-go's leaderelection package does it.
//!
//! A holder renews every [`RENEW`]; another candidate takes over [`DURATION`] after it last saw the record change by
//! its own clock, so clocks of different machines are never compared. A holder that could not renew for
//! [`DEADLINE`] starts nothing any more. What it has started by then is over, or was aborted by its own deadline, before
//! anyone else may take over: [`WRITE`] and the TCP user timeout of [`crate::client`] fit into the difference.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

/// How long a record protects its holder.
pub const DURATION: Duration = Duration::from_secs(15);
/// How long a holder goes on without having renewed.
pub const DEADLINE: Duration = Duration::from_secs(6);
/// How often the holder renews and the others look.
pub const RENEW: Duration = Duration::from_secs(2);
/// How long one write of a holder may take.
pub const WRITE: Duration = Duration::from_secs(3);

const _: () = assert!(
    DEADLINE.as_secs() + WRITE.as_secs() + crate::client::USER_TIMEOUT.as_secs() < DURATION.as_secs()
);

/// A claim to lead, renewed in the background.
pub struct Claim {
    until: watch::Receiver<Option<Instant>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Claim {
    /// Until when this process leads, where it does. It is to be looked at before each write.
    pub fn valid_until(&self) -> Option<Instant> {
        let until = *self.until.borrow();
        until.filter(|until| *until > Instant::now())
    }

    pub fn is_valid(&self) -> bool {
        self.valid_until().is_some()
    }

    /// Completes when the claim was renewed, won or lost.
    pub async fn changed(&mut self) {
        if self.until.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Gives the Lease back, so that a planned restart hands over at once. To be called after the last write.
    pub async fn release(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// Claims the Lease in the background until [`Claim::release`].
pub fn claim(client: Client, namespace: &str, name: &str, identity: String) -> Claim {
    let (sender, until) = watch::channel(None);
    let stop = CancellationToken::new();
    let candidate = Candidate {
        api: Api::namespaced(client, namespace),
        name: name.to_owned(),
        identity,
        seen: None,
    };
    let task = tokio::spawn(candidate.run(sender, stop.clone()));
    Claim { until, stop, task }
}

struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The record's resource version and when it was first seen here.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    async fn run(mut self, sender: watch::Sender<Option<Instant>>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(RENEW);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            let before = *sender.borrow();
            let until = match tokio::time::timeout(WRITE, self.turn()).await {
                Ok(Ok(renewed)) => renewed.map(|at| at + DEADLINE),
                Ok(Err(error)) => {
                    tracing::warn!(
                        lease = self.name,
                        error = format!("{error:#}"),
                        "lease not renewed"
                    );
                    before
                }
                Err(_) => {
                    tracing::warn!(
                        lease = self.name,
                        "lease not renewed: the API server does not answer"
                    );
                    before
                }
            };
            let until = until.filter(|until| *until > Instant::now());
            sender.send_replace(until);
            if until.is_some() != before.is_some() {
                tracing::info!(
                    lease = self.name,
                    identity = self.identity,
                    leads = until.is_some(),
                    "leadership changed"
                );
            }
        }
        if sender.borrow().is_some() {
            sender.send_replace(None);
            let released = tokio::time::timeout(WRITE, self.release()).await;
            match released {
                Ok(Ok(())) => tracing::info!(lease = self.name, "lease released"),
                Ok(Err(error)) => tracing::warn!(
                    lease = self.name,
                    error = format!("{error:#}"),
                    "lease not released"
                ),
                Err(_) => tracing::warn!(
                    lease = self.name,
                    "lease not released: the API server does not answer"
                ),
            }
        }
    }

    /// One look at the record, and a write where this process holds it or may take it; when it was begun, where it did.
    async fn turn(&mut self) -> anyhow::Result<Option<Instant>> {
        let started = Instant::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await.context("read the lease")? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.record(0)),
            };
            return self.written(self.api.create(&PostParams::default(), &lease).await, started);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, started));
        }
        let spec = lease.spec.take().unwrap_or_default();
        let mine = spec.holder_identity.as_deref() == Some(self.identity.as_str());
        let free = spec.holder_identity.as_deref().is_none_or(str::is_empty);
        let expired = self.seen.as_ref().is_some_and(|(_, at)| at.elapsed() >= DURATION);
        if !(mine || free || expired) {
            return Ok(None);
        }
        let mut record = self.record(spec.lease_transitions.unwrap_or_default() + i32::from(!mine));
        if mine {
            record.acquire_time = spec.acquire_time;
        }
        lease.spec = Some(record);
        self.written(
            self.api.replace(&self.name, &PostParams::default(), &lease).await,
            started,
        )
    }

    fn written(&mut self, answer: kube::Result<Lease>, started: Instant) -> anyhow::Result<Option<Instant>> {
        match answer {
            Ok(lease) => {
                self.seen = Some((lease.metadata.resource_version.unwrap_or_default(), started));
                Ok(Some(started))
            }
            // Somebody else wrote it between our look and our write: they have it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error).context("write the lease"),
        }
    }

    async fn release(&self) -> anyhow::Result<()> {
        let mut lease = self.api.get(&self.name).await.context("read the lease")?;
        if let Some(spec) = lease
            .spec
            .as_mut()
            .filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
        {
            spec.holder_identity = None;
            self.api
                .replace(&self.name, &PostParams::default(), &lease)
                .await
                .context("write the lease")?;
        }
        Ok(())
    }

    fn record(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).expect("seconds")),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}
