//! What `slicectl` says to somebody who has made a mistake: the object, what is so, and what to do.

use anyhow::{Result, ensure};
use serde_json::json;
use slice_e2e::{harness::Environment, progress::say};

const SLICE: &str = "spoken";

/// The line of an error, and the exit status that goes with it.
fn fails(environment: &Environment, context: &str, line: &str, expected: &[&str]) -> Result<()> {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let output = environment.try_slicectl(context, &arguments)?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    say(format!("slicectl --context {context} {line}: {}", words.trim()));
    ensure!(
        output.status.code().is_some_and(|code| code == 1 || code == 2),
        "`{line}` ended with {}: {words}",
        output.status
    );
    for part in expected {
        ensure!(words.contains(part), "`{line}` does not say \"{part}\": {words}");
    }
    // An error is a sentence, not what a program prints of its own objects.
    for part in ["Error {", "ServiceError", "ApiError", "Status {", "Some("] {
        ensure!(!words.contains(part), "`{line}` says \"{part}\": {words}");
    }
    Ok(())
}

#[tokio::test]
async fn mistakes_are_answered_with_what_is_so_and_what_to_do() -> Result<()> {
    let environment = Environment::open().await?;
    environment
        .slice(SLICE, json!({"subnets": ["10.88.0.0/16"]}))
        .await?;
    let (hub, member) = (
        environment.hub()?.name.clone(),
        environment.cluster(1)?.name.clone(),
    );
    let (hub, member) = (&*hub, &*member);
    for (line, expected) in [
        (
            "get slice nosuch",
            vec!["slice nosuch not found", "slicectl get slices"],
        ),
        ("get cluster nosuch", vec!["cluster nosuch not found"]),
        ("get node nosuch", vec!["node nosuch not found"]),
        ("get gateway nosuch", vec!["gateway nosuch not found"]),
        ("status nosuch", vec!["no slice nosuch", "slicectl get slices"]),
        ("delete slice nosuch --yes", vec!["no slice nosuch"]),
        ("delete cluster nosuch --yes", vec!["no cluster nosuch"]),
        ("attach ns default nosuch", vec!["no slice named nosuch", SLICE]),
        ("token revoke nosuch", vec!["no token nosuch"]),
        ("node nosuch", vec!["nosuch", "slicectl get nodes"]),
    ] {
        fails(&environment, hub, line, &expected)?;
    }

    // What exists is left as it is.
    let before = environment.slices()?.get(SLICE).await?;
    let again = format!("create slice {SLICE} --subnet 10.88.0.0/16 --cluster {hub}");
    fails(&environment, hub, &again, &["exists already", "left as it is"])?;
    let after = environment.slices()?.get(SLICE).await?;
    ensure!(
        before.spec == after.spec,
        "{:?} became {:?}",
        before.spec,
        after.spec
    );

    let key = format!("create peer p --slice {SLICE} --public-key x");
    fails(&environment, hub, &key, &["44 characters", "wg pubkey"])?;
    let bits = format!("create slice other --subnet 10.88.0.1/16 --cluster {hub}");
    fails(&environment, hub, &bits, &["host bits", "10.88.0.0/16"])?;

    // A context that is no hub is told so, with the one that is.
    let is_hub = format!("{hub} is hub and member");
    for line in [
        "get slices",
        "delete slice nosuch --yes",
        "create slice x --subnet 10.9.0.0/16 --cluster a",
        "token issue c",
    ] {
        fails(&environment, member, line, &[&is_hub, "--context"])?;
    }
    fails(&environment, "nowhere", "get slices", &["nowhere", hub, member])?;
    environment.remove_slice(SLICE).await
}
