//! What must hold, at every moment and when every fault is over.

use std::collections::BTreeMap;

use slice_crds::{IndexRange, names};

use super::{
    agent::Agent,
    world::{Cluster, LASTING, LASTING_CLUSTERS, PASSING, World, text},
};

impl World {
    /// What there is of the slices that last, for a person who looks for the cause.
    pub(crate) fn dump(&self) -> String {
        let mut lines = vec![];
        for object in self
            .hub
            .list("SliceAllocation")
            .chain(self.hub.list("MemberSlice"))
        {
            lines.push(format!(
                "hub {} {}: {}",
                text(object, "namespace"),
                text(object, "name"),
                object["spec"]
            ));
        }
        for cluster in &self.clusters {
            for object in cluster.server.list("Slice") {
                lines.push(format!(
                    "{} slice {}: {} status {}",
                    cluster.name,
                    text(object, "name"),
                    object["spec"],
                    object["status"]["conditions"]
                ));
            }
            for object in cluster.server.list("SliceBlock") {
                let (spec, status) = (&object["spec"], &object["status"]);
                lines.push(format!(
                    "{} block {}: {} releasing {} status {status}",
                    cluster.name,
                    text(object, "name"),
                    spec["blocks"],
                    spec["releasing"]
                ));
            }
            for agent in &cluster.agents {
                for (slice, page) in &agent.ledger.pages {
                    lines.push(format!(
                        "{} {slice}: {:?} held {:?}",
                        agent.node,
                        page.grant,
                        page.held.keys()
                    ));
                }
            }
        }
        for object in self.hub.list("MemberSliceReport") {
            lines.push(format!(
                "report {} {}: {}",
                text(object, "namespace"),
                text(object, "name"),
                object["spec"]
            ));
        }
        lines.join("\n")
    }

    /// What must hold at every moment.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        for cluster in &mut self.clusters {
            for agent in &mut cluster.agents {
                for lost in std::mem::take(&mut agent.detached) {
                    cluster.server.delete("Pod", "shop", &lost.pod);
                    if LASTING.contains(&lost.slice.as_str())
                        && LASTING_CLUSTERS.contains(&cluster.name.as_str())
                    {
                        return Err(format!(
                            "pod {} lost slice {}: {}",
                            lost.pod, lost.slice, lost.why
                        ));
                    }
                }
            }
        }
        for slice in LASTING.iter().chain(&PASSING) {
            self.check_indices(slice)?;
        }
        for cluster in &self.clusters {
            let mut vnis = BTreeMap::new();
            for (name, segment) in cluster.agents.iter().flat_map(|agent| &agent.segments) {
                if let Some(other) = vnis.insert(segment.vni, name).filter(|other| *other != name) {
                    return Err(format!(
                        "cluster {}: slices {name} and {other} have VNI {}",
                        cluster.name, segment.vni
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_indices(&self, slice: &str) -> Result<(), String> {
        let mut owners: Vec<(IndexRange, &Cluster, &Agent)> = vec![];
        for cluster in &self.clusters {
            for agent in &cluster.agents {
                owners.extend(agent.owns(slice).into_iter().map(|run| (run, cluster, agent)));
            }
        }
        owners.sort_by_key(|(run, ..)| (run.start, run.size));
        for (at, (run, cluster, agent)) in owners.iter().enumerate() {
            let after = owners[at + 1..]
                .iter()
                .take_while(|(other, ..)| other.start < run.start + run.size);
            for (other, of, by) in after.filter(|(_, _, by)| by.node != agent.node) {
                let (Some(one), Some(two)) = (agent.segments.get(slice), by.segments.get(slice)) else {
                    continue;
                };
                let meet = cluster.name == of.name
                    || one.peers.contains(&of.name) && two.peers.contains(&cluster.name);
                if one.vni == two.vni && meet {
                    return Err(format!(
                        "slice {slice}: {} has {run} and {} has {other}",
                        agent.node, by.node
                    ));
                }
            }
        }
        Ok(())
    }

    /// What must hold when every fault is over.
    pub(crate) fn check_rest(&self) -> Result<(), String> {
        for slice in LASTING {
            let mut vnis = vec![];
            for cluster in self
                .clusters
                .iter()
                .filter(|cluster| LASTING_CLUSTERS.contains(&cluster.name.as_str()))
            {
                Self::check_exposure(cluster, slice)?;
                for agent in &cluster.agents {
                    let Some(segment) = agent.segments.get(slice) else {
                        return Err(format!("{} has not slice {slice}", agent.node));
                    };
                    vnis.push(segment.vni);
                    if agent
                        .ledger
                        .grant(slice)
                        .is_none_or(|grant| grant.blocks.is_empty())
                    {
                        return Err(format!("{} has no block of slice {slice}", agent.node));
                    }
                    let others = LASTING_CLUSTERS.iter().filter(|other| **other != cluster.name);
                    if let Some(other) = others.into_iter().find(|other| !segment.peers.contains(**other)) {
                        return Err(format!("{}: slice {slice} has not peer {other}", agent.node));
                    }
                }
            }
            vnis.dedup();
            if vnis.len() != 1 {
                return Err(format!("slice {slice} has VNIs {vnis:?}"));
            }
        }
        Ok(())
    }

    /// The Service of a slice's gateway is as the mirror says, which may be that of a hub that is no more.
    fn check_exposure(cluster: &Cluster, slice: &str) -> Result<(), String> {
        let mirror = cluster.server.get("Slice", "", slice);
        let wanted = mirror.and_then(|mirror| mirror["spec"]["gateway"]["exposure"].as_str());
        let wanted = wanted.ok_or_else(|| format!("{} has no slice {slice}", cluster.name))?;
        let name = names::gateway(slice, 0);
        let service = cluster.server.get("Service", "weft-gateways", &name);
        let type_ = service.and_then(|service| service["spec"]["type"].as_str());
        let fits = match wanted {
            "None" => type_.is_none(),
            // What led to a gateway stays while no pod has the port.
            "HostPort" => type_.is_some(),
            other => type_ == Some(other),
        };
        match fits {
            true => Ok(()),
            false => Err(format!(
                "{}: {slice} has exposure {wanted} and a Service {type_:?}",
                cluster.name
            )),
        }
    }
}
