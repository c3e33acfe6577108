//! The first look: what an earlier agent left is taken over as it is.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Agent, candidates};
use crate::{
    kernel::{Kernel, Query},
    ledger::Holder,
    model::{Name, State, Via},
};

impl<K: Kernel> Agent<K> {
    /// Finds which pods have which index, by their interfaces: these win over the checkpoint, because pods use them.
    pub(super) async fn recover(&mut self, now: Timestamp) -> anyhow::Result<()> {
        let bare = self.kernel.observe(&Query::default()).await?;
        let ports: BTreeSet<Name> = bare.state.links.keys().cloned().collect();
        let candidates = candidates(&self.world, &self.sandboxes(), &ports);
        let pods = candidates
            .iter()
            .map(|(port, (_, _, end))| (port.clone(), end.clone()))
            .collect();
        let seen = self
            .kernel
            .observe(&Query {
                pods,
                node_address: None,
            })
            .await?;
        let mut found = 0;
        for (port, (slice, uid, _)) in &candidates {
            let Some(index) = self.index_of_port(&seen.state, slice, port) else {
                continue;
            };
            let Some(pod) = self.world.pods.get(uid) else {
                continue;
            };
            let holder = Holder {
                uid: uid.clone(),
                namespace: pod.facts.namespace.clone(),
                name: pod.name.clone(),
            };
            self.ledger.adopt(slice, holder, index);
            found += 1;
        }
        for ((slice, ordinal), gateway) in &self.world.gateways {
            let here = gateway
                .status
                .as_ref()
                .is_some_and(|status| status.connected && status.node.as_deref() == Some(self.node.as_str()));
            if here
                && seen
                    .held
                    .contains(&Name::new(slice_crds::names::tap(slice, *ordinal)))
            {
                self.adopted.insert((slice.clone(), *ordinal));
            }
        }
        // The ends are asked for from here on; and until the first settlement nothing counts as drift.
        self.desired.pods = seen.state.pods.clone();
        self.started = Some(now);
        tracing::info!(
            links = seen.state.links.len(),
            attachments = found,
            gateways = self.adopted.len(),
            "took over what was on the node"
        );
        Ok(())
    }

    /// The index that a port was given: by the bridge's entry. Where that is lost the pod's own end tells, which the pod
    /// can change: it counts only within this node's blocks.
    fn index_of_port(&self, state: &State, slice: &str, port: &Name) -> Option<u32> {
        let entry = state
            .fdb
            .iter()
            .find(|fdb| fdb.link == *port && fdb.via == Via::Bridge);
        if let Some(index) = entry.and_then(|fdb| fdb.mac.index()) {
            return Some(index);
        }
        let index = state.pods.get(port)?.mac.index()?;
        let own = self.world.blocks.get(&(slice.to_owned(), self.node.clone()))?;
        let held = self
            .ledger
            .pages
            .get(slice)
            .and_then(|page| page.held.get(&index));
        let is_ours = own.spec.blocks.iter().any(|block| block.contains(index)) && held.is_none();
        is_ours.then_some(index)
    }
}
