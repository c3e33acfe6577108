//! Where the other clusters reach a gateway, and the Service that leads to it. Pure.
//!
//! A tunnel ends in one process, so every replica has a way of its own: a port of its node, or a load balancer. Where the
//! exposure changes, what led to a replica before is told to the others until what is to lead there does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{LoadBalancerIngress, Pod, Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;
use slice_crds::{
    annotations::GATEWAY_ADDRESS,
    gateway_address::{self, GatewayAddress, can_be_dialled},
    names,
    v1alpha1::{Exposure, Slice, SliceGateway, SliceGatewaySpec},
};

use super::{PORT, Request, meta, obstacle::short};
use crate::{allocation::space::HOST_PORTS, trust::MOST_ENDPOINTS};

/// First host port of gateways that are exposed that way; one per slice.
const FIRST_HOST_PORT: u32 = 20_000;
/// Port of a load balancer: that of the Service.
const BALANCER_PORT: u16 = PORT as u16;

/// What is known of a name that a load balancer has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// As of the last answer.
    pub addresses: Vec<IpAddr>,
    /// Why there was none since.
    pub error: Option<String>,
}

/// One gateway, as the cluster has it.
pub(super) struct Replica<'a> {
    ordinal: u32,
    name: String,
    /// Where its pod is, or is to be.
    namespace: String,
    node: Option<&'a str>,
    /// The port of the node that its pod has.
    open: Option<u16>,
    service: Option<&'a Service>,
    before: Option<&'a SliceGateway>,
}

/// What follows for one gateway.
#[derive(Default)]
struct Reach {
    endpoints: Vec<SocketAddr>,
    /// Why others cannot be told what they should.
    trouble: Option<String>,
    /// Names that have to be resolved for it.
    names: BTreeSet<String>,
}

impl<'a> Replica<'a> {
    /// `namespace` is where its pod is to be.
    pub(super) fn of(request: &Request<'a>, ordinal: u32, namespace: &str) -> Self {
        let name = names::gateway(&request.slice.name_any(), ordinal);
        let mut pods = pods(request, &name);
        // Where it is to be goes before where it was.
        pods.sort_by_key(|pod| pod.namespace().as_deref() != Some(namespace));
        let pod = pods.first().copied();
        let namespace = pod
            .and_then(ResourceExt::namespace)
            .unwrap_or_else(|| namespace.to_owned());
        Self {
            ordinal,
            node: pod.and_then(node_of),
            open: pod.and_then(open_port),
            service: find(request.services, &name, &namespace),
            before: request.gateways.get(&ordinal).map(|gateway| &**gateway),
            name,
            namespace,
        }
    }

    /// The port of every node that leads here.
    fn node_port(&self) -> Option<u16> {
        let port = self.service?.spec.as_ref()?.ports.as_ref()?.first()?.node_port?;
        u16::try_from(port).ok()
    }
}

/// The pods of a name that are to stay.
fn pods<'a>(request: &Request<'a>, name: &str) -> Vec<&'a Pod> {
    let alive = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none() && pod.name_any() == name;
    request.pods.iter().map(|pod| &**pod).filter(alive).collect()
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn open_port(pod: &Pod) -> Option<u16> {
    let ports = pod
        .spec
        .as_ref()?
        .containers
        .iter()
        .flat_map(|one| one.ports.iter().flatten());
    let port = ports
        .filter(|port| port.container_port == PORT)
        .find_map(|port| port.host_port)?;
    u16::try_from(port).ok()
}

fn find<'a>(services: &'a [Arc<Service>], name: &str, namespace: &str) -> Option<&'a Service> {
    let own = |service: &&Arc<Service>| {
        service.name_any() == name
            && service.namespace().as_deref() == Some(namespace)
            && service.metadata.deletion_timestamp.is_none()
    };
    services.iter().find(own).map(|service| &**service)
}

/// The object by which the others learn of a gateway; adds what keeps it from being reached to `troubles`.
pub(super) fn gateway(
    request: &Request<'_>,
    replica: &Replica<'_>,
    troubles: &mut Vec<String>,
    names: &mut BTreeSet<String>,
) -> SliceGateway {
    let slice = request.slice;
    let reach = reach(request, replica);
    troubles.extend(reach.trouble);
    names.extend(reach.names);
    let spec = SliceGatewaySpec {
        slice: slice.name_any(),
        ordinal: replica.ordinal,
        endpoints: reach.endpoints,
        lost: replica.node.is_some_and(|node| request.lost.contains(node)),
        node: replica.node.map(ToOwned::to_owned),
    };
    let mut object = SliceGateway::new(&replica.name, spec);
    object.metadata = meta(slice, &replica.name, names::MEMBER_NAMESPACE);
    object
}

fn reach(request: &Request<'_>, replica: &Replica<'_>) -> Reach {
    let (service, pod) = (replica.node_port(), replica.open);
    let mut reach = match request.slice.spec.gateway.exposure {
        Exposure::None => Reach::default(),
        Exposure::NodePort => at_node(request, replica, service.or(pod)),
        Exposure::HostPort => match (pod, replica.service.and_then(type_of)) {
            // It has its load balancer until its pod has the port.
            (None, Some(BALANCED)) => at_balancer(request, replica),
            _ => at_node(request, replica, pod.or(service)),
        },
        Exposure::LoadBalancer => at_balancer(request, replica),
    };
    let mut seen = BTreeSet::new();
    reach.endpoints.retain(|endpoint| seen.insert(*endpoint));
    reach.endpoints.truncate(MOST_ENDPOINTS);
    reach
}

/// A gateway that is reached by a `port` of its node.
fn at_node(request: &Request<'_>, replica: &Replica<'_>, port: Option<u16>) -> Reach {
    let (Some(node), Some(port)) = (replica.node, port) else {
        return Reach::default();
    };
    let at = |address: IpAddr| SocketAddr::new(address, port);
    let advertise = &request.slice.spec.gateway.advertise;
    if !advertise.is_empty() {
        return Reach {
            endpoints: advertise.iter().copied().map(at).collect(),
            ..Reach::default()
        };
    }
    let outside = request.nodes.outside.get(node);
    // Its address inside the cluster's network goes first: clusters that are connected by it use it as before, and go no
    // way that costs more. Where it leads nowhere, gateways try the next one a second later.
    let own = request.nodes.usable.get(node).map(|node| node.address);
    let external = outside
        .into_iter()
        .flat_map(|outside| outside.external.iter().copied());
    let own: Vec<SocketAddr> = own.into_iter().chain(external).map(at).collect();
    let Some(text) = outside.and_then(|outside| outside.announced.as_deref()) else {
        return Reach {
            endpoints: own,
            ..Reach::default()
        };
    };
    match gateway_address::of_slice(text, &request.slice.name_any()) {
        Ok(announced) => announce(request, replica, &announced, own, port),
        // The node's own condition says what is wrong. What was told of this node before still is.
        Err(_) => {
            let before = replica
                .before
                .filter(|before| before.spec.node.as_deref() == Some(node));
            let before = before
                .into_iter()
                .flat_map(|before| before.spec.endpoints.iter().copied());
            Reach {
                endpoints: before.chain(own).collect(),
                ..Reach::default()
            }
        }
    }
}

/// What a node's annotation says of a gateway. A port in it leads to one gateway: the first of the slice on that node.
fn announce(
    request: &Request<'_>,
    replica: &Replica<'_>,
    announced: &[GatewayAddress],
    own: Vec<SocketAddr>,
    port: u16,
) -> Reach {
    let slice = request.slice.name_any();
    let first = (0..replica.ordinal).find(|other| {
        let pods = pods(request, &names::gateway(&slice, *other));
        pods.into_iter().any(|pod| node_of(pod) == replica.node)
    });
    let usable = announced
        .iter()
        .filter(|one| first.is_none() || one.port.is_none());
    let mut endpoints: Vec<SocketAddr> = usable
        .map(|one| SocketAddr::new(one.address, one.port.unwrap_or(port)))
        .collect();
    if endpoints.is_empty() {
        endpoints = own;
    }
    let only_ports = announced.iter().all(|one| one.port.is_some());
    let trouble = first.filter(|_| only_ports && !announced.is_empty()).map(|first| {
        format!(
            "annotation {GATEWAY_ADDRESS} of node {} names a port, which leads to one gateway, and gateways {first} and {} of \
             the slice are there: the port is taken to lead to gateway {first}. Add the address without a port, or have a node \
             for each gateway (spec.gateway.nodeSelector of Cluster {}, spec.gateway.replicas of SliceConfig {slice})",
            replica.node.unwrap_or_default(),
            replica.ordinal,
            request.slice.spec.cluster
        )
    });
    Reach {
        endpoints,
        trouble,
        ..Reach::default()
    }
}

/// A gateway that has a load balancer: whatever node its pod is on.
fn at_balancer(request: &Request<'_>, replica: &Replica<'_>) -> Reach {
    let service = replica
        .service
        .filter(|service| type_of(service) == Some(BALANCED));
    let status = service.and_then(|service| service.status.as_ref()?.load_balancer.as_ref());
    let ingress = status
        .and_then(|status| status.ingress.as_deref())
        .unwrap_or_default();
    let mut addresses = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut trouble = None;
    for one in ingress.iter().take(MOST_ENDPOINTS) {
        match balancer(request, one, &mut names) {
            Ok(of_one) => addresses.extend(of_one),
            Err(why) => _ = trouble.get_or_insert(why),
        }
    }
    let at = format!("{}/{}", replica.namespace, replica.name);
    let (unusable, none) = (
        trouble.map(|why| format!("its Service {at} of type LoadBalancer {why}")),
        || {
            format!(
                "its Service {at} of type LoadBalancer was given no address: see its events in `kubectl -n {} describe service \
                 {}`. Where no cloud gives one, install what does, such as MetalLB, or set another spec.gateway.exposure of \
                 Cluster {} on the hub",
                replica.namespace, replica.name, request.slice.spec.cluster
            )
        },
    );
    let waits = ingress.is_empty().then(none).or(unusable);
    let trouble = waits.map(|why| format!("gateway {}: {why}", replica.ordinal));
    let endpoints = match addresses.is_empty() {
        false => addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, BALANCER_PORT))
            .collect(),
        true => kept(request, replica, !names.is_empty()),
    };
    Reach {
        endpoints,
        trouble,
        names,
    }
}

/// The addresses of one ingress of a load balancer's, of which none may be known yet; or why there are none that count.
fn balancer(
    request: &Request<'_>,
    ingress: &LoadBalancerIngress,
    names: &mut BTreeSet<String>,
) -> Result<Vec<IpAddr>, String> {
    let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if let Some(text) = text(&ingress.ip) {
        let address = text.parse().ok().filter(|address| can_be_dialled(*address));
        return match address {
            Some(address) => Ok(vec![address]),
            None => Err(format!(
                "has the address \"{}\", which nobody else can reach: look who wrote its status",
                short(&text)
            )),
        };
    }
    let Some(name) = text(&ingress.hostname) else {
        return Err("has an ingress without address and name: look who wrote its status".to_owned());
    };
    names.insert(name.clone());
    let Some(resolved) = request.resolved.get(&name) else {
        return Ok(vec![]);
    };
    let mut addresses = resolved.addresses.clone();
    addresses.retain(|address| can_be_dialled(*address));
    match (&resolved.error, addresses.is_empty()) {
        (_, false) => Ok(addresses),
        (Some(why), true) => Err(format!(
            "has the name {}, which is asked for once a minute and could not be resolved here: {}",
            short(&name),
            short(why)
        )),
        (None, true) => Err(format!(
            "has the name {}, which has no address that other clusters could dial",
            short(&name)
        )),
    }
}

/// What was told of a gateway before it was to have a load balancer, as long as its node leads there; what was told of its
/// load balancer, where that has a `name` of which nothing is known.
fn kept(request: &Request<'_>, replica: &Replica<'_>, name: bool) -> Vec<SocketAddr> {
    let Some(before) = replica.before.map(|before| &before.spec.endpoints) else {
        return vec![];
    };
    // Its pod is being replaced.
    if replica.node.is_none() {
        return before.clone();
    }
    let there = at_node(request, replica, replica.open.or_else(|| replica.node_port())).endpoints;
    let same = |one: &SocketAddr| before.iter().any(|other| other.ip() == one.ip());
    if there.iter().any(same) {
        return there;
    }
    let balanced = before
        .iter()
        .filter(|endpoint| name && endpoint.port() == BALANCER_PORT);
    balanced.copied().collect()
}

pub(super) fn host_port(slice: &Slice) -> u32 {
    FIRST_HOST_PORT + slice.spec.vni % HOST_PORTS
}

const INSIDE: &str = "ClusterIP";
const AT_NODES: &str = "NodePort";
const BALANCED: &str = "LoadBalancer";

fn type_of(service: &Service) -> Option<&str> {
    service.spec.as_ref()?.type_.as_deref()
}

/// The Service of a replica in a namespace, where it has one.
pub(super) fn service(request: &Request<'_>, replica: &Replica<'_>, namespace: &str) -> Option<Service> {
    let there = find(request.services, &replica.name, namespace);
    let type_ = match request.slice.spec.gateway.exposure {
        Exposure::None => return None,
        Exposure::NodePort => AT_NODES,
        Exposure::LoadBalancer => BALANCED,
        // What leads to it stays until its pod has the port.
        Exposure::HostPort => match there.and_then(type_of) {
            Some(AT_NODES) if replica.open.is_none() => AT_NODES,
            Some(BALANCED) if replica.open.is_none() => BALANCED,
            _ => INSIDE,
        },
    };
    let pod = BTreeMap::from([(
        "statefulset.kubernetes.io/pod-name".to_owned(),
        replica.name.clone(),
    )]);
    let mut metadata = meta(request.slice, &replica.name, namespace);
    if type_ == BALANCED && !request.pod.service_annotations.is_empty() {
        metadata.annotations = Some(request.pod.service_annotations.clone());
    }
    Some(Service {
        metadata,
        spec: Some(ServiceSpec {
            selector: Some(pod),
            type_: Some(type_.to_owned()),
            // The datagram comes to the pod's own node: the client's address is kept and there is no second hop.
            external_traffic_policy: (type_ != INSIDE).then(|| "Local".to_owned()),
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
    })
}

#[cfg(test)]
mod tests;
