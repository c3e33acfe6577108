//! How gateways are reached, changed while they are in use.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::{
    ResourceExt,
    api::{Api, Patch, PatchParams},
};
use serde_json::json;
use slice_crds::{
    annotations, conditions, names,
    v1alpha1::{Cluster as HubCluster, Slice, SliceConfig, SliceGateway},
};
use slice_e2e::harness::{
    Cluster, Environment, Pace, Streams, poll,
    weft::{Member, PROJECT},
};

const SOON: Duration = Duration::from_secs(60);
/// A path moves within half a second; this machine does the work of two clusters meanwhile.
const PACE: Pace = Pace {
    interval: Duration::from_millis(10),
    gap: Duration::from_millis(500),
    lasts: Duration::from_secs(40),
};
/// Silence that a change of what leads to a gateway may cost: its peers have to see where it comes from now.
const GAP_MS: f64 = 2000.0;

/// Sets how a cluster's gateways are reached; `None` is as it was.
async fn expose(environment: &Environment, cluster: &Cluster, exposure: Option<&str>) -> Result<()> {
    let clusters: Api<HubCluster> = Api::namespaced(environment.hub()?.client.clone(), PROJECT);
    let patch = Patch::Merge(json!({"spec": {"gateway": {"exposure": exposure}}}));
    clusters
        .patch(&cluster.name, &PatchParams::default(), &patch)
        .await
        .with_context(|| format!("set the exposure of {}", cluster.name))?;
    Ok(())
}

/// With every cluster's gateways exposed as by default, whatever a test before this one left.
async fn open() -> Result<Environment> {
    let environment = Environment::open().await?;
    environment.install().await?;
    for cluster in &environment.clusters {
        expose(&environment, cluster, None).await?;
    }
    Ok(environment)
}

fn services(cluster: &Cluster) -> Api<Service> {
    Api::namespaced(cluster.client.clone(), names::GATEWAY_NAMESPACE)
}

/// Waits until the endpoints of all of a slice's gateways, as their cluster has them, are as wanted.
async fn await_endpoints(
    cluster: &Cluster,
    slice: &str,
    what: &str,
    holds: impl Fn(&SliceGateway) -> bool,
) -> Result<Vec<SliceGateway>> {
    poll(SOON, what, async || {
        let gateways = cluster.gateways(slice).await?;
        let hold = !gateways.is_empty() && gateways.iter().all(&holds);
        Ok(hold.then_some(gateways))
    })
    .await
}

/// Waits until another cluster's mirror has these endpoints of a cluster's gateways, and no others.
async fn await_known(at: &Cluster, slice: &str, of: &Cluster, endpoints: &[String]) -> Result<()> {
    let slices: Api<Slice> = Api::all(at.client.clone());
    let holds = |object: &Slice| {
        let peer = object.spec.peers.iter().find(|peer| peer.name == of.name);
        let known = peer.into_iter().flat_map(|peer| &peer.gateways);
        let mut known: Vec<String> = known
            .flat_map(|gateway| gateway.endpoints.iter().map(ToString::to_string))
            .collect();
        known.sort();
        let mut wanted = endpoints.to_vec();
        wanted.sort();
        known == wanted
    };
    let what = format!("endpoints {endpoints:?} of {}", of.name);
    at.await_object(&slices, slice, &what, SOON, holds).await?;
    Ok(())
}

/// What a cloud's controller writes of a load balancer.
async fn give(services: &Api<Service>, name: &str, address: &str) -> Result<()> {
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
    let patch = Patch::Merge(status);
    services
        .patch_status(name, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

fn endpoints_of(gateways: &[SliceGateway]) -> Vec<String> {
    let endpoints = gateways.iter().flat_map(|gateway| &gateway.spec.endpoints);
    endpoints.map(ToString::to_string).collect()
}

/// Selects the gateway pods of a slice.
fn gateways_of(slice: &str) -> String {
    format!("weft.dev/component=gateway,weft.dev/for-slice={slice}")
}

/// The names and identities of a slice's gateway pods: what was not replaced has the same.
async fn pods_of(cluster: &Cluster, slice: &str) -> Result<Vec<(String, String)>> {
    let labels = gateways_of(slice);
    let parameters = kube::api::ListParams::default().labels(&labels);
    let pods = cluster.pods(names::GATEWAY_NAMESPACE).list(&parameters).await?;
    let mut all: Vec<_> = pods
        .items
        .iter()
        .map(|pod| (pod.name_any(), pod.uid().unwrap_or_default()))
        .collect();
    all.sort();
    Ok(all)
}

async fn condition(cluster: &Cluster, slice: &str, type_: &str) -> Result<String> {
    let slices: Api<Slice> = Api::all(cluster.client.clone());
    let slice = slices.get(slice).await?;
    let found = conditions::find(conditions::of(&slice), type_);
    Ok(found.map_or_else(String::new, |found| {
        format!("{} {}: {}", found.status, found.reason, found.message)
    }))
}

async fn streams(members: &[Member], from: &Cluster, to: &Cluster) -> Result<Streams> {
    Streams::start(Member::of(members, from)?, Member::of(members, to)?, PACE).await
}

#[tokio::test]
async fn a_cluster_that_is_not_to_be_reached_any_more_dials_and_streams_go_on() -> Result<()> {
    let (slice, namespace) = ("unexposed", "e2e-unexposed");
    let environment = open().await?;
    environment
        .slice(slice, json!({"subnets": ["10.99.0.0/24"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let (stays, turns) = (environment.cluster(0)?, environment.cluster(1)?);
    let before = endpoints_of(&turns.gateways(slice).await?);
    let pods = pods_of(turns, slice).await?;
    ensure!(!before.is_empty(), "gateways without an endpoint at first");
    await_known(stays, slice, turns, &before).await?;
    let running = streams(&members, stays, turns).await?;

    expose(&environment, turns, Some("None")).await?;
    await_endpoints(turns, slice, "no endpoint of any gateway", |gateway| {
        gateway.spec.endpoints.is_empty()
    })
    .await?;
    await_known(stays, slice, turns, &[]).await?;
    for gateway in turns.gateways(slice).await? {
        let name = gateway.name_any();
        poll(SOON, "no Service leads to the gateway", async || {
            Ok(services(turns).get_opt(&name).await?.is_none().then_some(()))
        })
        .await?;
    }
    poll(SOON, "it is said that they only dial", async || {
        let message = condition(turns, slice, conditions::GATEWAYS_EXPOSED).await?;
        Ok(message.starts_with("True DialsOnly").then_some(()))
    })
    .await?;

    expose(&environment, turns, None).await?;
    let after = await_endpoints(turns, slice, "an endpoint of every gateway", |gateway| {
        !gateway.spec.endpoints.is_empty()
    })
    .await?;
    await_known(stays, slice, turns, &endpoints_of(&after)).await?;
    let (udp, tcp) = running.finish().await?;
    ensure!(tcp.broken.is_none(), "{udp:?} {tcp:?}");
    ensure!(udp.longest_gap_ms < GAP_MS, "{udp:?}");
    let replaced = pods_of(turns, slice).await?;
    ensure!(
        replaced == pods,
        "gateways were replaced: {pods:?} became {replaced:?}"
    );

    // A tunnel that has to begin anew begins from the side that is not reached.
    expose(&environment, turns, Some("None")).await?;
    await_known(stays, slice, turns, &[]).await?;
    let labels = gateways_of(slice);
    turns.delete_pods(names::GATEWAY_NAMESPACE, &labels).await?;
    environment.await_slice(slice).await?;
    let (from, to) = (Member::of(&members, stays)?, Member::of(&members, turns)?);
    from.tcp(to, to.v4()?, "2").await?;

    // Where neither side can be reached, that is what is said.
    expose(&environment, stays, Some("None")).await?;
    await_known(turns, slice, stays, &[]).await?;
    for cluster in [stays, turns] {
        cluster.delete_pods(names::GATEWAY_NAMESPACE, &labels).await?;
    }
    let says = |config: &SliceConfig| {
        let ready = conditions::find_false(conditions::of(config), conditions::READY);
        ready.is_some_and(|ready| ready.message.contains("are to be reached (exposure None)"))
    };
    let what = "neither cluster can be reached, and the slice says so";
    let configs = environment.slices()?;
    let result = environment
        .hub()?
        .await_object(&configs, slice, what, SOON, says)
        .await;
    for cluster in [stays, turns] {
        expose(&environment, cluster, None).await?;
    }
    result?;
    environment.await_slice(slice).await?;
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

/// There is no cloud in the lab: the test writes what a cloud's controller would, the address of the gateway's node, which
/// kube-proxy then takes for the load balancer's.
#[tokio::test]
async fn a_load_balancer_takes_over_from_the_nodes_ports_under_a_stream() -> Result<()> {
    let (slice, namespace) = ("balanced", "e2e-balanced");
    let environment = open().await?;
    environment.lab()?;
    environment
        .slice(slice, json!({"subnets": ["10.99.1.0/24"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let (stays, turns) = (environment.cluster(0)?, environment.cluster(1)?);
    let before = turns.gateways(slice).await?;
    let pods = pods_of(turns, slice).await?;
    let running = streams(&members, stays, turns).await?;

    expose(&environment, turns, Some("LoadBalancer")).await?;
    for gateway in &before {
        let is_balanced = |service: &Service| {
            let spec = service.spec.as_ref();
            spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
        };
        let (api, name) = (services(turns), gateway.name_any());
        turns
            .await_object(&api, &name, "a Service of type LoadBalancer", SOON, is_balanced)
            .await?;
    }
    let slices: Api<Slice> = Api::all(turns.client.clone());
    let waits = |object: &Slice| {
        let exposed = conditions::find_false(conditions::of(object), conditions::GATEWAYS_EXPOSED);
        exposed.is_some_and(|exposed| exposed.message.contains("was given no address"))
    };
    turns
        .await_object(&slices, slice, "it is said what is waited for", SOON, waits)
        .await?;
    // Meanwhile what led to the gateways is told.
    await_known(stays, slice, turns, &endpoints_of(&before)).await?;

    let mut balanced = vec![];
    for gateway in &before {
        let address = gateway
            .spec
            .endpoints
            .first()
            .context("an endpoint at first")?
            .ip();
        give(&services(turns), &gateway.name_any(), &address.to_string()).await?;
        balanced.push(format!("{address}:51820"));
    }
    await_known(stays, slice, turns, &balanced).await?;
    let (udp, tcp) = running.finish().await?;
    ensure!(
        tcp.broken.is_none() && udp.longest_gap_ms < GAP_MS,
        "{udp:?} {tcp:?}"
    );
    ensure!(pods_of(turns, slice).await? == pods, "no gateway is replaced");
    // And a new tunnel is begun by it.
    let labels = gateways_of(slice);
    stays.delete_pods(names::GATEWAY_NAMESPACE, &labels).await?;
    environment.await_slice(slice).await?;

    expose(&environment, turns, None).await?;
    await_endpoints(turns, slice, "ports of the nodes again", |gateway| {
        gateway
            .spec
            .endpoints
            .iter()
            .all(|endpoint| endpoint.port() >= 30_000)
            && !gateway.spec.endpoints.is_empty()
    })
    .await?;
    environment.await_slice(slice).await?;
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await?;
    poll(SOON, "no Service of the slice's gateways is left", async || {
        let mut left = services(turns)
            .list(&kube::api::ListParams::default())
            .await?
            .items;
        left.retain(|service| {
            before
                .iter()
                .any(|gateway| gateway.name_any() == service.name_any())
        });
        Ok(left.is_empty().then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_node_says_where_its_gateways_are_reached_and_a_mistake_there_disturbs_nothing() -> Result<()> {
    let (slice, namespace) = ("announced", "e2e-announced");
    let environment = open().await?;
    environment
        .slice(slice, json!({"subnets": ["10.99.2.0/24"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let (stays, turns) = (environment.cluster(0)?, environment.cluster(1)?);
    let gateway = turns
        .gateways(slice)
        .await?
        .into_iter()
        .next()
        .context("a gateway")?;
    let node = gateway.spec.node.clone().context("a gateway on a node")?;
    let own = gateway.spec.endpoints.first().copied().context("an endpoint")?;
    let object: Node = Api::<Node>::all(turns.client.clone()).get(&node).await?;
    let addresses = object
        .status
        .and_then(|status| status.addresses)
        .unwrap_or_default();
    let address = addresses
        .iter()
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse::<std::net::IpAddr>().ok())
        .next_back()
        .context("an address of the node")?;
    let running = streams(&members, stays, turns).await?;
    let is = |wanted: std::net::SocketAddr| {
        move |gateway: &SliceGateway| {
            gateway.spec.ordinal != 0 || gateway.spec.endpoints.first() == Some(&wanted)
        }
    };
    let result = async {
        // With the port that leads to it, as a translator would have one.
        let value = std::net::SocketAddr::new(address, own.port());
        let text = format!("{slice}={value}");
        turns
            .annotate_node(&node, annotations::GATEWAY_ADDRESS, Some(&text))
            .await?;
        await_endpoints(turns, slice, "the endpoint of the annotation", is(value)).await?;
        turns
            .annotate_node(&node, annotations::GATEWAY_ADDRESS, Some("gw.example.com"))
            .await?;
        let clusters: Api<HubCluster> = Api::namespaced(environment.hub()?.client.clone(), PROJECT);
        let says = |cluster: &HubCluster| {
            let exposed = conditions::find_false(conditions::of(cluster), conditions::GATEWAYS_EXPOSED);
            exposed.is_some_and(|exposed| {
                exposed.message.contains(&node)
                    && exposed
                        .message
                        .contains("\"gw.example.com\", which is no address")
            })
        };
        let what = "the condition names node, value and fix";
        environment
            .hub()?
            .await_object(&clusters, &turns.name, what, SOON, says)
            .await?;
        await_endpoints(turns, slice, "what was told before", is(value)).await?;
        anyhow::Ok(())
    }
    .await;
    turns
        .annotate_node(&node, annotations::GATEWAY_ADDRESS, None)
        .await?;
    result?;
    await_endpoints(turns, slice, "the node's own address", is(own)).await?;
    let (udp, tcp) = running.finish().await?;
    ensure!(
        tcp.broken.is_none() && udp.longest_gap_ms < GAP_MS,
        "{udp:?} {tcp:?}"
    );
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

/// What a cluster's operator cannot know: who writes a Service's status may be anybody.
#[tokio::test]
async fn nobody_is_sent_to_where_no_gateway_can_be() -> Result<()> {
    let slice = "hijacked";
    let environment = open().await?;
    environment
        .slice(slice, json!({"subnets": ["10.99.3.0/24"]}))
        .await?;
    let (stays, turns) = (environment.cluster(0)?, environment.cluster(1)?);
    expose(&environment, turns, Some("LoadBalancer")).await?;
    let result = async {
        let name = names::gateway(slice, 0);
        let is_balanced = |service: &Service| {
            let spec = service.spec.as_ref();
            spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
        };
        let api = services(turns);
        turns
            .await_object(&api, &name, "a Service of type LoadBalancer", SOON, is_balanced)
            .await?;
        let slices: Api<Slice> = Api::all(turns.client.clone());
        let clusters: Api<HubCluster> = Api::namespaced(environment.hub()?.client.clone(), PROJECT);
        for hostile in ["169.254.169.254", "127.0.0.1", "224.0.0.1"] {
            give(&api, &name, hostile).await?;
            let says = |object: &Slice| {
                let exposed = conditions::find_false(conditions::of(object), conditions::GATEWAYS_EXPOSED);
                exposed.is_some_and(|exposed| exposed.message.contains(&format!("the address \"{hostile}\"")))
            };
            let what = format!("{hostile} is refused");
            turns.await_object(&slices, slice, &what, SOON, says).await?;
            ensure!(!endpoints_of(&turns.gateways(slice).await?).contains(&format!("{hostile}:51820")));
        }
        // What only the hub can tell.
        give(&api, &name, "10.99.3.4").await?;
        let refuses = |cluster: &HubCluster| {
            let trusted = conditions::find_false(conditions::of(cluster), conditions::TRUSTED);
            trusted.is_some_and(|trusted| trusted.message.contains("lies in the slice itself"))
        };
        let hub = environment.hub()?;
        hub.await_object(&clusters, &turns.name, "the hub refuses it", SOON, refuses)
            .await?;
        let object = Api::<Slice>::all(stays.client.clone()).get(slice).await?;
        let known = object.spec.peers.iter().flat_map(|peer| &peer.gateways);
        let mut known = known.flat_map(|gateway| &gateway.endpoints);
        ensure!(
            known.all(|endpoint| endpoint.port() != 51820),
            "{:?}",
            object.spec.peers
        );
        anyhow::Ok(())
    }
    .await;
    expose(&environment, turns, None).await?;
    result?;
    environment.await_slice(slice).await?;
    environment.remove_slice(slice).await
}
