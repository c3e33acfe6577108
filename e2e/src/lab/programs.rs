//! Other people's programs, built from the Go module `e2e/kube` and kept
//! outside the tree.
//!
//! ```text
//! ~/.cache/weft/v1.37.1-4f0c2a91d3be/     version and hash of the module's files
//!   bin/          kube (kube-apiserver, kubelet, kubectl, … are links to it) helm coredns agnhost
//!   images/       pause busybox coredns agnhost
//!   containerd/   a containerd state directory that has imported those images
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use slice_go::Module;

use super::process::run;
use crate::image::hex;
use crate::progress::{say, short};

/// One program under several names.
const MULTICALL: [&str; 6] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
];
const BUILT: [&str; 4] = ["kube", "helm", "coredns", "agnhost"];
const AGNHOST: &str = "k8s.io/kubernetes/test/images/agnhost";
/// Files of the module that decide what is built.
const SOURCES: [&str; 5] = [
    "go.mod",
    "go.sum",
    "kube/main.go",
    "helm/main.go",
    "coredns/main.go",
];
/// A line of progress at least this often.
const TICK: Duration = Duration::from_secs(5);

/// The place where one version of everything is kept.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    version: String,
}

impl Cache {
    /// The cache entry for the module as it is in the tree.
    pub fn open() -> Result<Self> {
        let module = module()?;
        let mut all = Vec::new();
        for name in SOURCES {
            let path = module.directory().join(name);
            all.extend(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        let version = module.version("k8s.io/kubernetes")?;
        let key = hex(&all);
        let root = slice_go::cache()?.join(format!("{version}-{}", &key[..12]));
        Ok(Self {
            root,
            version: version.to_owned(),
        })
    }

    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub fn containerd(&self) -> PathBuf {
        self.root.join("containerd")
    }

    pub fn is_built(&self) -> bool {
        BUILT
            .iter()
            .chain(&MULTICALL)
            .all(|name| self.bin().join(name).exists())
    }

    /// Where the Go module proxy's copy of Kubernetes is unpacked.
    pub fn kubernetes_source(&self) -> Result<PathBuf> {
        let mut go = module()?.go()?;
        let listed = run(go.args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]))?;
        Ok(PathBuf::from(listed.trim()))
    }

    /// Builds what is absent: about 12 minutes on two cores with empty caches.
    pub fn build(&self) -> Result<()> {
        if self.is_built() {
            return Ok(());
        }
        let partial = self.root.join("bin.partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
        self.compile(&partial)?;
        for name in MULTICALL {
            symlink("kube", partial.join(name)).with_context(|| format!("link {name}"))?;
        }
        let _ = fs::remove_dir_all(self.bin());
        fs::rename(&partial, self.bin()).context("put the programs in place")
    }

    fn compile(&self, target: &Path) -> Result<()> {
        let packages = ["./...", AGNHOST];
        let total = self.count(&packages)?;
        say(format!(
            "building Kubernetes {}, helm, CoreDNS and agnhost",
            self.version
        ));
        let minor = self.version.split('.').nth(1).unwrap_or_default();
        let flags = format!(
            "-s -w -X k8s.io/component-base/version.gitVersion={} -X k8s.io/component-base/version.gitMajor=1 \
             -X k8s.io/component-base/version.gitMinor={minor}",
            self.version
        );
        let mut build = module()?.go()?;
        build.args(["build", "-v", "-trimpath", "-ldflags", &flags, "-o"]);
        build.arg(format!("{}/", target.display())).args(packages);
        watch(build, total)
    }

    fn count(&self, packages: &[&str]) -> Result<usize> {
        say("fetching the sources (checksums in go.sum)");
        let mut list = module()?.go()?;
        let listed = run(list.args(["list", "-deps"]).args(packages))?;
        Ok(listed.lines().count())
    }
}

/// Runs `go build -v`, which names every package that it compiles, and counts.
fn watch(mut build: Command, total: usize) -> Result<()> {
    let started = Instant::now();
    let mut child = build
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run go")?;
    let errors = child.stderr.take().context("go's messages")?;
    let compiled = AtomicUsize::new(0);
    let words = std::thread::scope(|scope| {
        let (done, finished) = mpsc::channel::<()>();
        let compiled = &compiled;
        scope.spawn(move || {
            while finished.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let count = compiled.load(Ordering::Relaxed);
                say(format!(
                    "  {count} of at most {total} packages compiled, {}",
                    short(started.elapsed())
                ));
            }
        });
        let words = read_names(errors, compiled);
        drop(done);
        words
    });
    let status = child.wait().context("wait for go")?;
    if !status.success() {
        bail!("go build: {status}: {}", words.join("\n"));
    }
    Ok(())
}

/// Counts package names; every other line is a message, of which the last ones are kept.
fn read_names(errors: impl Read, compiled: &AtomicUsize) -> Vec<String> {
    let mut words = Vec::new();
    for line in BufReader::new(errors).lines().map_while(Result::ok) {
        if line.contains(' ') {
            words.push(line);
            let surplus = words.len().saturating_sub(30);
            words.drain(..surplus);
        } else {
            compiled.fetch_add(1, Ordering::Relaxed);
        }
    }
    words
}

fn module() -> Result<Module> {
    Module::open("kube")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_go_are_told_from_package_names() {
        let compiled = AtomicUsize::new(0);
        let words = read_names(
            "k8s.io/api/core/v1\nmain.go:3:2: no such thing\nfmt\n".as_bytes(),
            &compiled,
        );
        assert_eq!(compiled.into_inner(), 2);
        assert_eq!(words, ["main.go:3:2: no such thing"]);
    }
}
