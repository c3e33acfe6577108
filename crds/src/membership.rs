//! Which slices a pod belongs to: the one answer that node agents, operator and command line share.
//!
//! ```text
//!  pod label weft.dev/exclude=true ── out
//!  hostNetwork ── out
//!  weft.dev/component=dns in weft-system ── in every slice
//!  pod label ∪ namespace label ∪ rules of the SliceConfig ── in those that this cluster is a member of
//! ```

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ParseExpressionError, Selector, SelectorExt};

use crate::{
    labels::{self, LabelError},
    names,
    v1alpha1::{AttachMode, NamespaceRule, SliceSpec},
};

/// The labels of a namespace or of a pod.
pub type Labels = BTreeMap<String, String>;

/// What is asked about a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub namespace: String,
    pub labels: Labels,
    pub host_network: bool,
}

/// A slice's rules with their selectors parsed.
#[derive(Clone, Debug)]
pub struct Rules {
    pub slice: String,
    pub attach: AttachMode,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    namespace: NamespaceMatch,
    pods: Selector,
}

#[derive(Clone, Debug)]
enum NamespaceMatch {
    Name(String),
    Labels(Selector),
}

/// What a pod is in, and what its labels ask for that cannot be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership<'a> {
    pub slices: BTreeSet<&'a str>,
    pub errors: Vec<MembershipError>,
}

/// A label that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    #[error("{0}")]
    Label(String),
    #[error(
        "label weft.dev/slice names the slice \"{0}\", which this cluster is not a member of: add the cluster to the SliceConfig, or correct the label"
    )]
    UnknownSlice(String),
}

impl From<LabelError> for MembershipError {
    fn from(error: LabelError) -> Self {
        Self::Label(error.to_string())
    }
}

impl Rules {
    /// Parses the selectors of a slice.
    ///
    /// # Errors
    /// Where a selector has an unknown operator or lacks its values.
    pub fn parse(slice: &str, spec: &SliceSpec) -> Result<Self, ParseExpressionError> {
        let rules = spec
            .namespaces
            .iter()
            .map(Rule::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            slice: slice.to_owned(),
            attach: spec.attach,
            rules,
        })
    }

    /// Whether any pod of this namespace could be in the slice by rule or by the namespace's own label.
    pub fn may_include(&self, namespace: &str, namespace_labels: &Labels) -> bool {
        labels::slices(namespace_labels).is_ok_and(|slices| slices.contains(self.slice.as_str()))
            || self
                .rules
                .iter()
                .any(|rule| rule.namespace.matches(namespace, namespace_labels))
    }

    fn include(&self, pod: &PodFacts, namespace_labels: &Labels) -> bool {
        self.rules.iter().any(|rule| {
            rule.namespace.matches(&pod.namespace, namespace_labels) && rule.pods.matches(&pod.labels)
        })
    }
}

impl Rule {
    fn parse(rule: &NamespaceRule) -> Result<Self, ParseExpressionError> {
        let namespace = match (&rule.name, &rule.selector) {
            (Some(name), _) => NamespaceMatch::Name(name.clone()),
            (None, selector) => NamespaceMatch::Labels(selector.clone().unwrap_or_default().try_into()?),
        };
        let pods: LabelSelector = rule.pod_selector.clone().unwrap_or_default();
        Ok(Self {
            namespace,
            pods: pods.try_into()?,
        })
    }
}

impl NamespaceMatch {
    fn matches(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Labels(selector) => selector.matches(labels),
        }
    }
}

/// The slices of a pod. `slices` are those this cluster is a member of.
pub fn of_pod<'a>(pod: &PodFacts, namespace_labels: &Labels, slices: &'a [Rules]) -> Membership<'a> {
    let mut membership = Membership::default();
    if pod.host_network
        || pod
            .labels
            .get(labels::EXCLUDE)
            .is_some_and(|value| value == "true")
    {
        return membership;
    }
    if pod.namespace == names::MEMBER_NAMESPACE {
        if pod
            .labels
            .get(labels::COMPONENT)
            .is_some_and(|value| value == labels::COMPONENT_DNS)
        {
            membership
                .slices
                .extend(slices.iter().map(|rules| rules.slice.as_str()));
        }
        return membership;
    }
    for labels in [namespace_labels, &pod.labels] {
        match labels::slices(labels) {
            Ok(names) => {
                for name in names {
                    match slices.iter().find(|rules| rules.slice == name) {
                        Some(rules) => _ = membership.slices.insert(&rules.slice),
                        None => membership
                            .errors
                            .push(MembershipError::UnknownSlice(name.to_owned())),
                    }
                }
            }
            Err(error) => membership.errors.push(error.into()),
        }
    }
    let by_rule = slices.iter().filter(|rules| rules.include(pod, namespace_labels));
    membership
        .slices
        .extend(by_rule.map(|rules| rules.slice.as_str()));
    membership
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn rules(slice: &str, namespaces: Vec<NamespaceRule>) -> Rules {
        let rules = namespaces
            .iter()
            .map(Rule::parse)
            .collect::<Result<_, _>>()
            .unwrap();
        Rules {
            slice: slice.to_owned(),
            attach: AttachMode::Required,
            rules,
        }
    }

    #[track_caller]
    fn check(namespace: &[(&str, &str)], pod: &[(&str, &str)], expected: &[&str]) {
        let tier = LabelSelector {
            match_labels: Some(labels(&[("tier", "api")])),
            ..LabelSelector::default()
        };
        let team = LabelSelector {
            match_labels: Some(labels(&[("team", "bank")])),
            ..LabelSelector::default()
        };
        let known = [
            rules(
                "shop",
                vec![NamespaceRule {
                    name: Some("cart".into()),
                    ..NamespaceRule::default()
                }],
            ),
            rules(
                "bank",
                vec![NamespaceRule {
                    selector: Some(team),
                    pod_selector: Some(tier),
                    ..NamespaceRule::default()
                }],
            ),
            rules("mail", vec![]),
        ];
        let name = namespace
            .iter()
            .find(|(key, _)| *key == "name")
            .map_or("other", |(_, name)| name);
        let pod = PodFacts {
            namespace: name.to_owned(),
            labels: labels(pod),
            host_network: pod.contains(&("hostNetwork", "")),
        };
        let namespace = labels(namespace);
        let membership = of_pod(&pod, &namespace, &known);
        assert_eq!(membership.slices.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn rules_and_labels_add_up() {
        check(&[], &[], &[]);
        check(&[("name", "cart")], &[], &["shop"]);
        check(
            &[("name", "cart"), (labels::SLICE, "mail")],
            &[],
            &["mail", "shop"],
        );
        check(&[], &[(labels::SLICE, "mail.shop")], &["mail", "shop"]);
        check(&[("team", "bank")], &[], &[]);
        check(&[("team", "bank")], &[("tier", "api")], &["bank"]);
    }

    #[test]
    fn some_pods_are_never_in() {
        check(&[("name", "cart")], &[(labels::EXCLUDE, "true")], &[]);
        check(&[("name", "cart")], &[("hostNetwork", "")], &[]);
        check(
            &[("name", names::MEMBER_NAMESPACE), (labels::SLICE, "shop")],
            &[],
            &[],
        );
    }

    #[test]
    fn dns_is_in_every_slice() {
        let dns = [(labels::COMPONENT, labels::COMPONENT_DNS)];
        check(
            &[("name", names::MEMBER_NAMESPACE)],
            &dns,
            &["bank", "mail", "shop"],
        );
        check(&[("name", "elsewhere")], &dns, &[]);
    }

    #[test]
    fn a_label_that_cannot_be_followed_is_said_and_the_rest_holds() {
        let known = [rules("shop", vec![])];
        let pod = PodFacts {
            labels: labels(&[(labels::SLICE, "shop.nowhere")]),
            ..PodFacts::default()
        };
        let membership = of_pod(&pod, &Labels::new(), &known);
        assert_eq!(membership.slices, BTreeSet::from(["shop"]));
        assert_eq!(
            membership.errors,
            [MembershipError::UnknownSlice("nowhere".into())]
        );
    }
}
