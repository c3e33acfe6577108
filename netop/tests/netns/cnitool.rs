//! The plugin as libcni runs it: `cnitool`, the project's own, with the real plugins before ours and a whole agent behind.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use slice_netop::{
    agent::Event,
    cni::{
        host::HostRoot,
        install::{Checked, Installer},
        members::Members,
        server::{Call, serve},
    },
};
use slice_runtime::admin::Readiness;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{Run, add_pod, world},
    support::{Cluster, Space},
};

/// A node with a runtime's directories, and the plugin chained behind the bridge's.
struct Host {
    cluster: Cluster,
    directory: tempfile::TempDir,
}

impl Host {
    /// A list of one plugin.
    fn new(version: &str) -> Self {
        Self::with(|plugin, name| {
            let list = json!({"cniVersion": version, "name": name, "plugins": [plugin]});
            ("10-lab.conflist", list)
        })
    }

    /// The same as a single configuration.
    fn single(version: &str) -> Self {
        Self::with(|mut plugin, name| {
            plugin["cniVersion"] = version.into();
            plugin["name"] = name.into();
            ("10-lab.conf", plugin)
        })
    }

    fn with(configuration: impl Fn(Value, &str) -> (&'static str, Value)) -> Self {
        let this = Self {
            cluster: Cluster::new(1),
            directory: tempfile::tempdir().unwrap(),
        };
        for part in ["net.d", "bin", "lib", "run"] {
            fs::create_dir(this.at(part)).unwrap();
        }
        for plugin in ["bridge", "host-local"] {
            symlink(slice_go::cni().unwrap().join(plugin), this.at("bin").join(plugin)).unwrap();
        }
        let plugin = json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.7.0/24"}]], "dataDir": this.at("ipam")},
        });
        let (file, text) = configuration(plugin, "lab");
        fs::write(this.at("net.d").join(file), text.to_string()).unwrap();
        let installer = Installer {
            host: HostRoot(this.directory.path().to_owned()),
            conf_dir: "/net.d".into(),
            bin_dirs: vec!["/bin".into()],
            binary: env!("CARGO_BIN_EXE_slice-cni").into(),
            socket: this.socket(),
            members: this.at("run/members.json"),
        };
        installer.ensure(&mut Checked::default(), true).unwrap();
        this
    }

    fn at(&self, part: &str) -> PathBuf {
        self.directory.path().join(part)
    }

    fn socket(&self) -> PathBuf {
        self.at("run/cni.sock")
    }

    /// Runs `cnitool` on the node, for a pod of the namespace `cart`. Its cache is under /var/lib, which it has for itself.
    fn cnitool(&self, command: &str, pod: &str, space: &Space) -> Result<Value, String> {
        let script = r#"mount --bind "$LIB" /var/lib && exec "$TOOL" "$@""#;
        let arguments =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=cart;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}");
        // By a path that other processes can open.
        let space = space.path().display().to_string();
        let space = space.replace("self", &std::process::id().to_string());
        let output: Output = self.cluster.nodes[0].space.run(|| {
            Command::new("unshare")
                .args(["--mount", "sh", "-c", script, "sh", command, "lab", &space])
                .env("LIB", self.at("lib"))
                .env("TOOL", slice_go::cni().unwrap().join("cnitool"))
                .env("NETCONFPATH", self.at("net.d"))
                .env("CNI_PATH", self.at("bin"))
                .env("CNI_ARGS", &arguments)
                .output()
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true if output.stdout.is_empty() => Ok(Value::Null),
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(text(&output.stderr)),
        }
    }
}

/// As the above, while an agent answers.
async fn answered(
    host: &Arc<Host>,
    run: &mut Run,
    calls: &mut mpsc::Receiver<Call>,
    (command, pod, space): (&'static str, &'static str, &Arc<Space>),
) -> Result<Value, String> {
    let (host, space) = (Arc::clone(host), Arc::clone(space));
    let mut tool = tokio::task::spawn_blocking(move || host.cnitool(command, pod, &space));
    loop {
        tokio::select! {
            outcome = &mut tool => return outcome.unwrap(),
            Some(call) = calls.recv() => run.step(Event::Call(call)).await,
            () = tokio::time::sleep(Duration::from_millis(100)) => run.step(Event::Wake).await,
        }
    }
}

fn names(result: &Value) -> Vec<&str> {
    let interfaces = result["interfaces"].as_array().unwrap();
    interfaces
        .iter()
        .map(|interface| interface["name"].as_str().unwrap())
        .collect()
}

/// Each command of the specification that the list's version has, in the order of a pod's life.
async fn lives(version: &str) {
    let host = Arc::new(Host::new(version));
    let mut run = Run::new("n1", &host.cluster.nodes[0].space);
    let members = Members {
        required_namespaces: ["cart".to_owned()].into(),
    };
    members.write(&host.at("run/members.json")).unwrap();
    let mut world = world();
    add_pod(&mut world, "web");
    run.step(Event::World(Arc::new(world.clone()))).await;
    let (sender, mut calls) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let pulse = Readiness::default().pulse("CNI socket", Duration::from_secs(60));
    let (socket, until) = (host.socket(), stop.clone());
    let served = tokio::spawn(async move { serve(&socket, sender, pulse, until).await });
    while !host.socket().exists() {
        tokio::task::yield_now().await;
    }
    let web = Arc::new(Space::new("web"));
    let has_modern = version == "1.1.0";

    if has_modern {
        answered(&host, &mut run, &mut calls, ("status", "web", &web))
            .await
            .unwrap();
    }
    let added = answered(&host, &mut run, &mut calls, ("add", "web", &web))
        .await
        .unwrap();
    assert_eq!(added["cniVersion"], version);
    let ours = names(&added)
        .iter()
        .position(|name| *name == "sl-shop")
        .expect("ours");
    assert_eq!(
        ours,
        names(&added).len() - 1,
        "behind the others': their indices hold"
    );
    assert_eq!(
        added["interfaces"][ours]["mtu"],
        if has_modern { json!(1370) } else { Value::Null }
    );
    let address = added["ips"][0]["address"].as_str().unwrap();
    assert!(
        address.starts_with("10.244.7.") && added["ips"].as_array().unwrap().len() == 1,
        "the pod's address is the first plugin's: {added}"
    );
    assert!(web.ip("-br addr show sl-shop").contains("10.80.0.8"));
    answered(&host, &mut run, &mut calls, ("check", "web", &web))
        .await
        .unwrap();
    // What CHECK is for: somebody has taken the interface away. The agent has not looked yet.
    web.ip("link delete sl-shop");
    run.step(Event::KernelChanged).await;
    answered(&host, &mut run, &mut calls, ("check", "web", &web))
        .await
        .expect("the agent has repaired it");
    answered(&host, &mut run, &mut calls, ("del", "web", &web))
        .await
        .unwrap();
    answered(&host, &mut run, &mut calls, ("del", "web", &web))
        .await
        .expect("again");

    // A pod of a Required slice whose node has no room says so, in the specification's form.
    let mut full = world.clone();
    full.blocks = Default::default();
    run.step(Event::World(Arc::new(full))).await;
    let next = Arc::new(Space::new("next"));
    let refused = answered(&host, &mut run, &mut calls, ("add", "web", &next))
        .await
        .unwrap_err();
    assert!(
        refused.contains("cart/web") && refused.contains("has no SliceBlock of slice shop"),
        "{refused}"
    );
    if has_modern {
        // It takes away what no pod holds any more: with cnitool, everything.
        answered(&host, &mut run, &mut calls, ("gc", "web", &next))
            .await
            .unwrap();
    }

    // The agent is away: pods that may be in such a slice wait, others do not, and every pod can be deleted.
    stop.cancel();
    served.await.unwrap().unwrap();
    let away = Arc::new(Space::new("away"));
    let refused = host.cnitool("add", "web", &away).unwrap_err();
    assert!(refused.contains("the node agent does not answer"), "{refused}");
    host.cnitool("del", "web", &away).unwrap();
    // It is gone for good, and its list is as it was: what the runtime kept still works, and so does the program.
    fs::remove_file(host.at("run/members.json")).unwrap();
    let last = Arc::new(Space::new("last"));
    let added = host.cnitool("add", "web", &last).unwrap();
    assert!(!names(&added).contains(&"sl-shop") && last.ip("-br addr").contains("10.244.7."));
    host.cnitool("check", "web", &last).unwrap();
    if has_modern {
        host.cnitool("status", "web", &last).unwrap();
        host.cnitool("gc", "web", &last).unwrap();
    }
    host.cnitool("del", "web", &last).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn libcnis_own_tool_runs_every_command_of_1_1() {
    lives("1.1.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn libcnis_own_tool_runs_every_command_of_0_4() {
    lives("0.4.0").await;
}

/// libcni prefers a list to a single configuration of the same name, and runs ours in it.
#[tokio::test(flavor = "multi_thread")]
async fn libcnis_own_tool_runs_the_list_that_was_made_of_a_single_configuration() {
    let host = Host::single("1.0.0");
    let members = Members {
        required_namespaces: ["cart".to_owned()].into(),
    };
    members.write(&host.at("run/members.json")).unwrap();
    let pod = Space::new("pod");
    let refused = host.cnitool("add", "web", &pod).unwrap_err();
    assert!(
        refused.contains("slice-cni") && refused.contains("does not answer"),
        "{refused}"
    );
    host.cnitool("del", "web", &pod).unwrap();
    fs::remove_file(host.at("run/members.json")).unwrap();
    let added = host.cnitool("add", "web", &pod).unwrap();
    assert!(names(&added).contains(&"eth0"), "{added}");
    host.cnitool("check", "web", &pod).unwrap();
    host.cnitool("del", "web", &pod).unwrap();
}
