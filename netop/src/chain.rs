//! Keeps the plugin in the node's CNI chain, and takes it out again.
//!
//! Other network plugins rewrite their configuration list when they start; inotify tells, and it is put right.

use std::sync::Arc;

use anyhow::Context;
use prometheus::IntCounter;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Chain,
    cni::{
        contest::Contest,
        host::Mounts,
        install::{self, Checked, Installed, Installer},
    },
    directories::changes,
    world::World,
};

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
            changed = other_teardown(&mut world, teardown) => if changed.is_err() { return Ok(()) },
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        path::Path,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
        time::Duration,
    };

    use slice_crds::v1alpha1::{SliceNode, SliceNodeSpec};

    use super::*;
    use crate::{
        cni::{contest, testing},
        directories::{INTERVAL, QUIET},
    };

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"cilium-cni"}]}"#;

    fn installer(folder: &Path) -> Installer {
        testing::installer(folder, "cilium-cni")
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

    #[tokio::test(flavor = "multi_thread")]
    async fn a_removal_waits_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let list = folder.path().join("net.d/10.conflist");
        fs::write(&list, LIST).unwrap();
        let (worlds, world) = watch::channel(Some(Arc::new(here())));
        let (state, mut seen) = watch::channel(Chain::default());
        let undone = IntCounter::new("undone", "test").unwrap();
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(keep(installer, world, state, undone, stop.clone()));
        seen.wait_for(|chain| *chain == Chain::Installed).await.unwrap();
        // The watches' own first word, and the look that it leads to, are over.
        tokio::time::sleep(QUIET * 10).await;
        let spec = SliceNodeSpec {
            teardown: true,
            uplink: None,
            slice_dns: None,
        };
        worlds.send_replace(Some(Arc::new(World {
            node: Some(Arc::new(SliceNode::new("n1", spec))),
            ..World::default()
        })));
        let removed = seen.wait_for(|chain| *chain == Chain::Removed);
        let removed = tokio::time::timeout(INTERVAL / 5, removed).await;
        assert!(removed.is_ok(), "it waits for the next look");
        assert_eq!(fs::read_to_string(&list).unwrap(), LIST);
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
