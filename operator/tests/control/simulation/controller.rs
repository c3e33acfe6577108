//! One role with two replicas of which one leads: its watches, its writes under way, crashes and changes of the lead.

use std::collections::BTreeSet;

use slice_operator::{
    control::{Failure, Key, Kind, Now, Outcome, Reason, Write},
    hub, member,
    member::Side,
};

use super::{
    feed::{Feed, Signal},
    random::Random,
};
use crate::{server::Server, stage::settings};

/// Writes that one replica has under way at one server.
const AT_ONCE: usize = 6;

/// A write that was sent.
pub(crate) struct Flight {
    side: Side,
    write: Write,
    /// What the server made of it, once it has come to it.
    outcome: Option<Outcome>,
}

/// How much a controller takes in at once.
#[derive(Clone, Copy)]
pub(crate) struct Most {
    /// Events of one watch, now and then.
    pub(crate) burst: usize,
    pub(crate) events: usize,
    /// Answers to writes, fewer than this.
    pub(crate) answers: usize,
}

/// Where a member's writes go.
pub(crate) struct Servers<'a> {
    pub(crate) local: &'a mut Server,
    /// `None` while no packet passes.
    pub(crate) hub: Option<&'a mut Server>,
}

impl<'a> Servers<'a> {
    /// As the hub has it: its own API server only.
    pub(crate) fn of_hub(hub: &'a mut Server) -> Self {
        Self {
            local: hub,
            hub: None,
        }
    }

    fn of(&mut self, side: Side) -> Option<&mut Server> {
        match side {
            Side::Local => Some(self.local),
            Side::Hub => self.hub.as_deref_mut(),
        }
    }
}

/// What both roles have in common.
pub(crate) trait Role {
    type Source: Copy;
    const SIDES: &'static [Side];
    fn fresh() -> Self;
    fn feeds(cluster: &str) -> Vec<Feed<Self::Source>>;
    fn side(source: Self::Source) -> Side;
    /// Where a written object is seen again.
    fn source_of(side: Side, kind: Kind) -> Option<Self::Source>;
    fn signal(&mut self, source: Self::Source, signal: Signal, now: Now);
    /// Namespaces that are to be followed, when others are than before.
    fn take_followed(&mut self) -> Option<BTreeSet<String>>;
    fn feed_of(namespace: &str) -> Feed<Self::Source>;
    fn lead(&mut self, leading: bool, now: Now);
    /// Whether the watch is listed consistently when the lead is taken.
    fn is_fencing(source: Self::Source) -> bool;
    fn poll(&mut self, side: Side, now: Now) -> Option<Write>;
    fn in_flight(&self, side: Side) -> usize;
    fn written(&mut self, side: Side, key: Key, outcome: Outcome, now: Now);
    fn tick(&mut self, now: Now);
    /// Whether it wants to be polled although nothing has happened.
    fn is_pending(&self) -> bool;
}

impl Role for hub::Hub {
    type Source = hub::Source;
    const SIDES: &'static [Side] = &[Side::Local];

    fn fresh() -> Self {
        Self::new(settings())
    }

    fn feeds(_: &str) -> Vec<Feed<hub::Source>> {
        let feed = |source: hub::Source| match source {
            hub::Source::Lease => Feed::new(source, "Lease", |object| {
                object["metadata"]["name"] == "weft-member"
            }),
            _ => Feed::new(source, &source.resource().kind, |_| true),
        };
        hub::Source::ALL.into_iter().map(feed).collect()
    }

    fn side(_: hub::Source) -> Side {
        Side::Local
    }

    fn source_of(_: Side, kind: Kind) -> Option<hub::Source> {
        hub::Source::of(kind)
    }

    fn signal(&mut self, source: hub::Source, signal: Signal, now: Now) {
        let event = match signal {
            Signal::Seen(value) => hub::Event::Seen(Box::new(hub::Input::read(source, &value))),
            Signal::Gone(meta) => hub::Event::Gone(source, meta),
            Signal::Listed(_, there) => hub::Event::Listed(source, there),
        };
        self.handle(event, now);
    }

    fn take_followed(&mut self) -> Option<BTreeSet<String>> {
        None
    }

    fn feed_of(_: &str) -> Feed<hub::Source> {
        unreachable!("the hub follows every namespace")
    }

    fn lead(&mut self, leading: bool, now: Now) {
        self.handle(hub::Event::Leading(leading), now);
    }

    fn is_fencing(source: hub::Source) -> bool {
        source == hub::Source::SliceAllocation
    }

    fn poll(&mut self, _: Side, now: Now) -> Option<Write> {
        self.poll_write(now)
    }

    fn in_flight(&self, _: Side) -> usize {
        Self::in_flight(self)
    }

    fn written(&mut self, _: Side, key: Key, outcome: Outcome, now: Now) {
        self.handle(hub::Event::Written(key, outcome), now);
    }

    fn tick(&mut self, now: Now) {
        self.handle(hub::Event::Tick, now);
    }

    fn is_pending(&self) -> bool {
        self.next_timeout() == Some(std::time::Duration::ZERO)
    }
}

impl Role for member::Member {
    type Source = member::Source;
    const SIDES: &'static [Side] = &[Side::Local, Side::Hub];

    fn fresh() -> Self {
        Self::new(member::Settings {
            version: "test",
            gateway_image: "gateway:1".into(),
            gateway_pod: member::gateways::PodSettings::default(),
            gateway_namespace: "weft-gateways".into(),
            dns_service: "weft-dns".into(),
            cluster_dns: member::cluster_dns::Config::Known,
            inline: false,
        })
    }

    fn feeds(cluster: &str) -> Vec<Feed<member::Source>> {
        use member::Source;
        let local = Source::LOCAL.into_iter().map(|source| {
            let kind = source.resource().kind;
            match source {
                Source::AgentLease => Feed::new(source, &kind, |object| {
                    object["metadata"]["namespace"] == "weft-system"
                }),
                Source::GatewayPod | Source::GatewaySet | Source::GatewayBudget | Source::GatewayService => {
                    Feed::new(source, &kind, |object| {
                        object["metadata"]["labels"]["weft.dev/component"] == "gateway"
                    })
                }
                _ => Feed::new(source, &kind, |_| true),
            }
        });
        let namespace = format!("weft-member-{cluster}");
        let remote = Source::HUB
            .into_iter()
            .map(|source| Feed::inside(source, &source.resource().kind, &namespace));
        local.chain(remote).collect()
    }

    fn side(source: member::Source) -> Side {
        source.side()
    }

    fn source_of(side: Side, kind: Kind) -> Option<member::Source> {
        member::Source::of(side, kind)
    }

    fn signal(&mut self, source: member::Source, signal: Signal, now: Now) {
        let event = match signal {
            Signal::Seen(value) => member::Event::Seen(Box::new(member::Input::read(source, &value))),
            Signal::Gone(meta) => member::Event::Gone(source, meta),
            Signal::Listed(namespace, there) if source == member::Source::SliceShare => {
                member::Event::Shared(namespace, there)
            }
            Signal::Listed(_, there) => member::Event::Listed(source, there),
        };
        self.handle(event, now);
    }

    fn take_followed(&mut self) -> Option<BTreeSet<String>> {
        Self::take_followed(self)
    }

    fn feed_of(namespace: &str) -> Feed<member::Source> {
        let mut feed = Feed::inside(member::Source::SliceShare, "SliceShare", namespace);
        feed.comes_and_goes = true;
        feed
    }

    fn lead(&mut self, leading: bool, now: Now) {
        self.handle(member::Event::Leading(leading), now);
    }

    fn is_fencing(source: member::Source) -> bool {
        matches!(source, member::Source::Slice | member::Source::SliceBlock)
    }

    fn poll(&mut self, side: Side, now: Now) -> Option<Write> {
        self.poll_write(side, now)
    }

    fn in_flight(&self, side: Side) -> usize {
        Self::in_flight(self, side)
    }

    fn written(&mut self, side: Side, key: Key, outcome: Outcome, now: Now) {
        self.handle(member::Event::Written(side, key, outcome), now);
    }

    fn tick(&mut self, now: Now) {
        self.handle(member::Event::Tick, now);
    }

    fn is_pending(&self) -> bool {
        self.next_timeout() == Some(std::time::Duration::ZERO)
    }
}

/// One process.
struct Replica<R: Role> {
    role: R,
    feeds: Vec<Feed<R::Source>>,
    flights: Vec<Flight>,
}

impl<R: Role> Replica<R> {
    /// Watches come and go with what the role wants to follow.
    fn follow(&mut self) {
        let Some(mut namespaces) = self.role.take_followed() else {
            return;
        };
        self.feeds
            .retain(|feed| !feed.comes_and_goes || namespaces.remove(&*feed.namespace));
        for namespace in namespaces {
            self.feeds.push(R::feed_of(&namespace));
        }
    }
}

/// Both processes of a role.
pub(crate) struct Controller<R: Role> {
    cluster: String,
    replicas: [Replica<R>; 2],
    leader: Option<usize>,
    /// Writes of a process that is no more, or leads no more: they land or they do not, and nobody waits for them.
    stray: Vec<Flight>,
}

impl<R: Role> Controller<R> {
    pub(crate) fn new(cluster: &str) -> Self {
        let replica = || Replica {
            role: R::fresh(),
            feeds: R::feeds(cluster),
            flights: Vec::new(),
        };
        Self {
            cluster: cluster.to_owned(),
            replicas: [replica(), replica()],
            leader: None,
            stray: Vec::new(),
        }
    }

    /// Something for every process to know: a heartbeat, a credential.
    pub(crate) fn each(&mut self, mut event: impl FnMut(&mut R)) {
        for replica in &mut self.replicas {
            event(&mut replica.role);
        }
    }

    pub(crate) fn leader(&mut self) -> Option<&mut R> {
        Some(&mut self.replicas[self.leader?].role)
    }

    pub(crate) fn role(&self) -> Option<&R> {
        Some(&self.replicas[self.leader?].role)
    }

    /// One of the things that can happen next.
    pub(crate) fn turn(
        &mut self,
        most: Most,
        servers: &mut Servers<'_>,
        late: bool,
        random: &mut Random,
        now: Now,
    ) {
        match random.below(6) {
            0 if !self.has_leader() => self.elect(Some(random.below(2)), servers, late, random, now),
            0 | 1 => _ = self.send(now),
            2 => self.land(servers, random),
            3 => self.deliver(random.below(2), most.burst, servers, random, now),
            _ => {
                self.deliver(random.below(2), most.events, servers, random, now);
                self.send(now);
                for _ in 0..random.below(most.answers) {
                    self.settle_one(servers, true, random, now);
                }
            }
        }
    }

    pub(crate) fn has_leader(&self) -> bool {
        self.leader.is_some()
    }

    /// Starts a process anew, with nothing in its memory.
    pub(crate) fn crash(&mut self, which: usize) {
        let Self {
            cluster,
            replicas,
            stray,
            leader,
            ..
        } = self;
        stray.append(&mut replicas[which].flights);
        replicas[which] = Replica {
            role: R::fresh(),
            feeds: R::feeds(cluster),
            flights: Vec::new(),
        };
        if *leader == Some(which) {
            *leader = None;
        }
    }

    /// The lead goes to another, or to nobody. What the old one has sent is over before: the Lease sees to that
    /// ([`slice_runtime::lease`]). `late` is what would be without.
    pub(crate) fn elect(
        &mut self,
        leader: Option<usize>,
        servers: &mut Servers<'_>,
        late: bool,
        random: &mut Random,
        now: Now,
    ) {
        if self.leader == leader {
            return;
        }
        if let Some(old) = self.leader.take() {
            let replica = &mut self.replicas[old];
            replica.role.lead(false, now);
            self.stray.append(&mut replica.flights);
        }
        if !late {
            while !self.stray.is_empty() {
                self.land(servers, random);
            }
        }
        let Some(new) = leader else { return };
        let replica = &mut self.replicas[new];
        for feed in &mut replica.feeds {
            if R::is_fencing(feed.source)
                && let Some(server) = servers.of(R::side(feed.source))
            {
                for signal in feed.list(server) {
                    replica.role.signal(feed.source, signal, now);
                }
            }
        }
        replica.role.lead(true, now);
        self.leader = leader;
    }

    /// A stray write arrives, or gets lost.
    pub(crate) fn land(&mut self, servers: &mut Servers<'_>, random: &mut Random) {
        if self.stray.is_empty() {
            return;
        }
        let flight = self.stray.swap_remove(random.below(self.stray.len()));
        if flight.outcome.is_none()
            && !random.chance(3)
            && let Some(server) = servers.of(flight.side)
        {
            server.write(&flight.write);
        }
    }

    /// Lists every watch of a process, as after a gap.
    pub(crate) fn list(&mut self, which: usize, servers: &mut Servers<'_>, now: Now) {
        self.replicas[which].follow();
        let Replica { role, feeds, .. } = &mut self.replicas[which];
        for feed in feeds {
            if let Some(server) = servers.of(R::side(feed.source)) {
                for signal in feed.list(server) {
                    role.signal(feed.source, signal, now);
                }
            }
        }
    }

    /// Some events for one process, of some of its watches.
    pub(crate) fn deliver(
        &mut self,
        which: usize,
        most: usize,
        servers: &mut Servers<'_>,
        random: &mut Random,
        now: Now,
    ) {
        self.replicas[which].follow();
        let Replica { role, feeds, .. } = &mut self.replicas[which];
        for _ in 0..most {
            let at = random.below(feeds.len());
            let feed = &mut feeds[at];
            if let Some(server) = servers.of(R::side(feed.source)) {
                for signal in feed.next(server) {
                    role.signal(feed.source, signal, now);
                }
            }
        }
    }

    /// Every event there is, for both; whether there was one.
    pub(crate) fn deliver_all(&mut self, servers: &mut Servers<'_>, now: Now) -> bool {
        let mut any = false;
        for replica in &mut self.replicas {
            replica.follow();
            let Replica { role, feeds, .. } = replica;
            for feed in feeds {
                let Some(server) = servers.of(R::side(feed.source)) else {
                    continue;
                };
                loop {
                    let signals = feed.next(server);
                    if signals.is_empty() {
                        break;
                    }
                    any = true;
                    signals
                        .into_iter()
                        .for_each(|signal| role.signal(feed.source, signal, now));
                }
            }
        }
        any
    }

    /// Sends what is due.
    pub(crate) fn send(&mut self, now: Now) -> bool {
        let Some(leader) = self.leader else { return false };
        let Replica { role, flights, .. } = &mut self.replicas[leader];
        let mut any = false;
        role.tick(now);
        for side in R::SIDES {
            while role.in_flight(*side) < AT_ONCE {
                let Some(write) = role.poll(*side, now) else { break };
                any = true;
                flights.push(Flight {
                    side: *side,
                    write,
                    outcome: None,
                });
            }
        }
        any || role.is_pending()
    }

    /// Something becomes of a write under way, in any order: it arrives, its answer arrives, or one of them gets lost.
    pub(crate) fn settle_one(
        &mut self,
        servers: &mut Servers<'_>,
        faulty: bool,
        random: &mut Random,
        now: Now,
    ) -> bool {
        let Some(leader) = self.leader else { return false };
        let Replica { role, flights, .. } = &mut self.replicas[leader];
        if flights.is_empty() {
            return false;
        }
        let at = random.below(flights.len());
        let server = servers.of(flights[at].side);
        let Some(server) = server else {
            let flight = flights.swap_remove(at);
            role.written(
                flight.side,
                flight.write.key,
                failed(Reason::Timeout, "no answer"),
                now,
            );
            return true;
        };
        if flights[at].outcome.is_none() {
            if faulty && random.chance(8) {
                let flight = flights.swap_remove(at);
                // It may yet arrive after it was given up.
                role.written(
                    flight.side,
                    flight.write.key.clone(),
                    failed(Reason::Unavailable, "reset"),
                    now,
                );
                self.stray.push(flight);
                return true;
            }
            flights[at].outcome = Some(server.write(&flights[at].write));
            if faulty && random.chance(2) {
                return true;
            }
        }
        let flight = flights.swap_remove(at);
        let outcome = match faulty && random.chance(8) {
            true => failed(Reason::Timeout, "the answer was lost"),
            false => flight.outcome.unwrap(),
        };
        let is_written = matches!(outcome, Outcome::Written(_));
        let key = flight.write.key;
        role.written(flight.side, key.clone(), outcome, now);
        // As the loop does it: what was written counts at once.
        if is_written
            && let Some(source) = R::source_of(flight.side, key.kind)
            && let Some(server) = servers.of(flight.side)
            && let Some(object) = server.get(&key.kind.resource().kind, &key.namespace, &key.name)
        {
            role.signal(source, Signal::Seen(object.clone()), now);
        }
        true
    }
}

fn failed(reason: Reason, message: &str) -> Outcome {
    Outcome::Failed(Failure {
        reason,
        message: message.to_owned(),
    })
}
