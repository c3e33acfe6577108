//! The objects that this node works from, as one snapshot. Pure values; [`crate::watch`] takes the snapshots.
//!
//! ```text
//!  Slice ─────── what the network is, who belongs to it
//!  SliceBlock ── which indices which node has, and that node's address
//!  SliceGateway─ which gateway is where
//!  Namespace, Pod (this node's) ── labels
//!  SliceNode (this node's) ── whether to take everything away
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use slice_crds::{
    Subnets, labels,
    membership::{self, Labels, Membership, PodFacts, Rules},
    v1alpha1::{Slice, SliceBlock, SliceGateway, SliceNode, SliceSpec},
};

/// A slice, checked.
#[derive(Clone, Debug)]
pub struct SliceFacts {
    pub spec: SliceSpec,
    pub subnets: Subnets,
    pub rules: Rules,
}

/// What an attachment needs to know of a pod.
#[derive(Clone, Debug, Default)]
pub struct PodView {
    pub uid: String,
    pub name: String,
    pub facts: PodFacts,
    /// The UID that the container runtime knows it by: another one for a static pod.
    pub sandbox_uid: String,
    /// Its containers run, so its network namespace exists.
    pub running: bool,
    /// All its containers have ended for good.
    pub finished: bool,
    /// Somebody asked for its end.
    pub terminating: bool,
    pub attachments: Option<String>,
    pub network_status: Option<String>,
    /// Whether it waits for [`labels::READINESS_GATE`], and what that condition says at present.
    pub gate: Option<Option<bool>>,
    pub resource_version: Option<String>,
}

/// One snapshot.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub slices: BTreeMap<String, Arc<SliceFacts>>,
    /// Slices that make no sense, and why. They are kept as they last did.
    pub broken: BTreeMap<String, String>,
    /// By slice and node.
    pub blocks: BTreeMap<(String, String), Arc<SliceBlock>>,
    /// By slice and ordinal.
    pub gateways: BTreeMap<(String, u32), Arc<SliceGateway>>,
    pub namespaces: BTreeMap<String, Arc<Labels>>,
    /// This node's pods, by UID.
    pub pods: BTreeMap<String, Arc<PodView>>,
    pub node: Option<Arc<SliceNode>>,
}

impl SliceFacts {
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn parse(slice: &Slice) -> Result<Self, String> {
        let name = slice.name_any();
        let subnets = Subnets::new(&slice.spec.subnets).map_err(|error| error.to_string())?;
        let rules = Rules::parse(&name, &slice.spec).map_err(|error| format!("selector: {error}"))?;
        Ok(Self {
            spec: slice.spec.clone(),
            subnets,
            rules,
        })
    }
}

impl PodView {
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let annotation = |key: &str| pod.annotations().get(key).cloned();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let gates = spec
            .and_then(|spec| spec.readiness_gates.as_deref())
            .unwrap_or_default();
        let gate = gates
            .iter()
            .any(|gate| gate.condition_type == labels::READINESS_GATE)
            .then(|| {
                let conditions = pod
                    .status
                    .as_ref()
                    .and_then(|status| status.conditions.as_deref());
                let mut conditions = conditions.unwrap_or_default().iter();
                conditions
                    .find(|condition| condition.type_ == labels::READINESS_GATE)
                    .map(|condition| condition.status == "True")
            });
        let uid = pod.uid().unwrap_or_default();
        Self {
            // The kubelet names a static pod's sandbox after its file and mirrors it under another UID.
            sandbox_uid: annotation("kubernetes.io/config.hash").unwrap_or_else(|| uid.clone()),
            uid,
            name: pod.name_any(),
            facts: PodFacts {
                namespace: pod.namespace().unwrap_or_default(),
                labels: pod.labels().clone(),
                host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
            },
            running: phase == Some("Running"),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            attachments: annotation(labels::ATTACHMENTS),
            network_status: annotation(labels::NETWORK_STATUS),
            gate,
            resource_version: pod.resource_version(),
        }
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.facts.namespace, self.name)
    }
}

impl World {
    /// A snapshot of the objects given. A slice that makes no sense stays what it was in `previous`.
    pub fn new(
        slices: impl IntoIterator<Item = Arc<Slice>>,
        blocks: impl IntoIterator<Item = Arc<SliceBlock>>,
        gateways: impl IntoIterator<Item = Arc<SliceGateway>>,
        namespaces: impl IntoIterator<Item = (String, Labels)>,
        pods: impl IntoIterator<Item = Arc<Pod>>,
        node: Option<Arc<SliceNode>>,
        previous: Option<&Self>,
    ) -> Self {
        // While Weft is uninstalled its kinds go too, and with them this node's object: what was removed stays so.
        let removed = previous
            .filter(|previous| previous.teardown())
            .and_then(|previous| previous.node.clone());
        let mut world = Self {
            node: node.or(removed),
            ..Self::default()
        };
        for slice in slices {
            let name = slice.name_any();
            match SliceFacts::parse(&slice) {
                Ok(facts) => _ = world.slices.insert(name, Arc::new(facts)),
                Err(error) => {
                    let last = previous.and_then(|previous| previous.slices.get(&name));
                    world
                        .slices
                        .extend(last.map(|last| (name.clone(), Arc::clone(last))));
                    world.broken.insert(name, error);
                }
            }
        }
        let key = |block: &Arc<SliceBlock>| (block.spec.slice.clone(), block.spec.node.clone());
        world.blocks = blocks.into_iter().map(|block| (key(&block), block)).collect();
        let key = |gateway: &Arc<SliceGateway>| (gateway.spec.slice.clone(), gateway.spec.ordinal);
        world.gateways = gateways
            .into_iter()
            .map(|gateway| (key(&gateway), gateway))
            .collect();
        world.namespaces = namespaces
            .into_iter()
            .map(|(name, labels)| (name, Arc::new(labels)))
            .collect();
        world.pods = pods
            .into_iter()
            .map(|pod| Arc::new(PodView::of(&pod)))
            .map(|pod| (pod.uid.clone(), pod))
            .collect();
        world
    }

    /// Whether everything of Weft is to leave this node.
    pub fn teardown(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.spec.teardown)
    }

    /// The slices of a pod. A pod that has ended is in none.
    pub fn membership<'a>(&'a self, pod: &PodView, rules: &'a [Rules]) -> Membership<'a> {
        if pod.finished {
            return Membership::default();
        }
        let none = Labels::new();
        let namespace = self.namespaces.get(&pod.facts.namespace);
        membership::of_pod(&pod.facts, namespace.map_or(&none, |labels| labels), rules)
    }

    pub fn rules(&self) -> Vec<Rules> {
        self.slices.values().map(|facts| facts.rules.clone()).collect()
    }

    /// Whether the pod is part of Weft's own DNS, which is attached to every slice and waits for none.
    pub fn is_dns(pod: &PodView) -> bool {
        pod.facts.namespace == slice_crds::names::MEMBER_NAMESPACE
    }

    /// Namespaces that may have pods which must not start without their interface, with the slices' names: by rule
    /// or label of the namespace, or because a pod there asks for it itself.
    pub fn required_namespaces(&self) -> BTreeMap<String, BTreeSet<String>> {
        use slice_crds::v1alpha1::AttachMode;
        let mut required: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let waits = |facts: &SliceFacts| facts.rules.attach == AttachMode::Required;
        for (name, facts) in self.slices.iter().filter(|(_, facts)| waits(facts)) {
            for (namespace, labels) in &self.namespaces {
                if facts.rules.may_include(namespace, labels) {
                    required
                        .entry(namespace.clone())
                        .or_default()
                        .insert(name.clone());
                }
            }
        }
        for pod in self.pods.values().filter(|pod| !Self::is_dns(pod)) {
            for slice in labels::slices(&pod.facts.labels).unwrap_or_default() {
                if self.slices.get(slice).is_some_and(|facts| waits(facts)) {
                    required
                        .entry(pod.facts.namespace.clone())
                        .or_default()
                        .insert(slice.to_owned());
                }
            }
        }
        required.remove(slice_crds::names::MEMBER_NAMESPACE);
        required
    }
}

#[cfg(test)]
mod tests {
    use slice_crds::{
        Cidr, IndexRange,
        v1alpha1::{AttachMode, Broadcast, GatewayPlacement, NamespaceRule, SliceNodeSpec},
    };

    use super::*;

    fn slice(name: &str, subnets: &[&str], attach: AttachMode, namespaces: &[&str]) -> Arc<Slice> {
        let rule = |name: &&str| NamespaceRule {
            name: Some((*name).to_owned()),
            ..NamespaceRule::default()
        };
        let spec = SliceSpec {
            vni: 7,
            subnets: subnets.iter().map(|text| text.parse::<Cidr>().unwrap()).collect(),
            mtu: 1370,
            block_size: 8,
            cluster: "paris".into(),
            cluster_number: 1,
            ranges: vec![IndexRange::new(0, 64)],
            peers: vec![],
            namespaces: namespaces.iter().map(rule).collect(),
            attach,
            gateway: GatewayPlacement::default(),
            broadcast: Broadcast::default(),
            dscp: 0,
        };
        Arc::new(Slice::new(name, spec))
    }

    fn world(slices: Vec<Arc<Slice>>, node: Option<bool>, previous: Option<&World>) -> World {
        let node = node.map(|teardown| Arc::new(SliceNode::new("n1", SliceNodeSpec { teardown })));
        let labels = |value: &str| Labels::from([(labels::SLICE.to_owned(), value.to_owned())]);
        let namespaces = [
            ("cart".to_owned(), Labels::new()),
            ("till".to_owned(), labels("shop")),
            ("mail".to_owned(), labels("post")),
        ];
        World::new(slices, [], [], namespaces, [], node, previous)
    }

    #[test]
    fn what_was_removed_stays_removed_when_its_object_goes() {
        let running = world(vec![], Some(false), None);
        assert!(!world(vec![], None, Some(&running)).teardown());
        let removed = world(vec![], Some(true), Some(&running));
        let after = world(vec![], None, Some(&removed));
        assert!(after.teardown());
        assert!(
            !world(vec![], Some(false), Some(&after)).teardown(),
            "until somebody installs it again"
        );
    }

    #[test]
    fn a_slice_that_makes_no_sense_stays_what_it_was() {
        let before = world(
            vec![slice("shop", &["10.80.0.0/16"], AttachMode::Required, &[])],
            None,
            None,
        );
        let broken = slice("shop", &[], AttachMode::Required, &[]);
        let after = world(vec![broken], None, Some(&before));
        assert_eq!(after.slices["shop"].subnets, before.slices["shop"].subnets);
        assert!(after.broken["shop"].contains("needs at least one subnet"));
    }

    #[test]
    fn namespaces_wait_for_slices_that_require_it() {
        let slices = vec![
            slice("shop", &["10.80.0.0/16"], AttachMode::Required, &["cart"]),
            slice("post", &["10.90.0.0/16"], AttachMode::BestEffort, &[]),
        ];
        let required: Vec<String> = world(slices, None, None)
            .required_namespaces()
            .into_keys()
            .collect();
        assert_eq!(required, ["cart", "till"]);
    }
}
