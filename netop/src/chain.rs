//! Keeps the plugin in the node's CNI chain, and takes it out again.
//!
//! Other network plugins rewrite their configuration list when they start; inotify tells, and it is put right.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Chain,
    cni::install::{Installed, Installer},
    pods::{self, Sandbox},
    world::World,
};

/// How often things are looked at that should have told of their change.
const INTERVAL: Duration = Duration::from_secs(5);
/// Changes come in runs: the last one counts.
const QUIET: Duration = Duration::from_millis(20);

/// Installs, repairs and removes until `stop`, as the newest world asks.
pub async fn keep(
    installer: Installer,
    mut world: watch::Receiver<Option<Arc<World>>>,
    state: watch::Sender<Chain>,
    stop: CancellationToken,
) {
    let mut changes = changes(
        vec![installer.conf_dir.clone(), installer.bin_dir.clone()],
        stop.clone(),
    );
    loop {
        let teardown = world.borrow_and_update().as_ref().map(|world| world.teardown());
        let installer = installer.clone();
        let after = match teardown {
            // Whether Weft is being removed is not known yet.
            None => None,
            Some(teardown) => {
                let work = move || {
                    if teardown {
                        remove(&installer)
                    } else {
                        install(&installer)
                    }
                };
                tokio::task::spawn_blocking(work).await.ok()
            }
        };
        if let Some(after) = after {
            state.send_if_modified(|before| {
                let changed = *before != after;
                if let (true, Chain::Broken(error)) = (changed, &after) {
                    tracing::warn!(error, "new pods are attached only after they have started");
                }
                *before = after;
                changed
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = changes.recv() => {}
            changed = world.changed() => if changed.is_err() { return },
        }
    }
}

fn install(installer: &Installer) -> Chain {
    match installer.ensure() {
        Ok(Installed::AsItWas) => Chain::Installed,
        Ok(Installed::Changed(path)) => {
            tracing::info!(path = %path.display(), "CNI plugin installed");
            Chain::Installed
        }
        Err(error) => Chain::Broken(format!("{error:#}")),
    }
}

fn remove(installer: &Installer) -> Chain {
    match installer.remove() {
        Ok(()) => Chain::Removed,
        Err(error) => Chain::Broken(format!("{error:#}")),
    }
}

/// Reads libcni's cache whenever it changes, until `stop`.
pub fn sandboxes(directory: PathBuf, stop: CancellationToken) -> mpsc::Receiver<Vec<Sandbox>> {
    let (sender, receiver) = mpsc::channel(1);
    let mut changes = changes(vec![directory.clone()], stop);
    tokio::spawn(async move {
        let mut last = None;
        loop {
            let path = directory.clone();
            match tokio::task::spawn_blocking(move || pods::scan(&path)).await {
                Ok(Ok(mut found)) => {
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

/// Tells of changes in directories, and every [`INTERVAL`] besides: one that is not there yet cannot be watched.
fn changes(directories: Vec<PathBuf>, stop: CancellationToken) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            let mask = WatchMask::CREATE
                | WatchMask::MOVED_TO
                | WatchMask::MOVED_FROM
                | WatchMask::CLOSE_WRITE
                | WatchMask::DELETE
                | WatchMask::ONLYDIR;
            let stream = Inotify::init().and_then(|inotify| {
                for directory in &directories {
                    // One that is not there is looked for again below.
                    let _ = inotify.watches().add(directory, mask);
                }
                inotify.into_event_stream(vec![0; 4096])
            });
            // Watched anew now and then, lest a directory that was replaced goes unwatched.
            let until = Instant::now() + INTERVAL;
            match stream {
                Ok(mut stream) => {
                    while let Ok(Some(event)) = tokio::time::timeout_at(until, stream.next()).await {
                        if event.is_err() {
                            break;
                        }
                        tokio::time::sleep(QUIET).await;
                        while let Ok(Some(_)) = tokio::time::timeout(Duration::ZERO, stream.next()).await {}
                        if matches!(sender.try_send(()), Err(mpsc::error::TrySendError::Closed(()))) {
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error, "directories cannot be watched, looking at them instead");
                    tokio::time::sleep_until(until).await;
                }
            }
            if matches!(sender.try_send(()), Err(mpsc::error::TrySendError::Closed(()))) {
                return;
            }
        }
    }));
    receiver
}
