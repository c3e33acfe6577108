//! The wire between the clusters, with and without what network cards do for their hosts.
//!
//! Left alone a veth hands super-frames and groups of datagrams to its other end in one piece, as if it were a card
//! that segments and a card that joins with no wire between them. On a plain wire every packet of 1500 bytes crosses
//! by itself: the sender's kernel segments, and the receiver's GRO joins.

use std::process::Command;

use crate::lab::{wire::offloads, within};

/// An end of a wire.
pub(crate) struct Device {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// A host joins what it receives; a switch does not. A veth joins only what comes from an end that cannot send
    /// joined packets (drivers/net/veth.c: veth_skb_is_eligible_for_gro).
    pub(crate) joins: bool,
    /// A pod's own interface. Its TCP would send single packets from the start if it were told that no more than one
    /// fits; with segmentation off the kernel cuts them at the device, as it does for what is only passing through.
    pub(crate) pods: bool,
}

/// Makes the wire plain for as long as the guard lives.
pub(crate) fn plain(devices: &[Device]) -> Plain<'_> {
    set_all(devices, true);
    Plain(devices)
}

pub(crate) struct Plain<'a>(&'a [Device]);

impl Drop for Plain<'_> {
    fn drop(&mut self) {
        set_all(self.0, false);
    }
}

fn set_all(devices: &[Device], plain: bool) {
    for device in devices {
        if !device.pods {
            let segments = if plain { "1" } else { "65535" };
            let done = Command::new("ip")
                .args(["-n", &device.namespace, "link", "set", "dev", &device.name])
                .args(["gso_max_segs", segments])
                .status();
            assert!(done.unwrap().success(), "set gso_max_segs of {}", device.name);
        }
        within(&device.namespace, || {
            offloads(&device.name, !plain, plain && device.joins);
        });
    }
}
