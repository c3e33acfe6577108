//! The tunnel between one of our keys and one of a peer's, and when it shakes hands.

use std::time::{Duration, Instant};

use super::{
    Endpoint, Output, endpoint,
    keyring::Serial,
    noise::{Identity, MAX_HANDSHAKE, Noise, REKEY_AFTER},
    random::Random,
    reason::Reason,
};

/// Between two attempts at a handshake: doubled from the first to the last (REKEY_TIMEOUT of the WireGuard paper).
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Random extra on every attempt (WireGuard paper §6.4), so that peers that lost each other together do not try
/// together.
const JITTER: Duration = Duration::from_millis(333);
/// Before the first attempt to a new peer: a configuration with many peers does not start with a burst.
const FIRST_DIAL: Duration = Duration::from_millis(250);
/// How much later than the initiator the responder of a session replaces it, should the initiator not.
const RESPONDER_PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Tunnel {
    pub(super) own: Serial,
    pub(super) key: [u8; 32],
    /// Part of the session numbers that the peer uses.
    pub(super) slot: usize,
    pub(super) noise: Noise,
    pub(super) dial: Option<Dial>,
    /// When data last came through.
    pub(super) received: Option<Instant>,
}

/// A handshake that is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dial {
    at: Instant,
    attempt: u32,
}

impl Tunnel {
    /// A tunnel whose first handshake is due within a moment.
    pub(super) fn new(
        (own, identity): (Serial, &Identity),
        key: [u8; 32],
        (slot, lane): (usize, u8),
        now: Instant,
        random: &mut Random,
    ) -> Self {
        Self {
            own,
            key,
            slot,
            noise: Noise::new(identity, key, slot, lane),
            dial: Some(Dial {
                at: now + random.below(FIRST_DIAL),
                attempt: 0,
            }),
            received: None,
        }
    }

    pub(super) fn has_session(&self) -> bool {
        self.noise.session().is_some()
    }

    /// Takes a handshake message, and answers it. Says whether that completes a handshake.
    pub(super) fn handshake(
        &mut self,
        now: Instant,
        from: Endpoint,
        datagram: &[u8],
        out: &mut impl Output,
    ) -> Result<bool, Reason> {
        let mut reply = [0; MAX_HANDSHAKE];
        let before = self.noise.session();
        let length = self.noise.handshake(now, datagram, &mut reply)?;
        endpoint::write(out, from, &reply[..length]);
        loop {
            let length = self.noise.flush(&mut reply);
            if length == 0 {
                break;
            }
            endpoint::write(out, from, &reply[..length]);
        }
        let complete = self.noise.session() != before;
        if complete {
            self.dial = None;
        }
        Ok(complete)
    }

    /// Starts a handshake where one is wanted and due, at one of these places. `up` says that the path works.
    pub(super) fn dial(
        &mut self,
        now: Instant,
        up: bool,
        mut candidates: impl Iterator<Item = Endpoint> + Clone,
        random: &mut Random,
        out: &mut impl Output,
    ) {
        let fresh = self.noise.session().is_some_and(|session| {
            let patience = if session.initiator {
                Duration::ZERO
            } else {
                RESPONDER_PATIENCE
            };
            now.saturating_duration_since(session.established) < REKEY_AFTER + patience
        });
        if up && fresh && !self.noise.wants_handshake() {
            self.dial = None;
            return;
        }
        let dial = self.dial.get_or_insert_with(|| Dial {
            at: now + random.below(JITTER),
            attempt: 0,
        });
        if dial.at > now {
            return;
        }
        let retry = FIRST_RETRY
            .saturating_mul(1 << dial.attempt.min(8))
            .min(LAST_RETRY);
        let attempt = dial.attempt as usize;
        *dial = Dial {
            at: now + retry + random.below(JITTER),
            attempt: dial.attempt.saturating_add(1),
        };
        let count = candidates.clone().count().max(1);
        let Some(to) = candidates.nth(attempt % count) else {
            return;
        };
        let mut message = [0; MAX_HANDSHAKE];
        let length = self.noise.initiate(&mut message);
        endpoint::write(out, to, &message[..length]);
    }
}
