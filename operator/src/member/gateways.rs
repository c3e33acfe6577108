//! The gateway workloads of a slice: intent → Kubernetes objects. Pure.
//!
//! One StatefulSet per slice, so that a replica keeps its number, and one Service per replica, so that each can be
//! reached by itself. The pods hold no credential and no privilege: what they work from comes over a socket from the
//! agent of their node (`/run/weft/gateway/<slice>`). They live in a namespace of their own, so that whoever may create
//! them may create nothing that is privileged.
//!
//! A slice whose gateways are in another namespace moves one replica at a time, the last first: the old one is taken
//! away, and when it is gone the new one starts; the next waits until that is ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
    str::FromStr,
    sync::Arc,
};

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetOrdinals, StatefulSetSpec},
        core::v1::{
            Affinity, Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
            HostPathVolumeSource, LocalObjectReference, ObjectFieldSelector, Pod, PodAffinityTerm,
            PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
            SELinuxOptions, SeccompProfile, SecurityContext, Service, ServicePort, ServiceSpec, Toleration,
            Volume, VolumeMount, WeightedPodAffinityTerm,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::{ResourceExt, core::ObjectMeta};
use serde::Deserialize;
use slice_crds::{
    labels, names,
    v1alpha1::{self, Exposure, Slice, SliceGateway, SliceGatewaySpec, TaintEffect, TolerationOperator},
};

use super::nodes::Nodes;
use crate::{
    allocation::space::HOST_PORTS,
    control::{Key, Kind},
};

/// UDP port that a gateway listens on in its pod.
pub const PORT: i32 = 51820;
/// Port of a gateway's admin listener.
const ADMIN_PORT: i32 = 9402;
/// Where the hand-over directory is mounted in the pod.
const HANDOVER: &str = "/run/weft/gateway";
/// Thousandths of a processor that a gateway asks for, for each of its threads.
const MILLICORES: u32 = 50;
/// First host port of gateways that are exposed that way; one per slice.
const FIRST_HOST_PORT: u32 = 20_000;

/// What a cluster's owner gives the pods of all gateways; the chart writes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodSettings {
    /// Names of Secrets in the gateways' namespace.
    pub image_pull_secrets: Vec<String>,
    pub tolerations: Vec<Toleration>,
    pub priority_class_name: String,
    pub se_linux_options: Option<SELinuxOptions>,
    /// In place of what each thread asks for.
    pub resources: Option<ResourceRequirements>,
    /// Beside those that Weft finds its pods by.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

impl Default for PodSettings {
    fn default() -> Self {
        Self {
            image_pull_secrets: Vec::new(),
            tolerations: Vec::new(),
            priority_class_name: "system-cluster-critical".to_owned(),
            se_linux_options: None,
            resources: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

impl FromStr for PodSettings {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

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
}

/// The replicas that one namespace is to have: numbers from `start` on.
#[derive(Clone, Debug)]
struct Part<'a> {
    namespace: String,
    start: u32,
    replicas: u32,
    /// What they are moved away from.
    leaves: Option<&'a StatefulSet>,
}

impl Part<'_> {
    fn ordinals(&self) -> Range<u32> {
        self.start..self.start + self.replicas
    }
}

pub fn plan(request: &Request<'_>) -> Workload {
    let mut workload = Workload::default();
    let parts = parts(request);
    for part in &parts {
        if let Some(old) = part.leaves {
            workload.sets.push(fewer(old, part.replicas));
            workload.kept.extend(around(request.slice, part));
            continue;
        }
        workload.sets.push(set(request, part));
        workload.budgets.push(budget(request.slice, &part.namespace));
        let services = part
            .ordinals()
            .map(|ordinal| service(request.slice, ordinal, &part.namespace));
        workload.services.extend(services);
    }
    for ordinal in 0..request.slice.spec.gateway.replicas {
        let namespace = parts.iter().find(|part| part.ordinals().contains(&ordinal));
        let namespace = namespace.map_or(request.namespace, |part| &part.namespace);
        workload.gateways.push(gateway(request, ordinal, namespace));
    }
    workload
}

/// How the replicas are divided between the namespace where they are to be and one where they are yet.
fn parts<'a>(request: &Request<'a>) -> Vec<Part<'a>> {
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
fn fewer(old: &StatefulSet, replicas: u32) -> StatefulSet {
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
fn around<'a>(slice: &'a Slice, part: &'a Part<'_>) -> impl Iterator<Item = Key> + 'a {
    let budget = names::gateway_workload(&slice.name_any());
    let budget = Key::new(Kind::PodDisruptionBudget, &part.namespace, &budget);
    let services = part.ordinals().map(|ordinal| {
        let name = names::gateway(&slice.name_any(), ordinal);
        Key::new(Kind::Service, &part.namespace, &name)
    });
    services.chain([budget])
}

fn gateway(request: &Request<'_>, ordinal: u32, namespace: &str) -> SliceGateway {
    let slice = request.slice;
    let name = names::gateway(&slice.name_any(), ordinal);
    let pods = request
        .pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let mut pods: Vec<&Arc<Pod>> = pods.filter(|pod| pod.name_any() == name).collect();
    // Where it is to be goes before where it was.
    pods.sort_by_key(|pod| pod.namespace().as_deref() != Some(namespace));
    let pod = pods.first();
    let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone());
    let at = pod
        .and_then(|pod| pod.namespace())
        .unwrap_or_else(|| namespace.to_owned());
    let endpoints = match (&node, port(request, &name, &at)) {
        (Some(node), Some(port)) => endpoints(request, node, port),
        _ => Vec::new(),
    };
    let spec = SliceGatewaySpec {
        slice: slice.name_any(),
        ordinal,
        endpoints,
        lost: node.as_ref().is_some_and(|node| request.lost.contains(node)),
        node,
    };
    let mut object = SliceGateway::new(&name, spec);
    object.metadata = meta(slice, &name, names::MEMBER_NAMESPACE);
    object
}

/// The port on the node that leads to this replica, when it has one.
fn port(request: &Request<'_>, name: &str, namespace: &str) -> Option<u16> {
    match request.slice.spec.gateway.exposure {
        Exposure::HostPort => u16::try_from(host_port(request.slice)).ok(),
        Exposure::NodePort => {
            let own = |service: &&Arc<Service>| {
                service.name_any() == name && service.namespace().as_deref() == Some(namespace)
            };
            let service = request.services.iter().find(own)?;
            let port = service.spec.as_ref()?.ports.as_ref()?.first()?.node_port?;
            u16::try_from(port).ok()
        }
    }
}

fn endpoints(request: &Request<'_>, node: &str, port: u16) -> Vec<SocketAddr> {
    let own = request.nodes.usable.get(node).map(|node| node.address);
    let addresses: Vec<IpAddr> = match request.slice.spec.gateway.advertise.as_slice() {
        [] => own.into_iter().collect(),
        advertise => advertise.to_vec(),
    };
    addresses
        .into_iter()
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

fn host_port(slice: &Slice) -> u32 {
    FIRST_HOST_PORT + slice.spec.vni % HOST_PORTS
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

fn service(slice: &Slice, ordinal: u32, namespace: &str) -> Service {
    let name = names::gateway(&slice.name_any(), ordinal);
    let pod = BTreeMap::from([("statefulset.kubernetes.io/pod-name".to_owned(), name.clone())]);
    let node_port = slice.spec.gateway.exposure == Exposure::NodePort;
    Service {
        metadata: meta(slice, &name, namespace),
        spec: Some(ServiceSpec {
            selector: Some(pod),
            type_: Some(if node_port { "NodePort" } else { "ClusterIP" }.to_owned()),
            // The datagram comes to the pod's own node: the client's address is kept and there is no second hop.
            external_traffic_policy: node_port.then(|| "Local".to_owned()),
            // A gateway becomes ready by talking to its peers.
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![ServicePort {
                name: Some("wireguard".to_owned()),
                protocol: Some("UDP".to_owned()),
                port: PORT,
                target_port: Some(IntOrString::Int(PORT)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn set(request: &Request<'_>, part: &Part<'_>) -> StatefulSet {
    let slice = request.slice;
    let name = names::gateway_workload(&slice.name_any());
    let labels = selector(slice);
    StatefulSet {
        metadata: meta(slice, &name, &part.namespace),
        spec: Some(StatefulSetSpec {
            replicas: i32::try_from(part.replicas).ok(),
            ordinals: (part.start > 0).then(|| StatefulSetOrdinals {
                start: i32::try_from(part.start).ok(),
            }),
            pod_management_policy: Some("Parallel".to_owned()),
            selector: LabelSelector {
                match_labels: Some(labels.clone()),
                ..LabelSelector::default()
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(
                        request
                            .pod
                            .labels
                            .clone()
                            .into_iter()
                            .chain(labels.clone())
                            .collect(),
                    ),
                    annotations: (!request.pod.annotations.is_empty())
                        .then(|| request.pod.annotations.clone()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(request, labels)),
            },
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

/// One gateway at a time leaves when nodes are drained.
fn budget(slice: &Slice, namespace: &str) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta(slice, &names::gateway_workload(&slice.name_any()), namespace),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(selector(slice)),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

fn pod(request: &Request<'_>, labels: BTreeMap<String, String>) -> PodSpec {
    let (slice, settings) = (request.slice, request.pod);
    let uid = i64::from(names::UNPRIVILEGED_UID);
    let apart = WeightedPodAffinityTerm {
        weight: 100,
        pod_affinity_term: PodAffinityTerm {
            topology_key: "kubernetes.io/hostname".to_owned(),
            label_selector: Some(LabelSelector {
                match_labels: Some(labels),
                ..LabelSelector::default()
            }),
            ..PodAffinityTerm::default()
        },
    };
    let placement = &slice.spec.gateway;
    let secret = |name: &String| LocalObjectReference { name: name.clone() };
    PodSpec {
        affinity: Some(Affinity {
            pod_anti_affinity: Some(PodAntiAffinity {
                preferred_during_scheduling_ignored_during_execution: Some(vec![apart]),
                ..PodAntiAffinity::default()
            }),
            ..Affinity::default()
        }),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: (!settings.image_pull_secrets.is_empty())
            .then(|| settings.image_pull_secrets.iter().map(secret).collect()),
        tolerations: Some(tolerations(&placement.tolerations, settings)).filter(|some| !some.is_empty()),
        node_selector: Some(
            BTreeMap::from([("kubernetes.io/os".to_owned(), "linux".to_owned())])
                .into_iter()
                .chain(placement.node_selector.clone())
                .collect(),
        ),
        priority_class_name: Some(settings.priority_class_name.clone()),
        // It leaves when nothing comes any more, after 3 s at most.
        termination_grace_period_seconds: Some(10),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(uid),
            run_as_group: Some(uid),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            se_linux_options: settings.se_linux_options.clone(),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(slice, request.image, settings)],
        volumes: Some(vec![Volume {
            name: "handover".to_owned(),
            host_path: Some(HostPathVolumeSource {
                path: names::gateway_directory(&slice.name_any()),
                type_: Some("DirectoryOrCreate".to_owned()),
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

/// Those that the Cluster names on the hub take the place of the chart's.
fn tolerations(clusters: &[v1alpha1::Toleration], settings: &PodSettings) -> Vec<Toleration> {
    if clusters.is_empty() {
        return settings.tolerations.clone();
    }
    let operator = |operator| match operator {
        TolerationOperator::Equal => "Equal",
        TolerationOperator::Exists => "Exists",
    };
    let effect = |effect| match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    };
    let toleration = |own: &v1alpha1::Toleration| Toleration {
        key: own.key.clone(),
        operator: own.operator.map(operator).map(str::to_owned),
        value: own.value.clone(),
        effect: own.effect.map(effect).map(str::to_owned),
        toleration_seconds: own.toleration_seconds,
    };
    clusters.iter().map(toleration).collect()
}

/// What keeps a slice's gateways from running, as far as their pods say, and what to do about it.
pub(super) fn obstacle<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>, cluster: &str) -> Option<String> {
    let mut alive = pods
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    alive.find_map(|pod| {
        let status = pod.status.as_ref()?;
        let at = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        let unscheduled = status.conditions.iter().flatten().find(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        });
        if let Some(condition) = unscheduled {
            let why = condition.message.as_deref().unwrap_or_default();
            // What follows is that evicting others would not help.
            let why = why
                .split(" preemption:")
                .next()
                .unwrap_or_default()
                .trim_end_matches('.');
            return Some(format!(
                "pod {at} is on no node: {}{}",
                short(why),
                placing(why, cluster)
            ));
        }
        let waiting = status.container_statuses.iter().flatten();
        waiting
            .filter_map(|container| container.state.as_ref()?.waiting.as_ref())
            .find_map(|waiting| {
                let reason = waiting.reason.as_deref()?;
                // What every pod goes through as it starts.
                if matches!(reason, "ContainerCreating" | "PodInitializing") {
                    return None;
                }
                let why = waiting.message.as_deref().unwrap_or("no more is said");
                Some(format!("pod {at} waits, {reason}: {}", short(why)))
            })
    })
}

/// Characters of what others say that are repeated.
const MOST_SAID: usize = 240;

fn short(text: &str) -> String {
    text.chars().take(MOST_SAID).collect()
}

/// How a scheduler's complaint is met.
fn placing(why: &str, cluster: &str) -> String {
    let mut remedies = Vec::new();
    if why.contains("taint") {
        remedies.push("tolerate the taint with spec.gateway.tolerations");
    }
    if why.contains("node affinity/selector") {
        remedies.push("name nodes that exist with spec.gateway.nodeSelector");
    }
    match remedies.is_empty() {
        true => String::new(),
        false => format!("; on the hub, {} of Cluster {cluster}", remedies.join(", or ")),
    }
}

fn container(slice: &Slice, image: &str, settings: &PodSettings) -> Container {
    let threads = slice.spec.gateway.threads;
    let host_port = (slice.spec.gateway.exposure == Exposure::HostPort)
        .then(|| i32::try_from(host_port(slice)).expect("a port"));
    let probe = |path: &str, period| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(ADMIN_PORT),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        ..Probe::default()
    };
    Container {
        name: "gateway".to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(vec![
            format!("--socket={HANDOVER}/netop.sock"),
            format!("--listen=[::]:{PORT}"),
            format!("--admin=[::]:{ADMIN_PORT}"),
            format!("--threads={threads}"),
        ]),
        env: Some(vec![EnvVar {
            name: "POD_NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    field_path: "metadata.name".to_owned(),
                    ..ObjectFieldSelector::default()
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }]),
        ports: Some(vec![
            ContainerPort {
                name: Some("wireguard".to_owned()),
                container_port: PORT,
                host_port,
                protocol: Some("UDP".to_owned()),
                ..ContainerPort::default()
            },
            ContainerPort {
                name: Some("admin".to_owned()),
                container_port: ADMIN_PORT,
                ..ContainerPort::default()
            },
        ]),
        liveness_probe: Some(probe("/livez", 10)),
        readiness_probe: Some(probe("/readyz", 1)),
        resources: settings.resources.clone().or_else(|| {
            Some(ResourceRequirements {
                requests: Some(BTreeMap::from([
                    (
                        "cpu".to_owned(),
                        Quantity(format!("{}m", MILLICORES * u32::from(threads))),
                    ),
                    ("memory".to_owned(), Quantity("32Mi".to_owned())),
                ])),
                ..ResourceRequirements::default()
            })
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![VolumeMount {
            name: "handover".to_owned(),
            mount_path: HANDOVER.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use serde_json::json;
    use slice_crds::v1alpha1::SliceConfig;
    use slice_runtime::handover::MAX_QUEUES;

    use super::*;

    fn shop(threads: u8) -> Slice {
        let slice = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "Slice", "metadata": {"name": "shop"}, "spec": {
                "vni": 7, "subnets": ["10.80.0.0/16"], "mtu": 1370, "blockSize": 8, "cluster": "paris",
                "clusterNumber": 1, "ranges": [], "gateway": {"replicas": 2, "threads": threads},
            },
        });
        serde_json::from_value(slice).unwrap()
    }

    fn container_of(threads: u8) -> Container {
        container(&shop(threads), "gateway:1", &PodSettings::default())
    }

    /// The StatefulSets and pods of a slice, and what the cluster makes of a plan.
    #[derive(Default)]
    struct Cluster {
        sets: Vec<Arc<StatefulSet>>,
        pods: Vec<Arc<Pod>>,
    }

    impl Cluster {
        fn plan(&self) -> Workload {
            plan(&Request {
                slice: &shop(1),
                image: "gateway:1",
                pod: &PodSettings::default(),
                namespace: "weft-gateways",
                nodes: &Nodes::default(),
                lost: &BTreeSet::new(),
                sets: &self.sets,
                pods: &self.pods,
                services: &[],
            })
        }

        /// Writes a plan; `all_ready` says whether new pods have become ready.
        fn step(&mut self, all_ready: bool) -> Vec<String> {
            let workload = self.plan();
            let mut running = Vec::new();
            self.sets = workload
                .sets
                .into_iter()
                .map(|mut set| {
                    let spec = set.spec.clone().unwrap();
                    let start = spec
                        .ordinals
                        .and_then(|ordinals| ordinals.start)
                        .unwrap_or_default();
                    let replicas = spec.replicas.unwrap();
                    let namespace = set.namespace().unwrap();
                    running.extend((start..start + replicas).map(|ordinal| format!("{namespace}/{ordinal}")));
                    let old = namespace == "weft-system";
                    let image = spec.template.spec.unwrap().containers[0].image.clone();
                    // Another template would replace what stays, at the same moment.
                    assert_eq!(
                        image.as_deref(),
                        Some(if old { "gateway:0" } else { "gateway:1" })
                    );
                    set.status = Some(
                        serde_json::from_value(json!({
                        "replicas": replicas, "readyReplicas": if old || all_ready { replicas } else { 0 }}))
                        .unwrap(),
                    );
                    Arc::new(set)
                })
                .collect();
            self.pods = running.iter().map(|id| pod_of(id)).collect();
            running.sort();
            running
        }
    }

    #[test]
    fn pods_get_what_the_clusters_owner_gives_them_and_keep_what_they_are_found_by() {
        let given = json!({
            "imagePullSecrets": ["registry"], "tolerations": [{"key": "infra", "operator": "Exists"}],
            "priorityClassName": "gateways", "seLinuxOptions": {"type": "spc_t"}, "resources": {"limits": {"cpu": "2"}}, "annotations": {"example.org/cost": "net"},
            "labels": {"team": "network", labels::SLICE: "bank"},
        });
        let settings: PodSettings = given.to_string().parse().unwrap();
        let slice = shop(1);
        let request = Request {
            slice: &slice,
            image: "gateway:1",
            pod: &settings,
            namespace: "weft-gateways",
            nodes: &Nodes::default(),
            lost: &BTreeSet::new(),
            sets: &[],
            pods: &[],
            services: &[],
        };
        let template = plan(&request).sets.remove(0).spec.unwrap().template;
        let (metadata, spec) = (template.metadata.unwrap(), template.spec.unwrap());
        assert_eq!(spec.image_pull_secrets.unwrap()[0].name, "registry");
        assert_eq!(spec.tolerations.unwrap()[0].key.as_deref(), Some("infra"));
        assert_eq!(spec.priority_class_name.as_deref(), Some("gateways"));
        let resources = spec.containers[0].resources.clone();
        assert_eq!(
            serde_json::to_value(resources).unwrap(),
            json!({"limits": {"cpu": "2"}})
        );
        let selinux = spec.security_context.unwrap().se_linux_options.unwrap();
        assert_eq!(selinux.type_.as_deref(), Some("spc_t"));
        assert_eq!(metadata.annotations.unwrap()["example.org/cost"], "net");
        let found = metadata.labels.unwrap();
        assert_eq!(found["team"], "network");
        assert!(
            selector(&slice)
                .iter()
                .all(|(key, value)| found.get(key) == Some(value)),
            "{found:?}"
        );

        // The Cluster's own take their place, and nodes with another system than Linux stay out in any case.
        let mut slice = shop(1);
        let own =
            json!([{"key": "edge", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]);
        slice.spec.gateway.tolerations = serde_json::from_value(own.clone()).unwrap();
        slice.spec.gateway.node_selector = BTreeMap::from([("pool".to_owned(), "edge".to_owned())]);
        let request = Request {
            slice: &slice,
            ..request
        };
        let spec = plan(&request).sets.remove(0).spec.unwrap().template.spec.unwrap();
        assert_eq!(serde_json::to_value(spec.tolerations).unwrap(), own);
        assert_eq!(
            serde_json::to_value(spec.node_selector).unwrap(),
            json!({"kubernetes.io/os": "linux", "pool": "edge"})
        );

        let error = r#"{"toleration": []}"#.parse::<PodSettings>().unwrap_err().to_string();
        assert!(
            error.contains("toleration") && error.contains("expected"),
            "{error}"
        );
    }

    #[track_caller]
    fn obstacle_of(status: serde_json::Value, says: &str) {
        let pod = json!({"metadata": {"namespace": "weft-gateways", "name": "g-0"}, "status": status});
        let pod = Arc::new(serde_json::from_value(pod).unwrap());
        assert_eq!(obstacle([&pod], "paris").unwrap_or_default(), says);
    }

    #[test]
    fn what_keeps_a_gateway_from_running_is_said_with_the_remedy() {
        let unscheduled = |message: &str| {
            json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]})
        };
        let waiting = |reason: &str, message: &str| {
            let waiting = json!({"waiting": {"reason": reason, "message": message}});
            json!({"containerStatuses": [{"name": "gateway", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": waiting}]})
        };
        obstacle_of(
            unscheduled(
                "0/2 nodes are available: 2 node(s) had untolerated taint {infra: }. preemption: 0/2 nodes are available.",
            ),
            "pod weft-gateways/g-0 is on no node: 0/2 nodes are available: 2 node(s) had untolerated taint {infra: }; on the \
             hub, tolerate the taint with spec.gateway.tolerations of Cluster paris",
        );
        obstacle_of(
            unscheduled(
                "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector.",
            ),
            "pod weft-gateways/g-0 is on no node: 0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's \
             node affinity/selector; on the hub, name nodes that exist with spec.gateway.nodeSelector of Cluster paris",
        );
        obstacle_of(
            waiting("ImagePullBackOff", "Back-off pulling image \"gateway:1\""),
            "pod weft-gateways/g-0 waits, ImagePullBackOff: Back-off pulling image \"gateway:1\"",
        );
        obstacle_of(waiting("ContainerCreating", ""), "");
        obstacle_of(json!({"phase": "Running"}), "");
    }

    fn pod_of(id: &str) -> Arc<Pod> {
        let (namespace, ordinal) = id.split_once('/').unwrap();
        let name = names::gateway("shop", ordinal.parse().unwrap());
        Arc::new(serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name}})).unwrap())
    }

    #[test]
    fn gateways_move_one_by_one_and_each_waits_for_the_one_before() {
        let mut cluster = Cluster::default();
        let old = json!({"metadata": {"namespace": "weft-system", "name": "weft-gateway-shop"},
            "spec": {"replicas": 2, "selector": {}, "serviceName": "",
                "template": {"spec": {"containers": [{"name": "gateway", "image": "gateway:0"}]}}},
            "status": {"replicas": 2, "readyReplicas": 2}});
        cluster.sets.push(Arc::new(serde_json::from_value(old).unwrap()));
        cluster.pods = vec![pod_of("weft-system/0"), pod_of("weft-system/1")];
        let (old0, old1, new0, new1) = (
            "weft-system/0",
            "weft-system/1",
            "weft-gateways/0",
            "weft-gateways/1",
        );
        assert_eq!(cluster.step(false), [old0]);
        // The old pod ends, then its successor starts.
        cluster.pods.push(pod_of(old1));
        assert_eq!(cluster.step(false), [old0]);
        assert_eq!(cluster.step(false), [new1, old0]);
        assert_eq!(cluster.step(false), [new1, old0]);
        assert_eq!(cluster.step(true), [new1, old0]);
        assert_eq!(cluster.step(true), [new1]);
        assert_eq!(cluster.step(false), [new0, new1]);
        assert_eq!(cluster.plan().sets.len(), 2, "the last is not ready yet");
        cluster.step(true);
        assert_eq!(cluster.step(true), [new0, new1]);
        assert_eq!(cluster.plan().sets.len(), 1);
    }

    #[test]
    fn each_thread_asks_for_its_share_of_a_processor() {
        for (threads, cpu) in [(1, "50m"), (4, "200m"), (16, "800m")] {
            let container = container_of(threads);
            let argument = format!("--threads={threads}");
            assert!(container.args.unwrap().contains(&argument));
            let requests = container.resources.unwrap().requests.unwrap();
            assert_eq!(requests["cpu"].0, cpu);
        }
    }

    #[test]
    fn no_more_threads_can_be_asked_for_than_a_device_gives_queues() {
        let crd = serde_json::to_value(SliceConfig::crd()).unwrap();
        let threads =
            "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/gateway/properties/threads";
        let most = crd
            .pointer(threads)
            .and_then(|threads| threads["maximum"].as_f64());
        assert_eq!(most, Some(f64::from(MAX_QUEUES)));
    }
}
