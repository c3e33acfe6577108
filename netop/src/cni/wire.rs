//! What the plugin asks the agent: one JSON object each way over a unix stream socket.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Longest message in bytes; a request is a few hundred.
pub const MAX_MESSAGE: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    Add,
    Del,
    Check,
}

/// A pod sandbox that comes or goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    pub command: Command,
    pub container_id: String,
    /// Path of the network namespace as the host sees it; empty on some deletions.
    #[serde(default)]
    pub netns: PathBuf,
    pub pod_namespace: String,
    pub pod_name: String,
    /// Empty where the runtime does not say it.
    #[serde(default)]
    pub pod_uid: String,
    /// The addresses that the plugins before this one gave the pod. None from a plugin that does not pass them on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// An interface that the pod has from Weft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub mac: String,
    pub mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// The pod may go on, with these interfaces; none where it is in no slice or is attached later.
    Attached(Vec<Interface>),
    /// The pod is in a slice that requires its interface, which could not be made: the sentence says why.
    Refused(String),
}

/// Asks the agent.
///
/// # Errors
/// Where nobody listens, or no answer has come after `timeout`, whatever there is to wait for: the place in the socket's
/// queue, or the answer.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> io::Result<Reply> {
    let (answer, answered) = mpsc::sync_channel(1);
    let (socket, text) = (socket.to_owned(), serde_json::to_vec(request)?);
    // A connection to a full queue waits without a limit of its own (unix(7)); the thread ends with the process.
    std::thread::Builder::new()
        .name("ask".into())
        .spawn(move || answer.send(exchange(&socket, &text)))?;
    match answered.recv_timeout(timeout) {
        Ok(answer) => Ok(serde_json::from_slice(&answer?)?),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {timeout:?}"),
        )),
    }
}

fn exchange(socket: &Path, text: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(text)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(MAX_MESSAGE).read_to_end(&mut answer)?;
    Ok(answer)
}
