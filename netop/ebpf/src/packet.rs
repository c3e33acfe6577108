//! A packet of the kernel's: its bytes, and what came with it.

use core::{
    mem::{MaybeUninit, offset_of},
    net::Ipv6Addr,
};

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_F_DONT_FRAGMENT, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key},
    cty::c_void,
    helpers::generated::{bpf_skb_get_tunnel_key, bpf_skb_load_bytes, bpf_skb_set_tunnel_key},
    programs::TcContext,
};
use slice_datapath::{Ingress, Origin};
use slice_frame::Bytes;

use crate::maps::tunnel;

pub(crate) struct Packet<'a> {
    ctx: &'a TcContext,
    length: usize,
}

/// Aligned so that it is filled with zeroes by words, without a loop.
#[repr(align(8))]
struct Key(bpf_tunnel_key);

impl Key {
    const EMPTY: Self = {
        // SAFETY: zeroes are a key.
        Self(unsafe { MaybeUninit::zeroed().assume_init() })
    };
}

/// An IPv4 address as an IPv6 one: ::ffff:a.b.c.d.
const MAPPED: u128 = 0xffff;

impl<'a> Packet<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext) -> Self {
        Self {
            ctx,
            length: ctx.len() as usize,
        }
    }

    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }

    /// The number of the interface that it came by.
    #[inline(always)]
    pub(crate) fn interface(&self) -> u32 {
        // SAFETY: the context is valid as long as the program runs. Volatile, so that a map is given a copy and not a
        // pointer into the context, which the verifier refuses.
        unsafe { core::ptr::read_volatile(&raw const (*self.raw()).ifindex) }
    }

    /// How many frames it is on a wire: a super-frame is many, a part more than it is cut into at most.
    #[inline(always)]
    pub(crate) fn segments(&self) -> u64 {
        // SAFETY: the context is valid as long as the program runs. Both are read here, so that neither waits on the stack.
        let (size, length) = unsafe {
            let skb = self.raw();
            (
                core::ptr::read_volatile(&raw const (*skb).gso_size),
                core::ptr::read_volatile(&raw const (*skb).len),
            )
        };
        match size {
            0 => 1,
            size => u64::from(length.div_ceil(size)),
        }
    }

    /// What it says of itself to the shaper; see [`slice_datapath::DELIVER`]. Nobody behind it sees that.
    #[inline(always)]
    pub(crate) fn take_mark(&self) -> u32 {
        let skb = self.raw();
        // SAFETY: the context is valid as long as the program runs; volatile, so that each is an access of its own.
        unsafe {
            let mark = core::ptr::read_volatile(&raw const (*skb).mark);
            core::ptr::write_volatile(&raw mut (*skb).mark, 0);
            mark
        }
    }

    /// Says to the shaper what it is and by which class it goes.
    #[inline(always)]
    pub(crate) fn set_mark(&self, mark: u32, priority: u32) {
        let skb = self.raw();
        // SAFETY: as above.
        unsafe {
            core::ptr::write_volatile(&raw mut (*skb).mark, mark);
            core::ptr::write_volatile(&raw mut (*skb).priority, priority);
        }
    }

    /// Where it comes from, of a packet that came by VXLAN.
    #[inline(always)]
    pub(crate) fn origin(&self) -> Option<Origin> {
        let size = size_of::<bpf_tunnel_key>() as u32;
        let mut key = Key::EMPTY;
        // SAFETY: the key has the size that is said.
        let found = unsafe { bpf_skb_get_tunnel_key(self.raw(), &raw mut key.0, size, 0) };
        let mut bits;
        if found == 0 {
            // SAFETY: without the flag for IPv6 the kernel has written the IPv4 address, in the machine's order.
            bits = MAPPED << 32 | u128::from(unsafe { key.0.__bindgen_anon_1.remote_ipv4 });
        } else {
            // SAFETY: as above.
            let found = unsafe {
                bpf_skb_get_tunnel_key(self.raw(), &raw mut key.0, size, BPF_F_TUNINFO_IPV6.into())
            };
            if found != 0 {
                return None;
            }
            // SAFETY: with the flag the kernel has written the IPv6 address, in the network's order.
            let words = unsafe { key.0.__bindgen_anon_1.remote_ipv6 };
            bits = 0;
            for word in words {
                bits = bits << 32 | u128::from(u32::from_be(word));
            }
        }
        let ingress = match self.interface() == tunnel()?.to_gateways {
            true => Ingress::NodeToGateway,
            false => Ingress::Node,
        };
        Some(Origin {
            ingress,
            slice: key.0.tunnel_id,
            index: 0,
            node: Ipv6Addr::from_bits(bits),
        })
    }

    /// Says where a VXLAN device is to send it. Whether the kernel took it.
    #[inline(always)]
    pub(crate) fn set_tunnel(&self, slice: u32, local: Ipv6Addr, node: Ipv6Addr) -> bool {
        self.set_tunnel_with(slice, local, node, 0)
    }

    /// The same for a packet that no router may cut; over IPv6 none does.
    #[inline(always)]
    pub(crate) fn set_tunnel_whole(&self, slice: u32, local: Ipv6Addr, node: Ipv6Addr) -> bool {
        self.set_tunnel_with(slice, local, node, BPF_F_DONT_FRAGMENT.into())
    }

    #[inline(always)]
    fn set_tunnel_with(&self, slice: u32, local: Ipv6Addr, node: Ipv6Addr, more: u64) -> bool {
        let mut key = Key::EMPTY;
        key.0.tunnel_id = slice;
        key.0.tunnel_ttl = 64;
        let (bits, own) = (node.to_bits(), local.to_bits());
        // The checksum of the packet inside is enough (RFC 7348 §5); over IPv6 there has to be one (RFC 8200 §8.1).
        let mut flags = u64::from(BPF_F_ZERO_CSUM_TX) | more;
        if bits >> 32 == MAPPED {
            key.0.__bindgen_anon_1.remote_ipv4 = bits as u32;
            key.0.__bindgen_anon_3.local_ipv4 = own as u32;
        } else {
            key.0.__bindgen_anon_1.remote_ipv6 = words(bits);
            key.0.__bindgen_anon_3.local_ipv6 = words(own);
            flags = BPF_F_TUNINFO_IPV6.into();
        }
        let mut set = |size: usize| {
            // SAFETY: the key has at least the size that is said.
            unsafe { bpf_skb_set_tunnel_key(self.raw(), &raw mut key.0, size as u32, flags) == 0 }
        };
        // Before Linux 5.19 the source address is the routing table's to choose.
        set(size_of::<bpf_tunnel_key>()) || set(offset_of!(bpf_tunnel_key, __bindgen_anon_3))
    }
}

/// An address in the network's order.
#[inline(always)]
const fn words(bits: u128) -> [u32; 4] {
    let (high, low) = ((bits >> 64) as u64, bits as u64);
    [
        ((high >> 32) as u32).to_be(),
        (high as u32).to_be(),
        ((low >> 32) as u32).to_be(),
        (low as u32).to_be(),
    ]
}

impl Bytes for Packet<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the kernel writes all N bytes, or says that it has not.
        unsafe {
            let loaded = bpf_skb_load_bytes(
                self.raw().cast(),
                at as u32,
                bytes.as_mut_ptr().cast::<c_void>(),
                N as u32,
            );
            (loaded == 0).then(|| bytes.assume_init())
        }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn stripped_tag(&self) -> Option<u16> {
        // SAFETY: the context is valid as long as the program runs.
        unsafe {
            let skb = self.raw();
            ((*skb).vlan_present != 0).then_some((*skb).vlan_tci as u16)
        }
    }
}
