//! Exports: Service + ServiceExport + ready pods → what the slices' names stand for. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod, Service},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::Timestamp,
};
use kube::{ResourceExt, core::PartialObjectMeta};
use slice_crds::{
    conditions::{self, Verdict},
    labels::{self, Attachment},
    mcs::{ServiceExport, condition},
    membership::Rules,
    v1alpha1::{ServiceEndpoint, ServicePort, SliceServiceSpec},
};

/// What exports are made from.
pub struct Seen<'a> {
    pub cluster: &'a str,
    pub rules: &'a [Rules],
    pub namespaces: &'a [Arc<PartialObjectMeta<Namespace>>],
    pub services: &'a [Arc<Service>],
    pub exports: &'a [Arc<ServiceExport>],
    pub endpoints: &'a [Arc<EndpointSlice>],
    pub pods: &'a BTreeMap<(String, String), Arc<PartialObjectMeta<Pod>>>,
}

/// One export and what comes of it.
pub struct Export {
    pub namespace: String,
    pub name: String,
    pub services: Vec<SliceServiceSpec>,
    pub conditions: Vec<Condition>,
}

/// The attachments that a pod's annotation tells of; none where it has no such annotation or it cannot be read.
pub fn attachments(pod: &PartialObjectMeta<Pod>) -> Vec<Attachment> {
    pod.annotations()
        .get(labels::ATTACHMENTS)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

pub fn exports(seen: &Seen<'_>, now: Timestamp) -> Vec<Export> {
    let mut exports: Vec<Export> = seen.exports.iter().map(|export| one(export, seen, now)).collect();
    exports.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    exports
}

fn one(export: &ServiceExport, seen: &Seen<'_>, now: Timestamp) -> Export {
    let (namespace, name) = (export.namespace().unwrap_or_default(), export.name_any());
    let before = export
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let service = seen
        .services
        .iter()
        .find(|service| service.namespace().as_ref() == Some(&namespace) && service.name_any() == name);
    let kind = service
        .and_then(|service| service.spec.as_ref()?.type_.clone())
        .unwrap_or_default();
    let (services, verdicts) = match service {
        None => (
            vec![],
            vec![Verdict::no(
                condition::VALID,
                condition::REASON_NO_SERVICE,
                format!("there is no Service {namespace}/{name}: create it, or delete this export"),
            )],
        ),
        Some(_) if kind == "ExternalName" => (
            vec![],
            vec![Verdict::no(
                condition::VALID,
                condition::REASON_INVALID_TYPE,
                format!("Service {namespace}/{name} is of type ExternalName, which has no pods to export"),
            )],
        ),
        Some(service) => {
            let services = in_slices(&namespace, service, seen);
            let valid = Verdict::yes(
                condition::VALID,
                condition::REASON_VALID,
                "the Service can be exported",
            );
            let ready = match services.as_slice() {
                [] => Verdict::no(
                    condition::READY,
                    condition::REASON_PENDING,
                    format!(
                        "no pod of Service {namespace}/{name} is in a slice: label the namespace with weft.dev/slice, or name it in a SliceConfig"
                    ),
                ),
                some => {
                    let names: Vec<_> = some.iter().map(|service| service.slice.as_str()).collect();
                    Verdict::yes(
                        condition::READY,
                        condition::REASON_EXPORTED,
                        format!("exported into {}", names.join(", ")),
                    )
                }
            };
            (services, vec![valid, ready])
        }
    };
    let conditions = conditions::conditions(before, verdicts, export.metadata.generation, now);
    Export {
        namespace,
        name,
        services,
        conditions,
    }
}

/// The service in every slice that one of its pods is attached to or that its namespace is in.
fn in_slices(namespace: &str, service: &Service, seen: &Seen<'_>) -> Vec<SliceServiceSpec> {
    let name = service.name_any();
    let spec = service.spec.clone().unwrap_or_default();
    let mut by_slice: BTreeMap<String, BTreeSet<ServiceEndpoint>> = BTreeMap::new();
    let labels = seen
        .namespaces
        .iter()
        .find(|object| object.name_any() == namespace)
        .map(|object| object.labels().clone())
        .unwrap_or_default();
    for rules in seen
        .rules
        .iter()
        .filter(|rules| rules.may_include(namespace, &labels))
    {
        by_slice.entry(rules.slice.clone()).or_default();
    }
    for (endpoint, pod) in pods_behind(namespace, &name, seen) {
        for attachment in attachments(pod) {
            let known = by_slice.entry(attachment.slice).or_default();
            if endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                != Some(false)
            {
                let hostname = endpoint.hostname.clone().unwrap_or_else(|| pod.name_any());
                known.insert(ServiceEndpoint {
                    hostname,
                    addresses: attachment.ips,
                });
            }
        }
    }
    let ports = spec.ports.unwrap_or_default();
    by_slice
        .into_iter()
        .map(|(slice, endpoints)| SliceServiceSpec {
            slice,
            cluster: seen.cluster.to_owned(),
            namespace: namespace.to_owned(),
            name: name.clone(),
            headless: spec.cluster_ip.as_deref() == Some("None"),
            ports: ports
                .iter()
                .map(|port| ServicePort {
                    name: port.name.clone(),
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    port: u16::try_from(port.port).unwrap_or_default(),
                })
                .collect(),
            endpoints: endpoints.into_iter().collect(),
        })
        .collect()
}

fn pods_behind<'a>(
    namespace: &'a str,
    service: &'a str,
    seen: &'a Seen<'_>,
) -> impl Iterator<Item = (&'a Endpoint, &'a PartialObjectMeta<Pod>)> {
    seen.endpoints
        .iter()
        .filter(move |slice| {
            slice.namespace().as_deref() == Some(namespace)
                && slice
                    .labels()
                    .get("kubernetes.io/service-name")
                    .is_some_and(|name| name == service)
        })
        .flat_map(|slice| &slice.endpoints)
        .filter_map(move |endpoint| {
            let target = endpoint
                .target_ref
                .as_ref()
                .filter(|target| target.kind.as_deref() == Some("Pod"))?;
            let pod = seen.pods.get(&(namespace.to_owned(), target.name.clone()?))?;
            Some((endpoint, pod.as_ref()))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use slice_crds::mcs::ServiceExportFields;

    use super::*;

    fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn run(service: Option<serde_json::Value>, ready: bool) -> Export {
        let pod: PartialObjectMeta<Pod> = from(
            json!({"metadata": {"name": "web-0", "namespace": "cart", "annotations": {
            labels::ATTACHMENTS: r#"[{"slice":"shop","interface":"sl-shop","ips":["10.80.0.5"],"mac":"02:5c:00:00:00:05"}]"#}}}),
        );
        let endpoints = from(json!({
            "metadata": {"name": "web-x", "namespace": "cart", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.0.9"], "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": "web-0", "namespace": "cart"}}]}));
        let mut export = ServiceExport::new("web", ServiceExportFields::default());
        export.metadata.namespace = Some("cart".into());
        let services: Vec<Arc<Service>> = service
            .into_iter()
            .map(|spec| {
                Arc::new(from(json!({
            "metadata": {"name": "web", "namespace": "cart"}, "spec": spec})))
            })
            .collect();
        let seen = Seen {
            cluster: "a",
            rules: &[],
            namespaces: &[],
            services: &services,
            exports: &[Arc::new(export)],
            endpoints: &[Arc::new(endpoints)],
            pods: &BTreeMap::from([(("cart".into(), "web-0".into()), Arc::new(pod))]),
        };
        exports(&seen, Timestamp::UNIX_EPOCH).remove(0)
    }

    #[test]
    fn a_ready_pod_is_an_endpoint_by_its_slice_address() {
        let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80, "name": "http"}]});
        let export = run(Some(spec.clone()), true);
        assert_eq!(
            export.services[0].endpoints,
            [ServiceEndpoint {
                hostname: "web-0".into(),
                addresses: vec![[10, 80, 0, 5].into()],
            }]
        );
        assert!(conditions::is_true(&export.conditions, condition::READY));
        let unready = run(Some(spec), false);
        assert_eq!(
            (unready.services.len(), unready.services[0].endpoints.len()),
            (1, 0)
        );
    }

    #[test]
    fn what_cannot_be_exported_says_why() {
        let missing = run(None, true);
        assert_eq!(
            (missing.conditions[0].reason.as_str(), missing.services.len()),
            (condition::REASON_NO_SERVICE, 0)
        );
        let external = run(Some(json!({"type": "ExternalName", "externalName": "x"})), true);
        assert_eq!(external.conditions[0].reason, condition::REASON_INVALID_TYPE);
    }
}
