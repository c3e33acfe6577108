//! The plugin's place on a node: its binary among the plugins, its element at the end of the first configuration list.
//!
//! What others wrote is kept as it is: the list is parsed, one element is appended or taken out, and the file is
//! replaced in one step. Container runtimes read the first file in lexical order (libcni), so that is the one.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::files::write_mode;

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

/// What `ensure` found of the list that the runtime uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    AsItWas,
    /// Put in, or put right.
    Changed(PathBuf),
    /// It is to be put right, and may not be written yet.
    Held(PathBuf),
}

/// The plugin's file as it was last seen to be right: what has not changed since is not read again.
#[derive(Clone, Debug, Default)]
pub struct Checked(Option<[Stamp; 2]>);

/// What changes about a file whenever it is written or replaced.
type Stamp = (u64, u64, u64, i64, i64);

impl Installer {
    /// Brings binary and configuration to what they should be; the configuration only where it `may_write`.
    ///
    /// # Errors
    /// Where there is no configuration list yet, or the folders cannot be written.
    pub fn ensure(&self, checked: &mut Checked, may_write: bool) -> anyhow::Result<Installed> {
        self.place(checked)?;
        let list = self.list()?;
        let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
        let element = json!({"type": PLUGIN, "socket": self.socket, "members": self.members});
        let changed = with_plugin(&text, &element).with_context(|| format!("in {}", list.display()))?;
        let Some(changed) = changed else {
            return Ok(Installed::AsItWas);
        };
        if !may_write {
            return Ok(Installed::Held(list));
        }
        rewrite(&list, &changed).with_context(|| format!("write {}", list.display()))?;
        Ok(Installed::Changed(list))
    }

    /// Puts the binary among the plugins.
    fn place(&self, checked: &mut Checked) -> anyhow::Result<()> {
        let target = self.bin_dir.join(PLUGIN);
        let stamps = || Some([stamp(&self.binary)?, stamp(&target)?]);
        let before = stamps();
        if before.is_some() && before == checked.0 {
            return Ok(());
        }
        let wanted = fs::read(&self.binary).with_context(|| format!("read {}", self.binary.display()))?;
        if fs::read(&target).ok().as_deref() != Some(wanted.as_slice()) {
            write_mode(&target, &wanted, 0o755).with_context(|| format!("write {}", target.display()))?;
            tracing::info!(path = %target.display(), "CNI plugin installed");
        }
        checked.0 = stamps();
        Ok(())
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
                        Some(changed) => rewrite(&list, &changed).context("write"),
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

/// The list with the plugin's element at its end, everything else as its owner wrote it; `None` where it is there as
/// it should be.
fn with_plugin(text: &str, element: &Value) -> anyhow::Result<Option<String>> {
    let list = plugins(text)?;
    if list.iter().filter(|plugin| plugin.ours).count() == 1
        && list.last().is_some_and(|last| last.value == *element)
    {
        return Ok(None);
    }
    let clean = without_plugin(text).unwrap_or_else(|| text.to_owned());
    let list = plugins(&clean)?;
    let Some(last) = list.last() else {
        bail!("no plugin to chain to")
    };
    // As the owner separates elements.
    let separator = match list.as_slice() {
        [.., before, last] => &clean[before.at.end..last.at.start],
        _ => ",",
    };
    let (head, tail) = clean.split_at(last.at.end);
    Ok(Some(format!("{head}{separator}{element}{tail}")))
}

/// The list without the plugin; `None` where it is not in it, or the text is not a list.
fn without_plugin(text: &str) -> Option<String> {
    let list = plugins(text).ok()?;
    let mut rest = text.to_owned();
    for (n, plugin) in list.iter().enumerate().rev().filter(|(_, plugin)| plugin.ours) {
        // With the comma before it, or where it is the first, with the one after it.
        let cut = match (n.checked_sub(1), list.get(n + 1)) {
            (Some(before), _) => list[before].at.end..plugin.at.end,
            (None, Some(next)) => plugin.at.start..next.at.start,
            (None, None) => plugin.at.clone(),
        };
        rest.replace_range(cut, "");
    }
    (rest != text).then_some(rest)
}

/// An element of the list, and where in the text it is.
struct Plugin {
    at: std::ops::Range<usize>,
    value: Value,
    ours: bool,
}

fn plugins(text: &str) -> anyhow::Result<Vec<Plugin>> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        plugins: Vec<&'a RawValue>,
    }
    let list: List<'_> = serde_json::from_str(text).context("not a list of plugins")?;
    let plugin = |raw: &RawValue| {
        // A raw value borrows from the text it was read from.
        let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
        let value: Value = serde_json::from_str(raw.get())?;
        let ours = value.get("type").and_then(Value::as_str) == Some(PLUGIN);
        Ok(Plugin {
            at: start..start + raw.get().len(),
            value,
            ours,
        })
    };
    list.plugins.into_iter().map(plugin).collect()
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
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"bridge","bridge":"cni0"},{"type":"portmap"}]}"#;

    fn installer(folder: &Path) -> Installer {
        let installer = Installer {
            conf_dir: folder.join("net.d"),
            bin_dir: folder.join("bin"),
            binary: folder.join("plugin"),
            socket: "/run/weft/cni.sock".into(),
            members: "/var/lib/weft/members.json".into(),
        };
        fs::create_dir_all(&installer.conf_dir).unwrap();
        fs::create_dir_all(&installer.bin_dir).unwrap();
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
        let list = installer.conf_dir.join("10-lab.conflist");
        fs::write(&list, LIST).unwrap();
        fs::write(installer.conf_dir.join("20-other.conflist"), LIST).unwrap();
        assert_eq!(ensure(&installer).unwrap(), Installed::Changed(list.clone()));
        assert_eq!(types(&list), ["bridge", "portmap", PLUGIN]);
        assert_eq!(ensure(&installer).unwrap(), Installed::AsItWas);
        assert_eq!(
            types(&installer.conf_dir.join("20-other.conflist")),
            ["bridge", "portmap"]
        );
        installer.remove().unwrap();
        assert_eq!(fs::read_to_string(&list).unwrap(), LIST, "to the byte");
        assert!(!installer.bin_dir.join(PLUGIN).exists());
        installer.remove().unwrap();
    }

    #[test]
    fn the_owners_way_of_writing_stays() {
        let element = json!({"type": PLUGIN});
        let ours = r#"{"type":"slice-cni"}"#;
        for (before, after) in [
            (
                r#"{"plugins":[{"type":"a"}]}"#,
                r#"{"plugins":[{"type":"a"},OURS]}"#,
            ),
            (
                "{ \"plugins\": [\n  {\"type\": \"a\"},\n  {\"x\": 1.0}\n ] }\n",
                "{ \"plugins\": [\n  {\"type\": \"a\"},\n  {\"x\": 1.0},\n  OURS\n ] }\n",
            ),
        ] {
            let after = after.replace("OURS", ours);
            assert_eq!(
                with_plugin(before, &element).unwrap().as_deref(),
                Some(after.as_str())
            );
            assert_eq!(with_plugin(&after, &element).unwrap(), None);
            assert_eq!(without_plugin(&after).as_deref(), Some(before));
            assert_eq!(without_plugin(before), None);
        }
        let scattered = format!(r#"{{"plugins":[{ours}, {{"type":"a"}}, {ours}, {{"type":"b"}}]}}"#);
        let put_right = with_plugin(&scattered, &element).unwrap().unwrap();
        assert_eq!(
            put_right,
            format!(r#"{{"plugins":[{{"type":"a"}}, {{"type":"b"}}, {ours}]}}"#)
        );
        assert!(with_plugin(r#"{"plugins":[]}"#, &element).is_err() && with_plugin("{", &element).is_err());
    }

    #[test]
    fn a_list_that_its_owner_rewrote_is_put_right() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let list = installer.conf_dir.join("10-lab.conflist");
        let ours_first = LIST.replace(r#"{"type":"bridge""#, r#"{"type":"slice-cni"},{"type":"bridge""#);
        fs::write(&list, ours_first).unwrap();
        ensure(&installer).unwrap();
        assert_eq!(types(&list), ["bridge", "portmap", PLUGIN]);
    }

    #[test]
    fn a_plugin_that_was_replaced_or_removed_is_put_right_and_else_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        fs::write(installer.conf_dir.join("10-lab.conflist"), LIST).unwrap();
        let mut checked = Checked::default();
        let target = installer.bin_dir.join(PLUGIN);
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
        let list = installer.conf_dir.join("10-lab.conflist");
        fs::write(&list, LIST).unwrap();
        let held = installer.ensure(&mut Checked::default(), false).unwrap();
        assert_eq!(held, Installed::Held(list.clone()));
        assert_eq!(fs::read_to_string(&list).unwrap(), LIST);
        assert!(installer.bin_dir.join(PLUGIN).exists());
    }

    #[test]
    fn what_cannot_be_chained_to_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let installer = installer(folder.path());
        let said = |installer: &Installer| format!("{:#}", ensure(installer).unwrap_err());
        assert!(said(&installer).contains("no CNI configuration yet"));
        fs::write(installer.conf_dir.join("05-one.conf"), r#"{"type":"bridge"}"#).unwrap();
        assert!(said(&installer).contains("single configuration"));
    }
}
