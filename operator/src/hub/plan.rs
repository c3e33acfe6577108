//! What the hub wants, from everything it sees. Pure: no client, no clock; `now` is an argument.
//!
//! A slice is served in each of its clusters that exists, has joined, and whose own networks leave its subnets alone.
//! What is wrong with one cluster or one slice is said in a condition and disturbs no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    ResourceExt,
    core::{ObjectMeta, Selector, SelectorExt},
};
use slice_crds::{
    Cidr, IndexRange, Subnets,
    conditions::{self, Verdict, reason},
    index, labels, names,
    v1alpha1::{
        Cluster, ClusterStatus, MemberReport, MemberService, MemberServiceSpec, MemberSlice, MemberSliceSpec,
        NamespaceRule, QosProfile, SliceCluster, SliceConfig, SliceConfigStatus, SliceSpec,
    },
};

use super::{
    allocate, gateways,
    member::{Member, members},
    outside, verdict,
};

/// A member that has not reported for this long is not reachable: four missed heartbeats.
pub const SILENCE: SignedDuration = SignedDuration::from_secs(60);
/// What the path between clusters takes from a packet's size: IPv6 40, UDP 8, WireGuard 32, and inside IPv4 20, UDP 8,
/// VXLAN 8, Ethernet 14. An IPv4 underlay takes 20 less; one figure for both keeps a slice working when a gateway
/// changes its address family.
pub const OVERHEAD: u16 = 130;
/// IPv6 needs at least this (RFC 8200 §5).
pub const MIN_MTU: u16 = 1280;
/// Where no member has said how large its packets may be.
const ETHERNET_MTU: u16 = 1500;

/// Everything that the hub sees.
#[derive(Default)]
pub struct World {
    pub slices: Vec<Arc<SliceConfig>>,
    pub profiles: Vec<Arc<QosProfile>>,
    pub clusters: Vec<Arc<Cluster>>,
    /// By member namespace.
    pub reports: BTreeMap<String, Arc<MemberReport>>,
    pub services: Vec<Arc<MemberService>>,
    /// What members were told last.
    pub told: Vec<Arc<MemberSlice>>,
}

/// Everything that the hub wants.
#[derive(Default)]
pub struct Plan {
    /// Registered clusters: name, the namespace that is theirs.
    pub members: BTreeMap<String, String>,
    pub member_slices: Vec<MemberSlice>,
    pub member_services: Vec<MemberService>,
    /// Namespace, name, status.
    pub slice_status: Vec<(String, String, SliceConfigStatus)>,
    pub cluster_status: Vec<(String, String, ClusterStatus)>,
}

/// One look at the world, whole.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let members = members(world, now, &mut plan);
    let mut vnis: BTreeSet<u32> = world
        .slices
        .iter()
        .filter_map(|slice| slice.status.as_ref().and_then(|status| status.vni))
        .collect();
    let mut owners = BTreeMap::new();
    for slice in in_order(&world.slices) {
        let owner = owners
            .entry(slice.name_any())
            .or_insert_with(|| slice.namespace().unwrap_or_default());
        let status = match slice.namespace().as_ref() == Some(owner) {
            true => serve(slice, world, &members, &mut vnis, now, &mut plan),
            false => refuse(
                slice,
                reason::NAME_TAKEN,
                format!(
                    "a slice named \"{}\" is there already, in namespace {owner}: choose another name, because interfaces and DNS zones are named by it",
                    slice.name_any()
                ),
                now,
            ),
        };
        plan.slice_status
            .push((slice.namespace().unwrap_or_default(), slice.name_any(), status));
    }
    plan
}

/// Oldest first, so that who came first keeps what it has.
pub(super) fn in_order<K: ResourceExt>(objects: &[Arc<K>]) -> Vec<&K> {
    let mut sorted: Vec<&K> = objects.iter().map(AsRef::as_ref).collect();
    sorted.sort_by_key(|object| {
        (
            object.creation_timestamp().map(|time| time.0),
            object.namespace(),
            object.name_any(),
        )
    });
    sorted
}

/// A slice that takes no part; what it had been given stays its own.
fn refuse(slice: &SliceConfig, reason: &'static str, message: String, now: Timestamp) -> SliceConfigStatus {
    let before = slice.status.clone().unwrap_or_default();
    let verdicts = [
        Verdict::no(conditions::ACCEPTED, reason, message.clone()),
        Verdict::no(conditions::READY, reason, message),
    ];
    SliceConfigStatus {
        conditions: conditions::conditions(&before.conditions, verdicts, slice.metadata.generation, now),
        observed_at: Some(Time(now)),
        ..before
    }
}

/// One served slice: its ranges, what its members must know, its status.
fn serve(
    slice: &SliceConfig,
    world: &World,
    members: &[Member],
    vnis: &mut BTreeSet<u32>,
    now: Timestamp,
    plan: &mut Plan,
) -> SliceConfigStatus {
    let name = slice.name_any();
    let subnets = match Subnets::new(&slice.spec.subnets) {
        Ok(subnets) => subnets,
        Err(error) => {
            return refuse(
                slice,
                reason::SUBNETS_INVALID,
                format!("spec.subnets: {error}"),
                now,
            );
        }
    };
    let mut trouble = Trouble::default();
    let chosen = chosen(slice, members, &mut trouble);
    let before = slice.status.clone().unwrap_or_default();
    let capacity = subnets.capacity();
    let block = index::block_size(capacity);
    let outside = outside::place(slice, &before, &subnets, &chosen_names(&chosen));
    for problem in outside.problems {
        trouble.add(reason::PEER_REFUSED, problem);
    }
    let held: Vec<IndexRange> = (outside.placed.iter())
        .map(|(_, place)| IndexRange::new(place.index, 1))
        .collect();
    let ranges = ranges(slice, &before, &chosen, (capacity, block, &held), &mut trouble);
    let served: Vec<(&Member, &[IndexRange])> = chosen
        .iter()
        .filter_map(|member| Some((*member, ranges.get(&member.name)?.as_slice())))
        .collect();
    let Some(vni) = before.vni.or_else(|| allocate::vni(vnis)) else {
        return refuse(
            slice,
            reason::EXHAUSTED,
            "every VXLAN network identifier is taken: remove a slice".into(),
            now,
        );
    };
    vnis.insert(vni);
    let mtu = mtu(&before, &served);
    let dscp = dscp(slice, world, &mut trouble);
    let rules = match rules(slice) {
        Ok(rules) => Some(rules),
        Err(error) => {
            trouble.add(
                reason::SELECTOR_INVALID,
                format!("{error}; the rules that were in force stay"),
            );
            None
        }
    };

    for (member, own) in &served {
        let gateway = gateways::placement(slice, &member.object);
        let spec = SliceSpec {
            vni,
            subnets: slice.spec.subnets.clone(),
            mtu,
            block_size: block,
            cluster: member.name.clone(),
            cluster_number: member.number.unwrap_or_default(),
            ranges: own.to_vec(),
            peers: (gateways::peers(&name, gateway.keys.revocation.as_deref(), member, &served).into_iter())
                .chain(
                    outside
                        .placed
                        .iter()
                        .map(|(peer, place)| outside::as_cluster(peer, place)),
                )
                .collect(),
            namespaces: match &rules {
                Some(rules) => rules_of(rules, &member.name),
                None => told(world, member, &name)
                    .map(|told| told.namespaces.clone())
                    .unwrap_or_default(),
            },
            attach: slice.spec.attach,
            gateway,
            broadcast: slice.spec.broadcast,
            dscp,
        };
        let mut object = MemberSlice::new(&name, MemberSliceSpec { slice: spec });
        object.metadata = meta(&member.namespace, &name, &name, &member.name);
        plan.member_slices.push(object);
        plan.member_services
            .extend(services_for(&name, member, &served, world));
    }
    SliceConfigStatus {
        vni: Some(vni),
        mtu: Some(mtu),
        conditions: verdict::verdicts(slice, &before.conditions, &served, trouble, now),
        clusters: slice_clusters(&name, &ranges, members),
        peers: outside.placed.into_iter().map(|(_, place)| place).collect(),
        observed_at: Some(Time(now)),
    }
}

/// What keeps a slice from being what its user wrote; the first is its reason.
#[derive(Default)]
pub(super) struct Trouble(pub(super) Vec<(&'static str, String)>);

impl Trouble {
    fn add(&mut self, reason: &'static str, message: impl Into<String>) {
        self.0.push((reason, message.into()));
    }
}

/// The members that the slice names and that can take part, by name.
fn chosen<'a>(slice: &SliceConfig, members: &'a [Member], trouble: &mut Trouble) -> Vec<&'a Member> {
    let project = slice.namespace();
    let here = || {
        members
            .iter()
            .filter(|member| member.object.namespace() == project)
    };
    let mut named: Vec<&Member> = match (&slice.spec.clusters, &slice.spec.cluster_selector) {
        (Some(clusters), _) => clusters
            .iter()
            .filter_map(|name| {
                let member = here().find(|member| member.name == *name);
                if member.is_none() {
                    let known: Vec<_> = here().map(|member| member.name.as_str()).collect();
                    trouble.add(reason::UNKNOWN_CLUSTER, format!(
                        "spec.clusters names \"{name}\", which is no Cluster in namespace {}; there are: {}. Register it with `slicectl token issue {name}`, or correct the name",
                        project.as_deref().unwrap_or_default(), or_none(&known.join(", ")),
                    ));
                }
                member
            })
            .collect(),
        (None, selector) => match Selector::try_from(selector.clone().unwrap_or_default()) {
            Ok(selector) => here().filter(|member| selector.matches(member.object.labels())).collect(),
            Err(error) => {
                trouble.add(reason::SELECTOR_INVALID, format!("spec.clusterSelector: {error}"));
                Vec::new()
            }
        },
    };
    named.sort_by(|a, b| a.name.cmp(&b.name));
    named.dedup_by(|a, b| a.name == b.name);
    if named.is_empty() && trouble.0.is_empty() {
        trouble.add(
            reason::NO_CLUSTERS,
            "spec.clusterSelector matches no Cluster: label one, or widen the selector",
        );
    }
    let before = slice
        .status
        .as_ref()
        .map(|status| status.clusters.as_slice())
        .unwrap_or_default();
    named.retain(|member| {
        if member.number.is_none() || member.said().is_none() {
            trouble.add(
                reason::PENDING,
                format!(
                    "cluster {} has not joined yet: run `slicectl join` there",
                    member.name
                ),
            );
            return false;
        }
        // A cluster that has been served goes on, whatever its networks have become: its pods talk.
        let served = before
            .iter()
            .any(|cluster| cluster.name == member.name && !cluster.ranges.is_empty());
        match overlap(slice, member) {
            Some(message) => {
                trouble.add(reason::SUBNET_OVERLAP, message);
                served
            }
            None => true,
        }
    });
    named
}

fn chosen_names<'a>(chosen: &[&'a Member]) -> Vec<&'a str> {
    chosen.iter().map(|member| member.name.as_str()).collect()
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

fn overlap(slice: &SliceConfig, member: &Member) -> Option<String> {
    let said = member.said()?;
    let networks = [
        ("pod", &said.pod_cidrs),
        ("Service", &said.service_cidrs),
        ("node", &said.node_cidrs),
    ];
    slice.spec.subnets.iter().find_map(|subnet| {
        networks.iter().find_map(|(what, cidrs)| {
            let other: &Cidr = cidrs.iter().find(|cidr| cidr.overlaps(*subnet))?;
            Some(format!(
                "spec.subnets has {subnet}, which overlaps the {what} network {other} of cluster {}: choose a subnet outside it, or leave the cluster out",
                member.name
            ))
        })
    })
}

/// Ranges by cluster: those given before, and what is missing.
fn ranges(
    slice: &SliceConfig,
    before: &SliceConfigStatus,
    chosen: &[&Member],
    (capacity, block, held): (u64, u32, &[IndexRange]),
    trouble: &mut Trouble,
) -> BTreeMap<String, Vec<IndexRange>> {
    let mut ranges: BTreeMap<String, Vec<IndexRange>> = before
        .clusters
        .iter()
        .map(|cluster| (cluster.name.clone(), cluster.ranges.clone()))
        .collect();
    // A cluster that left and has taken its segment down gives its ranges back.
    ranges.retain(|name, ranges| !ranges.is_empty() && chosen.iter().any(|member| member.name == *name));
    for member in chosen {
        let nodes = member.said().map_or(1, |said| said.nodes);
        let taken: Vec<IndexRange> = ranges.values().flatten().chain(held).copied().collect();
        let own = ranges.get(&member.name).map(Vec::as_slice).unwrap_or_default();
        let wanted = member
            .slice(&slice.name_any())
            .map_or(0, |slice| slice.blocks_wanted);
        let size = match own {
            [] => allocate::first_range(capacity, block, chosen.len(), nodes),
            _ if wanted > 0 => (wanted * block).next_power_of_two(),
            _ => continue,
        };
        // Smaller pieces where the whole does not fit, down to one block.
        let sizes =
            std::iter::successors(Some(size), |size| Some(size / 2)).take_while(|size| *size >= block);
        match sizes.into_iter().find_map(|size| allocate::range(&taken, capacity, size)) {
            Some(range) => ranges.entry(member.name.clone()).or_default().push(range),
            None if own.is_empty() => trouble.add(reason::SUBNET_TOO_SMALL, format!(
                "spec.subnets {} has {capacity} addresses, too few for cluster {} beside the others: every node of a cluster takes {block} of them; create a slice with a larger subnet",
                subnets_text(slice), member.name
            )),
            None => trouble.add(reason::EXHAUSTED, format!(
                "cluster {} wants addresses for {wanted} more nodes or blocks of pods and spec.subnets {} has none left: pods that run keep theirs; move namespaces to another slice",
                member.name, subnets_text(slice)
            )),
        }
    }
    ranges
}

fn subnets_text(slice: &SliceConfig) -> String {
    slice
        .spec
        .subnets
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn mtu(before: &SliceConfigStatus, served: &[(&Member, &[IndexRange])]) -> u16 {
    let underlay = served
        .iter()
        .filter_map(|(member, _)| member.said()?.underlay_mtu)
        .min()
        .unwrap_or(ETHERNET_MTU);
    let mtu = underlay.saturating_sub(OVERHEAD).max(MIN_MTU);
    // It never grows again: pods have been told the smaller one.
    before.mtu.map_or(mtu, |old| old.min(mtu))
}

fn dscp(slice: &SliceConfig, world: &World, trouble: &mut Trouble) -> u8 {
    let Some(qos) = &slice.spec.qos else { return 0 };
    let Some(name) = &qos.profile else {
        return qos.dscp.unwrap_or_default();
    };
    let profile = world
        .profiles
        .iter()
        .find(|profile| profile.namespace() == slice.namespace() && profile.name_any() == *name);
    if profile.is_none() {
        trouble.add(reason::UNKNOWN_PROFILE, format!(
            "spec.qos.profile names \"{name}\", which is no QoSProfile in namespace {}: create it, or correct the name; until then the slice has no DSCP",
            slice.namespace().unwrap_or_default()
        ));
    }
    profile.map_or(0, |profile| profile.spec.dscp)
}

/// The slice's namespace rules; fails at the first selector that cannot be parsed.
fn rules(slice: &SliceConfig) -> Result<&[NamespaceRule], String> {
    for (position, rule) in slice.spec.namespaces.iter().enumerate() {
        for (field, selector) in [("selector", &rule.selector), ("podSelector", &rule.pod_selector)] {
            if let Some(selector) = selector {
                Selector::try_from(selector.clone())
                    .map_err(|error| format!("spec.namespaces[{position}].{field}: {error}"))?;
            }
        }
    }
    Ok(&slice.spec.namespaces)
}

/// Those of the rules that hold in a cluster.
fn rules_of(rules: &[NamespaceRule], cluster: &str) -> Vec<NamespaceRule> {
    rules
        .iter()
        .filter(|rule| rule.clusters.is_empty() || rule.clusters.iter().any(|one| one == cluster))
        .map(|rule| NamespaceRule {
            clusters: Vec::new(),
            ..rule.clone()
        })
        .collect()
}

fn told<'a>(world: &'a World, member: &Member, slice: &str) -> Option<&'a SliceSpec> {
    let is = |object: &&Arc<MemberSlice>| {
        object.namespace().as_ref() == Some(&member.namespace) && object.name_any() == slice
    };
    world.told.iter().find(is).map(|object| &object.spec.slice)
}

/// The services that the other served clusters export into the slice, as copies for this member.
fn services_for(
    slice: &str,
    member: &Member,
    served: &[(&Member, &[IndexRange])],
    world: &World,
) -> Vec<MemberService> {
    let from_owner = |service: &&Arc<MemberService>| {
        let spec = &service.spec.service;
        let owner = served
            .iter()
            .find(|(peer, _)| peer.name == spec.cluster && peer.name != member.name);
        spec.slice == slice
            && owner.is_some_and(|(peer, _)| service.namespace().as_ref() == Some(&peer.namespace))
    };
    world
        .services
        .iter()
        .filter(from_owner)
        .map(|service| {
            let spec = service.spec.service.clone();
            let name = names::service(&spec.slice, &spec.cluster, &spec.namespace, &spec.name);
            let metadata = meta(&member.namespace, &name, slice, &spec.cluster);
            MemberService {
                metadata,
                spec: MemberServiceSpec { service: spec },
            }
        })
        .collect()
}

fn meta(namespace: &str, name: &str, slice: &str, cluster: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from([
            (labels::FOR_SLICE.to_owned(), slice.to_owned()),
            (labels::FOR_CLUSTER.to_owned(), cluster.to_owned()),
        ])),
        ..ObjectMeta::default()
    }
}

fn slice_clusters(
    slice: &str,
    ranges: &BTreeMap<String, Vec<IndexRange>>,
    members: &[Member],
) -> Vec<SliceCluster> {
    ranges
        .iter()
        .map(|(name, ranges)| {
            let member = members.iter().find(|member| member.name == *name);
            let report = member
                .and_then(|member| member.slice(slice))
                .cloned()
                .unwrap_or_default();
            SliceCluster {
                name: name.clone(),
                ranges: ranges.clone(),
                attachments: report.attachments,
                gateways: report.gateways,
                dns: report.dns,
                problems: report.problems,
                observed_at: member.and_then(Member::said).map(|said| said.observed_at.clone()),
            }
        })
        .collect()
}
