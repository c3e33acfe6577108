//! Our own images: which programs are in which, and who they run as.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::images;
use super::programs::Cache;
use crate::image::{Image, Layer, base_layer};
use crate::platform::Platform;

/// One row per image; the release images of `images/Dockerfile` have the same content.
struct Row {
    name: &'static str,
    /// Our programs, the first of which the image starts.
    programs: &'static [&'static str],
    /// Programs of the system that ours call.
    tools: &'static [&'static str],
    user: Option<&'static str>,
    extra: Extra,
}

#[derive(PartialEq, Eq)]
enum Extra {
    None,
    /// What tests want to have at hand inside a pod.
    TestTools,
}

const NONROOT: Option<&str> = Some("65532:65532");

const ROWS: [Row; 5] = [
    Row {
        name: "operator",
        programs: &["slice-operator"],
        tools: &[],
        user: NONROOT,
        extra: Extra::None,
    },
    Row {
        name: "netop",
        programs: &["slice-netop", "slice-cni"],
        tools: &["nft"],
        user: None,
        extra: Extra::None,
    },
    Row {
        name: "gateway",
        programs: &["slice-gateway"],
        tools: &[],
        user: NONROOT,
        extra: Extra::None,
    },
    Row {
        name: "dns",
        programs: &["slice-dns"],
        tools: &[],
        user: NONROOT,
        extra: Extra::None,
    },
    Row {
        name: "probe",
        programs: &["weft-probe"],
        tools: &[],
        user: None,
        extra: Extra::TestTools,
    },
];

/// Tag of what was built here.
pub const TAG: &str = "dev";

/// The reference under which an image is loaded: `localhost/weft/NAME:TAG`.
pub fn reference(name: &str, tag: &str) -> String {
    format!("localhost/weft/{name}:{tag}")
}

pub fn names() -> Vec<&'static str> {
    ROWS.iter().map(|row| row.name).collect()
}

/// Writes the named images (all when none is named) from the programs in `from`; tells which have changed.
pub fn build(from: &Path, to: &Path, tag: &str, wanted: &[String]) -> Result<Vec<PathBuf>> {
    if let Some(unknown) = wanted.iter().find(|name| !names().contains(&name.as_str())) {
        bail!("no image \"{unknown}\"; there are {}", names().join(", "));
    }
    let rows = ROWS
        .iter()
        .filter(|row| wanted.is_empty() || wanted.iter().any(|name| name == row.name));
    let platform = Platform::here()?;
    let mut changed = Vec::new();
    for row in rows {
        let target = to.join(format!("{}.tar", row.name));
        if image(row, from, tag, &platform, true)?.write(&target)? {
            changed.push(target);
        }
    }
    Ok(changed)
}

/// Writes every image as others run it: with nothing in it that only tests want.
pub fn release(from: &Path, to: &Path, tag: &str, platform: &Platform) -> Result<()> {
    for row in &ROWS {
        image(row, from, tag, platform, false)?.write(&to.join(format!("{}.tar", row.name)))?;
    }
    // It runs on the node itself, whatever C library that has.
    let plugin = from.join("slice-cni");
    if let Some(library) = platform.libraries(&plugin)?.first() {
        bail!(
            "{} loads {}, which a node may not have: `make release` builds it without",
            plugin.display(),
            library.display()
        );
    }
    Ok(())
}

fn image(row: &Row, from: &Path, tag: &str, platform: &Platform, test_tools: bool) -> Result<Image> {
    let mut found = Vec::new();
    for program in row.programs {
        let path = from.join(program);
        if !path.is_file() {
            bail!("{} is missing: run `make build`", path.display());
        }
        found.push(path);
    }
    for tool in row.tools {
        found.push(platform.tool(tool)?);
    }
    for program in &found {
        platform.ensure(program)?;
    }
    // Libraries apart: they change rarely, and images that need the same ones share the layer.
    let libraries = base_layer().libraries_of(platform, found.iter().map(PathBuf::as_path))?;
    let mut own = Layer::default();
    for path in &found {
        let name = path
            .file_name()
            .context("a program without a name")?
            .to_string_lossy();
        own = own.copy(path, &format!("usr/bin/{name}"));
    }
    let mut layers = vec![libraries];
    if test_tools && row.extra == Extra::TestTools {
        layers.push(images::busybox()?.copy(Cache::open()?.bin().join("agnhost"), "usr/bin/agnhost"));
    }
    layers.push(own);
    Ok(Image {
        name: reference(row.name, tag),
        architecture: platform.architecture,
        entrypoint: vec![format!("/usr/bin/{}", row.programs[0])],
        user: row.user.map(str::to_owned),
        layers,
    })
}
