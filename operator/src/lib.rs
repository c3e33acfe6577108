//! The controllers: one program, one role per process.
//!
//! ```text
//!            hub                                        member cluster
//!  SliceConfig, Cluster ──► plan ──► MemberSlice ──► mirror ──► Slice, SliceBlock, gateway workloads
//!  status ◄── plan ◄── MemberReport ◄── report ◄── statuses of nodes, blocks and gateways
//!             MemberService ◄──────────── exports ── Service + ServiceExport + ready pods
//!             MemberService ────────────► imports ──► SliceService (what DNS answers)
//! ```
//!
//! Both roles are one loop each: wait for a change, look at the whole world in the stores, plan, apply what differs,
//! report. Planning is pure (`plan.rs`, [`hub::allocate`], [`cluster::blocks`], …) and names no client and no clock;
//! a restart is just another turn of the loop.
//!
//! Deliberately not here: packets, pods' interfaces, DNS answers, and any secret but the member's own credential.
#![forbid(unsafe_code)]

pub mod args;
pub mod cluster;
pub mod hub;
mod metrics;
