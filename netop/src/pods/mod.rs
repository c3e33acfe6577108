//! Where pods' network namespaces are.
//!
//! Two sources: what the CNI plugin reports when a pod starts, kept in records of our own; and what libcni keeps of every
//! pod that any plugin chain was run for, which also knows the pods that were there before Weft.

mod records;
mod results;

pub use records::Records;
pub use results::{Kept, placed, scan};

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::model::Netns;

/// One pod sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// The pod's UID as the container runtime knows it.
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// The sandbox's container ID: a pod whose sandbox is made anew has another one.
    pub container: String,
    /// The namespace's file as the container runtime names it.
    pub netns: PathBuf,
    /// The addresses that the network plugins before ours gave it; none where that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// When it was written down, seconds since 1970.
    pub since: i64,
}

/// How the paths that the container runtime says are reached from here.
#[derive(Clone, Debug)]
pub struct NetnsDirectory(pub PathBuf);

impl NetnsDirectory {
    /// The runtime's `/var/run/netns/cni-…` or `/run/netns/…` as this process reaches it. Another path is left as
    /// it is: `/proc/<pid>/ns/net` works where the agent shares the host's process namespace.
    pub fn reach(&self, path: &Path) -> Netns {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if parent.ends_with("run/netns") => Netns::new(self.0.join(name)),
            _ => Netns::new(path),
        }
    }
}

/// Seconds since 1970 at which a file was last written.
fn written(path: &Path) -> i64 {
    let modified = path.metadata().and_then(|metadata| metadata.modified()).ok();
    let since = modified.and_then(|modified| modified.duration_since(std::time::UNIX_EPOCH).ok());
    since
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_namespaces_are_reached_where_they_are_mounted() {
        let directory = NetnsDirectory("/host/netns".into());
        for path in ["/var/run/netns/cni-1", "/run/netns/cni-1"] {
            assert_eq!(directory.reach(Path::new(path)), Netns::new("/host/netns/cni-1"));
        }
        assert_eq!(
            directory.reach(Path::new("/proc/7/ns/net")),
            Netns::new("/proc/7/ns/net")
        );
    }
}
