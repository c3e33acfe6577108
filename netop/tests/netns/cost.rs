//! What the filters cost, which differs from machine to machine: `make bench-filter` prints it.

use std::time::{Duration, Instant};

use slice_netop::model::filter::Family;

use crate::support::{Cluster, Pod, Wire, slice, udp4};

const FRAMES: u32 = 20_000;

/// Median time of a frame from pod to pod of a node, in nanoseconds: sending it, and all that the kernel does before
/// the call returns, up to the receiver's IP stack, which drops it.
fn time(from: &Pod, to: &Pod) -> u128 {
    let nobody = "10.80.77.77".parse().unwrap();
    let frame = udp4(to.mac(), (from.mac(), from.v4()), nobody, &[0; 64]);
    let wire = Wire::open(&from.space, &from.interface());
    let mut times: Vec<Duration> = (0..9)
        .map(|_| {
            let begun = Instant::now();
            (0..FRAMES).for_each(|_| wire.send(&frame));
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[4].as_nanos() / u128::from(FRAMES)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn of_a_frame_between_two_pods_of_a_node() {
    println!("slices on the node | ns per frame past the bridge | by the bridge | the same without filters");
    for slices in [1, 3, 10, 30] {
        let mut cluster = Cluster::new(1);
        for nth in 0..slices {
            cluster.add_slice(&format!("slice-{nth}"), slice(77 + nth));
        }
        let [from, to] = [0, 1].map(|nth| cluster.add_pod("slice-0", 0, nth));
        cluster.sync().await;
        let past = time(&from, &to);
        let [_, passed] = cluster.nodes[0].passage(Family::Ipv4).await;
        assert!(passed < u64::from(FRAMES), "they took the bridge");
        let mut cluster = cluster.without_fast_path();
        cluster.sync().await;
        let filtered = time(&from, &to);
        let [_, passed] = cluster.nodes[0].passage(Family::Ipv4).await;
        assert!(
            passed >= 9 * u64::from(FRAMES),
            "{passed} frames passed the filters"
        );
        cluster.nodes[0].space.command("nft", "flush ruleset").unwrap();
        let bare = time(&from, &to);
        println!("{slices:18} | {past:28} | {filtered:13} | {bare:24}");
    }
}
