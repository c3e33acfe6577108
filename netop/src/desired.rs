//! From what this node is asked for to what its kernel should hold. Pure, and total: an intent that makes no sense
//! is refused earlier, in [`crate::intent`].
//!
//! ```text
//!  pods ── wp-… ─┐            ┌─ wx-pods ═══════ other nodes' pods, for all slices
//!  pods ── wp-… ─┼─ programs ─┼─ wu-gateways ═══ other nodes' gateways, for all slices
//!                │      ▲     └─ wt-… TAP ─ gateway on this node ═ WAN
//!                │      └─ wq-shaper: what has a class waits there for its turn
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use slice_crds::{
    IndexRange, Mac, Rate, Subnets, names,
    v1alpha1::{Frames, Shaping},
};

use crate::{
    classes::{Numbers, Owner, Wish, classes},
    model::{
        Alias, Clusters, Entry, Flow, Guard, Hop, Kind, Link, Members, Name, Netns, PodLink, Port, Queues,
        Segment, State, TO_GATEWAYS_PORT, TO_PODS_PORT, Tunnel, segment::SliceRules,
    },
    shares::Part,
};

/// Of the VXLAN devices: larger than any slice's, since each frame has its slice's size already.
const TUNNEL_MTU: u32 = 65_000;

/// What this node is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeIntent {
    /// By slice.
    pub segments: BTreeMap<String, Arc<SegmentIntent>>,
    /// This node's address: source of what goes to other nodes. Without one, nothing does.
    pub local: Option<IpAddr>,
    /// Addresses of this cluster's nodes, this one's included: who may send VXLAN.
    pub nodes: BTreeSet<IpAddr>,
    /// What the node has to other clusters; `None` where nobody knows.
    pub uplink: Option<Rate>,
    /// Which part of what a slice is given falls to this node, by slice; all of it where absent.
    pub parts: BTreeMap<String, Part>,
}

/// One slice on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIntent {
    pub vni: u32,
    pub mtu: u32,
    pub subnets: Subnets,
    pub carried: Carried,
    /// What it is given in this cluster.
    pub shaping: Option<Shaping>,
    /// The other nodes of the slice, by address.
    pub remotes: BTreeMap<IpAddr, Remote>,
    /// Ranges of the other clusters, by number.
    pub clusters: BTreeMap<u32, BTreeSet<IndexRange>>,
    /// TAP devices of gateways on this node, by ordinal.
    pub taps: BTreeMap<u32, Queues>,
    /// How pods' frames leave. What is not here goes nowhere.
    pub exits: BTreeMap<Clusters, Exit>,
    /// The gateway here, by ordinal, that carries what other nodes send.
    pub relays: BTreeMap<Clusters, u32>,
    /// By the host end's name.
    pub attachments: BTreeMap<Name, AttachmentIntent>,
}

/// What a slice carries beside unicast IP; see [`slice_crds::v1alpha1::Frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    pub broadcast_per_second: u32,
    pub non_ip: bool,
    pub tagged: bool,
    /// Of some of its pods.
    pub routers: bool,
}

impl From<&Frames> for Carried {
    fn from(frames: &Frames) -> Self {
        Self {
            broadcast_per_second: frames.broadcast_per_second,
            non_ip: frames.non_ip,
            tagged: frames.tagged,
            routers: !frames.routers.is_empty(),
        }
    }
}

/// Another node of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    pub blocks: BTreeSet<IndexRange>,
    /// It may have a gateway of the slice.
    pub has_gateway: bool,
    /// It has, or may have, pods or a gateway: it gets what is for all.
    pub is_member: bool,
}

/// The gateway that this node sends other clusters' frames to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// On this node, with this ordinal.
    Local(u32),
    /// On the node with this address.
    Remote(IpAddr),
}

/// One pod in the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentIntent {
    pub index: u32,
    /// It may say that it is a router.
    pub router: bool,
    /// The most that it sends, and again gets.
    pub limit: Option<Rate>,
    pub netns: Netns,
}

/// What was made before: segments by slice, with what of, and the classes of the shaper.
#[derive(Debug, Default)]
pub struct Made {
    segments: BTreeMap<String, MadeSegment>,
    numbers: Numbers,
}

#[derive(Debug)]
struct MadeSegment {
    from: Arc<SegmentIntent>,
    /// Of the slice and of its attachments.
    numbers: Numbers,
    segment: Arc<Segment>,
}

impl Made {
    /// Who has which class.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    fn segment(&mut self, slice: &str, intent: &Arc<SegmentIntent>) -> Arc<Segment> {
        let numbers = self.numbers.of_slice(slice);
        if let Some(made) = self.segments.get(slice)
            && Arc::ptr_eq(&made.from, intent)
            && made.numbers == numbers
        {
            return Arc::clone(&made.segment);
        }
        let segment = Arc::new(entries(slice, intent, &numbers));
        let made = MadeSegment {
            from: Arc::clone(intent),
            numbers,
            segment: Arc::clone(&segment),
        };
        self.segments.insert(slice.to_owned(), made);
        segment
    }
}

/// What the kernel should hold. Of a slice that has neither a pod nor a gateway here that is nothing.
pub fn desired(intent: &NodeIntent, made: &mut Made) -> State {
    let mut state = State::default();
    if intent.segments.is_empty() {
        return state;
    }
    state.guard = Some(Guard {
        nodes: intent.nodes.clone(),
    });
    if let Some(local) = intent.local {
        let devices = [
            (Name::to_pods(), TO_PODS_PORT),
            (Name::to_gateways(), TO_GATEWAYS_PORT),
        ];
        for (name, port) in devices {
            state
                .links
                .insert(name, link(Kind::Vxlan(port), TUNNEL_MTU, None));
        }
        state.tunnel = Some(Tunnel {
            to_pods: Name::to_pods(),
            to_gateways: Name::to_gateways(),
            local,
        });
    }
    let here = |(_, segment): &(&String, &Arc<SegmentIntent>)| {
        !segment.taps.is_empty() || !segment.attachments.is_empty()
    };
    let here: Vec<_> = intent.segments.iter().filter(here).collect();
    if !here.is_empty() {
        state
            .links
            .insert(Name::shaper(), link(Kind::Shaper, TUNNEL_MTU, None));
        state.shaper = Some(Name::shaper());
        state.classes = classes(&wish(intent), &mut made.numbers);
    }
    for (slice, segment) in here {
        for (ordinal, queues) in &segment.taps {
            let alias = Alias::gateway(slice, *ordinal);
            let tap = link(Kind::Tap(*queues), segment.mtu, Some(alias));
            state.links.insert(Name::tap(slice, *ordinal), tap);
        }
        for (name, attachment) in &segment.attachments {
            let alias = Alias::index(slice, attachment.index);
            let port = link(Kind::Veth, segment.mtu, Some(alias));
            state.links.insert(name.clone(), port);
            state
                .pods
                .insert(name.clone(), pod_link(slice, segment, attachment));
        }
        state.segments.insert(slice.clone(), made.segment(slice, segment));
    }
    made.segments
        .retain(|slice, _| state.segments.contains_key(slice));
    state
}

/// What is asked of the shaper.
pub fn wish(intent: &NodeIntent) -> Wish<'_> {
    let segments = intent.segments.iter();
    let with_gateway = segments.clone().filter(|(_, segment)| !segment.taps.is_empty());
    let slices = with_gateway.map(|(slice, segment)| {
        let part = intent.parts.get(slice).copied().unwrap_or_default();
        (slice.as_str(), (segment.shaping, part))
    });
    let limits = segments.flat_map(|(slice, segment)| {
        let limited = segment.attachments.iter();
        limited.filter_map(|(port, attachment)| Some(((slice.as_str(), port), attachment.limit?)))
    });
    Wish {
        uplink: intent.uplink,
        slices: slices.collect(),
        limits: limits.collect(),
    }
}

fn link(kind: Kind, mtu: u32, alias: Option<Alias>) -> Link {
    Link {
        kind,
        mtu,
        up: true,
        autoconf: false,
        alias,
        attached: true,
    }
}

fn pod_link(slice: &str, intent: &SegmentIntent, attachment: &AttachmentIntent) -> PodLink {
    let addresses: BTreeSet<_> = intent.subnets.addresses(attachment.index).collect();
    PodLink {
        netns: attachment.netns.clone(),
        name: names::pod_interface(slice),
        mac: Mac::of_index(attachment.index),
        mtu: intent.mtu,
        up: true,
        routes: addresses.iter().map(ipnet::IpNet::trunc).collect(),
        addresses,
    }
}

/// The nodes that get what is for all.
fn members(remotes: &BTreeMap<IpAddr, Remote>) -> impl Iterator<Item = IpAddr> {
    let members = remotes.iter().filter(|(_, remote)| remote.is_member);
    members.map(|(node, _)| *node)
}

/// What the programs are to know of a slice.
fn entries(slice: &str, intent: &SegmentIntent, numbers: &Numbers) -> Segment {
    let of_slice = |flow| numbers.get(&Owner::Slice(slice.to_owned()), flow);
    let of_port = |port: &Name, flow| {
        let owner = Owner::Attachment(slice.to_owned(), port.clone());
        numbers.get(&owner, flow)
    };
    let mut segment = Segment::new(intent.vni);
    let v4 = intent.subnets.v4.map(|net| (net.network(), net.prefix_len()));
    let v6 = intent.subnets.v6.map(|net| (net.network(), net.prefix_len()));
    segment.insert(Entry::Rules(SliceRules {
        subnets: slice_frame::Subnets::new(v4, v6),
        non_ip: intent.carried.non_ip,
        tagged: intent.carried.tagged,
        routers: intent.carried.routers,
        group_rate: intent.carried.broadcast_per_second,
    }));
    for (node, remote) in &intent.remotes {
        segment.insert(Entry::Node(*node, remote.has_gateway));
        for block in &remote.blocks {
            segment.insert(Entry::Route(*block, Hop::Node(*node)));
        }
    }
    for (cluster, ranges) in &intent.clusters {
        for range in ranges {
            segment.insert(Entry::Route(*range, Hop::Cluster(*cluster)));
        }
    }
    for ordinal in intent.taps.keys() {
        let class = of_slice(Flow::Ingress);
        segment.insert(Entry::Port(Name::tap(slice, *ordinal), Port::Gateway, class));
    }
    for (name, AttachmentIntent { index, router, .. }) in &intent.attachments {
        let port = match router {
            true => Port::Router(*index),
            false => Port::Pod(*index),
        };
        let class = |flow| of_port(name, flow);
        segment.insert(Entry::Port(name.clone(), port, class(Flow::Egress)));
        let hop = Hop::Port(name.clone(), class(Flow::Ingress));
        segment.insert(Entry::Route(IndexRange::new(*index, 1), hop));
    }
    let egress = of_slice(Flow::Egress);
    for (clusters, exit) in &intent.exits {
        let hop = match exit {
            Exit::Local(ordinal) => Hop::Port(Name::tap(slice, *ordinal), egress),
            Exit::Remote(node) => Hop::Node(*node),
        };
        segment.insert(Entry::Exit(*clusters, hop));
    }
    for (clusters, ordinal) in &intent.relays {
        segment.insert(Entry::Relay(*clusters, Name::tap(slice, *ordinal), egress));
    }
    segment.insert(Entry::Members(Members {
        ports: (intent.attachments.keys())
            .map(|name| (name.clone(), of_port(name, Flow::Ingress)))
            .collect(),
        nodes: members(&intent.remotes).collect(),
    }));
    segment
}
