//! What a member knows, by what it is about.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use slice_crds::{
    mcs::ServiceExport,
    membership::Rules,
    v1alpha1::{Slice, SliceBlock, SliceGateway},
    wire::{MemberHubSpec, MemberSliceSpec, Service as WireService, SliceShareSpec},
};

use super::blocks;
use crate::control::Key;

/// A slice by its name, as far as it is here.
#[derive(Debug, Default)]
pub(super) struct SliceState {
    /// The mirror, as it was last read.
    pub(super) object: Option<Arc<Slice>>,
    pub(super) unreadable: Option<String>,
    pub(super) rules: Option<Rules>,
    /// By node.
    pub(super) blocks: BTreeMap<String, Arc<SliceBlock>>,
    /// By number.
    pub(super) gateways: BTreeMap<u32, Arc<SliceGateway>>,
    pub(super) sets: BTreeMap<Key, Arc<StatefulSet>>,
    /// By namespace and name.
    pub(super) pods: BTreeMap<(String, String), Arc<Pod>>,
    pub(super) services: BTreeMap<(String, String), Arc<Service>>,
    /// Addresses that pods have, by namespace and name: as their annotations say.
    pub(super) used: BTreeMap<(String, String), Vec<IpAddr>>,
    /// Gateway objects that were seen: those that are not planned any more go.
    pub(super) workload: BTreeSet<Key>,
    /// Why the hub's desired state was not taken.
    pub(super) refused: Option<String>,
    pub(super) planned: blocks::Plan,
    /// Why other clusters cannot be told where its gateways are reached.
    pub(super) exposure: Vec<String>,
    /// Names of its load balancers.
    pub(super) balancers: BTreeSet<String>,
}

impl SliceState {
    /// Whether nothing of it is left.
    pub(super) fn is_empty(&self) -> bool {
        self.object.is_none()
            && self.blocks.is_empty()
            && self.workload.is_empty()
            && self.gateways.is_empty()
    }
}

/// An exported Service.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    pub(super) service: Option<Arc<Service>>,
    pub(super) export: Option<Arc<ServiceExport>>,
    /// By name.
    pub(super) endpoints: BTreeMap<String, Arc<EndpointSlice>>,
    /// What it was exported as, by slice.
    pub(super) exported: BTreeSet<String>,
}

/// What the hub has for this member, since its credential was taken up.
#[derive(Debug, Default)]
pub(super) struct HubState {
    pub(super) hub: Option<Arc<MemberHubSpec>>,
    pub(super) slices: BTreeMap<String, Arc<MemberSliceSpec>>,
    /// Slices of it that cannot be read.
    pub(super) unreadable: BTreeMap<String, String>,
    /// What the members of its slices share, by namespace.
    pub(super) shared: BTreeMap<String, Shared>,
    /// Services of other clusters, by object, where the hub shares none.
    pub(super) services: BTreeMap<String, Arc<WireService>>,
    /// When everything of it was seen.
    pub(super) synced: Option<Duration>,
}

/// What is in the namespace of a slice on the hub.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) slice: String,
    /// Whether everything of it was seen.
    pub(super) listed: bool,
    /// By object.
    pub(super) objects: BTreeMap<String, Arc<SliceShareSpec>>,
}

/// The credential for the hub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The member's namespace on the hub.
    pub namespace: String,
    /// The member's name.
    pub cluster: String,
    /// The join that the credential was made by.
    pub join: Option<String>,
    /// A person wants the cluster off the hub.
    pub leaving: bool,
}

/// A node's agent, by its Lease.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) value: String,
    pub(super) at: Duration,
    pub(super) silent: bool,
}

/// Facts of the cluster that are asked for now and then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// UID of the namespace kube-system.
    pub cluster_uid: String,
    pub kubernetes_version: String,
    pub service_cidrs: Vec<String>,
}
