//! Events on pods: when one is attached or detached, and why one is not.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use slice_crds::labels;

use super::Agent;
use crate::{
    intent::{Obstacle, PodDecision, Wanted},
    kernel::Kernel,
    world::PodView,
};

/// An event on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// How one pod stands with one slice, and whether an event says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    state: State,
    since: Timestamp,
    published: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Attached,
    Failed(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    reason: &'static str,
    message: String,
    /// What tells it from others. A message has figures in it that change while the failure lasts.
    identity: String,
}

impl Failure {
    fn new(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            identity: message.clone(),
            message,
        }
    }
}

impl State {
    /// Whether it lasts, whatever its figures are.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Attached, Self::Attached) => true,
            (Self::Failed(this), Self::Failed(other)) => {
                (this.reason, &this.identity) == (other.reason, &other.identity)
            }
            (Self::Attached, Self::Failed(_)) | (Self::Failed(_), Self::Attached) => false,
        }
    }
}

/// How long a failure must last before it is worth an event: most are a matter of order at the start.
const LASTING: SignedDuration = SignedDuration::from_secs(3);

impl Announcement {
    fn new(pod: &PodView, warning: bool, reason: &'static str, message: String) -> Self {
        Self {
            uid: pod.uid.clone(),
            namespace: pod.facts.namespace.clone(),
            name: pod.name.clone(),
            warning,
            reason,
            message,
        }
    }
}

impl<K: Kernel> Agent<K> {
    /// Announces on pods what has changed since the last time. A failure is announced once it has lasted.
    pub(super) fn announce(&mut self, now: Timestamp) {
        let mut current = BTreeMap::new();
        let mut announcements = vec![];
        for (uid, decision) in &self.decision.pods {
            let Some(pod) = self.world.pods.get(uid) else {
                continue;
            };
            for (slice, state) in self.states(pod, decision) {
                let key = (uid.clone(), slice);
                let before = self.announced.get(&key);
                let mut announced = match before {
                    Some(before) if before.state.is(&state) => before.clone(),
                    _ => Announced {
                        state,
                        since: now,
                        published: false,
                    },
                };
                // The annotation has it already, from before this agent started.
                announced.published |= announced.state == State::Attached
                    && before.is_none()
                    && names(pod.attachments.as_deref(), &key.1);
                let after = match announced.state {
                    State::Attached => SignedDuration::ZERO,
                    State::Failed(_) => LASTING,
                };
                if !announced.published && now.duration_since(announced.since) >= after {
                    announced.published = true;
                    announcements.push(announcement(pod, &key.1, &announced.state, decision));
                }
                current.insert(key, announced);
            }
        }
        for ((uid, slice), announced) in &self.announced {
            let gone = !current.contains_key(&(uid.clone(), slice.clone()));
            if let (true, State::Attached, Some(pod)) = (gone, &announced.state, self.world.pods.get(uid))
                && !pod.finished
                && !pod.terminating
            {
                let message = format!("detached from slice {slice}");
                announcements.push(Announcement::new(pod, false, "Detached", message));
            }
        }
        for announcement in announcements {
            if self.announcements.try_send(announcement).is_err() {
                self.metrics.events_dropped.inc();
            }
        }
        self.announced = current;
    }

    /// How a pod stands with each of its slices; with none, by the empty name, where a label cannot be followed.
    fn states(&self, pod: &PodView, decision: &PodDecision) -> Vec<(String, State)> {
        let errors = decision.errors.iter();
        let mut states: Vec<(String, State)> = errors
            .map(|error| Failure::new("LabelNotFollowed", error.clone()))
            .map(|failure| (String::new(), State::Failed(failure)))
            .collect();
        for (slice, wanted) in &decision.slices {
            let state = match &wanted.outcome {
                Ok(placed) if self.is_attached(&placed.port) => State::Attached,
                Ok(placed) => State::Failed(Failure::new("AttachFailed", self.why_not(slice, &placed.port))),
                Err(_) if is_early(pod, wanted) => continue,
                Err(obstacle) => State::Failed(Failure {
                    identity: obstacle.identity(),
                    ..Failure::new(obstacle.reason(), obstacle.to_string())
                }),
            };
            states.push((slice.clone(), state));
        }
        states
    }
}

fn announcement(pod: &PodView, slice: &str, state: &State, decision: &PodDecision) -> Announcement {
    match state {
        State::Attached => {
            let placed = decision
                .slices
                .get(slice)
                .and_then(|wanted| wanted.outcome.as_ref().ok());
            let where_ = placed.map(|placed| {
                let ips: Vec<String> = placed.addresses.iter().map(ToString::to_string).collect();
                format!(" as {} with {}", placed.interface, ips.join(" and "))
            });
            let message = format!("attached to slice {slice}{}", where_.unwrap_or_default());
            Announcement::new(pod, false, "Attached", message)
        }
        State::Failed(Failure { reason, message, .. }) => {
            let message = match slice {
                "" => message.clone(),
                slice => format!("not attached to slice {slice}: {message}"),
            };
            Announcement::new(pod, true, reason, message)
        }
    }
}

/// Whether a pod has no network namespace because it has not started yet.
pub(super) fn is_early(pod: &PodView, wanted: &Wanted) -> bool {
    wanted.outcome == Err(Obstacle::NoNamespace) && !pod.running
}

/// Whether a pod's annotation names a slice.
fn names(annotation: Option<&str>, slice: &str) -> bool {
    let list = annotation.and_then(|text| serde_json::from_str::<Vec<labels::Attachment>>(text).ok());
    list.unwrap_or_default()
        .iter()
        .any(|attachment| attachment.slice == slice)
}
