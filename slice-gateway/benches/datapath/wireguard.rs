//! Other implementations of WireGuard in user space, driven by their configuration socket
//! (<https://www.wireguard.com/xplatform/>).

use std::{
    fmt::Write as _,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

use slice_gateway::proto::Key;

use crate::{
    lab::{Lab, eventually, within},
    obtain,
    systems::{self, Carries, System},
    wire::Device,
};

/// MTU of a TUN device: what WireGuard leaves of 1500 bytes under IPv6.
const MTU_L3: u16 = 1420;
/// MTU of pods over VXLAN over it.
const MTU_L2: u16 = 1370;

/// A program that makes a TUN device of the name that it is given.
pub(crate) struct Program {
    path: PathBuf,
    arguments: &'static [&'static str],
    l2: &'static str,
    short: &'static str,
    network: u8,
    /// Each with its configuration socket, which a killed program leaves behind.
    children: Mutex<Vec<(Child, PathBuf)>>,
    made: AtomicU8,
}

/// Two namespaces with a tunnel between them; their addresses are 10.N.0.1 and 10.N.0.2.
struct Pair {
    names: [String; 2],
    network: u8,
    wire: Vec<Device>,
    pids: Vec<u32>,
}

impl Program {
    pub(crate) fn wireguard_go() -> Self {
        let program = slice_go::wireguard_go().unwrap();
        Self::new(program, &["-f"], "wireguard-go-vxlan", "wg", 100)
    }

    /// With one thread: with more it reorders, and is slower.
    pub(crate) fn boringtun() -> Self {
        let arguments = &["-f", "--threads", "1", "--disable-drop-privileges"];
        Self::new(obtain::boringtun(), arguments, "boringtun-vxlan", "bt", 110)
    }

    fn new(
        path: PathBuf,
        arguments: &'static [&'static str],
        l2: &'static str,
        short: &'static str,
        network: u8,
    ) -> Self {
        Self {
            path,
            arguments,
            l2,
            short,
            network,
            children: Mutex::default(),
            made: AtomicU8::new(0),
        }
    }

    /// The TUN device is the pod's interface.
    pub(crate) fn layer3(&self, lab: &Lab, name: &'static str) -> System {
        let pair = self.pair(lab);
        let [from, to] = pair.names;
        System {
            name,
            what: "pod is the tunnel's end; no Ethernet",
            carries: Carries::Packets,
            from,
            to,
            address: [10, pair.network, 0, 2].into(),
            wire: pair.wire,
            pids: pair.pids,
        }
    }

    /// Pod, bridge, the kernel's VXLAN over the TUN device.
    pub(crate) fn layer2(&self, lab: &Lab) -> System {
        let pair = self.pair(lab);
        let network = pair.network;
        for (node, own) in pair.names.iter().zip([1, 2]) {
            let kind = format!("type vxlan id 9 dstport 4789 remote 10.{network}.0.{}", 3 - own);
            let address = [10, network + 1, 0, own].into();
            systems::segment(lab, node, &kind, "vx", MTU_L2, address);
        }
        let [from, to] = pair.names.map(|node| format!("{node}-pod"));
        System {
            name: self.l2,
            what: "pod, bridge, the kernel's VXLAN over the tunnel",
            carries: Carries::Frames,
            from,
            to,
            address: [10, network + 1, 0, 2].into(),
            wire: pair.wire,
            pids: pair.pids,
        }
    }

    fn pair(&self, lab: &Lab) -> Pair {
        let network = self.network + 2 * self.made.fetch_add(1, Ordering::Relaxed);
        let names = ["x", "y"].map(|side| format!("{}{network}{side}", self.short));
        let keys = [1, 2].map(|side| [network ^ side; 32]);
        let (mut wire, mut pids) = (Vec::new(), Vec::new());
        for (place, name) in names.iter().enumerate() {
            let (own, other) = (place as u8 + 1, 2 - place as u8);
            let (devices, namespace) = systems::on_underlay(lab, name, name, [198, 51, network, own]);
            wire.extend(devices);
            // The configuration sockets of all namespaces are in one directory.
            let device = format!("{name}{}", std::process::id());
            let child = within(&namespace, || {
                Command::new(&self.path)
                    .args(self.arguments)
                    .arg(&device)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap_or_else(|error| panic!("start {}: {error}", self.path.display()))
            });
            pids.push(child.id());
            let socket = PathBuf::from(format!("/var/run/wireguard/{device}.sock"));
            self.children.lock().unwrap().push((child, socket.clone()));
            let public = Key::from_random(keys[usize::from(other) - 1].into()).public();
            // Without keepalives, so that only the first connection starts a handshake, when both ends are there: two
            // that cross each other can take many seconds to sort out.
            let request = format!(
                "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\nendpoint=198.51.{network}.{other}:51820\n\
                 allowed_ip=0.0.0.0/0\n\n",
                hex(&keys[place]),
                hex(&public)
            );
            configure(&socket, &request);
            lab.ip_in(name, &format!("link set {device} mtu {MTU_L3} up"));
            lab.ip_in(name, &format!("address add 10.{network}.0.{own}/24 dev {device}"));
        }
        Pair {
            names,
            network,
            wire,
            pids,
        }
    }
}

fn configure(socket: &Path, request: &str) {
    let mut socket = eventually("the configuration socket", || UnixStream::connect(socket).ok());
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
}

impl Drop for Program {
    fn drop(&mut self) {
        for (child, socket) in self.children.lock().unwrap().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
