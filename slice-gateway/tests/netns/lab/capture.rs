//! Recording what is on the wire.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// Everything that crossed the underlay.
pub(crate) struct Capture {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    pub(super) fn start() -> Self {
        // A bridge itself sees nothing of what its ports exchange.
        let socket = packet_socket(None, libc::ETH_P_ALL as u16);
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a timeout");
        socket.set_recv_buffer_size(32 << 20).expect("a buffer");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let (mut frames, mut buffer) = (Vec::new(), vec![0; 70_000]);
            while !stopped.load(Ordering::SeqCst) {
                if let Ok(length) = (&socket).read(&mut buffer) {
                    frames.push(buffer[..length].to_vec());
                }
            }
            // What is there already is of before.
            socket.set_nonblocking(true).expect("a socket that does not wait");
            while let Ok(length) = (&socket).read(&mut buffer) {
                frames.push(buffer[..length].to_vec());
            }
            frames
        });
        Self { stop, thread }
    }

    pub(crate) fn finish(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the capture")
    }
}

/// A socket for whole frames of one EtherType, on one interface or all of the current namespace.
pub(crate) fn packet_socket(interface: Option<&str>, ethertype: u16) -> Socket {
    let protocol = i32::from(ethertype.to_be());
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(protocol))).expect("a packet socket");
    let index = interface.map_or(0, |name| {
        nix::net::if_::if_nametoindex(name).expect("an interface")
    });
    // SAFETY: all bytes zero is a valid `sockaddr_storage`, and the view as `sockaddr_ll` lies within it.
    let address = unsafe {
        socket2::SockAddr::try_init(|storage, length| {
            let address = &mut *storage.cast::<libc::sockaddr_ll>();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = ethertype.to_be();
            address.sll_ifindex = i32::try_from(index).expect("an index");
            *length = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
    };
    socket
        .bind(&address.expect("an address").1)
        .expect("bind to the interface");
    socket
}
