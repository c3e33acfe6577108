//! The node's TAP devices; see [`slice_runtime::tap`].

use std::path::Path;

use anyhow::Context;
use slice_runtime::tap::{self, CONTROL, Opened};

use super::netns;
use crate::model::{Name, Queues};

/// Packets that wait for the gateway, at each queue. The default of 500 drops bursts.
pub(super) const QUEUE_LENGTH: u32 = 1000;

/// Makes a device that outlives the processes that hold it.
pub(super) fn create(namespace: Option<&Path>, name: &Name, queues: Queues) -> anyhow::Result<()> {
    netns::maybe_within(namespace, || tap::create(name.as_str(), queues == Queues::Several)).with_context(|| {
        format!(
            "make TAP device {name}; {CONTROL} must be in the container and its cgroup must allow character device \
             10:200"
        )
    })
}

/// Opens so many queues of a device, or `None` where a process holds it.
pub(super) fn open(namespace: Option<&Path>, name: &Name, queues: u8) -> anyhow::Result<Option<Opened>> {
    netns::maybe_within(namespace, || tap::open(name.as_str(), queues))
        .with_context(|| format!("open TAP device {name} with {queues} queues"))
}
