//! The maps. Their names, keys and values are what the agent writes; see `slice_datapath::tables`.

use core::net::Ipv6Addr;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, PerCpuHashMap, lpm_trie::Key},
};
use slice_datapath::{
    AnswerKey, CountKey, Hop, HopEntry, NodeKey, PortEntry, Slice, SliceEntry, Tables, Tunnel, node_key,
    prefix,
};
use slice_frame::Frame;

/// Entries are made when they are written; how many there may be is for the agent to say when it loads the programs.
const SOME: u32 = 4096;

#[map]
pub(crate) static PORTS: HashMap<u32, PortEntry> = HashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static SLICES: HashMap<u32, SliceEntry> = HashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// By slice and index, both in the network's order, so that a prefix is a run of indices.
#[map]
pub(crate) static ROUTES: LpmTrie<[u32; 2], HopEntry> = LpmTrie::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// By slice and cluster.
#[map]
pub(crate) static EXITS: HashMap<[u32; 2], HopEntry> = HashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// By slice and the node's address.
#[map]
pub(crate) static NODES: HashMap<NodeKey, u32> = HashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// Ports of the node's own gateways that carry for other nodes, by slice and cluster.
#[map]
pub(crate) static RELAYS: HashMap<[u32; 2], HopEntry> = HashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// Which generation of a slice's members is the one to use.
#[map]
pub(crate) static GENERATIONS: HashMap<u32, u32> = HashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// Who gets copies of what is for all: ports and then nodes, by slice, generation and place from 0 on.
#[map]
pub(crate) static MEMBERS: HashMap<[u32; 3], HopEntry> = HashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// When the next group-addressed frame of a port, or of another node, is due if it keeps to its rate, in nanoseconds.
#[map]
pub(crate) static PACES: HashMap<NodeKey, u64> = HashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// Frames by slice, direction and [`slice_datapath::Reason`].
#[map]
pub(crate) static COUNTS: PerCpuHashMap<CountKey, u64> =
    PerCpuHashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// Answers to probes that are waited for, and how long each was; zero before it came.
#[map]
pub(crate) static ANSWERS: HashMap<AnswerKey, u32> = HashMap::with_max_entries(SOME, BPF_F_NO_PREALLOC);

/// A [`slice_datapath::Tunnel`].
#[map]
pub(crate) static TUNNEL: Array<HopEntry> = Array::with_max_entries(1, 0);

/// The interface by which frames go to the shaper; zero where there is none.
#[map]
pub(crate) static SHAPER: Array<u32> = Array::with_max_entries(1, 0);

/// What was read of the packet at hand.
#[map]
pub(crate) static FRAME: PerCpuArray<Frame> = PerCpuArray::with_max_entries(1, 0);

/// The VXLAN devices.
#[inline(always)]
pub(crate) fn tunnel() -> Option<Tunnel> {
    TUNNEL.get(0).map(Tunnel::of)
}

/// The interface by which frames go to the shaper.
#[inline(always)]
pub(crate) fn shaper() -> Option<u32> {
    SHAPER.get(0).copied().filter(|interface| *interface != 0)
}

/// The tables as the kernel has them.
pub(crate) struct Kernel;

impl Tables for Kernel {
    #[inline(always)]
    fn slice(&self, slice: u32) -> Option<Slice<'_>> {
        // SAFETY: an entry that is replaced meanwhile is read as it was or as it is; its bytes are of one length. The
        // same holds for all below.
        unsafe { SLICES.get(slice) }.map(Slice)
    }

    #[inline(always)]
    fn route(&self, slice: u32, index: u32) -> Hop {
        route(slice, index).map_or(Hop::NOWHERE, Hop::of)
    }

    #[inline(always)]
    fn exit(&self, slice: u32, cluster: u32) -> Hop {
        // SAFETY: see above.
        unsafe { EXITS.get([slice, cluster]) }.map_or(Hop::NOWHERE, Hop::of)
    }

    #[inline(always)]
    fn has_gateway(&self, slice: u32, node: Ipv6Addr) -> bool {
        // SAFETY: see above.
        unsafe { NODES.get(node_key(slice, node)) }.is_some_and(|flags| *flags != 0)
    }

    #[inline(always)]
    fn relay(&self, slice: u32, cluster: u32) -> Hop {
        // SAFETY: see above.
        unsafe { RELAYS.get([slice, cluster]) }.map_or(Hop::NOWHERE, Hop::of)
    }
}

/// A function of its own, so that its key is on the stack once.
#[inline(never)]
fn route(slice: u32, index: u32) -> Option<&'static HopEntry> {
    ROUTES.get(Key::new(64, prefix(slice, index)))
}
