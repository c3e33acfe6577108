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
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use slice_crds::{
    IndexRange, Subnets, annotations,
    index::MAX_ORDINAL,
    labels,
    membership::{self, Labels, Membership, PodFacts, Rules},
    names,
    v1alpha1::{AttachMode, Slice, SliceBlock, SliceGateway, SliceNode, SliceSpec},
};

use crate::blocks::Blocks;

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
    /// The class of the runtime that its containers run by, where it is not the node's usual one.
    pub runtime_class: Option<String>,
    /// Its containers run, so its network namespace exists.
    pub running: bool,
    /// All its containers have ended for good.
    pub finished: bool,
    /// Somebody asked for its end.
    pub terminating: bool,
    /// Its addresses in the cluster, as the kubelet reports them; none before it has started.
    pub addresses: Vec<IpAddr>,
    pub attachments: Option<String>,
    /// Its annotation [`annotations::BANDWIDTH`].
    pub bandwidth: Option<String>,
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
    pub blocks: Blocks,
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
        let status = pod.status.as_ref();
        let addresses = status
            .and_then(|status| status.pod_ips.as_deref())
            .unwrap_or_default();
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
            runtime_class: spec.and_then(|spec| spec.runtime_class_name.clone()),
            running: phase == Some("Running"),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            addresses: addresses
                .iter()
                .filter_map(|address| address.ip.parse().ok())
                .collect(),
            attachments: annotation(labels::ATTACHMENTS),
            bandwidth: annotation(annotations::BANDWIDTH),
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
    /// A snapshot of the objects given. A slice that makes no sense stays what it was in `previous`; a block or a
    /// gateway that is not named after what it is about is nobody's, so that no object takes another one's place.
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
            let last = previous.and_then(|previous| previous.slices.get(&name));
            // The same object as before, where it says the same: what was decided of it holds.
            if let Some(last) = last.filter(|last| last.spec == slice.spec) {
                world.slices.insert(name, Arc::clone(last));
                continue;
            }
            match SliceFacts::parse(&slice) {
                Ok(facts) => _ = world.slices.insert(name, Arc::new(facts)),
                Err(error) => {
                    world
                        .slices
                        .extend(last.map(|last| (name.clone(), Arc::clone(last))));
                    world.broken.insert(name, error);
                }
            }
        }
        let named = |block: &Arc<SliceBlock>| {
            block.metadata.name.as_deref() == Some(&names::block(&block.spec.slice, &block.spec.node))
        };
        let known = |block: &Arc<SliceBlock>| {
            let before =
                previous.and_then(|previous| previous.blocks.get(&block.spec.slice, &block.spec.node));
            before.is_some_and(|before| Arc::ptr_eq(before, block))
        };
        let blocks = blocks.into_iter().filter(|block| known(block) || named(block));
        world.blocks = blocks.collect();
        if let Some(previous) = previous {
            world.keep_lost_blocks(previous);
            world.blocks.share(&previous.blocks);
        }
        let key = |gateway: &Arc<SliceGateway>| (gateway.spec.slice.clone(), gateway.spec.ordinal);
        let named = |gateway: &Arc<SliceGateway>| {
            let spec = &gateway.spec;
            let name = names::gateway(&spec.slice, spec.ordinal);
            spec.ordinal <= MAX_ORDINAL && gateway.metadata.name == Some(name)
        };
        let gateways = gateways.into_iter().filter(named);
        world.gateways = gateways.map(|gateway| (key(&gateway), gateway)).collect();
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

    /// Keeps blocks whose object has gone while their slice has not: pods that have indices of them go on, and no new pod
    /// gets one. They stay until the object is there again, or somebody else has the indices or the node's address.
    fn keep_lost_blocks(&mut self, previous: &Self) {
        let is_lost = |block: &&Arc<SliceBlock>| {
            let (slice, node) = (&block.spec.slice, &block.spec.node);
            let is_slice = self.slices.contains_key(slice) || self.broken.contains_key(slice);
            if self.blocks.get(slice, node).is_some() || !is_slice {
                return false;
            }
            let mut others = self
                .blocks
                .of_slice(slice)
                .into_iter()
                .flat_map(|blocks| blocks.values());
            let mine = |other: &IndexRange| block.spec.blocks.iter().any(|own| own.overlaps(*other));
            !others.any(|other| {
                other.spec.blocks.iter().any(mine) || other.spec.node_address == block.spec.node_address
            })
        };
        let lost: Vec<_> = previous.blocks.iter().filter(is_lost).cloned().collect();
        for mut block in lost {
            if block.spec.releasing != block.spec.blocks {
                let block = Arc::make_mut(&mut block);
                block.spec.releasing.clone_from(&block.spec.blocks);
            }
            self.blocks.insert(block);
        }
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

    /// Whether a pod of a slice may say that it is a router.
    pub fn lets_route(&self, pod: &PodView, facts: &SliceFacts) -> bool {
        let none = Labels::new();
        let namespace = self.namespaces.get(&pod.facts.namespace);
        facts
            .rules
            .lets_route(&pod.facts, namespace.map_or(&none, |labels| labels))
    }

    pub fn rules(&self) -> Vec<Rules> {
        self.slices.values().map(|facts| facts.rules.clone()).collect()
    }

    /// Whether the pod is part of Weft's own DNS, which is attached to every slice and waits for none.
    pub fn is_dns(pod: &PodView) -> bool {
        pod.facts.namespace == names::MEMBER_NAMESPACE
    }

    /// Namespaces that may have pods which must not start without their interface, with the slices' names: by rule
    /// or label of the namespace, or because a pod there is in by its own label.
    pub fn required_namespaces(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut required: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut require = |namespace: &str, slice: &str| {
            let slices = required.entry(namespace.to_owned()).or_default();
            slices.insert(slice.to_owned());
        };
        let rules = self.rules();
        let waits = |rules: &&Rules| rules.attach == AttachMode::Required;
        for rules in rules.iter().filter(waits) {
            for (namespace, labels) in &self.namespaces {
                if rules.may_include(namespace, labels) {
                    require(namespace, &rules.slice);
                }
            }
        }
        let requiring = rules.iter().filter(waits).map(|rules| rules.slice.as_str());
        let requiring: BTreeSet<&str> = requiring.collect();
        let required_slice = |slice: &str| requiring.contains(slice);
        for pod in self.pods.values() {
            let slices = self.membership(pod, &rules).slices;
            for slice in slices.into_iter().filter(|slice| required_slice(slice)) {
                require(&pod.facts.namespace, slice);
            }
        }
        // Weft's own pods wait for no slice.
        required.remove(names::MEMBER_NAMESPACE);
        required.remove(names::GATEWAY_NAMESPACE);
        required
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodIP, PodStatus};
    use slice_crds::{
        Cidr, IndexRange,
        v1alpha1::{
            Broadcast, GatewayPlacement, NamespaceRule, SliceBlockSpec, SliceGatewaySpec, SliceJoin,
            SliceNodeSpec,
        },
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
            largest_mtu: None,
            block_size: 8,
            cluster: "paris".into(),
            cluster_number: 1,
            ranges: vec![IndexRange::new(0, 64)],
            releasing: vec![],
            peers: vec![],
            namespaces: namespaces.iter().map(rule).collect(),
            join: None,
            attach,
            gateway: GatewayPlacement::default(),
            frames: None,
            broadcast: Broadcast::default(),
            dscp: 0,
            shaping: None,
            source: None,
        };
        Arc::new(Slice::new(name, spec))
    }

    fn world(slices: Vec<Arc<Slice>>, node: Option<bool>, previous: Option<&World>) -> World {
        let spec = |teardown| SliceNodeSpec {
            teardown,
            uplink: None,
            slice_dns: None,
        };
        let node = node.map(|teardown| Arc::new(SliceNode::new("n1", spec(teardown))));
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

    #[test]
    fn a_pods_own_label_makes_its_namespace_wait_where_it_puts_the_pod_in() {
        let shop = |pod_labels| {
            let mut shop = slice("shop", &["10.80.0.0/16"], AttachMode::Required, &[]);
            Arc::make_mut(&mut shop).spec.join = Some(SliceJoin {
                pod_labels,
                ..SliceJoin::default()
            });
            shop
        };
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("cart".into());
        pod.metadata.labels = Some(Labels::from([(labels::SLICE.to_owned(), "shop".to_owned())]));
        let required = |pod_labels| {
            let namespaces = [("cart".to_owned(), Labels::new())];
            let world = World::new(
                [shop(pod_labels)],
                [],
                [],
                namespaces,
                [Arc::new(pod.clone())],
                None,
                None,
            );
            world.required_namespaces().into_keys().collect::<Vec<_>>()
        };
        assert_eq!(required(true), ["cart"]);
        assert_eq!(required(false), [""; 0], "anybody may write a label on his pods");
    }

    #[test]
    fn a_block_whose_object_was_lost_serves_its_pods_until_somebody_else_has_it() {
        let block = |node: &str, address: u8, start| {
            let spec = SliceBlockSpec {
                slice: "shop".into(),
                node: node.into(),
                node_address: [10, 0, 0, address].into(),
                blocks: vec![IndexRange::new(start, 8)],
                releasing: vec![],
                withdrawn: None,
            };
            Arc::new(SliceBlock::new(&names::block("shop", node), spec))
        };
        let shop = || slice("shop", &["10.80.0.0/16"], AttachMode::Required, &[]);
        let next = |slices: Vec<Arc<Slice>>, blocks: Vec<Arc<SliceBlock>>, previous: &World| {
            World::new(slices, blocks, [], [], [], None, Some(previous))
        };
        let nodes = |world: &World| -> Vec<String> {
            let blocks = world.blocks.iter();
            let releasing = |block: &SliceBlock| if block.spec.releasing.is_empty() { "" } else { "!" };
            blocks
                .map(|block| format!("{}{}", block.spec.node, releasing(block)))
                .collect()
        };
        let all = || vec![block("n1", 1, 0), block("n2", 2, 8)];
        let start = next(vec![shop()], all(), &World::default());
        let lost = next(vec![shop()], vec![block("n2", 2, 8)], &start);
        assert_eq!(nodes(&lost), ["n1!", "n2"]);
        assert_eq!(nodes(&next(vec![shop()], vec![], &lost)), ["n1!", "n2!"]);
        assert_eq!(nodes(&next(vec![shop()], all(), &lost)), ["n1", "n2"]);
        for other in [block("n3", 3, 0), block("n3", 1, 16)] {
            let taken = next(vec![shop()], vec![block("n2", 2, 8), other], &lost);
            assert_eq!(nodes(&taken), ["n2", "n3"]);
        }
        assert!(
            nodes(&next(vec![], vec![], &lost)).is_empty(),
            "the slice is gone"
        );
    }

    #[test]
    fn an_object_under_another_name_takes_nobodys_place() {
        let block = |name: &str| {
            let spec = SliceBlockSpec {
                slice: "shop".into(),
                node: "n1".into(),
                node_address: [10, 0, 0, 1].into(),
                blocks: vec![],
                releasing: vec![],
                withdrawn: None,
            };
            Arc::new(SliceBlock::new(name, spec))
        };
        let gateway = |name: &str, ordinal| {
            let spec = SliceGatewaySpec {
                slice: "shop".into(),
                ordinal,
                endpoints: vec![],
                node: None,
                lost: false,
            };
            Arc::new(SliceGateway::new(name, spec))
        };
        let blocks = [block("shop.n1"), block("another")];
        let far = names::gateway("shop", MAX_ORDINAL + 1);
        let gateways = [
            gateway("weft-gateway-shop-0", 0),
            gateway("another", 0),
            gateway(&far, MAX_ORDINAL + 1),
        ];
        let world = World::new([], blocks, gateways, [], [], None, None);
        let name = |object: &str| Some(object.to_owned());
        assert_eq!(
            world
                .blocks
                .iter()
                .next()
                .map(|block| block.metadata.name.clone()),
            Some(name("shop.n1"))
        );
        let seen: Vec<_> = world
            .gateways
            .values()
            .map(|gateway| gateway.metadata.name.clone())
            .collect();
        assert_eq!(seen, [name("weft-gateway-shop-0")]);
    }

    #[test]
    fn a_pods_addresses_are_those_of_the_kubelet() {
        let address = |ip: &str| PodIP { ip: ip.to_owned() };
        let pod = Pod {
            status: Some(PodStatus {
                pod_ips: Some(vec![address("10.244.1.7"), address("fd00::7"), address("")]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        let addresses: Vec<String> = PodView::of(&pod)
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, ["10.244.1.7", "fd00::7"]);
    }
}
