//! Labels and annotations, and the parsing of what users write in them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// On a namespace or a pod: the slices it joins, several separated by dots (`shop.bank`).
pub const SLICE: &str = "weft.dev/slice";
/// On a pod: `"true"` keeps it out of every slice that its namespace is in.
pub const EXCLUDE: &str = "weft.dev/exclude";
/// On a pod, written by the node agent: its attachments, a JSON list of [`Attachment`].
pub const ATTACHMENTS: &str = "weft.dev/attachments";
/// On a pod, written by the node agent: the Network Plumbing Working Group's status form (v1.3 §4.1).
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// On a pod with a readiness gate of this name: true once all its attachments exist.
pub const READINESS_GATE: &str = "weft.dev/attached";
/// On Weft's own objects and workloads: which part of it they are.
pub const COMPONENT: &str = "weft.dev/component";
/// Value of [`COMPONENT`] on DNS pods, which are attached to every slice of their cluster.
pub const COMPONENT_DNS: &str = "dns";
/// Value of [`COMPONENT`] on gateway pods.
pub const COMPONENT_GATEWAY: &str = "gateway";
/// On objects that belong to one slice: its name. (The label [`SLICE`] asks to join; this one says what for.)
pub const FOR_SLICE: &str = "weft.dev/for-slice";
/// On objects that belong to one cluster: its name.
pub const FOR_CLUSTER: &str = "weft.dev/for-cluster";
/// On objects that a controller owns and prunes: that controller's field manager.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// One element of the annotation [`ATTACHMENTS`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    pub slice: String,
    /// Name of the interface inside the pod.
    pub interface: String,
    /// Addresses without prefix length, IPv4 first.
    pub ips: Vec<std::net::IpAddr>,
    pub mac: String,
}

/// Why a label's value names no slices.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelError {
    #[error(
        "label weft.dev/slice has the value \"{value}\", whose part \"{part}\" is not a slice name: \
         write lower-case letters, digits and dashes, several slices separated by dots, such as shop.bank"
    )]
    SliceName { value: String, part: String },
}

/// The slices that an object's [`SLICE`] label names; none where it has no such label or an empty one.
pub fn slices(labels: &BTreeMap<String, String>) -> Result<BTreeSet<&str>, LabelError> {
    let Some(value) = labels.get(SLICE).filter(|value| !value.is_empty()) else {
        return Ok(BTreeSet::new());
    };
    value
        .split('.')
        .map(|part| match is_name(part) {
            true => Ok(part),
            false => Err(LabelError::SliceName {
                value: value.clone(),
                part: part.to_owned(),
            }),
        })
        .collect()
}

/// Whether a text is an RFC 1123 label.
pub fn is_name(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().next_back())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(SLICE.to_owned(), value.to_owned())])
    }

    #[test]
    fn several_slices_are_separated_by_dots() {
        assert_eq!(
            slices(&label("shop.bank")).unwrap(),
            BTreeSet::from(["bank", "shop"])
        );
        assert_eq!(slices(&label("")).unwrap(), BTreeSet::new());
        assert_eq!(slices(&BTreeMap::new()).unwrap(), BTreeSet::new());
    }

    #[test]
    fn a_malformed_value_names_its_bad_part() {
        for (value, bad) in [
            ("Shop", "Shop"),
            ("shop..bank", ""),
            ("shop_bank", "shop_bank"),
            ("a.-b", "-b"),
        ] {
            assert_eq!(
                slices(&label(value)),
                Err(LabelError::SliceName {
                    value: value.to_owned(),
                    part: bad.to_owned()
                })
            );
        }
    }
}
