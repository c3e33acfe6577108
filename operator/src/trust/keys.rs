//! Whose a public key is.
//!
//! Within a slice a key names one gateway: two peers of one key could not be distinguished, so who claims another's key
//! would cut it off. The one whose key was published to the others first keeps it.

use std::collections::BTreeMap;

use slice_crds::{v1alpha1::SlicePeer, wire::PeerGateway};

use super::{Claim, Violation};

/// The gateways of a slice as the other members get them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trusted {
    /// By cluster.
    pub gateways: BTreeMap<String, Vec<PeerGateway>>,
    /// By cluster.
    pub violations: BTreeMap<String, Vec<Violation>>,
    /// Whose each key is: `published` of the next time.
    pub published: BTreeMap<String, String>,
}

/// Resolves the keys of a slice.
///
/// `published` are the keys that others got before, and whose they are. With a `revocation` only keys count that
/// were made under it.
pub fn keys(
    claims: &[(&str, &Claim)],
    hosts: &[SlicePeer],
    published: &BTreeMap<String, String>,
    revocation: Option<&str>,
) -> Trusted {
    let mut trusted = Trusted::default();
    let mut owners: BTreeMap<String, String> = (hosts.iter())
        .map(|host| (host.public_key.clone(), format!("host {}", host.name)))
        .collect();
    // First those who have a key from before, then the others in the order of their names.
    for known in [true, false] {
        for (name, claim) in claims {
            for gateway in &claim.gateways {
                for key in gateway.public_key.iter().chain(&gateway.former_key) {
                    let own = published.get(key).is_some_and(|owner| owner == name);
                    if own == known {
                        owners
                            .entry(key.clone())
                            .or_insert_with(|| format!("{name}/{}", gateway.ordinal));
                    }
                }
            }
        }
    }
    for (name, claim) in claims {
        let mut gateways = Vec::new();
        for gateway in &claim.gateways {
            let id = format!("{name}/{}", gateway.ordinal);
            let mine = |key: &String| owners.get(key) == Some(&id);
            let keys = gateway.public_key.iter().chain(&gateway.former_key);
            for key in keys.filter(|key| !mine(key)) {
                let owner = owners.get(key).map(String::as_str).unwrap_or_default();
                let violation = Violation::new(format!(
                    "gateway {} with the public key of {owner}, which had it first",
                    gateway.ordinal
                ));
                trusted
                    .violations
                    .entry((*name).to_owned())
                    .or_default()
                    .push(violation);
            }
            if revocation.is_some() && gateway.revocation.as_deref() != revocation {
                continue;
            }
            let Some(public_key) = gateway.public_key.clone().filter(mine) else {
                continue;
            };
            let former_key = gateway.former_key.clone().filter(mine);
            for key in std::iter::once(&public_key).chain(&former_key) {
                trusted.published.insert(key.clone(), (*name).to_owned());
            }
            gateways.push(PeerGateway {
                ordinal: gateway.ordinal,
                public_key,
                former_key,
                endpoints: gateway.endpoints.clone(),
            });
        }
        trusted.gateways.insert((*name).to_owned(), gateways);
    }
    trusted
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use slice_crds::wire::Gateway;

    use super::*;

    fn claim(gateways: &[(u32, &str, Option<&str>)]) -> Claim {
        let gateway = |(ordinal, key, revocation): &(u32, &str, Option<&str>)| -> Gateway {
            serde_json::from_value(json!({"ordinal": ordinal, "publicKey": key, "revocation": revocation}))
                .unwrap()
        };
        Claim {
            gateways: gateways.iter().map(gateway).collect(),
            ..Claim::default()
        }
    }

    fn published(trusted: &Trusted, name: &str) -> Vec<String> {
        trusted.gateways[name]
            .iter()
            .map(|gateway| gateway.public_key.clone())
            .collect()
    }

    #[test]
    fn who_was_told_first_keeps_its_key() {
        let (a, b) = (claim(&[(0, "K", None)]), claim(&[(0, "K", None), (1, "L", None)]));
        let before = BTreeMap::from([("K".to_owned(), "b".to_owned())]);
        let trusted = keys(&[("a", &a), ("b", &b)], &[], &before, None);
        assert_eq!(
            (published(&trusted, "a"), published(&trusted, "b")),
            (vec![], vec!["K".into(), "L".into()])
        );
        let violation = trusted.violations["a"][0].to_string();
        assert_eq!(
            violation,
            "gateway 0 with the public key of b/0, which had it first"
        );
        // It stays so, whoever is looked at first.
        let again = keys(&[("b", &b), ("a", &a)], &[], &trusted.published, None);
        assert_eq!(again.published, trusted.published);
    }

    #[test]
    fn a_key_that_its_owner_has_dropped_is_free() {
        let (a, b) = (claim(&[(0, "K", None)]), claim(&[(0, "L", None)]));
        let before = BTreeMap::from([("K".to_owned(), "b".to_owned())]);
        assert_eq!(
            published(&keys(&[("a", &a), ("b", &b)], &[], &before, None), "a"),
            ["K"]
        );
    }

    #[test]
    fn two_gateways_of_one_member_are_two() {
        let a = claim(&[(0, "K", None), (1, "K", None)]);
        let trusted = keys(&[("a", &a)], &[], &BTreeMap::new(), None);
        assert_eq!(
            (published(&trusted, "a"), trusted.violations["a"].len()),
            (vec!["K".into()], 1)
        );
    }

    #[test]
    fn a_hosts_key_is_the_hosts() {
        let host = SlicePeer {
            name: "db1".into(),
            public_key: "K".into(),
            endpoints: vec![],
        };
        let a = claim(&[(0, "K", None)]);
        let trusted = keys(&[("a", &a)], &[host], &BTreeMap::new(), None);
        assert!(published(&trusted, "a").is_empty());
        assert!(trusted.violations["a"][0].to_string().contains("host db1"));
    }

    #[test]
    fn a_key_from_before_a_revocation_is_told_to_nobody() {
        let a = claim(&[(0, "K", Some("r1")), (1, "L", Some("r2")), (2, "M", None)]);
        assert_eq!(
            published(&keys(&[("a", &a)], &[], &BTreeMap::new(), Some("r2")), "a"),
            ["L"]
        );
        assert_eq!(
            published(&keys(&[("a", &a)], &[], &BTreeMap::new(), None), "a").len(),
            3
        );
    }
}
