//! A gateway as its process runs it: its lanes, and what the drivers and the kernel do between them.

use std::{collections::VecDeque, net::SocketAddr, time::Instant};

use slice_frame::Frame;
use slice_gateway::proto::{
    Config, Destination, Endpoint, Event, Gateway, HEADROOM, Key, Keys, Offload, Output, Random, Socket,
    Stats,
    lane::{Lane, Note},
};

/// The port of a lane's own socket is this and its number.
const DIALING: u16 = 40_000;

pub(crate) struct Machine {
    pub(crate) lanes: Vec<Gateway>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

/// What comes out of a gateway.
#[derive(Default)]
pub(crate) struct Yield {
    /// From, to, bytes.
    pub(crate) datagrams: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    pub(crate) frames: Vec<Vec<u8>>,
    pub(crate) events: Vec<Event>,
    /// The ECN code point of the datagram that was sent last.
    pub(crate) ecn: u8,
}

/// What comes out of a lane.
#[derive(Default)]
struct Buffers {
    datagrams: Vec<(Destination, Vec<u8>)>,
    lent: Option<(Destination, Vec<u8>)>,
    frames: Vec<Vec<u8>>,
    frame: Vec<u8>,
    parcels: VecDeque<(usize, Note, Vec<u8>)>,
}

impl Output for Buffers {
    fn datagram(&mut self, to: Destination, length: usize) -> Option<&mut [u8]> {
        Some(&mut self.lent.insert((to, vec![0xaa; length])).1)
    }

    fn send(&mut self) {
        self.datagrams.extend(self.lent.take());
    }

    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        self.frame = vec![0xaa; length];
        Some(&mut self.frame)
    }

    fn deliver(&mut self, start: usize, end: usize) {
        assert!(start >= HEADROOM);
        self.frames.push(self.frame[start..end].to_vec());
    }

    fn leave(&mut self, lane: u8, note: Note, bytes: &[u8]) -> bool {
        let buffer = [&[0xaa; HEADROOM][..], bytes].concat();
        self.parcels.push_back((lane.into(), note, buffer));
        true
    }
}

impl Machine {
    pub(crate) fn new(
        threads: u8,
        key: &Key,
        address: SocketAddr,
        random: &mut Random,
        now: Instant,
    ) -> Self {
        let lane = |lane| Gateway::new(lane, key.clone(), random.number(), now);
        Self {
            lanes: Lane::all(threads).map(lane).collect(),
            address,
        }
    }

    pub(crate) fn keys(&self) -> Keys {
        self.lanes[0].keys()
    }

    pub(crate) fn set_away(&mut self, away: bool) {
        self.lanes.iter_mut().for_each(|lane| lane.set_away(away));
    }

    pub(crate) fn reconfigure(&mut self, now: Instant, config: &Config) {
        for lane in self.lanes.iter_mut().rev() {
            lane.reconfigure(now, config.clone());
        }
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        self.lanes
            .iter()
            .map(Gateway::poll_timeout)
            .min()
            .expect("a lane")
    }

    /// Does what has become due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Yield {
        let needs = self.lanes[1..].iter().map(|lane| lane.need_of_former(now));
        let need = needs.max().unwrap_or_default();
        self.lanes[0].set_need_of_others(need);
        let mut all = Yield::default();
        for lane in 0..self.lanes.len() {
            let had_former = self.lanes[lane].has_former();
            self.act(lane, now, &mut all, |gateway, out| {
                gateway.handle_timeout(now, out)
            });
            if lane == 0 && had_former && !self.lanes[0].has_former() {
                self.lanes[1..].iter_mut().for_each(|other| other.retire(now));
            }
        }
        all
    }

    /// Takes a key, which `make` makes, where one is wanted.
    pub(crate) fn renew(&mut self, now: Instant, make: impl FnOnce() -> Key) {
        if let Some(change) = self.lanes[0].wants_key(now) {
            let key = make();
            for lane in self.lanes.iter_mut().rev() {
                lane.renew(now, key.clone(), change);
            }
        }
    }

    /// Takes a datagram, by the socket that it is for; `None` where nobody listens.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        (from, to): (SocketAddr, SocketAddr),
        ecn: u8,
        datagram: &[u8],
    ) -> Option<Yield> {
        let mut all = Yield::default();
        let (lane, socket) = if to == self.address {
            (self.steer(datagram), Socket::Listening)
        } else {
            let lane = to.port().checked_sub(DIALING).map(usize::from);
            let lane = lane.filter(|lane| to.ip() == self.address.ip() && *lane < self.lanes.len());
            (lane?, Socket::Dialing)
        };
        let from = Endpoint {
            address: from,
            socket,
        };
        self.act(lane, now, &mut all, |gateway, out| {
            gateway.handle_datagram(now, from, ecn, datagram, out);
        });
        Some(all)
    }

    /// Takes a frame from the slice, in the lane of its flow.
    pub(crate) fn handle_frame(&mut self, now: Instant, frame: &[u8]) -> Yield {
        let mut all = Yield::default();
        let flow = Frame::read(frame).map_or(0, |frame| frame.flow());
        let lane = flow as usize % self.lanes.len();
        let mut buffer = [&[0xaa; HEADROOM][..], frame].concat();
        self.act(lane, now, &mut all, |gateway, out| {
            gateway.handle_frame(&mut buffer, Offload::default(), out);
        });
        all
    }

    pub(crate) fn stats(&self, now: Instant) -> Stats {
        let mut lanes = self.lanes.iter().map(|lane| lane.stats(now));
        let mut all = lanes.next().expect("a lane");
        lanes.for_each(|other| all.merge(&other));
        all
    }

    /// What the kernel does with a datagram to the port that all lanes share: see `io::steer`.
    fn steer(&self, datagram: &[u8]) -> usize {
        let at = match datagram.first() {
            Some(1) | None => return 0,
            Some(2) => 9,
            Some(_) => 5,
        };
        datagram.get(at).map_or(0, |byte| usize::from(byte & 0xf)) % self.lanes.len()
    }

    /// Lets a lane act, and then those that it left something to.
    fn act(
        &mut self,
        lane: usize,
        now: Instant,
        all: &mut Yield,
        act: impl FnOnce(&mut Gateway, &mut Buffers),
    ) {
        let mut out = Buffers::default();
        act(&mut self.lanes[lane], &mut out);
        let mut parcels = std::mem::take(&mut out.parcels);
        self.hand_in(lane, out, all);
        while let Some((lane, note, mut buffer)) = parcels.pop_front() {
            let mut out = Buffers::default();
            self.lanes[lane].handle_note(now, note, &mut buffer, &mut out);
            parcels.append(&mut out.parcels);
            self.hand_in(lane, out, all);
        }
    }

    fn hand_in(&mut self, lane: usize, mut out: Buffers, all: &mut Yield) {
        let dialing = SocketAddr::new(self.address.ip(), DIALING + lane as u16);
        for (to, datagram) in out.datagrams {
            let from = match to.endpoint.socket {
                Socket::Dialing => dialing,
                Socket::Listening => self.address,
            };
            all.ecn = to.ecn;
            all.datagrams.push((from, to.endpoint.address, datagram));
        }
        all.frames.append(&mut out.frames);
        while let Some(event) = self.lanes[lane].poll_event() {
            all.events.push(event);
        }
    }
}
