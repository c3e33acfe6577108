//! The kernel's side: the TAP device, the UDP socket and the buffers between them and [`crate::proto`].
//!
//! Whatever is unsafe in this crate is in [`tap`].

pub mod batch;
pub mod exchange;
pub mod inspect;
pub mod merge;
pub mod patience;
pub mod sockets;
pub mod steer;
pub mod tap;
pub mod udp;
pub mod vnet;
