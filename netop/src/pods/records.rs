//! Our own records of sandboxes, one file per pod: what the CNI plugin reported, for a restart that comes before libcni
//! has written its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Sandbox, written};
use crate::files::write;

/// A directory of records.
#[derive(Clone, Debug)]
pub struct Records(PathBuf);

impl Records {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// # Errors
    /// Where the file cannot be written.
    pub fn keep(&self, sandbox: &Sandbox) -> io::Result<()> {
        let text = serde_json::to_vec(sandbox).map_err(io::Error::other)?;
        write(&self.path(&sandbox.uid), &text)
    }

    /// Forgets a pod; that it is not there is as good.
    ///
    /// # Errors
    /// Where the file cannot be removed.
    pub fn forget(&self, uid: &str) -> io::Result<()> {
        match fs::remove_file(self.path(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Every record that can be read.
    pub fn all(&self) -> Vec<Sandbox> {
        let files = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .map(|entry| entry.path());
        let read = |path: PathBuf| {
            let sandbox: Sandbox = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            Some(Sandbox {
                since: written(&path),
                ..sandbox
            })
        };
        files.filter_map(read).collect()
    }

    fn path(&self, uid: &str) -> PathBuf {
        // A UID comes from the container runtime; it must not lead out of the directory.
        let safe: String = uid
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(64)
            .collect();
        self.0.join(format!("{safe}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_until_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path().join("pods"));
        let sandbox = Sandbox {
            uid: "../../0a1b".into(),
            namespace: "cart".into(),
            name: "web-0".into(),
            container: "7a9f".into(),
            netns: "/run/netns/cni-1".into(),
            addresses: vec!["10.244.1.7".parse().unwrap()],
            since: 0,
        };
        records.keep(&sandbox).unwrap();
        let read = records.all();
        assert_eq!(read.len(), 1);
        assert!(read[0].since > 0);
        assert_eq!(
            Sandbox {
                since: 0,
                ..read[0].clone()
            },
            sandbox
        );
        records.forget(&sandbox.uid).unwrap();
        records.forget(&sandbox.uid).unwrap();
        assert_eq!(records.all(), []);
    }
}
