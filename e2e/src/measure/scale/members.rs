//! The members, played: each reports, sends heartbeats and obeys what it is served, with the types of the exchange.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use slice_crds::{
    names,
    wire::{
        Gateway, MemberReport, MemberService, MemberSlice, MemberSliceReport, MemberSliceSpec, Run,
        SliceShare, SliceShareSpec, WIRE,
    },
};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    fleet::{Fleet, GATEWAYS},
    played_key,
};

/// Requests under way.
const AT_ONCE: usize = 32;
/// As real members do.
const HEARTBEAT: Duration = Duration::from_secs(20);
const MANAGER: &str = "weft-cluster";

/// A cluster in a slice, as positions.
type Place = (usize, usize);

/// A key that was reported, until the last cluster of the slice is served it.
struct Pending {
    reported: Instant,
    /// Clusters that lack it.
    missing: HashSet<usize>,
}

pub(super) struct Members {
    client: Client,
    fleet: Fleet,
    slices: HashMap<String, usize>,
    clusters: HashMap<String, usize>,
    served: Mutex<HashMap<Place, MemberSliceSpec>>,
    /// Generations of each gateway's key.
    keys: Mutex<HashMap<(Place, u32), u32>>,
    pending: Mutex<HashMap<String, Pending>>,
    propagated: Mutex<Vec<Duration>>,
    pub(super) heartbeats: AtomicU64,
    /// Watches that ended with an error and were begun anew.
    pub(super) broken: AtomicU64,
}

impl Members {
    pub(super) fn new(client: Client, fleet: Fleet) -> Arc<Self> {
        let numbered = |names: Vec<&String>| {
            let numbered = names.into_iter().enumerate();
            numbered.map(|(number, name)| (name.clone(), number)).collect()
        };
        Arc::new(Self {
            slices: numbered(fleet.slices.iter().map(|slice| &slice.name).collect()),
            clusters: numbered(fleet.clusters.iter().collect()),
            client,
            fleet,
            served: Mutex::default(),
            keys: Mutex::default(),
            pending: Mutex::default(),
            propagated: Mutex::default(),
            heartbeats: AtomicU64::new(0),
            broken: AtomicU64::new(0),
        })
    }

    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// First heartbeats and reports of every cluster.
    pub(super) async fn join(&self) -> Result<()> {
        let all = stream::iter(self.fleet.clusters.iter().map(Ok));
        all.try_for_each_concurrent(AT_ONCE, async |cluster: &String| {
            self.heartbeat(cluster).await?;
            let report = json!({
                "wire": WIRE, "identity": {"clusterUID": format!("uid-{cluster}")}, "weftVersion": "0.1.0",
                "kubernetesVersion": "v1.37.1", "nodes": 3, "underlayMtu": 1500, "podCIDRs": ["198.18.0.0/16"],
                "serviceCIDRs": ["198.19.0.0/16"], "nodeCIDRs": ["192.0.2.0/24"],
            });
            let api: Api<MemberReport> = self.namespaced(cluster);
            apply(&api, names::MEMBER_REPORT, "MemberReport", report).await
        })
        .await
    }

    /// Heartbeats, one cluster after the other, all within the interval.
    pub(super) async fn beat(self: Arc<Self>) -> Result<()> {
        let pause = HEARTBEAT / u32::try_from(self.fleet.clusters.len().max(1)).unwrap_or(u32::MAX);
        let mut clock = tokio::time::interval(pause);
        for cluster in self.fleet.clusters.iter().cycle() {
            clock.tick().await;
            self.heartbeat(cluster).await?;
        }
        Ok(())
    }

    async fn heartbeat(&self, cluster: &str) -> Result<()> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": names::MEMBER_LEASE},
            "spec": {"holderIdentity": cluster, "renewTime": format!("{:.6}", jiff::Timestamp::now())},
        });
        let api: Api<k8s_openapi::api::coordination::v1::Lease> = self.namespaced(cluster);
        let params = PatchParams::apply(MANAGER).force();
        api.patch(names::MEMBER_LEASE, &params, &Patch::Apply(lease))
            .await
            .with_context(|| format!("send the heartbeat of {cluster}"))?;
        self.heartbeats.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn namespaced<K>(&self, cluster: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &names::member_namespace(cluster))
    }

    /// Follows what the hub serves, and reports each slice as it was served.
    pub(super) async fn obey(self: Arc<Self>) -> Result<()> {
        let (to, places) = mpsc::channel::<Place>(4096);
        let watching = async {
            let api: Api<MemberSlice> = Api::all(self.client.clone());
            let mut events = watcher(api, watcher::Config::default()).boxed();
            let mut listeners = JoinSet::new();
            while let Some(event) = events.next().await {
                let (watcher::Event::Apply(object) | watcher::Event::InitApply(object)) =
                    event.context("watch MemberSlices")?
                else {
                    continue;
                };
                let Some(place) = self.place(&object) else {
                    continue;
                };
                let new = object.spec;
                let old = lock(&self.served).insert(place, new.clone());
                if old.as_ref().is_none_or(|old| old.shared_in != new.shared_in) && !new.shared_in.is_empty()
                {
                    listeners.spawn(Arc::clone(&self).listen(place, new.shared_in.clone()));
                }
                if old.is_none_or(|old| old.revision != new.revision || old.slice.ranges != new.slice.ranges)
                {
                    to.send(place).await.context("the writers are gone")?;
                }
            }
            anyhow::Ok(())
        };
        let writing = async {
            let places = stream::unfold(places, async |mut places| {
                Some((Ok(places.recv().await?), places))
            });
            places
                .try_for_each_concurrent(AT_ONCE, async |place| self.report(place).await)
                .await
        };
        tokio::try_join!(watching, writing).map(drop)
    }

    fn place(&self, object: &MemberSlice) -> Option<Place> {
        let cluster = names::member_of(object.metadata.namespace.as_deref()?)?.to_owned();
        Some((
            *self.slices.get(&object.name_any())?,
            *self.clusters.get(&cluster)?,
        ))
    }

    async fn report(&self, place: Place) -> Result<()> {
        let Some(served) = lock(&self.served).get(&place).cloned() else {
            return Ok(());
        };
        let (slice, cluster) = place;
        let gateways: Vec<Gateway> = (0..GATEWAYS)
            .map(|ordinal| Gateway {
                ordinal,
                public_key: Some(self.key(place, ordinal)),
                endpoints: vec![format!(
                    "198.51.{}.{}:{}",
                    cluster / 200,
                    1 + cluster % 200,
                    30_000 + slice * 2 % 30_000 + ordinal as usize
                )],
                node: Some(format!("n{ordinal}")),
                up: true,
                ..Gateway::default()
            })
            .collect();
        let ranges: Vec<Run> = served
            .slice
            .ranges
            .iter()
            .map(|range| Run {
                start: range.start,
                size: range.size,
            })
            .collect();
        let report = json!({
            "name": self.fleet.slices[slice].name, "hub": served.hub, "revision": served.revision,
            "vni": served.slice.vni, "clusterNumber": served.slice.cluster_number,
            "subnets": served.slice.subnets, "ranges": ranges, "attachments": 5, "blocksNeeded": 3, "gateways": gateways,
        });
        let api: Api<MemberSliceReport> = self.namespaced(&self.fleet.clusters[cluster]);
        apply(&api, &self.fleet.slices[slice].name, "MemberSliceReport", report).await
    }

    fn key(&self, place: Place, ordinal: u32) -> String {
        let generation = lock(&self.keys).get(&(place, ordinal)).copied().unwrap_or(0);
        played_key(&format!("{place:?} {ordinal} {generation}"))
    }

    /// How many places have been served.
    pub(super) fn served(&self) -> usize {
        lock(&self.served).len()
    }

    /// Exports every service.
    pub(super) async fn export(&self) -> Result<()> {
        let numbered: Vec<(usize, Place)> = self.fleet.services.iter().copied().enumerate().collect();
        let all = stream::iter(numbered.into_iter().map(Ok));
        all.try_for_each_concurrent(AT_ONCE, async |(number, place): (usize, Place)| {
            let (slice, cluster) = place;
            let played = &self.fleet.slices[slice];
            let subnets = played.subnets().context("the slice's network")?;
            let start = lock(&self.served)
                .get(&place)
                .and_then(|served| served.slice.ranges.first().map(|range| range.start))
                .with_context(|| format!("{} has no range", played.name))?;
            let addresses: Vec<String> = (1..=3)
                .filter_map(|one| subnets.ipv4(start + one))
                .map(|address| address.to_string())
                .collect();
            let cluster = &self.fleet.clusters[cluster];
            let service = format!("svc{number:04}");
            let spec = json!({"service": {
                "slice": played.name, "cluster": cluster, "namespace": "apps", "name": service, "headless": false,
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
                "endpoints": addresses.iter().enumerate().map(|(number, address)| json!({
                    "hostname": format!("pod-{number}"), "addresses": [address],
                })).collect::<Vec<_>>(),
            }});
            let api: Api<MemberService> = self.namespaced(cluster);
            let name = names::service(&played.name, cluster, "apps", &service);
            apply(&api, &name, "MemberService", spec).await
        })
        .await
    }

    /// Follows what one cluster reads of one slice, as it does itself: by a watch of its own.
    async fn listen(self: Arc<Self>, (_, cluster): Place, namespace: String) {
        let api: Api<SliceShare> = Api::namespaced(self.client.clone(), &namespace);
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => self.learn(cluster, &object.spec),
                Ok(_) => {}
                Err(_) => _ = self.broken.fetch_add(1, Ordering::Relaxed),
            }
        }
    }

    /// A cluster knows the keys of some others.
    fn learn(&self, cluster: usize, share: &SliceShareSpec) {
        let mut pending = lock(&self.pending);
        if pending.is_empty() {
            return;
        }
        let gateways = share.peers.iter().flat_map(|peer| &peer.gateways);
        for key in gateways.map(|gateway| &gateway.public_key) {
            let Some(one) = pending.get_mut(key) else { continue };
            one.missing.remove(&cluster);
            if one.missing.is_empty() {
                let took = one.reported.elapsed();
                pending.remove(key);
                lock(&self.propagated).push(took);
            }
        }
    }

    /// Changes the key of the gateway at a position among all of [`Fleet::gateways`].
    pub(super) async fn change_key(&self, position: usize) -> Result<()> {
        let (slice, cluster, ordinal) = self.fleet.gateway(position).context("a gateway")?;
        let place = (slice, cluster);
        *lock(&self.keys).entry((place, ordinal)).or_default() += 1;
        let missing = self.fleet.slices[slice].members.iter().copied().collect();
        let pending = Pending {
            reported: Instant::now(),
            missing,
        };
        lock(&self.pending).insert(self.key(place, ordinal), pending);
        self.report(place).await
    }

    /// What each change took until everybody had it, in milliseconds.
    pub(super) fn propagated(&self) -> Vec<f64> {
        let times = lock(&self.propagated);
        times.iter().map(|took| took.as_secs_f64() * 1000.0).collect()
    }

    /// Changes that somebody has not been served yet.
    pub(super) fn awaited(&self) -> usize {
        lock(&self.pending).len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn apply<K>(api: &Api<K>, name: &str, kind: &str, spec: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let object =
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object))
        .await
        .map(drop)
        .with_context(|| format!("apply {kind} {name}"))
}
