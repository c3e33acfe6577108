//! The node agent's side of the conversation.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use nix::libc;
use slice_runtime::handover::{self, FromGateway, ToGateway};

use super::{eventually, within};

/// The node agent's side of one gateway.
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) tap: String,
    /// What the last caller said.
    pub(super) hello: Mutex<Option<handover::Hello>>,
    pub(super) report: Mutex<handover::Report>,
    pub(super) stream: Mutex<Option<UnixStream>>,
    pub(super) calls: AtomicU32,
    pub(super) stop: AtomicBool,
}

impl Agent {
    pub(super) fn hello(&self) -> Option<handover::Hello> {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys that it said last.
    pub(super) fn keys(&self) -> Option<handover::Keys> {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let first = |hello: handover::Hello| handover::Keys {
            public_key: hello.public_key,
            former_key: None,
            revocation: None,
        };
        report.keys.clone().or_else(|| self.hello().map(first))
    }

    pub(super) fn tell(&self, message: &ToGateway) {
        if let Some(stream) = &*self.stream.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = handover::send(stream, message, None);
        }
    }

    /// One call: hello, TAP, reports.
    fn converse(&self, stream: &UnixStream) {
        let Ok((FromGateway::Hello(hello), socket)) = handover::receive(stream) else {
            return;
        };
        handover::widen(&socket.expect("a gateway sends its socket")).expect("root may");
        let has_tap = hello.has_tap;
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = stream.try_clone().ok();
        *self.hello.lock().unwrap_or_else(PoisonError::into_inner) = Some(hello);
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = handover::Report::default();
        if !has_tap {
            let fd = eventually("the TAP device is free", || {
                within(&self.node, || open_tap(&self.tap, false)).ok()
            });
            let tap = ToGateway::Tap(handover::Tap {
                interface: self.tap.clone(),
                offloads: 0,
            });
            if handover::send(stream, &tap, Some(fd.as_raw_fd())).is_err() {
                return;
            }
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        while let Ok((FromGateway::Report(report), _)) = handover::receive(stream) {
            *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
        }
    }
}

pub(super) fn serve(agent: Arc<Agent>, listener: UnixListener) {
    thread::spawn(move || {
        while !agent.stop.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).expect("a blocking stream");
                    agent.converse(&stream);
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    });
}

mod ioctl {
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
}

pub(super) fn open_tap(name: &str, persist: bool) -> io::Result<OwnedFd> {
    // Opening a device that is not there would make one.
    if !persist {
        nix::net::if_::if_nametoindex(name)?;
    }
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the descriptor is open and `request` outlives the call.
    unsafe { ioctl::tunsetiff(file.as_raw_fd(), &raw const request) }?;
    if persist {
        // SAFETY: the descriptor is open and the argument is an integer.
        unsafe { ioctl::tunsetpersist(file.as_raw_fd(), 1) }?;
    }
    Ok(file.into())
}
