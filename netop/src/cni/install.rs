//! The plugin's place on a node: its binary among the plugins, its element at the end of the first configuration list.
//!
//! What others wrote is kept as it is: the list is parsed, one element is appended or taken out, and the file is
//! replaced in one step. Container runtimes read the first file in lexical order (libcni), so that is the one.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

/// The plugin's name: its file among the plugins, its type in the list.
pub const PLUGIN: &str = "slice-cni";

/// Where the plugin goes.
#[derive(Clone, Debug)]
pub struct Installer {
    /// The runtime's folder of configurations, as this process sees it.
    pub conf_dir: PathBuf,
    /// The runtime's folder of plugins, as this process sees it.
    pub bin_dir: PathBuf,
    /// The plugin to install.
    pub binary: PathBuf,
    /// Socket and members file, as the host sees them.
    pub socket: PathBuf,
    pub members: PathBuf,
}

/// What `ensure` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    AsItWas,
    /// Put in, or put right.
    Changed(PathBuf),
}

impl Installer {
    /// Brings binary and configuration to what they should be.
    ///
    /// # Errors
    /// Where there is no configuration list yet, or the folders cannot be written.
    pub fn ensure(&self) -> anyhow::Result<Installed> {
        let target = self.bin_dir.join(PLUGIN);
        let wanted = fs::read(&self.binary).with_context(|| format!("read {}", self.binary.display()))?;
        let mut installed = Installed::AsItWas;
        if fs::read(&target).ok().as_deref() != Some(wanted.as_slice()) {
            replace(&target, &wanted, 0o755).with_context(|| format!("write {}", target.display()))?;
            installed = Installed::Changed(target);
        }
        let list = self.list()?;
        let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
        let element = json!({"type": PLUGIN, "socket": self.socket, "members": self.members});
        if let Some(changed) =
            with_plugin(&text, &element).with_context(|| format!("in {}", list.display()))?
        {
            replace(&list, changed.as_bytes(), 0o644).with_context(|| format!("write {}", list.display()))?;
            installed = Installed::Changed(list);
        }
        Ok(installed)
    }

    /// Takes the plugin out of every list, then removes its binary. What is not there is as good.
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
                        Some(changed) => replace(&list, changed.as_bytes(), 0o644).context("write"),
                        None => Ok(()),
                    });
            let removed = removed.with_context(|| list.display().to_string());
            result = result.and(removed);
        }
        match fs::remove_file(self.bin_dir.join(PLUGIN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let failure =
                    Err(error).with_context(|| format!("remove {PLUGIN} from {}", self.bin_dir.display()));
                result.and(failure)
            }
            _ => result,
        }
    }

    /// The list that the runtime uses.
    fn list(&self) -> anyhow::Result<PathBuf> {
        let first = self.configurations()?.into_iter().next();
        let Some(first) = first else {
            bail!(
                "{} has no CNI configuration yet: install a network plugin first",
                self.conf_dir.display()
            );
        };
        if first.extension().is_none_or(|extension| extension != "conflist") {
            bail!(
                "{} is a single configuration, to which no plugin can be chained: make a .conflist of it",
                first.display()
            );
        }
        Ok(first)
    }

    fn lists(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut all = self.configurations()?;
        all.retain(|path| path.extension().is_some_and(|extension| extension == "conflist"));
        Ok(all)
    }

    /// Files that libcni looks at (`ConfFiles`), in its order.
    fn configurations(&self) -> anyhow::Result<Vec<PathBuf>> {
        let entries =
            fs::read_dir(&self.conf_dir).with_context(|| format!("list {}", self.conf_dir.display()))?;
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

/// The list with the plugin's element at its end; `None` where it is there as it should be.
fn with_plugin(text: &str, element: &Value) -> anyhow::Result<Option<String>> {
    let mut list: Map<String, Value> = serde_json::from_str(text).context("not a JSON object")?;
    let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else {
        bail!("no list of plugins")
    };
    if plugins.last() == Some(element) && plugins.iter().filter(|plugin| is_ours(plugin)).count() == 1 {
        return Ok(None);
    }
    plugins.retain(|plugin| !is_ours(plugin));
    plugins.push(element.clone());
    Ok(Some(serde_json::to_string_pretty(&list)? + "\n"))
}

/// The list without the plugin; `None` where it is not in it, or the text is not a list.
fn without_plugin(text: &str) -> Option<String> {
    let mut list: Map<String, Value> = serde_json::from_str(text).ok()?;
    let plugins = list.get_mut("plugins")?.as_array_mut()?;
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    (plugins.len() != before).then(|| serde_json::to_string_pretty(&list).map(|text| text + "\n").ok())?
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

/// Replaces a file in one step: a temporary beside it, made durable, then renamed over it.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    // A leading dot and no known extension: libcni must not take the temporary for a configuration.
    let temporary = path.with_file_name(format!(".{name}.weft"));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"bridge","bridge":"cni0"},{"type":"portmap"}]}"#;

    fn installer(folder: &Path) -> Installer {
        let installer = Installer {
            conf_dir: folder.join("net.d"),
            bin_dir: folder.join("bin"),
            binary: folder.join("plugin"),
            socket: "/run/weft/cni.sock".into(),
            members: "/run/weft/cni/members.json".into(),
        };
        fs::create_dir_all(&installer.conf_dir).unwrap();
        fs::create_dir_all(&installer.bin_dir).unwrap();
        fs::write(&installer.binary, "#!plugin").unwrap();
        installer
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
        let list = installer.conf_dir.join("10-lab.conflist");
        fs::write(&list, LIST).unwrap();
        fs::write(installer.conf_dir.join("20-other.conflist"), LIST).unwrap();
        assert_eq!(installer.ensure().unwrap(), Installed::Changed(list.clone()));
        assert_eq!(types(&list), ["bridge", "portmap", PLUGIN]);
        assert_eq!(installer.ensure().unwrap(), Installed::AsItWas);
        assert_eq!(
            types(&installer.conf_dir.join("20-other.conflist")),
            ["bridge", "portmap"]
        );
        installer.remove().unwrap();
        let (now, before): (Value, Value) = (
            serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap(),
            serde_json::from_str(LIST).unwrap(),
        );
        assert_eq!(now, before);
        assert!(!installer.bin_dir.join(PLUGIN).exists());
        installer.remove().unwrap();
    }

    #[test]
    fn a_list_that_its_owner_rewrote_is_put_right() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let list = installer.conf_dir.join("10-lab.conflist");
        let ours_first = LIST.replace(r#"{"type":"bridge""#, r#"{"type":"slice-cni"},{"type":"bridge""#);
        fs::write(&list, ours_first).unwrap();
        installer.ensure().unwrap();
        assert_eq!(types(&list), ["bridge", "portmap", PLUGIN]);
    }

    #[test]
    fn what_cannot_be_chained_to_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let said = |installer: &Installer| format!("{:#}", installer.ensure().unwrap_err());
        assert!(said(&installer).contains("no CNI configuration yet"));
        fs::write(installer.conf_dir.join("05-one.conf"), r#"{"type":"bridge"}"#).unwrap();
        assert!(said(&installer).contains("single configuration"));
    }
}
