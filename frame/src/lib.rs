//! What an Ethernet frame says, and whom it speaks for: one reader for everything in Weft that judges frames.
//!
//! ```text
//!  bytes ──► Frame::read ──► Frame { destination, source, vlan, content }
//!              │                └─ content: Arp │ V4 │ V6 (past its extension headers) │ Other
//!              └─ Unreadable: what a receiver might understand and this reader does not
//! ```
//!
//! It fails closed. Whatever Linux would take for ARP, neighbour discovery or an IP packet is either recognised as that,
//! behind tags, options, extension headers and in fragments too, or it is [`Unreadable`], and then nobody forwards it. A
//! packet that lies about its lengths is read as far as a receiver would read it, and no further.
//!
//! The reader asks for a few bytes at a time ([`Bytes`]), so that it runs on a slice in the gateway and, in the kernel, on
//! a packet whose bytes must be fetched. No allocation, no `unsafe`, no `std`.
//!
//! Not here: what may pass and where to. That is for those who know the slice.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod flow;
pub mod ip;
pub mod nd;

mod bytes;
mod mac;
mod read;
mod subnets;

pub use bytes::Bytes;
pub use mac::{Mac, MacError};
pub use read::{Content, Frame, Unreadable};
pub use subnets::{Addressing, Network, Subnets};
