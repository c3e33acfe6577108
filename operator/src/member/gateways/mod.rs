//! The gateway workloads of a slice: intent → Kubernetes objects. Pure.
//!
//! One StatefulSet per slice, so that a replica keeps its number, and one Service per replica, so that each can be
//! reached by itself, unless none is to be. The pods hold no credential and no privilege: what they work from comes over a socket from the
//! agent of their node (`/run/weft/gateway/<slice>`). They live in a namespace of their own, so that whoever may create
//! them may create nothing that is privileged.
//!
//! A slice whose gateways are in another namespace moves one replica at a time, the last first: the old one is taken
//! away, and when it is gone the new one starts; the next waits until that is ready.

mod exposure;
mod moves;
mod obstacle;
mod settings;
#[cfg(test)]
mod tests;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{ResourceExt, core::ObjectMeta};
use slice_crds::{
    labels,
    v1alpha1::{Slice, SliceGateway},
};

use self::exposure::Replica;
pub(super) use self::obstacle::obstacle;
pub use self::{exposure::Resolved, settings::PodSettings};
use super::nodes::Nodes;
use crate::control::Key;

/// UDP port that a gateway listens on in its pod.
pub const PORT: i32 = 51820;

/// What the gateways of one slice are planned from.
#[derive(Debug)]
pub struct Request<'a> {
    pub slice: &'a Slice,
    pub image: &'a str,
    pub pod: &'a PodSettings,
    /// Where they are to be.
    pub namespace: &'a str,
    pub nodes: &'a Nodes,
    /// Nodes that are not ready, or whose agent sends no heartbeat.
    pub lost: &'a BTreeSet<String>,
    /// The slice's gateways as the cluster has them, in any namespace.
    pub sets: &'a [Arc<StatefulSet>],
    pub pods: &'a [Arc<Pod>],
    pub services: &'a [Arc<Service>],
    /// What others were told of them, by number.
    pub gateways: &'a BTreeMap<u32, Arc<SliceGateway>>,
    /// What is known of the names of load balancers.
    pub resolved: &'a BTreeMap<String, Resolved>,
}

/// The objects of one slice's gateways.
#[derive(Debug, Default)]
pub struct Workload {
    pub sets: Vec<StatefulSet>,
    pub budgets: Vec<PodDisruptionBudget>,
    pub services: Vec<Service>,
    pub gateways: Vec<SliceGateway>,
    /// What stays as it is as long as gateways are where they are not to be.
    pub kept: Vec<Key>,
    /// Why other clusters cannot be told where gateways are reached, and what to do.
    pub troubles: Vec<String>,
    /// Names of load balancers: their addresses have to be known.
    pub names: BTreeSet<String>,
}

pub fn plan(request: &Request<'_>) -> Workload {
    let mut planned = Workload::default();
    let parts = moves::parts(request);
    for part in &parts {
        if let Some(old) = part.leaves {
            planned.sets.push(moves::fewer(old, part.replicas));
            planned.kept.extend(moves::around(request.slice, part));
            continue;
        }
        planned.sets.push(workload::set(request, part));
        planned
            .budgets
            .push(workload::budget(request.slice, &part.namespace));
        let services = part.ordinals().filter_map(|ordinal| {
            let replica = Replica::of(request, ordinal, &part.namespace);
            exposure::service(request, &replica, &part.namespace)
        });
        planned.services.extend(services);
    }
    for ordinal in 0..request.slice.spec.gateway.replicas {
        let namespace = parts.iter().find(|part| part.ordinals().contains(&ordinal));
        let namespace = namespace.map_or(request.namespace, |part| &part.namespace);
        let replica = Replica::of(request, ordinal, namespace);
        let (troubles, names) = (&mut planned.troubles, &mut planned.names);
        let gateway = exposure::gateway(request, &replica, troubles, names);
        planned.gateways.push(gateway);
    }
    planned
}

fn selector(slice: &Slice) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::COMPONENT.to_owned(), labels::COMPONENT_GATEWAY.to_owned()),
        (labels::FOR_SLICE.to_owned(), slice.name_any()),
    ])
}

fn meta(slice: &Slice, name: &str, namespace: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(selector(slice)),
        ..ObjectMeta::default()
    }
}
