//! The pods of one namespace, as they change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::watcher::{self, Event};

use crate::harness::Cluster;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A watch that is open before the thing is done whose effect it shall see.
pub(super) struct Watch {
    events: BoxStream<'static, watcher::Result<Event<Pod>>>,
    what: String,
}

impl Watch {
    pub(super) async fn open(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let events = watcher::watcher(cluster.pods(namespace), watcher::Config::default()).boxed();
        let mut watch = Self {
            events,
            what: format!("pods of {}/{namespace}", cluster.name),
        };
        while !matches!(watch.next().await?, Event::InitDone) {}
        Ok(watch)
    }

    /// When each of `count` pods was first seen in the wanted state, since `start`, in milliseconds.
    pub(super) async fn until(
        &mut self,
        start: Instant,
        count: usize,
        holds: impl Fn(&Pod) -> bool,
    ) -> Result<Vec<f64>> {
        let mut seen = std::collections::BTreeMap::new();
        while seen.len() < count {
            if let Event::Apply(pod) | Event::InitApply(pod) = self.next().await?
                && holds(&pod)
            {
                seen.entry(pod.name_any())
                    .or_insert_with(|| start.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(seen.into_values().collect())
    }

    /// Until `count` pods have gone.
    pub(super) async fn until_gone(&mut self, count: usize) -> Result<()> {
        let mut gone = 0;
        while gone < count {
            gone += usize::from(matches!(self.next().await?, Event::Delete(_)));
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Event<Pod>> {
        let event = tokio::time::timeout(PATIENCE, self.events.next())
            .await
            .with_context(|| format!("watch {}: nothing for {PATIENCE:?}", self.what))?;
        match event {
            Some(event) => event.with_context(|| format!("watch {}", self.what)),
            None => bail!("watch {}: it ended", self.what),
        }
    }
}
