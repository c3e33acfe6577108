//! One slice: its allocation, what is served to its members, what its user reads.
//!
//! The allocation is planned first and written; what members get follows from the allocation that was written, never
//! from one that is only wanted.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use slice_crds::{
    Cidr, IndexRange, Subnets,
    conditions::reason,
    index, names,
    v1alpha1::{QosProfileSpec, SliceConfig, SliceConfigSpec, SliceConfigStatus},
    wire::{AllocationState as State, ClusterAllocation, SliceAllocation, SliceAllocationSpec},
};

use super::{
    core::Hub,
    size::{self, Sizes},
    state::{ClusterState, Users},
    status::{self, Trouble},
};
use crate::{
    allocation::{self, Request, Verdict},
    control::{Content, Key, Kind, Now},
    trust::{self, Claim, Given},
};

/// One cluster as the planning of a slice sees it.
pub(super) struct Member {
    pub(super) name: String,
    /// The slice is to have it.
    pub(super) chosen: bool,
    /// What of its report is believed.
    pub(super) claim: Option<Claim>,
    /// And what is not.
    pub(super) refused: Vec<trust::Violation>,
}

/// What the planning of a slice starts from.
pub(super) struct Scene<'a> {
    pub(super) slice: &'a str,
    pub(super) identity: &'a str,
    /// As it was last read.
    pub(super) config: Option<&'a SliceConfig>,
    /// Those of its earlier lives among them.
    pub(super) allocations: &'a [Arc<SliceAllocationSpec>],
    /// The one that is held.
    pub(super) current: Option<&'a SliceAllocationSpec>,
    /// Why its rules have no effect: those that were in force stay.
    pub(super) rules: Option<String>,
}

impl Hub {
    pub(super) fn plan_slice(&mut self, slice: &str, now: Now) {
        let Some(identity) = self.identity.clone() else {
            return;
        };
        let owner = self.owner(slice);
        self.refuse_namesakes(slice, owner.as_deref(), now);
        let Some(state) = self.slices.get(slice) else {
            return;
        };
        let users = owner.and_then(|owner| state.configs.get(&owner)).cloned();
        let config = users.as_ref().and_then(|users| users.object.clone());
        let allocations: Vec<Arc<SliceAllocationSpec>> = state
            .allocations
            .iter()
            .filter_map(|vni| Some(Arc::clone(&self.allocations.get(vni)?.spec)))
            .collect();
        let current = allocations
            .iter()
            .find(|allocation| allocation.state == State::Held)
            .cloned();
        match config
            .as_ref()
            .is_some_and(|config| config.spec.cluster_selector.is_some())
        {
            true => _ = self.selecting.insert(slice.to_owned()),
            false => _ = self.selecting.remove(slice),
        }
        let mut trouble = Trouble::default();
        let scene = Scene {
            slice,
            identity: &identity,
            config: config.as_deref(),
            allocations: &allocations,
            current: current.as_deref(),
            rules: config.as_ref().and_then(|config| bad_rule(config)),
        };
        if let Some(why) = &scene.rules {
            trouble.add(
                reason::SELECTOR_INVALID,
                format!("{why}; the rules that were in force stay"),
            );
        }
        let members = self.members(&scene, &mut trouble);
        self.depend(slice, self.dependencies(&scene, &members));
        // An object that nobody has ever been able to read is there: what was given stays.
        let unreadable = users.is_some() && config.is_none();
        if !unreadable {
            self.allocate(&scene, &members, &mut trouble, now);
        }
        self.serve(&scene, &members);
        let Some(users) = users else { return };
        if let Some(why) = &users.unreadable {
            trouble.add(reason::UNREADABLE, status::unreadable(why));
        }
        let status = match &config {
            Some(config) => {
                self.profile_trouble(config, &mut trouble);
                self.slice_status(&users, config, &scene, &members, trouble, now)
            }
            None => status::refused(&users, trouble, now),
        };
        self.want_slice_status(&users, status);
    }

    /// The SliceConfig that has the name: the one that was given something, otherwise the oldest.
    fn owner(&self, slice: &str) -> Option<String> {
        let state = self.slices.get(slice)?;
        let mut held = state
            .allocations
            .iter()
            .filter_map(|vni| self.allocations.get(vni));
        let held = held.find(|allocation| allocation.spec.state == State::Held);
        if let Some(held) = held.filter(|held| state.configs.contains_key(&held.spec.namespace)) {
            return Some(held.spec.namespace.clone());
        }
        let oldest = state
            .configs
            .iter()
            .min_by_key(|(namespace, config)| (config.meta.created, (*namespace).clone()));
        oldest.map(|(namespace, _)| namespace.clone())
    }

    fn refuse_namesakes(&mut self, slice: &str, owner: Option<&str>, now: Now) {
        let Some(state) = self.slices.get(slice) else {
            return;
        };
        let others: Vec<(String, Users<SliceConfig>)> = state
            .configs
            .iter()
            .filter(|(namespace, _)| Some(namespace.as_str()) != owner)
            .map(|(namespace, config)| (namespace.clone(), config.clone()))
            .collect();
        for (_, users) in others {
            let mut trouble = Trouble::default();
            trouble.add(
                reason::NAME_TAKEN,
                format!(
                    "a slice named \"{slice}\" is there already, in namespace {}: choose another name, because interfaces \
                     and DNS zones are named by it",
                    owner.unwrap_or_default()
                ),
            );
            self.want_slice_status(&users, status::refused(&users, trouble, now));
        }
    }

    /// Whose changes the slice is to be planned for again.
    fn dependencies(&self, scene: &Scene<'_>, members: &[Member]) -> BTreeSet<String> {
        let named = scene
            .config
            .and_then(|config| config.spec.clusters.as_ref())
            .into_iter()
            .flatten()
            .cloned();
        named
            .chain(members.iter().map(|member| member.name.clone()))
            .collect()
    }

    /// Every cluster that the slice chooses, that has something of it, or that reports it; by name.
    fn members(&self, scene: &Scene<'_>, trouble: &mut Trouble) -> Vec<Member> {
        let chosen = scene
            .config
            .map(|config| self.chosen(config, scene.current, trouble))
            .unwrap_or_default();
        let involved = self
            .slices
            .get(scene.slice)
            .into_iter()
            .flat_map(|state| state.involved.iter());
        let allocated = scene
            .allocations
            .iter()
            .flat_map(|one| one.clusters.iter().map(|cluster| &cluster.name));
        let names: BTreeSet<&String> = chosen.iter().chain(involved).chain(allocated).collect();
        names
            .into_iter()
            .map(|name| {
                let report = self
                    .clusters
                    .get(name)
                    .and_then(|state| state.slices.get(scene.slice));
                let (claim, refused) = report
                    .map(|report| trust::claim(report, given(name, report.vni, scene).as_ref()))
                    .unzip();
                Member {
                    name: name.clone(),
                    chosen: chosen.contains(name),
                    claim,
                    refused: refused.unwrap_or_default(),
                }
            })
            .collect()
    }

    /// The clusters that the slice names and that can take part.
    fn chosen(
        &self,
        config: &SliceConfig,
        current: Option<&SliceAllocationSpec>,
        trouble: &mut Trouble,
    ) -> BTreeSet<String> {
        let project = config.namespace().unwrap_or_default();
        let here = |name: &String| -> bool {
            let state = self.clusters.get(name);
            state
                .and_then(ClusterState::object)
                .is_some_and(|(namespace, _)| *namespace == project)
        };
        let mut chosen: BTreeSet<String> = match (&config.spec.clusters, &config.spec.cluster_selector) {
            (Some(names), _) => {
                for name in names.iter().filter(|name| !here(name)) {
                    let known: Vec<&str> = self
                        .clusters
                        .keys()
                        .filter(|name| here(name))
                        .map(String::as_str)
                        .collect();
                    trouble.add(reason::UNKNOWN_CLUSTER, format!(
                        "spec.clusters names \"{name}\", which is no Cluster in namespace {project}; there are: {}. Register it with `slicectl token issue {name}`, or correct the name",
                        or_none(&known.join(", ")),
                    ));
                }
                names.iter().filter(|name| here(name)).cloned().collect()
            }
            (None, selector) => match Selector::try_from(selector.clone().unwrap_or_default()) {
                Ok(selector) => {
                    let named = self.clusters.iter().filter(|(name, _)| here(name));
                    named
                        .filter(|(_, state)| {
                            let object = state.object().and_then(|(_, users)| users.object.as_ref());
                            object.is_some_and(|object| selector.matches(object.labels()))
                        })
                        .map(|(name, _)| name.clone())
                        .collect()
                }
                Err(error) => {
                    trouble.add(
                        reason::SELECTOR_INVALID,
                        format!("spec.clusterSelector: {error}; the clusters that it had stay"),
                    );
                    let held = current.into_iter().flat_map(|current| &current.clusters);
                    held.filter(|cluster| cluster.state == State::Held)
                        .map(|cluster| cluster.name.clone())
                        .collect()
                }
            },
        };
        if chosen.is_empty() {
            trouble.add(
                reason::NO_CLUSTERS,
                "no cluster is in it: name some in spec.clusters, or label Clusters for spec.clusterSelector"
                    .to_owned(),
            );
        }
        chosen.retain(|name| {
            let Some(state) = self.clusters.get(name) else {
                return false;
            };
            if state.facts().is_some_and(|facts| facts.leaving) {
                return false;
            }
            let Some(overlap) = overlap(config, name, state) else {
                return true;
            };
            trouble.add(reason::SUBNET_OVERLAP, overlap);
            // What comes later disturbs nothing that runs.
            current.is_some_and(|current| {
                current
                    .clusters
                    .iter()
                    .any(|cluster| cluster.name == *name && cluster.state == State::Held)
            })
        });
        chosen
    }

    fn allocate(&mut self, scene: &Scene<'_>, members: &[Member], trouble: &mut Trouble, now: Now) {
        let Scene { slice, current, .. } = *scene;
        let subnets = scene
            .config
            .map(|config| (config, Subnets::new(&config.spec.subnets)));
        let config = match subnets {
            Some((config, Ok(subnets))) => Some((config, subnets)),
            Some((_, Err(error))) => {
                trouble.add(reason::SUBNETS_INVALID, format!("spec.subnets: {error}"));
                return;
            }
            None => None,
        };
        let taken_vnis = match current {
            // It has its own.
            Some(_) => BTreeSet::new(),
            None => self.taken_vnis(slice),
        };
        let plan = |before: Option<&SliceAllocationSpec>| {
            let state = before.and_then(|before| self.allocations.get(&before.vni));
            let request = Request {
                hub: scene.identity,
                slice,
                config: config.map(|(config, subnets)| {
                    request_config(config, subnets, self.sizes(config, subnets, members))
                }),
                parties: &self.parties(scene, before, members, now),
                grace: self.settings.grace,
                at_once: state.is_some_and(|state| state.at_once),
                taken_vnis: &taken_vnis,
                now: now.wall,
            };
            allocation::next(before, &request)
        };
        // What a slice of this name was before goes its way, and the slice itself is given something.
        let fresh = (current.is_none() && config.is_some()).then_some(None);
        let befores = scene.allocations.iter().map(|one| Some(&**one)).chain(fresh);
        let plans: Vec<_> = befores.map(|before| (before, plan(before))).collect();
        for (before, plan) in plans {
            if before.is_none_or(|before| before.state == State::Held) {
                plan.troubles
                    .into_iter()
                    .for_each(|(reason, message)| trouble.add(reason, message));
            }
            if let Some(wake) = plan.wake {
                self.wake_slice(slice, wake, now);
            }
            let key = |vni| {
                Key::new(
                    Kind::SliceAllocation,
                    names::HUB_NAMESPACE,
                    &names::allocation(vni),
                )
            };
            match (plan.verdict, before) {
                (Verdict::Write(spec), before) => {
                    let base = before.and_then(|before| self.allocations.get(&before.vni));
                    let base = base.map(|state| state.version.clone());
                    let (key, name) = (key(spec.vni), names::allocation(spec.vni));
                    let content = Content::of(&SliceAllocation::new(&name, *spec));
                    self.outputs.want_from(key, content, base.as_deref());
                }
                (Verdict::Delete, Some(before)) => self.outputs.remove(key(before.vni)),
                (Verdict::Keep, Some(before)) => self.outputs.release(&key(before.vni)),
                (Verdict::Delete | Verdict::Keep, None) => {}
            }
        }
    }

    /// VNIs that are allocated, or that a member has for another slice.
    fn taken_vnis(&self, slice: &str) -> BTreeSet<u32> {
        let is_other = |holders: &BTreeSet<(String, String)>| holders.iter().any(|(_, held)| held != slice);
        let held = self.held_vnis.iter().filter(|(_, holders)| is_other(holders));
        let facts = self.clusters.values().filter_map(ClusterState::facts);
        let listed = facts
            .flat_map(|facts| facts.holds.values())
            .filter(|held| held.slice != slice);
        let all = self.allocations.keys().chain(held.map(|(vni, _)| vni));
        all.copied().chain(listed.map(|held| held.vni)).collect()
    }

    fn sizes(&self, config: &SliceConfig, subnets: Subnets, members: &[Member]) -> Sizes {
        let chosen = || members.iter().filter(|member| member.chosen);
        let underlays = chosen().filter_map(|member| self.clusters.get(&member.name)?.facts()?.underlay_mtu);
        size::of_slice(
            config.spec.gateway.mtu,
            subnets.v6.is_some(),
            underlays.min(),
            narrowest(chosen()).map(|(_, _, mtu)| mtu),
        )
    }

    fn want_slice_status(&mut self, users: &Users<SliceConfig>, status: SliceConfigStatus) {
        let reference = status::reference("SliceConfig", &users.meta);
        self.notices
            .conditions(&reference, &users.conditions, &status.conditions);
        let key = Key::new(Kind::SliceConfigStatus, &users.meta.namespace, &users.meta.name);
        self.outputs.want(key, Content::status(&status));
    }

    /// What a slice is given; nothing, where it names a profile that is not there.
    pub(super) fn qos(&self, config: &SliceConfig) -> QosProfileSpec {
        let Some(qos) = &config.spec.qos else {
            return QosProfileSpec::default();
        };
        let Some(profile) = &qos.profile else {
            return qos.inline();
        };
        let key = (config.namespace().unwrap_or_default(), profile.clone());
        self.profiles.get(&key).copied().unwrap_or_default()
    }

    fn profile_trouble(&self, config: &SliceConfig, trouble: &mut Trouble) {
        let Some(profile) = config.spec.qos.as_ref().and_then(|qos| qos.profile.clone()) else {
            return;
        };
        let namespace = config.namespace().unwrap_or_default();
        if !self.profiles.contains_key(&(namespace.clone(), profile.clone())) {
            trouble.add(reason::UNKNOWN_PROFILE, format!(
                "spec.qos.profile names \"{profile}\", which is no QoSProfile in namespace {namespace}: create it, or correct the name; until then the slice has neither guarantee nor ceiling, priority or DSCP"
            ));
        }
    }
}

/// What a member was given under the VNI that it reports, or else of the slice as it is now.
fn given(name: &str, vni: u32, scene: &Scene<'_>) -> Option<Given> {
    let reported = scene.allocations.iter().find(|one| one.vni == vni);
    let spec = reported.map(|one| &**one).or(scene.current)?;
    let own = spec.clusters.iter().find(|own| own.name == name)?;
    let cidrs: Vec<Cidr> = spec.subnets.iter().filter_map(|text| text.parse().ok()).collect();
    Some(Given {
        subnets: Subnets::new(&cidrs).ok()?,
        ranges: allocation::runs(own, &[State::Held, State::Releasing]).collect(),
        replicas: scene
            .config
            .map_or(index::MAX_ORDINAL + 1, |config| config.spec.gateway.replicas),
    })
}

/// The path between two of these members that carries least, of those that carry less than their nodes: from, to, bytes.
pub(super) fn narrowest<'a>(
    members: impl Iterator<Item = &'a Member> + Clone,
) -> Option<(&'a str, &'a str, u16)> {
    let names: BTreeSet<&str> = members.clone().map(|member| member.name.as_str()).collect();
    let claims = members.filter_map(|member| Some((member.name.as_str(), member.claim.as_ref()?)));
    let paths = claims.flat_map(|(from, claim)| {
        let paths = claim.narrow_paths.iter();
        paths.map(move |(to, mtu)| (from, to.as_str(), *mtu))
    });
    paths
        .filter(|(_, to, _)| names.contains(to))
        .min_by_key(|(_, _, mtu)| *mtu)
}

fn request_config(config: &SliceConfig, subnets: Subnets, sizes: Sizes) -> allocation::Config<'_> {
    let SliceConfigSpec {
        subnets: cidrs,
        peers,
        ..
    } = &config.spec;
    let status = config.status.as_ref();
    allocation::Config {
        namespace: config.metadata.namespace.as_deref().unwrap_or_default(),
        uid: config.metadata.uid.as_deref().unwrap_or_default(),
        cidrs,
        subnets,
        block: index::block_size(subnets.capacity()),
        mtu: sizes.mtu,
        largest_mtu: sizes.largest,
        hosts: peers,
        remembered_vni: status.and_then(|status| status.vni),
        remembered_hosts: status
            .into_iter()
            .flat_map(|status| &status.peers)
            .map(|host| (host.name.clone(), host.index, host.ordinal))
            .collect(),
    }
}

/// The first selector that cannot be parsed.
fn bad_rule(config: &SliceConfig) -> Option<String> {
    let check = |field: String, selector: &Option<LabelSelector>| {
        let selector = Selector::try_from(selector.clone()?);
        Some(format!("{field}: {}", selector.err()?))
    };
    let rules = config
        .spec
        .namespaces
        .iter()
        .enumerate()
        .find_map(|(position, rule)| {
            let field = format!("spec.namespaces[{position}]");
            check(format!("{field}.selector"), &rule.selector)
                .or_else(|| check(format!("{field}.podSelector"), &rule.pod_selector))
        });
    let join = config.spec.join.as_ref();
    rules.or_else(|| {
        check(
            "spec.join.namespaceSelector".to_owned(),
            &join?.namespace_selector,
        )
    })
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// The first of a cluster's networks that shares an address with the slice.
fn overlap(config: &SliceConfig, name: &str, state: &ClusterState) -> Option<String> {
    let declared = state
        .object()
        .and_then(|(_, users)| users.object.as_ref()?.spec.networks.clone())
        .unwrap_or_default();
    let none = trust::Facts::default();
    let facts = state.facts().unwrap_or(&none);
    let networks: [(&str, Vec<Cidr>); 3] = [
        ("pod", [facts.pod_cidrs.clone(), declared.pods].concat()),
        (
            "Service",
            [facts.service_cidrs.clone(), declared.services].concat(),
        ),
        ("node", [facts.node_cidrs.clone(), declared.nodes].concat()),
    ];
    config.spec.subnets.iter().find_map(|subnet| {
        networks.iter().find_map(|(what, cidrs)| {
            let other = cidrs.iter().find(|cidr| cidr.overlaps(*subnet))?;
            Some(format!(
                "spec.subnets has {subnet}, which overlaps the {what} network {other} of cluster {name}: choose a subnet outside it, or leave the cluster out"
            ))
        })
    })
}

/// Where the ranges of a cluster in an allocation lie, those to be given back among them.
pub(super) fn ranges_of(own: &ClusterAllocation) -> Vec<IndexRange> {
    let mut ranges: Vec<IndexRange> = allocation::runs(own, &[State::Held, State::Releasing]).collect();
    ranges.sort();
    ranges
}
