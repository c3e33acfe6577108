//! What an end-to-end test needs of its clusters, whoever runs them.
//!
//! ```text
//! Environment ── clusters ── Cluster ── apply, await_object, pods, exec
//!      └ lab (only when the clusters are the lab's): stop, restart, capture
//! ```
//!
//! By default the tests use the lab; `WEFT_E2E_KUBECONFIG` and
//! `WEFT_E2E_CONTEXTS=hub,member,…` point them at clusters that exist already.
//! `WEFT_E2E_HUB_VALUES` and `WEFT_E2E_MEMBER_VALUES` are files with values of
//! the charts, for clusters that need any.
//! A test that needs the lab says so by calling [`Environment::lab`], which
//! fails with words when there is none: nothing is skipped in silence.

mod cluster;
mod cut;
mod host;
mod pod;
mod streams;
pub mod weft;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::lab::dir::{self, LabDir};
use crate::lab::ours;
use crate::lab::running::Running;

pub use cluster::{Cluster, connect, forgive_absence, is_ready, poll};
pub use cut::Cut;
pub use host::Host;
pub use pod::{Output, PodSpec, Session};
pub use streams::{Pace, Streams};

/// Which clusters, which images.
pub struct Environment {
    /// The first is the hub (and may be a member as well), the others are members.
    pub clusters: Vec<Cluster>,
    /// Image of test pods: [`crate::probe`], busybox and agnhost.
    pub image: String,
    /// Where the clusters' contexts are.
    pub kubeconfig: PathBuf,
    lab: Option<Running>,
}

impl Environment {
    /// Reads `WEFT_E2E_KUBECONFIG`, `WEFT_E2E_CONTEXTS` and `WEFT_E2E_IMAGE`; the lab fills in what is absent.
    pub async fn open() -> Result<Self> {
        let image = variable("WEFT_E2E_IMAGE").unwrap_or_else(|| ours::reference("probe", ours::TAG));
        if let Some(kubeconfig) = variable("WEFT_E2E_KUBECONFIG").map(PathBuf::from) {
            let contexts = variable("WEFT_E2E_CONTEXTS").context(
                "WEFT_E2E_KUBECONFIG is set, WEFT_E2E_CONTEXTS is not: name the contexts, hub first, as hub,member",
            )?;
            let clusters = connect_all(&kubeconfig, contexts.split(',').map(str::trim)).await?;
            return Ok(Self {
                clusters,
                image,
                kubeconfig,
                lab: None,
            });
        }
        let dir = LabDir::new(variable("WEFT_LAB_DIR").unwrap_or_else(|| dir::DEFAULT.to_owned()));
        let lab =
            Running::open(&dir).context("no clusters to test: `make lab-up`, or set WEFT_E2E_KUBECONFIG")?;
        let names = lab.plan().clusters().iter().map(|cluster| cluster.name.as_str());
        let clusters = connect_all(&dir.kubeconfig(), names).await?;
        Ok(Self {
            clusters,
            image,
            kubeconfig: dir.kubeconfig(),
            lab: Some(lab),
        })
    }

    /// The cluster at a position; the error says how many are needed.
    pub fn cluster(&self, index: usize) -> Result<&Cluster> {
        let have = self.clusters.len();
        self.clusters
            .get(index)
            .with_context(|| format!("this test needs {} clusters, there are {have}", index + 1))
    }

    /// The lab, for tests that break things which a cluster of somebody else does not let go of.
    pub fn lab(&self) -> Result<&Running> {
        match &self.lab {
            Some(lab) => Ok(lab),
            None => bail!(
                "this test stops machines or captures on the wire: it needs the lab, not WEFT_E2E_KUBECONFIG"
            ),
        }
    }
}

async fn connect_all(
    kubeconfig: &std::path::Path,
    names: impl Iterator<Item = &str>,
) -> Result<Vec<Cluster>> {
    let mut clusters = Vec::new();
    for name in names {
        let cluster = connect(kubeconfig, name).await?;
        cluster.await_api(std::time::Duration::from_secs(10)).await?;
        clusters.push(cluster);
    }
    Ok(clusters)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
