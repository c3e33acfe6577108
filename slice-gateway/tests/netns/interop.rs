//! A far end without any agent of ours: the kernel's VXLAN device over wireguard-go, set up by the script that
//! `slicectl peer script` prints.
//!
//! ```text
//!   a-pod0, a-pod1 ─ bridge ─ TAP ═ a-gw0, a-gw1 ─┐
//!                                                 wan ─ wireguard-go ─ sl-shop : host
//!   b-pod0, b-pod1 ─ bridge ─ TAP ═ b-gw0 ────────┘
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};

use slice_crds::{IndexRange, Subnets, names};
use slice_gateway::proto::{Key, config::encode_key};
use slice_runtime::handover;
use slicectl::peer::{self, Gateway, Host, Site};
use socket2::SockRef;

use crate::{
    addresses, eventually,
    lab::{Lab, MTU, Underlay, show, v4, v6, within},
    traffic::Pinger,
    transfer,
};

const INDEX: u32 = 200;
const VTEP: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
const UNDERLAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const PORT: u16 = 51830;

/// The host's namespace, its key, and the lab's side of the arrangement.
struct Stock<'a> {
    lab: &'a Lab,
    namespace: String,
    key: tempfile::NamedTempFile,
}

impl<'a> Stock<'a> {
    fn new(lab: &'a Lab) -> Self {
        lab.host("host", [UNDERLAY]);
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), encode_key(&[0x42; 32])).unwrap();
        lab.invite(handover::Peer {
            cluster: "host".into(),
            outside: true,
            ranges: vec![handover::Range {
                start: INDEX,
                size: 1,
            }],
            gateways: vec![handover::PeerGateway {
                name: "host/0".into(),
                public_key: encode_key(&Key::from_random([0x42; 32].into()).public()),
                former_key: None,
                vtep: VTEP,
                endpoints: vec![SocketAddr::from((UNDERLAY, PORT))],
            }],
        });
        lab.configure();
        Self {
            lab,
            namespace: lab.at("host"),
            key,
        }
    }

    /// What `slicectl` prints for this host.
    fn script(&self) -> String {
        let sites = self.lab.members().into_iter().map(|member| Site {
            name: member.cluster,
            ranges: member
                .ranges
                .iter()
                .map(|range| IndexRange::new(range.start, range.size))
                .collect(),
            gateways: (member.gateways.into_iter())
                .map(|gateway| Gateway {
                    public_key: gateway.public_key,
                    vtep: gateway.vtep,
                    endpoints: gateway.endpoints,
                })
                .collect(),
        });
        peer::script(&Host {
            name: "host".into(),
            slice: "shop".into(),
            vni: self.lab.vni(),
            mtu: MTU,
            subnets: Subnets::new(&["10.80.0.0/16".parse().unwrap(), "fd42:80::/64".parse().unwrap()])
                .unwrap(),
            index: INDEX,
            vtep: VTEP,
            port: PORT,
            key: self.key.path().to_str().unwrap().to_owned(),
            sites: sites.collect(),
        })
    }

    /// Gives a text to `sh`, where the kernel has no WireGuard with wireguard-go in its path.
    fn run(&self, script: &str) {
        let wireguard = slice_go::wireguard_go().unwrap();
        let path = format!(
            "{}:{}",
            wireguard.parent().unwrap().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let output = within(&self.namespace, || {
            let mut shell = Command::new("sh")
                .env("PATH", path)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script.as_bytes()).unwrap();
            shell.wait_with_output().unwrap()
        });
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}\n{script}");
    }
}

impl Drop for Stock<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show(&self.namespace, "wg show");
            show(&self.namespace, "ip -s link");
        }
        // wireguard-go ends with its device.
        let device = names::host_tunnel("shop");
        let _ = Command::new("ip")
            .args(["-n", &self.namespace, "link", "delete", &device])
            .status();
        let socket = format!("/var/run/wireguard/{device}.sock");
        for _ in 0..200 {
            if !std::path::Path::new(&socket).exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_stock_linux_host_is_a_peer() {
    check_stock_host(&Lab::new(&[2, 1], Underlay::V4));
}

/// It knows one tunnel for each gateway, whichever of its threads has a flow.
#[test]
fn a_stock_linux_host_is_a_peer_of_gateways_with_several_threads() {
    check_stock_host(&Lab::with_threads(&[2, 1], Underlay::V4, 3));
}

fn check_stock_host(lab: &Lab) {
    let host = Stock::new(lab);
    let script = host.script();
    host.run(&script);
    lab.settle();
    let own: [IpAddr; 2] = [v4(INDEX).into(), v6(INDEX).into()];
    for cluster in ['a', 'b'] {
        let pod = format!("{cluster}-pod1");
        for (from, to) in own.into_iter().zip(addresses(cluster, 1)) {
            within(&lab.at("host"), || Pinger::new(to)).ping("a pod answers the host");
            within(&lab.at(&pod), || Pinger::new(from)).ping("the host answers a pod");
            transfer(lab, "host", (&pod, to), 1 << 20);
            transfer(lab, &pod, ("host", from), 1 << 20);
        }
    }
    // Among the clusters nothing has changed.
    within(&lab.at("a-pod0"), || Pinger::new(addresses('b', 0)[0])).ping("the clusters reach each other");
    broadcasts_arrive_once(lab);
    // Printed and run again it changes nothing that runs.
    let mut pinger = within(&lab.at("host"), || Pinger::new(addresses('a', 0)[0]));
    pinger.ping("before");
    host.run(&host.script());
    pinger.ping("after");
    assert_eq!(pinger.lost(), 0, "running the script again lost something");
}

/// Every pod and the host broadcast; each hears each other once.
fn broadcasts_arrive_once(lab: &Lab) {
    let names = ["a-pod0", "a-pod1", "b-pod0", "b-pod1", "host"];
    let sockets = names.map(|name| {
        within(&lab.at(name), || {
            let socket = UdpSocket::bind("0.0.0.0:4000").unwrap();
            let device = if name == "host" {
                names::pod_interface("shop")
            } else {
                "slice0".into()
            };
            SockRef::from(&socket)
                .bind_device(Some(device.as_bytes()))
                .unwrap();
            socket.set_broadcast(true).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket
        })
    });
    for (socket, name) in sockets.iter().zip(names) {
        for n in 0..10 {
            socket
                .send_to(format!("{name} {n}").as_bytes(), "10.80.255.255:4000")
                .unwrap();
        }
    }
    for (socket, name) in sockets.iter().zip(names) {
        let (mut heard, mut buffer) = (std::collections::BTreeMap::new(), [0; 100]);
        while let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if !text.starts_with(name) {
                *heard.entry(text).or_insert(0) += 1;
            }
        }
        assert!(heard.values().all(|count| *count == 1), "{name} heard {heard:?}");
        assert_eq!(heard.len(), 40, "{name} heard {heard:?}");
    }
}

#[test]
fn a_stock_host_speaks_for_itself_only() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    let host = Stock::new(&lab);
    host.run(&host.script());
    lab.settle();
    // It takes the address of a pod of b, and asks a.
    let device = names::pod_interface("shop");
    let stolen = v4(crate::index('b', 0));
    lab.ip_in("host", &format!("address add {stolen}/32 dev {device}"));
    let socket = within(&lab.at("host"), || UdpSocket::bind((stolen, 0)).unwrap());
    let listener = within(&lab.at("a-pod0"), || UdpSocket::bind("0.0.0.0:4001").unwrap());
    listener
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    eventually("the gateway counts what it refuses", || {
        socket
            .send_to(b"I am b", (v4(crate::index('a', 0)), 4001))
            .unwrap();
        assert!(listener.recv(&mut [0; 10]).is_err(), "a stolen address passed");
        let metrics = lab.admin("a-gw0", "/metrics");
        (metrics.lines())
            .any(|line| line.contains("spoofed_address") && !line.ends_with(" 0"))
            .then_some(())
    });
}
