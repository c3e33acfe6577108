//! Why something was dropped. Whatever the gateway does not carry is counted under one of these.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why a frame or datagram was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it stands in metrics: `spoofed_source`.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

reasons! {
    // ── from the slice ──
    /// No configuration has arrived.
    NotConfigured = "not_configured",
    /// No frame at all.
    FrameTooShort = "frame_too_short",
    /// Its headers cannot be read to the end, so that a receiver may see more in it than the gateway does.
    Unreadable = "unreadable",
    /// It has a VLAN tag, and the slice carries none.
    Tagged = "tagged",
    /// It is not IP, and the slice carries nothing else.
    NotIp = "not_ip",
    /// It says that its sender is a router, or where else packets should go.
    Router = "router",
    /// Longer than the slice's MTU allows.
    FrameTooLong = "frame_too_long",
    /// Longer than the path to its destination carries; its sender was told how much that is.
    PathTooSmall = "path_too_small",
    /// The same, beyond the senders that are told in a moment.
    TooManyTooLong = "too_many_too_long",
    /// Its source MAC is not one of the own cluster's.
    ForeignSource = "foreign_source",
    /// Its destination belongs to the own cluster: the bridge flooded it, nobody elsewhere wants it.
    LocalDestination = "local_destination",
    /// Its destination belongs to no cluster.
    UnknownDestination = "unknown_destination",
    /// A group address that no bridge forwards.
    LinkLocalGroup = "link_local_group",
    /// ARP or neighbour discovery, which is answered next to the asker or not at all.
    NeighbourDiscovery = "neighbour_discovery",
    /// A super-frame whose offload header does not fit its bytes.
    BadOffload = "bad_offload",
    /// No tunnel to the destination's cluster has a session.
    NoTunnel = "no_tunnel",
    /// The send buffers are full.
    SendBufferFull = "send_buffer_full",
    /// Another thread of the gateway, whose part it is, has no room for it.
    LaneFull = "lane_full",
    /// The kernel did not take a datagram: no route, or longer than the path's MTU.
    SendFailed = "send_failed",

    // ── from the internet ──
    /// Not a WireGuard message.
    NotWireguard = "not_wireguard",
    /// Names a session that does not exist.
    UnknownSession = "unknown_session",
    /// A handshake by a key that is nobody's.
    UnknownPeer = "unknown_peer",
    /// A handshake message whose sender does not know the own public key, or that is malformed.
    BadHandshake = "bad_handshake",
    /// A handshake beyond the rate limit; its sender got a cookie to prove its address with.
    CookieSent = "cookie_sent",
    /// A handshake message beyond what is looked at in a second: there is a flood of them.
    HandshakeLimit = "handshake_limit",
    /// Not encrypted with the session's key.
    NotAuthentic = "not_authentic",
    /// Seen before, or older than the replay window.
    Replayed = "replayed",
    /// Inside the tunnel: not VXLAN in UDP in IPv4.
    NotVxlan = "not_vxlan",
    /// Inside the tunnel: end points that are not this tunnel's.
    WrongEndpoint = "wrong_endpoint",
    /// Inside the tunnel: another segment's.
    WrongVni = "wrong_vni",
    /// Its source MAC is not one of the sending cluster's.
    SpoofedSource = "spoofed_source",
    /// Its source address is not its source MAC's.
    SpoofedAddress = "spoofed_address",
    /// Its destination is not in the own cluster; what came over the WAN never goes back there.
    NotOurs = "not_ours",
    /// Marked as congested on the way, and its sender does not understand marks.
    Congested = "congested",
    /// There is no room to decrypt it into.
    ReceiveBufferFull = "receive_buffer_full",
    /// The TAP device is missing or refused it.
    TapRefused = "tap_refused",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A count per reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drops([u64; Reason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; Reason::ALL.len()])
    }
}

impl Drops {
    pub fn add(&mut self, reason: Reason, count: u64) {
        self.0[reason as usize] += count;
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// The reasons that have happened.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .iter()
            .map(|reason| (*reason, self.of(*reason)))
            .filter(|(_, count)| *count > 0)
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_are_unique() {
        let labels: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
    }

    #[test]
    fn each_reason_has_its_own_count() {
        let mut drops = Drops::default();
        for (n, reason) in (1..).zip(Reason::ALL) {
            drops.add(*reason, n);
        }
        assert!((1..).zip(Reason::ALL).all(|(n, reason)| drops.of(*reason) == n));
    }
}
