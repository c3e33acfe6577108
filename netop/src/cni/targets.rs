//! Which files the plugin belongs in: the list that the container runtime uses, and what Multus makes of it.
//!
//! Container runtimes read the first file in lexical order (libcni), so that is the one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{
    install::{Installer, PLUGIN},
    list::{About, about, with_plugin, wrapped},
};

/// How files are named that are made of a single configuration: `10-net.conf` becomes `10-net-weft.conflist`, which comes
/// before it. Multus passes over all that begin with its own name when it looks for the pod's network.
const WRAPPER: &str = "-weft.conflist";

/// What a list of that name is made of, by the endings that it may have.
pub(super) fn origin(path: &Path) -> Option<[PathBuf; 2]> {
    let stem = path.file_name()?.to_str()?.strip_suffix(WRAPPER)?;
    Some(["conf", "json"].map(|ending| path.with_file_name(format!("{stem}.{ending}"))))
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "conflist")
}

/// A file that the plugin is in.
pub(super) struct Target {
    pub(super) path: PathBuf,
    /// As the host calls it.
    pub(super) name: PathBuf,
    pub(super) wanted: String,
}

impl Installer {
    /// The files that the plugin is in, as they should be: what the runtime uses, and first what that is made from.
    pub(super) fn targets(&self) -> anyhow::Result<Vec<Target>> {
        let element = json!({"type": PLUGIN, "socket": self.socket, "members": self.members});
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("read {}", self.host.name(path).display()))
        };
        let chained = |path: &Path| -> anyhow::Result<Target> {
            let (text, name) = (read(path)?, self.host.name(path));
            let changed = with_plugin(&text, &element).with_context(|| format!("in {}", name.display()))?;
            Ok(Target {
                path: path.to_owned(),
                name,
                wanted: changed.unwrap_or(text),
            })
        };
        let (wrappers, files): (Vec<_>, Vec<_>) =
            (self.configurations()?.into_iter()).partition(|path| origin(path).is_some());
        let Some(first) = files.first() else {
            bail!(
                "{} has no CNI configuration yet: install a network plugin first, or say where the container runtime has \
                 its configurations by the chart's netop.platform or netop.cniConfDir",
                self.conf_dir.display()
            );
        };
        if is_list(first) {
            return Ok(vec![chained(first)?]);
        }
        let text = read(first)?;
        let name = self.host.name(first);
        let conf: About = serde_json::from_str(&text).with_context(|| format!("in {}", name.display()))?;
        if !conf.plugin.starts_with("multus") {
            return Ok(vec![self.wrapper(first, &text, &element)?]);
        }
        let lists = || files.iter().chain(&wrappers).filter(|path| is_list(path));
        let named = |name: &str| lists().find(|path| read(path).is_ok_and(|text| about(&text).name == name));
        if conf.cluster_network.is_empty() {
            // Multus writes this file by another one, whenever it starts or that changes.
            let delegate = chained(first).with_context(|| {
                format!(
                    "the first delegate in {} is no list of plugins, to which another could be chained: make it one",
                    name.display()
                )
            })?;
            let source = named(&about(&text).name).map(|path| chained(path)).transpose()?;
            return Ok(source.into_iter().chain([delegate]).collect());
        }
        // What Multus' pod calls /host is the host's root.
        let network = Path::new(&conf.cluster_network);
        let network = network
            .strip_prefix("/host")
            .map_or_else(|_| network.to_owned(), |rest| Path::new("/").join(rest));
        let directory = network.parent().filter(|_| network.is_absolute());
        match directory.map(|directory| self.host.find(directory).directory) {
            // A network's name, or one in the API server.
            None => match named(&conf.cluster_network) {
                Some(path) => Ok(vec![chained(path)?]),
                None => bail!(
                    "{} has the network {:?}, and no list here has that name: have Multus take a list of this directory",
                    name.display(),
                    conf.cluster_network
                ),
            },
            Some(Some(directory)) if first.parent() == Some(&directory) => {
                let path = directory.join(network.file_name().unwrap_or_default());
                match is_list(&path) {
                    true => Ok(vec![chained(&path)?]),
                    false => bail!(
                        "{} is a single configuration, to which no plugin can be chained: make a .conflist of it, and \
                         have Multus take that",
                        network.display()
                    ),
                }
            }
            // Multus looks for its networks elsewhere, and does not find this one.
            Some(_) => Ok(vec![self.wrapper(first, &text, &element)?]),
        }
    }

    /// A list of a single configuration, in a file that runtimes read before that.
    fn wrapper(&self, conf: &Path, text: &str, element: &Value) -> anyhow::Result<Target> {
        let mut file = conf.file_stem().unwrap_or_default().to_owned();
        file.push(WRAPPER);
        let path = conf.with_file_name(file);
        let wanted =
            wrapped(text, element).with_context(|| format!("in {}", self.host.name(conf).display()))?;
        Ok(Target {
            name: self.host.name(&path),
            path,
            wanted,
        })
    }

    /// Files that libcni looks at (`ConfFiles`), in its order.
    pub(super) fn configurations(&self) -> anyhow::Result<Vec<PathBuf>> {
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
        // A list that was made of a configuration goes with that.
        let (kept, orphans): (Vec<_>, Vec<_>) = (files.into_iter())
            .partition(|path| origin(path).is_none_or(|conf| conf.iter().any(|conf| conf.exists())));
        for orphan in orphans {
            let name = self.host.name(&orphan);
            crate::files::remove(&orphan).with_context(|| format!("remove {}", name.display()))?;
        }
        Ok(kept)
    }
}
