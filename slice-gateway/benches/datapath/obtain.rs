//! Where the other carriers come from: OpenVPN from Debian, boringtun-cli from the crate registry, and wireguard-go,
//! as for the tests, from the Go module proxy ([`slice_go::wireguard_go`]). What was built is kept in
//! `~/.cache/weft`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

const BORINGTUN: &str = "0.7.1";
/// Debian's hook that decides whether a package may start its service (policy-rc.d, invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The programs that come from Debian, and their packages.
const PACKAGES: [(&str, &str); 2] = [("ip", "iproute2"), ("openvpn", "openvpn")];

/// Installs what is missing of `programs`.
pub(crate) fn packages(programs: &[&str]) {
    let missing: Vec<&str> = PACKAGES
        .into_iter()
        .filter(|(program, _)| programs.contains(program) && find(program).is_none())
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return;
    }
    let names = missing.join(", ");
    assert!(
        find("apt-get").is_some(),
        "install {names} with this machine's package manager: it has no apt-get"
    );
    println!("installing {names}");
    let _policy = Policy::forbid_starts();
    let apt = |arguments: &[&str]| {
        let status = Command::new("apt-get")
            .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status()
            .unwrap();
        assert!(status.success(), "apt-get {} failed", arguments.join(" "));
    };
    apt(&["update"]);
    apt(&[&["install", "-y", "--no-install-recommends"], missing.as_slice()].concat());
}

/// Keeps apt from starting services; removed on drop unless somebody had one.
struct Policy(Option<&'static Path>);

impl Policy {
    fn forbid_starts() -> Self {
        let path = Path::new(POLICY);
        if path.exists() {
            return Self(None);
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(Some(path))
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

pub(crate) fn openvpn() -> PathBuf {
    packages(&["openvpn"]);
    find("openvpn").expect("openvpn was installed")
}

pub(crate) fn boringtun() -> PathBuf {
    let root = slice_go::cache()
        .unwrap()
        .join(format!("boringtun-cli-{BORINGTUN}"));
    let program = root.join("bin/boringtun-cli");
    if !program.exists() {
        println!("building boringtun-cli {BORINGTUN}");
        let status = Command::new(option_env!("CARGO").unwrap_or("cargo"))
            .args([
                "install",
                "boringtun-cli",
                "--locked",
                "--version",
                BORINGTUN,
                "--root",
            ])
            .arg(&root)
            // In a folder of its own, which goes when it is done.
            .env_remove("CARGO_TARGET_DIR")
            .status()
            .unwrap();
        assert!(status.success(), "cargo install boringtun-cli failed");
    }
    program
}

/// Looks a program up as a shell would.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
