//! Exports: Service + ServiceExport + ready pods → what the slices' names stand for. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::Service,
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::Timestamp,
};
use kube::ResourceExt;
use slice_crds::{
    conditions::{self, Verdict},
    labels::Attachment,
    mcs::{ServiceExport, condition},
    membership::{Labels, Rules},
    v1alpha1::{ServiceEndpoint, ServicePort, SliceServiceSpec},
};

/// What one export is made from.
pub struct Request<'a> {
    pub cluster: &'a str,
    pub rules: &'a [Rules],
    pub export: &'a ServiceExport,
    pub service: Option<&'a Service>,
    pub namespace_labels: &'a Labels,
    /// Those of the Service.
    pub endpoints: &'a [Arc<EndpointSlice>],
    /// Attachments of the namespace's pods, by pod.
    pub pods: &'a BTreeMap<String, Vec<Attachment>>,
}

/// What comes of an export.
#[derive(Debug)]
pub struct Export {
    pub services: Vec<SliceServiceSpec>,
    pub conditions: Vec<Condition>,
}

pub fn export(request: &Request<'_>, now: Timestamp) -> Export {
    let export = request.export;
    let (namespace, name) = (export.namespace().unwrap_or_default(), export.name_any());
    let before = conditions::of(export);
    let kind = request
        .service
        .and_then(|service| service.spec.as_ref()?.type_.clone())
        .unwrap_or_default();
    let (services, verdicts) = match request.service {
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
            let services = in_slices(&namespace, service, request);
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
    Export { services, conditions }
}

/// The service in every slice that one of its pods is attached to or that its namespace is in.
fn in_slices(namespace: &str, service: &Service, request: &Request<'_>) -> Vec<SliceServiceSpec> {
    let name = service.name_any();
    let spec = service.spec.clone().unwrap_or_default();
    let mut by_slice: BTreeMap<String, BTreeSet<ServiceEndpoint>> = BTreeMap::new();
    let included = request
        .rules
        .iter()
        .filter(|rules| rules.may_include(namespace, request.namespace_labels));
    for rules in included {
        by_slice.entry(rules.slice.clone()).or_default();
    }
    for (endpoint, pod, attachments) in pods_behind(request) {
        for attachment in attachments {
            let known = by_slice.entry(attachment.slice.clone()).or_default();
            let conditions = endpoint.conditions.as_ref();
            if conditions.and_then(|conditions| conditions.ready) != Some(false) {
                known.insert(ServiceEndpoint {
                    hostname: endpoint.hostname.clone().unwrap_or_else(|| pod.to_owned()),
                    addresses: attachment.ips.clone(),
                });
            }
        }
    }
    // What a pod's annotation says of a slice that is not here counts for nothing.
    by_slice.retain(|slice, _| request.rules.iter().any(|rules| rules.slice == *slice));
    let ports = spec.ports.unwrap_or_default();
    by_slice
        .into_iter()
        .map(|(slice, endpoints)| SliceServiceSpec {
            slice,
            cluster: request.cluster.to_owned(),
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
    request: &'a Request<'_>,
) -> impl Iterator<Item = (&'a Endpoint, &'a str, &'a [Attachment])> {
    request
        .endpoints
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter_map(|endpoint| {
            let target = endpoint.target_ref.as_ref();
            let pod = target
                .filter(|target| target.kind.as_deref() == Some("Pod"))?
                .name
                .as_deref()?;
            Some((endpoint, pod, request.pods.get(pod)?.as_slice()))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use slice_crds::{
        mcs::ServiceExportFields,
        v1alpha1::{AttachMode, SliceSpec},
    };

    use super::*;

    fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn rules(slice: &str) -> Rules {
        let spec = SliceSpec {
            vni: 1,
            subnets: vec![],
            mtu: 1370,
            largest_mtu: None,
            block_size: 64,
            cluster: "a".into(),
            cluster_number: 1,
            ranges: vec![],
            releasing: vec![],
            peers: vec![],
            namespaces: vec![],
            join: None,
            attach: AttachMode::Required,
            gateway: Default::default(),
            frames: None,
            broadcast: Default::default(),
            dscp: 0,
            shaping: None,
            source: None,
        };
        Rules::parse(slice, &spec).unwrap()
    }

    fn run(service: Option<serde_json::Value>, ready: bool) -> Export {
        let attachments: Vec<Attachment> = from(json!([
            {"slice": "shop", "interface": "sl-shop", "ips": ["10.80.0.5"], "mac": "02:5c:00:00:00:05"},
            {"slice": "forged", "interface": "x", "ips": ["8.8.8.8"], "mac": "x"},
        ]));
        let endpoints = from(json!({
            "metadata": {"name": "web-x", "namespace": "cart"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.0.9"], "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": "web-0", "namespace": "cart"}}]}));
        let mut object = ServiceExport::new("web", ServiceExportFields::default());
        object.metadata.namespace = Some("cart".into());
        let service: Option<Service> =
            service.map(|spec| from(json!({"metadata": {"name": "web", "namespace": "cart"}, "spec": spec})));
        let request = Request {
            cluster: "a",
            rules: &[rules("shop")],
            export: &object,
            service: service.as_ref(),
            namespace_labels: &Labels::new(),
            endpoints: &[Arc::new(endpoints)],
            pods: &BTreeMap::from([("web-0".into(), attachments)]),
        };
        export(&request, Timestamp::UNIX_EPOCH)
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
