//! Whether what a UDP socket sends may be cut on its way.

use std::{io, os::fd::AsFd};

use nix::{libc, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};

sockopt_impl!(
    /// `IP_PMTUDISC_*` (ip(7)).
    MtuDiscoverV4,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);

sockopt_impl!(
    /// `IPV6_PMTUDISC_*` (ipv6(7)).
    MtuDiscoverV6,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int
);

sockopt_impl!(
    /// No fragments are made here, be the device's MTU what it may (RFC 3542 §11.2).
    DontFragmentV6,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_DONTFRAG,
    libc::c_int
);

/// Where datagrams may not be cut, nothing but the device bounds them: what a path carries is found out by who sends, and
/// not by the kernel from the ICMP that it gets (`IP_PMTUDISC_PROBE`). Where they may, IPv4 is cut by any router, and IPv6
/// here, to what the device and the errors of routers say. `v6` says that the socket is one of IPv6.
///
/// # Errors
/// Where the kernel refuses: before Linux 3.15 for IPv4, 4.2 for IPv6.
pub fn set(socket: &impl AsFd, v6: bool, allowed: bool) -> io::Result<()> {
    let (v4_mode, v6_mode) = match allowed {
        true => (libc::IP_PMTUDISC_DONT, libc::IPV6_PMTUDISC_DONT),
        false => (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE),
    };
    setsockopt(socket, MtuDiscoverV4, &v4_mode)?;
    if v6 {
        setsockopt(socket, MtuDiscoverV6, &v6_mode)?;
        setsockopt(socket, DontFragmentV6, &i32::from(!allowed))?;
    }
    Ok(())
}
