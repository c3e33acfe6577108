//! Where the node's pods are: what the plugin reported, and what libcni knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;

use super::Agent;
use crate::{
    kernel::Kernel,
    model::Netns,
    pods::{NetnsDirectory, Sandbox},
};

/// How long a record is kept of a pod that the API server does not know: the watch may be behind.
const STRANGE: i64 = 600;

impl<K: Kernel> Agent<K> {
    /// Forgets records of pods that are long gone, and whose end nobody reported.
    pub(super) fn forget_old_sandboxes(&mut self, now: Timestamp) {
        let known: BTreeSet<&str> = self
            .world
            .pods
            .values()
            .map(|pod| pod.sandbox_uid.as_str())
            .collect();
        let old = self.recorded.values().filter(|sandbox| {
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
        let ended_uids: Vec<String> = (self.recorded.values())
            .filter(|sandbox| ended(&self.netns, sandbox))
            .map(|sandbox| sandbox.uid.clone())
            .collect();
        for uid in ended_uids {
            self.forget_sandbox(&uid);
        }
    }

    /// Writes down where attached pods are: the next agent must find them even where libcni's cache is lost.
    pub(super) fn keep_sandboxes(&mut self) {
        let known: BTreeSet<&str> = self.recorded.keys().map(String::as_str).collect();
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
            self.recorded.insert(sandbox.uid.clone(), sandbox);
        }
    }

    pub(super) fn forget_sandbox(&mut self, uid: &str) {
        self.recorded.remove(uid);
        if let Err(error) = self.records.forget(uid) {
            tracing::warn!(uid, error = %error, "record of a pod not removed");
        }
    }

    /// Namespaces by pod UID: what the plugin reported last, or else the newest that libcni knows.
    pub(super) fn sandboxes(&self) -> BTreeMap<String, Netns> {
        let of_pod = self.newest_sandboxes().into_iter();
        of_pod
            .map(|(uid, sandbox)| (uid.to_owned(), self.netns.reach(&sandbox.netns)))
            .collect()
    }

    /// The addresses that network plugins gave pods, by UID, where the plugin reported them: libcni's records of the same
    /// sandbox do not say which are the pod's own.
    pub(super) fn pod_addresses(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let of_pod = self.newest_sandboxes().into_iter();
        let reported = of_pod.filter_map(|(uid, newest)| {
            let reported = self.recorded.get(&newest.uid)?;
            let same = reported.container == newest.container && !reported.addresses.is_empty();
            same.then(|| (uid.to_owned(), reported.addresses.clone()))
        });
        reported.collect()
    }

    pub(super) fn newest_sandboxes(&self) -> BTreeMap<&str, &Sandbox> {
        let mut newest: BTreeMap<&str, &Sandbox> = BTreeMap::new();
        for sandbox in self.cached.iter().chain(self.recorded.values()) {
            let known = newest.entry(&sandbox.uid).or_insert(sandbox);
            if sandbox.since >= known.since {
                *known = sandbox;
            }
        }
        let pods = self.world.pods.values();
        pods.filter_map(|pod| {
            let sandbox = newest.get(pod.sandbox_uid.as_str())?;
            Some((pod.uid.as_str(), *sandbox))
        })
        .collect()
    }
}
