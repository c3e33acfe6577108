//! What members get of a slice: their own part of it, their peers, and the services of the others.

use std::collections::{BTreeMap, BTreeSet};

use slice_crds::{
    Subnets, names,
    wire::{AllocationState as State, ClusterAllocation, MemberPeersSpec, SliceAllocationSpec, WIRE},
};

use super::{
    core::Hub,
    observe::set_violations,
    render,
    slice::{Member, Scene, ranges_of},
    state::{ClusterState, Listener},
};
use crate::{
    control::{Content, Key, Kind},
    trust::{self, Claim},
};

impl Hub {
    /// What every member gets, from what was allocated.
    pub(super) fn serve(&mut self, scene: &Scene<'_>, members: &[Member]) {
        let Scene {
            slice,
            config,
            current,
            ..
        } = *scene;
        let is_held = |name: &str| {
            let clusters = current.into_iter().flat_map(|current| &current.clusters);
            clusters
                .into_iter()
                .any(|own| own.name == name && own.state == State::Held)
        };
        let claims: Vec<(&str, &Claim)> = members
            .iter()
            .filter(|member| is_held(&member.name))
            .filter_map(|member| Some((member.name.as_str(), member.claim.as_ref()?)))
            .collect();
        let hosts = config
            .map(|config| config.spec.peers.as_slice())
            .unwrap_or_default();
        let revocation = config.and_then(|config| render::key_settings(&config.spec.gateway).revocation);
        let published = self
            .slices
            .get(slice)
            .map(|state| state.published.clone())
            .unwrap_or_default();
        let mut trusted = trust::keys(&claims, hosts, &published, revocation.as_deref());
        let shards = match (config, current) {
            (Some(config), Some(current)) => render::shards(slice, config, current, &trusted.gateways),
            _ => BTreeMap::new(),
        };
        let shards = Shards {
            contents: shards
                .iter()
                .map(|(shard, peers)| (*shard, Content::spec(render::labels(slice, None), peers)))
                .collect(),
            specs: shards,
        };
        let mut audience = Vec::new();
        for member in members {
            audience.extend(self.serve_member(scene, &member.name, &shards));
            let mut refused = member.refused.clone();
            refused.extend(trusted.violations.remove(&member.name).unwrap_or_default());
            if let Some(state) = self.clusters.get_mut(&member.name)
                && set_violations(&mut state.violations, slice, refused)
            {
                self.touch_cluster(&member.name);
            }
        }
        self.note_propagation(slice, members);
        let subnets = config
            .map(|config| config.spec.subnets.clone())
            .unwrap_or_default();
        let Some(state) = self.slices.get_mut(slice) else {
            return;
        };
        state.published = trusted.published;
        if state.audience != audience || state.subnets != subnets {
            (state.audience, state.subnets) = (audience, subnets);
            for member in members {
                self.touch_services(slice, &member.name);
            }
        }
    }

    /// What one member gets; with its ranges where it gets services.
    fn serve_member(&mut self, scene: &Scene<'_>, name: &str, shards: &Shards) -> Option<Listener> {
        let Scene {
            slice,
            config,
            current,
            ..
        } = *scene;
        let namespace = names::member_namespace(name);
        let state = self.clusters.get(name);
        let key = Key::new(Kind::MemberSlice, &namespace, slice);
        let room = state.and_then(|state| state.namespace.as_ref());
        if room.is_none_or(|room| room.going.is_some()) {
            self.release_member(slice, &namespace);
            return None;
        }
        let is_old = state
            .and_then(ClusterState::facts)
            .is_some_and(|facts| facts.wire < WIRE);
        let cluster = state
            .and_then(ClusterState::object)
            .and_then(|(_, users)| users.object.clone());
        let in_state = |one: &'_ SliceAllocationSpec, wanted: State| -> Option<ClusterAllocation> {
            one.clusters
                .iter()
                .find(|own| own.name == name && own.state == wanted)
                .cloned()
        };
        let releasing = scene
            .allocations
            .iter()
            .find_map(|one| Some((one, in_state(one, State::Releasing)?)));
        let own = current.and_then(|current| Some((current, in_state(current, State::Held)?)));
        match (releasing, own, config) {
            // An older member takes a slice down when its object is gone.
            (Some(_), _, _) if is_old => {
                self.outputs.remove(key);
                self.keep_shards(slice, &namespace, &BTreeSet::new());
                None
            }
            (Some((one, own)), _, _) => {
                let spec = render::released(scene.identity, one, &own);
                self.outputs
                    .want(key, Content::spec(render::labels(slice, Some(name)), &spec));
                self.keep_shards(slice, &namespace, &BTreeSet::new());
                None
            }
            (None, Some((current, own)), Some(config)) => {
                let dscp = self.dscp(config);
                let mut spec =
                    render::member_slice(scene.identity, config, cluster.as_deref(), current, &own, dscp);
                if scene.rules.is_some() {
                    let before = state.and_then(|state| state.served.get(slice));
                    spec.slice.namespaces = before.map(|served| served.rules.clone()).unwrap_or_default();
                }
                if is_old {
                    spec.slice.peers = render::inline(&shards.specs, name);
                } else {
                    spec.peer_shards = shards.contents.keys().copied().collect();
                    for (shard, content) in &shards.contents {
                        let key = Key::new(Kind::MemberPeers, &namespace, &names::peers(slice, *shard));
                        self.outputs.want(key, content.clone());
                    }
                }
                let keep = spec.peer_shards.iter().copied().collect();
                self.keep_shards(slice, &namespace, &keep);
                self.outputs
                    .want(key, Content::spec(render::labels(slice, Some(name)), &spec));
                Some(Listener {
                    cluster: name.to_owned(),
                    ranges: ranges_of(&own),
                })
            }
            // Its object cannot be read: what was served stays.
            (None, Some((_, own)), None) => {
                self.release_member(slice, &namespace);
                Some(Listener {
                    cluster: name.to_owned(),
                    ranges: ranges_of(&own),
                })
            }
            (None, None, _) => {
                let had = scene
                    .allocations
                    .iter()
                    .any(|one| in_state(one, State::Resting).is_some());
                match had {
                    true => {
                        self.outputs.remove(key);
                        self.keep_shards(slice, &namespace, &BTreeSet::new());
                    }
                    // It has it from a hub whose memory this one has not: nothing is taken away.
                    false => self.release_member(slice, &namespace),
                }
                None
            }
        }
    }

    /// Whatever stands in a member's namespace about the slice stays as it is.
    pub(super) fn release_member(&mut self, slice: &str, namespace: &str) {
        self.outputs
            .release(&Key::new(Kind::MemberSlice, namespace, slice));
        for key in self.shards_in(slice, namespace) {
            self.outputs.release(&key);
        }
    }

    pub(super) fn shards_in(&self, slice: &str, namespace: &str) -> Vec<Key> {
        let prefix = format!("{slice}.");
        self.outputs
            .with_prefix(Kind::MemberPeers, namespace, &prefix)
            .cloned()
            .collect()
    }

    pub(super) fn keep_shards(&mut self, slice: &str, namespace: &str, keep: &BTreeSet<u32>) {
        for key in self.shards_in(slice, namespace) {
            let shard = key
                .name
                .rsplit('.')
                .next()
                .and_then(|shard| shard.parse::<u32>().ok());
            if shard.is_none_or(|shard| !keep.contains(&shard)) {
                self.outputs.remove(key);
            }
        }
    }

    /// From when on a new key is on its way, and to whom.
    fn note_propagation(&mut self, slice: &str, members: &[Member]) {
        if !self.propagation.contains_key(slice) {
            return;
        }
        let mut waiting = BTreeSet::new();
        for member in members {
            let shards = self.shards_in(slice, &names::member_namespace(&member.name));
            waiting.extend(shards.into_iter().filter(|key| !self.outputs.is_settled(key)));
        }
        match (waiting.is_empty(), self.propagation.get_mut(slice)) {
            (true, _) => _ = self.propagation.remove(slice),
            (false, Some((_, keys))) => keys.extend(waiting),
            (false, None) => {}
        }
    }

    /// The services of one cluster in one slice, as copies for the others.
    pub(super) fn plan_services(&mut self, slice: &str, cluster: &str) {
        let Some(state) = self.slices.get(slice) else {
            return;
        };
        let audience = state.audience.clone();
        let subnets = Subnets::new(&state.subnets).ok();
        let exporter = audience.iter().find(|listener| listener.cluster == cluster);
        let exports = self
            .clusters
            .get(cluster)
            .and_then(|state| state.exports.get(slice));
        let mut contents: BTreeMap<String, Content> = BTreeMap::new();
        let mut violations = Vec::new();
        if let (Some(subnets), Some(exporter), Some(exports)) = (subnets, exporter, exports) {
            let exporter = trust::Exporter {
                cluster,
                subnets,
                ranges: &exporter.ranges,
            };
            for claimed in exports.values() {
                match trust::service(claimed, &exporter) {
                    Ok((service, refused)) => {
                        violations.extend(refused);
                        let name = names::service(slice, cluster, &service.namespace, &service.name);
                        let spec = slice_crds::wire::MemberServiceSpec { service };
                        contents.insert(name, Content::spec(render::labels(slice, Some(cluster)), &spec));
                    }
                    Err(violation) => violations.push(violation),
                }
            }
        }
        for listener in audience.iter().filter(|listener| listener.cluster != cluster) {
            let namespace = names::member_namespace(&listener.cluster);
            for (name, content) in &contents {
                self.outputs
                    .want(Key::new(Kind::MemberService, &namespace, name), content.clone());
            }
        }
        self.remove_copies(slice, cluster, &audience, &contents);
        let about = format!("{slice}/services");
        if let Some(state) = self.clusters.get_mut(cluster)
            && set_violations(&mut state.violations, &about, violations)
        {
            self.touch_cluster(cluster);
        }
    }

    /// Copies that nobody is to have any more.
    fn remove_copies(
        &mut self,
        slice: &str,
        cluster: &str,
        audience: &[Listener],
        contents: &BTreeMap<String, Content>,
    ) {
        let Some(state) = self.slices.get(slice) else {
            return;
        };
        let everybody: Vec<String> = state
            .involved
            .iter()
            .filter(|other| *other != cluster)
            .cloned()
            .collect();
        for other in everybody {
            let namespace = names::member_namespace(&other);
            let listens = audience.iter().any(|listener| listener.cluster == other);
            let stale: Vec<Key> = self
                .outputs
                .with_prefix(Kind::MemberService, &namespace, &format!("{slice}.{cluster}."))
                .filter(|key| !listens || !contents.contains_key(&*key.name))
                .cloned()
                .collect();
            stale.into_iter().for_each(|key| self.outputs.remove(key));
        }
    }
}

/// The other clusters, as members get them.
struct Shards {
    specs: BTreeMap<u32, MemberPeersSpec>,
    contents: BTreeMap<u32, Content>,
}
