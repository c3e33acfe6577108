//! Annotations by which people, `slicectl` and the controllers understand each other.

use crate::{
    labels,
    rate::{NoRate, Rate},
};

/// On a SliceConfig, Cluster or SliceAllocation that is deleted: [`NOW`] does not wait for the pods that use it, and
/// [`GONE`] means of a Cluster that it is no more.
pub const DELETE: &str = "weft.dev/delete";
/// A value of [`DELETE`].
pub const NOW: &str = "now";
/// On a SliceAllocation: names of clusters that are no more, separated by commas.
pub const GONE_CLUSTERS: &str = "weft.dev/gone";
/// A value of [`DELETE`].
pub const GONE: &str = "gone";
/// On a Cluster: a change makes every credential of the member void.
pub const REVOKED: &str = "weft.dev/revoked";
/// On a member's service account on the hub: the value of [`REVOKED`] under which it was made.
pub const MADE_AFTER: &str = "weft.dev/made-after";
/// On a member's namespace and service account on the hub: UID of the cluster that has the name.
pub const CLUSTER_UID: &str = "weft.dev/cluster-uid";
/// On a member's credential for its hub: why the cluster cannot join.
pub const JOIN_PROBLEM: &str = "weft.dev/join-problem";
/// On a member's credential for its hub: `"true"` takes the cluster off the hub.
pub const LEAVE: &str = "weft.dev/leave";
/// On a SliceService of another cluster: identity of the hub that it came from.
pub const FROM_HUB: &str = "weft.dev/from-hub";

/// On a ConfigMap of the cluster's DNS: what the member's operator did to it last, and when. Taking it off a ConfigMap that it has
/// taken its stub out of has the stub written again.
pub const DNS_STUB: &str = "weft.dev/dns-stub";

/// On a Node: what it has to other clusters, a [`crate::rate`].
pub const UPLINK: &str = "weft.dev/uplink";
/// On a Node: where other clusters reach the gateways on it; see [`crate::gateway_address`].
pub const GATEWAY_ADDRESS: &str = "weft.dev/gateway-address";
/// On a pod: the most that each of its attachments sends, and again receives; see [`bandwidth`].
pub const BANDWIDTH: &str = "weft.dev/bandwidth";

/// Why a value of [`BANDWIDTH`] is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBandwidth {
    #[error("annotation weft.dev/bandwidth: {0}")]
    Rate(#[from] NoRate),
    #[error(
        "annotation weft.dev/bandwidth has the part \"{0}\", whose slice is not a slice name: write a rate for all slices, \
         such as 50M, or slices with theirs, such as shop=50M,bank=1G"
    )]
    Slice(String),
}

/// The limit of a pod in a slice by the value of its annotation [`BANDWIDTH`]: rates with a slice each
/// (`shop=50M,bank=1G`), and one without for all others.
///
/// # Errors
/// Where any part of it is none.
pub fn bandwidth(text: &str, slice: &str) -> Result<Option<Rate>, NoBandwidth> {
    let (mut own, mut others) = (None, None);
    for part in text.split(',').map(str::trim) {
        let Some((of, rate)) = part.split_once('=') else {
            others = Some(part.parse()?);
            continue;
        };
        if !labels::is_name(of) {
            return Err(NoBandwidth::Slice(part.to_owned()));
        }
        let rate = rate.parse()?;
        if of == slice {
            own = Some(rate);
        }
    }
    Ok(own.or(others))
}

/// Keys of the Secret that holds a member's credential for its hub.
pub mod credential {
    pub const SERVER: &str = "server";
    /// Empty for the certificate authorities that every system knows.
    pub const CA: &str = "ca.crt";
    pub const TOKEN: &str = "token";
    /// The member's namespace on the hub.
    pub const NAMESPACE: &str = "namespace";
    /// The member's name.
    pub const CLUSTER: &str = "cluster";
    /// The join token that the credential still is: good for asking to join, and for nothing else.
    pub const JOIN: &str = "join";
    /// The join token that the cluster has joined with.
    pub const JOINED: &str = "joined";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_for_all_slices_or_for_one() {
        let limit = |text, slice| bandwidth(text, slice).unwrap().map(|rate| rate.to_string());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(limit("50M", "shop"), some("50M"));
        assert_eq!(limit("shop=1G, bank=2M", "bank"), some("2M"));
        assert_eq!(limit("shop=1G", "bank"), None);
        assert_eq!(limit("shop=1G,5M", "bank"), some("5M"));
        for (text, says) in [
            ("fast", "\"fast\" is no rate"),
            ("shop=1G,", "\"\" is no rate"),
            ("Shop=1G", "part \"Shop=1G\""),
            ("bank=1", "\"1\" is no rate"),
        ] {
            let error = bandwidth(text, "shop").unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
