//! Watches as stores: a kind's objects, kept in memory, and one bell that rings whenever any of them changed.

use std::{fmt::Debug, hash::Hash, sync::Arc, time::Duration};

use backon::ExponentialBuilder;
use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt, reflector,
        reflector::{Store, store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Before a broken watch is first taken up again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest back-off of a broken watch, without its jitter, which is as much again at most.
///
/// client-go's reflector waits up to 30 s, and again as long when the API server, back at last, answers that the
/// resource version has expired. Keys of gateways come by these watches: a gateway that restarted just after an API
/// server would stay alone for that time. A refused connection costs an API server nothing, and a watch that goes on
/// is served from its cache.
const LAST_RETRY: Duration = Duration::from_millis(2500);

/// Starts watches that share one bell and one end.
#[derive(Clone)]
pub struct Watches {
    bell: Arc<Notify>,
    stop: CancellationToken,
}

impl Watches {
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            bell: Arc::default(),
            stop,
        }
    }

    /// Completes when something changed since it last completed.
    pub async fn changed(&self) {
        self.bell.notified().await;
    }

    /// Rings the bell.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    /// Ends with its own token instead of the one it was made with.
    #[must_use]
    pub fn until(&self, stop: CancellationToken) -> Self {
        Self {
            bell: Arc::clone(&self.bell),
            stop,
        }
    }

    /// Watches one kind into a store. A watch that breaks is taken up again with back-off; the store keeps what it
    /// has meanwhile.
    pub fn watch<K>(&self, api: Api<K>, config: watcher::Config) -> Store<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync + Unpin,
    {
        let (reader, writer) = store();
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        let (bell, stop) = (Arc::clone(&self.bell), self.stop.clone());
        tokio::spawn(async move {
            let stream = reflector(writer, watcher(api, config).backoff(back_off()));
            let mut stream = std::pin::pin!(stream.take_until(stop.cancelled_owned()));
            let mut failing = false;
            while let Some(event) = stream.next().await {
                match event {
                    // One object of many during a list: the store changes when the list is whole.
                    Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                    Ok(watcher::Event::InitDone | watcher::Event::Apply(_) | watcher::Event::Delete(_)) => {
                        if std::mem::take(&mut failing) {
                            tracing::info!(kind, "watch works again");
                        }
                        bell.notify_one();
                    }
                    Err(error) if !failing => {
                        failing = true;
                        tracing::warn!(kind, error = error.to_string(), "watch broken, trying again");
                    }
                    Err(error) => tracing::debug!(kind, error = error.to_string(), "watch still broken"),
                }
            }
        });
        reader
    }
}

fn back_off() -> watcher::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_RETRY)
        .with_max_delay(LAST_RETRY)
        .with_jitter()
        .without_max_times()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_watch_is_tried_again_for_ever_and_soon() {
        let delays: Vec<Duration> = back_off().take(1000).collect();
        assert_eq!(delays.len(), 1000);
        assert!(
            delays[0] >= FIRST_RETRY && delays[0] <= 2 * FIRST_RETRY,
            "{:?}",
            delays[0]
        );
        assert!(delays.iter().all(|delay| *delay <= 2 * LAST_RETRY));
    }
}
