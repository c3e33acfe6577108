//! The hub role, pure: what a hub makes of what it sees.
//!
//! ```text
//!  input ──► state ──► slice ───► allocation::next ──► SliceAllocation      written first
//!                 │       │  └──► render ────────────► MemberSlice, SliceShare
//!                 │       └─────► status ────────────► SliceConfig
//!                 └──► cluster ──► join, status ─────► Namespace, accounts, MemberHub, Cluster
//! ```
//!
//! [`core`] has the events, the dirty sets and the clock, `observe` the indexes; what members report passes [`crate::trust`] before it counts.
//! The watches, the writer and the Lease are [`crate::io`]'s.

mod cluster;
pub mod core;
pub mod input;
mod join;
mod observe;
mod parties;
mod render;
mod serve;
mod share;
mod size;
mod slice;
mod state;
mod status;

pub use self::{
    core::{Event, Hub, MANAGER, Settings},
    input::{Input, Source},
};
