//! Everything that the member role watches.

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{reflector::Store, watcher},
};
use slice_crds::{
    labels,
    mcs::ServiceExport,
    v1alpha1::{MemberService, MemberSlice, Slice, SliceBlock, SliceGateway, SliceNode, SliceService},
};
use slice_runtime::store::Watches;
use tokio_util::sync::CancellationToken;

use super::link::Credential;
use crate::args::ClusterArgs;

/// The member's own API.
pub(crate) struct Stores {
    pub(crate) slices: Store<Slice>,
    pub(crate) blocks: Store<SliceBlock>,
    pub(crate) gateways: Store<SliceGateway>,
    pub(crate) slice_nodes: Store<SliceNode>,
    pub(crate) slice_services: Store<SliceService>,
    pub(crate) nodes: Store<Node>,
    pub(crate) namespaces: Store<PartialObjectMeta<Namespace>>,
    /// Of every pod only the metadata: labels and the attachments' annotation.
    pub(crate) pods: Store<PartialObjectMeta<Pod>>,
    pub(crate) gateway_pods: Store<Pod>,
    pub(crate) gateway_sets: Store<StatefulSet>,
    pub(crate) gateway_budgets: Store<PodDisruptionBudget>,
    pub(crate) gateway_services: Store<Service>,
    pub(crate) services: Store<Service>,
    pub(crate) endpoints: Store<EndpointSlice>,
    pub(crate) exports: Store<ServiceExport>,
    pub(crate) corefile: Option<Store<ConfigMap>>,
}

impl Stores {
    pub(crate) fn watch(client: &Client, watches: &Watches, args: &ClusterArgs) -> Self {
        let all = watcher::Config::default;
        let own = &args.common.namespace;
        let gateways = || {
            watcher::Config::default().labels(&format!("{}={}", labels::COMPONENT, labels::COMPONENT_GATEWAY))
        };
        let corefile = args.coredns_config.split_once('/').map(|(namespace, name)| {
            let field = format!("metadata.name={name}");
            watches.watch(
                Api::namespaced(client.clone(), namespace),
                watcher::Config::default().fields(&field),
            )
        });
        Self {
            slices: watches.watch(Api::all(client.clone()), all()),
            blocks: watches.watch(Api::all(client.clone()), all()),
            gateways: watches.watch(Api::namespaced(client.clone(), own), all()),
            slice_nodes: watches.watch(Api::all(client.clone()), all()),
            slice_services: watches.watch(Api::namespaced(client.clone(), own), all()),
            nodes: watches.watch(Api::all(client.clone()), all()),
            namespaces: watches.watch(Api::all(client.clone()), all()),
            pods: watches.watch(Api::all(client.clone()), all()),
            gateway_pods: watches.watch(Api::namespaced(client.clone(), own), gateways()),
            gateway_sets: watches.watch(Api::namespaced(client.clone(), own), gateways()),
            gateway_budgets: watches.watch(Api::namespaced(client.clone(), own), gateways()),
            gateway_services: watches.watch(Api::namespaced(client.clone(), own), gateways()),
            services: watches.watch(Api::all(client.clone()), all()),
            endpoints: watches.watch(Api::all(client.clone()), all()),
            exports: watches.watch(Api::all(client.clone()), all()),
            corefile,
        }
    }

    /// Completes when every store has been filled once.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        self.slices.wait_until_ready().await?;
        self.blocks.wait_until_ready().await?;
        self.gateways.wait_until_ready().await?;
        self.slice_nodes.wait_until_ready().await?;
        self.slice_services.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.namespaces.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.gateway_pods.wait_until_ready().await?;
        self.gateway_sets.wait_until_ready().await?;
        self.gateway_budgets.wait_until_ready().await?;
        self.gateway_services.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.endpoints.wait_until_ready().await?;
        self.exports.wait_until_ready().await?;
        if let Some(corefile) = &self.corefile {
            corefile.wait_until_ready().await?;
        }
        Ok(())
    }
}

/// What the hub says to this member, and the client it is said through.
pub(crate) struct HubStores {
    pub(crate) credential: Credential,
    pub(crate) client: Client,
    pub(crate) slices: Store<MemberSlice>,
    pub(crate) services: Store<MemberService>,
    stop: CancellationToken,
}

impl HubStores {
    /// Takes up the credential in the Secret, a new one in place of an old.
    ///
    /// With a Secret that cannot be read, or none, what there is goes on.
    pub(crate) fn follow(hub: &mut Option<Self>, secret: Option<&Secret>, watches: &Watches) {
        let Some(secret) = secret else { return };
        let fresh = match Credential::from_secret(secret) {
            Ok(credential) if hub.as_ref().is_some_and(|hub| hub.credential == credential) => return,
            Ok(credential) => Self::connect(credential, watches),
            Err(error) => Err(error),
        };
        match fresh {
            Ok(fresh) => {
                tracing::info!(
                    hub = fresh.credential.server,
                    cluster = fresh.credential.cluster,
                    "hub credential taken up"
                );
                *hub = Some(fresh);
            }
            Err(error) => tracing::warn!(
                secret = secret.name_any(),
                error = format!("{error:#}"),
                "hub credential cannot be used"
            ),
        }
    }

    fn connect(credential: Credential, watches: &Watches) -> anyhow::Result<Self> {
        let client = credential.client()?;
        let stop = CancellationToken::new();
        let watches = watches.until(stop.clone());
        let slices = watches.watch(
            Api::namespaced(client.clone(), &credential.namespace),
            watcher::Config::default(),
        );
        let services = watches.watch(
            Api::namespaced(client.clone(), &credential.namespace),
            watcher::Config::default(),
        );
        Ok(Self {
            credential,
            client,
            slices,
            services,
            stop,
        })
    }

    /// Whether the hub has been heard since the credential was taken up.
    pub(crate) fn heard(&self) -> bool {
        use futures::FutureExt;
        self.slices
            .wait_until_ready()
            .now_or_never()
            .is_some_and(|ready| ready.is_ok())
            && self
                .services
                .wait_until_ready()
                .now_or_never()
                .is_some_and(|ready| ready.is_ok())
    }
}

impl Drop for HubStores {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
