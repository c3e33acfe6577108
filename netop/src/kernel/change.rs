//! [`Action`] → requests to the kernel.

use std::{collections::BTreeMap, net::IpAddr, os::fd::AsRawFd};

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use nix::errno::Errno;
use slice_crds::Mac;

use super::{Linux, Outcome, datapath::Interfaces, ethtool, nft, observe, rtnl::Rtnl, shaper, tap, traffic};
use crate::{
    model::{Kind, Link, Name, Netns, PodLink, guard},
    plan::{Action, Plan, PodAction, PodEnd},
};

/// Makes the changes in order.
pub(super) async fn apply(linux: &mut Linux, plan: &Plan) -> Outcome {
    let mut outcome = Outcome::default();
    let mut pods = BTreeMap::new();
    for step in &plan.0 {
        if outcome.forbids(&step.scope) {
            outcome.skipped.push(step.clone());
            continue;
        }
        let result = change(linux, &mut pods, &step.action).await;
        outcome.record(step, result.with_context(|| step.action.to_string()));
    }
    outcome
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
        Action::SetAlias(name, alias) => {
            set_link(linux, name, vec![LinkAttribute::IfAlias(alias.to_string())]).await
        }
        Action::NoAutoconf(name) => {
            set_link(linux, name, vec![address_generation(In6AddrGenMode::None)]).await
        }
        Action::Attach(name) => attach(linux, name).await,
        Action::Up(name) => {
            if *name == Name::shaper() {
                raise(linux, &Name::shaper_end()).await?;
            }
            raise(linux, name).await
        }
        Action::SetTunnel(tunnel) => {
            let devices = [&tunnel.to_pods, &tunnel.to_gateways];
            let interfaces = interfaces(linux, devices).await?;
            linux.datapath()?.set_tunnel(tunnel, interfaces)
        }
        Action::SetShaper(name) => {
            let interfaces = interfaces(linux, [name]).await?;
            linux.datapath()?.set_shaper(name, &interfaces)
        }
        Action::SetClass(id, class) => {
            let shaper = index(linux, &Name::shaper()).await?;
            let made = shaper::set_class(&mut linux.rtnl, shaper, *id, class).await;
            Ok(made.map_err(|error| match error.is(Errno::ENOENT) {
                true => anyhow!(
                    "the kernel has no HTB, so nothing is guaranteed or limited here: load the module sch_htb \
                     (CONFIG_NET_SCH_HTB), or take spec.qos and weft.dev/bandwidth away"
                ),
                false => error.into(),
            })?)
        }
        Action::DelClass(id) => {
            let shaper = index(linux, &Name::shaper()).await?;
            Ok(shaper::del_class(&mut linux.rtnl, shaper, *id).await?)
        }
        Action::SetEntry(id, entry) => {
            let interfaces = interfaces(linux, entry.links()).await?;
            linux.datapath()?.set(id, entry, interfaces)
        }
        Action::DelEntry(id, key) => linux.datapath()?.remove(id, key),
        Action::SetGuard(guard) => nft::run(linux.namespace.as_deref(), &guard.script()).await,
        Action::DelGuard => nft::delete(linux.namespace.as_deref(), &format!("inet {}", guard::TABLE)).await,
        Action::DelTable(table) => nft::delete(linux.namespace.as_deref(), table).await,
        Action::Pod(_, end, action) => change_pod(pods, end, action).await,
    }
}

async fn raise(linux: &mut Linux, name: &Name) -> anyhow::Result<()> {
    let message = raised(link_message(linux, name, vec![]).await?);
    Ok(linux
        .rtnl
        .request(RouteNetlinkMessage::SetLink(message), 0)
        .await?)
}

async fn attach(linux: &mut Linux, name: &Name) -> anyhow::Result<()> {
    let end = Name::shaper_end();
    let (name, shaped) = match *name == Name::shaper() {
        true => (&end, true),
        false => (name, false),
    };
    let link = linux.rtnl.link(name.as_str()).await?;
    let link = link.ok_or_else(|| anyhow!("interface {name} is gone"))?;
    let kind = match shaped {
        true => Kind::Shaper,
        false => observe::link_state(&link).kind,
    };
    let (program, loaded) = linux.datapath()?.program(kind);
    let index = link.header.index;
    if matches!(kind, Kind::Vxlan(_))
        && let Err(error) = ethtool::join_datagrams(linux.namespace.as_deref(), index)
    {
        tracing::info!(%name, %error, "datagrams from other nodes are not joined, which takes more processor time");
    }
    Ok(traffic::attach(&mut linux.rtnl, index, program.name(), loaded).await?)
}

/// The indices of those interfaces that are there.
async fn interfaces(linux: &mut Linux, names: impl IntoIterator<Item = &Name>) -> anyhow::Result<Interfaces> {
    let mut found = Interfaces::new();
    for name in names {
        if let Some(index) = find(linux, name).await? {
            found.insert(name.clone(), index);
        }
    }
    Ok(found)
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
        Kind::Vxlan(port) => {
            let data = InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(true),
                InfoVxlan::Port(*port),
                InfoVxlan::Learning(false),
            ]);
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
        Kind::Shaper => new_shaper(linux, name, link.mtu).await?,
        Kind::Foreign => return Err(anyhow!("not an interface of ours")),
    };
    let finished = finish_link(linux, name, link).await;
    if finished.is_err() && made {
        // Half an interface would be taken for a whole one.
        let _ = del_link(linux, name).await;
    }
    finished
}

/// Makes the two interfaces of the shaper.
async fn new_shaper(linux: &mut Linux, name: &Name, mtu: u32) -> anyhow::Result<bool> {
    let end = Name::shaper_end();
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(end.as_str().to_owned()),
        LinkAttribute::Mtu(mtu),
    ];
    let data = InfoData::Veth(InfoVeth::Peer(peer));
    let made = new_link(linux, name, mtu, InfoKind::Veth, data, vec![]).await?;
    linux.indices.remove(&end);
    set_link(linux, &end, vec![address_generation(In6AddrGenMode::None)]).await?;
    Ok(made)
}

async fn finish_link(linux: &mut Linux, name: &Name, link: &Link) -> anyhow::Result<()> {
    set_link(linux, name, vec![address_generation(In6AddrGenMode::None)]).await?;
    match &link.alias {
        Some(alias) => set_link(linux, name, vec![LinkAttribute::IfAlias(alias.to_string())]).await,
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
    let index = find(linux, name).await?;
    index.ok_or_else(|| anyhow!("interface {name} is gone"))
}

async fn find(linux: &mut Linux, name: &Name) -> anyhow::Result<Option<u32>> {
    if let Some(index) = linux.indices.get(name) {
        return Ok(Some(*index));
    }
    let link = linux.rtnl.link(name.as_str()).await?;
    let index = link.map(|link| link.header.index);
    linux.indices.extend(index.map(|index| (name.clone(), index)));
    Ok(index)
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
