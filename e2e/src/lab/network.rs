//! The wires: one switch in a network namespace of its own, a port per
//! machine, and one for the real machine.
//!
//! Nothing of it touches the real machine's own network but one veth,
//! [`HOST_PORT`], and the route that its address brings.

use std::ffi::OsStr;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::family::Family;
use super::options::{NODE_LOCAL_DNS, Options};
use super::plan::{Cluster, HOST_ADDRESS, Machine, NODE_RANGE, Plan, SWITCH_ADDRESS};
use super::process::run;

/// Namespace of the switch. A capture on its `br0` sees everything between machines.
pub const SWITCH: &str = "weft-lab-switch";
/// The real machine's interface on the node network.
pub const HOST_PORT: &str = "weft-lab0";
/// Every namespace of the lab begins so.
const PREFIX: &str = "weft-lab-";
/// And those of hosts that belong to no cluster.
const HOST_PREFIX: &str = "weft-lab-host-";

/// Makes the switch and the real machine's port on it.
pub fn build_switch(options: &Options, plan: &Plan) -> Result<()> {
    check_free()?;
    add_netns(SWITCH)?;
    batch(
        Some(SWITCH),
        &format!(
            "link set lo up\n\
             link add br0 type bridge mcast_snooping 0\n\
             addr add {SWITCH_ADDRESS}/16 dev br0\n\
             addr add fd00:30::fe/32 dev br0 nodad\n\
             link set br0 up\n"
        ),
    )?;
    let set =
        |name: &str, value: &str| run(command_in(SWITCH, "sysctl").args(["-qw", &format!("{name}={value}")]));
    // Who asks for what is nowhere gets an answer at once instead of waiting half a minute. The reset for TCP: an ICMP
    // error comes back so fast that the sender still holds the socket, and then only remembers it.
    set("net.ipv4.ip_forward", "1")?;
    batch(Some(SWITCH), "route add unreachable default\n")?;
    let reset = format!(
        "add table ip lab; add chain ip lab nowhere {{ type filter hook prerouting priority 0; }}; \
         add rule ip lab nowhere ip daddr != {NODE_RANGE} meta l4proto tcp reject with tcp reset"
    );
    rules(SWITCH, &reset)?;
    // A switch does not look into packets: without this, iptables and connection tracking of the namespace would.
    if Path::new("/proc/sys/net/bridge").exists() {
        for table in ["iptables", "ip6tables", "arptables"] {
            set(&format!("net.bridge.bridge-nf-call-{table}"), "0")?;
        }
    }
    batch(
        None,
        &format!(
            "link add {HOST_PORT} type veth peer name host netns {SWITCH}\n\
             addr add {HOST_ADDRESS}/16 dev {HOST_PORT}\n\
             addr add fd00:30::1/32 dev {HOST_PORT} nodad\n\
             link set {HOST_PORT} up\n"
        ),
    )?;
    batch(Some(SWITCH), "link set host master br0 up\n")?;
    if options.delay.is_some() {
        plan.clusters().iter().skip(1).try_for_each(add_segment)?;
    }
    match options.between_clusters(plan) {
        Some(script) => rules(SWITCH, &script),
        None => Ok(()),
    }
}

/// A segment of a cluster's own and a TAP device on either side of what carries frames to it ([`super::wire`]).
fn add_segment(cluster: &Cluster) -> Result<()> {
    let (near, far) = wire_ends(cluster);
    let bridge = segment(cluster);
    let mut commands = format!("link add {bridge} type bridge mcast_snooping 0\nlink set {bridge} up\n");
    for (end, bridge) in [(near, "br0"), (far, &bridge)] {
        commands += &format!("tuntap add dev {end} mode tap\nlink set {end} master {bridge} up\n");
    }
    batch(Some(SWITCH), &commands)
}

/// The two ends of a cluster's line to the first one.
pub fn wire_ends(cluster: &Cluster) -> (String, String) {
    (format!("wan{}", cluster.id), format!("far{}", cluster.id))
}

fn segment(cluster: &Cluster) -> String {
    format!("br{}", cluster.id)
}

/// Plugs a machine into the switch and gives it routes to the pods of its cluster's other nodes.
pub fn build_machine(options: &Options, cluster: &Cluster, machine: &Machine) -> Result<()> {
    let netns = machine.netns();
    add_netns(&netns)?;
    let port = &machine.port;
    let bridge = match options.delay {
        Some(_) if cluster.id > 1 => segment(cluster),
        _ => "br0".to_owned(),
    };
    batch(
        Some(SWITCH),
        &format!(
            "link add {port} type veth peer name eth0 address {} netns {netns}\n\
             link set {port} master {bridge} up\n",
            machine.mac()
        ),
    )?;
    let mut inside = "link set lo up\n".to_owned();
    if let Some(mtu) = options.node_mtu {
        inside += &format!("link set eth0 mtu {mtu}\n");
        batch(Some(SWITCH), &format!("link set {port} mtu {mtu}\n"))?;
    }
    if options.judges_packets() {
        inside += "link set eth0 gso_max_segs 1\n";
    }
    // The other family's as well where only one is Kubernetes': nodes have more addresses than it knows of.
    if options.family != Family::Ipv6 {
        inside += &format!("addr add {}/16 dev eth0\n", machine.ip4);
    }
    inside += &format!("addr add {}/32 dev eth0 nodad\nlink set eth0 up\n", machine.ip6);
    // No cloud metadata service here: fail at once.
    inside += &match options.family {
        Family::Ipv4 | Family::Dual => {
            format!("route add default via {SWITCH_ADDRESS}\nroute add unreachable 169.254.169.254/32\n")
        }
        Family::Ipv6 => "route add default via fd00:30::fe\n".to_owned(),
    };
    for other in cluster.nodes.iter().filter(|other| other.name != machine.name) {
        for (range, via) in other.pod_ranges(options.family) {
            inside += &format!("route add {range} via {via}\n");
        }
    }
    if options.node_local_dns {
        inside += &format!("addr add {NODE_LOCAL_DNS}/32 dev lo\n");
    }
    batch(Some(&netns), &inside)?;
    match options.leaving(&cluster.nodes) {
        Some(script) => rules(&netns, &script),
        None => Ok(()),
    }
}

/// Puts an address of a machine in the place of another, with the routes that the first one brought, and leads the other nodes'
/// routes to its pods there.
pub fn move_machine(cluster: &Cluster, machine: &Machine, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
    let others = || cluster.nodes.iter().filter(|other| other.name != machine.name);
    let routes = |of: &Machine, via: Ipv4Addr| -> String {
        let ranges = of.pod_ranges(Family::Ipv4).into_iter();
        ranges
            .map(|(range, _)| format!("route replace {range} via {via}\n"))
            .collect()
    };
    let mut inside = format!(
        "addr del {from}/16 dev eth0\naddr add {to}/16 dev eth0\nroute replace default via {SWITCH_ADDRESS}\n"
    );
    for other in others() {
        inside += &routes(other, other.ip4);
    }
    batch(Some(&machine.netns()), &inside)?;
    others().try_for_each(|other| batch(Some(&other.netns()), &routes(machine, to)))
}

/// Plugs a host into the switch that belongs to no cluster, and returns its namespace.
pub fn build_host(name: &str, ip4: Ipv4Addr) -> Result<String> {
    let netns = format!("{HOST_PREFIX}{name}");
    remove_host(&netns)?;
    add_netns(&netns)?;
    batch(
        Some(SWITCH),
        &format!(
            "link add host-{name} type veth peer name eth0 netns {netns}\n\
             link set host-{name} master br0 up\n"
        ),
    )?;
    batch(
        Some(&netns),
        &format!(
            "link set lo up\n\
             addr add {ip4}/16 dev eth0\n\
             link set eth0 up\n"
        ),
    )?;
    Ok(netns)
}

/// Removes such a host, if it is there, and ends programs that serve a device of it: they would keep it alive.
pub fn remove_host(netns: &str) -> Result<()> {
    // The kernel tears a namespace down in the background; the port must be gone before it is made again.
    let port = netns.trim_start_matches(PREFIX);
    if !Path::new("/run/netns").join(netns).exists() {
        return remove_link(Some(SWITCH), port);
    }
    let served = run(Command::new("ip").args(["-n", netns, "-brief", "link", "show", "type", "tun"]))?;
    for name in served.lines().filter_map(|line| line.split_whitespace().next()) {
        remove_link(Some(netns), name)?;
    }
    remove_link(Some(SWITCH), port)?;
    remove_netns(netns)
}

/// A command that sees the network of a namespace, but the real machine's files and processes.
pub fn command_in(netns: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", Path::new("/run/netns").join(netns).display()))
        .arg("--")
        .arg(program);
    command
}

/// Removes a machine's namespace with every link in it.
pub fn remove_machine(machine: &Machine) -> Result<()> {
    remove_netns(&machine.netns())?;
    // The kernel tears a namespace down in the background; the port must be gone before it is made again.
    remove_link(Some(SWITCH), &machine.port)
}

/// Removes everything, whatever plan it was made for.
pub fn remove_all() -> Result<()> {
    remove_link(None, HOST_PORT)?;
    lab_namespaces()?.iter().try_for_each(|name| {
        if name.starts_with(HOST_PREFIX) {
            remove_host(name)?;
        }
        remove_netns(name)
    })
}

/// The lab's namespaces that exist now.
pub fn lab_namespaces() -> Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Ok(Vec::new());
    };
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with(PREFIX)).collect())
}

/// The namespaces a plan asks for and that are not there.
pub fn missing(plan: &Plan) -> Vec<String> {
    let wanted = plan.machines().map(Machine::netns).chain([SWITCH.to_owned()]);
    wanted
        .filter(|name| !Path::new("/run/netns").join(name).exists())
        .collect()
}

/// The node network must not be somebody else's already.
fn check_free() -> Result<()> {
    let routes = run(Command::new("ip").args(["-4", "route", "show", "root", NODE_RANGE]))?;
    if let Some(route) = routes.lines().next() {
        bail!(
            "{NODE_RANGE} is in use on this machine ({}): the lab's nodes need it; remove that network first",
            route.trim()
        );
    }
    Ok(())
}

fn add_netns(name: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "add", name])).map(drop)
}

fn remove_netns(name: &str) -> Result<()> {
    if !Path::new("/run/netns").join(name).exists() {
        return Ok(());
    }
    run(Command::new("ip").args(["netns", "delete", name])).map(drop)
}

fn remove_link(netns: Option<&str>, name: &str) -> Result<()> {
    let within = netns.map(|netns| ["-n", netns]);
    let mut show = Command::new("ip");
    show.args(within.into_iter().flatten())
        .args(["link", "show", "dev", name]);
    let there = show
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("run ip link show")?;
    if !there.success() {
        return Ok(());
    }
    let mut delete = Command::new("ip");
    let deleted = run(delete
        .args(within.into_iter().flatten())
        .args(["link", "delete", "dev", name]));
    match deleted {
        // The namespace of the other end may have taken it away in between.
        Err(error) if error.to_string().contains("Cannot find device") => Ok(()),
        other => other.map(drop),
    }
}

/// Gives a script to nft in a namespace.
fn rules(netns: &str, script: &str) -> Result<()> {
    run(command_in(netns, "nft").arg(script)).map(drop)
}

/// Runs several `ip` commands in one process.
fn batch(netns: Option<&str>, commands: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(netns.map(|netns| ["-n", netns]).into_iter().flatten());
    ip.args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = ip.spawn().context("run ip")?;
    child
        .stdin
        .take()
        .context("ip's input")?
        .write_all(commands.as_bytes())
        .context("write to ip")?;
    let output = child.wait_with_output().context("wait for ip")?;
    if !output.status.success() {
        let place = netns.unwrap_or("the machine's own network");
        bail!(
            "ip in {place}: {}\n{commands}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
