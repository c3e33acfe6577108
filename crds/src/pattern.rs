//! Patterns of texts in objects: what one admits, the type of the field reads. A pattern is checked without the cost that a
//! rule has, whatever the length of the list; what an API server says of one is a regular expression, and [`words`] says
//! the same to a person.

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

/// The name of a member or of a host outside: a DNS label (RFC 1123 §2.1).
pub const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// A WireGuard public key: 32 bytes in base 64 (RFC 4648 §4).
pub const PUBLIC_KEY: &str = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$";

/// A duration of Kubernetes.
pub const DURATION: &str = r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$";

/// The key of a taint, or none.
pub const TAINT_KEY: &str =
    r"^(([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$";

/// The value of a taint, or none.
pub const TAINT_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// What a text must be that a pattern of this module refuses, after "must be"; `None` where it is none of them.
pub fn words(pattern: &str) -> Option<&'static str> {
    Some(match pattern {
        IP => "an IP address, such as 192.0.2.9 or 2001:db8::9",
        CIDR => "a network, such as 10.80.0.0/16 or fd42:80::/64",
        SOCKET => "an address and a port, such as 192.0.2.9:51820 or [2001:db8::9]:51820",
        NAME => "lower-case letters, digits and '-', with a letter or a digit first and last",
        PUBLIC_KEY => "a WireGuard public key, as `wg pubkey` prints it",
        DURATION => "a duration, such as 24h or 1h30m",
        TAINT_KEY => "the key of a taint, such as dedicated or example.org/pool",
        TAINT_VALUE => "letters, digits, '-', '_' and '.', with a letter or a digit first and last",
        _ => return None,
    })
}

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

    /// All values of a key, at any depth.
    fn values<'a>(of: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
        match of {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get(key).and_then(serde_json::Value::as_str));
                fields.values().for_each(|value| values(value, key, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| values(item, key, found)),
            _ => {}
        }
    }

    #[test]
    fn every_pattern_of_ours_has_words() {
        let kinds = [crate::schema::hub(), crate::schema::member()].concat();
        let kinds = serde_json::to_value(kinds).unwrap();
        let mut patterns = vec![];
        values(&kinds, "pattern", &mut patterns);
        assert!(patterns.len() > 10, "{patterns:?}");
        let silent: Vec<_> = patterns
            .into_iter()
            .filter(|pattern| words(pattern).is_none())
            .collect();
        assert!(silent.is_empty(), "{silent:?}");
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
