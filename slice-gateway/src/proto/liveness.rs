//! Is the far end there, and does it receive what we send?
//!
//! ```text
//!                 frames are sent, here or there           silence for 310 ms
//!   slow: a probe ────────────────────────────────► fast: ────────────────────► down
//!   in two seconds ◄──────────────────────────────  ten a second                ▲
//!         │       for 10 s none, and the peer knows                             │
//!         └─────────────────────── silence for 6.2 s ───────────────────────────┘
//! ```
//!
//! A path that carries frames must be left within half a second of its death; one that carries none costs a probe in
//! two seconds (RFC 5880 §6.8.7 sends at the slower of two paces for the same reason). Each probe says which pace its
//! sender keeps, and the receiver judges by that. Who begins to send frames asks for the fast pace, and a peer that
//! does not take it up within the time of a fast death is taken for dead.

use std::time::{Duration, Instant};

use super::probe::Report;
use crate::sizes::Sizes;

/// Between two probes of a path that is in use.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Silence after which a peer of our own kind that probes us so often is gone: three of its probes are missing.
/// Traffic must have moved 500 ms after a death, and [`super::TICK`] comes on top.
pub const DEAD_AFTER: Duration = Duration::from_millis(310);
/// Between two probes of a path that nobody uses: at most, and a quarter less at random.
pub const IDLE_INTERVAL: Duration = Duration::from_millis(2000);
/// Silence after which a peer that probes us so seldom is gone.
const IDLE_DEAD_AFTER: Duration = Duration::from_millis(6200);
/// How long after its last frame a path is in use.
const IN_USE: Duration = Duration::from_secs(10);
/// Silence after which a stock peer that answers our probes is gone.
const ECHO_DEAD_AFTER: Duration = Duration::from_millis(1000);
/// The same for a stock peer that answers no probes. A WireGuard peer that receives data answers with a keepalive
/// within 10 s and rekeys within 15 s (WireGuard paper §6.5: KEEPALIVE_TIMEOUT, REKEY_TIMEOUT).
const SILENT_DEAD_AFTER: Duration = Duration::from_secs(25);
/// The same for a peer of our own kind whose first probe has not come yet: it takes a round trip and a tick.
const FIRST_REPORT: Duration = Duration::from_millis(1000);
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

/// What is known of a path's far end.
#[derive(Clone, Debug)]
pub struct Liveness {
    /// Spreads slow probes over time.
    seed: u64,
    /// It need not be of our own kind.
    stock: bool,
    kind: Kind,
    /// When anything authentic arrived.
    received: Option<Instant>,
    /// As of the last [`Self::assess`].
    up: bool,
    /// Until then what speaks against the peer may come from a stall of this process.
    excused: Option<Instant>,
    used: Option<Use>,
    sent: [Option<Instant>; IN_FLIGHT],
    sequence: u16,
    next_probe: Option<Instant>,
    unanswered: u32,
    /// What the last probe said.
    reported: Option<Report>,
    slow: Slow,
    /// The number of the peer's last probe.
    peer_sequence: Option<u16>,
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
    /// Probes us itself and says whether it receives what we send.
    Reports(Report),
}

/// A time in which frames are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    since: Instant,
    last: Instant,
}

/// Whether the peer knows that it is probed slowly. Until then it would take silence for death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slow {
    No,
    /// Said in the probe with this number first.
    Announced(u16),
    /// One of those was answered.
    Known,
}

impl Liveness {
    /// Nothing is known yet. `seed` spreads the probes of several paths over time.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            stock: false,
            kind: Kind::Silent,
            received: None,
            up: false,
            excused: None,
            used: None,
            sent: [None; IN_FLIGHT],
            sequence: 0,
            next_probe: None,
            unanswered: 0,
            reported: None,
            slow: Slow::No,
            peer_sequence: None,
            rtt: None,
            probes: 0,
            echoes: 0,
            rtts: Rtts::default(),
            losses: Losses::default(),
            window: (0, 0),
        }
    }

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
            ..Self::new(self.seed)
        };
    }

    /// A handshake was completed, so packets have just gone both ways.
    pub fn on_session(&mut self, now: Instant) {
        if self.received.is_none() {
            // Much is asked of a new path: what it carries, and whether frames may go there.
            self.on_use(now);
        }
        self.on_received(now);
        match &mut self.kind {
            Kind::Silent => {}
            Kind::Echoes { last } => *last = now,
            Kind::Reports(report) => report.receives = true,
        }
    }

    /// Something authentic arrived.
    pub fn on_received(&mut self, now: Instant) {
        self.received = Some(now);
    }

    /// Frames are sent on this path.
    pub fn on_use(&mut self, now: Instant) {
        match &mut self.used {
            Some(used) if now.saturating_duration_since(used.last) < IN_USE => used.last = now,
            used => {
                *used = Some(Use {
                    since: now,
                    last: now,
                })
            }
        }
    }

    /// Whether frames were sent on this path lately.
    pub fn is_in_use(&self, now: Instant) -> bool {
        self.used_since(now).is_some()
    }

    fn used_since(&self, now: Instant) -> Option<Instant> {
        let used = self.used?;
        (now.saturating_duration_since(used.last) < IN_USE).then_some(used.since)
    }

    /// The peer probed us with this number, and said this. What an older probe said does not count any more.
    pub fn on_probe(&mut self, sequence: u16, report: Option<Report>) {
        let older = |last: u16| last.wrapping_sub(sequence).wrapping_sub(1) < 1 << 15;
        if self.peer_sequence.is_some_and(older) {
            return;
        }
        self.peer_sequence = Some(sequence);
        if let Some(report) = report {
            self.kind = Kind::Reports(report);
        }
    }

    /// Whether both ends probe slowly, and know it of each other.
    pub fn is_slow(&self) -> bool {
        self.slow == Slow::Known && self.report_of_peer().is_some_and(|report| report.slow)
    }

    /// What the peer last said of itself.
    fn report_of_peer(&self) -> Option<Report> {
        match self.kind {
            Kind::Reports(report) => Some(report),
            Kind::Silent | Kind::Echoes { .. } => None,
        }
    }

    /// Whether the peer wants its frames to come another way.
    pub fn is_away(&self) -> bool {
        self.report_of_peer().is_some_and(|report| report.away)
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
        if matches!(self.slow, Slow::Announced(first) if sequence.wrapping_sub(first) < 1 << 15) {
            self.slow = Slow::Known;
        }
        match &mut self.kind {
            Kind::Silent => self.kind = Kind::Echoes { last: now },
            Kind::Echoes { last } => *last = now,
            Kind::Reports(_) => {}
        }
    }

    /// This process stood still for so long. It counts as no time of silence, and what the peer says of that time does
    /// not count against it.
    pub fn excuse(&mut self, now: Instant, stall: Duration) {
        let later = |instant: &mut Instant| *instant = (*instant + stall).min(now);
        if let Some(received) = &mut self.received {
            later(received);
        }
        if let Some(used) = &mut self.used {
            later(&mut used.since);
        }
        if let Kind::Echoes { last } = &mut self.kind {
            later(last);
        }
        self.excused = Some(now + DEAD_AFTER + self.rtt.unwrap_or_default());
    }

    /// Judges whether traffic may be entrusted to the path.
    pub fn assess(&mut self, now: Instant) -> bool {
        let since = |instant: Instant| now.saturating_duration_since(instant);
        let excused = self.up && self.excused.is_some_and(|until| now < until);
        self.up = self.received.map(since).is_some_and(|silence| match self.kind {
            Kind::Silent if self.stock => silence < SILENT_DEAD_AFTER,
            Kind::Silent => silence < FIRST_REPORT,
            Kind::Echoes { last } => since(last) < ECHO_DEAD_AFTER,
            Kind::Reports(report) => {
                let limit = DEAD_AFTER + self.rtt.unwrap_or_default();
                let ignored = report.slow && self.used_since(now).is_some_and(|used| since(used) >= limit);
                silence < dead_after(report.slow) && (excused || report.receives && !ignored)
            }
        });
        self.up
    }

    /// Whether we receive what the peer sends, which is what the probes tell it.
    fn receives(&self, now: Instant) -> bool {
        let slow = self.report_of_peer().is_some_and(|report| report.slow);
        let silence = self.received.map(|at| now.saturating_duration_since(at));
        silence.is_some_and(|silence| silence < dead_after(slow))
    }

    /// What a probe tells the peer.
    pub fn report(&self, now: Instant, away: bool) -> Report {
        let in_use = self.is_in_use(now);
        // A peer of the release before takes 310 ms of silence for death, whatever it is told.
        let may = |peer: Report| peer.paced && !peer.in_use;
        Report {
            receives: self.receives(now),
            away,
            in_use,
            paced: true,
            slow: self.up && !in_use && self.report_of_peer().is_some_and(may),
        }
    }

    /// When something authentic last arrived.
    pub fn received(&self) -> Option<Instant> {
        self.received
    }

    /// Whether a probe is to be sent: its sequence number, and what it says. `away` says that we want no frames.
    ///
    /// News is sent at once.
    pub fn poll_probe(&mut self, now: Instant, away: bool) -> Option<(u16, Report)> {
        let report = self.report(now, away);
        let due = self.next_probe.is_none_or(|at| at <= now);
        // That the next one takes longer can wait; that it comes sooner cannot.
        let known = |reported: Report| Report {
            slow: reported.slow || report.slow,
            ..reported
        };
        if !due && self.reported.map(known) == Some(report) {
            return None;
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.slow = match (report.slow, self.slow) {
            (false, _) => Slow::No,
            (true, Slow::No) => Slow::Announced(self.sequence),
            (true, announced) => announced,
        };
        self.next_probe = Some(now + self.interval());
        self.reported = Some(report);
        self.unanswered = self.unanswered.saturating_add(1);
        self.probes += 1;
        let lost = self.sent[usize::from(self.sequence) % IN_FLIGHT]
            .replace(now)
            .is_some();
        self.count_loss(lost);
        Some((self.sequence, report))
    }

    /// Until the next probe.
    fn interval(&self) -> Duration {
        if self.unanswered >= PATIENCE {
            RARE_PROBE_INTERVAL
        } else if self.slow == Slow::Known {
            let random = (self.seed ^ u64::from(self.sequence)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55;
            IDLE_INTERVAL - Duration::from_millis(random)
        } else {
            PROBE_INTERVAL
        }
    }

    /// Takes the verdict on a probe of a window ago. Who has never answered one is not judged.
    fn count_loss(&mut self, lost: bool) {
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

/// Silence after which a peer of our own kind is gone.
fn dead_after(slow: bool) -> Duration {
    if slow { IDLE_DEAD_AFTER } else { DEAD_AFTER }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    /// A peer of the release before.
    const FAST: Report = Report {
        receives: true,
        away: false,
        in_use: false,
        slow: false,
        paced: false,
    };
    const SLOW: Report = Report {
        slow: true,
        paced: true,
        ..FAST
    };

    /// A path with a session, at `ms` milliseconds.
    struct Clock {
        liveness: Liveness,
        start: Instant,
        sequence: u16,
    }

    impl Clock {
        fn new() -> Self {
            let (mut liveness, start) = (Liveness::new(7), Instant::now());
            assert!(!liveness.assess(start));
            liveness.on_session(start);
            Self {
                liveness,
                start,
                sequence: 0,
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        /// The peer's next probe arrives.
        fn hear(&mut self, ms: u64, report: Report) {
            self.sequence = self.sequence.wrapping_add(1);
            self.liveness.on_received(self.at(ms));
            self.liveness.on_probe(self.sequence, Some(report));
        }

        #[track_caller]
        fn check(&mut self, ms: u64, up: bool) {
            let now = self.at(ms);
            assert_eq!(self.liveness.assess(now), up, "after {ms} ms");
        }

        fn probe(&mut self, ms: u64) -> Option<(u16, Report)> {
            let now = self.at(ms);
            self.liveness.assess(now);
            self.liveness.poll_probe(now, false)
        }

        /// Probes that are sent in this time, each of which comes back and is answered with this report.
        fn probes(&mut self, range: std::ops::Range<u64>, answer: Option<Report>) -> usize {
            let mut probes = 0;
            for ms in range.step_by(50) {
                if let Some((sequence, _)) = self.probe(ms) {
                    probes += 1;
                    if let Some(report) = answer {
                        let now = self.at(ms);
                        self.hear(ms, report);
                        self.liveness.on_echo(now, sequence);
                    }
                }
            }
            probes
        }
    }

    #[test]
    fn a_stock_peer_without_icmp_lives_by_its_keepalives() {
        let mut clock = Clock::new();
        clock.liveness.set_stock(true);
        clock.check(24_000, true);
        clock.check(26_000, false);
    }

    #[test]
    fn our_own_kind_does_not_stay_silent() {
        let mut clock = Clock::new();
        clock.check(900, true);
        clock.check(1100, false);
    }

    #[test]
    fn a_stock_peer_that_answers_lives_by_its_answers() {
        let mut clock = Clock::new();
        let (sequence, _) = clock.probe(0).unwrap();
        clock.liveness.on_echo(clock.at(8), sequence);
        clock.liveness.on_received(clock.at(900));
        assert_eq!(clock.liveness.rtt(), Some(MS * 8));
        clock.check(1000, true);
        clock.check(1100, false);
    }

    #[test]
    fn a_fast_peer_is_missed_soon_and_a_slow_one_later() {
        let mut clock = Clock::new();
        clock.hear(0, FAST);
        clock.check(300, true);
        clock.check(320, false);
        let mut clock = Clock::new();
        clock.hear(0, FAST);
        // The path is not in use any more.
        for second in 1..12 {
            clock.hear(second * 1000, SLOW);
        }
        clock.check(17_100, true);
        clock.check(17_300, false);
    }

    #[test]
    fn a_path_that_works_one_way_is_down() {
        let mut clock = Clock::new();
        let deaf = Report {
            receives: false,
            ..FAST
        };
        clock.hear(0, deaf);
        clock.check(0, false);
        clock.hear(0, FAST);
        clock.check(0, true);
    }

    #[test]
    fn an_older_probe_says_nothing_new() {
        let mut clock = Clock::new();
        clock.liveness.on_probe(u16::MAX, Some(SLOW));
        clock.liveness.on_probe(2, Some(FAST));
        clock.liveness.on_probe(1, Some(SLOW));
        assert_eq!(clock.liveness.report_of_peer(), Some(FAST));
        clock.liveness.on_probe(3, Some(SLOW));
        assert_eq!(clock.liveness.report_of_peer(), Some(SLOW));
    }

    #[test]
    fn a_path_becomes_slow_once_the_peer_knows() {
        let idle = Report { slow: false, ..SLOW };
        let mut clock = Clock::new();
        assert!(clock.probes(0..10_000, Some(idle)) >= 98);
        // Nobody has sent frames for ten seconds; that is told, and as long as it is not known nothing changes.
        for ms in (10_000..11_000).step_by(50) {
            if let Some((_, report)) = clock.probe(ms) {
                assert!(report.slow);
                clock.hear(ms, idle);
            }
        }
        assert_eq!(clock.liveness.probes() / 10, 11, "{}", clock.liveness.probes());
        let slow = clock.probes(11_000..31_000, Some(SLOW));
        assert!((10..=14).contains(&slow), "{slow} in 20 s");
        // A peer of the release before would not understand.
        let mut clock = Clock::new();
        clock.probes(0..10_000, Some(FAST));
        assert_eq!(clock.probes(10_000..20_000, Some(FAST)), 100);
    }

    #[test]
    fn frames_wake_a_path_and_a_peer_that_sleeps_on_is_dead() {
        let mut clock = Clock::new();
        clock.probes(0..20_000, Some(SLOW));
        clock.liveness.on_use(clock.at(20_000));
        let (_, report) = clock.probe(20_000).expect("at once");
        assert!(report.in_use && !report.slow);
        clock.hear(20_200, SLOW);
        clock.check(20_300, true);
        clock.hear(20_300, SLOW);
        clock.check(20_320, false);
        let awake = Report { slow: false, ..SLOW };
        clock.hear(20_330, awake);
        clock.check(20_330, true);
    }

    #[test]
    fn who_is_asked_to_be_fast_is_so_at_once() {
        let mut clock = Clock::new();
        clock.probes(0..20_000, Some(SLOW));
        let ms = (20_000..23_000).step_by(50).find(|ms| clock.probe(*ms).is_some());
        let ms = ms.expect("a slow probe");
        assert_eq!(clock.probe(ms + 50), None);
        let asks = Report {
            in_use: true,
            slow: false,
            ..SLOW
        };
        clock.hear(ms + 60, asks);
        let (_, report) = clock.probe(ms + 100).expect("at once");
        assert!(!report.slow && !report.in_use);
        assert_eq!(clock.probe(ms + 150), None);
        assert!(clock.probe(ms + 200).is_some());
    }

    #[test]
    fn a_stall_is_no_silence_of_the_peers() {
        let mut clock = Clock::new();
        clock.hear(0, FAST);
        clock.check(100, true);
        // Nothing could be read for two seconds, and the peer has missed us meanwhile.
        clock.liveness.excuse(clock.at(2100), MS * 2000);
        clock.check(2100, true);
        let deaf = Report {
            receives: false,
            ..FAST
        };
        clock.hear(2110, deaf);
        clock.check(2150, true);
        clock.check(2400, true);
        clock.hear(2410, deaf);
        clock.check(2420, false);
        // Who was down before is not up by that.
        clock.liveness.excuse(clock.at(2430), MS * 2000);
        clock.check(2430, false);
    }

    #[test]
    fn who_died_in_a_stall_is_missed_after_it() {
        let mut clock = Clock::new();
        clock.hear(0, FAST);
        clock.check(100, true);
        clock.liveness.excuse(clock.at(2100), MS * 2000);
        clock.check(2300, true);
        clock.check(2320, false);
    }

    #[test]
    fn silence_is_told_at_once() {
        let mut clock = Clock::new();
        clock.hear(0, FAST);
        let mut receives = |ms| clock.probe(ms).map(|(_, report)| report.receives);
        assert_eq!(receives(0), Some(true));
        assert_eq!(receives(50), None);
        assert_eq!(receives(300), Some(true));
        assert_eq!(receives(320), Some(false));
        assert_eq!(receives(370), None);
    }

    #[test]
    fn a_wish_for_no_frames_is_told_at_once_and_taken_back() {
        let mut clock = Clock::new();
        let mut away = |ms, away| {
            let now = clock.start + MS * ms;
            let probe = clock.liveness.poll_probe(now, away);
            probe.map(|(_, report)| report.away)
        };
        assert_eq!(away(0, false), Some(false));
        assert_eq!(away(10, true), Some(true));
        assert_eq!(away(20, true), None);
        assert_eq!(away(30, false), Some(false));
        let leaving = Report { away: true, ..FAST };
        clock.hear(40, leaving);
        assert!(clock.liveness.is_away());
        clock.check(40, true);
        clock.hear(50, FAST);
        assert!(!clock.liveness.is_away());
    }

    #[test]
    fn who_never_answers_is_asked_rarely() {
        let mut clock = Clock::new();
        assert!(clock.probes(0..2000, None) >= 20);
        clock.probes(2000..5000, None);
        assert_eq!(clock.probes(5000..10_000, None), 5);
    }

    #[test]
    fn round_trips_and_losses_are_counted() {
        let mut clock = Clock::new();
        // 32 that are answered, 32 of which every fourth is lost, and 32 more until that is known.
        for n in 0..96 {
            let sent = 100 * n;
            clock.hear(sent, FAST);
            let (sequence, _) = clock.probe(sent).unwrap();
            if n < 32 || n % 4 != 0 {
                clock.liveness.on_echo(clock.at(sent + 3), sequence);
            }
        }
        let liveness = &mut clock.liveness;
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
        let mut clock = Clock::new();
        let (sequence, _) = clock.probe(0).unwrap();
        for (ms, sequence) in [(1, sequence), (500, sequence), (500, sequence + 1)] {
            clock.liveness.on_echo(clock.at(ms), sequence);
        }
        assert_eq!((clock.liveness.rtt(), clock.liveness.echoes()), (Some(MS), 1));
    }
}
