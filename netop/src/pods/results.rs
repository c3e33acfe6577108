//! libcni's cache of results (github.com/containernetworking/cni, libcni/api.go, `cachedInfo`).
//!
//! One file per sandbox and interface, `<network>-<container>-<interface>`, written when a chain has succeeded and
//! removed when it is undone.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{Sandbox, written};

/// What libcni keeps of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its namespace is an empty path where it is not said.
    pub sandbox: Sandbox,
    /// The node's ends of its interfaces, where the plugins named them: libcni before 1.3 says the namespace by interfaces
    /// inside only, and Calico names none of these.
    pub node_ends: Vec<String>,
}

/// The sandboxes that libcni knows of. A file that cannot be read is left out: it may just be being written.
///
/// # Errors
/// Where the directory is there and cannot be listed.
pub fn scan(directory: &Path) -> io::Result<Vec<Kept>> {
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

/// One entry for each sandbox: of several networks, those that say where it is.
pub fn placed(kept: Vec<Kept>) -> (Vec<Sandbox>, Vec<Kept>) {
    let (unplaced, known): (Vec<Kept>, Vec<Kept>) =
        (kept.into_iter()).partition(|kept| kept.sandbox.netns.as_os_str().is_empty());
    let known: Vec<Sandbox> = known.into_iter().map(|kept| kept.sandbox).collect();
    let containers: BTreeSet<&str> = known.iter().map(|known| known.container.as_str()).collect();
    let unplaced = unplaced.into_iter();
    let unplaced = unplaced
        .filter(|kept| !containers.contains(kept.sandbox.container.as_str()))
        .collect();
    (known, unplaced)
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
    name: String,
    #[serde(default)]
    sandbox: PathBuf,
}

fn parse(text: &str, since: i64) -> Option<Kept> {
    let cached: Cached = serde_json::from_str(text).ok()?;
    let argument = |key: &str| {
        cached
            .cni_args
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.clone())
    };
    let (inside, node_ends): (Vec<_>, Vec<_>) = (cached.result.interfaces.into_iter())
        .partition(|interface| !interface.sandbox.as_os_str().is_empty());
    let said = cached.netns.filter(|path| !path.as_os_str().is_empty());
    let netns = said
        .or_else(|| Some(inside.into_iter().next()?.sandbox))
        .unwrap_or_default();
    let sandbox = Sandbox {
        uid: argument("K8S_POD_UID")?,
        namespace: argument("K8S_POD_NAMESPACE")?,
        name: argument("K8S_POD_NAME")?,
        container: cached.container_id,
        netns,
        // Of every network that the pod is on: which are its own, the kubelet says.
        addresses: vec![],
        since,
    };
    let node_ends = node_ends.into_iter().map(|interface| interface.name);
    Some(Kept {
        sandbox,
        node_ends: node_ends.filter(|name| !name.is_empty()).collect(),
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
        let Kept { sandbox, node_ends } = parse(CONTAINERD, 9).unwrap();
        assert_eq!(node_ends, ["cni0", "veth1"]);
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
        assert_eq!(
            parse(&text, 0).unwrap().sandbox.netns,
            Path::new("/run/netns/other")
        );
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

    /// As containerd 2.0 with Calico leaves it, shortened: the one interface is the node's end.
    const CALICO: &str = r#"{"kind":"cniCacheV1","containerId":"7a9f","config":"eyJ9","ifName":"eth0",
        "networkName":"k8s-pod-network","cniArgs":[["K8S_POD_NAMESPACE","cart"],["K8S_POD_NAME","web-0"],
        ["K8S_POD_UID","0a1b"]],"result":{"cniVersion":"0.3.1","interfaces":[{"name":"cali5d1"}],
        "ips":[{"version":"4","address":"10.244.0.5/32"}]}}"#;

    #[test]
    fn a_sandbox_is_unplaced_where_no_network_says_where_it_is() {
        let calico = parse(CALICO, 1).unwrap();
        assert_eq!(
            (calico.sandbox.netns.as_path(), calico.node_ends.as_slice()),
            (Path::new(""), ["cali5d1".to_owned()].as_slice())
        );
        assert_eq!(placed(vec![calico.clone()]), (vec![], vec![calico.clone()]));
        // Its loopback interface may have a record of its own, of the same container.
        let other = parse(CONTAINERD, 1).unwrap();
        assert_eq!(placed(vec![calico, other.clone()]), (vec![other.sandbox], vec![]));
    }
}
