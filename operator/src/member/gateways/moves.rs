//! Gateways that are in another namespace than they are to be: which replicas are where meanwhile.

use std::{ops::Range, sync::Arc};

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::{ResourceExt, core::ObjectMeta};
use slice_crds::{names, v1alpha1::Slice};

use super::Request;
use crate::control::{Key, Kind};

/// The replicas that one namespace is to have: numbers from `start` on.
#[derive(Clone, Debug)]
pub(super) struct Part<'a> {
    pub(super) namespace: String,
    pub(super) start: u32,
    pub(super) replicas: u32,
    /// What they are moved away from.
    pub(super) leaves: Option<&'a StatefulSet>,
}

impl Part<'_> {
    pub(super) fn ordinals(&self) -> Range<u32> {
        self.start..self.start + self.replicas
    }
}

/// How the replicas are divided between the namespace where they are to be and one where they are yet.
pub(super) fn parts<'a>(request: &Request<'a>) -> Vec<Part<'a>> {
    let wanted = request.slice.spec.gateway.replicas;
    let all = Part {
        namespace: request.namespace.to_owned(),
        start: 0,
        replicas: wanted,
        leaves: None,
    };
    let here = |set: &&Arc<StatefulSet>| set.namespace().as_deref() == Some(request.namespace);
    let Some(old) = request.sets.iter().find(|set| !here(set)) else {
        return vec![all];
    };
    let old_namespace = old.namespace().unwrap_or_default();
    let stays = old.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let stays = u32::try_from(stays).unwrap_or_default().min(wanted);
    let new = request.sets.iter().find(here);
    let ready = new.is_none_or(|set| {
        let count = |of: Option<i32>| of.and_then(|count| u32::try_from(count).ok()).unwrap_or_default();
        let wanted = count(set.spec.as_ref().and_then(|spec| spec.replicas));
        count(set.status.as_ref().and_then(|status| status.ready_replicas)) >= wanted
    });
    // The old pods of these numbers are gone, so that the new ones may start.
    let gone = |from: u32| {
        (from..wanted).all(|ordinal| {
            let name = names::gateway(&request.slice.name_any(), ordinal);
            let mut pods = request.pods.iter();
            !pods.any(|pod| pod.name_any() == name && pod.namespace().as_deref() == Some(&old_namespace))
        })
    };
    let moved = new.map_or(wanted, |set| {
        let start = set
            .spec
            .as_ref()
            .and_then(|spec| spec.ordinals.as_ref()?.start)
            .unwrap_or_default();
        u32::try_from(start).unwrap_or_default()
    });
    let (stays, start) = match (moved == stays, ready) {
        // Everything that was taken away has its successor: the next.
        (true, true) if stays > 0 => (stays - 1, moved),
        (true, _) => (stays, moved),
        (false, _) if gone(stays) => (stays, stays),
        (false, _) => (stays, moved),
    };
    let new = Part {
        start,
        replicas: wanted - start,
        ..all
    };
    let old = Part {
        namespace: old_namespace,
        start: 0,
        replicas: stays,
        leaves: Some(old),
    };
    match (stays, start) {
        // Nothing is left there, and the last has its successor.
        (0, 0) if ready && moved == 0 => vec![new],
        _ => vec![old, new],
    }
}

/// The set with fewer replicas and nothing else changed: another template would replace those that stay while one goes.
pub(super) fn fewer(old: &StatefulSet, replicas: u32) -> StatefulSet {
    let mut spec = old.spec.clone().unwrap_or_default();
    spec.replicas = i32::try_from(replicas).ok();
    StatefulSet {
        metadata: ObjectMeta {
            name: old.metadata.name.clone(),
            namespace: old.metadata.namespace.clone(),
            labels: old.metadata.labels.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        ..StatefulSet::default()
    }
}

/// Budget and Services of gateways that are to go.
pub(super) fn around<'a>(slice: &'a Slice, part: &'a Part<'_>) -> impl Iterator<Item = Key> + 'a {
    let budget = names::gateway_workload(&slice.name_any());
    let budget = Key::new(Kind::PodDisruptionBudget, &part.namespace, &budget);
    let services = part.ordinals().map(|ordinal| {
        let name = names::gateway(&slice.name_any(), ordinal);
        Key::new(Kind::Service, &part.namespace, &name)
    });
    services.chain([budget])
}
