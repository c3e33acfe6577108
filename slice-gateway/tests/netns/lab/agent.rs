//! The node agent's side of the conversation.

use std::{
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use slice_runtime::{
    handover::{self, FromGateway, ToGateway},
    tap,
};

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
            let _ = handover::send(stream, message, &[]);
        }
    }

    /// One call: hello, TAP, reports.
    fn converse(&self, stream: &UnixStream) {
        let Ok((FromGateway::Hello(hello), sockets)) = handover::receive(stream) else {
            return;
        };
        assert!(!sockets.is_empty(), "a gateway sends its sockets");
        sockets.iter().try_for_each(handover::widen).expect("root may");
        let (has_tap, queues) = (hello.has_tap, hello.queues);
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = stream.try_clone().ok();
        *self.hello.lock().unwrap_or_else(PoisonError::into_inner) = Some(hello);
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = handover::Report::default();
        if !has_tap {
            let opened = eventually("the TAP device is free", || {
                // With several queues the kernel does not mind a second holder.
                let held = queues > 1 && has_carrier(&self.node, &self.tap);
                let open = || within(&self.node, || tap::open(&self.tap, queues)).ok().flatten();
                (!held).then(open).flatten()
            });
            assert!(opened.refused.is_none(), "root may have several queues");
            let fds: Vec<RawFd> = opened.queues.iter().map(AsRawFd::as_raw_fd).collect();
            let tap = ToGateway::Tap(handover::Tap {
                interface: self.tap.clone(),
                offloads: tap::OFFLOADS,
            });
            if handover::send(stream, &tap, &fds).is_err() {
                return;
            }
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        while let Ok((FromGateway::Report(report), _)) = handover::receive(stream) {
            *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
        }
    }
}

/// Whether somebody holds the device.
fn has_carrier(node: &str, tap: &str) -> bool {
    let arguments = ["-n", node, "-o", "link", "show", "dev", tap];
    let output = Command::new("ip").args(arguments).output().expect("run ip(8)");
    String::from_utf8_lossy(&output.stdout).contains("LOWER_UP")
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
