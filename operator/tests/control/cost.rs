//! What a change costs the hub does not depend on how many slices there are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use slice_operator::hub::{Event, Input, Source};

use crate::stage::Stage;

/// Clusters of the hub; each slice has two of them.
const CLUSTERS: usize = 20;
/// Changes of which the median counts.
const CHANGES: usize = 301;
/// By how much a change may cost more with a hundred times as many slices.
const MOST: f64 = 1.5;

fn cluster(number: usize) -> String {
    format!("c{}", number % CLUSTERS)
}

fn stage(slices: usize) -> Stage {
    let mut stage = Stage::new();
    for number in 0..CLUSTERS {
        stage.cluster(&cluster(number));
    }
    for number in 0..slices {
        let subnet = format!("10.{}.{}.0/24", 100 + number / 256, number % 256);
        let clusters = [cluster(number), cluster(number + 1)];
        stage.user(
            "SliceConfig",
            &format!("s{number}"),
            json!({"subnets": [subnet], "clusters": clusters}),
        );
    }
    for number in 0..slices {
        for of in [number, number + 1] {
            stage.obey(&cluster(of), &format!("s{number}"), json!({}));
        }
    }
    stage.pass(2, &[]);
    stage
}

/// The report of a member whose gateway has another key.
fn changed(report: &Value, round: usize) -> Value {
    let mut report = report.clone();
    let key = format!("{round:0>42}A=");
    report["spec"]["gateways"] =
        json!([{"ordinal": 0, "publicKey": key, "endpoints": ["192.0.2.1:30001"], "up": true}]);
    report["metadata"]["resourceVersion"] = (1_000_000_000 + round).to_string().into();
    report
}

/// Median time from a report to the last write that follows from it, without the API server's part.
fn cost(stage: &mut Stage) -> Duration {
    let report = stage
        .server
        .get("MemberSliceReport", "weft-member-c0", "s0")
        .unwrap()
        .clone();
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let input = Input::read(Source::MemberSliceReport, &changed(&report, round));
        let now = stage.now();
        let started = Instant::now();
        stage.hub.handle(Event::Seen(Box::new(input)), now);
        let mut passed = Duration::ZERO;
        let mut from = started;
        let mut writes = 0;
        while let Some(write) = stage.hub.poll_write(now) {
            passed += from.elapsed();
            let outcome = stage.server.write(&write);
            from = Instant::now();
            stage.hub.handle(Event::Written(write.key, outcome), now);
            writes += 1;
        }
        passed += from.elapsed();
        assert!(writes > 0, "nobody got the new key");
        times.push(passed);
        // What follows from time, and not from the change.
        stage.clock += Duration::from_secs(2);
        (0..CLUSTERS).for_each(|number| stage.heartbeat(&cluster(number)));
        stage.settle();
    }
    times.sort();
    times[CHANGES / 2]
}

#[test]
fn a_change_costs_the_same_with_ten_slices_and_with_a_thousand() {
    let sizes = [10, 100, 1000];
    let mut stages = sizes.map(stage);
    // Other processes run meanwhile: what holds in one of a few rounds is what the code does.
    let mut seen = vec![];
    for _ in 0..5 {
        let costs: Vec<Duration> = stages.iter_mut().map(cost).collect();
        let ratio = |at: usize| costs[at].as_secs_f64() / costs[0].as_secs_f64();
        let line = format!(
            "{costs:?}: {:.2} and {:.2} times that of ten slices",
            ratio(1),
            ratio(2)
        );
        println!("{line}");
        if ratio(1) <= MOST && ratio(2) <= MOST {
            return;
        }
        seen.push(line);
    }
    panic!("{}", seen.join("\n"));
}
