//! Dumps → [`Observation`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::PoisonError,
};

use anyhow::Context;
use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, InfoTun, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
};
use slice_crds::Mac;

use super::{
    Linux, Observation, Query, netns, nexthop, nft,
    rtnl::{Error, Rtnl},
};
use crate::{
    model::{Fdb, Kind, Link, Name, Neighbour, PodLink, Port, Queues, Via, Vxlan, table::ANY},
    plan::PodEnd,
};

/// One byte, of linux/if_link.h: whether a TUN or TAP device is made for several queues.
const IFLA_TUN_MULTI_QUEUE: u16 = 7;

pub(super) async fn observe(linux: &mut Linux, query: &Query) -> anyhow::Result<Observation> {
    let links = dump_links(&mut linux.rtnl).await.context("read the interfaces")?;
    let names: BTreeMap<u32, &str> = links
        .iter()
        .filter_map(|link| Some((link.header.index, name_of(link)?)))
        .collect();
    let ours: BTreeMap<u32, Name> = (names.iter())
        .filter(|(_, name)| Name::is_link(name))
        .map(|(index, name)| (*index, Name::new(*name)))
        .collect();
    let mut seen = Observation::default();
    for link in &links {
        if let Some(name) = ours.get(&link.header.index) {
            seen.state.links.insert(name.clone(), link_state(link, &names));
            if link.attributes.contains(&LinkAttribute::Carrier(1)) {
                seen.held.insert(name.clone());
            }
        }
    }
    seen.held.retain(|name| {
        seen.state
            .links
            .get(name)
            .is_some_and(|link| link.kind.tap().is_some())
    });
    linux.indices = ours.iter().map(|(index, name)| (name.clone(), *index)).collect();

    *linux.ours.lock().unwrap_or_else(PoisonError::into_inner) = ours.keys().copied().collect();

    let nodes = nexthop::list(&mut linux.nexthops)
        .await
        .context("read the nexthops")?;
    read_neighbours(&mut linux.rtnl, &ours, &nodes, &mut seen).await?;
    read_pods(linux, query, &links, &mut seen).await?;
    if let Some(address) = query.node_address {
        seen.underlay_mtu = underlay_mtu(&mut linux.rtnl, &links, address).await?;
    }
    let (tables, counters) = nft::list(linux.namespace.as_deref()).await?;
    seen.state.tables = tables;
    seen.counters = counters;
    Ok(seen)
}

async fn dump_links(rtnl: &mut Rtnl) -> Result<Vec<LinkMessage>, Error> {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let messages = rtnl.dump(RouteNetlinkMessage::GetLink(request)).await?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })
        .collect())
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn link_state(link: &LinkMessage, names: &BTreeMap<u32, &str>) -> Link {
    let mut state = Link {
        kind: Kind::Foreign,
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        autoconf: false,
        port: None,
    };
    let mut bridge = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => state.mtu = *mtu,
            LinkAttribute::Controller(index) => bridge = names.get(index),
            LinkAttribute::LinkInfo(infos) => read_info(infos, &mut state),
            LinkAttribute::AfSpecUnspec(families) => state.autoconf = autoconf(families),
            _ => {}
        }
    }
    state.port = state.port.zip(bridge).map(|(port, bridge)| Port {
        bridge: Name::new(*bridge),
        ..port
    });
    state
}

fn read_info(infos: &[LinkInfo], state: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Veth) => state.kind = Kind::Veth,
            LinkInfo::Kind(InfoKind::Tun) => state.kind = Kind::Tap(Queues::One),
            LinkInfo::Data(InfoData::Tun(data)) if data.iter().any(is_multi_queue) => {
                state.kind = Kind::Tap(Queues::Several);
            }
            LinkInfo::Data(InfoData::Bridge(data)) => {
                state.kind = Kind::Bridge {
                    snooping: data.contains(&InfoBridge::MulticastSnooping(true)),
                };
            }
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                state.kind = vxlan(data).map_or(Kind::Foreign, Kind::Vxlan)
            }
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => state.port = Some(port(data)),
            _ => {}
        }
    }
}

fn is_multi_queue(item: &InfoTun) -> bool {
    if item.kind() != IFLA_TUN_MULTI_QUEUE || item.value_len() != 1 {
        return false;
    }
    let mut value = [0];
    item.emit_value(&mut value);
    value != [0]
}

/// What a VXLAN interface says of itself.
pub(super) fn vxlan_of(link: &LinkMessage) -> Option<Vxlan> {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => vxlan(data),
        _ => None,
    })
}

/// `None` where it learns, or lacks what every one of ours has.
fn vxlan(data: &[InfoVxlan]) -> Option<Vxlan> {
    let (mut vni, mut port, mut local, mut remote) = (None, None, None, None);
    for item in data {
        match item {
            InfoVxlan::Id(id) => vni = Some(*id),
            InfoVxlan::Port(number) => port = Some(*number),
            InfoVxlan::Local(ip) => local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => local = Some(IpAddr::V6(*ip)),
            InfoVxlan::Group(ip) => remote = Some(IpAddr::V4(*ip)),
            InfoVxlan::Group6(ip) => remote = Some(IpAddr::V6(*ip)),
            InfoVxlan::Learning(true) => return None,
            _ => {}
        }
    }
    Some(Vxlan {
        vni: vni?,
        port: port?,
        local: local?,
        remote: remote.filter(|remote| !remote.is_unspecified()),
    })
}

fn port(data: &[InfoBridgePort]) -> Port {
    let mut port = Port {
        bridge: Name::new(""),
        unknown: false,
        group: false,
        suppress: false,
        isolated: false,
        learning: false,
    };
    let (mut multicast, mut broadcast) = (false, false);
    for item in data {
        match item {
            InfoBridgePort::UnicastFlood(on) => port.unknown = *on,
            InfoBridgePort::MulticastFlood(on) => multicast = *on,
            InfoBridgePort::BroadcastFlood(on) => broadcast = *on,
            InfoBridgePort::NeighSupress(on) => port.suppress = *on,
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            InfoBridgePort::Learning(on) => port.learning = *on,
            _ => {}
        }
    }
    port.group = multicast && broadcast;
    // One of the two is neither of our settings: looking like a learning port gets it set again.
    port.learning |= multicast != broadcast;
    port
}

fn autoconf(families: &[AfSpecUnspec]) -> bool {
    families.iter().any(|family| match family {
        AfSpecUnspec::Inet6(items) => items
            .iter()
            .any(|item| matches!(item, AfSpecInet6::AddrGenMode(mode) if *mode != In6AddrGenMode::None)),
        _ => false,
    })
}

/// Forwarding entries, and permanent neighbours on our bridges.
async fn read_neighbours(
    rtnl: &mut Rtnl,
    ours: &BTreeMap<u32, Name>,
    nodes: &BTreeMap<u32, IpAddr>,
    seen: &mut Observation,
) -> anyhow::Result<()> {
    for family in [AddressFamily::Bridge, AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let entries = match rtnl.dump(RouteNetlinkMessage::GetNeighbour(request)).await {
            Ok(entries) => entries,
            // A kernel without IPv6.
            Err(Error::Kernel(nix::errno::Errno::EOPNOTSUPP)) if family == AddressFamily::Inet6 => continue,
            Err(error) => return Err(error).context("read forwarding and neighbour entries"),
        };
        for entry in entries {
            let RouteNetlinkMessage::NewNeighbour(entry) = entry else {
                continue;
            };
            let Some(link) = ours.get(&entry.header.ifindex) else {
                continue;
            };
            if let Some(group) = group_of(&entry) {
                if let Some(Kind::Vxlan(vxlan)) = seen.state.links.get_mut(link).map(|link| &mut link.kind)
                    && mac_of(&entry) == Some(ANY)
                    && group == nexthop::group(vxlan.vni)
                {
                    vxlan.remote = nodes.get(&group).copied();
                }
            } else if family == AddressFamily::Bridge {
                let remote = seen
                    .state
                    .links
                    .get(link)
                    .and_then(|link| link.kind.vxlan()?.remote);
                // The default destination shows as an entry too.
                let new = fdb(link, &entry).filter(|fdb| {
                    fdb.mac != ANY || remote.is_none_or(|remote| fdb.via != Via::Remote(remote))
                });
                seen.state.fdb.extend(new);
            } else {
                seen.state.neighbours.extend(neighbour(link, &entry));
            }
        }
    }
    Ok(())
}

fn fdb(link: &Name, entry: &NeighbourMessage) -> Option<Fdb> {
    let mac = mac_of(entry)?;
    let via = if entry.header.flags.contains(NeighbourFlags::Own) {
        Via::Remote(address_of(entry)?)
    } else if entry.header.state == NeighbourState::Noarp {
        Via::Bridge
    } else {
        // The port's own address.
        return None;
    };
    Some(Fdb {
        link: link.clone(),
        mac,
        via,
    })
}

fn neighbour(link: &Name, entry: &NeighbourMessage) -> Option<Neighbour> {
    if entry.header.state != NeighbourState::Permanent {
        return None;
    }
    Some(Neighbour {
        bridge: link.clone(),
        ip: address_of(entry)?,
        mac: mac_of(entry)?,
    })
}

/// The group of nexthops that the entry names.
fn group_of(entry: &NeighbourMessage) -> Option<u32> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Other(other) if other.kind() == nexthop::NDA_NH_ID && other.value_len() == 4 => {
            let mut value = [0; 4];
            other.emit_value(&mut value);
            Some(u32::from_ne_bytes(value))
        }
        _ => None,
    })
}

fn mac_of(entry: &NeighbourMessage) -> Option<Mac> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

fn address_of(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        // Forwarding entries carry the address as bare bytes.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    })
}

/// The pods' ends of the pairs whose host ends are there.
async fn read_pods(
    linux: &Linux,
    query: &Query,
    links: &[LinkMessage],
    seen: &mut Observation,
) -> anyhow::Result<()> {
    let mut by_namespace: BTreeMap<_, Vec<(&Name, &PodEnd)>> = BTreeMap::new();
    for (port, end) in &query.pods {
        by_namespace.entry(&end.netns).or_default().push((port, end));
    }
    for (namespace, ends) in by_namespace {
        if !netns::exists(namespace.path()) {
            seen.gone.insert(namespace.clone());
            continue;
        }
        let paired: Vec<_> = ends
            .into_iter()
            .filter(|(port, _)| linux.indices.contains_key(*port))
            .collect();
        if paired.is_empty() {
            continue;
        }
        let Ok(mut rtnl) = Rtnl::open(Some(namespace.path())) else {
            seen.gone.insert(namespace.clone());
            continue;
        };
        for (port, end) in paired {
            let host = links.iter().find(|link| name_of(link) == Some(port.as_str()));
            let pod = read_pod(&mut rtnl, end, host.map_or(0, |host| host.header.index))
                .await
                .with_context(|| format!("read interface {} in {namespace}", end.interface))?;
            if let Some(pod) = pod {
                seen.state.pods.insert(port.clone(), pod);
            }
        }
    }
    Ok(())
}

/// The pod's end, where it is there and is the other end of the interface with index `host`.
async fn read_pod(rtnl: &mut Rtnl, end: &PodEnd, host: u32) -> Result<Option<PodLink>, Error> {
    let Some(link) = rtnl.link(&end.interface).await? else {
        return Ok(None);
    };
    if !link.attributes.contains(&LinkAttribute::Link(host)) {
        return Ok(None);
    }
    let mut pod = PodLink {
        netns: end.netns.clone(),
        name: end.interface.clone(),
        mac: Mac([0; 6]),
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        addresses: BTreeSet::new(),
        routes: BTreeSet::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => pod.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                pod.mac = bytes.as_slice().try_into().map_or(pod.mac, Mac);
            }
            _ => {}
        }
    }
    let addresses = rtnl
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .await?;
    for message in &addresses {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && message.header.index == link.header.index
        {
            pod.addresses
                .extend(address(message).filter(|net| !is_link_local(net.addr())));
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        match rtnl.dump(RouteNetlinkMessage::GetRoute(request)).await {
            Ok(routes) => {
                pod.routes
                    .extend(routes.iter().filter_map(|message| match message {
                        RouteNetlinkMessage::NewRoute(route) => direct_route(route, link.header.index),
                        _ => None,
                    }));
            }
            Err(Error::Kernel(nix::errno::Errno::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(pod))
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn address(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    // IPv4 has both, and `Local` is the address where they differ.
    IpNet::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}

/// The network of a route of the main table that leads directly out of this interface.
fn direct_route(route: &RouteMessage, interface: u32) -> Option<IpNet> {
    let (mut destination, mut here, mut direct) = (None, false, true);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => destination = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) => here = *index == interface,
            RouteAttribute::Gateway(_) => direct = false,
            _ => {}
        }
    }
    if !here || !direct || route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let destination = destination.filter(|ip| !is_link_local(*ip))?;
    IpNet::new(destination, route.header.destination_prefix_length).ok()
}

async fn underlay_mtu(rtnl: &mut Rtnl, links: &[LinkMessage], node: IpAddr) -> anyhow::Result<Option<u32>> {
    let addresses = rtnl
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .await
        .context("read the node's addresses")?;
    let index = addresses.iter().find_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message)
            if address(message).is_some_and(|net| net.addr() == node) =>
        {
            Some(message.header.index)
        }
        _ => None,
    });
    let link = index.and_then(|index| links.iter().find(|link| link.header.index == index));
    Ok(link.and_then(|link| {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
    }))
}
