//! What hub and members exchange, and what the hub remembers. Users read these objects, never write them.
//!
//! ```text
//!  namespace weft-member-<cluster> on the hub           one writer each
//!
//!  hub ──► MemberHub          who the hub is, where it is reached
//!  hub ──► MemberSlice        a slice as this member has it: VNI, ranges, rules
//!  hub ◄── MemberReport       the member's own facts: identity, networks, versions
//!  hub ◄── MemberSliceReport  one slice there: gateways, what is needed, what was released
//!  hub ◄── MemberService      what this member exports
//!  hub ◄── Lease              the heartbeat, judged by the reader's clock
//!  hub ◄── MemberJoin         one use of a join token
//!
//!  namespace weft-slice-<slice>, which the slice's members may read
//!
//!  hub ──► SliceShare         up to [`SHARD`] of the slice's clusters: ranges, gateways, keys; or what one exports
//!
//!  namespace weft-hub           SliceAllocation: what was given to whom, written before any member has it
//! ```
//!
//! The rules of these types, which let a hub and members of neighbouring versions work together:
//!
//! - Every field has a default, no field is refused, and an enumeration is a text: a reader takes what it knows.
//! - Values are plain texts and numbers. What a member writes is a claim, and becomes a typed value in the hub's
//!   `trust`, where it is refused one by one; what the hub writes becomes one in [`read`].
//! - One object per thing that changes on its own, and what several read once for all of them: a new key is one small
//!   object, in a slice of two clusters or of 250.
//! - No measurements and no times that only say "still so": heartbeats are Leases.

mod allocation;
mod identity;
pub mod read;
mod report;
mod service;
mod slice;

pub use allocation::{
    AllocationState, ClusterAllocation, HostAllocation, RangeAllocation, SliceAllocation, SliceAllocationSpec,
};
pub use identity::{
    Hub, HubSpec, JoinToken, JoinTokenSpec, JoinTokenStatus, MemberHub, MemberHubSpec, MemberJoin,
    MemberJoinSpec, MemberJoinStatus,
};
pub use report::{
    Gateway, Held, MemberIdentity, MemberReport, MemberReportSpec, MemberSliceReport, MemberSliceReportSpec,
    NamesReport, NarrowPath, ReportWarning, Tunnel,
};
pub use service::{Endpoint, MemberService, MemberServiceSpec, Port, Service};
pub use slice::{
    Frames, GatewaySettings, Grant, KeySettings, MemberSlice, MemberSliceSpec, Peer, PeerGateway, Range,
    Rule, Run, SHARD, Shaping, SliceShare, SliceShareSpec, Toleration,
};

/// Version of the exchange that this build speaks. A member that reports a smaller one is served in its form; see
/// [`MemberSliceSpec::slice`].
pub const WIRE: u32 = 2;
