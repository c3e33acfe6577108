//! OCI images from files, without a container engine.
//!
//! An image is written as a tar of the OCI image layout (image-spec v1.0,
//! `image-layout.md`), which `ctr images import` and every other tool reads.
//! The same files make the same bytes: no time, owner or name of this machine
//! gets in, so a digest changes only when content does.
//!
//! Deliberately not here: compression (images go from disk to disk), several
//! platforms in one tar, and registries.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::lab::process::run;
use crate::platform::{Architecture, Platform};

#[derive(Debug, Clone)]
pub struct Image {
    /// Full reference: `localhost/weft/dns:dev`.
    pub name: String,
    pub architecture: &'static Architecture,
    pub entrypoint: Vec<String>,
    /// `uid:gid` of the process; `None` is root.
    pub user: Option<String>,
    pub layers: Vec<Layer>,
}

/// Files that change together. Equal layers of several images are stored and imported once.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// Without a leading slash.
    path: String,
    kind: EntryKind,
}

#[derive(Debug, Clone)]
enum EntryKind {
    Directory {
        mode: u32,
    },
    /// A copy of a file of this machine.
    Copy {
        source: PathBuf,
    },
    Text {
        content: String,
    },
    Link {
        target: String,
    },
}

impl Layer {
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        self.push(path, EntryKind::Directory { mode });
        self
    }

    /// An executable or library, mode 0755.
    pub fn copy(mut self, source: impl Into<PathBuf>, path: &str) -> Self {
        self.push(
            path,
            EntryKind::Copy {
                source: source.into(),
            },
        );
        self
    }

    /// A file with the given content, mode 0644.
    pub fn text(mut self, path: &str, content: &str) -> Self {
        self.push(
            path,
            EntryKind::Text {
                content: content.to_owned(),
            },
        );
        self
    }

    /// A symbolic link.
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.push(
            path,
            EntryKind::Link {
                target: target.to_owned(),
            },
        );
        self
    }

    /// The libraries that a platform's programs load, at the paths where they look for them.
    pub fn libraries_of<'a>(
        mut self,
        platform: &Platform,
        programs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self> {
        let mut all = BTreeSet::new();
        for program in programs {
            all.extend(platform.libraries(program)?);
        }
        for library in all {
            let path = library.display().to_string();
            self = self.copy(platform.file(&library), &path);
        }
        Ok(self)
    }

    fn push(&mut self, path: &str, kind: EntryKind) {
        self.entries.push(Entry {
            path: path.trim_start_matches('/').to_owned(),
            kind,
        });
    }

    fn to_tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        for entry in &self.entries {
            make_parents(&mut tar, &entry.path, &mut made)?;
            match &entry.kind {
                EntryKind::Directory { mode } => {
                    if made.insert(entry.path.clone()) {
                        append(
                            &mut tar,
                            &format!("{}/", entry.path),
                            tar::EntryType::Directory,
                            *mode,
                            &[],
                        )?;
                    }
                }
                EntryKind::Copy { source } => {
                    let data = fs::read(source).with_context(|| format!("read {}", source.display()))?;
                    append(&mut tar, &entry.path, tar::EntryType::Regular, 0o755, &data)?;
                }
                EntryKind::Text { content } => {
                    append(
                        &mut tar,
                        &entry.path,
                        tar::EntryType::Regular,
                        0o644,
                        content.as_bytes(),
                    )?;
                }
                EntryKind::Link { target } => {
                    let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, &entry.path, target)
                        .with_context(|| format!("add link {}", entry.path))?;
                }
            }
        }
        tar.into_inner().context("finish a layer")
    }
}

/// The few files without which ordinary programs behave oddly.
pub fn base_layer() -> Layer {
    Layer::default()
        .directory("tmp", 0o1777)
        .directory("etc", 0o755)
        .text(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        )
        .text("etc/group", "root:x:0:\nnonroot:x:65532:\nnobody:x:65534:\n")
}

impl Image {
    /// Writes the image to `path` if its content has changed; tells whether it did.
    pub fn write(&self, path: &Path) -> Result<bool> {
        let bytes = self
            .to_tar()
            .with_context(|| format!("build image {}", self.name))?;
        if fs::read(path).is_ok_and(|old| old == bytes) {
            return Ok(false);
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let partial = path.with_extension("partial");
        fs::write(&partial, bytes).with_context(|| format!("write {}", partial.display()))?;
        fs::rename(&partial, path).with_context(|| format!("rename to {}", path.display()))?;
        Ok(true)
    }

    fn to_tar(&self) -> Result<Vec<u8>> {
        let layers: Vec<Vec<u8>> = self.layers.iter().map(Layer::to_tar).collect::<Result<_>>()?;
        let digests: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let mut config = json!({
            "Entrypoint": self.entrypoint,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/"
        });
        if let Some(user) = &self.user {
            config["User"] = json!(user);
        }
        let config = json!({
            "architecture": self.architecture.name, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": digests},
            "history": digests.iter().map(|_| json!({"created_by": "weft-lab"})).collect::<Vec<_>>()
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter()
                .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect::<Vec<_>>()
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["platform"] = json!({"architecture": self.architecture.name, "os": "linux"});
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        entry["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "manifests": [entry]})
            .to_string()
            .into_bytes();

        let mut tar = tar::Builder::new(Vec::new());
        append(
            &mut tar,
            "oci-layout",
            tar::EntryType::Regular,
            0o644,
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        append(&mut tar, "index.json", tar::EntryType::Regular, 0o644, &index)?;
        let mut written = BTreeSet::new();
        for blob in layers.iter().chain([&config, &manifest]) {
            let path = format!("blobs/sha256/{}", hex(blob));
            if written.insert(path.clone()) {
                append(&mut tar, &path, tar::EntryType::Regular, 0o644, blob)?;
            }
        }
        tar.into_inner().context("finish the image")
    }
}

/// What identifies an image tar's content: the digest that its `index.json` names.
pub fn digest_of(path: &Path) -> Result<String> {
    let mut archive =
        tar::Archive::new(fs::File::open(path).with_context(|| format!("open {}", path.display()))?);
    for entry in archive
        .entries()
        .with_context(|| format!("read {}", path.display()))?
    {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        if entry.path().is_ok_and(|path| path == Path::new("index.json")) {
            let index: Value = serde_json::from_reader(entry).context("parse index.json")?;
            let manifest = &index["manifests"][0];
            let named = manifest["digest"]
                .as_str()
                .zip(manifest["annotations"]["io.containerd.image.name"].as_str());
            let (digest, name) = named.with_context(|| format!("{} names no image", path.display()))?;
            return Ok(format!("{name}@{digest}"));
        }
    }
    bail!("{} is no OCI image layout: it has no index.json", path.display());
}

/// Shared libraries and loader of a dynamic program of this machine, as ldd(1) resolves them; none for a static one.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = match run(Command::new("ldd").arg(program)) {
        Ok(listed) => listed,
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    if let Some(line) = listed.lines().find(|line| line.contains("not found")) {
        bail!(
            "{} needs a library that this machine lacks: {}",
            program.display(),
            line.trim()
        );
    }
    // "libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x…)", or the loader alone: "/lib64/ld-linux-x86-64.so.2 (0x…)".
    let path = |line: &str| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    };
    Ok(listed.lines().filter_map(path).collect())
}

fn make_parents(tar: &mut tar::Builder<Vec<u8>>, path: &str, made: &mut BTreeSet<String>) -> Result<()> {
    for (index, _) in path.match_indices('/') {
        let parent = &path[..index];
        if made.insert(parent.to_owned()) {
            append(tar, &format!("{parent}/"), tar::EntryType::Directory, 0o755, &[])?;
        }
    }
    Ok(())
}

pub(crate) fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    data: &[u8],
) -> Result<()> {
    let size = u64::try_from(data.len()).context("file size")?;
    let mut header = header(kind, mode, size);
    tar.append_data(&mut header, path, data)
        .with_context(|| format!("add {path}"))
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(blob))
}

/// SHA-256 in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str) -> Image {
        let layer = base_layer()
            .text("srv/www/index.html", text)
            .link("bin/sh", "/bin/busybox");
        Image {
            name: "localhost/t:1".into(),
            architecture: Architecture::here().unwrap(),
            entrypoint: vec!["/t".into()],
            user: None,
            layers: vec![layer],
        }
    }

    #[test]
    fn the_same_files_make_the_same_bytes() {
        assert_eq!(sample("x").to_tar().unwrap(), sample("x").to_tar().unwrap());
        assert_ne!(sample("x").to_tar().unwrap(), sample("y").to_tar().unwrap());
    }

    #[test]
    fn an_unchanged_image_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.tar");
        assert!(sample("x").write(&path).unwrap());
        assert!(!sample("x").write(&path).unwrap());
        assert!(digest_of(&path).unwrap().starts_with("localhost/t:1@sha256:"));
    }

    #[test]
    fn parents_come_before_children_and_once() {
        let tar = sample("x").layers[0].to_tar().unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(
            names,
            [
                "tmp/",
                "etc/",
                "etc/passwd",
                "etc/group",
                "srv/",
                "srv/www/",
                "srv/www/index.html",
                "bin/",
                "bin/sh"
            ]
        );
    }

    #[test]
    fn a_dynamic_program_brings_its_loader() {
        let found = libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(
            found
                .iter()
                .any(|path| path.display().to_string().contains("ld-linux")),
            "{found:?}"
        );
    }
}
