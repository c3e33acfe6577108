//! Which nodes take part, at which address, and why the others do not. Pure.
//!
//! One stale, half-configured or foreign Node object must cost nobody else anything: it is left out with a sentence that
//! says why, and everything else goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Node, Taint},
    jiff::Timestamp,
};
use kube::ResourceExt;
use slice_crds::{
    annotations::{GATEWAY_ADDRESS, UPLINK},
    gateway_address::{self, can_be_dialled},
    names::AGENT_NOT_READY,
    v1alpha1::SliceNode,
};

/// A node that is not ready for this long is taken for dead: what it would do for a slice is no slice's problem.
const DEAD: Duration = Duration::from_secs(600);

/// What matters of a Node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// Those of type ExternalIP.
    external: Vec<IpAddr>,
    /// See [`GATEWAY_ADDRESS`].
    gateway_address: Option<String>,
    pub pod_cidrs: Vec<String>,
    /// What it has to other clusters, as [`UPLINK`] says.
    pub uplink: Option<String>,
    /// Since when it is not ready; `None` where it is.
    pub unready_since: Option<Timestamp>,
    /// Where it has [`AGENT_NOT_READY`]: its other taints.
    pub other_taints: Option<Vec<Taint>>,
    created: Option<Timestamp>,
    /// Why it can never take part.
    foreign: Option<&'static str>,
}

/// A node that takes part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeAddress {
    pub name: String,
    pub address: IpAddr,
}

/// The nodes of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// By name.
    pub usable: BTreeMap<String, NodeAddress>,
    /// Why others are left out, by name.
    pub left_out: BTreeMap<String, String>,
    /// Usable nodes that are not ready.
    pub unready: BTreeSet<String>,
    /// Usable nodes that have more than their address in the cluster.
    pub outside: BTreeMap<String, Outside>,
}

/// Where a node is reached from outside its cluster, as its Node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Of the family in which the nodes reach each other.
    pub external: Vec<IpAddr>,
    /// [`GATEWAY_ADDRESS`], as it is.
    pub announced: Option<String>,
}

impl Nodes {
    /// The nodes whose [`GATEWAY_ADDRESS`] cannot be followed, and why.
    pub fn misannotated(&self) -> impl Iterator<Item = (&str, String)> {
        self.outside.iter().filter_map(|(node, outside)| {
            let why = gateway_address::check(outside.announced.as_ref()?).err()?;
            Some((
                node.as_str(),
                format!(
                    "{why}. Until then its gateways are reached as before, and at the Node's own addresses"
                ),
            ))
        })
    }
}

impl NodeFacts {
    pub fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let addresses = |type_: &str| -> Vec<IpAddr> {
            let all = status
                .and_then(|status| status.addresses.as_ref())
                .into_iter()
                .flatten();
            all.filter(|address| address.type_ == type_)
                .filter_map(|address| address.address.parse().ok())
                .collect()
        };
        let spec = node.spec.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready");
        let label = |key: &str| node.labels().get(key).map(String::as_str);
        let info = status.and_then(|status| status.node_info.as_ref());
        let os = label("kubernetes.io/os").or_else(|| info.map(|info| info.operating_system.as_str()));
        let foreign = if os.is_some_and(|os| !os.is_empty() && os != "linux") {
            Some("its operating system is not Linux")
        } else if label("type") == Some("virtual-kubelet")
            || label("node.kubernetes.io/instance-type") == Some("virtual")
        {
            Some("it is a virtual node, which has no network of its own")
        } else if label("eks.amazonaws.com/compute-type") == Some("fargate") {
            Some("it runs one pod and no agents")
        } else {
            None
        };
        Self {
            name: node.name_any(),
            addresses: addresses("InternalIP"),
            external: addresses("ExternalIP"),
            gateway_address: node.annotations().get(GATEWAY_ADDRESS).cloned(),
            pod_cidrs: spec
                .map(|spec| {
                    spec.pod_cidrs
                        .clone()
                        .unwrap_or_else(|| spec.pod_cidr.clone().into_iter().collect())
                })
                .unwrap_or_default(),
            uplink: node.annotations().get(UPLINK).cloned(),
            unready_since: match ready {
                Some(ready) if ready.status == "True" => None,
                Some(ready) => ready
                    .last_transition_time
                    .as_ref()
                    .map(|time| time.0)
                    .or_else(|| created(node)),
                None => created(node),
            },
            other_taints: other_taints(node),
            created: created(node),
            foreign,
        }
    }

    /// Whether the object of this name is about this node, and not about one that had the name before.
    pub fn is_subject_of(&self, object: &SliceNode) -> bool {
        created(object) >= self.created
    }

    fn is_dead(&self, now: Timestamp) -> bool {
        self.unready_since
            .is_some_and(|since| now.duration_since(since).unsigned_abs() >= DEAD && since < now)
    }
}

fn other_taints(node: &Node) -> Option<Vec<Taint>> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let (ours, others): (Vec<_>, Vec<_>) = taints
        .iter()
        .cloned()
        .partition(|taint| taint.key == AGENT_NOT_READY);
    (!ours.is_empty()).then_some(others)
}

fn created(object: &impl ResourceExt) -> Option<Timestamp> {
    object.creation_timestamp().map(|time| time.0)
}

/// Sorts the nodes out.
pub fn sort<'a>(nodes: impl IntoIterator<Item = &'a NodeFacts>, now: Timestamp) -> Nodes {
    let mut sorted = Nodes::default();
    let mut rest: Vec<&NodeFacts> = Vec::new();
    for node in nodes {
        let why = match (node.foreign, node.addresses.is_empty()) {
            (Some(why), _) => why.to_owned(),
            (None, true) => {
                "it has no address of type InternalIP: the kubelet takes it from --node-ip, or from the \
                             cloud provider"
                    .to_owned()
            }
            (None, false) => {
                rest.push(node);
                continue;
            }
        };
        sorted.left_out.insert(node.name.clone(), why);
    }
    // Nodes reach each other in one family: the one that most of them have, IPv4 where both do.
    let have = |v4: bool| {
        rest.iter()
            .filter(|node| node.addresses.iter().any(|address| address.is_ipv4() == v4))
            .count()
    };
    let v4 = have(true) >= have(false);
    // Who is ready has an address, and of several who had it first: what comes later disturbs nothing that runs. A node that
    // came back under another name has it when its old Node is not ready any more.
    rest.sort_by_key(|node| (node.unready_since.is_some(), node.created, node.name.clone()));
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for node in rest {
        let Some(address) = node
            .addresses
            .iter()
            .find(|address| address.is_ipv4() == v4)
            .copied()
        else {
            let (family, other) = if v4 { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
            sorted.left_out.insert(
                node.name.clone(),
                format!(
                    "it has an {other} address only, and the other nodes reach each other by {family}: give it one with \
                     the kubelet's --node-ip"
                ),
            );
            continue;
        };
        if let Some(owner) = owners.get(&address) {
            sorted.left_out.insert(
                node.name.clone(),
                format!(
                    "it has the address {address}, which node {owner} has: delete the Node that is no more (`kubectl \
                     delete node NAME`), or give one of them another address"
                ),
            );
            continue;
        }
        owners.insert(address, &node.name);
        if node.is_dead(now) {
            let since = node
                .unready_since
                .map(|since| since.to_string())
                .unwrap_or_default();
            sorted.left_out.insert(
                node.name.clone(),
                format!(
                    "it is not ready since {since}: it takes part again when it is; where it is gone for good, `kubectl \
                     delete node {}`",
                    node.name
                ),
            );
            continue;
        }
        if node.unready_since.is_some() {
            sorted.unready.insert(node.name.clone());
        }
        let mut external = node.external.clone();
        external.retain(|other| other.is_ipv4() == v4 && *other != address && can_be_dialled(*other));
        external.truncate(gateway_address::MOST);
        let outside = Outside {
            external,
            announced: node.gateway_address.clone(),
        };
        if outside != Outside::default() {
            sorted.outside.insert(node.name.clone(), outside);
        }
        sorted.usable.insert(
            node.name.clone(),
            NodeAddress {
                name: node.name.clone(),
                address,
            },
        );
    }
    sorted
}

/// When a node that is not ready is to be taken for dead: the next such moment.
pub fn next_death<'a>(nodes: impl IntoIterator<Item = &'a NodeFacts>, now: Timestamp) -> Option<Duration> {
    let waits = nodes.into_iter().filter_map(|node| {
        let passed = now.duration_since(node.unready_since?).unsigned_abs();
        DEAD.checked_sub(passed)
    });
    waits.min()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn node(name: &str, addresses: &[&str], more: Value) -> NodeFacts {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        let mut object = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (pointer, value) in more.as_object().unwrap() {
            *object.pointer_mut(pointer).unwrap() = value.clone();
        }
        NodeFacts::of(&serde_json::from_value(object).unwrap())
    }

    #[track_caller]
    fn check(nodes: &[NodeFacts], usable: &[&str], left_out: &[(&str, &str)]) {
        let sorted = sort(nodes, Timestamp::from_second(NOW).unwrap());
        assert_eq!(
            sorted.usable.keys().collect::<Vec<_>>(),
            usable,
            "{:?}",
            sorted.left_out
        );
        assert_eq!(sorted.left_out.len(), left_out.len(), "{:?}", sorted.left_out);
        for (name, words) in left_out {
            assert!(sorted.left_out[*name].contains(words), "{:?}", sorted.left_out);
        }
    }

    fn unready(since: i64) -> Value {
        let time = Timestamp::from_second(NOW - since).unwrap().to_string();
        json!({"/status/conditions": [{"type": "Ready", "status": "Unknown", "lastTransitionTime": time}]})
    }

    #[test]
    fn a_plain_cluster_takes_part_whole() {
        let nodes = [
            node("a1", &["172.30.1.11"], json!({})),
            node("a2", &["172.30.1.12", "fd00::2"], json!({})),
        ];
        check(&nodes, &["a1", "a2"], &[]);
    }

    #[test]
    fn of_two_nodes_with_one_address_the_living_one_has_it() {
        let nodes = [
            node("a1", &["172.30.1.11"], json!({})),
            node("old", &["172.30.1.11"], unready(60)),
            node("a2", &["172.30.1.12"], json!({})),
        ];
        check(
            &nodes,
            &["a1", "a2"],
            &[("old", "has the address 172.30.1.11, which node a1 has")],
        );
        // Both are ready: who had it first.
        let newer = json!({"/metadata/creationTimestamp": "2026-02-01T00:00:00Z"});
        let nodes = [
            node("z1", &["172.30.1.11"], json!({})),
            node("new", &["172.30.1.11"], newer),
        ];
        check(&nodes, &["z1"], &[("new", "which node z1 has")]);
    }

    #[test]
    fn one_node_of_another_family_is_left_out() {
        let nodes = [
            node("a1", &["172.30.1.11", "fd00::1"], json!({})),
            node("a2", &["fd00::2"], json!({})),
            node("a3", &["172.30.1.13"], json!({})),
        ];
        check(&nodes, &["a1", "a3"], &[("a2", "an IPv6 address only")]);
        let nodes = [
            node("a1", &["172.30.1.11", "fd00::1"], json!({})),
            node("a2", &["fd00::2"], json!({})),
        ];
        check(&nodes, &["a1", "a2"], &[]);
    }

    #[test]
    fn foreign_nodes_are_left_out() {
        let nodes = [
            node("a1", &["172.30.1.11"], json!({})),
            node(
                "win",
                &["172.30.1.12"],
                json!({"/metadata/labels": {"kubernetes.io/os": "windows"}}),
            ),
            node(
                "vk",
                &["172.30.1.13"],
                json!({"/metadata/labels": {"type": "virtual-kubelet"}}),
            ),
            node("bare", &[], json!({})),
        ];
        check(
            &nodes,
            &["a1"],
            &[
                ("win", "not Linux"),
                ("vk", "virtual node"),
                ("bare", "no address of type InternalIP"),
            ],
        );
    }

    #[test]
    fn a_dead_node_is_nobodys_problem_and_a_short_outage_is_no_death() {
        let nodes = [
            node("a1", &["172.30.1.11"], json!({})),
            node("a2", &["172.30.1.12"], unready(599)),
        ];
        check(&nodes, &["a1", "a2"], &[]);
        let now = Timestamp::from_second(NOW).unwrap();
        assert_eq!(next_death(&nodes, now), Some(Duration::from_secs(1)));
        check(
            &[node("a2", &["172.30.1.12"], unready(600))],
            &[],
            &[("a2", "it is not ready since")],
        );
    }
}
