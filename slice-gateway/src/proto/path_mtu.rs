//! How large a packet of the slice fits through a path, by padded probes (RFC 8899, datagram packetization layer path
//! MTU discovery).
//!
//! ```text
//!             ┌─────────────────────────────── the wanted size may fit now ──────────────────┐
//!             ▼                                                                              │
//!   Off ──► Search ── nothing between what fits and what does not is left ──► Complete ──────┤
//!             ▲                                                                  │           │
//!             └────────────── lost, while the peer is heard ── Confirm ◄── due ──┘ ◄── answered
//! ```
//!
//! A round sends probes of several sizes side by side, and the smallest that was lost goes into the next one, too: a path
//! is known to the byte within a few round trips, and no size counts as too large that was lost once. Sizes are those of IP packets of the slice. ICMP errors of the underlay are not
//! looked at: anybody can send them (RFC 8899 §4.6), and many networks send none.
//!
//! Deliberately not here: what is done with a packet that does not fit ([`super::too_big`]), and the slice's own MTU,
//! which the hub decides from what all gateways report.

use std::time::{Duration, Instant};

use super::mtu;

/// Sizes that one round tries.
const SIZES: usize = 16;
/// How often a size is tried before it counts as lost.
const TRIES: u8 = 2;
/// Between two confirmations of a path that carries large packets: that it has become smaller must be known before the
/// streams on it have waited for long.
const CONFIRM_BUSY: Duration = Duration::from_millis(250);
/// The same for one that carries none.
const CONFIRM_IDLE: Duration = Duration::from_secs(15);
/// How soon more is tried again, doubled while it is in vain. RFC 8899 §5.1.1 has 600 s, which is the longest here.
const FIRST_RAISE: Duration = Duration::from_secs(15);
const LAST_RAISE: Duration = Duration::from_secs(600);
/// An answer may take this much longer than twice the round trip.
const SPARE: Duration = Duration::from_millis(60);

/// What is known of a path.
#[derive(Clone, Debug)]
pub struct PathMtu {
    /// What the slice would use.
    wanted: u16,
    /// Largest packet that fits; `None` while that is not known.
    carries: Option<u16>,
    state: State,
    probes: [Option<Probe>; SIZES],
    sequence: u16,
    /// Large packets were sent since the last confirmation.
    busy: bool,
    /// Until more is tried after the next search that finds less than is wanted.
    patience: Duration,
    /// How often the path has become smaller.
    shrunk: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The peer has not said that it answers.
    Off,
    /// A round is under way.
    Search(Bounds),
    /// Nothing is under way.
    Complete {
        confirm: Instant,
        raise: Option<Instant>,
    },
    /// It is asked whether what was found still holds.
    Confirm { raise: Option<Instant> },
}

/// Between what was answered and what was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    carries: Option<u16>,
    /// The smallest size above that was lost, and how often; one above what is wanted where none was.
    too_large: u32,
    losses: u8,
}

/// A size that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probe {
    size: u16,
    sequence: u16,
    /// When it was last sent.
    sent: Option<Instant>,
    tries: u8,
    answered: bool,
}

impl Bounds {
    /// The smallest size that is not known to fit.
    fn first(self) -> u32 {
        self.carries
            .map_or_else(|| mtu::MIN.into(), |carries| u32::from(carries) + 1)
    }

    fn are_exact(self) -> bool {
        self.first() >= self.too_large && self.losses >= TRIES
    }
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            wanted: mtu::MIN,
            carries: None,
            state: State::Off,
            probes: [None; SIZES],
            sequence: 0,
            busy: false,
            patience: FIRST_RAISE,
            shrunk: 0,
        }
    }
}

impl PathMtu {
    /// Sets what the slice would use at most. What is known of the path stays.
    pub fn set_wanted(&mut self, wanted: u16) {
        if std::mem::replace(&mut self.wanted, wanted) == wanted {
            return;
        }
        self.carries = self.carries.map(|carries| carries.min(wanted));
        if self.state != State::Off {
            self.search_upwards();
        }
    }

    /// The peer answers padded probes.
    pub fn start(&mut self) {
        if self.state == State::Off {
            self.search_upwards();
        }
    }

    /// Another process is there, by another path: forgets everything but the count.
    pub fn restart(&mut self) {
        *self = Self {
            wanted: self.wanted,
            sequence: self.sequence,
            shrunk: self.shrunk,
            ..Self::default()
        };
    }

    /// Largest packet that fits; `None` while that is not known, when everything is sent.
    pub fn carries(&self) -> Option<u16> {
        self.carries
    }

    /// How often the path has become smaller.
    pub fn shrunk(&self) -> u64 {
        self.shrunk
    }

    /// A large packet was sent: should the path have become smaller, somebody waits for its answer.
    pub fn on_large(&mut self) {
        self.busy = true;
    }

    /// No probe is under way.
    pub fn rests(&self) -> bool {
        matches!(self.state, State::Off | State::Complete { .. })
    }

    /// A probe came back.
    pub fn on_echo(&mut self, sequence: u16) {
        let mut probes = self.probes.iter_mut().flatten();
        if let Some(probe) = probes.find(|probe| probe.sequence == sequence && probe.sent.is_some()) {
            probe.answered = true;
        }
    }

    /// The size and number of a padded probe that is to be sent now: asked until there is none. `rtt` is how long an answer
    /// takes. A probe is lost where something newer was `heard`: of a path that carries nothing, no size is known.
    pub fn poll(
        &mut self,
        now: Instant,
        rtt: Option<Duration>,
        heard: Option<Instant>,
    ) -> Option<(u16, u16)> {
        if let State::Complete { confirm, raise } = self.state {
            self.begin_what_is_due(now, confirm, raise);
            if self.rests() {
                return None;
            }
        }
        let patience = rtt.unwrap_or_default() * 2 + SPARE;
        // A search asks again in its next round.
        let tries = if matches!(self.state, State::Confirm { .. }) {
            TRIES
        } else {
            1
        };
        let mut waits = false;
        for probe in self.probes.iter_mut().flatten().filter(|probe| !probe.answered) {
            let lost = |sent: Instant| {
                now.saturating_duration_since(sent) >= patience && heard.is_some_and(|heard| heard > sent)
            };
            match probe.sent {
                Some(sent) if !lost(sent) => waits = true,
                Some(_) if probe.tries == tries => {}
                Some(_) | None => {
                    probe.sent = Some(now);
                    probe.tries += 1;
                    return Some((probe.size, probe.sequence));
                }
            }
        }
        if !waits && self.probes.iter().any(Option::is_some) {
            self.settle(now);
        }
        None
    }

    fn begin_what_is_due(&mut self, now: Instant, confirm: Instant, raise: Option<Instant>) {
        let confirm = if self.busy {
            confirm.min(now + CONFIRM_BUSY)
        } else {
            confirm
        };
        if raise.is_some_and(|at| at <= now) {
            self.search_upwards();
        } else if confirm <= now {
            self.busy = false;
            self.state = State::Confirm { raise };
            self.probe([self.carries.unwrap_or(mtu::MIN)]);
        } else {
            self.state = State::Complete { confirm, raise };
        }
    }

    /// Looks for more than is known.
    fn search_upwards(&mut self) {
        self.search(Bounds {
            carries: self.carries,
            too_large: u32::from(self.wanted) + 1,
            losses: TRIES,
        });
    }

    /// Begins a round with sizes between the two, the largest among them.
    fn search(&mut self, bounds: Bounds) {
        self.state = State::Search(bounds);
        let first = bounds.first();
        let last = bounds.too_large - u32::from(bounds.losses >= TRIES);
        // Where nothing is between the two, what fits is asked once more.
        let span = last.saturating_sub(first);
        let sizes = (SIZES as u32).min(span + 1);
        let steps = (sizes - 1).max(1);
        self.probe((0..sizes).map(|place| {
            // From above, so that one size alone is the largest.
            let size = last - span * (sizes - 1 - place) / steps;
            u16::try_from(size).unwrap_or(u16::MAX)
        }));
    }

    fn probe(&mut self, sizes: impl IntoIterator<Item = u16>) {
        self.probes = [None; SIZES];
        for (probe, size) in self.probes.iter_mut().zip(sizes) {
            self.sequence = self.sequence.wrapping_add(1);
            *probe = Some(Probe {
                size,
                sequence: self.sequence,
                sent: None,
                tries: 0,
                answered: false,
            });
        }
    }

    /// Everything that was sent has come back, or is lost.
    fn settle(&mut self, now: Instant) {
        let probes = std::mem::replace(&mut self.probes, [None; SIZES]);
        let sizes = |answered: bool| {
            let probes = probes.iter().flatten();
            probes
                .filter(move |probe| probe.answered == answered)
                .map(|probe| probe.size)
        };
        match self.state {
            State::Confirm { raise } if sizes(true).next().is_some() => self.complete(now, raise),
            State::Confirm { .. } => {
                let too_large = self.carries.unwrap_or(mtu::MIN).into();
                self.carries = None;
                self.shrunk += 1;
                self.patience = FIRST_RAISE;
                self.search(Bounds {
                    carries: None,
                    too_large,
                    losses: TRIES,
                });
            }
            State::Search(before) => {
                let carries = sizes(true).max().or(before.carries);
                let lost = sizes(false).filter(|size| Some(*size) > carries).map(u32::from);
                let bounds = match lost.min() {
                    Some(size) if size == before.too_large => Bounds {
                        losses: before.losses + 1,
                        carries,
                        ..before
                    },
                    Some(too_large) => Bounds {
                        carries,
                        too_large,
                        losses: 1,
                    },
                    None if carries.is_some_and(|carries| u32::from(carries) >= before.too_large) => Bounds {
                        carries,
                        too_large: u32::from(self.wanted) + 1,
                        losses: TRIES,
                    },
                    None => Bounds { carries, ..before },
                };
                if !bounds.are_exact() {
                    return self.search(bounds);
                }
                let carries = carries.unwrap_or(mtu::MIN);
                self.carries = Some(carries);
                let raise = (carries < self.wanted).then_some(now + self.patience);
                self.patience = match raise {
                    Some(_) => (self.patience * 2).min(LAST_RAISE),
                    None => FIRST_RAISE,
                };
                self.complete(now, raise);
            }
            State::Off | State::Complete { .. } => {}
        }
    }

    fn complete(&mut self, now: Instant, raise: Option<Instant>) {
        self.state = State::Complete {
            confirm: now + CONFIRM_IDLE,
            raise,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const RTT: Duration = Duration::from_millis(20);

    /// A path and the end that probes it.
    struct World {
        now: Instant,
        path: PathMtu,
        /// What the path lets through.
        limit: u16,
        heard: Option<Instant>,
        alive: bool,
        sent: usize,
        /// What loses every n-th probe, whatever its size.
        loss: Option<usize>,
    }

    impl World {
        fn new(wanted: u16, limit: u16) -> Self {
            let mut path = PathMtu::default();
            path.set_wanted(wanted);
            path.start();
            Self {
                now: Instant::now(),
                path,
                limit,
                heard: None,
                alive: true,
                sent: 0,
                loss: None,
            }
        }

        fn tick(&mut self) {
            self.now += MS * 50;
            if self.alive {
                self.heard = Some(self.now);
            }
            while let Some((size, sequence)) = self.path.poll(self.now, Some(RTT), self.heard) {
                self.sent += 1;
                let lost = self.loss.is_some_and(|every| self.sent.is_multiple_of(every));
                if self.alive && size <= self.limit && !lost {
                    self.path.on_echo(sequence);
                }
            }
        }

        fn run(&mut self, time: Duration) {
            for _ in 0..time.as_millis() / 50 {
                self.tick();
            }
        }
    }

    #[test]
    fn a_path_that_fits_is_known_in_one_round() {
        let mut world = World::new(1370, 1370);
        world.run(MS * 150);
        assert_eq!((world.path.carries(), world.sent), (Some(1370), SIZES));
    }

    #[test]
    fn a_smaller_path_is_known_to_the_byte() {
        for (wanted, limit) in [
            (1370, 1340),
            (8870, 1390),
            (1370, 1369),
            (1370, 576),
            (1370, 1280),
        ] {
            let mut world = World::new(wanted, limit);
            world.run(MS * 1200);
            assert_eq!(world.path.carries(), Some(limit), "{wanted}");
        }
    }

    #[test]
    fn of_a_path_below_all_sizes_the_smallest_is_taken() {
        let mut world = World::new(1370, 100);
        world.run(MS * 1200);
        assert_eq!(world.path.carries(), Some(mtu::MIN));
    }

    #[test]
    fn a_path_that_shrinks_under_traffic_is_known_within_a_second() {
        let mut world = World::new(1370, 1370);
        world.run(MS * 5000);
        for _ in 0..10 {
            world.path.on_large();
            world.tick();
        }
        world.limit = 1290;
        for _ in 0..20 {
            world.path.on_large();
            world.tick();
        }
        assert_eq!((world.path.carries(), world.path.shrunk()), (Some(1290), 1));
    }

    #[test]
    fn an_idle_path_is_asked_rarely() {
        let mut world = World::new(1370, 1370);
        world.run(Duration::from_secs(1));
        let before = world.sent;
        world.run(Duration::from_secs(60));
        assert!(world.sent - before <= 4, "{}", world.sent - before);
    }

    #[test]
    fn a_path_that_grows_is_used_and_one_that_does_not_is_tried_less_and_less() {
        let mut world = World::new(1370, 1290);
        world.run(Duration::from_secs(2));
        world.limit = 1350;
        world.run(Duration::from_secs(18));
        assert_eq!(world.path.carries(), Some(1350));
        world.run(Duration::from_secs(3600));
        let before = world.sent;
        world.run(Duration::from_secs(3600));
        let rounds = (world.sent - before - 240) / SIZES;
        assert!(rounds <= 7, "{rounds}");
        world.limit = 1370;
        world.run(Duration::from_secs(610));
        assert_eq!(world.path.carries(), Some(1370));
    }

    #[test]
    fn a_dead_path_says_nothing_about_sizes() {
        let mut world = World::new(1370, 1370);
        world.run(Duration::from_secs(1));
        world.alive = false;
        world.run(Duration::from_secs(100));
        assert_eq!((world.path.carries(), world.path.shrunk()), (Some(1370), 0));
        world.alive = true;
        world.run(Duration::from_secs(20));
        assert_eq!((world.path.carries(), world.path.shrunk()), (Some(1370), 0));
    }

    #[test]
    fn what_is_wanted_may_change() {
        let mut world = World::new(1370, 8000);
        world.run(Duration::from_secs(1));
        world.path.set_wanted(8870);
        assert_eq!(world.path.carries(), Some(1370), "until more is known");
        world.run(Duration::from_secs(1));
        assert_eq!(world.path.carries(), Some(8000));
        world.path.set_wanted(1280);
        world.run(Duration::from_secs(1));
        assert_eq!(world.path.carries(), Some(1280));
    }

    #[test]
    fn who_does_not_answer_is_not_asked() {
        let mut path = PathMtu::default();
        path.set_wanted(1370);
        let now = Instant::now();
        assert_eq!(path.poll(now, None, Some(now)), None);
        assert_eq!(path.carries(), None);
    }

    proptest! {
        #[test]
        fn any_path_is_found_although_probes_get_lost(
            wanted in 576u16..9000, limit in 576u16..9000, every in 20usize..40
        ) {
            let mut world = World::new(wanted, limit);
            world.loss = Some(every);
            world.run(Duration::from_secs(3));
            let found = world.path.carries();
            prop_assert!(found.is_some_and(|found| found <= limit), "{found:?}");
            // A size that was lost twice by chance is tried again.
            world.run(Duration::from_secs(60));
            prop_assert_eq!(world.path.carries(), Some(limit.min(wanted)));
        }
    }
}
