//! What is reported to the API server, and what is announced as events.

use std::collections::BTreeMap;

use jiff::Timestamp;
use slice_crds::{
    conditions::{READY, Verdict, reason},
    labels,
    v1alpha1::SliceNodePhase,
};

use super::{Agent, Chain};
use crate::{
    intent::Wanted,
    kernel::Kernel,
    ledger::Source,
    model::{Name, Segment},
    status::{self, GatewayReport, NodeReport, Reports},
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

/// What was last said of one pod in one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Attached,
    Failed(String),
}

impl<K: Kernel> Agent<K> {
    pub(super) fn speak(&mut self, now: Timestamp) {
        let reports = self.reports(now);
        self.announce();
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
            if let Some(connected) = self.gateways.get(key) {
                let report = status::gateway(&self.node, &connected.hello, &connected.report, now);
                reports.gateways.insert(name, report);
            } else if let Some(last) = &gateway.status
                && last.node.as_deref() == Some(self.node.as_str())
                && last.connected
                && !self.adopted.contains(key)
            {
                let report = GatewayReport {
                    public_key: last.public_key.clone(),
                    node: self.node.clone(),
                    connected: false,
                    tunnels: vec![],
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
        reports.node = self.node_report(self.is_removed() && reports.pods.is_empty());
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
            ready: Some(ready),
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
                Err(why) => why.clone(),
            };
            let pod = self
                .world
                .pods
                .get(uid)
                .map(|pod| pod.full_name())
                .unwrap_or_default();
            waiting.push(format!("pod {pod}: {why}"));
        }
        let segment = self.errors.segments.get(&Segment::of_slice(slice));
        let problem = segment
            .or_else(|| self.decision.problems.get(slice))
            .map(String::as_str);
        status::block(usage.unwrap_or_default(), attached, &waiting, problem)
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

    /// Says on pods what has changed since it was last said.
    fn announce(&mut self) {
        let mut now: BTreeMap<(String, String), Said> = BTreeMap::new();
        let mut announcements = vec![];
        for (uid, decision) in &self.decision.pods {
            let Some(pod) = self.world.pods.get(uid) else {
                continue;
            };
            let announcement = |warning, reason, message| Announcement {
                uid: uid.clone(),
                namespace: pod.facts.namespace.clone(),
                name: pod.name.clone(),
                warning,
                reason,
                message,
            };
            let failures = decision
                .errors
                .iter()
                .map(|error| (String::new(), Said::Failed(error.clone())));
            let attachments = decision.slices.iter().filter_map(|(slice, wanted)| {
                let said = match &wanted.outcome {
                    Ok(placed) if self.is_attached(&placed.port) => Said::Attached,
                    Ok(placed) if self.errors.ports.contains_key(&placed.port) => {
                        Said::Failed(self.why_not(slice, &placed.port))
                    }
                    Ok(_) => return None,
                    Err(why) => Said::Failed(why.clone()),
                };
                Some((slice.clone(), said))
            });
            for (slice, said) in failures.chain(attachments) {
                let key = (uid.clone(), slice.clone());
                let before = self.said.get(&key);
                if before != Some(&said) {
                    match &said {
                        // Said by the annotation already, before this agent started.
                        Said::Attached if before.is_none() && said_by(pod.attachments.as_deref(), &slice) => {
                        }
                        Said::Attached => {
                            let placed = decision
                                .slices
                                .get(&slice)
                                .and_then(|wanted| wanted.outcome.as_ref().ok());
                            let where_ = placed.map(|placed| {
                                let ips: Vec<String> =
                                    placed.addresses.iter().map(ToString::to_string).collect();
                                format!(" as {} with {}", placed.interface, ips.join(" and "))
                            });
                            let message = format!("attached to slice {slice}{}", where_.unwrap_or_default());
                            announcements.push(announcement(false, "Attached", message));
                        }
                        Said::Failed(why) if slice.is_empty() => {
                            announcements.push(announcement(true, "LabelNotFollowed", why.clone()));
                        }
                        Said::Failed(why) => {
                            let message = format!("not attached to slice {slice}: {why}");
                            announcements.push(announcement(true, "AttachFailed", message));
                        }
                    }
                }
                now.insert(key, said);
            }
        }
        for ((uid, slice), said) in &self.said {
            let gone = !now.contains_key(&(uid.clone(), slice.clone()));
            if let (true, Said::Attached, Some(pod)) = (gone, said, self.world.pods.get(uid))
                && !pod.finished
                && !pod.terminating
            {
                announcements.push(Announcement {
                    uid: uid.clone(),
                    namespace: pod.facts.namespace.clone(),
                    name: pod.name.clone(),
                    warning: false,
                    reason: "Detached",
                    message: format!("detached from slice {slice}"),
                });
            }
        }
        for announcement in announcements {
            if self.announcements.try_send(announcement).is_err() {
                self.metrics.events_dropped.inc();
            }
        }
        self.said = now;
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

/// Whether a pod's annotation names a slice.
fn said_by(annotation: Option<&str>, slice: &str) -> bool {
    let list = annotation.and_then(|text| serde_json::from_str::<Vec<labels::Attachment>>(text).ok());
    list.unwrap_or_default()
        .iter()
        .any(|attachment| attachment.slice == slice)
}
