//! One file per command.

pub(crate) mod attach;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod install;
mod issue;
pub(crate) mod join;
pub(crate) mod keys;
pub(crate) mod leave;
pub(crate) mod node;
pub(crate) mod peer;
mod release;
pub(crate) mod slice;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod verify;

use std::{fmt::Debug, pin::pin, time::Duration};

use anyhow::{Context, bail};
use kube::{Api, Client, Resource, runtime::wait::await_condition};
use serde::de::DeserializeOwned;
use slice_crds::v1alpha1::SliceConfig;

use crate::{args::Target, objects};

/// What takes longer is named while it is waited for.
const SILENT: Duration = Duration::from_secs(1);

/// Waits until an object is as `condition` has it, or fails with `why` after `timeout`; what it was then.
async fn wait_for<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    timeout: Duration,
    why: &str,
    condition: impl Fn(Option<&K>) -> bool,
) -> anyhow::Result<Option<K>>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut waiting = pin!(await_condition(api.clone(), name, condition));
    let silent = timeout.min(SILENT);
    let result = match tokio::time::timeout(silent, &mut waiting).await {
        Ok(result) => result,
        Err(_) => {
            eprintln!("waiting for {what} …");
            match tokio::time::timeout(timeout - silent, waiting).await {
                Ok(result) => result,
                Err(_) => bail!("{what} after {} s: {why}", timeout.as_secs()),
            }
        }
    };
    result.with_context(|| format!("watch {what}"))
}

/// Reads a slice; the error names where it was looked for, or the field that cannot be read.
async fn find_slice(client: &Client, target: &Target, name: &str) -> anyhow::Result<SliceConfig> {
    let found = objects::get::<SliceConfig>(client, Some(&target.namespace), name).await?;
    found
        .with_context(|| no_slice(target, name))?
        .into_object(&format!("slice {name}"))
}

fn no_slice(target: &Target, name: &str) -> String {
    format!(
        "there is no slice {name} in namespace {}; see `slicectl get slices`",
        target.namespace
    )
}

/// The value of a path in a raw object's status or spec, as text.
fn text<'a>(data: &'a serde_json::Value, pointer: &str) -> &'a str {
    data.pointer(pointer)
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default()
}
