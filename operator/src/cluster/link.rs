//! The member's way to the hub: its credential, the client made from it, and its renewal.

use anyhow::{Context, anyhow, bail};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::{Secret, ServiceAccount},
    },
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    config::AuthInfo,
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use slice_crds::names;

/// Keys of the Secret, the same that `slicectl join` writes.
pub mod key {
    pub const SERVER: &str = "server";
    pub const CA: &str = "ca.crt";
    pub const TOKEN: &str = "token";
    pub const NAMESPACE: &str = "namespace";
    pub const CLUSTER: &str = "cluster";
}

/// What a renewed credential is good for: long enough to outlast a hub that is away for weeks.
const LIFETIME: SignedDuration = SignedDuration::from_hours(30 * 24);
/// It is renewed when this much of it has passed; `slicectl token issue` gives one of an hour for the start.
const RENEW_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// The credential for the hub.
#[derive(Clone)]
pub struct Credential {
    pub server: String,
    pub ca: Vec<u8>,
    token: SecretString,
    /// The member's namespace on the hub.
    pub namespace: String,
    /// The member's name.
    pub cluster: String,
}

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        (&self.server, &self.ca, &self.namespace, &self.cluster)
            == (&other.server, &other.ca, &other.namespace, &other.cluster)
            && self.token.expose_secret() == other.token.expose_secret()
    }
}

impl Credential {
    /// Reads it from the Secret.
    ///
    /// # Errors
    /// Names the key that is missing or unreadable.
    pub fn from_secret(secret: &Secret) -> anyhow::Result<Self> {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let data = secret.data.as_ref();
        let bytes = |key: &str| {
            let value = data.and_then(|data| data.get(key)).map(|value| value.0.clone());
            value.ok_or_else(|| anyhow!("secret {name} has no key {key}: run `slicectl join` again"))
        };
        let text = |key: &str| {
            String::from_utf8(bytes(key)?)
                .map_err(|_| anyhow!("key {key} of secret {name} is not text: run `slicectl join` again"))
        };
        Ok(Self {
            server: text(key::SERVER)?,
            ca: bytes(key::CA)?,
            token: SecretString::from(text(key::TOKEN)?),
            namespace: text(key::NAMESPACE)?,
            cluster: text(key::CLUSTER)?,
        })
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
        config.root_cert = Some(certificates(&self.ca)?);
        config.auth_info = AuthInfo {
            token: Some(self.token.expose_secret().into()),
            ..AuthInfo::default()
        };
        Client::try_from(config).context("set up the client for the hub")
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

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let parsed = parsed.map_err(|error| anyhow!("the hub's certificate authority is not PEM: {error}"))?;
    if parsed.is_empty() {
        bail!("the hub's certificate authority is empty: run `slicectl join` again");
    }
    Ok(parsed
        .into_iter()
        .map(|certificate| certificate.to_vec())
        .collect())
}

/// Asks the hub for a fresh token and puts it into the Secret, from where it is read like any other.
///
/// # Errors
/// Where the hub refuses, or the Secret cannot be written; the old token goes on meanwhile.
pub async fn renew(
    credential: &Credential,
    hub: &Client,
    local: &Api<Secret>,
    secret: &str,
) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(hub.clone(), &credential.namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(LIFETIME.as_secs()),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(names::MEMBER_ACCOUNT, &PostParams::default(), &request)
        .await
        .context("ask the hub for a fresh token")?;
    let token = answer.status.context("the hub's answer has no token")?.token;
    let patch = Secret {
        metadata: ObjectMeta {
            name: Some(secret.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some([(key::TOKEN.to_owned(), ByteString(token.into_bytes()))].into()),
        ..Secret::default()
    };
    local
        .patch(secret, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("write the fresh token into secret {secret}"))?;
    tracing::info!(secret, "hub credential renewed");
    Ok(())
}

#[cfg(test)]
mod tests {
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
        broken.data.as_mut().unwrap().remove(key::CA);
        let error = Credential::from_secret(&broken).err().unwrap().to_string();
        assert_eq!(
            error,
            "secret weft-hub-credential has no key ca.crt: run `slicectl join` again"
        );
    }
}
