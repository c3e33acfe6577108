//! The member role, pure: what a member cluster's operator makes of what it sees.
//!
//! ```text
//!  the hub's namespace ──► mirror ──► Slice ──► blocks ────► SliceBlock       what nodes hand out
//!                                         └───► gateways ──► workloads, SliceGateway
//!  Node ──► nodes: who takes part                    ServiceExport ──► services ──► SliceService, MemberService
//!  ConfigMaps of the cluster's DNS ──► cluster_dns ──► the stub that forwards names of slices
//!  probes of the nodes ──► mesh: what they send each other arrives, or not ──► report
//!  what agents ask of the cluster's DNS ──► names: whether names of slices resolve ──► report
//!  statuses of nodes, blocks and gateways ──► report ──► MemberReport, MemberSliceReport; status of the Slice
//! ```
//!
//! [`core`] has the events, the dirty sets and the clock, `observe` the indexes, `plan` what follows from them. The hub may be away, slow or wrong: what follows from the local
//! objects goes on, and only an explicit release by the hub, or a person, takes anything down.

pub mod blocks;
pub mod cluster_dns;
pub mod core;
mod exchange;
pub mod gateways;
pub mod input;
mod mesh;
pub mod mirror;
mod names;
pub mod nodes;
mod observe;
mod plan;
mod report;
pub mod services;
mod state;

pub use self::{
    core::{Event, MANAGER, Member, Settings},
    input::{Input, Side, Source},
    state::{Facts, Link},
};
