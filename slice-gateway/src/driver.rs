//! The loop of the data path, on a plain thread: wait, read a batch, handle it, write a batch. The only place with a
//! clock.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use tokio_util::sync::CancellationToken;

use crate::{
    entropy,
    io::{
        batch::{Batches, Counts},
        patience::Patience,
        tap::{Level, MAX_HEADER, Tap},
        udp::{Memory, Received, Udp},
        vnet,
    },
    proto::{Config, Event, Gateway, HEADROOM, Key, Stats, config::encode_key},
    sizes::Sizes,
};

/// Frames that are read from the TAP in a turn, before the network gets its turn.
const FRAMES_PER_TURN: usize = 64;
/// And bytes: four super-frames.
const BYTES_PER_TURN: usize = 256 << 10;
/// Frames are written to the TAP when there are this many bytes, while they are still in the cache.
const FLUSH_BYTES: usize = 192 << 10;
/// Longest frame that is read.
const MAX_FRAME: usize = 65_536 + 64;
/// How often the figures are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// How long nothing has been carried when a gateway that is to stop does: longer than all others take to learn that
/// they should send their frames another way.
const QUIET: Duration = Duration::from_millis(500);
/// How long it waits for that: where there is no other way, frames come until the end.
const DRAIN: Duration = Duration::from_secs(3);

/// What the data path shares with the other threads.
pub struct Shared {
    letters: Mutex<Letters>,
    /// Wakes the data path.
    wake: EventFd,
    figures: Mutex<Arc<Figures>>,
    /// Wakes the control thread: a tunnel went up or down, or the TAP was lost.
    news: EventFd,
    has_tap: AtomicBool,
    draining: AtomicBool,
    stopping: CancellationToken,
}

/// What the data path is told. The newest of each replaces the one before.
#[derive(Default)]
struct Letters {
    config: Option<Config>,
    tap: Option<Tap>,
}

/// What the data path has counted.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub slice: String,
    /// There is a configuration, and the rest is about it.
    pub configured: bool,
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
}

impl Shared {
    /// # Errors
    /// Where the kernel has no descriptors left.
    pub fn new() -> io::Result<Arc<Self>> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Arc::new(Self {
            letters: Mutex::default(),
            wake: EventFd::from_flags(flags)?,
            figures: Mutex::default(),
            news: EventFd::from_flags(flags)?,
            has_tap: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            stopping: CancellationToken::new(),
        }))
    }

    pub fn set_config(&self, config: Config) {
        self.write(|letters| letters.config = Some(config));
    }

    pub fn set_tap(&self, tap: Tap) {
        self.has_tap.store(true, Ordering::Release);
        self.write(|letters| letters.tap = Some(tap));
    }

    /// Asks everybody to send frames another way, and stops once they do.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        let _ = self.wake.write(1);
        let _ = self.news.write(1);
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Ends all threads at once.
    pub fn stop(&self) {
        self.stopping.cancel();
        // Neither can fail but by being awake already.
        let _ = self.wake.write(1);
        let _ = self.news.write(1);
    }

    /// Cancelled by [`Self::stop`].
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    fn write(&self, write: impl FnOnce(&mut Letters)) {
        write(&mut self.letters.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = self.wake.write(1);
    }

    /// Whether the data path holds a TAP device.
    pub fn has_tap(&self) -> bool {
        self.has_tap.load(Ordering::Acquire)
    }

    pub fn figures(&self) -> Arc<Figures> {
        self.figures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Becomes readable when something has happened that should be told at once; see [`Self::clear_news`].
    pub fn news(&self) -> &EventFd {
        &self.news
    }

    pub fn clear_news(&self) {
        // An error says that there was none.
        let _ = self.news.read();
    }
}

/// The data path.
pub struct Driver {
    gateway: Gateway,
    batches: Batches,
    tap: Option<Tap>,
    shared: Arc<Shared>,
    received: Received,
    frame: Vec<u8>,
    /// The last turn that read from the TAP found a single frame there.
    alone: bool,
    patience: Patience,
    next_publish: Instant,
    figures: Figures,
    drain: Option<Drain>,
}

/// A planned stop.
struct Drain {
    since: Instant,
    /// When something was last carried, and how much had been then.
    busy: Instant,
    carried: u64,
}

impl Driver {
    /// Publishes the gateway's keys at once.
    pub fn new(gateway: Gateway, udp: Udp, shared: Arc<Shared>) -> Self {
        let mut this = Self {
            gateway,
            batches: Batches::new(udp),
            tap: None,
            shared,
            received: Received::default(),
            frame: vec![0; HEADROOM + MAX_FRAME],
            alone: true,
            patience: Patience::default(),
            next_publish: Instant::now(),
            figures: Figures::default(),
            drain: None,
        };
        this.publish();
        this
    }

    /// Runs until [`Shared::stop`], or until [`Shared::drain`] is through.
    ///
    /// # Errors
    /// Where the kernel does not let it wait.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            self.figures.turns += 1;
            if ready.letters {
                self.take_letters();
            }
            if self.shared.stopping.is_cancelled() {
                return Ok(());
            }
            // The network first: what proves that a peer lives must be seen before the clock is.
            if ready.udp {
                self.receive();
            }
            if ready.tap {
                let before = self.figures.frames_read;
                self.read_frames();
                let read = self.figures.frames_read - before;
                self.figures
                    .waiting
                    .add(usize::try_from(read).unwrap_or(usize::MAX));
            }
            let now = Instant::now();
            let draining = self.shared.is_draining();
            self.gateway.set_away(draining || self.tap.is_none());
            self.gateway.handle_timeout(now, &mut self.batches);
            if self.gateway.wants_key(now) {
                self.renew(now);
            }
            self.batches.flush_datagrams();
            self.batches.flush_frames(self.tap.as_mut());
            self.publish();
            if draining && self.is_drained(now) {
                return Ok(());
            }
        }
    }

    fn renew(&mut self, now: Instant) {
        match entropy::bytes() {
            Ok(secret) => self.gateway.renew(now, Key::from_random(secret)),
            Err(error) => tracing::error!(%error, "no new key was made, carrying on with the one there is"),
        }
    }

    /// Whether a planned stop may go on: nothing comes any more, or there is no other way for it.
    fn is_drained(&mut self, now: Instant) -> bool {
        let carried = self.figures.frames_read + self.batches.counts().frames;
        let drain = self.drain.get_or_insert(Drain {
            since: now,
            busy: now,
            carried,
        });
        if drain.carried != carried {
            (drain.carried, drain.busy) = (carried, now);
        }
        now.duration_since(drain.busy) >= QUIET || now.duration_since(drain.since) >= DRAIN
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let timeout = self
            .gateway
            .poll_timeout()
            .saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be spent turning.
        let timeout = PollTimeout::try_from(timeout + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let mut fds = [
            PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.batches.udp().as_fd(), PollFlags::POLLIN),
            PollFd::new(
                self.tap
                    .as_ref()
                    .map_or_else(|| self.shared.wake.as_fd(), AsFd::as_fd),
                PollFlags::POLLIN,
            ),
        ];
        let fds = if self.tap.is_some() {
            &mut fds[..]
        } else {
            &mut fds[..2]
        };
        let begun = Instant::now();
        if !look(fds, begun, self.patience.window()) {
            match poll(fds, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.patience.after_sleep(begun.elapsed());
        }
        let ready = |place: usize| fds.get(place).and_then(PollFd::any).unwrap_or(false);
        Ok(Ready {
            letters: ready(0),
            udp: ready(1),
            tap: ready(2),
        })
    }

    fn take_letters(&mut self) {
        let _ = self.shared.wake.read();
        let mut letters = self.shared.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let (config, tap) = (letters.config.take(), letters.tap.take());
        drop(letters);
        if let Some(config) = config {
            self.figures.slice.clone_from(&config.slice);
            self.figures.configured = true;
            if let Err(error) = self.batches.udp_mut().set_dscp(config.dscp) {
                tracing::warn!(%error, dscp = config.dscp, "code point not set");
            }
            self.gateway.reconfigure(Instant::now(), config);
        }
        if let Some(tap) = tap {
            self.tap = Some(tap);
        }
    }

    fn receive(&mut self) {
        match self.batches.udp().receive(&mut self.received) {
            Ok(()) => self.figures.receive_calls += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return tracing::debug!(%error, "datagrams not received"),
        }
        let now = Instant::now();
        for (from, ecn, bytes, segment) in self.received.messages() {
            self.figures.received.add(bytes.len().div_ceil(segment));
            for datagram in bytes.chunks(segment) {
                self.gateway
                    .handle_datagram(now, from, ecn, datagram, &mut self.batches);
            }
            if self.batches.frame_bytes() >= FLUSH_BYTES {
                self.batches.flush_frames(self.tap.as_mut());
            }
        }
        self.batches.flush_frames(self.tap.as_mut());
    }

    fn read_frames(&mut self) {
        let Some(tap) = &self.tap else { return };
        let (mut header, mut bytes, mut frames) = ([0; MAX_HEADER], 0, 0);
        let was_alone = std::mem::replace(&mut self.alone, true);
        for _ in 0..FRAMES_PER_TURN {
            match tap.read(&mut header, &mut self.frame[HEADROOM..]) {
                Ok(length) => {
                    self.figures.frames_read += 1;
                    bytes += length;
                    match vnet::parse(&header) {
                        Ok(offload) => {
                            let buffer = &mut self.frame[..HEADROOM + length];
                            self.gateway.handle_frame(buffer, offload, &mut self.batches);
                        }
                        Err(reason) => self.gateway.count(reason, 1),
                    }
                    frames += 1;
                    self.alone = frames == 1;
                    if frames == 1 && was_alone {
                        // Somebody waits for this one, and nobody is behind it: it goes before that is known.
                        self.batches.flush_datagrams();
                    }
                    if bytes >= BYTES_PER_TURN {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The device is gone; the agent makes another one and hands it over.
                    tracing::warn!(%error, "the TAP device is lost");
                    self.tap = None;
                    self.shared.has_tap.store(false, Ordering::Release);
                    let _ = self.shared.news.write(1);
                    return;
                }
            }
        }
    }

    fn publish(&mut self) {
        let mut news = false;
        while let Some(event) = self.gateway.poll_event() {
            news = true;
            match event {
                Event::Up { peer } => tracing::info!(peer, "tunnel is up"),
                Event::Down { peer } => tracing::info!(peer, "tunnel is down"),
                Event::Wants { peer, frames: true } => tracing::info!(peer, "peer wants frames"),
                Event::Wants { peer, frames: false } => tracing::info!(peer, "peer wants no frames"),
                Event::Keys => {
                    let keys = self.gateway.keys();
                    let former = keys.former.as_ref().map(encode_key);
                    tracing::info!(key = encode_key(&keys.current), former, "keys");
                }
            }
        }
        let now = Instant::now();
        if !news && now < self.next_publish {
            return;
        }
        self.next_publish = now + PUBLISH_EVERY;
        self.figures.stats = self.gateway.stats(now);
        self.figures.counts = *self.batches.counts();
        self.figures.offload = self.tap.as_ref().map_or(Level::None, Tap::level);
        match self.batches.udp().memory() {
            Ok(memory) => self.figures.memory = memory,
            Err(error) => tracing::debug!(%error, "the socket's queues cannot be read"),
        }
        self.figures.segmentation = self.batches.udp().segmentation();
        self.figures.coalescing = self.batches.udp().coalescing();
        let figures = Arc::new(self.figures.clone());
        *self.shared.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
        if news {
            let _ = self.shared.news.write(1);
        }
    }
}

/// Looks for so long whether there is something to do, and lets others run in between.
fn look(fds: &mut [PollFd<'_>], begun: Instant, window: Duration) -> bool {
    while begun.elapsed() < window {
        if matches!(poll(fds, PollTimeout::ZERO), Ok(1..)) {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

struct Ready {
    letters: bool,
    udp: bool,
    tap: bool,
}
