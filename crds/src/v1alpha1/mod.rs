//! `weft.dev/v1alpha1`: one file per audience.
//!
//! [`hub`] is what users write on the hub and read back; [`member`] is what a member cluster's own processes work from;
//! [`shared`] is what more than one of them has. What hub and members exchange is [`crate::wire`].

pub mod hub;
pub mod member;
pub mod shared;

pub use hub::{
    Cluster, ClusterGateway, ClusterNetworks, ClusterSpec, ClusterStatus, NamespaceRule, QosProfile,
    QosProfileSpec, SliceCluster, SliceConfig, SliceConfigSpec, SliceConfigStatus, SliceGatewaySettings,
    SlicePeer, SlicePeerStatus, SliceQos,
};
pub use member::{
    BrokenPair, DataPathStatus, MeshStatus, PairFault, Slice, SliceBlock, SliceBlockSpec, SliceBlockStatus,
    SliceGateway, SliceGatewaySpec, SliceGatewayStatus, SliceNode, SliceNodePhase, SliceNodeSpec,
    SliceNodeStatus, SliceService, SliceServiceSpec, SliceSource, SliceSpec, SliceStatus,
};
pub use shared::{
    AttachMode, Broadcast, Exposure, Frames, GatewayPlacement, KeyPolicy, PeerCluster, PeerGateway,
    ServiceEndpoint, ServicePort, Shaping, SliceJoin, TaintEffect, Toleration, TolerationOperator,
    TunnelStatus,
};
