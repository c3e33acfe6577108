//! The token that `token issue` prints and `join` takes: base 64 (RFC 4648 §5, no padding) of a JSON object.

use anyhow::{Context, bail};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the object. The first had none, and held a credential of the member's own account.
const VERSION: u64 = 2;

/// What a cluster needs to ask its hub to be let in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// URL of the hub's API server.
    pub server: String,
    /// Its certificate authorities, PEM; empty for those that every system knows.
    pub ca: String,
    /// The member's namespace on the hub.
    pub namespace: String,
    /// The member's name.
    pub cluster: String,
    /// Name of the JoinToken.
    pub join: String,
    /// A credential that is good for asking to join, once.
    pub token: String,
}

#[derive(Serialize)]
struct Versioned<'a> {
    version: u64,
    #[serde(flatten)]
    invitation: &'a Invitation,
}

impl Invitation {
    pub fn encode(&self) -> String {
        let object = Versioned {
            version: VERSION,
            invitation: self,
        };
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&object).expect("strings are JSON"))
    }

    /// # Errors
    /// Where the text is not what `token issue` of this version printed, for instance cut short.
    pub fn decode(text: &str) -> anyhow::Result<Self> {
        let what = "the token is not what `slicectl token issue` printed; is it whole?";
        // A terminal may have broken it into lines.
        let text: String = text.split_whitespace().collect();
        let json = BASE64_URL_SAFE_NO_PAD.decode(text).context(what)?;
        let object: Value = serde_json::from_slice(&json).context(what)?;
        let cluster = object["cluster"].as_str().context(what)?;
        match object["version"].as_u64() {
            Some(VERSION) => serde_json::from_value(object).context(what),
            None => bail!(
                "the token was printed by an older slicectl, and this hub's tokens are others: issue one with `slicectl \
                 token issue {cluster}` of this version"
            ),
            Some(version) => bail!(
                "the token has format {version}, and this slicectl knows format {VERSION}: join with the version of \
                 slicectl that issued it"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn invitation() -> Invitation {
        Invitation {
            server: "https://172.30.1.10:6443".into(),
            ca: "-----BEGIN CERTIFICATE-----\n".into(),
            namespace: "weft-member-b".into(),
            cluster: "b".into(),
            join: "b-k3x9qa".into(),
            token: "x.y.z".into(),
        }
    }

    #[track_caller]
    fn refused(text: &str, why: &str) {
        let error = Invitation::decode(text).err().expect("a refusal").to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn a_token_survives_the_clipboard_and_a_torn_one_is_refused() {
        let text = invitation().encode();
        let (first, second) = text.split_at(80);
        assert!(Invitation::decode(&format!("{first}\n {second}\n")).unwrap() == invitation());
        refused(&text[..text.len() - 7], "is it whole?");
        refused("no token", "is it whole?");
    }

    #[test]
    fn other_formats_are_named() {
        let encode = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let old = json!({
            "server": "https://172.30.1.10:6443", "ca": "", "namespace": "weft-member-b", "cluster": "b", "token": "x.y.z",
        });
        refused(&encode(old.clone()), "`slicectl token issue b`");
        let mut newer = old;
        newer["version"] = 3.into();
        refused(&encode(newer), "format 3");
    }
}
