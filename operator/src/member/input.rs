//! What a member sees, read one by one: in its own API, and of the hub in its namespace there.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
};
use kube::core::ApiResource;
use serde_json::Value;
use slice_crds::{
    annotations::{DNS_STUB, FROM_HUB},
    labels::{self, Attachment},
    mcs::ServiceExport,
    membership::Labels,
    read,
    v1alpha1::{Slice, SliceBlock, SliceGateway, SliceNode, SliceService},
    wire::{
        MemberHub, MemberHubSpec, MemberReport, MemberService, MemberSlice, MemberSliceReport,
        MemberSliceSpec, Service as WireService, SliceShare, SliceShareSpec,
    },
};

use super::{cluster_dns, nodes::NodeFacts};
use crate::control::{Kind, Meta, Observed, read::annotation};

/// Which API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Local,
    Hub,
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Slice,
    SliceBlock,
    SliceGateway,
    SliceNode,
    SliceService,
    Node,
    Namespace,
    Pod,
    GatewayPod,
    GatewaySet,
    GatewayBudget,
    GatewayService,
    Service,
    EndpointSlice,
    ServiceExport,
    AgentLease,
    ConfigMap,
    MemberHub,
    MemberSlice,
    MemberService,
    MemberReport,
    MemberSliceReport,
    /// In the namespaces of [`super::Member::take_followed`].
    SliceShare,
}

impl Source {
    pub const LOCAL: [Self; 17] = [
        Self::Slice,
        Self::SliceBlock,
        Self::SliceGateway,
        Self::SliceNode,
        Self::SliceService,
        Self::Node,
        Self::Namespace,
        Self::Pod,
        Self::GatewayPod,
        Self::GatewaySet,
        Self::GatewayBudget,
        Self::GatewayService,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceExport,
        Self::AgentLease,
        Self::ConfigMap,
    ];
    /// In the member's own namespace on the hub.
    pub const HUB: [Self; 5] = [
        Self::MemberHub,
        Self::MemberSlice,
        Self::MemberService,
        Self::MemberReport,
        Self::MemberSliceReport,
    ];

    pub fn side(self) -> Side {
        if self == Self::SliceShare || Self::HUB.contains(&self) {
            Side::Hub
        } else {
            Side::Local
        }
    }

    /// Where an object of a kind that the member has written is seen again.
    pub fn of(side: Side, kind: Kind) -> Option<Self> {
        let all = match side {
            Side::Local => Self::LOCAL.as_slice(),
            Side::Hub => Self::HUB.as_slice(),
        };
        all.iter()
            .copied()
            .find(|source| source.written().contains(&kind))
    }

    /// The kind that is watched.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::Slice => ApiResource::erase::<Slice>(&()),
            Self::SliceBlock => ApiResource::erase::<SliceBlock>(&()),
            Self::SliceGateway => ApiResource::erase::<SliceGateway>(&()),
            Self::SliceNode => ApiResource::erase::<SliceNode>(&()),
            Self::SliceService => ApiResource::erase::<SliceService>(&()),
            Self::Node => ApiResource::erase::<Node>(&()),
            Self::Namespace => ApiResource::erase::<Namespace>(&()),
            Self::Pod | Self::GatewayPod => ApiResource::erase::<Pod>(&()),
            Self::GatewaySet => ApiResource::erase::<StatefulSet>(&()),
            Self::GatewayBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::GatewayService | Self::Service => ApiResource::erase::<Service>(&()),
            Self::EndpointSlice => ApiResource::erase::<EndpointSlice>(&()),
            Self::ServiceExport => ApiResource::erase::<ServiceExport>(&()),
            Self::AgentLease => ApiResource::erase::<Lease>(&()),
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::MemberHub => ApiResource::erase::<MemberHub>(&()),
            Self::MemberSlice => ApiResource::erase::<MemberSlice>(&()),
            Self::SliceShare => ApiResource::erase::<SliceShare>(&()),
            Self::MemberService => ApiResource::erase::<MemberService>(&()),
            Self::MemberReport => ApiResource::erase::<MemberReport>(&()),
            Self::MemberSliceReport => ApiResource::erase::<MemberSliceReport>(&()),
        }
    }

    /// The parts of such an object that the member writes.
    pub(super) fn written(self) -> &'static [Kind] {
        match self {
            Self::Slice => &[Kind::Slice, Kind::SliceStatus],
            Self::SliceBlock => &[Kind::SliceBlock],
            Self::SliceGateway => &[Kind::SliceGateway],
            Self::SliceNode => &[Kind::SliceNode],
            Self::SliceService => &[Kind::SliceService],
            Self::GatewaySet => &[Kind::StatefulSet],
            Self::GatewayBudget => &[Kind::PodDisruptionBudget],
            Self::GatewayService => &[Kind::Service],
            Self::ServiceExport => &[Kind::ServiceExportStatus],
            Self::ConfigMap => &[Kind::ConfigMap],
            Self::MemberService => &[Kind::MemberService],
            Self::MemberReport => &[Kind::MemberReport],
            Self::MemberSliceReport => &[Kind::MemberSliceReport],
            Self::Node => &[Kind::Node],
            Self::Namespace
            | Self::Pod
            | Self::GatewayPod
            | Self::Service
            | Self::EndpointSlice
            | Self::AgentLease
            | Self::MemberHub
            | Self::MemberSlice
            | Self::SliceShare => &[],
        }
    }
}

/// One object as it was seen.
#[derive(Clone, Debug)]
pub struct Input {
    pub source: Source,
    pub meta: Meta,
    pub observed: Vec<(Kind, Observed)>,
    pub object: Object,
}

/// What of it matters.
#[derive(Clone, Debug)]
pub enum Object {
    Slice(Result<Arc<Slice>, String>),
    Block(Result<Arc<SliceBlock>, String>),
    Gateway(Result<Arc<SliceGateway>, String>),
    SliceNode(Result<Arc<SliceNode>, String>),
    /// Slice, cluster, and the hub that it came from.
    SliceService {
        slice: String,
        cluster: String,
        hub: String,
    },
    Node(Result<NodeFacts, String>),
    Namespace(Labels),
    Pod(PodFacts),
    GatewayPod(Result<Arc<Pod>, String>),
    GatewaySet(Result<Arc<StatefulSet>, String>),
    Service(Result<Arc<Service>, String>),
    Endpoints(Result<Arc<EndpointSlice>, String>),
    Export(Result<Arc<ServiceExport>, String>),
    /// Changes with every renewal.
    Lease(String),
    /// The configuration of the cluster's DNS.
    ConfigMap(cluster_dns::Data, Option<cluster_dns::Mark>),
    Hub(Result<Arc<MemberHubSpec>, String>),
    MemberSlice(Result<Arc<MemberSliceSpec>, String>),
    Share(Result<Arc<SliceShareSpec>, String>),
    MemberService(Result<Arc<WireService>, String>),
    /// Nothing but what the member itself has written.
    Output,
}

/// What matters of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub uid: String,
    pub labels: Labels,
    pub attachments: Vec<Attachment>,
}

impl Input {
    /// Reads a raw object.
    pub fn read(source: Source, value: &Value) -> Self {
        let object = match source {
            Source::Slice => Object::Slice(read(value).map(Arc::new)),
            Source::SliceBlock => Object::Block(read(value).map(Arc::new)),
            Source::SliceGateway => Object::Gateway(read(value).map(Arc::new)),
            Source::SliceNode => Object::SliceNode(read(value).map(Arc::new)),
            Source::SliceService => {
                let text = |field: &str| value["spec"][field].as_str().unwrap_or_default().to_owned();
                Object::SliceService {
                    slice: text("slice"),
                    cluster: text("cluster"),
                    hub: annotation(value, FROM_HUB).unwrap_or_default().to_owned(),
                }
            }
            Source::Node => Object::Node(read::<Node>(value).map(|node| NodeFacts::of(&node))),
            Source::Namespace => Object::Namespace(labels_of(value)),
            Source::Pod => Object::Pod(PodFacts {
                uid: value["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
                labels: labels_of(value),
                attachments: annotation(value, labels::ATTACHMENTS)
                    .and_then(|text| serde_json::from_str(text).ok())
                    .unwrap_or_default(),
            }),
            Source::GatewayPod => Object::GatewayPod(read(value).map(Arc::new)),
            Source::GatewaySet => Object::GatewaySet(read(value).map(Arc::new)),
            Source::GatewayService | Source::Service => Object::Service(read(value).map(Arc::new)),
            Source::EndpointSlice => Object::Endpoints(read(value).map(Arc::new)),
            Source::ServiceExport => Object::Export(read(value).map(Arc::new)),
            Source::AgentLease => {
                let lease: Result<Lease, _> = read(value);
                let renewed = lease.ok().and_then(|lease| lease.spec?.renew_time);
                Object::Lease(renewed.map(|time| time.0.to_string()).unwrap_or_default())
            }
            Source::ConfigMap => {
                let data = value["data"].as_object().into_iter().flatten();
                let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
                let mark = annotation(value, DNS_STUB).and_then(|text| text.parse().ok());
                Object::ConfigMap(data.filter_map(text).collect(), mark)
            }
            Source::MemberHub => Object::Hub(read::<MemberHub>(value).map(|object| Arc::new(object.spec))),
            Source::MemberSlice => {
                Object::MemberSlice(read::<MemberSlice>(value).map(|object| Arc::new(object.spec)))
            }
            Source::SliceShare => {
                Object::Share(read::<SliceShare>(value).map(|object| Arc::new(object.spec)))
            }
            Source::MemberService => Object::MemberService(
                read::<MemberService>(value).map(|object| Arc::new(object.spec.service)),
            ),
            Source::GatewayBudget | Source::MemberReport | Source::MemberSliceReport => Object::Output,
        };
        let kinds = source.written().iter();
        Self {
            source,
            meta: Meta::of(value),
            observed: kinds.map(|kind| (*kind, Observed::of(*kind, value))).collect(),
            object,
        }
    }

    /// What could not be read.
    pub fn unreadable(&self) -> Option<&str> {
        match &self.object {
            Object::Slice(Err(why))
            | Object::Block(Err(why))
            | Object::Gateway(Err(why))
            | Object::SliceNode(Err(why))
            | Object::Node(Err(why))
            | Object::GatewayPod(Err(why))
            | Object::GatewaySet(Err(why))
            | Object::Service(Err(why))
            | Object::Endpoints(Err(why))
            | Object::Export(Err(why))
            | Object::Hub(Err(why))
            | Object::MemberSlice(Err(why))
            | Object::Share(Err(why))
            | Object::MemberService(Err(why)) => Some(why),
            _ => None,
        }
    }
}

fn labels_of(value: &Value) -> Labels {
    let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
    let labels: BTreeMap<String, String> = labels
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    labels
}
