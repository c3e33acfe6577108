//! What is reported to the API server, and what is announced as events.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use slice_crds::{
    conditions::{READY, Verdict, reason},
    labels,
    v1alpha1::SliceNodePhase,
};
use slice_runtime::handover::Keys;

use super::{Agent, Chain};
use crate::{
    intent::{Obstacle, PodDecision, Wanted},
    kernel::Kernel,
    ledger::Source,
    model::{Name, Segment},
    status::{self, GatewayReport, NodeReport, Reports, Standing},
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

/// What there was to say of one pod in one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    state: State,
    since: Timestamp,
    /// It has been said.
    aloud: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Attached,
    /// Reason and message.
    Failed(&'static str, String),
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
    pub(super) fn speak(&mut self, now: Timestamp) {
        let reports = self.reports(now);
        self.announce(now);
        self.gauge(now);
        self.reports.send_if_modified(|last| {
            let changed = *last != reports;
            *last = reports;
            changed
        });
    }

    fn reports(&self, now: Timestamp) -> Reports {
        let mut reports = Reports::default();
        for ((slice, node), block) in &self.world.blocks {
            if *node == self.node {
                let name = block.metadata.name.clone().unwrap_or_default();
                reports
                    .blocks
                    .insert(name, self.block_report(slice, &block.spec.blocks, now));
            }
        }
        for (key, gateway) in &self.world.gateways {
            let name = gateway.metadata.name.clone().unwrap_or_default();
            let leaving = || Standing::Leaving {
                version: gateway.metadata.resource_version.clone(),
            };
            if let Some(connected) = self.gateways.get(key) {
                let node = gateway.status.as_ref().and_then(|status| status.node.as_ref());
                let elsewhere = node.is_some_and(|node| *node != self.node);
                let said = connected.report.as_ref();
                let standing = match said.is_some_and(|report| report.draining) {
                    // Its successor has reported already.
                    true if elsewhere => continue,
                    true => leaving(),
                    false => Standing::Here { denied: elsewhere },
                };
                let report = GatewayReport {
                    standing,
                    ..status::gateway(&self.node, &connected.hello, said, now)
                };
                reports.gateways.insert(name, report);
            } else if let Some(last) = &gateway.status
                && last.node.as_deref() == Some(self.node.as_str())
                && last.connected
                && !self.adopted.contains(key)
            {
                let report = GatewayReport {
                    keys: last.public_key.clone().map(|public_key| Keys {
                        public_key,
                        former_key: last.former_key.clone(),
                        revocation: last.revocation.clone(),
                    }),
                    node: self.node.clone(),
                    standing: leaving(),
                    ..GatewayReport::default()
                };
                reports.gateways.insert(name, report);
            }
        }
        for (uid, pod) in &self.world.pods {
            let attached = |wanted: &Wanted| {
                wanted
                    .outcome
                    .as_ref()
                    .is_ok_and(|placed| self.is_attached(&placed.port))
            };
            let report = status::pod(pod, self.decision.pods.get(uid), attached);
            reports.pods.extend(report.map(|report| (uid.clone(), report)));
        }
        // What pods say of themselves belongs to what is taken away.
        if self.world.node.is_some() {
            reports.node = Some(self.node_report(self.is_removed() && reports.pods.is_empty()));
        }
        reports.decided = true;
        reports
    }

    fn node_report(&self, removed: bool) -> NodeReport {
        let underlay_mtu = self.seen.as_ref().and_then(|seen| seen.underlay_mtu);
        let missing = |feature: &str| self.features.get(feature) == Some(&false);
        let chain = match &*self.chain.borrow() {
            Chain::Broken(chain) => Some(chain.clone()),
            Chain::Unknown | Chain::Installed | Chain::Removed => None,
        };
        let problem = if let Some(error) = &self.errors.node {
            Some(error.clone())
        } else if missing("nftables") {
            Some("nftables does not work here: the kernel needs nf_tables with the bridge family, the image needs nft".into())
        } else if missing("tap") {
            Some(
                "no gateway can run here: /dev/net/tun cannot be opened; mount it into the agent as a device, and allow \
                 character device 10:200 in its cgroup (runc 1.2.0 to 1.2.3 do not)"
                    .into(),
            )
        } else if underlay_mtu.is_none() && self.address().is_some() {
            Some(format!(
                "no interface of this node has the address {}: say the right one with --node-address",
                self.address()
                    .map(|address| address.to_string())
                    .unwrap_or_default()
            ))
        } else if let Some(chain) = chain {
            Some(format!(
                "new pods are attached only after they have started: {chain}"
            ))
        } else {
            self.decision
                .problems
                .iter()
                .next()
                .map(|(slice, problem)| format!("slice {slice}: {problem}"))
        };
        let (phase, ready) = match (self.world.teardown(), removed, problem) {
            (true, true, _) => {
                let text = "nothing of Weft is left on this node";
                (SliceNodePhase::Removed, Verdict::no(READY, reason::PENDING, text))
            }
            (true, false, problem) => {
                let text = problem.unwrap_or_else(|| "Weft is being removed from this node".into());
                (
                    SliceNodePhase::Degraded,
                    Verdict::no(READY, reason::PENDING, text),
                )
            }
            (false, _, Some(problem)) => (
                SliceNodePhase::Degraded,
                Verdict::no(READY, reason::DEGRADED, problem),
            ),
            (false, _, None) => {
                let text = format!("{} slices on this node", self.decision.node.segments.len());
                (SliceNodePhase::Ready, Verdict::yes(READY, reason::READY, text))
            }
        };
        NodeReport {
            phase,
            underlay_mtu: underlay_mtu.and_then(|mtu| u16::try_from(mtu).ok()),
            features: self.features.clone(),
            ready,
        }
    }

    fn block_report(
        &self,
        slice: &str,
        blocks: &[slice_crds::IndexRange],
        now: Timestamp,
    ) -> status::BlockReport {
        let usage = self.world.slices.get(slice).map(|facts| {
            let source = Source {
                subnets: facts.subnets,
                blocks: blocks.to_vec(),
            };
            self.ledger.usage(slice, &source, now)
        });
        let mut attached = 0;
        let mut waiting = vec![];
        for (uid, decision) in &self.decision.pods {
            let Some(wanted) = decision.slices.get(slice) else {
                continue;
            };
            let why = match &wanted.outcome {
                Ok(placed) if self.is_attached(&placed.port) => {
                    attached += 1;
                    continue;
                }
                Ok(placed) => self.why_not(slice, &placed.port),
                Err(obstacle) => obstacle.to_string(),
            };
            let Some(pod) = self.world.pods.get(uid) else {
                continue;
            };
            if !is_early(pod, wanted) {
                waiting.push(format!("pod {}: {why}", pod.full_name()));
            }
        }
        let problem = self
            .errors
            .segments
            .get(&Segment::of_slice(slice))
            .or_else(|| self.decision.problems.get(slice))
            .cloned()
            .or_else(|| self.drops.obstacle());
        status::block(usage.unwrap_or_default(), attached, &waiting, problem.as_deref())
    }

    /// Why a port that is wanted is not there.
    pub(super) fn why_not(&self, slice: &str, port: &Name) -> String {
        let errors = &self.errors;
        let known = errors
            .ports
            .get(port)
            .or_else(|| errors.segments.get(&Segment::of_slice(slice)));
        let known = known
            .or_else(|| self.decision.problems.get(slice))
            .or(errors.node.as_ref());
        known
            .cloned()
            .unwrap_or_else(|| "the interface is being made".into())
    }

    /// Says on pods what has changed since it was last said. A failure is said once it has lasted.
    fn announce(&mut self, now: Timestamp) {
        let mut current = BTreeMap::new();
        let mut announcements = vec![];
        for (uid, decision) in &self.decision.pods {
            let Some(pod) = self.world.pods.get(uid) else {
                continue;
            };
            for (slice, state) in self.states(pod, decision) {
                let key = (uid.clone(), slice);
                let before = self.said.get(&key);
                let mut said = match before {
                    Some(before) if before.state == state => before.clone(),
                    _ => Said {
                        state,
                        since: now,
                        aloud: false,
                    },
                };
                // The annotation said so already, before this agent started.
                said.aloud |= said.state == State::Attached
                    && before.is_none()
                    && said_by(pod.attachments.as_deref(), &key.1);
                let patience = if said.state == State::Attached {
                    SignedDuration::ZERO
                } else {
                    LASTING
                };
                if !said.aloud && now.duration_since(said.since) >= patience {
                    said.aloud = true;
                    announcements.push(announcement(pod, &key.1, &said.state, decision));
                }
                current.insert(key, said);
            }
        }
        for ((uid, slice), said) in &self.said {
            let gone = !current.contains_key(&(uid.clone(), slice.clone()));
            if let (true, State::Attached, Some(pod)) = (gone, &said.state, self.world.pods.get(uid))
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
        self.said = current;
    }

    /// How a pod stands with each of its slices; with none, by the empty name, where a label cannot be followed.
    fn states(&self, pod: &PodView, decision: &PodDecision) -> Vec<(String, State)> {
        let errors = decision.errors.iter();
        let mut states: Vec<(String, State)> = errors
            .map(|error| (String::new(), State::Failed("LabelNotFollowed", error.clone())))
            .collect();
        for (slice, wanted) in &decision.slices {
            let state = match &wanted.outcome {
                Ok(placed) if self.is_attached(&placed.port) => State::Attached,
                Ok(placed) => State::Failed("AttachFailed", self.why_not(slice, &placed.port)),
                Err(_) if is_early(pod, wanted) => continue,
                Err(obstacle) => State::Failed(obstacle.reason(), obstacle.to_string()),
            };
            states.push((slice.clone(), state));
        }
        states
    }

    fn gauge(&self, now: Timestamp) {
        let (indices, attachments) = (&self.metrics.indices, &self.metrics.attachments);
        indices.reset();
        attachments.reset();
        for ((slice, node), block) in &self.world.blocks {
            if *node == self.node {
                let report = self.block_report(slice, &block.spec.blocks, now);
                for (state, count) in [
                    ("usable", report.usage.usable),
                    ("held", report.usage.held),
                    ("free", report.usage.free),
                ] {
                    indices
                        .with_label_values(&[slice.as_str(), state])
                        .set(count.into());
                }
                attachments
                    .with_label_values(&[slice])
                    .set(report.attachments.into());
            }
        }
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
        State::Failed(reason, why) if slice.is_empty() => Announcement::new(pod, true, reason, why.clone()),
        State::Failed(reason, why) => {
            Announcement::new(pod, true, reason, format!("not attached to slice {slice}: {why}"))
        }
    }
}

/// Whether a pod has no network namespace because it has not started yet.
fn is_early(pod: &PodView, wanted: &Wanted) -> bool {
    wanted.outcome == Err(Obstacle::NoNamespace) && !pod.running
}

/// Whether a pod's annotation names a slice.
fn said_by(annotation: Option<&str>, slice: &str) -> bool {
    let list = annotation.and_then(|text| serde_json::from_str::<Vec<labels::Attachment>>(text).ok());
    list.unwrap_or_default()
        .iter()
        .any(|attachment| attachment.slice == slice)
}
