//! The hub role: watches, one loop, and the writing of what [`plan`] wants.

pub mod allocate;
mod gateways;
mod member;
mod outside;
pub mod plan;
pub mod teardown;
mod verdict;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, ServiceAccount},
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::ObjectMeta,
    runtime::{reflector::Store, watcher},
};
use slice_crds::{
    labels, names,
    v1alpha1::{
        Cluster, ClusterStatus, MemberReport, MemberService, MemberSlice, QosProfile, SliceConfig,
        SliceConfigStatus,
    },
};
use slice_runtime::{
    admin::{self, Readiness},
    apply, client, lease,
    store::Watches,
};
use tokio_util::sync::CancellationToken;

use crate::{args::HubArgs, metrics::Metrics};
use plan::{Plan, World};

/// Field manager of the hub, and the value of the label on what it prunes.
pub const MANAGER: &str = "weft-hub";
/// ClusterRole, from the chart, that a member's account is bound to in its own namespace.
const MEMBER_ROLE: &str = "weft-member";
/// The loop turns at least this often: heartbeats grow old without an event.
const TICK: Duration = Duration::from_secs(10);
/// Events that come together make one turn.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Before a turn that failed is repeated.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until `stop`.
///
/// # Errors
/// Where the API server cannot be reached at the start, or the admin port is taken.
pub async fn run(args: HubArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let client = client::local().await?;
    let registry = admin::registry("hub");
    let metrics = Metrics::register(&registry);
    let readiness = Readiness::default();
    let synced = readiness.wait_for("watches");
    let server = tokio::spawn(admin::serve(args.common.admin, registry, readiness, stop.clone()));
    let watches = Watches::new(stop.clone());
    let mut hub = Hub::new(client.clone(), &watches);
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        result = hub.stores.ready() => result?,
    }
    drop(synced);
    let mut leader = lease::claim(
        client,
        &args.common.namespace,
        MANAGER,
        args.common.pod_name,
        stop.clone(),
    );
    loop {
        let holds = *leader.borrow_and_update();
        metrics.leader.set(holds.into());
        let mut wait = TICK;
        if holds {
            let started = Instant::now();
            if let Err(error) = hub.turn().await {
                tracing::warn!(error = format!("{error:#}"), "turn incomplete, repeated soon");
                metrics.errors.inc();
                wait = RETRY;
            }
            metrics.turns.observe(started.elapsed().as_secs_f64());
        }
        tokio::select! {
            // First: an operator that was told to stop must not take one more turn and put back what is being removed.
            biased;
            () = stop.cancelled() => break,
            () = watches.changed(), if holds => tokio::time::sleep(DEBOUNCE).await,
            () = tokio::time::sleep(wait) => {}
            _ = leader.changed() => {}
        }
    }
    server.await.context("admin listener")?
}

struct Stores {
    slices: Store<SliceConfig>,
    profiles: Store<QosProfile>,
    clusters: Store<Cluster>,
    member_slices: Store<MemberSlice>,
    member_services: Store<MemberService>,
    reports: Store<MemberReport>,
    namespaces: Store<Namespace>,
    accounts: Store<ServiceAccount>,
    bindings: Store<RoleBinding>,
}

impl Stores {
    async fn ready(&self) -> anyhow::Result<()> {
        self.slices.wait_until_ready().await?;
        self.profiles.wait_until_ready().await?;
        self.clusters.wait_until_ready().await?;
        self.member_slices.wait_until_ready().await?;
        self.member_services.wait_until_ready().await?;
        self.reports.wait_until_ready().await?;
        self.namespaces.wait_until_ready().await?;
        self.accounts.wait_until_ready().await?;
        self.bindings.wait_until_ready().await?;
        Ok(())
    }
}

struct Hub {
    client: Client,
    stores: Stores,
    /// Statuses as they were last written, by UID: a store may lag behind, and what was allocated must not be
    /// allocated again.
    slices_written: BTreeMap<String, SliceConfigStatus>,
    clusters_written: BTreeMap<String, ClusterStatus>,
}

impl Hub {
    fn new(client: Client, watches: &Watches) -> Self {
        let all = watcher::Config::default;
        let owned = || watcher::Config::default().labels(&format!("{}={MANAGER}", labels::MANAGED_BY));
        let stores = Stores {
            slices: watches.watch(Api::all(client.clone()), all()),
            profiles: watches.watch(Api::all(client.clone()), all()),
            clusters: watches.watch(Api::all(client.clone()), all()),
            member_slices: watches.watch(Api::all(client.clone()), all()),
            member_services: watches.watch(Api::all(client.clone()), all()),
            reports: watches.watch(Api::all(client.clone()), all()),
            namespaces: watches.watch(Api::all(client.clone()), owned()),
            accounts: watches.watch(Api::all(client.clone()), owned()),
            bindings: watches.watch(Api::all(client.clone()), owned()),
        };
        Self {
            client,
            stores,
            slices_written: BTreeMap::new(),
            clusters_written: BTreeMap::new(),
        }
    }

    async fn turn(&mut self) -> anyhow::Result<()> {
        let world = self.gather();
        let plan = plan::plan(&world, Timestamp::now());
        let applied = self.apply(&plan).await;
        // Statuses are written also where an object could not be: they say why.
        self.report(&world, plan).await?;
        applied
    }

    /// From the stores, with the statuses that they may not show yet.
    fn gather(&mut self) -> World {
        let stores = &self.stores;
        let mut slices = stores.slices.state();
        self.slices_written
            .retain(|uid, _| slices.iter().any(|slice| slice.uid().as_ref() == Some(uid)));
        for slice in &mut slices {
            let written = slice.uid().and_then(|uid| self.slices_written.get(&uid));
            if let Some(written) = written.filter(|written| slice.status.as_ref() != Some(*written)) {
                Arc::make_mut(slice).status = Some(written.clone());
            }
        }
        let mut clusters = stores.clusters.state();
        self.clusters_written
            .retain(|uid, _| clusters.iter().any(|cluster| cluster.uid().as_ref() == Some(uid)));
        for cluster in &mut clusters {
            let written = cluster.uid().and_then(|uid| self.clusters_written.get(&uid));
            if let Some(written) = written.filter(|written| cluster.status.as_ref() != Some(*written)) {
                Arc::make_mut(cluster).status = Some(written.clone());
            }
        }
        World {
            slices,
            profiles: stores.profiles.state(),
            clusters,
            reports: stores
                .reports
                .state()
                .into_iter()
                .filter(|report| report.name_any() == names::MEMBER_REPORT)
                .map(|report| (report.namespace().unwrap_or_default(), report))
                .collect(),
            services: stores.member_services.state(),
            told: stores.member_slices.state(),
        }
    }

    async fn apply(&self, plan: &Plan) -> anyhow::Result<()> {
        let (client, stores) = (&self.client, &self.stores);
        let namespaces = plan
            .members
            .iter()
            .map(|(cluster, name)| namespace(cluster, name))
            .collect();
        let accounts = plan
            .members
            .iter()
            .map(|(cluster, name)| account(cluster, name))
            .collect();
        let bindings = plan
            .members
            .iter()
            .map(|(cluster, name)| binding(cluster, name))
            .collect();
        let all = |_: Option<&str>| Api::all(client.clone());
        apply::sync(
            all,
            MANAGER,
            namespaces,
            &stores.namespaces.state(),
            apply::covers,
        )
        .await?;
        let accounts_there = stores.accounts.state();
        apply::sync(
            apply::namespaced(client),
            MANAGER,
            accounts,
            &accounts_there,
            apply::covers,
        )
        .await?;
        let bindings_there = stores.bindings.state();
        apply::sync(
            apply::namespaced(client),
            MANAGER,
            bindings,
            &bindings_there,
            apply::covers,
        )
        .await?;
        // Within a namespace that is going away nothing can be written, and nothing needs to be.
        let slices = plan.member_slices.clone();
        let slices_there = stores.member_slices.state();
        apply::sync(
            apply::namespaced(client),
            MANAGER,
            slices,
            &slices_there,
            |a, b| a.spec == b.spec,
        )
        .await?;
        let services = plan.member_services.clone();
        let services_there = stores.member_services.state();
        apply::sync(
            apply::namespaced(client),
            MANAGER,
            services,
            &services_there,
            |a, b| a.spec == b.spec,
        )
        .await
    }

    async fn report(&mut self, world: &World, plan: Plan) -> anyhow::Result<()> {
        for (namespace, name, status) in plan.slice_status {
            let Some(slice) = find(&world.slices, &namespace, &name) else {
                continue;
            };
            if !same_but_time(slice.status.as_ref(), &status, |status| &mut status.observed_at) {
                let api: Api<SliceConfig> = Api::namespaced(self.client.clone(), &namespace);
                apply::apply_status(&api, MANAGER, &name, &status).await?;
                self.slices_written
                    .insert(slice.uid().unwrap_or_default(), status);
            }
        }
        for (namespace, name, status) in plan.cluster_status {
            let Some(cluster) = find(&world.clusters, &namespace, &name) else {
                continue;
            };
            if cluster.status.as_ref() != Some(&status) {
                let api: Api<Cluster> = Api::namespaced(self.client.clone(), &namespace);
                apply::apply_status(&api, MANAGER, &name, &status).await?;
                self.clusters_written
                    .insert(cluster.uid().unwrap_or_default(), status);
            }
        }
        Ok(())
    }
}

fn find<'a, K: ResourceExt>(objects: &'a [Arc<K>], namespace: &str, name: &str) -> Option<&'a Arc<K>> {
    objects
        .iter()
        .find(|object| object.namespace().as_deref() == Some(namespace) && object.name_any() == name)
}

/// Whether two statuses say the same, whenever it was observed.
fn same_but_time<S, T>(old: Option<&S>, new: &S, time: impl Fn(&mut S) -> &mut Option<T>) -> bool
where
    S: Clone + PartialEq,
{
    let Some(old) = old else { return false };
    let (mut old, mut new) = (old.clone(), new.clone());
    (*time(&mut old), *time(&mut new)) = (None, None);
    old == new
}

fn owned_meta(cluster: &str, name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(ToOwned::to_owned),
        labels: Some(BTreeMap::from([(
            labels::FOR_CLUSTER.to_owned(),
            cluster.to_owned(),
        )])),
        ..ObjectMeta::default()
    }
}

fn namespace(cluster: &str, name: &str) -> Namespace {
    Namespace {
        metadata: owned_meta(cluster, name, None),
        ..Namespace::default()
    }
}

fn account(cluster: &str, namespace: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: owned_meta(cluster, names::MEMBER_ACCOUNT, Some(namespace)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

fn binding(cluster: &str, namespace: &str) -> RoleBinding {
    RoleBinding {
        metadata: owned_meta(cluster, names::MEMBER_ACCOUNT, Some(namespace)),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: MEMBER_ROLE.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: ServiceAccount::kind(&()).into_owned(),
            name: names::MEMBER_ACCOUNT.to_owned(),
            namespace: Some(namespace.to_owned()),
            ..Subject::default()
        }]),
    }
}
