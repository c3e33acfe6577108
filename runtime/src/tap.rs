//! TAP devices (Documentation/networking/tuntap.rst), in the network namespace of the thread that calls.
//!
//! A device is made with one queue or for several, and the kernel opens it as what it is only. Each queue is a
//! descriptor that gives and takes Ethernet frames behind a `virtio_net_hdr` of 10 bytes. One process holds a device
//! at a time: with one queue the kernel sees to that, with several [`open`] does.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use crate::steering::{self, Program};

/// Where TAP devices come from.
pub const CONTROL: &str = "/dev/net/tun";

/// `TUN_F_*` offloads of a device that was opened: none, it gives whole frames with their checksums made.
pub const OFFLOADS: u32 = 0;

/// What became of opening a device.
#[derive(Debug)]
pub struct Opened {
    /// At least one.
    pub queues: Vec<OwnedFd>,
    /// Why it is one only, where several were asked for.
    pub refused: Option<steering::Error>,
}

/// Makes a device, for one queue or `multi`, that outlives the processes that hold it.
///
/// # Errors
/// Also where one of that name is held, or of the other sort.
pub fn create(name: &str, multi: bool) -> io::Result<()> {
    let queue = attach(name, multi)?;
    // SAFETY: the request takes an integer by value and the descriptor is open.
    unsafe { ioctl::tunsetpersist(queue.as_raw_fd(), 1) }?;
    Ok(())
}

/// Opens a device that is there: one with one queue, or, where more than one are asked for, one with several. `None`
/// where it is held already.
///
/// All frames of a flow come by one queue, whichever way the other frames go ([`steering`]); where the kernel cannot
/// be told so, one queue is opened.
///
/// Whether a device with several queues is held is looked up before it is opened, so only one process may open those
/// of a namespace, and not from two threads at once.
///
/// # Errors
/// Where there is no such device, or one of the other sort.
pub fn open(name: &str, queues: u8) -> io::Result<Option<Opened>> {
    let multi = queues > 1;
    // Opening a device that is not there would make one.
    let index = if_nametoindex(name)?;
    if multi && is_held(index)? {
        return Ok(None);
    }
    let first = match attach(name, multi) {
        Ok(queue) => queue,
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => return Ok(None),
        Err(error) => return Err(error),
    };
    // A device remembers what its last holder asked for.
    // SAFETY: the request takes an integer by value and the descriptor is open.
    unsafe { ioctl::tunsetoffload(first.as_raw_fd(), OFFLOADS as libc::c_int) }?;
    let mut opened = Opened {
        queues: vec![first],
        refused: None,
    };
    if multi {
        // Before there is a second queue, so that no flow begins on one and goes on on another.
        match Program::load().and_then(|program| program.attach(&opened.queues[0])) {
            Ok(()) => {
                for _ in 1..queues {
                    opened.queues.push(attach(name, multi)?);
                }
            }
            Err(error) => opened.refused = Some(error),
        }
    }
    Ok(Some(opened))
}

/// Whether TAP devices can be made here.
pub fn available() -> bool {
    OpenOptions::new().read(true).write(true).open(CONTROL).is_ok()
}

fn attach(name: &str, multi: bool) -> io::Result<OwnedFd> {
    // The device belongs to the namespace of the thread that opens the control file.
    let file = OpenOptions::new().read(true).write(true).open(CONTROL)?;
    let several = if multi { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    let request = libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags as libc::c_short,
        },
    };
    // SAFETY: `request` is a whole `ifreq` that outlives the call, and the descriptor is open.
    unsafe { ioctl::tunsetiff(file.as_raw_fd(), &raw const request) }?;
    Ok(file.into())
}

/// Whether a process holds a queue of a device: its carrier is on from the first that is opened until the last that is
/// closed (`tun_set_iff` and `__tun_detach` in drivers/net/tun.c). rtnetlink(7) says so of one that is down, too.
fn is_held(index: u32) -> io::Result<bool> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(socket.as_raw_fd(), &link_request(index), MsgFlags::empty())?;
    let mut answer = vec![0; LINK_ANSWER];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    carrier(&answer[..length])
}

/// Room for what the kernel says of one link, which is a small part of this.
const LINK_ANSWER: usize = 32 << 10;
/// `struct nlmsghdr`, then `struct ifinfomsg`, of 16 bytes each.
const LINK_HEADERS: usize = 32;

fn link_request(index: u32) -> [u8; LINK_HEADERS] {
    let mut request = [0; LINK_HEADERS];
    request[..4].copy_from_slice(&(LINK_HEADERS as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[20..24].copy_from_slice(&index.to_ne_bytes());
    request
}

/// What the answer says of the link's carrier.
fn carrier(answer: &[u8]) -> io::Result<bool> {
    let short = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "rtnetlink's answer about the link is cut off",
        )
    };
    let number = |bytes: &[u8]| bytes.try_into().map(u16::from_ne_bytes).ok();
    let kind = answer.get(4..6).and_then(number).ok_or_else(short)?;
    if kind != libc::RTM_NEWLINK {
        let code = answer
            .get(16..20)
            .and_then(|code| code.try_into().ok())
            .ok_or_else(short)?;
        return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(code)));
    }
    let mut rest = answer.get(LINK_HEADERS..).ok_or_else(short)?;
    // Attributes: length with these four bytes, kind, value, and nothing up to a multiple of four.
    while let (Some(length), Some(kind)) = (
        rest.get(..2).and_then(number).map(usize::from),
        rest.get(2..4).and_then(number),
    ) {
        let value = rest.get(4..length).ok_or_else(short)?;
        if kind == libc::IFLA_CARRIER {
            return Ok(value.iter().any(|byte| *byte != 0));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(short())
}

mod ioctl {
    #![allow(
        clippy::undocumented_unsafe_blocks,
        reason = "the macro's; each call says why it is sound"
    )]

    use nix::libc::{c_int, ifreq};

    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<c_int>()),
        ifreq
    );
    nix::ioctl_write_int_bad!(
        tunsetpersist,
        nix::request_code_write!(b'T', 203, size_of::<c_int>())
    );
    nix::ioctl_write_int_bad!(
        tunsetoffload,
        nix::request_code_write!(b'T', 208, size_of::<c_int>())
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let mut answer = link_request(7).to_vec();
        answer[4..6].copy_from_slice(&kind.to_ne_bytes());
        answer.extend(attributes);
        answer
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut attribute = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        attribute
    }

    #[test]
    fn the_carrier_is_found_among_the_attributes() {
        for on in [false, true] {
            let attributes = [
                attribute(libc::IFLA_IFNAME, b"wt-a0\0"),
                attribute(libc::IFLA_CARRIER, &[u8::from(on)]),
                attribute(libc::IFLA_MTU, &[9; 4]),
            ];
            let answer = answer(libc::RTM_NEWLINK, &attributes.concat());
            assert_eq!(carrier(&answer).unwrap(), on);
            for length in 0..LINK_HEADERS + 16 {
                assert!(carrier(&answer[..length]).is_err(), "{length} bytes");
            }
        }
    }

    #[test]
    fn a_refusal_is_the_error_in_it() {
        let mut answer = answer(libc::NLMSG_ERROR as u16, &[]);
        answer[16..20].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        assert_eq!(carrier(&answer).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
