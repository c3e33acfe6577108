//! Follows what libcni keeps of the node's pods, and finds those whose network namespace it does not say.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    directories::changes,
    kernel::far_ends,
    pods::{self, Kept, Sandbox},
};

/// Reads libcni's cache whenever it changes, until `stop`. Where a sandbox's namespace is not said there, the node's end of its
/// interface leads to it, if it is one of those in `named` (`/run/netns` as this process reaches it).
pub fn follow(
    directory: PathBuf,
    named: PathBuf,
    space: Option<PathBuf>,
    stop: CancellationToken,
) -> mpsc::Receiver<Vec<Sandbox>> {
    let (sender, receiver) = mpsc::channel(1);
    let watched = directory.clone();
    let mut changes = changes(move || [watched.clone()].into(), stop);
    tokio::spawn(async move {
        let mut last = None;
        let mut led = Led::default();
        loop {
            let path = directory.clone();
            match tokio::task::spawn_blocking(move || pods::scan(&path)).await {
                Ok(Ok(kept)) => {
                    let (mut found, unplaced) = pods::placed(kept);
                    if let Err(error) = led.look(&unplaced, space.as_deref(), &named).await {
                        let error = format!("{error:#}");
                        tracing::warn!(error, "namespaces of pods not found by their interfaces");
                    }
                    found.extend(led.place(unplaced));
                    found.sort();
                    if last.as_ref() != Some(&found) {
                        last = Some(found.clone());
                        if sender.send(found).await.is_err() {
                            return;
                        }
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(directory = %directory.display(), error = %error, "libcni's cache not read");
                }
                Err(error) => tracing::warn!(error = %error, "libcni's cache not read"),
            }
            if changes.recv().await.is_none() {
                return;
            }
        }
    });
    receiver
}

/// Where sandboxes are to which the node's end of an interface led, by container: looked for once.
#[derive(Default)]
struct Led(BTreeMap<String, PathBuf>);

impl Led {
    /// Looks for those that are new, and forgets those that are gone.
    async fn look(&mut self, unplaced: &[Kept], space: Option<&Path>, named: &Path) -> anyhow::Result<()> {
        let containers: BTreeSet<&str> = unplaced
            .iter()
            .map(|kept| kept.sandbox.container.as_str())
            .collect();
        self.0
            .retain(|container, _| containers.contains(container.as_str()));
        let new: Vec<&Kept> = unplaced
            .iter()
            .filter(|kept| !self.0.contains_key(&kept.sandbox.container))
            .collect();
        let ends: BTreeSet<String> = new.iter().flat_map(|kept| kept.node_ends.clone()).collect();
        if ends.is_empty() {
            return Ok(());
        }
        let found = far_ends(space, &ends, named).await?;
        for kept in new {
            let names: BTreeSet<_> = kept.node_ends.iter().filter_map(|end| found.get(end)).collect();
            // Ends that contradict each other lead nowhere.
            if names.len() == 1
                && let Some(name) = names.first()
            {
                let path = Path::new("/run/netns").join(name);
                self.0.insert(kept.sandbox.container.clone(), path);
            }
        }
        Ok(())
    }

    fn place(&self, unplaced: Vec<Kept>) -> Vec<Sandbox> {
        let placed = unplaced.into_iter().filter_map(|kept| {
            let netns = self.0.get(&kept.sandbox.container)?.clone();
            Some(Sandbox {
                netns,
                ..kept.sandbox
            })
        });
        placed.collect()
    }
}
