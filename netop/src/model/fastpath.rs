//! Known unicast past the bridge.
//!
//! ```text
//!  pod ─ wp-… ─┬─► is it the pod's own address? known destination? ─► straight to wp-…, wt-…, wx-… or wu-…
//!              └─► everything else ─► bridge, its filters, the node's own IP filters
//! ```
//! A frame that enters a bridge is shown to the chains of every slice of the node and to the IP filters of the node
//! itself. Most frames need none of that: their sender is who the port says, and one port is the only one to go out by.
//! A chain at the ingress of each pod's and each gateway's port (nftables, family netdev) hands them to that port. What
//! it leaves alone takes the bridge, where the same rules hold and what is dropped is counted: broadcast and multicast,
//! ARP and neighbour discovery, what is not IP, and what comes from an address that is not the pod's.
//!
//! Deliberately not here: frames that come in by the VXLAN devices. A network card may have summed them up
//! (CHECKSUM_COMPLETE), and nft_fwd_netdev, unlike the bridge, does not take that mark off when it turns them round.

use slice_crds::Mac;

use super::filter::Chain;

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Pod,
    Gateway,
}

impl Side {
    const ALL: [Self; 2] = [Self::Pod, Self::Gateway];

    /// Where the frames of such a port go.
    pub const fn chain(self) -> &'static str {
        match self {
            Self::Pod => "from_pod",
            Self::Gateway => "from_gateway",
        }
    }

    pub fn of_chain(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|side| side.chain() == name)
    }
}

/// Kind and name of each set, and its type.
pub(super) const SETS: [(&str, &str); 5] = [
    ("set senders4", "type ifname . ether_addr . ipv4_addr"),
    ("set senders6", "type ifname . ether_addr . ipv6_addr"),
    ("map places", "type ether_addr : iface_index"),
    ("map blocks", "type ether_addr : iface_index; flags interval"),
    ("map others", "type ether_type : iface_index"),
];

pub(super) fn chains() -> Vec<Chain> {
    // Neighbour discovery is the bridge's to answer and its filters' to judge.
    let plain6 = "ip6 nexthdr { tcp, udp }";
    let prefix = Mac::of_index(0);
    let chain = |name, rules: &[&str]| Chain {
        name,
        hook: "",
        rules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
    };
    vec![
        chain(
            "known",
            &["fwd to ether daddr map @places", "fwd to ether daddr map @blocks"],
        ),
        chain(
            "anywhere",
            &[
                "jump known",
                &format!("ether daddr & ff:ff:00:00:00:00 == {prefix} fwd to meta protocol map @others"),
            ],
        ),
        chain(
            Side::Pod.chain(),
            &[
                "iifname . ether saddr . ip saddr @senders4 goto anywhere",
                &format!("{plain6} iifname . ether saddr . ip6 saddr @senders6 goto anywhere"),
            ],
        ),
        chain(
            Side::Gateway.chain(),
            &["meta protocol ip goto known", &format!("{plain6} goto known")],
        ),
    ]
}
