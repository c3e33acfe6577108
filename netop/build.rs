//! Builds the eBPF programs: for another machine, with its own target folder. What that takes is installed by
//! `make tools`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The linker of eBPF objects, as `make tools` installs it.
const LINKER: &str = "bpf-linker-0.10.0/bin/bpf-linker";

fn main() {
    let own = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    for source in [
        "ebpf/src",
        "ebpf/Cargo.toml",
        "ebpf/Cargo.lock",
        "datapath/src",
        "../frame/src",
    ] {
        println!("cargo::rerun-if-changed={}", own.join(source).display());
    }
    println!("cargo::rerun-if-env-changed=WEFT_BPF_LINKER");
    let linker = linker();
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".into(),
        // Of kernel 5.1 and later: jumps and arithmetic of 32 bits.
        "-Ctarget-cpu=v3".into(),
        // With it every array of zeroes would be a loop.
        "-Clink-arg=--disable-expand-memcpy-in-order".into(),
        "-Cdebuginfo=2".into(),
    ];
    let status = Command::new(env::var_os("CARGO").expect("set by cargo"))
        .args([
            "build",
            "--locked",
            "--release",
            "--target",
            target,
            "-Z",
            "build-std=core",
        ])
        .current_dir(own.join("ebpf"))
        // The standard library for this target is built with it, which stable calls unstable.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", out.join("ebpf"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .expect("cargo runs cargo");
    assert!(
        status.success(),
        "the eBPF programs do not build: `make tools` installs what they need (rust-src and bpf-linker)"
    );
    let built = out.join("ebpf").join(target).join("release/slice-ebpf");
    println!("cargo::rustc-env=WEFT_EBPF_OBJECT={}", built.display());
}

fn linker() -> PathBuf {
    if let Some(path) = env::var_os("WEFT_BPF_LINKER") {
        return path.into();
    }
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")));
    let installed = cache.map(|cache| cache.join("weft").join(LINKER));
    installed
        .filter(|path| path.exists())
        .unwrap_or_else(|| "bpf-linker".into())
}
