//! The agent's side of the conversation with gateways on this node; see [`slice_runtime::handover`].
//!
//! ```text
//!  <run>/gateway/<slice>/netop.sock ─ one listener per slice, mounted into that slice's gateways only
//!      └ connection ─┬ reading thread ── Hello, Report, end ─► the agent's events
//!                    └ writing thread ◄─ Config, Tap ───────── [`Connection::send`]
//! ```
//! Threads, because a descriptor travels with its message and the exchange blocks; a node has a handful of gateways.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use anyhow::Context;
use slice_runtime::handover::{self, FromGateway, Hello, Report, ToGateway};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::files::Directories;

/// Messages that wait for a gateway to read them. One that falls behind further is let go and connects again.
const BACKLOG: usize = 16;
/// How long a gateway may take to read one message, and to say which one it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections to one slice's socket at a time: a node has few gateways of one slice.
const MAX_CONNECTIONS: usize = 32;
/// Between two messages that are taken of one gateway, which sends one a second and one at each change.
const PACE: Duration = Duration::from_millis(10);

/// What gateways say.
#[derive(Debug)]
pub enum GatewayEvent {
    Hello {
        slice: String,
        hello: Hello,
        connection: Connection,
    },
    Report {
        connection: u64,
        report: Report,
    },
    Gone {
        connection: u64,
    },
}

/// A way to one gateway. Dropping it ends the conversation.
#[derive(Debug)]
pub struct Connection {
    pub id: u64,
    sender: SyncSender<(ToGateway, Vec<OwnedFd>)>,
    stream: Arc<UnixStream>,
}

impl Connection {
    /// Hands a message over to be written; `false` where the gateway does not keep up or is gone.
    pub fn send(&self, message: ToGateway, fds: Vec<OwnedFd>) -> bool {
        self.sender.try_send((message, fds)).is_ok()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The listeners of a node.
pub struct Server {
    directories: Directories,
    /// The user that gateways run as; nobody else is listened to.
    uid: u32,
    events: mpsc::Sender<GatewayEvent>,
    listeners: BTreeMap<String, CancellationToken>,
}

impl Server {
    pub fn new(directories: Directories, uid: u32, events: mpsc::Sender<GatewayEvent>) -> Self {
        Self {
            directories,
            uid,
            events,
            listeners: BTreeMap::new(),
        }
    }

    /// Listens for the gateways of these slices, and of no others.
    ///
    /// # Errors
    /// The first socket that cannot be made, after the others were.
    pub fn listen<'a>(&mut self, slices: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
        let wanted: std::collections::BTreeSet<&str> = slices.collect();
        let directories = &self.directories;
        self.listeners.retain(|slice, stop| {
            let stays = wanted.contains(slice.as_str());
            if !stays {
                stop.cancel();
                let directory = directories.gateway(slice);
                let _ = crate::files::remove(&directory.join("netop.sock"));
                // Where something else is in it, it stays.
                let _ = fs::remove_dir(&directory);
            }
            stays
        });
        let mut result = Ok(());
        for slice in wanted {
            if self.listeners.contains_key(slice) {
                continue;
            }
            match self.open(slice) {
                Ok(stop) => _ = self.listeners.insert(slice.to_owned(), stop),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    fn open(&self, slice: &str) -> anyhow::Result<CancellationToken> {
        let directory = self.directories.gateway(slice);
        let path = directory.join("netop.sock");
        let listener = bind(&directory, &path).with_context(|| format!("listen on {}", path.display()))?;
        let stop = CancellationToken::new();
        let (slice, uid, events, until) = (slice.to_owned(), self.uid, self.events.clone(), stop.clone());
        tokio::spawn(
            until.run_until_cancelled_owned(async move { accept(listener, slice, uid, events).await }),
        );
        Ok(stop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listeners.values().for_each(CancellationToken::cancel);
    }
}

fn bind(directory: &Path, path: &Path) -> io::Result<UnixListener> {
    fs::create_dir_all(directory)?;
    crate::files::remove(path)?;
    let listener = UnixListener::bind(path)?;
    // Whoever reaches the directory may connect; who is listened to, the kernel says of each connection.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, slice: String, uid: u32, events: mpsc::Sender<GatewayEvent>) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let open = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(slice, error = %error, "gateway not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == uid => {}
            Ok(peer) => {
                tracing::warn!(
                    slice,
                    uid = peer.uid(),
                    "somebody who is no gateway is turned away"
                );
                continue;
            }
            Err(error) => {
                tracing::warn!(slice, error = %error, "gateway turned away, its user is not known");
                continue;
            }
        }
        let Ok(slot) = Arc::clone(&open).try_acquire_owned() else {
            tracing::warn!(
                slice,
                limit = MAX_CONNECTIONS,
                "gateway turned away, too many are connected"
            );
            continue;
        };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = converse(stream, id, slice.clone(), events.clone(), slot) {
            tracing::warn!(slice, error = format!("{error:#}"), "gateway turned away");
        }
    }
}

fn converse(
    stream: tokio::net::UnixStream,
    id: u64,
    slice: String,
    events: mpsc::Sender<GatewayEvent>,
    slot: tokio::sync::OwnedSemaphorePermit,
) -> anyhow::Result<()> {
    let stream = stream.into_std().context("take the socket over")?;
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let stream = Arc::new(stream);
    let (sender, receiver) = sync_channel::<(ToGateway, Vec<OwnedFd>)>(BACKLOG);
    let near = Arc::clone(&stream);
    std::thread::Builder::new()
        .name("gateway-write".into())
        .spawn(move || {
            while let Ok((message, fds)) = receiver.recv() {
                let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
                if let Err(error) = handover::send(&near, &message, &raw) {
                    tracing::warn!(connection = id, error = %error, "message to a gateway lost");
                    let _ = near.shutdown(Shutdown::Both);
                    return;
                }
            }
        })?;
    std::thread::Builder::new()
        .name("gateway-read".into())
        .spawn(move || {
            let connection = Connection {
                id,
                sender,
                stream: Arc::clone(&stream),
            };
            read(&stream, &slice, connection, &events);
            let _ = stream.shutdown(Shutdown::Both);
            let _ = events.blocking_send(GatewayEvent::Gone { connection: id });
            drop(slot);
        })?;
    Ok(())
}

/// Reads until the end, or the first message that is out of turn.
fn read(stream: &UnixStream, slice: &str, connection: Connection, events: &mpsc::Sender<GatewayEvent>) {
    let id = connection.id;
    let mut connection = Some(connection);
    loop {
        let event = match (handover::receive::<FromGateway>(stream), connection.take()) {
            (Ok((FromGateway::Hello(hello), sockets)), Some(connection)) => {
                if let Err(error) = sockets.iter().try_for_each(handover::widen) {
                    tracing::warn!(slice, error = %error, "gateway keeps its small socket buffers");
                }
                // From now on it speaks when it has something to say.
                if stream.set_read_timeout(None).is_err() {
                    return;
                }
                GatewayEvent::Hello {
                    slice: slice.to_owned(),
                    hello,
                    connection,
                }
            }
            (Ok((FromGateway::Report(report), _)), None) => GatewayEvent::Report {
                connection: id,
                report,
            },
            (Ok(_), _) => {
                tracing::warn!(slice, connection = id, "gateway speaks out of turn");
                return;
            }
            (Err(handover::Error::Closed), _) => return,
            (Err(error), _) => {
                tracing::warn!(slice, connection = id, error = %error, "gateway not understood");
                return;
            }
        };
        if events.blocking_send(event).is_err() {
            return;
        }
        // One that sends without a pause waits for its turn: each message has the agent look at the node anew.
        std::thread::sleep(PACE);
    }
}
