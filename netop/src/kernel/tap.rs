//! TAP devices (Documentation/networking/tuntap.rst).

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use anyhow::Context;
use nix::{errno::Errno, libc};

use super::netns;
use crate::model::Name;

/// Where TAP devices come from.
const CONTROL: &str = "/dev/net/tun";

/// Ethernet frames, no protocol header before them, a `virtio_net_hdr` of 10 bytes. One queue: a second process
/// that opens the device is refused.
const FLAGS: libc::c_short = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;

/// Packets that wait for the gateway. The default of 500 drops bursts.
pub(super) const QUEUE_LENGTH: u32 = 1000;

/// `TUN_F_*` offloads that a gateway is told of: none, it gets whole frames with their checksums made.
pub const OFFLOADS: u32 = 0;

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

/// Makes a device that outlives the processes that hold it.
pub(super) fn create(namespace: Option<&Path>, name: &Name) -> anyhow::Result<()> {
    let file = attach(namespace, name)
        .with_context(|| format!("make TAP device {name}; {CONTROL} must be in the container and its cgroup must allow character device 10:200"))?;
    // SAFETY: the request takes an integer by value and the descriptor is open.
    unsafe { ioctl::tunsetpersist(file.as_raw_fd(), 1) }
        .with_context(|| format!("keep TAP device {name}"))?;
    Ok(())
}

/// Opens the queue of a device, or `None` where another process holds it.
pub(super) fn open(namespace: Option<&Path>, name: &Name) -> anyhow::Result<Option<OwnedFd>> {
    let file = match attach(namespace, name) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open TAP device {name}")),
    };
    // A device remembers what its last holder asked for.
    // SAFETY: the request takes an integer by value and the descriptor is open.
    unsafe { ioctl::tunsetoffload(file.as_raw_fd(), OFFLOADS as libc::c_int) }
        .with_context(|| format!("set the offloads of TAP device {name}"))?;
    Ok(Some(file.into()))
}

fn attach(namespace: Option<&Path>, name: &Name) -> io::Result<File> {
    // The device belongs to the namespace of the thread that opens the control file.
    netns::maybe_within(namespace, || {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        let mut name_bytes = [0; libc::IFNAMSIZ];
        for (to, from) in name_bytes
            .iter_mut()
            .zip(name.as_str().bytes().take(libc::IFNAMSIZ - 1))
        {
            *to = from as libc::c_char;
        }
        let request = libc::ifreq {
            ifr_name: name_bytes,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: FLAGS },
        };
        // SAFETY: `request` is a whole `ifreq` that outlives the call, and the descriptor is open.
        unsafe { ioctl::tunsetiff(file.as_raw_fd(), &raw const request) }?;
        Ok(file)
    })
}

/// Whether TAP devices can be made here.
pub(super) fn available() -> bool {
    OpenOptions::new().read(true).write(true).open(CONTROL).is_ok()
}
