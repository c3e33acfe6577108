//! How large a slice's packets are. Pure.
//!
//! ```text
//!  smallest node network of its clusters - OVERHEAD = largest      gateways look how much of it their paths carry
//!  smallest path that they report, or largest       = mtu          every interface of the slice has it
//! ```
//!
//! A member can only make packets as small as every network carries: neither a node nor a path that it reports counts
//! for less.

/// What the path between clusters takes from a packet's size: IPv6 40, UDP 8, WireGuard 32, and inside IPv4 20, UDP 8,
/// VXLAN 8, Ethernet 14. An IPv4 underlay takes 20 less; one figure for both keeps a slice working when a gateway
/// changes its address family.
const OVERHEAD: u16 = 130;
/// IPv6 needs at least this (RFC 8200 §5): where a path carries less, larger packets travel in fragments.
const V6_MIN: u16 = 1280;
/// What an underlay of 1280 bytes carries.
const MIN: u16 = V6_MIN - OVERHEAD;
/// Where no member has reported how large its packets may be.
const ETHERNET: u16 = 1500;

/// Bytes of IP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) mtu: u16,
    /// What `mtu` could be if every path carried it.
    pub(super) largest: u16,
}

/// The sizes of a slice: as its `config` says, or by the smallest `underlay` of its nodes and the smallest `path`.
pub(super) fn of_slice(config: Option<u16>, v6: bool, underlay: Option<u16>, path: Option<u16>) -> Sizes {
    let least = if v6 { V6_MIN } else { MIN };
    let by_nodes = underlay.unwrap_or(ETHERNET).saturating_sub(OVERHEAD).max(least);
    let largest = config.unwrap_or(by_nodes).max(least);
    let mtu = match config {
        Some(_) => largest,
        None => path.map_or(largest, |path| path.clamp(least, largest)),
    };
    Sizes { mtu, largest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: (Option<u16>, bool, Option<u16>, Option<u16>), mtu: u16, largest: u16) {
        let (config, v6, underlay, path) = given;
        assert_eq!(of_slice(config, v6, underlay, path), Sizes { mtu, largest });
    }

    #[test]
    fn nodes_bound_it_and_paths_decide() {
        check((None, true, None, None), 1370, 1370);
        check((None, true, Some(1500), Some(1340)), 1340, 1370);
        check((None, true, Some(9001), Some(1390)), 1390, 8871);
        check((None, true, Some(1500), Some(1390)), 1370, 1370);
    }

    #[test]
    fn it_is_never_less_than_every_network_carries() {
        check((None, true, Some(1280), Some(1170)), 1280, 1280);
        check((None, false, Some(1280), Some(1170)), 1150, 1150);
        check((None, true, Some(1500), Some(576)), 1280, 1370);
        check((None, false, Some(1500), Some(576)), 1150, 1370);
    }

    #[test]
    fn a_person_may_say_what_it_is() {
        check((Some(1400), true, Some(1500), Some(1300)), 1400, 1400);
        check((Some(1280), false, Some(9001), None), 1280, 1280);
    }
}
