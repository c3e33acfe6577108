//! Keeps the plugin in the node's CNI chain, and takes it out again.
//!
//! Other network plugins rewrite their configuration list when they start; inotify tells, and it is put right.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
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
        host::Mounts,
        install::{self, Checked, Installed, Installer},
    },
    kernel::far_ends,
    pods::{self, Kept, Sandbox},
    world::World,
};

/// How often things are looked at that should have told of their change.
const INTERVAL: Duration = Duration::from_secs(5);
/// Changes come in runs: the last one counts.
const QUIET: Duration = Duration::from_millis(20);

/// Installs, repairs and removes until `stop`, as the newest world asks.
///
/// # Errors
/// Where only another container can go on: the host has replaced what this one has mounted.
pub async fn keep(
    installer: Installer,
    mut world: watch::Receiver<Option<Arc<World>>>,
    state: watch::Sender<Chain>,
    undone: IntCounter,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let watched = installer.clone();
    let mut changes = changes(move || watched.watched(), stop.clone());
    let mut keeper = Keeper {
        installer,
        mounts: Mounts::default(),
        checked: Checked::default(),
        contest: Contest::default(),
        undone,
    };
    loop {
        let teardown = teardown(&mut world);
        if let Some(teardown) = teardown {
            let work = tokio::task::spawn_blocking(move || {
                let after = keeper.check_mounts().map(|()| match teardown {
                    true => keeper.remove(),
                    false => keeper.install(),
                });
                (keeper, after)
            });
            let (worked, after) = work.await.context("the keeper of the CNI chain panicked")?;
            let after = after?;
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
            () = stop.cancelled() => return Ok(()),
            changed = changes.recv(), if held.is_none() => if changed.is_none() { return Ok(()) },
            () = sleep_until(held) => {}
            Err(_) = other_teardown(&mut world, teardown) => return Ok(()),
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
    mounts: Mounts,
    checked: Checked,
    contest: Contest,
    undone: IntCounter,
}

impl Keeper {
    /// That the container has what the host has.
    fn check_mounts(&mut self) -> anyhow::Result<()> {
        for directory in self.installer.directories() {
            self.mounts.check(&directory)?;
        }
        Ok(())
    }

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
            Ok(Installed::Withheld(why)) => {
                self.contest.forget();
                return Chain::Broken(why);
            }
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

/// Reads libcni's cache whenever it changes, until `stop`. Where a sandbox's namespace is not said there, the node's end of its
/// interface leads to it, if it is one of those in `named` (`/run/netns` as this process reaches it).
pub fn sandboxes(
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

/// Tells of changes in directories, and every [`INTERVAL`] besides: one that is not there yet cannot be watched. Which these
/// are may itself change with them. Where the last word was not taken yet, further changes cost nothing: the kernel joins
/// those that are alike and bounds the rest.
fn changes(
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        path::Path,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
    };

    use slice_crds::v1alpha1::{SliceNode, SliceNodeSpec};

    use super::*;
    use crate::cni::{contest, host::HostRoot};

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"cilium-cni"}]}"#;

    fn installer(folder: &Path) -> Installer {
        for dir in ["net.d", "bin"] {
            fs::create_dir_all(folder.join(dir)).unwrap();
        }
        fs::write(folder.join("bin/cilium-cni"), "").unwrap();
        fs::write(folder.join("plugin"), "#!plugin").unwrap();
        Installer {
            host: HostRoot(folder.to_owned()),
            conf_dir: "/net.d".into(),
            bin_dirs: vec!["/bin".into()],
            binary: folder.join("plugin"),
            socket: "/run/weft/cni.sock".into(),
            members: "/var/lib/weft/members.json".into(),
        }
    }

    /// A world in which Weft is to be on the node.
    fn here() -> World {
        World {
            node: Some(Arc::new(SliceNode::new("n1", SliceNodeSpec::default()))),
            ..World::default()
        }
    }

    /// Waits for what has to come long before the next look that nothing asks for.
    async fn soon(what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + INTERVAL / 2;
        while !is_so() {
            assert!(Instant::now() < deadline, "not soon: {what}");
            tokio::time::sleep(QUIET / 4).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn directories_that_move_are_followed_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let mut installer = installer(folder.path());
        installer.bin_dirs = vec!["/data/current/bin".into()];
        for version in ["one", "two", "three"] {
            fs::create_dir_all(at("data").join(version).join("bin")).unwrap();
            fs::write(at("data").join(version).join("bin/cilium-cni"), "").unwrap();
        }
        symlink("/data/one", at("data/current")).unwrap();
        fs::write(at("net.d/10.conflist"), LIST).unwrap();
        let (_world, world) = watch::channel(Some(Arc::new(here())));
        let (state, _seen) = watch::channel(Chain::default());
        let undone = IntCounter::new("undone", "test").unwrap();
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(keep(installer, world, state, undone, stop.clone()));
        let chained = |list: &str| fs::read_to_string(at(list)).is_ok_and(|text| text.contains("slice-cni"));
        soon("installed", || {
            chained("net.d/10.conflist") && at("data/one/bin/slice-cni").exists()
        })
        .await;
        // As an upgrade of k3s does, twice: what is watched moves too.
        for version in ["two", "three"] {
            symlink(Path::new("/data").join(version), at("data/next")).unwrap();
            fs::rename(at("data/next"), at("data/current")).unwrap();
            soon(version, || {
                at("data").join(version).join("bin/slice-cni").exists()
            })
            .await;
            fs::remove_file(at("data").join(version).join("bin/slice-cni")).unwrap();
            soon(version, || {
                at("data").join(version).join("bin/slice-cni").exists()
            })
            .await;
        }
        // The directory of lists goes, and comes as another; twice.
        for list in ["net.d/10.conflist", "net.d/05.conflist"] {
            fs::rename(at("net.d"), at(&list.replace(['/', '.'], "-"))).unwrap();
            fs::create_dir(at("net.d")).unwrap();
            fs::write(at(list), LIST).unwrap();
            soon(list, || chained(list)).await;
        }
        // Another plugin's list comes first.
        fs::write(at("net.d/01.conflist"), LIST).unwrap();
        soon("the first list", || chained("net.d/01.conflist")).await;
        stop.cancel();
        keeping.await.unwrap().unwrap();
    }

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
        let installer = installer(folder.path());
        let list = folder.path().join("net.d/05-cilium.conflist");
        fs::write(&list, LIST).unwrap();
        let (_world, world) = watch::channel(Some(Arc::new(here())));
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
        keeping.await.unwrap().unwrap();
    }
}
