//! From what should be and what is to the ordered list of changes. Pure.
//!
//! The order is one in which no frame can go where it must not, and none is lost that could arrive:
//!
//! ```text
//!  0  entries go that lead to what goes, or say who a port is that becomes another
//!  1  links go
//!  2  the guard comes, or changes
//!  3  links come, all of them down, and change
//!     classes come and change                       with what waits in them
//!  4  entries come and change                       each at one moment: neither gap nor duplicate
//!     classes go that nothing waits in              which no entry names any more
//!  5  programs are attached                         with all they need to know
//!  6  pods' addresses come, then everything goes up
//!  7  bridges and tables of earlier releases go     whose part the programs have taken over
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ipnet::IpNet;
use slice_crds::Mac;

use crate::model::{
    Alias, Class, ClassId, Entry, Guard, Key, Kind, Link, Name, Netns, PodLink, Segment, State, Tunnel,
};

/// One change, and what it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub scope: Scope,
    pub action: Action,
}

/// Where a failure belongs, and what it stops: the rest of the same port.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    pub slice: Option<String>,
    pub port: Option<Name>,
}

/// A segment by its slice and number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentId {
    pub slice: String,
    pub vni: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes an interface, down; of a pair both ends.
    AddLink(Name, Link, Option<PodLink>),
    DelLink(Name),
    SetMtu(Name, u32),
    SetAlias(Name, Alias),
    NoAutoconf(Name),
    /// Makes this agent's program the first to see what the interface receives, in the place of an earlier agent's.
    Attach(Name),
    Up(Name),
    SetTunnel(Tunnel),
    /// Says to the programs which device is the shaper.
    SetShaper(Name),
    /// Makes a class of the shaper, or changes it with what waits in it.
    SetClass(ClassId, Class),
    DelClass(ClassId),
    /// Makes an entry, in the place of any with its key.
    SetEntry(SegmentId, Entry),
    DelEntry(SegmentId, Key),
    /// Makes the table, in the place of any of its name.
    SetGuard(Guard),
    DelGuard,
    /// Removes a table of an earlier release.
    DelTable(String),
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
    planner.remove_entries();
    planner.remove_links(|name| !is_former_bridge(name));
    planner.change_guard();
    planner.add_links();
    planner.change_links();
    planner.shape();
    planner.add_entries();
    planner.remove_classes();
    planner.attach(|_| true);
    planner.configure_pods();
    planner.raise();
    planner.remove_links(is_former_bridge);
    planner.remove_former_tables();
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

    fn push_all(&mut self, actions: Vec<Action>) {
        actions.into_iter().for_each(|action| self.push(action));
    }

    fn scope(&self, action: &Action) -> Scope {
        let of_link = |name: &Name| {
            let link = self.desired.links.get(name).or_else(|| self.now.links.get(name));
            Scope {
                slice: link.and_then(|link| Some(link.alias.as_ref()?.slice.clone())),
                port: Some(name.clone()),
            }
        };
        let of_slice = |id: &SegmentId, port: Option<&Name>| Scope {
            slice: Some(id.slice.clone()),
            port: port.cloned(),
        };
        match action {
            Action::AddLink(name, ..)
            | Action::DelLink(name)
            | Action::SetMtu(name, _)
            | Action::SetAlias(name, _)
            | Action::NoAutoconf(name)
            | Action::Attach(name)
            | Action::Up(name)
            | Action::Pod(name, ..) => of_link(name),
            Action::SetEntry(id, entry) => of_slice(id, entry.port()),
            Action::DelEntry(id, _) => of_slice(id, None),
            Action::SetTunnel(_)
            | Action::SetShaper(_)
            | Action::SetClass(..)
            | Action::DelClass(_)
            | Action::SetGuard(_)
            | Action::DelGuard
            | Action::DelTable(_) => Scope::default(),
        }
    }

    /// What is not wanted, and what a port is that becomes another. Entries that lead elsewhere are replaced later.
    fn remove_entries(&mut self) {
        let mut actions = vec![];
        for (slice, seen) in &self.now.segments {
            let wanted = self.desired.segments.get(slice);
            let wanted = wanted.filter(|wanted| wanted.vni == seen.vni);
            if wanted.is_some_and(|wanted| wanted == seen) {
                continue;
            }
            let id = id(slice, seen);
            let is_over = |entry: &&Entry| match (entry, wanted.and_then(|wanted| wanted.get(&entry.key()))) {
                (_, None) => true,
                (Entry::Port(_, seen, _), Some(Entry::Port(_, wanted, _))) => seen != wanted,
                (_, Some(_)) => false,
            };
            let mut gone: Vec<Key> = seen.entries().filter(is_over).map(Entry::key).collect();
            // First what leads here, last what says that there is such a slice.
            gone.reverse();
            actions.extend(gone.into_iter().map(|key| Action::DelEntry(id.clone(), key)));
        }
        self.push_all(actions);
    }

    fn remove_links(&mut self, which: impl Fn(&Name) -> bool) {
        let doomed: Vec<Name> = self.doomed.iter().filter(|name| which(name)).cloned().collect();
        self.push_all(doomed.into_iter().map(Action::DelLink).collect());
    }

    fn change_guard(&mut self) {
        match &self.desired.guard {
            Some(guard) if self.now.guard.as_ref() != Some(guard) => {
                self.push(Action::SetGuard(guard.clone()))
            }
            None if self.now.guard.is_some() => self.push(Action::DelGuard),
            _ => {}
        }
    }

    fn add_links(&mut self) {
        let missing = self.desired.links.iter();
        let missing = missing.filter(|(name, _)| !self.now.links.contains_key(*name));
        let bare = |link: &Link| Link {
            up: false,
            attached: false,
            ..link.clone()
        };
        let actions = missing.map(|(name, link)| {
            let pod = self.desired.pods.get(name).cloned();
            Action::AddLink(name.clone(), bare(link), pod)
        });
        self.push_all(actions.collect());
    }

    fn change_links(&mut self) {
        let mut actions = vec![];
        for (name, wanted) in &self.desired.links {
            let Some(seen) = self.now.links.get(name) else {
                continue;
            };
            if seen.mtu != wanted.mtu {
                actions.push(Action::SetMtu(name.clone(), wanted.mtu));
            }
            if let Some(alias) = wanted.alias.as_ref().filter(|_| wanted.alias != seen.alias) {
                actions.push(Action::SetAlias(name.clone(), alias.clone()));
            }
            if seen.autoconf && !wanted.autoconf {
                actions.push(Action::NoAutoconf(name.clone()));
            }
        }
        self.push_all(actions);
    }

    /// What entries may name is ready before they do: the shaper works, and has its classes.
    fn shape(&mut self) {
        for (id, class) in &self.desired.classes {
            match self.now.classes.get(id) {
                Some(seen) if seen == class => continue,
                // Nobody but somebody else has put it there, and there it cannot be changed.
                Some(seen) if seen.parent != class.parent => self.push(Action::DelClass(*id)),
                _ => {}
            }
            self.push(Action::SetClass(*id, *class));
        }
        let Some(shaper) = &self.desired.shaper else {
            return;
        };
        // One that works already goes on as it is until its program's successor knows everything.
        if self.now.links.get(shaper).is_some_and(|seen| !seen.up) {
            self.attach(|name| name == shaper);
            self.raise_links(|name| name == shaper);
        }
        if self.now.shaper.as_ref() != Some(shaper) {
            self.push(Action::SetShaper(shaper.clone()));
        }
    }

    /// Frames that still wait go first; the next look finds the class empty.
    fn remove_classes(&mut self) {
        let over = self.now.classes.keys();
        let over =
            over.filter(|id| !self.desired.classes.contains_key(*id) && !self.now.queued.contains(*id));
        // A parent after its children.
        self.push_all(over.rev().copied().map(Action::DelClass).collect());
    }

    fn add_entries(&mut self) {
        if let Some(tunnel) = self
            .desired
            .tunnel
            .as_ref()
            .filter(|_| self.now.tunnel != self.desired.tunnel)
        {
            self.push(Action::SetTunnel(tunnel.clone()));
        }
        let mut actions = vec![];
        for (slice, wanted) in &self.desired.segments {
            let seen = self.now.segments.get(slice);
            if seen.is_some_and(|seen| seen == wanted) {
                continue;
            }
            let id = id(slice, wanted);
            let new = wanted
                .entries()
                .filter(|entry| seen.and_then(|seen| seen.get(&entry.key())) != Some(*entry));
            actions.extend(new.map(|entry| Action::SetEntry(id.clone(), entry.clone())));
        }
        self.push_all(actions);
    }

    fn attach(&mut self, which: impl Fn(&Name) -> bool) {
        let bare = self.desired.links.iter().filter(|(name, wanted)| {
            let seen = self.now.links.get(*name);
            wanted.attached && seen.is_some_and(|seen| !seen.attached) && which(name)
        });
        let actions = bare.map(|(name, _)| Action::Attach(name.clone())).collect();
        self.push_all(actions);
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

    fn raise_links(&mut self, which: impl Fn(&Name) -> bool) {
        let down = self.desired.links.iter().filter(|(name, wanted)| {
            let seen = self.now.links.get(*name);
            wanted.up && seen.is_some_and(|seen| !seen.up) && which(name)
        });
        let actions = down.map(|(name, _)| Action::Up(name.clone())).collect();
        self.push_all(actions);
    }

    fn raise(&mut self) {
        self.raise_links(|_| true);
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

    fn remove_former_tables(&mut self) {
        let tables = self.now.former_tables.difference(&self.desired.former_tables);
        self.push_all(tables.cloned().map(Action::DelTable).collect());
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

fn id(slice: &str, segment: &Segment) -> SegmentId {
    SegmentId {
        slice: slice.to_owned(),
        vni: segment.vni,
    }
}

fn is_former_bridge(name: &Name) -> bool {
    name.as_str().starts_with(Name::FORMER_BRIDGE)
}

/// Links that are not wanted, or not in this form.
fn doomed(desired: &State, observed: &State) -> BTreeSet<Name> {
    let wrong = |(name, seen): &(&Name, &Link)| {
        let Some(wanted) = desired.links.get(*name) else {
            return true;
        };
        let end = |state: &State| state.pods.get(*name).map(PodLink::end);
        wanted.kind != seen.kind || wanted.kind == Kind::Veth && end(desired) != end(observed)
    };
    observed
        .links
        .iter()
        .filter(wrong)
        .map(|(name, _)| name.clone())
        .collect()
}

impl State {
    /// What is there once a change is made.
    pub fn take(&mut self, action: &Action) {
        match action {
            Action::AddLink(name, link, pod) => {
                // Entries of its name were about another interface.
                self.take_link(name, link.alias.as_ref());
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
            Action::DelLink(name) => {
                let link = self.links.get(name).cloned();
                self.take_link(name, link.as_ref().and_then(|link| link.alias.as_ref()));
            }
            Action::SetMtu(name, mtu) => self.change(name, |link| link.mtu = *mtu),
            Action::SetAlias(name, alias) => self.change(name, |link| link.alias = Some(alias.clone())),
            Action::NoAutoconf(name) => self.change(name, |link| link.autoconf = false),
            Action::Attach(name) => self.change(name, |link| link.attached = true),
            Action::Up(name) => self.change(name, |link| link.up = true),
            Action::SetTunnel(tunnel) => self.tunnel = Some(tunnel.clone()),
            Action::SetShaper(name) => self.shaper = Some(name.clone()),
            Action::SetClass(id, class) => _ = self.classes.insert(*id, *class),
            Action::DelClass(id) => _ = self.classes.remove(id),
            Action::SetEntry(id, entry) => {
                let segment = self.segments.entry(id.slice.clone());
                let segment = segment.or_insert_with(|| Arc::new(Segment::new(id.vni)));
                let segment = Arc::make_mut(segment);
                segment.vni = id.vni;
                segment.insert(entry.clone());
            }
            Action::DelEntry(id, key) => {
                let Some(segment) = self.segments.get_mut(&id.slice) else {
                    return;
                };
                Arc::make_mut(segment).remove(key);
                if segment.is_empty() {
                    self.segments.remove(&id.slice);
                }
            }
            Action::SetGuard(guard) => self.guard = Some(guard.clone()),
            Action::DelGuard => self.guard = None,
            Action::DelTable(table) => _ = self.former_tables.remove(table),
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

    /// With an interface goes what names it: another one of its name is another interface.
    fn take_link(&mut self, name: &Name, alias: Option<&Alias>) {
        self.links.remove(name);
        self.pods.remove(name);
        // A port says whose it is; one that does not may be any slice's.
        let tunnel = self.tunnel.as_ref();
        if tunnel.is_some_and(|tunnel| tunnel.to_pods == *name || tunnel.to_gateways == *name) {
            self.tunnel = None;
        }
        if *name == Name::shaper() {
            self.shaper = None;
            self.classes.clear();
            self.queued.clear();
        }
        let named = |of: &String| alias.is_none_or(|alias| alias.slice == *of);
        for (_, segment) in self.segments.iter_mut().filter(|(of, _)| named(of)) {
            let naming = segment
                .entries()
                .filter(|entry| entry.links().any(|link| link == name));
            let naming: Vec<Key> = naming.map(Entry::key).collect();
            if !naming.is_empty() {
                let segment = Arc::make_mut(segment);
                naming.iter().for_each(|key| segment.remove(key));
            }
        }
        self.segments.retain(|_, segment| !segment.is_empty());
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
                if let Some(alias) = &link.alias {
                    write!(f, " {alias}")?;
                }
                if let Some(pod) = pod {
                    write!(f, " peer {} mac {} in {}", pod.name, pod.mac, pod.netns)?;
                }
                Ok(())
            }
            Self::DelLink(name) => write!(f, "- link {name}"),
            Self::SetMtu(name, mtu) => write!(f, "~ link {name} mtu {mtu}"),
            Self::SetAlias(name, alias) => write!(f, "~ link {name} {alias}"),
            Self::NoAutoconf(name) => write!(f, "~ link {name} addrgenmode none"),
            Self::Attach(name) => write!(f, "~ link {name} attach"),
            Self::Up(name) => write!(f, "~ link {name} up"),
            Self::SetTunnel(tunnel) => write!(f, "+ {tunnel}"),
            Self::SetShaper(name) => write!(f, "+ shaper {name}"),
            Self::SetClass(id, class) => write!(f, "+ class {id} {class}"),
            Self::DelClass(id) => write!(f, "- class {id}"),
            Self::SetEntry(SegmentId { slice, .. }, entry) => write!(f, "+ entry {slice} {entry}"),
            Self::DelEntry(SegmentId { slice, .. }, key) => write!(f, "- entry {slice} {key}"),
            Self::SetGuard(guard) => write!(f, "+ {guard}"),
            Self::DelGuard => f.write_str("- guard"),
            Self::DelTable(table) => write!(f, "- table {table}"),
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
