//! What runs on a machine, in the few words of a service manager.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One program of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub name: String,
    pub kind: Kind,
    pub argv: Vec<String>,
    /// Units that must be up first: a service that has been started, a task that has succeeded.
    pub after: Vec<String>,
    pub log: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Runs for ever; started again when it ends.
    Service,
    /// Runs once with success; tried again when it fails.
    Task,
}

/// Everything pid 1 of a machine needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    pub hostname: String,
    /// Search path and other variables of all units.
    pub env: BTreeMap<String, String>,
    pub units: Vec<Unit>,
}

/// A line of JSON to the machine's control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    List,
    /// Asks a unit to end, kills it when it does not listen, and leaves it stopped.
    Stop(String),
    Start(String),
    /// As `Stop`, then `Start`.
    Restart(String),
    /// SIGKILL; the supervisor starts the unit again as after any crash.
    Kill(String),
}

/// The answer, a line of JSON as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    Units(Vec<Status>),
    Done,
    Error(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub kind: Kind,
    pub state: State,
    /// How often it was started.
    pub starts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Waiting,
    Running,
    Done,
    Stopped,
}
