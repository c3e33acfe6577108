//! What a cluster's owner gives the pods of all gateways.

use std::{collections::BTreeMap, str::FromStr};

use k8s_openapi::api::core::v1::{ResourceRequirements, SELinuxOptions, Toleration};
use serde::Deserialize;

/// What a cluster's owner gives the pods of all gateways; the chart writes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodSettings {
    /// Names of Secrets in the gateways' namespace.
    pub image_pull_secrets: Vec<String>,
    pub tolerations: Vec<Toleration>,
    pub priority_class_name: String,
    pub se_linux_options: Option<SELinuxOptions>,
    /// In place of what each thread asks for.
    pub resources: Option<ResourceRequirements>,
    /// Beside those that Weft finds its pods by.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// On Services of type LoadBalancer: what a cloud is to be told of them.
    pub service_annotations: BTreeMap<String, String>,
}

impl Default for PodSettings {
    fn default() -> Self {
        Self {
            image_pull_secrets: Vec::new(),
            tolerations: Vec::new(),
            priority_class_name: "system-cluster-critical".to_owned(),
            se_linux_options: None,
            resources: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            service_annotations: BTreeMap::new(),
        }
    }
}

impl FromStr for PodSettings {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}
