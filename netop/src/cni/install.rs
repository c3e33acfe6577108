//! The plugin's place on a node: its binary among the plugins, its element at the end of the list that the runtime uses.
//!
//! A runtime that does not find the plugin starts no pod at all: the binary comes first, into every directory that the
//! runtime may look in, and a list whose other plugins are in none of them is not touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::{
    host::HostRoot,
    list::{about, plugin_types, without_plugin},
    plugin::VERSIONS,
    targets::{Target, origin},
};
use crate::files::{self, write_mode};

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
        let targets = self.targets()?;
        let types = targets
            .iter()
            .flat_map(|target| plugin_types(&target.wanted))
            .collect();
        let first = (targets.first()).map_or(&self.conf_dir, |target| &target.name);
        let placed = placed.and_then(|bins| self.is_found(&bins, types, first));
        if let Err(error) = placed {
            // A plugin that is not found is one that no pod starts with.
            self.remove()?;
            return Ok(Installed::Withheld(format!("{error:#}")));
        }
        for target in &targets {
            let version = about(&target.wanted).cni_version;
            if !VERSIONS.contains(&version.as_str()) {
                bail!(
                    "{} has cniVersion {version:?}: {PLUGIN} is chained in {}",
                    target.name.display(),
                    VERSIONS.join(", ")
                );
            }
        }
        let mut installed = Installed::AsItWas;
        for Target { path, name, wanted } in targets {
            if fs::read_to_string(&path).is_ok_and(|text| text == wanted) {
                continue;
            }
            if !may_write {
                return Ok(Installed::Held(name));
            }
            rewrite(&path, &wanted).with_context(|| format!("write {}", name.display()))?;
            installed = Installed::Changed(name);
        }
        Ok(installed)
    }

    /// Puts the binary into every directory of plugins that is there; where it is then.
    fn place(&self, checked: &mut Checked) -> anyhow::Result<Vec<PathBuf>> {
        let (mut there, mut failures) = (vec![], vec![]);
        for dir in &self.bin_dirs {
            let placed = self.host.directory(dir, "CNI plugins").and_then(|directory| {
                self.place_in(&directory, checked)?;
                Ok(directory)
            });
            match placed {
                Ok(directory) => there.push(directory),
                Err(error) => failures.push(error),
            }
        }
        checked.0.retain(|directory, _| there.contains(directory));
        match (there.is_empty(), failures.into_iter().next()) {
            (true, Some(failure)) => Err(failure),
            (true, None) => bail!("no directory of CNI plugins is named: say netop.cniBinDir of the chart"),
            (false, _) => Ok(there),
        }
    }

    fn place_in(&self, directory: &Path, checked: &mut Checked) -> anyhow::Result<()> {
        let target = directory.join(PLUGIN);
        let stamps = || Some([stamp(&self.binary)?, stamp(&target)?]);
        let before = stamps();
        if before.is_some() && before.as_ref() == checked.0.get(directory) {
            return Ok(());
        }
        let name = self.host.name(&target);
        let wanted = fs::read(&self.binary).with_context(|| format!("read {}", self.binary.display()))?;
        if fs::read(&target).ok().as_deref() != Some(wanted.as_slice()) {
            match write_mode(&target, &wanted, 0o755) {
                Ok(()) => tracing::info!(path = %name.display(), "CNI plugin installed"),
                // One of another version does meanwhile.
                Err(error) if target.exists() => {
                    tracing::warn!(path = %name.display(), error = %error, "CNI plugin not updated");
                    return Ok(());
                }
                Err(error) => return Err(error).with_context(|| format!("write {}", name.display())),
            }
        }
        if let Some(after) = stamps() {
            checked.0.insert(directory.to_owned(), after);
        }
        Ok(())
    }

    /// Whether the runtime looks where the plugin was put: it has to find the list's other plugins.
    fn is_found(&self, bins: &[PathBuf], types: BTreeSet<String>, list: &Path) -> anyhow::Result<()> {
        let others: BTreeSet<String> = types.into_iter().filter(|name| name != PLUGIN).collect();
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
        if self.host.find(&self.conf_dir).directory.is_none() {
            return Ok(());
        }
        let mut result = Ok(());
        for path in self.configurations()? {
            let removed =
                match origin(&path) {
                    Some(_) => files::remove(&path).context("remove"),
                    None => fs::read_to_string(&path).context("read").and_then(|text| {
                        match without_plugin(&text) {
                            Some(changed) => rewrite(&path, &changed).context("write"),
                            None => Ok(()),
                        }
                    }),
                };
            let removed = removed.with_context(|| self.host.name(&path).display().to_string());
            result = result.and(removed);
        }
        result
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
    let mode = match fs::metadata(path) {
        Ok(file) => file.permissions().mode() & 0o7777,
        // As CNI configurations are, some of which have credentials.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0o600,
        Err(error) => return Err(error),
    };
    write_mode(path, text.as_bytes(), mode)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{super::testing, *};

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"bridge","bridge":"cni0"},{"type":"portmap"}]}"#;

    fn installer(folder: &Path) -> Installer {
        testing::installer(folder, "bridge")
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
    fn a_single_configuration_gets_a_list_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let net = folder.path().join("net.d");
        let conf = r#"{"cniVersion":"0.3.1","name":"net","type":"bridge"}"#;
        fs::write(net.join("10-net.conf"), conf).unwrap();
        let list = net.join("10-net-weft.conflist");
        assert_eq!(
            ensure(&installer).unwrap(),
            Installed::Changed("/net.d/10-net-weft.conflist".into())
        );
        assert_eq!(types(&list), ["bridge", PLUGIN]);
        assert!(list < net.join("10-net.conf"), "runtimes take the first");
        assert_eq!(ensure(&installer).unwrap(), Installed::AsItWas);
        fs::write(net.join("10-net.conf"), conf.replace("net\"", "other\"")).unwrap();
        ensure(&installer).unwrap();
        assert!(fs::read_to_string(&list).unwrap().contains(r#""name":"other""#));
        installer.remove().unwrap();
        assert!(!list.exists() && net.join("10-net.conf").exists());
        // Another network plugin takes its place.
        ensure(&installer).unwrap();
        fs::remove_file(net.join("10-net.conf")).unwrap();
        fs::write(net.join("20-lab.conflist"), LIST).unwrap();
        ensure(&installer).unwrap();
        assert!(!list.exists());
        assert_eq!(types(&net.join("20-lab.conflist")), ["bridge", "portmap", PLUGIN]);
    }

    #[test]
    fn multus_runs_the_plugin_for_the_pods_own_network_however_it_was_set_up() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let net = folder.path().join("net.d");
        let (multus, list) = (net.join("00-multus.conf"), net.join("10-lab.conflist"));
        fs::write(&list, LIST).unwrap();
        let delegates = |text: &str| {
            format!(
                r#"{{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus","delegates":[{text}]}}"#
            )
        };
        let chained = |path: &Path| fs::read_to_string(path).unwrap().matches(PLUGIN).count();
        // It has a copy of the list, and makes it anew by that.
        fs::write(&multus, delegates(LIST)).unwrap();
        ensure(&installer).unwrap();
        assert_eq!((chained(&multus), chained(&list)), (1, 1));
        fs::write(&multus, delegates(&fs::read_to_string(&list).unwrap())).unwrap();
        assert_eq!(ensure(&installer).unwrap(), Installed::AsItWas);
        installer.remove().unwrap();
        assert_eq!(fs::read_to_string(&multus).unwrap(), delegates(LIST));
        assert_eq!(fs::read_to_string(&list).unwrap(), LIST);
        // It names the list: by its file, as its pod has it, and by its name.
        for network in ["/host/net.d/10-lab.conflist", "/net.d/10-lab.conflist", "lab"] {
            let text = format!(
                r#"{{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus-shim","clusterNetwork":"{network}"}}"#
            );
            fs::write(&multus, &text).unwrap();
            ensure(&installer).unwrap();
            assert_eq!((chained(&multus), chained(&list)), (0, 1), "{network}");
            installer.remove().unwrap();
            assert_eq!(fs::read_to_string(&list).unwrap(), LIST);
        }
        // It has its networks elsewhere, as on OpenShift: the plugin comes behind Multus itself.
        let text = r#"{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus-shim",
            "clusterNetwork":"/host/run/multus/cni/net.d/10-ovn-kubernetes.conf"}"#;
        fs::write(&multus, text).unwrap();
        fs::write(folder.path().join("bin/multus-shim"), "").unwrap();
        ensure(&installer).unwrap();
        assert_eq!(
            types(&net.join("00-multus-weft.conflist")),
            ["multus-shim", PLUGIN]
        );
        assert_eq!((chained(&multus), chained(&list)), (0, 0));
        installer.remove().unwrap();
        // A delegate that is no list cannot have another plugin.
        fs::write(&multus, delegates(r#"{"type":"ovn"}"#)).unwrap();
        let error = format!("{:#}", ensure(&installer).unwrap_err());
        assert!(
            error.contains("first delegate in /net.d/00-multus.conf"),
            "{error}"
        );
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
        assert!(said(&installer).contains(r#"/net.d/05-one-weft.conflist has cniVersion """#));
        fs::write(
            folder.path().join("net.d/01-old.conflist"),
            LIST.replace("1.0.0", "0.2.0"),
        )
        .unwrap();
        assert!(said(&installer).contains(r#"/net.d/01-old.conflist has cniVersion "0.2.0""#));
    }
}
