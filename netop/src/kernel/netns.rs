//! Network namespaces. `setns` happens on threads that live for one call and never on a runtime's.

use std::{fs::File, io, path::Path};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{FsType, statfs},
};

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// Runs `work` inside a network namespace, on a thread of its own, and waits for it.
///
/// A netlink socket or a TAP opened there belongs to that namespace wherever it is used later.
///
/// # Errors
/// Where the file is absent or no network namespace.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(path)?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                work()
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread inside a network namespace panicked")))
    })
}

/// Runs `work` inside a namespace, or right here where there is none to enter.
///
/// # Errors
/// As [`within`].
pub fn maybe_within<T: Send>(
    path: Option<&Path>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    match path {
        Some(path) => within(path, work),
        None => work(),
    }
}

/// Whether a file is a namespace. The file of one that has ended is an ordinary one, or gone.
pub fn exists(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS)
}
