//! The loop of the data path, on a plain thread for each lane: wait, read a batch, handle it, write a batch. The only
//! place with a clock.

use std::{
    io,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    entropy,
    io::{
        batch::Batches,
        patience::Patience,
        sockets::Sockets,
        tap::{Level, Tap},
        udp::Received,
        vnet,
    },
    proto::{Change, Endpoint, Event, Gateway, HEADROOM, Key, Socket, config::encode_key, lane::Lane},
    shared::{Figures, KeyUpdate, Shared},
};

/// Frames that are read from the TAP in a turn, before the network gets its turn.
const FRAMES_PER_TURN: usize = 64;
/// And bytes: four super-frames.
const BYTES_PER_TURN: usize = 256 << 10;
/// Frames are written to the TAP when there are this many bytes, while they are still in the cache.
const FLUSH_BYTES: usize = 192 << 10;
/// Messages of other lanes that are read in a turn.
const PARCELS_PER_TURN: usize = 64;
/// Calls that read what waits after this process stood still: more than a full socket holds. In any other turn it is one,
/// so that neither side waits for the other.
const CALLS_AFTER_STALL: usize = 256;
/// Longest frame that is read.
const MAX_FRAME: usize = 65_536 + 64;
/// How often the figures are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// How long nothing has been carried when a gateway that is to stop does: longer than all others take to learn that
/// they should send their frames another way.
const QUIET: Duration = Duration::from_millis(500);
/// How long it waits for that: where there is no other way, frames come until the end.
const DRAIN: Duration = Duration::from_secs(3);

/// The data path of one lane.
pub struct Driver {
    lane: usize,
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
    /// Keys that were made here.
    keys: u64,
    /// The next one, until all lanes have it.
    next_key: Option<(Key, Change)>,
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
    pub fn new(lane: Lane, gateway: Gateway, sockets: Sockets, shared: Arc<Shared>) -> Self {
        let mut this = Self {
            lane: lane.number().into(),
            gateway,
            batches: Batches::new(sockets, shared.exchange().clone()),
            tap: None,
            shared,
            received: Received::default(),
            frame: vec![0; HEADROOM + MAX_FRAME],
            alone: true,
            patience: Patience::default(),
            next_publish: Instant::now(),
            figures: Figures {
                threads: 1,
                ..Figures::default()
            },
            keys: 0,
            next_key: None,
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
            if ready.updates {
                self.take_updates();
            }
            if self.shared.stopping().is_cancelled() {
                return Ok(());
            }
            // The network first: what proves that a peer lives must be seen before the clock is.
            let stalled = self.gateway.has_stalled(Instant::now());
            let calls = if stalled { CALLS_AFTER_STALL } else { 1 };
            for (socket, ready) in [
                (Socket::Listening, ready.listening),
                (Socket::Dialing, ready.dialing),
            ] {
                let mut left = if ready || stalled { calls } else { 0 };
                while left > 0 && self.receive(socket) {
                    left -= 1;
                }
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
            self.handle_timeout(now);
            self.batches.flush_datagrams();
            self.batches.flush_frames(self.tap.as_mut());
            self.publish();
            if draining && self.is_drained(now) {
                return Ok(());
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.lane > 0 {
            self.gateway.handle_timeout(now, &mut self.batches);
            self.shared.set_need(self.lane, self.gateway.need_of_former(now));
            return;
        }
        self.gateway.set_need_of_others(self.shared.need_of_others());
        let had_former = self.gateway.has_former();
        self.gateway.handle_timeout(now, &mut self.batches);
        if had_former && !self.gateway.has_former() {
            self.shared.update_others(|| KeyUpdate::Retire);
        }
        if self.next_key.is_none()
            && let Some(change) = self.gateway.wants_key(now)
        {
            self.make_key(change);
        }
        // The others first: when a peer hears of a key, every lane answers to it.
        if self.shared.others_have_keys(self.keys)
            && let Some((key, change)) = self.next_key.take()
        {
            self.gateway.renew(now, key, change);
        }
    }

    fn make_key(&mut self, change: Change) {
        match entropy::bytes() {
            Ok(secret) => {
                let key = Key::from_random(secret);
                self.shared.update_others(|| KeyUpdate::Take(key.clone(), change));
                self.keys += 1;
                self.next_key = Some((key, change));
            }
            Err(error) => tracing::error!(%error, "no new key was made, carrying on with the one there is"),
        }
    }

    /// Whether a planned stop may go on: nothing comes any more to any lane, or there is no other way for it.
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
        let late = now.duration_since(drain.since) >= DRAIN;
        let quiet = late || now.duration_since(drain.busy) >= QUIET;
        self.shared.set_quiet(self.lane, quiet)
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let timeout = self
            .gateway
            .poll_timeout()
            .saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be spent turning.
        let timeout = PollTimeout::try_from(timeout + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let wake = self.shared.exchange().wake(self.lane).as_fd();
        let sockets = self.batches.sockets();
        // What is not there is not looked at.
        let watch = |fd: Option<_>| match fd {
            Some(fd) => PollFd::new(fd, PollFlags::POLLIN),
            None => PollFd::new(wake, PollFlags::empty()),
        };
        let tap = self.tap.as_ref().filter(|tap| tap.reads());
        let mut fds = [
            watch(Some(wake)),
            watch(Some(sockets.listening().as_fd())),
            watch(sockets.dialing().map(AsFd::as_fd)),
            watch(tap.map(AsFd::as_fd)),
        ];
        let begun = Instant::now();
        if !look(&mut fds, begun, self.patience.window()) {
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.patience.after_sleep(begun.elapsed());
        }
        let ready = |place: usize| fds.get(place).and_then(PollFd::any).unwrap_or(false);
        Ok(Ready {
            updates: ready(0),
            listening: ready(1),
            dialing: ready(2),
            tap: ready(3),
        })
    }

    fn take_updates(&mut self) {
        let updates = self.shared.take_updates(self.lane);
        let now = Instant::now();
        if let Some(config) = updates.config {
            self.figures.slice.clone_from(&config.slice);
            self.figures.configured = true;
            self.figures.largest_mtu = u16::try_from(config.segment.largest).unwrap_or(u16::MAX);
            if let Err(error) = self.batches.sockets_mut().set_dscp(config.dscp) {
                tracing::warn!(%error, dscp = config.dscp, "code point not set");
            }
            self.batches.sockets_mut().retry_segmentation();
            self.gateway.reconfigure(now, config);
        }
        for update in updates.keys {
            match update {
                KeyUpdate::Take(key, change) => {
                    self.gateway.renew(now, key, change);
                    let need = self.gateway.need_of_former(now);
                    self.shared.key_taken(self.lane, need);
                }
                KeyUpdate::Retire => self.gateway.retire(now),
            }
        }
        if let Some(tap) = updates.tap {
            self.tap = tap;
            if self.tap.is_none() {
                self.shared.tap_closed(self.lane);
            }
        }
        self.receive_messages(now);
    }

    /// Takes what other lanes have left.
    fn receive_messages(&mut self, now: Instant) {
        let exchange = self.shared.exchange().clone();
        for _ in 0..PARCELS_PER_TURN {
            let Some(mut message) = exchange.receive(self.lane) else {
                return;
            };
            self.gateway
                .handle_note(now, message.note, &mut message.buffer, &mut self.batches);
            exchange.give_back(message.buffer);
        }
        // The rest is for the next turn.
        exchange.call(self.lane);
    }

    /// Takes a batch of datagrams; `false` where there are none.
    fn receive(&mut self, socket: Socket) -> bool {
        let sockets = self.batches.sockets();
        let udp = match socket {
            Socket::Listening => Some(sockets.listening()),
            Socket::Dialing => sockets.dialing(),
        };
        let Some(udp) = udp else { return false };
        match udp.receive(&mut self.received) {
            Ok(()) => self.figures.receive_calls += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                tracing::debug!(%error, "datagrams not received");
                return false;
            }
        }
        let now = Instant::now();
        for (address, ecn, bytes, segment) in self.received.messages() {
            let from = Endpoint { address, socket };
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
        true
    }

    fn read_frames(&mut self) {
        let Some(tap) = &self.tap else { return };
        let (mut header, mut bytes, mut frames) = ([0; vnet::HEADER], 0, 0);
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
                    self.shared.lose_taps();
                    return;
                }
            }
        }
    }

    fn publish(&mut self) {
        let mut changed = false;
        while let Some(event) = self.gateway.poll_event() {
            changed = true;
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
        if !changed && now < self.next_publish {
            return;
        }
        self.next_publish = now + PUBLISH_EVERY;
        self.figures.stats = self.gateway.stats(now);
        self.figures.counts = *self.batches.counts();
        self.figures.offload = self.tap.as_ref().map_or(Level::None, Tap::level);
        self.figures.queues = self.tap.as_ref().is_some_and(Tap::reads).into();
        match self.batches.sockets().memory() {
            Ok(memory) => self.figures.memory = memory,
            Err(error) => tracing::debug!(%error, "the socket's queues cannot be read"),
        }
        self.figures.segmentation = self.batches.sockets().segmentation();
        self.figures.coalescing = self.batches.sockets().coalescing();
        self.shared.publish(self.lane, &self.figures);
        if changed {
            self.shared.request_report();
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
    updates: bool,
    listening: bool,
    dialing: bool,
    tap: bool,
}
