//! Statuses and annotations.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use prometheus::Registry;
use serde_json::json;
use slice_crds::{
    conditions::{READY, Verdict, reason},
    v1alpha1::{MeshStatus, SliceNodePhase},
};
use slice_netop::{
    ledger::Usage,
    metrics::Metrics,
    report,
    status::{BlockReport, GatewayReport, NodeReport, PodReport, Reports, Standing},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{Answer, Server};

const NODE: &str = "/slicenodes/n1/status";
const BLOCK: &str = "/sliceblocks/shop.n1/status";
const GATEWAY: &str = "/slicegateways/weft-gateway-shop-0/status";
/// Longer than the shortest time between two writes.
const MOMENT: Duration = Duration::from_millis(1500);

struct Writing {
    server: Server,
    reports: watch::Sender<Reports>,
    metrics: Metrics,
    _stop: DropGuard,
}

async fn writing(reports: Reports) -> Writing {
    let (server, client) = Server::start().await;
    let metrics = Metrics::register(&Registry::new());
    let (sender, receiver) = watch::channel(reports);
    let (_, announcements) = mpsc::channel(1);
    let stop = CancellationToken::new();
    tokio::spawn(report::run(
        client,
        "n1".into(),
        metrics.clone(),
        receiver,
        announcements,
        stop.clone(),
    ));
    Writing {
        server,
        reports: sender,
        metrics,
        _stop: stop.drop_guard(),
    }
}

impl Writing {
    /// The objects have what is reported, as the watch shows once it was written.
    fn record(&self) {
        self.reports.send_modify(|reports| {
            let now = Timestamp::now();
            reports.recorded.node = reports.node.as_ref().map(|report| report.status(None, now));
            let blocks = reports.blocks.iter();
            reports.recorded.blocks = blocks
                .map(|(name, report)| (name.clone(), report.status(None, now)))
                .collect();
            let gateways = reports.gateways.iter();
            reports.recorded.gateways = gateways
                .map(|(name, report)| (name.clone(), report.status(now)))
                .collect();
        });
    }
}

fn all() -> Reports {
    let ready = Verdict::yes(READY, reason::READY, "well");
    let node = NodeReport {
        phase: SliceNodePhase::Ready,
        underlay_mtu: Some(1500),
        pod_networks: vec!["10.244.1.0/24".parse().unwrap()],
        features: BTreeMap::new(),
        ready: ready.clone(),
        guarantees: None,
        mesh: MeshStatus::default(),
        names: None,
    };
    let block = BlockReport {
        attachments: 2,
        usage: Usage::default(),
        idle: vec![],
        released: vec![],
        strays: vec![],
        present: true,
        answers_probes: true,
        observed_generation: Some(3),
        ready,
    };
    let gateway = GatewayReport {
        node: "n1".into(),
        connected: true,
        ..GatewayReport::default()
    };
    Reports {
        decided: true,
        node: Some(node),
        blocks: [("shop.n1".to_owned(), block)].into(),
        gateways: [("weft-gateway-shop-0".to_owned(), gateway)].into(),
        ..Reports::default()
    }
}

fn pod(name: &str) -> (String, PodReport) {
    let report = PodReport {
        namespace: "cart".into(),
        name: name.into(),
        resource_version: Some("7".into()),
        patch: json!({"metadata": {"annotations": {"weft.dev/attachments": "[]"}}}),
    };
    (format!("uid-{name}"), report)
}

#[tokio::test]
async fn a_status_is_written_where_its_object_does_not_have_it_and_left_alone_from_then_on() {
    let writing = writing(all()).await;
    for path in [NODE, BLOCK, GATEWAY] {
        writing.server.reaches(path, 1).await;
    }
    let block = &writing.server.requests(BLOCK)[0].body["status"];
    assert_eq!(
        (
            &block["present"],
            &block["observedGeneration"],
            &block["attachments"]
        ),
        (&json!(true), &json!(3), &json!(2))
    );
    let gateway = &writing.server.requests(GATEWAY)[0];
    assert!(
        gateway.path.contains("/namespaces/weft-system/"),
        "{}",
        gateway.path
    );
    writing.record();
    tokio::time::sleep(MOMENT).await;
    let before = writing.server.count("");
    tokio::time::sleep(3 * MOMENT).await;
    assert_eq!(
        writing.server.count(""),
        before,
        "there is no heartbeat in statuses"
    );

    // A change is written, and so is what somebody else took away.
    writing.reports.send_modify(|reports| {
        reports.blocks.get_mut("shop.n1").unwrap().attachments = 3;
        reports.recorded.node = None;
    });
    writing.server.reaches(BLOCK, 2).await;
    writing.server.reaches(NODE, 2).await;
}

#[tokio::test]
async fn an_agent_that_starts_again_writes_nothing_that_is_there() {
    let mut reports = all();
    let now = Timestamp::now();
    reports.recorded.node = reports.node.as_ref().map(|report| report.status(None, now));
    let block = reports.blocks["shop.n1"].status(None, now);
    reports.recorded.blocks.insert("shop.n1".into(), block);
    let writing = writing(reports).await;
    writing.server.reaches(GATEWAY, 1).await;
    tokio::time::sleep(MOMENT).await;
    assert_eq!((writing.server.count(NODE), writing.server.count(BLOCK)), (0, 0));
}

#[tokio::test]
async fn objects_that_are_never_answered_delay_few_others() {
    let mut reports = all();
    reports.pods = (0..8).map(|n| pod(&format!("hangs-{n}"))).collect();
    reports.pods.extend([pod("web")]);
    let (server, client) = Server::start().await;
    server.answers("/pods/hangs-", Answer::Never);
    let (_sender, receiver) = watch::channel(reports);
    let (_, announcements) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let metrics = Metrics::register(&Registry::new());
    tokio::spawn(report::run(
        client,
        "n1".into(),
        metrics,
        receiver,
        announcements,
        stop,
    ));
    for path in [GATEWAY, NODE, BLOCK] {
        server.reaches(path, 1).await;
    }
    assert_eq!(
        server.count("/pods/web/status"),
        0,
        "eight are waited for at a time"
    );
    server.reaches("/pods/web/status", 1).await;
    assert!(
        server.count("/pods/hangs-") <= 16,
        "{}",
        server.count("/pods/hangs-")
    );
}

#[tokio::test]
async fn a_gateway_that_another_node_may_write_by_now_is_no_error() {
    let writing = writing(all()).await;
    writing.server.reaches(BLOCK, 1).await;
    writing.record();
    writing.server.answers(GATEWAY, Answer::Refuse(403));
    writing.server.answers(BLOCK, Answer::Refuse(403));
    writing.reports.send_modify(|reports| {
        reports.gateways.get_mut("weft-gateway-shop-0").unwrap().standing = Standing::Here { denied: true };
        reports.recorded.gateways.clear();
    });
    writing.server.reaches(GATEWAY, 3).await;
    assert_eq!(writing.metrics.status_errors.get(), 0);
    tokio::time::sleep(3 * MOMENT).await;
    assert!(
        writing.server.count(GATEWAY) <= 5,
        "{}",
        writing.server.count(GATEWAY)
    );
    writing
        .reports
        .send_modify(|reports| reports.blocks.get_mut("shop.n1").unwrap().attachments = 9);
    writing.server.reaches(BLOCK, 2).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(writing.metrics.status_errors.get(), 1, "of what is its own it is");
}

/// Whoever waits for it is not kept, and whoever fights about it is.
#[tokio::test]
async fn a_pods_annotations_may_change_a_few_times_at_once() {
    const PATH: &str = "/pods/web/status";
    let mut reports = all();
    reports.pods = [pod("web")].into();
    let writing = writing(reports).await;
    writing.server.reaches(PATH, 1).await;
    let change = |version: usize| {
        writing.reports.send_modify(|reports| {
            reports.pods.get_mut("uid-web").unwrap().resource_version = Some(version.to_string());
        });
    };
    let begun = Instant::now();
    // As after a write of somebody else's, and as after the own.
    writing.server.answers(PATH, Answer::Refuse(409));
    for version in 8..11 {
        change(version);
        writing.server.reaches(PATH, version - 6).await;
    }
    // One after the other they would take three seconds.
    assert!(
        begun.elapsed() < 2 * MOMENT - Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    for version in 11..41 {
        change(version);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let passed = begun.elapsed().as_secs() as usize + 1;
    let count = writing.server.count(PATH);
    assert!(count <= 4 + passed, "{count} writes in {passed} s");
}

#[tokio::test]
async fn a_pods_annotations_are_written_to_the_pod_that_was_read() {
    let mut reports = all();
    reports.pods = [pod("web")].into();
    let writing = writing(reports).await;
    writing.server.reaches("/pods/web/status", 1).await;
    let metadata = &writing.server.requests("/pods/web/status")[0].body["metadata"];
    assert_eq!(
        (&metadata["uid"], &metadata["resourceVersion"]),
        (&json!("uid-web"), &json!("7"))
    );
    assert!(metadata.get("labels").is_none());
}
