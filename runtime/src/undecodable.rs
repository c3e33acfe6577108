//! Objects that the API server has and this process cannot decode, such as one that a newer version wrote.
//!
//! A list with one such object in it is as good as any other list: the object is kept apart here, is named once in the
//! log, and counts in a gauge, and everything else goes on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use prometheus::{
    IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// Longest text of an error that is kept, in characters: one may quote much of its object.
const MAX_ERROR: usize = 500;

/// What cannot be decoded at present, of all the watches of one [`crate::store::Watches`]. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Undecodable(Arc<Mutex<Inner>>);

/// An object that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UndecodableObject {
    pub kind: String,
    /// `None` for kinds without namespaces.
    pub namespace: Option<String>,
    pub name: String,
    pub error: String,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// By watch: a kind may be watched twice, or by one watch after the other.
    watches: BTreeMap<u64, Watched>,
}

#[derive(Debug)]
struct Watched {
    kind: String,
    objects: Objects,
}

/// By namespace and name.
type Objects = BTreeMap<(Option<String>, String), Found>;

/// An object as it was when it could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    uid: Option<String>,
    version: Option<String>,
    error: String,
}

impl Undecodable {
    /// All of them, in order.
    pub fn objects(&self) -> Vec<UndecodableObject> {
        let inner = self.inner();
        let objects = inner.watches.values().flat_map(|watch| {
            let object =
                |((namespace, name), found): (&(Option<String>, String), &Found)| UndecodableObject {
                    kind: watch.kind.clone(),
                    namespace: namespace.clone(),
                    name: name.clone(),
                    error: found.error.clone(),
                };
            watch.objects.iter().map(object)
        });
        let mut objects: Vec<_> = objects.collect();
        objects.sort();
        objects.dedup();
        objects
    }

    /// Exposes `weft_<component>_undecodable_objects{kind}`, with a zero for each watched kind that has none.
    ///
    /// # Panics
    /// Where the registry has a metric of that name already.
    pub fn register(&self, registry: &Registry, component: &str) {
        let opts = Opts::new(
            format!("weft_{component}_undecodable_objects"),
            "Objects of the API server that this version cannot decode, and works without or with their last state; an \
             increase means that somebody wrote what this version does not know",
        );
        let gauge = Gauge {
            of: self.clone(),
            gauge: IntGaugeVec::new(opts, &["kind"]).expect("a valid metric"),
        };
        registry
            .register(Box::new(gauge))
            .expect("names are registered once");
    }

    /// The place of one watch, which goes with it.
    pub(crate) fn of_watch(&self, kind: String) -> OfWatch {
        let mut inner = self.inner();
        let id = inner.next;
        inner.next += 1;
        let objects = Objects::new();
        inner.watches.insert(
            id,
            Watched {
                kind: kind.clone(),
                objects,
            },
        );
        drop(inner);
        OfWatch {
            all: self.clone(),
            id,
            kind,
            listed: None,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one watch cannot decode.
pub(crate) struct OfWatch {
    all: Undecodable,
    id: u64,
    kind: String,
    /// While a list is being read: what was found in it so far.
    listed: Option<Objects>,
}

impl OfWatch {
    /// A list begins, in which everything that is there comes again.
    pub(crate) fn begin(&mut self) {
        self.listed = Some(Objects::new());
    }

    /// It is complete: what did not come is gone.
    pub(crate) fn complete(&mut self) {
        if let Some(listed) = self.listed.take() {
            self.edit(|objects| *objects = listed);
        }
    }

    /// An object that cannot be decoded. Each version of it is named in the log once: whether it was by this.
    pub(crate) fn insert(&mut self, meta: &ObjectMeta, error: &str) -> bool {
        let key = key(meta);
        let found = Found {
            uid: meta.uid.clone(),
            version: meta.resource_version.clone(),
            error: error.chars().take(MAX_ERROR).collect(),
        };
        let same = |known: &Found| (&known.uid, &known.version) == (&found.uid, &found.version);
        let mut known = false;
        self.edit(|objects| known = objects.get(&key).is_some_and(same));
        known |= self
            .listed
            .as_ref()
            .and_then(|listed| listed.get(&key))
            .is_some_and(same);
        if !known {
            tracing::warn!(
                kind = self.kind,
                namespace = key.0,
                name = key.1,
                version = found.version,
                error = found.error,
                "object cannot be decoded, everything else goes on"
            );
        }
        match &mut self.listed {
            Some(listed) => _ = listed.insert(key, found),
            None => self.edit(|objects| _ = objects.insert(key, found)),
        }
        !known
    }

    /// An object that can be decoded, or is gone.
    pub(crate) fn remove(&mut self, meta: &ObjectMeta) {
        // What is not in a list goes when the list is complete.
        if self.listed.is_none() {
            self.edit(|objects| _ = objects.remove(&key(meta)));
        }
    }

    fn edit(&self, change: impl FnOnce(&mut Objects)) {
        if let Some(watch) = self.all.inner().watches.get_mut(&self.id) {
            change(&mut watch.objects);
        }
    }
}

impl Drop for OfWatch {
    fn drop(&mut self) {
        self.all.inner().watches.remove(&self.id);
    }
}

fn key(meta: &ObjectMeta) -> (Option<String>, String) {
    (meta.namespace.clone(), meta.name.clone().unwrap_or_default())
}

/// Counts when it is asked.
struct Gauge {
    of: Undecodable,
    gauge: IntGaugeVec,
}

impl Collector for Gauge {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.reset();
        for watch in self.of.inner().watches.values() {
            self.gauge.with_label_values(&[&watch.kind]).set(0);
        }
        for object in self.of.objects() {
            self.gauge.with_label_values(&[&object.kind]).inc();
        }
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_named_in_the_log_once() {
        let meta = |name: &str, version: &str| ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        let all = Undecodable::default();
        let mut watch = all.of_watch("Slice".into());
        assert!(watch.insert(&meta("a", "1"), "odd"));
        assert!(!watch.insert(&meta("a", "1"), "odd"));
        assert!(watch.insert(&meta("a", "2"), "odd"));
        // A watch that is taken up again lists everything again.
        for _ in 0..2 {
            watch.begin();
            assert!(!watch.insert(&meta("a", "2"), "odd"));
            watch.complete();
        }
        assert_eq!(all.objects().len(), 1);
        watch.remove(&meta("a", "3"));
        assert!(watch.insert(&meta("a", "2"), "odd"));
    }

    #[test]
    fn what_two_watches_see_counts_once() {
        let registry = Registry::new();
        let all = Undecodable::default();
        all.register(&registry, "test");
        let mut watches = ["Slice", "Slice", "SliceBlock"].map(|kind| all.of_watch(kind.into()));
        for watch in &mut watches[..2] {
            watch.insert(&ObjectMeta::default(), &"x".repeat(10_000));
        }
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        for line in ["{kind=\"Slice\"} 1", "{kind=\"SliceBlock\"} 0"] {
            assert!(
                text.contains(&format!("weft_test_undecodable_objects{line}\n")),
                "{text}"
            );
        }
        assert_eq!(all.objects()[0].error.len(), MAX_ERROR);
    }
}
