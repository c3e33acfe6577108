//! Nodes and pods without an agent: the eBPF programs alone, or beside them what the kernel has: a bridge and VXLAN.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aya::programs::{
    TcAttachType,
    tc::{self, NlOptions, TcAttachOptions},
};
use slice_crds::{IndexRange, Mac};
use slice_datapath::{Hop, Port, Role, SliceRules, Tunnel};
use slice_frame::Subnets;
use slice_netop::programs::{Limits, Program, Programs};

use super::{Space, Wire, move_link};

/// The slice that the pods of a bed are in.
pub const SLICE: u32 = 77;

/// What a bed's slices are.
pub fn rules(group_rate: u32) -> SliceRules {
    SliceRules {
        subnets: Subnets::new(
            Some((Ipv4Addr::new(10, 80, 0, 0), 16)),
            Some(("fd42::".parse().unwrap(), 64)),
        ),
        non_ip: true,
        tagged: false,
        routers: false,
        group_rate,
    }
}

/// What carries frames between ports and nodes.
pub enum Carrier {
    Programs(Box<Programs>),
    Bridge,
}

/// Nodes on one underlay, each with 64 indices from 64 times its number on.
pub struct Bed {
    pub nodes: Vec<BedNode>,
    _underlay: Space,
}

pub struct BedNode {
    pub space: Space,
    pub carrier: Carrier,
    number: u32,
    /// Of all nodes.
    count: u32,
    ports: Vec<u32>,
}

pub struct BedPod {
    pub space: Space,
    pub index: u32,
}

/// Attaches a program to what an interface receives, for as long as there is the interface.
fn attach(space: &Space, programs: &mut Programs, program: Program, interface: &str) {
    space.run(|| {
        // There is one already where it was attached before.
        let _ = tc::qdisc_add_clsact(interface);
        let classifier = programs.program(program);
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: 1,
            ..NlOptions::default()
        });
        let link = classifier.attach_with_options(interface, TcAttachType::Ingress, options);
        let link = classifier.take_link(link.map_err(io::Error::other)?);
        std::mem::forget(link.map_err(io::Error::other)?);
        Ok(())
    });
}

/// A node's address, as the maps have it.
pub fn address(number: u32) -> Ipv6Addr {
    v4(number).to_ipv6_mapped()
}

fn v4(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 7, number as u8 + 1)
}

impl Bed {
    /// With the programs and one slice.
    pub fn with_programs(count: u32, group_rate: u32) -> Self {
        let limits = Limits {
            ports: 4096,
            slices: 2048,
            routes: 16 << 10,
        };
        Self::new(count, |node| {
            let mut programs = Programs::load(limits).unwrap();
            for (name, port) in [("wx0", 14789), ("wu0", 14790)] {
                let kind = format!("vxlan external dstport {port} nolearning");
                node.space.ip(&format!("link add {name} type {kind}"));
                node.space.ip(&format!("link set {name} mtu 65000 up"));
                attach(&node.space, &mut programs, Program::FromNode, name);
            }
            let tunnel = Tunnel {
                to_pods: node.interface("wx0"),
                to_gateways: node.interface("wu0"),
                local: address(node.number),
            };
            programs.set_tunnel(tunnel).unwrap();
            node.carrier = Carrier::Programs(Box::new(programs));
            node.add_slice(SLICE, &rules(group_rate));
        })
    }

    /// With the kernel's bridge and VXLAN, nothing filtered, and one slice.
    pub fn with_bridges(count: u32) -> Self {
        Self::new(count, |node| node.space.batch(&node.bridge(SLICE)))
    }

    fn new(count: u32, set_up: impl Fn(&mut BedNode)) -> Self {
        let underlay = Space::new("underlay");
        underlay.ip("link add br0 type bridge");
        underlay.ip("link set br0 up");
        let nodes = (0..count).map(|number| {
            let space = Space::new(&format!("node {number}"));
            space.ip("link add eth0 type veth peer name up0");
            move_link(&space, "up0", &underlay, &format!("n{number}"));
            underlay.ip(&format!("link set n{number} master br0"));
            underlay.ip(&format!("link set n{number} up"));
            space.ip(&format!("addr add {}/24 dev eth0", v4(number)));
            space.ip("link set eth0 up");
            let mut node = BedNode {
                space,
                carrier: Carrier::Bridge,
                number,
                count,
                ports: vec![],
            };
            set_up(&mut node);
            node
        });
        Self {
            nodes: nodes.collect(),
            _underlay: underlay,
        }
    }

    /// A pod of the bed's slice, the `nth` of a node.
    pub fn add_pod(&mut self, node: usize, nth: u32) -> BedPod {
        self.nodes[node].add_pod(nth)
    }

    /// More slices, each with a port on every node, numbered from `first` on.
    pub fn add_slices(&mut self, first: u32, count: u32) {
        for node in &mut self.nodes {
            node.add_slices(first, count);
        }
    }
}

impl BedNode {
    pub fn programs(&mut self) -> &mut Programs {
        match &mut self.carrier {
            Carrier::Programs(programs) => programs,
            Carrier::Bridge => panic!("a bed without programs"),
        }
    }

    pub fn ports(&self) -> &[u32] {
        &self.ports
    }

    fn others(&self) -> Vec<u32> {
        (0..self.count).filter(|other| *other != self.number).collect()
    }

    fn interface(&self, name: &str) -> u32 {
        self.space
            .run(|| nix::net::if_::if_nametoindex(name).map_err(io::Error::from))
    }

    fn add_slice(&mut self, slice: u32, rules: &SliceRules) {
        let (number, count, others) = (self.number, self.count, self.others());
        let programs = self.programs();
        programs.set_slice(slice, rules).unwrap();
        for other in (0..count).filter(|other| *other != number) {
            let block = IndexRange::new(other * 64, 64);
            programs
                .set_route(slice, block, Hop::node(address(other)))
                .unwrap();
        }
        for other in others {
            programs.set_node(slice, address(other), false).unwrap();
        }
        self.set_members(slice, &[]);
    }

    fn set_members(&mut self, slice: u32, ports: &[u32]) {
        let others = self.others().into_iter().map(address).map(Hop::node);
        let ports = ports.iter().map(|port| Hop::port(*port, 0));
        let members: Vec<Hop> = ports.chain(others).collect();
        self.programs().set_members(slice, members).unwrap();
    }

    /// Makes an interface the port of an index.
    pub fn set_port(&mut self, slice: u32, name: &str, index: u32) -> u32 {
        let interface = self.interface(name);
        let port = Port {
            slice,
            role: Role::Pod,
            index,
            class: 0,
        };
        let space = &self.space;
        let Carrier::Programs(programs) = &mut self.carrier else {
            panic!("a bed without programs");
        };
        programs.set_port(interface, port).unwrap();
        programs
            .set_route(slice, IndexRange::new(index, 1), Hop::port(interface, 0))
            .unwrap();
        attach(space, programs, Program::FromPort, name);
        interface
    }

    fn add_pod(&mut self, nth: u32) -> BedPod {
        let index = self.number * 64 + nth;
        let space = Space::new(&format!("pod {index}"));
        let port = format!("wp-{index}");
        self.space
            .ip(&format!("link add {port} type veth peer name tmp{index}"));
        move_link(&self.space, &format!("tmp{index}"), &space, "eth0");
        let pod = BedPod { space, index };
        pod.space
            .ip(&format!("link set eth0 address {} mtu 1370", pod.mac()));
        pod.space.ip(&format!("addr add {}/16 dev eth0", pod.v4()));
        pod.space.ip(&format!("addr add {}/64 dev eth0 nodad", pod.v6()));
        pod.space.ip("link set eth0 up");
        self.space.ip(&format!("link set {port} up"));
        match self.carrier {
            Carrier::Programs(_) => {
                let interface = self.set_port(SLICE, &port, index);
                self.ports.push(interface);
                let ports = self.ports.clone();
                self.set_members(SLICE, &ports);
            }
            Carrier::Bridge => {
                self.space.ip(&format!("link set {port} master wb{SLICE}"));
            }
        }
        pod
    }

    fn add_slices(&mut self, first: u32, count: u32) {
        let numbers = first..first + count;
        let mut commands = String::new();
        let with_programs = matches!(self.carrier, Carrier::Programs(_));
        for number in numbers.clone() {
            if !with_programs {
                commands.push_str(&self.bridge(number));
            }
            commands.push_str(&format!(
                "link add wp{number} type veth peer name p{number}\n\
                 link set wp{number} up\nlink set p{number} up\n"
            ));
            if !with_programs {
                commands.push_str(&format!("link set wp{number} master wb{number}\n"));
            }
        }
        self.space.batch(&commands);
        for number in numbers.filter(|_| with_programs) {
            self.add_slice(number, &rules(1000));
            let name = format!("wp{number}");
            let interface = self.set_port(number, &name, self.number * 64 + 1);
            self.set_members(number, &[interface]);
        }
    }

    /// What makes a slice of the kernel's bridge and VXLAN.
    fn bridge(&self, slice: u32) -> String {
        let remote = self
            .others()
            .first()
            .map(|other| format!("remote {}", v4(*other)));
        format!(
            "link add wb{slice} type bridge mcast_snooping 0\nlink set wb{slice} up\n\
             link add wx{slice} type vxlan id {slice} dstport 4789 {}\n\
             link set wx{slice} master wb{slice} mtu 1400 up\n",
            remote.unwrap_or_default()
        )
    }
}

impl BedPod {
    pub fn mac(&self) -> Mac {
        Mac::of_index(self.index)
    }

    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 80, 0, 0).to_bits() + self.index).into()
    }

    pub fn v6(&self) -> IpAddr {
        let address = format!("fd42::{:x}", self.index).parse::<Ipv6Addr>();
        address.unwrap().into()
    }

    pub fn wire(&self) -> Wire {
        Wire::open(&self.space, "eth0")
    }
}

impl Space {
    /// Runs many `ip` commands as one.
    fn batch(&self, commands: &str) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(commands.as_bytes()).unwrap();
        self.ip(&format!("-batch {}", file.path().display()));
    }
}
