//! Which clusters and machines there are, and every name and address that
//! follows from it. Pure.
//!
//! Pod, node-pod and Service ranges are the same in every cluster on purpose:
//! only node addresses tell clusters apart, as with clusters of different
//! owners.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::family::Family;

/// The network of all nodes, one Ethernet segment.
pub const NODE_RANGE: &str = "172.30.0.0/16";
/// The machine's own address on the node network.
pub const HOST_ADDRESS: &str = "172.30.0.1";
/// The switch's address: the nodes' default gateway, which routes nowhere else.
pub const SWITCH_ADDRESS: &str = "172.30.0.254";
/// Clusters fill the third byte of a node address, nodes the fourth above 10; what comes 100 later is free for the node to
/// move to.
pub const MAX_CLUSTERS: usize = 200;
pub const MAX_NODES: u8 = 100;

/// The order on the command line: `a:2,b:2` is cluster a with two nodes and cluster b with two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Plan {
    clusters: Vec<Cluster>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub name: String,
    /// Position in the plan, from 1; third byte of the node addresses.
    pub id: u8,
    pub control_plane: Machine,
    pub nodes: Vec<Machine>,
}

/// One set of namespaces that acts as a computer of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub name: String,
    pub cluster: String,
    pub role: Role,
    pub ip4: Ipv4Addr,
    pub ip6: Ipv6Addr,
    /// Name of its port on the switch.
    pub port: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    ControlPlane,
    /// A worker, numbered from 1 inside its cluster.
    Node(u8),
}

impl Plan {
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// Every machine, control planes first: the nodes wait for them.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        let planes = self.clusters.iter().map(|cluster| &cluster.control_plane);
        planes.chain(self.nodes())
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Machine> {
        self.clusters.iter().flat_map(|cluster| &cluster.nodes)
    }

    pub fn cluster(&self, name: &str) -> Result<&Cluster, PlanError> {
        self.clusters
            .iter()
            .find(|cluster| cluster.name == name)
            .ok_or_else(|| PlanError::NoCluster {
                name: name.to_owned(),
                known: join(self.clusters.iter().map(|cluster| cluster.name.as_str())),
            })
    }

    pub fn machine(&self, name: &str) -> Result<&Machine, PlanError> {
        self.machines()
            .find(|machine| machine.name == name)
            .ok_or_else(|| PlanError::NoMachine {
                name: name.to_owned(),
                known: join(self.machines().map(|machine| machine.name.as_str())),
            })
    }
}

impl Cluster {
    fn new(name: &str, id: u8, nodes: u8) -> Self {
        let machine = |machine: String, role: Role, last: u8| Machine {
            name: machine,
            cluster: name.to_owned(),
            role,
            ip4: Ipv4Addr::new(172, 30, id, last),
            ip6: Ipv6Addr::new(0xfd00, 0x30, id.into(), 0, 0, 0, 0, last.into()),
            port: format!("port{id}-{last}"),
        };
        Self {
            name: name.to_owned(),
            id,
            control_plane: machine(format!("cp-{name}"), Role::ControlPlane, 10),
            nodes: (1..=nodes)
                .map(|n| machine(format!("{name}{n}"), Role::Node(n), 10 + n))
                .collect(),
        }
    }

    /// The address under which the machine itself and the nodes reach the API server.
    pub fn api_server(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.control_plane.address(family), 6443)
    }

    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        std::iter::once(&self.control_plane).chain(&self.nodes)
    }
}

impl Machine {
    /// The network namespace under `/run/netns`.
    pub fn netns(&self) -> String {
        format!("weft-lab-{}", self.name)
    }

    /// The same after every boot, as a network card's: neighbours remember it for half a minute.
    pub fn mac(&self) -> String {
        let [.., id, last] = self.ip4.octets();
        format!("02:1a:b0:00:{id:02x}:{last:02x}")
    }

    /// The address that it may be moved to, as by another lease of DHCP.
    pub fn other_ip4(&self) -> Ipv4Addr {
        let [a, b, c, last] = self.ip4.octets();
        Ipv4Addr::new(a, b, c, last + MAX_NODES)
    }

    /// Of each family, first the one that it is known by.
    pub fn addresses(&self, family: Family) -> Vec<IpAddr> {
        let all = [IpAddr::V4(self.ip4), IpAddr::V6(self.ip6)];
        all.into_iter().filter(|address| family.has(*address)).collect()
    }

    /// The one that it is known by.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 | Family::Dual => self.ip4.into(),
            Family::Ipv6 => self.ip6.into(),
        }
    }

    /// What this node gives to its pods of the cluster's ranges, with its address of that family: the same for node n of
    /// every cluster. Nothing for a control plane.
    pub fn pod_ranges(&self, family: Family) -> Vec<(String, IpAddr)> {
        let Role::Node(n) = self.role else {
            return Vec::new();
        };
        let range = |address: IpAddr| match address {
            IpAddr::V4(_) => format!("10.244.{n}.0/24"),
            IpAddr::V6(_) => format!("fd44:0:0:{n:x}::/64"),
        };
        let addresses = self.addresses(family).into_iter();
        addresses.map(|address| (range(address), address)).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&join(
            self.clusters
                .iter()
                .map(|c| format!("{}:{}", c.name, c.nodes.len())),
        ))
    }
}

impl From<Plan> for String {
    fn from(plan: Plan) -> Self {
        plan.to_string()
    }
}

impl TryFrom<String> for Plan {
    type Error = PlanError;

    fn try_from(text: String) -> Result<Self, PlanError> {
        text.parse()
    }
}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let mut clusters: Vec<Cluster> = Vec::new();
        for part in text.split(',') {
            let (name, nodes) = part
                .split_once(':')
                .ok_or_else(|| PlanError::Form(part.to_owned()))?;
            check_name(name)?;
            if clusters.iter().any(|cluster| cluster.name == name) {
                return Err(PlanError::Twice(name.to_owned()));
            }
            let nodes = nodes.parse().ok().filter(|n| (1..=MAX_NODES).contains(n));
            let nodes = nodes.ok_or_else(|| PlanError::Nodes(part.to_owned()))?;
            let id = u8::try_from(clusters.len() + 1)
                .ok()
                .filter(|id| usize::from(*id) <= MAX_CLUSTERS);
            clusters.push(Cluster::new(name, id.ok_or(PlanError::TooMany)?, nodes));
        }
        Ok(Self { clusters })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("\"{0}\" is not CLUSTER:NODES, as in a:2")]
    Form(String),
    #[error(
        "cluster name \"{0}\": use 1 to 20 lower-case letters, digits and \"-\", a letter first and last, \
         not \"cp-\" in front (nodes are called after their cluster and a number)"
    )]
    Name(String),
    #[error("cluster \"{0}\" is named twice")]
    Twice(String),
    #[error("\"{0}\": a cluster has 1 to {MAX_NODES} nodes")]
    Nodes(String),
    #[error("more than {MAX_CLUSTERS} clusters")]
    TooMany,
    #[error("the lab has no cluster \"{name}\"; it has {known}")]
    NoCluster { name: String, known: String },
    #[error("the lab has no machine \"{name}\"; it has {known}")]
    NoMachine { name: String, known: String },
}

/// Node names append a number, so a cluster name that ends in a digit could collide with another's node.
fn check_name(name: &str) -> Result<(), PlanError> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase());
    let good = name.len() <= 20
        && name.chars().all(legal)
        && letter(name.chars().next())
        && letter(name.chars().next_back())
        && !name.starts_with("cp-");
    if good {
        Ok(())
    } else {
        Err(PlanError::Name(name.to_owned()))
    }
}

fn join<T: AsRef<str>>(parts: impl Iterator<Item = T>) -> String {
    let parts: Vec<T> = parts.collect();
    parts.iter().map(T::as_ref).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn plan(text: &str) -> Plan {
        text.parse().unwrap()
    }

    #[track_caller]
    fn rejects(text: &str, part_of_message: &str) {
        let error = text.parse::<Plan>().unwrap_err().to_string();
        assert!(error.contains(part_of_message), "{error}");
    }

    #[test]
    fn clusters_differ_in_node_addresses_only() {
        let plan = plan("a:2,b:2");
        let (a, b) = (&plan.clusters()[0], &plan.clusters()[1]);
        assert_eq!(a.nodes[0].ip4.to_string(), "172.30.1.11");
        assert_eq!(b.nodes[1].ip4.to_string(), "172.30.2.12");
        assert_eq!(b.nodes[1].ip6.to_string(), "fd00:30:2::c");
        let ranges = |machine: &Machine| -> Vec<String> {
            let ranges = machine.pod_ranges(Family::Dual);
            ranges.into_iter().map(|(range, _)| range).collect()
        };
        assert_eq!(ranges(&a.nodes[0]), ["10.244.1.0/24", "fd44:0:0:1::/64"]);
        assert_eq!(ranges(&a.nodes[0]), ranges(&b.nodes[0]));
        assert!(ranges(&a.control_plane).is_empty());
    }

    #[test]
    fn names_of_machines_and_ports_are_unique() {
        let plan = plan("hub:1,a:12,b:3");
        let mut names: Vec<_> = plan
            .machines()
            .flat_map(|m| [m.name.clone(), m.port.clone()])
            .collect();
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(plan.machines().all(|m| m.port.len() <= 15));
        assert_eq!(plan.machine("a12").unwrap().cluster, "a");
    }

    #[test]
    fn a_plan_survives_being_written_down() {
        assert_eq!(plan("a:2,b:1").to_string(), "a:2,b:1");
    }

    #[test]
    fn bad_plans_say_what_to_write() {
        rejects("a", "as in a:2");
        rejects("a:0", "1 to 100 nodes");
        rejects("a1:1", "a letter first and last");
        rejects("a:1,a:2", "named twice");
        assert!(
            plan("a:1")
                .machine("b1")
                .unwrap_err()
                .to_string()
                .contains("it has cp-a,a1")
        );
    }
}
