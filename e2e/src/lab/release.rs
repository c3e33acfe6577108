//! What a machine without a registry is installed from: images, charts and the command line in one tar, with checksums.
//!
//! ```text
//!  weft-0.1.0-amd64.tar        and weft-0.1.0-amd64.tar.sha256
//!    weft-0.1.0-amd64/
//!      images/NAME.tar         localhost/weft/NAME:0.1.0, which is what the charts ask for by default
//!      charts/weft-hub/ …      folders, as helm takes them
//!      bin/slicectl …
//!      README LICENSE SHA256SUMS
//! ```
//!
//! The same programs make the same bytes. All that is in it is of one architecture.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::ours;
use crate::image::{append, hex};
use crate::platform::Platform;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const CHARTS: [&str; 2] = ["weft-hub", "weft-member"];
/// For the person who installs.
const PROGRAMS: [&str; 2] = ["slicectl", "kubectl-slice"];

const README: &str = "\
Weft VERSION for ARCH, for machines without a registry.

  sha256sum -c SHA256SUMS                     everything is as it was built

Either load the images into every node, under the names that the charts ask for by default:

  ctr -n k8s.io images import images/NAME.tar          containerd, each of images/*.tar, on each node
  skopeo copy oci-archive:images/NAME.tar \\
    containers-storage:localhost/weft/NAME:VERSION     CRI-O

or push them into a registry that the nodes pull from, and name it:

  skopeo copy oci-archive:images/NAME.tar docker://REGISTRY/weft/NAME:VERSION
  --set image.repository=REGISTRY/weft/operator        for the hub
  --set image.prefix=REGISTRY/weft                     for members

Then, with helm on the PATH (bin/slicectl carries the same charts as charts/):

  bin/slicectl --context HUB install hub
  bin/slicectl --context HUB token issue NAME
  bin/slicectl --context MEMBER join --token TOKEN
  bin/slicectl verify SLICE --contexts HUB,MEMBER --image localhost/weft/probe:VERSION
";

/// Writes the tar of what was built into `from`, and says where it is.
///
/// # Errors
/// Where a program is missing or of another architecture, or a chart is of another version than the programs.
pub fn write(from: &Path, to: &Path, platform: &Platform) -> Result<PathBuf> {
    let architecture = platform.architecture.name;
    let name = name(architecture);
    let folder = to.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    for chart in CHARTS {
        let source = Path::new(ROOT).join("charts").join(chart);
        ensure_version(&source.join("Chart.yaml"))?;
        copy(&source, &folder.join("charts").join(chart))?;
    }
    ours::release(from, &folder.join("images"), VERSION, platform)?;
    for program in PROGRAMS {
        platform.ensure(&from.join(program))?;
        copy(&from.join(program), &folder.join("bin").join(program))?;
    }
    copy(&Path::new(ROOT).join("LICENSE"), &folder.join("LICENSE"))?;
    let readme = README.replace("VERSION", VERSION).replace("ARCH", architecture);
    fs::write(folder.join("README"), readme).context("write README")?;
    pack(&folder, to, &name)
}

fn name(architecture: &str) -> String {
    format!("weft-{VERSION}-{architecture}")
}

/// A chart's images are those of its own version.
fn ensure_version(chart: &Path) -> Result<()> {
    let text = fs::read_to_string(chart).with_context(|| format!("read {}", chart.display()))?;
    let chart_yaml: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("parse {}", chart.display()))?;
    for field in ["version", "appVersion"] {
        ensure!(
            chart_yaml[field] == VERSION,
            "{} has {field} {}, and the programs are {VERSION}: make them the same",
            chart.display(),
            chart_yaml[field]
        );
    }
    Ok(())
}

/// A file or folder, with what its links point at in their place; values for tests stay out.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        let folder = to.parent().context("a file is in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        return Ok(());
    }
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry.with_context(|| format!("list {}", from.display()))?;
        if entry.file_name() != "ci" {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Files below a folder, as paths relative to it, in one order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("list {}", next.display()))? {
            let path = entry.with_context(|| format!("list {}", next.display()))?.path();
            match path.is_dir() {
                true => open.push(path),
                false => found.push(path.strip_prefix(folder).context("it is below")?.to_owned()),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The folder as one tar, with the checksums of its files in it and its own beside it.
fn pack(folder: &Path, to: &Path, name: &str) -> Result<PathBuf> {
    let mut sums = String::new();
    for path in files(folder)? {
        let data = fs::read(folder.join(&path)).with_context(|| format!("read {}", path.display()))?;
        sums += &format!("{}  {}\n", hex(&data), path.display());
    }
    fs::write(folder.join("SHA256SUMS"), sums).context("write SHA256SUMS")?;

    let target = to.join(format!("{name}.tar"));
    let partial = to.join(format!("{name}.partial"));
    let file = File::create(&partial).with_context(|| format!("write {}", partial.display()))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    for path in files(folder)? {
        let data = fs::read(folder.join(&path)).with_context(|| format!("read {}", path.display()))?;
        let mode = if path.starts_with("bin") { 0o755 } else { 0o644 };
        let inside = format!("{name}/{}", path.display());
        append(&mut tar, &inside, tar::EntryType::Regular, mode, &data)?;
    }
    let written = tar.into_inner().context("finish the tar")?;
    let Ok(_) = written.into_inner() else {
        bail!("write {}: the disk is full?", partial.display());
    };
    let sum = hex(&fs::read(&partial).with_context(|| format!("read {}", partial.display()))?);
    fs::rename(&partial, &target).with_context(|| format!("rename to {}", target.display()))?;
    fs::write(
        to.join(format!("{name}.tar.sha256")),
        format!("{sum}  {name}.tar\n"),
    )
    .context("write the checksum")?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_are_of_the_programs_version_and_another_is_named() {
        for chart in CHARTS {
            ensure_version(&Path::new(ROOT).join("charts").join(chart).join("Chart.yaml")).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let chart = folder.path().join("Chart.yaml");
        fs::write(&chart, format!("version: {VERSION}\nappVersion: 0.0.7\n")).unwrap();
        let why = format!("{:#}", ensure_version(&chart).unwrap_err());
        assert!(
            why.contains("appVersion \"0.0.7\"") && why.contains(VERSION),
            "{why}"
        );
    }

    #[test]
    fn the_tar_holds_every_file_and_the_checksums_are_right() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("weft");
        copy(&Path::new(ROOT).join("charts"), &folder.join("charts")).unwrap();
        fs::create_dir(folder.join("bin")).unwrap();
        fs::write(folder.join("bin/slicectl"), "#!").unwrap();
        let tar = pack(&folder, place.path(), "weft").unwrap();
        let first = fs::read(&tar).unwrap();

        // As a person checks it.
        let run = |command: &str| {
            let status = std::process::Command::new("sh")
                .args(["-ec", command])
                .current_dir(place.path())
                .status()
                .unwrap();
            assert!(status.success(), "{command}");
        };
        run("sha256sum -c --quiet weft.tar.sha256");
        run(
            "mkdir out && tar -xf weft.tar -C out && cd out/weft && sha256sum -c --quiet SHA256SUMS && test -x bin/slicectl",
        );
        // What was a link is a file, and nothing that only tests need is there.
        run(
            "cd out/weft/charts && test -s weft-hub/files/hub.yaml && test ! -L weft-hub/files/hub.yaml && test ! -e weft-hub/ci",
        );
        // A file that was changed is found out.
        run(
            "echo x >> out/weft/bin/slicectl && cd out/weft && ! sha256sum -c --quiet SHA256SUMS 2>/dev/null",
        );

        fs::remove_file(folder.join("SHA256SUMS")).unwrap();
        pack(&folder, place.path(), "weft").unwrap();
        assert!(
            fs::read(&tar).unwrap() == first,
            "the same files make the same bytes"
        );
    }
}
