//! The agent's side of the plugin's socket: questions in, answers out; what they mean is the agent's.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use slice_runtime::admin::Pulse;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::wire::{self, Reply, Request};

/// Questions that wait for an answer. A plugin whose question finds no place is let go, and decides by itself.
const CONCURRENT: usize = 1024;
/// A plugin that does not finish its question is let go.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Until the next question is waited for where one could not be taken, as without descriptors to spare.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the listener shows that it goes on.
const BEAT: Duration = Duration::from_secs(5);

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
pub async fn serve(
    path: &Path,
    calls: mpsc::Sender<Call>,
    pulse: Pulse,
    stop: CancellationToken,
) -> anyhow::Result<()> {
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
    let mut beat = tokio::time::interval(BEAT);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
            _ = beat.tick() => {
                pulse.beat();
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "question of the CNI plugin not taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(
                limit = CONCURRENT,
                "question of the CNI plugin not taken, too many wait"
            );
            continue;
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
    tokio::time::timeout(TIMEOUT, limited.read_to_end(&mut text))
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
