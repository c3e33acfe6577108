//! Services that go out to the other clusters, and those that come in.

use std::collections::{BTreeMap, BTreeSet};

use slice_crds::{
    annotations::FROM_HUB,
    labels::Attachment,
    mcs::ServiceExportStatus,
    membership::Labels,
    names,
    v1alpha1::{SliceService, SliceServiceSpec},
    wire::{self, MemberService, MemberServiceSpec},
};

use super::{
    core::{Member, REBUILT},
    plan::for_slice,
    services,
};
use crate::control::{Content, Key, Kind, Now};

impl Member {
    /// What a Service is exported as: to local DNS and to the hub.
    pub(super) fn plan_export(&mut self, id: &(String, String), now: Now) {
        let cluster = self.name();
        let rules = self.rules();
        let namespace = self.namespace();
        let Some(state) = self.exports.get(id) else { return };
        let no_labels = Labels::new();
        let none: BTreeMap<String, Vec<Attachment>> = BTreeMap::new();
        let mut exported = BTreeMap::new();
        if let Some(object) = &state.export {
            let pods = self.pods.get(&id.0).map_or(none, |pods| {
                let attached = pods.iter().filter(|(_, pod)| !pod.attachments.is_empty());
                attached
                    .map(|(name, pod)| (name.clone(), pod.attachments.clone()))
                    .collect()
            });
            let export = services::export(
                &services::Request {
                    cluster: &cluster,
                    rules: &rules,
                    export: object,
                    service: state.service.as_deref(),
                    namespace_labels: self.namespaces.get(&id.0).unwrap_or(&no_labels),
                    endpoints: &state.endpoints.values().cloned().collect::<Vec<_>>(),
                    pods: &pods,
                },
                now.wall,
            );
            let status = ServiceExportStatus {
                conditions: export.conditions,
            };
            let key = Key::new(Kind::ServiceExportStatus, &id.0, &id.1);
            self.local.want(key, Content::status(&status));
            exported = export
                .services
                .into_iter()
                .map(|spec| (spec.slice.clone(), spec))
                .collect();
        }
        let before = state.exported.clone();
        for (slice, spec) in &exported {
            let name = names::service(slice, &cluster, &id.0, &id.1);
            self.local.want(
                Key::new(Kind::SliceService, names::MEMBER_NAMESPACE, &name),
                Content::of(&slice_service(&name, spec.clone(), None)),
            );
            if !namespace.is_empty() {
                let service = wire::read::exported(spec);
                let mut object = MemberService::new(&name, MemberServiceSpec { service });
                object.metadata.labels = Some(for_slice(slice, Some(&cluster)));
                self.remote.want(
                    Key::new(Kind::MemberService, &namespace, &name),
                    Content::of(&object),
                );
            }
        }
        for slice in before.iter().filter(|slice| !exported.contains_key(*slice)) {
            let name = names::service(slice, &cluster, &id.0, &id.1);
            self.local
                .remove(Key::new(Kind::SliceService, names::MEMBER_NAMESPACE, &name));
            self.remote
                .remove(Key::new(Kind::MemberService, &namespace, &name));
        }
        if let Some(state) = self.exports.get_mut(id) {
            state.exported = exported.into_keys().collect();
            if state.service.is_none()
                && state.export.is_none()
                && state.endpoints.is_empty()
                && state.exported.is_empty()
            {
                self.exports.remove(id);
            }
        }
    }

    /// The services of the other clusters, and which of those that were there are not any more.
    pub(super) fn plan_imports(&mut self, now: Now) {
        let cluster = self.name();
        let identity = self.hub_identity();
        let known: BTreeSet<&String> = self
            .slices
            .iter()
            .filter(|(_, slice)| slice.object.is_some())
            .map(|(name, _)| name)
            .collect();
        let mut wanted = BTreeSet::new();
        if self.is_hub_synced() {
            let shared = self.hub.shared.values();
            let shared = shared.flat_map(|shared| shared.objects.values());
            let shared = shared.filter_map(|share| share.service.as_ref());
            let copies = self.hub.services.values().map(|service| &**service);
            for service in shared.chain(copies) {
                if service.cluster == cluster || !known.contains(&service.slice) {
                    continue;
                }
                let name = names::service(
                    &service.slice,
                    &service.cluster,
                    &service.namespace,
                    &service.name,
                );
                let object = slice_service(&name, wire::read::service(service), Some(&identity));
                self.local.want(
                    Key::new(Kind::SliceService, names::MEMBER_NAMESPACE, &name),
                    Content::of(&object),
                );
                wanted.insert(name);
            }
        }
        let own: BTreeSet<String> = self
            .exports
            .iter()
            .flat_map(|((namespace, service), state)| {
                state
                    .exported
                    .iter()
                    .map(|slice| names::service(slice, &cluster, namespace, service))
            })
            .collect();
        let settled = self
            .hub
            .synced
            .is_some_and(|since| now.clock.saturating_sub(since) >= REBUILT);
        let mut waits = false;
        for (name, (slice, of, hub)) in &self.imported {
            let key = Key::new(Kind::SliceService, names::MEMBER_NAMESPACE, name);
            if wanted.contains(name) || own.contains(name) {
                continue;
            }
            // A service of this cluster that is not exported any more, or one of a slice that is not here.
            let ours = *of == cluster && self.is_synced();
            // A hub that was built anew has not every service at once, and one that is away or does not mention the slice has
            // none.
            let theirs = self.is_hub_synced() && self.has_all_of(slice) && (*hub == identity || settled);
            if ours || !known.contains(slice) || theirs {
                self.local.remove(key);
            } else {
                waits = true;
                self.local.release(&key);
            }
        }
        if waits && self.is_hub_synced() {
            self.wake_after(REBUILT, now);
        }
    }

    /// Whether everything was seen that the hub has of a slice.
    fn has_all_of(&self, slice: &str) -> bool {
        let shared = |namespace| self.hub.shared.get(namespace);
        self.hub.slices.get(slice).is_some_and(|desired| {
            desired.shared_in.is_empty() || shared(&desired.shared_in).is_some_and(|shared| shared.listed)
        })
    }
}

fn slice_service(name: &str, spec: SliceServiceSpec, hub: Option<&str>) -> SliceService {
    let labels = for_slice(&spec.slice, Some(&spec.cluster));
    let mut object = SliceService::new(name, spec);
    object.metadata.namespace = Some(names::MEMBER_NAMESPACE.to_owned());
    object.metadata.labels = Some(labels);
    object.metadata.annotations = hub.map(|hub| BTreeMap::from([(FROM_HUB.to_owned(), hub.to_owned())]));
    object
}
