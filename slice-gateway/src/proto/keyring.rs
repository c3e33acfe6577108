//! The gateway's own keys: one, and for a while the one before it.
//!
//! ```text
//!  renew ──► both are answered and published ──► every peer has moved to the new one ──► the former is wiped
//!  revoke ─► the former is wiped at once
//! ```
//!
//! A peer that is away may come back with only the former key in mind, so that one stays until the next renewal is
//! due. A peer that is there and knows only the former one (a host outside the clusters whose script was not run again)
//! holds the next renewal up: what works is not broken by the clock.
//!
//! Here too: who may start a handshake with us, within what [`super::guard`] allows.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    config::KeyPolicy,
    guard::{Guard, Look},
    noise::{Handshake, Identity, Key, MAX_HANDSHAKE, proof_in},
    random::Random,
    reason::Reason,
};

/// A key is replaced up to this much of its life early, so that the gateways of a slice do not do it together.
const EARLIEST: f64 = 0.9;

/// The public keys that the gateway answers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    pub current: [u8; 32],
    pub former: Option<[u8; 32]>,
    /// The revocation under which the current key was made; see [`KeyPolicy::revocation`].
    pub revocation: Option<String>,
}

/// Names one of the own keys for as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Serial(u64);

struct Own {
    serial: Serial,
    identity: Identity,
    made: Instant,
    /// The share of its life after which it is replaced.
    share: f64,
}

pub(super) struct Keyring {
    guard: Guard,
    current: Own,
    former: Option<Own>,
    /// As it was told last; `None` before it was told anything.
    policy: Option<KeyPolicy>,
    /// What was asked for.
    wish: Option<Change>,
    /// Under which the current key was made.
    revocation: Option<String>,
}

/// Why there is a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The one before goes on until every peer has moved.
    Renewal,
    /// The ones before are trusted no more.
    Revocation,
}

impl Keyring {
    /// `seed` is for what others must not predict.
    pub(super) fn new(key: Key, seed: u64, now: Instant, random: &mut Random) -> Self {
        Self {
            guard: Guard::new(seed, now),
            current: Own::new(Serial(0), key, now, random),
            former: None,
            policy: None,
            wish: None,
            revocation: None,
        }
    }

    pub(super) fn keys(&self) -> Keys {
        Keys {
            current: self.current.identity.public(),
            former: self.former.as_ref().map(|own| own.identity.public()),
            revocation: self.revocation.clone(),
        }
    }

    /// How long the current key has been in use.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.current.made)
    }

    /// All keys, newest first.
    pub(super) fn identities(&self) -> impl Iterator<Item = (Serial, &Identity)> {
        let all = std::iter::once(&self.current).chain(&self.former);
        all.map(|own| (own.serial, &own.identity))
    }

    /// The key with this number.
    pub(super) fn identity(&self, serial: Serial) -> Option<&Identity> {
        let mut identities = self.identities();
        identities.find_map(|(other, identity)| (other == serial).then_some(identity))
    }

    pub(super) fn current(&self) -> Serial {
        self.current.serial
    }

    pub(super) fn former(&self) -> Option<Serial> {
        self.former.as_ref().map(|own| own.serial)
    }

    /// Takes a policy. The first one finds a key that is as new as the process, and a wish that is no longer written
    /// down is no new wish.
    pub(super) fn follow(&mut self, policy: &KeyPolicy) {
        let new = |before: &Option<String>, now: &Option<String>| now.is_some() && before != now;
        match &self.policy {
            None => self.revocation.clone_from(&policy.revocation),
            Some(before) if new(&before.revocation, &policy.revocation) => {
                self.wish = Some(Change::Revocation)
            }
            Some(before) if new(&before.renewal, &policy.renewal) => {
                self.wish.get_or_insert(Change::Renewal);
            }
            Some(_) => {}
        }
        let before = self.policy.take().unwrap_or_default();
        self.policy = Some(KeyPolicy {
            rotation: policy.rotation,
            renewal: policy.renewal.clone().or(before.renewal),
            revocation: policy.revocation.clone().or(before.revocation),
        });
    }

    /// Whether the current key has had its time, or a new one was asked for.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let rotation = self.policy.as_ref().and_then(|policy| policy.rotation);
        let aged = |rotation: Duration| self.age(now) >= rotation.mul_f64(self.current.share);
        self.wish.is_some() || rotation.is_some_and(aged)
    }

    /// The new key that can be taken now: a renewal waits until the former key is gone.
    pub(super) fn wants_key(&self, now: Instant) -> Option<Change> {
        match self.wish {
            Some(Change::Revocation) => Some(Change::Revocation),
            _ => (self.former.is_none() && self.is_due(now)).then_some(Change::Renewal),
        }
    }

    /// Takes a new key. A revocation that was asked for is not settled by one that was made for a renewal.
    pub(super) fn renew(&mut self, key: Key, change: Change, now: Instant, random: &mut Random) {
        let next = Own::new(Serial(self.current.serial.0 + 1), key, now, random);
        let before = std::mem::replace(&mut self.current, next);
        self.former = (change == Change::Renewal).then_some(before);
        if change == Change::Revocation || self.wish != Some(Change::Revocation) {
            self.wish = None;
            self.revocation = self.policy.as_ref().and_then(|policy| policy.revocation.clone());
        }
    }

    /// Wipes the former key.
    pub(super) fn retire(&mut self) {
        self.former = None;
    }

    /// Takes the addresses where peers are, one for each.
    pub(super) fn know(&mut self, now: Instant, addresses: impl IntoIterator<Item = IpAddr>) {
        self.guard.know(now, addresses);
    }

    /// Finds out who sent a handshake message and to which of our keys, as far as [`super::guard`] allows the work. A
    /// sender that must prove its address and does not gets a cookie instead, which is written to `reply`; its length
    /// comes with the refusal.
    pub(super) fn identify(
        &mut self,
        now: Instant,
        from: IpAddr,
        datagram: &[u8],
        reply: &mut [u8; MAX_HANDSHAKE],
    ) -> Result<(Serial, Handshake), (Reason, usize)> {
        let proof = proof_in(datagram).ok_or((Reason::NotWireguard, 0))?;
        let look = self.guard.look(now, from, proof);
        if look == Look::Refuse {
            return Err((Reason::HandshakeLimit, 0));
        }
        let mut verify = |own: &Own| {
            let prove = look == Look::Prove;
            own.identity.verify(from, datagram, prove, reply)
        };
        let mut own = &self.current;
        let mut verified = verify(own);
        if let (Err((Reason::BadHandshake, _)), Some(former)) = (&verified, &self.former) {
            own = former;
            verified = verify(own);
        }
        let message = verified?;
        if !message.is_cookie() && !self.guard.work(now, from, look) {
            return Err((Reason::HandshakeLimit, 0));
        }
        let handshake = own.identity.sender(&message).map_err(|reason| (reason, 0))?;
        Ok((own.serial, handshake))
    }
}

impl Own {
    fn new(serial: Serial, key: Key, made: Instant, random: &mut Random) -> Self {
        let part = (random.number() >> 11) as f64 / (1u64 << 53) as f64;
        Self {
            serial,
            identity: Identity::new(key),
            made,
            share: EARLIEST + (1.0 - EARLIEST) * part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::noise::Noise, *};

    fn key(seed: u8) -> Key {
        Key::from_random([seed; 32].into())
    }

    fn ring(seed: u8, now: Instant) -> Keyring {
        Keyring::new(key(seed), 1, now, &mut Random::new(1))
    }

    /// The end of a stranger's tunnel to the current key.
    fn stranger(own: &Keyring) -> (Noise, [u8; 32]) {
        let identity = Identity::new(key(200));
        (Noise::new(&identity, own.keys().current, 0, 3), identity.public())
    }

    fn initiation(key: [u8; 32]) -> Handshake {
        Handshake::Initiation { key, tunnel: 3 }
    }

    fn policy(rotation: u64, renewal: &str, revocation: &str) -> KeyPolicy {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        KeyPolicy {
            rotation: Some(Duration::from_secs(rotation)),
            renewal: some(renewal),
            revocation: some(revocation),
        }
    }

    #[test]
    fn a_strangers_handshake_is_answered_with_less_than_it_sent() {
        let now = Instant::now();
        let mut own = ring(1, now);
        let (mut tunnel, public) = stranger(&own);
        let from = IpAddr::from([198, 51, 100, 7]);
        let (mut datagram, mut reply) = ([0; MAX_HANDSHAKE], [0; MAX_HANDSHAKE]);
        let (mut cookies, mut known) = (0, 0);
        for _ in 0..1000 {
            let length = tunnel.initiate(&mut datagram);
            match own.identify(now, from, &datagram[..length], &mut reply) {
                Ok(who) => {
                    assert_eq!(who, (Serial(0), initiation(public)));
                    known += 1;
                }
                Err((Reason::CookieSent, answer)) => {
                    assert!(answer < length, "{answer} bytes for {length}");
                    cookies += 1;
                }
                Err((reason, answer)) => assert_eq!((reason, answer), (Reason::HandshakeLimit, 0)),
            }
        }
        assert!(known <= 20 && cookies + known <= 1000, "{known} {cookies}");
    }

    #[test]
    fn a_cookie_proves_an_address() {
        let now = Instant::now();
        let mut own = ring(1, now);
        let (mut tunnel, public) = stranger(&own);
        let from = |last| IpAddr::from([198, 51, 100, last]);
        let (mut datagram, mut reply) = ([0; MAX_HANDSHAKE], [0; MAX_HANDSHAKE]);
        // Others have used up what is free.
        let mut sender = 0;
        let cookie = loop {
            sender += 1;
            let length = tunnel.initiate(&mut datagram);
            match own.identify(now, from(sender), &datagram[..length], &mut reply) {
                Err((Reason::CookieSent, cookie)) => break reply[..cookie].to_vec(),
                result => assert!(result.is_ok() && sender < 250, "{result:?}"),
            }
        };
        assert_eq!(tunnel.handshake(now, &cookie, &mut reply), Ok(0));
        let length = tunnel.initiate(&mut datagram);
        let mut identify = |last| own.identify(now, from(last), &datagram[..length], &mut reply);
        assert_eq!(identify(sender), Ok((Serial(0), initiation(public))));
        assert_eq!(
            identify(sender + 1).map_err(|refused| refused.0),
            Err(Reason::CookieSent)
        );
    }

    #[test]
    fn both_keys_are_answered_until_the_former_one_is_retired() {
        let now = Instant::now();
        let mut own = ring(1, now);
        let (mut tunnel, public) = stranger(&own);
        let (mut datagram, mut reply) = ([0; MAX_HANDSHAKE], [0; MAX_HANDSHAKE]);
        let mut identify = |own: &mut Keyring, tunnel: &mut Noise| {
            let length = tunnel.initiate(&mut datagram);
            let from = IpAddr::from([198, 51, 100, 7]);
            own.identify(now, from, &datagram[..length], &mut reply)
        };
        own.renew(key(2), Change::Renewal, now, &mut Random::new(2));
        let (mut next, _) = stranger(&own);
        let from = |serial| Ok((Serial(serial), initiation(public)));
        assert_eq!(identify(&mut own, &mut tunnel), from(0));
        assert_eq!(identify(&mut own, &mut next), from(1));
        own.retire();
        assert_eq!(identify(&mut own, &mut tunnel), Err((Reason::BadHandshake, 0)));
        assert_eq!(identify(&mut own, &mut next), from(1));
    }

    #[test]
    fn a_key_is_due_before_its_time_is_over_and_not_much_sooner() {
        let now = Instant::now();
        for seed in 0..100 {
            let mut own = Keyring::new(key(1), 1, now, &mut Random::new(seed));
            assert!(
                !own.is_due(now + Duration::from_secs(1 << 30)),
                "without a policy"
            );
            own.follow(&policy(100, "", ""));
            assert!(!own.is_due(now + Duration::from_secs(89)));
            assert!(own.is_due(now + Duration::from_secs(100)));
        }
    }

    #[test]
    fn the_first_policy_asks_for_nothing_and_a_changed_one_does() {
        let now = Instant::now();
        let random = &mut Random::new(1);
        let mut own = ring(1, now);
        own.follow(&policy(100, "1", "1"));
        assert!(!own.is_due(now));
        assert_eq!(own.keys().revocation.as_deref(), Some("1"));
        own.follow(&policy(100, "2", "1"));
        assert_eq!(own.wants_key(now), Some(Change::Renewal));
        own.renew(key(2), Change::Renewal, now, random);
        assert!(!own.is_due(now));
        own.follow(&policy(100, "3", "1"));
        assert!(
            own.is_due(now) && own.wants_key(now).is_none(),
            "the former key is still there"
        );
        own.follow(&policy(100, "", ""));
        own.follow(&policy(100, "3", "1"));
        assert_eq!(own.wants_key(now), None, "nothing new");
        own.follow(&policy(100, "3", "2"));
        assert_eq!(
            own.wants_key(now),
            Some(Change::Revocation),
            "it waits for nobody"
        );
        assert_eq!(own.keys().revocation.as_deref(), Some("1"), "not yet");
        own.retire();
        own.renew(key(3), Change::Renewal, now, random);
        assert_eq!(own.keys().revocation.as_deref(), Some("1"), "made before it");
        assert_eq!(own.wants_key(now), Some(Change::Revocation));
        own.renew(key(4), Change::Revocation, now, random);
        let keys = own.keys();
        assert_eq!((keys.former, keys.revocation.as_deref()), (None, Some("2")));
        assert!(!own.is_due(now));
    }
}
