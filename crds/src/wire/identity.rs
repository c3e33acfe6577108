//! Who is who: the hub, its members, and how one becomes a member.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern;

/// The hub's identity: the UID of this one object in the hub's namespace. It goes with the allocations, so a hub that
/// has lost them is another one.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "Hub",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase", default)]
pub struct HubSpec {}

/// The hub as a member knows it; the one object is named [`crate::names::MEMBER_HUB`].
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MemberHub",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "Identity", json_path = ".spec.identity", type_ = "string"),
    printcolumn(name = "Server", json_path = ".spec.server", type_ = "string")
)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberHubSpec {
    /// UID of the hub's [`Hub`] object.
    pub identity: String,
    pub weft_version: String,
    /// See [`super::WIRE`].
    pub wire: u32,
    /// URL at which members are to reach the hub; empty where each keeps the one that it joined by.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server: String,
    /// Certificate authorities of that URL, PEM; empty where each member keeps those that it has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca: String,
}

/// Lets one cluster join under one name, once. `slicectl token issue` creates it in the member's namespace, and deleting
/// it revokes it.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "JoinToken",
    namespaced,
    status = "JoinTokenStatus",
    category = "weft",
    derive = "PartialEq",
    printcolumn(name = "Cluster", json_path = ".spec.cluster", type_ = "string"),
    printcolumn(name = "State", json_path = ".status.state", type_ = "string"),
    printcolumn(name = "Expires", json_path = ".status.expiresAt", type_ = "string"),
    printcolumn(name = "Used-By", json_path = ".status.usedBy", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct JoinTokenSpec {
    /// The member's name.
    #[schemars(length(min = 1, max = 39), regex(pattern = pattern::NAME))]
    pub cluster: String,
    /// Seconds from its creation within which it must be used: ten minutes, which is the shortest that Kubernetes
    /// makes a token for, to a week.
    #[serde(default = "JoinTokenSpec::default_expiry")]
    #[schemars(range(min = 600, max = 604_800))]
    pub expires_seconds: u32,
    /// The UID of the cluster that has the name and gives it up to the one that joins with this token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub replaces: Option<String>,
}

impl JoinTokenSpec {
    const fn default_expiry() -> u32 {
        3600
    }
}

/// What became of a token.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinTokenStatus {
    /// Pending, Ready, Used, Expired, or Invalid where it cannot be used as it is; `message` says why.
    #[serde(default)]
    pub state: String,
    /// Name and UID of the Secret beside it that its credential is bound to: it is void without it. The Secret goes with
    /// this object.
    #[serde(default)]
    pub secret_name: String,
    #[serde(default, rename = "secretUID")]
    pub secret_uid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// UID of the cluster that has joined with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<Time>,
    /// What stands in its way.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A cluster's request to become a member; named as its [`JoinToken`], so a second one of the same token does not fit.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MemberJoin",
    namespaced,
    status = "MemberJoinStatus",
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "Cluster-UID", json_path = ".spec.clusterUID", type_ = "string"),
    printcolumn(
        name = "Accepted",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        type_ = "string"
    ),
    printcolumn(
        name = "Message",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].message",
        type_ = "string"
    )
)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberJoinSpec {
    /// UID of the joining cluster's namespace kube-system.
    #[serde(rename = "clusterUID")]
    #[schemars(length(max = 63))]
    pub cluster_uid: String,
    #[schemars(length(max = 63))]
    pub weft_version: String,
}

/// The hub's answer.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberJoinStatus {
    /// Accepted: whether the credential may be taken.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl Eq for MemberJoinStatus {}
