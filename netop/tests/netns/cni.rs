//! The CNI plugin's socket where the agent is short of something, or does not answer.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::symlink,
        unix::net::UnixStream,
    },
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    },
};
use prometheus::IntCounter;
use slice_netop::{
    agent::Chain,
    chain,
    cni::{
        host::{HostRoot, Mounts},
        install::Installer,
        plugin::{Environment, run},
        server::{Call, serve},
        wire::Reply,
    },
    pods::Sandbox,
    sandboxes,
    world::World,
};
use slice_runtime::admin::Readiness;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::support::{Space, move_link};

const QUESTION: &str = r#"{"command":"ADD","containerId":"c","podNamespace":"cart","podName":"web"}"#;

/// A server whose questions come out of the channel.
fn started(path: &Path) -> (mpsc::Receiver<Call>, CancellationToken) {
    let (calls, called) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let (path, until) = (path.to_owned(), stop.clone());
    let pulse = Readiness::default().pulse("CNI socket", Duration::from_secs(60));
    tokio::spawn(async move { serve(&path, calls, pulse, until).await.unwrap() });
    (called, stop)
}

/// Waits until somebody listens, and has answered one question to the end.
async fn listening(path: &Path, called: &mut mpsc::Receiver<Call>) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut client = loop {
        if let Ok(client) = UnixStream::connect(path) {
            break client;
        }
        assert!(Instant::now() < deadline, "nobody listens");
        tokio::task::yield_now().await;
    };
    ask(&mut client);
    answered(&mut client, called.recv().await.unwrap());
}

fn ask(client: &mut UnixStream) {
    client.write_all(QUESTION.as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
}

fn answered(client: &mut UnixStream, call: Call) {
    call.reply.send(Reply::Attached(vec![])).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, r#"{"attached":[]}"#);
}

/// Few descriptors for this process, until it is dropped.
struct Limit(u64, u64);

impl Limit {
    fn set(most: u64) -> Self {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, hard).unwrap();
        Self(soft, hard)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, self.0, self.1);
    }
}

/// A process at its limit of descriptors cannot accept; it must not stop to try.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_could_not_take_a_question_takes_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cni.sock");
    let (mut called, _stop) = started(&path);
    listening(&path, &mut called).await;
    let client = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    // Whatever is free below the limit is taken.
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let limit = Limit::set(open + 16);
    let mut taken: Vec<OwnedFd> = vec![];
    while let Ok(one) = nix::unistd::dup(&client) {
        taken.push(one);
    }
    connect(client.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    // SAFETY: the descriptor is this function's own, and given away here.
    let mut client = unsafe { UnixStream::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(client)) };
    ask(&mut client);
    let none = tokio::time::timeout(Duration::from_millis(300), called.recv()).await;
    assert!(none.is_err(), "control: it cannot be taken");
    drop((taken, limit));
    let call = tokio::time::timeout(Duration::from_secs(5), called.recv()).await;
    answered(&mut client, call.expect("it is taken once it can be").unwrap());
}

/// The agent takes every question and answers none; or nobody even takes them.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outside_slices_waits_300_ms_at_most_whatever_the_agent_does() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().to_owned();
    std::fs::write(folder.join("members.json"), r#"{"requiredNamespaces":["bank"]}"#).unwrap();
    let path = folder.join("cni.sock");
    let (mut called, stop) = started(&path);
    listening(&path, &mut called).await;
    let asks = |namespace: &str| {
        let environment = Environment {
            command: "ADD".into(),
            container_id: "c".into(),
            netns: "/run/netns/x".into(),
            args: format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u"),
        };
        let config = format!(
            r#"{{"cniVersion":"1.0.0","socket":"{0}/cni.sock","members":"{0}/members.json"}}"#,
            folder.display()
        );
        tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            (run(&environment, &config).is_ok(), begun.elapsed())
        })
    };
    // 200 pods of a slice wait.
    let waiting: Vec<_> = (0..200).map(|_| asks("bank")).collect();
    let mut held = vec![];
    while held.len() < 200 {
        held.push(called.recv().await.unwrap());
    }
    let (started, took) = asks("cart").await.unwrap();
    assert!(
        started && took < Duration::from_secs(1),
        "{took:?} behind 200 that wait"
    );
    drop(held);
    for one in waiting {
        assert!(
            !one.await.unwrap().0,
            "without an answer a pod of a slice does not start"
        );
    }
    // A process that is stopped still listens, until its queue is full.
    stop.cancel();
    drop(called);
    let deadline = Instant::now() + Duration::from_secs(5);
    while UnixStream::connect(&path).is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
        tokio::task::yield_now().await;
    }
    std::fs::remove_file(&path).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut queue = vec![];
    loop {
        let one = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_NONBLOCK,
            None,
        )
        .unwrap();
        if connect(one.as_raw_fd(), &UnixAddr::new(&path).unwrap()).is_err() {
            break;
        }
        queue.push(one);
    }
    let (started, took) = asks("cart").await.unwrap();
    assert!(
        started && took < Duration::from_secs(1),
        "{took:?} behind a full queue"
    );
    drop(listener);
}

/// Runs a test where `container/etc/cni` and `container/opt/cni` are bind mounts of those below `host`, in a mount namespace
/// that ends with it.
fn with_mounts(test: impl FnOnce(&Path) + Send) {
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    // unshare(2) of mounts is the calling thread's; its children and the threads that it starts have them too.
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            run("mount", &["--make-rprivate", "/"]);
            // A file system of its own: there, what is removed is removed.
            run("mount", &["-t", "tmpfs", "weft-test", root.to_str().unwrap()]);
            for part in ["etc/cni", "opt/cni"] {
                let [host, container] = ["host", "container"].map(|side| root.join(side).join(part));
                std::fs::create_dir_all(&host).unwrap();
                std::fs::create_dir_all(&container).unwrap();
                run(
                    "mount",
                    &["--bind", host.to_str().unwrap(), container.to_str().unwrap()],
                );
            }
            test(root);
        });
        inside.join().unwrap();
    });
}

#[test]
fn a_directory_that_the_host_replaced_under_a_container_is_noticed() {
    with_mounts(|root| {
        let at = |path: &str| root.join(path);
        let mut mounts = Mounts::default();
        let mut check = |part: &str| mounts.check(&at("container").join(part));
        std::fs::create_dir(at("host/etc/cni/net.d")).unwrap();
        check("etc/cni/net.d").unwrap();
        check("opt/cni/bin").unwrap();
        // What is below the mount may come and go.
        std::fs::remove_dir(at("host/etc/cni/net.d")).unwrap();
        check("etc/cni/net.d").unwrap();
        // The mount's own directory may not: removed, and moved away.
        std::fs::remove_dir(at("host/etc/cni")).unwrap();
        std::fs::create_dir(at("host/etc/cni")).unwrap();
        let error = check("etc/cni/net.d").unwrap_err().to_string();
        assert!(
            error.contains("container/etc/cni") && error.contains("deleted"),
            "{error}"
        );
        check("opt/cni/bin").unwrap();
        std::fs::rename(at("host/opt/cni"), at("host/opt/old")).unwrap();
        std::fs::create_dir(at("host/opt/cni")).unwrap();
        let error = check("opt/cni/bin").unwrap_err().to_string();
        assert!(error.contains("opt/old"), "{error}");
    });
}

/// Only another container has the new directory, so the agent ends, whose next container that is.
#[test]
fn the_keeper_of_the_chain_ends_where_the_host_replaced_what_it_has_mounted() {
    with_mounts(|root| {
        let at = |path: &str| root.join(path);
        for dir in ["etc/cni/net.d", "opt/cni/bin"] {
            std::fs::create_dir(at("host").join(dir)).unwrap();
        }
        std::fs::write(at("host/opt/cni/bin/bridge"), "").unwrap();
        std::fs::write(at("plugin"), "").unwrap();
        let list = r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"bridge"}]}"#;
        std::fs::write(at("host/etc/cni/net.d/10-lab.conflist"), list).unwrap();
        let installer = Installer {
            host: HostRoot(at("container")),
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into()],
            binary: at("plugin"),
            socket: "/run/weft/cni.sock".into(),
            members: "/var/lib/weft/members.json".into(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let (_world, world) = watch::channel(Some(Arc::new(World::default())));
            let (state, mut seen) = watch::channel(Chain::default());
            let undone = IntCounter::new("undone", "test").unwrap();
            let keeper = chain::keep(installer, world, state, undone, CancellationToken::new());
            let replaced = async {
                seen.wait_for(|chain| *chain == Chain::Installed).await.unwrap();
                assert!(at("host/opt/cni/bin/slice-cni").exists());
                std::fs::rename(at("host/opt/cni"), at("host/opt/old")).unwrap();
                std::fs::create_dir_all(at("host/opt/cni/bin")).unwrap();
            };
            let both = async { tokio::join!(keeper, replaced) };
            let ended = tokio::time::timeout(Duration::from_secs(10), both).await;
            let error = ended.expect("it ends").0.unwrap_err().to_string();
            assert!(error.contains("container/opt/cni"), "{error}");
        });
    });
}

/// The plugin itself, as a runtime runs it: what it printed, where it succeeded.
fn plugin(command: &str, config: &str) -> Result<String, String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_slice-cni"))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/run/netns/x")
        .env("CNI_IFNAME", "eth0")
        .env(
            "CNI_ARGS",
            "K8S_POD_NAMESPACE=cart;K8S_POD_NAME=web;K8S_POD_UID=u",
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    if output.status.success() {
        Ok(text)
    } else {
        Err(text)
    }
}

/// CRI-O and Multus run the list that they kept when the pod started, long after Weft has been taken off.
#[test]
fn the_plugin_outlives_weft_and_stands_in_nobodys_way() {
    let directory = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"cniVersion":"1.1.0","name":"lab","type":"slice-cni","socket":"{0}/cni.sock","members":"{0}/members.json",
            "prevResult":{{"cniVersion":"1.1.0","interfaces":[{{"name":"eth0","sandbox":"/run/netns/x"}}],
            "ips":[{{"address":"10.244.1.2/24","interface":0}}]}},"cni.dev/valid-attachments":[]}}"#,
        directory.path().display()
    );
    for command in ["DEL", "CHECK", "STATUS", "GC"] {
        assert_eq!(plugin(command, &config), Ok(String::new()), "{command}");
    }
    let added: serde_json::Value = serde_json::from_str(&plugin("ADD", &config).unwrap()).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(added, config["prevResult"], "as the plugins before left it");
}

/// As Calico leaves it with libcni before 1.3: the record names the node's end of the pair, and no namespace.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_record_names_no_namespace_is_found_by_its_interface() {
    let node = Space::new("node");
    let pods = [Space::new("web"), Space::new("db")];
    let directory = tempfile::tempdir().unwrap();
    let (results, named) = (directory.path().join("results"), directory.path().join("netns"));
    std::fs::create_dir_all(&results).unwrap();
    std::fs::create_dir_all(&named).unwrap();
    let record = |pod: &str, interfaces: &str| {
        let text = format!(
            r#"{{"kind":"cniCacheV1","containerId":"c-{pod}","ifName":"eth0","networkName":"k8s-pod-network",
            "cniArgs":[["K8S_POD_NAMESPACE","cart"],["K8S_POD_NAME","{pod}"],["K8S_POD_UID","uid-{pod}"]],
            "result":{{"cniVersion":"0.3.1","interfaces":[{interfaces}],"ips":[]}}}}"#
        );
        std::fs::write(results.join(format!("k8s-pod-network-c-{pod}-eth0")), text).unwrap();
    };
    // Namespaces of others, also one that this node has nothing to do with, and one that has ended.
    let other = Space::new("other");
    symlink(other.path(), named.join("cni-0")).unwrap();
    std::fs::write(named.join("cni-ended"), "").unwrap();
    for (pod, name) in pods.iter().zip(["web", "db"]) {
        node.ip(&format!("link add cali{name} type veth peer name eth0"));
        move_link(&node, "eth0", pod, "eth0");
        symlink(pod.path(), named.join(format!("cni-{name}"))).unwrap();
    }
    record("web", r#"{"name":"caliweb"}"#);
    // Of a pod that is gone, and one whose record leads to two.
    record("gone", r#"{"name":"caligone"}"#);
    record("odd", r#"{"name":"caliweb"},{"name":"calidb"}"#);
    let stop = CancellationToken::new();
    let mut found = sandboxes::follow(results.clone(), named, Some(node.path()), stop.clone());
    let places = |found: Vec<Sandbox>| -> Vec<(String, String)> {
        let place = |sandbox: Sandbox| (sandbox.uid, sandbox.netns.display().to_string());
        found.into_iter().map(place).collect()
    };
    let of = |pod: &str| (format!("uid-{pod}"), format!("/run/netns/cni-{pod}"));
    assert_eq!(places(found.recv().await.unwrap()), [of("web")]);
    record("db", r#"{"name":"calidb"}"#);
    assert_eq!(places(found.recv().await.unwrap()), [of("db"), of("web")]);
    std::fs::remove_file(results.join("k8s-pod-network-c-web-eth0")).unwrap();
    assert_eq!(places(found.recv().await.unwrap()), [of("db")]);
    stop.cancel();
}
