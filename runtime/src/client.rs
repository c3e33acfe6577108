//! Kubernetes clients.

use anyhow::Context;
use kube::{Client, Config};

/// Installs the process's TLS provider. Call it once, before the first client.
pub fn install_crypto_provider() {
    // An error means that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client for the cluster that the process runs in, or for the kubeconfig's current context outside one.
///
/// # Errors
/// Where neither a service account nor a kubeconfig can be read.
pub async fn local() -> anyhow::Result<Client> {
    install_crypto_provider();
    let config = Config::infer()
        .await
        .context("find a service account or a kubeconfig")?;
    Client::try_from(config).context("set up the Kubernetes client")
}
