//! Programs that run in pods.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachParams};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a program printed, and whether it ended well.
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) success: bool,
}

impl Output {
    /// What it printed.
    ///
    /// # Errors
    /// Where it did not end well: with what it says.
    pub(crate) fn printed(self) -> anyhow::Result<String> {
        match self.success {
            true => Ok(self.stdout),
            false => bail!("{}", self.stderr.trim()),
        }
    }
}

/// Runs a command in a pod's only container to its end.
///
/// # Errors
/// Where it cannot be run.
pub(crate) async fn run<'a>(
    pods: &Api<Pod>,
    pod: &str,
    command: impl IntoIterator<Item = &'a str> + std::fmt::Debug,
) -> anyhow::Result<Output> {
    let params = AttachParams::default().stdout(true).stderr(true);
    let mut process = pods.exec(pod, command, &params).await?;
    let (stdout, stderr, status) = (process.stdout(), process.stderr(), process.take_status());
    let (stdout, stderr) = tokio::join!(read(stdout), read(stderr));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    Ok(Output {
        stdout: stdout?,
        stderr: stderr?,
        success: status.is_some_and(|status| status.status.as_deref() == Some("Success")),
    })
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> anyhow::Result<String> {
    let mut text = String::new();
    if let Some(mut stream) = stream {
        stream
            .read_to_string(&mut text)
            .await
            .context("read what the program prints")?;
    }
    Ok(text)
}
