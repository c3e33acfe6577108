//! Other people's programs, built from the Go module `e2e/cni` and kept outside the tree, one folder per version.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Modules of which programs are built; their versions name the folder.
const MODULES: [&str; 2] = [
    "github.com/containernetworking/cni",
    "github.com/containernetworking/plugins",
];

/// A folder with `cnitool`, and the plugins `bridge` and `host-local`, of the versions that `e2e/cni/go.mod` names; they
/// are built (some seconds) where they are absent.
pub fn cni() -> PathBuf {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/cni");
    let manifest = std::fs::read_to_string(module.join("go.mod")).expect("read e2e/cni/go.mod");
    let version = |name: &str| {
        let mut lines = manifest.lines();
        let line = lines.find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(" v"));
        let version = line.and_then(|line| line.split_whitespace().next());
        version.unwrap_or_else(|| panic!("e2e/cni/go.mod names no version of {name}"))
    };
    let home = std::env::var_os("XDG_CACHE_HOME")
        .filter(|home| !home.is_empty())
        .map_or_else(
            || Path::new(&std::env::var_os("HOME").expect("HOME")).join(".cache"),
            PathBuf::from,
        );
    let [cni, plugins] = MODULES.map(version);
    let folder = home
        .join("weft")
        .join(format!("cnitool-v{cni}-plugins-v{plugins}"));
    if folder.exists() {
        return folder;
    }
    let partial = folder.with_extension(format!("partial.{}", std::process::id()));
    std::fs::create_dir_all(&partial).expect("a folder in the cache");
    let usual = Path::new("/usr/local/go/bin/go");
    let go = if usual.exists() { usual } else { Path::new("go") };
    let built = Command::new(go)
        .current_dir(&module)
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(format!("{}/", partial.display()))
        .arg("tool")
        .output()
        .unwrap_or_else(|error| panic!("run go: {error}; install Go 1.26 or newer from https://go.dev/dl"));
    assert!(
        built.status.success(),
        "build cnitool and the plugins: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    std::fs::rename(&partial, &folder).expect("put the programs in place");
    folder
}
