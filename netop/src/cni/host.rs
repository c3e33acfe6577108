//! The host's directories, as they are called there, found from inside the agent's container.
//!
//! Parts of the host's file system are mounted under one directory, each at its own path. A symbolic link there leads to
//! where it leads on the host, not here, and may lead elsewhere at any time: an upgrade of k3s moves
//! `/var/lib/rancher/k3s/data/current`. So every look follows the links anew, and says what is to be watched.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, bail};

/// As many links as path_resolution(7) follows.
const LINKS: usize = 40;

/// Where the host's file system is mounted, as far as it is.
#[derive(Clone, Debug)]
pub struct HostRoot(pub PathBuf);

/// Where a path of the host leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The directory as this process reaches it; `None` where it is not there.
    pub directory: Option<PathBuf>,
    /// Where the way leads to, as the host calls it: the directory, or what is not there.
    pub end: PathBuf,
    /// Directories in which a change can make the path lead elsewhere, and the one that it leads to.
    pub watched: BTreeSet<PathBuf>,
}

impl HostRoot {
    /// Follows a path of the host, link by link.
    pub fn find(&self, path: &Path) -> Found {
        let mut found = Found::default();
        let mut rest = parts(path);
        let mut here = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&part);
            match fs::read_link(self.reach(&next)) {
                Ok(target) if links < LINKS => {
                    links += 1;
                    found.watched.insert(self.reach(&here));
                    if target.is_absolute() {
                        here = "/".into();
                    }
                    rest = parts(&target).into_iter().chain(rest).collect();
                }
                // EINVAL is how a directory says that it is no link.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => here = next,
                Ok(_) | Err(_) => {
                    found.watched.insert(self.reach(&here));
                    found.end = rest.into_iter().fold(next, |path, part| path.join(part));
                    return found;
                }
            }
        }
        let directory = self.reach(&here);
        found.watched.extend(directory.parent().map(Path::to_owned));
        found.watched.insert(directory.clone());
        found.directory = directory.is_dir().then_some(directory);
        found.end = here;
        found
    }

    /// A directory of the host that has to be there.
    ///
    /// # Errors
    /// A sentence that says where the path leads, and what decides which path it is.
    pub fn directory(&self, path: &Path, what: &str) -> anyhow::Result<PathBuf> {
        let found = self.find(path);
        if let Some(directory) = found.directory {
            return Ok(directory);
        }
        let leads = match found.end == path {
            true => String::new(),
            false => format!(", it leads to {}", found.end.display()),
        };
        let path = path.display();
        bail!(
            "the directory {path} of {what} is not on this node, or not mounted into the agent{leads}: say where the \
             container runtime has it by the chart's netop.platform, or netop.cniConfDir, netop.cniBinDir and netop.cniMounts"
        )
    }

    /// A path of the host as this process reaches it.
    fn reach(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// What this process reaches as the host calls it.
    pub fn name(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.0) {
            Ok(below) => Path::new("/").join(below),
            Err(_) => path.to_owned(),
        }
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}

/// Mounts of this process, as they were when they were first seen.
///
/// A container is given directories of the host, not paths: one that is removed there and made anew, or moved away, is in
/// the container what it was, and only another container has the new one.
#[derive(Debug, Default)]
pub struct Mounts(BTreeMap<PathBuf, PathBuf>);

impl Mounts {
    /// Whether the mount that a directory is on is of another place than when it was first seen.
    ///
    /// # Errors
    /// Where it is; also where this process's mounts cannot be read.
    pub fn check(&mut self, directory: &Path) -> anyhow::Result<()> {
        let now = fs::read("/proc/thread-self/mountinfo").context("read this process's mounts")?;
        let now = mounts(&now);
        let Some((point, root)) = now.iter().filter(|(point, _)| directory.starts_with(point)).max() else {
            return Ok(());
        };
        let first = self.0.entry(point.clone()).or_insert_with(|| root.clone());
        if first != root {
            bail!(
                "the host has replaced the directory that this container has as {}: it was {}, which is now {}",
                point.display(),
                first.display(),
                root.display()
            );
        }
        Ok(())
    }
}

/// Mount points with what of the file system is mounted there (proc_pid_mountinfo(5), fields 5 and 4); of several at one
/// point the last, which hides the others.
fn mounts(text: &[u8]) -> BTreeMap<PathBuf, PathBuf> {
    let lines = text.split(|byte| *byte == b'\n');
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let root = unescape(fields.next()?);
        Some((unescape(fields.next()?), root))
    };
    lines.filter_map(mount).collect()
}

/// Blanks and the like are three octal digits behind a backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = vec![];
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let code = (first == b'\\').then(|| behind.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn host() -> (tempfile::TempDir, HostRoot) {
        let folder = tempfile::tempdir().unwrap();
        let host = HostRoot(folder.path().to_owned());
        (folder, host)
    }

    fn watched(found: &Found, root: &Path) -> Vec<String> {
        let below = |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
        found.watched.iter().map(below).collect()
    }

    #[test]
    fn links_lead_where_they_lead_on_the_host() {
        let (folder, host) = host();
        let data = folder.path().join("var/lib/k3s/data");
        fs::create_dir_all(data.join("one/bin")).unwrap();
        fs::create_dir_all(data.join("two/bin")).unwrap();
        // As k3s has it: absolute, and a name beside.
        symlink("/var/lib/k3s/data/one", data.join("current")).unwrap();
        let path = Path::new("/var/lib/k3s/data/current/bin");
        let found = host.find(path);
        assert_eq!(found.directory, Some(data.join("one/bin")));
        assert_eq!(
            watched(&found, folder.path()),
            [
                "var/lib/k3s/data",
                "var/lib/k3s/data/one",
                "var/lib/k3s/data/one/bin"
            ]
        );
        fs::remove_file(data.join("current")).unwrap();
        symlink("../data/two", data.join("current")).unwrap();
        assert_eq!(host.directory(path, "plugins").unwrap(), data.join("two/bin"));
        assert_eq!(
            host.name(&data.join("two/bin")),
            Path::new("/var/lib/k3s/data/two/bin")
        );
    }

    #[test]
    fn what_is_not_there_is_named_as_the_host_calls_it() {
        let (folder, host) = host();
        fs::create_dir_all(folder.path().join("opt/cni")).unwrap();
        symlink("/usr/lib/cni", folder.path().join("opt/cni/bin")).unwrap();
        let text = host
            .directory(Path::new("/opt/cni/bin"), "CNI plugins")
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("/opt/cni/bin of CNI plugins") && text.contains("leads to /usr/lib/cni:"),
            "{text}"
        );
        let found = host.find(Path::new("/opt/cni/bin"));
        assert_eq!(
            watched(&found, folder.path()),
            ["", "opt/cni"],
            "where it would come"
        );
        symlink("/a/b", folder.path().join("b")).unwrap();
        symlink("/b/a", folder.path().join("a")).unwrap();
        assert_eq!(host.find(Path::new("/a")).directory, None, "links that never end");
        // Nothing leads out of the root.
        assert_eq!(host.find(Path::new("/../../etc")).end, Path::new("/etc"));
    }

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let text = br"22 1 0:21 / /proc rw - proc proc rw
30 22 8:1 /etc/cni /host/etc/cni rw,relatime master:1 - ext4 /dev/sda rw
31 22 8:1 /a\040b//deleted /host/opt\134cni rw - ext4 /dev/sda rw
";
        let found: Vec<(String, String)> = mounts(text)
            .into_iter()
            .map(|(point, root)| (point.display().to_string(), root.display().to_string()))
            .collect();
        assert_eq!(
            found[0..],
            [
                ("/host/etc/cni", "/etc/cni"),
                (r"/host/opt\cni", "/a b//deleted"),
                ("/proc", "/")
            ]
            .map(|(point, root)| (point.to_owned(), root.to_owned()))
        );
    }
}
