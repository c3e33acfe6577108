//! A packet of the kernel's: its bytes, and what came with it.

use core::{mem::MaybeUninit, net::Ipv6Addr};

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_F_TUNINFO_IPV6, bpf_tunnel_key},
    cty::c_void,
    helpers::generated::{
        bpf_skb_get_tunnel_key, bpf_skb_get_tunnel_opt, bpf_skb_load_bytes, bpf_skb_set_tunnel_key,
        bpf_skb_set_tunnel_opt,
    },
    programs::TcContext,
};
use slice_datapath::{Origin, Way};
use slice_frame::Bytes;

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
        let mut policy = 0u32;
        // SAFETY: the option of VXLAN is one such number (struct vxlan_metadata).
        let length = unsafe { bpf_skb_get_tunnel_opt(self.raw(), (&raw mut policy).cast::<c_void>(), 4) };
        if length != 4 || policy < FOR_PODS {
            return None;
        }
        let way = match policy {
            FOR_PODS => Way::Node,
            _ => Way::NodeToGateway,
        };
        Some(Origin {
            way,
            slice: key.0.tunnel_id,
            number: policy.wrapping_sub(FOR_PODS + 1),
            node: Ipv6Addr::from_bits(bits),
        })
    }

    /// Says where the VXLAN device is to send it, and by a policy to whom there. Whether the kernel took it.
    #[inline(always)]
    pub(crate) fn set_tunnel(&self, slice: u32, node: Ipv6Addr, mut policy: u32) -> bool {
        let size = size_of::<bpf_tunnel_key>() as u32;
        let mut key = Key::EMPTY;
        key.0.tunnel_id = slice;
        key.0.tunnel_ttl = 64;
        let bits = node.to_bits();
        let mut flags = 0;
        if bits >> 32 == MAPPED {
            key.0.__bindgen_anon_1.remote_ipv4 = bits as u32;
        } else {
            let (high, low) = ((bits >> 64) as u64, bits as u64);
            let word = |word: u64| (word as u32).to_be();
            key.0.__bindgen_anon_1.remote_ipv6 = [word(high >> 32), word(high), word(low >> 32), word(low)];
            flags = BPF_F_TUNINFO_IPV6.into();
        }
        // SAFETY: the key has the size that is said.
        if unsafe { bpf_skb_set_tunnel_key(self.raw(), &raw mut key.0, size, flags) } != 0 {
            return false;
        }
        // Always: where there is no option, the kernel sends whatever was on its stack (seen with 6.18).
        // SAFETY: the option of VXLAN is one such number (struct vxlan_metadata).
        unsafe { bpf_skb_set_tunnel_opt(self.raw(), (&raw mut policy).cast::<c_void>(), 4) == 0 }
    }
}

/// What says to whom on another node a frame goes: a group policy (draft-smith-vxlan-group-policy), which nothing else uses
/// between these nodes.
pub(crate) const FOR_PODS: u32 = 1;

/// To the gateway of this ordinal.
#[inline(always)]
pub(crate) const fn for_gateway(ordinal: u32) -> u32 {
    FOR_PODS + 1 + ordinal
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
