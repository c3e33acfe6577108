//! What the controllers read and write, by kind.

use std::{fmt, time::Duration};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Namespace, Node, Secret, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
    rbac::v1::RoleBinding,
};
use kube::{Resource, core::ApiResource};
use slice_crds::{
    mcs::ServiceExport,
    v1alpha1::{Cluster, Slice, SliceBlock, SliceConfig, SliceGateway, SliceNode, SliceService},
    wire::{
        Hub, JoinToken, MemberHub, MemberJoin, MemberReport, MemberService, MemberSlice, MemberSliceReport,
        SliceAllocation, SliceShare,
    },
};

/// A kind of object, or one part of it that has a writer of its own. The order is that of writing where several wait:
/// what others wait for comes first, what only people read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Hub,
    SliceAllocation,
    Namespace,
    ServiceAccount,
    RoleBinding,
    Secret,
    MemberHub,
    MemberJoinStatus,
    JoinTokenStatus,
    MemberSlice,
    SliceShare,
    MemberService,
    Slice,
    SliceBlock,
    SliceNode,
    /// Its taints.
    Node,
    SliceGateway,
    StatefulSet,
    Service,
    PodDisruptionBudget,
    SliceService,
    ConfigMap,
    MemberReport,
    MemberSliceReport,
    SliceConfigStatus,
    ClusterStatus,
    SliceStatus,
    ServiceExportStatus,
}

/// How an object of a kind is compared and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Ours alone: equal when spec, our labels and our annotations are.
    Own,
    /// A kind of Kubernetes itself: the API server and others add to it. What we applied last stands in an annotation,
    /// so that a field which we no longer set is taken back.
    Shared,
    /// The status of somebody's object.
    Status,
    /// Somebody else's object, of which some fields are set; it is never made, and never deleted.
    Fields,
}

impl Kind {
    pub fn resource(self) -> ApiResource {
        match self {
            Self::Hub => ApiResource::erase::<Hub>(&()),
            Self::SliceAllocation => ApiResource::erase::<SliceAllocation>(&()),
            Self::Namespace => ApiResource::erase::<Namespace>(&()),
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::RoleBinding => ApiResource::erase::<RoleBinding>(&()),
            Self::Secret => ApiResource::erase::<Secret>(&()),
            Self::MemberHub => ApiResource::erase::<MemberHub>(&()),
            Self::MemberJoinStatus => ApiResource::erase::<MemberJoin>(&()),
            Self::JoinTokenStatus => ApiResource::erase::<JoinToken>(&()),
            Self::SliceShare => ApiResource::erase::<SliceShare>(&()),
            Self::MemberSlice => ApiResource::erase::<MemberSlice>(&()),
            Self::MemberService => ApiResource::erase::<MemberService>(&()),
            Self::Slice | Self::SliceStatus => ApiResource::erase::<Slice>(&()),
            Self::SliceBlock => ApiResource::erase::<SliceBlock>(&()),
            Self::SliceNode => ApiResource::erase::<SliceNode>(&()),
            Self::Node => ApiResource::erase::<Node>(&()),
            Self::SliceGateway => ApiResource::erase::<SliceGateway>(&()),
            Self::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::SliceService => ApiResource::erase::<SliceService>(&()),
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::MemberReport => ApiResource::erase::<MemberReport>(&()),
            Self::MemberSliceReport => ApiResource::erase::<MemberSliceReport>(&()),
            Self::SliceConfigStatus => ApiResource::erase::<SliceConfig>(&()),
            Self::ClusterStatus => ApiResource::erase::<Cluster>(&()),
            Self::ServiceExportStatus => ApiResource::erase::<ServiceExport>(&()),
        }
    }

    pub const fn manner(self) -> Manner {
        match self {
            Self::Namespace
            | Self::ServiceAccount
            | Self::RoleBinding
            | Self::Secret
            | Self::StatefulSet
            | Self::Service
            | Self::PodDisruptionBudget => Manner::Shared,
            Self::MemberJoinStatus
            | Self::JoinTokenStatus
            | Self::SliceConfigStatus
            | Self::ClusterStatus
            | Self::SliceStatus
            | Self::ServiceExportStatus => Manner::Status,
            Self::ConfigMap | Self::Node => Manner::Fields,
            Self::Hub
            | Self::SliceAllocation
            | Self::MemberHub
            | Self::SliceShare
            | Self::MemberSlice
            | Self::MemberService
            | Self::Slice
            | Self::SliceBlock
            | Self::SliceNode
            | Self::SliceGateway
            | Self::SliceService
            | Self::MemberReport
            | Self::MemberSliceReport => Manner::Own,
        }
    }

    /// Whether a status says when it was observed.
    pub const fn has_time(self) -> bool {
        matches!(
            self,
            Self::SliceConfigStatus | Self::ClusterStatus | Self::SliceStatus
        )
    }

    /// Shortest time between two writes of one object: statuses that only people read can wait for the next change.
    pub const fn pause(self) -> Duration {
        match self {
            Self::SliceConfigStatus | Self::ClusterStatus | Self::SliceStatus => Duration::from_secs(1),
            Self::MemberSliceReport => Duration::from_millis(100),
            _ => Duration::ZERO,
        }
    }

    /// Whether a watch tells of them: nobody may list every Secret of a cluster.
    pub const fn is_watched(self) -> bool {
        !matches!(self, Self::Secret)
    }

    /// Whether the objects live in namespaces.
    pub const fn is_namespaced(self) -> bool {
        !matches!(
            self,
            Self::Namespace
                | Self::Node
                | Self::Slice
                | Self::SliceStatus
                | Self::SliceBlock
                | Self::SliceNode
        )
    }
}

/// One object, or the one part of it that [`Kind`] names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    /// Empty for kinds without namespaces.
    pub namespace: Box<str>,
    pub name: Box<str>,
}

impl Key {
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: if kind.is_namespaced() {
                namespace.into()
            } else {
                "".into()
            },
            name: name.into(),
        }
    }

    pub fn of(kind: Kind, object: &impl Resource) -> Self {
        let meta = object.meta();
        Self::new(
            kind,
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        match namespace.is_empty() {
            true => write!(f, "{kind:?} {name}"),
            false => write!(f, "{kind:?} {namespace}/{name}"),
        }
    }
}
