//! The buffers that [`crate::proto`] writes into: datagrams to one address side by side, so that one system call
//! sends many; frames one after the other.

use std::{
    collections::BTreeSet,
    io::{self, IoSlice},
    net::SocketAddr,
    sync::Arc,
};

use nix::errno::Errno;

use super::{
    exchange::Exchange,
    merge::{MAX_PIECES, Merger},
    sockets::Sockets,
    tap::Tap,
    udp::{MAX_BATCH, MAX_SEGMENTS},
    vnet,
};
use crate::{
    proto::{Destination, Drops, Endpoint, Fragmentation, Output, Reason, lane::Note},
    sizes::Sizes,
};

/// Batches that are filled before they are sent: a turn of the loop fills one for each peer that it has frames for.
const BATCHES: usize = 32;
/// Room for the frames of one turn: as many bytes as one turn can receive.
const FRAME_BYTES: usize = 32 * 65_536 + 65_536;
/// Frames of one turn: more than one turn can receive of useful length.
const FRAMES: usize = 4096;

/// Datagrams to one address; all but the last have `segment` bytes.
struct Batch {
    to: Destination,
    segment: usize,
    count: usize,
    /// The last datagram was shorter, or another length came: nothing may follow.
    closed: bool,
    bytes: Box<[u8]>,
    filled: usize,
}

/// Everything that waits to be written in a turn of the loop.
pub struct Batches {
    sockets: Sockets,
    exchange: Arc<Exchange>,
    batches: Vec<Batch>,
    used: usize,
    /// Place of the batch and length of the datagram that is lent.
    lent: Option<(usize, usize)>,
    frame_bytes: Vec<u8>,
    frame_used: usize,
    /// Where the frame that is lent starts.
    frame_lent: usize,
    frames: Vec<(usize, usize)>,
    merger: Merger,
    /// Kinds of send errors that were logged.
    told: BTreeSet<Option<i32>>,
    counts: Counts,
}

/// What was written, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// System calls that sent datagrams.
    pub send_calls: u64,
    pub datagrams: u64,
    pub datagram_bytes: u64,
    /// System calls that wrote to the TAP.
    pub write_calls: u64,
    /// Frames written to the TAP.
    pub frames: u64,
    /// Datagrams handed over together.
    pub sent: Sizes,
    /// Frames written as one.
    pub written: Sizes,
    pub drops: Drops,
}

impl Counts {
    /// Adds what another lane has written.
    pub fn merge(&mut self, other: &Self) {
        self.send_calls += other.send_calls;
        self.datagrams += other.datagrams;
        self.datagram_bytes += other.datagram_bytes;
        self.write_calls += other.write_calls;
        self.frames += other.frames;
        self.sent.merge(&other.sent);
        self.written.merge(&other.written);
        self.drops.merge(&other.drops);
    }
}

impl Batches {
    pub fn new(sockets: Sockets, exchange: Arc<Exchange>) -> Self {
        let nowhere = Endpoint::from(SocketAddr::from(([0, 0, 0, 0], 0)));
        let batch = || Batch {
            to: nowhere.into(),
            segment: 0,
            count: 0,
            closed: true,
            bytes: vec![0; MAX_BATCH].into(),
            filled: 0,
        };
        Self {
            sockets,
            exchange,
            batches: std::iter::repeat_with(batch).take(BATCHES).collect(),
            used: 0,
            lent: None,
            frame_bytes: vec![0; FRAME_BYTES],
            frame_used: 0,
            frame_lent: 0,
            frames: Vec::with_capacity(FRAMES),
            merger: Merger::default(),
            told: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    pub fn sockets_mut(&mut self) -> &mut Sockets {
        &mut self.sockets
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Sends all datagrams.
    pub fn flush_datagrams(&mut self) {
        for batch in &mut self.batches[..self.used] {
            self.counts.send_calls += 1;
            self.counts.datagrams += batch.count as u64;
            self.counts.sent.add(batch.count);
            self.counts.datagram_bytes += batch.filled as u64;
            let datagrams = &batch.bytes[..batch.filled];
            let udp = self.sockets.get(batch.to.endpoint.socket);
            if let Err((error, bytes)) = udp.send(batch.to, datagrams, batch.segment) {
                let too_long = error.raw_os_error() == Some(Errno::EMSGSIZE as i32);
                if too_long && batch.to.fragmentation == Fragmentation::Probe {
                    continue;
                }
                let lost = bytes.div_ceil(batch.segment.max(1)) as u64;
                self.counts.drops.add(Reason::SendFailed, lost);
                // Once for each kind: while a path is broken it would be every datagram.
                let to = batch.to.endpoint.address;
                if self.told.insert(error.raw_os_error()) {
                    tracing::warn!(%error, bytes = batch.segment, "datagrams not sent, further ones are counted only");
                }
                tracing::debug!(%error, lost, %to, "datagrams not sent");
            }
        }
        self.used = 0;
        self.lent = None;
    }

    /// Writes all frames to the TAP, merged as far as it takes that; without one, or where it refuses them, they are
    /// dropped.
    pub fn flush_frames(&mut self, tap: Option<&mut Tap>) {
        if self.frames.is_empty() {
            return;
        }
        let Some(tap) = tap else {
            self.counts
                .drops
                .add(Reason::TapRefused, self.frames.len() as u64);
            self.frames.clear();
            self.frame_used = 0;
            return;
        };
        self.merger.clear();
        for frame in self.frames.drain(..) {
            self.merger.push(&self.frame_bytes, frame, tap.merges());
        }
        for item in 0..self.merger.items() {
            let meta = self.merger.finish(item, &mut self.frame_bytes);
            let count = self.merger.count(item) as u64;
            let mut header = [0; vnet::HEADER];
            vnet::write(meta, &mut header);
            let mut pieces = [IoSlice::new(&[]); MAX_PIECES + 1];
            pieces[0] = IoSlice::new(&header);
            let mut used = 1;
            for piece in self.merger.pieces(item) {
                pieces[used] = IoSlice::new(&self.frame_bytes[piece.start..piece.end]);
                used += 1;
            }
            self.counts.write_calls += 1;
            match tap.write(&pieces[..used]) {
                Ok(()) => {
                    self.counts.frames += count;
                    self.counts.written.add(count as usize);
                }
                Err(error) => {
                    self.counts.drops.add(Reason::TapRefused, count);
                    tracing::debug!(%error, count, "frames not written");
                    if count > 1 && error.kind() == io::ErrorKind::InvalidInput {
                        tap.stop_merging();
                    }
                }
            }
        }
        self.frame_used = 0;
    }

    /// Bytes of frames that wait.
    pub fn frame_bytes(&self) -> usize {
        self.frame_used
    }

    /// The batch that a datagram joins.
    fn place(&mut self, to: Destination, length: usize) -> usize {
        let last = self.batches[..self.used]
            .iter()
            .rposition(|batch| batch.to.endpoint == to.endpoint);
        if let Some(place) = last {
            let batch = &mut self.batches[place];
            let fits = batch.count < MAX_SEGMENTS && batch.filled + length <= MAX_BATCH;
            if !batch.closed && fits && length <= batch.segment && batch.to == to {
                return place;
            }
            batch.closed = true;
        }
        if self.used == BATCHES {
            self.flush_datagrams();
        }
        let place = self.used;
        let batch = &mut self.batches[place];
        (batch.to, batch.segment) = (to, length);
        (batch.count, batch.filled, batch.closed) = (0, 0, false);
        place
    }
}

impl Output for Batches {
    fn datagram(&mut self, to: Destination, length: usize) -> Option<&mut [u8]> {
        if length == 0 || length > MAX_BATCH {
            return None;
        }
        let place = self.place(to, length);
        self.lent = Some((place, length));
        let batch = &mut self.batches[place];
        batch.bytes[batch.filled..].get_mut(..length)
    }

    fn send(&mut self) {
        let Some((place, length)) = self.lent.take() else {
            return;
        };
        let batch = &mut self.batches[place];
        batch.count += 1;
        batch.filled += length;
        batch.closed |= length < batch.segment;
        self.used = self.used.max(place + 1);
    }

    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        if self.frames.len() == FRAMES {
            return None;
        }
        self.frame_lent = self.frame_used;
        self.frame_bytes.get_mut(self.frame_lent..)?.get_mut(..length)
    }

    fn deliver(&mut self, start: usize, end: usize) {
        self.frames.push((self.frame_lent + start, self.frame_lent + end));
        self.frame_used = self.frame_lent + end;
    }

    fn leave(&mut self, lane: u8, note: Note, bytes: &[u8]) -> bool {
        self.exchange.send(lane, note, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches() -> Batches {
        let mut sockets = Sockets::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        Batches::new(sockets.remove(0), Arc::new(Exchange::new(1).unwrap()))
    }

    fn to(port: u16) -> Destination {
        Endpoint::from(SocketAddr::from(([127, 0, 0, 1], port))).into()
    }

    fn put(batches: &mut Batches, port: u16, length: usize) {
        let room = batches.datagram(to(port), length).unwrap();
        assert_eq!(room.len(), length);
        room.fill(port as u8);
        batches.send();
    }

    /// The batches that `datagrams` (port and length) fill, as port, segment, count, bytes.
    #[track_caller]
    fn check(datagrams: &[(u16, usize)], expected: &[(u16, usize, usize, usize)]) {
        let mut batches = batches();
        for (port, length) in datagrams {
            put(&mut batches, *port, *length);
        }
        let got: Vec<_> = batches.batches[..batches.used]
            .iter()
            .map(|batch| {
                (
                    batch.to.endpoint.address.port(),
                    batch.segment,
                    batch.count,
                    batch.filled,
                )
            })
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn equal_datagrams_to_one_address_travel_together() {
        check(&[(1, 100), (1, 100), (1, 100)], &[(1, 100, 3, 300)]);
        check(
            &[(1, 100), (2, 50), (1, 100), (2, 50)],
            &[(1, 100, 2, 200), (2, 50, 2, 100)],
        );
    }

    #[test]
    fn a_shorter_datagram_ends_its_batch() {
        check(&[(1, 100), (1, 60), (1, 60)], &[(1, 100, 2, 160), (1, 60, 1, 60)]);
    }

    #[test]
    fn a_longer_datagram_begins_another() {
        check(&[(1, 60), (1, 100), (1, 60)], &[(1, 60, 1, 60), (1, 100, 2, 160)]);
    }

    #[test]
    fn marks_keep_apart() {
        let mut batches = batches();
        for ecn in [0, 2, 2, 0] {
            batches.datagram(Destination { ecn, ..to(1) }, 100).unwrap();
            batches.send();
        }
        let got: Vec<_> = batches.batches[..batches.used]
            .iter()
            .map(|batch| (batch.to.ecn, batch.count))
            .collect();
        assert_eq!(got, [(0, 1), (2, 2), (0, 1)]);
    }

    #[test]
    fn batches_are_bounded() {
        check(&[(1, 10); 65], &[(1, 10, 64, 640), (1, 10, 1, 10)]);
        check(
            &[(1, 30_000); 3],
            &[(1, 30_000, 2, 60_000), (1, 30_000, 1, 30_000)],
        );
        assert!(batches().datagram(to(1), MAX_BATCH + 1).is_none());
    }

    #[test]
    fn a_full_set_of_batches_is_sent() {
        let mut batches = batches();
        for port in 0..BATCHES as u16 + 1 {
            put(&mut batches, 1000 + port, 10);
        }
        assert_eq!((batches.used, batches.counts.send_calls), (1, BATCHES as u64));
    }

    #[test]
    fn what_is_not_committed_is_not_sent() {
        let mut batches = batches();
        batches.datagram(to(1), 100).unwrap();
        put(&mut batches, 1, 60);
        assert_eq!(
            (
                batches.used,
                batches.batches[0].filled,
                batches.batches[0].segment
            ),
            (1, 60, 60)
        );
        batches.send();
        assert_eq!(batches.batches[0].filled, 60);
    }

    #[test]
    fn frames_follow_one_another() {
        let mut batches = batches();
        for n in 1..=3u8 {
            batches.frame(100).unwrap().fill(n);
            batches.deliver(36, 96);
        }
        // Lent, not delivered.
        batches.frame(100).unwrap().fill(9);
        let frames = batches
            .frames
            .iter()
            .map(|(start, end)| &batches.frame_bytes[*start..*end]);
        assert_eq!(frames.collect::<Vec<_>>(), [[1; 60], [2; 60], [3; 60]]);
        assert!(batches.frame(FRAME_BYTES).is_none());
        batches.flush_frames(None);
        assert_eq!(batches.counts.drops.of(Reason::TapRefused), 3);
    }
}
