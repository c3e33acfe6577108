//! What all members of a slice get alike, written once: each other's gateways, and the services that they export.
//!
//! It stands in a namespace of the slice's own, which the accounts of its members may read, and nobody else's.

use std::collections::BTreeMap;

use k8s_openapi::api::{core::v1::Namespace, rbac::v1::RoleBinding};
use kube::core::ObjectMeta;
use slice_crds::{
    Subnets, names,
    wire::{AllocationState as State, MemberServiceSpec, SliceShareSpec},
};

use super::{
    cluster,
    core::Hub,
    observe::set_violations,
    render,
    slice::Scene,
    state::{Listener, SliceState},
};
use crate::{
    control::{Content, Key, Kind},
    trust,
};

/// ClusterRole, from the chart, that is bound in a slice's namespace for its members.
const READER: &str = "weft-slice-reader";

impl Hub {
    /// The slice's namespace, who reads it, and the shards of its clusters there.
    pub(super) fn share(&mut self, scene: &Scene<'_>, shards: &BTreeMap<u32, SliceShareSpec>) {
        let Scene {
            slice,
            config,
            current,
            allocations,
            ..
        } = *scene;
        let namespace = names::slice_namespace(slice);
        let key = Key::new(Kind::Namespace, "", &namespace);
        let state = self.slices.get(slice);
        let shared = state.and_then(|state| state.shared.as_ref());
        let (is_there, is_going) = (
            shared.is_some(),
            shared.is_some_and(|shared| shared.going.is_some()),
        );
        let held = current.into_iter().flat_map(|current| &current.clusters);
        let readers: Vec<&str> = held
            .filter(|own| own.state == State::Held)
            .map(|own| own.name.as_str())
            .collect();
        let is_known = state.is_some_and(|state| !state.involved.is_empty());
        match (config, readers.is_empty()) {
            _ if is_going => self.release_shared(slice),
            // It was taken back from everybody, or nobody has ever had it. Where members have it and no allocation is known,
            // they have it from a hub whose memory this one has not: nothing is taken away.
            (_, true) if is_there && (!allocations.is_empty() || !is_known) => {
                self.release_shared(slice);
                self.outputs.remove(key);
            }
            // Nobody is to read it, or its object cannot be read: what was shared stays.
            (_, true) | (None, false) => self.release_shared(slice),
            (Some(_), false) => {
                let object = Namespace {
                    metadata: meta(slice, &namespace, None),
                    ..Namespace::default()
                };
                self.outputs.want(key, Content::of(&object));
                if is_there {
                    self.want_shared(slice, &namespace, &readers, shards);
                }
            }
        }
    }

    fn want_shared(
        &mut self,
        slice: &str,
        namespace: &str,
        readers: &[&str],
        shards: &BTreeMap<u32, SliceShareSpec>,
    ) {
        let subject =
            |cluster: &&str| cluster::subject(names::MEMBER_ACCOUNT, &names::member_namespace(cluster));
        let binding = RoleBinding {
            metadata: meta(slice, READER, Some(namespace)),
            role_ref: cluster::role(READER),
            subjects: Some(readers.iter().map(subject).collect()),
        };
        self.outputs.want(
            Key::new(Kind::RoleBinding, namespace, READER),
            Content::of(&binding),
        );
        for (shard, spec) in shards {
            let key = Key::new(Kind::SliceShare, namespace, &names::shard(slice, *shard));
            self.outputs
                .want(key, Content::spec(render::labels(slice, None), spec));
        }
        for key in self.shared(slice, "") {
            if names::shard_of(&key.name).is_some_and(|shard| !shards.contains_key(&shard)) {
                self.outputs.remove(key);
            }
        }
    }

    /// Whatever stands in the slice's namespace stays as it is, or goes with it.
    fn release_shared(&mut self, slice: &str) {
        let namespace = names::slice_namespace(slice);
        self.outputs.release(&Key::new(Kind::Namespace, "", &namespace));
        self.outputs
            .release(&Key::new(Kind::RoleBinding, &namespace, READER));
        for key in self.shared(slice, "") {
            self.outputs.release(&key);
        }
    }

    /// What stands or is to stand in the slice's namespace: its shards, and services; of one cluster's with a prefix.
    fn shared(&self, slice: &str, of: &str) -> Vec<Key> {
        let namespace = names::slice_namespace(slice);
        let prefix = format!("{slice}.{of}");
        self.outputs
            .with_prefix(Kind::SliceShare, &namespace, &prefix)
            .cloned()
            .collect()
    }

    /// From when on a new key is on its way.
    pub(super) fn note_propagation(&mut self, slice: &str) {
        if !self.propagation.contains_key(slice) {
            return;
        }
        let shards = self.shared(slice, "");
        let shards = shards
            .into_iter()
            .filter(|key| names::shard_of(&key.name).is_some());
        let waiting: Vec<Key> = shards.filter(|key| !self.outputs.is_settled(key)).collect();
        match (waiting.is_empty(), self.propagation.get_mut(slice)) {
            (true, _) => _ = self.propagation.remove(slice),
            (false, Some((_, keys))) => keys.extend(waiting),
            (false, None) => {}
        }
    }

    /// The services of one cluster in one slice, for the others.
    pub(super) fn plan_services(&mut self, slice: &str, cluster: &str) {
        let Some(state) = self.slices.get(slice) else {
            return;
        };
        let is_there = state.shared.as_ref().is_some_and(|shared| shared.going.is_none());
        let audience = state.audience.clone();
        let subnets = Subnets::new(&state.subnets).ok();
        let exporter = audience.iter().find(|listener| listener.cluster == cluster);
        let exports = self
            .clusters
            .get(cluster)
            .and_then(|state| state.exports.get(slice));
        let mut services = BTreeMap::new();
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
                        services.insert(name, service);
                    }
                    Err(violation) => violations.push(violation),
                }
            }
        }
        if is_there {
            let namespace = names::slice_namespace(slice);
            for (name, service) in &services {
                let spec = SliceShareSpec {
                    slice: slice.to_owned(),
                    service: Some(service.clone()),
                    ..SliceShareSpec::default()
                };
                let content = Content::spec(render::labels(slice, Some(cluster)), &spec);
                self.outputs
                    .want(Key::new(Kind::SliceShare, &namespace, name), content);
            }
            let stale = self.shared(slice, &format!("{cluster}.")).into_iter();
            stale
                .filter(|key| !services.contains_key(&*key.name))
                .for_each(|key| self.outputs.remove(key));
        }
        self.copy_services(slice, cluster, &audience, &services);
        let about = format!("{slice}/services");
        if let Some(state) = self.clusters.get_mut(cluster)
            && set_violations(&mut state.violations, &about, violations)
        {
            self.touch_cluster(cluster);
        }
    }

    /// Copies for members that read no SliceShare; those that nobody is to have any more go.
    fn copy_services(
        &mut self,
        slice: &str,
        cluster: &str,
        audience: &[Listener],
        services: &BTreeMap<String, slice_crds::wire::Service>,
    ) {
        let others = self.slices.get(slice).map(|state| others(state, cluster));
        for other in others.unwrap_or_default() {
            let namespace = names::member_namespace(&other);
            let needs_copies = audience
                .iter()
                .any(|listener| listener.needs_copies && listener.cluster == other);
            if needs_copies {
                for (name, service) in services {
                    let spec = MemberServiceSpec {
                        service: service.clone(),
                    };
                    let content = Content::spec(render::labels(slice, Some(cluster)), &spec);
                    self.outputs
                        .want(Key::new(Kind::MemberService, &namespace, name), content);
                }
            }
            let stale: Vec<Key> = self
                .outputs
                .with_prefix(Kind::MemberService, &namespace, &format!("{slice}.{cluster}."))
                .filter(|key| !needs_copies || !services.contains_key(&*key.name))
                .cloned()
                .collect();
            stale.into_iter().for_each(|key| self.outputs.remove(key));
        }
    }
}

/// The clusters that had something of a slice, but for one.
fn others(state: &SliceState, cluster: &str) -> Vec<String> {
    let others = state.involved.iter().filter(|other| *other != cluster);
    others.cloned().collect()
}

fn meta(slice: &str, name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(ToOwned::to_owned),
        labels: Some(render::labels(slice, None)),
        ..ObjectMeta::default()
    }
}
