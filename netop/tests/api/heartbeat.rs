//! The node's Lease.

use std::time::Duration;

use slice_netop::heartbeat::{self, Pace};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, Server};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/node.n1";
const PACE: Pace = Pace {
    renew: Duration::from_millis(50),
    retry: Duration::from_millis(20),
    timeout: Duration::from_millis(100),
    stall: Duration::from_secs(60),
};

/// Ends with the test.
struct Beating {
    server: Server,
    turns: watch::Sender<Instant>,
    _stop: tokio_util::sync::DropGuard,
}

async fn beating(pace: Pace) -> Beating {
    let (server, client) = Server::start().await;
    let (turns, turned) = watch::channel(Instant::now());
    let stop = CancellationToken::new();
    tokio::spawn(heartbeat::run(client, "n1".into(), turned, pace, stop.clone()));
    Beating {
        server,
        turns,
        _stop: stop.drop_guard(),
    }
}

#[tokio::test]
async fn the_lease_is_made_and_renewed_whole() {
    let beating = beating(PACE).await;
    beating.server.reaches(LEASE, 3).await;
    let requests = beating.server.requests("");
    assert!(
        requests
            .iter()
            .all(|request| request.path.starts_with(LEASE) && request.method == "PATCH")
    );
    let spec = |n: usize| requests[n].body["spec"].clone();
    assert_eq!(
        (&spec(0)["holderIdentity"], &spec(0)["leaseDurationSeconds"]),
        (&"n1".into(), &120.into())
    );
    assert_ne!(spec(0)["renewTime"], spec(1)["renewTime"]);
}

#[tokio::test]
async fn a_request_that_is_not_answered_or_refused_is_made_again() {
    let beating = beating(PACE).await;
    beating.server.answers("", Answer::Never);
    beating.server.reaches(LEASE, 4).await;
    beating.server.answers("", Answer::Refuse(500));
    let before = beating.server.count(LEASE);
    beating.server.reaches(LEASE, before + 3).await;
    beating.server.answers("", Answer::Take);
    let before = beating.server.count(LEASE);
    beating.server.reaches(LEASE, before + 2).await;
}

#[tokio::test]
async fn an_agent_that_is_stuck_has_no_heartbeat() {
    let stall = Duration::from_millis(500);
    let beating = beating(Pace { stall, ..PACE }).await;
    beating.server.reaches(LEASE, 2).await;
    tokio::time::sleep(stall + PACE.renew).await;
    let stuck = beating.server.count(LEASE);
    tokio::time::sleep(stall).await;
    assert_eq!(beating.server.count(LEASE), stuck);
    beating.turns.send_replace(Instant::now());
    beating.server.reaches(LEASE, stuck + 2).await;
}
