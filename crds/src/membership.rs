//! Which slices a pod belongs to: the one answer that node agents, operator and command line share.
//!
//! ```text
//!  pod label weft.dev/exclude=true ── out
//!  hostNetwork ── out
//!  weft.dev/component=dns in weft-system ── in every slice
//!  rules of the SliceConfig ── in
//!  namespace label ── in, where spec.join lets labels of this namespace count
//!  pod label ── in, where spec.join lets pods' labels count here, or where the namespace is in
//! ```

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ParseExpressionError, Selector, SelectorExt};

use crate::{
    labels::{self, LabelError},
    names,
    v1alpha1::{AttachMode, NamespaceRule, SliceJoin, SliceSpec},
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
    /// Pods that may say that they are routers, if they are in.
    routers: Vec<Rule>,
    join: Join,
}

/// Whose labels count.
#[derive(Clone, Debug)]
struct Join {
    namespaces: Selector,
    namespace_labels: bool,
    pod_labels: bool,
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
    #[error(
        "label weft.dev/slice names the slice \"{slice}\", whose spec.join does not let namespace {namespace} join by \
         label: name the namespace in spec.namespaces of the SliceConfig, or widen spec.join"
    )]
    NamespaceNotAllowed { slice: String, namespace: String },
    #[error(
        "label weft.dev/slice names the slice \"{slice}\", and a pod's label counts only in a namespace that is in the \
         slice, which {namespace} is not: label or name the namespace, or set spec.join.podLabels of the SliceConfig"
    )]
    PodNotAllowed { slice: String, namespace: String },
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
        let parse = |rules: &[NamespaceRule]| rules.iter().map(Rule::parse).collect::<Result<_, _>>();
        let rules = parse(&spec.namespaces)?;
        let routers = parse(&spec.carried().routers)?;
        let SliceJoin {
            namespace_selector,
            namespace_labels,
            pod_labels,
        } = spec.join.clone().unwrap_or_default();
        Ok(Self {
            slice: slice.to_owned(),
            attach: spec.attach,
            rules,
            routers,
            join: Join {
                namespaces: namespace_selector.unwrap_or_default().try_into()?,
                namespace_labels,
                pod_labels,
            },
        })
    }

    /// Whether the namespace is in the slice, by rule or by its own label: some of its pods may be left out.
    pub fn may_include(&self, namespace: &str, namespace_labels: &Labels) -> bool {
        let labelled =
            labels::slices(namespace_labels).is_ok_and(|slices| slices.contains(self.slice.as_str()));
        labelled && self.lets_namespace(namespace_labels)
            || self
                .rules
                .iter()
                .any(|rule| rule.namespace.matches(namespace, namespace_labels))
    }

    fn lets_namespace(&self, namespace_labels: &Labels) -> bool {
        self.join.namespace_labels && self.join.namespaces.matches(namespace_labels)
    }

    fn lets_pods(&self, namespace: &str, namespace_labels: &Labels) -> bool {
        self.join.pod_labels && self.join.namespaces.matches(namespace_labels)
            || self.may_include(namespace, namespace_labels)
    }

    fn include(&self, pod: &PodFacts, namespace_labels: &Labels) -> bool {
        self.rules.iter().any(|rule| rule.matches(pod, namespace_labels))
    }

    /// Whether a pod of the slice may say that it is a router.
    pub fn lets_route(&self, pod: &PodFacts, namespace_labels: &Labels) -> bool {
        self.routers
            .iter()
            .any(|rule| rule.matches(pod, namespace_labels))
    }
}

impl Rule {
    fn matches(&self, pod: &PodFacts, namespace_labels: &Labels) -> bool {
        self.namespace.matches(&pod.namespace, namespace_labels) && self.pods.matches(&pod.labels)
    }

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
    if pod.namespace == names::GATEWAY_NAMESPACE {
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
    for name in named(namespace_labels, &mut membership.errors) {
        match find(slices, name, &mut membership.errors) {
            Some(rules) if rules.lets_namespace(namespace_labels) => {
                _ = membership.slices.insert(&rules.slice)
            }
            Some(rules) => membership.errors.push(MembershipError::NamespaceNotAllowed {
                slice: rules.slice.clone(),
                namespace: pod.namespace.clone(),
            }),
            None => {}
        }
    }
    for name in named(&pod.labels, &mut membership.errors) {
        match find(slices, name, &mut membership.errors) {
            Some(rules) if rules.lets_pods(&pod.namespace, namespace_labels) => {
                membership.slices.insert(&rules.slice);
            }
            Some(rules) => membership.errors.push(MembershipError::PodNotAllowed {
                slice: rules.slice.clone(),
                namespace: pod.namespace.clone(),
            }),
            None => {}
        }
    }
    let by_rule = slices.iter().filter(|rules| rules.include(pod, namespace_labels));
    membership
        .slices
        .extend(by_rule.map(|rules| rules.slice.as_str()));
    membership
}

/// The slices that a label names; what it names none by is an error.
fn named<'l>(labels: &'l Labels, errors: &mut Vec<MembershipError>) -> BTreeSet<&'l str> {
    labels::slices(labels).unwrap_or_else(|error| {
        errors.push(error.into());
        BTreeSet::new()
    })
}

/// The slice of a name, where this cluster is a member of it.
fn find<'s>(slices: &'s [Rules], name: &str, errors: &mut Vec<MembershipError>) -> Option<&'s Rules> {
    let found = slices.iter().find(|rules| rules.slice == name);
    if found.is_none() {
        errors.push(MembershipError::UnknownSlice(name.to_owned()));
    }
    found
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
        joined(slice, namespaces, SliceJoin::default())
    }

    fn joined(slice: &str, namespaces: Vec<NamespaceRule>, join: SliceJoin) -> Rules {
        Rules::parse(slice, &spec(namespaces, join)).unwrap()
    }

    fn spec(namespaces: Vec<NamespaceRule>, join: SliceJoin) -> SliceSpec {
        SliceSpec {
            vni: 1,
            subnets: vec![],
            mtu: 1370,
            largest_mtu: None,
            block_size: 64,
            cluster: "a".into(),
            cluster_number: 1,
            ranges: vec![],
            releasing: vec![],
            peers: vec![],
            namespaces,
            join: Some(join),
            attach: AttachMode::Required,
            gateway: Default::default(),
            frames: None,
            broadcast: Default::default(),
            dscp: 0,
            shaping: None,
            source: None,
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
    fn pods_that_a_rule_names_may_route() {
        let mut spec = spec(vec![], SliceJoin::default());
        let tier = LabelSelector {
            match_labels: Some(labels(&[("tier", "edge")])),
            ..LabelSelector::default()
        };
        let router = NamespaceRule {
            name: Some("net".into()),
            pod_selector: Some(tier),
            ..NamespaceRule::default()
        };
        spec.frames = Some(crate::v1alpha1::Frames {
            routers: vec![router],
            ..Default::default()
        });
        let rules = Rules::parse("shop", &spec).unwrap();
        let pod = |namespace: &str, tier: &str| PodFacts {
            namespace: namespace.into(),
            labels: labels(&[("tier", tier)]),
            host_network: false,
        };
        assert!(rules.lets_route(&pod("net", "edge"), &labels(&[])));
        assert!(!rules.lets_route(&pod("net", "web"), &labels(&[])));
        assert!(!rules.lets_route(&pod("cart", "edge"), &labels(&[])));
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
        check(&[("team", "bank")], &[], &[]);
        check(&[("team", "bank")], &[("tier", "api")], &["bank"]);
    }

    #[test]
    fn a_pods_label_counts_where_its_namespace_is_in() {
        check(&[], &[(labels::SLICE, "mail.shop")], &[]);
        // Its rule leaves the pod out, its label puts it in.
        check(&[("team", "bank")], &[(labels::SLICE, "bank")], &["bank"]);
        check(&[("name", "cart")], &[(labels::SLICE, "mail.shop")], &["shop"]);
    }

    /// What a namespace and a pod with the slice's label are in, and how many errors there are.
    #[track_caller]
    fn allowed(join: SliceJoin, namespace: &[(&str, &str)], pod: &[(&str, &str)], expected: (bool, usize)) {
        let known = [joined("shop", vec![], join)];
        let facts = PodFacts {
            namespace: "cart".into(),
            labels: labels(pod),
            host_network: false,
        };
        let namespace = labels(namespace);
        let membership = of_pod(&facts, &namespace, &known);
        assert_eq!(
            (membership.slices.contains("shop"), membership.errors.len()),
            expected,
            "{:?}",
            membership.errors
        );
    }

    #[test]
    fn a_slice_says_whose_labels_count() {
        let (own, other) = ((labels::SLICE, "shop"), ("team", "shop"));
        let team = LabelSelector {
            match_labels: Some(labels(&[other])),
            ..LabelSelector::default()
        };
        let selected = |pod_labels| SliceJoin {
            namespace_selector: Some(team.clone()),
            pod_labels,
            ..SliceJoin::default()
        };
        let closed = SliceJoin {
            namespace_labels: false,
            ..SliceJoin::default()
        };
        allowed(SliceJoin::default(), &[own], &[], (true, 0));
        allowed(closed.clone(), &[own], &[], (false, 1));
        allowed(closed, &[], &[own], (false, 1));
        allowed(selected(false), &[own], &[], (false, 1));
        allowed(selected(false), &[own, other], &[], (true, 0));
        allowed(selected(false), &[other], &[own], (false, 1));
        allowed(selected(true), &[other], &[own], (true, 0));
        allowed(selected(true), &[], &[own], (false, 1));
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
        let namespace = labels(&[(labels::SLICE, "shop.nowhere")]);
        let membership = of_pod(&PodFacts::default(), &namespace, &known);
        assert_eq!(membership.slices, BTreeSet::from(["shop"]));
        assert_eq!(
            membership.errors,
            [MembershipError::UnknownSlice("nowhere".into())]
        );
    }
}
