//! What this kernel and this container can do.

use std::{collections::BTreeMap, path::Path};

use slice_runtime::{steering, tap};

use super::{nexthop, nft};

/// The feature of [`fastpath`](crate::model::fastpath).
pub const FAST_PATH: &str = "fastPath";

/// Features by name, for the node's status. Probed once, at start.
pub async fn features(namespace: Option<&Path>) -> BTreeMap<String, bool> {
    let fast_path = nft::check_fast_path(namespace).await;
    if let Err(error) = &fast_path {
        tracing::warn!(
            error = format!("{error:#}"),
            "no fast path: every frame of a slice takes its bridge, which costs more with every slice of the node; the \
             kernel lacks nft_fwd_netdev (CONFIG_NFT_FWD_NETDEV)"
        );
    }
    let sysctl = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
    BTreeMap::from([
        ("tap".to_owned(), tap::available()),
        // Without it a gateway gets one queue of its TAP device, however many threads it has.
        ("tapQueues".to_owned(), steering::Program::load().is_ok()),
        ("ipv6".to_owned(), Path::new("/proc/sys/net/ipv6").exists()),
        // Without them frames may arrive twice while a node changes the gateway that it uses.
        ("nexthops".to_owned(), nexthop::available(namespace).await),
        ("nftables".to_owned(), nft::list(namespace).await.is_ok()),
        // Without it every frame takes the bridge and its filters.
        (FAST_PATH.to_owned(), fast_path.is_ok()),
        // Bridged packets pass the IP filters of the node too; Weft's own keep Service rules off them.
        (
            "bridgeNetfilter".to_owned(),
            sysctl("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        ),
    ])
}
