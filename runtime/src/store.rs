//! Watches as stores: a kind's objects, kept in memory, and one bell that rings whenever any of them changed.
//!
//! ```text
//!  API server ─ list, watch ─► Guarded ─┬─ decoded ─────► Store, bell
//!                                       └─ not decoded ─► Undecodable; the Store keeps what it had of that object
//! ```

use std::{borrow::Cow, fmt::Debug, hash::Hash, sync::Arc, time::Duration};

use backon::ExponentialBuilder;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Resource,
    core::{DeserializeGuard, DynamicResourceScope},
    runtime::{
        WatchStreamExt,
        reflector::{
            ObjectRef, Store,
            store::{Writer, store},
        },
        watcher,
        watcher::Event,
    },
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::undecodable::{OfWatch, Undecodable};

/// Before a broken watch is first taken up again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest back-off of a broken watch, without its jitter, which is as much again at most.
///
/// client-go's reflector waits up to 30 s, and again as long when the API server, back at last, answers that the
/// resource version has expired. Keys of gateways come by these watches: a gateway that restarted just after an API
/// server would stay alone for that time. A refused connection costs an API server nothing, and a watch that goes on
/// is served from its cache.
const LAST_RETRY: Duration = Duration::from_millis(2500);

/// Starts watches that share one bell, one end, and one record of what cannot be decoded.
#[derive(Clone)]
pub struct Watches {
    bell: Arc<Notify>,
    stop: CancellationToken,
    undecodable: Undecodable,
}

impl Watches {
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            bell: Arc::default(),
            stop,
            undecodable: Undecodable::default(),
        }
    }

    /// Completes when something changed since it last completed.
    pub async fn changed(&self) {
        self.bell.notified().await;
    }

    /// Rings the bell.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    /// Ends with its own token instead of the one it was made with.
    #[must_use]
    pub fn until(&self, stop: CancellationToken) -> Self {
        Self { stop, ..self.clone() }
    }

    /// What cannot be decoded, of all watches that were started from here.
    pub fn undecodable(&self) -> &Undecodable {
        &self.undecodable
    }

    /// Watches one kind into a store. A watch that breaks is taken up again with back-off; the store keeps what it
    /// has meanwhile.
    ///
    /// No object stops a watch: of one that cannot be decoded the store keeps the last version that could, or nothing
    /// where there was none, and [`Watches::undecodable`] tells of it. The bell rings for those too.
    pub fn watch<K>(&self, api: Api<K>, config: watcher::Config) -> Store<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync + Unpin,
    {
        let (reader, writer) = store();
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        let mut sieve = Sieve {
            writer,
            kept: reader.clone(),
            undecodable: self.undecodable.of_watch(kind.clone()),
        };
        let (bell, stop) = (Arc::clone(&self.bell), self.stop.clone());
        tokio::spawn(async move {
            let stream = watcher(guarded(api), config).backoff(back_off());
            let mut stream = std::pin::pin!(stream.take_until(stop.cancelled_owned()));
            let mut health = WatchHealth::new(kind);
            while let Some(event) = stream.next().await {
                match event {
                    Ok(event) => {
                        // During a list the store changes when the list is whole.
                        let whole = !matches!(event, Event::Init | Event::InitApply(_));
                        sieve.take(event);
                        if whole {
                            health.works();
                            bell.notify_one();
                        }
                    }
                    Err(error) => health.breaks(&error),
                }
            }
        });
        reader
    }
}

/// Whether the watch of a kind works: logged when that changes.
pub struct WatchHealth {
    kind: String,
    broken: bool,
}

impl WatchHealth {
    pub const fn new(kind: String) -> Self {
        Self { kind, broken: false }
    }

    pub fn works(&mut self) {
        if std::mem::take(&mut self.broken) {
            tracing::info!(kind = self.kind, "watch works again");
        }
    }

    pub fn breaks(&mut self, error: &watcher::Error) {
        let (kind, error) = (&self.kind, error.to_string());
        if std::mem::replace(&mut self.broken, true) {
            tracing::debug!(kind, error, "watch still broken");
        } else {
            tracing::warn!(kind, error, "watch broken, trying again");
        }
    }
}

/// Lets what can be decoded into a store, and keeps a record of the rest.
struct Sieve<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    writer: Writer<K>,
    kept: Store<K>,
    undecodable: OfWatch,
}

impl<K> Sieve<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    fn take(&mut self, event: Event<Guarded<K>>) {
        let event = match event {
            Event::Init => {
                self.undecodable.begin();
                Some(Event::Init)
            }
            Event::InitDone => {
                self.undecodable.complete();
                Some(Event::InitDone)
            }
            Event::InitApply(object) => self.decoded(object).map(Event::InitApply),
            Event::Apply(object) => self.decoded(object).map(Event::Apply),
            Event::Delete(Guarded(DeserializeGuard(object))) => {
                let meta = object.as_ref().map_or_else(|invalid| &invalid.metadata, K::meta);
                self.undecodable.remove(meta);
                // What is removed is found by its name.
                let kept = self.kept_of(meta);
                object.ok().or(kept).map(Event::Delete)
            }
        };
        if let Some(event) = event {
            self.writer.apply_watcher_event(&event);
        }
    }

    /// The object, or the last that could be decoded of it.
    fn decoded(&mut self, Guarded(DeserializeGuard(object)): Guarded<K>) -> Option<K> {
        match object {
            Ok(object) => {
                self.undecodable.remove(object.meta());
                Some(object)
            }
            Err(invalid) => {
                self.undecodable.insert(&invalid.metadata, &invalid.error);
                // One that was deleted and made anew under its name is another object.
                self.kept_of(&invalid.metadata)
                    .filter(|kept| kept.meta().uid == invalid.metadata.uid)
            }
        }
    }

    fn kept_of(&self, meta: &ObjectMeta) -> Option<K> {
        let name = meta.name.as_deref().unwrap_or_default();
        let key = ObjectRef::new_with(name, K::DynamicType::default());
        let key = match &meta.namespace {
            Some(namespace) => key.within(namespace),
            None => key,
        };
        self.kept.get(&key).map(|kept| K::clone(&kept))
    }
}

/// An object of a list or a watch, decoded or not.
#[derive(Clone, Debug)]
struct Guarded<K>(DeserializeGuard<K>);

impl<'de, K: Resource + Deserialize<'de>> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DeserializeGuard::deserialize(deserializer).map(Self)
    }
}

/// As the kind is, with a scope that lets [`guarded`] name a namespace without knowing whether the kind has them.
impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = DynamicResourceScope;

    fn kind(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

/// The same objects of the same namespace.
fn guarded<K: Resource>(api: Api<K>) -> Api<Guarded<K>>
where
    K::DynamicType: Default,
{
    let dynamic = K::DynamicType::default();
    let namespace = api.namespace().map(str::to_owned);
    let client = api.into_client();
    match namespace {
        Some(namespace) => Api::namespaced_with(client, &namespace, &dynamic),
        None => Api::all_with(client, &dynamic),
    }
}

pub fn back_off() -> watcher::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_RETRY)
        .with_max_delay(LAST_RETRY)
        .with_jitter()
        .without_max_times()
        .into()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::{
        Router,
        body::{Body, Bytes},
        extract::State,
        http::Uri,
    };
    use k8s_openapi::api::core::v1::Namespace;
    use kube::{Client, Config, ResourceExt, core::PartialObjectMeta};
    use prometheus::{Registry, TextEncoder};
    use serde_json::{Value, json};
    use slice_crds::v1alpha1::SliceGateway;
    use tokio::{net::TcpListener, sync::mpsc};

    use super::*;

    /// An API server that lists what it was given, and then passes on what it is told.
    struct Server {
        address: SocketAddr,
        events: mpsc::UnboundedSender<Value>,
    }

    type Objects = Arc<std::sync::Mutex<(Vec<Value>, Option<mpsc::UnboundedReceiver<Value>>)>>;

    impl Server {
        async fn new(listed: Vec<Value>) -> Self {
            let (events, to_send) = mpsc::unbounded_channel();
            let objects: Objects = Arc::new(std::sync::Mutex::new((listed, Some(to_send))));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let router = Router::new().fallback(answer).with_state(objects);
            tokio::spawn(async move { axum::serve(listener, router).await });
            Self { address, events }
        }

        fn client(&self) -> Client {
            crate::client::install_crypto_provider();
            Client::try_from(Config::new(format!("http://{}", self.address).parse().unwrap())).unwrap()
        }

        fn tell(&self, change: &str, object: Value) {
            self.events
                .send(json!({"type": change, "object": object}))
                .unwrap();
        }
    }

    async fn answer(State(objects): State<Objects>, uri: Uri) -> Body {
        let watched = uri.query().is_some_and(|query| query.contains("watch=true"));
        let (list, events) = {
            let mut objects = objects.lock().unwrap();
            (objects.0.clone(), watched.then(|| objects.1.take()).flatten())
        };
        if !watched {
            let list = json!({"metadata": {"resourceVersion": "1"}, "items": list});
            return Body::from(list.to_string());
        }
        let events = futures::stream::unfold(events, async |mut events| {
            let event = match &mut events {
                Some(events) => events.recv().await?,
                None => std::future::pending().await,
            };
            Some((Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n"))), events))
        });
        Body::from_stream(events)
    }

    fn gateway(name: &str, version: &str, ordinal: Value) -> Value {
        json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "SliceGateway",
            "metadata": {"name": name, "namespace": "weft-system", "uid": format!("uid-{name}"), "resourceVersion": version},
            "spec": {"slice": "shop", "ordinal": ordinal},
        })
    }

    struct Watched {
        watches: Watches,
        store: Store<SliceGateway>,
        registry: Registry,
    }

    async fn watch(server: &Server) -> Watched {
        let watches = Watches::new(CancellationToken::new());
        let registry = Registry::new();
        watches.undecodable().register(&registry, "test");
        let api = Api::namespaced(server.client(), "weft-system");
        let store = watches.watch::<SliceGateway>(api, watcher::Config::default());
        let listed = tokio::time::timeout(Duration::from_secs(5), store.wait_until_ready()).await;
        listed.expect("listed in time").unwrap();
        Watched {
            watches,
            store,
            registry,
        }
    }

    impl Watched {
        /// `name ordinal` of each in the store, and the names of those that cannot be decoded, once they are so.
        async fn becomes(&self, stored: &[&str], undecodable: &[&str]) {
            let look = || {
                let one =
                    |gateway: &Arc<SliceGateway>| format!("{} {}", gateway.name_any(), gateway.spec.ordinal);
                let mut seen: Vec<String> = self.store.state().iter().map(one).collect();
                seen.sort();
                let objects = self.watches.undecodable().objects();
                (
                    seen,
                    objects.into_iter().map(|object| object.name).collect::<Vec<_>>(),
                )
            };
            let wanted = (
                stored.iter().map(|text| (*text).to_owned()).collect(),
                undecodable.iter().map(|text| (*text).to_owned()).collect(),
            );
            let wait = async {
                while look() != wanted {
                    self.watches.changed().await;
                }
            };
            let in_time = tokio::time::timeout(Duration::from_secs(5), wait).await.is_ok();
            assert!(in_time, "{:?} is not {wanted:?}", look());
            let text = TextEncoder::new()
                .encode_to_string(&self.registry.gather())
                .unwrap();
            let count = format!(
                "weft_test_undecodable_objects{{kind=\"SliceGateway\"}} {}\n",
                undecodable.len()
            );
            assert!(text.contains(&count), "{text}");
        }
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_decoded_stops_nothing_else() {
        let odd = || json!("first");
        let server = Server::new(vec![
            gateway("a", "1", json!(0)),
            gateway("b", "1", odd()),
            gateway("c", "1", json!(2)),
        ])
        .await;
        let watched = watch(&server).await;
        watched.becomes(&["a 0", "c 2"], &["b"]).await;
        // One that could be decoded before stays what it was.
        server.tell("MODIFIED", gateway("c", "2", odd()));
        server.tell("ADDED", gateway("d", "3", json!(3)));
        watched.becomes(&["a 0", "c 2", "d 3"], &["b", "c"]).await;
        server.tell("MODIFIED", gateway("b", "4", json!(1)));
        watched.becomes(&["a 0", "b 1", "c 2", "d 3"], &["c"]).await;
        // It goes as it was.
        server.tell("DELETED", gateway("c", "5", odd()));
        watched.becomes(&["a 0", "b 1", "d 3"], &[]).await;
        // Another object of its name owes nothing to it.
        server.tell("ADDED", gateway("c", "6", odd()));
        watched.becomes(&["a 0", "b 1", "d 3"], &["c"]).await;
        server.tell("DELETED", gateway("c", "7", odd()));
        watched.becomes(&["a 0", "b 1", "d 3"], &[]).await;
    }

    #[tokio::test]
    async fn a_list_that_is_read_again_keeps_what_could_be_decoded_of_the_same_object() {
        let server = Server::new(vec![]).await;
        let watched = watch(&server).await;
        let (reader, writer) = store::<SliceGateway>();
        let mut sieve = Sieve {
            writer,
            kept: reader.clone(),
            undecodable: watched.watches.undecodable.of_watch("SliceGateway".into()),
        };
        let parse = |object: Value| serde_json::from_value::<Guarded<SliceGateway>>(object).unwrap();
        let mut list = |objects: Vec<Value>| {
            sieve.take(Event::Init);
            objects
                .into_iter()
                .for_each(|object| sieve.take(Event::InitApply(parse(object))));
            sieve.take(Event::InitDone);
            reader.state().len()
        };
        let odd = |name| gateway(name, "2", json!(-1));
        assert_eq!(
            list(vec![gateway("a", "1", json!(0)), gateway("b", "1", json!(1))]),
            2
        );
        assert_eq!(list(vec![odd("a"), odd("b")]), 2);
        let mut another = odd("a");
        another["metadata"]["uid"] = "made anew".into();
        assert_eq!(list(vec![another, odd("b")]), 1);
        assert_eq!(watched.watches.undecodable().objects().len(), 2);
        assert_eq!(list(vec![]), 0);
        assert_eq!(watched.watches.undecodable().objects(), []);
        list(vec![odd("a")]);
        drop(sieve);
        assert_eq!(
            watched.watches.undecodable().objects(),
            [],
            "a watch that ends takes its own with it"
        );
    }

    #[test]
    fn the_same_objects_are_asked_for() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        crate::client::install_crypto_provider();
        let client = Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let urls = [
            guarded(Api::<SliceGateway>::namespaced(client.clone(), "x"))
                .resource_url()
                .to_owned(),
            guarded(Api::<SliceGateway>::all(client.clone()))
                .resource_url()
                .to_owned(),
            guarded(Api::<PartialObjectMeta<Namespace>>::all(client))
                .resource_url()
                .to_owned(),
        ];
        assert_eq!(
            urls,
            [
                "/apis/weft.dev/v1alpha1/namespaces/x/slicegateways",
                "/apis/weft.dev/v1alpha1/slicegateways",
                "/api/v1/namespaces"
            ]
        );
        assert!(Guarded::<PartialObjectMeta<Namespace>>::metadata_api());
    }

    #[test]
    fn a_broken_watch_is_tried_again_for_ever_and_soon() {
        let delays: Vec<Duration> = back_off().take(1000).collect();
        assert_eq!(delays.len(), 1000);
        assert!(
            delays[0] >= FIRST_RETRY && delays[0] <= 2 * FIRST_RETRY,
            "{:?}",
            delays[0]
        );
        assert!(delays.iter().all(|delay| *delay <= 2 * LAST_RETRY));
    }
}
