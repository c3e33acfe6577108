//! OpenVPN, point to point, with the certificates that it wants (<https://openvpn.net/community-resources/reference-manual-for-openvpn-2-6/>).

use std::{
    fmt::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use rcgen::{CertificateParams, KeyPair};
use sha2::{Digest, Sha256};

use crate::{
    lab::{Lab, eventually, within},
    obtain,
    systems::{self, Carries, System},
};

/// MTU inside the tunnel: with 24 to 80 bytes of OpenVPN and 28 of UDP and IPv4 the outer packet stays within 1500.
const MTU: u16 = 1390;

pub(crate) struct OpenVpn {
    path: PathBuf,
    /// Certificates and keys of the two ends, which know each other by fingerprint.
    directory: tempfile::TempDir,
    fingerprints: [String; 2],
    children: Mutex<Vec<Child>>,
}

impl OpenVpn {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fingerprints = ["x", "y"].map(|side| {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new([format!("end-{side}")])
                .unwrap()
                .self_signed(&key)
                .unwrap();
            let file = |kind: &str| directory.path().join(format!("{side}.{kind}"));
            std::fs::write(file("crt"), certificate.pem()).unwrap();
            std::fs::write(file("key"), key.serialize_pem()).unwrap();
            fingerprint(certificate.der())
        });
        Self {
            path: obtain::openvpn(),
            directory,
            fingerprints,
            children: Mutex::default(),
        }
    }

    /// A TUN device is the pod's interface.
    pub(crate) fn layer3(&self, lab: &Lab, name: &'static str, network: u8, cipher: &[&str]) -> System {
        let (names, wire, pids) = self.pair(lab, network, "tun", cipher);
        let [from, to] = names;
        System {
            name,
            what: "pod is the tunnel's end; no Ethernet",
            carries: Carries::Packets,
            from,
            to,
            address: [10, network, 0, 2].into(),
            wire,
            pids,
        }
    }

    /// A TAP device is a port of the pod's bridge.
    pub(crate) fn layer2(&self, lab: &Lab, name: &'static str, network: u8, cipher: &[&str]) -> System {
        let (names, wire, pids) = self.pair(lab, network, "tap", cipher);
        for (node, own) in names.iter().zip([1, 2]) {
            systems::segment(lab, node, "", "tunnel", MTU, [10, network, 0, own].into());
        }
        let [from, to] = names.map(|node| format!("{node}-pod"));
        System {
            name,
            what: "pod, bridge, OpenVPN's TAP",
            carries: Carries::Frames,
            from,
            to,
            address: [10, network, 0, 2].into(),
            wire,
            pids,
        }
    }

    fn pair(
        &self,
        lab: &Lab,
        network: u8,
        kind: &str,
        cipher: &[&str],
    ) -> ([String; 2], Vec<crate::wire::Device>, Vec<u32>) {
        let names = ["x", "y"].map(|side| format!("ov{network}{side}"));
        let (mut wire, mut pids) = (Vec::new(), Vec::new());
        for (place, name) in names.iter().enumerate() {
            let (own, other) = (place as u8 + 1, 2 - place as u8);
            let (devices, namespace) = systems::on_underlay(lab, name, name, [198, 51, network, own]);
            wire.extend(devices);
            let side = ["x", "y"][place];
            let file = |kind: &str| self.directory.path().join(format!("{side}.{kind}"));
            let mut command = Command::new(&self.path);
            command
                .args(["--dev", "tunnel", "--dev-type", kind, "--disable-dco"])
                .args(["--local", &format!("198.51.{network}.{own}")])
                .args(["--remote", &format!("198.51.{network}.{other}"), "1194", "udp4"])
                .args(["--port", "1194", "--ping", "5"])
                .args(["--dh", "none", ["--tls-server", "--tls-client"][place]])
                .args(["--peer-fingerprint", &self.fingerprints[1 - place]])
                .arg("--cert")
                .arg(file("crt"))
                .arg("--key")
                .arg(file("key"))
                .args(cipher)
                .args(["--tun-mtu", &MTU.to_string(), "--mssfix", "0"])
                // As much as the machine grants.
                .args([
                    "--sndbuf",
                    "4194304",
                    "--rcvbuf",
                    "4194304",
                    "--txqueuelen",
                    "1000",
                ])
                .args(["--verb", "1", "--log"])
                .arg(file(&format!("{network}.log")));
            if kind == "tun" {
                let ends = [own, other].map(|end| format!("10.{network}.0.{end}"));
                command.arg("--ifconfig").args(ends);
            }
            let child = within(&namespace, || command.stdin(Stdio::null()).spawn().unwrap());
            pids.push(child.id());
            self.children.lock().unwrap().push(child);
            within(&namespace, || {
                eventually("OpenVPN's device", || {
                    nix::net::if_::if_nametoindex("tunnel").ok()
                });
            });
        }
        (names, wire, pids)
    }
}

impl Drop for OpenVpn {
    fn drop(&mut self) {
        for child in self.children.lock().unwrap().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.directory.path()).unwrap().flatten() {
                if entry.path().extension().is_some_and(|kind| kind == "log") {
                    let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    println!("{}:\n{log}", entry.path().display());
                }
            }
        }
    }
}

fn fingerprint(certificate: &[u8]) -> String {
    let digest = Sha256::digest(certificate);
    digest.iter().fold(String::new(), |mut text, byte| {
        let colon = if text.is_empty() { "" } else { ":" };
        let _ = write!(text, "{colon}{byte:02X}");
        text
    })
}
