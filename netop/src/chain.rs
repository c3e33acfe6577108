//! Keeps the plugin in the node's CNI chain, and takes it out again.
//!
//! Other network plugins rewrite their configuration list when they start; inotify tells, and it is put right.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use prometheus::IntCounter;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Chain,
    cni::{
        contest::Contest,
        install::{self, Checked, Installed, Installer},
    },
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
    undone: IntCounter,
    stop: CancellationToken,
) {
    let directories = vec![installer.conf_dir.clone(), installer.bin_dir.clone()];
    let mut changes = changes(directories, stop.clone());
    let mut keeper = Keeper {
        installer,
        checked: Checked::default(),
        contest: Contest::default(),
        undone,
    };
    loop {
        let teardown = teardown(&mut world);
        if let Some(teardown) = teardown {
            let work = tokio::task::spawn_blocking(move || {
                let after = match teardown {
                    true => keeper.remove(),
                    false => keeper.install(),
                };
                (keeper, after)
            });
            // Without its thread nothing is kept: the task ends, and the agent with it.
            let Ok((worked, after)) = work.await else { return };
            keeper = worked;
            state.send_if_modified(|before| {
                let changed = *before != after;
                if let (true, Chain::Broken(error)) = (changed, &after) {
                    tracing::warn!(error, "new pods are attached only after they have started");
                }
                *before = after;
                changed
            });
        }
        // While somebody undoes what is written, changes wait: nothing is even looked at.
        let held = keeper
            .contest
            .until(Instant::now().into_std())
            .map(Instant::from_std);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.recv(), if held.is_none() => if changed.is_none() { return },
            () = sleep_until(held) => {}
            Err(_) = other_teardown(&mut world, teardown) => return,
        }
    }
}

/// Whether Weft is being removed; `None` where that is not known yet.
fn teardown(world: &mut watch::Receiver<Option<Arc<World>>>) -> Option<bool> {
    world.borrow_and_update().as_ref().map(|world| world.teardown())
}

/// Waits until that is another. Worlds come with every pod, and mean nothing here.
async fn other_teardown(
    world: &mut watch::Receiver<Option<Arc<World>>>,
    last: Option<bool>,
) -> Result<(), watch::error::RecvError> {
    loop {
        world.changed().await?;
        if teardown(world) != last {
            return Ok(());
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What keeps the plugin in its place.
struct Keeper {
    installer: Installer,
    checked: Checked,
    contest: Contest,
    undone: IntCounter,
}

impl Keeper {
    fn install(&mut self) -> Chain {
        let now = Instant::now().into_std();
        let may_write = self.contest.until(now).is_none();
        match self.installer.ensure(&mut self.checked, may_write) {
            Ok(Installed::AsItWas) => self.contest.stands(now),
            Ok(Installed::Changed(list)) => {
                if self.contest.wrote(&list, now) {
                    self.undone.inc();
                }
                if self.contest.contested().is_none() {
                    tracing::info!(path = %list.display(), "CNI plugin chained");
                }
            }
            Ok(Installed::Held(_)) => {}
            Err(error) => return Chain::Broken(format!("{error:#}")),
        }
        match self.contest.contested() {
            Some(list) => Chain::Broken(install::contested(list)),
            None => Chain::Installed,
        }
    }

    fn remove(&mut self) -> Chain {
        self.contest.forget();
        match self.installer.remove() {
            Ok(()) => Chain::Removed,
            Err(error) => Chain::Broken(format!("{error:#}")),
        }
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

/// Tells of changes in directories, and every [`INTERVAL`] besides: one that is not there yet cannot be watched. Where the
/// last word was not taken yet, further changes cost nothing: the kernel joins those that are alike and bounds the rest.
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
                        let Ok(place) = sender.reserve().await else { return };
                        place.send(());
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error, "directories cannot be watched, looking at them instead");
                    tokio::time::sleep_until(until).await;
                }
            }
            let Ok(place) = sender.reserve().await else { return };
            place.send(());
        }
    }));
    receiver
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
    };

    use slice_crds::v1alpha1::{SliceNode, SliceNodeSpec};

    use super::*;
    use crate::cni::contest;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"cilium-cni"}]}"#;

    /// A program that puts its own list back every 20 ms, and counts how often it found another.
    fn restoring(list: &Path, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<usize> {
        let (list, stop) = (list.to_owned(), Arc::clone(stop));
        std::thread::spawn(move || {
            let mut found = 0;
            while !stop.load(SeqCst) {
                if fs::read_to_string(&list).unwrap() != LIST {
                    found += 1;
                    crate::files::write(&list, LIST.as_bytes()).unwrap();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            found
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_program_that_restores_its_own_list_is_backed_off_from_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let installer = Installer {
            conf_dir: folder.path().join("net.d"),
            bin_dir: folder.path().join("bin"),
            binary: folder.path().join("plugin"),
            socket: "/run/weft/cni.sock".into(),
            members: "/var/lib/weft/members.json".into(),
        };
        fs::create_dir_all(&installer.conf_dir).unwrap();
        fs::create_dir_all(&installer.bin_dir).unwrap();
        fs::write(&installer.binary, "#!plugin").unwrap();
        let list = installer.conf_dir.join("05-cilium.conflist");
        fs::write(&list, LIST).unwrap();
        let (_world, world) = watch::channel(Some(Arc::new(World {
            node: Some(Arc::new(SliceNode::new("n1", SliceNodeSpec::default()))),
            ..World::default()
        })));
        let (state, mut seen) = watch::channel(Chain::default());
        let over = Arc::new(AtomicBool::new(false));
        let other = restoring(&list, &over);
        let stop = CancellationToken::new();
        let undone = IntCounter::new("undone", "test").unwrap();
        let keeping = tokio::spawn(keep(installer, world, state, undone.clone(), stop.clone()));
        let broken = seen.wait_for(|chain| matches!(chain, Chain::Broken(_)));
        let broken = tokio::time::timeout(Duration::from_secs(5), broken).await;
        let said = broken.expect("it is said").unwrap().clone();
        let text = format!("{said:?}");
        for part in ["net.d/05-cilium.conflist", "cni.exclusive=false", "30 s"] {
            assert!(text.contains(part), "{text}");
        }
        // As long as it goes on, it is written now and then, and nothing else is said.
        let quiet = tokio::time::timeout(Duration::from_secs(5), seen.changed()).await;
        assert!(quiet.is_err(), "{:?}", seen.borrow());
        over.store(true, SeqCst);
        let found = other.join().unwrap();
        assert!((5..=9).contains(&found), "written {found} times");
        assert!(undone.get() >= 5, "counted {}", undone.get());
        // Once the other program has stopped, the plugin comes back by itself.
        let deadline = Instant::now() + contest::MOST;
        while !fs::read_to_string(&list).unwrap().contains("slice-cni") {
            assert!(Instant::now() < deadline, "the plugin did not come back");
            tokio::time::sleep(QUIET).await;
        }
        stop.cancel();
        keeping.await.unwrap();
    }
}
