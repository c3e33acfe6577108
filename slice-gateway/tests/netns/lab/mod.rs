//! Clusters on one machine: real interfaces, real sockets, the real gateway process as an unprivileged user.
//!
//! ```text
//!   a-pod0 ─┐                                                                  ┌─ b-pod0
//!   a-pod1 ─┴ a-node: bridge ─ TAP ═ a-gw0 ── wan: bridge, capture ── b-gw0 ═ TAP ─ bridge :b-node ┴─ b-pod1
//! ```
//!
//! Every box is a network namespace of its own.

mod agent;
mod capture;
mod config;
pub(crate) mod wire;

use std::{
    fs::File,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr},
    os::unix::{net::UnixListener, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use slice_frame::Mac;
use slice_runtime::{handover, tap};

use agent::{Agent, serve};
use capture::Capture;
pub(crate) use capture::packet_socket;
use config::number;
pub(crate) use config::{index, v4, v6};

pub(crate) const MTU: u16 = 1370;
/// Who the gateways run as, as in their image.
const USER: u32 = 65532;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// One lab at a time: the machine's cores are few, and liveness is measured in milliseconds.
static ONE: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Lab {
    prefix: String,
    pub(crate) clusters: Vec<Cluster>,
    directory: tempfile::TempDir,
    agents: Vec<Arc<Agent>>,
    /// Of each gateway.
    threads: u8,
    /// Clusters that every gateway is told of and that do not exist.
    pub(crate) absent: AtomicU32,
    /// The slice's.
    mtu: AtomicU16,
    /// New keys that were asked for.
    pub(crate) renewals: AtomicU32,
    /// Peers without an agent, whom every gateway is told of.
    guests: Mutex<Vec<handover::Peer>>,
    _one: MutexGuard<'static, ()>,
}

pub(crate) struct Cluster {
    pub(crate) gateways: Vec<Gateway>,
}

pub(crate) struct Gateway {
    pub(crate) name: String,
    child: Option<Child>,
    agent: usize,
}

/// How the underlay looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Underlay {
    V4,
    V6,
}

/// Polls until `done` gives something.
pub(crate) fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("run ip(8)");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Prints what a command says in a namespace, if anything.
pub(crate) fn show(namespace: &str, command: &str) {
    let words = ["netns", "exec", namespace].into_iter().chain(command.split(' '));
    let output = Command::new("ip").args(words).output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    if !output.is_empty() {
        println!("{namespace}: {command}\n{}", String::from_utf8_lossy(&output));
    }
}

/// Runs something in a network namespace, on a thread of its own. Sockets opened there stay there.
pub(crate) fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let run = || {
            let file = File::open(format!("/run/netns/{namespace}")).expect("a namespace of the lab");
            setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            work()
        };
        scope
            .spawn(run)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Lab {
    /// Clusters of so many gateways each, with two pods each; all tunnels are up.
    pub(crate) fn new(gateways: &[usize], underlay: Underlay) -> Self {
        Self::with_threads(gateways, underlay, 1)
    }

    /// The same with gateways of so many threads.
    pub(crate) fn with_threads(gateways: &[usize], underlay: Underlay, threads: u8) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces and TAP devices: run them as root \
             (sudo -E cargo test -p slice-gateway --test netns)"
        );
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let prefix = format!(
            "weftgw{}x{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = tempfile::tempdir().expect("a directory for the sockets");
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), permissions).expect("let the gateways in");
        let mut lab = Self {
            prefix,
            clusters: Vec::new(),
            directory,
            agents: Vec::new(),
            threads,
            absent: AtomicU32::new(0),
            mtu: AtomicU16::new(MTU),
            renewals: AtomicU32::new(0),
            guests: Mutex::default(),
            _one: one,
        };
        lab.namespace("wan");
        lab.disable_ipv6("wan");
        lab.ip_in("wan", "link add wan type bridge mcast_snooping 0");
        lab.ip_in("wan", "link set wan addrgenmode none up");
        for (name, gateways) in ('a'..).zip(gateways) {
            lab.add_cluster(name, *gateways, underlay);
        }
        lab.settle();
        lab
    }

    /// The full name of a namespace.
    pub(crate) fn at(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub(crate) fn namespace(&self, name: &str) {
        ip(&format!("netns add {}", self.at(name)));
        self.ip_in(name, "link set lo up");
        // Where Kubernetes runs, br_netfilter may be loaded, and new namespaces send every bridged frame through it.
        within(&self.at(name), || {
            for table in ["iptables", "ip6tables", "arptables"] {
                let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{table}"), "0");
            }
        });
    }

    fn disable_ipv6(&self, namespace: &str) {
        within(&self.at(namespace), || {
            // /proc/sys/net shows the namespace of the thread that opens a file.
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("write a sysctl");
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("write a sysctl");
        });
    }

    pub(crate) fn ip_in(&self, namespace: &str, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.at(namespace)));
    }

    fn add_cluster(&mut self, name: char, gateways: usize, underlay: Underlay) {
        let node = format!("{name}-node");
        self.namespace(&node);
        self.ip_in(&node, "link add seg0 type bridge mcast_snooping 0");
        self.ip_in(&node, "link set seg0 addrgenmode none up");
        for pod in 0..2 {
            self.add_pod(&node, name, pod);
        }
        let mut cluster = Cluster { gateways: Vec::new() };
        for ordinal in 0..gateways {
            let gateway = self.add_gateway(&node, name, ordinal, underlay);
            cluster.gateways.push(gateway);
        }
        self.clusters.push(cluster);
    }

    fn add_pod(&self, node: &str, cluster: char, pod: u32) {
        let (name, index) = (format!("{cluster}-pod{pod}"), index(cluster, pod));
        self.namespace(&name);
        let mac = Mac::of_index(index);
        let peer = self.at(&name);
        self.ip_in(
            node,
            &format!(
                "link add p{pod} mtu {MTU} type veth peer name slice0 netns {peer} address {mac} mtu {MTU}"
            ),
        );
        self.ip_in(node, &format!("link set p{pod} master seg0 addrgenmode none up"));
        self.ip_in(
            &name,
            &format!("address add {}/16 broadcast + dev slice0", v4(index)),
        );
        self.ip_in(&name, &format!("address add {}/64 dev slice0 nodad", v6(index)));
        self.ip_in(&name, "link set slice0 up");
        // Multicast goes there too.
        self.ip_in(&name, "route add 239.0.0.0/8 dev slice0");
    }

    fn add_gateway(&mut self, node: &str, cluster: char, ordinal: usize, underlay: Underlay) -> Gateway {
        let name = format!("{cluster}-gw{ordinal}");
        self.namespace(&name);
        if underlay == Underlay::V4 {
            self.disable_ipv6(&name);
        }
        let (wan, port) = (self.at("wan"), format!("{cluster}{ordinal}"));
        self.ip_in(
            &name,
            &format!("link add wan type veth peer name {port} netns {wan}"),
        );
        let address = underlay_address(cluster, ordinal, underlay).ip();
        let length = if underlay == Underlay::V4 { 24 } else { 64 };
        self.ip_in(&name, &format!("address add {address}/{length} dev wan nodad"));
        self.ip_in(&name, "link set wan addrgenmode none up");
        self.ip_in("wan", &format!("link set {port} master wan addrgenmode none up"));

        let tap = format!("tap{ordinal}");
        self.create_tap(&self.at(node), &tap);
        self.ip_in(
            node,
            &format!("link set {tap} mtu {MTU} master seg0 addrgenmode none up"),
        );
        if ordinal > 0 {
            // The node uses one gateway for what it sends; the others only inject.
            self.ip_in(
                node,
                &format!("link set dev {tap} type bridge_slave flood off mcast_flood off bcast_flood off"),
            );
        }
        let agent = Agent {
            name: format!("{cluster}/{ordinal}"),
            node: self.at(node),
            tap,
            hello: Mutex::default(),
            report: Mutex::default(),
            stream: Mutex::default(),
            calls: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        };
        let listener = self.listen(&name);
        self.agents.push(Arc::new(agent));
        let agent = self.agents.len() - 1;
        serve(self.agents[agent].clone(), listener);
        let child = Some(self.spawn(&name, ordinal));
        Gateway { name, child, agent }
    }

    /// Makes the slice's packets so large: at its pods, its nodes and its gateways.
    pub(crate) fn set_slice_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
        for name in ('a'..).zip(&self.clusters).map(|(name, _)| name) {
            for pod in 0..2 {
                self.ip_in(&format!("{name}-pod{pod}"), &format!("link set slice0 mtu {mtu}"));
                self.ip_in(&format!("{name}-node"), &format!("link set p{pod} mtu {mtu}"));
            }
        }
        for agent in &self.agents {
            ip(&format!("-n {} link set {} mtu {mtu}", agent.node, agent.tap));
        }
        self.configure();
    }

    /// Makes the underlay's packets so large at a gateway's own device, as on a pod network with an overhead of its own.
    pub(crate) fn set_device_mtu(&self, gateway: &str, mtu: u16) {
        self.ip_in(gateway, &format!("link set wan mtu {mtu}"));
    }

    /// Makes the path to and from a gateway carry so much; what is longer disappears without a word.
    pub(crate) fn set_path_mtu(&self, gateway: &str, mtu: u16) {
        let port = gateway.replace("-gw", "");
        // A device takes a VLAN tag beyond its MTU (net/core/dev.c: is_skb_forwardable), and so a packet longer by that.
        let mtu = mtu - 4;
        self.ip_in("wan", &format!("link set {port} mtu {mtu}"));
    }

    fn create_tap(&self, node: &str, name: &str) {
        within(node, || tap::create(name, self.threads > 1)).expect("make a TAP device");
    }

    fn socket(&self, gateway: &str) -> PathBuf {
        self.directory.path().join(format!("{gateway}.sock"))
    }

    fn listen(&self, gateway: &str) -> UnixListener {
        let path = self.socket(gateway);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("listen for the gateway");
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&path, permissions).expect("let the gateway in");
        listener
            .set_nonblocking(true)
            .expect("a listener that can be stopped");
        listener
    }

    fn spawn(&self, gateway: &str, ordinal: usize) -> Child {
        // Copied where that user may read it.
        let binary = self.directory.path().join("slice-gateway");
        if !binary.exists() {
            let built = env!("CARGO_BIN_EXE_slice-gateway");
            let other = std::env::var("WEFT_TEST_GATEWAY").unwrap_or_else(|_| built.to_owned());
            std::fs::copy(other, &binary).expect("copy the gateway");
        }
        within(&self.at(gateway), || {
            Command::new(&binary)
                .args([
                    "--ordinal",
                    &ordinal.to_string(),
                    "--log-format",
                    "text",
                    "--log",
                    &log_filter(),
                ])
                // Not where it is the default: another build may not know of it.
                .args((self.threads > 1).then(|| format!("--threads={}", self.threads)))
                .arg("--socket")
                .arg(self.socket(gateway))
                .uid(USER)
                .gid(USER)
                .stdin(Stdio::null())
                .spawn()
                .expect("start the gateway")
        })
    }

    /// Waits until every tunnel is up, as the gateways report it, having told them about each other.
    pub(crate) fn settle(&self) {
        for agent in &self.agents {
            eventually(&format!("gateway {} calls", agent.name), || {
                agent.hello().map(drop)
            });
        }
        self.configure();
        for agent in &self.agents {
            let expected = self
                .config_of(agent)
                .peers
                .iter()
                .map(|peer| peer.gateways.len())
                .sum::<usize>();
            eventually(&format!("all tunnels of {} are up", agent.name), || {
                let report = agent
                    .report
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let up = report.tunnels.iter().filter(|tunnel| tunnel.up).count();
                (up == expected && report.tunnels.len() == expected).then_some(())
            });
        }
    }

    /// Where a gateway is on the underlay.
    fn endpoint(&self, cluster: char, ordinal: usize) -> SocketAddr {
        let namespace = self.at(&format!("{cluster}-gw{ordinal}"));
        let output = Command::new("ip")
            .args(["-n", &namespace, "-6", "address", "show", "dev", "wan"])
            .output();
        let six = String::from_utf8_lossy(&output.expect("run ip(8)").stdout).contains("fd00:");
        underlay_address(cluster, ordinal, if six { Underlay::V6 } else { Underlay::V4 })
    }

    fn gateway_mut(&mut self, name: &str) -> &mut Gateway {
        let gateways = self.clusters.iter_mut().flat_map(|cluster| &mut cluster.gateways);
        gateways
            .into_iter()
            .find(|gateway| gateway.name == name)
            .expect("a gateway of the lab")
    }

    /// Kills a gateway without warning.
    pub(crate) fn kill(&mut self, name: &str) {
        let gateway = self.gateway_mut(name);
        let agent = gateway.agent;
        let mut child = gateway.child.take().expect("a running gateway");
        child.kill().expect("kill the gateway");
        child.wait().expect("wait for the gateway");
        *self.agents[agent]
            .hello
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts a gateway that was killed.
    pub(crate) fn start(&mut self, name: &str) {
        let ordinal = name[4..].parse().expect("an ordinal");
        let child = self.spawn(name, ordinal);
        self.gateway_mut(name).child = Some(child);
    }

    /// Asks a gateway to stop and gives back whether it ended well.
    pub(crate) fn terminate(&mut self, name: &str) -> bool {
        let mut child = self.gateway_mut(name).child.take().expect("a running gateway");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal the gateway");
        child.wait().expect("wait for the gateway").success()
    }

    /// The processes of all gateways.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let gateways = self.clusters.iter().flat_map(|cluster| &cluster.gateways);
        gateways
            .filter_map(|gateway| gateway.child.as_ref().map(Child::id))
            .collect()
    }

    /// The agent of this gateway hangs up, as in a restart. Returns once the gateway has called again, with what it
    /// then said.
    pub(crate) fn hang_up(&self, name: &str) -> handover::Hello {
        let agent = self.agent(name);
        let calls = agent.calls.load(Ordering::SeqCst);
        if let Some(stream) = agent.stream.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        eventually("the gateway calls again", || {
            (agent.calls.load(Ordering::SeqCst) > calls)
                .then(|| agent.hello())
                .flatten()
        })
    }

    /// Makes the TAP device of a gateway again after it was removed, and waits until the gateway has it.
    pub(crate) fn remake_tap(&self, name: &str) {
        let agent = self.agent(name);
        let calls = agent.calls.load(Ordering::SeqCst);
        self.create_tap(&agent.node, &agent.tap);
        let node = agent.node.clone();
        ip(&format!(
            "-n {node} link set {} mtu {MTU} master seg0 addrgenmode none up",
            agent.tap
        ));
        eventually("the gateway asks for a TAP device", || {
            (agent.calls.load(Ordering::SeqCst) > calls).then_some(())
        });
        self.configure();
    }

    fn agent(&self, name: &str) -> &Agent {
        let gateways = self.clusters.iter().flat_map(|cluster| &cluster.gateways);
        &self.agents[gateways
            .into_iter()
            .find(|gateway| gateway.name == name)
            .expect("a gateway")
            .agent]
    }

    pub(crate) fn report(&self, name: &str) -> handover::Report {
        self.agent(name)
            .report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What a gateway serves on its admin port.
    pub(crate) fn admin(&self, gateway: &str, path: &str) -> String {
        within(&self.at(gateway), || {
            let mut stream = std::net::TcpStream::connect("127.0.0.1:9402").expect("reach the admin port");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            io::Write::write_all(&mut stream, request.as_bytes()).expect("ask");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("read the answer");
            answer
        })
    }

    /// A namespace of that name on the WAN, with these addresses.
    pub(crate) fn host(&self, name: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        self.namespace(name);
        let wan = self.at("wan");
        self.ip_in(
            name,
            &format!("link add wan type veth peer name {name} netns {wan}"),
        );
        self.ip_in("wan", &format!("link set {name} master wan addrgenmode none up"));
        for address in addresses {
            self.ip_in(name, &format!("address add {address}/24 dev wan"));
        }
        self.ip_in(name, "link set wan up");
    }

    /// Prints what a test that failed would ask first: tunnels and drops of each gateway, and who knows whom.
    fn describe(&self) {
        for gateway in self.clusters.iter().flat_map(|cluster| &cluster.gateways) {
            // It may be what the test has killed.
            let metrics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.admin(&gateway.name, "/metrics")
            }));
            let metrics = metrics.unwrap_or_default();
            let counts = [
                "weft_gateway_dropped",
                "weft_gateway_tunnel_up",
                "weft_gateway_sent",
            ];
            let lines = (metrics.lines())
                .filter(|line| counts.iter().any(|count| line.starts_with(count)) && !line.ends_with(" 0"));
            println!("{}:", gateway.name);
            lines.for_each(|line| println!("  {line}"));
        }
        for namespace in self.namespaces() {
            show(&namespace, "ip -s neighbour");
            show(&namespace, "bridge fdb show dynamic");
        }
    }

    /// The full names of all that were made.
    fn namespaces(&self) -> impl Iterator<Item = String> {
        let start = format!("{}-", self.prefix);
        let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(move |name| name.starts_with(&start))
    }

    /// Makes every underlay interface send packets one by one, as a device without segmentation offload does, and
    /// join them again on receipt.
    pub(crate) fn plain_wire(&self) {
        for name in self.namespaces() {
            let short = &name[self.prefix.len() + 1..];
            let devices = within(&name, || {
                let devices = nix::net::if_::if_nameindex().expect("the interfaces");
                devices
                    .iter()
                    .map(|device| device.name().to_string_lossy().into_owned())
                    .collect::<Vec<_>>()
            });
            let underlay = devices.iter().filter(|device| match short {
                "wan" => *device != "wan" && *device != "lo",
                _ => *device == "wan",
            });
            for device in underlay {
                self.ip_in(short, &format!("link set dev {device} gso_max_segs 1"));
                // A switch joins nothing.
                within(&name, || wire::offloads(device, false, short != "wan"));
            }
        }
    }

    /// Begins to record everything between the clusters.
    pub(crate) fn capture(&self) -> Capture {
        within(&self.at("wan"), Capture::start)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            println!(
                "look into the lab with: nsenter --net=/run/netns/{} (while the test is stopped)",
                self.at("wan")
            );
            self.describe();
        }
        for agent in &self.agents {
            agent.stop.store(true, Ordering::SeqCst);
        }
        for gateway in self.clusters.iter_mut().flat_map(|cluster| &mut cluster.gateways) {
            if let Some(mut child) = gateway.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for name in self.namespaces() {
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

fn log_filter() -> String {
    std::env::var("WEFT_TEST_LOG").unwrap_or_else(|_| "warn".to_owned())
}

fn underlay_address(cluster: char, ordinal: usize, underlay: Underlay) -> SocketAddr {
    let host = number(cluster) * 16 + ordinal as u32 + 1;
    match underlay {
        Underlay::V4 => SocketAddr::from(([192, 0, 2, host as u8], 51820)),
        Underlay::V6 => format!("[fd00::{host:x}]:51820").parse().expect("an address"),
    }
}
