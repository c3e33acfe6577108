//! From the API server to snapshots of the [`World`].

use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{reflector::Store, watcher},
};
use slice_crds::v1alpha1::{Slice, SliceBlock, SliceGateway, SliceNode};
use slice_runtime::{store::Watches, undecodable::Undecodable};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::world::World;

struct Stores {
    slices: Store<Slice>,
    blocks: Store<SliceBlock>,
    gateways: Store<SliceGateway>,
    nodes: Store<SliceNode>,
    namespaces: Store<PartialObjectMeta<Namespace>>,
    pods: Store<Pod>,
}

/// Watches everything that this node works from. The receiver has `None` until every kind has been listed once, and
/// the newest snapshot from then on.
pub fn start(
    client: &Client,
    node: &str,
    watches: &Watches,
    stop: &CancellationToken,
) -> watch::Receiver<Option<Arc<World>>> {
    let all = watcher::Config::default();
    let stores = Stores {
        slices: watches.watch(Api::all(client.clone()), all.clone()),
        blocks: watches.watch(Api::all(client.clone()), all.clone()),
        gateways: watches.watch(Api::all(client.clone()), all.clone()),
        nodes: watches.watch(
            Api::all(client.clone()),
            all.clone().fields(&format!("metadata.name={node}")),
        ),
        namespaces: watches.watch(Api::all(client.clone()), all.clone()),
        pods: watches.watch(
            Api::all(client.clone()),
            all.fields(&format!("spec.nodeName={node}")),
        ),
    };
    let (sender, receiver) = watch::channel(None);
    let (watches, stop) = (watches.clone(), stop.clone());
    tokio::spawn(async move {
        let work = async {
            stores.listed().await.context("list what this node works from")?;
            loop {
                let previous = sender.borrow().clone();
                let world = stores.world(watches.undecodable(), previous.as_deref());
                sender.send_replace(Some(Arc::new(world)));
                watches.changed().await;
            }
        };
        let ended: Option<anyhow::Result<()>> = stop.run_until_cancelled(work).await;
        if let Some(Err(error)) = ended {
            tracing::error!(error = format!("{error:#}"), "watches ended");
        }
    });
    receiver
}

impl Stores {
    async fn listed(&self) -> anyhow::Result<()> {
        self.slices.wait_until_ready().await?;
        self.blocks.wait_until_ready().await?;
        self.gateways.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.namespaces.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        Ok(())
    }

    fn world(&self, undecodable: &Undecodable, previous: Option<&World>) -> World {
        let namespaces = self
            .namespaces
            .state()
            .into_iter()
            .map(|namespace| (namespace.name_any(), namespace.labels().clone()));
        let mut world = World::new(
            self.slices.state(),
            self.blocks.state(),
            self.gateways.state(),
            namespaces,
            self.pods.state(),
            self.nodes.state().into_iter().next(),
            previous,
        );
        let slices = undecodable.objects().into_iter();
        let slices = slices.filter(|object| object.kind == Slice::kind(&()));
        world.broken.extend(slices.map(|slice| (slice.name, slice.error)));
        world
    }
}
