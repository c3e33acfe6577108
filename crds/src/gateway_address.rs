//! Where the gateways of a node are reached, as its annotation [`crate::annotations::GATEWAY_ADDRESS`] says.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::{annotations::GATEWAY_ADDRESS, labels};

/// Addresses of one slice on one node: every gateway of every other cluster tries them in turn.
pub const MOST: usize = 4;
/// Characters of a value that is none.
const MAX_SHOWN: usize = 60;

/// An address that other clusters dial in place of the Node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    pub address: IpAddr,
    /// In place of the one that leads to the gateway on its node: of a translator that forwards it.
    pub port: Option<u16>,
}

/// Why a value of the annotation is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {GATEWAY_ADDRESS} {fault}")]
pub struct NoGatewayAddress {
    fault: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    NoAddress(String),
    Unreachable(String),
    Slice(String),
    TooMany(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress(text) => write!(
                f,
                "has \"{text}\", which is no address: write an IP address, with a port where that is another one than the \
                 gateway's, such as 203.0.113.7, 203.0.113.7:4500 or [2001:db8::7]:4500"
            ),
            Self::Unreachable(text) => write!(
                f,
                "has \"{text}\", an address that nobody else can reach: write one that other clusters can dial"
            ),
            Self::Slice(text) => write!(
                f,
                "has the part \"{text}\", whose slice is not a slice name: write an address for all slices, such as \
                 203.0.113.7, or slices with theirs, such as shop=203.0.113.7:4500"
            ),
            Self::TooMany(count) => write!(
                f,
                "has {count} addresses for one slice: leave the {MOST} that are best"
            ),
        }
    }
}

/// The addresses of a slice by the annotation's value: those with the slice's name (`shop=203.0.113.7:4500`), and where it
/// has none those without a name. Several are separated by commas, the best first.
///
/// # Errors
/// Where any part of it is none.
pub fn of_slice(text: &str, slice: &str) -> Result<Vec<GatewayAddress>, NoGatewayAddress> {
    let (mut own, mut others) = (vec![], vec![]);
    for (of, address) in parts(text)? {
        match of {
            Some(of) if of == slice => own.push(address),
            Some(_) => {}
            None => others.push(address),
        }
    }
    Ok(if own.is_empty() { others } else { own })
}

/// Whether the value can be followed.
///
/// # Errors
/// Where any part of it is none.
pub fn check(text: &str) -> Result<(), NoGatewayAddress> {
    parts(text).map(drop)
}

fn parts(text: &str) -> Result<Vec<(Option<&str>, GatewayAddress)>, NoGatewayAddress> {
    let shown = |text: &str| text.chars().take(MAX_SHOWN).collect::<String>();
    let fails = |fault| NoGatewayAddress { fault };
    let mut all: Vec<(Option<&str>, GatewayAddress)> = vec![];
    for part in text.split(',').map(str::trim) {
        let (of, address) = match part.split_once('=') {
            Some((of, _)) if !labels::is_name(of) => return Err(fails(Fault::Slice(shown(part)))),
            Some((of, address)) => (Some(of), address),
            None => (None, part),
        };
        let read = match (address.parse::<SocketAddr>(), address.parse::<IpAddr>()) {
            (Ok(socket), _) if socket.port() != 0 => GatewayAddress {
                address: socket.ip(),
                port: Some(socket.port()),
            },
            (_, Ok(address)) => GatewayAddress { address, port: None },
            _ => return Err(fails(Fault::NoAddress(shown(part)))),
        };
        if !can_be_dialled(read.address) {
            return Err(fails(Fault::Unreachable(shown(part))));
        }
        all.push((of, read));
        let count = all.iter().filter(|(other, _)| *other == of).count();
        if count > MOST {
            return Err(fails(Fault::TooMany(count)));
        }
    }
    Ok(all)
}

/// Whether a gateway of another cluster could be there, by the address alone: not where it means the dialling host itself
/// (RFC 1122 §3.2.1.3), its own link, many hosts at once, or nobody.
pub fn can_be_dialled(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_link_local() || matches!(v4.octets()[0], 0 | 240..),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(special || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn shown(text: &str, slice: &str) -> String {
        let addresses = of_slice(text, slice).unwrap().into_iter();
        let texts = addresses.map(|one| match one.port {
            Some(port) => SocketAddr::new(one.address, port).to_string(),
            None => one.address.to_string(),
        });
        texts.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn addresses_are_for_all_slices_or_for_one() {
        assert_eq!(shown("203.0.113.7", "shop"), "203.0.113.7");
        assert_eq!(
            shown("203.0.113.7:4500, [2001:db8::7]:4500", "shop"),
            "203.0.113.7:4500 [2001:db8::7]:4500"
        );
        let some = "203.0.113.7,shop=203.0.113.8:4500,bank=2001:db8::7";
        assert_eq!(shown(some, "shop"), "203.0.113.8:4500");
        assert_eq!(shown(some, "bank"), "2001:db8::7");
        assert_eq!(shown(some, "till"), "203.0.113.7");
        assert_eq!(shown("shop=203.0.113.8", "till"), "");
    }

    #[test]
    fn what_is_none_is_named_with_the_remedy() {
        for (text, says) in [
            ("", "has \"\", which is no address: write an IP address"),
            ("gw.example.com", "has \"gw.example.com\", which is no address"),
            ("203.0.113.7:0", "has \"203.0.113.7:0\", which is no address"),
            ("203.0.113.7:70000", "which is no address"),
            ("203.0.113.7,", "has \"\", which is no address"),
            (
                "127.0.0.1",
                "has \"127.0.0.1\", an address that nobody else can reach",
            ),
            ("0.0.0.0", "that nobody else can reach"),
            ("0.1.2.3", "that nobody else can reach"),
            ("255.255.255.255", "that nobody else can reach"),
            ("240.0.0.1:4500", "that nobody else can reach"),
            ("169.254.1.1", "that nobody else can reach"),
            ("224.0.0.1", "that nobody else can reach"),
            ("::1", "that nobody else can reach"),
            ("[fe80::1]:4500", "that nobody else can reach"),
            ("::ffff:203.0.113.7", "that nobody else can reach"),
            (
                "Shop=203.0.113.7",
                "has the part \"Shop=203.0.113.7\", whose slice is not a slice name",
            ),
            (
                "192.0.2.1,192.0.2.2,192.0.2.3,192.0.2.4,192.0.2.5",
                "has 5 addresses for one slice",
            ),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(
                error.starts_with("annotation weft.dev/gateway-address has "),
                "{error}"
            );
            assert!(error.contains(says), "{error}");
        }
        let long = "x".repeat(10_000);
        assert!(check(&long).unwrap_err().to_string().len() < 300);
    }
}
