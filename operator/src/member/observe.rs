//! What a member takes in: objects one by one into its indexes, and what has to be planned again because of them.

use std::collections::BTreeSet;

use kube::ResourceExt;
use slice_crds::{
    labels::{self, Attachment},
    membership::Rules,
    names,
    v1alpha1::MeshStatus,
    wire::MemberSliceSpec,
};

use super::{
    cluster_dns,
    core::Member,
    input::{Input, Object, PodFacts, Side, Source},
    state::{Agent, Shared},
};
use crate::control::{Id, Key, Kind, Meta, Now, outputs::is_older};

impl Member {
    pub(super) fn see(&mut self, input: Input, now: Now) {
        let is_unreadable = input.unreadable().is_some();
        let Input {
            source,
            meta,
            observed,
            object,
        } = input;
        self.figures.seen(source, meta.id(), is_unreadable);
        let (namespace, name) = (meta.namespace.to_string(), meta.name.to_string());
        for (kind, observed) in observed {
            self.outputs(source.side())
                .observe(Key::new(kind, &namespace, &name), observed);
        }
        match object {
            Object::Slice(slice) => {
                let state = self.slices.entry(name.clone()).or_default();
                match slice {
                    Ok(slice) => {
                        let same = state.object.as_ref().is_some_and(|old| old.spec == slice.spec);
                        state.rules = Rules::parse(&name, &slice.spec)
                            .ok()
                            .or_else(|| state.rules.clone());
                        (state.object, state.unreadable) = (Some(slice), None);
                        if !same {
                            self.touch_members();
                        }
                    }
                    Err(why) => state.unreadable = Some(why),
                }
                self.dirty.slices.insert(name);
            }
            Object::Block(Ok(block)) => {
                let slice = block.spec.slice.clone();
                let state = self.slices.entry(slice.clone()).or_default();
                let new = !self.node_facts.contains_key(&block.spec.node);
                let known = state
                    .blocks
                    .get(&block.spec.node)
                    .and_then(|known| known.metadata.resource_version.clone());
                if known.is_some_and(|known| is_older(&meta.version, &known)) {
                    return;
                }
                state.blocks.insert(block.spec.node.clone(), block);
                self.nodes_dirty |= new;
                self.dirty.slices.insert(slice);
            }
            Object::Gateway(Ok(gateway)) => {
                let slice = gateway.spec.slice.clone();
                let state = self.slices.entry(slice.clone()).or_default();
                state
                    .workload
                    .insert(Key::new(Kind::SliceGateway, &namespace, &name));
                state.gateways.insert(gateway.spec.ordinal, gateway);
                self.dirty.slices.insert(slice);
            }
            Object::SliceNode(Ok(node)) => {
                self.dirty.taints.insert(name.clone());
                self.note_mesh(&name, node.status.as_ref().map(|status| status.mesh.clone()));
                self.slice_nodes.insert(name, node);
                self.dirty.report = true;
            }
            Object::SliceService { slice, cluster, hub } => {
                self.imported.insert(name, (slice, cluster, hub));
                self.dirty.imports = true;
            }
            Object::Node(Ok(facts)) if self.node_facts.get(&name) != Some(&facts) => {
                self.dirty.taints.insert(name.clone());
                self.node_facts.insert(name, facts);
                self.nodes_dirty = true;
                self.dirty.report = true;
            }
            Object::Namespace(labels) if self.namespaces.get(&name) != Some(&labels) => {
                self.touch_exports_of(&name);
                self.dirty.cluster_dns |= name == cluster_dns::OPENSHIFT;
                self.namespaces.insert(name, labels);
                self.dirty.labels = true;
            }
            Object::Pod(pod) => self.take_pod(&namespace, &name, Some(pod)),
            Object::GatewayPod(Ok(pod)) => {
                if let Some(slice) = pod.labels().get(labels::FOR_SLICE).cloned() {
                    let state = self.slices.entry(slice.clone()).or_default();
                    state.pods.insert((namespace, name), pod);
                    self.dirty.slices.insert(slice);
                }
            }
            Object::GatewaySet(Ok(set)) => {
                if let Some(slice) = set.labels().get(labels::FOR_SLICE).cloned() {
                    let key = Key::new(Kind::StatefulSet, &namespace, &name);
                    let state = self.slices.entry(slice.clone()).or_default();
                    state.workload.insert(key.clone());
                    state.sets.insert(key, set);
                    self.dirty.slices.insert(slice);
                }
            }
            Object::Service(Ok(service)) if source == Source::GatewayService => {
                if let Some(slice) = service.labels().get(labels::FOR_SLICE).cloned() {
                    let state = self.slices.entry(slice.clone()).or_default();
                    state.workload.insert(Key::new(Kind::Service, &namespace, &name));
                    state.services.insert((namespace, name), service);
                    self.dirty.slices.insert(slice);
                }
            }
            Object::Service(Ok(service)) => {
                let id = (namespace, name);
                self.dirty.cluster_dns |=
                    id.0 == names::MEMBER_NAMESPACE && id.1 == self.settings.dns_service;
                self.exports.entry(id.clone()).or_default().service = Some(service);
                self.dirty.exports.insert(id);
            }
            Object::Endpoints(Ok(endpoints)) => {
                if let Some(service) = endpoints.labels().get("kubernetes.io/service-name").cloned() {
                    let id = (namespace, service);
                    self.exports
                        .entry(id.clone())
                        .or_default()
                        .endpoints
                        .insert(name, endpoints);
                    self.dirty.exports.insert(id);
                }
            }
            Object::Export(Ok(export)) => {
                let id = (namespace, name);
                self.exports.entry(id.clone()).or_default().export = Some(export);
                self.dirty.exports.insert(id);
            }
            Object::Lease(value) => {
                let Some(node) = name.strip_prefix("node.").map(ToOwned::to_owned) else {
                    return;
                };
                let before = self.agents.get(&node);
                if before.is_some_and(|agent| agent.value == value) {
                    return;
                }
                let was_silent = before.is_some_and(|agent| agent.silent);
                let agent = Agent {
                    value,
                    at: now.clock,
                    silent: false,
                };
                if before.is_none() || was_silent {
                    self.dirty.taints.insert(node.clone());
                }
                self.agents.insert(node, agent);
                if was_silent {
                    self.dirty.report = true;
                    self.touch_slices();
                }
            }
            Object::ConfigMap(data, mark) => {
                let id = (namespace, name);
                match mark {
                    Some(mark) => _ = self.dns_marks.insert(id.clone(), mark),
                    None => _ = self.dns_marks.remove(&id),
                }
                self.dns_metas.insert(id.clone(), meta);
                self.dns_configs.insert(id, data);
                self.dirty.cluster_dns = true;
            }
            Object::Hub(Ok(hub)) if name == names::MEMBER_HUB && self.hub.hub.as_ref() != Some(&hub) => {
                self.hub.hub = Some(hub);
                self.touch_all();
            }
            Object::MemberSlice(slice) => {
                match slice {
                    Ok(slice) => {
                        self.hub.unreadable.remove(&name);
                        self.follow(&name, Some(&slice));
                        self.hub.slices.insert(name.clone(), slice);
                    }
                    // What was read before still holds.
                    Err(why) => _ = self.hub.unreadable.insert(name.clone(), why),
                }
                self.dirty.slices.insert(name);
            }
            Object::Share(Ok(share)) => {
                if let Some(shared) = self.hub.shared.get_mut(&namespace) {
                    match share.service {
                        Some(_) => self.dirty.imports = true,
                        None => _ = self.dirty.slices.insert(shared.slice.clone()),
                    }
                    shared.objects.insert(name, share);
                }
            }
            Object::MemberService(Ok(service)) => {
                self.hub.services.insert(name, service);
                self.dirty.imports = true;
            }
            Object::Output if source == Source::GatewayBudget => {
                // Its name is that of the slice's StatefulSet.
                if let Some(slice) = name.strip_prefix("weft-gateway-") {
                    let state = self.slices.entry(slice.to_owned()).or_default();
                    state
                        .workload
                        .insert(Key::new(Kind::PodDisruptionBudget, &namespace, &name));
                    self.dirty.slices.insert(slice.to_owned());
                }
            }
            _ => {}
        }
    }

    /// What a node reports of the others. It matters to the slices that the node is in.
    fn note_mesh(&mut self, node: &str, mesh: Option<MeshStatus>) {
        let mesh = mesh.filter(|mesh| !mesh.is_well());
        if self.broken_pairs.get(node) == mesh.as_ref() {
            return;
        }
        match mesh {
            Some(mesh) => _ = self.broken_pairs.insert(node.to_owned(), mesh),
            None => _ = self.broken_pairs.remove(node),
        }
        let of_node = self
            .slices
            .iter()
            .filter(|(_, state)| state.blocks.contains_key(node));
        self.dirty.slices.extend(of_node.map(|(slice, _)| slice.clone()));
    }

    /// Who is in which slice may have changed.
    fn touch_members(&mut self) {
        self.dirty.exports.extend(
            self.exports
                .iter()
                .filter(|(_, state)| state.export.is_some())
                .map(|(id, _)| id.clone()),
        );
        self.dirty.labels = true;
        self.dirty.imports = true;
    }

    fn touch_exports_of(&mut self, namespace: &str) {
        let from = (namespace.to_owned(), String::new());
        let of = self
            .exports
            .range(from..)
            .take_while(|((of, _), _)| of == namespace);
        let ids: Vec<_> = of
            .filter(|(_, state)| state.export.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        self.dirty.exports.extend(ids);
    }

    fn take_pod(&mut self, namespace: &str, name: &str, pod: Option<PodFacts>) {
        let pods = self.pods.entry(namespace.to_owned()).or_default();
        let before = match pod.clone() {
            Some(pod) => pods.insert(name.to_owned(), pod),
            None => pods.remove(name),
        };
        if pods.is_empty() {
            self.pods.remove(namespace);
        }
        let attachments = |pod: &Option<PodFacts>| {
            pod.as_ref()
                .map(|pod| pod.attachments.clone())
                .unwrap_or_default()
        };
        let (old, new) = (attachments(&before), attachments(&pod));
        if old != new {
            self.note_used(namespace, name, &old, &new);
            self.touch_exports_of(namespace);
            if namespace == names::MEMBER_NAMESPACE {
                self.touch_slices();
            }
        }
        let label = |pod: &Option<PodFacts>| {
            pod.as_ref()
                .and_then(|pod| pod.labels.get(labels::SLICE).cloned())
        };
        let id = (namespace.to_owned(), name.to_owned());
        match label(&pod) {
            Some(_) => _ = self.labelled.insert(id),
            None => _ = self.labelled.remove(&id),
        }
        self.dirty.labels |= label(&before) != label(&pod);
    }

    /// Which addresses pods have, whatever the blocks say.
    fn note_used(&mut self, namespace: &str, name: &str, old: &[Attachment], new: &[Attachment]) {
        let id = (namespace.to_owned(), name.to_owned());
        for attachment in old {
            if let Some(state) = self.slices.get_mut(&attachment.slice) {
                state.used.remove(&id);
            }
        }
        for attachment in new {
            let state = self.slices.entry(attachment.slice.clone()).or_default();
            state.used.insert(id.clone(), attachment.ips.clone());
        }
    }

    pub(super) fn lose(&mut self, source: Source, meta: &Meta, version: Option<&str>, now: Now) {
        let (namespace, name) = (meta.namespace.to_string(), meta.name.to_string());
        self.figures.gone(&source, &meta.id());
        for kind in source.written() {
            self.outputs(source.side())
                .gone(&Key::new(*kind, &namespace, &name), version);
        }
        match source {
            Source::Slice => {
                if let Some(state) = self.slices.get_mut(&name) {
                    (state.object, state.rules, state.unreadable) = (None, None, None);
                }
                self.touch_members();
                self.dirty.slices.insert(name);
            }
            Source::SliceBlock
            | Source::SliceGateway
            | Source::GatewayPod
            | Source::GatewaySet
            | Source::GatewayBudget
            | Source::GatewayService => {
                self.lose_of_slice(source, &namespace, &name);
            }
            Source::SliceNode => {
                self.slice_nodes.remove(&name);
                self.note_mesh(&name, None);
                self.nodes_dirty = true;
            }
            Source::SliceService => {
                self.imported.remove(&name);
                self.dirty.imports = true;
                self.touch_members();
            }
            Source::Node => {
                self.node_facts.remove(&name);
                self.agents.remove(&name);
                self.nodes_dirty = true;
                self.dirty.report = true;
            }
            Source::Namespace => {
                self.namespaces.remove(&name);
                self.dirty.cluster_dns |= name == cluster_dns::OPENSHIFT;
                self.touch_exports_of(&name);
                self.dirty.labels = true;
            }
            Source::Pod => self.take_pod(&namespace, &name, None),
            Source::Service => {
                let id = (namespace, name);
                if let Some(state) = self.exports.get_mut(&id) {
                    state.service = None;
                }
                self.dirty.exports.insert(id);
            }
            Source::EndpointSlice => {
                let from = (namespace.clone(), String::new());
                let of: Vec<_> = self
                    .exports
                    .range_mut(from..)
                    .take_while(|((of, _), _)| *of == namespace)
                    .filter_map(|(id, state)| state.endpoints.remove(&name).map(|_| id.clone()))
                    .collect();
                self.dirty.exports.extend(of);
            }
            Source::ServiceExport => {
                let id = (namespace, name);
                if let Some(state) = self.exports.get_mut(&id) {
                    state.export = None;
                }
                self.dirty.exports.insert(id);
            }
            Source::AgentLease => {
                if let Some(node) = name.strip_prefix("node.") {
                    self.agents.remove(node);
                }
            }
            Source::ConfigMap => {
                let id = (namespace, name);
                self.dns_metas.remove(&id);
                self.dns_marks.remove(&id);
                self.dns_configs.remove(&id);
                self.dirty.cluster_dns = true;
            }
            Source::MemberHub => {}
            // The hub does not mention it any more. Only an explicit release takes a slice down.
            Source::MemberSlice => {
                self.follow(&name, None);
                self.hub.slices.remove(&name);
                self.hub.unreadable.remove(&name);
                self.dirty.slices.insert(name);
            }
            Source::SliceShare => {
                if let Some(shared) = self.hub.shared.get_mut(&namespace) {
                    shared.objects.remove(&name);
                    self.dirty.slices.insert(shared.slice.clone());
                    self.dirty.imports = true;
                }
            }
            Source::MemberService => {
                self.hub.services.remove(&name);
                self.dirty.imports = true;
            }
            Source::MemberReport => self.dirty.report = true,
            Source::MemberSliceReport => _ = self.dirty.slices.insert(name),
        }
        let _ = now;
    }

    fn lose_of_slice(&mut self, source: Source, namespace: &str, name: &str) {
        let mut touched = Vec::new();
        for (slice, state) in &mut self.slices {
            let key = |kind| Key::new(kind, namespace, name);
            let id = (namespace.to_owned(), name.to_owned());
            let hit = match source {
                Source::SliceBlock => {
                    let before = state.blocks.len();
                    state.blocks.retain(|_, block| block.name_any() != name);
                    before != state.blocks.len()
                }
                Source::SliceGateway => {
                    state.gateways.retain(|_, gateway| gateway.name_any() != name);
                    state.workload.remove(&key(Kind::SliceGateway))
                }
                Source::GatewayPod => state.pods.remove(&id).is_some(),
                Source::GatewaySet => {
                    state.sets.remove(&key(Kind::StatefulSet));
                    state.workload.remove(&key(Kind::StatefulSet))
                }
                Source::GatewayBudget => state.workload.remove(&key(Kind::PodDisruptionBudget)),
                Source::GatewayService => {
                    state.services.remove(&id);
                    state.workload.remove(&key(Kind::Service))
                }
                _ => false,
            };
            if hit {
                touched.push(slice.clone());
            }
        }
        self.dirty.slices.extend(touched);
    }

    /// Where the hub has what the members of a slice share, from now on.
    fn follow(&mut self, slice: &str, desired: Option<&MemberSliceSpec>) {
        let wanted = desired
            .filter(|desired| !desired.released && !desired.shared_in.is_empty())
            .map(|desired| &desired.shared_in);
        let before = self.hub.shared.len();
        let is_other = |namespace: &String| Some(namespace) != wanted;
        self.hub
            .shared
            .retain(|namespace, shared| shared.slice != slice || !is_other(namespace));
        self.follows_others |= self.hub.shared.len() != before;
        if let Some(namespace) = wanted
            && !self.hub.shared.contains_key(namespace)
        {
            let shared = Shared {
                slice: slice.to_owned(),
                ..Shared::default()
            };
            self.hub.shared.insert(namespace.clone(), shared);
            self.follows_others = true;
        }
    }

    pub(super) fn list_shared(&mut self, namespace: &str, there: &BTreeSet<Id>, now: Now) {
        let Some(shared) = self.hub.shared.get_mut(namespace) else {
            return;
        };
        let was_listed = std::mem::replace(&mut shared.listed, true);
        let names = shared.objects.keys().map(|name| name.as_str().into());
        let known = names.map(|name| (Box::from(namespace), name)).collect();
        self.lose_absent(Source::SliceShare, known, there, now);
        self.dirty.imports |= !was_listed;
    }

    pub(super) fn list(&mut self, source: Source, there: &BTreeSet<Id>, now: Now) {
        self.lose_absent(source, self.known(source), there, now);
        let was_synced = self.is_hub_synced();
        self.listed.insert(source);
        self.dirty.cluster_dns |= source == Source::ConfigMap;
        if source.side() == Side::Hub && !was_synced && self.is_hub_synced() {
            self.hub.synced = Some(now.clock);
            self.touch_all();
        }
    }

    /// A ConfigMap of the cluster's DNS has a watch of its own: no other one in its namespace may be read.
    pub(super) fn list_dns(&mut self, id: cluster_dns::Id, there: &BTreeSet<Id>, now: Now) {
        let known = match self.dns_configs.contains_key(&id) {
            true => vec![(id.0.as_str().into(), id.1.as_str().into())],
            false => vec![],
        };
        self.lose_absent(Source::ConfigMap, known, there, now);
        self.dns_listed.insert(id);
        let mut awaited = self.settings.cluster_dns.ids().into_iter();
        if awaited.all(|id| self.dns_listed.contains(&id)) {
            self.listed.insert(Source::ConfigMap);
            self.dirty.cluster_dns = true;
        }
    }

    /// What was known of a source and is not there any more.
    fn lose_absent(&mut self, source: Source, known: Vec<Id>, there: &BTreeSet<Id>, now: Now) {
        for id in known.into_iter().filter(|id| !there.contains(id)) {
            let (namespace, name) = id;
            let meta = Meta {
                namespace,
                name,
                ..Meta::default()
            };
            self.lose(source, &meta, None, now);
        }
    }

    /// Objects of a kind that are known.
    fn known(&self, source: Source) -> Vec<Id> {
        fn named<'a>(names: impl Iterator<Item = &'a String>) -> Vec<Id> {
            names.map(|name| ("".into(), name.as_str().into())).collect()
        }
        fn both<'a>(ids: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<Id> {
            ids.map(|(namespace, name)| (namespace.as_str().into(), name.as_str().into()))
                .collect()
        }
        if let [kind, ..] = source.written() {
            let outputs = match source.side() {
                Side::Local => &self.local,
                Side::Hub => &self.remote,
            };
            return outputs
                .seen(*kind)
                .map(|key| (key.namespace.clone(), key.name.clone()))
                .collect();
        }
        let own = self
            .link
            .as_ref()
            .map(|link| link.namespace.as_str())
            .unwrap_or_default();
        let in_own = |name: &str| (Box::from(own), Box::from(name));
        match source {
            Source::Node => named(self.node_facts.keys()),
            Source::Namespace => named(self.namespaces.keys()),
            Source::Pod => both(
                self.pods
                    .iter()
                    .flat_map(|(namespace, pods)| pods.keys().map(move |name| (namespace, name))),
            ),
            Source::GatewayPod => both(
                self.slices
                    .values()
                    .flat_map(|slice| slice.pods.keys().map(|(namespace, name)| (namespace, name))),
            ),
            Source::Service => {
                let with = self.exports.iter().filter(|(_, state)| state.service.is_some());
                both(with.map(|((namespace, name), _)| (namespace, name)))
            }
            Source::EndpointSlice => both(self.exports.iter().flat_map(|((namespace, _), state)| {
                state.endpoints.keys().map(move |name| (namespace, name))
            })),
            Source::AgentLease => {
                let leases = self.agents.keys().map(|node| names::node_lease(node));
                leases
                    .map(|name| (names::MEMBER_NAMESPACE.into(), name.into()))
                    .collect()
            }
            Source::MemberSlice => self.hub.slices.keys().map(|name| in_own(name)).collect(),
            _ => vec![],
        }
    }
}
