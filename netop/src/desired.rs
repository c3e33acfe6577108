//! From what this node is asked for to what its kernel should hold. Pure, and total: an intent that makes no sense
//! is refused earlier, in [`crate::intent`].
//!
//! ```text
//!  pods ── wp-… ─┐                                   ┌─ wx-… VXLAN ═ other nodes' wx    own cluster
//!  pods ── wp-… ─┼─ wb-… bridge, static entries only ┼─ wu-… VXLAN ═ wu of the node whose gateway this one uses
//!                │                                   └─ wt-… TAP ─ gateway on this node ═ WAN
//! ```
//! An address of another cluster is unknown to the bridge; unknown goes to `wu` or to the one `wt` in use, as the
//! filter's `ways` say. Broadcast goes to all pods, all other nodes and that one gateway. What comes in by `wx` goes
//! to pods only, by `wu` to one gateway only (`ways` again), by `wt` anywhere but back. Where the kernel can, most
//! unicast from pods and gateways takes the same way without the bridge ([`fastpath`](crate::model::fastpath)).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use slice_crds::{IndexRange, Mac, Subnets, names, v1alpha1::Broadcast};

use crate::model::{
    Element, Exit, Fdb, Kind, Link, MESH_PORT, Name, Neighbour, Netns, PodLink, Port, Queues, Rules, Segment,
    State, Table, UPLINK_PORT, Via, Vxlan,
    fastpath::Side,
    filter::{Family, HOST_TABLE, PASSAGE_TABLE},
    table::ANY,
};

/// What this node is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeIntent {
    /// By slice.
    pub segments: BTreeMap<String, SegmentIntent>,
    /// Addresses of this cluster's nodes, this one's included: who may send VXLAN.
    pub nodes: BTreeSet<IpAddr>,
    /// Whether this kernel hands known unicast straight from port to port.
    pub fast_path: bool,
}

/// One slice on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIntent {
    pub vni: u32,
    pub mtu: u32,
    pub subnets: Subnets,
    pub broadcast: Broadcast,
    /// This node's address.
    pub local: IpAddr,
    /// The other nodes' blocks, by the node's address.
    pub remotes: BTreeMap<IpAddr, BTreeSet<IndexRange>>,
    /// TAP devices of gateways on this node, by ordinal.
    pub taps: BTreeMap<u32, Queues>,
    pub uplink: Uplink,
    /// The gateway on this node that carries for nodes that have none, or use this one.
    pub relay: Option<u32>,
    /// By the host end's name.
    pub attachments: BTreeMap<Name, AttachmentIntent>,
}

impl SegmentIntent {
    /// The indices of a block that attachments may have.
    fn usable(&self, block: IndexRange) -> impl DoubleEndedIterator<Item = u32> {
        block.indices().filter(|index| self.subnets.usable(*index))
    }

    /// The port and the exit by which this node's frames go to other clusters.
    fn way_out(&self, segment: &Segment) -> Option<(Name, Exit)> {
        match self.uplink {
            Uplink::None => None,
            Uplink::Local(ordinal) => Some((segment.tap(ordinal), Exit::tap(ordinal))),
            Uplink::Remote(_) => Some((segment.uplink(), Exit::UPLINK)),
        }
    }
}

/// The gateway that this node sends other clusters' frames to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// There is none.
    None,
    /// On this node, with this ordinal.
    Local(u32),
    /// On the node with this address.
    Remote(IpAddr),
}

/// One pod in the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentIntent {
    pub index: u32,
    pub netns: Netns,
}

/// What the kernel should hold.
pub fn desired(intent: &NodeIntent) -> State {
    let mut state = State::default();
    for (slice, segment) in &intent.segments {
        let names = Segment::of_slice(slice);
        segment_state(&mut state, slice, &names, segment);
        if intent.fast_path {
            let table = fast_path(&names, segment);
            state.tables.insert(names.fast_path(), table);
        }
    }
    if !intent.segments.is_empty() {
        let elements = intent.nodes.iter().copied().map(Element::Node).collect();
        state.tables.insert(
            Name::new(HOST_TABLE),
            Table {
                rules: Rules::Host,
                elements,
            },
        );
        state.tables.insert(
            Name::new(PASSAGE_TABLE),
            Table {
                rules: Rules::Passage,
                elements: BTreeSet::new(),
            },
        );
    }
    state
}

fn segment_state(state: &mut State, slice: &str, segment: &Segment, intent: &SegmentIntent) {
    let port = Port {
        bridge: segment.bridge(),
        unknown: false,
        group: true,
        suppress: true,
        isolated: false,
        learning: false,
    };
    let mut link = |name: Name, kind: Kind, port: Option<Port>| {
        let link = Link {
            kind,
            mtu: intent.mtu,
            up: true,
            autoconf: false,
            port,
        };
        state.links.insert(name, link);
    };
    let vxlan = |port, remote| {
        Kind::Vxlan(Vxlan {
            vni: intent.vni,
            port,
            local: intent.local,
            remote,
        })
    };
    let remote = match intent.uplink {
        Uplink::Remote(node) => Some(node),
        Uplink::None | Uplink::Local(_) => None,
    };
    link(segment.bridge(), Kind::Bridge { snooping: false }, None);
    link(
        segment.mesh(),
        vxlan(MESH_PORT, None),
        Some(Port {
            isolated: true,
            ..port.clone()
        }),
    );
    link(
        segment.uplink(),
        vxlan(UPLINK_PORT, remote),
        Some(Port {
            unknown: true,
            isolated: true,
            ..port.clone()
        }),
    );
    for (ordinal, queues) in &intent.taps {
        let port = Port {
            unknown: true,
            ..port.clone()
        };
        link(segment.tap(*ordinal), Kind::Tap(*queues), Some(port));
    }
    for name in intent.attachments.keys() {
        link(
            name.clone(),
            Kind::Veth,
            Some(Port {
                suppress: false,
                ..port.clone()
            }),
        );
    }
    remote_entries(state, segment, intent);
    for (name, attachment) in &intent.attachments {
        attachment_state(state, slice, segment, intent, name, attachment);
    }
    let rules = Rules::Segment {
        frames_per_second: intent.broadcast.frames_per_second,
        non_ip: intent.broadcast.non_ip,
    };
    let pods = intent
        .attachments
        .iter()
        .flat_map(|(name, attachment)| pod_elements(intent, name, attachment.index));
    let taps = intent.taps.keys().flat_map(|ordinal| {
        let name = segment.tap(*ordinal);
        [
            Element::Tap(name.clone()),
            Element::Exit(name, Exit::tap(*ordinal)),
        ]
    });
    let way = intent.way_out(segment).map(|(_, exit)| Element::Way(exit));
    let relay = intent.relay.map(Exit::tap).map(Element::Relay);
    let elements = pods
        .chain(taps)
        .chain([Element::Exit(segment.uplink(), Exit::UPLINK)])
        .chain(way)
        .chain(relay)
        .collect();
    state.tables.insert(segment.table(), Table { rules, elements });
}

/// What goes past the bridge: the same ways that the entries of bridge and filters give it.
fn fast_path(segment: &Segment, intent: &SegmentIntent) -> Table {
    let mut elements = BTreeSet::new();
    for ordinal in intent.taps.keys() {
        elements.insert(Element::Hook(segment.tap(*ordinal), Side::Gateway));
    }
    for (port, attachment) in &intent.attachments {
        let mac = Mac::of_index(attachment.index);
        let addresses = intent.subnets.addresses(attachment.index);
        let own = addresses.map(|address| Element::Sender(port.clone(), mac, address.addr()));
        elements.extend(own);
        elements.insert(Element::Hook(port.clone(), Side::Pod));
        elements.insert(Element::Place(mac, port.clone()));
    }
    for block in intent.remotes.values().flatten() {
        // What cannot be used is at the ends of a subnet, so what can be is in one piece.
        let ends = (intent.usable(*block).next(), intent.usable(*block).next_back());
        if let (Some(first), Some(last)) = ends {
            elements.insert(Element::Block(
                Mac::of_index(first),
                Mac::of_index(last),
                segment.mesh(),
            ));
        }
    }
    if let Some((port, _)) = intent.way_out(segment) {
        elements.extend(Family::ALL.map(|family| Element::Others(family, port.clone())));
    }
    Table {
        rules: Rules::FastPath,
        elements,
    }
}

/// Where the other nodes' blocks are, and what is answered for them.
fn remote_entries(state: &mut State, segment: &Segment, intent: &SegmentIntent) {
    let (bridge, mesh) = (segment.bridge(), segment.mesh());
    for (node, blocks) in &intent.remotes {
        state.fdb.insert(Fdb {
            link: mesh.clone(),
            mac: ANY,
            via: Via::Remote(*node),
        });
        for index in blocks.iter().flat_map(|block| intent.usable(*block)) {
            let mac = Mac::of_index(index);
            state.fdb.insert(Fdb {
                link: mesh.clone(),
                mac,
                via: Via::Remote(*node),
            });
            state.fdb.insert(Fdb {
                link: mesh.clone(),
                mac,
                via: Via::Bridge,
            });
            for address in intent.subnets.addresses(index) {
                state.neighbours.insert(Neighbour {
                    bridge: bridge.clone(),
                    ip: address.addr(),
                    mac,
                });
            }
        }
    }
}

fn attachment_state(
    state: &mut State,
    slice: &str,
    segment: &Segment,
    intent: &SegmentIntent,
    port: &Name,
    attachment: &AttachmentIntent,
) {
    let mac = Mac::of_index(attachment.index);
    let addresses: BTreeSet<_> = intent.subnets.addresses(attachment.index).collect();
    for address in &addresses {
        // The pod answers for itself; that the bridge knows the answer keeps the question off the other ports.
        state.neighbours.insert(Neighbour {
            bridge: segment.bridge(),
            ip: address.addr(),
            mac,
        });
    }
    state.fdb.insert(Fdb {
        link: port.clone(),
        mac,
        via: Via::Bridge,
    });
    let pod = PodLink {
        netns: attachment.netns.clone(),
        name: names::pod_interface(slice),
        mac,
        mtu: intent.mtu,
        up: true,
        routes: addresses.iter().map(ipnet::IpNet::trunc).collect(),
        addresses,
    };
    state.pods.insert(port.clone(), pod);
}

/// What a pod's port may send from.
fn pod_elements(intent: &SegmentIntent, port: &Name, index: u32) -> Vec<Element> {
    let mac = Mac::of_index(index);
    let mut elements = vec![Element::Pod(port.clone()), Element::Mac(port.clone(), mac)];
    let mut v6 = vec![link_local(mac)];
    for address in intent.subnets.addresses(index) {
        match address.addr() {
            IpAddr::V4(ip) => elements.push(Element::Source(port.clone(), ip.into())),
            IpAddr::V6(ip) => v6.push(ip),
        }
    }
    for ip in v6 {
        elements.push(Element::Source(port.clone(), ip.into()));
        elements.push(Element::Target(port.clone(), ip));
    }
    // Multicast listener reports and duplicate address detection come from nowhere (RFC 4291 §2.5.2).
    elements.push(Element::Source(port.clone(), Ipv6Addr::UNSPECIFIED.into()));
    elements
}

/// The link-local address that the kernel makes from an Ethernet address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_is_the_kernels() {
        assert_eq!(link_local(Mac::of_index(0x46)).to_string(), "fe80::5c:ff:fe00:46");
    }
}
