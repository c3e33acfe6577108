//! The plugin's place on a node: its binary among the plugins, its element at the end of the first configuration list.
//!
//! Container runtimes read the first file in lexical order (libcni), so that is the list. A runtime that does not find the
//! plugin starts no pod at all: the binary comes first, into every directory that the runtime may look in, and a list
//! whose other plugins are in none of them is not touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::json;

use super::{
    host::HostRoot,
    list::{plugin_types, version, with_plugin, without_plugin},
    plugin::VERSIONS,
};
use crate::files::write_mode;

/// The plugin's name: its file among the plugins, its type in the list.
pub const PLUGIN: &str = "slice-cni";

/// Where the plugin goes.
#[derive(Clone, Debug)]
pub struct Installer {
    pub host: HostRoot,
    /// The runtime's directory of configurations, on the host.
    pub conf_dir: PathBuf,
    /// Where the runtime may look for plugins, on the host.
    pub bin_dirs: Vec<PathBuf>,
    /// The plugin to install.
    pub binary: PathBuf,
    /// Socket and members file, as the host sees them.
    pub socket: PathBuf,
    pub members: PathBuf,
}

/// What `ensure` found of the list that the runtime uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    AsItWas,
    /// Put in, or put right.
    Changed(PathBuf),
    /// It is to be put right, and may not be written yet.
    Held(PathBuf),
    /// The plugin cannot be where the runtime looks, so it is not in the list either: why.
    Withheld(String),
}

/// The plugin's file as it was last seen to be right: what has not changed since is not read again.
#[derive(Clone, Debug, Default)]
pub struct Checked(BTreeMap<PathBuf, [Stamp; 2]>);

/// What changes about a file whenever it is written or replaced.
type Stamp = (u64, u64, u64, i64, i64);

impl Installer {
    /// Brings binary and configuration to what they should be; the configuration only where it `may_write`.
    ///
    /// # Errors
    /// Where there is no configuration list yet, or the directories cannot be written.
    pub fn ensure(&self, checked: &mut Checked, may_write: bool) -> anyhow::Result<Installed> {
        let placed = self.place(checked);
        let list = self.list()?;
        let name = self.host.name(&list);
        let text = fs::read_to_string(&list).with_context(|| format!("read {}", name.display()))?;
        let placed = placed.and_then(|bins| self.is_found(&bins, &text, &name));
        if let Err(error) = placed {
            // A plugin that is not found is one that no pod starts with.
            if let Some(changed) = without_plugin(&text) {
                rewrite(&list, &changed).with_context(|| format!("write {}", name.display()))?;
            }
            return Ok(Installed::Withheld(format!("{error:#}")));
        }
        let version = version(&text);
        if !VERSIONS.contains(&version.as_str()) {
            bail!(
                "{} has cniVersion {version:?}: {PLUGIN} is chained in {}",
                name.display(),
                VERSIONS.join(", ")
            );
        }
        let element = json!({"type": PLUGIN, "socket": self.socket, "members": self.members});
        let changed = with_plugin(&text, &element).with_context(|| format!("in {}", name.display()))?;
        let Some(changed) = changed else {
            return Ok(Installed::AsItWas);
        };
        if !may_write {
            return Ok(Installed::Held(name));
        }
        rewrite(&list, &changed).with_context(|| format!("write {}", name.display()))?;
        Ok(Installed::Changed(name))
    }

    /// Puts the binary into every directory of plugins that is there, which are returned.
    fn place(&self, checked: &mut Checked) -> anyhow::Result<Vec<PathBuf>> {
        let dirs: Vec<anyhow::Result<PathBuf>> = (self.bin_dirs.iter())
            .map(|dir| self.host.directory(dir, "CNI plugins"))
            .collect();
        let (there, missing): (Vec<_>, Vec<_>) = dirs.into_iter().partition(Result::is_ok);
        let there: Vec<PathBuf> = there.into_iter().flatten().collect();
        if there.is_empty() {
            return Err(missing.into_iter().find_map(Result::err).unwrap_or_else(|| {
                anyhow::anyhow!("no directory of CNI plugins is named: say netop.cniBinDir of the chart")
            }));
        }
        checked.0.retain(|target, _| {
            target
                .parent()
                .is_some_and(|dir| there.iter().any(|there| there == dir))
        });
        for dir in &there {
            let target = dir.join(PLUGIN);
            let stamps = || Some([stamp(&self.binary)?, stamp(&target)?]);
            let before = stamps();
            if before.is_some() && before.as_ref() == checked.0.get(&target) {
                continue;
            }
            let name = self.host.name(&target);
            let wanted = fs::read(&self.binary).with_context(|| format!("read {}", self.binary.display()))?;
            if fs::read(&target).ok().as_deref() != Some(wanted.as_slice()) {
                if let Err(error) = write_mode(&target, &wanted, 0o755) {
                    // One of another version does until then.
                    let failure = format!("write {}: {error}", name.display());
                    match target.exists() {
                        true => {
                            tracing::warn!(error = failure, "CNI plugin not updated");
                            continue;
                        }
                        false => bail!(failure),
                    }
                }
                tracing::info!(path = %name.display(), "CNI plugin installed");
            }
            if let Some(after) = stamps() {
                checked.0.insert(target, after);
            }
        }
        Ok(there)
    }

    /// Whether the runtime looks where the plugin was put: it has to find the list's other plugins.
    fn is_found(&self, bins: &[PathBuf], text: &str, list: &Path) -> anyhow::Result<()> {
        let others: BTreeSet<String> = plugin_types(text)
            .into_iter()
            .filter(|name| name != PLUGIN)
            .collect();
        // A link may lead to where this process does not see; that it is there is enough.
        let is_there = |name: &String| bins.iter().any(|bin| bin.join(name).symlink_metadata().is_ok());
        if others.is_empty() || others.iter().any(is_there) {
            return Ok(());
        }
        let bins: Vec<String> = (bins.iter())
            .map(|bin| self.host.name(bin).display().to_string())
            .collect();
        bail!(
            "no plugin of {} ({}) is in {}, so the container runtime looks elsewhere: say where by the chart's netop.platform \
             or netop.cniBinDir",
            list.display(),
            others.into_iter().collect::<Vec<_>>().join(", "),
            bins.join(" or ")
        )
    }

    /// Directories in which a change means that it is time to look, as they are now.
    pub fn watched(&self) -> BTreeSet<PathBuf> {
        let dirs = [&self.conf_dir].into_iter().chain(&self.bin_dirs);
        dirs.flat_map(|dir| self.host.find(dir).watched).collect()
    }

    /// The directories themselves, as this process reaches them, of those that are there.
    pub fn directories(&self) -> Vec<PathBuf> {
        let dirs = [&self.conf_dir].into_iter().chain(&self.bin_dirs);
        dirs.filter_map(|dir| self.host.find(dir).directory).collect()
    }

    /// Takes the plugin out of every list. Its binary stays: CRI-O and Multus delete a pod by the configuration that they kept
    /// when it started, and a pod whose plugin is not found cannot be deleted.
    ///
    /// # Errors
    /// The first failure, after everything else was tried.
    pub fn remove(&self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for list in self.lists()? {
            let removed =
                fs::read_to_string(&list)
                    .context("read")
                    .and_then(|text| match without_plugin(&text) {
                        Some(changed) => rewrite(&list, &changed).context("write"),
                        None => Ok(()),
                    });
            let removed = removed.with_context(|| self.host.name(&list).display().to_string());
            result = result.and(removed);
        }
        result
    }

    /// The list that the runtime uses.
    fn list(&self) -> anyhow::Result<PathBuf> {
        let first = self.configurations()?.into_iter().next();
        let Some(first) = first else {
            bail!(
                "{} has no CNI configuration yet: install a network plugin first, or say where the container runtime has \
                 its configurations by the chart's netop.platform or netop.cniConfDir",
                self.conf_dir.display()
            );
        };
        if first.extension().is_none_or(|extension| extension != "conflist") {
            bail!(
                "{} is a single configuration, to which no plugin can be chained: make a .conflist of it",
                self.host.name(&first).display()
            );
        }
        Ok(first)
    }

    /// All lists; none where there is not even a directory of them.
    fn lists(&self) -> anyhow::Result<Vec<PathBuf>> {
        if self.host.find(&self.conf_dir).directory.is_none() {
            return Ok(vec![]);
        }
        let mut all = self.configurations()?;
        all.retain(|path| path.extension().is_some_and(|extension| extension == "conflist"));
        Ok(all)
    }

    /// Files that libcni looks at (`ConfFiles`), in its order.
    fn configurations(&self) -> anyhow::Result<Vec<PathBuf>> {
        let directory = self.host.directory(&self.conf_dir, "CNI configurations")?;
        let entries =
            fs::read_dir(&directory).with_context(|| format!("list {}", self.conf_dir.display()))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| {
            let extension = path
                .extension()
                .and_then(|extension| extension.to_str())
                .unwrap_or_default();
            matches!(extension, "conf" | "conflist" | "json")
        });
        files.sort();
        Ok(files)
    }
}

/// What is said where another program undoes what is written into its list.
pub fn contested(list: &Path) -> String {
    let file = list.display();
    let name = list.file_name().unwrap_or_default().to_string_lossy();
    let setting = match name.contains("cilium") {
        true => "set cni.exclusive=false in the values of Cilium's chart",
        false => {
            "have the program that writes this file leave other plugins in it (Cilium: cni.exclusive=false in its chart's values)"
        }
    };
    let most = super::contest::MOST.as_secs();
    format!(
        "another program takes {PLUGIN} out of {file} as often as it is put in, so it is put in every {most} s only: {setting}"
    )
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((
        file.dev(),
        file.ino(),
        file.size(),
        file.ctime(),
        file.ctime_nsec(),
    ))
}

/// Replaces a file in one step and leaves its permissions as they are.
fn rewrite(path: &Path, text: &str) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
    write_mode(path, text.as_bytes(), mode)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"bridge","bridge":"cni0"},{"type":"portmap"}]}"#;

    /// A host whose runtime has its plugins, and an installer for it.
    fn installer(folder: &Path) -> Installer {
        let installer = Installer {
            host: HostRoot(folder.to_owned()),
            conf_dir: "/net.d".into(),
            bin_dirs: vec!["/bin".into()],
            binary: folder.join("plugin"),
            socket: "/run/weft/cni.sock".into(),
            members: "/var/lib/weft/members.json".into(),
        };
        for dir in ["net.d", "bin"] {
            fs::create_dir_all(folder.join(dir)).unwrap();
        }
        fs::write(folder.join("bin/bridge"), "").unwrap();
        fs::write(&installer.binary, "#!plugin").unwrap();
        installer
    }

    fn ensure(installer: &Installer) -> anyhow::Result<Installed> {
        installer.ensure(&mut Checked::default(), true)
    }

    fn types(path: &Path) -> Vec<String> {
        let list: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        plugins
            .iter()
            .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn the_plugin_is_chained_last_once_and_taken_out_again() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let list = folder.path().join("net.d").join("10-lab.conflist");
        fs::write(&list, LIST).unwrap();
        fs::write(folder.path().join("net.d").join("20-other.conflist"), LIST).unwrap();
        assert_eq!(
            ensure(&installer).unwrap(),
            Installed::Changed("/net.d/10-lab.conflist".into())
        );
        assert_eq!(types(&list), ["bridge", "portmap", PLUGIN]);
        assert_eq!(ensure(&installer).unwrap(), Installed::AsItWas);
        assert_eq!(
            types(&folder.path().join("net.d").join("20-other.conflist")),
            ["bridge", "portmap"]
        );
        installer.remove().unwrap();
        assert_eq!(fs::read_to_string(&list).unwrap(), LIST, "to the byte");
        assert!(
            folder.path().join("bin").join(PLUGIN).exists(),
            "runtimes delete pods by the list that they kept"
        );
        installer.remove().unwrap();
        fs::remove_dir_all(folder.path().join("net.d")).unwrap();
        installer.remove().unwrap();
    }

    #[test]
    fn a_list_that_its_owner_rewrote_is_put_right() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let list = folder.path().join("net.d").join("10-lab.conflist");
        let ours_first = LIST.replace(r#"{"type":"bridge""#, r#"{"type":"slice-cni"},{"type":"bridge""#);
        fs::write(&list, ours_first).unwrap();
        ensure(&installer).unwrap();
        assert_eq!(types(&list), ["bridge", "portmap", PLUGIN]);
    }

    #[test]
    fn a_plugin_that_was_replaced_or_removed_is_put_right_and_else_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        fs::write(folder.path().join("net.d").join("10-lab.conflist"), LIST).unwrap();
        let mut checked = Checked::default();
        let target = folder.path().join("bin").join(PLUGIN);
        let mut look = || {
            installer.ensure(&mut checked, true).unwrap();
            fs::read_to_string(&target).unwrap()
        };
        look();
        let first = stamp(&target);
        assert_eq!(look(), "#!plugin");
        assert_eq!(stamp(&target), first);
        fs::write(&target, "#!others").unwrap();
        assert_eq!(look(), "#!plugin");
        fs::remove_file(&target).unwrap();
        assert_eq!(look(), "#!plugin");
        fs::write(&installer.binary, "#!newer!").unwrap();
        assert_eq!(look(), "#!newer!");
    }

    #[test]
    fn a_list_that_may_not_be_written_yet_stays() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let list = folder.path().join("net.d").join("10-lab.conflist");
        fs::write(&list, LIST).unwrap();
        let held = installer.ensure(&mut Checked::default(), false).unwrap();
        assert_eq!(held, Installed::Held("/net.d/10-lab.conflist".into()));
        assert_eq!(fs::read_to_string(&list).unwrap(), LIST);
        assert!(folder.path().join("bin").join(PLUGIN).exists());
    }

    #[test]
    fn the_plugin_is_wherever_the_runtime_may_look_and_follows_it() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut installer = installer(folder.path());
        installer.bin_dirs = vec!["/data/cni".into(), "/data/current/bin".into()];
        for version in ["one", "two"] {
            fs::create_dir_all(data.join(version).join("bin")).unwrap();
            fs::write(data.join(version).join("bin/bridge"), "").unwrap();
        }
        std::os::unix::fs::symlink("/data/one", data.join("current")).unwrap();
        let list = folder.path().join("net.d/10-lab.conflist");
        fs::write(&list, LIST).unwrap();
        let mut checked = Checked::default();
        installer.ensure(&mut checked, true).unwrap();
        assert!(data.join("one/bin/slice-cni").exists() && !data.join("two/bin/slice-cni").exists());
        // An upgrade, and one to a release that has another directory.
        fs::remove_file(data.join("current")).unwrap();
        std::os::unix::fs::symlink("/data/two", data.join("current")).unwrap();
        assert_eq!(installer.ensure(&mut checked, true).unwrap(), Installed::AsItWas);
        assert!(data.join("two/bin/slice-cni").exists() && data.join("one/bin/slice-cni").exists());
        fs::create_dir_all(data.join("cni")).unwrap();
        installer.ensure(&mut checked, true).unwrap();
        assert!(data.join("cni/slice-cni").exists());
    }

    #[test]
    fn a_list_has_no_plugin_that_the_runtime_does_not_find() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let list = folder.path().join("net.d/10-lab.conflist");
        fs::write(&list, LIST).unwrap();
        ensure(&installer).unwrap();
        assert_eq!(types(&list), ["bridge", "portmap", PLUGIN]);
        let withheld = || match ensure(&installer).unwrap() {
            Installed::Withheld(why) => why,
            other => panic!("{other:?}"),
        };
        // The runtime has others, elsewhere.
        fs::remove_file(folder.path().join("bin/bridge")).unwrap();
        let why = withheld();
        assert!(
            why.contains("/net.d/10-lab.conflist (bridge, portmap) is in /bin")
                && why.contains("netop.cniBinDir"),
            "{why}"
        );
        assert_eq!(fs::read_to_string(&list).unwrap(), LIST, "pods start without it");
        fs::write(folder.path().join("bin/portmap"), "").unwrap();
        ensure(&installer).unwrap();
        assert_eq!(types(&list), ["bridge", "portmap", PLUGIN]);
        fs::remove_dir_all(folder.path().join("bin")).unwrap();
        let why = withheld();
        assert!(why.contains("/bin of CNI plugins is not on this node"), "{why}");
        assert_eq!(fs::read_to_string(&list).unwrap(), LIST);
    }

    #[test]
    fn what_cannot_be_chained_to_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let said = |installer: &Installer| format!("{:#}", ensure(installer).unwrap_err());
        assert!(said(&installer).contains("no CNI configuration yet"));
        fs::write(
            folder.path().join("net.d").join("05-one.conf"),
            r#"{"type":"bridge"}"#,
        )
        .unwrap();
        assert!(said(&installer).contains("single configuration"));
        fs::write(
            folder.path().join("net.d/01-old.conflist"),
            LIST.replace("1.0.0", "0.2.0"),
        )
        .unwrap();
        assert!(said(&installer).contains(r#"/net.d/01-old.conflist has cniVersion "0.2.0""#));
    }
}
