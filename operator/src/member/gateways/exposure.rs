//! Where the other clusters reach a gateway, and the Service that leads to it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;
use slice_crds::{
    names,
    v1alpha1::{Exposure, Slice, SliceGateway, SliceGatewaySpec},
};

use super::{PORT, Request, meta};
use crate::allocation::space::HOST_PORTS;

/// First host port of gateways that are exposed that way; one per slice.
const FIRST_HOST_PORT: u32 = 20_000;

pub(super) fn gateway(request: &Request<'_>, ordinal: u32, namespace: &str) -> SliceGateway {
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

pub(super) fn host_port(slice: &Slice) -> u32 {
    FIRST_HOST_PORT + slice.spec.vni % HOST_PORTS
}

pub(super) fn service(slice: &Slice, ordinal: u32, namespace: &str) -> Service {
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
