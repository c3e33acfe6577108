//! What the threads of a gateway share: updates to the lanes, and what those have counted. Locks are taken a few times a
//! second, never per packet.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio_util::sync::CancellationToken;

use crate::{
    io::{
        batch::Counts,
        exchange::Exchange,
        tap::{Level, Tap},
        udp::Memory,
    },
    proto::{Change, Config, Key, Need, Stats},
    sizes::Sizes,
};

/// What the lanes of a gateway, and the threads beside them, know of each other.
pub struct Shared {
    exchange: Arc<Exchange>,
    lanes: Vec<LaneState>,
    /// Wakes the control thread: a tunnel went up or down, or the TAP was lost.
    report_due: EventFd,
    draining: AtomicBool,
    stopping: CancellationToken,
}

/// What a lane is to do next, and what it has published.
#[derive(Default)]
struct LaneState {
    updates: Mutex<Updates>,
    figures: Mutex<Figures>,
    has_tap: AtomicBool,
    /// Nothing has come for a while.
    quiet: AtomicBool,
    /// Keys that it has taken.
    keys: AtomicU64,
    /// [`Need`] of the former key.
    need: AtomicU8,
}

/// What a lane is given. The newest of each replaces the one before, but for keys.
#[derive(Default)]
pub(crate) struct Updates {
    pub(crate) config: Option<Config>,
    /// A queue of the TAP device, or that it is lost.
    pub(crate) tap: Option<Option<Tap>>,
    pub(crate) keys: Vec<KeyUpdate>,
}

/// What the first lane has the others do.
pub(crate) enum KeyUpdate {
    Take(Key, Change),
    /// Nobody needs the former one.
    Retire,
}

/// What the data path has counted.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub slice: String,
    /// There is a configuration, and the rest is about it.
    pub configured: bool,
    /// [`crate::proto::admit::Segment::largest`].
    pub largest_mtu: u16,
    pub stats: Stats,
    pub counts: Counts,
    /// Turns of the loop.
    pub turns: u64,
    pub frames_read: u64,
    /// System calls that received datagrams.
    pub receive_calls: u64,
    /// Datagrams that the kernel had put together.
    pub received: Sizes,
    /// Frames that waited at the TAP device when a turn read from it, as far as one turn reads.
    pub waiting: Sizes,
    pub segmentation: bool,
    pub coalescing: bool,
    pub memory: Memory,
    /// What the TAP device leaves to us.
    pub offload: Level,
    /// Threads that carry frames.
    pub threads: u32,
    /// Of them those that have a queue of the TAP device to themselves.
    pub queues: u32,
}

impl Figures {
    /// Adds those of another lane.
    fn merge(&mut self, other: &Self) {
        self.configured &= other.configured;
        self.stats.merge(&other.stats);
        self.counts.merge(&other.counts);
        self.turns += other.turns;
        self.frames_read += other.frames_read;
        self.receive_calls += other.receive_calls;
        self.received.merge(&other.received);
        self.waiting.merge(&other.waiting);
        self.segmentation &= other.segmentation;
        self.coalescing &= other.coalescing;
        self.memory.merge(&other.memory);
        self.offload = self.offload.min(other.offload);
        self.threads += other.threads;
        self.queues += other.queues;
    }
}

impl Shared {
    /// # Errors
    /// Where the kernel has no descriptors left.
    ///
    /// # Panics
    /// Where there are no lanes.
    pub fn new(lanes: usize) -> io::Result<Arc<Self>> {
        assert!(lanes > 0, "a gateway has a thread");
        Ok(Arc::new(Self {
            exchange: Arc::new(Exchange::new(lanes)?),
            lanes: std::iter::repeat_with(LaneState::default).take(lanes).collect(),
            report_due: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            draining: AtomicBool::new(false),
            stopping: CancellationToken::new(),
        }))
    }

    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The first lane gets it last, so that a key that it then makes finds the others informed.
    pub fn set_config(&self, config: &Config) {
        for lane in (0..self.lanes.len()).rev() {
            self.write(lane, |updates| updates.config = Some(config.clone()));
        }
    }

    /// Gives each lane a queue of the TAP device; where there are fewer, the last lanes write by the first one.
    ///
    /// # Errors
    /// Where the kernel has no descriptors left. Nobody has a queue then.
    ///
    /// # Panics
    /// Where there is none.
    pub fn set_taps(&self, taps: Vec<Tap>) -> io::Result<()> {
        let writers = (taps.len()..self.lanes.len()).map(|_| taps[0].writer());
        let writers: Vec<Tap> = writers.collect::<io::Result<_>>()?;
        for (lane, tap) in taps.into_iter().chain(writers).take(self.lanes.len()).enumerate() {
            self.lanes[lane].has_tap.store(true, Ordering::Release);
            self.write(lane, |updates| updates.tap = Some(Some(tap)));
        }
        Ok(())
    }

    /// The TAP device is gone: all lanes close it, so that the agent can hand it over anew.
    pub(crate) fn lose_taps(&self) {
        for lane in 0..self.lanes.len() {
            self.write(lane, |updates| updates.tap = Some(None));
        }
    }

    /// A lane has closed its queue.
    pub(crate) fn tap_closed(&self, lane: usize) {
        self.lanes[lane].has_tap.store(false, Ordering::Release);
        self.request_report();
    }

    /// Whether every lane holds a queue of the TAP device.
    pub fn has_tap(&self) -> bool {
        self.lanes
            .iter()
            .all(|state| state.has_tap.load(Ordering::Acquire))
    }

    /// Whether no lane holds a queue of the TAP device.
    pub fn has_no_tap(&self) -> bool {
        !self
            .lanes
            .iter()
            .any(|state| state.has_tap.load(Ordering::Acquire))
    }

    /// Asks everybody to send frames another way, and stops once they do.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.call_all();
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Says whether a lane has nothing left to carry; whether none has.
    pub(crate) fn set_quiet(&self, lane: usize, quiet: bool) -> bool {
        self.lanes[lane].quiet.store(quiet, Ordering::Release);
        self.lanes.iter().all(|state| state.quiet.load(Ordering::Acquire))
    }

    /// Ends all threads at once.
    pub fn stop(&self) {
        self.stopping.cancel();
        self.call_all();
    }

    /// Cancelled by [`Self::stop`].
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Gives the other lanes a key, or has them wipe the former one.
    pub(crate) fn update_others(&self, update: impl Fn() -> KeyUpdate) {
        for lane in 1..self.lanes.len() {
            self.write(lane, |updates| updates.keys.push(update()));
        }
    }

    /// A lane has taken another key, and needs the former one so much.
    pub(crate) fn key_taken(&self, lane: usize, need: Need) {
        self.set_need(lane, need);
        self.lanes[lane].keys.fetch_add(1, Ordering::AcqRel);
        self.exchange.call(0);
    }

    /// Whether the other lanes have taken so many keys.
    pub(crate) fn others_have_keys(&self, count: u64) -> bool {
        let mut others = self.lanes[1..].iter();
        others.all(|state| state.keys.load(Ordering::Acquire) >= count)
    }

    /// Says how much a lane needs the former key.
    pub(crate) fn set_need(&self, lane: usize, need: Need) {
        self.lanes[lane].need.store(need as u8, Ordering::Release);
    }

    /// How much the lanes but the first need the former key.
    pub(crate) fn need_of_others(&self) -> Need {
        let needs = self.lanes[1..]
            .iter()
            .map(|state| state.need.load(Ordering::Acquire));
        match needs.max() {
            None | Some(0) => Need::Nobody,
            Some(1) => Need::Absent,
            Some(_) => Need::Frames,
        }
    }

    pub(crate) fn take_updates(&self, lane: usize) -> Updates {
        // An error says that there are none.
        let _ = self.exchange.wake(lane).read();
        let updates = self.lanes[lane].updates.lock();
        std::mem::take(&mut updates.unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, lane: usize, write: impl FnOnce(&mut Updates)) {
        let updates = self.lanes[lane].updates.lock();
        write(&mut updates.unwrap_or_else(PoisonError::into_inner));
        self.exchange.call(lane);
    }

    pub(crate) fn publish(&self, lane: usize, figures: &Figures) {
        let known = self.lanes[lane].figures.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone_from(figures);
    }

    /// What all lanes have counted, as of a moment ago.
    pub fn figures(&self) -> Figures {
        let mut lanes = self.lanes.iter().map(|state| {
            let figures = state.figures.lock();
            figures.unwrap_or_else(PoisonError::into_inner)
        });
        let mut all = lanes.next().map(|first| first.clone()).unwrap_or_default();
        lanes.for_each(|other| all.merge(&other));
        all
    }

    /// Becomes readable when something has happened that is to be reported at once; see [`Self::clear_report_due`].
    pub fn report_due(&self) -> &EventFd {
        &self.report_due
    }

    /// Has a report sent at once.
    pub(crate) fn request_report(&self) {
        // It fails only where one is due already.
        let _ = self.report_due.write(1);
    }

    pub fn clear_report_due(&self) {
        // An error says that there was none.
        let _ = self.report_due.read();
    }

    fn call_all(&self) {
        for lane in 0..self.lanes.len() {
            self.exchange.call(lane);
        }
        self.request_report();
    }
}
