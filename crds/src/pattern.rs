//! Patterns of texts that machines write into objects: what one admits, the type of the field reads. (Fields that people
//! write have rules with a sentence each instead.)
//!
//! A pattern is checked without the cost that a rule has, whatever the length of the list.

macro_rules! ipv4 {
    () => {
        "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}"
    };
}

// RFC 4291 §2.2: eight groups, or fewer on both sides of one "::"; and IPv4-mapped addresses.
macro_rules! ipv6 {
    () => {
        concat!(
            "(([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
            "|([0-9a-f]{1,4}:){1,7}:",
            "|([0-9a-f]{1,4}:){1,6}:[0-9a-f]{1,4}",
            "|([0-9a-f]{1,4}:){1,5}(:[0-9a-f]{1,4}){2}",
            "|([0-9a-f]{1,4}:){1,4}(:[0-9a-f]{1,4}){2,3}",
            "|([0-9a-f]{1,4}:){1,3}(:[0-9a-f]{1,4}){2,4}",
            "|([0-9a-f]{1,4}:){1,2}(:[0-9a-f]{1,4}){2,5}",
            "|[0-9a-f]{1,4}:(:[0-9a-f]{1,4}){2,6}",
            "|:(:[0-9a-f]{1,4}){1,7}",
            "|::",
            "|::ffff:",
            ipv4!(),
            ")"
        )
    };
}

/// An IP address.
pub const IP: &str = concat!("^(", ipv4!(), "|", ipv6!(), ")$");

/// A network in CIDR notation.
pub const CIDR: &str = concat!(
    "^(",
    ipv4!(),
    "/(3[0-2]|[12]?[0-9])|",
    ipv6!(),
    "/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))$"
);

/// Address and port; IPv6 in brackets (RFC 3986 §3.2.2).
pub const SOCKET: &str = concat!(
    "^(",
    ipv4!(),
    "|\\[",
    ipv6!(),
    "\\]):(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9]?[0-9]{1,3})$"
);

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use proptest::{prelude::*, string::string_regex};

    use super::*;
    use crate::Cidr;

    fn drawn(pattern: &str) -> impl Strategy<Value = String> + use<> {
        string_regex(pattern.trim_start_matches('^').trim_end_matches('$')).unwrap()
    }

    fn admits(pattern: &str, text: &str) -> bool {
        regex::Regex::new(pattern).unwrap().is_match(text)
    }

    proptest! {
        #[test]
        fn what_a_pattern_admits_is_read(ip in drawn(IP), cidr in drawn(CIDR), socket in drawn(SOCKET)) {
            prop_assert!(ip.parse::<IpAddr>().is_ok(), "{ip}");
            prop_assert!(serde_json::from_value::<Cidr>(cidr.clone().into()).is_ok(), "{cidr}");
            prop_assert!(socket.parse::<SocketAddr>().is_ok(), "{socket}");
        }

        #[test]
        fn what_is_written_is_admitted(ip: IpAddr, port: u16, length in 0u8..=32) {
            prop_assert!(admits(IP, &ip.to_string()), "{ip}");
            let network = Cidr::from(ipnet::IpNet::new(ip, length).unwrap());
            prop_assert!(admits(CIDR, &network.to_string()), "{network}");
            let socket = SocketAddr::new(ip, port);
            prop_assert!(admits(SOCKET, &socket.to_string()), "{socket}");
        }
    }
}
