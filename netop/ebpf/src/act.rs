//! What the kernel is asked to do.

use core::net::Ipv6Addr;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    cty::c_void,
    helpers::generated::{
        bpf_clone_redirect, bpf_ktime_get_ns, bpf_redirect, bpf_redirect_peer, bpf_skb_change_tail,
        bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use slice_datapath::{Action, Hop, Kind, Reason, Slice, Verdict, exit_for_all};
use slice_frame::{
    Bytes, Mac,
    arp::{self, Arp},
    ethernet::{self, Header},
    nd::{self, Solicitation},
};

use crate::{
    maps::{COUNTS, GENERATIONS, Kernel, MEMBERS, PACES, SLICES, TUNNEL},
    packet::{FOR_PODS, Packet, for_gateway},
};

/// Copies of one frame at most: pods of the node and other nodes, all together.
const MAX_MEMBERS: u32 = 1024;
const SECOND: u64 = 1_000_000_000;
/// The place of frames that passed in [`COUNTS`].
const PASSED: u32 = Reason::ALL.len() as u32;

/// Drops a frame for a [`Reason`].
#[inline(always)]
pub(crate) fn drop(slice: u32, reason: u32) -> i32 {
    count(slice, reason);
    TC_ACT_SHOT
}

#[inline(always)]
fn count(slice: u32, what: u32) {
    let key = [slice, what];
    if let Some(count) = COUNTS.get_ptr_mut(key) {
        // SAFETY: the value is this processor's own.
        unsafe { *count += 1 };
    } else {
        let _ = COUNTS.insert(key, 1, 0);
    }
}

/// Does what was decided about a frame that came by `interface`.
#[inline(always)]
pub(crate) fn carry_out(packet: &Packet<'_>, slice: u32, interface: u32, verdict: Verdict) -> i32 {
    let number = verdict.number;
    let done = match verdict.action {
        Action::Drop => return drop(slice, number),
        // SAFETY: helpers that look at the interface they are given.
        Action::Pod => unsafe { bpf_redirect_peer(number, 0) as i32 },
        // SAFETY: as above.
        Action::Gateway => unsafe { bpf_redirect(number, 0) as i32 },
        Action::Node => to_tunnel(packet, slice, verdict.node, FOR_PODS),
        Action::NodeGateway => to_tunnel(packet, slice, verdict.node, for_gateway(number)),
        Action::Answer => answer(packet.raw(), interface, number),
        Action::CopyToAll | Action::CopyToCluster | Action::CopyToPods => {
            if !is_in_pace(slice, interface) {
                return drop(slice, Reason::Budget as u32);
            }
            let nodes = verdict.action != Action::CopyToPods;
            copy(packet.raw(), slice, interface, nodes.into());
            if verdict.action == Action::CopyToAll {
                copy_to_gateway(packet, slice);
            }
            count(slice, PASSED);
            // All have a copy.
            return TC_ACT_SHOT;
        }
    };
    if done == TC_ACT_SHOT {
        return drop(slice, Reason::Refused as u32);
    }
    count(slice, PASSED);
    done
}

#[inline(always)]
fn to_tunnel(packet: &Packet<'_>, slice: u32, node: Ipv6Addr, policy: u32) -> i32 {
    match TUNNEL.get(0) {
        // SAFETY: a helper that looks at the interface it is given.
        Some(device) if packet.set_tunnel(slice, node, policy) => unsafe { bpf_redirect(*device, 0) as i32 },
        _ => TC_ACT_SHOT,
    }
}

/// Sends the answer to a question for an index back in its place.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answer(skb: *mut __sk_buff, interface: u32, index: u32) -> i32 {
    let ctx = TcContext::new(skb);
    let packet = Packet::new(&ctx);
    let mac = Mac::of_index(index);
    let Some(header) = packet.load(0).map(Header::of) else {
        return TC_ACT_SHOT;
    };
    if header.ethertype == ethernet::ARP {
        let mut reply = [0; arp::REPLY];
        let Ok(arp) = Arp::read(&packet, ethernet::HEADER) else {
            return TC_ACT_SHOT;
        };
        arp.answer(mac, &mut reply);
        return send_back(skb, interface, &reply);
    }
    let mut reply = [0; nd::REPLY];
    let Some(solicitation) = Solicitation::load(&packet, header.source) else {
        return TC_ACT_SHOT;
    };
    solicitation.answer(mac, &mut reply);
    send_back(skb, interface, &reply)
}

#[inline(always)]
fn send_back<const N: usize>(skb: *mut __sk_buff, interface: u32, frame: &[u8; N]) -> i32 {
    // SAFETY: the kernel reads the frame's bytes and changes its own packet.
    unsafe {
        if bpf_skb_change_tail(skb, N as u32, 0) != 0
            || bpf_skb_store_bytes(skb, 0, frame.as_ptr().cast::<c_void>(), N as u32, 0) != 0
        {
            return TC_ACT_SHOT;
        }
        bpf_redirect(interface, 0) as i32
    }
}

/// Sends a copy to each pod here but the one behind `interface`, and to each other node where `nodes` is not zero.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn copy(skb: *mut __sk_buff, slice: u32, interface: u32, nodes: u32) -> i32 {
    let ctx = TcContext::new(skb);
    let packet = Packet::new(&ctx);
    // SAFETY: an entry that is replaced meanwhile is read as it was or as it is.
    let generation = match unsafe { GENERATIONS.get(slice) } {
        Some(generation) => *generation,
        None => return 0,
    };
    for place in 0..MAX_MEMBERS {
        // SAFETY: as above.
        let Some(member) = (unsafe { MEMBERS.get([slice, generation, place]) }) else {
            break;
        };
        let hop = Hop::of(member);
        match hop.kind {
            Kind::Port => {
                if hop.number != interface {
                    // SAFETY: a helper that looks at the interface it is given.
                    unsafe { bpf_clone_redirect(skb, hop.number, 0) };
                }
            }
            // Ports come first.
            Kind::Node if nodes != 0 => copy_to_tunnel(&packet, slice, hop.node, FOR_PODS),
            _ => break,
        }
    }
    0
}

#[inline(always)]
fn copy_to_gateway(packet: &Packet<'_>, slice: u32) {
    let exit = exit_for_all(slice, &Kernel);
    match exit.kind {
        // SAFETY: a helper that looks at the interface it is given.
        Kind::Port => unsafe {
            bpf_clone_redirect(packet.raw(), exit.number, 0);
        },
        Kind::Node => copy_to_tunnel(packet, slice, exit.node, for_gateway(exit.number)),
        _ => {}
    }
}

#[inline(always)]
fn copy_to_tunnel(packet: &Packet<'_>, slice: u32, node: Ipv6Addr, policy: u32) {
    if let Some(device) = TUNNEL.get(0)
        && packet.set_tunnel(slice, node, policy)
    {
        // SAFETY: a helper that looks at the interface it is given.
        unsafe { bpf_clone_redirect(packet.raw(), *device, 0) };
    }
}

/// Whether a port keeps to the slice's rate of group-addressed frames, which is also how many may come at once (the
/// generic cell rate algorithm, ITU-T I.371 annex A). Two processors that count for one port at the same time may let a
/// frame more through.
#[inline(always)]
fn is_in_pace(slice: u32, interface: u32) -> bool {
    // What comes from other nodes is counted for the slice.
    let key = if interface == 0 {
        slice | 1 << 31
    } else {
        interface
    };
    // SAFETY: an entry that is replaced meanwhile is read as it was or as it is.
    let Some(rate) = (unsafe { SLICES.get(slice) }).map(|slice| Slice(slice).group_rate()) else {
        return false;
    };
    if rate == 0 {
        return false;
    }
    // SAFETY: it has no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(due) = PACES.get_ptr_mut(key) else {
        return PACES.insert(key, now + SECOND / u64::from(rate), 0).is_ok();
    };
    // SAFETY: the value lives as long as the program runs.
    unsafe {
        let at = if *due > now { *due } else { now };
        if at - now > SECOND {
            return false;
        }
        *due = at + SECOND / u64::from(rate);
    }
    true
}
