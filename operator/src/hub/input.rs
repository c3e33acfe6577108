//! What the hub sees, read one by one: an object that cannot be read is kept apart, and everything else goes on.

use std::sync::Arc;

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::Condition};
use kube::core::ApiResource;
use serde::de::DeserializeOwned;
use serde_json::Value;
use slice_crds::{
    annotations::{CLUSTER_UID, DELETE, GONE_CLUSTERS, MADE_AFTER, NOW},
    read,
    v1alpha1::{Cluster, QosProfile, QosProfileSpec, SliceConfig},
    wire::{
        JoinToken, MemberJoin, MemberReport, MemberReportSpec, MemberService, MemberSlice, MemberSliceReport,
        MemberSliceReportSpec, Service, SliceAllocation, SliceShare,
    },
};

use crate::control::{Kind, Meta, Observed, read::annotation};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Hub,
    SliceAllocation,
    SliceConfig,
    Cluster,
    QosProfile,
    JoinToken,
    MemberJoin,
    MemberHub,
    MemberSlice,
    SliceShare,
    MemberService,
    MemberReport,
    MemberSliceReport,
    Lease,
    Namespace,
    ServiceAccount,
    RoleBinding,
}

impl Source {
    pub const ALL: [Self; 17] = [
        Self::Hub,
        Self::SliceAllocation,
        Self::SliceConfig,
        Self::Cluster,
        Self::QosProfile,
        Self::JoinToken,
        Self::MemberJoin,
        Self::MemberHub,
        Self::MemberSlice,
        Self::SliceShare,
        Self::MemberService,
        Self::MemberReport,
        Self::MemberSliceReport,
        Self::Lease,
        Self::Namespace,
        Self::ServiceAccount,
        Self::RoleBinding,
    ];

    /// The kind that is watched; nothing of [`Self::Namespace`] and what is like it but Weft's own.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::SliceConfig => ApiResource::erase::<SliceConfig>(&()),
            Self::QosProfile => ApiResource::erase::<QosProfile>(&()),
            Self::MemberReport => ApiResource::erase::<MemberReport>(&()),
            Self::MemberSliceReport => ApiResource::erase::<MemberSliceReport>(&()),
            Self::Lease => ApiResource::erase::<Lease>(&()),
            _ => self.written().expect("every other is written too").resource(),
        }
    }

    /// Where an object of a kind that the hub has written is seen again.
    pub fn of(kind: Kind) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|source| source.written() == Some(kind))
    }

    /// The part of such an object that the hub writes.
    pub(super) const fn written(self) -> Option<Kind> {
        Some(match self {
            Self::Hub => Kind::Hub,
            Self::SliceAllocation => Kind::SliceAllocation,
            Self::SliceConfig => Kind::SliceConfigStatus,
            Self::Cluster => Kind::ClusterStatus,
            Self::JoinToken => Kind::JoinTokenStatus,
            Self::MemberJoin => Kind::MemberJoinStatus,
            Self::MemberHub => Kind::MemberHub,
            Self::MemberSlice => Kind::MemberSlice,
            Self::SliceShare => Kind::SliceShare,
            Self::MemberService => Kind::MemberService,
            Self::Namespace => Kind::Namespace,
            Self::ServiceAccount => Kind::ServiceAccount,
            Self::RoleBinding => Kind::RoleBinding,
            Self::QosProfile | Self::MemberReport | Self::MemberSliceReport | Self::Lease => return None,
        })
    }
}

/// One object as it was seen.
#[derive(Clone, Debug)]
pub struct Input {
    pub source: Source,
    pub meta: Meta,
    pub observed: Option<Observed>,
    pub object: Object,
}

/// What of it matters. What this build cannot read is the sentence that says why.
#[derive(Clone, Debug)]
pub enum Object {
    SliceConfig(Result<Arc<SliceConfig>, Unreadable>),
    Cluster(Result<Arc<Cluster>, Unreadable>),
    QosProfile(Result<QosProfileSpec, String>),
    Allocation {
        object: Result<Arc<SliceAllocation>, String>,
        /// A person asked for the deletion not to wait.
        at_once: bool,
        gone: Vec<String>,
    },
    JoinToken(Result<Arc<JoinToken>, String>),
    MemberJoin(Result<Arc<MemberJoin>, String>),
    MemberSlice(Result<Arc<MemberSlice>, String>),
    /// Whose keys it publishes: key and cluster.
    Share(Vec<(String, String)>),
    MemberService(Result<Arc<Service>, String>),
    MemberReport(Result<Arc<MemberReportSpec>, String>),
    MemberSliceReport(Result<Arc<MemberSliceReportSpec>, String>),
    /// Changes with every renewal.
    Lease(String),
    Namespace {
        cluster_uid: Option<String>,
        /// Why it is not gone yet, where it is going.
        going: Option<String>,
    },
    ServiceAccount(Account),
    /// Nothing but what the hub itself has written.
    Output,
}

/// A member's account: every token of it is void when it is made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub made_after: Option<String>,
    pub cluster_uid: Option<String>,
}

/// A user's object that this build cannot read.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// Field, value and what is wrong with it.
    pub why: String,
    /// The conditions that stand in it, as far as those can be read.
    pub conditions: Vec<Condition>,
}

impl Input {
    /// Reads a raw object.
    pub fn read(source: Source, value: &Value) -> Self {
        let spec = |value: &Value| value.get("spec").cloned().unwrap_or(Value::Null);
        let object = match source {
            Source::SliceConfig => Object::SliceConfig(users(value)),
            Source::Cluster => Object::Cluster(users(value)),
            Source::QosProfile => Object::QosProfile(read::<QosProfile>(value).map(|profile| profile.spec)),
            Source::SliceAllocation => Object::Allocation {
                object: read(value).map(Arc::new),
                at_once: annotation(value, DELETE) == Some(NOW),
                gone: annotation(value, GONE_CLUSTERS)
                    .unwrap_or_default()
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .collect(),
            },
            Source::JoinToken => Object::JoinToken(read(value).map(Arc::new)),
            Source::MemberJoin => Object::MemberJoin(read(value).map(Arc::new)),
            Source::MemberSlice => Object::MemberSlice(read(value).map(Arc::new)),
            Source::SliceShare => Object::Share(published(value)),
            Source::MemberService => Object::MemberService(
                read::<MemberService>(value).map(|object| Arc::new(object.spec.service)),
            ),
            Source::MemberReport => {
                Object::MemberReport(read::<MemberReport>(value).map(|object| Arc::new(object.spec)))
            }
            Source::MemberSliceReport => Object::MemberSliceReport(
                read::<MemberSliceReport>(value).map(|object| Arc::new(object.spec)),
            ),
            Source::Lease => {
                let lease: Result<Lease, _> = read(value);
                let renewed = lease.ok().and_then(|lease| lease.spec?.renew_time);
                Object::Lease(renewed.map_or_else(|| spec(value).to_string(), |time| time.0.to_string()))
            }
            Source::Namespace => Object::Namespace {
                cluster_uid: annotation(value, CLUSTER_UID).map(ToOwned::to_owned),
                going: going(value),
            },
            Source::ServiceAccount => Object::ServiceAccount(Account {
                made_after: annotation(value, MADE_AFTER).map(ToOwned::to_owned),
                cluster_uid: annotation(value, CLUSTER_UID).map(ToOwned::to_owned),
            }),
            Source::Hub | Source::MemberHub | Source::RoleBinding => Object::Output,
        };
        Self {
            source,
            meta: Meta::of(value),
            observed: source.written().map(|kind| Observed::of(kind, value)),
            object,
        }
    }

    /// What could not be read.
    pub fn unreadable(&self) -> Option<&str> {
        match &self.object {
            Object::SliceConfig(Err(error)) => Some(&error.why),
            Object::Cluster(Err(error)) => Some(&error.why),
            Object::QosProfile(Err(why))
            | Object::Allocation { object: Err(why), .. }
            | Object::JoinToken(Err(why))
            | Object::MemberJoin(Err(why))
            | Object::MemberSlice(Err(why))
            | Object::MemberService(Err(why))
            | Object::MemberReport(Err(why))
            | Object::MemberSliceReport(Err(why)) => Some(why),
            _ => None,
        }
    }
}

fn users<T: DeserializeOwned>(value: &Value) -> Result<Arc<T>, Unreadable> {
    read(value).map(Arc::new).map_err(|why| Unreadable {
        why,
        conditions: value
            .pointer("/status/conditions")
            .and_then(|conditions| serde_json::from_value(conditions.clone()).ok())
            .unwrap_or_default(),
    })
}

fn published(value: &Value) -> Vec<(String, String)> {
    let Ok(object) = read::<SliceShare>(value) else {
        return Vec::new();
    };
    let peers = object.spec.peers.into_iter();
    peers
        .flat_map(|peer| {
            let name = peer.name;
            let keys = peer
                .gateways
                .into_iter()
                .flat_map(|gateway| std::iter::once(gateway.public_key).chain(gateway.former_key));
            keys.map(move |key| (key, name.clone())).collect::<Vec<_>>()
        })
        .collect()
}

/// What the API server says of a namespace that is being deleted.
fn going(value: &Value) -> Option<String> {
    value["metadata"]["deletionTimestamp"].as_str()?;
    let conditions = value.pointer("/status/conditions").and_then(Value::as_array);
    let true_ones = conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition["status"] == "True")
        .filter_map(|condition| condition["message"].as_str());
    Some(true_ones.collect::<Vec<_>>().join("; "))
}
