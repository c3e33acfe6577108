//! The credential for the hub: what is in its Secret, and the client that is made from it.

use anyhow::{Context, anyhow, bail};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Client, Config, ResourceExt, config::AuthInfo};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use slice_crds::annotations::{LEAVE, credential as key};
use slice_runtime::client;

/// What a member's own credential is good for: long enough to outlast a hub that is away for weeks.
pub const LIFETIME: SignedDuration = SignedDuration::from_hours(30 * 24);
/// It is renewed when this much of it has passed, or half of it where that is less.
const RENEW_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// The credential for the hub.
#[derive(Clone)]
pub struct Credential {
    pub server: String,
    pub ca: String,
    token: SecretString,
    /// The member's namespace on the hub.
    pub namespace: String,
    /// The member's name.
    pub cluster: String,
    pub join: Option<String>,
    pub joined: Option<String>,
    pub leaving: bool,
}

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        let rest = |one: &Self| {
            let Self {
                server,
                ca,
                namespace,
                cluster,
                join,
                joined,
                leaving,
                ..
            } = one.clone();
            (server, ca, namespace, cluster, join, joined, leaving)
        };
        rest(self) == rest(other) && self.token.expose_secret() == other.token.expose_secret()
    }
}

impl Credential {
    /// Reads it from the Secret.
    ///
    /// # Errors
    /// Names the key that is missing or unreadable.
    pub fn from_secret(secret: &Secret) -> anyhow::Result<Self> {
        let name = secret.name_any();
        let optional = |key: &str| -> anyhow::Result<Option<String>> {
            let value = secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .map(|value| value.0.clone());
            value
                .map(|bytes| {
                    String::from_utf8(bytes).map_err(|_| {
                        anyhow!("key {key} of secret {name} is not text: run `slicectl join` again")
                    })
                })
                .transpose()
        };
        let text = |key: &str| {
            optional(key)?.ok_or_else(|| anyhow!("secret {name} has no key {key}: run `slicectl join` again"))
        };
        Ok(Self {
            server: text(key::SERVER)?,
            ca: optional(key::CA)?.unwrap_or_default(),
            token: SecretString::from(text(key::TOKEN)?),
            namespace: text(key::NAMESPACE)?,
            cluster: text(key::CLUSTER)?,
            join: optional(key::JOIN)?.filter(|join| !join.is_empty()),
            joined: optional(key::JOINED)?.filter(|joined| !joined.is_empty()),
            leaving: secret
                .annotations()
                .get(LEAVE)
                .is_some_and(|leave| leave == "true"),
        })
    }

    /// The same at another address.
    #[must_use]
    pub fn at(&self, server: &str, ca: &str) -> Self {
        Self {
            server: server.to_owned(),
            ca: ca.to_owned(),
            ..self.clone()
        }
    }

    /// A client that speaks to the hub as this member.
    ///
    /// # Errors
    /// Where the server's URL or its certificate authority cannot be parsed.
    pub fn client(&self) -> anyhow::Result<Client> {
        let server = self
            .server
            .parse()
            .with_context(|| format!("the hub's URL \"{}\"", self.server))?;
        let mut config = Config::new(server);
        config.default_namespace.clone_from(&self.namespace);
        // Without one, those that the system knows.
        if !self.ca.trim().is_empty() {
            config.root_cert = Some(certificates(self.ca.as_bytes())?);
        }
        config.auth_info = AuthInfo {
            token: Some(self.token.expose_secret().into()),
            ..AuthInfo::default()
        };
        client::with(config).context("set up the client for the hub")
    }

    /// When it is to be renewed.
    ///
    /// # Errors
    /// Where the token is no JSON Web Token (RFC 7519) with `iat` and `exp`.
    pub fn renew_at(&self) -> anyhow::Result<Timestamp> {
        #[derive(Deserialize)]
        struct Claims {
            iat: i64,
            exp: i64,
        }
        let token = self.token.expose_secret();
        let claims = token
            .split('.')
            .nth(1)
            .context("the hub token has no claims: run `slicectl join` again")?;
        let claims = BASE64_URL_SAFE_NO_PAD
            .decode(claims)
            .context("read the hub token's claims")?;
        let claims: Claims = serde_json::from_slice(&claims).context("read the hub token's claims")?;
        let half = SignedDuration::from_secs((claims.exp - claims.iat) / 2).min(RENEW_AFTER);
        Ok(Timestamp::from_second(claims.iat)? + half)
    }
}

/// The value of a key of a Secret.
pub(super) fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let parsed = parsed.map_err(|error| anyhow!("the hub's certificate authority is not PEM: {error}"))?;
    if parsed.is_empty() {
        bail!("the hub's certificate authority is no certificate: run `slicectl join` again");
    }
    Ok(parsed
        .into_iter()
        .map(|certificate| certificate.to_vec())
        .collect())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn secret(token: &str) -> Secret {
        let data = [
            (key::SERVER, "https://172.30.1.10:6443"),
            (key::CA, "pem"),
            (key::TOKEN, token),
            (key::NAMESPACE, "weft-member-b"),
            (key::CLUSTER, "b"),
        ];
        Secret {
            metadata: ObjectMeta {
                name: Some("weft-hub-credential".into()),
                ..ObjectMeta::default()
            },
            data: Some(
                data.map(|(key, value)| (key.to_owned(), ByteString(value.into())))
                    .into(),
            ),
            ..Secret::default()
        }
    }

    #[test]
    fn a_short_token_is_renewed_at_half_its_life_and_a_long_one_daily() {
        for (life, renew) in [(3600, 1800), (30 * 86400, 86400)] {
            let claims = BASE64_URL_SAFE_NO_PAD.encode(format!("{{\"iat\":1000,\"exp\":{}}}", 1000 + life));
            let credential = Credential::from_secret(&secret(&format!("x.{claims}.y"))).unwrap();
            assert_eq!(credential.renew_at().unwrap().as_second(), 1000 + renew);
        }
    }

    #[test]
    fn a_missing_key_is_named() {
        let mut broken = secret("x");
        broken.data.as_mut().unwrap().remove(key::SERVER);
        let error = Credential::from_secret(&broken).err().unwrap().to_string();
        assert_eq!(
            error,
            "secret weft-hub-credential has no key server: run `slicectl join` again"
        );
    }

    #[test]
    fn without_an_authority_the_systems_own_count() {
        client::install_crypto_provider();
        let mut public = secret("x");
        public.data.as_mut().unwrap().remove(key::CA);
        let credential = Credential::from_secret(&public).unwrap();
        assert_eq!((credential.ca.as_str(), credential.join.clone()), ("", None));
        let wrong = Credential::from_secret(&secret("x")).unwrap();
        assert!(
            wrong
                .client()
                .err()
                .unwrap()
                .to_string()
                .contains("is no certificate")
        );
    }
}
