//! Clients from the user's kubeconfig.

use std::time::Duration;

use anyhow::Context;
use futures::future::join_all;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::args::Target;

/// How long a context may take to say what its cluster is, and how many are asked.
const ASKED: Duration = Duration::from_secs(2);
const CONTEXTS: usize = 16;

fn kubeconfig(target: &Target) -> anyhow::Result<Kubeconfig> {
    match &target.kubeconfig {
        Some(path) => Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display())),
        None => Kubeconfig::read().context("read the kubeconfig; name one with --kubeconfig"),
    }
}

fn contexts(kubeconfig: &Kubeconfig) -> Vec<String> {
    let contexts = kubeconfig.contexts.iter();
    contexts.map(|context| context.name.clone()).collect()
}

/// Which contexts are hubs and members, for somebody who has asked the wrong one: a sentence, or nothing where none is.
pub(crate) async fn roles(target: &Target) -> Option<String> {
    let contexts = contexts(&kubeconfig(target).ok()?);
    let roles = contexts.iter().take(CONTEXTS).map(async |context| {
        let client = client(&in_context(target, context)).await.ok()?;
        let kinds = client.list_api_group_resources("weft.dev/v1alpha1");
        let kinds = tokio::time::timeout(ASKED, kinds).await.ok()?.ok()?;
        let has = |plural: &str| kinds.resources.iter().any(|kind| kind.name == plural);
        // What people write stays where a hub was; what was given goes with it.
        let role = match (has("sliceallocations"), has("slices")) {
            (true, true) => "hub and member",
            (true, false) => "hub",
            (false, true) => "member",
            (false, false) => return None,
        };
        Some(format!("{context} is {role}"))
    });
    let known: Vec<String> = join_all(roles).await.into_iter().flatten().collect();
    (!known.is_empty()).then(|| format!("Of the contexts, {}; --context chooses", known.join(", ")))
}

/// The client configuration of a context.
pub(crate) async fn config(target: &Target) -> anyhow::Result<Config> {
    let options = KubeConfigOptions {
        context: target.context.clone(),
        ..KubeConfigOptions::default()
    };
    let kubeconfig = kubeconfig(target)?;
    let contexts = contexts(&kubeconfig);
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
