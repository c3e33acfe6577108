//! The node's data plane: three programs, one decision.
//!
//! ```text
//!  from_port    ingress of every pod's and gateway's interface ──┐
//!  from_node    ingress of the two VXLAN devices ────────────────┼─► judge (slice-datapath) ─► act ─► pod, gateway, node
//!  from_shaper  where shaped frames come back: in by a port ─────┘                              │
//!                                              out by a port ──────────────────────────────────►│
//! ```
//!
//! What a port with a class sends is shaped before it is judged, and what goes to one after it was: by way of the shaper,
//! a pair of interfaces whose first has the queueing discipline and whose second runs `from_shaper`. The mark says what is to be
//! done with it there ([`slice_datapath::DELIVER`]).
//!
//! Everything that is decided is decided by [`slice_datapath::judge`], which tests and the fuzzer run on the host. Here are
//! the maps that it reads, the bytes of a packet, and what the kernel is asked to do. Every helper is documented in
//! bpf-helpers(7).

#![no_std]
#![no_main]

mod act;
mod maps;
mod packet;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_REDIRECT},
    macros::classifier,
    programs::TcContext,
};
use slice_datapath::{DELIVER, Direction, Origin, PROBES, Port, Reason, Role, Verdict, judge};
use slice_frame::Frame;

use crate::{
    maps::{FRAME, Kernel, PORTS},
    packet::Packet,
};

/// What a pod or a gateway sends.
#[classifier]
pub fn from_port(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    let interface = packet.interface();
    // SAFETY: an entry that is replaced meanwhile is read as it was or as it is; its bytes are of one length.
    let Some(port) = (unsafe { PORTS.get(interface) }) else {
        return act::drop(0, Direction::FromPod, Reason::NoSegment as u32);
    };
    let port = Port::of(port);
    if port.class != 0 && act::shape(&packet, interface, port.class) {
        return TC_ACT_REDIRECT;
    }
    let origin = Origin::port(port);
    act::carry_out(&packet, &origin, interface, decide(&packet, &origin))
}

/// What has its turn in the shaper.
#[classifier]
pub fn from_shaper(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    let mark = packet.take_mark();
    let interface = mark & !DELIVER;
    // SAFETY: as above.
    let Some(port) = (unsafe { PORTS.get(interface) }) else {
        return act::drop(0, Direction::FromPod, Reason::NoSegment as u32);
    };
    let port = Port::of(port);
    if mark & DELIVER != 0 {
        return act::deliver(interface, port.role != Role::Gateway);
    }
    let origin = Origin::port(port);
    act::carry_out(&packet, &origin, interface, decide(&packet, &origin))
}

/// What another node sends.
#[classifier]
pub fn from_node(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    let Some(origin) = packet.origin() else {
        return act::drop(0, Direction::FromNode, Reason::NoSegment as u32);
    };
    if origin.slice == PROBES {
        let node = origin.node.to_bits();
        return act::probe(packet.raw(), (node >> 64) as u64, node as u64);
    }
    // No port of the node's own: nobody is left out.
    act::carry_out(&packet, &origin, 0, decide(&packet, &origin))
}

#[inline(always)]
fn decide(packet: &Packet<'_>, origin: &Origin) -> Verdict {
    let unreadable = Verdict::drop(Reason::Unreadable);
    if read(packet.raw()) != 0 {
        return unreadable;
    }
    match FRAME.get(0) {
        Some(frame) => judge(packet, frame, origin, &Kernel),
        None => unreadable,
    }
}

/// Reads the packet into [`FRAME`]; zero when it could be. The kernel verifies a global function once and on its own, and
/// its callers without the many ways through it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(place) = FRAME.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: the place is this processor's own and large enough; nothing else runs here until it is read.
    let frame = unsafe { &mut *place };
    *frame = Frame::NONE;
    frame.read_into(&Packet::new(&ctx)).is_err().into()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier would refuse a program that can come here.
    loop {}
}

// Helpers such as `bpf_skb_load_bytes` want no licence; those that redirect do not either, but tracing ones would.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";
