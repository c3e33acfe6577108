//! What was decided of each slice before: where nothing that it follows from has changed, it is not decided anew. So a pod
//! that comes costs its own slice's part, not that of all slices and nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use slice_crds::{IndexRange, v1alpha1::SliceGateway};

use super::{Local, segment::Resolved};
use crate::{
    blocks,
    desired::{AttachmentIntent, SegmentIntent},
    ledger::Ledger,
    liveness::{self, Adjacency, Health},
    mesh::Peers,
    model::{Name, Queues},
    world::{SliceFacts, World},
};

/// All of it.
#[derive(Debug, Default)]
pub struct Memo {
    slices: BTreeMap<String, Remembered>,
    /// The nodes of all slices; `None` where one of these has changed.
    nodes: Option<BTreeSet<IpAddr>>,
    /// Those that answer probes; likewise.
    peers: Option<Arc<Peers>>,
}

/// One slice.
#[derive(Debug)]
struct Remembered {
    from: Inputs,
    resolved: Option<Result<Arc<Resolved>, String>>,
    /// The same with its pods.
    whole: Option<Arc<SegmentIntent>>,
}

/// What a decision follows from, beside this node's name.
#[derive(Debug)]
struct Inputs {
    facts: Arc<SliceFacts>,
    blocks: Option<Arc<blocks::OfSlice>>,
    gateways: Vec<Arc<SliceGateway>>,
    adjacencies: Vec<((IpAddr, liveness::Gateway), Adjacency)>,
    carrying: Vec<(u32, Health)>,
    taps: Vec<(u32, Queues)>,
    released: Vec<IndexRange>,
}

/// How a gateway on another node is.
pub(super) type Observed<'a> = ((IpAddr, liveness::Gateway), &'a Adjacency);

/// Everything of one slice that a decision may follow from.
pub(super) struct Now<'a> {
    pub(super) slice: &'a str,
    pub(super) facts: &'a Arc<SliceFacts>,
    pub(super) world: &'a World,
    pub(super) local: &'a Local,
    pub(super) ledger: &'a Ledger,
    /// Of the slice's number.
    pub(super) adjacencies: &'a [Observed<'a>],
}

impl Now<'_> {
    fn gateways(&self) -> impl Iterator<Item = &Arc<SliceGateway>> {
        let all = self.world.gateways.range((self.slice.to_owned(), 0)..);
        all.take_while(|((of, _), _)| of == self.slice)
            .map(|(_, gateway)| gateway)
    }

    fn carrying(&self) -> impl Iterator<Item = (u32, &Health)> {
        let all = self.local.carrying.range((self.slice.to_owned(), 0)..);
        let own = all.take_while(|((of, _), _)| of == self.slice);
        own.map(|((_, ordinal), health)| (*ordinal, health))
    }

    fn taps(&self) -> impl Iterator<Item = (u32, Queues)> {
        let all = self.local.taps.range((self.slice.to_owned(), 0)..);
        let own = all.take_while(|((of, _), _)| of == self.slice);
        own.map(|((_, ordinal), queues)| (*ordinal, *queues))
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            facts: Arc::clone(self.facts),
            blocks: self.world.blocks.of_slice(self.slice).cloned(),
            gateways: self.gateways().cloned().collect(),
            adjacencies: (self.adjacencies.iter())
                .map(|(key, adjacency)| (*key, (*adjacency).clone()))
                .collect(),
            carrying: self
                .carrying()
                .map(|(ordinal, health)| (ordinal, health.clone()))
                .collect(),
            taps: self.taps().collect(),
            released: self.ledger.released(self.slice),
        }
    }
}

impl Inputs {
    /// Whether everything is as it was. Objects are the same where they were not replaced since.
    fn are(&self, now: &Now<'_>) -> bool {
        let adjacencies = self.adjacencies.iter().map(|(key, adjacency)| (*key, adjacency));
        let carrying = self.carrying.iter().map(|(ordinal, health)| (*ordinal, health));
        Arc::ptr_eq(&self.facts, now.facts)
            && self.blocks.as_ref().map(Arc::as_ptr) == now.world.blocks.of_slice(now.slice).map(Arc::as_ptr)
            && same(&self.gateways, now.gateways())
            && adjacencies.eq(now.adjacencies.iter().copied())
            && carrying.eq(now.carrying())
            && self.taps.iter().copied().eq(now.taps())
            && self.released == now.ledger.released(now.slice)
    }
}

fn same<'a, T: 'a>(before: &[Arc<T>], mut now: impl Iterator<Item = &'a Arc<T>>) -> bool {
    let mut before = before.iter();
    now.all(|now| before.next().is_some_and(|before| Arc::ptr_eq(before, now))) && before.next().is_none()
}

impl Memo {
    /// What was decided of a slice, or `decide`s it.
    pub(super) fn resolve(
        &mut self,
        now: &Now<'_>,
        decide: impl FnOnce() -> Option<Result<Resolved, String>>,
    ) -> Option<Result<Arc<Resolved>, String>> {
        if let Some(remembered) = self.slices.get(now.slice)
            && remembered.from.are(now)
        {
            return remembered.resolved.clone();
        }
        let resolved = decide().map(|resolved| resolved.map(Arc::new));
        let remembered = Remembered {
            from: now.inputs(),
            resolved: resolved.clone(),
            whole: None,
        };
        self.slices.insert(now.slice.to_owned(), remembered);
        (self.nodes, self.peers) = (None, None);
        resolved
    }

    /// A slice with its pods: the same object as before, where nothing changed.
    pub(super) fn whole(
        &mut self,
        slice: &str,
        base: &SegmentIntent,
        attachments: BTreeMap<Name, AttachmentIntent>,
    ) -> Arc<SegmentIntent> {
        let whole = self.slices.get_mut(slice).map(|remembered| &mut remembered.whole);
        if let Some(Some(before)) = &whole
            && before.attachments == attachments
        {
            return Arc::clone(before);
        }
        let made = Arc::new(SegmentIntent {
            attachments,
            ..base.clone()
        });
        if let Some(whole) = whole {
            *whole = Some(Arc::clone(&made));
        }
        made
    }

    /// Forgets slices that are gone.
    pub(super) fn retain(&mut self, world: &World) {
        self.slices.retain(|slice, _| {
            let stays = world.slices.contains_key(slice);
            if !stays {
                (self.nodes, self.peers) = (None, None);
            }
            stays
        });
    }

    /// The addresses of nodes, from `find` where blocks are other than they were.
    pub(super) fn nodes(&mut self, find: impl FnOnce() -> BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        self.nodes.get_or_insert_with(find).clone()
    }

    /// The nodes that answer probes, likewise.
    pub(super) fn peers(&mut self, find: impl FnOnce() -> Peers) -> Arc<Peers> {
        Arc::clone(self.peers.get_or_insert_with(|| find().into()))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        intent::{
            resolve,
            testing::{cluster, edit_block, facts, node},
        },
        model::Netns,
        world::PodView,
    };

    type Edit = fn(&mut World, &mut Local);

    /// Whatever changes, in whatever order: with what is remembered everything is decided as without.
    #[test]
    fn what_is_remembered_is_what_would_be_decided() {
        let edits: [(&str, Edit); 12] = [
            ("nothing", |_, _| {}),
            ("a block moves", |world, _| {
                edit_block(world, 2, |spec| spec.blocks = vec![IndexRange::new(64, 8)]);
            }),
            ("a node has another address", |world, _| {
                edit_block(world, 2, |spec| spec.node_address = [10, 9, 9, 9].into());
            }),
            ("a node goes", |world, _| world.blocks.remove("shop", "n2")),
            ("a gateway is lost", |world, _| {
                let gateway = world.gateways.get_mut(&("shop".into(), 0)).unwrap();
                Arc::make_mut(gateway).spec.lost = true;
            }),
            ("a gateway falls silent", |_, local| {
                let view = [(([10, 0, 0, 0].into(), (7, 0)), Adjacency::Silent)];
                local.liveness = Arc::new(view.into());
            }),
            ("the own gateway carries", |_, local| {
                local.carrying.insert(("shop".into(), 1), Health::default());
                local.taps.insert(("shop".into(), 1), Queues::One);
            }),
            ("a pod comes", |world, local| {
                let mut pod = PodView {
                    uid: "a".into(),
                    sandbox_uid: "a".into(),
                    name: "a".into(),
                    ..PodView::default()
                };
                pod.facts.namespace = "cart".into();
                world.pods.insert("a".into(), Arc::new(pod));
                let member = [(slice_crds::labels::SLICE.to_owned(), "shop".to_owned())];
                world.namespaces.insert("cart".into(), Arc::new(member.into()));
                local.sandboxes.insert("a".into(), Netns::new("/run/netns/a"));
            }),
            ("the slice has another size", |world, _| {
                let mut facts = SliceFacts::clone(&world.slices["shop"]);
                facts.spec.mtu = 1400;
                world.slices.insert("shop".into(), Arc::new(facts));
            }),
            ("the pod goes", |world, _| world.pods.clear()),
            ("the slice goes", |world, _| world.slices.clear()),
            ("it comes back", |world, _| {
                world.slices.insert("shop".into(), facts().into());
            }),
        ];
        let mut world = cluster(4, 2);
        world.slices.insert("shop".into(), facts().into());
        let mut local = node(1);
        let (mut ledger, mut memo) = (Ledger::default(), Memo::default());
        for (what, edit) in edits.iter().chain(edits.iter().rev().skip(2)) {
            if matches!(
                *what,
                "a gateway is lost" | "a block moves" | "a node has another address"
            ) && world.blocks.get("shop", "n2").is_none()
            {
                continue;
            }
            edit(&mut world, &mut local);
            let mut other = ledger.clone();
            let decide = |ledger: &mut Ledger, memo: &mut Memo| {
                resolve(&world, &local, ledger, memo, Timestamp::UNIX_EPOCH)
            };
            let remembered = decide(&mut ledger, &mut memo);
            assert_eq!(remembered, decide(&mut other, &mut Memo::default()), "{what}");
            let again = decide(&mut ledger, &mut memo);
            for (slice, segment) in &again.node.segments {
                assert!(
                    Arc::ptr_eq(segment, &remembered.node.segments[slice]),
                    "{what}: made anew"
                );
            }
        }
    }
}
