//! The gateway workloads of a slice: intent → Kubernetes objects. Pure.
//!
//! One StatefulSet per slice, so that a replica keeps its number, and one Service per replica, so that each can be
//! reached by itself. The pods hold no credential and no privilege: what they work from comes over a socket from the
//! agent of their node (`/run/weft/gateway/<slice>`).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        core::v1::{
            Affinity, Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
            HostPathVolumeSource, ObjectFieldSelector, Pod, PodAffinityTerm, PodAntiAffinity,
            PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile,
            SecurityContext, Service, ServicePort, ServiceSpec, Volume, VolumeMount, WeightedPodAffinityTerm,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::{ResourceExt, core::ObjectMeta};
use slice_crds::{
    labels, names,
    v1alpha1::{Exposure, Slice, SliceGateway, SliceGatewaySpec},
};

use super::blocks::NodeAddress;

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

/// The objects of one slice's gateways.
pub struct Workload {
    pub set: StatefulSet,
    pub budget: PodDisruptionBudget,
    pub services: Vec<Service>,
    pub gateways: Vec<SliceGateway>,
}

/// What the cluster shows of them.
pub struct Seen<'a> {
    pub nodes: &'a [NodeAddress],
    pub pods: &'a [Arc<Pod>],
    pub services: &'a [Arc<Service>],
}

pub fn plan(slice: &Slice, image: &str, namespace: &str, seen: &Seen<'_>) -> Workload {
    let replicas = 0..slice.spec.gateway.replicas;
    Workload {
        set: set(slice, image, namespace),
        budget: budget(slice, namespace),
        services: replicas
            .clone()
            .map(|ordinal| service(slice, ordinal, namespace))
            .collect(),
        gateways: replicas
            .map(|ordinal| gateway(slice, ordinal, namespace, seen))
            .collect(),
    }
}

fn gateway(slice: &Slice, ordinal: u32, namespace: &str, seen: &Seen<'_>) -> SliceGateway {
    let name = names::gateway(&slice.name_any(), ordinal);
    let endpoints = port(slice, &name, seen)
        .map(|port| endpoints(slice, &name, port, seen))
        .unwrap_or_default();
    let spec = SliceGatewaySpec {
        slice: slice.name_any(),
        ordinal,
        endpoints,
    };
    let mut object = SliceGateway::new(&name, spec);
    object.metadata = meta(slice, &name, namespace);
    object
}

/// The port on the node that leads to this replica, when it has one.
fn port(slice: &Slice, name: &str, seen: &Seen<'_>) -> Option<u16> {
    match slice.spec.gateway.exposure {
        Exposure::HostPort => u16::try_from(host_port(slice)).ok(),
        Exposure::NodePort => {
            let service = seen.services.iter().find(|service| service.name_any() == name)?;
            let port = service.spec.as_ref()?.ports.as_ref()?.first()?.node_port?;
            u16::try_from(port).ok()
        }
    }
}

fn endpoints(slice: &Slice, name: &str, port: u16, seen: &Seen<'_>) -> Vec<SocketAddr> {
    let node = seen
        .pods
        .iter()
        .find(|pod| pod.name_any() == name && pod.metadata.deletion_timestamp.is_none())
        .and_then(|pod| pod.spec.as_ref()?.node_name.as_ref());
    let Some(node) = node else { return Vec::new() };
    let own = seen
        .nodes
        .iter()
        .filter(|one| one.name == *node)
        .map(|one| one.address);
    let addresses: Vec<IpAddr> = match slice.spec.gateway.advertise.as_slice() {
        [] => own.collect(),
        advertise => advertise.to_vec(),
    };
    addresses
        .into_iter()
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

fn host_port(slice: &Slice) -> u32 {
    FIRST_HOST_PORT + slice.spec.vni % 10_000
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

fn set(slice: &Slice, image: &str, namespace: &str) -> StatefulSet {
    let name = names::gateway_workload(&slice.name_any());
    let labels = selector(slice);
    StatefulSet {
        metadata: meta(slice, &name, namespace),
        spec: Some(StatefulSetSpec {
            replicas: i32::try_from(slice.spec.gateway.replicas).ok(),
            pod_management_policy: Some("Parallel".to_owned()),
            selector: LabelSelector {
                match_labels: Some(labels.clone()),
                ..LabelSelector::default()
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels.clone()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(slice, image, labels)),
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

fn pod(slice: &Slice, image: &str, labels: BTreeMap<String, String>) -> PodSpec {
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
        node_selector: (!placement.node_selector.is_empty()).then(|| placement.node_selector.clone()),
        priority_class_name: Some("system-cluster-critical".to_owned()),
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
            ..PodSecurityContext::default()
        }),
        containers: vec![container(slice, image)],
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

fn container(slice: &Slice, image: &str) -> Container {
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
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([
                (
                    "cpu".to_owned(),
                    Quantity(format!("{}m", MILLICORES * u32::from(threads))),
                ),
                ("memory".to_owned(), Quantity("32Mi".to_owned())),
            ])),
            ..ResourceRequirements::default()
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

    fn container_of(threads: u8) -> Container {
        let slice = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "Slice", "metadata": {"name": "shop"}, "spec": {
                "vni": 7, "subnets": ["10.80.0.0/16"], "mtu": 1370, "blockSize": 8, "cluster": "paris",
                "clusterNumber": 1, "ranges": [], "gateway": {"replicas": 2, "threads": threads},
            },
        });
        let slice: Slice = serde_json::from_value(slice).unwrap();
        container(&slice, "gateway:1")
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
