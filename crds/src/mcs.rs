//! The Multi-Cluster Services API (KEP-1645): the kinds of it that Weft reads and answers.
//!
//! Of a `ServiceExport` only presence counts here, and its `Valid` and `Ready` conditions are written;
//! `ServiceImport` and clusterset addresses are not there.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub const GROUP: &str = "multicluster.x-k8s.io";

/// Condition types and reasons of a ServiceExport, as the API names them.
pub mod condition {
    pub const VALID: &str = "Valid";
    pub const READY: &str = "Ready";
    pub const REASON_VALID: &str = "Valid";
    pub const REASON_NO_SERVICE: &str = "NoService";
    pub const REASON_INVALID_TYPE: &str = "InvalidServiceType";
    pub const REASON_EXPORTED: &str = "Exported";
    pub const REASON_PENDING: &str = "Pending";
}

/// Exports the Service of the same name and namespace into the slices that its pods are attached to.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "multicluster.x-k8s.io",
    version = "v1beta1",
    kind = "ServiceExport",
    no_spec,
    namespaced,
    status = "ServiceExportStatus",
    shortname = "svcex",
    shortname = "svcexport",
    category = "weft",
    derive = "PartialEq",
    printcolumn(
        name = "Valid",
        json_path = ".status.conditions[?(@.type==\"Valid\")].status",
        type_ = "string"
    ),
    printcolumn(
        name = "Ready",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        type_ = "string"
    ),
    printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ServiceExportSpec>,
}

/// What a name in every cluster should carry along. Slice names carry neither.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportSpec {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_annotations: BTreeMap<String, String>,
}

#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportStatus {
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The older version that clients may still write; the API server stores it as v1beta1.
pub mod v1alpha1 {
    use kube::{CustomResource, KubeSchema};
    use serde::{Deserialize, Serialize};

    use super::{ServiceExportSpec, ServiceExportStatus};

    /// See [`super::ServiceExportFields`].
    #[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[kube(
        group = "multicluster.x-k8s.io",
        version = "v1alpha1",
        kind = "ServiceExport",
        no_spec,
        namespaced,
        status = "ServiceExportStatus",
        shortname = "svcex",
        shortname = "svcexport",
        category = "weft",
        printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date")
    )]
    #[serde(rename_all = "camelCase")]
    pub struct ServiceExportFields {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub spec: Option<ServiceExportSpec>,
    }
}
