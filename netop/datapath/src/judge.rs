use core::net::Ipv6Addr;

use slice_frame::{Addressing, Bytes, Content, Frame, Mac, nd::Solicitation};

use crate::{ALL_CLUSTERS, Direction, Hop, Kind, Port, Reason, Role, Slice, Tables};

/// Who handed a frame to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    Pod,
    /// A pod that may say that it is a router.
    Router,
    Gateway,
    /// Another node, for the pods here.
    Node,
    /// Another node, for a gateway here.
    NodeToGateway,
}

/// Where a frame comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub ingress: Ingress,
    pub slice: u32,
    /// Of the pod.
    pub index: u32,
    pub node: Ipv6Addr,
}

impl Origin {
    #[inline(always)]
    #[must_use]
    pub const fn port(port: Port) -> Self {
        Self {
            ingress: match port.role {
                Role::Pod => Ingress::Pod,
                Role::Router => Ingress::Router,
                Role::Gateway => Ingress::Gateway,
            },
            slice: port.slice,
            index: port.index,
            node: Ipv6Addr::UNSPECIFIED,
        }
    }

    #[inline(always)]
    #[must_use]
    pub const fn direction(&self) -> Direction {
        match self.ingress {
            Ingress::Pod | Ingress::Router => Direction::FromPod,
            Ingress::Gateway => Direction::FromGateway,
            Ingress::Node | Ingress::NodeToGateway => Direction::FromNode,
        }
    }

    #[inline(always)]
    const fn is_pod(&self) -> bool {
        matches!(self.ingress, Ingress::Pod | Ingress::Router)
    }
}

/// What is to be done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Drop,
    /// Into the namespace of the pod behind interface `number`.
    Pod,
    /// To the gateway behind interface `number`.
    Gateway,
    /// To the pods of `node`.
    Node,
    /// To a gateway on `node`.
    NodeGateway,
    /// A copy to each other pod here, to each other node, and to one gateway for all clusters.
    CopyToAll,
    /// A copy to each pod here and each other node.
    CopyToCluster,
    /// A copy to each pod here.
    CopyToPods,
    /// It asks by ARP or a neighbour solicitation for the address of index `number`: an answer goes back in its place.
    Answer,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    /// As the action says; the [`Reason`] of a drop.
    pub number: u32,
    /// As [`Hop::node`].
    pub node: Ipv6Addr,
}

impl Verdict {
    #[inline(always)]
    #[must_use]
    pub const fn new(action: Action, number: u32, node: Ipv6Addr) -> Self {
        Self { action, number, node }
    }

    #[inline(always)]
    #[must_use]
    pub const fn drop(reason: Reason) -> Self {
        Self::at(Action::Drop, reason as u32)
    }

    /// To an interface.
    #[inline(always)]
    #[must_use]
    pub const fn port(action: Action, hop: Hop) -> Self {
        Self::new(action, hop.number, hop.node)
    }

    /// The class of the shaper by which it goes to an interface; zero for none.
    #[inline(always)]
    #[must_use]
    pub const fn class(&self) -> u32 {
        self.node.to_bits() as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn at(action: Action, number: u32) -> Self {
        Self::new(action, number, Ipv6Addr::UNSPECIFIED)
    }
}

/// Judges a frame, of which `frame` was read.
#[inline(always)]
pub fn judge<B: Bytes + ?Sized>(bytes: &B, frame: &Frame, origin: &Origin, tables: &impl Tables) -> Verdict {
    let number = origin.slice;
    let Some(slice) = tables.slice(number) else {
        return Verdict::drop(Reason::NoSegment);
    };
    let Some(source) = frame.source.index() else {
        return Verdict::drop(Reason::Spoofed);
    };
    if !may_speak(source, origin, tables) {
        return Verdict::drop(Reason::Spoofed);
    }
    let own = frame.vlan().is_none();
    let may_route = origin.ingress == Ingress::Router || slice.routers() && !origin.is_pod();
    let routes = may_route && frame.is_from_router();
    if frame.tagged && !slice.tagged() {
        return Verdict::drop(Reason::Tagged);
    }
    if frame.content == Content::Other && !slice.non_ip() {
        return Verdict::drop(Reason::NotIp);
    }
    if frame.destination.is_link_local_group() {
        return Verdict::drop(Reason::LinkLocalGroup);
    }
    if own && frame.is_from_router() && !routes {
        return Verdict::drop(Reason::Router);
    }
    if own && frame.is_neighbour_discovery() && !routes {
        return match origin.is_pod() {
            true => answer(bytes, frame, number, &slice, tables),
            false => Verdict::drop(Reason::Neighbour),
        };
    }
    if !frame.is_from(source, &slice) {
        return Verdict::drop(Reason::Spoofed);
    }
    if frame.destination.is_group() {
        let action = match origin.ingress {
            Ingress::Pod | Ingress::Router => Action::CopyToAll,
            Ingress::Gateway => Action::CopyToCluster,
            Ingress::Node => Action::CopyToPods,
            Ingress::NodeToGateway => return relay(number, ALL_CLUSTERS, tables),
        };
        return Verdict::at(action, 0);
    }
    let Some(index) = frame.destination.index() else {
        return Verdict::drop(Reason::NoRoute);
    };
    forward(tables.route(number, index), origin, tables)
}

#[inline(always)]
fn forward(hop: Hop, origin: &Origin, tables: &impl Tables) -> Verdict {
    match hop.kind {
        Kind::Cluster if origin.ingress == Ingress::NodeToGateway => relay(origin.slice, hop.number, tables),
        _ if origin.ingress == Ingress::NodeToGateway => Verdict::drop(Reason::Loop),
        Kind::Nowhere => Verdict::drop(Reason::NoRoute),
        Kind::Port => Verdict::port(Action::Pod, hop),
        // What came from a node stays here.
        Kind::Node if origin.ingress == Ingress::Node => Verdict::drop(Reason::Loop),
        Kind::Node => Verdict::new(Action::Node, 0, hop.node),
        // What came from a gateway does not go there again.
        Kind::Cluster if !origin.is_pod() => Verdict::drop(Reason::Loop),
        Kind::Cluster => {
            let exit = tables.exit(origin.slice, hop.number);
            match exit.kind {
                Kind::Port => Verdict::port(Action::Gateway, exit),
                Kind::Node => Verdict::new(Action::NodeGateway, 0, exit.node),
                Kind::Nowhere | Kind::Cluster => Verdict::drop(Reason::NoGateway),
            }
        }
    }
}

/// To the node's own gateway that carries what other nodes send for a cluster.
#[inline(always)]
fn relay(slice: u32, cluster: u32, tables: &impl Tables) -> Verdict {
    let relay = tables.relay(slice, cluster);
    match relay.kind {
        Kind::Port => Verdict::port(Action::Gateway, relay),
        Kind::Nowhere | Kind::Node | Kind::Cluster => Verdict::drop(Reason::NoGateway),
    }
}

/// The gateway that a copy for all clusters goes to.
#[inline(always)]
pub fn exit_for_all(slice: u32, tables: &impl Tables) -> Hop {
    tables.exit(slice, ALL_CLUSTERS)
}

/// Whether a frame of the attachment `source` can have come this way.
#[inline(always)]
fn may_speak(source: u32, origin: &Origin, tables: &impl Tables) -> bool {
    if origin.is_pod() {
        return origin.index == source;
    }
    let route = tables.route(origin.slice, source);
    let of_node = route.kind == Kind::Node && route.node == origin.node;
    match origin.ingress {
        Ingress::Gateway => route.kind == Kind::Cluster,
        Ingress::Node if route.kind == Kind::Cluster => tables.has_gateway(origin.slice, origin.node),
        _ => of_node,
    }
}

/// Answers a question for the MAC of an address that somebody has.
#[inline(always)]
fn answer<B: Bytes + ?Sized>(
    bytes: &B,
    frame: &Frame,
    number: u32,
    slice: &Slice<'_>,
    tables: &impl Tables,
) -> Verdict {
    let refused = Verdict::drop(Reason::Neighbour);
    let asked = match frame.arp() {
        Some(arp) => {
            let own = slice.index_of_v4(arp.sender_address) == frame.source.index();
            if !own || frame.tagged || !arp.asks(frame.source) {
                return refused;
            }
            slice.index_of_v4(arp.target)
        }
        None => match Solicitation::read(bytes, frame) {
            Some(solicitation) => {
                let own = slice.index_of_v6(solicitation.target);
                own.or_else(|| Mac::index_of_link_local(solicitation.target))
            }
            None => return refused,
        },
    };
    let Some(index) = asked else {
        return refused;
    };
    // Nobody answers for the asker itself, nor for what nobody has.
    let kind = tables.route(number, index).kind;
    let there = matches!(kind, Kind::Port | Kind::Node | Kind::Cluster);
    match there && frame.source != Mac::of_index(index) {
        true => Verdict::at(Action::Answer, index),
        false => refused,
    }
}
