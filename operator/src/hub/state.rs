//! What the hub knows, by what it is about.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use slice_crds::{
    v1alpha1::{Cluster, SliceConfig},
    wire::{
        JoinToken, MemberJoin, MemberReportSpec, MemberSliceReportSpec, Rule, Service, SliceAllocationSpec,
    },
};

use crate::{
    allocation::{Deletion, Holding},
    control::Meta,
    trust::{Facts, Violation},
};

/// A user's object: as it was last read, and why the newest of it cannot be.
#[derive(Clone, Debug)]
pub(super) struct Users<T> {
    pub(super) meta: Meta,
    pub(super) object: Option<Arc<T>>,
    pub(super) unreadable: Option<String>,
    /// The conditions that the object shows.
    pub(super) conditions: Vec<Condition>,
}

/// A slice by its name.
#[derive(Debug, Default)]
pub(super) struct SliceState {
    /// By namespace.
    pub(super) configs: BTreeMap<String, Users<SliceConfig>>,
    /// VNIs of its allocations.
    pub(super) allocations: BTreeSet<u32>,
    /// Clusters that have reported it or that it was served to.
    pub(super) involved: BTreeSet<String>,
    /// Keys that were published to others, and whose they are.
    pub(super) published: BTreeMap<String, String>,
    /// The namespace of what its members share, where it is.
    pub(super) shared: Option<Shared>,
    /// Who has it and so its services, with the ranges that they may come from.
    pub(super) audience: Vec<Listener>,
    pub(super) subnets: Vec<slice_crds::Cidr>,
}

/// A member that has a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) cluster: String,
    pub(super) ranges: Vec<slice_crds::IndexRange>,
    /// It reads no [`slice_crds::wire::SliceShare`], and so has copies of the others' services in its own namespace.
    pub(super) needs_copies: bool,
}

/// The namespace of a slice on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shared {
    /// Why it is not gone yet, where it is going.
    pub(super) going: Option<String>,
}

/// An allocation as it was last seen or written.
#[derive(Clone, Debug)]
pub(super) struct AllocationState {
    pub(super) version: Box<str>,
    pub(super) spec: Arc<SliceAllocationSpec>,
    pub(super) at_once: bool,
    pub(super) gone: Vec<String>,
}

/// A cluster by its name.
#[derive(Debug, Default)]
pub(super) struct ClusterState {
    /// By namespace.
    pub(super) objects: BTreeMap<String, Users<Cluster>>,
    /// How the last of them was deleted.
    pub(super) last_deletion: Deletion,
    pub(super) namespace: Option<NamespaceState>,
    pub(super) account: Option<super::input::Account>,
    pub(super) report: Option<ReportState>,
    pub(super) heartbeat: Option<Heartbeat>,
    /// Its reports by slice.
    pub(super) slices: BTreeMap<String, Arc<MemberSliceReportSpec>>,
    /// Its reports that cannot be read, by slice.
    pub(super) unreadable: BTreeMap<String, String>,
    /// What it exports, by slice and object.
    pub(super) exports: BTreeMap<String, BTreeMap<String, Arc<Service>>>,
    /// What its namespace has, by slice.
    pub(super) served: BTreeMap<String, Served>,
    /// What was refused, by the slice that it was about; of its own facts by the empty name.
    pub(super) violations: BTreeMap<String, Vec<Violation>>,
    pub(super) tokens: BTreeMap<String, Arc<JoinToken>>,
    pub(super) joins: BTreeMap<String, Arc<MemberJoin>>,
}

/// The namespace of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamespaceState {
    pub(super) cluster_uid: Option<String>,
    /// Why it is not gone yet, where it is going.
    pub(super) going: Option<String>,
}

/// What a member reports of itself.
#[derive(Clone, Debug)]
pub(super) struct ReportState {
    pub(super) raw: Option<Arc<MemberReportSpec>>,
    /// What of it is believed; from before where the newest cannot be read or is another cluster's.
    pub(super) facts: Option<Facts>,
    /// When one was first seen.
    pub(super) since: Duration,
}

/// The last sign of life.
#[derive(Clone, Debug)]
pub(super) struct Heartbeat {
    /// Changes with every renewal; only ever compared.
    pub(super) value: String,
    /// When it last changed, by this process's clock.
    pub(super) at: Duration,
    /// The wall clock at that time.
    pub(super) wall: Timestamp,
    pub(super) fresh: bool,
}

/// A MemberSlice as it stands in its member's namespace.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Served {
    pub(super) holding: Holding,
    pub(super) released: bool,
    pub(super) rules: Vec<Rule>,
}

impl ClusterState {
    pub(super) fn facts(&self) -> Option<&Facts> {
        self.report.as_ref()?.facts.as_ref()
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.fresh)
    }

    /// The object that counts: the oldest, where several projects have one of this name.
    pub(super) fn object(&self) -> Option<(&String, &Users<Cluster>)> {
        self.objects
            .iter()
            .min_by_key(|(namespace, users)| (users.meta.created, (*namespace).clone()))
    }

    /// Whether nothing is known of it any more.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty()
            && self.namespace.is_none()
            && self.report.is_none()
            && self.slices.is_empty()
            && self.served.is_empty()
            && self.exports.is_empty()
    }
}
