//! The TAP device, whose descriptor comes from the node agent (Documentation/networking/tuntap.rst).
//!
//! Every frame has a `virtio_net_hdr` before it (linux/virtio_net.h), of the length that the device says.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
};

/// Longest `virtio_net_hdr` that is understood. The kernel knows 10 and 12 bytes, and more to come.
pub const MAX_HEADER: usize = 32;
/// Shortest.
const MIN_HEADER: usize = 10;

mod ioctl {
    #![allow(
        clippy::undocumented_unsafe_blocks,
        reason = "the macro's; each call says why it is sound"
    )]

    use nix::libc::{c_int, c_uint, ifreq};

    nix::ioctl_read_bad!(
        tungetiff,
        nix::request_code_read!(b'T', 210, size_of::<c_uint>()),
        ifreq
    );
    nix::ioctl_read_bad!(
        tungetvnethdrsz,
        nix::request_code_read!(b'T', 215, size_of::<c_int>()),
        c_int
    );
}

/// A queue of a TAP device.
#[derive(Debug)]
pub struct Tap {
    file: File,
    header: usize,
}

impl Tap {
    /// Takes over a descriptor.
    ///
    /// # Errors
    /// Where it is not a TAP queue with `IFF_VNET_HDR` and `IFF_NO_PI`.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: all bits zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and the kernel writes one `ifreq`.
        unsafe { ioctl::tungetiff(fd.as_raw_fd(), &raw mut request) }?;
        // SAFETY: TUNGETIFF has filled in this member.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            let error = format!("not a TAP queue with IFF_NO_PI and IFF_VNET_HDR: flags {flags:#x}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let mut header: libc::c_int = 0;
        // SAFETY: the descriptor is open and the kernel writes one int.
        unsafe { ioctl::tungetvnethdrsz(fd.as_raw_fd(), &raw mut header) }?;
        let header = usize::try_from(header)
            .ok()
            .filter(|header| (MIN_HEADER..=MAX_HEADER).contains(header))
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("virtio_net_hdr of {header} bytes"),
                )
            })?;
        let old = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(old | OFlag::O_NONBLOCK))?;
        Ok(Self {
            file: fd.into(),
            header,
        })
    }

    /// Bytes of the `virtio_net_hdr`.
    pub fn header(&self) -> usize {
        self.header
    }

    /// Reads one frame; its header goes to `header`, the rest to `frame`. Returns the frame's length.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where there is none.
    pub fn read(&self, header: &mut [u8; MAX_HEADER], frame: &mut [u8]) -> io::Result<usize> {
        let header = &mut header[..self.header];
        let read = (&self.file).read_vectored(&mut [IoSliceMut::new(header), IoSliceMut::new(frame)])?;
        Ok(read.saturating_sub(self.header))
    }

    /// Writes one frame, which begins with a `virtio_net_hdr` and may be in several pieces.
    ///
    /// # Errors
    /// Where the device does not take it: it is down, or its queue is full.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(pieces).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_descriptor_is_refused() {
        let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Tap::new(end.into()).is_err());
    }
}
