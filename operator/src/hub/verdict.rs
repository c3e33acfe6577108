//! What a slice's conditions say.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::ResourceExt;
use slice_crds::{
    IndexRange,
    conditions::{self, Verdict, reason},
    v1alpha1::SliceConfig,
};

use super::{member::Member, plan::Trouble};

pub(super) fn verdicts(
    slice: &SliceConfig,
    before: &[Condition],
    served: &[(&Member, &[IndexRange])],
    trouble: Trouble,
    now: Timestamp,
) -> Vec<Condition> {
    let accepted = match trouble.0.as_slice() {
        [] => Verdict::yes(
            conditions::ACCEPTED,
            reason::ACCEPTED,
            "the configuration is in force",
        ),
        [(reason, _), ..] => {
            let all: Vec<_> = trouble.0.iter().map(|(_, message)| message.as_str()).collect();
            Verdict::no(conditions::ACCEPTED, reason, all.join(". "))
        }
    };
    let ready = match accepted.status {
        Some(true) => ready(&slice.name_any(), served),
        _ => Verdict {
            type_: conditions::READY,
            ..accepted.clone()
        },
    };
    let keys = keys_current(&slice.name_any(), served);
    conditions::conditions(before, [accepted, ready, keys], slice.metadata.generation, now)
}

/// Whether gateways can change their keys when the slice wants them to.
fn keys_current(slice: &str, served: &[(&Member, &[IndexRange])]) -> Verdict {
    let gateways = served.iter().flat_map(|(member, _)| {
        let report = member.slice(slice);
        let gateways = report.into_iter().flat_map(|report| &report.gateways);
        gateways.map(|gateway| (&member.name, gateway))
    });
    let waiting =
        gateways.filter_map(|(at, gateway)| Some((at, gateway, gateway.renewal_waits_for.as_ref()?)));
    let Some((at, gateway, peer)) = waiting.into_iter().next() else {
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

fn ready(slice: &str, served: &[(&Member, &[IndexRange])]) -> Verdict {
    for (member, _) in served {
        let at = &member.name;
        if !member.fresh {
            return Verdict::unknown(
                conditions::READY,
                reason::SILENT,
                format!(
                    "cluster {at} does not report: its pods go on talking; see `kubectl describe cluster {at}`"
                ),
            );
        }
        let Some(report) = member.slice(slice) else {
            return Verdict::no(
                conditions::READY,
                reason::PENDING,
                format!("cluster {at} has not set the slice up yet"),
            );
        };
        if let Some(problem) = report.problems.first() {
            return Verdict::no(
                conditions::READY,
                reason::DEGRADED,
                format!("cluster {at}: {problem}"),
            );
        }
        for (peer, _) in served.iter().filter(|(peer, _)| peer.name != *at) {
            let prefix = format!("{}/", peer.name);
            let mut tunnels = report.gateways.iter().flat_map(|gateway| &gateway.tunnels);
            if !tunnels.any(|tunnel| tunnel.up && tunnel.peer.starts_with(&prefix)) {
                return Verdict::no(
                    conditions::READY,
                    reason::TUNNELS_DOWN,
                    format!(
                        "no tunnel from cluster {at} to cluster {} is up: see `slicectl status {slice}`; UDP between their gateways' endpoints must pass",
                        peer.name
                    ),
                );
            }
        }
    }
    Verdict::yes(
        conditions::READY,
        reason::READY,
        "every cluster is set up and reaches every other",
    )
}
