//! `slicectl verify` says what is so: over paths that carry everything, short packets only, or nothing.

use std::{
    io::{BufRead, BufReader},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    ResourceExt,
    api::{Api, ListParams},
};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use slice_e2e::{
    harness::{Environment, poll, weft::own_slicectl},
    progress::say,
};

const SLICE: &str = "verified";
/// Namespaces of the probes begin with it.
const PROBES: &str = "weft-verify-";
const SOON: Duration = Duration::from_secs(60);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn arguments<'a>(contexts: &'a str, image: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = [
        "verify",
        SLICE,
        "--contexts",
        contexts,
        "--image",
        image,
        "-o",
        "json",
    ];
    [&fixed, more].concat()
}

/// The checks that were printed.
fn checks(output: &Output) -> Result<Vec<Value>> {
    let printed = text(&output.stdout);
    serde_json::from_str(&printed)
        .with_context(|| format!("no list of checks: {printed}{}", text(&output.stderr)))
}

async fn await_no_probes(environment: &Environment) -> Result<()> {
    for cluster in &environment.clusters {
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        let what = format!("cluster {}: no namespace of a probe", cluster.name);
        poll(SOON, &what, async || {
            let all = namespaces.list(&ListParams::default()).await?;
            let left = all.iter().any(|one| one.name_any().starts_with(PROBES));
            Ok((!left).then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_tells_a_good_path_from_a_narrow_and_a_dead_one() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    environment
        .slice(SLICE, json!({"subnets": ["10.87.0.0/16"]}))
        .await?;
    let (a, b) = (environment.cluster(0)?, environment.cluster(1)?);
    let contexts = format!("{},{}", a.name, b.name);
    let image = environment.image.clone();
    let verify = |more: &[&str]| environment.try_slicectl(&a.name, &arguments(&contexts, &image, more));
    let across = |check: &Value| {
        let cluster = |end: &str| {
            check[end]
                .as_str()
                .and_then(|name| name.split('/').next())
                .map(str::to_owned)
        };
        cluster("from") != cluster("to")
    };

    let output = verify(&[])?;
    let good = checks(&output)?;
    ensure!(output.status.success(), "{good:#?}");
    for check in &good {
        let detail = check["detail"].as_str().unwrap_or_default();
        ensure!(check["ok"] == true && !detail.is_empty(), "{check}");
    }
    let nodes = a.nodes().await?.len() + b.nodes().await?.len();
    let pings = good.iter().filter(|check| check["check"] == "ping IPv4").count();
    ensure!(
        pings == nodes * (nodes - 1),
        "{pings} pairs of {nodes} nodes were tried"
    );
    ensure!(
        good.iter().any(|check| check["check"] == "DNS of the pod"),
        "{good:#?}"
    );
    say(format!("{} checks of a good slice are ok", good.len()));

    // Two nodes are enough for the rest: each lost answer is waited for.
    let few = ["--nodes", "1"];
    // Nothing that a slice could make its packets fits through.
    let narrow = environment.narrow(&b.nodes().await?, &a.name, 600)?;
    let output = verify(&few)?;
    let seen = checks(&output)?;
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    for check in seen.iter().filter(|check| across(check)) {
        let kind = check["check"].as_str().unwrap_or_default();
        if kind.starts_with("ping") {
            ensure!(check["ok"] == true, "{check}");
        } else if kind.contains("-byte packet") {
            ensure!(check["ok"] == false && check["detail"] != "", "{check}");
        }
    }
    narrow.mend()?;
    let dead = environment.narrow(&b.nodes().await?, &a.name, 0)?;
    let output = verify(&few)?;
    let seen = checks(&output)?;
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    for check in seen
        .iter()
        .filter(|check| across(check) && !check["check"].as_str().unwrap_or_default().contains("DNS"))
    {
        ensure!(check["ok"] == false, "{check}");
        let detail = check["detail"].as_str().unwrap_or_default();
        ensure!(!detail.is_empty(), "{check}");
    }
    dead.mend()?;
    say("a path for short packets only and a dead one are told from it");
    await_no_probes(&environment).await?;

    let output = environment.try_slicectl(
        &a.name,
        &arguments(&contexts, "localhost/weft/no-such-image:1", &few),
    )?;
    let words = text(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && words.contains("ErrImage") || words.contains("ImagePullBackOff"),
        "{words}"
    );
    ensure!(
        words.contains("no-such-image") && words.contains("--image"),
        "{words}"
    );
    await_no_probes(&environment).await?;

    // Interrupted in the middle, it takes its probes away.
    let mut running = environment
        .slicectl_command(&own_slicectl(), &a.name, &arguments(&contexts, &image, &[]))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(running.stderr.take().context("its messages")?).lines();
    let started = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(" → ")));
    ensure!(started.is_some(), "nothing was tried");
    kill(
        nix::unistd::Pid::from_raw(running.id().cast_signed()),
        Signal::SIGINT,
    )?;
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = running.wait()?;
    ensure!(
        status.code() == Some(1) && rest.join("\n").contains("interrupted"),
        "{status}: {rest:?}"
    );
    await_no_probes(&environment).await?;
    environment.remove_slice(SLICE).await
}
