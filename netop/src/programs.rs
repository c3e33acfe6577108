//! The eBPF programs of the node, and their maps.
//!
//! What is decided in them is [`slice_datapath`]'s; what is in the maps is the caller's. Each load has maps of its own,
//! which live as long as this value, or an interface that one of its programs is attached to. Needs CAP_BPF and
//! CAP_NET_ADMIN, or CAP_SYS_ADMIN on kernels before 5.8.

use std::{collections::BTreeMap, net::Ipv6Addr, os::fd::RawFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuHashMap, lpm_trie::Key},
    programs::SchedClassifier,
};
use slice_crds::IndexRange;
use slice_datapath::{
    ALL_CLUSTERS, AnswerKey, CountKey, Direction, Hop, HopEntry, NodeKey, PASSED, Port, PortEntry, Reason,
    SliceRules, Tunnel, answer_key, node_key, port_key, prefix,
};

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

/// A program could not be loaded, or a map not read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel refused the eBPF programs: {0}")]
    Load(#[from] aya::EbpfError),
    #[error("the kernel refused eBPF program {0}: {1}")]
    Program(&'static str, #[source] aya::programs::ProgramError),
    #[error("eBPF map {0}: {1}")]
    Map(&'static str, #[source] MapError),
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    FromPort,
    FromNode,
    FromShaper,
}

impl Program {
    pub const ALL: [Self; 3] = [Self::FromPort, Self::FromNode, Self::FromShaper];

    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPort => "from_port",
            Self::FromNode => "from_node",
            Self::FromShaper => "from_shaper",
        }
    }
}

/// A program in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// By which it is attached, as long as [`Programs`] lives.
    pub fd: RawFd,
    /// By which the kernel names what is attached.
    pub id: u32,
}

/// What became of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter {
    /// Zero for what belongs to none.
    pub slice: u32,
    pub direction: Direction,
    /// Why they were dropped; `None` for those that passed.
    pub reason: Option<Reason>,
}

/// The programs, loaded.
pub struct Programs(Ebpf);

/// Answers to probes: which are waited for, and which have come.
pub struct Answers(HashMap<MapData, AnswerKey, u32>);

impl Answers {
    const MAP: &'static str = "ANSWERS";

    /// Waits for the answer with a nonce from a node.
    pub fn expect(&mut self, nonce: u64, node: Ipv6Addr) -> Result<(), Error> {
        let inserted = self.0.insert(answer_key(nonce, node), 0, 0);
        inserted.map_err(|error| Error::Map(Self::MAP, error))
    }

    /// Waits for it no longer. How long it was, where it has come.
    pub fn take(&mut self, nonce: u64, node: Ipv6Addr) -> Result<Option<u32>, Error> {
        let key = answer_key(nonce, node);
        let length = match self.0.get(&key, 0) {
            Ok(length) => length,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(Error::Map(Self::MAP, error)),
        };
        ignore_absent(Self::MAP, self.0.remove(&key))?;
        Ok((length != 0).then_some(length))
    }

    /// How many are waited for.
    pub fn count(&self) -> usize {
        self.0.keys().count()
    }
}

impl Programs {
    pub fn load(limits: Limits) -> Result<Self, Error> {
        let counts = Direction::ALL.len() * (Reason::ALL.len() + 1);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("PORTS", limits.ports)
            .map_max_entries("PACES", limits.ports + limits.routes)
            .map_max_entries("SLICES", limits.slices)
            .map_max_entries("GENERATIONS", limits.slices)
            .map_max_entries("COUNTS", limits.slices * counts as u32)
            .map_max_entries("ROUTES", limits.routes)
            .map_max_entries("EXITS", limits.routes)
            .map_max_entries("RELAYS", limits.routes)
            .map_max_entries("NODES", limits.routes)
            .map_max_entries("MEMBERS", limits.routes)
            .load(OBJECT)?;
        for program in Program::ALL {
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

    pub fn loaded(&mut self, program: Program) -> Result<Loaded, Error> {
        use std::os::fd::{AsFd, AsRawFd};
        let name = program.name();
        let fails = |error| Error::Program(name, error);
        let program = self.program(program);
        Ok(Loaded {
            id: program.info().map_err(fails)?.id(),
            fd: program.fd().map_err(fails)?.as_fd().as_raw_fd(),
        })
    }

    /// The answers to probes, for who sends them: once.
    pub fn take_answers(&mut self) -> Result<Option<Answers>, Error> {
        let map = self.0.take_map(Answers::MAP).map(HashMap::try_from).transpose();
        let map = map.map_err(|error| Error::Map(Answers::MAP, error))?;
        Ok(map.map(Answers))
    }

    pub fn set_tunnel(&mut self, tunnel: Tunnel) -> Result<(), Error> {
        let mut map: Array<&mut MapData, HopEntry> = self.map("TUNNEL")?;
        map.set(0, tunnel.entry(), 0)
            .map_err(|error| Error::Map("TUNNEL", error))
    }

    /// Says by which interface frames go to the shaper.
    pub fn set_shaper(&mut self, interface: u32) -> Result<(), Error> {
        let mut map: Array<&mut MapData, u32> = self.map("SHAPER")?;
        map.set(0, interface, 0)
            .map_err(|error| Error::Map("SHAPER", error))
    }

    pub fn set_port(&mut self, interface: u32, port: Port) -> Result<(), Error> {
        self.insert("PORTS", interface, port.entry())
    }

    pub fn remove_port(&mut self, interface: u32) -> Result<(), Error> {
        self.remove::<NodeKey, u64>("PACES", port_key(interface))?;
        self.remove::<u32, PortEntry>("PORTS", interface)
    }

    pub fn set_slice(&mut self, number: u32, rules: &SliceRules) -> Result<(), Error> {
        self.insert("SLICES", number, rules.entry())
    }

    /// Removes what says what a slice is, and its counts.
    pub fn remove_slice(&mut self, number: u32) -> Result<(), Error> {
        self.remove::<u32, [u64; 6]>("SLICES", number)?;
        let mut map: PerCpuHashMap<&mut MapData, CountKey, u64> = self.map("COUNTS")?;
        for direction in Direction::ALL {
            for what in (0..Reason::ALL.len() as u32).chain([PASSED]) {
                let key = slice_datapath::count_key(number, direction, what);
                ignore_absent("COUNTS", map.remove(&key))?;
            }
        }
        Ok(())
    }

    pub fn set_route(&mut self, slice: u32, indices: IndexRange, hop: Hop) -> Result<(), Error> {
        let mut map: LpmTrie<&mut MapData, [u32; 2], HopEntry> = self.map("ROUTES")?;
        map.insert(&route_key(slice, indices), hop.entry(), 0)
            .map_err(|error| Error::Map("ROUTES", error))
    }

    pub fn remove_route(&mut self, slice: u32, indices: IndexRange) -> Result<(), Error> {
        let mut map: LpmTrie<&mut MapData, [u32; 2], HopEntry> = self.map("ROUTES")?;
        ignore_absent("ROUTES", map.remove(&route_key(slice, indices)))
    }

    /// Says how frames leave for a cluster; `None` stands for all, where a frame is for a group.
    pub fn set_exit(&mut self, slice: u32, cluster: Option<u32>, exit: Hop) -> Result<(), Error> {
        self.insert("EXITS", cluster_key(slice, cluster), exit.entry())
    }

    pub fn remove_exit(&mut self, slice: u32, cluster: Option<u32>) -> Result<(), Error> {
        self.remove::<_, HopEntry>("EXITS", cluster_key(slice, cluster))
    }

    /// Says by which port goes what other nodes send here for a cluster; `None` as in [`Self::set_exit`].
    pub fn set_relay(&mut self, slice: u32, cluster: Option<u32>, port: Hop) -> Result<(), Error> {
        self.insert("RELAYS", cluster_key(slice, cluster), port.entry())
    }

    pub fn remove_relay(&mut self, slice: u32, cluster: Option<u32>) -> Result<(), Error> {
        self.remove::<_, HopEntry>("RELAYS", cluster_key(slice, cluster))
    }

    pub fn set_node(&mut self, slice: u32, address: Ipv6Addr, has_gateway: bool) -> Result<(), Error> {
        self.insert("NODES", node_key(slice, address), u32::from(has_gateway))
    }

    pub fn remove_node(&mut self, slice: u32, address: Ipv6Addr) -> Result<(), Error> {
        self.remove::<NodeKey, u64>("PACES", node_key(slice, address))?;
        self.remove::<_, u32>("NODES", node_key(slice, address))
    }

    /// Replaces those who get copies, all at once: ports of pods, and then other nodes.
    pub fn set_members(&mut self, slice: u32, members: impl IntoIterator<Item = Hop>) -> Result<(), Error> {
        let before = self.generation(slice)?;
        let after = before.map_or(0, |generation| generation.wrapping_add(1));
        for (place, member) in (0..).zip(members) {
            self.insert("MEMBERS", [slice, after, place], member.entry())?;
        }
        self.insert("GENERATIONS", slice, after)?;
        match before {
            Some(before) => self.forget_members(slice, before),
            None => Ok(()),
        }
    }

    pub fn remove_members(&mut self, slice: u32) -> Result<(), Error> {
        let Some(generation) = self.generation(slice)? else {
            return Ok(());
        };
        self.remove::<u32, u32>("GENERATIONS", slice)?;
        self.forget_members(slice, generation)
    }

    fn generation(&mut self, slice: u32) -> Result<Option<u32>, Error> {
        let map: HashMap<&mut MapData, u32, u32> = self.map("GENERATIONS")?;
        match map.get(&slice, 0) {
            Ok(generation) => Ok(Some(generation)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::Map("GENERATIONS", error)),
        }
    }

    fn forget_members(&mut self, slice: u32, generation: u32) -> Result<(), Error> {
        let mut map: HashMap<&mut MapData, [u32; 3], HopEntry> = self.map("MEMBERS")?;
        let mut place = 0;
        while map.remove(&[slice, generation, place]).is_ok() {
            place += 1;
        }
        Ok(())
    }

    /// All that was counted.
    pub fn counts(&mut self) -> Result<BTreeMap<Counter, u64>, Error> {
        let map: PerCpuHashMap<&mut MapData, CountKey, u64> = self.map("COUNTS")?;
        let mut counts = BTreeMap::new();
        for entry in map.iter() {
            let ([slice, what], values) = entry.map_err(|error| Error::Map("COUNTS", error))?;
            let direction = Direction::ALL
                .into_iter()
                .find(|direction| *direction as u32 == what >> 16);
            let reason = match what & 0xffff {
                PASSED => Ok(None),
                reason => Reason::try_from(reason).map(Some),
            };
            if let (Some(direction), Ok(reason)) = (direction, reason) {
                let counter = Counter {
                    slice,
                    direction,
                    reason,
                };
                counts.insert(counter, values.iter().sum());
            }
        }
        Ok(counts)
    }

    /// How many entries each map has.
    pub fn sizes(&mut self) -> Result<BTreeMap<&'static str, usize>, Error> {
        fn count<K: aya::Pod, V: aya::Pod>(
            programs: &mut Programs,
            name: &'static str,
        ) -> Result<usize, Error> {
            let map: HashMap<&mut MapData, K, V> = programs.map(name)?;
            Ok(map.keys().count())
        }
        let routes: LpmTrie<&mut MapData, [u32; 2], HopEntry> = self.map("ROUTES")?;
        let routes = routes.keys().count();
        Ok(BTreeMap::from([
            ("PORTS", count::<u32, PortEntry>(self, "PORTS")?),
            ("SLICES", count::<u32, [u64; 6]>(self, "SLICES")?),
            ("ROUTES", routes),
            ("EXITS", count::<[u32; 2], HopEntry>(self, "EXITS")?),
            ("RELAYS", count::<[u32; 2], HopEntry>(self, "RELAYS")?),
            ("NODES", count::<[u32; 5], u32>(self, "NODES")?),
            ("GENERATIONS", count::<u32, u32>(self, "GENERATIONS")?),
            ("MEMBERS", count::<[u32; 3], HopEntry>(self, "MEMBERS")?),
            ("PACES", count::<NodeKey, u64>(self, "PACES")?),
        ]))
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

    fn remove<K: aya::Pod, V: aya::Pod>(&mut self, name: &'static str, key: K) -> Result<(), Error> {
        let mut map: HashMap<&mut MapData, K, V> = self.map(name)?;
        ignore_absent(name, map.remove(&key))
    }

    fn map<'a, M>(&'a mut self, name: &'static str) -> Result<M, Error>
    where
        M: TryFrom<&'a mut aya::maps::Map, Error = MapError>,
    {
        let map = self.0.map_mut(name).expect("a map of the programs");
        map.try_into().map_err(|error| Error::Map(name, error))
    }
}

/// What is gone already need not be removed.
fn ignore_absent(name: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        result => result.map_err(|error| Error::Map(name, error)),
    }
}

fn route_key(slice: u32, indices: IndexRange) -> Key<[u32; 2]> {
    Key::new(64 - indices.size.trailing_zeros(), prefix(slice, indices.start))
}

fn cluster_key(slice: u32, cluster: Option<u32>) -> [u32; 2] {
    [slice, cluster.unwrap_or(ALL_CLUSTERS)]
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> &'a mut SchedClassifier {
    let program = ebpf.program_mut(name).expect("a program of the object");
    program.try_into().expect("a classifier")
}
