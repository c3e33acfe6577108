//! Dumps → [`Observation`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::PoisonError,
    time::Duration,
};

use anyhow::Context;
use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoTun, InfoVxlan, LinkAttribute,
        LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
};
use slice_crds::{Mac, Rate};

use super::{
    Linux, Observation, Query, netns, nft,
    rtnl::{Error, Rtnl},
    shaper,
};
use crate::{
    model::{Alias, Kind, Link, Name, Netns, PodLink, Queues},
    plan::PodEnd,
};

/// How long reading one pod's end may take.
const READ_TIMEOUT: Duration = Duration::from_millis(500);
/// Addresses and routes of a pod's end that are read: a pod may give itself as many as it likes.
const MOST: usize = 256;
/// One byte, of linux/if_link.h: whether a TUN or TAP device is made for several queues.
const IFLA_TUN_MULTI_QUEUE: u16 = 7;

pub(super) async fn observe(linux: &mut Linux, query: &Query) -> anyhow::Result<Observation> {
    let links = dump_links(&mut linux.rtnl).await.context("read the interfaces")?;
    let ours: BTreeMap<u32, Name> = (links.iter())
        .filter_map(|link| Some((link.header.index, name_of(link)?)))
        .filter(|(_, name)| Name::is_link(name))
        .map(|(index, name)| (index, Name::new(name)))
        .collect();
    let mut seen = Observation::default();
    for link in &links {
        if let Some(name) = ours.get(&link.header.index) {
            let mut state = link_state(link);
            if *name == Name::shaper() {
                observe_shaper(linux, &links, link, &mut state).await?;
            } else if *name == Name::shaper_end() && links.iter().any(is_shaper) {
                // One with the other.
                continue;
            } else {
                state.attached = linux.is_attached(link.header.index, state.kind).await?;
            }
            if state.kind.tap().is_some() && link.attributes.contains(&LinkAttribute::Carrier(1)) {
                seen.held.insert(name.clone());
            }
            seen.state.links.insert(name.clone(), state);
        }
    }
    linux.indices = ours.iter().map(|(index, name)| (name.clone(), *index)).collect();
    *linux.ours.lock().unwrap_or_else(PoisonError::into_inner) = ours.keys().copied().collect();
    read_pods(linux, query, &mut seen).await;
    if let Some(address) = query.node_address
        && let Some(underlay) = underlay(&mut linux.rtnl, &links, address).await?
    {
        seen.underlay_mtu = underlay.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        // What is under /sys is of this process's own namespace.
        if linux.namespace.is_none() {
            seen.underlay_speed = name_of(underlay).and_then(speed);
        }
    }
    let classes = linux.classes().await?;
    seen.state.queued = shaper::queued(&classes);
    seen.carried = classes.iter().map(|(id, seen)| (*id, seen.carried)).collect();
    seen.state.classes = classes.into_iter().map(|(id, seen)| (id, seen.class)).collect();
    if let Ok(datapath) = &mut linux.datapath {
        (seen.state.segments, seen.state.tunnel) = datapath.state(&linux.indices);
        seen.state.shaper = datapath.shaper(&linux.indices);
        seen.counters = datapath.counters()?;
    }
    let tables = nft::list(linux.namespace.as_deref()).await?;
    seen.state.guard = tables.guard;
    seen.state.former_tables = tables.former;
    seen.underlay_drops = tables.underlay_drops;
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

pub(super) fn link_state(link: &LinkMessage) -> Link {
    let mut state = Link {
        kind: Kind::Foreign,
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        autoconf: false,
        alias: None,
        attached: false,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => state.mtu = *mtu,
            LinkAttribute::IfAlias(text) => state.alias = Alias::parse(text),
            LinkAttribute::LinkInfo(infos) => state.kind = kind(infos),
            LinkAttribute::AfSpecUnspec(families) => state.autoconf = autoconf(families),
            _ => {}
        }
    }
    state
}

fn kind(infos: &[LinkInfo]) -> Kind {
    let mut kind = Kind::Foreign;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Veth) => kind = Kind::Veth,
            LinkInfo::Kind(InfoKind::Tun) => kind = Kind::Tap(Queues::One),
            LinkInfo::Data(InfoData::Tun(data)) if data.iter().any(is_multi_queue) => {
                kind = Kind::Tap(Queues::Several);
            }
            LinkInfo::Data(InfoData::Vxlan(data)) if data.contains(&InfoVxlan::CollectMetadata(true)) => {
                let port = data.iter().find_map(|item| match item {
                    InfoVxlan::Port(port) => Some(*port),
                    _ => None,
                });
                kind = port.map_or(Kind::Foreign, Kind::Vxlan);
            }
            _ => {}
        }
    }
    kind
}

fn is_multi_queue(item: &InfoTun) -> bool {
    if item.kind() != IFLA_TUN_MULTI_QUEUE || item.value_len() != 1 {
        return false;
    }
    let mut value = [0];
    item.emit_value(&mut value);
    value != [0]
}

fn autoconf(families: &[AfSpecUnspec]) -> bool {
    families.iter().any(|family| match family {
        AfSpecUnspec::Inet6(items) => items
            .iter()
            .any(|item| matches!(item, AfSpecInet6::AddrGenMode(mode) if *mode != In6AddrGenMode::None)),
        _ => false,
    })
}

/// The pods' ends of the pairs whose host ends are there.
async fn read_pods(linux: &Linux, query: &Query, seen: &mut Observation) {
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
            let host = linux.indices.get(port).copied().unwrap_or_default();
            match tokio::time::timeout(READ_TIMEOUT, read_pod(&mut rtnl, end, host)).await {
                Ok(Ok(pod)) => seen.state.pods.extend(pod.map(|pod| (port.clone(), pod))),
                // What a pod makes of its own namespace is nobody else's trouble.
                Ok(Err(error)) => _ = seen.unread.insert(port.clone(), error.to_string()),
                Err(_) => {
                    _ = seen
                        .unread
                        .insert(port.clone(), format!("not read within {READ_TIMEOUT:?}"))
                }
            }
        }
    }
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
    let mut request = AddressMessage::default();
    request.header.index = link.header.index;
    for message in read_some(rtnl, &end.netns, RouteNetlinkMessage::GetAddress(request)).await? {
        if let RouteNetlinkMessage::NewAddress(message) = &message
            && message.header.index == link.header.index
        {
            pod.addresses
                .extend(address(message).filter(|net| !is_link_local(net.addr())));
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        request.attributes.push(RouteAttribute::Oif(link.header.index));
        match read_some(rtnl, &end.netns, RouteNetlinkMessage::GetRoute(request)).await {
            Ok(routes) => {
                pod.routes
                    .extend(routes.iter().filter_map(|message| match message {
                        RouteNetlinkMessage::NewRoute(route) => direct_route(route, link.header.index),
                        _ => None,
                    }));
            }
            // A kernel without IPv6.
            Err(Error::Kernel(nix::errno::Errno::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(pod))
}

/// The first entries of one of a pod's tables. What is wanted and beyond them is taken to be missing, and added to no effect.
async fn read_some(
    rtnl: &mut Rtnl,
    namespace: &Netns,
    message: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    let dump = rtnl.dump_at_most(message, MOST).await?;
    if dump.cut {
        *rtnl = Rtnl::open(Some(namespace.path())).map_err(|_| Error::Closed)?;
    }
    Ok(dump.entries)
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

/// The interface that has an address.
async fn underlay<'a>(
    rtnl: &mut Rtnl,
    links: &'a [LinkMessage],
    node: IpAddr,
) -> anyhow::Result<Option<&'a LinkMessage>> {
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
    Ok(index.and_then(|index| links.iter().find(|link| link.header.index == index)))
}

/// What an interface carries, where its driver says so (ethtool(8), sysfs-class-net).
fn speed(interface: &str) -> Option<Rate> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{interface}/speed")).ok()?;
    // -1 stands for unknown.
    let mbps: u32 = text.trim().parse().ok()?;
    (mbps > 0).then(|| Rate::from_mbps(mbps))
}

fn is_shaper(link: &LinkMessage) -> bool {
    name_of(link) == Some(Name::shaper().as_str())
}

/// The two ends of the shaper as one interface: it is one only with both.
async fn observe_shaper(
    linux: &mut Linux,
    links: &[LinkMessage],
    link: &LinkMessage,
    state: &mut Link,
) -> anyhow::Result<()> {
    let name = Name::shaper_end();
    let end = links.iter().find(|link| name_of(link) == Some(name.as_str()));
    let Some(end) = end.filter(|end| end.attributes.contains(&LinkAttribute::Link(link.header.index))) else {
        state.kind = Kind::Foreign;
        return Ok(());
    };
    let seen = link_state(end);
    if state.kind == Kind::Veth {
        state.kind = Kind::Shaper;
    }
    state.up &= seen.up;
    state.autoconf |= seen.autoconf;
    state.mtu = state.mtu.min(seen.mtu);
    state.attached = linux.is_attached(end.header.index, Kind::Shaper).await?;
    Ok(())
}
