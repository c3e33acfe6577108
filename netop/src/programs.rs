//! The eBPF programs of the node, their maps and where they are attached.
//!
//! What is decided in them is [`slice_datapath`]'s; what is in the maps is the caller's. Needs CAP_BPF and CAP_NET_ADMIN,
//! or CAP_SYS_ADMIN on kernels before 5.8.

use std::net::Ipv6Addr;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuHashMap, lpm_trie::Key},
    programs::{
        SchedClassifier, TcAttachType,
        tc::{self, NlOptions, TcAttachOptions},
    },
};
use slice_crds::IndexRange;
use slice_datapath::{ALL_CLUSTERS, Hop, HopEntry, Port, Reason, SliceRules, node_key, prefix};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_EBPF_OBJECT"));

/// How many entries the maps have room for. Memory is taken when they are written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub ports: u32,
    pub slices: u32,
    /// Prefixes: pods of the node, blocks of nodes, ranges of clusters.
    pub routes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ports: 8 << 10,
            slices: 4 << 10,
            routes: 1 << 20,
        }
    }
}

/// A program could not be loaded or attached, or a map not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel refused the eBPF programs: {0}")]
    Load(#[from] aya::EbpfError),
    #[error("the kernel refused eBPF program {0}: {1}")]
    Program(&'static str, #[source] aya::programs::ProgramError),
    #[error("eBPF program {0} could not be attached to {1}: {2}")]
    Attach(&'static str, String, #[source] aya::programs::ProgramError),
    #[error("eBPF map {0} could not be written: {1}")]
    Map(&'static str, #[source] aya::maps::MapError),
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    FromPort,
    FromNode,
}

impl Program {
    const fn name(self) -> &'static str {
        match self {
            Self::FromPort => "from_port",
            Self::FromNode => "from_node",
        }
    }
}

/// The programs, loaded.
pub struct Programs(Ebpf);

impl Programs {
    pub fn load(limits: Limits) -> Result<Self, Error> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("PORTS", limits.ports)
            .map_max_entries("GATEWAYS", limits.ports)
            .map_max_entries("PACES", limits.ports + limits.slices)
            .map_max_entries("SLICES", limits.slices)
            .map_max_entries("GENERATIONS", limits.slices)
            .map_max_entries("COUNTS", limits.slices * (Reason::ALL.len() as u32 + 1))
            .map_max_entries("ROUTES", limits.routes)
            .map_max_entries("EXITS", limits.routes)
            .map_max_entries("NODES", limits.routes)
            .map_max_entries("MEMBERS", limits.routes)
            .load(OBJECT)?;
        for program in [Program::FromPort, Program::FromNode] {
            let name = program.name();
            let program = classifier(&mut ebpf, name);
            program.load().map_err(|error| Error::Program(name, error))?;
        }
        Ok(Self(ebpf))
    }

    /// The program itself, to be run on bytes.
    pub fn program(&mut self, program: Program) -> &mut SchedClassifier {
        classifier(&mut self.0, program.name())
    }

    /// Attaches a program to what an interface of this thread's network namespace receives. It stays there when this
    /// process ends, and goes with the interface.
    pub fn attach(&mut self, program: Program, interface: &str) -> Result<(), Error> {
        let name = program.name();
        // There is one already where it was attached before.
        let _ = tc::qdisc_add_clsact(interface);
        let classifier = classifier(&mut self.0, name);
        let fails = |error| Error::Attach(name, interface.to_owned(), error);
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: 1,
            ..NlOptions::default()
        });
        let link = classifier
            .attach_with_options(interface, TcAttachType::Ingress, options)
            .map_err(fails)?;
        let link = classifier.take_link(link).map_err(fails)?;
        std::mem::forget(link);
        Ok(())
    }

    /// Says by which VXLAN device frames go to other nodes.
    pub fn set_tunnel(&mut self, interface: u32) -> Result<(), Error> {
        let mut map: Array<&mut MapData, u32> = self.map("TUNNEL")?;
        map.set(0, interface, 0)
            .map_err(|error| Error::Map("TUNNEL", error))
    }

    pub fn set_port(&mut self, interface: u32, port: Port) -> Result<(), Error> {
        self.insert("PORTS", interface, port.entry())
    }

    pub fn set_slice(&mut self, number: u32, rules: &SliceRules) -> Result<(), Error> {
        self.insert("SLICES", number, rules.entry())
    }

    pub fn set_route(&mut self, slice: u32, indices: IndexRange, hop: Hop) -> Result<(), Error> {
        let mut map: LpmTrie<&mut MapData, [u32; 2], HopEntry> = self.map("ROUTES")?;
        let key = Key::new(64 - indices.size.trailing_zeros(), prefix(slice, indices.start));
        map.insert(&key, hop.entry(), 0)
            .map_err(|error| Error::Map("ROUTES", error))
    }

    /// Says how frames leave for a cluster; `None` stands for all, where a frame is for a group.
    pub fn set_exit(&mut self, slice: u32, cluster: Option<u32>, exit: Hop) -> Result<(), Error> {
        self.insert("EXITS", [slice, cluster.unwrap_or(ALL_CLUSTERS)], exit.entry())
    }

    pub fn set_node(&mut self, slice: u32, address: Ipv6Addr, has_gateway: bool) -> Result<(), Error> {
        self.insert("NODES", node_key(slice, address), u32::from(has_gateway))
    }

    pub fn set_gateway(&mut self, slice: u32, ordinal: u16, interface: u32) -> Result<(), Error> {
        self.insert("GATEWAYS", [slice, u32::from(ordinal)], interface)
    }

    /// Replaces those who get copies, all at once: ports of pods, and other nodes.
    pub fn set_members(&mut self, slice: u32, ports: &[u32], nodes: &[Ipv6Addr]) -> Result<(), Error> {
        let map: HashMap<&mut MapData, u32, u32> = self.map("GENERATIONS")?;
        let before = map.get(&slice, 0).ok();
        let after = before.map_or(0, |generation| generation.wrapping_add(1));
        let ports = ports.iter().map(|port| Hop::port(*port));
        let members = ports.chain(nodes.iter().map(|node| Hop::node(*node)));
        for (place, member) in (0..).zip(members) {
            self.insert("MEMBERS", [slice, after, place], member.entry())?;
        }
        self.insert("GENERATIONS", slice, after)?;
        if let Some(before) = before {
            let mut map: HashMap<&mut MapData, [u32; 3], HopEntry> = self.map("MEMBERS")?;
            let mut place = 0;
            while map.remove(&[slice, before, place]).is_ok() {
                place += 1;
            }
        }
        Ok(())
    }

    /// Frames of a slice that were dropped for this reason; that passed, where there is none.
    pub fn count(&mut self, slice: u32, reason: Option<Reason>) -> Result<u64, Error> {
        let what = reason.map_or(Reason::ALL.len() as u32, |reason| reason as u32);
        let map: PerCpuHashMap<&mut MapData, [u32; 2], u64> = self.map("COUNTS")?;
        match map.get(&[slice, what], 0) {
            Ok(counts) => Ok(counts.iter().sum()),
            Err(aya::maps::MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(Error::Map("COUNTS", error)),
        }
    }

    fn insert<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &'static str,
        key: K,
        value: V,
    ) -> Result<(), Error> {
        let mut map: HashMap<&mut MapData, K, V> = self.map(name)?;
        map.insert(key, value, 0).map_err(|error| Error::Map(name, error))
    }

    fn map<'a, M>(&'a mut self, name: &'static str) -> Result<M, Error>
    where
        M: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
    {
        let map = self.0.map_mut(name).expect("a map of the programs");
        map.try_into().map_err(|error| Error::Map(name, error))
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> &'a mut SchedClassifier {
    let program = ebpf.program_mut(name).expect("a program of the object");
    program.try_into().expect("a classifier")
}
