//! Annotations by which people, `slicectl` and the controllers understand each other.

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
