//! One file per command.

pub(crate) mod attach;
pub(crate) mod get;
pub(crate) mod install;
pub(crate) mod join;
pub(crate) mod keys;
pub(crate) mod peer;
pub(crate) mod slice;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod verify;

use std::fmt::Debug;

use anyhow::Context;
use kube::{Api, Resource, runtime::wait::await_condition};
use serde::de::DeserializeOwned;
use slice_crds::v1alpha1::SliceConfig;

use crate::args::Target;

/// Waits until an object is as `condition` says, or fails with `why` after `timeout`.
async fn wait_for<K>(
    api: &Api<K>,
    name: &str,
    timeout: std::time::Duration,
    why: &str,
    condition: impl Fn(Option<&K>) -> bool,
) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    tokio::time::timeout(timeout, await_condition(api.clone(), name, condition))
        .await
        .with_context(|| format!("{} {name} after {} s: {why}", K::kind(&()), timeout.as_secs()))?
        .with_context(|| format!("watch {} {name}", K::kind(&())))?;
    Ok(())
}

/// Reads a slice; the error says where it was looked for.
async fn find_slice(api: &Api<SliceConfig>, target: &Target, name: &str) -> anyhow::Result<SliceConfig> {
    let found = api
        .get_opt(name)
        .await
        .with_context(|| format!("read slice {name}"))?;
    found.with_context(|| {
        format!(
            "there is no slice {name} in namespace {}; see `slicectl get slices`",
            target.namespace
        )
    })
}
