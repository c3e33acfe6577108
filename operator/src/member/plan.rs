//! What follows from what a member knows, as objects that are wanted here and on the hub.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{ObjectReference, Service},
    jiff::SignedDuration,
};
use serde_json::json;
use slice_crds::{
    annotations::DNS_STUB,
    conditions::{self, Verdict, reason},
    labels::{self, Attachment},
    membership::{self, Labels, Rules},
    names,
    v1alpha1::{Slice, SliceBlock, SliceBlockSpec, SliceNode, SliceNodePhase, SliceNodeSpec},
    wire::{self, MemberReport, MemberSliceReport},
};

use super::{
    blocks::{self, TakeDown},
    cluster_dns,
    core::Member,
    gateways::{self, Workload},
    input::{PodFacts, Source},
    mesh, mirror, names as reported_names, nodes, report,
    state::SliceState,
};
use crate::control::{Content, Key, Kind, Notice, Now, Outputs};

impl Member {
    pub(super) fn plan_nodes(&mut self, now: Now) {
        let sorted = nodes::sort(self.node_facts.values(), now.wall);
        if let Some(wait) = nodes::next_death(self.node_facts.values(), now.wall) {
            self.wake_after(wait, now);
        }
        let with_blocks: BTreeSet<String> = self
            .slices
            .values()
            .flat_map(|slice| slice.blocks.keys().cloned())
            .collect();
        self.gone
            .retain(|node, _| with_blocks.contains(node) && !self.node_facts.contains_key(node));
        for node in with_blocks
            .iter()
            .filter(|node| !self.node_facts.contains_key(*node))
        {
            self.gone.entry(node.clone()).or_insert(now.clock);
        }
        if let Some(first) = self.gone.values().min().copied() {
            self.wake_after(blocks::REST.saturating_sub(now.clock.saturating_sub(first)), now);
        }
        for (node, facts) in &self.node_facts {
            let key = Key::new(Kind::SliceNode, "", node);
            let there = self.slice_nodes.get(node);
            // One that is older is about another machine of that name: its agent reports on an object of its own.
            if there.is_some_and(|there| !facts.is_subject_of(there)) {
                self.local.remove(key);
                continue;
            }
            // Whoever uninstalls Weft removes its operator first, so what asks for it here was broken off and undone.
            let spec = SliceNodeSpec {
                teardown: false,
                uplink: facts.uplink.clone(),
                // Not known after a start: agents go on as they do.
                slice_dns: (self.dns_forwards)
                    .unwrap_or_else(|| there.and_then(|there| there.spec.slice_dns)),
            };
            self.local.want(key, Content::of(&SliceNode::new(node, spec)));
        }
        let stale: Vec<Key> = self
            .local
            .keys(Kind::SliceNode)
            .filter(|key| !self.node_facts.contains_key(&*key.name))
            .cloned()
            .collect();
        stale.into_iter().for_each(|key| self.local.remove(key));
        if sorted != self.nodes {
            self.note_misannotated(&sorted);
            self.nodes = sorted;
            self.dirty.report = true;
        }
        self.touch_slices();
    }

    /// An event on each Node that says something new that cannot be followed.
    fn note_misannotated(&mut self, sorted: &nodes::Nodes) {
        for (node, why) in sorted.misannotated() {
            if self.nodes.outside.get(node) == sorted.outside.get(node) {
                continue;
            }
            if let Some(regarding) = self.reference(&format!("Node {node}")) {
                self.notices.push(Notice {
                    regarding,
                    warning: true,
                    reason: reason::ADDRESS_INVALID.to_owned(),
                    message: why,
                });
            }
        }
    }

    /// Takes [`names::AGENT_NOT_READY`] off a node whose agent is ready. Nothing here puts it there.
    pub(super) fn plan_taint(&mut self, node: &str) {
        let key = Key::new(Kind::Node, "", node);
        let facts = self.node_facts.get(node);
        let alive = self.agents.get(node).is_some_and(|agent| !agent.silent);
        let ready = self.slice_nodes.get(node).is_some_and(|there| {
            let status = there.status.as_ref();
            status.is_some_and(|status| status.phase == SliceNodePhase::Ready)
                && facts.is_some_and(|facts| facts.is_subject_of(there))
        });
        match facts.and_then(|facts| facts.other_taints.as_ref()) {
            Some(others) if alive && ready => {
                let spec = json!({ "taints": others });
                self.local.want(key, Content::spec(BTreeMap::new(), &spec));
            }
            _ => self.local.release(&key),
        }
    }

    fn silent(&self) -> BTreeSet<String> {
        self.agents
            .iter()
            .filter(|(_, agent)| agent.silent)
            .map(|(node, _)| node.clone())
            .collect()
    }

    pub(super) fn plan_slice(&mut self, name: &str, now: Now) {
        self.mirror(name);
        self.plan_blocks(name, now);
        self.plan_gateways(name);
        self.report_slice(name, now);
        self.dirty.report = true;
        if self.slices.get(name).is_some_and(SliceState::is_empty) && !self.hub.slices.contains_key(name) {
            self.slices.remove(name);
        }
    }

    /// The hub's desired state as the local mirror. What the hub does not mention stays: only an explicit release takes anything
    /// down.
    fn mirror(&mut self, name: &str) {
        let leaving = self.link.as_ref().is_ok_and(|link| link.leaving);
        let desired = self.hub.slices.get(name).cloned();
        let is_new = self.slices.get(name).is_none_or(|state| state.object.is_none());
        let vnis = if is_new {
            self.vnis_but(name)
        } else {
            BTreeMap::new()
        };
        let state = self.slices.entry(name.to_owned()).or_default();
        state.refused = None;
        let key = Key::new(Kind::Slice, "", name);
        if leaving || desired.as_ref().is_some_and(|desired| desired.released) {
            let stale = desired
                .as_ref()
                .zip(state.object.as_ref())
                .is_some_and(|(desired, object)| {
                    let source = object.spec.source.clone().unwrap_or_default();
                    source.hub == desired.hub && desired.revision < source.revision
                });
            if leaving || !stale {
                self.local.remove(key);
            }
            return;
        }
        let Some(desired) = desired else {
            self.local.release(&key);
            return;
        };
        // What this slice was before comes down first.
        if state.object.is_none() && !state.blocks.is_empty() {
            self.local.release(&key);
            return;
        }
        let shared = self.hub.shared.get(&desired.shared_in);
        let shards: Vec<_> = desired
            .peer_shards
            .iter()
            .map(|shard| shared?.objects.get(&names::shard(name, *shard)))
            .collect();
        // Not every peer is known yet: half of them would cut the others off.
        let Some(shards) = shards.into_iter().collect::<Option<Vec<_>>>() else {
            return;
        };
        let (spec, problems) = match wire::read::slice(&desired, shards.iter().map(|shard| &***shard)) {
            Ok(read) => read,
            Err(why) => {
                state.refused = Some(format!("what the hub has of it cannot be used: {why}"));
                self.local.release(&key);
                return;
            }
        };
        state.refused = problems.first().cloned();
        let used: Vec<_> = state
            .blocks
            .values()
            .flat_map(|block| block.spec.blocks.iter().copied())
            .collect();
        let here = mirror::Here {
            spec: state.object.as_ref().map(|object| &object.spec),
            used: &used,
            vnis: &vnis,
        };
        match mirror::judge(&here, spec) {
            mirror::Verdict::Take(spec) => self.local.want(key, Content::of(&Slice::new(name, *spec))),
            mirror::Verdict::Stale => self.local.release(&key),
            mirror::Verdict::Refuse(why) => {
                state.refused = Some(why);
                self.local.release(&key);
            }
        }
    }

    /// VNIs of the other slices that are here.
    fn vnis_but(&self, slice: &str) -> BTreeMap<u32, String> {
        let others = self.slices.iter().filter(|(name, _)| *name != slice);
        others
            .filter_map(|(name, state)| Some((state.object.as_ref()?.spec.vni, name.clone())))
            .collect()
    }

    fn plan_blocks(&mut self, name: &str, now: Now) {
        let Some(state) = self.slices.get_mut(name) else {
            return;
        };
        let gone: BTreeMap<String, Duration> = self
            .gone
            .iter()
            .map(|(node, since)| (node.clone(), now.clock.saturating_sub(*since)))
            .collect();
        let Some(object) = &state.object else {
            state.planned = blocks::Plan::default();
            let known: BTreeSet<String> = self.node_facts.keys().cloned().collect();
            for (node, block) in &state.blocks {
                let key = Key::of(Kind::SliceBlock, &**block);
                match blocks::take_down(block, &self.nodes, &known, gone.get(node).copied()) {
                    TakeDown::Ask(spec) => {
                        let content = block_content(name, node, spec);
                        self.local
                            .want_from(key, content, block.metadata.resource_version.as_deref());
                    }
                    TakeDown::Wait => self.local.release(&key),
                    TakeDown::Remove => self.local.remove(key),
                }
            }
            return;
        };
        let key = |node: &str| Key::new(Kind::SliceBlock, "", &names::block(name, node));
        // What was sent counts, until it is known that it does not: nobody else is given it meanwhile. So does an object
        // that somebody else has deleted: it is made again as it was.
        let mut there = state.blocks.clone();
        let ranges = &object.spec.ranges;
        let is_here = |spec: &SliceBlockSpec| {
            spec.blocks
                .iter()
                .all(|block| ranges.iter().any(|range| range.covers(*block)))
        };
        for (node, spec) in &state.planned.specs {
            if self.local.is_unsure(&key(node)) || !there.contains_key(node) && is_here(spec) {
                let known = there.get(node).map(|block| (**block).clone());
                let mut block =
                    known.unwrap_or_else(|| SliceBlock::new(&names::block(name, node), spec.clone()));
                (block.spec, block.status) = (spec.clone(), None);
                there.insert(node.clone(), Arc::new(block));
            }
        }
        state.planned = blocks::plan(&blocks::Request {
            slice: name,
            spec: &object.spec,
            nodes: &self.nodes,
            there: &there,
            gone: &gone,
            used: &state.used,
        });
        for (node, spec) in &state.planned.specs {
            let base = state
                .blocks
                .get(node)
                .and_then(|block| block.metadata.resource_version.clone());
            self.local.want_from(
                key(node),
                block_content(name, node, spec.clone()),
                base.as_deref(),
            );
        }
        for node in &state.planned.remove {
            self.local.remove(key(node));
        }
    }

    fn plan_gateways(&mut self, name: &str) {
        let silent = self.silent();
        let Some(state) = self.slices.get(name) else {
            return;
        };
        let workload = match &state.object {
            None => Workload::default(),
            Some(slice) => {
                let lost = self
                    .nodes
                    .unready
                    .union(&silent)
                    .chain(self.nodes.left_out.keys())
                    .cloned()
                    .collect();
                let all = |values: &BTreeMap<(String, String), Arc<Service>>| {
                    values.values().cloned().collect::<Vec<_>>()
                };
                gateways::plan(&gateways::Request {
                    slice,
                    image: &self.settings.gateway_image,
                    pod: &self.settings.gateway_pod,
                    namespace: &self.settings.gateway_namespace,
                    nodes: &self.nodes,
                    lost: &lost,
                    sets: &state.sets.values().cloned().collect::<Vec<_>>(),
                    pods: &state.pods.values().cloned().collect::<Vec<_>>(),
                    services: &all(&state.services),
                    gateways: &state.gateways,
                    resolved: &self.resolved,
                })
            }
        };
        let mut wanted = BTreeSet::new();
        let mut want = |outputs: &mut Outputs, key: Key, content: Content| {
            wanted.insert(key.clone());
            outputs.want(key, content);
        };
        for key in &workload.kept {
            self.local.release(key);
        }
        for object in &workload.services {
            want(
                &mut self.local,
                Key::of(Kind::Service, object),
                Content::of(object),
            );
        }
        for object in &workload.budgets {
            want(
                &mut self.local,
                Key::of(Kind::PodDisruptionBudget, object),
                Content::of(object),
            );
        }
        for object in &workload.sets {
            want(
                &mut self.local,
                Key::of(Kind::StatefulSet, object),
                Content::of(object),
            );
        }
        for object in &workload.gateways {
            want(
                &mut self.local,
                Key::of(Kind::SliceGateway, object),
                Content::of(object),
            );
        }
        wanted.extend(workload.kept);
        let stale: Vec<Key> = state.workload.difference(&wanted).cloned().collect();
        stale.into_iter().for_each(|key| self.local.remove(key));
        if let Some(state) = self.slices.get_mut(name) {
            self.other_names |= state.balancers != workload.names;
            (state.balancers, state.exposure) = (workload.names, workload.troubles);
        }
    }

    fn report_slice(&mut self, name: &str, now: Now) {
        let silent = self.silent();
        let desired = self.hub.slices.get(name).cloned();
        let identity = self.hub_identity();
        let Some(state) = self.slices.get(name) else {
            return;
        };
        let namespace = self.namespace();
        let key = Key::new(Kind::MemberSliceReport, &namespace, name);
        if state.is_empty() && desired.is_none() {
            self.remote.remove(key);
            return;
        }
        let dns: BTreeSet<IpAddr> = self
            .dns(name)
            .flat_map(|attachment| attachment.ips.iter().copied())
            .collect();
        let spec = state.object.as_ref().map(|object| &object.spec);
        let (mtu, largest_mtu) = spec.map_or((0, None), |spec| (spec.mtu, spec.largest_mtu));
        let mesh = mesh::of_slice(&mesh::Known {
            reported: &self.broken_pairs,
            mtu,
            largest_mtu: largest_mtu.unwrap_or(mtu).max(mtu),
            blocks: &state.blocks,
            nodes: &self.nodes,
            silent: &silent,
        });
        let report = report::slice(&report::OfSlice {
            name,
            state,
            desired: desired.as_deref(),
            hub: &identity,
            nodes: &self.nodes,
            silent: &silent,
            mesh: &mesh,
            dns_pods: u32::try_from(self.dns(name).count()).unwrap_or(u32::MAX),
        });
        if let Some(object) = state.object.clone() {
            let status = report::status(
                &object,
                &report,
                dns.into_iter().collect(),
                [mesh.verdict(), report::exposed(&object, &state.exposure)],
                self.hub_verdict(now),
                now.wall,
            );
            self.local
                .want(Key::new(Kind::SliceStatus, "", name), Content::status(&status));
        }
        // Nothing is reported of a hub that has not been seen: who it is decides what is reported to it.
        if self.is_hub_synced() {
            let mut object = MemberSliceReport::new(name, report);
            object.metadata.namespace = Some(namespace);
            object.metadata.labels = Some(for_slice(name, None));
            self.remote.want(key, Content::of(&object));
        }
    }

    /// Whether the hub is reached; `None` while that is not known yet.
    fn hub_verdict(&self, now: Now) -> Option<Verdict> {
        if !self.link_seen {
            return None;
        }
        let no = |message: String| {
            let verdict = Verdict::no(conditions::REACHABLE, reason::HUB_UNREACHABLE, message);
            Some(verdict)
        };
        let waits = "so changes to slices wait; everything else goes on";
        if let Err(why) = &self.link {
            return no(format!("there is no credential for a hub, {waits}: {why}"));
        }
        if self.reachable {
            return Some(Verdict::yes(
                conditions::REACHABLE,
                reason::REPORTING,
                "the hub takes heartbeats",
            ));
        }
        if now.clock < self.unjudged_until {
            return None;
        }
        let since = match self.heartbeat {
            Some(at) => {
                let ago = SignedDuration::try_from(now.clock.saturating_sub(at)).unwrap_or_default();
                let at = now.wall - ago;
                format!("since {}", at.round(jiff::Unit::Second).unwrap_or(at))
            }
            None => "since this operator started".to_owned(),
        };
        let error = self
            .heartbeat_error
            .clone()
            .unwrap_or_else(|| "no answer".to_owned());
        no(format!(
            "the hub has taken no heartbeat {since}, {waits}: {error}"
        ))
    }

    /// What the pods of this cluster's DNS have in a slice.
    fn dns<'a>(&'a self, slice: &'a str) -> impl Iterator<Item = &'a Attachment> {
        let pods = self.pods.get(names::MEMBER_NAMESPACE).into_iter();
        let pods = pods.flat_map(|pods| pods.values());
        let is_dns = |pod: &&PodFacts| {
            let component = pod.labels.get(labels::COMPONENT);
            component.is_some_and(|component| component == labels::COMPONENT_DNS)
        };
        let dns = pods.filter(is_dns);
        dns.flat_map(|pod| &pod.attachments)
            .filter(move |attachment| attachment.slice == slice)
    }

    pub(super) fn rules(&self) -> Vec<Rules> {
        self.slices
            .values()
            .filter_map(|slice| slice.rules.clone())
            .collect()
    }

    /// Labels that cannot be followed: a warning in the report, and an event on the object.
    pub(super) fn plan_labels(&mut self) {
        let rules = self.rules();
        let mut warnings = BTreeMap::new();
        let mut warn = |object: String, errors: &[membership::MembershipError]| {
            if !errors.is_empty() {
                let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
                warnings.insert(object, all.join("; "));
            }
        };
        for (name, labels) in self
            .namespaces
            .iter()
            .filter(|(_, labels)| labels.contains_key(labels::SLICE))
        {
            let facts = membership::PodFacts {
                namespace: name.clone(),
                ..membership::PodFacts::default()
            };
            warn(
                format!("Namespace {name}"),
                &membership::of_pod(&facts, labels, &rules).errors,
            );
        }
        let none = Labels::new();
        for (namespace, name) in &self.labelled {
            let Some(pod) = self.pods.get(namespace).and_then(|pods| pods.get(name)) else {
                continue;
            };
            let facts = membership::PodFacts {
                namespace: namespace.clone(),
                labels: pod.labels.clone(),
                host_network: false,
            };
            // What the namespace's own label cannot have is reported of the namespace.
            let of_namespace = self.namespaces.get(namespace).unwrap_or(&none);
            let without = membership::PodFacts {
                labels: Labels::new(),
                ..facts.clone()
            };
            let known = membership::of_pod(&without, of_namespace, &rules).errors;
            let errors: Vec<_> = membership::of_pod(&facts, of_namespace, &rules)
                .errors
                .into_iter()
                .filter(|error| !known.contains(error))
                .collect();
            warn(format!("Pod {namespace}/{name}"), &errors);
        }
        for (object, message) in &warnings {
            if self.warnings.get(object) != Some(message)
                && let Some(regarding) = self.reference(object)
            {
                self.notices.push(Notice {
                    regarding,
                    warning: true,
                    reason: reason::MALFORMED_LABEL.to_owned(),
                    message: message.clone(),
                });
            }
        }
        if self.warnings != warnings {
            self.warnings = warnings;
            self.dirty.report = true;
        }
    }

    /// The object of a warning, for its event.
    fn reference(&self, object: &str) -> Option<ObjectReference> {
        let (kind, name) = object.split_once(' ')?;
        let (namespace, name) = match name.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, name),
        };
        let uid = namespace
            .and_then(|namespace| self.pods.get(namespace)?.get(name))
            .map(|pod| pod.uid.clone());
        Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            // Events of cluster-scoped objects live in the default namespace; `kubectl describe` looks there.
            namespace: namespace.map(ToOwned::to_owned),
            name: Some(name.to_owned()),
            uid: uid.or_else(|| Some(name.to_owned())),
            ..ObjectReference::default()
        })
    }

    /// What the cluster's DNS should hold, and an event where that is for a person to write.
    pub(super) fn plan_cluster_dns(&mut self, now: Now) {
        if !self.listed.contains(&Source::ConfigMap) {
            return;
        }
        let dns = (
            names::MEMBER_NAMESPACE.to_owned(),
            self.settings.dns_service.clone(),
        );
        let service = self.exports.get(&dns).and_then(|state| state.service.as_ref());
        let address = service.and_then(|service| service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok());
        let Some(dns) = address else {
            self.note_forwarding(None);
            return;
        };
        let request = cluster_dns::Request {
            config: &self.settings.cluster_dns,
            there: &self.dns_configs,
            is_openshift: self.namespaces.contains_key(cluster_dns::OPENSHIFT),
            dns,
        };
        let cluster_dns::Plan {
            mut data,
            warnings,
            forwards,
            marks,
            unchecked,
        } = cluster_dns::plan(&request).tried(
            &request,
            &cluster_dns::Trial {
                marks: &self.dns_marks,
                answers: &self.dns_answers,
                now,
            },
        );
        if self.dns_answers == cluster_dns::Answers::Unknown && now.clock < cluster_dns::PATIENCE {
            self.wake_after(cluster_dns::PATIENCE - now.clock, now);
        }
        for (id, meta) in &self.dns_metas {
            let key = Key::new(Kind::ConfigMap, &id.0, &id.1);
            match data.remove(id) {
                Some(data) => {
                    // In one write with the text, so that whoever leads next knows whose it is.
                    let note = marks.get(id).map(|mark| (DNS_STUB, mark.to_string()));
                    let annotations: BTreeMap<&str, String> = note.into_iter().collect();
                    let data = json!({"metadata": {"annotations": annotations}, "data": data});
                    // Somebody may be editing it: nothing is written over a text that this was not made from.
                    self.local.want_from(key, Content::of(&data), Some(&meta.version));
                }
                None => self.local.release(&key),
            }
        }
        self.note_forwarding(forwards.then_some(dns));
        self.dirty.report |= self.dns_warnings != warnings || self.dns_unchecked != unchecked;
        self.dns_unchecked = unchecked;
        for warning in warnings
            .iter()
            .filter(|warning| !self.dns_warnings.contains(warning))
        {
            let Some(id) = &warning.config else {
                continue;
            };
            self.notices.push(Notice {
                regarding: ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("ConfigMap".to_owned()),
                    namespace: Some(id.0.clone()),
                    name: Some(id.1.clone()),
                    uid: self.dns_metas.get(id).map(|meta| meta.uid.to_string()),
                    ..ObjectReference::default()
                },
                warning: true,
                reason: reason::ZONE_NOT_FORWARDED.to_owned(),
                message: warning.message.clone(),
            });
        }
        self.dns_warnings = warnings;
    }

    /// Agents ask for names while there is somebody who forwards them.
    fn note_forwarding(&mut self, slice_dns: Option<IpAddr>) {
        self.nodes_dirty |= self.dns_forwards != Some(slice_dns);
        self.dns_forwards = Some(slice_dns);
    }

    /// What the agents of living nodes say of names.
    fn names_report(&self) -> Option<wire::NamesReport> {
        let silent = self.silent();
        let lives = |name: &&String| {
            self.nodes.usable.contains_key(*name)
                && !self.nodes.unready.contains(*name)
                && !silent.contains(*name)
        };
        let nodes = self.slice_nodes.iter().filter(|(name, _)| lives(name));
        reported_names::of_nodes(nodes.map(|(name, node)| (name.as_str(), &**node)))
    }

    pub(super) fn plan_report(&mut self) {
        let Ok(link) = &self.link else { return };
        // Without its own facts a report would be of another cluster.
        if self.facts.cluster_uid.is_empty() || !self.is_hub_synced() {
            return;
        }
        let spec = report::cluster(&report::Cluster {
            facts: &self.facts,
            link,
            version: self.settings.version,
            inline: self.settings.inline,
            nodes: &self.nodes,
            node_facts: &self.node_facts,
            slice_nodes: &self.slice_nodes,
            dns_warnings: &self.dns_warnings,
            dns_unchecked: self.dns_unchecked.as_deref(),
            names: self.names_report(),
            warnings: &self.warnings,
            slices: &self.slices,
        });
        let object = MemberReport::new(names::MEMBER_REPORT, spec);
        let key = Key::new(Kind::MemberReport, &link.namespace, names::MEMBER_REPORT);
        self.remote.want(key, Content::of(&object));
    }
}

pub(super) fn for_slice(slice: &str, cluster: Option<&str>) -> BTreeMap<String, String> {
    let mut map = BTreeMap::from([(labels::FOR_SLICE.to_owned(), slice.to_owned())]);
    if let Some(cluster) = cluster {
        map.insert(labels::FOR_CLUSTER.to_owned(), cluster.to_owned());
    }
    map
}

fn block_content(slice: &str, node: &str, spec: SliceBlockSpec) -> Content {
    let mut block = SliceBlock::new(&names::block(slice, node), spec);
    block.metadata.labels = Some(for_slice(slice, None));
    Content::of(&block)
}
