//! Questions of the CNI plugin.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use slice_crds::membership::Labels;
use tokio::sync::oneshot;

use super::{Agent, FETCHED, Fetch, Fetched};
use crate::{
    cni::{
        server::Call,
        wire::{Command, Interface, Reply, Request},
    },
    intent::PodDecision,
    kernel::Kernel,
    pods::Sandbox,
    world::{PodView, World},
};

/// How long a pod waits for what it needs before the plugin is answered why it cannot have it. Shorter than the plugin's
/// own timeout, so that the reason arrives.
const ANSWER_TIMEOUT: SignedDuration = SignedDuration::from_secs(8);

/// A question without an answer yet.
pub(super) struct Pending {
    request: Request,
    reply: oneshot::Sender<Reply>,
    deadline: Timestamp,
    /// What is known of the pod beside the watch.
    search: Search,
}

enum Search {
    NotNeeded,
    Asked,
    /// There is no such pod.
    Absent,
    Failed,
}

impl<K: Kernel> Agent<K> {
    pub(super) fn take_call(&mut self, Call { request, reply }: Call, now: Timestamp) {
        match request.command {
            Command::Add => self.learn_sandbox(&request, now),
            // The end of an older sandbox of the same pod must not take the newer one's record.
            Command::Del => {
                let known = self.recorded.get(&request.pod_uid);
                if known.is_some_and(|sandbox| sandbox.container == request.container_id) {
                    self.forget_sandbox(&request.pod_uid);
                }
                self.cached
                    .retain(|sandbox| sandbox.container != request.container_id);
            }
            Command::Check => {}
        }
        self.calls.push(Pending {
            request,
            reply,
            deadline: now + ANSWER_TIMEOUT,
            search: Search::NotNeeded,
        });
    }

    fn learn_sandbox(&mut self, request: &Request, now: Timestamp) {
        let sandbox = Sandbox {
            uid: request.pod_uid.clone(),
            namespace: request.pod_namespace.clone(),
            name: request.pod_name.clone(),
            container: request.container_id.clone(),
            netns: request.netns.clone(),
            addresses: request.addresses.clone(),
            since: now.as_second(),
        };
        if let Err(error) = self.records.keep(&sandbox) {
            tracing::warn!(pod = sandbox.name, error = %error, "record of a pod not written");
        }
        self.recorded.insert(sandbox.uid.clone(), sandbox);
    }

    pub(super) fn take_fetched(&mut self, Fetched { fetch, found }: Fetched, now: Timestamp) {
        let search = match found {
            Ok(Some((pod, labels))) => {
                self.fetched.insert(pod.uid.clone(), (pod, labels, now));
                Search::NotNeeded
            }
            Ok(None) => Search::Absent,
            Err(error) => {
                tracing::warn!(
                    namespace = fetch.namespace,
                    pod = fetch.name,
                    error,
                    "pod not read"
                );
                Search::Failed
            }
        };
        let of_pod = |pending: &&mut Pending| {
            pending.request.pod_namespace == fetch.namespace && pending.request.pod_name == fetch.name
        };
        for pending in self.calls.iter_mut().filter(of_pod) {
            pending.search = match search {
                Search::NotNeeded => Search::NotNeeded,
                Search::Absent => Search::Absent,
                Search::Asked | Search::Failed => Search::Failed,
            };
        }
    }

    /// The snapshot with the pods in it that were fetched and that the watch has not shown yet.
    pub(super) fn with_fetched(&mut self, snapshot: &Arc<World>, now: Timestamp) -> Arc<World> {
        self.fetched.retain(|uid, (_, _, since)| {
            !snapshot.pods.contains_key(uid) && now.duration_since(*since) < FETCHED
        });
        if self.fetched.is_empty() {
            return Arc::clone(snapshot);
        }
        let mut world = World::clone(snapshot);
        for (uid, (pod, labels, _)) in &self.fetched {
            world.pods.insert(uid.clone(), Arc::clone(pod));
            let namespace = world.namespaces.entry(pod.facts.namespace.clone());
            namespace.or_insert_with(|| Arc::new(Labels::clone(labels)));
        }
        Arc::new(world)
    }

    /// Answers what can be answered.
    pub(super) fn answer_calls(&mut self, now: Timestamp) {
        for mut pending in std::mem::take(&mut self.calls) {
            let answer = match pending.request.command {
                Command::Del => Answer::Give(Reply::Attached(vec![])),
                Command::Add | Command::Check => self.answer(&mut pending, now),
            };
            let command = match pending.request.command {
                Command::Add => "add",
                Command::Del => "del",
                Command::Check => "check",
            };
            let outcome = match answer {
                Answer::Wait => {
                    self.calls.push(pending);
                    continue;
                }
                // The plugin sees the end of the conversation and decides as if nobody were here.
                Answer::Leave => "none",
                Answer::Give(reply) => {
                    let outcome = match &reply {
                        Reply::Attached(interfaces) if interfaces.is_empty() => "outside",
                        Reply::Attached(_) => "attached",
                        Reply::Refused(_) => "refused",
                    };
                    let _ = pending.reply.send(reply);
                    outcome
                }
            };
            self.metrics.cni.with_label_values(&[command, outcome]).inc();
        }
    }

    fn answer(&self, pending: &mut Pending, now: Timestamp) -> Answer {
        if self.world.teardown() {
            return Answer::Give(Reply::Attached(vec![]));
        }
        let late = now >= pending.deadline;
        let Some(pod) = self.pod_of(&pending.request) else {
            return match pending.search {
                Search::Absent => Answer::Give(Reply::Attached(vec![])),
                Search::Failed => Answer::Leave,
                Search::NotNeeded | Search::Asked if late => Answer::Leave,
                Search::Asked => Answer::Wait,
                Search::NotNeeded => {
                    let Request {
                        pod_namespace,
                        pod_name,
                        ..
                    } = &pending.request;
                    let fetch = Fetch {
                        namespace: pod_namespace.clone(),
                        name: pod_name.clone(),
                    };
                    // Where the queue is full, the next settlement asks again.
                    if self.fetches.try_send(fetch).is_ok() {
                        pending.search = Search::Asked;
                    }
                    Answer::Wait
                }
            };
        };
        let Some(decision) = self.decision.pods.get(&pod.uid) else {
            return Answer::Give(Reply::Attached(vec![]));
        };
        match self.missing(decision) {
            None => Answer::Give(Reply::Attached(self.interfaces(decision))),
            Some(reason) if late || pending.request.command == Command::Check => {
                Answer::Give(Reply::Refused(reason))
            }
            Some(_) => Answer::Wait,
        }
    }

    fn pod_of(&self, request: &Request) -> Option<&Arc<PodView>> {
        self.world.pods.values().find(|pod| {
            let named = pod.facts.namespace == request.pod_namespace && pod.name == request.pod_name;
            named && (request.pod_uid.is_empty() || pod.sandbox_uid == request.pod_uid)
        })
    }

    /// Why the pod's containers must not start yet.
    fn missing(&self, decision: &PodDecision) -> Option<String> {
        decision
            .slices
            .iter()
            .filter(|(_, wanted)| wanted.required)
            .find_map(|(slice, wanted)| {
                let why = match &wanted.outcome {
                    Err(obstacle) => obstacle.to_string(),
                    Ok(placed) if self.is_attached(&placed.port) => return None,
                    Ok(placed) => self.why_not(slice, &placed.port),
                };
                Some(format!(
                    "slice {slice} requires its interface in every pod: {why}"
                ))
            })
    }

    fn interfaces(&self, decision: &PodDecision) -> Vec<Interface> {
        let placed = decision
            .slices
            .values()
            .filter_map(|wanted| wanted.outcome.as_ref().ok());
        placed
            .filter(|placed| self.is_attached(&placed.port))
            .map(|placed| Interface {
                name: placed.interface.clone(),
                mac: placed.mac.to_string(),
                mtu: placed.mtu,
            })
            .collect()
    }
}

enum Answer {
    Give(Reply),
    Wait,
    Leave,
}
