//! A host in a folder, for tests.

use std::{fs, path::Path};

use super::{host::HostRoot, install::Installer};

/// A host whose runtime has one plugin, in `/bin`, and no configuration yet in `/net.d`; and an installer for it.
pub(crate) fn installer(folder: &Path, plugin: &str) -> Installer {
    for dir in ["net.d", "bin"] {
        fs::create_dir_all(folder.join(dir)).unwrap();
    }
    fs::write(folder.join("bin").join(plugin), "").unwrap();
    let binary = folder.join("plugin");
    fs::write(&binary, "#!plugin").unwrap();
    Installer {
        host: HostRoot(folder.to_owned()),
        conf_dir: "/net.d".into(),
        bin_dirs: vec!["/bin".into()],
        binary,
        socket: "/run/weft/cni.sock".into(),
        members: "/var/lib/weft/members.json".into(),
    }
}
