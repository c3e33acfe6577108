//! Is the far end there, and does it hear us?

use std::time::{Duration, Instant};

use super::probe::Word;
use crate::sizes::Sizes;

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
/// The same for a peer of our own kind whose first probe has not come yet: it takes a round trip and a tick.
const FIRST_WORD: Duration = Duration::from_millis(1000);
/// Probes without any answer after which they become rare.
const PATIENCE: u32 = 30;
/// Between two probes of a peer that answers none.
const RARE_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Probes whose answer is still recognised; one that has none when its place is wanted again is lost.
const IN_FLIGHT: usize = 32;

/// Round trips, in steps of [`RTT_STEP`]: up to 1.6 s.
pub type Rtts = Sizes<15>;
/// What [`Rtts`] counts in.
pub const RTT_STEP: Duration = Duration::from_micros(100);
/// One more than how many of [`LOSS_WINDOW`] probes were lost.
pub type Losses = Sizes<6>;
/// Probes in a row that a loss is told of.
pub const LOSS_WINDOW: u64 = IN_FLIGHT as u64;

/// What a tunnel knows about its far end.
#[derive(Clone, Debug)]
pub struct Liveness {
    /// It need not be of our own kind.
    stock: bool,
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
    probes: u64,
    echoes: u64,
    rtts: Rtts,
    losses: Losses,
    /// Probes since the last window, and how many of those before them were lost.
    window: (usize, usize),
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
            stock: false,
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
            probes: 0,
            echoes: 0,
            rtts: Rtts::default(),
            losses: Losses::default(),
            window: (0, 0),
        }
    }
}

impl Liveness {
    /// Says whether the peer may be of another kind than ours.
    pub fn set_stock(&mut self, stock: bool) {
        self.stock = stock;
    }

    /// Whether the peer may be of another kind than ours.
    pub fn is_stock(&self) -> bool {
        self.stock
    }

    /// Another process is there: forgets everything but the counts.
    pub fn restart(&mut self) {
        *self = Self {
            stock: self.stock,
            probes: self.probes,
            echoes: self.echoes,
            rtts: self.rtts,
            losses: self.losses,
            ..Self::default()
        };
    }

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
        let steps = rtt.as_nanos().div_ceil(RTT_STEP.as_nanos());
        self.rtts.add(usize::try_from(steps).unwrap_or(usize::MAX));
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
            Kind::Silent if self.stock => heard < SILENT_DEAD_AFTER,
            Kind::Silent => heard < FIRST_WORD,
            Kind::Echoes { last } => since(last) < ECHO_DEAD_AFTER,
            Kind::Speaks { hears } => hears && heard < DEAD_AFTER,
        }
    }

    /// Whether we hear the peer, which is what the probes tell it.
    fn hears(&self, now: Instant) -> bool {
        self.heard
            .is_some_and(|heard| now.saturating_duration_since(heard) < DEAD_AFTER)
    }

    /// What a probe tells the peer.
    pub fn word(&self, now: Instant, away: bool) -> Word {
        Word {
            hears: self.hears(now),
            away,
        }
    }

    /// When something authentic last arrived.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Whether a probe is to be sent: its sequence number, and what it says. `away` says that we want no frames.
    ///
    /// A change of mind is told at once.
    pub fn poll_probe(&mut self, now: Instant, away: bool) -> Option<(u16, Word)> {
        let word = self.word(now, away);
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
        self.probes += 1;
        let lost = self.sent[usize::from(self.sequence) % IN_FLIGHT]
            .replace(now)
            .is_some();
        self.judge(lost);
        Some((self.sequence, word))
    }

    /// Takes the verdict on a probe of a window ago. Who has never answered one is not judged.
    fn judge(&mut self, lost: bool) {
        if self.kind == Kind::Silent || self.probes <= LOSS_WINDOW {
            return;
        }
        self.window = (self.window.0 + 1, self.window.1 + usize::from(lost));
        if self.window.0 == IN_FLIGHT {
            self.losses.add(self.window.1 + 1);
            self.window = (0, 0);
        }
    }

    /// Smoothed round-trip time of the probes.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Probes that were sent.
    pub fn probes(&self) -> u64 {
        self.probes
    }

    /// Probes that came back.
    pub fn echoes(&self) -> u64 {
        self.echoes
    }

    pub fn rtts(&self) -> Rtts {
        self.rtts
    }

    pub fn losses(&self) -> Losses {
        self.losses
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
        let (mut liveness, start) = started();
        liveness.set_stock(true);
        assert!(liveness.is_up(start + MS * 24_000));
        assert!(!liveness.is_up(start + MS * 26_000));
    }

    #[test]
    fn our_own_kind_does_not_stay_silent() {
        let (liveness, start) = started();
        assert!(liveness.is_up(start + MS * 900));
        assert!(!liveness.is_up(start + MS * 1100));
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
    fn round_trips_and_losses_are_counted() {
        let (mut liveness, start) = started();
        liveness.on_probe(HEARS);
        // 32 that are answered, 32 of which every fourth is lost, and 32 more until that is known.
        for n in 0..96 {
            let sent = start + MS * 100 * n;
            let (sequence, _) = liveness.poll_probe(sent, false).unwrap();
            if n < 32 || n % 4 != 0 {
                liveness.on_echo(sent + MS * 3, sequence);
            }
            liveness.on_heard(sent + MS * 3);
        }
        assert_eq!((liveness.probes(), liveness.echoes()), (96, 80));
        let below = |bound| liveness.rtts().cumulative().find(|(b, _)| *b == bound).unwrap().1;
        assert_eq!((below(16), below(32)), (0, 80), "3 ms are 30 steps");
        let losses: Vec<_> = liveness.losses().cumulative().collect();
        assert_eq!(
            losses,
            [(1, 1), (2, 1), (4, 1), (8, 1), (16, 2), (32, 2)],
            "none, and 8 of 32"
        );
        liveness.restart();
        assert_eq!((liveness.probes(), liveness.rtt()), (96, None));
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
