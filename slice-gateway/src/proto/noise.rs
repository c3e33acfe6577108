//! One WireGuard tunnel. The only module that knows boringtun.
//!
//! boringtun does the cryptography, the sessions and the replay window. Time is ours, for three reasons: its retries
//! and rekeys have no jitter, it rekeys without need after silence (cloudflare/boringtun#363), and a simulation needs
//! a clock of its own. Its own timers are still run, because they are what wipes old keys; with a handshake at least
//! every [`REKEY_AFTER`] they never start one.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{
        Packet, Tunn, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon,
        rate_limiter::RateLimiter,
    },
    x25519::{PublicKey, StaticSecret},
};
use zeroize::Zeroizing;

use super::reason::Reason;

/// Bytes that encryption adds: type, receiver, counter, tag.
pub(super) const OVERHEAD: usize = 32;
/// Bytes of the longest message that is not data.
pub(super) const MAX_HANDSHAKE: usize = 148;
/// Age at which the initiator of a session starts the next one, before the 120 s at which the protocol wants it
/// (REKEY_AFTER_TIME), so that boringtun never has a reason to.
pub(super) const REKEY_AFTER: Duration = Duration::from_secs(110);
/// Age at which a session is no longer used: before boringtun, whose clock is coarser, drops it at 180 s
/// (REJECT_AFTER_TIME).
const REJECT_AFTER: Duration = Duration::from_secs(178);

/// How often the timers are run: a session's age is looked at, and old keys are wiped.
pub(super) const TIMERS: Duration = Duration::from_millis(250);

const INITIATION: u32 = 1;
const RESPONSE: u32 = 2;
const COOKIE: u32 = 3;
const DATA: u32 = 4;

/// A Curve25519 key pair. It is made in the process, never written anywhere, and wiped when dropped.
#[derive(Clone)]
pub struct Key {
    secret: StaticSecret,
    public: PublicKey,
}

impl Key {
    /// The key pair whose secret is made of these random bytes.
    #[expect(clippy::needless_pass_by_value, reason = "taken so that the bytes are wiped")]
    pub fn from_random(bytes: Zeroizing<[u8; 32]>) -> Self {
        let secret = StaticSecret::from(*bytes);
        Self {
            public: PublicKey::from(&secret),
            secret,
        }
    }

    pub fn public(&self) -> [u8; 32] {
        self.public.to_bytes()
    }
}

/// A key of ours with what reads the handshakes that are meant for it.
pub(super) struct Identity {
    key: Key,
    /// Wants a cookie of everybody.
    strict: RateLimiter,
    /// Wants one of nobody; the tunnels check every message with it once more.
    calm: Arc<RateLimiter>,
}

/// What a handshake message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// From the peer with this public key, for a tunnel that this lane of it begins.
    Initiation { key: [u8; 32], tunnel: u8 },
    /// For the tunnel that began it; see [`slot_of`].
    Answer { receiver: u32 },
}

/// A handshake message that is meant for one of our keys.
pub(super) struct Message<'a>(Packet<'a>);

impl Message<'_> {
    /// Answers a handshake of ours without more work: it asks for a proof of our address.
    pub(super) fn is_cookie(&self) -> bool {
        matches!(self.0, Packet::PacketCookieReply(_))
    }
}

impl Identity {
    pub(super) fn new(key: Key) -> Self {
        Self {
            strict: RateLimiter::new(&key.public, 0),
            calm: Arc::new(RateLimiter::new(&key.public, u64::MAX)),
            key,
        }
    }

    pub(super) fn public(&self) -> [u8; 32] {
        self.key.public()
    }

    /// Reads a handshake message if it is meant for this key. With `prove` its sender must prove its address, and gets
    /// a cookie to do so with: that is written to `reply`, and its length comes with the refusal.
    pub(super) fn verify<'a>(
        &self,
        from: IpAddr,
        datagram: &'a [u8],
        prove: bool,
        reply: &mut [u8; MAX_HANDSHAKE],
    ) -> Result<Message<'a>, (Reason, usize)> {
        let limiter = if prove { &self.strict } else { &*self.calm };
        match limiter.verify_packet(Some(from), datagram, reply) {
            Ok(packet) => Ok(Message(packet)),
            Err(TunnResult::WriteToNetwork(cookie)) => Err((Reason::CookieSent, cookie.len())),
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => Err((Reason::BadHandshake, 0)),
            Err(_) => Err((Reason::NotWireguard, 0)),
        }
    }

    /// Who sent a handshake message. This is the work that a stranger can cause.
    pub(super) fn sender(&self, message: &Message<'_>) -> Result<Handshake, Reason> {
        match &message.0 {
            Packet::HandshakeInit(initiation) => {
                parse_handshake_anon(&self.key.secret, &self.key.public, initiation)
                    .map(|half| Handshake::Initiation {
                        key: half.peer_static_public,
                        tunnel: lane_of(half.peer_index),
                    })
                    .map_err(|_| Reason::BadHandshake)
            }
            Packet::HandshakeResponse(response) => Ok(Handshake::Answer {
                receiver: response.receiver_idx,
            }),
            Packet::PacketCookieReply(cookie) => Ok(Handshake::Answer {
                receiver: cookie.receiver_idx,
            }),
            Packet::PacketData(_) => Err(Reason::NotWireguard),
        }
    }
}

/// What a message that is no data is by its length and type, and whether it carries a proof of its sender's address.
pub(super) fn proof_in(datagram: &[u8]) -> Option<bool> {
    match (
        datagram.len(),
        datagram.first_chunk().map(|kind| u32::from_le_bytes(*kind)),
    ) {
        (148, Some(INITIATION)) | (92, Some(RESPONSE)) => Some(datagram.last_chunk() != Some(&[0; 16])),
        (64, Some(COOKIE)) => Some(false),
        _ => None,
    }
}

/// The receiver of a data message; `None` where it is something else.
pub(super) fn receiver_of_data(datagram: &[u8]) -> Option<u32> {
    let data = datagram.len() >= OVERHEAD && word(datagram, 0) == DATA;
    data.then(|| word(datagram, 4))
}

/// Which tunnel a session number of ours belongs to. boringtun keeps its eight sessions apart by the low byte; four
/// bits are the lane's.
pub(super) const fn slot_of(session: u32) -> usize {
    (session >> 12) as usize
}

/// The lane that began the tunnel of a session number, ours or one of a peer of our kind.
const fn lane_of(session: u32) -> u8 {
    (session >> 8 & 0xf) as u8
}

fn word(datagram: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([datagram[at], datagram[at + 1], datagram[at + 2], datagram[at + 3]])
}

pub(super) struct Noise {
    tunn: Tunn,
    session: Option<Session>,
    /// A session that the peer began and has not used yet, so that it must not be used from here.
    offered: Option<Session>,
    wants_handshake: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Our index, which the peer puts into its messages.
    receiver: u32,
    pub(super) established: Instant,
    pub(super) initiator: bool,
}

/// What a data message held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// Bytes of the packet, 0 for a keepalive.
    pub(super) length: usize,
    /// It was the first message in a session that the peer began: the handshake is complete.
    pub(super) confirmed: bool,
    /// It came by the session that is in use from here.
    pub(super) current: bool,
}

impl Noise {
    /// The end of a tunnel that this `lane` of ours or the peer's begins.
    ///
    /// # Panics
    /// Where `slot` is 2²⁰ or more.
    pub(super) fn new(identity: &Identity, peer: [u8; 32], slot: usize, lane: u8) -> Self {
        let slot = u32::try_from(slot)
            .ok()
            .filter(|slot| *slot < 1 << 20)
            .expect("fewer than 2²⁰ tunnels");
        let limiter = Some(identity.calm.clone());
        let tunn = Tunn::new(
            identity.key.secret.clone(),
            PublicKey::from(peer),
            None,
            None,
            slot << 4 | u32::from(lane),
            limiter,
        );
        Self {
            tunn,
            session: None,
            offered: None,
            wants_handshake: false,
        }
    }

    /// The session in use.
    pub(super) fn session(&self) -> Option<Session> {
        self.session
    }

    /// A handshake is pending that nobody will answer. Unless another one completes within 90 s, boringtun gives up
    /// and drops the sessions (REKEY_ATTEMPT_TIME).
    pub(super) fn wants_handshake(&self) -> bool {
        self.wants_handshake
    }

    /// Encrypts an IPv4 packet, or a keepalive where it is empty, into `out`, which is [`OVERHEAD`] bytes longer.
    /// `false` where there is no session.
    ///
    /// # Panics
    /// Where `out` has another length.
    pub(super) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> bool {
        assert_eq!(out.len(), packet.len() + OVERHEAD);
        if self.session.is_none() {
            return false;
        }
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(sealed) if word(sealed, 0) == DATA => true,
            // boringtun has dropped the session behind our back.
            _ => {
                self.session = None;
                false
            }
        }
    }

    /// Decrypts a data message into `out`, which is at least as long.
    ///
    /// # Panics
    /// Where `out` is shorter.
    pub(super) fn open(&mut self, datagram: &[u8], out: &mut [u8]) -> Result<Opened, Reason> {
        let length = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) => packet.len(),
            TunnResult::Done => 0,
            TunnResult::WriteToTunnelV6(..) | TunnResult::WriteToNetwork(_) => return Err(Reason::NotVxlan),
            TunnResult::Err(error) => return Err(reason(&error)),
        };
        // The first message in a session that the peer began confirms it.
        let receiver = word(datagram, 4);
        let offered = self.offered.take_if(|offered| offered.receiver == receiver);
        let confirmed = offered.is_some();
        if confirmed {
            self.session = offered;
            self.wants_handshake = false;
        }
        let current = self.session.is_some_and(|session| session.receiver == receiver);
        Ok(Opened {
            length,
            confirmed,
            current,
        })
    }

    /// Takes a handshake message; an answer of the returned length, if any, is written to `reply`.
    pub(super) fn handshake(
        &mut self,
        now: Instant,
        datagram: &[u8],
        reply: &mut [u8; MAX_HANDSHAKE],
    ) -> Result<usize, Reason> {
        let length = match self.tunn.decapsulate(None, datagram, reply) {
            TunnResult::WriteToNetwork(answer) => answer.len(),
            TunnResult::Done => 0,
            TunnResult::Err(error) => return Err(reason(&error)),
            TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                return Err(Reason::NotWireguard);
            }
        };
        match word(datagram, 0) {
            INITIATION => {
                let receiver = word(reply, 4);
                self.offered = Some(Session {
                    receiver,
                    established: now,
                    initiator: false,
                });
            }
            RESPONSE => {
                let receiver = word(datagram, 8);
                self.session = Some(Session {
                    receiver,
                    established: now,
                    initiator: true,
                });
                self.wants_handshake = false;
            }
            _ => {}
        }
        Ok(length)
    }

    /// Writes what boringtun still wants to send after a handshake message; 0 when that was all.
    pub(super) fn flush(&mut self, out: &mut [u8]) -> usize {
        match self.tunn.decapsulate(None, &[], out) {
            TunnResult::WriteToNetwork(message) => message.len(),
            _ => 0,
        }
    }

    /// Writes a handshake initiation and returns its length.
    pub(super) fn initiate(&mut self, out: &mut [u8; MAX_HANDSHAKE]) -> usize {
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => message.len(),
            _ => 0,
        }
    }

    /// Runs the timers; to be called every [`TIMERS`]. A keepalive of the returned length, if any, is written
    /// to `out`.
    ///
    /// A handshake that boringtun wants to begin, or to try again after exactly five seconds, is not sent: that would
    /// be without jitter. It is a wish for one of ours; see [`Self::wants_handshake`].
    pub(super) fn tick(&mut self, now: Instant, out: &mut [u8; MAX_HANDSHAKE]) -> usize {
        let old = |session: &mut Session| now.saturating_duration_since(session.established) >= REJECT_AFTER;
        self.session.take_if(old);
        self.offered.take_if(old);
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) if word(message, 0) == INITIATION => {
                self.wants_handshake = true;
                0
            }
            TunnResult::WriteToNetwork(message) => message.len(),
            TunnResult::Err(_) => {
                (self.session, self.offered) = (None, None);
                0
            }
            _ => 0,
        }
    }
}

fn reason(error: &WireGuardError) -> Reason {
    match error {
        WireGuardError::InvalidAeadTag => Reason::NotAuthentic,
        WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter
        | WireGuardError::WrongTai64nTimestamp => Reason::Replayed,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => Reason::UnknownSession,
        // What is inside is not IP.
        WireGuardError::InvalidPacket => Reason::NotVxlan,
        _ => Reason::BadHandshake,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(seed: u8) -> Identity {
        Identity::new(Key::from_random([seed; 32].into()))
    }

    /// boringtun reads the machine's clock, so this one waits for real.
    #[test]
    fn an_unanswered_handshake_is_tried_again_with_jitter_only() {
        let start = Instant::now();
        let mut tunnel = Noise::new(&identity(1), identity(2).public(), 0, 0);
        let mut out = [0; MAX_HANDSHAKE];
        tunnel.tick(start, &mut out);
        assert_eq!(tunnel.initiate(&mut out), 148);
        while !tunnel.wants_handshake() {
            assert_eq!(
                tunnel.tick(Instant::now(), &mut out),
                0,
                "boringtun's own is not sent"
            );
            assert!(
                start.elapsed() < Duration::from_secs(8),
                "boringtun wants to try again after 5 s"
            );
            std::thread::sleep(super::super::TICK);
        }
        assert!(start.elapsed() >= Duration::from_secs(5));
    }
}
