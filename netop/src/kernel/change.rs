//! [`Action`] → requests to the kernel.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    sync::Once,
};

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use nix::errno::Errno;
use slice_crds::Mac;

use super::{Linux, Outcome, nexthop, nft, observe, rtnl::Rtnl, tap};
use crate::{
    model::{Fdb, Kind, Link, Name, Neighbour, Netns, PodLink, Port, UPLINK_PORT, Via, Vxlan, table::ANY},
    plan::{Action, Plan, PodAction, PodEnd, Step},
};

/// The address of every bridge. No frame ever carries it; but a bridge without an address of its own takes the lowest
/// of its ports', and each time that changes, the kernel forgets the bridge's neighbours.
const BRIDGE_MAC: Mac = Mac([0x02, 0x5d, 0, 0, 0, 0]);

/// Makes the changes in order; what belongs to one table and stands together is one transaction.
pub(super) async fn apply(linux: &mut Linux, plan: &Plan) -> Outcome {
    let mut outcome = Outcome::default();
    let mut pods = BTreeMap::new();
    for batch in plan
        .0
        .chunk_by(|a, b| a.action.table().is_some() && a.action.table() == b.action.table())
    {
        let (skipped, batch): (Vec<&Step>, Vec<&Step>) =
            batch.iter().partition(|step| outcome.forbids(&step.scope));
        outcome.skipped.extend(skipped.into_iter().cloned());
        let Some(first) = batch.first() else { continue };
        if first.action.table().is_none() {
            let result = change(linux, &mut pods, &first.action).await;
            outcome.record(first, result.with_context(|| first.action.to_string()));
            continue;
        }
        let script = nft::script(batch.iter().map(|step| &step.action));
        match nft::run(linux.namespace.as_deref(), &script).await {
            Ok(()) => outcome.done.extend(batch.into_iter().cloned()),
            Err(error) => {
                // Nothing of it was done, and no port may open without its filter: the segment stops here.
                let mut step = (*first).clone();
                step.scope.port = None;
                outcome.record(&step, Err(error.context(first.action.to_string())));
                outcome.skipped.extend(batch.into_iter().skip(1).cloned());
            }
        }
    }
    outcome
}

impl Action {
    /// The table that a table change is about.
    fn table(&self) -> Option<&Name> {
        match self {
            Self::AddTable(table, _)
            | Self::DelTable(table)
            | Self::AddElement(table, _)
            | Self::DelElement(table, _) => Some(table),
            Self::AddLink(..)
            | Self::DelLink(_)
            | Self::SetMtu(..)
            | Self::SetPort(..)
            | Self::SetRemote(..)
            | Self::NoAutoconf(_)
            | Self::NoSnooping(_)
            | Self::Up(_)
            | Self::AddFdb(_)
            | Self::DelFdb(_)
            | Self::AddNeighbour(_)
            | Self::DelNeighbour(_)
            | Self::Pod(..) => None,
        }
    }
}

async fn change(linux: &mut Linux, pods: &mut BTreeMap<Netns, Rtnl>, action: &Action) -> anyhow::Result<()> {
    match action {
        Action::AddLink(name, link, pod) => add_link(linux, pods, name, link, pod.as_ref()).await,
        Action::DelLink(name) => del_link(linux, name).await,
        Action::SetMtu(name, mtu) => {
            set_link(linux, name, vec![LinkAttribute::Mtu(*mtu)]).await?;
            // Below 1280 bytes IPv6 leaves an interface; it comes back with the default.
            set_link(linux, name, vec![address_generation(In6AddrGenMode::None)]).await
        }
        Action::SetPort(name, port) => set_port(linux, name, port).await,
        Action::SetRemote(name, vxlan) => set_remote(linux, name, *vxlan).await,
        Action::NoAutoconf(name) => {
            set_link(linux, name, vec![address_generation(In6AddrGenMode::None)]).await
        }
        Action::NoSnooping(name) => {
            let data = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]);
            let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)];
            let message = link_message(linux, name, vec![LinkAttribute::LinkInfo(info)]).await?;
            Ok(linux
                .rtnl
                .request(RouteNetlinkMessage::NewLink(message), 0)
                .await?)
        }
        Action::Up(name) => {
            let message = raised(link_message(linux, name, vec![]).await?);
            Ok(linux
                .rtnl
                .request(RouteNetlinkMessage::SetLink(message), 0)
                .await?)
        }
        Action::AddFdb(fdb) => {
            let message = fdb_message(linux, fdb).await?;
            // The all-zero address has one entry per node; another has one place, which may move.
            let flags = NLM_F_CREATE
                | if fdb.mac == ANY {
                    NLM_F_APPEND
                } else {
                    NLM_F_REPLACE
                };
            let message = RouteNetlinkMessage::NewNeighbour(message);
            Ok(linux.rtnl.ensure(message, flags, &[Errno::EEXIST]).await?)
        }
        Action::DelFdb(fdb) => {
            let message = fdb_message(linux, fdb).await?;
            Ok(linux
                .rtnl
                .ensure(RouteNetlinkMessage::DelNeighbour(message), 0, &[Errno::ENOENT])
                .await?)
        }
        Action::AddNeighbour(neighbour) => {
            let message = neighbour_message(linux, neighbour).await?;
            let message = RouteNetlinkMessage::NewNeighbour(message);
            Ok(linux.rtnl.request(message, NLM_F_CREATE | NLM_F_REPLACE).await?)
        }
        Action::DelNeighbour(neighbour) => {
            let message = neighbour_message(linux, neighbour).await?;
            Ok(linux
                .rtnl
                .ensure(RouteNetlinkMessage::DelNeighbour(message), 0, &[Errno::ENOENT])
                .await?)
        }
        Action::Pod(_, end, action) => change_pod(pods, end, action).await,
        Action::AddTable(..) | Action::DelTable(_) | Action::AddElement(..) | Action::DelElement(..) => {
            Err(anyhow!("table changes go through nft"))
        }
    }
}

// --- interfaces on the node ---

async fn add_link(
    linux: &mut Linux,
    pods: &mut BTreeMap<Netns, Rtnl>,
    name: &Name,
    link: &Link,
    pod: Option<&PodLink>,
) -> anyhow::Result<()> {
    let made = match &link.kind {
        Kind::Bridge { .. } => {
            let data = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]);
            let address = LinkAttribute::Address(BRIDGE_MAC.0.to_vec());
            new_link(linux, name, link.mtu, InfoKind::Bridge, data, vec![address]).await?
        }
        Kind::Vxlan(vxlan) => {
            let local = match vxlan.local {
                IpAddr::V4(ip) => InfoVxlan::Local(ip),
                IpAddr::V6(ip) => InfoVxlan::Local6(ip),
            };
            let data = vec![
                InfoVxlan::Id(vxlan.vni),
                local,
                InfoVxlan::Port(vxlan.port),
                InfoVxlan::Learning(false),
            ];
            let data = InfoData::Vxlan(data);
            new_link(linux, name, link.mtu, InfoKind::Vxlan, data, vec![]).await?
        }
        Kind::Tap(queues) => {
            let made = linux.rtnl.link(name.as_str()).await?.is_none();
            tap::create(linux.namespace.as_deref(), name, *queues)?;
            set_link(
                linux,
                name,
                vec![
                    LinkAttribute::Mtu(link.mtu),
                    LinkAttribute::TxQueueLen(tap::QUEUE_LENGTH),
                ],
            )
            .await?;
            made
        }
        Kind::Veth => {
            let pod = pod.ok_or_else(|| anyhow!("a pod's port without a pod"))?;
            new_pair(linux, pods, name, link.mtu, pod).await?
        }
        Kind::Foreign => return Err(anyhow!("not an interface of ours")),
    };
    let finished = finish_link(linux, name, link).await;
    if finished.is_err() && made {
        // Half an interface would be taken for a whole one.
        let _ = del_link(linux, name).await;
    }
    finished
}

/// Changes where a VXLAN interface sends what it knows no other place for.
async fn set_remote(linux: &mut Linux, name: &Name, vxlan: Vxlan) -> anyhow::Result<()> {
    let Some(node) = vxlan.remote else {
        nexthop::forget(&mut linux.nexthops, vxlan.vni).await?;
        return clear_default(linux, name, vxlan).await;
    };
    match nexthop::lead(&mut linux.nexthops, vxlan.vni, node).await {
        Ok(()) => {}
        Err(error) if error.is(Errno::EINVAL) || error.is(Errno::EOPNOTSUPP) => {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                tracing::warn!(
                    "this kernel has no nexthops for VXLAN (Linux 5.8): when the gateway that this node uses \
                     changes, frames of that very moment may arrive twice"
                );
            });
            return set_default(linux, name, vxlan).await;
        }
        Err(error) => return Err(error.into()),
    }
    clear_default(linux, name, vxlan).await?;
    let group = nexthop::group(vxlan.vni).to_ne_bytes().to_vec();
    let group = NeighbourAttribute::Other(DefaultNla::new(nexthop::NDA_NH_ID, group));
    let entry = device_entry(linux, name, ANY, group).await?;
    let entry = RouteNetlinkMessage::NewNeighbour(entry);
    Ok(linux
        .rtnl
        .ensure(entry, NLM_F_CREATE | NLM_F_EXCL, &[Errno::EEXIST])
        .await?)
}

/// Takes away the default destination in the interface's own settings, where an earlier version of the agent set one.
async fn clear_default(linux: &mut Linux, name: &Name, vxlan: Vxlan) -> anyhow::Result<()> {
    let link = linux.rtnl.link(name.as_str()).await?;
    match link.and_then(|link| observe::vxlan_of(&link)?.remote) {
        Some(_) => set_default(linux, name, vxlan.fixed()).await,
        None => Ok(()),
    }
}

/// Changes it. Both the new one and the old one are there for a moment.
async fn set_default(linux: &mut Linux, name: &Name, vxlan: Vxlan) -> anyhow::Result<()> {
    let none = match vxlan.local {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let group = match vxlan.remote.unwrap_or(none) {
        IpAddr::V4(ip) => InfoVxlan::Group(ip),
        IpAddr::V6(ip) => InfoVxlan::Group6(ip),
    };
    let data = InfoData::Vxlan(vec![InfoVxlan::Id(vxlan.vni), group]);
    let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(data)];
    let message = link_message(linux, name, vec![LinkAttribute::LinkInfo(info)]).await?;
    Ok(linux
        .rtnl
        .request(RouteNetlinkMessage::NewLink(message), 0)
        .await?)
}

async fn finish_link(linux: &mut Linux, name: &Name, link: &Link) -> anyhow::Result<()> {
    set_link(linux, name, vec![address_generation(In6AddrGenMode::None)]).await?;
    if let Some(vxlan) = link.kind.vxlan().filter(|vxlan| vxlan.remote.is_some()) {
        set_remote(linux, name, vxlan).await?;
    }
    match &link.port {
        Some(port) => set_port(linux, name, port).await,
        None => Ok(()),
    }
}

/// Whether it was made, and not there before.
async fn new_link(
    linux: &mut Linux,
    name: &Name,
    mtu: u32,
    kind: InfoKind,
    data: InfoData,
    more: Vec<LinkAttribute>,
) -> anyhow::Result<bool> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.as_str().to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
    ];
    message.attributes.extend(more);
    linux.indices.remove(name);
    let request = RouteNetlinkMessage::NewLink(message);
    match linux.rtnl.request(request, NLM_F_CREATE | NLM_F_EXCL).await {
        Ok(()) => Ok(true),
        Err(error) if error.is(Errno::EEXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes a pair, its far end born inside the pod: with its final name, address and size, never seen on the node.
async fn new_pair(
    linux: &mut Linux,
    pods: &mut BTreeMap<Netns, Rtnl>,
    name: &Name,
    mtu: u32,
    pod: &PodLink,
) -> anyhow::Result<bool> {
    let namespace = std::fs::File::open(pod.netns.path())
        .with_context(|| format!("open network namespace {}", pod.netns.path().display()))?;
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(pod.name.clone()),
        LinkAttribute::Mtu(pod.mtu),
        LinkAttribute::Address(pod.mac.0.to_vec()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let made = new_link(
        linux,
        name,
        mtu,
        InfoKind::Veth,
        InfoData::Veth(InfoVeth::Peer(peer)),
        vec![],
    )
    .await?;
    // The filters let the address through that follows from the MAC address, whatever the pod's default is.
    let end = pod.end();
    let rtnl = pod_socket(pods, &end.netns)?;
    let mut message = pod_message(rtnl, &end).await?;
    message.attributes.push(address_generation(In6AddrGenMode::Eui64));
    rtnl.ensure(RouteNetlinkMessage::SetLink(message), 0, &[Errno::EAFNOSUPPORT])
        .await?;
    Ok(made)
}

async fn del_link(linux: &mut Linux, name: &Name) -> anyhow::Result<()> {
    let link = linux.rtnl.link(name.as_str()).await?;
    let vxlan = link.and_then(|link| observe::vxlan_of(&link));
    if let Some(vxlan) = vxlan.filter(|vxlan| vxlan.port == UPLINK_PORT) {
        nexthop::forget(&mut linux.nexthops, vxlan.vni).await?;
    }
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.as_str().to_owned()));
    linux.indices.remove(name);
    Ok(linux
        .rtnl
        .ensure(RouteNetlinkMessage::DelLink(message), 0, &[Errno::ENODEV])
        .await?)
}

async fn set_link(linux: &mut Linux, name: &Name, attributes: Vec<LinkAttribute>) -> anyhow::Result<()> {
    let message = link_message(linux, name, attributes).await?;
    // A kernel without IPv6 has no address generation to set.
    Ok(linux
        .rtnl
        .ensure(RouteNetlinkMessage::SetLink(message), 0, &[Errno::EAFNOSUPPORT])
        .await?)
}

async fn set_port(linux: &mut Linux, name: &Name, port: &Port) -> anyhow::Result<()> {
    let bridge = index(linux, &port.bridge).await?;
    set_link(linux, name, vec![LinkAttribute::Controller(bridge)]).await?;
    let data = InfoPortData::BridgePort(vec![
        InfoBridgePort::Learning(port.learning),
        InfoBridgePort::UnicastFlood(port.unknown),
        InfoBridgePort::MulticastFlood(port.group),
        InfoBridgePort::BroadcastFlood(port.group),
        InfoBridgePort::NeighSupress(port.suppress),
        InfoBridgePort::Isolated(port.isolated),
    ]);
    let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)];
    let message = link_message(linux, name, vec![LinkAttribute::LinkInfo(info)]).await?;
    Ok(linux
        .rtnl
        .request(RouteNetlinkMessage::NewLink(message), 0)
        .await?)
}

async fn link_message(
    linux: &mut Linux,
    name: &Name,
    attributes: Vec<LinkAttribute>,
) -> anyhow::Result<LinkMessage> {
    let mut message = LinkMessage::default();
    message.header.index = index(linux, name).await?;
    message.attributes = attributes;
    Ok(message)
}

fn raised(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message
}

fn address_generation(mode: In6AddrGenMode) -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])])
}

async fn index(linux: &mut Linux, name: &Name) -> anyhow::Result<u32> {
    if let Some(index) = linux.indices.get(name) {
        return Ok(*index);
    }
    let link = linux
        .rtnl
        .link(name.as_str())
        .await?
        .ok_or_else(|| anyhow!("interface {name} is gone"))?;
    linux.indices.insert(name.clone(), link.header.index);
    Ok(link.header.index)
}

// --- entries ---

async fn fdb_message(linux: &mut Linux, fdb: &Fdb) -> anyhow::Result<NeighbourMessage> {
    match fdb.via {
        Via::Bridge => {
            let mut message = entry(linux, &fdb.link, fdb.mac).await?;
            message.header.flags = NeighbourFlags::Controller;
            message.header.state = NeighbourState::Noarp;
            Ok(message)
        }
        Via::Remote(node) => {
            let node = NeighbourAttribute::Destination(neighbour_address(node));
            device_entry(linux, &fdb.link, fdb.mac, node).await
        }
    }
}

/// A forwarding entry of a VXLAN device itself.
async fn device_entry(
    linux: &mut Linux,
    link: &Name,
    mac: Mac,
    destination: NeighbourAttribute,
) -> anyhow::Result<NeighbourMessage> {
    let mut message = entry(linux, link, mac).await?;
    message.header.flags = NeighbourFlags::Own;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(destination);
    Ok(message)
}

/// What all forwarding entries have.
async fn entry(linux: &mut Linux, link: &Name, mac: Mac) -> anyhow::Result<NeighbourMessage> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index(linux, link).await?;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    Ok(message)
}

async fn neighbour_message(linux: &mut Linux, neighbour: &Neighbour) -> anyhow::Result<NeighbourMessage> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.ip);
    message.header.ifindex = index(linux, &neighbour.bridge).await?;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(neighbour_address(neighbour.ip)),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
    ];
    Ok(message)
}

fn neighbour_address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

// --- inside pods ---

fn pod_socket<'a>(pods: &'a mut BTreeMap<Netns, Rtnl>, namespace: &Netns) -> anyhow::Result<&'a mut Rtnl> {
    use std::collections::btree_map::Entry;
    match pods.entry(namespace.clone()) {
        Entry::Occupied(open) => Ok(open.into_mut()),
        Entry::Vacant(none) => {
            let rtnl = Rtnl::open(Some(namespace.path()))
                .with_context(|| format!("enter network namespace {}", namespace.path().display()))?;
            Ok(none.insert(rtnl))
        }
    }
}

async fn pod_message(rtnl: &mut Rtnl, end: &PodEnd) -> anyhow::Result<LinkMessage> {
    let link = rtnl.link(&end.interface).await?;
    let link = link.ok_or_else(|| anyhow!("interface {} is gone from {}", end.interface, end.netns))?;
    let mut message = LinkMessage::default();
    message.header.index = link.header.index;
    Ok(message)
}

async fn change_pod(
    pods: &mut BTreeMap<Netns, Rtnl>,
    end: &PodEnd,
    action: &PodAction,
) -> anyhow::Result<()> {
    let rtnl = pod_socket(pods, &end.netns)?;
    let mut link = pod_message(rtnl, end).await?;
    let interface = link.header.index;
    match action {
        PodAction::SetMac(Mac(bytes)) => {
            link.attributes.push(LinkAttribute::Address(bytes.to_vec()));
            rtnl.request(RouteNetlinkMessage::SetLink(link), 0).await?;
        }
        PodAction::SetMtu(mtu) => {
            link.attributes.push(LinkAttribute::Mtu(*mtu));
            rtnl.request(RouteNetlinkMessage::SetLink(link), 0).await?;
        }
        PodAction::Up => {
            rtnl.request(RouteNetlinkMessage::SetLink(raised(link)), 0)
                .await?
        }
        PodAction::AddAddress(address) => {
            let message = RouteNetlinkMessage::NewAddress(address_message(interface, address));
            let settled = [Errno::EEXIST];
            rtnl.ensure(message, NLM_F_CREATE | NLM_F_EXCL, &settled)
                .await
                .map_err(
                    |error| match error.is(Errno::EACCES) && address.addr().is_ipv6() {
                        true => {
                            anyhow!("IPv6 is switched off in the pod (sysctl net.ipv6.conf.*.disable_ipv6)")
                        }
                        false => error.into(),
                    },
                )?;
        }
        PodAction::DelAddress(address) => {
            let message = RouteNetlinkMessage::DelAddress(address_message(interface, address));
            rtnl.ensure(message, 0, &[Errno::EADDRNOTAVAIL]).await?;
        }
        PodAction::AddRoute(subnet) => {
            let message = RouteNetlinkMessage::NewRoute(route_message(interface, subnet));
            rtnl.ensure(message, NLM_F_CREATE | NLM_F_EXCL, &[Errno::EEXIST])
                .await?;
        }
    }
    Ok(())
}

fn address_message(interface: u32, address: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = interface;
    // Nobody else can have it: waiting for duplicates would hold the pod up for two seconds.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    if let IpNet::V4(net) = address {
        message
            .attributes
            .push(AddressAttribute::Broadcast(net.broadcast()));
    }
    message
}

fn route_message(interface: u32, subnet: &IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(subnet.addr());
    message.header.destination_prefix_length = subnet.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Kernel;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match subnet {
        IpNet::V4(_) => RouteScope::Link,
        IpNet::V6(_) => RouteScope::Universe,
    };
    message.attributes = vec![
        RouteAttribute::Destination(subnet.addr().into()),
        RouteAttribute::Oif(interface),
    ];
    if subnet.addr().is_ipv6() {
        // IP6_RT_PRIO_ADDRCONF: the one that the kernel itself gives it.
        message.attributes.push(RouteAttribute::Priority(256));
    }
    message
}
