//! What the kernel is asked to do.

use core::net::Ipv6Addr;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_REDIRECT, TC_ACT_SHOT},
    cty::c_void,
    helpers::generated::{
        bpf_clone_redirect, bpf_ktime_get_ns, bpf_redirect, bpf_redirect_peer, bpf_skb_change_tail,
        bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use slice_datapath::{
    ANSWER, Action, DELIVER, Direction, Hop, Kind, MAX_MEMBERS, Origin, PASSED, PROBE_KIND, PROBE_READ,
    PROBES, Probe, QUESTION, Reason, Slice, Tunnel, Verdict, answer_key, class_priority, count_key,
    exit_for_all, node_key, port_key,
};
use slice_frame::{
    Bytes, Mac,
    arp::{self, Arp},
    ethernet::{self, Header},
    nd::{self, Solicitation},
};

use crate::{
    maps::{ANSWERS, COUNTS, GENERATIONS, Kernel, MEMBERS, PACES, SLICES, shaper, tunnel},
    packet::Packet,
};

const SECOND: u64 = 1_000_000_000;

/// Drops a frame for a [`Reason`].
#[inline(always)]
pub(crate) fn drop(slice: u32, direction: Direction, reason: u32) -> i32 {
    // A number that nobody has here is the sender's to choose: it gets no count of its own.
    let known = reason != Reason::NoSegment as u32;
    count(if known { slice } else { 0 }, direction, reason);
    TC_ACT_SHOT
}

#[inline(always)]
fn count(slice: u32, direction: Direction, what: u32) {
    let key = count_key(slice, direction, what);
    if let Some(count) = COUNTS.get_ptr_mut(key) {
        // SAFETY: the value is this processor's own.
        unsafe { *count += 1 };
    } else {
        let _ = COUNTS.insert(key, 1, 0);
    }
}

/// Does what was decided about a frame that came by `interface`.
#[inline(always)]
pub(crate) fn carry_out(packet: &Packet<'_>, origin: &Origin, interface: u32, verdict: Verdict) -> i32 {
    let (slice, direction, number) = (origin.slice, origin.direction(), verdict.number);
    let done = match verdict.action {
        Action::Drop => return drop(slice, direction, number),
        Action::Pod | Action::Gateway => {
            let class = verdict.class();
            match class != 0 && shape(packet, number | DELIVER, class) {
                true => return TC_ACT_REDIRECT,
                false => deliver(number, verdict.action == Action::Pod),
            }
        }
        Action::Node => to_tunnel(packet, slice, verdict.node, |tunnel| tunnel.to_pods),
        Action::NodeGateway => to_tunnel(packet, slice, verdict.node, |tunnel| tunnel.to_gateways),
        Action::Answer => answer(packet.raw(), interface, number),
        Action::CopyToAll | Action::CopyToCluster | Action::CopyToPods => {
            if !is_in_pace(packet, origin, interface) {
                return drop(slice, direction, Reason::Budget as u32);
            }
            let nodes = verdict.action != Action::CopyToPods;
            copy(packet.raw(), slice, interface, nodes.into());
            if verdict.action == Action::CopyToAll {
                copy_to_gateway(packet, slice);
            }
            count(slice, direction, PASSED);
            // All have a copy.
            return TC_ACT_SHOT;
        }
    };
    if done == TC_ACT_SHOT {
        return drop(slice, direction, Reason::Refused as u32);
    }
    count(slice, direction, PASSED);
    done
}

/// Hands a frame to an interface: into the namespace of the `pod` behind it, or to what holds it open.
#[inline(always)]
pub(crate) fn deliver(interface: u32, pod: bool) -> i32 {
    // SAFETY: helpers that look at the interface they are given.
    unsafe {
        match pod {
            true => bpf_redirect_peer(interface, 0) as i32,
            false => bpf_redirect(interface, 0) as i32,
        }
    }
}

/// Sends a frame by a class of the shaper; whether there is one. Without, frames pass unshaped: what is there for sharing
/// must not stop them.
#[inline(always)]
pub(crate) fn shape(packet: &Packet<'_>, mark: u32, class: u32) -> bool {
    let Some(shaper) = shaper() else {
        return false;
    };
    packet.set_mark(mark, class_priority(class));
    // SAFETY: a helper that looks at the interface it is given.
    unsafe { bpf_redirect(shaper, 0) as i32 == TC_ACT_REDIRECT }
}

/// Sends a copy to an interface, by its class where it has one.
#[inline(always)]
fn copy_to_port(packet: &Packet<'_>, hop: &Hop) {
    let (class, mut interface) = (hop.class(), hop.number);
    if class != 0
        && let Some(shaper) = shaper()
    {
        packet.set_mark(interface | DELIVER, class_priority(class));
        interface = shaper;
    }
    // SAFETY: a helper that looks at the interface it is given.
    unsafe { bpf_clone_redirect(packet.raw(), interface, 0) };
    if class != 0 {
        packet.set_mark(0, 0);
    }
}

#[inline(always)]
fn to_tunnel(packet: &Packet<'_>, slice: u32, node: Ipv6Addr, device: fn(&Tunnel) -> u32) -> i32 {
    match tunnel() {
        Some(tunnel) if packet.set_tunnel(slice, tunnel.local, node) => {
            // SAFETY: a helper that looks at the interface it is given.
            unsafe { bpf_redirect(device(&tunnel), 0) as i32 }
        }
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

/// Sends a question of another node back as its answer, as what is for pods there, by whichever port it came; notes an answer
/// that is waited for. The node's address is in two words.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe(skb: *mut __sk_buff, high: u64, low: u64) -> i32 {
    let ctx = TcContext::new(skb);
    let packet = Packet::new(&ctx);
    let node = Ipv6Addr::from_bits((high as u128) << 64 | low as u128);
    let Some(probe) = packet.load::<PROBE_READ>(PROBE_KIND).map(Probe::of) else {
        return TC_ACT_SHOT;
    };
    if probe.kind == ANSWER {
        if let Some(length) = ANSWERS.get_ptr_mut(answer_key(probe.nonce, node)) {
            // SAFETY: the value lives as long as the program runs.
            unsafe { *length = ctx.len() };
        }
        return TC_ACT_SHOT;
    }
    let Some(tunnel) = tunnel() else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the kernel reads one octet.
    let marked =
        unsafe { bpf_skb_store_bytes(skb, PROBE_KIND as u32, [ANSWER].as_ptr().cast::<c_void>(), 1, 0) };
    let is_sent = probe.kind == QUESTION
        && marked == 0
        && match probe.whole {
            true => packet.set_tunnel_whole(PROBES, tunnel.local, node),
            false => packet.set_tunnel(PROBES, tunnel.local, node),
        };
    match is_sent {
        // SAFETY: a helper that looks at the interface it is given.
        true => unsafe { bpf_redirect(tunnel.to_pods, 0) as i32 },
        false => TC_ACT_SHOT,
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
                    copy_to_port(&packet, &hop);
                }
            }
            // Ports come first.
            Kind::Node if nodes != 0 => copy_to_tunnel(&packet, slice, hop.node, |tunnel| tunnel.to_pods),
            _ => break,
        }
    }
    0
}

#[inline(always)]
fn copy_to_gateway(packet: &Packet<'_>, slice: u32) {
    let exit = exit_for_all(slice, &Kernel);
    match exit.kind {
        Kind::Port => copy_to_port(packet, &exit),
        Kind::Node => copy_to_tunnel(packet, slice, exit.node, |tunnel| tunnel.to_gateways),
        _ => {}
    }
}

#[inline(always)]
fn copy_to_tunnel(packet: &Packet<'_>, slice: u32, node: Ipv6Addr, device: fn(&Tunnel) -> u32) {
    if let Some(tunnel) = tunnel()
        && packet.set_tunnel(slice, tunnel.local, node)
    {
        // SAFETY: a helper that looks at the interface it is given.
        unsafe { bpf_clone_redirect(packet.raw(), device(&tunnel), 0) };
    }
}

/// Whether a port, or another node, keeps to the slice's rate of group-addressed frames, which is also how many may come at
/// once (the generic cell rate algorithm, ITU-T I.371 annex A). A super-frame is let through whole, and what follows waits the
/// longer. Two processors that count for one at the same time may let a frame more through.
#[inline(always)]
fn is_in_pace(packet: &Packet<'_>, origin: &Origin, interface: u32) -> bool {
    let slice = origin.slice;
    let key = match interface {
        0 => node_key(slice, origin.node),
        port => port_key(port),
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
    let takes = packet.segments() * SECOND / u64::from(rate);
    let Some(due) = PACES.get_ptr_mut(key) else {
        return PACES.insert(key, now + takes, 0).is_ok();
    };
    // SAFETY: the value lives as long as the program runs.
    unsafe {
        let at = if *due > now { *due } else { now };
        if at - now > SECOND {
            return false;
        }
        *due = at + takes;
    }
    true
}
