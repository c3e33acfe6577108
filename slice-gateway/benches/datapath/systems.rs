//! The ways between two pods that are compared.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use crate::{
    lab::{Lab, eventually, index, v4, within},
    wire::Device,
};

/// What a way carries, and whether somebody on the way can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    /// Frames, in clear.
    Clear,
    /// IP packets, encrypted.
    Packets,
    /// Ethernet frames, encrypted.
    Frames,
}

/// A pair of pods and the way between them.
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) carries: Carries,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) address: IpAddr,
    /// The devices at both ends of the wire between the clusters.
    pub(crate) wire: Vec<Device>,
    /// The processes on the way.
    pub(crate) pids: Vec<u32>,
}

impl System {
    /// Waits until a connection can be made.
    pub(crate) fn settle(&self, lab: &Lab) {
        let listener = within(&lab.at(&self.to), || {
            eventually(self.name, || TcpListener::bind((self.address, 0)).ok())
        });
        let address: SocketAddr = listener.local_addr().unwrap();
        within(&lab.at(&self.from), || {
            eventually(self.name, || {
                TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()
            })
        });
    }
}

pub(crate) fn weft(lab: &Lab) -> System {
    let device = |namespace: &str, name: &str, joins| Device {
        namespace: lab.at(namespace),
        name: name.into(),
        joins,
        pods: false,
    };
    System {
        name: "weft",
        what: "pod, bridge, TAP, gateway, WireGuard",
        carries: Carries::Frames,
        from: "a-pod0".into(),
        to: "b-pod0".into(),
        address: v4(index('b', 0)).into(),
        wire: vec![
            device("a-gw0", "wan", true),
            device("wan", "a0", false),
            device("wan", "b0", false),
            device("b-gw0", "wan", true),
        ],
        pids: lab.pids(),
    }
}

pub(crate) fn veth(lab: &Lab) -> System {
    for name in ["veth-x", "veth-y"] {
        lab.namespace(name);
    }
    let peer = lab.at("veth-y");
    lab.ip_in(
        "veth-x",
        &format!("link add slice0 mtu 1500 type veth peer name slice0 netns {peer}"),
    );
    for (name, address) in [("veth-x", "10.81.0.1/24"), ("veth-y", "10.81.0.2/24")] {
        lab.ip_in(name, &format!("address add {address} dev slice0"));
        lab.ip_in(name, "link set slice0 up");
    }
    let wire = ["veth-x", "veth-y"].map(|namespace| Device {
        namespace: lab.at(namespace),
        name: "slice0".into(),
        joins: true,
        pods: true,
    });
    System {
        name: "veth",
        what: "two pods and a cable",
        carries: Carries::Clear,
        from: "veth-x".into(),
        to: "veth-y".into(),
        address: [10, 81, 0, 2].into(),
        wire: wire.into(),
        pids: vec![],
    }
}

/// Pod, bridge, VXLAN device, underlay, VXLAN device, bridge, pod.
pub(crate) fn vxlan(lab: &Lab) -> System {
    let mut wire = Vec::new();
    for (node, own, other) in [("vxlan-x", 1, 2), ("vxlan-y", 2, 1)] {
        let (devices, _) = on_underlay(lab, node, &format!("vx{own}"), [192, 0, 2, 200 + own]);
        wire.extend(devices);
        segment(
            lab,
            node,
            &format!(
                "type vxlan id 9 dstport 4789 remote 192.0.2.{} dev wan",
                200 + other
            ),
            "vx",
            1450,
            [10, 82, 0, own].into(),
        );
    }
    System {
        name: "vxlan",
        what: "pod, bridge, the kernel's VXLAN",
        carries: Carries::Clear,
        from: "vxlan-x-pod".into(),
        to: "vxlan-y-pod".into(),
        address: [10, 82, 0, 2].into(),
        wire,
        pids: vec![],
    }
}

/// Makes a namespace with an interface `wan` on the underlay; returns the devices of its wire, and its full name.
pub(crate) fn on_underlay(
    lab: &Lab,
    name: &str,
    port: &str,
    address: impl Into<Ipv4Addr>,
) -> (Vec<Device>, String) {
    lab.namespace(name);
    let (wan, own) = (lab.at("wan"), lab.at(name));
    lab.ip_in(
        name,
        &format!("link add wan type veth peer name {port} netns {wan}"),
    );
    lab.ip_in("wan", &format!("link set {port} master wan up"));
    lab.ip_in(
        name,
        &format!("address add {}/24 broadcast + dev wan", address.into()),
    );
    lab.ip_in(name, "link set wan up");
    let device = |namespace: &str, name: &str, joins| Device {
        namespace: namespace.into(),
        name: name.into(),
        joins,
        pods: false,
    };
    (vec![device(&own, "wan", true), device(&wan, port, false)], own)
}

/// Makes a bridge in a namespace with two ports: the device `tunnel`, which is made too unless `kind` is empty, and
/// the interface of a pod.
pub(crate) fn segment(lab: &Lab, node: &str, kind: &str, tunnel: &str, mtu: u16, address: Ipv4Addr) {
    let pod = format!("{node}-pod");
    lab.namespace(&pod);
    let peer = lab.at(&pod);
    lab.ip_in(node, "link add seg0 type bridge mcast_snooping 0");
    lab.ip_in(node, "link set seg0 up");
    if !kind.is_empty() {
        lab.ip_in(node, &format!("link add {tunnel} mtu {mtu} {kind}"));
    }
    lab.ip_in(node, &format!("link set {tunnel} master seg0 up"));
    lab.ip_in(
        node,
        &format!("link add p0 mtu {mtu} type veth peer name slice0 netns {peer} mtu {mtu}"),
    );
    lab.ip_in(node, "link set p0 master seg0 up");
    lab.ip_in(&pod, &format!("address add {address}/24 dev slice0"));
    lab.ip_in(&pod, "link set slice0 up");
}
