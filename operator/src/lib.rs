//! The controllers: one program, one role per process.
//!
//! ```text
//!               hub                                             member cluster
//!  SliceConfig, Cluster ──► hub ──► MemberSlice, SliceShare ───► member ──► Slice, SliceBlock, gateway workloads
//!    status ◄──────────────  │ ◄─── MemberReport, ◄─────────────   │   ◄── statuses of nodes, blocks and gateways
//!                            │      MemberSliceReport              │
//!  SliceAllocation ◄── allocation   MemberService ◄───────────► services ◄── ServiceExport, Service, ready pods
//!                          trust
//! ```
//!
//! Both roles are values that events are handed to and writes are taken from ([`control`] says how): what they decide
//! names no client and no clock. [`io`] is the loop around them: watches, writers, the claim to lead, the link of a
//! member to its hub.
//!
//! [`allocation`] gives out VNIs, cluster numbers and index ranges and takes them back; [`trust`] is what a hub believes
//! of what members report.
//!
//! Deliberately not here: packets, pods' interfaces, DNS answers, and any secret but the member's own credential.
#![forbid(unsafe_code)]

pub mod allocation;
pub mod args;
pub mod control;
pub mod hub;
pub mod io;
pub mod member;
mod metrics;
pub mod trust;
