//! The first look: what an earlier agent left is taken over as it is.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Agent, candidates};
use crate::{
    kernel::{Kernel, Query},
    ledger::Holder,
    model::{self, Name},
};

impl<K: Kernel> Agent<K> {
    /// Finds which pods have which index, by what their ports say on the node's side, which no pod can change: it wins
    /// over the checkpoint, because pods use it.
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
            let alias = seen.state.links.get(port).and_then(|link| link.alias.as_ref());
            let own = alias.filter(|alias| alias.slice == *slice);
            let Some(model::Holder::Index(index)) = own.map(|alias| alias.holder) else {
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
            if here && seen.held.contains(&Name::tap(slice, *ordinal)) {
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
}
