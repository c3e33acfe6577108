//! Clients from the user's kubeconfig.

use anyhow::Context;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::args::Target;

/// The client configuration of a context.
pub(crate) async fn config(target: &Target) -> anyhow::Result<Config> {
    let options = KubeConfigOptions {
        context: target.context.clone(),
        ..KubeConfigOptions::default()
    };
    let kubeconfig = match &target.kubeconfig {
        Some(path) => Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?,
        None => Kubeconfig::read().context("read the kubeconfig; name one with --kubeconfig")?,
    };
    let contexts: Vec<_> = kubeconfig
        .contexts
        .iter()
        .map(|context| context.name.clone())
        .collect();
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .with_context(|| {
            let context = target.context.as_deref().unwrap_or("(current)");
            format!(
                "use context {context}; the kubeconfig has {}",
                contexts.join(", ")
            )
        })
}

pub(crate) async fn client(target: &Target) -> anyhow::Result<Client> {
    Client::try_from(config(target).await?).context("set up the Kubernetes client")
}

/// The same target in another context.
pub(crate) fn in_context(target: &Target, context: &str) -> Target {
    Target {
        context: Some(context.to_owned()),
        ..target.clone()
    }
}
