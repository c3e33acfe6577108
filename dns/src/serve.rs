//! Sockets: one server on the pod network, one on each slice's interface as long as it is there.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use hickory_server::Server;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags},
};
use rtnetlink::{Handle, MulticastGroup, sys::SocketAddr as NetlinkAddress};
use slice_crds::names;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use crate::{
    handler::{Handler, Metrics, View},
    zone::Tables,
};

/// A TCP client that says nothing for so long is let go (RFC 7766 §6.2.3).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Answers that wait for a slow TCP client to read; its connection is closed above that.
const TCP_PENDING: usize = 64;
/// Pending TCP connections.
const BACKLOG: i32 = 256;

/// The server of one view.
pub type ViewServer = Server<Handler>;

/// Starts a server.
///
/// `device` binds its sockets to one interface, which needs no privilege for a socket that is not bound yet
/// (Linux 5.7, `SO_BINDTODEVICE` in socket(7)); such sockets are preferred over the one for every interface.
///
/// # Errors
/// Where an address cannot be listened on or the interface is not there.
pub fn start(
    listen: SocketAddr,
    device: Option<&str>,
    view: View,
    tables: &Arc<ArcSwap<Tables>>,
    metrics: &Metrics,
) -> anyhow::Result<ViewServer> {
    let handler = Handler {
        view,
        tables: Arc::clone(tables),
        metrics: metrics.clone(),
    };
    let mut server = Server::new(handler);
    let udp: std::net::UdpSocket = socket(listen, device, Type::DGRAM)?.into();
    server.register_socket(UdpSocket::from_std(udp)?);
    let tcp = socket(listen, device, Type::STREAM)?;
    tcp.listen(BACKLOG)
        .with_context(|| format!("listen on {listen} over TCP"))?;
    server.register_listener(TcpListener::from_std(tcp.into())?, TCP_IDLE, TCP_PENDING);
    Ok(server)
}

fn socket(listen: SocketAddr, device: Option<&str>, kind: Type) -> anyhow::Result<Socket> {
    let what = || match device {
        Some(device) => format!("bind a DNS socket to {listen} on {device}"),
        None => format!("bind a DNS socket to {listen}"),
    };
    let protocol = if kind == Type::DGRAM {
        Protocol::UDP
    } else {
        Protocol::TCP
    };
    let open = || -> std::io::Result<Socket> {
        let (domain, listen) = match Socket::new(Domain::for_address(listen), kind, Some(protocol)) {
            Ok(socket) => {
                drop(socket);
                (Domain::for_address(listen), listen)
            }
            // A node without IPv6: what "every address" means is IPv4 then.
            Err(error) if listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                tracing::info!(error = error.to_string(), "no IPv6 here, listening on IPv4 only");
                (Domain::IPV4, SocketAddr::from(([0, 0, 0, 0], listen.port())))
            }
            Err(error) => return Err(error),
        };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        // The sockets of all views share address and port; the kernel prefers the one bound to the packet's interface.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        socket.bind(&SockAddr::from(listen))?;
        Ok(socket)
    };
    open().with_context(what)
}

/// The interfaces of this network namespace, and word of their coming and going.
pub struct Links {
    handle: Handle,
    events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, NetlinkAddress)>,
}

impl Links {
    /// # Errors
    /// Where a netlink socket cannot be opened.
    pub fn watch() -> anyhow::Result<Self> {
        let (connection, handle, events) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).context("watch the interfaces")?;
        tokio::spawn(connection);
        Ok(Self { handle, events })
    }

    /// Completes when an interface changed.
    pub async fn changed(&mut self) {
        if self.events.next().await.is_none() {
            // The connection ended with the process's runtime.
            std::future::pending::<()>().await;
        }
        // One look serves every event that is waiting.
        while self.events.try_recv().is_ok() {}
    }

    /// Interfaces that are up: name and index.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub async fn up(&self) -> anyhow::Result<BTreeMap<String, u32>> {
        let mut links = BTreeMap::new();
        let mut dump = self.handle.link().get().execute();
        while let Some(link) = dump.try_next().await.context("list the interfaces")? {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            if let Some(name) = name.filter(|_| link.header.flags.contains(LinkFlags::Up)) {
                links.insert(name, link.header.index);
            }
        }
        Ok(links)
    }
}

/// The servers of the slices.
#[derive(Default)]
pub struct Views(BTreeMap<String, (u32, ViewServer)>);

impl Views {
    /// Starts and ends servers so that each slice with an interface has one on it. An interface that was made anew has
    /// another index, and sockets bound to the old one hear nothing: they are opened anew too.
    pub async fn follow<'a>(
        &mut self,
        slices: impl IntoIterator<Item = &'a str>,
        links: &BTreeMap<String, u32>,
        port: u16,
        tables: &Arc<ArcSwap<Tables>>,
        metrics: &Metrics,
    ) {
        let mut wanted = BTreeMap::new();
        for slice in slices {
            let interface = names::pod_interface(slice);
            if let Some(index) = links.get(&interface) {
                wanted.insert(slice.to_owned(), (*index, interface));
            }
        }
        let gone: Vec<String> = self
            .0
            .iter()
            .filter(|(slice, (index, _))| wanted.get(*slice).is_none_or(|(now, _)| now != index))
            .map(|(slice, _)| slice.clone())
            .collect();
        for slice in gone {
            if let Some((_, mut server)) = self.0.remove(&slice) {
                tracing::info!(slice, "slice interface is gone, no longer answering on it");
                if let Err(error) = server.shutdown_gracefully().await {
                    tracing::warn!(slice, error = error.to_string(), "server did not end cleanly");
                }
            }
        }
        for (slice, (index, interface)) in wanted {
            if self.0.contains_key(&slice) {
                continue;
            }
            let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            match start(
                listen,
                Some(&interface),
                View::Slice(slice.clone()),
                tables,
                metrics,
            ) {
                Ok(server) => {
                    tracing::info!(slice, interface, "answering on the slice");
                    self.0.insert(slice, (index, server));
                }
                Err(error) => tracing::warn!(
                    slice,
                    error = format!("{error:#}"),
                    "cannot answer on the slice yet"
                ),
            }
        }
        metrics.views.set(i64::try_from(self.0.len()).unwrap_or(i64::MAX));
    }
}
