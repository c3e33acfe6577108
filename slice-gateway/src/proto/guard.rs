//! How much work strangers may cause.
//!
//! A handshake message costs three things, each a hundred times the one before: to look at it, to make it prove its
//! address with a cookie, and the Diffie-Hellman of the handshake itself (about 0.2 ms). Each has a budget, and
//! addresses at which a peer is known to be have budgets that strangers cannot use up:
//!
//! ```text
//!   type, length ──► look ──► mac1 ──► calm? ──── yes ──────────────► work ──► handshake
//!    (free)           │                 └── no ─► mac2 ── right ─────► │
//!                     │                            └─ wrong: a cookie  └ not more than so many a second,
//!                     └ not more than so many a second                   nor from one address
//! ```
//!
//! A cookie is 64 bytes for the 92 or 148 of the message: nothing here answers with more than it got. What is over a
//! budget is counted and forgotten before anything is computed. Data is not here at all: it is admitted by its key.
//!
//! Pure: `now` is an argument.

use std::{
    collections::BTreeMap,
    hash::Hasher,
    net::IpAddr,
    time::{Duration, Instant},
};

use siphasher::sip::SipHasher13;

/// Looks a second at messages of strangers, separately for those that bring a cookie and those that do not: 2,000 cost
/// about a hundredth of a core.
const STRANGER_LOOKS: f64 = 2000.0;
/// The same for addresses of peers, which anybody may pretend to be at.
const PEER_LOOKS: f64 = 8000.0;
/// Handshakes a second of strangers that need no cookie: restarted and roamed peers under no attack.
const STRANGER_CALM: f64 = 200.0;
/// Handshakes a second of strangers in all.
const STRANGER_WORK: f64 = 500.0;
/// Of one address of strangers, or one IPv6 /64 (the kernel's WireGuard: ratelimiter.c, PACKETS_PER_SECOND).
const SOURCE_WORK: u8 = 20;
/// Handshakes a second for each peer at an address, without and with a cookie. A peer needs one in a minute.
const PEER_CALM: f64 = 10.0;
const PEER_WORK: f64 = 50.0;
/// Addresses of strangers that are told apart, by hash.
const SOURCES: usize = 4096;

/// What may be done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It need not prove its address.
    Calm,
    /// It must.
    Prove,
    /// Nothing.
    Refuse,
}

/// The budgets of one gateway.
pub(super) struct Guard {
    seed: u64,
    looks: Looks,
    calm: Budget,
    work: Budget,
    /// Work for each source in the current second.
    sources: Box<[u8; SOURCES]>,
    second: Instant,
    peer_looks: Looks,
    peers: BTreeMap<IpAddr, Known>,
}

/// An address where peers are.
struct Known {
    calm: Budget,
    work: Budget,
}

/// Looks at messages without and with a cookie.
struct Looks([Budget; 2]);

impl Guard {
    /// `seed` keeps others from choosing which sources share a count.
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        let looks = |rate| Looks([Budget::new(rate, now), Budget::new(rate, now)]);
        Self {
            seed,
            looks: looks(STRANGER_LOOKS),
            calm: Budget::new(STRANGER_CALM, now),
            work: Budget::new(STRANGER_WORK, now),
            sources: Box::new([0; SOURCES]),
            second: now,
            peer_looks: looks(PEER_LOOKS),
            peers: BTreeMap::new(),
        }
    }

    /// Takes the addresses where peers are, one for each peer there. Those that stay keep what is left of their budget.
    pub(super) fn know(&mut self, now: Instant, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut counts: BTreeMap<IpAddr, f64> = BTreeMap::new();
        for address in addresses {
            *counts.entry(address).or_default() += 1.0;
        }
        self.peers.retain(|address, _| counts.contains_key(address));
        for (address, count) in counts {
            let known = self.peers.entry(address).or_insert_with(|| Known {
                calm: Budget::new(PEER_CALM * count, now),
                work: Budget::new(PEER_WORK * count, now),
            });
            (known.calm.rate, known.work.rate) = (PEER_CALM * count, PEER_WORK * count);
        }
    }

    /// Whether to look at a handshake message, which brings a proof of its address or not.
    pub(super) fn look(&mut self, now: Instant, from: IpAddr, proof: bool) -> Look {
        let (looks, calm) = match self.peers.get_mut(&from) {
            Some(known) => (&mut self.peer_looks, &mut known.calm),
            None => (&mut self.looks, &mut self.calm),
        };
        if !looks.0[usize::from(proof)].take(now) {
            Look::Refuse
        } else if calm.has(now) {
            Look::Calm
        } else {
            Look::Prove
        }
    }

    /// Whether to do the work for a message that knows our key, and has proved its address if it had to.
    pub(super) fn work(&mut self, now: Instant, from: IpAddr, look: Look) -> bool {
        if let Some(known) = self.peers.get_mut(&from) {
            return known.work.take(now) && (look != Look::Calm || known.calm.take(now));
        }
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.sources.fill(0);
        }
        let place = self.place(from);
        let source = &mut self.sources[place];
        if *source >= SOURCE_WORK || !self.work.take(now) {
            return false;
        }
        *source += 1;
        look != Look::Calm || self.calm.take(now)
    }

    fn place(&self, from: IpAddr) -> usize {
        let mut hasher = SipHasher13::new_with_keys(self.seed, 0);
        match from {
            IpAddr::V4(ip) => hasher.write_u32(ip.to_bits()),
            // Whoever has one address of a /64 has all.
            IpAddr::V6(ip) => hasher.write_u64((ip.to_bits() >> 64) as u64),
        }
        (hasher.finish() % SOURCES as u64) as usize
    }
}

/// So many a second, and as many at once.
struct Budget {
    rate: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    const fn new(rate: f64, now: Instant) -> Self {
        Self {
            rate,
            left: rate,
            at: now,
        }
    }

    fn has(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.left = (self.left + passed * self.rate).min(self.rate);
        self.left >= 1.0
    }

    fn take(&mut self, now: Instant) -> bool {
        let has = self.has(now);
        if has {
            self.left -= 1.0;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn stranger(n: u32) -> IpAddr {
        IpAddr::from((0xc633_0000 + n).to_be_bytes())
    }

    fn guard() -> (Guard, Instant) {
        let start = Instant::now();
        let mut guard = Guard::new(7, start);
        guard.know(start, [PEER]);
        (guard, start)
    }

    /// Offers `count` messages a millisecond for a second; how many were looked at calmly, had to prove, did work.
    fn flood(
        guard: &mut Guard,
        start: Instant,
        count: u32,
        proof: bool,
        from: impl Fn(u32) -> IpAddr,
    ) -> [u32; 3] {
        let mut seen = [0; 3];
        for n in 0..1000 * count {
            let now = start + MS * (n / count);
            let look = guard.look(now, from(n), proof);
            match look {
                Look::Calm => seen[0] += 1,
                Look::Prove => seen[1] += 1,
                Look::Refuse => continue,
            }
            if (look == Look::Calm || proof) && guard.work(now, from(n), look) {
                seen[2] += 1;
            }
        }
        seen
    }

    #[test]
    fn strangers_cause_little_work() {
        let (mut guard, start) = guard();
        let [calm, prove, work] = flood(&mut guard, start, 50, false, stranger);
        assert!(calm + prove <= 4000, "{calm} + {prove} looks");
        assert!((200..=400).contains(&work), "{work} handshakes");
        let [_, _, work] = flood(&mut guard, start + MS * 1000, 50, true, stranger);
        assert!(
            work <= 1000,
            "{work} handshakes of strangers that prove their address"
        );
    }

    #[test]
    fn one_stranger_causes_less() {
        let (mut guard, start) = guard();
        let [_, _, work] = flood(&mut guard, start, 50, true, |_| stranger(1));
        assert!(work <= 40, "{work}");
        let v6 = |n: u32| IpAddr::from(std::net::Ipv6Addr::from(u128::from(n) | 0x2001 << 112));
        let [_, _, work] = flood(&mut guard, start + MS * 2000, 50, true, v6);
        assert!(work <= 40, "a /64 is one: {work}");
    }

    #[test]
    fn peers_are_heard_through_a_flood_of_strangers() {
        let (mut guard, start) = guard();
        flood(&mut guard, start, 50, false, stranger);
        let now = start + MS * 1000;
        assert_eq!(guard.look(now, PEER, false), Look::Calm);
        assert!(guard.work(now, PEER, Look::Calm));
        assert_eq!(guard.look(now, stranger(1), false), Look::Prove);
    }

    #[test]
    fn a_flood_from_a_peers_address_needs_cookies() {
        let (mut guard, start) = guard();
        let [calm, prove, work] = flood(&mut guard, start, 50, false, |_| PEER);
        assert!(calm <= 20 && work <= 20, "{calm} {work}");
        assert!((7000..=16_000).contains(&prove), "{prove}");
        // With a cookie it is looked at, whoever floods without.
        let now = start + MS * 1000;
        let look = guard.look(now, PEER, true);
        assert!(look != Look::Refuse && guard.work(now, PEER, look));
    }

    #[test]
    fn calm_comes_back() {
        let (mut guard, start) = guard();
        flood(&mut guard, start, 50, false, stranger);
        assert_eq!(guard.look(start + MS * 2000, stranger(1), false), Look::Calm);
    }
}
