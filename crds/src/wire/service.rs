//! Exported services on their way between members.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A service that one cluster exports into a slice; see [`crate::names::service`]. In the exporter's namespace it is
/// the exporter's claim, in that of a member that reads no [`super::SliceShare`] the hub's copy.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MemberService",
    namespaced,
    category = "weft-internal",
    derive = "PartialEq",
    printcolumn(name = "Slice", json_path = ".spec.service.slice", type_ = "string"),
    printcolumn(name = "Cluster", json_path = ".spec.service.cluster", type_ = "string"),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberServiceSpec {
    pub service: Service,
}

/// As [`crate::v1alpha1::SliceServiceSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    pub slice: String,
    pub cluster: String,
    pub namespace: String,
    pub name: String,
    pub headless: bool,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub protocol: String,
    #[schemars(range(min = 0, max = 65535))]
    pub port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    pub hostname: String,
    pub addresses: Vec<String>,
}
