//! [`Cidr`]: an IP network as users write it, parsed once.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// An IPv4 or IPv6 network in CIDR notation (RFC 4632, RFC 4291) whose host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr(IpNet);

/// Why a text is not a [`Cidr`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CidrError {
    #[error("\"{0}\" is not a network in CIDR notation, such as 10.80.0.0/16 or fd42:80::/64")]
    Syntax(String),
    #[error("\"{given}\" has host bits set; the network is {network}")]
    HostBits { given: String, network: IpNet },
}

impl Cidr {
    /// The network as `ipnet` knows it.
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Whether the two networks share an address. Networks of different families never do.
    pub fn overlaps(self, other: Self) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }
}

impl From<IpNet> for Cidr {
    /// Takes the network that `net` lies in: host bits are cleared.
    fn from(net: IpNet) -> Self {
        Self(net.trunc())
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let net: IpNet = text.parse().map_err(|_| CidrError::Syntax(text.to_owned()))?;
        if net.trunc() != net {
            return Err(CidrError::HostBits {
                given: text.to_owned(),
                network: net.trunc(),
            });
        }
        Ok(Self(net))
    }
}

/// How an object's field is read: host bits are cleared. Where people write, the schema has refused them with a sentence.
impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        let net: IpNet = text.parse().map_err(|_| CidrError::Syntax(text.clone()))?;
        Ok(net.into())
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Cidr {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cidr".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 43 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_refused_with_the_network_that_was_meant() {
        let error = "10.80.1.0/16".parse::<Cidr>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"10.80.1.0/16\" has host bits set; the network is 10.80.0.0/16"
        );
    }

    #[test]
    fn overlap_is_containment_either_way_and_never_across_families() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.80.0.0/16")));
        assert!(cidr("10.80.0.0/16").overlaps(cidr("10.0.0.0/8")));
        assert!(!cidr("10.80.0.0/16").overlaps(cidr("10.81.0.0/16")));
        assert!(!cidr("0.0.0.0/0").overlaps(cidr("::/0")));
    }
}
