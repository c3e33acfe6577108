//! What the plugin may know when the agent is away: the namespaces whose pods may be in a slice that requires its
//! interface. Every other pod starts without asking anybody.

use std::{collections::BTreeSet, fs, io, path::Path};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Members {
    /// Namespaces with pods that may be in a slice with `attach: Required`.
    pub required_namespaces: BTreeSet<String>,
}

impl Members {
    /// Reads the file; no file means that the agent has never run here, so nobody is in a slice.
    ///
    /// # Errors
    /// Where the file is there and cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file in one step, so that a reader sees the old text or the new.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        crate::files::write(path, &text)
    }
}
