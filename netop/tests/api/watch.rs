//! What the agent works from.

use std::time::Duration;

use serde_json::{Value, json};
use slice_netop::watch;
use slice_runtime::store::Watches;
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, Server};

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "generation": 4},
    })
}

fn slice(name: &str, mtu: Value) -> Value {
    let spec = json!({
        "vni": 7, "subnets": ["10.80.0.0/16"], "mtu": mtu, "blockSize": 64, "cluster": "paris", "clusterNumber": 1,
        "ranges": [], "gateway": {"replicas": 1},
    });
    object("Slice", name, spec)
}

#[tokio::test]
async fn one_object_that_cannot_be_decoded_leaves_the_others_to_work_from() {
    let (server, client) = Server::start().await;
    server.answers("", Answer::List(vec![]));
    server.answers(
        "/slices?",
        Answer::List(vec![slice("bank", json!("large")), slice("shop", json!(1370))]),
    );
    let block = |name: &str, address: &str| {
        let (slice, node) = name.split_once('.').unwrap();
        let blocks = json!([{"start": 64, "size": 64}]);
        let spec = json!({"slice": slice, "node": node, "nodeAddress": address, "blocks": blocks});
        object("SliceBlock", name, spec)
    };
    server.answers(
        "/sliceblocks?",
        Answer::List(vec![
            block("shop.n1", "10.0.0.1"),
            block("shop.n2", "n2.example.com"),
        ]),
    );
    server.answers("watch=true", Answer::Never);
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let watches = Watches::new(stop.clone());
    let mut worlds = watch::start(&client, "n1", &watches, &stop);
    let listed = worlds.wait_for(Option::is_some);
    let world = tokio::time::timeout(Duration::from_secs(10), listed)
        .await
        .expect("in time");
    let world = world.unwrap().clone().unwrap();
    assert_eq!(world.slices.keys().collect::<Vec<_>>(), ["shop"]);
    assert_eq!(
        world
            .blocks
            .iter()
            .map(|block| block.spec.node.as_str())
            .collect::<Vec<_>>(),
        ["n1"]
    );
    assert!(world.broken["bank"].contains("u16"), "{:?}", world.broken);
    let kinds: Vec<String> = watches
        .undecodable()
        .objects()
        .into_iter()
        .map(|object| object.kind)
        .collect();
    assert_eq!(kinds, ["Slice", "SliceBlock"]);
}
