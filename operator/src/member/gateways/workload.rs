//! The pods of a slice's gateways.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetOrdinals, StatefulSetSpec},
        core::v1::{
            Affinity, Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
            HostPathVolumeSource, LocalObjectReference, ObjectFieldSelector, PodAffinityTerm,
            PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
            SeccompProfile, SecurityContext, Toleration, Volume, VolumeMount, WeightedPodAffinityTerm,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::{ResourceExt, core::ObjectMeta};
use slice_crds::{
    names,
    v1alpha1::{self, Exposure, Slice, TaintEffect, TolerationOperator},
};

use super::{PORT, Request, exposure::host_port, meta, moves::Part, selector, settings::PodSettings};

/// Port of a gateway's admin listener.
const ADMIN_PORT: i32 = 9402;
/// Where the hand-over directory is mounted in the pod.
const HANDOVER: &str = "/run/weft/gateway";
/// Thousandths of a processor that a gateway asks for, for each of its threads.
const MILLICORES: u32 = 50;

pub(super) fn set(request: &Request<'_>, part: &Part<'_>) -> StatefulSet {
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
pub(super) fn budget(slice: &Slice, namespace: &str) -> PodDisruptionBudget {
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

pub(super) fn container(slice: &Slice, image: &str, settings: &PodSettings) -> Container {
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
