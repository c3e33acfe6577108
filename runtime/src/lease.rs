//! Leader election by a Lease (coordination.k8s.io/v1), as client-go's leaderelection package does it.
//!
//! A holder renews every [`RENEW`]; another candidate takes over [`DURATION`] after it last saw the record change by
//! its own clock, so clocks of different machines are never compared. A holder that could not renew for
//! [`DEADLINE`] gives up before anyone else may take over.

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
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// How long a record protects its holder.
pub const DURATION: Duration = Duration::from_secs(6);
/// How long a holder goes on without having renewed.
pub const DEADLINE: Duration = Duration::from_secs(4);
/// How often the holder renews and the others look.
pub const RENEW: Duration = Duration::from_secs(1);

/// Claims the Lease in the background; the receiver tells whether this process holds it.
///
/// The task ends when `stop` is cancelled and gives the Lease back then, so that a planned restart of one replica
/// hands over at once.
pub fn claim(
    client: Client,
    namespace: &str,
    name: &str,
    identity: String,
    stop: CancellationToken,
) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    let api = Api::namespaced(client, namespace);
    let name = name.to_owned();
    tokio::spawn(async move {
        let mut candidate = Candidate {
            api,
            name,
            identity,
            seen: None,
            renewed: None,
        };
        let mut tick = tokio::time::interval(RENEW);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            let held = *sender.borrow();
            let holds = match tokio::time::timeout(RENEW * 2, candidate.turn()).await {
                Ok(Ok(holds)) => holds,
                Ok(Err(error)) => {
                    tracing::warn!(
                        lease = candidate.name,
                        error = format!("{error:#}"),
                        "lease not renewed"
                    );
                    held && candidate.renewed.is_some_and(|at| at.elapsed() < DEADLINE)
                }
                Err(_) => held && candidate.renewed.is_some_and(|at| at.elapsed() < DEADLINE),
            };
            sender.send_if_modified(|now| std::mem::replace(now, holds) != holds);
            if holds != held {
                tracing::info!(
                    lease = candidate.name,
                    identity = candidate.identity,
                    holds,
                    "leadership changed"
                );
            }
        }
        if *sender.borrow() {
            sender.send_replace(false);
            if let Err(error) = candidate.release().await {
                tracing::warn!(
                    lease = candidate.name,
                    error = format!("{error:#}"),
                    "lease not given back"
                );
            }
        }
    });
    receiver
}

struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The record's resource version and when it was first seen here.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
}

impl Candidate {
    /// One look at the record, and a write where this process holds it or may take it.
    async fn turn(&mut self) -> anyhow::Result<bool> {
        let started = Instant::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await.context("read the lease")? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.record(0)),
            };
            return self.write(self.api.create(&PostParams::default(), &lease).await, started);
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
            return Ok(false);
        }
        let mut record = self.record(spec.lease_transitions.unwrap_or_default() + i32::from(!mine));
        if mine {
            record.acquire_time = spec.acquire_time;
        }
        lease.spec = Some(record);
        self.write(
            self.api.replace(&self.name, &PostParams::default(), &lease).await,
            started,
        )
    }

    fn write(&mut self, answer: kube::Result<Lease>, started: Instant) -> anyhow::Result<bool> {
        match answer {
            Ok(lease) => {
                self.seen = Some((lease.metadata.resource_version.unwrap_or_default(), started));
                self.renewed = Some(started);
                Ok(true)
            }
            // Somebody else wrote it between our look and our write: they have it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
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
