//! Pods get their interface and reach each other.

use std::time::Duration;

use crate::support::{Cluster, ping, slice};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_on_one_node_and_across_nodes() {
    let mut cluster = Cluster::new(2);
    cluster.add_slice("shop", slice(77));
    let a = cluster.add_pod("shop", 0, 0);
    let b = cluster.add_pod("shop", 0, 1);
    let c = cluster.add_pod("shop", 1, 0);
    cluster.sync().await;
    for (from, to) in [(&a, &b), (&a, &c), (&c, &b)] {
        // Made by the kernel, which looks for duplicates of it for a second or two.
        let link_local = format!("fe80::5c:ff:fe00:{:x}", to.index).parse().unwrap();
        let answers = |_| ping(&from.space, link_local, 56, SECOND).is_some();
        assert!((0..5).any(answers), "{link_local} from {}", from.v4());
        for ip in [to.v4(), to.v6()] {
            assert!(
                ping(&from.space, ip, 56, SECOND).is_some(),
                "{ip} from {}",
                from.v4()
            );
            let whole = 1370 - 8 - if ip.is_ipv4() { 20 } else { 40 };
            assert!(
                ping(&from.space, ip, whole, SECOND).is_some(),
                "{ip} with {whole} bytes"
            );
        }
    }
}
