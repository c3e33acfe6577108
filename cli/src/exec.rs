//! Programs that run in pods.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachParams};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Runs a command in a pod's only container: what it prints.
///
/// # Errors
/// Where it cannot be run, or fails: with what it says.
pub(crate) async fn run<'a>(
    pods: &Api<Pod>,
    pod: &str,
    command: impl IntoIterator<Item = &'a str> + std::fmt::Debug,
) -> anyhow::Result<String> {
    let params = AttachParams::default().stdout(true).stderr(true);
    let mut process = pods.exec(pod, command, &params).await?;
    let (stdout, stderr, status) = (process.stdout(), process.stderr(), process.take_status());
    let (out, err) = tokio::join!(read(stdout), read(stderr));
    let (out, err) = (out?, err?);
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    if status.is_none_or(|status| status.status.as_deref() != Some("Success")) {
        bail!("{}", err.trim());
    }
    Ok(out)
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
