//! Which machines an image is for, and where the files of their system come from.
//!
//! Programs for this machine bring the libraries that this machine loads for them. Those for another architecture bring
//! what is below a folder, the *root*: a system of that architecture, unpacked. Nothing of it runs here.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    image,
    lab::{preflight, process::run},
};

#[derive(Debug, PartialEq, Eq)]
pub struct Architecture {
    /// As OCI, Go and Debian call it.
    pub name: &'static str,
    /// As Rust and the kernel call it.
    rust: &'static str,
    /// Where Debian has its libraries.
    tuple: &'static str,
    /// `e_machine` of its programs (elf(5)).
    machine: u16,
}

const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        name: "amd64",
        rust: "x86_64",
        tuple: "x86_64-linux-gnu",
        machine: 62,
    },
    Architecture {
        name: "arm64",
        rust: "aarch64",
        tuple: "aarch64-linux-gnu",
        machine: 183,
    },
];

/// Links that lead from one to the next, at most; as many as the kernel follows.
const LINKS: u32 = 40;

impl Architecture {
    /// This machine's.
    ///
    /// # Errors
    /// Where Weft is not built for it.
    pub fn here() -> Result<&'static Self> {
        ARCHITECTURES
            .iter()
            .find(|known| known.rust == std::env::consts::ARCH)
            .with_context(|| {
                format!(
                    "images are made for {}, and this machine is {}",
                    names(),
                    std::env::consts::ARCH
                )
            })
    }

    /// # Errors
    /// Where Weft is not built for one of that name.
    pub fn named(name: &str) -> Result<&'static Self> {
        ARCHITECTURES
            .iter()
            .find(|known| known.name == name)
            .with_context(|| format!("no architecture \"{name}\"; there are {}", names()))
    }

    /// Of the program that begins with these bytes (elf(5): 64 bits, little endian).
    fn of(header: &[u8; 20]) -> Option<&'static Self> {
        let machine = u16::from_le_bytes([header[18], header[19]]);
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        ARCHITECTURES.iter().find(|known| known.machine == machine)
    }
}

fn names() -> String {
    ARCHITECTURES.map(|known| known.name).join(" and ")
}

#[derive(Debug)]
pub struct Platform {
    pub architecture: &'static Architecture,
    /// Of another architecture; none for what this machine has itself.
    root: Option<PathBuf>,
}

impl Platform {
    /// # Errors
    /// Where Weft is not built for this machine.
    pub fn here() -> Result<Self> {
        Ok(Self {
            architecture: Architecture::here()?,
            root: None,
        })
    }

    /// # Errors
    /// Where it is not this machine's, and no root says where its files are.
    pub fn new(architecture: &'static Architecture, root: Option<&Path>) -> Result<Self> {
        if root.is_none() && architecture != Architecture::here()? {
            bail!(
                "this machine has no libraries for {}: name a folder that has, with --root",
                architecture.name
            );
        }
        if let Some(root) = root {
            ensure!(root.is_dir(), "{} is no folder", root.display());
        }
        Ok(Self {
            architecture,
            root: root.map(Path::to_owned),
        })
    }

    /// Where a file of the platform's system is on this machine: what a link in a root points at is in that root.
    pub fn file(&self, path: &Path) -> PathBuf {
        let Some(root) = &self.root else {
            return path.to_owned();
        };
        let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let mut file = inside(path);
        for _ in 0..LINKS {
            match (std::fs::read_link(&file), file.parent()) {
                (Ok(target), _) if target.is_absolute() => file = inside(&target),
                (Ok(target), Some(folder)) => file = folder.join(target),
                _ => break,
            }
        }
        file
    }

    /// One of the system's own programs.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn tool(&self, name: &str) -> Result<PathBuf> {
        let Some(root) = &self.root else {
            return preflight::find(name)
                .with_context(|| format!("no {name} on this machine: run `weft-lab setup`"));
        };
        ["usr/sbin", "usr/bin", "sbin", "bin"]
            .into_iter()
            .map(|folder| self.file(&Path::new(folder).join(name)))
            .find(|file| file.is_file())
            .with_context(|| {
                format!(
                    "no {name} in {}: unpack its package for {} there",
                    root.display(),
                    self.architecture.name
                )
            })
    }

    /// # Errors
    /// Where a program is another platform's, or none.
    pub fn ensure(&self, program: &Path) -> Result<()> {
        let mut header = [0; 20];
        let read = File::open(program).and_then(|mut file| file.read_exact(&mut header));
        read.with_context(|| format!("read {}", program.display()))?;
        let found = Architecture::of(&header).map_or("no architecture that is known", |found| found.name);
        let wanted = self.architecture.name;
        ensure!(
            found == wanted,
            "{} is for {found}, and the image for {wanted}",
            program.display()
        );
        Ok(())
    }

    /// Shared libraries and loader of a program, by their paths in the platform's system; none for a static one.
    ///
    /// # Errors
    /// Where the system lacks one.
    pub fn libraries(&self, program: &Path) -> Result<Vec<PathBuf>> {
        let Some(root) = &self.root else {
            return image::libraries(program);
        };
        let mut found = BTreeSet::new();
        let mut open = vec![program.to_owned()];
        while let Some(next) = open.pop() {
            let mut readelf = Command::new("readelf");
            readelf.args(["-W", "-l", "-d"]).arg(&next).env("LC_ALL", "C");
            let listed =
                run(&mut readelf).context("what a program loads (Debian: apt-get install binutils)")?;
            for wanted in loads(&listed) {
                // The loader is asked for by its path, and libraries by their names.
                if found.iter().any(|have: &PathBuf| have.ends_with(wanted)) {
                    continue;
                }
                let path = candidates(wanted, self.architecture.tuple)
                    .into_iter()
                    .find(|path| self.file(path).is_file())
                    .with_context(|| {
                        format!(
                            "{} needs {wanted}, which is not in {}",
                            next.display(),
                            root.display()
                        )
                    })?;
                self.ensure(&self.file(&path))?;
                open.push(self.file(&path));
                found.insert(path);
            }
        }
        Ok(found.into_iter().collect())
    }
}

/// What `readelf -l -d` says is loaded with a program: its loader first.
fn loads(listed: &str) -> Vec<&str> {
    listed.lines().filter_map(|line| load(line.trim_end())).collect()
}

fn load(line: &str) -> Option<&str> {
    let interpreter = line.split_once("[Requesting program interpreter: ");
    let library = || line.split_once("(NEEDED)")?.1.split_once("Shared library: [");
    interpreter.or_else(library)?.1.strip_suffix(']')
}

/// Where a library may be, as the loader looks for it (ld.so(8)) with Debian's folders.
fn candidates(wanted: &str, tuple: &str) -> Vec<PathBuf> {
    if wanted.starts_with('/') {
        return vec![PathBuf::from(wanted)];
    }
    let folders = [
        format!("/lib/{tuple}"),
        format!("/usr/lib/{tuple}"),
        "/lib".into(),
        "/usr/lib".into(),
    ];
    folders
        .iter()
        .map(|folder| Path::new(folder).join(wanted))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(class: u8, order: u8, machine: u16) -> [u8; 20] {
        let mut header = [0; 20];
        header[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order]);
        header[18..].copy_from_slice(&machine.to_le_bytes());
        header
    }

    fn words(error: &anyhow::Error) -> String {
        format!("{error:#}")
    }

    #[test]
    fn architectures_are_known_by_name_and_by_their_programs() {
        for known in &ARCHITECTURES {
            assert_eq!(Architecture::named(known.name).unwrap(), known);
            assert_eq!(Architecture::of(&header(2, 1, known.machine)), Some(known));
        }
        // Of 32 bits, big endian, of another machine (RISC-V), no program.
        for other in [header(1, 1, 62), header(2, 2, 62), header(2, 1, 243), [b'#'; 20]] {
            assert_eq!(Architecture::of(&other), None);
        }
        assert_eq!(
            words(&Architecture::named("aarch64").unwrap_err()),
            "no architecture \"aarch64\"; there are amd64 and arm64"
        );
    }

    #[test]
    fn another_architecture_wants_a_root() {
        let here = Architecture::here().unwrap();
        let other = ARCHITECTURES.iter().find(|known| *known != here).unwrap();
        assert!(words(&Platform::new(other, None).unwrap_err()).contains("--root"));
        assert!(words(&Platform::new(other, Some(Path::new("/no/such"))).unwrap_err()).contains("/no/such"));
        let folder = tempfile::tempdir().unwrap();
        let platform = Platform::new(other, Some(folder.path())).unwrap();
        std::fs::create_dir(folder.path().join("lib")).unwrap();
        for (name, target) in [("a", "/lib/b"), ("b", "c"), ("loop", "loop")] {
            std::os::unix::fs::symlink(target, folder.path().join("lib").join(name)).unwrap();
        }
        assert_eq!(platform.file(Path::new("/lib/a")), folder.path().join("lib/c"));
        assert!(!platform.file(Path::new("/lib/loop")).is_file());

        // A program of this machine does not get into its images.
        let ours = std::env::current_exe().unwrap();
        let why = words(&platform.ensure(&ours).unwrap_err());
        assert!(
            why.contains(&format!("is for {}, and the image for {}", here.name, other.name)),
            "{why}"
        );
        Platform::here().unwrap().ensure(&ours).unwrap();
    }

    #[test]
    fn tools_are_those_of_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let platform = Platform::new(&ARCHITECTURES[1], Some(folder.path())).unwrap();
        assert!(words(&platform.tool("nft").unwrap_err()).contains("for arm64"));
        let nft = folder.path().join("usr/sbin/nft");
        std::fs::create_dir_all(nft.parent().unwrap()).unwrap();
        std::fs::write(&nft, "").unwrap();
        assert_eq!(platform.tool("nft").unwrap(), nft);
    }

    #[test]
    fn what_is_loaded_is_read_from_readelf() {
        let listed = "
Program Headers:
  INTERP         0x000238 0x0000000000000238 0x0000000000000238 0x00001b 0x00001b R   0x1
      [Requesting program interpreter: /lib/ld-linux-aarch64.so.1]

Dynamic section at offset 0xfd70 contains 30 entries:
  Tag        Type                         Name/Value
 0x0000000000000001 (NEEDED)             Shared library: [libnftables.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000e (SONAME)             Library soname: [libx.so.1]
 0x000000006ffffffe (VERNEED)            0xc60
";
        assert_eq!(
            loads(listed),
            ["/lib/ld-linux-aarch64.so.1", "libnftables.so.1", "libc.so.6"]
        );
        assert_eq!(
            loads("There is no dynamic section in this file."),
            Vec::<&str>::new()
        );
    }

    /// This machine's own system, looked at as another's is.
    #[test]
    fn a_root_is_searched_as_the_loader_searches() {
        let ours = std::env::current_exe().unwrap();
        let here = Platform::here().unwrap();
        let root = Platform::new(here.architecture, Some(Path::new("/"))).unwrap();
        let sorted = |mut found: Vec<PathBuf>| {
            found.sort();
            found
        };
        let found = sorted(root.libraries(&ours).unwrap());
        assert!(found.len() > 2, "{found:?}");
        assert_eq!(found, sorted(here.libraries(&ours).unwrap()));

        let empty = tempfile::tempdir().unwrap();
        let lacks = Platform::new(here.architecture, Some(empty.path())).unwrap();
        let why = words(&lacks.libraries(&ours).unwrap_err());
        assert!(why.contains("ld-linux"), "{why}");
    }
}
