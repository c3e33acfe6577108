//! Watches: a kind's objects as events, one by one and undecoded.
//!
//! What cannot be read is the reader's to say ([`crate::control::read`]); here no object stops a list. The channel is
//! bounded: a controller that is behind holds the watches up, not the memory.

use std::{collections::BTreeSet, fmt::Debug};

use futures::StreamExt;
use kube::{
    Api, Resource,
    api::DynamicObject,
    core::{ApiResource, PartialObjectMeta},
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use slice_runtime::store::{WatchHealth, back_off};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::control::{Id, Meta};

/// Events of all watches of a controller that it has not taken yet.
pub(super) const CHANNEL: usize = 4096;

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Signal {
    Seen(Value),
    Gone(Meta),
    /// These are all there are: namespaces and names.
    Listed(BTreeSet<Id>),
}

/// Which objects.
pub(super) struct Scope {
    pub(super) namespace: Option<String>,
    pub(super) config: watcher::Config,
}

impl Scope {
    pub(super) fn all() -> Self {
        Self {
            namespace: None,
            config: watcher::Config::default(),
        }
    }

    pub(super) fn inside(namespace: &str) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            ..Self::all()
        }
    }

    pub(super) fn labelled(mut self, selector: &str) -> Self {
        self.config = self.config.labels(selector);
        self
    }

    pub(super) fn named(mut self, name: &str) -> Self {
        self.config = self.config.fields(&format!("metadata.name={name}"));
        self
    }
}

/// Watches whole objects until `stop`.
pub(super) fn whole<E: Send + 'static>(
    client: &kube::Client,
    resource: &ApiResource,
    scope: Scope,
    to: mpsc::Sender<E>,
    stop: CancellationToken,
    event: impl Fn(Signal) -> E + Send + Sync + 'static,
) {
    let api: Api<DynamicObject> = match &scope.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    };
    let kind = resource.kind.clone();
    tokio::spawn(run(kind, api, scope.config, raw, to, stop, event));
}

/// Watches the metadata of objects until `stop`.
pub(super) fn metadata<K, E>(
    client: &kube::Client,
    to: mpsc::Sender<E>,
    stop: CancellationToken,
    event: impl Fn(Signal) -> E + Send + Sync + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    E: Send + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::all(client.clone());
    let kind = K::kind(&()).into_owned();
    tokio::spawn(run(
        kind,
        api,
        watcher::Config::default(),
        raw_metadata,
        to,
        stop,
        event,
    ));
}

/// An object as JSON, without what only API servers read.
pub(super) fn raw(mut object: DynamicObject) -> Value {
    object.metadata.managed_fields = None;
    let mut value = object.data;
    value["metadata"] = json!(object.metadata);
    value
}

fn raw_metadata<K>(mut object: PartialObjectMeta<K>) -> Value {
    object.metadata.managed_fields = None;
    json!({ "metadata": object.metadata })
}

async fn run<K, E>(
    kind: String,
    api: Api<K>,
    config: watcher::Config,
    raw: fn(K) -> Value,
    to: mpsc::Sender<E>,
    stop: CancellationToken,
    event: impl Fn(Signal) -> E,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let stream = watcher(api, config).backoff(back_off());
    let mut stream = std::pin::pin!(stream.take_until(stop.cancelled_owned()));
    let mut there = BTreeSet::new();
    let mut health = WatchHealth::new(kind);
    while let Some(news) = stream.next().await {
        let signal = match news {
            Ok(watcher::Event::Init) => {
                there.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                let meta = object.meta();
                let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
                there.insert((text(&meta.namespace), text(&meta.name)));
                Signal::Seen(raw(object))
            }
            Ok(watcher::Event::InitDone) => Signal::Listed(std::mem::take(&mut there)),
            Ok(watcher::Event::Apply(object)) => Signal::Seen(raw(object)),
            Ok(watcher::Event::Delete(object)) => Signal::Gone(Meta::of(&raw(object))),
            Err(error) => {
                health.breaks(&error);
                continue;
            }
        };
        health.works();
        if to.send(event(signal)).await.is_err() {
            break;
        }
    }
}
