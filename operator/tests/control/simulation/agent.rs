//! A node: its agent with the ledger that it really has, the pods on it, and what its kernel would hold.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use slice_crds::{
    IndexRange, Subnets, names,
    v1alpha1::{Slice, SliceBlock},
};
use slice_netop::ledger::{Grant, Holder, Ledger};

use super::feed::{Feed, Signal};
use crate::server::Server;

/// What of a slice is on the node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) vni: u32,
    pub(crate) subnets: Subnets,
    pub(crate) peers: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Watch {
    Slice,
    Block,
}

/// A pod that lost its attachment.
#[derive(Clone, Debug)]
pub(crate) struct Detached {
    pub(crate) slice: String,
    pub(crate) pod: String,
    pub(crate) why: String,
}

pub(crate) struct Agent {
    pub(crate) node: String,
    feeds: [Feed<Watch>; 2],
    slices: BTreeMap<String, Slice>,
    blocks: BTreeMap<String, SliceBlock>,
    pub(crate) ledger: Ledger,
    /// The kernel.
    pub(crate) segments: BTreeMap<String, Segment>,
    /// What was reported as released: by slice, for one version of the grant.
    released: BTreeMap<String, (Grant, Vec<IndexRange>)>,
    /// Cut off from the API server.
    pub(crate) is_cut: bool,
    pub(crate) detached: Vec<Detached>,
}

impl Agent {
    pub(crate) fn new(node: &str) -> Self {
        let own = node.to_owned();
        Self {
            node: node.to_owned(),
            feeds: [
                Feed::new(Watch::Slice, "Slice", |_| true),
                Feed::new(Watch::Block, "SliceBlock", move |object| {
                    object["spec"]["node"] == own.as_str()
                }),
            ],
            slices: BTreeMap::new(),
            blocks: BTreeMap::new(),
            ledger: Ledger::default(),
            segments: BTreeMap::new(),
            released: BTreeMap::new(),
            is_cut: false,
            detached: vec![],
        }
    }

    /// Some changes, of which the kernel follows.
    pub(crate) fn deliver(&mut self, server: &Server, most: usize, now: Timestamp) {
        if self.is_cut {
            return;
        }
        for _ in 0..most {
            for at in 0..2 {
                for signal in self.feeds[at].next(server) {
                    self.take(at, signal);
                }
            }
        }
        self.sync(now);
    }

    fn take(&mut self, at: usize, signal: Signal) {
        match (at, signal) {
            (0, Signal::Seen(value)) => {
                let slice: Slice = serde_json::from_value(value).unwrap();
                self.slices.insert(slice.metadata.name.clone().unwrap(), slice);
            }
            (0, Signal::Gone(meta)) => _ = self.slices.remove(&*meta.name),
            (1, Signal::Seen(value)) => {
                let block: SliceBlock = serde_json::from_value(value).unwrap();
                self.blocks.insert(block.spec.slice.clone(), block);
            }
            (1, Signal::Gone(meta)) => {
                self.blocks
                    .retain(|_, block| block.metadata.name.as_deref() != Some(&*meta.name));
            }
            // An agent's own list is never the first that it knows.
            (_, Signal::Listed(..)) => {}
            _ => unreachable!("two watches"),
        }
    }

    fn sync(&mut self, now: Timestamp) {
        for (name, slice) in &self.slices {
            let wanted = Segment {
                vni: slice.spec.vni,
                subnets: Subnets::new(&slice.spec.subnets).unwrap(),
                peers: slice.spec.peers.iter().map(|peer| peer.name.clone()).collect(),
            };
            let moved = self
                .segments
                .get(name)
                .is_some_and(|here| (here.vni, here.subnets) != (wanted.vni, wanted.subnets));
            if moved {
                let why = format!("the slice became {wanted:?}");
                detach(&mut self.ledger, &mut self.detached, name, &why, now);
            }
            self.segments.insert(name.clone(), wanted);
        }
        let gone: Vec<String> = self
            .segments
            .keys()
            .filter(|name| !self.slices.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            detach(
                &mut self.ledger,
                &mut self.detached,
                &name,
                "the Slice is gone",
                now,
            );
            self.segments.remove(&name);
        }
        for (slice, block) in &self.blocks {
            let grant = Grant {
                uid: block.metadata.uid.clone().unwrap(),
                generation: block.metadata.generation.unwrap(),
                blocks: block.spec.blocks.clone(),
                releasing: block.spec.releasing.clone(),
            };
            let _ = self.ledger.accept(slice, grant);
        }
        let blocks = &self.blocks;
        self.ledger.retain_grants(|slice| blocks.contains_key(slice));
        self.ledger.retain(now, |_, _| true);
    }

    /// A pod wants an attachment; its index where there is one.
    pub(crate) fn attach(&mut self, slice: &str, pod: &str, now: Timestamp) -> Option<u32> {
        let segment = self.segments.get(slice)?;
        let holder = Holder {
            uid: pod.to_owned(),
            namespace: "shop".to_owned(),
            name: pod.to_owned(),
        };
        self.ledger.allocate(slice, holder, segment.subnets, now).ok()
    }

    pub(crate) fn leave(&mut self, slice: &str, pod: &str, now: Timestamp) {
        self.ledger.give_back(slice, pod, now);
    }

    pub(crate) fn pods(&self, slice: &str) -> Vec<(u32, String)> {
        let page = self.ledger.pages.get(slice);
        let held = page.into_iter().flat_map(|page| &page.held);
        held.map(|(index, holder)| (*index, holder.uid.clone())).collect()
    }

    /// Indices that the node may give out or has given out, as runs.
    pub(crate) fn owns(&self, slice: &str) -> Vec<IndexRange> {
        let Some(page) = self.ledger.pages.get(slice) else {
            return vec![];
        };
        let mut runs: Vec<IndexRange> = page.held.keys().map(|index| IndexRange::new(*index, 1)).collect();
        if let Some(grant) = page.grant.as_ref().filter(|_| self.segments.contains_key(slice)) {
            let reported = self.released.get(slice).filter(|(of, _)| of == grant);
            let is_released =
                |block: &IndexRange| reported.is_some_and(|(_, released)| released.contains(block));
            runs.extend(grant.blocks.iter().filter(|block| !is_released(block)));
        }
        runs
    }

    /// Reports on every block.
    pub(crate) fn report(&mut self, server: &mut Server, now: Timestamp) {
        if self.is_cut {
            return;
        }
        for (slice, block) in self.blocks.clone() {
            let name = names::block(&slice, &self.node);
            let Some(object) = server.get("SliceBlock", "", &name) else {
                continue;
            };
            if object["metadata"]["uid"].as_str() != block.metadata.uid.as_deref() {
                continue;
            }
            let Ok(subnets) = self.segments.get(&slice).map(|segment| segment.subnets).ok_or(()) else {
                let status = json!({"present": false, "observedGeneration": block.metadata.generation});
                self.write(server, object.clone(), status);
                continue;
            };
            let Some(grant) = self.ledger.grant(&slice).cloned() else {
                continue;
            };
            let usage = self.ledger.usage(&slice, subnets, now);
            let released = self.ledger.released(&slice);
            let status = json!({
                "attachments": usage.held, "free": usage.free, "usable": usage.usable, "present": true,
                "observedGeneration": grant.generation,
                "idle": self.ledger.idle(&slice, now), "released": released, "strays": self.ledger.strays(&slice),
            });
            self.released.insert(slice, (grant, released));
            self.write(server, object.clone(), status);
        }
    }

    fn write(&self, server: &mut Server, mut object: Value, status: Value) {
        object["status"] = status;
        server.put("SliceBlock", object);
    }
}

fn detach(ledger: &mut Ledger, detached: &mut Vec<Detached>, slice: &str, why: &str, now: Timestamp) {
    let held: Vec<String> = ledger
        .pages
        .get(slice)
        .into_iter()
        .flat_map(|page| page.held.values().map(|holder| holder.uid.clone()))
        .collect();
    for pod in held {
        ledger.give_back(slice, &pod, now);
        detached.push(Detached {
            slice: slice.to_owned(),
            pod,
            why: why.to_owned(),
        });
    }
}
