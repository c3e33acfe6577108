//! Small files of the agent's own, written whole.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The name of the socket below the run directory where the agent shows what it sees.
pub const SHOW_SOCKET: &str = "agent.sock";

/// Where the agent keeps what it must find again, and what other processes on the node find it by.
#[derive(Clone, Debug)]
pub struct Directories {
    /// Sockets, and what is true until the node starts again.
    pub run: PathBuf,
    /// What outlives that: pods come back with their addresses, and those that must wait do.
    pub state: PathBuf,
}

impl Directories {
    pub fn cni_socket(&self) -> PathBuf {
        self.run.join("cni.sock")
    }

    /// Where `slice-netop --show` asks.
    pub fn show_socket(&self) -> PathBuf {
        self.run.join(SHOW_SOCKET)
    }

    /// Namespaces with pods that wait for their interface, for the CNI plugin while the agent is away.
    pub fn members(&self) -> PathBuf {
        self.state.join("members.json")
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.state.join("attachments.json")
    }

    /// Where releases before 0.3 had it, which did not outlive the node's start.
    pub fn former_checkpoint(&self) -> PathBuf {
        self.run.join("attachments.json")
    }

    pub fn records(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// The directory that is mounted into a slice's gateways; see [`slice_crds::names::gateway_directory`].
    pub fn gateway(&self, slice: &str) -> PathBuf {
        self.run.join("gateway").join(slice)
    }
}

/// Writes a file in one go: readers see the old or the new content, also after a crash.
///
/// # Errors
/// Where the directory cannot be made or the file not be written.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    write_mode(path, content, 0o644)
}

/// As [`write`], with the permissions given.
///
/// # Errors
/// As [`write`].
pub fn write_mode(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(directory)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A name that container runtimes do not take for a configuration: they read those that end in .conf and the like.
    let new = directory.join(format!(".{name}.weft-new"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    fs::rename(&new, path)
}

/// Removes a file; that it is not there is as good.
///
/// # Errors
/// Where it cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
