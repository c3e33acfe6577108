//! Offloads of an interface (linux/ethtool.h).

use std::{net::UdpSocket, os::fd::AsRawFd};

use nix::libc;

const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether an interface of the current namespace sends joined packets, and whether it joins those that it receives. A
/// veth joins only what comes from an end that cannot send joined ones (drivers/net/veth.c:
/// veth_skb_is_eligible_for_gro), and has it off unless somebody asks.
pub(crate) fn offloads(interface: &str, segments: bool, joins: bool) {
    set(interface, ETHTOOL_STSO, segments.into());
    set(interface, ETHTOOL_SGRO, joins.into());
}

fn set(interface: &str, command: u32, data: u32) {
    let mut value = Value { command, data };
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    // SAFETY: the descriptor is open; request and value outlive the call, which reads and writes within them.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(
        result,
        0,
        "change an offload of {interface}: {}",
        std::io::Error::last_os_error()
    );
}
