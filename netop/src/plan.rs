//! From what should be and what is to the ordered list of changes. Pure.
//!
//! The order is one in which no frame can take a way that it may not take:
//!
//! ```text
//!  0  the fast path closes where it changes        until it is open again, its frames take the bridge
//!  1  forwarding and neighbour entries go          bridge's before VXLAN's
//!  2  links go                                     ports before bridges
//!  3  filters come and change, those of gone links go
//!  4  links come, all of them down                 bridges before ports
//!  5  ports change                                 less traffic before more: rather a gap than a duplicate
//!  6  forwarding and neighbour entries come        VXLAN's before bridge's
//!  7  pods' addresses come, then everything goes up
//!  8  the way to other clusters changes            at one moment, when both are open: neither gap nor duplicate
//!  9  the way that is left closes
//! 10  the fast path opens
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;
use slice_crds::Mac;

use crate::model::{
    Element, Fdb, Kind, Link, Name, Neighbour, Netns, PodLink, Port, Rules, Segment, State, Table, Via, Vxlan,
};

/// One change, and what it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub scope: Scope,
    pub action: Action,
}

/// What a failure stops: the rest of the same port; or, where it was not about one port, the rest of the segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    pub segment: Option<Segment>,
    pub port: Option<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes an interface, on its bridge, down; of a pair both ends.
    AddLink(Name, Link, Option<PodLink>),
    DelLink(Name),
    SetMtu(Name, u32),
    SetPort(Name, Port),
    /// Changes a VXLAN interface's default destination, at one moment.
    SetRemote(Name, Vxlan),
    NoAutoconf(Name),
    NoSnooping(Name),
    Up(Name),
    /// Makes a table without elements in place of any of that name.
    AddTable(Name, Rules),
    DelTable(Name),
    AddElement(Name, Element),
    DelElement(Name, Element),
    AddFdb(Fdb),
    DelFdb(Fdb),
    AddNeighbour(Neighbour),
    DelNeighbour(Neighbour),
    Pod(Name, PodEnd, PodAction),
}

/// Where a pod's end is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodEnd {
    pub netns: Netns,
    pub interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodAction {
    SetMac(Mac),
    SetMtu(u32),
    AddAddress(IpNet),
    DelAddress(IpNet),
    Up,
    AddRoute(IpNet),
}

/// A list of changes, printed one per line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan(pub Vec<Step>);

/// The changes that make `observed` into `desired`.
pub fn diff(desired: &State, observed: &State) -> Plan {
    let mut planner = Planner {
        desired,
        doomed: doomed(desired, observed),
        now: observed.clone(),
        plan: Plan::default(),
    };
    planner.close_fast_paths();
    planner.remove_entries();
    planner.remove_links();
    planner.change_tables();
    planner.add_links();
    planner.change_links();
    planner.add_entries();
    planner.configure_pods();
    planner.raise();
    planner.switch();
    planner.close();
    planner.open_fast_paths();
    planner.plan
}

struct Planner<'a> {
    desired: &'a State,
    doomed: BTreeSet<Name>,
    /// What is there after the steps so far.
    now: State,
    plan: Plan,
}

impl Planner<'_> {
    fn push(&mut self, action: Action) {
        let scope = self.scope(&action);
        self.now.take(&action);
        self.plan.0.push(Step { scope, action });
    }

    fn scope(&self, action: &Action) -> Scope {
        let of_link = |name: &Name| {
            let link = self.desired.links.get(name).or_else(|| self.now.links.get(name));
            let bridge = link
                .and_then(|link| link.port.as_ref())
                .map_or(name, |port| &port.bridge);
            let port = name.as_str().starts_with("wp-").then(|| name.clone());
            Scope {
                segment: Segment::of_name(bridge.as_str()),
                port,
            }
        };
        match action {
            Action::AddLink(name, ..)
            | Action::DelLink(name)
            | Action::SetMtu(name, _)
            | Action::SetPort(name, _)
            | Action::SetRemote(name, _)
            | Action::NoAutoconf(name)
            | Action::NoSnooping(name)
            | Action::Up(name)
            | Action::Pod(name, ..) => of_link(name),
            Action::AddFdb(fdb) | Action::DelFdb(fdb) => of_link(&fdb.link),
            Action::AddNeighbour(neighbour) | Action::DelNeighbour(neighbour) => of_link(&neighbour.bridge),
            Action::AddTable(table, _) | Action::DelTable(table) => Scope {
                segment: Segment::of_name(table.as_str()),
                port: None,
            },
            Action::AddElement(table, element) | Action::DelElement(table, element) => Scope {
                segment: Segment::of_name(table.as_str()),
                port: element.port().cloned(),
            },
        }
    }

    /// What is not wanted of the fast paths, and what leads to or from a link that goes or has gone.
    fn close_fast_paths(&mut self) {
        let tables = self.now.tables.iter().filter(|(name, _)| name.is_fast_path());
        let mut actions = vec![];
        for (name, seen) in tables {
            let Some(wanted) = (self.desired.tables.get(name)).filter(|wanted| wanted.rules == seen.rules)
            else {
                actions.push(Action::DelTable(name.clone()));
                continue;
            };
            let stays = |link: &Name| self.now.links.contains_key(link) && !self.doomed.contains(link);
            let gone = seen
                .elements
                .iter()
                .filter(|element| !wanted.elements.contains(element) || !element.link().is_none_or(stays));
            actions.extend(gone.map(|element| Action::DelElement(name.clone(), element.clone())));
        }
        actions.into_iter().for_each(|action| self.push(action));
    }

    fn open_fast_paths(&mut self) {
        for (name, wanted) in &self.desired.tables {
            if !name.is_fast_path() {
                continue;
            }
            if !self.now.tables.contains_key(name) {
                self.push(Action::AddTable(name.clone(), wanted.rules));
            }
            let seen = self.now.tables[name].elements.clone();
            for element in wanted.elements.difference(&seen) {
                self.push(Action::AddElement(name.clone(), element.clone()));
            }
        }
    }

    /// Entries of links that stay. Those of links that go, go with them.
    fn remove_entries(&mut self) {
        let stays = |link: &Name, bridge: bool| {
            let on = self
                .now
                .links
                .get(link)
                .and_then(|link| link.port.as_ref())
                .map(|port| &port.bridge);
            !(self.doomed.contains(link) || bridge && on.is_some_and(|on| self.doomed.contains(on)))
        };
        let mut gone: Vec<Fdb> = (self.now.fdb.difference(&self.desired.fdb))
            .filter(|fdb| stays(&fdb.link, fdb.via == Via::Bridge))
            .cloned()
            .collect();
        gone.sort_by_key(|fdb| std::cmp::Reverse(fdb.via == Via::Bridge));
        let neighbours: Vec<Neighbour> = (self.now.neighbours.difference(&self.desired.neighbours))
            .filter(|neighbour| stays(&neighbour.bridge, false))
            .cloned()
            .collect();
        gone.into_iter().for_each(|fdb| self.push(Action::DelFdb(fdb)));
        neighbours
            .into_iter()
            .for_each(|neighbour| self.push(Action::DelNeighbour(neighbour)));
    }

    fn remove_links(&mut self) {
        let mut doomed: Vec<Name> = self.doomed.iter().cloned().collect();
        doomed.sort_by_key(|name| std::cmp::Reverse(rank(name)));
        doomed
            .into_iter()
            .for_each(|name| self.push(Action::DelLink(name)));
    }

    fn change_tables(&mut self) {
        let filters = |(name, _): &(&Name, &Table)| !name.is_fast_path();
        for (name, wanted) in self.desired.tables.iter().filter(filters) {
            let anew = (self.now.tables.get(name)).is_none_or(|seen| seen.rules != wanted.rules);
            if anew {
                self.push(Action::AddTable(name.clone(), wanted.rules));
            }
            let seen = self
                .now
                .tables
                .get(name)
                .map(|seen| seen.elements.clone())
                .unwrap_or_default();
            // Which way frames take changes last, but a table that is made anew has it from the first moment.
            let now = |element: &&Element| anew || !element.is_switch();
            for element in wanted.elements.difference(&seen).filter(now) {
                self.push(Action::AddElement(name.clone(), element.clone()));
            }
            for element in seen.difference(&wanted.elements).filter(now) {
                self.push(Action::DelElement(name.clone(), element.clone()));
            }
        }
        let gone: Vec<Name> = self
            .now
            .tables
            .keys()
            .filter(|name| !self.desired.tables.contains_key(*name))
            .cloned()
            .collect();
        gone.into_iter()
            .for_each(|name| self.push(Action::DelTable(name)));
    }

    fn add_links(&mut self) {
        let mut missing: Vec<(&Name, &Link)> = self
            .desired
            .links
            .iter()
            .filter(|(name, _)| !self.now.links.contains_key(*name))
            .collect();
        missing.sort_by_key(|(name, _)| rank(name));
        for (name, link) in missing {
            let link = Link {
                up: false,
                ..link.clone()
            };
            self.push(Action::AddLink(
                name.clone(),
                link,
                self.desired.pods.get(name).cloned(),
            ));
        }
    }

    fn change_links(&mut self) {
        let (mut narrower, mut wider) = (vec![], vec![]);
        for (name, wanted) in &self.desired.links {
            let Some(seen) = self.now.links.get(name).cloned() else {
                continue;
            };
            if seen.mtu != wanted.mtu {
                self.push(Action::SetMtu(name.clone(), wanted.mtu));
            }
            if seen.autoconf && !wanted.autoconf {
                self.push(Action::NoAutoconf(name.clone()));
            }
            if let (Some(wanted), Some(seen)) = (wanted.kind.vxlan(), seen.kind.vxlan())
                && wanted.remote.is_some()
                && wanted.remote != seen.remote
            {
                self.push(Action::SetRemote(name.clone(), wanted));
            }
            if seen.kind == (Kind::Bridge { snooping: true }) {
                self.push(Action::NoSnooping(name.clone()));
            }
            if let Some(port) = wanted
                .port
                .as_ref()
                .filter(|port| seen.port.as_ref() != Some(port))
            {
                let adds = seen.port.is_none_or(|seen| {
                    (port.unknown && !seen.unknown)
                        || (port.group && !seen.group)
                        || port.bridge != seen.bridge
                });
                let order = if adds { &mut wider } else { &mut narrower };
                order.push(Action::SetPort(name.clone(), port.clone()));
            }
        }
        narrower
            .into_iter()
            .chain(wider)
            .for_each(|action| self.push(action));
    }

    fn add_entries(&mut self) {
        let mut new: Vec<&Fdb> = self.desired.fdb.difference(&self.now.fdb).collect();
        new.sort_by_key(|fdb| fdb.via == Via::Bridge);
        let new: Vec<Fdb> = new.into_iter().cloned().collect();
        new.into_iter().for_each(|fdb| self.push(Action::AddFdb(fdb)));
        let new: Vec<Neighbour> = self
            .desired
            .neighbours
            .difference(&self.now.neighbours)
            .cloned()
            .collect();
        new.into_iter()
            .for_each(|neighbour| self.push(Action::AddNeighbour(neighbour)));
    }

    fn configure_pods(&mut self) {
        for (port, wanted) in &self.desired.pods {
            let Some(seen) = self.now.pods.get(port).cloned() else {
                continue;
            };
            if seen.mac != wanted.mac {
                self.push_pod(port, PodAction::SetMac(wanted.mac));
            }
            if seen.mtu != wanted.mtu {
                self.push_pod(port, PodAction::SetMtu(wanted.mtu));
            }
            // What somebody adds inside the pod from other networks is the pod's own affair; the filters stop it.
            let stale = (seen.addresses.difference(&wanted.addresses)).filter(|address| {
                wanted
                    .routes
                    .iter()
                    .any(|subnet| subnet.contains(&address.addr()))
            });
            for address in stale {
                self.push_pod(port, PodAction::DelAddress(*address));
            }
            for address in wanted.addresses.difference(&seen.addresses) {
                self.push_pod(port, PodAction::AddAddress(*address));
            }
        }
    }

    fn raise(&mut self) {
        let mut down: Vec<&Name> = (self.desired.links.iter())
            .filter(|(name, wanted)| wanted.up && self.now.links.get(*name).is_some_and(|seen| !seen.up))
            .map(|(name, _)| name)
            .collect();
        down.sort_by_key(|name| rank(name));
        for name in down {
            self.push(Action::Up(name.clone()));
        }
        for (port, wanted) in &self.desired.pods {
            let Some(seen) = self.now.pods.get(port).cloned() else {
                continue;
            };
            if wanted.up && !seen.up {
                self.push_pod(port, PodAction::Up);
            }
            for subnet in wanted.routes.difference(&seen.routes) {
                self.push_pod(port, PodAction::AddRoute(*subnet));
            }
        }
    }

    fn switch(&mut self) {
        for (name, wanted) in &self.desired.tables {
            let Some(seen) = self.now.tables.get(name).map(|table| table.elements.clone()) else {
                continue;
            };
            let (gone, new) = (
                seen.difference(&wanted.elements),
                wanted.elements.difference(&seen),
            );
            for element in gone.filter(|element| element.is_switch()) {
                self.push(Action::DelElement(name.clone(), element.clone()));
            }
            for element in new.filter(|element| element.is_switch()) {
                self.push(Action::AddElement(name.clone(), element.clone()));
            }
        }
    }

    fn close(&mut self) {
        for (name, wanted) in &self.desired.links {
            let seen = self.now.links.get(name).and_then(|link| link.kind.vxlan());
            if let (Some(wanted), Some(seen)) = (wanted.kind.vxlan(), seen)
                && wanted.remote != seen.remote
            {
                self.push(Action::SetRemote(name.clone(), wanted));
            }
        }
    }

    fn push_pod(&mut self, port: &Name, action: PodAction) {
        if let Some(end) = self.desired.pods.get(port).map(PodLink::end) {
            self.push(Action::Pod(port.clone(), end, action));
        }
    }
}

impl PodLink {
    pub fn end(&self) -> PodEnd {
        PodEnd {
            netns: self.netns.clone(),
            interface: self.name.clone(),
        }
    }
}

/// Links that are not wanted, or not in this form.
fn doomed(desired: &State, observed: &State) -> BTreeSet<Name> {
    let wrong = |(name, seen): &(&Name, &Link)| {
        let Some(wanted) = desired.links.get(*name) else {
            return true;
        };
        let same_kind = match (&wanted.kind, &seen.kind) {
            (Kind::Bridge { .. }, Kind::Bridge { .. }) => true,
            (Kind::Tap(wanted), Kind::Tap(seen)) => wanted == seen,
            (Kind::Vxlan(wanted), Kind::Vxlan(seen)) => wanted.fixed() == seen.fixed(),
            (Kind::Veth, Kind::Veth) => {
                let end = |state: &State| state.pods.get(*name).map(PodLink::end);
                end(desired) == end(observed)
            }
            (
                Kind::Bridge { .. } | Kind::Tap(_) | Kind::Vxlan(_) | Kind::Veth | Kind::Foreign,
                Kind::Bridge { .. } | Kind::Tap(_) | Kind::Vxlan(_) | Kind::Veth | Kind::Foreign,
            ) => false,
        };
        !same_kind
    };
    observed
        .links
        .iter()
        .filter(wrong)
        .map(|(name, _)| name.clone())
        .collect()
}

/// Bridges come first and go last.
fn rank(name: &Name) -> usize {
    Name::LINK_PREFIXES
        .iter()
        .position(|prefix| name.as_str().starts_with(prefix))
        .unwrap_or(usize::MAX)
}

impl State {
    /// What is there once a change is made.
    pub fn take(&mut self, action: &Action) {
        match action {
            Action::AddLink(name, link, pod) => {
                self.links.insert(name.clone(), link.clone());
                if let Some(pod) = pod {
                    let bare = PodLink {
                        up: false,
                        addresses: BTreeSet::new(),
                        routes: BTreeSet::new(),
                        ..pod.clone()
                    };
                    self.pods.insert(name.clone(), bare);
                }
            }
            Action::DelLink(name) => self.take_link(name),
            Action::SetMtu(name, mtu) => self.change(name, |link| link.mtu = *mtu),
            Action::SetPort(name, port) => self.change(name, |link| link.port = Some(port.clone())),
            Action::SetRemote(name, vxlan) => self.change(name, |link| link.kind = Kind::Vxlan(*vxlan)),
            Action::NoAutoconf(name) => self.change(name, |link| link.autoconf = false),
            Action::NoSnooping(name) => {
                self.change(name, |link| link.kind = Kind::Bridge { snooping: false })
            }
            Action::Up(name) => self.change(name, |link| link.up = true),
            Action::AddTable(name, rules) => {
                self.tables.insert(
                    name.clone(),
                    Table {
                        rules: *rules,
                        elements: BTreeSet::new(),
                    },
                );
            }
            Action::DelTable(name) => _ = self.tables.remove(name),
            Action::AddElement(name, element) => {
                if let Some(table) = self.tables.get_mut(name) {
                    table.elements.insert(element.clone());
                }
            }
            Action::DelElement(name, element) => {
                if let Some(table) = self.tables.get_mut(name) {
                    table.elements.remove(element);
                }
            }
            Action::AddFdb(fdb) => _ = self.fdb.insert(fdb.clone()),
            Action::DelFdb(fdb) => _ = self.fdb.remove(fdb),
            Action::AddNeighbour(neighbour) => _ = self.neighbours.insert(neighbour.clone()),
            Action::DelNeighbour(neighbour) => _ = self.neighbours.remove(neighbour),
            Action::Pod(port, _, action) => {
                let Some(pod) = self.pods.get_mut(port) else {
                    return;
                };
                match action {
                    PodAction::SetMac(mac) => pod.mac = *mac,
                    PodAction::SetMtu(mtu) => pod.mtu = *mtu,
                    PodAction::AddAddress(address) => _ = pod.addresses.insert(*address),
                    PodAction::DelAddress(address) => _ = pod.addresses.remove(address),
                    PodAction::Up => pod.up = true,
                    PodAction::AddRoute(subnet) => _ = pod.routes.insert(*subnet),
                }
            }
        }
    }

    fn take_link(&mut self, name: &Name) {
        self.links.remove(name);
        self.pods.remove(name);
        let mut released = BTreeSet::new();
        for (port, link) in &mut self.links {
            if link.port.as_ref().is_some_and(|port| port.bridge == *name) {
                link.port = None;
                released.insert(port.clone());
            }
        }
        self.fdb
            .retain(|fdb| fdb.link != *name && !(fdb.via == Via::Bridge && released.contains(&fdb.link)));
        self.neighbours.retain(|neighbour| neighbour.bridge != *name);
    }

    fn change(&mut self, name: &Name, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(name) {
            change(link);
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| writeln!(f, "{}", step.action))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink(name, link, pod) => {
                write!(f, "+ link {name} {} mtu {}", link.kind, link.mtu)?;
                if let Some(port) = &link.port {
                    write!(f, " {port}")?;
                }
                if let Some(pod) = pod {
                    write!(f, " peer {} mac {} in {}", pod.name, pod.mac, pod.netns)?;
                }
                Ok(())
            }
            Self::DelLink(name) => write!(f, "- link {name}"),
            Self::SetMtu(name, mtu) => write!(f, "~ link {name} mtu {mtu}"),
            Self::SetPort(name, port) => write!(f, "~ link {name} {port}"),
            Self::SetRemote(name, vxlan) => match vxlan.remote {
                Some(remote) => write!(f, "~ link {name} remote {remote}"),
                None => write!(f, "~ link {name} remote none"),
            },
            Self::NoAutoconf(name) => write!(f, "~ link {name} addrgenmode none"),
            Self::NoSnooping(name) => write!(f, "~ link {name} snooping off"),
            Self::Up(name) => write!(f, "~ link {name} up"),
            Self::AddTable(name, rules) => write!(f, "+ table {name} {rules}"),
            Self::DelTable(name) => write!(f, "- table {name}"),
            Self::AddElement(table, element) => write!(f, "+ element {table} {} {element}", element.set()),
            Self::DelElement(table, element) => write!(f, "- element {table} {} {element}", element.set()),
            Self::AddFdb(fdb) => write!(f, "+ {fdb}"),
            Self::DelFdb(fdb) => write!(f, "- {fdb}"),
            Self::AddNeighbour(neighbour) => write!(f, "+ {neighbour}"),
            Self::DelNeighbour(neighbour) => write!(f, "- {neighbour}"),
            Self::Pod(_, PodEnd { netns, interface }, action) => match action {
                PodAction::SetMac(mac) => write!(f, "~ link {interface} mac {mac} in {netns}"),
                PodAction::SetMtu(mtu) => write!(f, "~ link {interface} mtu {mtu} in {netns}"),
                PodAction::AddAddress(address) => write!(f, "+ address {address} dev {interface} in {netns}"),
                PodAction::DelAddress(address) => write!(f, "- address {address} dev {interface} in {netns}"),
                PodAction::Up => write!(f, "~ link {interface} up in {netns}"),
                PodAction::AddRoute(subnet) => write!(f, "+ route {subnet} dev {interface} in {netns}"),
            },
        }
    }
}

/// How often each kind of change occurs, for logs: `+link 3 ~link 4 +fdb 126`.
pub fn summary(plan: &Plan) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for step in &plan.0 {
        let text = step.action.to_string();
        let mut words = text.split(' ');
        let key = words.by_ref().take(2).collect::<String>();
        *counts.entry(key).or_default() += 1;
    }
    counts
        .iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect::<Vec<_>>()
        .join(" ")
}
