use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::*;

fn at(millis: u64) -> Now {
    Now {
        clock: Duration::from_millis(millis),
        wall: Timestamp::UNIX_EPOCH,
    }
}

fn key(name: &str) -> Key {
    Key::new(Kind::MemberSlice, "weft-member-a", name)
}

fn content(vni: u32) -> Content {
    Content::of(&json!({"metadata": {}, "spec": {"slice": {"vni": vni}}}))
}

/// The object as a server has it after a write.
fn seen(write: &Write, version: u64) -> Observed {
    let (Change::Create { body } | Change::Apply { body } | Change::Patch { body }) = &write.change else {
        panic!("{write:?}")
    };
    let mut body = body.clone();
    body["metadata"]["resourceVersion"] = version.to_string().into();
    body["metadata"]["uid"] = "u".into();
    Observed::of(write.key.kind, &body)
}

fn failed(reason: Reason) -> Outcome {
    Outcome::Failed(Failure {
        reason,
        message: "no".into(),
    })
}

fn version(write: &Write) -> Option<&str> {
    match &write.change {
        Change::Create { .. } | Change::Delete { .. } => None,
        Change::Apply { body } | Change::Patch { body } => body["metadata"]["resourceVersion"].as_str(),
    }
}

#[test]
fn what_is_missing_is_created_and_what_differs_is_applied_against_its_version() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("shop"), content(1));
    let create = outputs.poll(at(0)).unwrap();
    assert!(matches!(create.change, Change::Create { .. }));
    assert_eq!(outputs.poll(at(0)), None, "one at a time for one object");
    outputs.written(&key("shop"), Outcome::Written(seen(&create, 5)), at(1));
    assert_eq!(outputs.poll(at(1)), None);
    outputs.want(key("shop"), content(2));
    assert_eq!(version(&outputs.poll(at(1)).unwrap()), Some("5"));
}

#[test]
fn the_newest_wins_while_a_write_is_under_way() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("shop"), content(1));
    let first = outputs.poll(at(0)).unwrap();
    outputs.want(key("shop"), content(2));
    outputs.want(key("shop"), content(3));
    assert_eq!(outputs.poll(at(0)), None);
    outputs.written(&key("shop"), Outcome::Written(seen(&first, 5)), at(1));
    let Change::Apply { body } = outputs.poll(at(1)).unwrap().change else {
        panic!("an apply")
    };
    assert_eq!(body["spec"]["slice"]["vni"], 3);
}

#[test]
fn one_object_that_fails_delays_itself_only() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("bad"), content(1));
    outputs.want(key("good"), content(1));
    let bad = outputs.poll(at(0)).unwrap();
    assert_eq!(&*bad.key.name, "bad");
    outputs.written(&bad.key, failed(Reason::Forbidden), at(0));
    assert_eq!(&*outputs.poll(at(0)).unwrap().key.name, "good");
    assert_eq!(outputs.poll(at(499)), None);
    assert!(outputs.next_timeout().unwrap() >= FIRST_RETRY);
    assert_eq!(&*outputs.poll(at(700)).unwrap().key.name, "bad");
}

#[test]
fn failures_grow_apart_and_become_trouble_when_they_last() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("bad"), content(1));
    let (mut clock, mut waits) = (0, vec![]);
    for n in 1..=12 {
        let write = outputs.poll(at(clock)).unwrap();
        let persistent = outputs.written(&write.key, failed(Reason::Unavailable), at(clock));
        assert_eq!(persistent, n == PERSISTENT);
        let next = u64::try_from(outputs.next_timeout().unwrap().as_millis()).unwrap() + 1;
        waits.push(next - clock);
        clock = next;
    }
    assert!(
        waits[0] < 700 && waits[1] > 900 && waits[11] >= 60_000 && waits[11] < 76_000,
        "{waits:?}"
    );
    assert_eq!(outputs.trouble(&key("bad")).unwrap().message, "no");
}

#[test]
fn a_conflict_waits_for_the_watch_and_no_longer() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("shop"), content(1));
    let write = outputs.poll(at(0)).unwrap();
    outputs.written(&write.key, failed(Reason::Conflict), at(0));
    assert_eq!(outputs.poll(at(1)), None);
    let other = Observed::of(
        Kind::MemberSlice,
        &json!({"metadata": {"uid": "u", "resourceVersion": "9"}, "spec": {}}),
    );
    outputs.observe(key("shop"), other);
    assert_eq!(version(&outputs.poll(at(1)).unwrap()), Some("9"));
}

#[test]
fn a_watch_that_is_behind_changes_nothing() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("shop"), content(1));
    let write = outputs.poll(at(0)).unwrap();
    outputs.written(&write.key, Outcome::Written(seen(&write, 7)), at(0));
    let old = Observed::of(
        Kind::MemberSlice,
        &json!({"metadata": {"uid": "u", "resourceVersion": "6"}, "spec": {}}),
    );
    outputs.observe(key("shop"), old);
    outputs.gone(&key("shop"), Some("5"));
    assert_eq!(outputs.poll(at(0)), None);
    outputs.gone(&key("shop"), Some("8"));
    assert!(matches!(
        outputs.poll(at(0)).unwrap().change,
        Change::Create { .. }
    ));
}

#[test]
fn what_was_worked_out_from_a_version_is_written_over_no_other() {
    let mut outputs = Outputs::new("weft-hub");
    let there = |version: &str| {
        Observed::of(
            Kind::MemberSlice,
            &json!({"metadata": {"uid": "u", "resourceVersion": version}, "spec": {}}),
        )
    };
    outputs.want_from(key("shop"), content(1), None);
    outputs.observe(key("shop"), there("3"));
    assert_eq!(outputs.poll(at(0)), None);
    outputs.want_from(key("shop"), content(1), Some("3"));
    outputs.observe(key("shop"), there("4"));
    assert_eq!(outputs.poll(at(0)), None);
    outputs.want_from(key("shop"), content(1), Some("4"));
    assert_eq!(version(&outputs.poll(at(0)).unwrap()), Some("4"));
}

#[test]
fn a_write_without_an_answer_may_count() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("shop"), content(1));
    assert!(!outputs.is_unsure(&key("shop")));
    let write = outputs.poll(at(0)).unwrap();
    assert!(outputs.is_unsure(&key("shop")));
    outputs.written(&write.key, failed(Reason::Timeout), at(0));
    assert!(outputs.is_unsure(&key("shop")));
    outputs.written(&write.key, failed(Reason::Conflict), at(0));
    assert!(!outputs.is_unsure(&key("shop")));
}

#[test]
fn a_refused_content_waits_and_another_does_not() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("shop"), content(1));
    let write = outputs.poll(at(0)).unwrap();
    outputs.written(&write.key, failed(Reason::Refused), at(0));
    outputs.want(key("shop"), content(1));
    assert_eq!(outputs.poll(at(1)), None);
    outputs.want(key("shop"), content(2));
    assert!(outputs.poll(at(1)).is_some());
}

#[test]
fn what_is_to_go_is_deleted_once_and_what_nobody_wants_stays() {
    let mut outputs = Outputs::new("weft-hub");
    let there = |version: &str| {
        Observed::of(
            Kind::MemberSlice,
            &json!({"metadata": {"uid": "u", "resourceVersion": version}, "spec": {}}),
        )
    };
    outputs.observe(key("shop"), there("3"));
    assert_eq!(outputs.poll(at(0)), None);
    outputs.remove(key("shop"));
    let delete = outputs.poll(at(0)).unwrap();
    assert_eq!(delete.change, Change::Delete { uid: "u".into() });
    outputs.written(&delete.key, Outcome::Deleted, at(0));
    assert_eq!(outputs.poll(at(1)), None);
    outputs.gone(&key("shop"), Some("4"));
    assert_eq!(
        (outputs.poll(at(5000)), outputs.depth()),
        (None, Depth::default())
    );
}

#[test]
fn a_status_is_written_once_a_second_at_most() {
    let mut outputs = Outputs::new("weft-hub");
    let key = Key::new(Kind::ClusterStatus, "weft-default", "a");
    let object = json!({"metadata": {"uid": "u", "resourceVersion": "1"}});
    outputs.observe(key.clone(), Observed::of(Kind::ClusterStatus, &object));
    outputs.want(key.clone(), Content::status(&json!({"nodes": 1})));
    let write = outputs.poll(at(0)).unwrap();
    outputs.written(&write.key, Outcome::Written(seen(&write, 2)), at(0));
    outputs.want(key, Content::status(&json!({"nodes": 2})));
    assert_eq!(outputs.poll(at(900)), None);
    let Change::Apply { body } = outputs.poll(at(1000)).unwrap().change else {
        panic!("an apply")
    };
    assert!(body["status"]["observedAt"].is_string());
}

#[test]
fn a_new_leader_sends_again_what_was_under_way() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("shop"), content(1));
    assert!(outputs.poll(at(0)).is_some());
    outputs.forget_flights();
    assert!(outputs.poll(at(0)).is_some());
}

#[test]
fn what_changes_all_the_time_holds_up_nobody_else() {
    let mut outputs = Outputs::new("weft-hub");
    outputs.want(key("busy"), content(1));
    outputs.want(key("quiet"), content(1));
    let write = outputs.poll(at(0)).unwrap();
    assert_eq!(write.key, key("busy"));
    outputs.want(key("busy"), content(2));
    outputs.written(&key("busy"), Outcome::Written(seen(&write, 5)), at(1));
    outputs.want(key("busy"), content(3));
    let order: Vec<Key> = std::iter::from_fn(|| outputs.poll(at(1)))
        .map(|write| write.key)
        .collect();
    assert_eq!(order, [key("quiet"), key("busy")]);
}

#[test]
fn a_write_that_the_server_takes_and_does_not_follow_is_not_repeated_at_once() {
    let mut outputs = Outputs::new("weft-hub");
    let other = |version| {
        let create = Write {
            key: key("shop"),
            change: Change::Create {
                body: content(9).body(&key("shop"), None, "weft-hub"),
            },
        };
        seen(&create, version)
    };
    outputs.observe(key("shop"), other(5));
    outputs.want(key("shop"), content(1));
    let (mut now, mut writes) = (0, 0);
    while now < 60_000 {
        while outputs.poll(at(now)).is_some() {
            writes += 1;
            outputs.written(&key("shop"), Outcome::Written(other(5)), at(now));
        }
        now += 10;
    }
    assert!((4..=8).contains(&writes), "{writes} writes in a minute");
    let trouble = outputs.trouble(&key("shop")).unwrap();
    assert!(trouble.message.contains("webhook"), "{trouble:?}");
    // Another content may be taken.
    outputs.want(key("shop"), content(9));
    assert!(outputs.trouble(&key("shop")).is_none());
    outputs.want(key("shop"), content(2));
    let write = outputs.poll(at(now)).unwrap();
    outputs.written(&key("shop"), Outcome::Written(seen(&write, 6)), at(now));
    assert_eq!(outputs.poll(at(now + 60_000)), None);
}
