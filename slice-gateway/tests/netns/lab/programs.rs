//! Other people's programs, built from the Go module `e2e/peers` and kept outside the tree, one folder per version:
//! `~/.cache/weft/wireguard-go-v0.0.0-…/wireguard-go`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

const WIREGUARD: &str = "golang.zx2c4.com/wireguard";

/// The program `wireguard-go`, of the version that `e2e/peers/go.mod` names; it is built (some seconds) where it is
/// absent.
pub(crate) fn wireguard_go() -> PathBuf {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/peers");
    let manifest = std::fs::read_to_string(module.join("go.mod")).expect("read e2e/peers/go.mod");
    let version = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix(WIREGUARD)?.split_whitespace().next())
        .next()
        .expect("e2e/peers/go.mod names a version of wireguard-go");
    let home = std::env::var_os("XDG_CACHE_HOME")
        .filter(|home| !home.is_empty())
        .map_or_else(
            || Path::new(&std::env::var_os("HOME").expect("HOME")).join(".cache"),
            PathBuf::from,
        );
    let folder = home.join("weft").join(format!("wireguard-go-{version}"));
    let program = folder.join("wireguard-go");
    if program.exists() {
        return program;
    }
    std::fs::create_dir_all(&folder).expect("a folder in the cache");
    let partial = folder.join(format!("partial.{}", std::process::id()));
    let usual = Path::new("/usr/local/go/bin/go");
    let go = if usual.exists() { usual } else { Path::new("go") };
    let built = Command::new(go)
        .current_dir(&module)
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .args([partial.as_os_str(), WIREGUARD.as_ref()])
        .output()
        .unwrap_or_else(|error| panic!("run go: {error}; install Go 1.26 or newer from https://go.dev/dl"));
    assert!(
        built.status.success(),
        "build wireguard-go: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    std::fs::rename(&partial, &program).expect("put the program in place");
    program
}
