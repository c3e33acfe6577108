//! What is reported to the API server, and counted.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use slice_crds::{
    IndexRange,
    conditions::{READY, Verdict, reason},
    v1alpha1::{MeshStatus, SliceGateway, SliceNodePhase},
};
use slice_runtime::handover::Keys;

use super::{Agent, Chain, announce::is_early};
use crate::{
    intent::Wanted,
    kernel::{EBPF, Kernel},
    ledger::Usage,
    model::{Holder, Kind, Name, State},
    names,
    status::{self, BlockReport, GatewayReport, NodeReport, Reports, Standing},
};

/// Interfaces that may be on the node, with the slice that each is a port of.
///
/// Something leaves it only by an observation that does not show it: what was removed is what is seen to be gone.
#[derive(Default)]
pub(super) struct Remains(BTreeMap<Name, Option<String>>);

impl Remains {
    pub(super) fn observe(&mut self, state: &State) {
        self.0.clear();
        self.extend(state);
    }

    /// Adds what is about to be made.
    pub(super) fn extend(&mut self, state: &State) {
        let links = state
            .links
            .iter()
            .filter(|(_, link)| !matches!(link.kind, Kind::Vxlan(_) | Kind::Shaper));
        let owned = links.map(|(name, link)| {
            let slice = link.alias.as_ref().map(|alias| alias.slice.clone());
            (name.clone(), slice)
        });
        self.0.extend(owned);
    }

    /// Whether anything of a slice is among it. What does not say whose it is may be any slice's.
    fn of_slice(&self, slice: &str) -> bool {
        self.0
            .values()
            .any(|of| of.as_deref().is_none_or(|of| of == slice))
    }
}

impl<K: Kernel> Agent<K> {
    /// Passes on what is to be reported, announced and counted.
    pub(super) fn publish(&mut self, now: Timestamp) {
        let reports = self.reports(now);
        self.announce(now);
        self.gauge(&reports);
        self.reports.send_if_modified(|last| {
            let changed = *last != reports;
            *last = reports;
            changed
        });
    }

    fn reports(&self, now: Timestamp) -> Reports {
        let mut reports = Reports::default();
        // What pods have is known once the kernel was looked at.
        let looked = self.seen.is_some();
        let own = self.world.blocks.of_node(&self.node).filter(|_| looked);
        for (slice, block) in own {
            let name = block.metadata.name.clone().unwrap_or_default();
            let recorded = block.status.clone().map(|status| (name.clone(), status));
            reports.recorded.blocks.extend(recorded);
            reports.blocks.insert(name, self.block_report(slice, now));
        }
        for (key, gateway) in &self.world.gateways {
            if let Some(report) = self.gateway_report(key, gateway, now) {
                let name = gateway.metadata.name.clone().unwrap_or_default();
                let recorded = gateway.status.clone().map(|status| (name.clone(), status));
                reports.recorded.gateways.extend(recorded);
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
        if let Some(node) = &self.world.node {
            reports.recorded.node.clone_from(&node.status);
            reports.node = Some(self.node_report(self.is_removed() && reports.pods.is_empty()));
        }
        reports.decided = true;
        reports
    }

    /// `None` where there is nothing to report, or another node's agent reports it.
    fn gateway_report(
        &self,
        key: &(String, u32),
        gateway: &SliceGateway,
        now: Timestamp,
    ) -> Option<GatewayReport> {
        // Where the operator names the node that the pod was put on, that one reports, and nobody else.
        let assigned = gateway.spec.node.as_ref();
        if assigned.is_some_and(|node| *node != self.node) {
            return None;
        }
        let namespace = gateway.metadata.namespace.clone();
        let leaving = || Standing::Leaving {
            version: gateway.metadata.resource_version.clone(),
        };
        let last = gateway.status.as_ref();
        if let Some(connected) = self.gateways.get(key) {
            let node = last.and_then(|status| status.node.as_ref());
            let elsewhere = node.is_some_and(|node| *node != self.node);
            let report = connected.report.as_ref();
            let standing = match report.is_some_and(|report| report.draining) {
                // Its successor has reported already.
                true if elsewhere && assigned.is_none() => return None,
                true => leaving(),
                false => Standing::Here { denied: elsewhere },
            };
            return Some(GatewayReport {
                namespace,
                standing,
                ..status::gateway(&self.node, &connected.hello, report, now)
            });
        }
        let here = last.filter(|last| last.connected && last.node.as_ref() == Some(&self.node))?;
        if self.adopted.contains(key) {
            return None;
        }
        Some(GatewayReport {
            namespace,
            keys: here.public_key.clone().map(|public_key| Keys {
                public_key,
                former_key: here.former_key.clone(),
                revocation: here.revocation.clone(),
            }),
            node: self.node.clone(),
            standing: leaving(),
            ..GatewayReport::default()
        })
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
        } else if missing(EBPF) {
            Some("no slice is carried here: the kernel does not take the agent's eBPF programs; its log says why".into())
        } else if missing("nftables") {
            Some(
                "nftables does not work here: the kernel needs nf_tables with the family inet and fib, the image needs nft"
                    .into(),
            )
        } else if missing("tap") {
            Some(
                "no gateway can run here: /dev/net/tun cannot be opened; mount it into the agent as a device, and allow \
                 character device 10:200 in its cgroup (runc 1.2.0 to 1.2.3 do not)"
                    .into(),
            )
        } else if let (None, Some(address)) = (underlay_mtu, self.address()) {
            Some(format!(
                "no interface of this node has the address {address}, which is the InternalIP of its Node: where it has moved, the \
                 kubelet notices within a minute; else give the kubelet the right one with --node-ip"
            ))
        } else if let Some(error) = &self.errors.records {
            Some(format!(
                "the agent cannot keep its records, so no block of this node comes back: {error}"
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
            pod_networks: self.pod_networks.list(),
            features: self.features.clone(),
            ready,
            guarantees: self.guarantees(),
            mesh: self.mesh_status(),
            names: self.names_verdict(),
        }
    }

    /// What the probes of other nodes say; what was reported before, until they say something.
    fn mesh_status(&self) -> MeshStatus {
        let Some(seen) = &self.mesh_view else {
            return self.mesh_before.clone();
        };
        let broken: usize = seen.faults.values().sum();
        MeshStatus {
            broken: u32::try_from(broken).unwrap_or(u32::MAX),
            pairs: seen.broken.clone(),
        }
    }

    /// Whether names of slices resolve; what was reported before, until that is known.
    fn names_verdict(&self) -> names::View {
        self.slice_dns()?;
        self.names_view.clone().or_else(|| self.names_before.clone())
    }

    fn block_report(&self, slice: &str, now: Timestamp) -> BlockReport {
        let facts = self.world.slices.get(slice);
        let known = facts.is_some() || self.world.broken.contains_key(slice);
        let present = known || self.remains.of_slice(slice);
        let usage = facts.map(|facts| self.ledger.usage(slice, facts.subnets, now));
        // What is reported of blocks must outlive this process: an agent that starts again must not know less.
        let grant = self.ledger.grant(slice);
        let (mut idle, mut released) = (vec![], vec![]);
        if grant == self.saved.0.grant(slice) {
            (idle, released) = (self.ledger.idle(slice, now), self.ledger.released(slice));
            let used = self.indices_in_use(slice);
            let is_unused = |block: &IndexRange| !used.iter().any(|index| block.contains(*index));
            idle.retain(is_unused);
            released.retain(is_unused);
        }
        let (attachments, ready) = match known {
            true => self.attachments(slice),
            false => (0, self.taken_off(slice, present)),
        };
        BlockReport {
            attachments,
            usage: usage.unwrap_or_default(),
            idle,
            released,
            strays: self.ledger.strays(slice),
            present,
            answers_probes: self.answers_probes(),
            observed_generation: self.saved.0.grant(slice).map(|grant| grant.generation),
            ready,
        }
    }

    /// Attached pods of a slice, and the condition that follows.
    fn attachments(&self, slice: &str) -> (u32, Verdict) {
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
            .get(slice)
            .or_else(|| self.decision.problems.get(slice))
            .cloned();
        (
            attached,
            status::block_ready(attached, &waiting, problem.as_deref()),
        )
    }

    /// The condition of a block whose slice is gone.
    fn taken_off(&self, slice: &str, present: bool) -> Verdict {
        match self.errors.segments.get(slice) {
            Some(error) if present => Verdict::no(READY, reason::DEGRADED, error),
            _ if present => Verdict::yes(READY, reason::READY, "the slice is being taken off this node"),
            _ => Verdict::yes(READY, reason::READY, "nothing of the slice is on this node"),
        }
    }

    /// Indices that ports of a slice are seen to have. On the node's side: what is inside a pod, the pod can change.
    fn indices_in_use(&self, slice: &str) -> BTreeSet<u32> {
        let Some(state) = self.state() else {
            return BTreeSet::new();
        };
        let aliases = state.links.values().filter_map(|link| link.alias.as_ref());
        let of_links = aliases
            .filter(|alias| alias.slice == slice)
            .filter_map(|alias| match alias.holder {
                Holder::Index(index) => Some(index),
                Holder::Gateway(_) => None,
            });
        let segment = state.segments.get(slice).into_iter();
        of_links
            .chain(segment.flat_map(|segment| segment.indices()))
            .collect()
    }

    /// Why a port that is wanted is not there.
    pub(super) fn why_not(&self, slice: &str, port: &Name) -> String {
        let errors = &self.errors;
        let known = errors.ports.get(port).or_else(|| errors.segments.get(slice));
        let known = known
            .or_else(|| self.decision.problems.get(slice))
            .or(errors.node.as_ref());
        known
            .cloned()
            .unwrap_or_else(|| "the interface is being made".into())
    }

    fn gauge(&self, reports: &Reports) {
        let (indices, attachments) = (&self.metrics.indices, &self.metrics.attachments);
        indices.reset();
        attachments.reset();
        for (slice, block) in self.world.blocks.of_node(&self.node) {
            let Some(report) = block
                .metadata
                .name
                .as_ref()
                .and_then(|name| reports.blocks.get(name))
            else {
                continue;
            };
            let Usage {
                usable,
                held,
                free,
                resting,
            } = report.usage;
            for (state, count) in [
                ("usable", usable),
                ("held", held),
                ("free", free),
                ("resting", resting),
            ] {
                indices.with_label_values(&[slice, state]).set(count.into());
            }
            attachments
                .with_label_values(&[slice])
                .set(report.attachments.into());
        }
    }
}
