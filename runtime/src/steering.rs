//! Which queue of a TAP device a frame takes: all frames of a flow take the same.
//!
//! By default the kernel sends a flow to the queue by which a frame of it was written last. That moves flows between
//! queues while they run, and so reorders them. A program decides instead; the kernel takes its result modulo the
//! number of queues (`tun_ebpf_select_queue` in drivers/net/tun.c). It is a hash of
//!
//! ```text
//!  IPv4   addresses, protocol; with TCP and UDP the ports, unless the packet is a fragment
//!  IPv6   addresses, next header; with TCP and UDP the ports, where no extension header is in between
//!  other  both Ethernet addresses and the type
//! ```
//!
//! So all fragments of a packet take one queue, though not always that of the flow's whole packets. A frame that ends
//! before what is hashed takes the first queue.
//!
//! The program is an eBPF socket filter (Documentation/bpf/standardization/instruction-set.rst). It reads with the
//! legacy packet access instructions: they turn numbers from network order, and end the program with 0 at the end of
//! the packet.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::libc;

/// Why a device cannot have several queues.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "bpf(2) does not load the program that keeps a flow on one queue: {0}. It takes a kernel with \
         CONFIG_BPF_SYSCALL, CAP_BPF or CAP_SYS_ADMIN in the first user namespace, and a seccomp profile that lets \
         bpf(2) through, as the default ones of containerd and CRI-O do with CAP_SYS_ADMIN"
    )]
    Load(#[source] io::Error),
    #[error(
        "the TAP device does not take the program that keeps a flow on one queue (TUNSETSTEERINGEBPF): {0}. It takes \
         Linux 4.16 or newer"
    )]
    Attach(#[source] io::Error),
}

/// The program, in the kernel.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// # Errors
    /// Where the kernel or the container does not allow it.
    pub fn load() -> Result<Self, Error> {
        let instructions = assemble(&program());
        let attributes = Load {
            program_type: SOCKET_FILTER,
            instruction_count: u32::try_from(instructions.len()).expect("a few dozen"),
            instructions: instructions.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            name: *b"weft_steering\0\0\0",
            ..Load::default()
        };
        // SAFETY: the command reads that many bytes of `attributes`, and what the pointers in it lead to; all of it
        // outlives the call.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<Load>()) };
        if result < 0 {
            return Err(Error::Load(io::Error::last_os_error()));
        }
        let raw = i32::try_from(result).expect("a descriptor");
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// Has the program decide for a device, given one of its queues. The device keeps it until it ends or gets another.
    ///
    /// # Errors
    /// Where the kernel does not know of it.
    pub fn attach(&self, queue: impl AsFd) -> Result<(), Error> {
        let program = self.0.as_raw_fd();
        // SAFETY: the request reads one integer, which outlives the call, and both descriptors are open.
        unsafe { ioctl::tunsetsteeringebpf(queue.as_fd().as_raw_fd(), &raw const program) }
            .map(drop)
            .map_err(|error| Error::Attach(error.into()))
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

mod ioctl {
    #![allow(
        clippy::undocumented_unsafe_blocks,
        reason = "the macro's; each call says why it is sound"
    )]

    use nix::libc::c_int;

    // It writes to the kernel, and is numbered as one that reads.
    nix::ioctl_write_ptr_bad!(
        tunsetsteeringebpf,
        nix::request_code_read!(b'T', 224, size_of::<c_int>()),
        c_int
    );
}

/// `BPF_PROG_LOAD` of linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
/// `BPF_PROG_TYPE_SOCKET_FILTER`.
const SOCKET_FILTER: u32 = 1;

/// The part of `union bpf_attr` that loading needs.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

// --- the program ---

/// What the packet access instructions read from, by their definition; the kernel gives it in [`ARGUMENT`].
const PACKET: Register = Register(6);
/// What the packet access instructions loaded. They lose registers 1 to 5.
const LOADED: Register = Register(0);
const HASH: Register = Register(7);
/// First the protocol, then the length of the IPv4 header.
const HEADER: Register = Register(8);
const FACTOR: Register = Register(9);
/// The program's argument; then free.
const ARGUMENT: Register = Register(1);
const SCRATCH: Register = Register(1);
/// What the program ends with.
const RESULT: Register = Register(0);

/// 2^64 divided by the golden ratio: multiples of it lie far apart (Knuth, The Art of Computer Programming, 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes of an Ethernet header.
const ETHERNET: i32 = 14;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;
/// More fragments, or an offset: the packet is a fragment.
const FRAGMENT: i32 = 0x3fff;

fn program() -> Vec<Line> {
    let go = |instruction, to| vec![Line::Go(instruction, to)];
    let at = |label| vec![Line::At(label)];
    [
        plain([copy(PACKET, ARGUMENT), set(HASH, 0)]),
        plain(set_wide(FACTOR, GOLDEN)),
        plain([load(HALF, 12)]),
        go(jump_if(EQUAL, LOADED, libc::ETH_P_IP), Label::Ipv4),
        go(jump_if(EQUAL, LOADED, libc::ETH_P_IPV6), Label::Ipv6),
        // Another protocol: its type, and both Ethernet addresses.
        mix(LOADED),
        mix_words(0, 3),
        go(jump(), Label::End),
        //
        at(Label::Ipv4),
        mix_words(ETHERNET + 12, 2),
        plain([load(BYTE, ETHERNET + 9), copy(HEADER, LOADED)]),
        mix(HEADER),
        plain([load(HALF, ETHERNET + 6)]),
        go(jump_if(ANY_OF, LOADED, FRAGMENT), Label::End),
        go(jump_if(EQUAL, HEADER, TCP), Label::Ipv4Ports),
        go(jump_if(NOT_EQUAL, HEADER, UDP), Label::End),
        at(Label::Ipv4Ports),
        // The header's length in words of four bytes is the low half of its first byte.
        plain([
            load(BYTE, ETHERNET),
            copy(HEADER, LOADED),
            and(HEADER, 0xf),
            shift_left(HEADER, 2),
            load_behind(WORD, HEADER, ETHERNET),
        ]),
        mix(LOADED),
        go(jump(), Label::End),
        //
        at(Label::Ipv6),
        mix_words(ETHERNET + 8, 8),
        plain([load(BYTE, ETHERNET + 6), copy(HEADER, LOADED)]),
        mix(HEADER),
        go(jump_if(EQUAL, HEADER, TCP), Label::Ipv6Ports),
        go(jump_if(NOT_EQUAL, HEADER, UDP), Label::End),
        at(Label::Ipv6Ports),
        mix_words(ETHERNET + 40, 1),
        // The upper 16 bits depend on all that went in; the kernel looks at no more than 16.
        at(Label::End),
        plain([
            multiply(HASH, FACTOR),
            shift_right(HASH, 48),
            copy(RESULT, HASH),
            exit(),
        ]),
    ]
    .concat()
}

/// Takes in what is in a register: a multiplication carries a difference upwards, the shift brings it back down.
fn mix(from: Register) -> Vec<Line> {
    plain([
        xor(HASH, from),
        multiply(HASH, FACTOR),
        copy(SCRATCH, HASH),
        shift_right(SCRATCH, 32),
        xor(HASH, SCRATCH),
    ])
}

/// Takes in words of four bytes that follow each other in the packet.
fn mix_words(start: i32, count: i32) -> Vec<Line> {
    (0..count)
        .flat_map(|n| [plain([load(WORD, start + 4 * n)]), mix(LOADED)].concat())
        .collect()
}

// --- the assembler ---

/// One instruction as the kernel takes it (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    /// How many instructions a jump leaves out.
    offset: i16,
    immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register(u8);

/// A place in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Ipv4,
    Ipv4Ports,
    Ipv6,
    Ipv6Ports,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Plain(Instruction),
    /// A jump and where to.
    Go(Instruction, Label),
    At(Label),
}

fn plain(instructions: impl IntoIterator<Item = Instruction>) -> Vec<Line> {
    instructions.into_iter().map(Line::Plain).collect()
}

/// Gives the jumps their distances.
fn assemble(lines: &[Line]) -> Vec<Instruction> {
    let emits = |line: &&Line| !matches!(line, Line::At(_));
    let place = |label: Label| {
        let line = lines.iter().position(|line| *line == Line::At(label));
        lines[..line.expect("every label is somewhere")]
            .iter()
            .filter(emits)
            .count()
    };
    let next = 1..;
    (lines.iter().filter(emits).zip(next))
        .map(|(line, next)| match line {
            Line::Plain(instruction) => *instruction,
            Line::Go(instruction, to) => Instruction {
                offset: (place(*to) - next).try_into().expect("a short program"),
                ..*instruction
            },
            Line::At(_) => unreachable!("filtered out"),
        })
        .collect()
}

// Sizes of what is loaded. Numbers come in network order and are turned.
const WORD: u8 = 0x00;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;

// Conditions of jumps.
const EQUAL: u8 = 0x10;
const ANY_OF: u8 = 0x40;
const NOT_EQUAL: u8 = 0x50;

// Classes, and what is added to them.
const LD: u8 = 0x00;
const JMP: u8 = 0x05;
const ALU64: u8 = 0x07;
const FROM_REGISTER: u8 = 0x08;

/// Loads from a fixed place in the packet; beyond its end the program ends with 0.
fn load(size: u8, at: i32) -> Instruction {
    instruction(LD | size | 0x20, Register(0), Register(0), at)
}

/// Loads from as many bytes behind that place as a register says.
fn load_behind(size: u8, register: Register, at: i32) -> Instruction {
    instruction(LD | size | 0x40, Register(0), register, at)
}

fn set(to: Register, value: i32) -> Instruction {
    instruction(ALU64 | 0xb0, to, Register(0), value)
}

/// Two instructions' room for 64 bits.
fn set_wide(to: Register, value: u64) -> [Instruction; 2] {
    let [low, high] = [value as u32, (value >> 32) as u32].map(u32::cast_signed);
    [
        instruction(LD | 0x18, to, Register(0), low),
        instruction(0, Register(0), Register(0), high),
    ]
}

fn copy(to: Register, from: Register) -> Instruction {
    instruction(ALU64 | FROM_REGISTER | 0xb0, to, from, 0)
}

fn xor(to: Register, with: Register) -> Instruction {
    instruction(ALU64 | FROM_REGISTER | 0xa0, to, with, 0)
}

fn multiply(to: Register, by: Register) -> Instruction {
    instruction(ALU64 | FROM_REGISTER | 0x20, to, by, 0)
}

fn and(to: Register, with: i32) -> Instruction {
    instruction(ALU64 | 0x50, to, Register(0), with)
}

fn shift_left(to: Register, by: i32) -> Instruction {
    instruction(ALU64 | 0x60, to, Register(0), by)
}

fn shift_right(to: Register, by: i32) -> Instruction {
    instruction(ALU64 | 0x70, to, Register(0), by)
}

fn jump() -> Instruction {
    instruction(JMP, Register(0), Register(0), 0)
}

fn jump_if(condition: u8, register: Register, value: i32) -> Instruction {
    instruction(JMP | condition, register, Register(0), value)
}

fn exit() -> Instruction {
    instruction(JMP | 0x90, Register(0), Register(0), 0)
}

fn instruction(code: u8, to: Register, from: Register, immediate: i32) -> Instruction {
    // Two bit fields, which lie as the machine's bytes do.
    let registers = if cfg!(target_endian = "little") {
        from.0 << 4 | to.0
    } else {
        to.0 << 4 | from.0
    };
    Instruction {
        code,
        registers,
        offset: 0,
        immediate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_their_labels() {
        let lines = [
            Line::Go(jump(), Label::End),
            Line::At(Label::Ipv4),
            Line::Plain(set(HASH, 1)),
            Line::Go(jump_if(EQUAL, HASH, 1), Label::End),
            Line::Plain(set(HASH, 2)),
            Line::At(Label::End),
            Line::Plain(exit()),
        ];
        let offsets: Vec<i16> = assemble(&lines).iter().map(|line| line.offset).collect();
        assert_eq!(offsets, [3, 0, 1, 0, 0]);
    }

    #[test]
    fn every_path_of_the_program_moves_on_and_ends() {
        let instructions = assemble(&program());
        assert_eq!(instructions.last(), Some(&exit()));
        for (place, line) in instructions.iter().enumerate() {
            let target = place + 1 + usize::try_from(line.offset).expect("no jump back");
            assert!(
                target < instructions.len() || *line == exit(),
                "{place}: {line:?}"
            );
        }
    }
}
