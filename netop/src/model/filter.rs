//! nftables: for each segment its filters (family bridge) and its [`fastpath`] (family netdev); for all of them a guard of
//! the node's own side, and counters around its IP filters.
//!
//! A table is a fixed text, a function of [`Rules`], and sets that say which ports and addresses it is about. A new
//! pod adds elements; the text changes when the slice's settings do. The text carries a mark that names the rules
//! it was made from, so that a table in the kernel can be recognised after a restart.

use std::{
    collections::BTreeSet,
    fmt::{self, Write},
};

use siphasher::sip::SipHasher13;

use super::{
    Element, MESH_PORT, Name, Segment, UPLINK_PORT,
    element::{FROM_PODS, FROM_UPLINK},
    fastpath,
};
use crate::liveness;

/// An nftables table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub rules: Rules,
    pub elements: BTreeSet<Element>,
}

/// What a table's fixed part is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Filters of a segment, family bridge.
    Segment {
        /// Group-addressed frames a second that this node's pods may send, all together.
        frames_per_second: u32,
        /// Whether frames that are not IPv4, IPv6 or ARP pass.
        non_ip: bool,
    },
    /// Guard of the node's own side, family inet.
    Host,
    /// Counters around the node's own IP filters, for the frames of all segments; see [`Family`].
    Passage,
    /// Known unicast from port to port of a segment, past its bridge, family netdev; see [`fastpath`].
    FastPath,
    /// A table in the kernel that is not as Weft writes one.
    Altered,
}

/// Counters of a segment's table, and what an increase of each means.
pub const SEGMENT_COUNTERS: [(&str, &str); 5] = [
    ("spoofed", "a pod sent from an address that is not its own"),
    ("tagged", "a VLAN tag, behind which addresses could hide"),
    ("budget", "more broadcast and multicast than the slice allows"),
    (
        "nonip",
        "neither IPv4, IPv6 nor ARP in a slice that carries no others",
    ),
    ("host", "to the node itself, which is in no slice"),
];
/// IP frames on their way from port to port, before and after br_netfilter shows them to the node's own IP filters
/// (`bridge-nf-call-iptables`). Where fewer pass than were offered, those filters dropped the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    pub(super) fn of_ether_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.ether_type() == name)
    }

    pub const fn offered_counter(self) -> &'static str {
        match self {
            Self::Ipv4 => "offered4",
            Self::Ipv6 => "offered6",
        }
    }

    pub const fn passed_counter(self) -> &'static str {
        match self {
            Self::Ipv4 => "passed4",
            Self::Ipv6 => "passed6",
        }
    }

    pub(super) const fn ether_type(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }
}

/// The counter of the host's table: VXLAN packets, and words about gateways, from elsewhere than a node.
pub const UNDERLAY_COUNTER: &str = "underlay";
/// The chain, never reached, whose one rule carries the mark of [`Rules::mark`].
pub const MARK_CHAIN: &str = "written_from";
/// The one table of family inet.
pub const HOST_TABLE: &str = "weft_host";
/// The table of [`Rules::Passage`].
pub const PASSAGE_TABLE: &str = "weft_passage";

/// The family that a table of this name has.
pub fn family(table: &Name) -> &'static str {
    if table.as_str() == HOST_TABLE {
        "inet"
    } else if table.is_fast_path() {
        "netdev"
    } else {
        "bridge"
    }
}

impl Rules {
    /// The mark in a table's text: what it was made from, and a digest of the text.
    pub fn mark(self, table: &Name) -> String {
        let digest = SipHasher13::new().hash(self.body(table).as_bytes()) as u32;
        match self {
            Self::Segment {
                frames_per_second,
                non_ip,
            } => {
                format!("segment {frames_per_second} {} {digest:08x}", u8::from(non_ip))
            }
            Self::Host => format!("host {digest:08x}"),
            Self::Passage => format!("passage {digest:08x}"),
            Self::FastPath => format!("fastpath {digest:08x}"),
            Self::Altered => String::new(),
        }
    }

    /// The rules that a mark names, where this version would write the same text.
    pub fn of_mark(table: &Name, mark: &str) -> Self {
        let words: Vec<&str> = mark.split(' ').collect();
        let rules = match words[..] {
            ["segment", frames, non_ip, _] => match frames.parse() {
                Ok(frames_per_second) => Self::Segment {
                    frames_per_second,
                    non_ip: non_ip == "1",
                },
                Err(_) => return Self::Altered,
            },
            ["host", _] => Self::Host,
            ["passage", _] => Self::Passage,
            ["fastpath", _] => Self::FastPath,
            _ => return Self::Altered,
        };
        if rules.mark(table) == mark {
            rules
        } else {
            Self::Altered
        }
    }

    /// How many rules the table has, the mark included and those of [`Element::Hook`] not.
    pub fn count(self, table: &Name) -> usize {
        self.chains(table)
            .iter()
            .map(|chain| chain.rules.len())
            .sum::<usize>()
            + 1
    }

    /// The commands that make the table anew, whatever was there, without its elements.
    pub fn script(self, table: &Name) -> String {
        let (family, body, mark) = (family(table), self.body(table), self.mark(table));
        format!(
            "add table {family} {table}\ndelete table {family} {table}\ntable {family} {table} {{\n{body}  \
             chain {MARK_CHAIN} {{\n    accept comment \"{mark}\"\n  }}\n}}\n"
        )
    }

    fn body(self, table: &Name) -> String {
        let mut text = String::new();
        let counters: Vec<&str> = match self {
            Self::Segment { .. } => SEGMENT_COUNTERS.iter().map(|(name, _)| *name).collect(),
            Self::Host => vec![UNDERLAY_COUNTER],
            // The kernel lists them in this order, so those before are read before those after.
            Self::Passage => [Family::offered_counter, Family::passed_counter]
                .iter()
                .flat_map(|counter| Family::ALL.map(counter))
                .collect(),
            Self::FastPath | Self::Altered => vec![],
        };
        for counter in counters {
            let _ = writeln!(text, "  counter {counter} {{ }}");
        }
        let sets: &[(&str, &str)] = match self {
            Self::Segment { .. } => &[
                ("set pods", "type ifname"),
                ("set macs", "type ifname . ether_addr"),
                ("set sources4", "type ifname . ipv4_addr"),
                ("set sources6", "type ifname . ipv6_addr"),
                ("set targets", "typeof iifname . @th,64,128"),
                ("set taps", "type ifname"),
                ("set exits", "type ifname . mark"),
                ("map ways", "type mark : mark"),
            ],
            Self::Host => &[("set nodes4", "type ipv4_addr"), ("set nodes6", "type ipv6_addr")],
            Self::FastPath => &fastpath::SETS,
            Self::Passage | Self::Altered => &[],
        };
        for (name, type_) in sets {
            let _ = writeln!(text, "  {name} {{ {type_}; }}");
        }
        for Chain { name, hook, rules } in self.chains(table) {
            let _ = writeln!(text, "  chain {name} {{");
            if !hook.is_empty() {
                let _ = writeln!(text, "    type filter hook {hook}; policy accept;");
            }
            for rule in rules {
                let _ = writeln!(text, "    {rule}");
            }
            text.push_str("  }\n");
        }
        text
    }

    fn chains(self, table: &Name) -> Vec<Chain> {
        match self {
            Self::Segment {
                frames_per_second,
                non_ip,
            } => match Segment::of_name(table.as_str()) {
                Some(segment) => segment_chains(&segment, frames_per_second, non_ip),
                None => vec![],
            },
            Self::Host => host_chains(),
            Self::Passage => passage_chains(),
            Self::FastPath => fastpath::chains(),
            Self::Altered => vec![],
        }
    }
}

pub(super) struct Chain {
    pub(super) name: &'static str,
    /// Hook and priority of a base chain.
    pub(super) hook: &'static str,
    pub(super) rules: Vec<String>,
}

/// Before br_netfilter takes a frame through the IP hooks at priority 0 (NF_BR_PRI_BRNF): what it brings back skips
/// every hook of the bridge up to and including that priority (net/bridge/br_netfilter_hooks.c, br_nf_hook_thresh).
const BRIDGE_HOOKS: [&str; 3] = [
    "forward priority -200",
    "input priority -200",
    "output priority -200",
];

/// Where a frame's exit is decided, once for all copies of it: while the bridge floods them the exit may change, and
/// then one too many would leave, or none. After br_netfilter has shown the frame to the IP hooks, whose rules may set
/// marks of their own, and before the first copy is made.
const WAY_HOOK: &str = "prerouting priority 100";

fn segment_chains(segment: &Segment, frames_per_second: u32, non_ip: bool) -> Vec<Chain> {
    let (mesh, uplink) = (segment.mesh(), segment.uplink());
    let spoofed = "counter name spoofed drop";
    let host = "counter name host drop";
    // ARP and neighbour solicitations have a budget of their own, so that a flood of other broadcast cannot keep
    // the node's pods from finding each other.
    let limit = format!(
        "limit rate over {frames_per_second}/second burst {frames_per_second} packets counter name budget drop"
    );
    let mut pod = vec![
        format!("iifname . ether saddr != @macs {spoofed}"),
        // Linux takes what is in a tag without a VLAN for untagged, and none of the rules below would see it.
        "ether type { 8021q, 8021ad } counter name tagged drop".into(),
        "ether type vmap { arp : goto pod_arp, ip : goto pod_ipv4, ip6 : goto pod_ipv6 }".into(),
    ];
    if !non_ip {
        pod.push("counter name nonip drop".into());
    }
    pod.push("goto pod_group".into());
    let way = |name, key| Chain {
        name,
        hook: "",
        // Without an exit the frame keeps the key, which opens none.
        rules: vec![
            format!("meta mark set {key}"),
            "meta mark set meta mark map @ways".into(),
        ],
    };
    vec![
        Chain {
            name: "pod_group",
            hook: "",
            rules: vec![format!(
                "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 {limit}"
            )],
        },
        Chain {
            name: "pod_arp",
            hook: "",
            // The sender's fields are where these say, or the frame is not ARP for IPv4 over Ethernet.
            rules: ["htype != 1", "ptype != ip", "hlen != 6", "plen != 4"]
                .map(|unusual| format!("arp {unusual} {spoofed}"))
                .into_iter()
                .chain([
                    format!("iifname . arp saddr ether != @macs {spoofed}"),
                    format!("iifname . arp saddr ip != @sources4 {spoofed}"),
                    format!("ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 {limit}"),
                ])
                .collect(),
        },
        Chain {
            name: "pod_ipv4",
            hook: "",
            rules: vec![
                format!("iifname . ip saddr != @sources4 {spoofed}"),
                "goto pod_group".into(),
            ],
        },
        Chain {
            name: "pod_ipv6",
            hook: "",
            rules: vec![
                format!("iifname . ip6 saddr != @sources6 {spoofed}"),
                // A slice has no routers: one that says so would reconfigure every pod.
                format!("icmpv6 type {{ nd-router-advert, nd-redirect }} {spoofed}"),
                format!("icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets {spoofed}"),
                format!(
                    "icmpv6 type nd-neighbor-solicit ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 {limit}"
                ),
                "icmpv6 type nd-neighbor-solicit accept".into(),
                "goto pod_group".into(),
            ],
        },
        Chain {
            name: "pod",
            hook: "",
            rules: pod,
        },
        Chain {
            name: "prerouting",
            hook: "prerouting priority -300",
            rules: vec!["iifname @pods goto pod".into()],
        },
        way("way_of_pods", FROM_PODS),
        way("way_of_uplink", FROM_UPLINK),
        Chain {
            name: "way",
            hook: WAY_HOOK,
            rules: vec![
                "iifname @pods goto way_of_pods".into(),
                format!("iifname \"{uplink}\" goto way_of_uplink"),
            ],
        },
        Chain {
            name: "to_mesh",
            hook: "",
            // Every address of this cluster is answered for on this node; the others are a gateway's to answer.
            rules: vec![
                "arp operation request drop".into(),
                "icmpv6 type nd-neighbor-solicit drop".into(),
            ],
        },
        Chain {
            name: "unmark",
            hook: "",
            rules: vec!["meta mark set 0".into()],
        },
        // Copies of a flooded frame that must not exist are not counted: nothing is lost.
        Chain {
            name: "from_pod",
            hook: "",
            rules: vec![
                "oifname . meta mark @exits goto unmark".into(),
                "oifname @pods goto unmark".into(),
                "oifname @taps drop".into(),
                format!("oifname \"{uplink}\" drop"),
                format!("oifname \"{mesh}\" jump to_mesh"),
                "goto unmark".into(),
            ],
        },
        Chain {
            name: "from_outside",
            hook: "",
            rules: vec![
                "oifname @pods accept".into(),
                "oifname @taps drop".into(),
                format!("oifname \"{uplink}\" drop"),
                format!("oifname \"{mesh}\" goto to_mesh"),
            ],
        },
        Chain {
            name: "from_uplink",
            hook: "",
            rules: vec!["oifname . meta mark != @exits drop".into(), "goto unmark".into()],
        },
        Chain {
            name: "forward",
            hook: BRIDGE_HOOKS[0],
            // A hook is that of all bridges: by which port a frame came is asked first.
            rules: vec![
                "iifname @pods goto from_pod".into(),
                "iifname @taps goto from_outside".into(),
                format!("iifname \"{mesh}\" goto from_outside"),
                format!("iifname \"{uplink}\" goto from_uplink"),
            ],
        },
        Chain {
            name: "input",
            hook: BRIDGE_HOOKS[1],
            rules: vec![
                format!("iifname \"{mesh}\" drop"),
                format!("iifname \"{uplink}\" drop"),
                "iifname @taps drop".into(),
                // A group-addressed frame always has a copy for the node: only what was meant for it is counted.
                "iifname @pods ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 drop".into(),
                format!("iifname @pods {host}"),
            ],
        },
        Chain {
            name: "output",
            hook: BRIDGE_HOOKS[2],
            rules: vec![
                // The bridge as an interface of the node says a few things of its own when it comes up.
                format!("oifname {{ \"{mesh}\", \"{uplink}\" }} drop"),
                "oifname @taps drop".into(),
                "oifname @pods drop".into(),
            ],
        },
    ]
}

fn passage_chains() -> Vec<Chain> {
    let count = |name, counter: fn(Family) -> &'static str| Chain {
        name,
        hook: "",
        rules: Family::ALL
            .map(|family| {
                format!(
                    "ether type {} counter name {}",
                    family.ether_type(),
                    counter(family)
                )
            })
            .into(),
    };
    let [_bridge, ports @ ..] = Name::LINK_PREFIXES;
    let each_port = |name, hook, chain| Chain {
        name,
        hook,
        // The pods' first: they send most.
        rules: ports
            .iter()
            .rev()
            .map(|prefix| format!("iifname \"{prefix}*\" goto {chain}"))
            .collect(),
    };
    vec![
        count("offered", Family::offered_counter),
        count("passed", Family::passed_counter),
        // Behind the segments' own filters.
        each_port("before", "forward priority -150", "offered"),
        each_port("after", "forward priority 100", "passed"),
    ]
}

fn host_chains() -> Vec<Chain> {
    let ports = format!("udp dport {{ {MESH_PORT}, {UPLINK_PORT}, {} }}", liveness::PORT);
    let drop = format!("counter name {UNDERLAY_COUNTER} drop");
    vec![
        Chain {
            name: "underlay",
            hook: "",
            rules: vec![
                // A pod of the node may write any address on what it sends; a node is believed only by the way there.
                format!("fib saddr . iif oif missing {drop}"),
                "ip saddr @nodes4 return".into(),
                "ip6 saddr @nodes6 return".into(),
                drop,
            ],
        },
        Chain {
            name: "input",
            hook: "input priority -10",
            rules: vec![format!("{ports} goto underlay")],
        },
        Chain {
            name: "forward",
            hook: "forward priority -10",
            rules: vec![
                format!("ip daddr @nodes4 {ports} goto underlay"),
                format!("ip6 daddr @nodes6 {ports} goto underlay"),
            ],
        },
        Chain {
            name: "bridged",
            // Where br_netfilter shows bridged packets to the IP hooks (every Kubernetes node has it): before
            // reassembly and connection tracking, so that no Service rule of the node translates a slice's address.
            hook: "prerouting priority -450",
            rules: vec!["iifname \"wb-*\" notrack".into()],
        },
    ]
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment {
                frames_per_second,
                non_ip,
            } => {
                let others = if *non_ip {
                    "any protocol"
                } else {
                    "IP and ARP only"
                };
                write!(f, "segment, {frames_per_second} broadcasts/s, {others}")
            }
            Self::Host => f.write_str("host"),
            Self::Passage => f.write_str("passage"),
            Self::FastPath => f.write_str("fast path"),
            Self::Altered => f.write_str("altered"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules::Segment {
        frames_per_second: 1000,
        non_ip: true,
    };

    #[test]
    fn a_mark_is_recognised_only_for_the_same_text() {
        let table = Segment::of_slice("shop").table();
        for rules in [
            RULES,
            Rules::Segment {
                frames_per_second: 5,
                non_ip: false,
            },
            Rules::Host,
            Rules::Passage,
            Rules::FastPath,
        ] {
            assert_eq!(Rules::of_mark(&table, &rules.mark(&table)), rules);
        }
        let other = RULES.mark(&Segment::of_slice("bank").table());
        assert_eq!(Rules::of_mark(&table, &other), Rules::Altered);
        for mark in ["", "segment", "segment x 1 00000000", "segment 1000 1 00000000"] {
            assert_eq!(Rules::of_mark(&table, mark), Rules::Altered, "{mark}");
        }
    }

    #[test]
    fn a_slice_without_other_protocols_drops_them() {
        let table = Segment::of_slice("shop").table();
        let closed = Rules::Segment {
            frames_per_second: 1000,
            non_ip: false,
        };
        assert!(
            closed
                .script(&table)
                .contains("    counter name nonip drop\n    goto pod_group\n")
        );
        assert!(!RULES.script(&table).contains("    counter name nonip drop\n"));
    }
}
