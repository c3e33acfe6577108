//! Namespaces, clusters of them, and what is sent between them.

mod background;
pub mod bed;
mod cluster;
mod space;
mod wire;

pub use background::{Background, paced};
pub use cluster::{Cluster, Pod, everywhere, move_link, slice};
pub use space::Space;
pub use wire::{
    MARK, Pings, Tap, Wire, arp_request, ethernet, icmp6, marked, ping, tagged, udp4, udp4_between,
};
