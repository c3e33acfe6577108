//! The TAP device, whose descriptor comes from the node agent (Documentation/networking/tuntap.rst).
//!
//! Every frame has a `virtio_net_hdr` before it (linux/virtio_net.h), of the length that its holder sets ([`vnet`]).

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
};
use slice_runtime::tap::set_offloads;

use super::{inspect::Kinds, vnet};

/// What the device may leave to us (linux/if_tun.h).
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;
const TUN_F_UDP_TUNNEL_GSO: u32 = 0x80;
const TUN_F_UDP_TUNNEL_GSO_CSUM: u32 = 0x100;

/// How much of the sender's work the device hands on undone: the more, the fewer and larger the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whole frames of MTU size, checksums made.
    #[default]
    None,
    /// Checksums not made.
    Checksum,
    /// And TCP in super-frames (TSO).
    Tcp,
    /// And UDP (USO, Linux 6.2).
    Udp,
    /// And both in a UDP tunnel, as a VXLAN that pods make in the slice (Linux 6.17).
    Tunnel,
}

impl Level {
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Checksum => "checksum",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Tunnel => "tunnel",
        }
    }

    const fn flags(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Checksum => TUN_F_CSUM,
            Self::Tcp => Self::Checksum.flags() | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN,
            Self::Udp => Self::Tcp.flags() | TUN_F_USO4 | TUN_F_USO6,
            Self::Tunnel => Self::Udp.flags() | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM,
        }
    }
}

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
    nix::ioctl_write_ptr_bad!(
        tunsetvnethdrsz,
        nix::request_code_write!(b'T', 216, size_of::<c_int>()),
        c_int
    );
}

/// A queue of a TAP device.
#[derive(Debug)]
pub struct Tap {
    file: File,
    level: Level,
    merges: Kinds,
    reads: bool,
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
        let header = vnet::HEADER as libc::c_int;
        // SAFETY: the descriptor is open and the kernel reads one int.
        unsafe { ioctl::tunsetvnethdrsz(fd.as_raw_fd(), &raw const header) }?;
        let old = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(old | OFlag::O_NONBLOCK))?;
        let mut this = Self {
            file: fd.into(),
            level: Level::None,
            merges: Kinds::None,
            reads: true,
        };
        this.level = [Level::Tunnel, Level::Udp, Level::Tcp, Level::Checksum]
            .into_iter()
            .find(|level| set_offloads(&this, level.flags()).is_ok())
            .unwrap_or_default();
        this.merges = match this.level {
            // A kernel that cannot be asked to leave super-frames whole may not know them at all.
            Level::None | Level::Checksum => Kinds::None,
            Level::Tcp => Kinds::Tcp,
            Level::Udp | Level::Tunnel => Kinds::TcpAndUdp,
        };
        Ok(this)
    }

    /// The same queue for somebody who only writes to it.
    ///
    /// # Errors
    /// Where the kernel has no descriptors left.
    pub fn writer(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            reads: false,
            ..*self
        })
    }

    /// Whether frames are to be read from it.
    pub fn reads(&self) -> bool {
        self.reads
    }

    /// What the kernel agreed to.
    pub fn level(&self) -> Level {
        self.level
    }

    /// What may be written in super-frames.
    pub fn merges(&self) -> Kinds {
        self.merges
    }

    /// The kernel refused a super-frame after all.
    pub fn stop_merging(&mut self) {
        tracing::info!("the TAP device does not take super-frames, writing frames one by one");
        self.merges = Kinds::None;
    }

    /// Reads one frame; its header goes to `header`, the rest to `frame`. Returns the frame's length.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where there is none.
    pub fn read(&self, header: &mut [u8; vnet::HEADER], frame: &mut [u8]) -> io::Result<usize> {
        let read = (&self.file).read_vectored(&mut [IoSliceMut::new(header), IoSliceMut::new(frame)])?;
        Ok(read.saturating_sub(vnet::HEADER))
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
