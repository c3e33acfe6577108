//! Other people's programs, built from the Go modules in `e2e` and kept outside the tree, one folder per version:
//! `~/.cache/weft/wireguard-go-v0.0.0-…/wireguard-go`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Where the compiler is that <https://go.dev/dl> has.
const USUAL: &str = "/usr/local/go/bin/go";

const WIREGUARD: &str = "golang.zx2c4.com/wireguard";
const CNI: &str = "github.com/containernetworking/cni";
const PLUGINS: &str = "github.com/containernetworking/plugins";

/// The program `wireguard-go`, of the version that `e2e/peers/go.mod` names.
///
/// # Errors
/// As [`Module::build`].
pub fn wireguard_go() -> Result<PathBuf> {
    let (module, program) = (Module::open("peers")?, "wireguard-go");
    let folder = format!("{program}-{}", module.version(WIREGUARD)?);
    Ok(module.build(&folder, program, WIREGUARD)?.join(program))
}

/// A folder with libcni's `cnitool`, and the plugins `bridge` and `host-local`, of the versions that `e2e/cni/go.mod` names.
///
/// # Errors
/// As [`Module::build`].
pub fn cni() -> Result<PathBuf> {
    let module = Module::open("cni")?;
    let [cni, plugins] = [module.version(CNI)?, module.version(PLUGINS)?];
    module.build(&format!("cnitool-{cni}-plugins-{plugins}"), "", "tool")
}

/// A Go module of this repository.
#[derive(Debug)]
pub struct Module {
    directory: PathBuf,
    manifest: String,
}

impl Module {
    /// The module `e2e/<name>`.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn open(name: &str) -> Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
        let manifest = directory.join("go.mod");
        Ok(Self {
            manifest: fs::read_to_string(&manifest)
                .with_context(|| format!("read {}", manifest.display()))?,
            directory,
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The version of a module that this one requires, such as `v1.3.0`.
    ///
    /// # Errors
    /// Where it requires none of that name.
    pub fn version(&self, of: &str) -> Result<&str> {
        let manifest = self.directory.join("go.mod");
        required(&self.manifest, of).with_context(|| format!("{} requires no {of}", manifest.display()))
    }

    /// A Go compiler in the module. What it builds needs no C library.
    ///
    /// # Errors
    /// Where there is none.
    pub fn go(&self) -> Result<Command> {
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).map(|folder| folder.join("go"));
        let mut found = found.chain([USUAL.into()]).filter(|go| go.is_file());
        let Some(go) = found.next() else {
            bail!(
                "no Go compiler: install Go 1.26 or newer from https://go.dev/dl into /usr/local/go (Debian's own package is too \
                 old for Kubernetes 1.37)"
            );
        };
        let mut command = Command::new(go);
        command.current_dir(&self.directory).env("CGO_ENABLED", "0");
        Ok(command)
    }

    /// The folder of that name in the cache, with the programs of a package or several: a single one is `output`, and several
    /// have names of their own where that is empty. They are built (some seconds) where they are absent.
    ///
    /// # Errors
    /// Where they cannot be built; the message has what Go says.
    fn build(&self, folder: &str, output: &str, packages: &str) -> Result<PathBuf> {
        let folder = cache()?.join(folder);
        if folder.exists() {
            return Ok(folder);
        }
        let partial = folder.with_added_extension(format!("partial.{}", std::process::id()));
        fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
        let built = (self.go()?)
            .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
            // That of an empty name ends with a slash, and means a folder.
            .arg(partial.join(output))
            .arg(packages)
            .output()
            .context("run go")?;
        ensure!(
            built.status.success(),
            "build {packages}: {}",
            String::from_utf8_lossy(&built.stderr)
        );
        match fs::rename(&partial, &folder) {
            // Another process was faster.
            Err(_) if folder.exists() => {
                fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
            }
            renamed => renamed.with_context(|| format!("put {} in place", folder.display()))?,
        }
        Ok(folder)
    }
}

fn required<'a>(manifest: &'a str, module: &str) -> Option<&'a str> {
    let mut lines = manifest
        .lines()
        .map(|line| line.trim().trim_start_matches("require "));
    lines.find_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|name| *name == module)?;
        words.next().filter(|version| version.starts_with('v'))
    })
}

/// `~/.cache/weft`, or where the system has its caches.
///
/// # Errors
/// Where nothing says where.
pub fn cache() -> Result<PathBuf> {
    let named = env::var_os("XDG_CACHE_HOME").filter(|home| !home.is_empty());
    let home = match named {
        Some(home) => PathBuf::from(home),
        None => {
            let home = env::var_os("HOME")
                .context("neither XDG_CACHE_HOME nor HOME is set: no place for the cache")?;
            Path::new(&home).join(".cache")
        }
    };
    Ok(home.join("weft"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_comes_from_the_manifest() {
        let manifest = "module x\n\ntool k8s.io/kubernetes\n\nrequire (\n\tk8s.io/kubectl v0.37.1\n\
                        \tk8s.io/kubernetes v1.37.1 // indirect\n)\nrequire example.org/one v1.0.0\n";
        assert_eq!(required(manifest, "k8s.io/kubernetes"), Some("v1.37.1"));
        assert_eq!(required(manifest, "example.org/one"), Some("v1.0.0"));
        assert_eq!(required(manifest, "k8s.io/kube"), None);
    }

    #[test]
    fn the_modules_of_the_tests_name_what_is_built_of_them() {
        let named = [
            ("cni", CNI),
            ("cni", PLUGINS),
            ("peers", WIREGUARD),
            ("kube", "k8s.io/kubernetes"),
        ];
        for (module, of) in named {
            assert!(
                Module::open(module)
                    .unwrap()
                    .version(of)
                    .unwrap()
                    .starts_with('v')
            );
        }
        assert!(Module::open("cni").unwrap().version("example.org/none").is_err());
    }
}
