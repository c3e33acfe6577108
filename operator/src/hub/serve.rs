//! What each member gets of a slice in its own namespace: its part of it. What all of them get alike is [`super::share`]'s.

use std::collections::BTreeMap;

use slice_crds::{
    names,
    wire::{AllocationState as State, ClusterAllocation, SliceAllocationSpec, SliceShareSpec, WIRE},
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
        self.share(scene, &shards);
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
        self.note_propagation(slice);
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
    fn serve_member(
        &mut self,
        scene: &Scene<'_>,
        name: &str,
        shards: &BTreeMap<u32, SliceShareSpec>,
    ) -> Option<Listener> {
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
            self.outputs.release(&key);
            return None;
        }
        let facts = state.and_then(ClusterState::facts);
        let is_old = facts.is_some_and(|facts| facts.wire < WIRE);
        let inline = facts.is_some_and(|facts| facts.inline);
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
                None
            }
            (Some((one, own)), _, _) => {
                let spec = render::released(scene.identity, one, &own);
                self.outputs
                    .want(key, Content::spec(render::labels(slice, Some(name)), &spec));
                None
            }
            (None, Some((current, own)), Some(config)) => {
                let qos = self.qos(config);
                let mut spec =
                    render::member_slice(scene.identity, config, cluster.as_deref(), current, &own, &qos);
                if scene.rules.is_some() {
                    let before = state.and_then(|state| state.served.get(slice));
                    spec.slice.namespaces = before.map(|served| served.rules.clone()).unwrap_or_default();
                }
                if inline {
                    spec.slice.peers = render::inline(shards, name);
                } else {
                    spec.shared_in = names::slice_namespace(slice);
                    spec.peer_shards = shards.keys().copied().collect();
                }
                self.outputs
                    .want(key, Content::spec(render::labels(slice, Some(name)), &spec));
                Some(Listener {
                    cluster: name.to_owned(),
                    ranges: ranges_of(&own),
                    needs_copies: inline,
                })
            }
            // Its object cannot be read: what was served stays.
            (None, Some((_, own)), None) => {
                self.outputs.release(&key);
                Some(Listener {
                    cluster: name.to_owned(),
                    ranges: ranges_of(&own),
                    needs_copies: inline,
                })
            }
            (None, None, _) => {
                let had = scene
                    .allocations
                    .iter()
                    .any(|one| in_state(one, State::Resting).is_some());
                match had {
                    true => self.outputs.remove(key),
                    // It has it from a hub whose memory this one has not: nothing is taken away.
                    false => self.outputs.release(&key),
                }
                None
            }
        }
    }
}
