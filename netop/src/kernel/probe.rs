//! What this kernel and this container can do.

use std::{collections::BTreeMap, path::Path};

use slice_runtime::{steering, tap};

use super::{Linux, nft};

/// The feature without which nothing is carried.
pub const EBPF: &str = "ebpf";

impl Linux {
    /// Features by name, for the node's status.
    pub async fn features(&self) -> BTreeMap<String, bool> {
        BTreeMap::from([
            (EBPF.to_owned(), self.datapath.is_ok()),
            ("tap".to_owned(), tap::available()),
            // Without it a gateway gets one queue of its TAP device, however many threads it has.
            ("tapQueues".to_owned(), steering::Program::load().is_ok()),
            ("ipv6".to_owned(), Path::new("/proc/sys/net/ipv6").exists()),
            (
                "nftables".to_owned(),
                nft::list(self.namespace.as_deref()).await.is_ok(),
            ),
        ])
    }
}
