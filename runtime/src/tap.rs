//! TAP devices (Documentation/networking/tuntap.rst), in the network namespace of the thread that calls.
//!
//! A device is made with one queue or for several, and the kernel opens it as what it is only. Each queue is a
//! descriptor that gives and takes Ethernet frames behind a `virtio_net_hdr`, whose length the holder sets. One process should hold a
//! device at a time: with one queue the kernel sees to that, with several whoever opens them does.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{errno::Errno, libc, net::if_::if_nametoindex};

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
/// where its one queue is held already. Queues beside those of another holder would each get a part of the flows, so
/// the caller makes sure that a device with several is free: its carrier is off then (`tun_set_iff` and `__tun_detach`
/// in drivers/net/tun.c).
///
/// All frames of a flow come by one queue, whichever way the other frames go ([`steering`]); where the kernel cannot
/// be told so, one queue is opened.
///
/// # Errors
/// Where there is no such device, or one of the other sort.
pub fn open(name: &str, queues: u8) -> io::Result<Option<Opened>> {
    let multi = queues > 1;
    // Opening a device that is not there would make one.
    if_nametoindex(name)?;
    let first = match attach(name, multi) {
        Ok(queue) => queue,
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => return Ok(None),
        Err(error) => return Err(error),
    };
    // A device remembers what its last holder asked for.
    set_offloads(&first, OFFLOADS)?;
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

/// Sets what a device leaves to the holder of this queue: a union of `TUN_F_*` (linux/if_tun.h).
///
/// # Errors
/// Where the kernel does not know one of them; nothing has changed then.
pub fn set_offloads(queue: impl AsFd, offloads: u32) -> io::Result<()> {
    let offloads = libc::c_int::try_from(offloads).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the request takes an integer by value and the descriptor is open.
    unsafe { ioctl::tunsetoffload(queue.as_fd().as_raw_fd(), offloads) }?;
    Ok(())
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
