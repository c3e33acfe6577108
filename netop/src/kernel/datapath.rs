//! What the eBPF programs' maps were given: [`Entry`] → keys and values with interface indices.
//!
//! Nobody but this process writes to its maps, so what was written is what is there; an interface that was made anew
//! since is another one, and the entries that name it are not shown.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use anyhow::{Context, anyhow};
use slice_datapath::{self as datapath, Role};

use crate::{
    model::{ClassId, Clusters, Entry, Hop, Key, Kind, Members, Name, Port, Segment, Tunnel},
    plan::SegmentId,
    programs::{Answers, Counter, Limits, Loaded, Program, Programs},
};

/// Interface indices by name.
pub(super) type Interfaces = BTreeMap<Name, u32>;

/// The programs, and what they know.
pub(super) struct DataPath {
    programs: Programs,
    from_port: Loaded,
    from_node: Loaded,
    from_shaper: Loaded,
    segments: BTreeMap<String, Written>,
    tunnel: Option<(Tunnel, Interfaces)>,
    shaper: Option<(Name, u32)>,
}

/// What was written of a segment, and for which interfaces.
struct Written {
    segment: Arc<Segment>,
    interfaces: BTreeMap<Key, Interfaces>,
}

impl DataPath {
    /// # Errors
    /// Where the kernel refuses the programs, with what to do about it.
    pub(super) fn load() -> anyhow::Result<Self> {
        let mut programs = Programs::load(Limits::default()).with_context(|| {
            "the agent needs bpf(2): Linux 5.15 or later with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and \
             CONFIG_NET_SCH_INGRESS, the capabilities SYS_ADMIN and NET_ADMIN in its container, a seccomp profile that \
             lets them have bpf(2) (RuntimeDefault does), and no lockdown=confidentiality"
        })?;
        Ok(Self {
            from_port: programs.loaded(Program::FromPort)?,
            from_node: programs.loaded(Program::FromNode)?,
            from_shaper: programs.loaded(Program::FromShaper)?,
            programs,
            segments: BTreeMap::new(),
            tunnel: None,
            shaper: None,
        })
    }

    /// The program for what an interface receives.
    pub(super) fn program(&self, kind: Kind) -> (Program, Loaded) {
        match kind {
            Kind::Vxlan(_) => (Program::FromNode, self.from_node),
            Kind::Shaper => (Program::FromShaper, self.from_shaper),
            Kind::Tap(_) | Kind::Veth | Kind::Foreign => (Program::FromPort, self.from_port),
        }
    }

    pub(super) fn take_answers(&mut self) -> anyhow::Result<Option<Answers>> {
        Ok(self.programs.take_answers()?)
    }

    pub(super) fn counters(&mut self) -> anyhow::Result<BTreeMap<Counter, u64>> {
        Ok(self.programs.counts()?)
    }

    pub(super) fn sizes(&mut self) -> anyhow::Result<BTreeMap<&'static str, usize>> {
        Ok(self.programs.sizes()?)
    }

    /// What the maps have, as far as it is about interfaces that are there.
    pub(super) fn state(&self, now: &Interfaces) -> (BTreeMap<String, Arc<Segment>>, Option<Tunnel>) {
        let is_another = |(name, index): (&Name, &u32)| now.get(name).is_some_and(|now| now != index);
        let segments = self.segments.iter().map(|(slice, written)| {
            let stale = written
                .interfaces
                .iter()
                .filter(|(_, interfaces)| interfaces.iter().any(is_another));
            let mut segment = Arc::clone(&written.segment);
            for (key, _) in stale {
                Arc::make_mut(&mut segment).remove(key);
            }
            (slice.clone(), segment)
        });
        let tunnel = self.tunnel.as_ref();
        let tunnel = tunnel.filter(|(_, interfaces)| {
            interfaces
                .iter()
                .all(|(name, index)| now.get(name) == Some(index))
        });
        (segments.collect(), tunnel.map(|(tunnel, _)| tunnel.clone()))
    }

    /// The device that the programs take for the shaper, if it is still that.
    pub(super) fn shaper(&self, now: &Interfaces) -> Option<Name> {
        let (name, index) = self.shaper.as_ref()?;
        (now.get(name) == Some(index)).then(|| name.clone())
    }

    pub(super) fn set_shaper(&mut self, name: &Name, interfaces: &Interfaces) -> anyhow::Result<()> {
        let index = index(interfaces, name)?;
        self.programs.set_shaper(index)?;
        self.shaper = Some((name.clone(), index));
        Ok(())
    }

    pub(super) fn set_tunnel(&mut self, tunnel: &Tunnel, interfaces: Interfaces) -> anyhow::Result<()> {
        let index = |name: &Name| index(&interfaces, name);
        self.programs.set_tunnel(datapath::Tunnel {
            to_pods: index(&tunnel.to_pods)?,
            to_gateways: index(&tunnel.to_gateways)?,
            local: address(tunnel.local),
        })?;
        self.tunnel = Some((tunnel.clone(), interfaces));
        Ok(())
    }

    /// Writes an entry; `interfaces` are those that it names and that are there.
    pub(super) fn set(
        &mut self,
        id: &SegmentId,
        entry: &Entry,
        interfaces: Interfaces,
    ) -> anyhow::Result<()> {
        let key = entry.key();
        self.forget_port(id, &key, &interfaces)?;
        let slice = id.vni;
        let index = |name: &Name| index(&interfaces, name);
        let programs = &mut self.programs;
        let mut entry = entry.clone();
        match &mut entry {
            Entry::Rules(rules) => programs.set_slice(slice, rules)?,
            Entry::Port(name, port, class) => {
                programs.set_port(index(name)?, at_port(slice, *port, *class))?;
            }
            Entry::Route(indices, hop) => programs.set_route(slice, *indices, next_hop(hop, &interfaces)?)?,
            Entry::Exit(clusters, hop) => {
                programs.set_exit(slice, number(*clusters), next_hop(hop, &interfaces)?)?;
            }
            Entry::Relay(clusters, name, class) => {
                let port = datapath::Hop::port(index(name)?, minor(*class));
                programs.set_relay(slice, number(*clusters), port)?;
            }
            Entry::Node(node, has_gateway) => programs.set_node(slice, address(*node), *has_gateway)?,
            Entry::Members(Members { ports, nodes }) => {
                // A port that could not be made is left out, for the others' sake.
                ports.retain(|name, _| interfaces.contains_key(name));
                let ports = ports.iter().filter_map(|(name, class)| {
                    let index = interfaces.get(name)?;
                    Some(datapath::Hop::port(*index, minor(*class)))
                });
                let nodes = nodes.iter().map(|node| datapath::Hop::node(address(*node)));
                programs.set_members(slice, ports.chain(nodes))?;
            }
        }
        let written = self.segments.entry(id.slice.clone()).or_insert_with(|| Written {
            segment: Arc::new(Segment::new(id.vni)),
            interfaces: BTreeMap::new(),
        });
        Arc::make_mut(&mut written.segment).insert(entry);
        if interfaces.is_empty() {
            written.interfaces.remove(&key);
        } else {
            written.interfaces.insert(key, interfaces);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &SegmentId, key: &Key) -> anyhow::Result<()> {
        let slice = id.vni;
        self.forget_port(id, key, &Interfaces::new())?;
        let programs = &mut self.programs;
        match key {
            Key::Rules => programs.remove_slice(slice)?,
            // Forgotten above, by the index that it had.
            Key::Port(_) => {}
            Key::Route(indices) => programs.remove_route(slice, *indices)?,
            Key::Exit(clusters) => programs.remove_exit(slice, number(*clusters))?,
            Key::Relay(clusters) => programs.remove_relay(slice, number(*clusters))?,
            Key::Node(node) => programs.remove_node(slice, address(*node))?,
            Key::Members => programs.remove_members(slice)?,
        }
        if let Some(written) = self.segments.get_mut(&id.slice) {
            written.interfaces.remove(key);
            Arc::make_mut(&mut written.segment).remove(key);
            if written.segment.is_empty() {
                self.segments.remove(&id.slice);
            }
        }
        Ok(())
    }

    /// Removes what was written of a port under another interface index than now.
    fn forget_port(&mut self, id: &SegmentId, key: &Key, now: &Interfaces) -> anyhow::Result<()> {
        let Key::Port(name) = key else {
            return Ok(());
        };
        let written = self.segments.get(&id.slice);
        let before = written.and_then(|written| written.interfaces.get(key)?.get(name));
        match before {
            Some(before) if now.get(name) != Some(before) => Ok(self.programs.remove_port(*before)?),
            _ => Ok(()),
        }
    }
}

fn index(interfaces: &Interfaces, name: &Name) -> anyhow::Result<u32> {
    let index = interfaces.get(name).copied();
    index.ok_or_else(|| {
        anyhow!(io::Error::from(io::ErrorKind::NotFound)).context(format!("interface {name} is gone"))
    })
}

fn at_port(slice: u32, port: Port, class: Option<ClassId>) -> datapath::Port {
    let (role, index) = match port {
        Port::Pod(index) => (Role::Pod, index),
        Port::Router(index) => (Role::Router, index),
        Port::Gateway => (Role::Gateway, 0),
    };
    datapath::Port {
        slice,
        role,
        index,
        class: minor(class),
    }
}

fn next_hop(hop: &Hop, interfaces: &Interfaces) -> anyhow::Result<datapath::Hop> {
    Ok(match hop {
        Hop::Port(name, class) => datapath::Hop::port(index(interfaces, name)?, minor(*class)),
        Hop::Node(node) => datapath::Hop::node(address(*node)),
        Hop::Cluster(number) => datapath::Hop::cluster(*number),
    })
}

fn minor(class: Option<ClassId>) -> u32 {
    class.map_or(0, |class| class.0.into())
}

const fn number(clusters: Clusters) -> Option<u32> {
    match clusters {
        Clusters::One(number) => Some(number),
        Clusters::All => None,
    }
}

/// As the maps have it (RFC 4291 §2.5.5.2).
pub(super) const fn address(node: IpAddr) -> Ipv6Addr {
    match node {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}
