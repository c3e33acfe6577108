//! The chained plugin, as the CNI specification 1.1 describes one (containernetworking/cni, SPEC.md).

use std::{io, net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slice_crds::names::MEMBER_NAMESPACE;

use super::{
    members::Members,
    wire::{self, Command, Interface, Reply, Request},
};

/// Versions of the specification whose chained form this plugin follows.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Results have an interface's MTU since then.
const WITH_MTU: &str = "1.1.0";
/// How long a pod that may be in a slice which requires its interface waits for the agent. The runtime's own limit is
/// minutes.
const REQUIRED: Duration = Duration::from_secs(10);
/// How long any other pod does, whatever the agent is doing: it is attached later.
const OTHERS: Duration = Duration::from_millis(300);

/// Error codes (SPEC.md, "Error"): below 100 are the specification's, 11 asks the runtime to try again later.
mod code {
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(super) const INVALID_ENVIRONMENT: u32 = 4;
    pub(super) const DECODE: u32 = 6;
    pub(super) const TRY_AGAIN: u32 = 11;
}

/// What the runtime passes in the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    pub command: String,
    pub container_id: String,
    pub netns: String,
    /// `KEY=VALUE;KEY=VALUE`.
    pub args: String,
}

/// The plugin's own element of the configuration list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    #[serde(default)]
    pub cni_version: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// See [`Members`].
    pub members: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<Value>,
}

/// What the runtime reads on standard output when something is wrong.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Error {
    pub cni_version: String,
    pub code: u32,
    pub msg: String,
    pub details: String,
}

/// Runs one command: what goes to standard output, or the error that does.
pub fn run(environment: &Environment, stdin: &str) -> Result<String, Error> {
    if environment.command == "VERSION" {
        // As it was asked (SPEC.md, "VERSION").
        let asked: Option<Value> = serde_json::from_str(stdin).ok();
        let asked = asked.as_ref().and_then(|asked| asked.get("cniVersion")?.as_str());
        let version = asked.unwrap_or(VERSIONS[VERSIONS.len() - 1]);
        return Ok(json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string());
    }
    let config: Config = serde_json::from_str(stdin).map_err(|error| {
        fail(
            "",
            code::DECODE,
            "the network configuration cannot be read",
            error.to_string(),
        )
    })?;
    let version = config.cni_version.as_str();
    if !VERSIONS.contains(&version) {
        let details = format!("this plugin knows {}", VERSIONS.join(", "));
        return Err(fail(
            version,
            code::INCOMPATIBLE_VERSION,
            &format!("CNI version \"{version}\" is not known"),
            details,
        ));
    }
    let missing = match environment.command.as_str() {
        "ADD" | "CHECK" if environment.netns.is_empty() => Some("CNI_NETNS"),
        "ADD" | "CHECK" | "DEL" if environment.container_id.is_empty() => Some("CNI_CONTAINERID"),
        _ => None,
    };
    if let Some(variable) = missing {
        return Err(fail(
            version,
            code::INVALID_ENVIRONMENT,
            &format!("{variable} is empty"),
            format!("{} cannot do without it", environment.command),
        ));
    }
    match environment.command.as_str() {
        "ADD" => {
            let interfaces = attached(environment, &config, Command::Add)?;
            Ok(result(
                config.prev_result.as_ref(),
                &interfaces,
                &environment.netns,
                version,
            ))
        }
        "CHECK" => attached(environment, &config, Command::Check).map(|_| String::new()),
        "DEL" => {
            // The agent also sees the pod go by itself; a deletion must not fail (SPEC.md, "DEL").
            let _ = attached(environment, &config, Command::Del);
            Ok(String::new())
        }
        // Nothing of ours has to be ready before pods can start, and what pods leave the agent collects.
        "STATUS" | "GC" => Ok(String::new()),
        other => Err(fail(
            version,
            code::INVALID_ENVIRONMENT,
            &format!("CNI_COMMAND is \"{other}\""),
            "it must be ADD, DEL, CHECK, STATUS, GC or VERSION".into(),
        )),
    }
}

/// Asks the agent, or decides without it.
fn attached(environment: &Environment, config: &Config, command: Command) -> Result<Vec<Interface>, Error> {
    let argument = |key: &str| {
        let pairs = environment
            .args
            .split(';')
            .filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value.to_owned())
            .next()
    };
    // Not a Kubernetes pod: nothing of ours.
    let (Some(pod_namespace), Some(pod_name)) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"))
    else {
        return Ok(Vec::new());
    };
    let request = Request {
        command,
        container_id: environment.container_id.clone(),
        netns: PathBuf::from(&environment.netns),
        pod_uid: argument("K8S_POD_UID").unwrap_or_default(),
        pod_namespace,
        pod_name,
        addresses: addresses(config.prev_result.as_ref()),
    };
    let required = required(&request, config);
    let timeout = if required { REQUIRED } else { OTHERS };
    match wire::ask(&config.socket, &request, timeout) {
        Ok(Reply::Attached(interfaces)) => Ok(interfaces),
        Ok(Reply::Refused(why)) => Err(fail(
            &config.cni_version,
            code::TRY_AGAIN,
            &format!("pod {}/{}: {why}", request.pod_namespace, request.pod_name),
            String::new(),
        )),
        Err(error) => alone(&request, config, required, &error),
    }
}

/// The pod's addresses by the previous plugins' result (SPEC.md, "Success": `ips`, each with its prefix length).
fn addresses(previous: Option<&Value>) -> Vec<IpAddr> {
    let list = previous.and_then(|previous| previous.get("ips")?.as_array());
    let texts = list
        .into_iter()
        .flatten()
        .filter_map(|ip| ip.get("address")?.as_str());
    texts
        .filter_map(|text| Some(text.parse::<IpNet>().ok()?.addr()))
        .collect()
}

/// Whether the pod may be in a slice that requires its interface, by what the agent wrote down last.
fn required(request: &Request, config: &Config) -> bool {
    match Members::read(&config.members) {
        Ok(members) => members.required_namespaces.contains(&request.pod_namespace),
        // Who must wait is not known, so nobody does: the agent attaches running pods when it is back.
        Err(_) => false,
    }
}

/// The agent does not answer.
fn alone(
    request: &Request,
    config: &Config,
    required: bool,
    error: &io::Error,
) -> Result<Vec<Interface>, Error> {
    if !required || request.command != Command::Add {
        return Ok(Vec::new());
    }
    Err(fail(
        &config.cni_version,
        code::TRY_AGAIN,
        &format!(
            "pod {}/{} may be in a slice that requires its interface, and the node agent does not answer on {}: {error}",
            request.pod_namespace,
            request.pod_name,
            config.socket.display()
        ),
        format!(
            "see `kubectl -n {MEMBER_NAMESPACE} get pods -l weft.dev/component=netop -o wide`; the pod starts when the agent is \
             back. Where that namespace was deleted, `slicectl join` brings Weft back, and `slicectl uninstall cluster` takes it \
             off this node"
        ),
    ))
}

/// The previous plugin's result with our interfaces behind its own; its addresses stay the pod's addresses.
fn result(previous: Option<&Value>, interfaces: &[Interface], sandbox: &str, version: &str) -> String {
    let mut result = previous
        .cloned()
        .unwrap_or_else(|| json!({"cniVersion": version}));
    if let Some(object) = result.as_object_mut().filter(|_| !interfaces.is_empty()) {
        let list = object.entry("interfaces").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.extend(interfaces.iter().map(|interface| {
                let mut entry = json!({"name": interface.name, "mac": interface.mac, "sandbox": sandbox});
                if version == WITH_MTU {
                    entry["mtu"] = interface.mtu.into();
                }
                entry
            }));
        }
    }
    result.to_string()
}

fn fail(version: &str, code: u32, msg: &str, details: String) -> Error {
    let cni_version = if VERSIONS.contains(&version) {
        version
    } else {
        VERSIONS[VERSIONS.len() - 1]
    };
    Error {
        cni_version: cni_version.to_owned(),
        code,
        msg: msg.to_owned(),
        details,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixListener,
        path::Path,
    };

    use super::*;

    fn environment(command: &str) -> Environment {
        Environment {
            command: command.into(),
            container_id: "c1".into(),
            netns: "/run/netns/x".into(),
            args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=cart;K8S_POD_NAME=web-0;K8S_POD_UID=u1".into(),
        }
    }

    fn config(folder: &Path) -> String {
        json!({
            "cniVersion": "1.0.0", "name": "net", "type": "slice-cni",
            "socket": folder.join("cni.sock"), "members": folder.join("members.json"),
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
                "ips": [{"address": "10.244.1.2/24", "interface": 0}], "dns": {}},
        })
        .to_string()
    }

    /// An agent that answers one question and returns what it was asked.
    fn agent(folder: &Path, reply: Reply) -> std::thread::JoinHandle<Request> {
        let listener = UnixListener::bind(folder.join("cni.sock")).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = Vec::new();
            stream.read_to_end(&mut text).unwrap();
            stream.write_all(&serde_json::to_vec(&reply).unwrap()).unwrap();
            serde_json::from_slice(&text).unwrap()
        })
    }

    #[test]
    fn the_pods_own_addresses_stay_and_the_interface_is_added() {
        let folder = tempfile::tempdir().unwrap();
        let interface = Interface {
            name: "sl-shop".into(),
            mac: "02:5c:00:00:00:05".into(),
            mtu: 1370,
        };
        let asked = agent(folder.path(), Reply::Attached(vec![interface]));
        let result: Value =
            serde_json::from_str(&run(&environment("ADD"), &config(folder.path())).unwrap()).unwrap();
        assert_eq!(
            result["ips"],
            json!([{"address": "10.244.1.2/24", "interface": 0}])
        );
        assert_eq!(result["interfaces"][1]["name"], "sl-shop");
        let asked = asked.join().unwrap();
        assert_eq!(
            (asked.pod_name.as_str(), asked.pod_uid.as_str(), asked.command),
            ("web-0", "u1", Command::Add)
        );
        assert_eq!(asked.addresses, ["10.244.1.2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn plugin_and_agent_may_be_of_different_versions() {
        let request = Request {
            command: Command::Add,
            container_id: "c1".into(),
            netns: "/run/netns/x".into(),
            pod_namespace: "cart".into(),
            pod_name: "web-0".into(),
            pod_uid: "u1".into(),
            addresses: vec![],
        };
        let text = r#"{"command":"ADD","containerId":"c1","netns":"/run/netns/x","podNamespace":"cart","podName":"web-0","podUid":"u1"}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        let newer = text.replace("}", r#","unknown":1}"#);
        assert_eq!(serde_json::from_str::<Request>(&newer).unwrap(), request);
        let odd = json!({"ips": [{"address": "10.244.1.2"}, {"address": "fd00::2/64"}, 7]});
        assert_eq!(addresses(Some(&odd)), ["fd00::2".parse::<IpAddr>().unwrap()]);
        assert_eq!(addresses(Some(&json!({"ips": 7}))), [] as [IpAddr; 0]);
        assert_eq!(addresses(None), [] as [IpAddr; 0]);
    }

    #[test]
    fn a_refusal_asks_the_runtime_to_try_again() {
        let folder = tempfile::tempdir().unwrap();
        let _asked = agent(folder.path(), Reply::Refused("no free index".into()));
        let error = run(&environment("ADD"), &config(folder.path())).unwrap_err();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (11, "pod cart/web-0: no free index")
        );
    }

    #[test]
    fn without_the_agent_only_pods_that_may_need_it_wait() {
        let folder = tempfile::tempdir().unwrap();
        let passed = run(&environment("ADD"), &config(folder.path())).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&passed).unwrap()["interfaces"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        let members = Members {
            required_namespaces: ["cart".to_owned()].into(),
        };
        members.write(&folder.path().join("members.json")).unwrap();
        let error = run(&environment("ADD"), &config(folder.path())).unwrap_err();
        assert!(
            error.code == 11 && error.msg.contains("cart/web-0") && error.msg.contains("cni.sock"),
            "{error:?}"
        );
        for way in [
            "kubectl -n weft-system get pods",
            "slicectl join",
            "slicectl uninstall cluster",
        ] {
            assert!(error.details.contains(way), "{error:?}");
        }
        assert_eq!(
            run(&environment("DEL"), &config(folder.path())),
            Ok(String::new())
        );
    }

    #[test]
    fn a_result_has_what_its_version_has() {
        let interface = Interface {
            name: "sl-shop".into(),
            mac: "02:5c:00:00:00:05".into(),
            mtu: 1370,
        };
        let entry = |version: &str| {
            let text = result(None, std::slice::from_ref(&interface), "/run/netns/x", version);
            let result: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(result["cniVersion"], version);
            result["interfaces"][0].clone()
        };
        let mut expected = json!({"name": "sl-shop", "mac": "02:5c:00:00:00:05", "sandbox": "/run/netns/x"});
        assert_eq!(entry("1.0.0"), expected);
        expected["mtu"] = 1370.into();
        assert_eq!(entry("1.1.0"), expected);
    }

    #[test]
    fn what_the_specification_requires_has_to_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let without = |command: &str, netns: &str, container: &str| Environment {
            netns: netns.into(),
            container_id: container.into(),
            ..environment(command)
        };
        for (command, netns, container, variable) in [
            ("ADD", "", "c1", "CNI_NETNS"),
            ("CHECK", "", "c1", "CNI_NETNS"),
            ("ADD", "/x", "", "CNI_CONTAINERID"),
            ("DEL", "", "", "CNI_CONTAINERID"),
        ] {
            let error = run(&without(command, netns, container), &config).unwrap_err();
            assert!(
                error.code == 4 && error.msg.contains(variable),
                "{command}: {error:?}"
            );
        }
        // A namespace that is gone is nobody's fault.
        assert_eq!(run(&without("DEL", "", "c1"), &config), Ok(String::new()));
    }

    #[test]
    fn versions_are_listed_and_an_unknown_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let listed = |stdin: &str| -> Value {
            serde_json::from_str(&run(&environment("VERSION"), stdin).unwrap()).unwrap()
        };
        assert_eq!(listed("")["cniVersion"], "1.1.0");
        assert_eq!(listed(r#"{"cniVersion":"0.4.0"}"#)["cniVersion"], "0.4.0");
        assert_eq!(listed("")["supportedVersions"], json!(VERSIONS));
        let old = config(folder.path()).replace(
            "\"cniVersion\":\"1.0.0\",\"members\"",
            "\"cniVersion\":\"0.2.0\",\"members\"",
        );
        assert_eq!(run(&environment("ADD"), &old).unwrap_err().code, 1);
    }
}
