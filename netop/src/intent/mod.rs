//! From the objects to what this node is asked for. Pure.
//!
//! ```text
//!  World ─┬─ memberships ─► ledger   who keeps an index
//!         ├─ segment ─────► a slice on this node: whom it exchanges frames with
//!         ├─ exits ───────► which gateways its frames to other clusters take
//!         └─ attach ──────► its pods: an index, or the obstacle
//! ```
//!
//! Everything that cannot be done is reported here, with the next step, and never stops the rest.

mod exits;
mod gateway;
mod memo;
mod segment;
#[cfg(test)]
mod testing;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use kube::ResourceExt;
use slice_crds::{
    Mac, Rate, Subnets, annotations,
    conditions::reason,
    membership::Rules,
    names,
    v1alpha1::{AttachMode, SliceBlock},
};

pub use gateway::gateway_config;
pub use memo::Memo;

use crate::{
    desired::{AttachmentIntent, NodeIntent},
    ledger::{Exhausted, Grant, Holder, Ledger},
    liveness::{self, Health},
    mesh::{self, Peer, Peers},
    model::{Name, Netns, Queues},
    shares::Part,
    world::{PodView, SliceFacts, World},
};

/// What is known on this node besides the objects.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// This node's name.
    pub node: String,
    /// This node's address.
    pub address: Option<IpAddr>,
    /// Pods' network namespaces, by pod UID.
    pub sandboxes: BTreeMap<String, Netns>,
    /// Pods' own addresses as the network plugin gave them, by pod UID: before the kubelet reports them.
    pub pod_addresses: BTreeMap<String, Vec<IpAddr>>,
    /// Gateways on this node that carry frames, by slice and ordinal, and what they report.
    pub carrying: BTreeMap<(String, u32), Health>,
    /// TAP devices of gateways on this node that have, or are about to get, one.
    pub taps: BTreeMap<(String, u32), Queues>,
    /// What is observed of other nodes' gateways.
    pub liveness: liveness::View,
    /// What the interface with the node's address carries.
    pub underlay: Option<Rate>,
    /// Which part of what a slice is given falls to this node, by slice.
    pub parts: BTreeMap<String, Part>,
}

/// What is asked for, and what is to be reported about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub node: NodeIntent,
    /// By pod UID; pods that are in no slice and ask for none are absent.
    pub pods: BTreeMap<String, PodDecision>,
    /// What is wrong with a slice on this node, by slice.
    pub problems: BTreeMap<String, String>,
    /// Other nodes' gateways that are to be watched, by the node's address.
    pub watched: BTreeMap<IpAddr, BTreeSet<liveness::Gateway>>,
    /// Other nodes that answer probes.
    pub peers: Arc<Peers>,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDecision {
    /// By slice.
    pub slices: BTreeMap<String, Wanted>,
    /// Labels that cannot be followed.
    pub errors: Vec<String>,
}

/// One pod in one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whether the pod's containers wait for it.
    pub required: bool,
    pub outcome: Result<Placed, Obstacle>,
}

/// Why a pod cannot be attached at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error(
        "the pod's network namespace is not known yet: the CNI plugin names it when the pod starts, or the container \
         runtime's record under /var/lib/cni/results does"
    )]
    NoNamespace,
    #[error(
        "this node has no SliceBlock of slice {0} yet: the cluster operator makes one; see the slice's conditions \
         where it does not"
    )]
    NoBlock(String),
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    #[error(
        "slices {slice} and {other} have overlapping subnets, and a pod can be in only one of them: give one of them \
         another subnet, or take the pod out of one"
    )]
    Conflict { slice: String, other: String },
    #[error(
        "slice {slice} has the subnet {subnet}, and {address} in it is {whose}: with the slice's route the pod would be \
         cut off from its own cluster; make the slice anew with a subnet that none of its clusters uses, or keep the pod \
         out of it with the label weft.dev/exclude=true"
    )]
    OwnNetwork {
        slice: String,
        subnet: IpNet,
        address: IpAddr,
        whose: Whose,
    },
    #[error(
        "the containers of runtime class {0} have a network of their own, apart from the pod's network namespace, and an \
         interface that is put there does not reach them (gVisor, Kata): run the pod by another runtime class, or keep it \
         out of the slice with the label weft.dev/exclude=true"
    )]
    OwnStack(String),
}

/// Whose address is in a slice's subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Pod,
    Node,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "the pod's own address",
            Self::Node => "the address of the pod's node",
        })
    }
}

impl Obstacle {
    /// The reason of an event about it.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoNamespace | Self::NoBlock(_) | Self::Exhausted(_) => "AttachFailed",
            Self::Conflict { .. } | Self::OwnNetwork { .. } => reason::ADDRESS_CONFLICT,
            Self::OwnStack(_) => "RuntimeNotSupported",
        }
    }

    /// What tells it from other obstacles, without the figures that change while it lasts.
    pub fn identity(&self) -> String {
        match self {
            Self::Exhausted(_) => "exhausted".to_owned(),
            Self::NoNamespace
            | Self::NoBlock(_)
            | Self::Conflict { .. }
            | Self::OwnNetwork { .. }
            | Self::OwnStack(_) => self.to_string(),
        }
    }

    /// Whether the pod has nothing to wait for: an index that it has is given back.
    const fn is_lasting(&self) -> bool {
        match self {
            Self::NoNamespace | Self::NoBlock(_) | Self::Exhausted(_) => false,
            Self::Conflict { .. } | Self::OwnNetwork { .. } | Self::OwnStack(_) => true,
        }
    }
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub port: Name,
    pub index: u32,
    pub interface: String,
    pub addresses: Vec<IpAddr>,
    pub mac: Mac,
    pub mtu: u32,
}

/// Decides everything for one moment. Indices come from the ledger, and go back to it; what a decision is made of that was
/// made before comes from the memo.
pub fn resolve(
    world: &World,
    local: &Local,
    ledger: &mut Ledger,
    memo: &mut Memo,
    now: Timestamp,
) -> Decision {
    let mut decision = Decision::default();
    if world.teardown() {
        ledger.retain(now, |_, _| false);
        return decision;
    }
    for (name, error) in &world.broken {
        decision.problem(name, format!("the Slice cannot be understood: {error}"));
    }
    accept_grants(world, local, ledger, &mut decision);
    let rules = world.rules();
    let memberships = memberships(world, &rules);
    ledger.retain(now, |slice, holder| {
        memberships
            .get(holder.uid.as_str())
            .is_some_and(|membership| membership.slices.contains(slice))
    });
    memo.retain(world);
    let adjacencies = adjacencies(local);
    let mut resolved = BTreeMap::new();
    for (name, facts) in &world.slices {
        let of_slice = adjacencies.get(&facts.spec.vni);
        let now = memo::Now {
            slice: name,
            facts,
            world,
            local,
            ledger,
            adjacencies: of_slice.map_or(&[], Vec::as_slice),
        };
        let segment = memo.resolve(&now, || segment::segment(world, local, ledger, name, facts));
        match segment {
            Some(Ok(segment)) => {
                decision.node.local = Some(segment.local);
                for (node, gateway) in &segment.watched {
                    decision.watched.entry(*node).or_default().insert(*gateway);
                }
                if let Some(problem) = &segment.problem {
                    decision.problem(name, problem.clone());
                }
                resolved.insert(name.as_str(), segment);
            }
            Some(Err(problem)) => decision.problem(name, problem),
            None => {}
        }
    }
    decision.node.nodes = memo.nodes(|| nodes(world, local));
    decision.peers = memo.peers(|| peers(world, local));
    decision.node.uplink = uplink(world).or(local.underlay);
    decision.node.parts.clone_from(&local.parts);
    let mut attachments: Attachments<'_> = resolved.keys().map(|slice| (*slice, BTreeMap::new())).collect();
    for (uid, pod) in &world.pods {
        attach(
            world,
            local,
            ledger,
            now,
            pod,
            &memberships[uid.as_str()],
            (&mut decision, &mut attachments),
        );
    }
    for (slice, attachments) in attachments {
        let segment = memo.whole(slice, &resolved[slice].intent, attachments);
        decision.node.segments.insert(slice.to_owned(), segment);
    }
    decision
}

/// What the node is said to have to other clusters, where that makes sense.
fn uplink(world: &World) -> Option<Rate> {
    world.node.as_ref()?.spec.uplink.as_ref()?.parse().ok()
}

/// Addresses of this cluster's nodes.
fn nodes(world: &World, local: &Local) -> BTreeSet<IpAddr> {
    let takes_part = |block: &&SliceBlock| block.spec.withdrawn.is_none() || block.spec.node == local.node;
    let blocks = world.blocks.iter().map(AsRef::as_ref).filter(takes_part);
    let addresses = blocks.map(|block| block.spec.node_address);
    addresses
        .filter(|address| segment::is_node_address(*address))
        .collect()
}

/// Nodes of this node's slices that answer probes, with the largest size that a slice of both could have.
fn peers(world: &World, local: &Local) -> Peers {
    let mut peers = Peers::new();
    for (slice, own) in world.blocks.of_node(&local.node) {
        let Some(facts) = world.slices.get(slice) else {
            continue;
        };
        let mtu = facts.spec.mtu;
        let (own, size) = (&own.spec, facts.spec.largest_mtu.unwrap_or(mtu).max(mtu));
        let others = world.blocks.of_slice(slice).into_iter();
        for (node, block) in others.flat_map(|blocks| blocks.iter()) {
            let answers = (block.status.as_ref()).is_some_and(|status| status.answers_probes);
            if *node == local.node || !answers || own.withdrawn.is_some() {
                continue;
            }
            let Ok(address) = segment::reach((&local.node, own), (node, &block.spec)) else {
                continue;
            };
            let peer = peers.entry(address).or_insert_with(|| Peer {
                node: node.clone(),
                size,
                asked: mesh::asks(own.node_address, address),
            });
            peer.size = peer.size.max(size);
        }
    }
    peers
}

/// Pods' ports, by slices that this node takes part in.
type Attachments<'a> = BTreeMap<&'a str, BTreeMap<Name, AttachmentIntent>>;

/// What is observed of other nodes' gateways, by their slice's number.
fn adjacencies(local: &Local) -> BTreeMap<u32, Vec<memo::Observed<'_>>> {
    let mut by_slice: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (key, adjacency) in local.liveness.iter() {
        let (_, (vni, _)) = key;
        by_slice.entry(*vni).or_default().push((*key, adjacency));
    }
    by_slice
}

impl Decision {
    fn problem(&mut self, slice: &str, problem: String) {
        let problems = self.problems.entry(slice.to_owned()).or_default();
        if !problems.is_empty() {
            problems.push_str("; ");
        }
        problems.push_str(&problem);
    }
}

/// Takes over which blocks this node has, of every slice.
fn accept_grants(world: &World, local: &Local, ledger: &mut Ledger, decision: &mut Decision) {
    ledger.retain_grants(|slice| world.blocks.get(slice, &local.node).is_some());
    for (slice, block) in world.blocks.of_node(&local.node) {
        let grant = Grant {
            uid: block.uid().unwrap_or_default(),
            generation: block.metadata.generation.unwrap_or_default(),
            blocks: block.spec.blocks.clone(),
            releasing: block.spec.releasing.clone(),
        };
        if let Err(outdated) = ledger.accept(slice, grant)
            && world.slices.contains_key(slice)
        {
            decision.problem(slice, outdated.to_string());
        }
    }
}

type Memberships<'a> = BTreeMap<&'a str, slice_crds::membership::Membership<'a>>;

fn memberships<'a>(world: &'a World, rules: &'a [Rules]) -> Memberships<'a> {
    let pods = world.pods.iter();
    pods.map(|(uid, pod)| (uid.as_str(), world.membership(pod, rules)))
        .collect()
}

fn attach(
    world: &World,
    local: &Local,
    ledger: &mut Ledger,
    now: Timestamp,
    pod: &PodView,
    membership: &slice_crds::membership::Membership<'_>,
    (decision, attachments): (&mut Decision, &mut Attachments<'_>),
) {
    if membership.slices.is_empty() && membership.errors.is_empty() {
        return;
    }
    let uid = &pod.uid;
    let mut of_pod = PodDecision {
        slices: BTreeMap::new(),
        errors: membership.errors.iter().map(ToString::to_string).collect(),
    };
    // What a pod has goes before what it might get.
    let mut slices: Vec<&str> = membership.slices.iter().copied().collect();
    slices.sort_by_key(|slice| ledger.index_of(slice, uid).is_none());
    for slice in slices {
        let facts = &world.slices[slice];
        let overlaps = |other: &&String| subnets_overlap(&world.slices[*other].subnets, &facts.subnets);
        let taken = of_pod.slices.iter().filter(|(_, wanted)| wanted.outcome.is_ok());
        // DNS binds its sockets to one interface each, so it may have one address twice.
        let conflict = match World::is_dns(pod) {
            true => None,
            false => taken.map(|(other, _)| other).find(overlaps),
        };
        let outcome = match conflict {
            Some(other) => Err(Obstacle::Conflict {
                slice: slice.to_owned(),
                other: other.clone(),
            }),
            None => place(world, local, ledger, now, (slice, facts), pod),
        };
        match &outcome {
            Ok(placed) => {
                let bandwidth = pod.bandwidth.as_deref();
                let limit = bandwidth.map_or(Ok(None), |text| annotations::bandwidth(text, slice));
                if let Err(error) = &limit {
                    let error = format!("{error}; until it is put right the pod has no limit");
                    if !of_pod.errors.contains(&error) {
                        of_pod.errors.push(error);
                    }
                }
                if let (Some(netns), Some(of_slice)) = (local.sandboxes.get(uid), attachments.get_mut(slice))
                {
                    let attachment = AttachmentIntent {
                        index: placed.index,
                        router: world.lets_route(pod, facts),
                        limit: limit.unwrap_or_default(),
                        netns: netns.clone(),
                    };
                    of_slice.insert(placed.port.clone(), attachment);
                }
            }
            Err(obstacle) if obstacle.is_lasting() => ledger.give_back(slice, uid, now),
            Err(_) => {}
        }
        let required = facts.rules.attach == AttachMode::Required && !World::is_dns(pod);
        of_pod
            .slices
            .insert(slice.to_owned(), Wanted { required, outcome });
    }
    decision.pods.insert(uid.clone(), of_pod);
}

fn place(
    world: &World,
    local: &Local,
    ledger: &mut Ledger,
    now: Timestamp,
    (slice, facts): (&str, &SliceFacts),
    pod: &PodView,
) -> Result<Placed, Obstacle> {
    if world.blocks.get(slice, &local.node).is_none() {
        return Err(Obstacle::NoBlock(slice.to_owned()));
    }
    if let Some(class) = pod.runtime_class.as_deref().filter(|class| has_own_stack(class)) {
        return Err(Obstacle::OwnStack(class.to_owned()));
    }
    own_network(local, slice, &facts.subnets, pod)?;
    if !local.sandboxes.contains_key(&pod.uid) {
        return Err(Obstacle::NoNamespace);
    }
    let holder = Holder {
        uid: pod.uid.clone(),
        namespace: pod.facts.namespace.clone(),
        name: pod.name.clone(),
    };
    let index = ledger.allocate(slice, holder, facts.subnets, now)?;
    Ok(Placed {
        port: Name::new(names::pod_port(slice, &pod.uid)),
        index,
        interface: names::pod_interface(slice),
        addresses: facts.subnets.addresses(index).map(|net| net.addr()).collect(),
        mac: Mac::of_index(index),
        mtu: facts.spec.mtu.into(),
    })
}

/// Whether a runtime class is one of those whose containers do not use the pod's network namespace as it is. Which runtime a
/// class stands for only the node knows; its name is what their documentation, GKE and AKS call it.
fn has_own_stack(class: &str) -> bool {
    let class = class.to_ascii_lowercase();
    ["gvisor", "runsc", "kata"]
        .iter()
        .any(|name| class.contains(name))
}

/// Refuses a slice whose route in the pod would cover what the pod needs of its own cluster.
fn own_network(local: &Local, slice: &str, subnets: &Subnets, pod: &PodView) -> Result<(), Obstacle> {
    let of_plugin = local.pod_addresses.get(&pod.uid).into_iter().flatten();
    let of_pod = pod
        .addresses
        .iter()
        .chain(of_plugin)
        .map(|address| (*address, Whose::Pod));
    let of_node = local.address.map(|address| (address, Whose::Node));
    for (address, whose) in of_pod.chain(of_node) {
        if let Some(subnet) = subnet_of(subnets, address) {
            return Err(Obstacle::OwnNetwork {
                slice: slice.to_owned(),
                subnet,
                address,
                whose,
            });
        }
    }
    Ok(())
}

fn subnet_of(subnets: &Subnets, address: IpAddr) -> Option<IpNet> {
    let all = subnets
        .v4
        .map(IpNet::from)
        .into_iter()
        .chain(subnets.v6.map(IpNet::from));
    all.into_iter().find(|subnet| subnet.contains(&address))
}

fn subnets_overlap(a: &Subnets, b: &Subnets) -> bool {
    let v4 =
        a.v4.zip(b.v4)
            .is_some_and(|(a, b)| a.contains(&b.network()) || b.contains(&a.network()));
    let v6 =
        a.v6.zip(b.v6)
            .is_some_and(|(a, b)| a.contains(&b.network()) || b.contains(&a.network()));
    v4 || v6
}
