//! Weft's API: the types users and processes write, and the rules about them.
//!
//! ```text
//!                 hub                                                        member
//!  SliceConfig ─┐  SliceAllocation                               ┌─ Slice ─────── SliceBlock (per node)
//!  QoSProfile ──┼────► MemberSlice, SliceShare ═══ mirrored ═══► ┤               SliceGateway (per replica)
//!  Cluster ─────┘                                                └─ SliceService  SliceNode (per node)
//!        status ◄───── MemberReport, MemberSliceReport ◄═ reported ═ statuses of the above
//!                      MemberService                   ◄═ exported
//! ```
//!
//! Everything here is a value or a pure function over values: the kinds of the API in [`v1alpha1`], what hub and
//! members exchange in [`wire`], names in [`names`], labels in [`labels`], annotations in [`annotations`], the arithmetic that
//! turns an attachment's index into its addresses in [`index`], who belongs to a slice in [`membership`].
//!
//! Deliberately not here: a client, a clock, a socket, a decision about what to write. A type
//! that never leaves one process belongs to that process.
#![forbid(unsafe_code)]
#![allow(clippy::duplicated_attributes, reason = "printer columns repeat `type_`")]

pub mod annotations;
pub mod cidr;
pub mod conditions;
pub mod gateway_address;
pub mod index;
pub mod labels;
#[allow(
    unreachable_pub,
    reason = "KubeSchema copies each struct, with its visibility, into a function"
)]
pub mod mcs;
pub mod membership;
pub mod names;
pub mod pattern;
pub mod rate;
pub mod read;
pub mod schema;
#[allow(
    unreachable_pub,
    reason = "KubeSchema copies each struct, with its visibility, into a function"
)]
pub mod v1alpha1;
#[allow(
    unreachable_pub,
    reason = "KubeSchema copies each struct, with its visibility, into a function"
)]
pub mod wire;

pub use cidr::Cidr;
pub use index::{IndexRange, Subnets};
pub use rate::Rate;
pub use read::read;
pub use slice_frame::Mac;

/// API group of every kind that Weft defines.
pub const GROUP: &str = "weft.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";
