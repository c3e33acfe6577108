//! What the hub chart's uninstall cannot remove by itself: the members' namespaces and the slices'.
//!
//! The hub is stopped first, and no slice is deleted: a hub that goes is not a slice that goes. Members keep what they
//! have, and a hub that is installed anew and is given the same SliceConfigs takes them over as they are.

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt, api::ListParams};
use slice_crds::labels;
use slice_runtime::{apply, client};

use super::{Controller, gone};
use crate::{args::HubTeardownArgs, hub::MANAGER};

/// Stops the hub, deletes the namespaces of members and slices, and waits until they are gone.
///
/// # Errors
/// Where the API server refuses, or a namespace does not go in time. Running it again goes on from there.
pub async fn run(args: HubTeardownArgs) -> anyhow::Result<()> {
    let client = client::local().await?;
    let hub = Controller {
        namespace: &args.namespace,
        name: "weft-hub",
        component: "hub",
    };
    hub.stop(&client, args.timeout).await?;
    let api: Api<Namespace> = Api::all(client);
    let owned = ListParams::default().labels(&format!("{}={MANAGER}", labels::MANAGED_BY));
    let namespaces = api
        .list(&owned)
        .await
        .context("list the namespaces of members and slices")?;
    for namespace in &namespaces {
        tracing::info!(
            namespace = namespace.name_any(),
            "deleting a namespace of the hub's"
        );
        apply::delete(&api, &namespace.name_any()).await?;
    }
    for namespace in &namespaces {
        gone(&api, namespace, args.timeout).await?;
    }
    Ok(())
}
