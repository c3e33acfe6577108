//! A handshake initiation in somebody else's name: everything is right but what only the owner of the key can make.

use blake2::{Blake2s256, Digest};
use boringtun::x25519::{PublicKey, StaticSecret};
use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{Aead, Payload},
};
use hmac::{Mac, SimpleHmac};

use crate::lanes::mac1;

/// To the gateway with key `responder` in the name of `claimed` (WireGuard paper §5.4.2).
pub(crate) fn initiation(responder: &[u8; 32], claimed: &[u8; 32], session: u32) -> Vec<u8> {
    let hash = |parts: &[&[u8]]| -> [u8; 32] {
        let mut hash = Blake2s256::new();
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    };
    let hmac = |key: &[u8], parts: &[&[u8]]| -> [u8; 32] {
        let mut mac = <SimpleHmac<Blake2s256> as Mac>::new_from_slice(key).expect("any length");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    };
    let ephemeral = StaticSecret::from([9; 32]);
    let public = PublicKey::from(&ephemeral).to_bytes();
    let chain = hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
    let transcript = hash(&[&chain, b"WireGuard v1 zx2c4 Jason@zx2c4.com"]);
    let transcript = hash(&[&transcript, responder]);
    let transcript = hash(&[&transcript, &public]);
    let chain = hmac(&hmac(&chain, &[&public]), &[&[1]]);
    let shared = ephemeral.diffie_hellman(&PublicKey::from(*responder));
    let secret = hmac(&chain, &[shared.as_bytes()]);
    let first = hmac(&secret, &[&[1]]);
    let key = hmac(&secret, &[&first, &[2]]);
    let cipher = ChaCha20Poly1305::new(&key.into());
    let payload = Payload {
        msg: claimed,
        aad: &transcript,
    };
    let sealed = cipher.encrypt(&[0; 12].into(), payload).expect("32 bytes");
    let mut message = vec![1, 0, 0, 0];
    message.extend(session.to_le_bytes());
    message.extend(public);
    message.extend(sealed);
    // The time stamp, which needs the claimed owner's secret.
    message.extend([0x5a; 28]);
    message.resize(148, 0);
    let mac = mac1(responder, &message);
    message[116..132].copy_from_slice(&mac);
    message
}
