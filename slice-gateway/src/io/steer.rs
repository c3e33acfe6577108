//! Which lane a datagram is for: a classic BPF program (Documentation/networking/filter.rst) that the kernel runs for
//! each datagram to a port that several sockets share (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5).
//!
//! All messages but the one that begins a handshake carry a session number of ours, which names the lane
//! ([`crate::proto::lane`]).

use std::{io, os::fd::AsFd};

use nix::{
    libc::{self, sock_filter, sock_fprog},
    sys::socket::{setsockopt, sockopt},
};

/// Offset of the lane in a session number, which is little endian.
const LANE: u32 = 1;
/// Offsets of the session number: in an answer to an initiation, and in cookies and data (WireGuard paper §5.4).
const IN_RESPONSE: u32 = 8;
const IN_OTHERS: u32 = 4;

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const RETURN_RESULT: u32 = libc::BPF_RET | libc::BPF_A;

/// The program for so many lanes. It sees the datagram from its first byte, and ends with 0 where it reads beyond the
/// last.
fn program(lanes: u8) -> [sock_filter; 10] {
    let line = |code: u32, k: u32| jump(code, k, 0, 0);
    [
        line(LOAD_BYTE, 0),
        jump(JUMP_EQUAL, 1, 7, 0), // an initiation: to the last line
        jump(JUMP_EQUAL, 2, 0, 2), // no response: over the next two lines
        line(LOAD_BYTE, IN_RESPONSE + LANE),
        line(JUMP, 1),
        line(LOAD_BYTE, IN_OTHERS + LANE),
        line(AND, 0xf),
        line(MODULO, lanes.into()),
        line(RETURN_RESULT, 0),
        line(RETURN, 0),
    ]
}

/// An instruction that goes on after so many more lines, where its condition holds and where not.
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = u16::try_from(code).expect("a code of 16 bits");
    sock_filter { code, jt, jf, k }
}

/// Gives each datagram to the socket of its lane, in the order in which `lanes` sockets were bound to the port of this
/// one.
///
/// # Errors
/// Where the kernel refuses the program.
pub fn attach(socket: &impl AsFd, lanes: u8) -> io::Result<()> {
    let mut lines = program(lanes);
    let program = sock_fprog {
        len: u16::try_from(lines.len()).expect("a short program"),
        filter: lines.as_mut_ptr(),
    };
    Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
}
