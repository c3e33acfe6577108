//! The token that `token issue` prints and `join` takes: base 64 (RFC 4648 §5, no padding) of a JSON object.

use anyhow::Context;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

/// What a member needs to speak to its hub.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// URL of the hub's API server.
    pub server: String,
    /// Its certificate authority, PEM.
    pub ca: String,
    /// The member's namespace on the hub.
    pub namespace: String,
    /// The member's name.
    pub cluster: String,
    /// A short-lived credential of the member's account.
    pub token: String,
}

impl JoinToken {
    pub fn encode(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("strings are JSON"))
    }

    /// # Errors
    /// Where the text is not what `token issue` printed, for instance cut short.
    pub fn decode(text: &str) -> anyhow::Result<Self> {
        let what = "the token is not what `slicectl token issue` printed; is it whole?";
        let json = BASE64_URL_SAFE_NO_PAD.decode(text.trim()).context(what)?;
        serde_json::from_slice(&json).context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_clipboard_and_a_torn_one_is_refused() {
        let token = JoinToken {
            server: "https://172.30.1.10:6443".into(),
            ca: "-----BEGIN CERTIFICATE-----\n".into(),
            namespace: "weft-member-b".into(),
            cluster: "b".into(),
            token: "x.y.z".into(),
        };
        let text = token.encode();
        assert!(JoinToken::decode(&format!("{text}\n")).unwrap() == token);
        let error = JoinToken::decode(&text[..text.len() - 7]).err().unwrap();
        assert!(error.to_string().contains("is it whole?"));
    }
}
