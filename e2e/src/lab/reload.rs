//! The end of the inner loop: new images into the nodes, and new pods for
//! whatever ran the old ones.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};

use super::running::Running;
use super::up;
use crate::harness::{self, Cluster};
use crate::progress::Progress;

const DEADLINE: Duration = Duration::from_secs(60);

/// Loads every image tar of a folder whose content a node lacks, then replaces the pods that use them.
pub fn reload(lab: &Running, folder: &Path) -> Result<()> {
    let progress = Progress::start();
    let mut tars = Vec::new();
    for entry in std::fs::read_dir(folder)
        .with_context(|| format!("read {}: run `weft-lab images`", folder.display()))?
    {
        let path = entry
            .with_context(|| format!("read {}", folder.display()))?
            .path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            tars.push(path);
        }
    }
    let changed = lab.load(&tars.iter().map(|tar| tar.as_path()).collect::<Vec<_>>(), None)?;
    if changed.is_empty() {
        progress.done("every node has these images already");
        return Ok(());
    }
    progress.done(format!("loaded {}", changed.join(", ")));
    let changed: BTreeSet<String> = changed.into_iter().collect();
    let replaced = up::runtime()?.block_on(async {
        try_join_all(lab.plan().clusters().iter().map(async |cluster| {
            let api = harness::connect(&lab.dir.kubeconfig(), &cluster.name).await?;
            replace_pods(&api, &changed).await
        }))
        .await
    })?;
    progress.done(format!("{} pods replaced", replaced.iter().sum::<usize>()));
    Ok(())
}

/// Deletes the pods that run one of the images and waits until their successors are Ready.
async fn replace_pods(cluster: &Cluster, images: &BTreeSet<String>) -> Result<usize> {
    let all: Api<Pod> = Api::all(cluster.client.clone());
    let old: Vec<Pod> = running(&all, images).await?;
    for pod in &old {
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &pod.namespace().unwrap_or_default());
        match api.delete(&pod.name_any(), &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other.with_context(|| format!("delete pod {}", pod.name_any()))?),
        }
    }
    let uids: BTreeSet<String> = old.iter().filter_map(Pod::uid).collect();
    let expected = old
        .iter()
        .filter(|pod| !pod.owner_references().is_empty())
        .count();
    let what = format!("{expected} new pods Ready");
    harness::poll(DEADLINE, &what, async || {
        let pods = running(&all, images).await?;
        let gone = pods
            .iter()
            .all(|pod| pod.uid().is_none_or(|uid| !uids.contains(&uid)));
        let ready = pods.iter().filter(|pod| harness::is_ready(pod)).count();
        Ok((gone && ready >= expected).then_some(()))
    })
    .await
    .with_context(|| format!("cluster {}", cluster.name))?;
    Ok(old.len())
}

async fn running(all: &Api<Pod>, images: &BTreeSet<String>) -> Result<Vec<Pod>> {
    let pods = all.list(&ListParams::default()).await.context("list pods")?;
    let uses = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        let containers = spec.into_iter().flat_map(|spec| {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        });
        containers
            .filter_map(|container| container.image.as_ref())
            .any(|image| images.contains(image))
    };
    // Whatever is on its way out already is nobody's successor and needs none.
    let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    Ok(pods
        .items
        .into_iter()
        .filter(|pod| stays(pod) && uses(pod))
        .collect())
}
