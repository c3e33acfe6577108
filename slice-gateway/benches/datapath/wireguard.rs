//! Other implementations of WireGuard in user space, driven by their configuration socket
//! (<https://www.wireguard.com/xplatform/>).

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

use slice_gateway::proto::Key;

use crate::{
    lab::{Lab, eventually, within},
    systems::System,
};

/// A program that makes a TUN device of the name that it is given.
pub(crate) struct Program {
    path: String,
    arguments: &'static [&'static str],
    pub(crate) l3: &'static str,
    pub(crate) l2: &'static str,
    short: &'static str,
    network: u8,
    children: Mutex<Vec<Child>>,
    made: AtomicU8,
}

impl Program {
    pub(crate) fn wireguard_go(path: &str) -> Self {
        Self::new(path, &["-f"], ("wireguard-go", "wireguard-go-vxlan"), "wg", 100)
    }

    /// With one thread: with more it reorders, and is slower.
    pub(crate) fn boringtun(path: &str) -> Self {
        let arguments = &["-f", "--threads", "1", "--disable-drop-privileges"];
        Self::new(path, arguments, ("boringtun", "boringtun-vxlan"), "bt", 110)
    }

    fn new(
        path: &str,
        arguments: &'static [&'static str],
        (l3, l2): (&'static str, &'static str),
        short: &'static str,
        network: u8,
    ) -> Self {
        Self {
            path: path.into(),
            arguments,
            l3,
            l2,
            short,
            network,
            children: Mutex::default(),
            made: AtomicU8::new(0),
        }
    }

    /// The TUN device is the pod's interface.
    pub(crate) fn layer3(&self, lab: &Lab) -> System {
        let (names, network) = self.pair(lab);
        System {
            name: self.l3,
            from: names[0].clone(),
            to: names[1].clone(),
            address: IpAddr::from([10, network, 0, 2]),
        }
    }

    /// Pod, bridge, the kernel's VXLAN over the TUN device.
    pub(crate) fn layer2(&self, lab: &Lab) -> System {
        let (names, network) = self.pair(lab);
        let pods: Vec<String> = names
            .iter()
            .zip([1, 2])
            .map(|(node, own)| {
                let (pod, other) = (format!("{node}-pod"), 3 - own);
                lab.namespace(&pod);
                let peer = lab.at(&pod);
                lab.ip_in(node, "link add seg0 type bridge mcast_snooping 0");
                lab.ip_in(node, "link set seg0 up");
                lab.ip_in(
                    node,
                    &format!(
                        "link add vx mtu 1370 type vxlan id 9 dstport 4789 remote 10.{network}.0.{other}"
                    ),
                );
                lab.ip_in(node, "link set vx master seg0 up");
                lab.ip_in(
                    node,
                    &format!("link add p0 mtu 1370 type veth peer name slice0 netns {peer} mtu 1370"),
                );
                lab.ip_in(node, "link set p0 master seg0 up");
                lab.ip_in(
                    &pod,
                    &format!("address add 10.{}.0.{own}/24 dev slice0", network + 1),
                );
                lab.ip_in(&pod, "link set slice0 up");
                pod
            })
            .collect();
        let address = IpAddr::from([10, network + 1, 0, 2]);
        System {
            name: self.l2,
            from: pods[0].clone(),
            to: pods[1].clone(),
            address,
        }
    }

    /// Two namespaces with a tunnel between them; their addresses are 10.N.0.1 and 10.N.0.2.
    fn pair(&self, lab: &Lab) -> ([String; 2], u8) {
        let network = self.network + 2 * self.made.fetch_add(1, Ordering::Relaxed);
        let names = ["x", "y"].map(|side| format!("{}{network}{side}", self.short));
        let keys = [1, 2].map(|side| [network ^ side; 32]);
        for (place, name) in names.iter().enumerate() {
            let (own, other) = (place + 1, 2 - place);
            lab.namespace(name);
            let wan = lab.at("wan");
            lab.ip_in(
                name,
                &format!("link add wan type veth peer name {name} netns {wan}"),
            );
            lab.ip_in("wan", &format!("link set {name} master wan up"));
            lab.ip_in(name, &format!("address add 198.51.{network}.{own}/24 dev wan"));
            lab.ip_in(name, "link set wan up");
            // The configuration sockets of all namespaces are in one directory.
            let device = format!("{name}{}", std::process::id());
            let child = within(&lab.at(name), || {
                Command::new(&self.path)
                    .args(self.arguments)
                    .arg(&device)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap_or_else(|error| panic!("start {}: {error}", self.path))
            });
            self.children.lock().unwrap().push(child);
            let mut socket = eventually("the configuration socket", || {
                UnixStream::connect(format!("/var/run/wireguard/{device}.sock")).ok()
            });
            let public = Key::from_random(keys[other - 1].into()).public();
            let request = format!(
                "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\nendpoint=198.51.{network}.{other}:51820\n\
                 persistent_keepalive_interval=5\nallowed_ip=0.0.0.0/0\n\n",
                hex(&keys[place]),
                hex(&public)
            );
            socket.write_all(request.as_bytes()).unwrap();
            socket
                .set_read_timeout(Some(std::time::Duration::from_secs(5)))
                .unwrap();
            let (mut answer, mut buffer) = (String::new(), [0; 100]);
            while !answer.contains("\n\n") {
                let length = socket.read(&mut buffer).unwrap();
                answer += &String::from_utf8_lossy(&buffer[..length]);
            }
            assert!(answer.contains("errno=0"), "{answer}");
            lab.ip_in(name, &format!("link set {device} mtu 1420 up"));
            lab.ip_in(name, &format!("address add 10.{network}.0.{own}/24 dev {device}"));
        }
        (names, network)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        for child in self.children.lock().unwrap().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
