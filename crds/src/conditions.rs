//! Status conditions: the types and reasons that Weft uses, and the one way to set one.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::core::object::HasStatus;

use crate::{
    mcs::ServiceExportStatus,
    v1alpha1::{ClusterStatus, SliceBlockStatus, SliceConfigStatus, SliceNodeStatus, SliceStatus},
    wire::MemberJoinStatus,
};

/// The object does what its spec says.
pub const READY: &str = "Ready";
/// The spec is valid and takes part; `False` says what to change.
pub const ACCEPTED: &str = "Accepted";
/// The member's credential works and its report is fresh.
pub const REACHABLE: &str = "Reachable";
/// Every label that names a slice can be followed.
pub const LABELS_VALID: &str = "LabelsValid";
/// What the member reports agrees with what it was given and with what others reported first.
pub const TRUSTED: &str = "Trusted";
/// Every node of the cluster takes part.
pub const NODES_USABLE: &str = "NodesUsable";
/// The cluster's own DNS forwards names of slices; `False` says what to add to its configuration.
pub const ZONE_FORWARDED: &str = "ZoneForwarded";
/// Names of slices resolve by the cluster's DNS, as pods are told to ask it.
pub const NAMES_RESOLVE: &str = "NamesResolve";
/// No gateway's key is older than the slice wants, or a renewal of it is under way.
pub const KEYS_CURRENT: &str = "KeysCurrent";
/// What the cluster's nodes send each other for the slice arrives, at the slice's size.
pub const NODES_CONNECTED: &str = "NodesConnected";

/// No gateway waits for an address at which other clusters reach it.
pub const GATEWAYS_EXPOSED: &str = "GatewaysExposed";

/// Every path between the slice's clusters carries what its nodes do.
pub const PATH_MTU: &str = "PathMtu";

/// Reasons: one word that programs may match on.
pub mod reason {
    pub const READY: &str = "Ready";
    pub const ACCEPTED: &str = "Accepted";
    pub const PENDING: &str = "Pending";
    pub const SUBNETS_INVALID: &str = "SubnetsInvalid";
    pub const SUBNET_TOO_SMALL: &str = "SubnetTooSmall";
    pub const SUBNET_OVERLAP: &str = "SubnetOverlap";
    pub const SUBNET_CHANGED: &str = "SubnetChanged";
    pub const PEER_REFUSED: &str = "PeerRefused";
    pub const UNKNOWN_CLUSTER: &str = "UnknownCluster";
    pub const UNKNOWN_PROFILE: &str = "UnknownProfile";
    pub const NO_CLUSTERS: &str = "NoClusters";
    pub const NAME_TAKEN: &str = "NameTaken";
    pub const SELECTOR_INVALID: &str = "SelectorInvalid";
    pub const EXHAUSTED: &str = "RangeExhausted";
    pub const NOT_REGISTERED: &str = "NotRegistered";
    pub const REPORTING: &str = "Reporting";
    pub const SILENT: &str = "Silent";
    pub const MALFORMED_LABEL: &str = "MalformedLabel";
    pub const LABELS_FOLLOWED: &str = "LabelsFollowed";
    pub const DEGRADED: &str = "Degraded";
    pub const TUNNELS_DOWN: &str = "TunnelsDown";
    pub const PATHS_CARRY_ALL: &str = "PathsCarryAll";
    pub const MEASURING: &str = "Measuring";
    pub const PATH_NARROW: &str = "PathNarrow";
    pub const PAIRS_CARRY: &str = "PairsCarry";
    pub const PAIR_BROKEN: &str = "PairBroken";
    pub const EXPOSED: &str = "Exposed";
    pub const DIALS_ONLY: &str = "DialsOnly";
    pub const ADDRESS_INVALID: &str = "AddressInvalid";
    pub const NO_ADDRESS: &str = "NoAddress";
    pub const NEITHER_REACHABLE: &str = "NeitherReachable";
    pub const KEYS_RENEWED: &str = "KeysRenewed";
    pub const RENEWAL_WAITS: &str = "RenewalWaits";
    pub const ADDRESS_CONFLICT: &str = "AddressConflict";
    pub const HUB_UNREACHABLE: &str = "HubUnreachable";
    pub const UNREADABLE: &str = "Unreadable";
    pub const HELD_BACK: &str = "HeldBack";
    pub const HOLDINGS_CONFLICT: &str = "HoldingsConflict";
    pub const WAITS_FOR_REPORT: &str = "WaitsForReport";
    pub const NOT_WRITTEN: &str = "NotWritten";
    pub const CLAIMS_REFUSED: &str = "ClaimsRefused";
    pub const CLAIMS_ACCEPTED: &str = "ClaimsAccepted";
    pub const IDENTITY_TAKEN: &str = "IdentityTaken";
    pub const TOKEN_INVALID: &str = "TokenInvalid";
    pub const NODES_LEFT_OUT: &str = "NodesLeftOut";
    pub const ALL_NODES: &str = "AllNodes";
    pub const ZONE_FORWARDED: &str = "ZoneForwarded";
    pub const ZONE_NOT_FORWARDED: &str = "ZoneNotForwarded";
    pub const NAMES_RESOLVE: &str = "NamesResolve";
    pub const NAMES_FAIL: &str = "NamesFail";
    pub const CLUSTER_DNS_FAILS: &str = "ClusterDnsFails";
    pub const ZONE_UNKNOWN: &str = "ZoneUnknown";
    pub const SLICE_DNS_FAILS: &str = "SliceDnsFails";
    pub const FORWARDING_FAILS: &str = "ForwardingFails";
    pub const PODS_CUT_OFF: &str = "PodsCutOff";
    pub const LEFT: &str = "Left";
    pub const LEAVING: &str = "Leaving";
    pub const REGISTERED: &str = "Registered";
    pub const GUARANTEED: &str = "Guaranteed";
    pub const OVERCOMMITTED: &str = "Overcommitted";
    pub const UPLINK_UNKNOWN: &str = "UplinkUnknown";
    pub const MIRROR_REFUSED: &str = "MirrorRefused";
}

/// What a condition says, before it has a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub type_: &'static str,
    /// `None` is "Unknown".
    pub status: Option<bool>,
    pub reason: &'static str,
    /// A sentence for a person: names, and the next step where there is one.
    pub message: String,
}

impl Verdict {
    pub fn yes(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: Some(true),
            reason,
            message: message.into(),
        }
    }

    pub fn no(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: Some(false),
            reason,
            message: message.into(),
        }
    }

    pub fn unknown(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: None,
            reason,
            message: message.into(),
        }
    }
}

/// The conditions that follow from `verdicts`: `lastTransitionTime` stays where the status did.
pub fn conditions(
    before: &[Condition],
    verdicts: impl IntoIterator<Item = Verdict>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    verdicts
        .into_iter()
        .map(|verdict| {
            let status = match verdict.status {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let since = before
                .iter()
                .find(|old| old.type_ == verdict.type_ && old.status == status)
                .map_or(Time(now), |old| old.last_transition_time.clone());
            Condition {
                type_: verdict.type_.to_owned(),
                status: status.to_owned(),
                reason: verdict.reason.to_owned(),
                message: verdict.message,
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

/// A status that has conditions.
pub trait Conditioned {
    fn conditions(&self) -> &[Condition];
}

macro_rules! conditioned {
    ($($status:ty),* $(,)?) => {$(
        impl Conditioned for $status {
            fn conditions(&self) -> &[Condition] {
                &self.conditions
            }
        }
    )*};
}

conditioned!(
    ClusterStatus,
    MemberJoinStatus,
    ServiceExportStatus,
    SliceBlockStatus,
    SliceConfigStatus,
    SliceNodeStatus,
    SliceStatus,
);

/// The conditions that an object shows: none before it has a status.
pub fn of<K>(object: &K) -> &[Condition]
where
    K: HasStatus,
    K::Status: Conditioned,
{
    object.status().map(Conditioned::conditions).unwrap_or_default()
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition is there and `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// The condition, where it is there and `False`.
pub fn find_false<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    find(conditions, type_).filter(|condition| condition.status == "False")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let [t0, t1, t2] = [0, 10, 20].map(|second| Timestamp::from_second(second).unwrap());
        let first = conditions(&[], [Verdict::no(READY, reason::PENDING, "waiting")], Some(1), t0);
        let same = conditions(
            &first,
            [Verdict::no(READY, reason::DEGRADED, "half")],
            Some(2),
            t1,
        );
        assert_eq!(
            (same[0].last_transition_time.0, same[0].reason.as_str()),
            (t0, reason::DEGRADED)
        );
        let turned = conditions(&same, [Verdict::yes(READY, reason::READY, "")], Some(2), t2);
        assert_eq!(turned[0].last_transition_time.0, t2);
        assert!(is_true(&turned, READY) && !is_true(&same, READY));
    }
}
