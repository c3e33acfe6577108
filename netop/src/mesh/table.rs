//! Which pairs are probed when, and what is known of them. Pure: time and randomness are arguments.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use slice_crds::v1alpha1::{BrokenPair, PairFault};

use super::{Local, MOST_REPORTED, Pace, Peer, SMALL, Seen, View, seconds};
use crate::model::{TO_GATEWAYS_PORT, TO_PODS_PORT};

/// Rounds in a row with the same loss until a pair counts as broken; a probe was lost before them.
const BROKEN_AFTER: u8 = 3;
/// Rounds in a row without one until it is well again.
const HEALED_AFTER: u8 = 2;

/// A probe that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub to: IpAddr,
    pub port: u16,
    pub nonce: u64,
    /// Bytes of an IP packet of its length.
    pub size: u16,
    /// It must not be cut on its way.
    pub whole: bool,
}

/// The state of one agent. Look at [`Table::view`] after every other call, and poll when [`Table::poll_at`] says.
#[derive(Debug)]
pub struct Table {
    pace: Pace,
    pairs: BTreeMap<Target, Pair>,
    /// Probes whose pair is gone: nobody waits for their answers.
    abandoned: Vec<Probe>,
    /// Before this, no pair is probed.
    not_before: Option<Instant>,
    /// Pairs were there once: what an earlier agent reported is of before.
    begun: bool,
    view: View,
}

/// Another node's address, and the port.
type Target = (IpAddr, u16);

/// This node and another one, by one port.
#[derive(Debug)]
struct Pair {
    peer: Peer,
    /// Probes that are on their way.
    sent: Vec<Probe>,
    /// When they were sent.
    sent_at: Instant,
    /// When their answers are looked for, or, where there are none, the next ones are sent.
    due: Instant,
    /// A probe was lost: the next round tells what passes.
    doubt: bool,
    /// What the last rounds say, and how many in a row.
    latest: (Option<PairFault>, u8),
    /// What is wrong with it, and since when.
    fault: Option<(PairFault, Timestamp)>,
    search: Search,
    carried: Option<u16>,
}

/// The largest size that passes without being cut: `low` does, `high` does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Search {
    low: u16,
    high: u16,
    /// Probes of one size that were lost in a row.
    misses: u8,
    /// What was tried last.
    tried: Option<u16>,
}

impl Search {
    const fn new(full: u16) -> Self {
        Self {
            low: SMALL,
            high: full,
            misses: 0,
            tried: None,
        }
    }

    const fn is_done(&self) -> bool {
        self.high - self.low <= 1
    }

    /// What is tried next. Once the size is known, its two bounds take turns: the path may have changed.
    const fn next(&mut self) -> u16 {
        let size = match (self.is_done(), self.tried) {
            (false, _) => self.low + (self.high - self.low) / 2,
            (true, Some(tried)) if self.misses == 0 && tried == self.low => self.high,
            (true, Some(tried)) if self.misses > 0 => tried,
            (true, _) => self.low,
        };
        self.tried = Some(size);
        size
    }

    /// Takes note of what became of a size that was tried, where `full` did not pass.
    fn note(&mut self, size: u16, came: bool, full: u16) {
        if came {
            self.misses = 0;
            if size >= self.high {
                self.high = full;
            }
            self.low = self.low.max(size);
            return;
        }
        self.misses += 1;
        // What a stray loss made too small is found to be when its bounds are tried again.
        if self.is_done() && self.misses < 2 {
            return;
        }
        self.misses = 0;
        if size <= self.low {
            self.low = SMALL;
        }
        self.high = self.high.min(size).max(self.low);
    }
}

impl Pair {
    fn new(peer: Peer, now: Instant, due: Instant, before: Option<&BrokenPair>) -> Self {
        let full = peer.size;
        Self {
            peer,
            sent: vec![],
            sent_at: now,
            due,
            doubt: false,
            latest: (before.map(|before| before.fault), 0),
            fault: before.map(|before| (before.fault, before.since.0)),
            search: Search::new(full),
            carried: before.and_then(|before| before.carried),
        }
    }

    const fn fault(&self) -> Option<PairFault> {
        match &self.fault {
            Some((fault, _)) => Some(*fault),
            None => None,
        }
    }

    /// The sizes of the next round, and which of them must not be cut.
    fn round(&mut self) -> Vec<(u16, bool)> {
        let full = self.peer.size;
        if !self.doubt && self.fault.is_none() {
            return vec![(full, true)];
        }
        let mut sizes = vec![(full, true), (full, false), (SMALL, false)];
        if matches!(self.latest.0, Some(PairFault::Size | PairFault::Fragments)) {
            sizes.push((self.search.next(), true));
        }
        sizes
    }

    /// Takes note of which probes of a round were answered.
    fn judge(&mut self, came: &[bool], pace: &Pace, wall: Timestamp) {
        let full = self.peer.size;
        let sent = std::mem::take(&mut self.sent);
        let is_told = sent.len() > 1;
        let mut outcomes = sent.iter().zip(came.iter().copied());
        let whole = outcomes.next().is_none_or(|(_, came)| came);
        let cut = outcomes.next().is_some_and(|(_, came)| came);
        let small = outcomes.next().is_some_and(|(_, came)| came);
        if let Some((probe, came)) = outcomes.next() {
            self.search.note(probe.size, came, full);
        }
        let found = match (whole, is_told, cut, small) {
            (true, ..) => None,
            (false, false, ..) => {
                self.doubt = true;
                self.due = self.sent_at + pace.wait;
                return;
            }
            (_, _, true, _) => Some(PairFault::Fragments),
            (_, _, false, true) => Some(PairFault::Size),
            (_, _, false, false) => Some(PairFault::Silent),
        };
        self.latest = match self.latest {
            (before, rounds) if before == found => (found, rounds.saturating_add(1)),
            _ => (found, 1),
        };
        let of_size = matches!(found, Some(PairFault::Size | PairFault::Fragments));
        if !of_size {
            self.search = Search::new(full);
        }
        // What is too large is said with what is not: a slice may have smaller packets.
        let is_known = !of_size || self.search.is_done();
        let enough = if found.is_some() {
            BROKEN_AFTER
        } else {
            HEALED_AFTER
        };
        if found != self.fault() && self.latest.1 >= enough && is_known {
            // Another fault of a pair that was broken is the same outage.
            let since = self.fault.map_or_else(|| seconds(wall), |(_, since)| since);
            self.fault = found.map(|fault| (fault, since));
            self.carried = None;
        }
        if of_size && is_known && found == self.fault() {
            self.carried = Some(self.search.low);
        }
        self.doubt = found.is_some();
        let is_settled = found == self.fault() && is_known;
        self.due = self.sent_at + if is_settled { pace.every } else { pace.wait };
    }

    fn broken(&self, (address, port): Target) -> Option<BrokenPair> {
        let (fault, since) = self.fault?;
        Some(BrokenPair {
            node: self.peer.node.clone(),
            address,
            port,
            fault,
            size: self.peer.size,
            carried: self.carried,
            since: Time(since),
        })
    }
}

impl Table {
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            pairs: BTreeMap::new(),
            abandoned: vec![],
            not_before: None,
            begun: false,
            view: View::default(),
        }
    }

    /// Takes what the agent wants to know. `random` spreads the first probes.
    pub fn configure(&mut self, now: Instant, local: &Local, mut random: impl FnMut() -> u64) {
        let peers = local.peers.iter();
        let by_port = peers.flat_map(|(address, peer)| {
            let is_used = local.gateways.contains(address);
            let ports = [(TO_PODS_PORT, peer.asked), (TO_GATEWAYS_PORT, is_used)];
            let asked = ports.into_iter().filter(|(_, asked)| *asked);
            asked.map(move |(port, _)| ((*address, port), peer))
        });
        let wanted: BTreeMap<Target, &Peer> = by_port.collect();
        self.pairs.retain(|target, pair| {
            let stays = wanted.contains_key(target);
            if !stays {
                self.abandoned.append(&mut pair.sent);
            }
            stays
        });
        let before: BTreeMap<Target, &BrokenPair> = match self.begun {
            true => BTreeMap::new(),
            false => (local.before.iter())
                .map(|pair| ((pair.address, pair.port), pair))
                .collect(),
        };
        self.begun |= !wanted.is_empty();
        for (target, peer) in wanted {
            match self.pairs.get_mut(&target) {
                Some(pair) if pair.peer == *peer => {}
                Some(pair) => {
                    if pair.peer.size != peer.size {
                        pair.search = Search::new(peer.size);
                    }
                    pair.peer.clone_from(peer);
                }
                None => {
                    let before = before.get(&target).filter(|before| before.node == peer.node);
                    let every = u64::try_from(self.pace.every.as_micros()).unwrap_or(u64::MAX);
                    let due = now + Duration::from_micros(random() % every.max(1));
                    let pair = Pair::new(peer.clone(), now, due, before.copied());
                    self.pairs.insert(target, pair);
                }
            }
        }
        self.look();
    }

    /// Probes whose answers nobody waits for any more.
    pub fn take_abandoned(&mut self) -> Vec<Probe> {
        std::mem::take(&mut self.abandoned)
    }

    /// Probes that waited long enough, for [`Self::judge`].
    pub fn waited(&self, now: Instant) -> Vec<Probe> {
        let due = self.pairs.values().filter(|pair| pair.due <= now);
        due.flat_map(|pair| pair.sent.iter().copied()).collect()
    }

    /// Takes note of which of the probes that waited were answered.
    pub fn judge(&mut self, now: Instant, wall: Timestamp, answered: impl Fn(&Probe) -> bool) {
        for pair in self.pairs.values_mut() {
            if pair.due <= now && !pair.sent.is_empty() {
                let came: Vec<bool> = pair.sent.iter().map(&answered).collect();
                pair.judge(&came, &self.pace, wall);
            }
        }
        self.look();
    }

    /// The probes that are due. `nonce` makes numbers that nobody can guess.
    pub fn poll(&mut self, now: Instant, mut nonce: impl FnMut() -> u64) -> Vec<Probe> {
        if self.not_before.is_some_and(|at| now < at) {
            return vec![];
        }
        let idle = self.pairs.iter_mut().filter(|(_, pair)| pair.sent.is_empty());
        let mut due: Vec<_> = idle.filter(|(_, pair)| pair.due <= now).collect();
        if due.is_empty() {
            return vec![];
        }
        // Those that are about to be known, so that where many are broken the first of them are known soon.
        due.sort_by_key(|(_, pair)| {
            let doubt = pair.doubt && pair.fault.is_none();
            (Reverse(if doubt { pair.latest.1 + 1 } else { 0 }), pair.due)
        });
        let mut probes = vec![];
        for ((to, port), pair) in due.into_iter().take(self.pace.at_once) {
            let round = pair.round();
            pair.sent = round
                .into_iter()
                .map(|(size, whole)| Probe {
                    to: *to,
                    port: *port,
                    nonce: nonce(),
                    size,
                    whole,
                })
                .collect();
            pair.sent_at = now;
            pair.due = now + self.pace.wait;
            probes.extend(&pair.sent);
        }
        self.not_before = Some(now + self.pace.gap);
        probes
    }

    /// When something is due next; never, where nobody is asked.
    pub fn poll_at(&self) -> Option<Instant> {
        let at = |pair: &Pair| match (pair.sent.is_empty(), self.not_before) {
            (true, Some(at)) => pair.due.max(at),
            _ => pair.due,
        };
        self.pairs.values().map(at).min()
    }

    /// What is observed: the same object as before, where nothing changed.
    pub fn view(&self) -> View {
        View::clone(&self.view)
    }

    fn look(&mut self) {
        let all = self.pairs.iter();
        let mut broken: Vec<_> = all.filter_map(|(target, pair)| pair.broken(*target)).collect();
        let mut seen = Seen {
            pairs: self.pairs.len(),
            ..Seen::default()
        };
        for pair in &broken {
            *seen.faults.entry(pair.fault).or_default() += 1;
        }
        // The worst first, and otherwise the same ones as long as they are.
        broken.sort_by_key(|pair| pair.fault);
        broken.truncate(MOST_REPORTED);
        seen.broken = broken;
        if *self.view != seen {
            self.view = seen.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FULL: u16 = 1450;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn peers(last: impl IntoIterator<Item = u8>) -> Local {
        let peer = |last| Peer {
            node: format!("n{last}"),
            size: FULL,
            asked: true,
        };
        let peers = last.into_iter().map(|last| (ip(last), peer(last)));
        Local {
            address: Some(ip(0)),
            peers: std::sync::Arc::new(peers.collect()),
            ..Local::default()
        }
    }

    /// An agent, its clock, and the network that carries its probes.
    struct Bench {
        table: Table,
        start: Instant,
        now: Instant,
        sent: Vec<(Instant, Probe)>,
        nonces: u64,
    }

    impl Bench {
        fn new(local: &Local) -> Self {
            let now = Instant::now();
            let mut bench = Self {
                table: Table::new(Pace::default()),
                start: now,
                now,
                sent: vec![],
                nonces: 0,
            };
            bench.table.configure(now, local, || 0);
            bench
        }

        /// Polls whenever something is due, for so long.
        fn run(&mut self, time: Duration, carries: impl Fn(&Probe) -> bool) {
            self.until(time, carries, |_| false);
        }

        /// The same until a view shows something; how long that took.
        fn until(
            &mut self,
            time: Duration,
            carries: impl Fn(&Probe) -> bool,
            shows: impl Fn(&Seen) -> bool,
        ) -> Option<Duration> {
            let start = self.now;
            while let Some(due) = self.table.poll_at().filter(|due| *due <= start + time) {
                assert!(due >= self.now, "what is due was done");
                self.now = due;
                let waited = self.table.waited(due);
                let wall = Timestamp::UNIX_EPOCH + (due - self.start);
                self.table.judge(due, wall, |probe| {
                    assert!(waited.contains(probe));
                    carries(probe)
                });
                let nonces = &mut self.nonces;
                let sent = self.table.poll(due, || {
                    *nonces += 1;
                    *nonces
                });
                self.sent.extend(sent.into_iter().map(|probe| (due, probe)));
                if shows(&self.table.view()) {
                    return Some(due - start);
                }
            }
            self.now = start + time;
            None
        }

        fn only(&self) -> Option<BrokenPair> {
            let view = self.table.view();
            assert!(view.broken.len() <= 1);
            view.broken.first().cloned()
        }
    }

    fn is_broken(seen: &Seen) -> bool {
        !seen.broken.is_empty()
    }

    #[test]
    fn a_pair_that_is_well_costs_one_full_probe_every_five_seconds() {
        let mut bench = Bench::new(&peers([1]));
        bench.run(SECOND * 60, |_| true);
        assert_eq!(bench.sent.len(), 12 + 1);
        assert!(
            bench
                .sent
                .iter()
                .all(|(_, probe)| probe.size == FULL && probe.whole)
        );
        assert_eq!(bench.only(), None);
    }

    #[test]
    fn a_silent_pair_is_known_within_ten_seconds_and_heals() {
        for offset in 0..5 {
            let mut bench = Bench::new(&peers([1, 2]));
            bench.run(SECOND * (20 + offset), |_| true);
            let broke = bench.now;
            let carries = |probe: &Probe| probe.to != ip(1);
            let took = bench.until(SECOND * 30, carries, is_broken);
            assert!(took.is_some_and(|took| took <= SECOND * 10), "{took:?}");
            let pair = bench.only().unwrap();
            assert_eq!((pair.node.as_str(), pair.fault), ("n1", PairFault::Silent));
            assert_eq!((pair.size, pair.carried), (FULL, None));
            let since = pair.since.0;
            assert!(since >= seconds(Timestamp::UNIX_EPOCH + (broke - bench.start)));
            bench.run(SECOND * 60, carries);
            assert_eq!(bench.only().unwrap().since.0, since, "it is the same outage");
            let took = bench.until(SECOND * 30, |_| true, |seen| !is_broken(seen));
            assert!(took.is_some_and(|took| took <= SECOND * 10), "{took:?}");
        }
    }

    #[test]
    fn a_few_losses_break_nothing() {
        let mut bench = Bench::new(&peers([1]));
        // Three probes of four in a row.
        bench.run(SECOND * 600, |probe| probe.nonce % 4 == 0);
        assert_eq!(bench.only(), None, "{:?}", bench.sent);
        assert!(bench.sent.len() > 200);
    }

    #[test]
    fn the_largest_size_is_found_and_followed() {
        let mut bench = Bench::new(&peers([1]));
        let passes = |largest: u16| move |probe: &Probe| probe.size <= largest;
        let found = |largest: u16| {
            move |seen: &Seen| {
                seen.broken
                    .first()
                    .is_some_and(|pair| (pair.fault, pair.carried) == (PairFault::Size, Some(largest)))
            }
        };
        let took = bench.until(SECOND * 60, passes(1400), is_broken).unwrap();
        assert!(took <= SECOND * 22, "{took:?}");
        assert!(found(1400)(&bench.table.view()), "named with the size at once");
        for largest in [1350, 1406, 576] {
            let took = bench.until(SECOND * 120, passes(largest), found(largest));
            assert!(took.is_some_and(|took| took < SECOND * 60), "{largest}: {took:?}");
        }
        let before = bench.sent.len();
        bench.run(SECOND * 60, passes(576));
        assert!(
            bench.sent.len() - before <= 13 * 4,
            "known, it is looked at seldom"
        );
        bench
            .until(SECOND * 30, |_| true, |seen| !is_broken(seen))
            .unwrap();
        // And a fresh search, not one from where the last one ended.
        let took = bench.until(SECOND * 60, passes(1000), found(1000));
        assert!(took.is_some_and(|took| took < SECOND * 40), "{took:?}");
    }

    #[test]
    fn what_passes_in_fragments_only_is_told_apart() {
        let mut bench = Bench::new(&peers([1]));
        let carries = |probe: &Probe| !probe.whole || probe.size <= 1350;
        bench.run(SECOND * 60, carries);
        let pair = bench.only().unwrap();
        assert_eq!(pair.fault, PairFault::Fragments);
        assert_eq!(pair.carried, Some(1350));
        // It gets worse, and is still the same outage.
        let since = pair.since;
        bench.run(SECOND * 60, |_| false);
        let pair = bench.only().unwrap();
        assert_eq!(
            (pair.fault, pair.carried, pair.since),
            (PairFault::Silent, None, since)
        );
    }

    #[test]
    fn a_node_that_is_cut_off_from_all_sends_at_its_pace_and_names_the_first_soon() {
        let mut bench = Bench::new(&peers(1..=250));
        bench.run(SECOND * 20, |_| true);
        bench.sent.clear();
        let took = bench.until(SECOND * 30, |_| false, is_broken);
        assert!(took.is_some_and(|took| took <= SECOND * 15), "{took:?}");
        bench.run(SECOND * 120, |_| false);
        let view = bench.table.view();
        assert_eq!(view.faults, [(PairFault::Silent, 250)].into());
        assert_eq!(view.broken.len(), MOST_REPORTED);
        // Of three probes each.
        for second in 0..100 {
            let from = bench.start + SECOND * (20 + second);
            let within = bench
                .sent
                .iter()
                .filter(|(at, _)| (from..from + SECOND).contains(at));
            assert!(within.count() <= 11 * 5 * 3);
        }
    }

    #[test]
    fn what_an_earlier_agent_reported_holds_until_it_is_seen_to_be_otherwise() {
        let before = BrokenPair {
            node: "n1".into(),
            address: ip(1),
            port: TO_PODS_PORT,
            fault: PairFault::Silent,
            size: FULL,
            carried: None,
            since: Time(Timestamp::from_second(7).unwrap()),
        };
        let local = Local {
            before: vec![before.clone()],
            ..peers([1, 2])
        };
        let mut bench = Bench::new(&local);
        assert_eq!(bench.only(), Some(before.clone()));
        bench.run(SECOND * 30, |probe| probe.to != ip(1));
        assert_eq!(bench.only(), Some(before.clone()), "still, and since then");
        bench.run(SECOND * 30, |_| true);
        assert_eq!(bench.only(), None);
        // A node that comes back is a new one.
        bench.table.configure(bench.now, &peers([2]), || 0);
        bench.table.configure(bench.now, &local, || 0);
        assert_eq!(bench.only(), None);
        // As is one that has its address.
        let other = Local {
            before: vec![BrokenPair {
                node: "another".into(),
                ..before
            }],
            ..peers([1])
        };
        assert_eq!(Bench::new(&other).only(), None);
    }

    #[test]
    fn a_node_with_gateways_is_asked_by_their_port_by_all_who_use_them() {
        let mut local = peers([1, 2]);
        std::sync::Arc::make_mut(&mut local.peers)
            .get_mut(&ip(2))
            .unwrap()
            .asked = false;
        local.gateways = [ip(2), ip(3)].into();
        let mut bench = Bench::new(&local);
        bench.run(SECOND * 30, |probe| probe.port != TO_GATEWAYS_PORT);
        let targets: BTreeMap<_, _> = bench
            .sent
            .iter()
            .map(|(_, probe)| (probe.to, probe.port))
            .collect();
        assert_eq!(targets, [(ip(1), TO_PODS_PORT), (ip(2), TO_GATEWAYS_PORT)].into());
        let pair = bench.only().unwrap();
        assert_eq!((pair.address, pair.port), (ip(2), TO_GATEWAYS_PORT));
        local.gateways.clear();
        bench.table.configure(bench.now, &local, || 0);
        assert_eq!(bench.only(), None);
    }

    #[test]
    fn a_node_that_goes_is_not_reported_any_more() {
        let mut bench = Bench::new(&peers([1]));
        bench.run(SECOND * 30, |_| false);
        assert!(bench.only().is_some());
        // Its probes are on their way.
        let on_their_way = |bench: &Bench| bench.table.pairs[&(ip(1), TO_PODS_PORT)].sent.clone();
        while on_their_way(&bench).is_empty() {
            bench.run(SECOND / 2, |_| false);
        }
        let sent = on_their_way(&bench);
        bench.table.configure(bench.now, &peers([]), || 0);
        assert_eq!((bench.only(), bench.table.poll_at()), (None, None));
        assert_eq!(
            (bench.table.take_abandoned(), bench.table.take_abandoned()),
            (sent, vec![])
        );
    }
}
