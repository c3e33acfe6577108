//! The hub's memory of what it has given.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::IndexRange;

/// One life of one slice: its VNI, and what each of its clusters and outside hosts was given. It lives in the hub's own
/// namespace under the name [`crate::names::allocation`], so that no two can have one VNI. The hub writes it before it
/// tells anybody, and only against the version that it read.
///
/// Kept with a backup it restores a hub exactly. Without it, the hub takes over what its members report.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "SliceAllocation",
    namespaced,
    shortname = "slalloc",
    category = "weft",
    derive = "PartialEq",
    printcolumn(name = "Slice", json_path = ".spec.slice", type_ = "string"),
    printcolumn(name = "State", json_path = ".spec.state", type_ = "string"),
    printcolumn(name = "Release-After", json_path = ".spec.releaseAfter", type_ = "date"),
    printcolumn(name = "Message", json_path = ".spec.message", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceAllocationSpec {
    /// The slice's name.
    pub slice: String,
    /// Namespace of its SliceConfig.
    pub namespace: String,
    /// UID of the SliceConfig that it was written for.
    pub uid: String,
    /// Identity of the hub that wrote it: only that hub takes an absent SliceConfig for a deleted one.
    pub hub: String,
    pub vni: u32,
    pub subnets: Vec<String>,
    pub block_size: u32,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// What that could be if every path between clusters carried it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_mtu: Option<u16>,
    pub state: AllocationState,
    /// Since when the state holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The SliceConfig was deleted while pods are attached: until then its members keep it, and it can be applied again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_after: Option<Time>,
    /// What it waits for, for a person.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub clusters: Vec<ClusterAllocation>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostAllocation>,
}

/// Where something that was given stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AllocationState {
    /// In use.
    #[default]
    Held,
    /// To be given back; waits for the members' reports.
    Releasing,
    /// Given back, and kept for a while before somebody else gets it.
    Resting,
}

/// What a cluster was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterAllocation {
    pub name: String,
    /// Its number in the slice, 1 to [`crate::index::MAX_CLUSTER`].
    pub number: u32,
    pub state: AllocationState,
    /// Grows with every change here; see [`super::MemberSliceSpec::revision`].
    pub revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// It was taken out of the slice while pods are attached there: until then it keeps what it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_after: Option<Time>,
    pub ranges: Vec<RangeAllocation>,
}

/// A run of indices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RangeAllocation {
    pub start: u32,
    pub size: u32,
    pub state: AllocationState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// What a host outside every cluster was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HostAllocation {
    pub name: String,
    /// Its attachment's index.
    pub index: u32,
    /// Which of the outside hosts it is; see [`crate::index::vtep`].
    pub ordinal: u32,
    pub state: AllocationState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

impl RangeAllocation {
    /// The run itself; `None` where the object holds no power of two at a multiple of it.
    pub fn range(&self) -> Option<IndexRange> {
        IndexRange::checked(self.start, self.size)
    }
}
