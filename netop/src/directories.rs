//! Tells of changes in directories: by inotify, and by looking at them now and then.

use std::{collections::BTreeSet, os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

/// How often things are looked at that should have told of their change.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Changes come in runs: the last one counts.
pub const QUIET: Duration = Duration::from_millis(20);

/// Tells of changes in directories, and every [`INTERVAL`] besides: one that is not there yet cannot be watched. Which these
/// are may itself change with them. Where the last word was not taken yet, further changes cost nothing: the kernel joins
/// those that are alike and bounds the rest.
pub fn changes(
    directories: impl Fn() -> BTreeSet<PathBuf> + Send + 'static,
    stop: CancellationToken,
) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            let mask = WatchMask::CREATE
                | WatchMask::MOVED_TO
                | WatchMask::MOVED_FROM
                | WatchMask::CLOSE_WRITE
                | WatchMask::DELETE
                | WatchMask::DELETE_SELF
                | WatchMask::MOVE_SELF
                | WatchMask::ONLYDIR;
            let watched = identified(directories());
            let stream = Inotify::init().and_then(|inotify| {
                for (directory, _) in &watched {
                    // One that is not there is looked for again below.
                    let _ = inotify.watches().add(directory, mask);
                }
                inotify.into_event_stream(vec![0; 4096])
            });
            // Watched anew now and then, lest something about that goes wrong unseen.
            let until = Instant::now() + INTERVAL;
            let Ok(place) = sender.reserve().await else { return };
            // What happened before anybody watched.
            place.send(());
            let mut stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(error = %error, "directories cannot be watched, looking at them instead");
                    tokio::time::sleep_until(until).await;
                    continue;
                }
            };
            while let Ok(Some(Ok(_))) = tokio::time::timeout_at(until, stream.next()).await {
                tokio::time::sleep(QUIET).await;
                while let Ok(Some(_)) = tokio::time::timeout(Duration::ZERO, stream.next()).await {}
                if identified(directories()) != watched {
                    break;
                }
                let Ok(place) = sender.reserve().await else { return };
                place.send(());
            }
        }
    }));
    receiver
}

/// Directories with their inodes: one that was replaced is another.
fn identified(directories: BTreeSet<PathBuf>) -> Vec<(PathBuf, Option<(u64, u64)>)> {
    let directories = directories.into_iter().map(|directory| {
        let metadata = directory.metadata().ok();
        (
            directory,
            metadata.map(|metadata| (metadata.dev(), metadata.ino())),
        )
    });
    directories.collect()
}
