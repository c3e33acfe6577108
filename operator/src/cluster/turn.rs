//! One turn of the member's loop: gather, plan, apply, report.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::Context;
use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Namespace, Node, ObjectReference, Pod, Service},
        networking::v1::ServiceCIDR,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectMeta, Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use slice_crds::{
    Cidr, labels,
    mcs::{ServiceExport, ServiceExportStatus},
    membership::Rules,
    names,
    v1alpha1::{
        MemberReport, MemberReportSpec, MemberService, MemberServiceSpec, ReportWarning, Slice, SliceBlock,
        SliceNode, SliceNodeSpec, SliceService, SliceServiceSpec,
    },
};
use slice_runtime::apply;
use tokio::time::Instant;

use super::{
    MANAGER, TICK,
    blocks::{self, NodeAddress},
    corefile,
    gateways::{self, Workload},
    link, report,
    services::{self, Export},
    stores::{HubStores, Stores},
};
use crate::args::ClusterArgs;

/// Facts of the cluster that are not watched are read again this often.
const FACTS_AGE: std::time::Duration = std::time::Duration::from_secs(300);

/// The member role between turns.
pub(super) struct Member {
    client: Client,
    stores: Stores,
    args: ClusterArgs,
    facts: Option<(Facts, Instant)>,
    /// The last report that the hub took, and when.
    reported: Option<(MemberReportSpec, Instant)>,
    /// Why the last one was not taken.
    hub_silent: Option<String>,
    /// Warnings that users have been told of by event.
    told: BTreeSet<ReportWarning>,
}

/// What is read from the API server now and then.
#[derive(Clone)]
struct Facts {
    kubernetes_version: String,
    service_cidrs: Vec<Cidr>,
}

/// The stores at one moment.
struct World {
    slices: Vec<Arc<Slice>>,
    rules: Vec<Rules>,
    nodes: Vec<Arc<Node>>,
    addresses: Vec<NodeAddress>,
    namespaces: Vec<Arc<PartialObjectMeta<Namespace>>>,
    pods: BTreeMap<(String, String), Arc<PartialObjectMeta<Pod>>>,
    troubles: Vec<ReportWarning>,
}

impl Member {
    pub(super) fn new(client: Client, stores: Stores, args: ClusterArgs) -> Self {
        Self {
            client,
            stores,
            args,
            facts: None,
            reported: None,
            hub_silent: None,
            told: BTreeSet::new(),
        }
    }

    pub(super) async fn turn(&mut self, hub: Option<&HubStores>) -> anyhow::Result<()> {
        let hub = hub.filter(|hub| hub.heard());
        let mut failures = Vec::new();
        if let Some(hub) = hub {
            failures.extend(self.mirror(hub).await.err());
        }
        let world = self.gather();
        failures.extend(self.nodes(&world).await.err());
        let (wanted, result) = self.blocks(&world).await;
        failures.extend(result.err());
        failures.extend(self.gateways(&world).await.err());
        failures.extend(self.services(&world, hub).await.err());
        failures.extend(self.corefile().await.err());
        failures.extend(self.report(&world, &wanted, hub).await.err());
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// The hub's slices as local ones. Only what the hub says now is pruned: a hub that is away says nothing.
    async fn mirror(&self, hub: &HubStores) -> anyhow::Result<()> {
        let desired = hub
            .slices
            .state()
            .iter()
            .map(|told| Slice::new(&told.name_any(), told.spec.slice.clone()))
            .collect();
        let all = |_: Option<&str>| Api::all(self.client.clone());
        apply::sync(all, MANAGER, desired, &self.stores.slices.state(), |a, b| {
            a.spec == b.spec
        })
        .await
    }

    fn gather(&self) -> World {
        let mut slices = self.stores.slices.state();
        slices.sort_by_key(|slice| slice.name_any());
        let mut troubles = Vec::new();
        let mut rules = Vec::new();
        for slice in &slices {
            match Rules::parse(&slice.name_any(), &slice.spec) {
                Ok(parsed) => rules.push(parsed),
                Err(error) => troubles.push(ReportWarning {
                    object: format!("Slice {}", slice.name_any()),
                    message: format!("a selector of its namespace rules: {error}"),
                }),
            }
        }
        let mut nodes = self.stores.nodes.state();
        nodes.sort_by_key(|node| node.name_any());
        let pods = self.stores.pods.state();
        World {
            slices,
            rules,
            addresses: nodes.iter().filter_map(|node| address(node)).collect(),
            nodes,
            namespaces: self.stores.namespaces.state(),
            pods: pods
                .into_iter()
                .map(|pod| ((pod.namespace().unwrap_or_default(), pod.name_any()), pod))
                .collect(),
            troubles,
        }
    }

    async fn nodes(&self, world: &World) -> anyhow::Result<()> {
        let there = self.stores.slice_nodes.state();
        let desired = world
            .nodes
            .iter()
            .map(|node| {
                let name = node.name_any();
                // Being taken down is said by the uninstaller, not here.
                let spec = there
                    .iter()
                    .find(|old| old.name_any() == name)
                    .map(|old| old.spec.clone());
                SliceNode::new(&name, spec.unwrap_or_else(SliceNodeSpec::default))
            })
            .collect();
        let all = |_: Option<&str>| Api::all(self.client.clone());
        // Spec is never compared: it is written once.
        apply::sync(all, MANAGER, desired, &there, |_, _| true).await
    }

    async fn blocks(&self, world: &World) -> (BTreeMap<String, u32>, anyhow::Result<()>) {
        let there = self.stores.blocks.state();
        let mut wanted = BTreeMap::new();
        let mut desired: Vec<SliceBlock> = Vec::new();
        for slice in &world.slices {
            let planned = blocks::plan(slice, &world.addresses, &there);
            desired.extend(planned.objects);
            if planned.wanted > 0 {
                wanted.insert(slice.name_any(), planned.wanted);
            }
        }
        let all = |_: Option<&str>| Api::all(self.client.clone());
        (
            wanted,
            apply::sync(all, MANAGER, desired, &there, |a, b| a.spec == b.spec).await,
        )
    }

    async fn gateways(&self, world: &World) -> anyhow::Result<()> {
        let stores = &self.stores;
        let (pods, services) = (stores.gateway_pods.state(), stores.gateway_services.state());
        let seen = gateways::Seen {
            nodes: &world.addresses,
            pods: &pods,
            services: &services,
        };
        let namespace = &self.args.common.namespace;
        let plan = |slice: &Arc<Slice>| gateways::plan(slice, &self.args.gateway_image, namespace, &seen);
        let (mut sets, mut budgets, mut per_replica, mut objects) = (vec![], vec![], vec![], vec![]);
        for Workload {
            set,
            budget,
            services,
            gateways,
        } in world.slices.iter().map(plan)
        {
            sets.push(set);
            budgets.push(budget);
            per_replica.extend(services);
            objects.extend(gateways);
        }
        let client = &self.client;
        let there = stores.gateways.state();
        apply::sync(apply::namespaced(client), MANAGER, objects, &there, |a, b| {
            a.spec == b.spec
        })
        .await?;
        apply::sync(
            apply::namespaced(client),
            MANAGER,
            per_replica,
            &services,
            apply::covers,
        )
        .await?;
        apply::sync(
            apply::namespaced(client),
            MANAGER,
            budgets,
            &stores.gateway_budgets.state(),
            apply::covers,
        )
        .await?;
        apply::sync(
            apply::namespaced(client),
            MANAGER,
            sets,
            &stores.gateway_sets.state(),
            apply::covers,
        )
        .await
    }

    /// Exports of this cluster to local DNS and to the hub, imports of the others to local DNS.
    async fn services(&self, world: &World, hub: Option<&HubStores>) -> anyhow::Result<()> {
        let stores = &self.stores;
        let there = stores.slice_services.state();
        let cluster = world
            .slices
            .first()
            .map(|slice| slice.spec.cluster.clone())
            .unwrap_or_default();
        let exports = services::exports(
            &services::Seen {
                cluster: &cluster,
                rules: &world.rules,
                namespaces: &world.namespaces,
                services: &stores.services.state(),
                exports: &stores.exports.state(),
                endpoints: &stores.endpoints.state(),
                pods: &world.pods,
            },
            Timestamp::now(),
        );
        let own: Vec<SliceServiceSpec> = exports
            .iter()
            .flat_map(|export| export.services.clone())
            .collect();
        let foreign: Vec<SliceServiceSpec> = match hub {
            Some(hub) => hub
                .services
                .state()
                .iter()
                .map(|service| service.spec.service.clone())
                .collect(),
            None => there.iter().map(|service| service.spec.clone()).collect(),
        };
        let known = |service: &&SliceServiceSpec| {
            service.cluster != cluster && world.slices.iter().any(|slice| slice.name_any() == service.slice)
        };
        let desired = own
            .iter()
            .chain(foreign.iter().filter(known))
            .map(|spec| self.slice_service(spec))
            .collect();
        apply::sync(
            apply::namespaced(&self.client),
            MANAGER,
            desired,
            &there,
            |a, b| a.spec == b.spec,
        )
        .await?;
        if let Some(hub) = hub {
            self.export(hub, &own).await?;
        }
        self.export_status(&exports).await
    }

    fn slice_service(&self, spec: &SliceServiceSpec) -> SliceService {
        let name = names::service(&spec.slice, &spec.cluster, &spec.namespace, &spec.name);
        let mut object = SliceService::new(&name, spec.clone());
        object.metadata.namespace = Some(self.args.common.namespace.clone());
        object.metadata.labels = Some(for_slice(&spec.slice, &spec.cluster));
        object
    }

    async fn export(&self, hub: &HubStores, own: &[SliceServiceSpec]) -> anyhow::Result<()> {
        let desired = own
            .iter()
            .map(|spec| {
                let name = names::service(&spec.slice, &spec.cluster, &spec.namespace, &spec.name);
                let mut object = MemberService::new(
                    &name,
                    MemberServiceSpec {
                        service: spec.clone(),
                    },
                );
                object.metadata.namespace = Some(hub.credential.namespace.clone());
                object.metadata.labels = Some(for_slice(&spec.slice, &spec.cluster));
                object
            })
            .collect();
        let there = hub.services.state();
        apply::sync(
            apply::namespaced(&hub.client),
            MANAGER,
            desired,
            &there,
            |a, b| a.spec == b.spec,
        )
        .await
    }

    async fn export_status(&self, exports: &[Export]) -> anyhow::Result<()> {
        let there = self.stores.exports.state();
        for export in exports {
            let before = there.iter().find(|old| {
                old.namespace().as_ref() == Some(&export.namespace) && old.name_any() == export.name
            });
            let status = ServiceExportStatus {
                conditions: export.conditions.clone(),
            };
            if before.is_some_and(|before| before.status.as_ref() != Some(&status)) {
                let api: Api<ServiceExport> = Api::namespaced(self.client.clone(), &export.namespace);
                apply::apply_status(&api, MANAGER, &export.name, &status).await?;
            }
        }
        Ok(())
    }

    /// Keeps the stub in the cluster DNS's configuration.
    async fn corefile(&self) -> anyhow::Result<()> {
        let Some(config) = self
            .stores
            .corefile
            .as_ref()
            .and_then(|store| store.state().first().cloned())
        else {
            return Ok(());
        };
        let address = self
            .stores
            .services
            .find(|service| is_dns(service, &self.args))
            .and_then(|service| service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok());
        let Some(address) = address else { return Ok(()) };
        let before = config
            .data
            .as_ref()
            .and_then(|data| data.get("Corefile"))
            .map(String::as_str)
            .unwrap_or_default();
        let after = corefile::with_stub(before, address);
        if before == after {
            Ok(())
        } else {
            write_corefile(&self.client, &config, after).await
        }
    }

    async fn report(
        &mut self,
        world: &World,
        wanted: &BTreeMap<String, u32>,
        hub: Option<&HubStores>,
    ) -> anyhow::Result<()> {
        let facts = self.facts().await?;
        let now = Timestamp::now();
        let report = report::report(
            &report::Seen {
                slices: &world.slices,
                blocks: &self.stores.blocks.state(),
                gateways: &self.stores.gateways.state(),
                slice_nodes: &self.stores.slice_nodes.state(),
                nodes: &world.nodes,
                addresses: &world.addresses,
                namespaces: &world.namespaces,
                pods: &world.pods,
                rules: &world.rules,
                wanted,
                service_cidrs: &facts.service_cidrs,
                kubernetes_version: &facts.kubernetes_version,
                troubles: &world.troubles,
            },
            now,
        );
        self.warn(world, &report.warnings).await;
        let sent = self.send(&report, hub).await;
        for (slice, of_slice) in world.slices.iter().zip(&report.slices) {
            let status = report::slice_status(slice, of_slice, self.hub_silent.as_deref(), now);
            let mut before = slice.status.clone().unwrap_or_default();
            before.observed_at.clone_from(&status.observed_at);
            if slice.status.is_none() || before != status {
                let api: Api<Slice> = Api::all(self.client.clone());
                apply::apply_status(&api, MANAGER, &slice.name_any(), &status).await?;
            }
        }
        sent
    }

    /// Tells the hub, where there is something to tell.
    async fn send(&mut self, report: &MemberReportSpec, hub: Option<&HubStores>) -> anyhow::Result<()> {
        let Some(hub) = hub else {
            let why =
                "no connection since this operator started; is the hub up, and is the credential in secret";
            self.hub_silent = Some(format!("{why} {} valid?", self.args.hub_secret));
            return Ok(());
        };
        let due = self.reported.as_ref().is_none_or(|(last, at)| {
            at.elapsed() + TICK / 10 >= TICK || report::lasting(last) != report::lasting(report)
        });
        if due {
            let mut object = MemberReport::new(names::MEMBER_REPORT, report.clone());
            object.metadata.namespace = Some(hub.credential.namespace.clone());
            let api = Api::namespaced(hub.client.clone(), &hub.credential.namespace);
            let written = tokio::time::timeout(TICK, apply::apply(&api, MANAGER, &object)).await;
            if let Err(error) = written.context("the hub does not answer").flatten() {
                self.hub_silent = Some(format!("{error:#}"));
                return Err(error);
            }
            self.hub_silent = None;
            self.reported = Some((report.clone(), Instant::now()));
        }
        if Timestamp::now() >= hub.credential.renew_at()? {
            let secrets = Api::namespaced(self.client.clone(), &self.args.common.namespace);
            link::renew(&hub.credential, &hub.client, &secrets, &self.args.hub_secret).await?;
        }
        Ok(())
    }

    /// An event on the object for each warning that is new.
    async fn warn(&mut self, world: &World, warnings: &[ReportWarning]) {
        let reporter = Reporter {
            controller: MANAGER.into(),
            instance: Some(self.args.common.pod_name.clone()),
        };
        let recorder = Recorder::new(self.client.clone(), reporter);
        for warning in warnings.iter().filter(|warning| !self.told.contains(*warning)) {
            let Some(object) = reference(world, &warning.object) else {
                continue;
            };
            let event = Event {
                type_: EventType::Warning,
                reason: slice_crds::conditions::reason::MALFORMED_LABEL.to_owned(),
                note: Some(warning.message.clone()),
                action: "Attach".to_owned(),
                secondary: None,
            };
            if let Err(error) = recorder.publish(&event, &object).await {
                tracing::warn!(
                    object = warning.object,
                    error = error.to_string(),
                    "event not recorded"
                );
            }
        }
        self.told = warnings.iter().cloned().collect();
    }

    async fn facts(&mut self) -> anyhow::Result<Facts> {
        if let Some((facts, _)) = self.facts.as_ref().filter(|(_, at)| at.elapsed() < FACTS_AGE) {
            return Ok(facts.clone());
        }
        let version = self
            .client
            .apiserver_version()
            .await
            .context("ask for the Kubernetes version")?;
        let cidrs: Api<ServiceCIDR> = Api::all(self.client.clone());
        let service_cidrs = match cidrs.list(&ListParams::default()).await {
            Ok(list) => list
                .items
                .into_iter()
                .filter_map(|item| item.spec?.cidrs)
                .flatten()
                .collect(),
            // Older than Kubernetes 1.33: the range is not in the API.
            Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
            Err(error) => return Err(error).context("list the Service networks"),
        };
        let facts = Facts {
            kubernetes_version: version.git_version,
            service_cidrs: service_cidrs
                .iter()
                .filter_map(|cidr: &String| cidr.parse().ok())
                .collect(),
        };
        self.facts = Some((facts.clone(), Instant::now()));
        Ok(facts)
    }
}

fn for_slice(slice: &str, cluster: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::FOR_SLICE.to_owned(), slice.to_owned()),
        (labels::FOR_CLUSTER.to_owned(), cluster.to_owned()),
    ])
}

fn is_dns(service: &Service, args: &ClusterArgs) -> bool {
    service.name_any() == args.dns_service && service.namespace().as_ref() == Some(&args.common.namespace)
}

/// The first address of type InternalIP.
fn address(node: &Node) -> Option<NodeAddress> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().find(|address| address.type_ == "InternalIP")?;
    Some(NodeAddress {
        name: node.name_any(),
        address: internal.address.parse().ok()?,
    })
}

/// The object of a warning, for its event.
fn reference(world: &World, object: &str) -> Option<ObjectReference> {
    let (kind, name) = object.split_once(' ')?;
    match kind {
        "Namespace" => {
            let namespace = world.namespaces.iter().find(|one| one.name_any() == name)?;
            let reference = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Namespace".to_owned()),
                name: Some(name.to_owned()),
                // Events of cluster-scoped objects live in the default namespace; `kubectl describe` looks there.
                uid: namespace.uid(),
                ..ObjectReference::default()
            };
            Some(reference)
        }
        "Pod" => {
            let (namespace, name) = name.split_once('/')?;
            let pod = world.pods.get(&(namespace.to_owned(), name.to_owned()))?;
            Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                uid: pod.uid(),
                ..ObjectReference::default()
            })
        }
        _ => None,
    }
}

/// Writes the configuration back unless somebody has changed it meanwhile.
pub(super) async fn write_corefile(
    client: &Client,
    config: &ConfigMap,
    corefile: String,
) -> anyhow::Result<()> {
    let (namespace, name) = (config.namespace().unwrap_or_default(), config.name_any());
    let patch = ConfigMap {
        metadata: ObjectMeta {
            resource_version: config.resource_version(),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("Corefile".to_owned(), corefile)])),
        ..ConfigMap::default()
    };
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("write the slice zone's stub into ConfigMap {namespace}/{name}"))?;
    tracing::info!(namespace, name, "cluster DNS configuration written");
    Ok(())
}
