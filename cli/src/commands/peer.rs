//! `create peer`, `delete peer` and `peer script`: hosts outside every cluster.

use anyhow::{Context, bail};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use slice_crds::{
    Subnets, conditions, index, labels, names,
    v1alpha1::{SliceConfig, SlicePeer, SlicePeerStatus},
    wire,
};

use super::{find_slice, wait_for};
use crate::{
    Outcome,
    args::{CreatePeer, DeletePeer, Peer, PeerScript, Target},
    connect, objects, output,
    peer::{Gateway, Host, Site, script},
};

/// Where a host's WireGuard listens unless somebody says otherwise.
const PORT: u16 = 51820;

pub(crate) async fn create(target: &Target, create: CreatePeer) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let peer = SlicePeer {
        name: create.name.clone(),
        public_key: create.public_key,
        endpoints: create.endpoints,
    };
    change(&client, target, &create.slice, |peers| {
        match peers.iter_mut().find(|other| other.name == peer.name) {
            Some(other) if *other == peer => {}
            Some(_) => bail!(
                "peer {0} exists already in slice {1}, with another key or endpoint; `slicectl delete peer {0} --slice {1}` takes it \
                 out",
                peer.name,
                create.slice
            ),
            None => peers.push(peer.clone()),
        }
        Ok(())
    })
    .await?;
    println!("peer/{} is in slice {}", create.name, create.slice);
    if create.timeout.is_zero() {
        return Ok(Outcome::Good);
    }
    let name = create.name.clone();
    let decided = move |slice: Option<&SliceConfig>| {
        slice.is_some_and(|slice| given(slice, &name).is_some() || refused(slice).is_some())
    };
    let why = format!("it has no address yet; see `slicectl status {}`", create.slice);
    let api: Api<SliceConfig> = Api::namespaced(client, &target.namespace);
    let what = format!("peer {}", create.name);
    let slice = wait_for(&api, &create.slice, &what, create.timeout, &why, decided).await?;
    let slice = slice.with_context(|| format!("slice {} was deleted meanwhile", create.slice))?;
    let Some(given) = given(&slice, &create.name) else {
        bail!("{}", refused(&slice).unwrap_or(why));
    };
    let addresses: Vec<_> = given.addresses.iter().map(ToString::to_string).collect();
    println!("its addresses: {}", addresses.join(", "));
    println!(
        "on that host: slicectl peer script {} --slice {} | sudo sh",
        create.name, create.slice
    );
    Ok(Outcome::Good)
}

pub(crate) async fn delete(target: &Target, delete: DeletePeer) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    change(&client, target, &delete.slice, |peers| {
        let before = peers.len();
        peers.retain(|peer| peer.name != delete.name);
        if peers.len() == before {
            bail!("slice {} has no peer {}", delete.slice, delete.name);
        }
        Ok(())
    })
    .await?;
    println!("peer/{} is out of slice {}", delete.name, delete.slice);
    Ok(Outcome::Good)
}

pub(crate) async fn run(target: &Target, peer: Peer) -> anyhow::Result<Outcome> {
    let Peer::Script(what) = peer;
    let client = connect::client(target).await?;
    let slice = find_slice(&client, target, &what.slice).await?;
    let peers = published(&client, &slice).await?;
    output::print(&script(&host(&what, &slice, &peers)?))?;
    Ok(Outcome::Good)
}

/// The clusters of a slice as the hub publishes them: what members report of their keys is checked by then.
async fn published(client: &Client, slice: &SliceConfig) -> anyhow::Result<Vec<wire::Peer>> {
    let params = ListParams::default().labels(&format!("{}={}", labels::FOR_SLICE, slice.name_any()));
    let namespace = names::slice_namespace(&slice.name_any());
    let mut peers = Vec::new();
    for shared in objects::list::<wire::SliceShare>(client, Some(&namespace), &params).await? {
        let what = format!("sliceshares {} in namespace {namespace}", shared.name());
        peers.extend(shared.into_object(&what)?.spec.peers);
    }
    Ok(peers)
}

/// Everything the host must know, from what the hub says of its slice.
fn host(what: &PeerScript, slice: &SliceConfig, peers: &[wire::Peer]) -> anyhow::Result<Host> {
    let status = slice.status.clone().unwrap_or_default();
    let (name, slice_name) = (&what.name, slice.name_any());
    let Some(peer) = slice.spec.peers.iter().find(|peer| peer.name == *name) else {
        bail!(
            "slice {slice_name} has no peer {name}: add it with `slicectl create peer {name} --slice {slice_name} --public-key …`"
        );
    };
    let (Some(given), Some(vni), Some(mtu)) = (given(slice, name), status.vni, status.mtu) else {
        bail!("the hub has not given peer {name} an address yet; see `slicectl status {slice_name}`");
    };
    let sites: Vec<Site> = peers.iter().filter_map(site).collect();
    if sites.iter().all(|site| site.gateways.is_empty()) {
        bail!("no gateway of slice {slice_name} has a key yet; see `slicectl status {slice_name}`");
    }
    let port = peer.endpoints.first().map_or(PORT, std::net::SocketAddr::port);
    Ok(Host {
        name: name.clone(),
        slice: slice_name,
        vni,
        mtu,
        subnets: Subnets::new(&slice.spec.subnets).context("the subnets of the slice")?,
        index: given.index,
        vtep: index::vtep(index::OUTSIDE, given.ordinal),
        port: what.port.unwrap_or(port),
        key: what.key.clone(),
        sites,
    })
}

/// A cluster, as a host is to know it; `None` for another host, and for what makes no sense.
fn site(peer: &wire::Peer) -> Option<Site> {
    if !(1..=index::MAX_CLUSTER).contains(&peer.number) {
        return None;
    }
    let gateways = peer
        .gateways
        .iter()
        .filter(|gateway| gateway.ordinal <= index::MAX_ORDINAL);
    let gateways = gateways.map(|gateway| Gateway {
        public_key: gateway.public_key.clone(),
        vtep: index::vtep(peer.number, gateway.ordinal),
        endpoints: gateway
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.parse().ok())
            .collect(),
    });
    Some(Site {
        name: peer.name.clone(),
        ranges: peer.ranges.iter().filter_map(|run| run.range()).collect(),
        gateways: gateways.collect(),
    })
}

fn given(slice: &SliceConfig, peer: &str) -> Option<SlicePeerStatus> {
    let status = slice.status.as_ref()?;
    status.peers.iter().find(|given| given.name == peer).cloned()
}

/// Why the hub does not follow the slice as it is written.
fn refused(slice: &SliceConfig) -> Option<String> {
    let refused = conditions::find_false(&slice.status.as_ref()?.conditions, conditions::ACCEPTED)?;
    let current = refused.observed_generation == slice.metadata.generation;
    current.then(|| refused.message.clone())
}

/// Changes the peers of a slice; when somebody else has changed the slice meanwhile, nothing is lost and nothing done.
async fn change(
    client: &Client,
    target: &Target,
    name: &str,
    change: impl FnOnce(&mut Vec<SlicePeer>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut slice = find_slice(client, target, name).await?;
    change(&mut slice.spec.peers)?;
    let params = PatchParams {
        field_manager: Some("slicectl".into()),
        ..PatchParams::default()
    };
    let patch = json!({
        "metadata": {"resourceVersion": slice.resource_version()}, "spec": {"peers": slice.spec.peers},
    });
    let api: Api<SliceConfig> = Api::namespaced(client.clone(), &target.namespace);
    api.patch(name, &params, &Patch::Merge(patch))
        .await
        .with_context(|| format!("change the peers of slice {name}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use slice_crds::IndexRange;

    use super::*;

    fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn what() -> PeerScript {
        PeerScript {
            name: "db1".into(),
            slice: "shop".into(),
            key: "/etc/weft/peer.key".into(),
            port: None,
        }
    }

    fn shop(status: serde_json::Value) -> SliceConfig {
        from(json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "SliceConfig", "metadata": {"name": "shop"},
            "spec": {
                "subnets": ["10.80.0.0/16"], "clusters": ["a"],
                "peers": [{"name": "db1", "publicKey": "K", "endpoints": ["192.0.2.9:4500"]}],
            },
            "status": status,
        }))
    }

    #[test]
    fn the_host_gets_what_the_hub_publishes() {
        let slice = shop(json!({
            "vni": 4097, "mtu": 1370, "conditions": [],
            "peers": [{"name": "db1", "index": 65534, "ordinal": 0, "addresses": ["10.80.255.254"]}],
            "clusters": [{"name": "a", "number": 3}],
        }));
        let peers: Vec<wire::Peer> = from(json!([
            {
                "name": "a", "number": 3, "ranges": [{"start": 0, "size": 64}, {"start": 7, "size": 5}],
                "gateways": [
                    {"ordinal": 0, "publicKey": "G0", "endpoints": ["192.0.2.1:30001", "odd"]},
                    {"ordinal": 4000, "publicKey": "G1", "endpoints": []},
                ],
            },
            {"name": "db1", "number": index::OUTSIDE, "ranges": [{"start": 65534, "size": 1}], "gateways": []},
            {"name": "odd", "number": 7000},
        ]));
        let host = host(&what(), &slice, &peers).unwrap();
        assert_eq!((host.port, host.index), (4500, 65534));
        assert_eq!(host.vtep.to_string(), "198.19.255.1");
        assert_eq!(
            host.sites,
            [Site {
                name: "a".into(),
                ranges: vec![IndexRange::new(0, 64)],
                gateways: vec![Gateway {
                    public_key: "G0".into(),
                    vtep: "198.18.3.1".parse().unwrap(),
                    endpoints: vec!["192.0.2.1:30001".parse().unwrap()],
                }],
            }]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = host(&what(), &shop(json!({"vni": 4097, "mtu": 1370})), &[]).unwrap_err();
        assert!(
            error.to_string().contains("no address") || error.to_string().contains("an address yet"),
            "{error}"
        );
        let other = PeerScript {
            name: "db2".into(),
            ..what()
        };
        let error = host(&other, &shop(json!({})), &[]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("slicectl create peer db2 --slice shop"),
            "{error}"
        );
    }
}
