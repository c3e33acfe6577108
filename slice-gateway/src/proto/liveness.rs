//! Is the far end there, and does it hear us?

use std::time::{Duration, Instant};

use super::probe::Word;

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
    said: Word,
    /// The peer wants no frames.
    away: bool,
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
            said: Word {
                hears: true,
                away: false,
            },
            away: false,
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

    /// The peer probed us, and said this.
    pub fn on_probe(&mut self, word: Option<Word>) {
        if let Some(Word { hears, away }) = word {
            self.kind = Kind::Speaks { hears };
            self.away = away;
        }
    }

    /// Whether the peer wants its frames to come another way.
    pub fn is_away(&self) -> bool {
        self.away
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

    /// Whether a probe is to be sent: its sequence number, and what it says. `away` says that we want no frames.
    ///
    /// A change of mind is told at once.
    pub fn poll_probe(&mut self, now: Instant, away: bool) -> Option<(u16, Word)> {
        let word = Word {
            hears: self.hears(now),
            away,
        };
        let due = self.next_probe.is_none_or(|at| at <= now);
        if !due && word == self.said {
            return None;
        }
        let interval = if self.unanswered < PATIENCE {
            PROBE_INTERVAL
        } else {
            RARE_PROBE_INTERVAL
        };
        self.next_probe = Some(now + interval);
        self.said = word;
        self.unanswered = self.unanswered.saturating_add(1);
        self.sequence = self.sequence.wrapping_add(1);
        self.sent[usize::from(self.sequence) % IN_FLIGHT] = Some(now);
        Some((self.sequence, word))
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
    const HEARS: Option<Word> = Some(Word {
        hears: true,
        away: false,
    });

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
        let (sequence, _) = liveness.poll_probe(start, false).unwrap();
        liveness.on_echo(start + MS * 8, sequence);
        liveness.on_heard(start + MS * 900);
        assert_eq!(liveness.rtt(), Some(MS * 8));
        assert!(liveness.is_up(start + MS * 1000));
        assert!(!liveness.is_up(start + MS * 1100));
    }

    #[test]
    fn our_own_kind_is_missed_soon() {
        let (mut liveness, start) = started();
        liveness.on_probe(HEARS);
        assert!(liveness.is_up(start + MS * 300));
        assert!(!liveness.is_up(start + MS * 320));
    }

    #[test]
    fn a_path_that_works_one_way_is_down() {
        let (mut liveness, start) = started();
        liveness.on_probe(Some(Word {
            hears: false,
            away: false,
        }));
        liveness.on_heard(start);
        assert!(!liveness.is_up(start));
        liveness.on_probe(HEARS);
        assert!(liveness.is_up(start));
    }

    #[test]
    fn silence_is_told_at_once() {
        let (mut liveness, start) = started();
        let mut said = |ms| {
            let probe = liveness.poll_probe(start + MS * ms, false);
            probe.map(|(_, word)| word.hears)
        };
        assert_eq!(said(0), Some(true));
        assert_eq!(said(50), None);
        assert_eq!(said(300), Some(true));
        assert_eq!(said(320), Some(false));
        assert_eq!(said(370), None);
    }

    #[test]
    fn a_wish_for_no_frames_is_told_at_once_and_taken_back() {
        let (mut liveness, start) = started();
        let mut said = |ms, away| {
            let probe = liveness.poll_probe(start + MS * ms, away);
            probe.map(|(_, word)| word.away)
        };
        assert_eq!(said(0, false), Some(false));
        assert_eq!(said(10, true), Some(true));
        assert_eq!(said(20, true), None);
        assert_eq!(said(30, false), Some(false));
        let away = Word {
            hears: true,
            away: true,
        };
        liveness.on_probe(Some(away));
        assert!(liveness.is_away());
        assert!(liveness.is_up(start), "it carries what it gets");
        liveness.on_probe(HEARS);
        assert!(!liveness.is_away());
    }

    #[test]
    fn who_never_answers_is_asked_rarely() {
        let (mut liveness, start) = started();
        let probes = |liveness: &mut Liveness, from: u32, to: u32| {
            (from..to)
                .step_by(50)
                .filter(|ms| liveness.poll_probe(start + MS * *ms, false).is_some())
                .count()
        };
        assert!(probes(&mut liveness, 0, 2000) >= 20);
        probes(&mut liveness, 2000, 5000);
        assert_eq!(probes(&mut liveness, 5000, 10_000), 5);
    }

    #[test]
    fn an_answer_counts_once() {
        let (mut liveness, start) = started();
        let (sequence, _) = liveness.poll_probe(start, false).unwrap();
        liveness.on_echo(start + MS, sequence);
        liveness.on_echo(start + MS * 500, sequence);
        liveness.on_echo(start + MS * 500, sequence + 1);
        assert_eq!((liveness.rtt(), liveness.echoes()), (Some(MS), 1));
    }
}
