//! Which queue a frame takes: the program of [`slice_runtime::steering`] in the kernel that runs these tests.

use std::{io, os::fd::AsRawFd};

use nix::libc;
use slice_crds::Mac;
use slice_runtime::{
    steering::{Error, Program},
    tap,
};

use crate::support::{Space, ethernet};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const MORE_FRAGMENTS: u16 = 0x2000;

/// The part of `union bpf_attr` that a test run needs.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_length: u32,
    output_length: u32,
    data: u64,
    output: u64,
    repeat: u32,
    duration: u32,
}

/// What the program makes of a frame (`BPF_PROG_TEST_RUN`).
fn steer(program: &Program, frame: &[u8]) -> u32 {
    use std::os::fd::AsFd;
    // The kernel takes an Ethernet header off what it gives to a socket filter.
    let data = [&[0; 14][..], frame].concat();
    let mut attributes = TestRun {
        program: program.as_fd().as_raw_fd().cast_unsigned(),
        data_length: data.len() as u32,
        data: data.as_ptr() as u64,
        ..TestRun::default()
    };
    const COMMAND: libc::c_int = 10;
    // SAFETY: the command reads and writes that many bytes of `attributes`, and reads the data that it leads to; both
    // outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, COMMAND, &raw mut attributes, size_of::<TestRun>()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    attributes.result
}

fn load() -> Program {
    Program::load().unwrap_or_else(|error| panic!("these tests need root: {error}"))
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), b"rest"].concat()
}

/// A packet between two fixed hosts; `fragment` are the header's flags and offset.
fn v4(option_words: u8, fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45 + option_words, 0, 0, 0, 0, 0];
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0, 10, 80, 0, 1, 10, 80, 0, 2]);
    header.resize(20 + 4 * usize::from(option_words), 1);
    ethernet(
        Mac::of_index(2),
        Mac::of_index(1),
        0x0800,
        &[&header, payload].concat(),
    )
}

fn v6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, 0, next_header, 64];
    header.extend((1..=32).map(|byte| byte * 5));
    ethernet(
        Mac::of_index(2),
        Mac::of_index(1),
        0x86dd,
        &[&header, payload].concat(),
    )
}

/// The frame with the bits of one byte turned over.
fn changed(frame: &[u8], place: usize) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[place] ^= 0xff;
    frame
}

/// Checks that these bytes of a frame decide, each of them, and no others.
#[track_caller]
fn check(program: &Program, frame: &[u8], decisive: impl IntoIterator<Item = usize>) {
    let before = steer(program, frame);
    let moves: Vec<usize> = (0..frame.len())
        .filter(|place| steer(program, &changed(frame, *place)) != before)
        .collect();
    assert_eq!(moves, decisive.into_iter().collect::<Vec<_>>());
    assert!(before <= u16::MAX.into(), "the kernel looks at 16 bits");
}

#[test]
fn a_flow_is_what_its_addresses_and_ports_say() {
    let program = load();
    // Type, version and length of the header, flags and offset, protocol, addresses; then the ports.
    let header = || [12, 13, 14, 20, 21, 23].into_iter().chain(26..34);
    check(&program, &v4(0, 0, TCP, &ports(1000, 80)), header().chain(34..38));
    // Of a longer header the ports are elsewhere, and the options do not matter.
    check(&program, &v4(3, 0, UDP, &ports(1000, 80)), header().chain(46..50));
    // No ports: neither the length of the header nor whether it is a fragment matters.
    let bare = [12, 13, 23].into_iter().chain(26..34);
    check(&program, &v4(0, 0, ICMP, &ports(1000, 80)), bare);
    // Type, next header, addresses, ports.
    let header = || [12, 13, 20].into_iter().chain(22..54);
    check(&program, &v6(TCP, &ports(1000, 80)), header().chain(54..58));
    check(&program, &v6(UDP, &ports(1000, 80)), header().chain(54..58));
    check(&program, &v6(58, &ports(1000, 80)), header());
    // Anything else: addresses and type.
    let arp = ethernet(Mac::BROADCAST, Mac::of_index(1), 0x0806, &[7; 28]);
    check(&program, &arp, 0..14);
}

#[test]
fn options_and_fragments_do_not_part_what_belongs_together() {
    let program = load();
    let whole = v4(0, 0, UDP, &ports(1000, 80));
    for words in 1..=10 {
        let longer = v4(words, 0, UDP, &ports(1000, 80));
        assert_eq!(steer(&program, &longer), steer(&program, &whole), "{words} words");
    }
    for protocol in [TCP, UDP] {
        let first = steer(&program, &v4(0, MORE_FRAGMENTS, protocol, &ports(1000, 80)));
        let middle = v4(0, MORE_FRAGMENTS | 185, protocol, &ports(3, 4));
        let last = v4(0, 370, protocol, b"end");
        assert_eq!([steer(&program, &middle), steer(&program, &last)], [first; 2]);
    }
    // A fragment header comes between: the ports are in the first one only.
    let fragment = |offset: u16, payload: &[u8]| {
        let [high, low] = offset.to_be_bytes();
        v6(44, &[&[UDP, 0, high, low, 0, 0, 0, 9], payload].concat())
    };
    let first = fragment(1, &ports(1000, 80));
    let last = fragment(1440, b"end");
    assert_eq!(steer(&program, &first), steer(&program, &last));
}

#[test]
fn a_frame_that_ends_too_early_takes_the_first_queue() {
    let program = load();
    for (frame, enough) in [
        (v4(0, 0, TCP, &ports(1000, 80)), 38),
        (v4(5, 0, UDP, &ports(1000, 80)), 58),
        (v4(0, 0, ICMP, b""), 34),
        (v6(UDP, &ports(1000, 80)), 58),
        (ethernet(Mac::BROADCAST, Mac::of_index(1), 0x88b5, b""), 14),
    ] {
        for length in 1..=frame.len() {
            let steered = steer(&program, &frame[..length]);
            assert_eq!(steered != 0, length >= enough, "{length} bytes of {frame:x?}");
        }
    }
}

#[test]
fn flows_spread_evenly_over_any_number_of_queues() {
    let program = load();
    let number = |n: u16| n.to_be_bytes();
    type Flows<'a> = (&'a str, &'a dyn Fn(u16) -> Vec<u8>);
    let kinds: [Flows<'_>; 5] = [
        ("source ports in a row", &|n| {
            v4(0, 0, TCP, &ports(32768 + n, 443))
        }),
        ("every second source port", &|n| {
            v4(0, 0, UDP, &ports(32768 + 2 * n, 443))
        }),
        ("destination ports in a row", &|n| {
            v4(0, 0, TCP, &ports(443, 1024 + n))
        }),
        ("hosts in a row", &|n| {
            let mut frame = v4(0, 0, ICMP, b"ping");
            frame[28..30].copy_from_slice(&number(n));
            frame
        }),
        ("ports in a row, IPv6", &|n| v6(TCP, &ports(32768 + n, 443))),
    ];
    for (kind, flow) in kinds {
        let steered: Vec<u32> = (0..4096).map(|n| steer(&program, &flow(n))).collect();
        for queues in 2..=16 {
            let even = 4096 / queues;
            for queue in 0..queues {
                let flows = steered
                    .iter()
                    .filter(|steered| *steered % queues == queue)
                    .count() as u32;
                assert!(
                    flows.abs_diff(even) < even / 4,
                    "{kind}: {flows} of 4096 on queue {queue} of {queues}"
                );
            }
        }
    }
}

#[test]
fn where_bpf_is_forbidden_one_queue_is_opened() {
    let space = Space::new("node");
    space.run(|| tap::create("wt-test0", true));
    let opened = space.run(|| {
        forbid_bpf()?;
        tap::open("wt-test0", 4)
    });
    let opened = opened.expect("nobody holds it");
    assert_eq!(opened.queues.len(), 1);
    let refused = opened.refused.expect("a reason");
    assert!(matches!(refused, Error::Load(_)));
    assert!(refused.to_string().contains("CAP_SYS_ADMIN"), "{refused}");
    drop(opened.queues);
    let opened = space.run(|| tap::open("wt-test0", 4)).expect("nobody holds it");
    assert_eq!((opened.queues.len(), opened.refused.is_none()), (4, true));
}

#[test]
fn a_device_is_opened_as_what_it_is_and_never_made_by_that() {
    let space = Space::new("node");
    let absent = |queues| space.run(|| Ok(tap::open("wt-test0", queues).unwrap_err().raw_os_error()));
    assert_eq!([absent(1), absent(2)], [Some(libc::ENODEV); 2]);
    for (multi, fits, other) in [(false, 1, 2), (true, 2, 1)] {
        space.run(|| tap::create("wt-test0", multi));
        assert_eq!(absent(other), Some(libc::EINVAL), "made for several: {multi}");
        let held = space
            .run(|| tap::open("wt-test0", fits))
            .expect("nobody holds it");
        // With several the kernel does not mind.
        assert_eq!(space.run(|| tap::open("wt-test0", fits)).is_some(), multi);
        drop(held);
        space.ip("link delete wt-test0");
    }
}

/// Refuses bpf(2) to this thread, as a container's seccomp profile may.
fn forbid_bpf() -> io::Result<()> {
    let step = |code: u32, jf, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut filter = [
        // The number of the system call.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(equal, 1, libc::SYS_bpf as u32),
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the call reads the program and the filter that it leads to; both outlive it.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
