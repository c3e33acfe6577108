//! Who was asked, who answered, and who is to be answered again. Pure: time and randomness are arguments.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{ASKED, Adjacency, Gateway, Health, Local, MAX_GATEWAYS, Message, View};

/// Between two questions.
pub const ASK_EVERY: Duration = Duration::from_millis(100);
/// Silence after which a node's gateways are taken to be gone: three answers are missing.
pub const DEAD_AFTER: Duration = Duration::from_millis(310);
/// How long somebody who asked is sent changes.
const INTEREST: Duration = Duration::from_secs(1);
/// Questions that are due so soon are asked with those that are due now: it is one wake-up for all nodes.
const TOGETHER: Duration = Duration::from_millis(25);

/// The state of one agent. Look at [`Table::view`] after every other call, and poll when [`Table::poll_at`] says.
#[derive(Debug, Default)]
pub struct Table {
    targets: BTreeMap<IpAddr, Target>,
    askers: BTreeMap<IpAddr, BTreeMap<u64, Asker>>,
    nodes: BTreeSet<IpAddr>,
    own: BTreeMap<Gateway, Health>,
    /// As last looked at.
    view: View,
    /// Since then something was observed that is not in it, or is to be left out.
    changed: bool,
}

/// A node that is asked.
#[derive(Debug)]
struct Target {
    nonce: u64,
    gateways: BTreeSet<Gateway>,
    since: Instant,
    next: Instant,
    answered: Option<Instant>,
    /// It was noticed that it does not answer.
    silent: bool,
    reports: BTreeMap<Gateway, Option<Health>>,
}

impl Target {
    /// From when on it is taken to be silent, unless it answers.
    fn silent_at(&self) -> Instant {
        self.answered.unwrap_or(self.since) + DEAD_AFTER
    }
}

/// A node that asked.
#[derive(Debug)]
struct Asker {
    gateways: Vec<Gateway>,
    last: Instant,
}

impl Table {
    /// Takes what the agent reports, and returns what others are to be sent at once. `nonce` makes numbers that nobody
    /// can guess.
    pub fn configure(
        &mut self,
        now: Instant,
        local: &Local,
        mut nonce: impl FnMut() -> u64,
    ) -> Vec<(IpAddr, Message)> {
        self.nodes.clone_from(&local.nodes);
        let targets = self.targets.len();
        self.targets
            .retain(|address, _| local.wanted.contains_key(address));
        self.changed |= self.targets.len() != targets;
        for (address, gateways) in &local.wanted {
            let target = self.targets.entry(*address).or_insert_with(|| Target {
                nonce: nonce(),
                gateways: BTreeSet::new(),
                since: now,
                next: now,
                answered: None,
                silent: false,
                reports: BTreeMap::new(),
            });
            if target.gateways != *gateways {
                target.gateways.clone_from(gateways);
                target.reports.retain(|gateway, _| gateways.contains(gateway));
                // What is new is asked for at once.
                target.next = now;
                self.changed = true;
            }
        }
        self.forget_askers(now);
        let before = std::mem::replace(&mut self.own, local.own.clone());
        let changed = |gateway: &Gateway| before.get(gateway) != self.own.get(gateway);
        let mut updates = Vec::new();
        for (address, asker) in self
            .askers
            .iter()
            .flat_map(|(address, askers)| askers.iter().map(move |asker| (address, asker)))
        {
            let (nonce, asker) = asker;
            if asker.gateways.iter().any(changed) {
                updates.push((*address, answer(*nonce, &asker.gateways, &self.own)));
            }
        }
        updates
    }

    /// Takes a message; returns the answer to a question.
    pub fn handle(&mut self, now: Instant, from: IpAddr, message: Message) -> Option<Message> {
        if !self.nodes.contains(&from) {
            return None;
        }
        match message {
            Message::Ask { nonce, gateways } => {
                if gateways.len() > MAX_GATEWAYS {
                    return None;
                }
                let answer = answer(nonce, &gateways, &self.own);
                let askers = self.askers.entry(from).or_default();
                askers.insert(nonce, Asker { gateways, last: now });
                // A node asks in as many messages as its gateways need, with a number each.
                while askers.len() > MAX_GATEWAYS {
                    askers.pop_first();
                }
                Some(answer)
            }
            Message::Answer { nonce, reports } => {
                let target = self.targets.get_mut(&from)?;
                let place = nonce.wrapping_sub(target.nonce);
                if place >= (target.gateways.len().div_ceil(ASKED)) as u64 {
                    return None;
                }
                target.answered = Some(now);
                self.changed |= std::mem::take(&mut target.silent);
                for (gateway, report) in reports {
                    if target.gateways.contains(&gateway) {
                        let before = target.reports.insert(gateway, report.clone());
                        self.changed |= before != Some(report);
                    }
                }
                None
            }
        }
    }

    /// The questions that are due; notices silence.
    pub fn poll(&mut self, now: Instant) -> Vec<(IpAddr, Message)> {
        self.forget_askers(now);
        self.notice_silence(now);
        let mut asked = Vec::new();
        for (address, target) in &mut self.targets {
            if target.next > now + TOGETHER {
                continue;
            }
            target.next = now + ASK_EVERY;
            let gateways: Vec<Gateway> = target.gateways.iter().copied().collect();
            for (place, gateways) in (0..).zip(gateways.chunks(ASKED)) {
                let question = Message::Ask {
                    nonce: target.nonce.wrapping_add(place),
                    gateways: gateways.to_vec(),
                };
                asked.push((*address, question));
            }
        }
        asked
    }

    /// When something is due next: a question, or a silence; never, where nobody is asked.
    pub fn poll_at(&self) -> Option<Instant> {
        let silences = self.targets.values().filter(|target| !target.silent);
        let questions = self.targets.values().map(|target| target.next);
        silences.map(Target::silent_at).chain(questions).min()
    }

    /// What is observed: the same object as before, where nothing changed.
    pub fn view(&mut self, now: Instant) -> View {
        self.notice_silence(now);
        if std::mem::take(&mut self.changed) {
            let seen = self.look();
            if *self.view != seen {
                self.view = seen.into();
            }
        }
        self.view.clone()
    }

    fn look(&self) -> BTreeMap<(IpAddr, Gateway), Adjacency> {
        let mut view = BTreeMap::new();
        for (address, target) in &self.targets {
            for gateway in &target.gateways {
                let adjacency = match target.reports.get(gateway) {
                    _ if target.silent => Adjacency::Silent,
                    Some(Some(health)) => Adjacency::Reports(health.clone()),
                    Some(None) => Adjacency::Absent,
                    None => continue,
                };
                view.insert((*address, *gateway), adjacency);
            }
        }
        view
    }

    fn notice_silence(&mut self, now: Instant) {
        for target in self.targets.values_mut() {
            if !target.silent && target.silent_at() <= now {
                target.silent = true;
                self.changed = true;
            }
        }
    }

    /// Those who have not asked for long are not sent changes any more.
    fn forget_askers(&mut self, now: Instant) {
        self.askers.retain(|_, askers| {
            askers.retain(|_, asker| now.saturating_duration_since(asker.last) < INTEREST);
            !askers.is_empty()
        });
    }
}

fn answer(nonce: u64, gateways: &[Gateway], own: &BTreeMap<Gateway, Health>) -> Message {
    let reports = gateways
        .iter()
        .map(|gateway| (*gateway, own.get(gateway).cloned()));
    Message::Answer {
        nonce,
        reports: reports.collect(),
    }
}

#[cfg(test)]
mod tests {
    use crate::shares::Part;

    use std::sync::Arc;

    use super::*;
    use crate::liveness::MAX_MISSING;

    const MS: Duration = Duration::from_millis(1);
    const WELL: Health = Health {
        reached: 2,
        draining: false,
        missing: vec![],
        part: None,
    };

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn local(wanted: &[(IpAddr, Gateway)], own: &[(Gateway, Health)]) -> Local {
        let mut local = Local {
            nodes: (1..=9).map(ip).collect(),
            own: own.iter().cloned().collect(),
            ..Local::default()
        };
        for (address, gateway) in wanted {
            local.wanted.entry(*address).or_default().insert(*gateway);
        }
        local
    }

    /// Nodes 1, which asks, and 2, which has a gateway.
    struct Pair {
        now: Instant,
        asks: Table,
        has: Table,
    }

    impl Pair {
        fn new(own: &[(Gateway, Health)]) -> Self {
            let now = Instant::now();
            let mut pair = Self {
                now,
                asks: Table::default(),
                has: Table::default(),
            };
            pair.asks.configure(now, &local(&[(ip(2), (7, 0))], &[]), || 1000);
            pair.own(own);
            pair
        }

        fn own(&mut self, own: &[(Gateway, Health)]) {
            for (to, message) in self.has.configure(self.now, &local(&[], own), || 0) {
                assert_eq!(to, ip(1));
                self.asks.handle(self.now, ip(2), message);
            }
        }

        fn pass(&mut self, ms: u32) {
            for _ in 0..ms / 10 {
                self.now += MS * 10;
                for (to, question) in self.asks.poll(self.now) {
                    assert_eq!(to, ip(2));
                    if let Some(answer) = self.has.handle(self.now, ip(1), question) {
                        self.asks.handle(self.now, ip(2), answer);
                    }
                }
            }
        }

        fn observed(&mut self) -> Option<Adjacency> {
            self.asks.view(self.now).get(&(ip(2), (7, 0))).cloned()
        }
    }

    #[test]
    fn polling_when_it_is_due_misses_nothing_and_the_view_is_made_anew_only_where_it_changes() {
        let mut pair = Pair::new(&[((7, 0), WELL)]);
        let start = pair.now;
        let (mut seen, mut changes, mut polls) = (pair.asks.view(start), Vec::new(), 0);
        // It answers for a second, is silent for a second, and answers again.
        while pair.now < start + MS * 3000 {
            pair.now = pair.asks.poll_at().expect("somebody is asked");
            polls += 1;
            let at = (pair.now - start).as_millis();
            for (_, question) in pair.asks.poll(pair.now) {
                if let Some(answer) = pair.has.handle(pair.now, ip(1), question)
                    && !(1000..2000).contains(&at)
                {
                    pair.asks.handle(pair.now, ip(2), answer);
                }
            }
            let view = pair.asks.view(pair.now);
            if !Arc::ptr_eq(&view, &seen) {
                changes.push((at, view[&(ip(2), (7, 0))].clone()));
                seen = view;
            }
        }
        let (well, silent) = (Adjacency::Reports(WELL), Adjacency::Silent);
        assert_eq!(changes, [(0, well.clone()), (1210, silent), (2000, well)]);
        assert!(polls <= 32, "{polls} wake-ups in 3 s");
        pair.asks.configure(pair.now, &local(&[], &[]), || 0);
        assert!(pair.asks.view(pair.now).is_empty());
        assert_eq!(pair.asks.poll_at(), None);
    }

    #[test]
    fn all_nodes_are_asked_at_once() {
        let now = Instant::now();
        let mut asks = Table::default();
        asks.configure(now, &local(&[(ip(2), (7, 0))], &[]), || 0);
        asks.poll(now);
        let both = local(&[(ip(2), (7, 0)), (ip(3), (7, 1))], &[]);
        asks.configure(now + MS * 80, &both, || 0);
        assert_eq!(asks.poll(now + MS * 80).len(), 2);
        assert_eq!(asks.poll_at(), Some(now + MS * 180));
    }

    #[test]
    fn a_node_that_is_asked_says_how_its_gateway_is() {
        let mut pair = Pair::new(&[((7, 0), WELL), ((8, 0), WELL)]);
        assert_eq!(pair.observed(), None, "nobody was asked yet");
        pair.pass(50);
        assert_eq!(pair.observed(), Some(Adjacency::Reports(WELL)));
        pair.pass(2000);
        assert_eq!(pair.observed(), Some(Adjacency::Reports(WELL)));
    }

    #[test]
    fn a_change_is_sent_without_being_asked() {
        let mut pair = Pair::new(&[((7, 0), WELL)]);
        pair.pass(50);
        let draining = Health {
            draining: true,
            ..WELL
        };
        pair.own(&[((7, 0), draining.clone())]);
        assert_eq!(pair.observed(), Some(Adjacency::Reports(draining)));
        pair.own(&[]);
        assert_eq!(pair.observed(), Some(Adjacency::Absent));
        pair.own(&[((9, 0), WELL)]);
        assert_eq!(
            pair.observed(),
            Some(Adjacency::Absent),
            "another gateway's report is no news"
        );
    }

    #[test]
    fn silence_is_noticed_in_time() {
        let mut pair = Pair::new(&[((7, 0), WELL)]);
        pair.pass(1000);
        // The last answer is up to 100 ms old.
        pair.now += MS * 210;
        assert_eq!(pair.observed(), Some(Adjacency::Reports(WELL)));
        pair.now += MS * 100;
        assert_eq!(pair.observed(), Some(Adjacency::Silent));
        pair.pass(20);
        assert_eq!(pair.observed(), Some(Adjacency::Reports(WELL)));
    }

    #[test]
    fn who_never_answers_is_silent() {
        let mut pair = Pair::new(&[]);
        pair.has.nodes.clear();
        pair.pass(200);
        assert_eq!(pair.observed(), None);
        pair.pass(200);
        assert_eq!(pair.observed(), Some(Adjacency::Silent));
    }

    #[test]
    fn strangers_and_guesses_count_for_nothing() {
        let mut pair = Pair::new(&[((7, 0), WELL)]);
        let report = |nonce| Message::Answer {
            nonce,
            reports: vec![((7, 0), Some(WELL))],
        };
        for (from, nonce) in [(2, 999), (2, 1001), (3, 1000)] {
            pair.asks.handle(pair.now, ip(from), report(nonce));
            assert_eq!(pair.observed(), None);
        }
        let question = Message::Ask {
            nonce: 1,
            gateways: vec![(7, 0)],
        };
        assert_eq!(pair.has.handle(pair.now, ip(77), question), None);
        let long = Message::Ask {
            nonce: 1,
            gateways: vec![(7, 0); MAX_GATEWAYS + 1],
        };
        assert_eq!(pair.has.handle(pair.now, ip(1), long), None);
    }

    #[test]
    fn agents_of_other_versions_understand_each_other() {
        let answer = Message::Answer {
            nonce: 1,
            reports: vec![((7, 0), Some(WELL)), ((8, 1), None)],
        };
        let text =
            r#"{"type":"answer","nonce":1,"words":[[[7,0],{"reached":2,"draining":false}],[[8,1],null]]}"#;
        assert_eq!(serde_json::to_string(&answer).unwrap(), text);
        assert_eq!(serde_json::from_str::<Message>(text).unwrap(), answer);
        let partly = Health {
            missing: vec![3],
            part: Some(Part::even(2)),
            ..WELL
        };
        let text = serde_json::to_string(&partly).unwrap();
        let share = r#"{"u":500,"w":1000}"#;
        let expected =
            format!(r#"{{"reached":2,"draining":false,"missing":[3],"part":{{"e":{share},"i":{share}}}}}"#);
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Health>(&text).unwrap(), partly);
    }

    #[test]
    fn many_gateways_are_asked_for_in_several_packets() {
        let now = Instant::now();
        let wanted: Vec<_> = (0..200).map(|vni| (ip(2), (vni, 0))).collect();
        let longest = Health {
            missing: (500..).take(MAX_MISSING).collect(),
            part: Some(Part::default()),
            ..WELL
        };
        let own: Vec<_> = (0..200).map(|vni| ((vni, 0), longest.clone())).collect();
        let (mut asks, mut has) = (Table::default(), Table::default());
        asks.configure(now, &local(&wanted, &[]), || u64::MAX);
        has.configure(now, &local(&[], &own), || 0);
        let questions = asks.poll(now);
        assert_eq!(questions.len(), 29);
        for (_, question) in questions {
            assert!(serde_json::to_vec(&question).unwrap().len() < 1200);
            let answer = has.handle(now, ip(1), question).unwrap();
            assert!(serde_json::to_vec(&answer).unwrap().len() < 1200);
            asks.handle(now, ip(2), answer);
        }
        assert_eq!(asks.view(now).len(), 200);
        assert!(asks.poll(now + MS * 50).is_empty());
    }
}
