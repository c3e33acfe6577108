//! Where the node's pods are: what the plugin said, and what libcni knows.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Agent;
use crate::{
    kernel::Kernel,
    model::Netns,
    pods::{NetnsDirectory, Sandbox},
};

/// How long a record is kept of a pod that the API server does not know: it may not have told yet.
const STRANGE: i64 = 600;

impl<K: Kernel> Agent<K> {
    /// Forgets records of pods that are long gone, and whose end nobody told.
    pub(super) fn forget_old_sandboxes(&mut self, now: Timestamp) {
        let known: BTreeSet<&str> = self
            .world
            .pods
            .values()
            .map(|pod| pod.sandbox_uid.as_str())
            .collect();
        let old = self.told.values().filter(|sandbox| {
            !known.contains(sandbox.uid.as_str()) && now.as_second() - sandbox.since > STRANGE
        });
        let old: Vec<String> = old.map(|sandbox| sandbox.uid.clone()).collect();
        for uid in old {
            self.forget_sandbox(&uid);
        }
    }

    /// Forgets sandboxes whose namespace has ended.
    pub(super) fn forget_ended(&mut self, gone: &BTreeSet<Netns>) {
        let ended = |netns: &NetnsDirectory, sandbox: &Sandbox| gone.contains(&netns.reach(&sandbox.netns));
        self.cached.retain(|sandbox| !ended(&self.netns, sandbox));
        let told: Vec<String> = (self.told.values())
            .filter(|sandbox| ended(&self.netns, sandbox))
            .map(|sandbox| sandbox.uid.clone())
            .collect();
        for uid in told {
            self.forget_sandbox(&uid);
        }
    }

    /// Writes down where attached pods are: the next agent must find them even where libcni's cache is lost.
    pub(super) fn keep_sandboxes(&mut self) {
        let known: BTreeSet<&str> = self.told.keys().map(String::as_str).collect();
        let attached = self
            .decision
            .pods
            .iter()
            .filter(|(_, decision)| decision.slices.values().any(|wanted| wanted.outcome.is_ok()));
        let uids: BTreeSet<&str> = attached
            .filter_map(|(uid, _)| Some(self.world.pods.get(uid)?.sandbox_uid.as_str()))
            .filter(|uid| !known.contains(uid))
            .collect();
        let mut newest: BTreeMap<&str, &Sandbox> = BTreeMap::new();
        for sandbox in self
            .cached
            .iter()
            .filter(|sandbox| uids.contains(sandbox.uid.as_str()))
        {
            let known = newest.entry(&sandbox.uid).or_insert(sandbox);
            if sandbox.since >= known.since {
                *known = sandbox;
            }
        }
        let new: Vec<Sandbox> = newest.into_values().cloned().collect();
        for sandbox in new {
            if let Err(error) = self.records.keep(&sandbox) {
                tracing::warn!(pod = sandbox.name, error = %error, "record of a pod not written");
            }
            self.told.insert(sandbox.uid.clone(), sandbox);
        }
    }

    pub(super) fn forget_sandbox(&mut self, uid: &str) {
        self.told.remove(uid);
        if let Err(error) = self.records.forget(uid) {
            tracing::warn!(uid, error = %error, "record of a pod not removed");
        }
    }

    /// Namespaces by pod UID: what the plugin said last, or else the newest that libcni knows.
    pub(super) fn sandboxes(&self) -> BTreeMap<String, Netns> {
        let mut newest: BTreeMap<&str, &Sandbox> = BTreeMap::new();
        for sandbox in self.cached.iter().chain(self.told.values()) {
            let known = newest.entry(&sandbox.uid).or_insert(sandbox);
            if sandbox.since >= known.since {
                *known = sandbox;
            }
        }
        let pods = self.world.pods.values();
        pods.filter_map(|pod| {
            let sandbox = newest.get(pod.sandbox_uid.as_str())?;
            Some((pod.uid.clone(), self.netns.reach(&sandbox.netns)))
        })
        .collect()
    }
}
