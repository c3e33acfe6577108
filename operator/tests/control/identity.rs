//! Who a cluster is, and what tokens are good for.

use serde_json::{Value, json};
use slice_crds::conditions;

use crate::stage::Stage;

#[test]
fn a_cluster_is_who_joined_first() {
    let mut stage = Stage::new();
    stage.user("Cluster", "b", json!({}));
    let token = |stage: &mut Stage, name: &str, more: Value| {
        let mut spec = json!({"cluster": "b", "expiresSeconds": 3600});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        stage.member("b", "JoinToken", name, spec).pass(1, &[]);
    };
    let state = |stage: &Stage, name: &str| {
        stage.server.get("JoinToken", "weft-member-b", name).unwrap()["status"]["state"].clone()
    };
    let grant = |stage: &Stage| {
        stage
            .server
            .get("RoleBinding", "weft-member-b", "weft-join-granted")
            .is_some()
    };
    let answer = |stage: &Stage, name: &str| {
        let condition =
            &stage.server.get("MemberJoin", "weft-member-b", name).unwrap()["status"]["conditions"][0];
        format!(
            "{} {}",
            condition["status"].as_str().unwrap_or_default(),
            condition["message"].as_str().unwrap_or_default()
        )
    };
    token(&mut stage, "b-one", json!({}));
    assert_eq!(state(&stage, "b-one"), "Ready");
    assert!(
        stage
            .server
            .get("Secret", "weft-member-b", "weft-join-b-one")
            .is_some()
            && !grant(&stage)
    );
    stage
        .member("b", "MemberJoin", "b-one", json!({"clusterUID": "first"}))
        .pass(1, &[]);
    assert!(answer(&stage, "b-one").starts_with("True") && grant(&stage));
    // It fetches its credential, and reports with it: the token and the permission are gone.
    stage.heartbeat("b");
    stage
        .report("b", json!({"identity": {"clusterUID": "first", "join": "b-one"}}))
        .pass(3, &["b"]);
    assert!(!grant(&stage));
    assert_eq!(state(&stage, "b-one"), "Used");
    assert!(
        stage
            .server
            .get("Secret", "weft-member-b", "weft-join-b-one")
            .is_none()
    );
    // Another cluster with a token of its own for the same name.
    token(&mut stage, "b-two", json!({}));
    stage
        .member("b", "MemberJoin", "b-two", json!({"clusterUID": "second"}))
        .pass(1, &["b"]);
    let refused = answer(&stage, "b-two");
    assert!(
        refused.starts_with("False") && refused.contains("first") && refused.contains("second"),
        "{refused}"
    );
    assert!(!grant(&stage));
    // And with a stolen credential.
    stage
        .report("b", json!({"identity": {"clusterUID": "second"}, "nodes": 99}))
        .pass(2, &["b"]);
    let trusted = stage.condition("Cluster", "b", conditions::TRUSTED);
    assert!(
        trusted.contains("a report of cluster second was refused") && trusted.contains("cluster first"),
        "{trusted}"
    );
    // The name changes hands when its owner says so.
    token(&mut stage, "b-three", json!({"replaces": "first"}));
    let account = stage
        .server
        .get("ServiceAccount", "weft-member-b", "weft-member")
        .unwrap()["metadata"]["uid"]
        .clone();
    stage
        .member("b", "MemberJoin", "b-three", json!({"clusterUID": "second"}))
        .pass(20, &["b"]);
    assert!(
        answer(&stage, "b-three").starts_with("True"),
        "{}",
        answer(&stage, "b-three")
    );
    let now = stage
        .server
        .get("ServiceAccount", "weft-member-b", "weft-member")
        .unwrap()["metadata"]["uid"]
        .clone();
    assert_ne!(account, now, "the first cluster's credential is void");
}

#[test]
fn a_token_expires_and_is_revoked() {
    let mut stage = Stage::new();
    stage.user("Cluster", "b", json!({}));
    stage
        .member(
            "b",
            "JoinToken",
            "b-one",
            json!({"cluster": "b", "expiresSeconds": 600}),
        )
        .pass(599, &[]);
    assert!(
        stage
            .server
            .get("Secret", "weft-member-b", "weft-join-b-one")
            .is_some()
    );
    stage.pass(3, &[]);
    assert!(
        stage
            .server
            .get("Secret", "weft-member-b", "weft-join-b-one")
            .is_none()
    );
    assert_eq!(
        stage.server.get("JoinToken", "weft-member-b", "b-one").unwrap()["status"]["state"],
        "Expired"
    );
    stage
        .member(
            "b",
            "JoinToken",
            "b-two",
            json!({"cluster": "b", "expiresSeconds": 600}),
        )
        .pass(1, &[]);
    stage.delete("JoinToken", "weft-member-b", "b-two");
    assert!(
        stage
            .server
            .get("Secret", "weft-member-b", "weft-join-b-two")
            .is_none()
    );
    // A member's credential is cut off by making its account anew.
    let account = |stage: &Stage| {
        stage
            .server
            .get("ServiceAccount", "weft-member-b", "weft-member")
            .unwrap()["metadata"]["uid"]
            .clone()
    };
    let before = account(&stage);
    stage
        .annotate(
            "Cluster",
            "weft-default",
            "b",
            "weft.dev/revoked",
            "2026-11-27T10:00:00Z",
        )
        .pass(3, &[]);
    let after = account(&stage);
    assert_ne!(before, after);
    stage.pass(10, &[]);
    assert_eq!(account(&stage), after);
}
