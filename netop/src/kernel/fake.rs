//! A kernel in memory, for tests of what is above it. It refuses what a real one would refuse, and what would let a
//! frame pass that must not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, bail};
use slice_crds::Rate;

use super::{Kernel, Observation, Outcome, Query};
use crate::{
    model::{Carried, ClassId, Key, Kind, Name, Netns, Queues, State},
    plan::{Action, Plan, PodAction},
    programs::Counter,
};

/// A kernel that tests look into; clones are the same one.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<Inner>>);

/// What is in it.
#[derive(Default)]
pub struct Inner {
    pub state: State,
    /// TAP devices that a process holds open.
    pub held: BTreeSet<Name>,
    /// Namespaces that have ended.
    pub gone: BTreeSet<Netns>,
    pub counters: BTreeMap<Counter, u64>,
    pub carried: BTreeMap<ClassId, Carried>,
    pub underlay_speed: Option<Rate>,
    /// Changes whose text contains one of these are refused.
    pub refused: Vec<String>,
    /// It cannot be looked at.
    pub unreadable: bool,
    /// Everything that was done, as text.
    pub log: Vec<String>,
}

impl Fake {
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was done since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().log)
    }
}

impl Kernel for Fake {
    async fn observe(&mut self, query: &Query) -> anyhow::Result<Observation> {
        let inner = self.inner();
        if inner.unreadable {
            bail!("the kernel does not answer");
        }
        let mut state = inner.state.clone();
        state
            .pods
            .retain(|port, pod| query.pods.get(port).is_some_and(|end| *end == pod.end()));
        let asked = query.pods.values().map(|end| &end.netns);
        Ok(Observation {
            state,
            counters: inner.counters.clone(),
            carried: inner.carried.clone(),
            held: inner.held.clone(),
            gone: asked
                .filter(|netns| inner.gone.contains(*netns))
                .cloned()
                .collect(),
            underlay_mtu: query.node_address.map(|_| 1500),
            underlay_speed: inner.underlay_speed,
            underlay_drops: None,
            unread: BTreeMap::new(),
        })
    }

    async fn apply(&mut self, plan: &Plan) -> Outcome {
        let mut inner = self.inner();
        let mut outcome = Outcome::default();
        for step in &plan.0 {
            if outcome.forbids(&step.scope) {
                outcome.skipped.push(step.clone());
                continue;
            }
            let result = inner
                .change(&step.action)
                .with_context(|| step.action.to_string());
            outcome.record(step, result);
        }
        outcome
    }

    async fn carried(&mut self) -> anyhow::Result<BTreeMap<ClassId, Carried>> {
        Ok(self.inner().carried.clone())
    }

    fn open_tap(&mut self, name: &Name, queues: u8) -> anyhow::Result<Option<Vec<OwnedFd>>> {
        let mut inner = self.inner();
        let Some(made_for) = inner.state.links.get(name).and_then(|link| link.kind.tap()) else {
            bail!("TAP device {name} is not there");
        };
        if made_for != Queues::of(queues) {
            bail!("TAP device {name} is not made for {queues} queues");
        }
        if !inner.held.insert(name.clone()) {
            return Ok(None);
        }
        let queue = |_| Ok(File::open("/dev/null")?.into());
        (0..queues).map(queue).collect::<anyhow::Result<_>>().map(Some)
    }
}

impl Inner {
    fn change(&mut self, action: &Action) -> anyhow::Result<()> {
        let text = action.to_string();
        if let Some(pattern) = self.refused.iter().find(|pattern| text.contains(*pattern)) {
            bail!("refused because of \"{pattern}\"");
        }
        self.check(action)?;
        self.state.take(action);
        match action {
            Action::DelLink(name) => _ = self.held.remove(name),
            // The kernel makes the subnet's route by itself.
            Action::Pod(port, _, PodAction::Up) => {
                if let Some(pod) = self.state.pods.get_mut(port) {
                    pod.routes.extend(pod.addresses.iter().map(ipnet::IpNet::trunc));
                }
            }
            _ => {}
        }
        self.log.push(text);
        Ok(())
    }

    fn check(&self, action: &Action) -> anyhow::Result<()> {
        let links = &self.state.links;
        match action {
            Action::AddLink(name, link, pod) => {
                if links.contains_key(name) {
                    bail!("{name} exists");
                }
                if (link.kind == Kind::Veth) != pod.is_some() {
                    bail!("a pair has two ends");
                }
                if pod.as_ref().is_some_and(|pod| self.gone.contains(&pod.netns)) {
                    bail!("network namespace is gone");
                }
            }
            Action::Up(name) if links.get(name).is_some_and(|link| !link.attached) => {
                bail!("{name} would open without its program");
            }
            Action::Attach(name) if name.is_pod_port() => {
                let mut segments = self.state.segments.values();
                let known = Key::Port(name.clone());
                if !segments.any(|segment| segment.get(&known).is_some()) {
                    bail!("the program at {name} would not know whose it is");
                }
            }
            Action::SetEntry(_, entry) => {
                if let Some(link) = entry.links().find(|link| !links.contains_key(*link)) {
                    bail!("interface {link} is gone");
                }
            }
            Action::DelLink(name)
            | Action::SetMtu(name, _)
            | Action::SetAlias(name, _)
            | Action::Attach(name)
            | Action::Up(name)
                if !links.contains_key(name) =>
            {
                bail!("{name} is not there");
            }
            _ => {}
        }
        Ok(())
    }
}
