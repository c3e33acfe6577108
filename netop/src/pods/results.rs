//! libcni's cache of results (github.com/containernetworking/cni, libcni/api.go, `cachedInfo`).
//!
//! One file per sandbox and interface, `<network>-<container>-<interface>`, written when a chain has succeeded and
//! removed when it is undone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{Sandbox, written};

/// The sandboxes that libcni knows of. A file that cannot be read is left out: it may just be being written.
///
/// # Errors
/// Where the directory is there and cannot be listed.
pub fn scan(directory: &Path) -> io::Result<Vec<Sandbox>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let files = entries.filter_map(Result::ok).map(|entry| entry.path());
    Ok(files
        .filter_map(|path| parse(&fs::read_to_string(&path).ok()?, written(&path)))
        .collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    container_id: String,
    /// Absent before libcni 1.3.
    #[serde(default)]
    netns: Option<PathBuf>,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: CachedResult,
}

#[derive(Default, Deserialize)]
struct CachedResult {
    #[serde(default)]
    interfaces: Vec<CachedInterface>,
}

#[derive(Deserialize)]
struct CachedInterface {
    #[serde(default)]
    sandbox: PathBuf,
}

fn parse(text: &str, since: i64) -> Option<Sandbox> {
    let cached: Cached = serde_json::from_str(text).ok()?;
    let argument = |key: &str| {
        cached
            .cni_args
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.clone())
    };
    let inside = cached
        .result
        .interfaces
        .into_iter()
        .map(|interface| interface.sandbox);
    let netns = cached
        .netns
        .into_iter()
        .chain(inside)
        .find(|path| !path.as_os_str().is_empty())?;
    Some(Sandbox {
        uid: argument("K8S_POD_UID")?,
        namespace: argument("K8S_POD_NAMESPACE")?,
        name: argument("K8S_POD_NAME")?,
        container: cached.container_id,
        netns,
        // Of every network that the pod is on: which are its own, the kubelet says.
        addresses: vec![],
        since,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As containerd 1.6 with the bridge plugin leaves it, shortened.
    const CONTAINERD: &str = r#"{"kind":"cniCacheV1","containerId":"7a9f","config":"eyJ9","ifName":"eth0",
        "networkName":"kx","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","cart"],["K8S_POD_NAME","web-0"],
        ["K8S_POD_INFRA_CONTAINER_ID","7a9f"],["K8S_POD_UID","0a1b"]],"capabilityArgs":{"dns":{}},
        "result":{"cniVersion":"0.4.0","interfaces":[{"name":"cni0","mac":"aa:00:00:00:00:01"},
        {"name":"veth1","mac":"aa:00:00:00:00:02"},
        {"name":"eth0","mac":"aa:00:00:00:00:03","sandbox":"/var/run/netns/cni-5d"}],
        "ips":[{"version":"4","interface":2,"address":"10.244.0.5/24"}]}}"#;

    #[test]
    fn a_result_names_pod_and_namespace() {
        let sandbox = parse(CONTAINERD, 9).unwrap();
        assert_eq!(
            (sandbox.uid.as_str(), sandbox.container.as_str(), sandbox.since),
            ("0a1b", "7a9f", 9)
        );
        assert_eq!(
            (sandbox.namespace.as_str(), sandbox.name.as_str()),
            ("cart", "web-0")
        );
        assert_eq!(sandbox.netns, Path::new("/var/run/netns/cni-5d"));
    }

    #[test]
    fn newer_libcni_says_it_outright() {
        let text = CONTAINERD.replacen("\"kind\"", "\"netns\":\"/run/netns/other\",\"kind\"", 1);
        assert_eq!(parse(&text, 0).unwrap().netns, Path::new("/run/netns/other"));
    }

    #[test]
    fn what_is_no_result_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("half"), &CONTAINERD[..100]).unwrap();
        fs::write(
            directory.path().join("lo"),
            CONTAINERD.replace("K8S_POD_UID", "OTHER"),
        )
        .unwrap();
        fs::write(directory.path().join("whole"), CONTAINERD).unwrap();
        assert_eq!(scan(directory.path()).unwrap().len(), 1);
        assert_eq!(scan(&directory.path().join("absent")).unwrap(), []);
    }
}
