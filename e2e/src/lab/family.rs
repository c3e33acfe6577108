//! The address families of a lab and the ranges of each: the same in every cluster on purpose, only nodes differ. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Which addresses a cluster uses; the first family is the one that nodes and API servers are known by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    #[default]
    Ipv4,
    /// IPv4 and IPv6.
    Dual,
    Ipv6,
}

/// What one address family of a cluster has; the same in every cluster on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    /// Pods of the whole cluster.
    pub pods: &'static str,
    pub services: &'static str,
    /// The API server's own Service address: the first of [`Self::services`].
    pub api: IpAddr,
    /// CoreDNS' Service address.
    pub dns: IpAddr,
    pub iptables: &'static str,
    pub default_route: &'static str,
}

const IPV4: Ranges = Ranges {
    pods: "10.244.0.0/16",
    services: "10.96.0.0/16",
    api: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
    dns: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    iptables: "iptables",
    default_route: "0.0.0.0/0",
};

const IPV6: Ranges = Ranges {
    pods: "fd44::/48",
    services: "fd96::/112",
    api: IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1)),
    dns: IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 10)),
    iptables: "ip6tables",
    default_route: "::/0",
};

impl Family {
    /// Of each address family, first the one that clusters are known by.
    pub fn ranges(self) -> &'static [Ranges] {
        match self {
            Self::Ipv4 => &[IPV4],
            Self::Dual => &[IPV4, IPV6],
            Self::Ipv6 => &[IPV6],
        }
    }

    pub fn has(self, address: IpAddr) -> bool {
        match self {
            Self::Ipv4 => address.is_ipv4(),
            Self::Dual => true,
            Self::Ipv6 => address.is_ipv6(),
        }
    }

    /// The ranges as Kubernetes' flags list them.
    pub fn list(self, of: impl Fn(&Ranges) -> String) -> String {
        self.ranges().iter().map(of).collect::<Vec<_>>().join(",")
    }

    /// Where a program listens on all addresses.
    pub fn any(self) -> &'static str {
        match self {
            Self::Ipv4 => "0.0.0.0",
            Self::Dual | Self::Ipv6 => "::",
        }
    }
}
