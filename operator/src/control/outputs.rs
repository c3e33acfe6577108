//! What is to be written: for each object what it should hold and what it was seen to hold. Pure.
//!
//! ```text
//!  want, remove, release ─┐                         ┌─► poll: the next write that is due
//!                         ├─► entry per object ─────┤
//!  observe, gone, written ┘                         └─► next_timeout
//! ```
//!
//! A write is due where the two differ, nothing is under way for the object, and it does not wait after a failure. What
//! is wanted is looked at when the write leaves, so the newest wins and nothing piles up: the queue has one place for each
//! object. Every write names the version that it replaces. So one that was overtaken, or that comes from a leader who is
//! none any more, changes nothing, and one object that cannot be written delays itself only.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    time::Duration,
};

use serde_json::Value;
use siphasher::sip::SipHasher13;

use super::{
    content::{Content, Observed, with_time},
    kind::{Key, Kind, Manner},
    time::Now,
};

/// After the first failure; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// How long the watch may take to show what has overtaken a write.
const CONFLICT_RETRY: Duration = Duration::from_secs(2);
/// Failures in a row after which an object's trouble is worth a condition: most pass by themselves.
pub const PERSISTENT: u32 = 3;

/// One request to an API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub key: Key,
    pub change: Change,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Fails where the object exists.
    Create { body: Value },
    /// Server-side apply (KEP-555) against the version in the body.
    Apply { body: Value },
    /// A merge patch (RFC 7386) against the version in the body.
    Patch { body: Value },
    /// Fails where the object is another one.
    Delete { uid: Box<str> },
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The object as the server has it.
    Written(Observed),
    Deleted,
    Failed(Failure),
}

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    /// What the server or the connection reported.
    pub message: String,
}

/// What is known of a failure without reading its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Another version is there than the one that was to be replaced.
    Conflict,
    /// The object, or what it lives in, is not there.
    NotFound,
    /// The server will not take this content.
    Refused,
    /// No permission, or a namespace that is going away.
    Forbidden,
    /// No answer in time.
    Timeout,
    /// The server or the way to it failed.
    Unavailable,
}

impl Reason {
    /// As a metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Forbidden => "forbidden",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
        }
    }
}

#[derive(Clone, Debug, Default)]
enum Desired {
    /// Nobody here has an opinion.
    #[default]
    Free,
    Present(Content),
    Absent,
}

#[derive(Debug, Default)]
struct Entry {
    desired: Desired,
    /// The version that `desired` was worked out from, where that matters: `Some(None)` for no object.
    base: Option<Option<Box<str>>>,
    observed: Option<Observed>,
    in_flight: bool,
    /// Its place in the line of what is due.
    ticket: Option<u64>,
    /// What the last write that was sent replaces, until it is known what became of it; inside, `None` for no object.
    sent: Option<Option<Box<str>>>,
    failures: u32,
    /// Nothing is written before.
    not_before: Option<Duration>,
    failure: Option<Failure>,
    /// Which content the failure was about.
    failed: Option<Content>,
    /// What the last write over an object was to make of it.
    tried: Option<Content>,
}

impl Entry {
    fn is_due(&self, kind: Kind) -> bool {
        if let Some(base) = &self.base
            && base.as_deref() != self.observed.as_ref().map(|there| &*there.version)
        {
            return false;
        }
        match (&self.desired, &self.observed) {
            (Desired::Free, _) | (Desired::Absent, None) => false,
            (Desired::Present(_), None) => !matches!(kind.manner(), Manner::Status | Manner::Fields),
            (Desired::Present(content), Some(there)) => !there.holds(kind, content),
            (Desired::Absent, Some(there)) => !there.is_terminating(),
        }
    }

    /// Whether the server has answered a write that is still wanted with an object that does not hold it. The same write at once
    /// would go on for ever.
    fn is_without_effect(&self, kind: Kind, observed: &Observed) -> bool {
        match (&self.desired, &self.tried) {
            (Desired::Present(content), Some(tried)) => tried == content && !observed.holds(kind, content),
            _ => false,
        }
    }

    fn succeed(&mut self) {
        self.failures = 0;
        (self.failure, self.failed, self.sent) = (None, None, None);
    }

    /// A write replaces one version only: where another one was seen, it has come or never will.
    fn resolve(&mut self, version: Option<&str>) {
        if self.sent.as_ref().is_some_and(|base| base.as_deref() != version) {
            self.sent = None;
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self.desired, Desired::Free | Desired::Absent) && self.observed.is_none() && !self.in_flight
    }
}

/// How many writes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    pub due: usize,
    pub in_flight: usize,
    /// After a failure, or because the last one was just now.
    pub waiting: usize,
}

/// The writes of one controller to one API server.
#[derive(Debug)]
pub struct Outputs {
    manager: &'static str,
    entries: BTreeMap<Key, Entry>,
    /// By kind, and then by who came first: what changes all the time holds up nobody else.
    due: BTreeMap<(Kind, u64), Key>,
    tickets: u64,
    waiting: BTreeSet<(Duration, Key)>,
    /// Objects whose failure has lasted, by their namespace.
    troubled: BTreeMap<Box<str>, BTreeSet<Key>>,
    in_flight: usize,
}

impl Outputs {
    pub fn new(manager: &'static str) -> Self {
        Self {
            manager,
            entries: BTreeMap::new(),
            due: BTreeMap::new(),
            tickets: 0,
            waiting: BTreeSet::new(),
            troubled: BTreeMap::new(),
            in_flight: 0,
        }
    }

    /// The object is to hold this.
    pub fn want(&mut self, key: Key, content: Content) {
        self.desire(key, content, None);
    }

    /// The object is to hold this, which was worked out from what it held at the version `base`, or from its absence. It is
    /// not written over anything else: what follows from that has to be worked out first.
    pub fn want_from(&mut self, key: Key, content: Content, base: Option<&str>) {
        self.desire(key, content, Some(base.map(Into::into)));
    }

    fn desire(&mut self, key: Key, content: Content, base: Option<Option<Box<str>>>) {
        let entry = self.entries.entry(key.clone()).or_default();
        // A server that refused one content may take another: it does not wait.
        let refused = entry
            .failure
            .as_ref()
            .is_some_and(|failure| failure.reason == Reason::Refused);
        if refused && entry.failed.as_ref() != Some(&content) {
            entry.not_before = None;
        }
        (entry.desired, entry.base) = (Desired::Present(content), base);
        self.schedule(&key);
    }

    /// The object is to go.
    pub fn remove(&mut self, key: Key) {
        let entry = self.entries.entry(key.clone()).or_default();
        (entry.desired, entry.base) = (Desired::Absent, None);
        self.schedule(&key);
    }

    /// The object is to stay as it is, whatever that is.
    pub fn release(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            (entry.desired, entry.base) = (Desired::Free, None);
        }
        self.schedule(key);
    }

    /// The object was seen. What is older than what is known is passed over.
    pub fn observe(&mut self, key: Key, observed: Observed) {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry
            .observed
            .as_ref()
            .is_some_and(|known| is_older(&observed.version, &known.version))
        {
            return;
        }
        let conflicted = entry
            .failure
            .as_ref()
            .is_some_and(|failure| failure.reason == Reason::Conflict);
        if conflicted {
            entry.not_before = None;
        }
        entry.resolve(Some(&observed.version));
        entry.observed = Some(observed);
        self.schedule(&key);
    }

    /// The object was seen to go, at a version; at none where a list lacks it.
    pub fn gone(&mut self, key: &Key, version: Option<&str>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let newer = |known: &Observed| version.is_some_and(|version| is_older(version, &known.version));
        if entry.observed.as_ref().is_some_and(newer) {
            return;
        }
        entry.observed = None;
        entry.resolve(None);
        self.schedule(key);
    }

    /// The next write, the most urgent first.
    pub fn poll(&mut self, now: Now) -> Option<Write> {
        while let Some((at, key)) = self.waiting.first().cloned() {
            if at > now.clock {
                break;
            }
            self.waiting.remove(&(at, key.clone()));
            if let Some(entry) = self.entries.get_mut(&key)
                && entry.not_before.is_some_and(|until| until <= now.clock)
            {
                entry.not_before = None;
                self.schedule(&key);
            }
        }
        let (_, key) = self.due.pop_first()?;
        let entry = self.entries.get_mut(&key).expect("what is due has an entry");
        entry.ticket = None;
        let change = match (&entry.desired, &entry.observed) {
            (Desired::Present(content), there) => {
                let version = there.as_ref().map(|there| &*there.version);
                let mut body = content.body(&key, version, self.manager);
                if key.kind.has_time() {
                    with_time(&mut body, &now.time());
                }
                match there {
                    Some(_) if key.kind.manner() == Manner::Fields => Change::Patch { body },
                    Some(_) => Change::Apply { body },
                    None => Change::Create { body },
                }
            }
            (_, there) => Change::Delete {
                uid: there.as_ref().map(|there| there.uid.clone()).unwrap_or_default(),
            },
        };
        entry.tried = match (&entry.desired, &change) {
            (Desired::Present(content), Change::Apply { .. } | Change::Patch { .. }) => Some(content.clone()),
            _ => None,
        };
        entry.in_flight = true;
        entry.sent = Some(entry.observed.as_ref().map(|there| there.version.clone()));
        self.in_flight += 1;
        Some(Write { key, change })
    }

    /// A write ended. Returns whether that began a lasting trouble with the object, or ended one.
    pub fn written(&mut self, key: &Key, outcome: Outcome, now: Now) -> bool {
        let before = self.trouble(key).is_some();
        self.take_outcome(key, outcome, now);
        self.note_trouble(key);
        self.trouble(key).is_some() != before
    }

    fn take_outcome(&mut self, key: &Key, outcome: Outcome, now: Now) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if std::mem::take(&mut entry.in_flight) {
            self.in_flight -= 1;
        }
        match outcome {
            Outcome::Written(observed) if entry.is_without_effect(key.kind, &observed) => {
                entry.failures += 1;
                entry.not_before = Some(now.clock + back_off(key, entry.failures));
                (entry.failed, entry.sent) = (entry.tried.take(), None);
                entry.failure = Some(Failure {
                    reason: Reason::Refused,
                    message: "the API server took it and has something else: an admission webhook changes it, or another \
                              controller owns fields of it"
                        .to_owned(),
                });
                self.observe(key.clone(), observed);
            }
            Outcome::Written(observed) => {
                entry.succeed();
                let pause = key.kind.pause();
                entry.not_before = (!pause.is_zero()).then(|| now.clock + pause);
                self.observe(key.clone(), observed);
            }
            Outcome::Deleted => {
                entry.succeed();
                // It may go on for a while; the watch tells when it is gone.
                match key.kind.is_watched() {
                    true => entry.not_before = Some(now.clock + CONFLICT_RETRY),
                    false => entry.observed = None,
                }
                self.schedule(key);
            }
            Outcome::Failed(failure) => {
                entry.failures += 1;
                // The server has answered that it does not count.
                if !matches!(failure.reason, Reason::Timeout | Reason::Unavailable) {
                    entry.sent = None;
                }
                let wait = match failure.reason {
                    Reason::Conflict => CONFLICT_RETRY,
                    // An object that is deleted and not there is as it should be, when the watch shows it.
                    _ => back_off(key, entry.failures),
                };
                entry.not_before = Some(now.clock + wait);
                entry.failed = match &entry.desired {
                    Desired::Present(content) => Some(content.clone()),
                    Desired::Free | Desired::Absent => None,
                };
                entry.failure = Some(failure);
                self.schedule(key);
            }
        }
    }

    /// Everything that was under way is forgotten: this process leads no more, or leads anew.
    pub fn forget_flights(&mut self) {
        let flying: Vec<Key> = (self.entries.iter())
            .filter(|(_, entry)| entry.in_flight)
            .map(|(key, _)| key.clone())
            .collect();
        for key in flying {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.in_flight = false;
            }
            self.schedule(&key);
        }
        self.in_flight = 0;
    }

    /// When [`Outputs::poll`] is to be called next although nothing happens.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// Why an object is not as it should be, once that has lasted.
    pub fn trouble(&self, key: &Key) -> Option<&Failure> {
        let entry = self
            .entries
            .get(key)
            .filter(|entry| entry.failures >= PERSISTENT && entry.is_due(key.kind))?;
        entry.failure.as_ref()
    }

    /// Why something in a namespace, or the namespace itself, is not as it should be, once that has lasted.
    pub fn trouble_in(&self, namespace: &str) -> Option<&Failure> {
        let mut keys = self.troubled.get(namespace)?.iter();
        keys.find_map(|key| self.trouble(key))
    }

    /// Keeps the index of troubles.
    fn note_trouble(&mut self, key: &Key) {
        let place = match key.kind {
            Kind::Namespace => &key.name,
            _ => &key.namespace,
        };
        if self.trouble(key).is_some() {
            self.troubled
                .entry(place.clone())
                .or_default()
                .insert(key.clone());
        } else if let Some(keys) = self.troubled.get_mut(place) {
            keys.remove(key);
            if keys.is_empty() {
                self.troubled.remove(place);
            }
        }
    }

    pub fn observed(&self, key: &Key) -> Option<&Observed> {
        self.entries.get(key)?.observed.as_ref()
    }

    /// Objects that are to be there and those that were seen.
    pub fn keys(&self, kind: Kind) -> impl Iterator<Item = &Key> {
        self.entries
            .range(Key::new(kind, "", "")..)
            .take_while(move |(key, _)| key.kind == kind)
            .map(|(key, _)| key)
    }

    /// Whether the object holds what it should, as far as it was seen.
    pub fn is_settled(&self, key: &Key) -> bool {
        self.entries
            .get(key)
            .is_none_or(|entry| !entry.in_flight && !entry.is_due(key.kind))
    }

    /// Whether something was sent of which it is not known whether it counts: what was wanted may be so already, or yet
    /// become so.
    pub fn is_unsure(&self, key: &Key) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.sent.is_some())
    }

    /// Objects of a kind in a namespace whose names start so: those that were seen, and those that are wanted.
    pub fn with_prefix<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
        prefix: &'a str,
    ) -> impl Iterator<Item = &'a Key> {
        self.entries
            .range(Key::new(kind, namespace, prefix)..)
            .map(|(key, _)| key)
            .take_while(move |key| {
                let here = !kind.is_namespaced() || *key.namespace == *namespace;
                key.kind == kind && here && key.name.starts_with(prefix)
            })
    }

    /// Every object of a kind that was seen.
    pub fn seen(&self, kind: Kind) -> impl Iterator<Item = &Key> {
        self.entries
            .range(Key::new(kind, "", "")..)
            .take_while(move |(key, _)| key.kind == kind)
            .filter(|(_, entry)| entry.observed.is_some())
            .map(|(key, _)| key)
    }

    pub fn depth(&self) -> Depth {
        Depth {
            due: self.due.len(),
            in_flight: self.in_flight,
            waiting: self.waiting.len(),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn schedule(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let is_due = entry.is_due(key.kind) && !entry.in_flight;
        if !is_due || entry.not_before.is_some() {
            if let Some(ticket) = entry.ticket.take() {
                self.due.remove(&(key.kind, ticket));
            }
            if let Some(at) = entry.not_before.filter(|_| is_due) {
                self.waiting.insert((at, key.clone()));
            }
        } else if entry.ticket.is_none() {
            self.tickets += 1;
            entry.ticket = Some(self.tickets);
            self.due.insert((key.kind, self.tickets), key.clone());
        }
        if entry.is_empty() {
            self.entries.remove(key);
            self.note_trouble(key);
        }
    }
}

/// Whether one resource version comes before another. They are numbers that grow, to clients too (KEP-5504).
pub fn is_older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(version), Ok(than)) if version < than)
}

/// Doubles, and differs from object to object, so that many do not come back at one moment.
fn back_off(key: &Key, failures: u32) -> Duration {
    let wait = FIRST_RETRY
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(LAST_RETRY);
    let mut hasher = SipHasher13::new();
    (key, failures).hash(&mut hasher);
    wait + wait.mul_f64((hasher.finish() % 1000) as f64 / 4000.0)
}

#[cfg(test)]
mod tests;
