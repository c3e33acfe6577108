//! The agent's side of the plugin's socket: questions in, answers out; what they mean is the agent's.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::wire::{self, Reply, Request};

/// Questions that are answered at once; more wait in the socket's backlog.
const CONCURRENT: usize = 64;
/// A plugin that does not finish its question is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// A question, and where its answer goes.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub reply: oneshot::Sender<Reply>,
}

/// Listens until `stop`; only root can connect, as only the container runtime runs the plugin.
///
/// # Errors
/// Where the socket cannot be made.
pub async fn serve(path: &Path, calls: mpsc::Sender<Call>, stop: CancellationToken) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect {}", path.display()))?;
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    loop {
        let slot = Arc::clone(&slots)
            .acquire_owned()
            .await
            .context("the semaphore is never closed")?;
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted.context("accept a question of the CNI plugin")?.0,
        };
        let calls = calls.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &calls).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "question of the CNI plugin not answered"
                );
            }
            drop(slot);
        });
    }
}

async fn answer(mut stream: UnixStream, calls: &mpsc::Sender<Call>) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let mut limited = (&mut stream).take(wire::MAX_MESSAGE);
    tokio::time::timeout(PATIENCE, limited.read_to_end(&mut text))
        .await
        .context("the question does not end")?
        .context("read the question")?;
    let request: Request = serde_json::from_slice(&text).context("the question cannot be read")?;
    let (reply, answer) = oneshot::channel();
    calls
        .send(Call { request, reply })
        .await
        .context("the agent is stopping")?;
    let answer = answer.await.context("the agent gave no answer")?;
    stream
        .write_all(&serde_json::to_vec(&answer)?)
        .await
        .context("write the answer")?;
    Ok(())
}
