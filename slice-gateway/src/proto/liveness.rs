//! Is the far end there, and does it hear us?

use std::time::{Duration, Instant};

/// Between two probes of a tunnel.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Silence after which a peer of our own kind, which probes us every [`PROBE_INTERVAL`], is gone: three of its
/// probes are missing. Traffic must have moved 500 ms after a death, and [`super::TICK`] comes on top.
pub const DEAD_AFTER: Duration = Duration::from_millis(310);
/// The same for a stock peer that answers our probes.
const ECHO_DEAD_AFTER: Duration = Duration::from_millis(1000);
/// The same for a stock peer that answers no probes. A WireGuard peer that receives data answers with a keepalive
/// within 10 s and rekeys within 15 s (WireGuard paper §6.5: KEEPALIVE_TIMEOUT, REKEY_TIMEOUT).
const SILENT_DEAD_AFTER: Duration = Duration::from_secs(25);
/// Probes without any answer after which they become rare.
const PATIENCE: u32 = 30;
/// Between two probes of a peer that answers none.
const RARE_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Probes whose answer is still recognised.
const IN_FLIGHT: usize = 32;

/// What a tunnel knows about its far end.
#[derive(Clone, Debug)]
pub struct Liveness {
    kind: Kind,
    /// When anything authentic arrived.
    heard: Option<Instant>,
    sent: [Option<Instant>; IN_FLIGHT],
    sequence: u16,
    next_probe: Option<Instant>,
    unanswered: u32,
    /// What the last probe said.
    said_hears: bool,
    rtt: Option<Duration>,
    echoes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Has shown nothing but WireGuard.
    Silent,
    /// Answers echo requests.
    Echoes { last: Instant },
    /// Probes us itself and says whether it hears us.
    Speaks { hears: bool },
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            kind: Kind::Silent,
            heard: None,
            sent: [None; IN_FLIGHT],
            sequence: 0,
            next_probe: None,
            unanswered: 0,
            said_hears: true,
            rtt: None,
            echoes: 0,
        }
    }
}

impl Liveness {
    /// A handshake was completed, so packets have just gone both ways.
    pub fn on_session(&mut self, now: Instant) {
        self.on_heard(now);
        match &mut self.kind {
            Kind::Silent => {}
            Kind::Echoes { last } => *last = now,
            Kind::Speaks { hears } => *hears = true,
        }
    }

    /// Something authentic arrived.
    pub fn on_heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// The peer probed us; `hears` is what it said.
    pub fn on_probe(&mut self, hears: Option<bool>) {
        if let Some(hears) = hears {
            self.kind = Kind::Speaks { hears };
        }
    }

    /// Our own probe came back.
    pub fn on_echo(&mut self, now: Instant, sequence: u16) {
        let Some(sent) = self.sent[usize::from(sequence) % IN_FLIGHT].take() else {
            return;
        };
        let rtt = now.saturating_duration_since(sent);
        // RFC 6298 §2: a gain of one eighth.
        self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
        self.unanswered = 0;
        self.echoes += 1;
        match &mut self.kind {
            Kind::Silent => self.kind = Kind::Echoes { last: now },
            Kind::Echoes { last } => *last = now,
            Kind::Speaks { .. } => {}
        }
    }

    /// Whether traffic may be entrusted to the tunnel.
    pub fn is_up(&self, now: Instant) -> bool {
        let since = |instant: Instant| now.saturating_duration_since(instant);
        let Some(heard) = self.heard.map(since) else {
            return false;
        };
        match self.kind {
            Kind::Silent => heard < SILENT_DEAD_AFTER,
            Kind::Echoes { last } => since(last) < ECHO_DEAD_AFTER,
            Kind::Speaks { hears } => hears && heard < DEAD_AFTER,
        }
    }

    /// Whether we hear the peer, which is what the probes tell it.
    fn hears(&self, now: Instant) -> bool {
        self.heard
            .is_some_and(|heard| now.saturating_duration_since(heard) < DEAD_AFTER)
    }

    /// Whether a probe is to be sent: its sequence number, and whether it says that we hear the peer.
    ///
    /// A change of mind is told at once.
    pub fn poll_probe(&mut self, now: Instant) -> Option<(u16, bool)> {
        let hears = self.hears(now);
        let due = self.next_probe.is_none_or(|at| at <= now);
        if !due && hears == self.said_hears {
            return None;
        }
        let interval = if self.unanswered < PATIENCE {
            PROBE_INTERVAL
        } else {
            RARE_PROBE_INTERVAL
        };
        self.next_probe = Some(now + interval);
        self.said_hears = hears;
        self.unanswered = self.unanswered.saturating_add(1);
        self.sequence = self.sequence.wrapping_add(1);
        self.sent[usize::from(self.sequence) % IN_FLIGHT] = Some(now);
        Some((self.sequence, hears))
    }

    /// Smoothed round-trip time of the probes.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Probes that came back.
    pub fn echoes(&self) -> u64 {
        self.echoes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn started() -> (Liveness, Instant) {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        assert!(!liveness.is_up(start));
        liveness.on_session(start);
        (liveness, start)
    }

    #[test]
    fn a_stock_peer_without_icmp_lives_by_its_keepalives() {
        let (liveness, start) = started();
        assert!(liveness.is_up(start + MS * 24_000));
        assert!(!liveness.is_up(start + MS * 26_000));
    }

    #[test]
    fn a_stock_peer_that_answers_lives_by_its_answers() {
        let (mut liveness, start) = started();
        let (sequence, _) = liveness.poll_probe(start).unwrap();
        liveness.on_echo(start + MS * 8, sequence);
        liveness.on_heard(start + MS * 900);
        assert_eq!(liveness.rtt(), Some(MS * 8));
        assert!(liveness.is_up(start + MS * 1000));
        assert!(!liveness.is_up(start + MS * 1100));
    }

    #[test]
    fn our_own_kind_is_missed_soon() {
        let (mut liveness, start) = started();
        liveness.on_probe(Some(true));
        assert!(liveness.is_up(start + MS * 300));
        assert!(!liveness.is_up(start + MS * 320));
    }

    #[test]
    fn a_path_that_works_one_way_is_down() {
        let (mut liveness, start) = started();
        liveness.on_probe(Some(false));
        liveness.on_heard(start);
        assert!(!liveness.is_up(start));
        liveness.on_probe(Some(true));
        assert!(liveness.is_up(start));
    }

    #[test]
    fn silence_is_told_at_once() {
        let (mut liveness, start) = started();
        assert_eq!(liveness.poll_probe(start).map(|(_, hears)| hears), Some(true));
        assert_eq!(liveness.poll_probe(start + MS * 50), None);
        assert_eq!(
            liveness.poll_probe(start + MS * 300).map(|(_, hears)| hears),
            Some(true)
        );
        assert_eq!(
            liveness.poll_probe(start + MS * 320).map(|(_, hears)| hears),
            Some(false)
        );
        assert_eq!(liveness.poll_probe(start + MS * 370), None);
    }

    #[test]
    fn who_never_answers_is_asked_rarely() {
        let (mut liveness, start) = started();
        let probes = |liveness: &mut Liveness, from: u32, to: u32| {
            (from..to)
                .step_by(50)
                .filter(|ms| liveness.poll_probe(start + MS * *ms).is_some())
                .count()
        };
        assert!(probes(&mut liveness, 0, 2000) >= 20);
        probes(&mut liveness, 2000, 5000);
        assert_eq!(probes(&mut liveness, 5000, 10_000), 5);
    }

    #[test]
    fn an_answer_counts_once() {
        let (mut liveness, start) = started();
        let (sequence, _) = liveness.poll_probe(start).unwrap();
        liveness.on_echo(start + MS, sequence);
        liveness.on_echo(start + MS * 500, sequence);
        liveness.on_echo(start + MS * 500, sequence + 1);
        assert_eq!((liveness.rtt(), liveness.echoes()), (Some(MS), 1));
    }
}
