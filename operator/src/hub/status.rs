//! What users read of their slices.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ObjectReference;
use slice_crds::{
    GROUP, VERSION,
    conditions::{self, Verdict, reason},
    v1alpha1::{Exposure, SliceCluster, SliceConfig, SliceConfigStatus, SlicePeerStatus},
    wire::{AllocationState as State, SliceAllocationSpec},
};

use super::{
    core::Hub,
    render,
    slice::{Member, Scene, narrowest, ranges_of},
    state::{ClusterState, Users},
};
use crate::{
    control::{Meta, Now},
    trust::Claim,
};

/// What keeps a slice from being what its user wrote; the first is its reason.
#[derive(Debug, Default)]
pub(super) struct Trouble(Vec<(&'static str, String)>);

impl Trouble {
    pub(super) fn add(&mut self, reason: &'static str, message: impl Into<String>) {
        let trouble = (reason, message.into());
        if !self.0.contains(&trouble) {
            self.0.push(trouble);
        }
    }

    fn accepted(&self) -> Verdict {
        match self.0.as_slice() {
            [] => Verdict::yes(
                conditions::ACCEPTED,
                reason::ACCEPTED,
                "the configuration is in force",
            ),
            [(reason, _), ..] => {
                let all: Vec<_> = self.0.iter().map(|(_, message)| message.as_str()).collect();
                Verdict::no(conditions::ACCEPTED, reason, all.join(". "))
            }
        }
    }
}

/// Why an object of a user's has no effect.
pub(super) fn unreadable(why: &str) -> String {
    format!(
        "this version of Weft cannot read it: {why}. What was in force stays; correct the field, or bring the hub to the \
         version that knows it"
    )
}

/// How events name one of Weft's own objects.
pub(super) fn reference(kind: &str, meta: &Meta) -> ObjectReference {
    ObjectReference {
        api_version: Some(format!("{GROUP}/{VERSION}")),
        kind: Some(kind.to_owned()),
        namespace: Some(meta.namespace.to_string()),
        name: Some(meta.name.to_string()),
        uid: Some(meta.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// A slice that takes no part; what it had been given stays its own.
pub(super) fn refused(users: &Users<SliceConfig>, trouble: Trouble, now: Now) -> SliceConfigStatus {
    let before = users
        .object
        .as_ref()
        .and_then(|config| config.status.clone())
        .unwrap_or_default();
    let accepted = trouble.accepted();
    let ready = Verdict {
        type_: conditions::READY,
        ..accepted.clone()
    };
    SliceConfigStatus {
        conditions: conditions::conditions(
            &users.conditions,
            [accepted, ready],
            users.meta.generation,
            now.wall,
        ),
        observed_at: None,
        ..before
    }
}

impl Hub {
    /// How a slice is.
    pub(super) fn slice_status(
        &self,
        users: &Users<SliceConfig>,
        config: &SliceConfig,
        scene: &Scene<'_>,
        members: &[Member],
        trouble: Trouble,
        now: Now,
    ) -> SliceConfigStatus {
        let served: Vec<&Member> = members
            .iter()
            .filter(|member| is_held(scene.current, &member.name))
            .collect();
        let slice = &*users.meta.name;
        let accepted = trouble.accepted();
        let ready = match accepted.status {
            Some(true) => self.ready((slice, config), members, &served),
            _ => Verdict {
                type_: conditions::READY,
                ..accepted.clone()
            },
        };
        let verdicts = [
            accepted,
            ready,
            keys_current(slice, &served),
            path_mtu(scene.current, &served),
        ];
        SliceConfigStatus {
            vni: scene.current.map(|current| current.vni),
            mtu: scene.current.map(|current| current.mtu),
            conditions: conditions::conditions(&users.conditions, verdicts, users.meta.generation, now.wall),
            clusters: self.clusters_of_slice(config, scene.current, members),
            peers: hosts(scene.current),
            observed_at: None,
        }
    }

    fn ready(
        &self,
        (slice, config): (&str, &SliceConfig),
        members: &[Member],
        served: &[&Member],
    ) -> Verdict {
        let no = |reason, message: String| Verdict::no(conditions::READY, reason, message);
        if let Some(trouble) = self.trouble_of_slice(slice) {
            return no(
                reason::NOT_WRITTEN,
                format!("its clusters do not learn of each other's changes: {trouble}"),
            );
        }
        for member in members.iter().filter(|member| member.chosen) {
            let at = &member.name;
            let state = self.clusters.get(at);
            if state.and_then(ClusterState::facts).is_none() {
                return no(
                    reason::PENDING,
                    format!("cluster {at} has not joined yet: see `kubectl describe clusters.weft.dev {at}`"),
                );
            }
            if let Some(trouble) = self.trouble_of(at) {
                return no(
                    reason::NOT_WRITTEN,
                    format!("cluster {at} cannot get it: {trouble}"),
                );
            }
            if !state.is_some_and(ClusterState::is_fresh) {
                return Verdict::unknown(
                    conditions::READY,
                    reason::SILENT,
                    format!(
                        "cluster {at} sends no heartbeat: its pods go on talking; see `kubectl describe clusters.weft.dev \
                         {at}`"
                    ),
                );
            }
        }
        let names: BTreeSet<&str> = served.iter().map(|member| member.name.as_str()).collect();
        let mut claims = Vec::new();
        for member in served {
            let at = &member.name;
            let Some(claim) = member.claim.as_ref().filter(|claim| !claim.released) else {
                return no(
                    reason::PENDING,
                    format!(
                        "cluster {at} has not set the slice up yet: see `kubectl -n {} logs deploy/weft-operator` there",
                        slice_crds::names::MEMBER_NAMESPACE
                    ),
                );
            };
            if let Some(problem) = claim.problems.first() {
                return no(reason::DEGRADED, format!("cluster {at}: {problem}"));
            }
            claims.push((at, claim));
        }
        // What is wrong in one cluster, such as that no gateway runs, goes before the tunnels that others miss for it.
        for (at, claim) in claims {
            let cut_off = names.iter().find(|peer| *peer != at && !reaches(claim, peer));
            if let Some(peer) = cut_off {
                if self.only_dials(config, at) && self.only_dials(config, peer) {
                    return no(
                        reason::NEITHER_REACHABLE,
                        format!(
                            "clusters {at} and {peer} do not reach each other, because the gateways of neither are to be reached \
                             (exposure None): set another spec.gateway.exposure on Cluster {at} or Cluster {peer}, or take it \
                             out of the slice's spec.gateway"
                        ),
                    );
                }
                return no(
                    reason::TUNNELS_DOWN,
                    format!(
                        "no tunnel from cluster {at} to cluster {peer} is up: see `slicectl status {slice}`; UDP between \
                         their gateways' endpoints must pass"
                    ),
                );
            }
        }
        if served.is_empty() {
            return no(reason::PENDING, "no cluster was given anything of it yet".into());
        }
        Verdict::yes(
            conditions::READY,
            reason::READY,
            "every cluster is set up and reaches every other",
        )
    }

    /// Whether a slice's gateways in a cluster begin every tunnel themselves.
    fn only_dials(&self, config: &SliceConfig, cluster: &str) -> bool {
        let users = self.clusters.get(cluster).and_then(ClusterState::object);
        let object = users.and_then(|(_, users)| users.object.as_deref());
        render::exposure(config, object) == Exposure::None
    }

    fn clusters_of_slice(
        &self,
        config: &SliceConfig,
        current: Option<&SliceAllocationSpec>,
        members: &[Member],
    ) -> Vec<SliceCluster> {
        let allocated = current.into_iter().flat_map(|current| &current.clusters);
        allocated
            .filter(|own| own.state != State::Resting)
            .map(|own| {
                let member = members.iter().find(|member| member.name == own.name);
                let claim = member.and_then(|member| member.claim.as_ref());
                let up = claim.map_or(0, |claim| {
                    claim.gateways.iter().filter(|gateway| gateway.up).count()
                });
                let mut problems = claim.map(|claim| claim.problems.clone()).unwrap_or_default();
                problems.extend(self.trouble_of(&own.name));
                SliceCluster {
                    name: own.name.clone(),
                    number: own.number,
                    ranges: ranges_of(own),
                    attachments: claim.map_or(0, |claim| claim.attachments),
                    gateways_up: u32::try_from(up).unwrap_or(u32::MAX),
                    gateways_wanted: config.spec.gateway.replicas,
                    problems,
                }
            })
            .collect()
    }
}

fn is_held(current: Option<&SliceAllocationSpec>, name: &str) -> bool {
    let clusters = current.into_iter().flat_map(|current| &current.clusters);
    clusters
        .into_iter()
        .any(|own| own.name == name && own.state == State::Held)
}

/// Whether one of a member's gateways has a tunnel to a peer.
fn reaches(claim: &Claim, peer: &str) -> bool {
    match claim.revision {
        Some(_) => !claim.unreached.contains(peer),
        // An older member reports each tunnel.
        None => {
            let prefix = format!("{peer}/");
            let mut tunnels = claim.gateways.iter().flat_map(|gateway| &gateway.tunnels);
            tunnels.any(|tunnel| tunnel.up && tunnel.peer.starts_with(&prefix))
        }
    }
}

/// Whether gateways can change their keys when the slice wants them to.
fn keys_current(slice: &str, served: &[&Member]) -> Verdict {
    let gateways = served
        .iter()
        .filter_map(|member| Some((&member.name, member.claim.as_ref()?)));
    let mut waiting = gateways.flat_map(|(at, claim)| {
        claim
            .gateways
            .iter()
            .filter_map(move |gateway| Some((at, gateway, gateway.renewal_waits_for.as_ref()?)))
    });
    let Some((at, gateway, peer)) = waiting.next() else {
        return Verdict::yes(
            conditions::KEYS_CURRENT,
            reason::KEYS_RENEWED,
            "no gateway's key is older than spec.gateway.rotation",
        );
    };
    let host = peer.split('/').next().unwrap_or(peer);
    Verdict::no(
        conditions::KEYS_CURRENT,
        reason::RENEWAL_WAITS,
        format!(
            "gateway {at}/{} is to change its key, but {host} only knows the one before: on a host outside the clusters \
             run what `slicectl peer script {host} --slice {slice}` prints; in a cluster see `slicectl get clusters` for \
             whether the hub reaches it; `slicectl revoke keys {slice}` does not wait",
            gateway.ordinal
        ),
    )
}

/// Whether every path carries what the slice's nodes do.
fn path_mtu(current: Option<&SliceAllocationSpec>, served: &[&Member]) -> Verdict {
    let (mtu, largest) = current.map_or((0, 0), |current| {
        (current.mtu, current.largest_mtu.unwrap_or(current.mtu))
    });
    let narrow = narrowest(served.iter().copied()).filter(|(_, _, carries)| *carries < largest);
    let Some((from, to, carries)) = narrow else {
        if let Some((from, to)) = unmeasured(served) {
            return Verdict::unknown(
                conditions::PATH_MTU,
                reason::MEASURING,
                format!(
                    "the path from cluster {from} to cluster {to} is not measured yet, the slice has {mtu}: that takes a \
                     second from when it is reached; where it stays so, gateways of an earlier release answer there"
                ),
            );
        }
        return Verdict::yes(
            conditions::PATH_MTU,
            reason::PATHS_CARRY_ALL,
            format!("packets of {mtu} bytes fit through every path"),
        );
    };
    let (path, see) = match from == to {
        true => (
            format!("a path between two nodes of cluster {from}"),
            "the condition NodesConnected of `kubectl get slices.weft.dev`",
        ),
        false => (
            format!("the path from cluster {from} to cluster {to}"),
            "`slicectl get slicegateways`",
        ),
    };
    let consequence = if carries < mtu {
        format!(
            "; the slice has {mtu}: larger packets are answered with the ICMP that makes their sender shrink, and what \
             cannot be answered travels in fragments, which is slow"
        )
    } else {
        ", so that is what the slice has".to_owned()
    };
    Verdict::no(
        conditions::PATH_MTU,
        reason::PATH_NARROW,
        format!(
            "{path} carries packets of {carries} bytes, where the nodes' networks would carry {largest}{consequence}. See {see} \
             there, and docs/operations.md on packet sizes"
        ),
    )
}

/// A path between two of these members that neither of its ends has measured.
fn unmeasured<'a>(served: &[&'a Member]) -> Option<(&'a str, &'a str)> {
    served.iter().find_map(|member| {
        let claim = member.claim.as_ref()?;
        let mut others = served
            .iter()
            .filter(|other| claim.unmeasured.contains(&other.name));
        others.next().map(|other| (&*member.name, &*other.name))
    })
}

fn hosts(current: Option<&SliceAllocationSpec>) -> Vec<SlicePeerStatus> {
    let Some(current) = current else { return vec![] };
    let cidrs: Vec<slice_crds::Cidr> = current
        .subnets
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    let Ok(subnets) = slice_crds::Subnets::new(&cidrs) else {
        return vec![];
    };
    let held = current.hosts.iter().filter(|host| host.state == State::Held);
    held.map(|host| SlicePeerStatus {
        name: host.name.clone(),
        index: host.index,
        ordinal: host.ordinal,
        addresses: subnets.addresses(host.index).map(|net| net.addr()).collect(),
    })
    .collect()
}
