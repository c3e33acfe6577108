//! `attach` and `detach`: the label `weft.dev/slice` on a namespace or a pod. Whether it counts, the slice decides.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use slice_crds::{
    labels,
    membership::{self, Labels, MembershipError, PodFacts, Rules},
    v1alpha1::Slice,
};

use crate::{
    Outcome,
    args::{Attach, Target},
    connect,
    objects::{self, Found},
};

pub(crate) async fn attach(target: &Target, attach: Attach) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let slice = slice_of(&attach).to_owned();
    let slices = slices(&client).await?;
    known(&slices, &slice)?;
    let rules = rules(&slices);
    let subject = Subject::read(&client, attach).await?;
    let value = changed(subject.labels(), &slice, Change::Add)?;
    let after = subject.with(value.clone());
    if let Some(why) = objection(&after, &slice, &rules) {
        bail!("{} is not labelled: {why}", subject.name());
    }
    subject.write(&client, value.as_deref()).await?;
    println!("{} is in {slice}", subject.name());
    Ok(Outcome::Good)
}

pub(crate) async fn detach(target: &Target, detach: Attach) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let slice = slice_of(&detach).to_owned();
    let subject = Subject::read(&client, detach).await?;
    let value = changed(subject.labels(), &slice, Change::Remove)?;
    subject.write(&client, value.as_deref()).await?;
    let rules = rules(&slices(&client).await?);
    if is_member(&subject.with(value), &slice, &rules) {
        println!(
            "{} stays in {slice}: by spec.namespaces of the slice, or by the label of its namespace",
            subject.name()
        );
    } else {
        println!("{} is out of {slice}", subject.name());
    }
    Ok(Outcome::Good)
}

fn slice_of(attach: &Attach) -> &str {
    match attach {
        Attach::Ns { slice, .. } | Attach::Pod { slice, .. } => slice,
    }
}

async fn slices(client: &Client) -> anyhow::Result<Vec<Found<Slice>>> {
    objects::list::<Slice>(client, None, &ListParams::default()).await
}

/// Fails where this cluster has no such slice, or none that can be read.
fn known(slices: &[Found<Slice>], slice: &str) -> anyhow::Result<()> {
    let Some(found) = slices.iter().find(|found| found.name() == slice) else {
        let names: Vec<_> = slices.iter().map(Found::name).collect();
        let names = if names.is_empty() {
            "none".into()
        } else {
            names.join(", ")
        };
        bail!("this cluster is in no slice named {slice}; it is in: {names}");
    };
    match &found.object {
        Ok(object) => Rules::parse(slice, &object.spec)
            .map(drop)
            .with_context(|| format!("the rules of slice {slice} cannot be followed")),
        Err(why) => {
            bail!("slice {slice} cannot be read by this slicectl, so who may join it is not known: {why}")
        }
    }
}

/// The rules of every slice that has some.
pub(super) fn rules(slices: &[Found<Slice>]) -> Vec<Rules> {
    let readable = slices
        .iter()
        .filter_map(|found| Some((found.name(), found.readable()?)));
    readable
        .filter_map(|(name, slice)| Rules::parse(name, &slice.spec).ok())
        .collect()
}

/// What is labelled, with its namespace.
#[derive(Clone, Debug)]
enum Subject {
    Namespace {
        name: String,
        labels: Labels,
        version: Option<String>,
    },
    Pod {
        name: String,
        facts: PodFacts,
        namespace_labels: Labels,
        version: Option<String>,
    },
}

impl Subject {
    async fn read(client: &Client, attach: Attach) -> anyhow::Result<Self> {
        let spaces: Api<Namespace> = Api::all(client.clone());
        let namespace = async |name: &str| {
            spaces
                .get(name)
                .await
                .with_context(|| format!("read namespace {name}"))
        };
        match attach {
            Attach::Ns { name, .. } => {
                let object = namespace(&name).await?;
                Ok(Self::Namespace {
                    labels: object.labels().clone(),
                    version: object.resource_version(),
                    name,
                })
            }
            Attach::Pod { name, .. } => {
                let (space, pod) = name
                    .split_once('/')
                    .with_context(|| format!("\"{name}\" names no pod: write <namespace>/<name>"))?;
                let pods: Api<Pod> = Api::namespaced(client.clone(), space);
                let object = pods
                    .get(pod)
                    .await
                    .with_context(|| format!("read pod {pod} in namespace {space}"))?;
                let host_network = object.spec.as_ref().and_then(|spec| spec.host_network);
                Ok(Self::Pod {
                    name: pod.to_owned(),
                    facts: PodFacts {
                        namespace: space.to_owned(),
                        labels: object.labels().clone(),
                        host_network: host_network.unwrap_or_default(),
                    },
                    namespace_labels: namespace(space).await?.labels().clone(),
                    version: object.resource_version(),
                })
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Namespace { name, .. } => format!("namespace/{name}"),
            Self::Pod { name, .. } => format!("pod/{name}"),
        }
    }

    const fn labels(&self) -> &Labels {
        match self {
            Self::Namespace { labels, .. } => labels,
            Self::Pod { facts, .. } => &facts.labels,
        }
    }

    /// The same with another value of the label.
    fn with(&self, value: Option<String>) -> Self {
        let mut after = self.clone();
        let labels = match &mut after {
            Self::Namespace { labels, .. } => labels,
            Self::Pod { facts, .. } => &mut facts.labels,
        };
        match value {
            Some(value) => _ = labels.insert(labels::SLICE.to_owned(), value),
            None => _ = labels.remove(labels::SLICE),
        }
        after
    }

    /// The pod in question, any for a namespace, and the labels of its namespace.
    fn facts(&self) -> (PodFacts, &Labels) {
        match self {
            Self::Namespace { name, labels, .. } => {
                let facts = PodFacts {
                    namespace: name.clone(),
                    ..PodFacts::default()
                };
                (facts, labels)
            }
            Self::Pod {
                facts,
                namespace_labels,
                ..
            } => (facts.clone(), namespace_labels),
        }
    }

    async fn write(&self, client: &Client, value: Option<&str>) -> anyhow::Result<()> {
        match self {
            Self::Namespace { name, version, .. } => {
                let api: Api<Namespace> = Api::all(client.clone());
                label(&api, name, version.as_deref(), value).await?;
            }
            Self::Pod {
                name, facts, version, ..
            } => {
                let api: Api<Pod> = Api::namespaced(client.clone(), &facts.namespace);
                label(&api, name, version.as_deref(), value).await?;
            }
        }
        Ok(())
    }
}

fn is_member(subject: &Subject, slice: &str, rules: &[Rules]) -> bool {
    let (facts, namespace_labels) = subject.facts();
    membership::of_pod(&facts, namespace_labels, rules)
        .slices
        .contains(slice)
}

/// Why the label would not be followed. Pure.
fn objection(subject: &Subject, slice: &str, rules: &[Rules]) -> Option<String> {
    let (facts, namespace_labels) = subject.facts();
    let membership = membership::of_pod(&facts, namespace_labels, rules);
    let refusal = membership.errors.iter().find(|error| match error {
        MembershipError::NamespaceNotAllowed { slice: of, .. } => {
            of == slice && matches!(subject, Subject::Namespace { .. })
        }
        MembershipError::PodNotAllowed { slice: of, .. } => of == slice,
        MembershipError::Label(_) | MembershipError::UnknownSlice(_) => false,
    });
    if let Some(refusal) = refusal {
        let by_rule = membership.slices.contains(slice);
        let by_rule = if by_rule {
            "; it is in the slice already, by spec.namespaces"
        } else {
            ""
        };
        return Some(format!("{refusal}{by_rule}"));
    }
    if membership.slices.contains(slice) {
        return None;
    }
    Some(if facts.host_network {
        "it uses its node's network, and has none of its own to get an interface in".to_owned()
    } else if facts
        .labels
        .get(labels::EXCLUDE)
        .is_some_and(|value| value == "true")
    {
        format!("its label {}=true keeps it out of every slice", labels::EXCLUDE)
    } else {
        format!(
            "namespace {} is Weft's own, and its pods are in no slice",
            facts.namespace
        )
    })
}

async fn label<K>(api: &Api<K>, name: &str, version: Option<&str>, value: Option<&str>) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let patch = json!({"metadata": {"labels": {labels::SLICE: value}, "resourceVersion": version}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
        .with_context(|| format!("label {} {name}", K::kind(&()).to_lowercase()))
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Add,
    Remove,
}

/// The label's new value, `None` to remove it.
fn changed(labels: &BTreeMap<String, String>, slice: &str, change: Change) -> anyhow::Result<Option<String>> {
    let mut slices: BTreeSet<&str> = labels::slices(labels)?;
    match change {
        Change::Add => slices.insert(slice),
        Change::Remove => slices.remove(slice),
    };
    let value = slices.into_iter().collect::<Vec<_>>().join(".");
    if value.len() > 63 {
        bail!(
            "the label's value would be \"{value}\", longer than 63 characters: name the namespace in the SliceConfig instead"
        );
    }
    Ok((!value.is_empty()).then_some(value))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::objects::from_json;

    fn labelled(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn slices_are_added_and_removed_one_by_one() {
        let check = |before: &str, slice, change, after: Option<&str>| {
            let labels = labelled(&[(labels::SLICE, before)]);
            assert_eq!(changed(&labels, slice, change).unwrap().as_deref(), after);
        };
        check("", "shop", Change::Add, Some("shop"));
        check("shop", "bank", Change::Add, Some("bank.shop"));
        check("bank.shop", "bank", Change::Remove, Some("shop"));
        check("shop", "shop", Change::Remove, None);
        assert!(changed(&labelled(&[(labels::SLICE, "Shop!")]), "bank", Change::Add).is_err());
    }

    fn slice(name: &str, namespaces: Value, join: Value) -> Found<Slice> {
        from_json(json!({
            "metadata": {"name": name},
            "spec": {
                "vni": 4097, "subnets": ["10.80.0.0/16"], "mtu": 1370, "blockSize": 64, "cluster": "a", "clusterNumber": 1,
                "ranges": [], "gateway": {"replicas": 2}, "namespaces": namespaces, "join": join,
            },
        }))
    }

    fn namespace(name: &str, pairs: &[(&str, &str)]) -> Subject {
        Subject::Namespace {
            name: name.into(),
            labels: labelled(pairs),
            version: None,
        }
    }

    fn pod(pairs: &[(&str, &str)], namespace: &[(&str, &str)], host_network: bool) -> Subject {
        Subject::Pod {
            name: "web-0".into(),
            facts: PodFacts {
                namespace: "cart".into(),
                labels: labelled(pairs),
                host_network,
            },
            namespace_labels: labelled(namespace),
            version: None,
        }
    }

    #[track_caller]
    fn check(subject: &Subject, slices: &[Found<Slice>], why: Option<&str>) {
        let subject = subject.with(Some("shop".into()));
        let objection = objection(&subject, "shop", &rules(slices));
        match (&objection, why) {
            (None, None) => {}
            (Some(text), Some(why)) => assert!(text.contains(why), "{text}"),
            _ => panic!("{objection:?}, and not {why:?}"),
        }
    }

    #[test]
    fn a_label_that_the_slice_does_not_let_count_is_not_written() {
        let open = [slice("shop", json!([]), Value::Null)];
        check(&namespace("cart", &[]), &open, None);
        check(
            &pod(&[], &[], false),
            &open,
            Some("a pod's label counts only in a namespace that is in the slice"),
        );
        check(&pod(&[], &[(labels::SLICE, "shop")], false), &open, None);
        let closed = [slice(
            "shop",
            json!([{"name": "till"}]),
            json!({"namespaceLabels": false}),
        )];
        check(
            &namespace("cart", &[]),
            &closed,
            Some("whose spec.join does not let namespace cart join"),
        );
        check(
            &namespace("till", &[]),
            &closed,
            Some("it is in the slice already, by spec.namespaces"),
        );
        let team = json!({"namespaceSelector": {"matchLabels": {"team": "shop"}}, "podLabels": true});
        let team = [slice("shop", json!([]), team)];
        check(&namespace("cart", &[]), &team, Some("spec.join"));
        check(&namespace("cart", &[("team", "shop")]), &team, None);
        check(&pod(&[], &[("team", "shop")], false), &team, None);
        check(&pod(&[], &[], false), &team, Some("spec.join.podLabels"));
    }

    #[test]
    fn pods_that_are_never_in_are_not_labelled() {
        let open = [slice("shop", json!([]), json!({"podLabels": true}))];
        check(&pod(&[], &[], true), &open, Some("its node's network"));
        check(
            &pod(&[(labels::EXCLUDE, "true")], &[], false),
            &open,
            Some("weft.dev/exclude=true"),
        );
        check(&namespace("weft-system", &[]), &open, Some("Weft's own"));
    }

    #[test]
    fn a_slice_that_is_not_here_or_cannot_be_read_is_named() {
        let slices = [
            slice("shop", json!([]), Value::Null),
            slice("bank", json!("odd"), Value::Null),
        ];
        assert!(known(&slices, "shop").is_ok());
        assert!(
            known(&slices, "mail")
                .unwrap_err()
                .to_string()
                .contains("it is in: shop, bank")
        );
        assert!(
            known(&slices, "bank")
                .unwrap_err()
                .to_string()
                .contains("spec.namespaces")
        );
        let selector = json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Odd"}]}});
        assert!(known(&[slice("shop", json!([]), selector)], "shop").is_err());
    }
}
