//! Gateways on this node: who is connected, who has its TAP, what each was sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::Arc,
};

use jiff::Timestamp;
use slice_crds::index;
use slice_runtime::handover::{Config, Hello, MAX_QUEUES, Report, Tap, ToGateway};

use super::{ADOPTION, Agent};
use crate::{
    gateways::{Connection, GatewayEvent},
    intent,
    kernel::{Kernel, TAP_OFFLOADS},
    liveness::{self, Health, MAX_MISSING},
    model::{Name, Queues},
    world::SliceFacts,
};

/// One that is connected.
pub(super) struct Gateway {
    connection: Connection,
    pub(super) hello: Hello,
    /// `None` until the first.
    pub(super) report: Option<Report>,
    /// The configuration it was last sent.
    config: Option<Config>,
    /// It has its TAP.
    carries: bool,
}

/// A TAP as it was last seen.
struct SeenTap {
    queues: Queues,
    /// A process holds it.
    held: bool,
}

/// What others need to know of a gateway that carries to these gateways, by their names: `<cluster>/<ordinal>`.
fn health<'a>(facts: Option<&Arc<SliceFacts>>, carries_to: impl Iterator<Item = &'a str>) -> Health {
    let clusters = carries_to.filter_map(|peer| peer.split_once('/').map(|(cluster, _)| cluster));
    let reached: BTreeSet<&str> = clusters.collect();
    Health {
        reached: reached.len().try_into().unwrap_or(u32::MAX),
        draining: false,
        missing: missing(facts, &reached),
        part: None,
    }
}

fn reported_health(facts: Option<&Arc<SliceFacts>>, report: &Report) -> Health {
    let carries = report.tunnels.iter().filter(|tunnel| tunnel.up && !tunnel.away);
    Health {
        reached: report.reached,
        draining: report.draining,
        ..health(facts, carries.map(|tunnel| tunnel.peer.as_str()))
    }
}

/// Clusters that are not reached, by number: of those that have gateways, hosts outside not counted.
fn missing(facts: Option<&Arc<SliceFacts>>, reached: &BTreeSet<&str>) -> Vec<u32> {
    let known = facts.into_iter().flat_map(|facts| &facts.spec.peers);
    let missing = known.filter(|peer| {
        peer.number != index::OUTSIDE && !peer.gateways.is_empty() && !reached.contains(peer.name.as_str())
    });
    let mut numbers: Vec<u32> = missing.map(|peer| peer.number).collect();
    numbers.sort_unstable();
    numbers.truncate(MAX_MISSING);
    numbers
}

impl<K: Kernel> Agent<K> {
    pub(super) fn take_gateway(&mut self, event: GatewayEvent) {
        match event {
            GatewayEvent::Hello {
                slice,
                mut hello,
                connection,
            } => {
                hello.queues = hello.queues.clamp(1, MAX_QUEUES);
                tracing::info!(
                    slice,
                    ordinal = hello.ordinal,
                    version = hello.version,
                    has_tap = hello.has_tap,
                    queues = hello.queues,
                    "gateway connected"
                );
                let key = (slice, hello.ordinal);
                // Until its turn, it carries what it carried.
                let carries = hello.has_tap && self.adopted.contains(&key);
                self.adopted.remove(&key);
                let gateway = Gateway {
                    connection,
                    hello,
                    report: None,
                    config: None,
                    carries,
                };
                self.gateways.insert(key, gateway);
            }
            GatewayEvent::Report { connection, report } => _ = self.take_report(connection, report),
            GatewayEvent::Gone { connection } => {
                self.gateways.retain(|(slice, ordinal), gateway| {
                    let stays = gateway.connection.id != connection;
                    if !stays {
                        tracing::info!(slice, ordinal, "gateway disconnected");
                    }
                    stays
                });
            }
        }
    }

    /// Whether the report changes what the gateway can be used for.
    pub(super) fn take_report(&mut self, connection: u64, report: Report) -> bool {
        let mut gateways = self.gateways.iter_mut();
        let found = gateways.find(|(_, gateway)| gateway.connection.id == connection);
        let Some(((slice, _), gateway)) = found else {
            return false;
        };
        let facts = self.world.slices.get(slice);
        let after = reported_health(facts, &report);
        let before = gateway.report.replace(report);
        before.is_none_or(|before| reported_health(facts, &before) != after)
    }

    pub(super) fn listen_for_gateways(&mut self) {
        let none = Default::default();
        let slices = if self.world.teardown() {
            &none
        } else {
            &self.world.slices
        };
        if let Err(error) = self.server.listen(slices.keys().map(String::as_str)) {
            tracing::warn!(error = format!("{error:#}"), "gateways cannot connect");
        }
        // One whose object is gone, or never was, has no business here.
        let world = &self.world;
        self.gateways.retain(|key, _| {
            let known = world.gateways.contains_key(key) && world.slices.contains_key(&key.0);
            if !known {
                tracing::info!(
                    slice = key.0,
                    ordinal = key.1,
                    "gateway let go, there is no SliceGateway for it"
                );
            }
            known
        });
    }

    /// A gateway that was here before this agent has had its time to call.
    pub(super) fn give_up_adoption(&mut self, now: Timestamp) {
        if self
            .started
            .is_some_and(|started| now.duration_since(started) > ADOPTION)
        {
            self.adopted.clear();
        }
    }

    /// Gateways on this node that frames can be sent to, and what they report. One that carried before this agent came,
    /// and has reported nothing to it yet, is as its object says; a new one reaches nobody before it reports so.
    pub(super) fn carrying(&self) -> BTreeMap<(String, u32), Health> {
        let connected = self.gateways.iter().filter(|(_, gateway)| gateway.carries);
        let connected = connected.map(|(key, gateway)| {
            let facts = self.world.slices.get(&key.0);
            let health = match &gateway.report {
                Some(report) => reported_health(facts, report),
                None if gateway.hello.has_tap => self.recorded_health(key),
                None => health(facts, iter::empty()),
            };
            (key.clone(), health)
        });
        let adopted = (self.adopted.iter()).map(|key| (key.clone(), self.recorded_health(key)));
        connected.chain(adopted).collect()
    }

    fn recorded_health(&self, key: &(String, u32)) -> Health {
        let status = self
            .world
            .gateways
            .get(key)
            .and_then(|gateway| gateway.status.as_ref());
        let tunnels = status.into_iter().flat_map(|status| &status.tunnels);
        let up = tunnels.filter(|tunnel| tunnel.up);
        let peers = up.map(|tunnel| tunnel.peer.as_str());
        health(self.world.slices.get(&key.0), peers)
    }

    /// Lets the other nodes' agents know of the gateways here, and says which of theirs are to be asked about.
    pub(super) fn update_liveness(&self) {
        let vni = |slice: &str| self.world.slices.get(slice).map(|facts| facts.spec.vni);
        let own = self.carrying().into_iter();
        let own = own.filter_map(|((slice, ordinal), mut health)| {
            health.part = self.shaping.parts.get(&slice).copied();
            Some(((vni(&slice)?, ordinal), health))
        });
        let local = liveness::Local {
            address: self.address(),
            nodes: self.decision.node.nodes.clone(),
            wanted: self.decision.watched.clone(),
            own: own.collect(),
        };
        self.liveness.send_if_modified(|before| {
            let changed = *before != local;
            *before = local;
            changed
        });
    }

    /// Gateways on this node that should have a TAP: those that are connected, with as many queues as they can use,
    /// and those that were here last, as it is, unless their pod was put on another node. One that somebody holds stays
    /// as it is in any case: what is replaced under a gateway that carries is lost to it.
    pub(super) fn taps(&self) -> BTreeMap<(String, u32), Queues> {
        let mut taps = BTreeMap::new();
        for (key, gateway) in &self.world.gateways {
            let node = gateway.status.as_ref().and_then(|status| status.node.as_deref());
            let moved = gateway
                .spec
                .node
                .as_ref()
                .is_some_and(|assigned| *assigned != self.node);
            if node == Some(self.node.as_str())
                && let Some(tap) = self.tap(key)
                && (tap.held || !moved)
            {
                taps.insert(key.clone(), tap.queues);
            }
        }
        for (key, gateway) in &self.gateways {
            let in_use = self.tap(key).filter(|tap| tap.held || gateway.carries);
            let asked = Queues::of(gateway.hello.queues);
            taps.insert(key.clone(), in_use.map_or(asked, |tap| tap.queues));
        }
        taps
    }

    /// The TAP of a gateway, where it is there.
    fn tap(&self, (slice, ordinal): &(String, u32)) -> Option<SeenTap> {
        let name = Name::tap(slice, *ordinal);
        let seen = self.seen.as_ref()?;
        Some(SeenTap {
            queues: seen.state.links.get(&name)?.kind.tap()?,
            held: seen.held.contains(&name),
        })
    }

    /// A TAP that nobody holds was made anew, or its gateway let it go: it is handed over again.
    pub(super) fn check_taps(&mut self, held: &BTreeSet<Name>) {
        for ((slice, ordinal), gateway) in &mut self.gateways {
            if gateway.carries && !held.contains(&Name::tap(slice, *ordinal)) {
                tracing::warn!(slice, ordinal, "gateway lost its TAP");
                gateway.carries = false;
            }
        }
        self.adopted
            .retain(|(slice, ordinal)| held.contains(&Name::tap(slice, *ordinal)));
    }

    /// Gives TAPs to gateways that are without; whether any got one.
    pub(super) fn hand_over_taps(&mut self) -> bool {
        let waiting = self.gateways.iter().filter(|(_, gateway)| !gateway.carries);
        let waiting: Vec<_> = waiting
            .filter_map(|(key, _)| Some((key.clone(), self.tap(key)?)))
            .collect();
        waiting
            .into_iter()
            .fold(false, |any, (key, tap)| self.hand_over_tap(&key, &tap) || any)
    }

    /// Gives a gateway its TAP if it is free; whether the gateway has it now.
    fn hand_over_tap(&mut self, key: &(String, u32), tap: &SeenTap) -> bool {
        let (slice, ordinal) = key;
        let name = Name::tap(slice, *ordinal);
        let (Some(gateway), Some(facts)) = (self.gateways.get_mut(key), self.world.slices.get(slice)) else {
            return false;
        };
        if tap.queues != Queues::of(gateway.hello.queues) {
            // It is in use, by this gateway or an earlier process of it. When that lets go, it is made anew.
            gateway.carries = gateway.hello.has_tap && tap.held;
            self.look |= !gateway.carries;
            return gateway.carries;
        }
        let busy = tap.queues == Queues::Several && tap.held;
        // The kernel notifies when that is over, but perhaps it is already: it is looked again in any case.
        self.look |= busy;
        let opened = if busy {
            Ok(None)
        } else {
            self.kernel.open_tap(&name, gateway.hello.queues)
        };
        let fds = match opened {
            Ok(Some(fds)) => fds,
            Ok(None) => {
                // This process holds it, or an earlier one of the same gateway, whose end frees the device.
                gateway.carries = gateway.hello.has_tap;
                tracing::debug!(slice, ordinal, carries = gateway.carries, "TAP is in use");
                return gateway.carries;
            }
            Err(error) => {
                tracing::warn!(slice, ordinal, error = format!("{error:#}"), "TAP not opened");
                return false;
            }
        };
        // The configuration goes first: with the TAP come frames.
        let Some(config) = intent::gateway_config(slice, facts, *ordinal) else {
            return false;
        };
        let tap = Tap {
            interface: name.as_str().to_owned(),
            offloads: TAP_OFFLOADS,
        };
        let queues = fds.len();
        let sent = gateway.connection.send(ToGateway::Config(config.clone()), vec![])
            && gateway.connection.send(ToGateway::Tap(tap), fds);
        if sent {
            tracing::info!(slice, ordinal, interface = %name, queues, "TAP handed over");
            gateway.config = Some(config);
            gateway.carries = true;
            if let Some(seen) = &mut self.seen {
                seen.held.insert(name);
            }
        }
        sent
    }

    /// Whether a gateway is connected and waits for its TAP.
    pub(super) fn has_idle_gateway(&self) -> bool {
        self.gateways.values().any(|gateway| !gateway.carries)
    }

    /// Sends gateways what changed.
    pub(super) fn serve_gateways(&mut self) {
        for ((slice, ordinal), gateway) in &mut self.gateways {
            let Some(facts) = self.world.slices.get(slice) else {
                continue;
            };
            let config = intent::gateway_config(slice, facts, *ordinal);
            if gateway.config != config
                && let Some(config) = config
                && gateway.connection.send(ToGateway::Config(config.clone()), vec![])
            {
                gateway.config = Some(config);
            }
        }
        let gauge = &self.metrics.gateways;
        gauge.reset();
        for (slice, _) in self.gateways.keys() {
            gauge.with_label_values(&[slice]).inc();
        }
    }
}
