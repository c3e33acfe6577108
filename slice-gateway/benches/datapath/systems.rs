//! The ways between two pods that are compared.

use std::net::IpAddr;

use crate::lab::{Lab, index, v4};

/// A pair of pods and the way between them.
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) address: IpAddr,
}

pub(crate) fn weft() -> System {
    System {
        name: "weft",
        from: "a-pod0".into(),
        to: "b-pod0".into(),
        address: v4(index('b', 0)).into(),
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
    let address = IpAddr::from([10, 81, 0, 2]);
    System {
        name: "veth",
        from: "veth-x".into(),
        to: "veth-y".into(),
        address,
    }
}

/// Pod, bridge, VXLAN device, underlay, VXLAN device, bridge, pod.
pub(crate) fn vxlan(lab: &Lab) -> System {
    for (side, own, other) in [('x', 1, 2), ('y', 2, 1)] {
        let (node, pod) = (format!("vxlan-{side}"), format!("vxlan-pod-{side}"));
        lab.namespace(&node);
        lab.namespace(&pod);
        let (peer, wan) = (lab.at(&pod), lab.at("wan"));
        lab.ip_in(
            &node,
            &format!("link add wan type veth peer name vx{side} netns {wan}"),
        );
        lab.ip_in("wan", &format!("link set vx{side} master wan up"));
        lab.ip_in(&node, &format!("address add 192.0.2.{}/24 dev wan", 200 + own));
        lab.ip_in(&node, "link set wan up");
        lab.ip_in(&node, "link add seg0 type bridge mcast_snooping 0");
        lab.ip_in(&node, "link set seg0 up");
        let remote = 200 + other;
        lab.ip_in(
            &node,
            &format!("link add vx mtu 1450 type vxlan id 9 dstport 4789 remote 192.0.2.{remote} dev wan"),
        );
        lab.ip_in(&node, "link set vx master seg0 up");
        lab.ip_in(
            &node,
            &format!("link add p0 mtu 1450 type veth peer name slice0 netns {peer} mtu 1450"),
        );
        lab.ip_in(&node, "link set p0 master seg0 up");
        lab.ip_in(&pod, &format!("address add 10.82.0.{own}/24 dev slice0"));
        lab.ip_in(&pod, "link set slice0 up");
    }
    let address = IpAddr::from([10, 82, 0, 2]);
    System {
        name: "vxlan",
        from: "vxlan-pod-x".into(),
        to: "vxlan-pod-y".into(),
        address,
    }
}
